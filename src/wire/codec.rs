//! Reading and writing the bytes of messages.

use crate::types::{Digest, ObjectId};

/// Why bytes are not a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The frame is longer than its kind may be.
    #[error("a frame of kind {kind:#04x} with {length} bytes is too long")]
    TooLong {
        /// Its kind, as sent.
        kind: u8,
        /// Its length in bytes.
        length: u32,
    },
    /// A kind that is not known, and that must be.
    #[error("a frame of unknown kind {0:#04x}")]
    UnknownKind(u8),
    /// The bytes end too early.
    #[error("the message is cut off")]
    Truncated,
    /// The bytes go on after the message.
    #[error("bytes after the end of the message")]
    TrailingBytes,
    /// A value that can't be.
    #[error("{0}")]
    Invalid(&'static str),
    /// More of something than there may be.
    #[error("too many {0}")]
    TooMany(&'static str),
}

/// Appends a number in groups of seven bits, low ones first (LEB128).
pub(super) fn push_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 128 {
        out.push(number as u8 | 128);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Appends a text of at most 255 bytes: length (u8), bytes. Longer ones are cut
/// at a character.
pub(super) fn push_text(out: &mut Vec<u8>, text: &str, most: usize) {
    let mut end = text.len().min(most).min(255);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    out.push(end as u8);
    out.extend(&text.as_bytes()[..end]);
}

/// Takes things off the front of bytes that may be hostile.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn bytes(&mut self, len: usize) -> Result<&'a [u8], WireError> {
        let (bytes, rest) = self.0.split_at_checked(len).ok_or(WireError::Truncated)?;
        self.0 = rest;
        Ok(bytes)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        self.bytes(N)?.try_into().map_err(|_| WireError::Truncated)
    }

    pub(super) fn u8(&mut self) -> Result<u8, WireError> {
        self.array().map(|[byte]| byte)
    }

    pub(super) fn u16(&mut self) -> Result<u16, WireError> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, WireError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, WireError> {
        self.array().map(u64::from_le_bytes)
    }

    /// 0 or 1.
    pub(super) fn flag(&mut self) -> Result<bool, WireError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(WireError::Invalid("a flag is neither 0 nor 1")),
        }
    }

    /// A number of [`push_varint`], in its shortest form only.
    pub(super) fn varint(&mut self) -> Result<u64, WireError> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 127);
            if bits << shift >> shift != bits || (byte == 0 && shift > 0) {
                return Err(WireError::Invalid("a number is not in its shortest form"));
            }
            number |= bits << shift;
            if byte < 128 {
                return Ok(number);
            }
        }
        Err(WireError::Invalid("a number is too long"))
    }

    /// A count of at most `most`; `what` names it in the error.
    pub(super) fn count(&mut self, most: usize, what: &'static str) -> Result<usize, WireError> {
        let count = usize::from(self.u16()?);
        if count > most { Err(WireError::TooMany(what)) } else { Ok(count) }
    }

    /// A text of [`push_text`].
    pub(super) fn text(&mut self, most: usize) -> Result<String, WireError> {
        let len = usize::from(self.u8()?);
        if len > most {
            return Err(WireError::Invalid("a text is too long"));
        }
        let text = std::str::from_utf8(self.bytes(len)?);
        text.map(str::to_owned).map_err(|_| WireError::Invalid("a text is not UTF-8"))
    }

    pub(super) fn object(&mut self) -> Result<ObjectId, WireError> {
        self.array().map(ObjectId::from_bytes)
    }

    pub(super) fn digest(&mut self) -> Result<Digest, WireError> {
        self.array().map(Digest::from_bytes)
    }

    pub(super) fn end(self) -> Result<(), WireError> {
        if self.0.is_empty() { Ok(()) } else { Err(WireError::TrailingBytes) }
    }
}
