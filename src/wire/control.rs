//! What nodes say to each other about trackers: who is one, who holds what, and
//! what images are made of; and of other nodes. All of it may be skipped by whoever does not know it.

use std::net::{IpAddr, SocketAddr};

use super::codec::{Reader, WireError};
use super::frame::Kind;
use crate::types::{Digest, PeerId};

/// Most layers that one question names.
pub const ASKED_MAX: usize = 16;
/// Most holders of one layer in an answer.
pub const HOLDERS_MAX: usize = 32;
/// Most images that one message adds or takes away,
pub const IMAGES_MAX: usize = 512;
/// and most layers of one of them.
pub const IMAGE_LAYERS_MAX: usize = 128;
/// Most layers in one message of images: 60 KiB.
pub const IMAGES_LAYERS_MAX: usize = 7_500;
/// Most nodes that one answer names.
pub const OTHERS_MAX: usize = 16;

/// About trackers, and about other nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Control {
    /// The greatest claim to be tracker that the sender knows.
    Claim(SignedClaim),
    /// Your beats come to me by another way: spare yourself.
    Prune,
    /// My beats stay away: send me yours again, from now on.
    Graft {
        /// Tracker and sequence of the newest that the sender knows.
        known: Option<(PeerId, u64)>,
    },
    /// Who holds these layers? Asked of a tracker.
    WhoHas {
        /// Names the question, on this tunnel.
        id: u64,
        /// By their blobs; 1 to [`ASKED_MAX`].
        layers: Vec<Digest>,
    },
    /// The answer: holders of each layer, in the order of the question.
    Holders {
        /// Of which question.
        id: u64,
        /// At most [`HOLDERS_MAX`] each.
        layers: Vec<Vec<Holder>>,
    },
    /// What the sender's images are made of, as differences.
    Images {
        /// Whether images that are not named are not there.
        full: bool,
        /// Counts these messages on a tunnel, from 0.
        number: u64,
        /// Images by short names, with the short names of their layers; none: it is
        /// not there any more.
        images: Vec<(u64, Option<Vec<u64>>)>,
    },
    /// What you say of layers and images does not go on from what I know: say all.
    Again,
    /// Whom else do you have tunnels to?
    WhoElse,
    /// The answer: nodes, and where they can be called; at most [`OTHERS_MAX`].
    Others {
        /// Which.
        nodes: Vec<(PeerId, SocketAddr)>,
    },
}

/// A claim as it travels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedClaim {
    /// Who wants to be, or is, tracker.
    pub tracker: PeerId,
    /// Its stability, in points.
    pub score: u16,
    /// Higher with each beat of it.
    pub sequence: u64,
    /// Whether its election is over.
    pub settled: bool,
    /// Its signature over these.
    pub signature: [u8; 64],
    /// Milliseconds since it said so, as far as those on the way know.
    pub age_ms: u32,
    /// Whether this has left its LAN.
    pub abroad: bool,
    /// Where it can be called, as its neighbours see it.
    pub address: Option<SocketAddr>,
}

/// A node that holds something of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Holder {
    /// Who.
    pub peer: PeerId,
    /// Where it can be called.
    pub address: SocketAddr,
    /// Whether it has all of the layer.
    pub whole: bool,
}

