//! The checkpoint of a first pass: how far each stream is durable, and the
//! caller's own state at that point.

use super::codec::{Reader, RecordError, Writer};
use super::layout::Stream;

const MAGIC: &[u8; 8] = b"PSYNCckp";
const VERSION: u32 = 1;
/// Largest state of the caller, in bytes.
pub const STATE_MAX: usize = 64 << 20;
/// Most streams of one first pass.
pub const STREAMS_MAX: usize = 1 << 20;

/// A durable point of a first pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Counts up from 1; the valid checkpoint with the highest one counts.
    pub sequence: u64,
    /// The streams and the length in bytes up to which each is durable.
    pub streams: Vec<(Stream, u64)>,
    /// The caller's state; at most [`STATE_MAX`] bytes.
    pub state: Vec<u8>,
}

impl Checkpoint {
    /// The file: magic (8), version (u32), sequence (u64), number of streams
    /// (u32), for each its name (u32 length, bytes) and length (u64), the state
    /// (u32 length, bytes), and BLAKE3 over all that (32).
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::default()
            .raw(MAGIC)
            .u32(VERSION)
            .u64(self.sequence)
            .u32(self.streams.len() as u32);
        for (stream, length) in &self.streams {
            w = w.bytes(stream.file_name().as_bytes()).u64(*length);
        }
        let mut out = w.bytes(&self.state).done();
        let sum = blake3::hash(&out);
        out.extend(sum.as_bytes());
        out
    }

    /// Reads a file. Bytes after the checkpoint (of a longer one before it)
    /// are not looked at.
    ///
    /// # Errors
    /// [`RecordError`] where it is torn, damaged or not a checkpoint.
    pub fn decode(file: &[u8]) -> Result<Self, RecordError> {
        let mut r = Reader::new(file);
        if r.raw(8)? != MAGIC || r.u32()? != VERSION {
            return Err(RecordError::Malformed);
        }
        let sequence = r.u64()?;
        let count = r.u32()? as usize;
        if count > STREAMS_MAX {
            return Err(RecordError::TooLarge);
        }
        let mut streams = Vec::new();
        let mut covered = 24;
        for _ in 0..count {
            let name = r.bytes(32)?;
            let stream = std::str::from_utf8(name)
                .ok()
                .and_then(Stream::from_file_name)
                .ok_or(RecordError::Malformed)?;
            streams.push((stream, r.u64()?));
            covered += 12 + name.len();
        }
        let state = r.bytes(STATE_MAX)?.to_vec();
        covered += 4 + state.len();
        let sum: [u8; 32] = r.array()?;
        if *blake3::hash(&file[..covered]).as_bytes() != sum {
            return Err(RecordError::Checksum);
        }
        Ok(Self { sequence, streams, state })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_or_damaged_checkpoint_is_refused() {
        let checkpoint = Checkpoint {
            sequence: 5,
            streams: vec![(Stream::Literals, 10), (Stream::Bundle, 20), (Stream::File(3), 30)],
            state: b"state".to_vec(),
        };
        let mut bytes = checkpoint.encode();
        assert_eq!(Checkpoint::decode(&bytes).as_ref(), Ok(&checkpoint));
        for len in 0..bytes.len() {
            assert!(Checkpoint::decode(&bytes[..len]).is_err());
        }
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Checkpoint::decode(&bytes).is_err(), "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        bytes.extend(b"left over");
        assert_eq!(Checkpoint::decode(&bytes), Ok(checkpoint));
    }
}
