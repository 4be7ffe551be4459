//! Counters and logging: every figure that PeerSync reports is defined here.

mod counters;
mod logging;

pub use counters::{Counter, Counters, Snapshot};
pub use logging::init_logging;
