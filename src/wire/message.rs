//! All messages, and their bytes.

use std::ops::Range;

use super::blockset::BlockSet;
use super::codec::{Reader, WireError};
use super::control::Control;
use super::frame::{HEADER, Header, Kind};
use super::have::Holding;
use super::hello::Hello;
use super::keep::Keep;
use super::request::{End, Head, Home, Request, RequestId};
use crate::types::{Digest, ObjectId};

/// Most entries in one have message.
pub const HAVE_OBJECTS_MAX: usize = 512;
/// Most entries in one layers message.
pub const LAYERS_MAX: usize = 1024;

/// What one node says to another. Data frames are not among them: their bytes go
/// from the connection to where they belong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Who speaks.
    Hello(Hello),
    /// The caller is not let in.
    Refuse(Refusal),
    /// The tunnel ends.
    Close(Refusal),
    /// Asks for a pong with the same number.
    Ping(u64),
    /// Answers a ping.
    Pong(u64),
    /// Asks for what the other holds of `home`, now and from now on; or no more.
    Subscribe {
        /// Of what.
        home: Home,
        /// Whether it is to be told from now on.
        on: bool,
        /// What it knows already: epoch and number, as they came with it.
        since: Option<(u64, u64)>,
    },
    /// What the sender holds of something.
    Have(Have),
    /// The sender wants `home`, or no more: its LAN may get it together.
    Wants {
        /// What.
        home: Home,
        /// Whether it does.
        on: bool,
    },
    /// The sender is getting blocks from outside the LAN, or gave it up.
    Getting {
        /// Of which object.
        object: ObjectId,
        /// Which.
        blocks: BlockSet,
        /// Whether it is.
        on: bool,
    },
    /// A reader of the sender waits for a block that the other is getting.
    Ask {
        /// Of which object.
        object: ObjectId,
        /// Which.
        index: u32,
    },
    /// What the sender knows of layers. Says all where `full`, else what changed.
    Layers {
        /// Whether layers that are not named are not there.
        full: bool,
        /// Counts these messages on a tunnel, from 0.
        number: u64,
        /// Layers, at most [`LAYERS_MAX`].
        layers: Vec<LayerNews>,
    },
    /// How the sender stands with a blob that has no index yet, and what it can
    /// hand on of it.
    Passed {
        /// The blob.
        blob: Digest,
        /// What it does.
        stage: Stage,
        /// Pieces of the blob that it has besides those that it has told of, as
        /// numbers of [`PASS_PIECE`] bytes.
        pieces: Range<u32>,
    },
    /// About trackers and other nodes.
    Control(Control),
    /// About copies, and who keeps them.
    Keep(Keep),
    /// Asks for content.
    Request(Request),
    /// A request is of no use any more.
    Cancel(RequestId),
    /// Announces a block of an answer.
    Head(Head),
    /// Of the request, the sender does not have these blocks.
    NotHave {
        /// Which request.
        request: RequestId,
        /// First block or item; 0 for roots and lists.
        first: u64,
        /// How many.
        count: u32,
    },
    /// The request is not served; it ends with this.
    Busy {
        /// Which.
        request: RequestId,
        /// When to come again, in milliseconds.
        retry_ms: u32,
    },
    /// The request is answered.
    End {
        /// Which.
        request: RequestId,
        /// How.
        end: End,
    },
}

/// Bytes of a piece of a blob; its last one may be shorter.
pub const PASS_PIECE: u64 = 256 << 10;

/// How a node stands with a blob whose index it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Stage {
    /// It does not need it any more, and hands nothing on.
    Out = 0,
    /// It needs it, and waits for others.
    Waits = 1,
    /// It gets it from beyond its LAN.
    Leads = 2,
    /// It has the index, and still hands on what it has of the blob.
    Done = 3,
}

impl Stage {
    fn decode(number: u8) -> Result<Self, WireError> {
        match number {
            0 => Ok(Self::Out),
            1 => Ok(Self::Waits),
            2 => Ok(Self::Leads),
            3 => Ok(Self::Done),
            _ => Err(WireError::Invalid("no such stage")),
        }
    }
}

