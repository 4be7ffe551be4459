//! The fetch engine: what is wanted, from where it comes, how it gets here.
//!
//! [`queue`] and [`assemble`] decide and cut, without I/O; [`engine`] drives
//! them; [`registry`] is the source of last resort; [`build`] is the first pass
//! over a layer that nobody has an index of.

mod assemble;
mod build;
mod engine;
pub mod estimate;
mod index;
mod install;
pub mod ladder;
mod local;
mod queue;
mod registry;
pub mod schedule;
mod source;
pub mod tunnel;
mod work;

pub use build::{FirstPass, PassError};
pub use engine::{Engine, FetchError};
pub use index::LayerIndex;
pub use install::{IndexParts, InstallError, check, install};
pub use queue::Class;
pub use registry::{Origins, Registries, RegistrySource};
pub use source::{BlockSink, BlockSource, SourceError, SourceFuture};
pub use work::{Board, Ticket, Work, WorkKind};
