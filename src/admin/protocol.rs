//! What is said on the control socket.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::mount::IndexMode;

/// The socket's name in the store's directory.
pub const SOCKET: &str = "control.sock";

/// Asks the owner of a store for something.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum Request {
    /// Is anybody there?
    Ping,
    /// Mount an image; answers [`Event::Mounted`] when the mount answers.
    Mount(MountArgs),
    /// Fetch all of an image; answers [`Event::Pulled`].
    Pull {
        /// The image.
        image: String,
        /// Hosts besides loopback that are spoken to in plain HTTP.
        plain_http: bool,
    },
    /// Answers [`Event::Images`].
    Images,
    /// Answers [`Event::Layers`].
    Layers,
    /// Answers [`Event::Status`].
    Status,
    /// Answers [`Event::Peers`].
    Peers,
    /// Make sure that every layer of the image has an index; answers [`Event::Layers`].
    IndexBuild {
        /// The image.
        image: String,
        /// As in [`Request::Pull`].
        plain_http: bool,
    },
    /// Write the index beside the image as a referrer; answers [`Event::Pushed`].
    IndexPush {
        /// The image.
        image: String,
        /// As in [`Request::Pull`].
        plain_http: bool,
    },
    /// Evict what the budget wants gone; answers [`Event::Gc`].
    Gc {
        /// Only say what would go.
        dry_run: bool,
    },
    /// Keep an image or a layer; answers [`Event::Pins`].
    Pin {
        /// Its reference, or its digest.
        name: String,
    },
    /// Keep it no more; answers [`Event::Pins`].
    Unpin {
        /// As it was pinned.
        name: String,
    },
    /// Answers [`Event::Pins`].
    Pins,
    /// What nodes are remembered; answers [`Event::Remembered`].
    Remembered,
    /// Forget remembered nodes; answers [`Event::Forgotten`].
    Forget {
        /// Only those of the network that this machine is in.
        here: bool,
    },
    /// What the objects of the store are and which blocks are there: lines as
    /// `store::format::inventory` describes them.
    Inventory {
        /// One object only: 64 hexadecimal digits.
        #[serde(default)]
        object: Option<String>,
    },
}

/// What to mount, where and how.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MountArgs {
    /// A reference, or `oci:DIR[:tag]` or `docker-archive:FILE[:name]` with an absolute path.
    pub image: String,
    /// The mount point, absolute.
    pub dir: PathBuf,
    /// As in [`Request::Pull`].
    pub plain_http: bool,
    /// Where indexes may come from.
    pub index: IndexMode,
    /// Honour setuid bits.
    pub suid: bool,
    /// Honour device nodes.
    pub dev: bool,
}

/// What the owner answers; the last line is one that ends the request.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// Work goes on.
    Progress(Progress),
    /// Something that a person should know.
    Note {
        /// One sentence.
        message: String,
    },
    /// The owner is there.
    Pong {
        /// Its process.
        pid: u32,
    },
    /// The mount answers.
    Mounted(MountInfo),
    /// The image is here.
    Pulled(PullReport),
    /// What images are known.
    Images {
        /// By name.
        images: Vec<ImageInfo>,
    },
    /// What layers are known.
    Layers {
        /// In order of their slots, or of the image.
        layers: Vec<LayerInfo>,
    },
    /// How the node is.
    Status(Box<Status>),
    /// Who is there.
    Peers {
        /// This node's name and where it listens; none if it is alone.
        node: Option<SwarmNode>,
        /// Neighbours first.
        peers: Vec<PeerInfo>,
    },
    /// The index is in the registry.
    Pushed {
        /// Digest of the referrer's manifest.
        digest: String,
        /// Bytes of all its blobs.
        bytes: u64,
    },
    /// What went, or would.
    Gc(Box<GcReport>),
    /// What is pinned.
    Pins {
        /// By name.
        pins: Vec<PinInfo>,
    },
    /// Nodes that were good before.
    Remembered {
        /// The network that this machine is in.
        here: String,
        /// By network: the one that was used last first; in each the best first.
        nodes: Vec<RememberedInfo>,
    },
    /// Remembered nodes are forgotten.
    Forgotten {
        /// Networks.
        networks: u64,
        /// Nodes of all of them.
        nodes: u64,
    },
    /// The request failed.
    Failed(Failure),
    /// A line of the inventory, which has a form of its own.
    #[serde(untagged)]
    Line(serde_json::Value),
}

impl Event {
    /// Whether the request is answered with this.
    pub fn is_last(&self) -> bool {
        !matches!(self, Self::Progress(_) | Self::Note { .. })
    }
}