/// What the sender holds of something: [`super::Journal`] makes it,
/// [`super::Ledger`] reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Have {
    /// Of what.
    pub home: Home,
    /// Tells one life of the sender from another: numbers hold within it.
    pub epoch: u64,
    /// The state that the changes are from; `None`: from nothing.
    pub from: Option<u64>,
    /// The state that they lead to.
    pub to: u64,
    /// What changes.
    pub body: HaveBody,
}

/// The changes of a [`Have`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HaveBody {
    /// Whether the sender has the root of the layer's index.
    pub root: bool,
    /// Whether this ends the answer to a subscription, or stands for itself.
    pub last: bool,
    /// Changes in their order; at most [`HAVE_OBJECTS_MAX`].
    pub objects: Vec<(ObjectId, Holding)>,
}

/// What a node has of a layer, in a layers message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LayerNews {
    /// The layer's blob.
    pub blob: Digest,
    /// The root of its index.
    pub root: bool,
    /// Its parts: tree, blocks, seek, skeleton.
    pub parts: [bool; 4],
    /// Some of its content.
    pub some: bool,
    /// All of its content.
    pub whole: bool,
    /// It is on a first pass over it.
    pub building: bool,
}

impl LayerNews {
    /// News of a layer of which the node has nothing.
    pub fn nothing(blob: Digest) -> Self {
        let parts = [false; 4];
        Self { blob, root: false, parts, some: false, whole: false, building: false }
    }

    fn bits(&self) -> u8 {
        let [tree, blocks, seek, skeleton] = self.parts;
        let flags = [self.root, tree, blocks, seek, skeleton, self.some, self.whole, self.building];
        flags.iter().rev().fold(0, |bits, flag| bits << 1 | u8::from(*flag))
    }

    fn from_bits(blob: Digest, bits: u8) -> Self {
        let bit = |n: u8| bits >> n & 1 == 1;
        Self {
            blob,
            root: bit(0),
            parts: [bit(1), bit(2), bit(3), bit(4)],
            some: bit(5),
            whole: bit(6),
            building: bit(7),
        }
    }
}

/// Why a caller is not let in, or a tunnel ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    /// Nothing is wrong; it is not needed any more.
    #[error("it is not needed any more")]
    Unneeded,
    /// The node ends.
    #[error("the node is shutting down")]
    Shutdown,
    /// No proof of a swarm key that the node knows.
    #[error("not a member of the swarm")]
    NotMember,
    /// The node was excluded from the swarm.
    #[error("the node's membership was revoked")]
    Revoked,
    /// The node was banned for what it did.
    #[error("banned")]
    Banned,
    /// Too many tunnels or handshakes at once.
    #[error("too many connections")]
    TooMany,
    /// Another version of the protocol.
    #[error("another version of the protocol")]
    Version,
    /// Bytes that are not the protocol.
    #[error("a violation of the protocol")]
    Protocol,
    /// More than the node takes on.
    #[error("a flood of messages")]
    Flood,
    /// It takes too long.
    #[error("no progress")]
    Stalled,
    /// A code of a later version.
    #[error("code {0}")]
    Other(u8),
}

impl Refusal {
    /// Its number on the wire.
    pub fn code(self) -> u8 {
        match self {
            Self::Unneeded => 0,
            Self::Shutdown => 1,
            Self::NotMember => 2,
            Self::Revoked => 3,
            Self::Banned => 4,
            Self::TooMany => 5,
            Self::Version => 6,
            Self::Protocol => 7,
            Self::Flood => 8,
            Self::Stalled => 9,
            Self::Other(code) => code,
        }
    }

    /// What a number means.
    pub fn from_code(number: u8) -> Self {
        let known = [
            Self::Unneeded,
            Self::Shutdown,
            Self::NotMember,
            Self::Revoked,
            Self::Banned,
            Self::TooMany,
            Self::Version,
            Self::Protocol,
            Self::Flood,
            Self::Stalled,
        ];
        known.get(usize::from(number)).copied().unwrap_or(Self::Other(number))
    }
}

