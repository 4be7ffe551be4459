//! The scheduler's words: what it is told, and what it answers.

use std::ops::Range;
use std::time::Duration;

use crate::fetch::estimate::Weights;
use crate::fetch::ladder::THETA;
use crate::types::{Digest, ObjectId, PeerId};

/// Time since the engine started. It is an argument everywhere; where it goes
/// backwards, the scheduler stays at the latest it has seen.
pub type Time = Duration;

/// Names a tunnel. Made by the caller, never used twice.
pub type TunnelId = u64;
/// Names a request or run. Made by the scheduler, never used twice.
pub type RequestId = u64;
/// Names whoever is interested in blocks: one reader's request, or one stream's
/// readahead. Made by the caller, never used twice.
pub type InterestId = u64;

/// How urgent a want is; the order is the order of service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// A reader waits.
    Urgent,
    /// Readahead behind a sequential reader.
    Sequential,
    /// Where readers are likely to look first: headers, tables, ends of files.
    AccessPoint,
    /// Completing what is wanted as a whole; rarest blocks first.
    Completion,
    /// What may be read some day.
    Background,
}

impl Class {
    /// Whether a reader waits or soon will.
    pub fn is_reader(self) -> bool {
        self <= Self::Sequential
    }
}

/// A block's place in its object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockKey {
    /// The object.
    pub object: ObjectId,
    /// Number of the block in the object.
    pub index: u32,
}

/// What a search for sources is about: objects are found by the layer that they
/// stand in, parts of an index by themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Home {
    /// A layer, by the digest of its blob.
    Layer(Digest),
    /// An object that only peers have.
    Object(ObjectId),
}

/// Where a block's bytes lie in the uncompressed stream of its layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// From the block's first byte to its last, what lies between included.
    pub stream: Range<u64>,
    /// The nearest point at or before the first byte at which the stream can be
    /// entered.
    pub entry: u64,
    /// The first point at or after the last byte at which it can be entered
    /// again, or its end.
    pub next: u64,
    /// Number of the run of spans (16 of them) that holds `entry`: the unit in
    /// which the nodes of a LAN split a layer among them. All nodes must count
    /// alike, so it follows from the seek table that came with the `LayerRoot`.
    pub run: u32,
}

/// No stream is longer, in bytes.
const STREAM_MAX: u64 = 1 << 50;

impl Place {
    /// Whether it can be one; others count as none.
    pub fn is_sane(&self) -> bool {
        self.entry <= self.stream.start
            && self.stream.start < self.stream.end
            && self.stream.end <= self.next
            && self.next <= STREAM_MAX
    }
}

/// A block that somebody wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Its name.
    pub key: BlockKey,
    /// Its length in bytes, at least 1.
    pub len: u32,
    /// Where a registry has it; `None` for what only peers have.
    pub place: Option<Place>,
}

/// Where a peer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Near {
    /// In this node's LAN.
    Lan,
    /// Anywhere else.
    Remote,
}

/// A change in what a peer holds of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holding {
    /// The whole object.
    All,
    /// These blocks, too.
    Add(Range<u32>),
    /// These no more.
    Remove(Range<u32>),
    /// Nothing of it.
    Nothing,
}

/// Why a request was not answered, or not to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The source has too much to do; it may be asked again after this.
    Busy(Duration),
    /// It does not have what is still missing of the request.
    NotHave,
    /// The connection broke, the answer ended early: it may work later.
    Broken,
    /// It will never serve this: no such blob, not allowed.
    Never,
}