/// A node among its peers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwarmNode {
    /// Its key: 64 hexadecimal digits.
    pub id: String,
    /// Where it listens.
    pub listen: SocketAddr,
    /// Its stability, 0 to 1000: the highest of a partition is elected tracker.
    pub score: u16,
    /// The node that its partition has elected; none: look-ups go to all peers.
    pub tracker: Option<TrackerInfo>,
    /// Where this node is the tracker: nodes that announce to it.
    pub announced_nodes: u64,
    /// Where this node is the tracker: layers that they hold.
    pub announced_layers: u64,
    /// Questions to trackers that were answered.
    pub lookups_answered: u64,
    /// Questions to trackers that were not, or badly.
    pub lookups_failed: u64,
}

/// A tracker in office.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrackerInfo {
    /// Its key: 64 hexadecimal digits.
    pub id: String,
    /// Whether it is this node.
    pub is_this_node: bool,
    /// The stability by which it was elected, 0 to 1000.
    pub score: u16,
    /// Seconds since this node follows it.
    pub since_seconds: u64,
    /// Why it is the tracker, in a sentence.
    pub why: String,
}

/// A peer that there are tunnels to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerInfo {
    /// Its key: 64 hexadecimal digits.
    pub id: String,
    /// Where it can be called, if anywhere.
    pub address: Option<SocketAddr>,
    /// Whether it is in this node's LAN.
    pub lan: bool,
    /// Where it says it is: country, provider, state, city; those that it tells.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub zone: BTreeMap<String, String>,
    /// Whom to ask first, in thousandths of points, 0 to 100,000: eq. (6).
    pub score: u32,
    /// What the score is made of, alike: `net` (speed), `pop` (what it holds),
    /// `custom`.
    #[serde(default)]
    pub score_parts: BTreeMap<String, u32>,
    /// Open tunnels, by transport: `tcp` or `quic`.
    pub tunnels: Vec<String>,
    /// `V_conn`: what one more tunnel is expected to bring, in bytes per second.
    pub speed: u64,
    /// Bytes of content that came from it.
    pub received_bytes: u64,
    /// Bytes of content that went to it, as on the wire.
    pub sent_bytes: u64,
    /// Timeouts that are not forgiven yet.
    pub timeouts: u32,
    /// Wrong blocks that it sent.
    pub wrong_blocks: u32,
    /// Seconds since it came.
    pub connected_seconds: u64,
}

/// How far work on one layer is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// The layer's blob digest.
    pub layer: String,
    /// What is being done.
    pub stage: Stage,
    /// Bytes done.
    pub done: u64,
    /// Bytes in all.
    pub total: u64,
    /// Bytes of content fetched so far by source: `local` (held under another
    /// name), `lan`, `remote`, `registry`, `wasted`. Empty for other work.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sources: BTreeMap<String, u64>,
}

/// What is done to a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Its first pass: every byte of the blob is read once.
    FirstPass,
    /// Its missing content is fetched.
    Fetch,
    /// Its index is written to the registry.
    Push,
    /// All of it is here.
    Complete,
}

/// A mount that answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountInfo {
    /// The image as it was asked for; the daemon's whole tree has none.
    pub image: Option<String>,
    /// Where.
    pub dir: PathBuf,
    /// The process that serves it.
    pub pid: u32,
}

/// Where the bytes of a pull came from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullReport {
    /// The image.
    pub image: String,
    /// Its manifest.
    pub manifest: String,
    /// Uncompressed bytes of all its content.
    pub content_bytes: u64,
    /// Counters that changed, by name.
    pub bytes: BTreeMap<String, u64>,
    /// Bytes of content that this pull fetched, by source, as in [`Progress`].
    #[serde(default)]
    pub sources: BTreeMap<String, u64>,
}

/// A known image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageInfo {
    /// Its reference.
    pub image: String,
    /// Its manifest's digest.
    pub manifest: String,
    /// Its layers' diffIDs.
    pub layers: Vec<String>,
    /// Uncompressed bytes of its content.
    pub content_bytes: u64,
    /// Bytes of it that are here.
    pub resident_bytes: u64,
    /// When its name was last looked up, in seconds since 1970.
    pub resolved_at: u64,
}

