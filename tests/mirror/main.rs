//! The registry mirror: the built daemon between real clients and a real
//! registry, with a line between the two that counts and can be cut; and clients
//! and registries that no honest tool is.
//!
//! The tests need root and `/dev/fuse` (the daemon mounts); see `tests/run`.

#[allow(dead_code, unused_imports, unused_macros)]
#[path = "../e2e/harness/mod.rs"]
mod harness;
mod http;
mod node;

mod budget;
mod clients;
mod conformance;
mod docker;
mod faults;
mod hostile;
mod peers;
mod protocol;
mod together;