impl Message {
    /// The kind of its frame.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Hello(_) => Kind::Hello,
            Self::Refuse(_) => Kind::Refuse,
            Self::Close(_) => Kind::Close,
            Self::Ping(_) => Kind::Ping,
            Self::Pong(_) => Kind::Pong,
            Self::Subscribe { .. } => Kind::Subscribe,
            Self::Have(_) => Kind::Have,
            Self::Wants { .. } => Kind::Wants,
            Self::Getting { .. } => Kind::Getting,
            Self::Ask { .. } => Kind::Ask,
            Self::Layers { .. } => Kind::Layers,
            Self::Passed { .. } => Kind::Passed,
            Self::Control(control) => control.kind(),
            Self::Keep(keep) => keep.kind(),
            Self::Request(_) => Kind::Request,
            Self::Cancel(_) => Kind::Cancel,
            Self::Head(_) => Kind::Head,
            Self::NotHave { .. } => Kind::NotHave,
            Self::Busy { .. } => Kind::Busy,
            Self::End { .. } => Kind::End,
        }
    }

    /// Appends the message's frame.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend([0; HEADER]);
        self.encode_body(out);
        let header = Header::encode(self.kind(), out.len() - start - HEADER);
        out[start..start + HEADER].copy_from_slice(&header);
    }

    /// The message's frame.
    pub fn to_frame(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER + 64);
        self.encode(&mut out);
        out
    }

    fn encode_body(&self, out: &mut Vec<u8>) {
        match self {
            Self::Hello(hello) => hello.encode(out),
            Self::Refuse(why) | Self::Close(why) => out.push(why.code()),
            Self::Ping(number) | Self::Pong(number) => out.extend(number.to_le_bytes()),
            Self::Subscribe { home, on, since } => {
                home.encode(out);
                out.push(u8::from(*on));
                out.push(u8::from(since.is_some()));
                if let Some((epoch, number)) = since {
                    out.extend(epoch.to_le_bytes());
                    out.extend(number.to_le_bytes());
                }
            }
            Self::Have(have) => have.encode(out),
            Self::Wants { home, on } => {
                home.encode(out);
                out.push(u8::from(*on));
            }
            Self::Getting { object, blocks, on } => {
                out.extend(object.as_bytes());
                out.push(u8::from(*on));
                encode_short(blocks, out);
            }
            Self::Ask { object, index } => {
                out.extend(object.as_bytes());
                out.extend(index.to_le_bytes());
            }
            Self::Layers { full, number, layers } => {
                let layers = &layers[..layers.len().min(LAYERS_MAX)];
                out.push(u8::from(*full));
                out.extend(number.to_le_bytes());
                out.extend((layers.len() as u16).to_le_bytes());
                for layer in layers {
                    out.extend(layer.blob.as_bytes());
                    out.push(layer.bits());
                }
            }
            Self::Passed { blob, stage, pieces } => {
                out.extend(blob.as_bytes());
                out.push(*stage as u8);
                out.extend(pieces.start.to_le_bytes());
                out.extend(pieces.end.to_le_bytes());
            }
            Self::Control(control) => control.encode(out),
            Self::Keep(keep) => keep.encode(out),
            Self::Request(request) => request.encode(out),
            Self::Cancel(request) => out.extend(request.to_le_bytes()),
            Self::Head(head) => head.encode(out),
            Self::NotHave { request, first, count } => {
                out.extend(request.to_le_bytes());
                out.extend(first.to_le_bytes());
                out.extend(count.to_le_bytes());
            }
            Self::Busy { request, retry_ms } => {
                out.extend(request.to_le_bytes());
                out.extend(retry_ms.to_le_bytes());
            }
            Self::End { request, end } => {
                out.extend(request.to_le_bytes());
                out.push(*end as u8);
            }
        }
    }

    /// Reads the body of a frame of this kind, which may be hostile. Data frames
    /// are not messages.
    ///
    /// # Errors
    /// [`WireError`].
    pub fn decode(kind: Kind, body: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader(body);
        let message = Self::decode_body(kind, &mut reader)?;
        reader.end()?;
        Ok(message)
    }

    fn decode_body(kind: Kind, r: &mut Reader<'_>) -> Result<Self, WireError> {
        if let Some(control) = Control::decode(kind, r)? {
            return Ok(Self::Control(control));
        }
        if let Some(keep) = Keep::decode(kind, r)? {
            return Ok(Self::Keep(keep));
        }
        Ok(match kind {
            Kind::Hello => Self::Hello(Hello::decode(r)?),
            Kind::Refuse => Self::Refuse(Refusal::from_code(r.u8()?)),
            Kind::Close => Self::Close(Refusal::from_code(r.u8()?)),
            Kind::Ping => Self::Ping(r.u64()?),
            Kind::Pong => Self::Pong(r.u64()?),
            Kind::Subscribe => {
                let (home, on) = (Home::decode(r)?, r.flag()?);
                let since = if r.flag()? { Some((r.u64()?, r.u64()?)) } else { None };
                Self::Subscribe { home, on, since }
            }
            Kind::Have => Self::Have(Have::decode(r)?),
            Kind::Wants => Self::Wants { home: Home::decode(r)?, on: r.flag()? },
            Kind::Getting => {
                let (object, on) = (r.object()?, r.flag()?);
                Self::Getting { object, blocks: BlockSet::decode(r)?, on }
            }
            Kind::Ask => Self::Ask { object: r.object()?, index: r.u32()? },
            Kind::Layers => {
                let (full, number) = (r.flag()?, r.u64()?);
                let count = r.count(LAYERS_MAX, "layers")?;
                let layer = |_| Ok(LayerNews::from_bits(r.digest()?, r.u8()?));
                let layers = (0..count).map(layer).collect::<Result<_, _>>()?;
                Self::Layers { full, number, layers }
            }
            Kind::Passed => {
                let (blob, stage) = (r.digest()?, Stage::decode(r.u8()?)?);
                let pieces = r.u32()?..r.u32()?;
                if pieces.start > pieces.end || pieces.end > super::BLOCKS_MAX {
                    return Err(WireError::Invalid("pieces that no blob can have"));
                }
                Self::Passed { blob, stage, pieces }
            }
            Kind::Request => Self::Request(Request::decode(r)?),
            Kind::Cancel => Self::Cancel(r.u64()?),
            Kind::Head => Self::Head(Head::decode(r)?),
            Kind::NotHave => Self::NotHave { request: r.u64()?, first: r.u64()?, count: r.u32()? },
            Kind::Busy => Self::Busy { request: r.u64()?, retry_ms: r.u32()? },
            Kind::End => Self::End { request: r.u64()?, end: End::decode(r.u8()?)? },
            Kind::Data
            | Kind::Claim
            | Kind::Prune
            | Kind::Graft
            | Kind::WhoHas
            | Kind::Holders
            | Kind::Images
            | Kind::Again
            | Kind::WhoHolds
            | Kind::Holds
            | Kind::AskPromises
            | Kind::Promises
            | Kind::Withdrawn
            | Kind::Gone
            | Kind::WhoElse
            | Kind::Others => return Err(WireError::Invalid("not a message")),
        })
    }
}

