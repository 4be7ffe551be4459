//! Tunnels: connections to peers over which content comes and goes.
//!
//! An [`Endpoint`] listens, opens tunnels and serves; what happens on them comes
//! out of one queue of [`Event`]s, for one owner. A [`Tunnel`] is a trait, so that
//! coded datagrams can stand beside the two transports that are here, TLS over TCP
//! and QUIC. Both carry the same frames (`wire`) on lanes: what waits for a reader
//! goes before bulk, on TCP by turns of 64 KiB, on QUIC as a stream of its own.
//!
//! How it is driven, in one task:
//!
//! 1. [`Endpoint::bind`] gives the endpoint and its [`Events`]; [`Endpoint::open`]
//!    opens a tunnel to a [`Target`] (peers open theirs, too). Either way
//!    [`EventKind::Up`] hands over the [`Tunnel`], and [`EventKind::Down`] takes it
//!    away, with the names of the requests that are left.
//! 2. [`Tunnel::request`] asks for a [`Want`] under a name of the caller's choosing:
//!    blocks, a part of a block, items of a first pass, roots, a block list. Then
//!    come [`EventKind::Content`] (verified), [`EventKind::NotHave`],
//!    [`EventKind::Wrong`], and at last [`EventKind::Done`], [`EventKind::Failed`] or
//!    [`EventKind::Busy`]. [`Tunnel::cancel`] ends it at once.
//! 3. Holdings: [`Tunnel::tell`] what a `wire::Ledger` gives to subscribe with, and
//!    feed it the `Have` messages of [`EventKind::News`]; for the peer's `Subscribe`
//!    answer with what a `wire::Journal` gives.
//! 4. After an [`EventKind::Wrong`] or a [`Ended::Fault`], [`Endpoint::ban`] as the
//!    penalties say.
//!
//! Parts without I/O: [`inbox`] (what was asked, what may come), [`assembly`],
//! [`watch`] (does the peer behave), [`paths`] (which transport), `serve::queue`
//! and `serve::governor` (whose turn). Around them: [`tls`], [`link`], [`tcp`],
//! [`quic`], [`handshake`], [`session`] with `reader` and `writer`, [`endpoint`].
//!
//! Invariants:
//! - content leaves only as a `VerifiedBlock`, or as what its signature or name
//!   vouches for; content goes out only as a `VerifiedBlock`;
//! - every queue is bounded, and the reader of a connection never waits for its
//!   writer, so two nodes can't stop each other;
//! - before a peer has proved itself it costs a bounded time, a bounded number of
//!   connections from its address, and no more memory than one hello.

mod assembly;
mod endpoint;
mod handshake;
mod inbox;
mod link;
mod paths;
mod quic;
mod reader;
mod serve;
mod session;
mod tcp;
mod tls;
mod turns;
mod watch;
mod writer;

use std::fmt;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;

use crate::types::PeerId;
use crate::wire::{Class, Features, Limits, Message, Refusal, RequestId, Zone};

pub use assembly::{Assembly, Filled};
pub use endpoint::{
    BindError, Control, ControlError, Controls, Endpoint, Events, Settings, Target,
};
pub use handshake::OpenError;
pub use inbox::{AnswerError, Content, RequestError, Want, Wrong};
pub use paths::HEAD_START;
pub use serve::governor::{Rate, UploadLimits};
pub use serve::{BlockServer, Handed, Served};
pub use watch::Patience;

/// Names a tunnel of this node; never used twice.
pub type TunnelId = u64;

/// Where a peer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Near {
    /// In this node's LAN.
    Lan,
    /// Anywhere else.
    Remote,
}

/// How a tunnel's bytes travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// TLS 1.3 over TCP.
    Tcp,
    /// QUIC.
    Quic,
}

/// What is known of a tunnel from its beginning.
#[derive(Clone, Debug)]
pub struct TunnelInfo {
    /// Its name.
    pub id: TunnelId,
    /// The peer, proved.
    pub peer: PeerId,
    /// The other end of the connection.
    pub address: SocketAddr,
    /// Where the peer listens for tunnels, if it does: the connection's address
    /// with the port that it told.
    pub listens: Option<SocketAddr>,
    /// How bytes travel.
    pub transport: Transport,
    /// Where the peer is.
    pub near: Near,
    /// Whether this node opened it.
    pub opened: bool,
    /// The round trip that the handshake measured.
    pub rtt: Duration,
    /// What both can do.
    pub features: Features,
    /// What the peer takes on.
    pub limits: Limits,
    /// Where the peer says it is.
    pub zone: Zone,
    /// The peer's program, as it says.
    pub agent: String,
}

