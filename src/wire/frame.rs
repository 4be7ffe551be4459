//! Frames: the envelope of a message.
//!
//! ```text
//! offset  size
//!      0     4  length of the body in bytes, little-endian
//!      4     1  kind
//!      5     1  flags: bit 0 set: whoever does not know the kind skips the frame;
//!               the other bits are 0
//!      6     2  0
//!      8        body
//! ```

use super::codec::WireError;
use super::request::DATA_MAX;

/// Bytes of a frame's header.
pub const HEADER: usize = 8;
/// Longest body of any frame that is known, and of any that is skipped.
pub const FRAME_MAX: u32 = 64 << 10;
/// A data frame: its request's name and as much as [`DATA_MAX`].
const DATA_BODY_MAX: u32 = 8 + DATA_MAX as u32;
/// Flag: to be skipped by whoever does not know the kind.
const OPTIONAL: u8 = 1;

/// What a frame is. The numbers are the protocol's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Who speaks, and its proof of membership. First, once.
    Hello = 0x01,
    /// Instead of a hello: the caller is not let in.
    Refuse = 0x02,
    /// The tunnel ends.
    Close = 0x03,
    /// Asks for a pong.
    Ping = 0x10,
    /// Answers a ping.
    Pong = 0x11,
    /// Asks for what the other holds of a layer or object, now and from now on.
    Subscribe = 0x20,
    /// What the sender holds.
    Have = 0x21,
    /// The sender wants a layer, or no more.
    Wants = 0x22,
    /// The sender is getting blocks for its LAN.
    Getting = 0x23,
    /// A reader of the sender waits for a block that the other is to get.
    Ask = 0x24,
    /// What the sender knows of layers.
    Layers = 0x25,
    /// How far the sender's first pass over a layer is.
    Passed = 0x26,
    /// The greatest claim to be tracker that the sender knows.
    Claim = 0x40,
    /// The sender has the other's beats from elsewhere.
    Prune = 0x41,
    /// The sender wants the other's beats.
    Graft = 0x42,
    /// Asks a tracker who holds layers.
    WhoHas = 0x43,
    /// A tracker's answer.
    Holders = 0x44,
    /// What the sender's images are made of.
    Images = 0x45,
    /// What the other says of layers and images has a gap.
    Again = 0x46,
    /// Asks a neighbour for others.
    WhoElse = 0x48,
    /// Nodes that the sender has tunnels to.
    Others = 0x49,
    /// Asks for content.
    Request = 0x30,
    /// A request is of no use any more.
    Cancel = 0x31,
    /// Announces the data of one block.
    Head = 0x32,
    /// Bytes of the block that was announced last.
    Data = 0x33,
    /// Blocks of the request that the sender does not have.
    NotHave = 0x34,
    /// The request is not served now.
    Busy = 0x35,
    /// The request is answered.
    End = 0x36,
    /// Asks which objects the other has, all of each.
    WhoHolds = 0x50,
    /// The answer.
    Holds = 0x51,
    /// Asks for promises to keep objects.
    AskPromises = 0x52,
    /// The answer.
    Promises = 0x53,
    /// The sender takes promises back.
    Withdrawn = 0x54,
    /// The sender has nothing of some objects any more.
    Gone = 0x55,
}

