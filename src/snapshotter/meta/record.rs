//! How a record lies in the database: a checksum, then a protobuf message.
//!
//! The checksum (the first 16 bytes of BLAKE3 over name and message) ties a
//! record to its name, so a damaged page is noticed here and not three calls
//! later. Fields may be added; their numbers are never used again.

use prost::Message;

use super::{Content, Kind, NAME_MAX, Record, Timestamp, Usage};
use crate::types::Digest;

/// Bytes of checksum before the message.
const CHECKSUM: usize = 16;

/// Longest stored record: labels are at most 1 MiB, names 32 KiB each.
const RECORD_MAX: usize = 4 << 20;

/// Why stored bytes are not a record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The bytes are not those that were written.
    #[error("checksum does not match")]
    Checksum,
    /// Shorter than a checksum or longer than any record.
    #[error("{0} bytes are no record")]
    Length(usize),
    /// The message does not parse.
    #[error("message does not parse: {0}")]
    Message(String),
    /// A field has a value that it can't have.
    #[error("field {0} has a value out of range")]
    Field(&'static str),
}

#[derive(Clone, PartialEq, Message)]
struct Stored {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(string, tag = "2")]
    parent: String,
    /// 1 view, 2 active, 3 committed: containerd's own numbers.
    #[prost(uint32, tag = "3")]
    kind: u32,
    /// The chain's SHA-256; empty: the files are in the directory.
    #[prost(bytes = "vec", tag = "4")]
    chain: Vec<u8>,
    #[prost(btree_map = "string, string", tag = "5")]
    labels: std::collections::BTreeMap<String, String>,
    #[prost(sint64, tag = "6")]
    created_seconds: i64,
    #[prost(uint32, tag = "7")]
    created_nanos: u32,
    #[prost(sint64, tag = "8")]
    updated_seconds: i64,
    #[prost(uint32, tag = "9")]
    updated_nanos: u32,
    #[prost(uint64, tag = "10")]
    bytes: u64,
    #[prost(uint64, tag = "11")]
    inodes: u64,
    #[prost(string, tag = "12")]
    committed_from: String,
}

/// The stored form of `record` under `name`.
pub fn encode_record(name: &str, record: &Record) -> Vec<u8> {
    let stored = Stored {
        id: record.id,
        parent: record.parent.clone(),
        kind: match record.kind {
            Kind::View => 1,
            Kind::Active => 2,
            Kind::Committed => 3,
        },
        chain: match &record.content {
            Content::Directory => Vec::new(),
            Content::Chain(chain) => chain.as_bytes().to_vec(),
        },
        labels: record.labels.clone(),
        created_seconds: record.created.seconds,
        created_nanos: record.created.nanos,
        updated_seconds: record.updated.seconds,
        updated_nanos: record.updated.nanos,
        bytes: record.usage.bytes,
        inodes: record.usage.inodes,
        committed_from: record.committed_from.clone(),
    };
    let message = stored.encode_to_vec();
    let mut bytes = checksum(name, &message).to_vec();
    bytes.extend_from_slice(&message);
    bytes
}

/// Reads [`encode_record`]'s form, which must have been written under `name`.
///
/// # Errors
/// Any difference from what was written, or a field out of range.
pub fn decode_record(name: &str, bytes: &[u8]) -> Result<Record, RecordError> {
    if bytes.len() > RECORD_MAX {
        return Err(RecordError::Length(bytes.len()));
    }
    let (sum, message) =
        bytes.split_at_checked(CHECKSUM).ok_or(RecordError::Length(bytes.len()))?;
    if sum != checksum(name, message) {
        return Err(RecordError::Checksum);
    }
    let stored =
        Stored::decode(message).map_err(|error| RecordError::Message(error.to_string()))?;
    let kind = match stored.kind {
        1 => Kind::View,
        2 => Kind::Active,
        3 => Kind::Committed,
        _ => return Err(RecordError::Field("kind")),
    };
    let content = match <[u8; 32]>::try_from(stored.chain.as_slice()) {
        Ok(chain) if kind == Kind::Committed => Content::Chain(Digest::from_bytes(chain)),
        Err(_) if stored.chain.is_empty() => Content::Directory,
        _ => return Err(RecordError::Field("chain")),
    };
    if stored.id == 0 {
        return Err(RecordError::Field("id"));
    }
    if stored.parent.len() > NAME_MAX {
        return Err(RecordError::Field("parent"));
    }
    Ok(Record {
        id: stored.id,
        parent: stored.parent,
        kind,
        content,
        labels: stored.labels,
        created: timestamp(stored.created_seconds, stored.created_nanos)?,
        updated: timestamp(stored.updated_seconds, stored.updated_nanos)?,
        usage: Usage { bytes: stored.bytes, inodes: stored.inodes },
        committed_from: stored.committed_from,
    })
}

fn timestamp(seconds: i64, nanos: u32) -> Result<Timestamp, RecordError> {
    if nanos >= 1_000_000_000 {
        return Err(RecordError::Field("time"));
    }
    Ok(Timestamp { seconds, nanos })
}

fn checksum(name: &str, message: &[u8]) -> [u8; CHECKSUM] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(name.len() as u64).to_le_bytes());
    hasher.update(name.as_bytes());
    hasher.update(message);
    let mut sum = [0; CHECKSUM];
    sum.copy_from_slice(&hasher.finalize().as_bytes()[..CHECKSUM]);
    sum
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    prop_compose! {
        fn record()(
            id in 1u64..,
            parent in "\\PC{0,20}",
            kind in prop::sample::select(vec![Kind::View, Kind::Active, Kind::Committed]),
            chain in any::<Option<[u8; 32]>>(),
            labels in proptest::collection::btree_map("\\PC{1,8}", "\\PC{1,8}", 0..4),
            seconds in any::<i64>(),
            nanos in 0u32..1_000_000_000,
            (bytes, inodes) in any::<(u64, u64)>(),
            committed_from in "\\PC{0,20}",
        ) -> Record {
            let content = match (kind, chain) {
                (Kind::Committed, Some(chain)) => Content::Chain(Digest::from_bytes(chain)),
                _ => Content::Directory,
            };
            let time = Timestamp { seconds, nanos };
            Record {
                id, parent, kind, content, labels, created: time, updated: time,
                usage: Usage { bytes, inodes }, committed_from,
            }
        }
    }

    proptest! {
        #[test]
        fn reads_what_it_wrote(name in "\\PC{1,20}", record in record()) {
            let bytes = encode_record(&name, &record);
            prop_assert_eq!(decode_record(&name, &bytes), Ok(record));
        }

        #[test]
        fn notices_any_damage(
            record in record(),
            at in any::<prop::sample::Index>(),
            flip in 1u8..,
        ) {
            let mut bytes = encode_record("name", &record);
            prop_assert_eq!(decode_record("other", &bytes), Err(RecordError::Checksum));
            let at = at.index(bytes.len());
            prop_assert!(decode_record("name", &bytes[..at]).is_err());
            bytes[at] ^= flip;
            prop_assert!(decode_record("name", &bytes).is_err());
        }

        #[test]
        fn noise_is_an_error(message in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut bytes = checksum("name", &message).to_vec();
            bytes.extend_from_slice(&message);
            let _ = decode_record("name", &bytes);
        }
    }
}