impl Control {
    pub(super) fn kind(&self) -> Kind {
        match self {
            Self::Claim(_) => Kind::Claim,
            Self::Prune => Kind::Prune,
            Self::Graft { .. } => Kind::Graft,
            Self::WhoHas { .. } => Kind::WhoHas,
            Self::Holders { .. } => Kind::Holders,
            Self::Images { .. } => Kind::Images,
            Self::Again => Kind::Again,
            Self::WhoElse => Kind::WhoElse,
            Self::Others { .. } => Kind::Others,
        }
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Claim(claim) => {
                out.extend(claim.tracker.0);
                out.extend(claim.score.to_le_bytes());
                out.extend(claim.sequence.to_le_bytes());
                out.push(u8::from(claim.settled));
                out.extend(claim.signature);
                out.extend(claim.age_ms.to_le_bytes());
                out.push(u8::from(claim.abroad));
                out.push(u8::from(claim.address.is_some()));
                if let Some(address) = &claim.address {
                    push_address(out, address);
                }
            }
            Self::Prune | Self::Again | Self::WhoElse => {}
            Self::Graft { known } => {
                out.push(u8::from(known.is_some()));
                if let Some((tracker, sequence)) = known {
                    out.extend(tracker.0);
                    out.extend(sequence.to_le_bytes());
                }
            }
            Self::WhoHas { id, layers } => {
                out.extend(id.to_le_bytes());
                let layers = &layers[..layers.len().min(ASKED_MAX)];
                out.extend((layers.len() as u16).to_le_bytes());
                layers.iter().for_each(|layer| out.extend(layer.as_bytes()));
            }
            Self::Holders { id, layers } => {
                out.extend(id.to_le_bytes());
                let layers = &layers[..layers.len().min(ASKED_MAX)];
                out.extend((layers.len() as u16).to_le_bytes());
                for holders in layers {
                    let holders = &holders[..holders.len().min(HOLDERS_MAX)];
                    out.extend((holders.len() as u16).to_le_bytes());
                    for holder in holders {
                        out.extend(holder.peer.0);
                        push_address(out, &holder.address);
                        out.push(u8::from(holder.whole));
                    }
                }
            }
            Self::Images { full, number, images } => {
                out.push(u8::from(*full));
                out.extend(number.to_le_bytes());
                let images = &images[..images.len().min(IMAGES_MAX)];
                out.extend((images.len() as u16).to_le_bytes());
                for (image, layers) in images {
                    out.extend(image.to_le_bytes());
                    out.push(u8::from(layers.is_some()));
                    if let Some(layers) = layers {
                        let layers = &layers[..layers.len().min(IMAGE_LAYERS_MAX)];
                        out.extend((layers.len() as u16).to_le_bytes());
                        layers.iter().for_each(|layer| out.extend(layer.to_le_bytes()));
                    }
                }
            }
            Self::Others { nodes } => {
                let nodes = &nodes[..nodes.len().min(OTHERS_MAX)];
                out.extend((nodes.len() as u16).to_le_bytes());
                for (peer, address) in nodes {
                    out.extend(peer.0);
                    push_address(out, address);
                }
            }
        }
    }

    /// `None`: the kind is not one of these.
    pub(super) fn decode(kind: Kind, r: &mut Reader<'_>) -> Result<Option<Self>, WireError> {
        Ok(Some(match kind {
            Kind::Claim => Self::Claim(SignedClaim {
                tracker: PeerId(r.array()?),
                score: r.u16()?,
                sequence: r.u64()?,
                settled: r.flag()?,
                signature: r.array()?,
                age_ms: r.u32()?,
                abroad: r.flag()?,
                address: if r.flag()? { Some(address(r)?) } else { None },
            }),
            Kind::Prune => Self::Prune,
            Kind::Again => Self::Again,
            Kind::Graft => {
                let known = r.flag()?;
                let known = if known { Some((PeerId(r.array()?), r.u64()?)) } else { None };
                Self::Graft { known }
            }
            Kind::WhoHas => {
                let id = r.u64()?;
                let count = r.count(ASKED_MAX, "layers in a question")?;
                if count == 0 {
                    return Err(WireError::Invalid("a question about nothing"));
                }
                let layers = (0..count).map(|_| r.digest()).collect::<Result<_, _>>()?;
                Self::WhoHas { id, layers }
            }
            Kind::Holders => {
                let id = r.u64()?;
                let count = r.count(ASKED_MAX, "layers in an answer")?;
                let layers = (0..count).map(|_| holders(r)).collect::<Result<_, _>>()?;
                Self::Holders { id, layers }
            }
            Kind::Images => {
                let (full, number) = (r.flag()?, r.u64()?);
                let count = r.count(IMAGES_MAX, "images")?;
                let images = (0..count).map(|_| image(r)).collect::<Result<_, _>>()?;
                Self::Images { full, number, images }
            }
            Kind::WhoElse => Self::WhoElse,
            Kind::Others => {
                let count = r.count(OTHERS_MAX, "nodes in an answer")?;
                let node = |_| Ok((PeerId(r.array()?), address(r)?));
                Self::Others { nodes: (0..count).map(node).collect::<Result<_, _>>()? }
            }
            _ => return Ok(None),
        }))
    }
}

fn holders(r: &mut Reader<'_>) -> Result<Vec<Holder>, WireError> {
    let count = r.count(HOLDERS_MAX, "holders of a layer")?;
    let holder =
        |_| Ok(Holder { peer: PeerId(r.array()?), address: address(r)?, whole: r.flag()? });
    (0..count).map(holder).collect()
}

fn image(r: &mut Reader<'_>) -> Result<(u64, Option<Vec<u64>>), WireError> {
    let (image, is_there) = (r.u64()?, r.flag()?);
    if !is_there {
        return Ok((image, None));
    }
    let count = r.count(IMAGE_LAYERS_MAX, "layers of an image")?;
    let layers = (0..count).map(|_| r.u64()).collect::<Result<_, _>>()?;
    Ok((image, Some(layers)))
}

fn push_address(out: &mut Vec<u8>, address: &SocketAddr) {
    match address.ip() {
        IpAddr::V4(ip) => {
            out.push(4);
            out.extend(ip.octets());
        }
        IpAddr::V6(ip) => {
            out.push(6);
            out.extend(ip.octets());
        }
    }
    out.extend(address.port().to_le_bytes());
}

fn address(r: &mut Reader<'_>) -> Result<SocketAddr, WireError> {
    let ip = match r.u8()? {
        4 => IpAddr::from(r.array::<4>()?),
        6 => IpAddr::from(r.array::<16>()?),
        _ => return Err(WireError::Invalid("an address of an unknown family")),
    };
    Ok(SocketAddr::new(ip, r.u16()?))
}