/// Runs of a getting message: as many as its frame holds.
fn encode_short(blocks: &BlockSet, out: &mut Vec<u8>) {
    const RUNS: usize = 1000;
    if blocks.runs().len() <= RUNS {
        blocks.encode(out);
    } else {
        blocks.runs()[..RUNS].iter().cloned().collect::<BlockSet>().encode(out);
    }
}

impl Have {
    fn encode(&self, out: &mut Vec<u8>) {
        self.home.encode(out);
        out.extend(self.epoch.to_le_bytes());
        out.push(u8::from(self.from.is_some()));
        out.extend(self.from.unwrap_or(0).to_le_bytes());
        out.extend(self.to.to_le_bytes());
        out.push(u8::from(self.body.root));
        out.push(u8::from(self.body.last));
        let objects = &self.body.objects[..self.body.objects.len().min(HAVE_OBJECTS_MAX)];
        out.extend((objects.len() as u16).to_le_bytes());
        for (object, holding) in objects {
            out.extend(object.as_bytes());
            holding.encode(out);
        }
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, WireError> {
        let (home, epoch) = (Home::decode(r)?, r.u64()?);
        let (some, from, to) = (r.flag()?, r.u64()?, r.u64()?);
        if if some { from > to } else { from != 0 } {
            return Err(WireError::Invalid("a change that leads backwards"));
        }
        let (root, last) = (r.flag()?, r.flag()?);
        let count = r.count(HAVE_OBJECTS_MAX, "objects")?;
        let objects = (0..count).map(|_| Ok((r.object()?, Holding::decode(r)?)));
        let objects = objects.collect::<Result<_, _>>()?;
        let from = some.then_some(from);
        Ok(Self { home, epoch, from, to, body: HaveBody { root, last, objects } })
    }
}

#[cfg(test)]
mod tests;
