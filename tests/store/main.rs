//! The store, from outside.

#![allow(missing_docs, unreachable_pub)]

mod basic;
mod sweep;
mod util;