impl Kind {
    /// The kind with this number.
    pub fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            0x01 => Self::Hello,
            0x02 => Self::Refuse,
            0x03 => Self::Close,
            0x10 => Self::Ping,
            0x11 => Self::Pong,
            0x20 => Self::Subscribe,
            0x21 => Self::Have,
            0x22 => Self::Wants,
            0x23 => Self::Getting,
            0x24 => Self::Ask,
            0x25 => Self::Layers,
            0x26 => Self::Passed,
            0x40 => Self::Claim,
            0x41 => Self::Prune,
            0x42 => Self::Graft,
            0x43 => Self::WhoHas,
            0x44 => Self::Holders,
            0x45 => Self::Images,
            0x46 => Self::Again,
            0x48 => Self::WhoElse,
            0x49 => Self::Others,
            0x30 => Self::Request,
            0x31 => Self::Cancel,
            0x32 => Self::Head,
            0x33 => Self::Data,
            0x34 => Self::NotHave,
            0x35 => Self::Busy,
            0x36 => Self::End,
            0x50 => Self::WhoHolds,
            0x51 => Self::Holds,
            0x52 => Self::AskPromises,
            0x53 => Self::Promises,
            0x54 => Self::Withdrawn,
            0x55 => Self::Gone,
            _ => return None,
        })
    }

    /// Longest body of this kind, in bytes.
    pub fn body_max(self) -> u32 {
        match self {
            Self::Hello => 4 << 10,
            Self::Have | Self::Layers | Self::Images => FRAME_MAX,
            Self::Holders => 32 << 10,
            Self::WhoHolds | Self::Withdrawn | Self::Gone => 33 << 10,
            Self::AskPromises | Self::Promises => 4 << 10,
            Self::WhoHas | Self::Others => 1 << 10,
            Self::Getting => 8 << 10,
            Self::Data => DATA_BODY_MAX,
            _ => 256,
        }
    }

    /// Whether a node that does not know the kind may skip it: what is only
    /// about doing better is, what an answer depends on is not.
    fn is_optional(self) -> bool {
        matches!(self, Self::Wants | Self::Getting | Self::Ask | Self::Layers | Self::Passed)
            || matches!((self as u8) >> 4, 4..=6)
    }

    /// Whether such frames are news rather than content or its bookkeeping; a
    /// receiver limits their rate.
    pub fn is_news(self) -> bool {
        matches!((self as u8) >> 4, 1 | 2 | 4..=6)
    }
}

/// A frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What it is; `None`: unknown, and to be skipped.
    pub kind: Option<Kind>,
    /// Bytes of the body.
    pub length: u32,
}

impl Header {
    /// Reads a header. The input may be hostile.
    ///
    /// # Errors
    /// [`WireError`] where the frame is too long for its kind, is of an unknown
    /// kind that must be known, or has bits set that nobody gave a meaning.
    pub fn decode(bytes: &[u8; HEADER]) -> Result<Self, WireError> {
        let [l0, l1, l2, l3, number, flags, r0, r1] = *bytes;
        let length = u32::from_le_bytes([l0, l1, l2, l3]);
        if flags & !OPTIONAL != 0 || r0 != 0 || r1 != 0 {
            return Err(WireError::Invalid("a frame has unknown flags"));
        }
        let kind = Kind::from_number(number);
        let most = match kind {
            Some(kind) => kind.body_max(),
            None if flags & OPTIONAL != 0 => FRAME_MAX,
            None => return Err(WireError::UnknownKind(number)),
        };
        if length > most {
            return Err(WireError::TooLong { kind: number, length });
        }
        if kind.is_some_and(|kind| kind.is_optional() != (flags & OPTIONAL != 0)) {
            return Err(WireError::Invalid("a frame has the wrong flags for its kind"));
        }
        Ok(Self { kind, length })
    }

    /// The header of a frame of this kind and length.
    pub fn encode(kind: Kind, length: usize) -> [u8; HEADER] {
        debug_assert!(length <= kind.body_max() as usize, "{kind:?} of {length} bytes");
        let [l0, l1, l2, l3] = (length as u32).to_le_bytes();
        [l0, l1, l2, l3, kind as u8, u8::from(kind.is_optional()), 0, 0]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn headers_come_back_or_are_refused(bytes in any::<[u8; HEADER]>()) {
            if let Ok(Header { kind: Some(kind), length }) = Header::decode(&bytes) {
                prop_assert_eq!(Header::encode(kind, length as usize), bytes);
                prop_assert!(length <= kind.body_max());
            }
        }

        #[test]
        fn all_kinds_have_their_number(number in any::<u8>()) {
            if let Some(kind) = Kind::from_number(number) {
                prop_assert_eq!(kind as u8, number);
                prop_assert!(kind.body_max() <= FRAME_MAX);
            }
        }
    }

    #[test]
    fn an_unknown_kind_is_skipped_only_if_it_says_so() {
        assert_eq!(
            Header::decode(&[9, 0, 0, 0, 0x7f, 1, 0, 0]),
            Ok(Header { kind: None, length: 9 })
        );
        assert_eq!(Header::decode(&[9, 0, 0, 0, 0x7f, 0, 0, 0]), Err(WireError::UnknownKind(0x7f)));
        let long = (FRAME_MAX + 1).to_le_bytes();
        let header = [long[0], long[1], long[2], long[3], 0x7f, 1, 0, 0];
        assert!(matches!(Header::decode(&header), Err(WireError::TooLong { .. })));
    }
}