/// A known layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerInfo {
    /// The digest of its uncompressed stream; of the blob for what is not a tar.
    pub diff_id: String,
    /// The blobs it is known as.
    pub blobs: Vec<String>,
    /// `gzip`, `zstd`, `plain`.
    pub compression: String,
    /// Whether a registry can be asked for a part of it: a gzip or plain layer,
    /// and a zstd layer of several frames.
    pub lazy: bool,
    /// Where the index came from: `self` or `registry`.
    pub index: String,
    /// Bytes of its index.
    pub index_bytes: u64,
    /// Files, directories and other nodes.
    pub nodes: u64,
    /// Uncompressed bytes of its content.
    pub content_bytes: u64,
    /// Bytes of it that are here.
    pub resident_bytes: u64,
    /// How common it is among this node and its peers, in thousandths: the share of
    /// images that contain it, eq. (4). 0 for a node that is alone.
    #[serde(default)]
    pub popularity: u32,
}

/// How a node is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// PeerSync's version.
    pub version: String,
    /// The owner's process.
    pub pid: u32,
    /// Seconds since it started.
    pub uptime_seconds: u64,
    /// The store.
    pub store: StoreInfo,
    /// Bytes by source since the owner started: `registry` and `index` as on the
    /// line; of content `dedup`, `lan`, `remote` and `wasted`; and what readers got
    /// without waiting, `local`.
    pub bytes: BTreeMap<String, u64>,
    /// All counters by name.
    pub counters: BTreeMap<String, u64>,
    /// What is mounted.
    pub mounts: Vec<MountInfo>,
    /// Layers on which work goes on.
    pub work: Vec<Progress>,
    /// This node in its swarm; none if it is alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub swarm: Option<SwarmNode>,
    /// Peers that there are tunnels to.
    #[serde(default)]
    pub peers: u64,
    /// Where Prometheus finds its metrics, if anywhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<String>,
}

/// How full a store is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreInfo {
    /// Where.
    pub path: PathBuf,
    /// Objects.
    pub objects: u64,
    /// Bytes of blocks that are here.
    pub resident_bytes: u64,
    /// Bytes free on its file system.
    pub free_bytes: u64,
}

/// What an eviction did, or would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GcReport {
    /// Nothing was done.
    pub dry_run: bool,
    /// Bytes that the store held before.
    pub used_bytes: u64,
    /// Bytes that it may hold.
    pub budget_bytes: u64,
    /// Bytes that went, or would go.
    pub freed_bytes: u64,
    /// Bytes that have to go and can't now.
    pub short_bytes: u64,
    /// All objects, by what becomes of them and why.
    pub groups: Vec<GcGroup>,
    /// The largest of them, what goes first.
    pub items: Vec<GcItem>,
}

/// Objects that stay or go for the same reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GcGroup {
    /// They go.
    pub goes: bool,
    /// Why.
    pub why: String,
    /// How many.
    pub objects: u64,
    /// Bytes of them that are here.
    pub bytes: u64,
}

/// An object that stays or goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GcItem {
    /// Its name: 64 hexadecimal digits.
    pub object: String,
    /// It goes.
    pub goes: bool,
    /// Why.
    pub why: String,
    /// Bytes of it that are here.
    pub bytes: u64,
    /// Since when nobody used it, if anybody ever did.
    pub unused_seconds: Option<u64>,
}

/// A pin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinInfo {
    /// An image's reference or a layer's digest.
    pub name: String,
    /// When it was set, in seconds since 1970.
    pub since: u64,
}

/// A node that was a good neighbour before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RememberedInfo {
    /// In which network.
    pub network: String,
    /// Its key: 64 hexadecimal digits.
    pub id: String,
    /// Where its tunnels are.
    pub address: SocketAddr,
    /// Bytes per second at its best, once measured.
    pub speed: Option<u64>,
    /// When it was there last, in seconds since 1970.
    pub seen: u64,
    /// Calls in vain since then.
    pub failures: u32,
}

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// For the exit code.
    pub kind: FailureKind,
    /// What happened, to what, and what to do.
    pub message: String,
}

/// Classes of failure; each has an exit code of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureKind {
    /// The request itself makes no sense.
    Usage,
    /// The image, tag or layer does not exist.
    NotFound,
    /// The registry asks for credentials, or refuses them.
    Denied,
    /// The registry can't be reached or does not answer.
    Unreachable,
    /// What came is not what its digest or format says.
    Corrupt,
    /// Another process owns the store and does not listen.
    InUse,
    /// Anything else.
    Failed,
}

impl Failure {
    /// A failure with a message.
    pub fn new(kind: FailureKind, message: impl std::fmt::Display) -> Self {
        Self { kind, message: message.to_string() }
    }
}

impl FailureKind {
    /// The exit code of a command that fails so.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Failed | Self::InUse => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::Denied => 4,
            Self::Unreachable => 5,
            Self::Corrupt => 6,
        }
    }
}
