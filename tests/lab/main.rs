//! Nodes in a lab of network namespaces: what several of them do together, each
//! with its own store, mount and address, behind lines that are thin.
//!
//! The tests need root and `/dev/fuse`; see `tests/run`. To stand in the lab by
//! hand: `cargo test --test lab by_hand -- --ignored --nocapture`.

#[path = "../e2e/harness/mod.rs"]
#[allow(dead_code, unused_imports, unused_macros)]
mod harness;
#[allow(dead_code, unused_imports)]
mod world;

mod by_hand;
mod copies;
mod discovery;
mod itself;
mod look_ups;
mod mirror;
mod neighbours;
mod once;
mod table;
mod together;
