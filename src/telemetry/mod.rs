//! Counters and logging: every figure that PeerSync reports is defined here.

mod counters;
mod logging;
mod metric;

pub use counters::{Counter, Counters, Readings, Snapshot};
pub use logging::init_logging;
pub use metric::{Definition, Kind, MEDIA_TYPE, Sample, render};
