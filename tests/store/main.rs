//! The store, from outside.

#![allow(missing_docs, unreachable_pub)]

mod basic;
mod damage;
mod flip;
mod layer;
mod model;
mod populated;
mod sweep;
mod util;