/// Where a look-up went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The neighbours.
    Lan,
    /// Tracker, DHT, everybody.
    Swarm,
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// A layer is known; to be told before the first want of its blocks.
    Home {
        /// Its name.
        home: Home,
        /// Size in bytes; of the blob, as line bytes are what theta is about.
        size: u64,
        /// Whether it can only be read from its start, as one stream.
        whole: bool,
        /// Whether a registry is known that has it.
        registry: bool,
    },
    /// A new reader of a layer is a reason to try at once what failed before.
    Retry {
        /// The layer.
        home: Home,
    },
    /// Blocks are wanted. Wanting one again joins; the most urgent interest counts.
    Want {
        /// By whom.
        interest: InterestId,
        /// The layer.
        home: Home,
        /// How urgent.
        class: Class,
        /// When the reader needs them; for urgent wants there is a default.
        deadline: Option<Time>,
        /// Which.
        blocks: Vec<Wanted>,
    },
    /// The interest is over: a seek, a close, a reader that gave up.
    Withdraw {
        /// Whose.
        interest: InterestId,
    },
    /// A block is here by another way: found in the store, handed on by a builder.
    Found {
        /// Which.
        key: BlockKey,
    },
    /// A peer is there.
    PeerUp {
        /// Which.
        peer: PeerId,
        /// Where.
        near: Near,
    },
    /// A peer is gone, with all its tunnels.
    PeerGone {
        /// Which.
        peer: PeerId,
    },
    /// A tunnel to a peer is open.
    TunnelUp {
        /// To whom.
        peer: PeerId,
        /// Its name.
        tunnel: TunnelId,
        /// Round trip of the handshake.
        rtt: Duration,
    },
    /// A tunnel closed; what was asked of it comes back.
    TunnelDown {
        /// Which.
        tunnel: TunnelId,
    },
    /// A tunnel to a peer could not be opened.
    TunnelFailed {
        /// To whom.
        peer: PeerId,
    },
    /// A round trip was measured.
    Rtt {
        /// Where.
        tunnel: TunnelId,
        /// How long.
        rtt: Duration,
    },
    /// What a peer holds has changed.
    Have {
        /// Who.
        peer: PeerId,
        /// Of which object.
        object: ObjectId,
        /// The change.
        holding: Holding,
    },
    /// A neighbour is getting blocks from outside the LAN, or gave it up.
    Getting {
        /// Who.
        peer: PeerId,
        /// Of which layer.
        home: Home,
        /// Which run of it they stand in.
        run: u32,
        /// Of which object.
        object: ObjectId,
        /// Which blocks.
        blocks: Range<u32>,
        /// Whether it is.
        on: bool,
    },
    /// A neighbour wants a layer, or no more.
    Wants {
        /// Who.
        peer: PeerId,
        /// The layer.
        home: Home,
        /// Whether it does.
        on: bool,
    },
    /// A neighbour's reader waits for a block that this node is to get for the
    /// LAN. Where nobody here wants the block, the caller wants it first, on the
    /// neighbour's behalf and as sequential.
    Asked {
        /// Who.
        peer: PeerId,
        /// For which.
        key: BlockKey,
    },
    /// Parts of a peer's score that are made elsewhere (eq. 4, 5 and 6).
    Scored {
        /// Who.
        peer: PeerId,
        /// `pop` of eq. (5), 0..=100.
        pop: f64,
        /// The custom score, 0..=100.
        custom: f64,
    },
    /// A look-up has ended. Who was found has been told before.
    LookedUp {
        /// For which layer.
        home: Home,
        /// Where.
        scope: Scope,
        /// Whether anybody holds anything of it.
        found: bool,
    },
    /// Bytes of a request came in. For a run these are bytes of the stream.
    Progress {
        /// Which.
        request: RequestId,
        /// How many more.
        bytes: u64,
    },
    /// A block came and matches its hash.
    Block {
        /// In answer to which request, even if it was cancelled.
        request: RequestId,
        /// Which block.
        key: BlockKey,
        /// Its length in bytes.
        len: u32,
    },
    /// What came as this block does not match its hash.
    Wrong {
        /// In answer to which request.
        request: RequestId,
        /// Which block.
        key: BlockKey,
    },
    /// A request was answered to its end.
    Done {
        /// Which.
        request: RequestId,
    },
    /// A request was not.
    Refused {
        /// Which.
        request: RequestId,
        /// Why.
        why: Refusal,
    },
    /// Only time has passed.
    Tick,
}

/// Why a source is asked, for logs, metrics and checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Why {
    /// It is where the block was placed.
    Plan,
    /// A duplicate: the first one asked takes long, and a reader waits.
    Hedge,
    /// A duplicate: nothing else is left to ask for.
    Endgame,
    /// A reader would miss its deadline if the LAN were waited for.
    Deadline,
}

/// What is asked of a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Whole blocks of the object.
    Blocks(Range<u32>),
    /// Part of one block; the rest is asked for on the same tunnel.
    Part {
        /// The block.
        index: u32,
        /// First byte in the block.
        offset: u32,
        /// Number of bytes.
        len: u32,
    },
}

/// Why a source was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It did not answer in time.
    Timeout,
    /// It sent a block that does not match its hash.
    WrongBlock,
    /// It is not used any more.
    Surplus,
}

