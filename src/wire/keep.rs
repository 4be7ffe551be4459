//! What neighbours say to each other so that a LAN keeps one good copy: who has an
//! object, who promises to keep it, and what is gone. All of it may be skipped by
//! whoever does not know it.

use super::codec::{Reader, WireError};
use super::frame::Kind;
use crate::types::ObjectId;

/// Most objects in one question about holdings, and in one message about what is
/// gone: 32 KiB.
pub const HELD_MAX: usize = 1024;
/// Most objects that promises are asked for in one message.
pub const PROMISES_MAX: usize = 64;

/// About copies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Which of these objects does the other have, all of each?
    WhoHolds {
        /// Names the question, on this tunnel.
        id: u64,
        /// 1 to [`HELD_MAX`].
        objects: Vec<ObjectId>,
    },
    /// The answer.
    Holds {
        /// Of which question.
        id: u64,
        /// Bytes that the sender's store may occupy.
        capacity: u64,
        /// For each object of the question, in its order.
        whole: Vec<bool>,
    },
    /// Will the other keep these?
    AskPromises {
        /// Chosen at random: names the question, and makes the proofs fresh.
        nonce: [u8; 32],
        /// Bytes that the sender's store may occupy.
        capacity: u64,
        /// 1 to [`PROMISES_MAX`].
        asks: Vec<Challenge>,
    },
    /// The answer, signed by whoever promises.
    Promises {
        /// Of which question.
        nonce: [u8; 32],
        /// How long the promises bind, from when they were made.
        seconds: u16,
        /// For each object of the question, in its order.
        answers: Vec<Reply>,
        /// Over all that and the question.
        signature: [u8; 64],
    },
    /// The sender takes its promises back; it still keeps what they were about until
    /// they expire.
    Withdrawn {
        /// All of them: the sender ends.
        all: bool,
        /// Else those for these objects, at most [`HELD_MAX`].
        objects: Vec<ObjectId>,
    },
    /// The sender has nothing of these objects any more; at most [`HELD_MAX`].
    Gone {
        /// Which.
        objects: Vec<ObjectId>,
    },
}

/// An object, and the block of it by which the other proves that it has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Challenge {
    /// Which object.
    pub object: ObjectId,
    /// A block that the asking node has itself.
    pub block: u32,
}

/// What becomes of a question for a promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// It is promised, with the proof that the sender has it.
    Promised([u8; 32]),
    /// The sender does not have all of it.
    NotHere,
    /// The sender has it, and promises nothing.
    Unwilling,
}

