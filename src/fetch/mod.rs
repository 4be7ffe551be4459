//! The fetch engine.

mod assemble;
mod queue;

pub use assemble::{Assembler, RawBlock, Stretch};
pub use queue::*;
