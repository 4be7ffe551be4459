//! The fetch engine.

mod assemble;
pub mod estimate;
pub mod ladder;
mod queue;
pub mod schedule;

pub use assemble::{Assembler, RawBlock, Stretch};
pub use queue::*;
