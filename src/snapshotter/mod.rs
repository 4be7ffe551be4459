//! The containerd proxy snapshotter.

pub mod filter;
pub mod meta;
pub mod proto;
