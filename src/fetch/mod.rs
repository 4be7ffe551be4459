//! The fetch engine.

mod assemble;
pub mod estimate;
pub mod ladder;
mod queue;

pub use assemble::{Assembler, RawBlock, Stretch};
pub use queue::*;
