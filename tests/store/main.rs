//! The store, from outside.

#![allow(missing_docs, unreachable_pub)]

mod basic;
mod bits;
mod damage;
mod flip;
mod format;
mod golden;
mod invariants;
mod layer;
mod live;
mod model;
mod opening;
mod populated;
mod sweep;
mod tables;
mod util;