/// A connection to a peer. Nothing here waits: what can't be done now is refused.
pub trait Tunnel: Send + Sync + fmt::Debug + 'static {
    /// What is known of it.
    fn info(&self) -> &TunnelInfo;

    /// Asks for content. It comes as [`EventKind::Content`], and
    /// [`EventKind::Done`] or [`EventKind::Busy`] ends it. `request` must not have
    /// been used on this tunnel before.
    ///
    /// # Errors
    /// [`RequestError`]; [`RequestError::Full`] is the back-pressure.
    fn request(&self, request: RequestId, class: Class, want: Want) -> Result<(), RequestError>;

    /// The answer is of no use any more; no event follows, though one may be on
    /// its way.
    fn cancel(&self, request: RequestId);

    /// Tells the peer news: `Subscribe`, `Have`, `Wants`, `Getting`, `Ask`,
    /// `Layers`, `Passed` and `Control`.
    ///
    /// # Errors
    /// [`SendError`].
    fn tell(&self, news: Message) -> Result<(), SendError>;

    /// Measures the round trip: [`EventKind::Rtt`] follows.
    ///
    /// # Errors
    /// [`SendError`].
    fn ping(&self) -> Result<(), SendError>;

    /// Ends it; [`EventKind::Down`] follows.
    fn close(&self, why: Refusal);

    /// Bytes so far.
    fn traffic(&self) -> Traffic;
}

/// Why news can't be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The peer does not take in what was sent before.
    #[error("too much waits to be sent")]
    Full,
    /// It is a message that tunnels send by themselves.
    #[error("not a message to be told")]
    NotNews,
    /// The tunnel is closed.
    #[error("the tunnel is closed")]
    Closed,
}

/// Bytes of content on a tunnel, as they travelled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// From the peer.
    pub received: u64,
    /// To the peer.
    pub sent: u64,
}

/// Something that happened on a tunnel. The first of a tunnel is
/// [`EventKind::Up`], the last [`EventKind::Down`].
#[derive(Debug)]
pub struct Event {
    /// On which.
    pub tunnel: TunnelId,
    /// Whose.
    pub peer: PeerId,
    /// What.
    pub kind: EventKind,
}

/// What happened.
#[derive(Debug)]
pub enum EventKind {
    /// The tunnel is open.
    Up(Arc<dyn Tunnel>),
    /// The tunnel is closed.
    Down {
        /// Why.
        why: Ended,
        /// Requests that were not answered to their end.
        requests: Vec<RequestId>,
    },
    /// Content came, verified.
    Content {
        /// In answer to which request.
        request: RequestId,
        /// How urgent that was.
        class: Class,
        /// What.
        content: Content,
        /// Bytes that it took on the wire.
        wire: u32,
        /// Memory that it takes, and that the tunnel may use again when this is
        /// dropped: to be kept until the content is put away.
        hold: Hold,
    },
    /// Bytes of a piece of content came whose end is still to come. Not for every
    /// one: for long pieces on slow lines.
    Progress {
        /// In answer to which request.
        request: RequestId,
        /// How many, on the wire.
        bytes: u32,
    },
    /// What came is not what it should be. The peer is to be penalised, and banned
    /// at the second time; the request goes on without it.
    Wrong(Wrong),
    /// The peer does not have these blocks or items of the request.
    NotHave {
        /// Which request.
        request: RequestId,
        /// Their numbers.
        numbers: Range<u64>,
    },
    /// The peer does not answer the request now; it is over.
    Busy {
        /// Which.
        request: RequestId,
        /// When to come again.
        retry: Duration,
    },
    /// The request is over: all came, save what the peer said it does not have.
    Done {
        /// Which.
        request: RequestId,
    },
    /// The request is over, and not all came: the peer could not read it.
    Failed {
        /// Which.
        request: RequestId,
    },
    /// A round trip was measured.
    Rtt(Duration),
    /// The peer tells something: `Subscribe`, `Have`, `Wants`, `Getting`, `Ask`,
    /// `Layers`, `Passed`, `Control` or `Keep`.
    News(Message),
}

/// Why a tunnel ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Ended {
    /// This node closed it.
    #[error("closed: {0}")]
    Closed(Refusal),
    /// The peer closed it.
    #[error("the peer closed it: {0}")]
    ByPeer(Refusal),
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Broken(String),
    /// The peer did what no honest peer does; to be penalised.
    #[error("{}: {detail}", .fault.name())]
    Fault {
        /// What kind of thing.
        fault: Fault,
        /// What exactly.
        detail: String,
    },
}

/// What a peer did that it should not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// It sent what is not the protocol.
    Protocol,
    /// It sent more than is taken.
    Flood,
    /// It owed something, and brought too little for too long.
    Stalled,
}

impl Fault {
    /// A name for logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Protocol => "protocol",
            Self::Flood => "flood",
            Self::Stalled => "stalled",
        }
    }
}

/// Memory that content takes of its tunnel's share.
#[derive(Debug)]
pub struct Hold(#[expect(dead_code, reason = "held, not read")] Option<OwnedSemaphorePermit>);