/// Why a want ends without data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Nothing of the layer came from any source for this long.
    NoProgress(Duration),
    /// Every source refused for good.
    Refused,
    /// Too much is wanted at once.
    Full,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Ask a peer.
    Fetch {
        /// Name of the request.
        request: RequestId,
        /// On which tunnel.
        tunnel: TunnelId,
        /// Of which object.
        object: ObjectId,
        /// What.
        extent: Extent,
        /// Whether the peer shall answer it before anything else.
        urgent: bool,
        /// Why.
        why: Why,
    },
    /// Ask the registry for a stretch of a layer's stream.
    Run {
        /// Name of the request.
        request: RequestId,
        /// The layer.
        home: Home,
        /// From the first wanted byte to the last. A layer that can only be
        /// read from its start: all of it.
        stream: Range<u64>,
        /// The most urgent class in it.
        class: Class,
        /// Why.
        why: Why,
    },
    /// The request is of no use any more.
    Cancel {
        /// Which.
        request: RequestId,
    },
    /// Have this many tunnels to a peer.
    Tunnels {
        /// To whom.
        peer: PeerId,
        /// How many in all.
        count: usize,
    },
    /// Close all tunnels to a peer.
    Close {
        /// To whom.
        peer: PeerId,
        /// Why.
        why: Fault,
    },
    /// Never speak to this peer again.
    Ban {
        /// Which.
        peer: PeerId,
    },
    /// Find out who has a layer; answer with [`Event::LookedUp`].
    LookUp {
        /// Which layer.
        home: Home,
        /// Where.
        scope: Scope,
        /// An answer later than this comes too late.
        within: Duration,
    },
    /// Tell the neighbours that this node wants a layer, or no more.
    Announce {
        /// The layer.
        home: Home,
        /// Whether it does.
        on: bool,
    },
    /// Tell the neighbours that this node gets blocks for the LAN, or gave it up.
    Claim {
        /// Of which layer.
        home: Home,
        /// Which run of it they stand in.
        run: u32,
        /// Of which object.
        object: ObjectId,
        /// Which blocks.
        blocks: Range<u32>,
        /// Whether it does.
        on: bool,
        /// One that has come later; all of them if none is named.
        to: Option<PeerId>,
    },
    /// Tell a neighbour that a reader here waits for a block it is to get.
    Ask {
        /// Whom.
        peer: PeerId,
        /// Which.
        key: BlockKey,
    },
    /// A want ends without data.
    Failed {
        /// Which block.
        key: BlockKey,
        /// Why.
        why: Failure,
    },
}

/// What can be set.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Most blocks wanted at a time; urgent ones are always taken, up to twice this.
    pub wants_max: usize,
    /// Most tunnels to one peer.
    pub tunnels_max: usize,
    /// Connections to registries; one of them is kept for readers.
    pub registry_runs: usize,
    /// theta: a smaller layer goes straight to the registry, in bytes.
    pub theta: u64,
    /// Remote peers that are candidates in a round.
    pub candidates: usize,
    /// Weights of the score.
    pub weights: Weights,
    /// An urgent want without a deadline gets this one.
    pub urgent_deadline: Duration,
    /// How long a neighbour that should get a block may keep silent about it
    /// before the next in rank gets it; times the rank.
    pub lan_grace: Duration,
    /// How long a neighbour that should bring blocks may bring nothing.
    pub lan_patience: Duration,
    /// A want ends after this long without progress of its layer.
    pub no_progress: Duration,
    /// Bytes across the LAN's boundary that hedges may cost before the share of
    /// 2 % counts: without it, the first reads of a node could never be hedged.
    pub hedge_credit: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            wants_max: 1 << 16,
            tunnels_max: 4,
            registry_runs: 6,
            theta: THETA,
            candidates: 16,
            weights: Weights::default(),
            urgent_deadline: Duration::from_secs(2),
            lan_grace: Duration::from_millis(25),
            lan_patience: Duration::from_secs(5),
            no_progress: Duration::from_secs(60),
            hedge_credit: 256 << 10,
        }
    }
}

/// Bytes by where they came from. Blocks that were wanted count as content,
/// whatever came besides as waste.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Content from neighbours.
    pub lan: u64,
    /// Content from peers elsewhere.
    pub remote: u64,
    /// Content from registries.
    pub registry: u64,
    /// Content that turned up here: [`Event::Found`].
    pub found: u64,
    /// Blocks that came once more, or unasked.
    pub duplicate: u64,
    /// Asked across the LAN's boundary as a hedge or in the endgame.
    pub hedged: u64,
    /// Asked across the boundary, though the LAN had it, for a deadline.
    pub forced: u64,
}
