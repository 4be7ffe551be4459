//! PeerSync: container images and model weights, usable before they are downloaded.
//!
//! `docs/ARCHITECTURE.md` is the map. Modules stand in layers and import
//! strictly downwards; `tests/tidy.rs` holds them to it.

pub mod layer;
pub mod store;
pub mod types;
// Pure, and fuzzed without the rest of the node.
pub mod wire;

#[cfg(feature = "node")]
pub mod admin;
#[cfg(feature = "node")]
pub mod blocks;
#[cfg(feature = "node")]
pub mod cli;
#[cfg(feature = "node")]
pub mod config;
#[cfg(feature = "node")]
pub mod daemon;
#[cfg(feature = "node")]
pub mod doctor;
#[cfg(feature = "node")]
pub mod eviction;
#[cfg(feature = "node")]
pub mod fetch;
#[cfg(feature = "node")]
pub mod fs;
#[cfg(feature = "node")]
pub mod fuse;
#[cfg(feature = "node")]
pub mod identity;
#[cfg(feature = "node")]
pub mod mirror;
#[cfg(feature = "node")]
pub mod mount;
#[cfg(feature = "node")]
pub mod oci;
#[cfg(feature = "node")]
pub mod snapshotter;
#[cfg(feature = "node")]
pub mod swarm;
#[cfg(feature = "node")]
pub mod telemetry;
