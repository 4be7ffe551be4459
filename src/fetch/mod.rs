//! The fetch engine.

mod queue;

pub use queue::*;
