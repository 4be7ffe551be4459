//! The fetch engine: what is wanted, from where it comes, how it gets here.
//!
//! [`schedule`] decides, with [`estimate`] and [`ladder`], and [`assemble`] cuts,
//! without I/O; [`engine`] is what is asked, and `driver` does what the scheduler
//! says, `peers` what concerns them; [`tunnel`] brings blocks from peers, and [`registry`] is the source of last
//! resort; [`build`] is the first pass over a layer that nobody has an index of, and
//! [`relay`] has one node of a LAN read its blob for all; [`exact`] brings blobs byte
//! for byte, as the mirror serves them.

mod account;
mod assemble;
mod build;
mod cuts;
mod driver;
mod engine;
pub mod estimate;
mod exact;
mod index;
mod install;
pub mod ladder;
mod local;
mod peers;
mod registry;
pub mod relay;
pub mod schedule;
mod serve;
mod source;
pub mod tunnel;
mod work;

pub use account::{Source, Sources};
pub use build::{FirstPass, PassError};
pub use engine::{Engine, FetchError};
pub use exact::{Arriving, ExactBlob, ExactPass, exact_name};
pub use index::LayerIndex;
pub use install::{IndexParts, InstallError, check, install};
pub use peers::{Control, Finder, IndexOffers, Link, PeerStatus, Relay, Way};
pub use registry::{Origins, Registries, RegistrySource};
pub use relay::Spools;
pub use schedule::Class;
pub use serve::{Names, StoreServer};
pub use source::{BlockSink, BlockSource, SourceError, SourceFuture};
pub use work::{Board, Ticket, Work, WorkKind};
