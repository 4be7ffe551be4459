//! `peersync doctor`: is this machine set up right, and if not, what to do.
//!
//! [`collect`] gathers [`Facts`] from the machine and never changes anything (a
//! port is tried by binding it for a moment, FUSE by a mount that nobody else sees).
//! [`check`] turns facts into a
//! [`Report`], purely. A finding that is not fine says what to do about it.

mod checks;
mod collect;
mod containerd;
mod machine;
mod report;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::SystemTime;

pub use checks::check;
pub use collect::collect;
pub use containerd::{ContainerdConfig, ContainerdError, CriConfig, ProxyPlugin};
pub use report::{Finding, Report, Status};

/// What the node is configured to use.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The store's directory.
    pub store: PathBuf,
    /// Bytes that have to stay free on the store's disk.
    pub min_free: u64,
    /// The snapshotter's socket.
    pub socket: PathBuf,
    /// How many file systems may be stacked on the mount (`[mount] stack_depth`).
    pub stack_depth: u32,
    /// containerd's configuration.
    pub containerd_config: PathBuf,
    /// Addresses that the daemon listens on.
    pub listeners: Vec<Listener>,
}

/// An address that the daemon listens on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// The configuration key, such as `mirror.listen`.
    pub key: &'static str,
    /// The address.
    pub address: SocketAddr,
    /// UDP as well as TCP.
    pub udp: bool,
}

/// What was found on the machine.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Whether the daemon would be root here.
    pub root: bool,
    /// The kernel's release, such as `6.12.1-amd64`.
    pub kernel: String,
    /// Whether `/dev/fuse` can be opened.
    pub fuse: Access,
    /// What came of a mount, as root: what the kernel offers, or why it refused.
    pub fuse_mount: Option<Result<FuseOffer, String>>,
    /// Whether the kernel knows overlayfs; none if that can't be told.
    pub overlayfs: Option<bool>,
    /// The file system of the store, or of the nearest directory above that exists.
    pub disk: Result<Disk, String>,
    /// What is at the snapshotter's socket.
    pub socket: SocketState,
    /// containerd's configuration, if there is a file.
    pub containerd: Option<Result<ContainerdConfig, ContainerdError>>,
    /// The snapshotters that the running containerd has loaded and that work, by name,
    /// or why it does not say; none if there is no `ctr` to ask with.
    pub loaded: Option<Result<Vec<String>, String>>,
    /// For each listener, whether its address can be had.
    pub listeners: Vec<(Listener, ListenerState)>,
    /// The time by this machine's clock.
    pub now: SystemTime,
    /// The latest change seen on the machine's files: no clock is behind that.
    pub latest_change: Option<SystemTime>,
    /// Whether the clock is kept by a time service, where that can be told.
    pub clock_synchronised: Option<bool>,
}

/// Whether something can be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// It can.
    Open,
    /// It is not there.
    Missing,
    /// It is there and can't be opened, for this reason.
    Refused(String),
}

/// What the kernel's side of FUSE can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FuseOffer {
    /// Files can be backed by local ones.
    pub passthrough: bool,
}

/// A file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Its type, such as `ext4`; `0x...` where it has no name here.
    pub kind: String,
    /// All bytes.
    pub total: u64,
    /// Bytes free to us.
    pub free: u64,
    /// Free inodes; none where the file system has no fixed number.
    pub inodes_free: Option<u64>,
    /// Mounted read-only.
    pub read_only: bool,
}

/// What is at the path of a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SocketState {
    /// Somebody answers.
    Answers,
    /// Nothing is there.
    Missing,
    /// A socket that nobody listens on.
    Stale,
    /// Something else has that name.
    NotASocket,
    /// It can't be reached, for this reason.
    Refused(String),
}

/// Whether an address can be listened on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenerState {
    /// It is free.
    Free,
    /// The daemon that answers on the snapshotter's socket has it.
    Ours,
    /// Somebody has it.
    InUse,
    /// It can't be had, for this reason.
    Refused(String),
}
