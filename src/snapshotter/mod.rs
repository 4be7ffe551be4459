//! The containerd proxy snapshotter: how Kubernetes, nerdctl and ctr get at
//! layers that fill as they are read.
//!
//! Two kinds of snapshots live side by side. An **ordinary** one is what
//! containerd's own overlayfs snapshotter has: a directory that containerd unpacks
//! into, commits and mounts. A **remote** one has no files here: its record names a
//! chain, and [`remote::RemoteLayers`] makes that chain a directory to mount.
//!
//! | module | what it does | touches |
//! |---|---|---|
//! | [`meta`] | the snapshot table and its rules | its database |
//! | [`filter`] | containerd's filter language | nothing |
//! | `in_use` | which snapshots the mount table shows | nothing |
//! | [`labels`] | which layer containerd's labels ask for | nothing |
//! | [`mounts`] | what containerd is told to mount | nothing |
//! | [`directories`], [`usage`], [`meter`] | files of ordinary snapshots, their removal and size | the disk |
//! | [`remote`] | the seam to lazy layers | nothing |
//! | [`engine`] | each operation, from these parts | through them |
//! | [`service`], [`server`], [`socket`] | gRPC on a Unix socket | the socket |

pub mod directories;
pub mod engine;
pub mod error;
pub mod filter;
mod in_use;
pub mod labels;
pub mod meta;
pub mod meter;
pub mod mounts;
mod overlay;
pub mod proto;
pub mod remote;
pub mod server;
pub mod service;
pub mod socket;
pub mod usage;

pub use engine::{Snapshotter, StartError};
pub use error::Error;
pub use remote::{
    KnownChain, NoRemoteLayers, RemoteChain, RemoteError, RemoteImage, RemoteLayer, RemoteLayers,
};
pub use server::{ServeError, serve};
pub use socket::{BindError, Socket};