impl Keep {
    pub(super) fn kind(&self) -> Kind {
        match self {
            Self::WhoHolds { .. } => Kind::WhoHolds,
            Self::Holds { .. } => Kind::Holds,
            Self::AskPromises { .. } => Kind::AskPromises,
            Self::Promises { .. } => Kind::Promises,
            Self::Withdrawn { .. } => Kind::Withdrawn,
            Self::Gone { .. } => Kind::Gone,
        }
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::WhoHolds { id, objects } => {
                out.extend(id.to_le_bytes());
                push_objects(out, objects);
            }
            Self::Holds { id, capacity, whole } => {
                let whole = &whole[..whole.len().min(HELD_MAX)];
                out.extend(id.to_le_bytes());
                out.extend(capacity.to_le_bytes());
                out.extend((whole.len() as u16).to_le_bytes());
                out.extend(
                    whole.chunks(8).map(|bits| {
                        bits.iter().rev().fold(0, |byte, bit| byte << 1 | u8::from(*bit))
                    }),
                );
            }
            Self::AskPromises { nonce, capacity, asks } => {
                let asks = &asks[..asks.len().min(PROMISES_MAX)];
                out.extend(nonce);
                out.extend(capacity.to_le_bytes());
                out.extend((asks.len() as u16).to_le_bytes());
                for Challenge { object, block } in asks {
                    out.extend(object.as_bytes());
                    out.extend(block.to_le_bytes());
                }
            }
            Self::Promises { nonce, seconds, answers, signature } => {
                let answers = &answers[..answers.len().min(PROMISES_MAX)];
                out.extend(nonce);
                out.extend(seconds.to_le_bytes());
                out.extend((answers.len() as u16).to_le_bytes());
                answers.iter().for_each(|answer| answer.encode(out));
                out.extend(signature);
            }
            Self::Withdrawn { all, objects } => {
                out.push(u8::from(*all));
                push_objects(out, objects);
            }
            Self::Gone { objects } => push_objects(out, objects),
        }
    }

    /// `None`: the kind is not one of these.
    pub(super) fn decode(kind: Kind, r: &mut Reader<'_>) -> Result<Option<Self>, WireError> {
        const NOTHING: WireError = WireError::Invalid("a question about nothing");
        Ok(Some(match kind {
            Kind::WhoHolds => {
                let (id, objects) = (r.u64()?, objects(r)?);
                if objects.is_empty() {
                    return Err(NOTHING);
                }
                Self::WhoHolds { id, objects }
            }
            Kind::Holds => {
                let (id, capacity) = (r.u64()?, r.u64()?);
                let count = r.count(HELD_MAX, "objects in an answer")?;
                Self::Holds { id, capacity, whole: bits(r, count)? }
            }
            Kind::AskPromises => {
                let (nonce, capacity) = (r.array()?, r.u64()?);
                let count = r.count(PROMISES_MAX, "promises in a question")?;
                if count == 0 {
                    return Err(NOTHING);
                }
                let ask = |_| Ok(Challenge { object: r.object()?, block: r.u32()? });
                let asks = (0..count).map(ask).collect::<Result<_, _>>()?;
                Self::AskPromises { nonce, capacity, asks }
            }
            Kind::Promises => {
                let (nonce, seconds) = (r.array()?, r.u16()?);
                let count = r.count(PROMISES_MAX, "promises in an answer")?;
                let answers = (0..count).map(|_| Reply::decode(r)).collect::<Result<_, _>>()?;
                Self::Promises { nonce, seconds, answers, signature: r.array()? }
            }
            Kind::Withdrawn => Self::Withdrawn { all: r.flag()?, objects: objects(r)? },
            Kind::Gone => Self::Gone { objects: objects(r)? },
            _ => return Ok(None),
        }))
    }
}

impl Reply {
    /// As it stands in a message, and below its signature.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Promised(proof) => {
                out.push(0);
                out.extend(proof);
            }
            Self::NotHere => out.push(1),
            Self::Unwilling => out.push(2),
        }
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, WireError> {
        match r.u8()? {
            0 => r.array().map(Self::Promised),
            1 => Ok(Self::NotHere),
            2 => Ok(Self::Unwilling),
            _ => Err(WireError::Invalid("no such answer")),
        }
    }
}

fn push_objects(out: &mut Vec<u8>, objects: &[ObjectId]) {
    let objects = &objects[..objects.len().min(HELD_MAX)];
    out.extend((objects.len() as u16).to_le_bytes());
    objects.iter().for_each(|object| out.extend(object.as_bytes()));
}

fn objects(r: &mut Reader<'_>) -> Result<Vec<ObjectId>, WireError> {
    let count = r.count(HELD_MAX, "objects")?;
    (0..count).map(|_| r.object()).collect()
}

/// `count` bits, the lowest of each byte first; those that are left are 0.
fn bits(r: &mut Reader<'_>, count: usize) -> Result<Vec<bool>, WireError> {
    let bytes = r.bytes(count.div_ceil(8))?;
    let bit = |n: usize| bytes[n / 8] >> (n % 8) & 1 == 1;
    if (count..bytes.len() * 8).any(bit) {
        return Err(WireError::Invalid("bits for objects that were not asked for"));
    }
    Ok((0..count).map(bit).collect())
}
