//! Keys: fixed-width fields, numbers big-endian so that they sort.

use super::codec::{Reader, RecordError, Writer};
use super::layout::Stream;
use super::records::{LayerKey, PATH_MAX};
use crate::types::{BlockHash, Digest, ObjectId};

/// `state`: the session record.
pub const STATE_SESSION: &[u8] = b"session";
/// `state`: the next object number.
pub const STATE_NEXT_OBJECT: &[u8] = b"next_object";
/// `state`: the next slot.
pub const STATE_NEXT_SLOT: &[u8] = b"next_slot";
/// `state`: 1 while others may rely on promises that this node gave.
pub const STATE_PROMISED: &[u8] = b"promised";

/// `state`: how many of [`Table::ALL`](super::tables::Table::ALL) the database has,
/// from the first on.
pub const STATE_TABLES: &[u8] = b"tables";

/// Blocks in one row of `specs`.
pub const SPEC_CHUNK: u32 = 1024;
/// Bytes of a hash that the index tables keep: enough to find, not to prove.
pub const PREFIX_LEN: usize = 16;

/// A number as a key.
pub fn number(n: u32) -> [u8; 4] {
    n.to_be_bytes()
}

/// Reads a number that is a whole key.
pub fn parse_number(key: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(key.try_into().ok()?))
}

/// Reads an object id that is a whole key.
pub fn parse_object(key: &[u8]) -> Option<ObjectId> {
    Some(ObjectId::from_bytes(key.try_into().ok()?))
}

/// Reads a digest that is a whole key.
pub fn parse_digest(key: &[u8]) -> Option<Digest> {
    Some(Digest::from_bytes(key.try_into().ok()?))
}

/// `specs`: object number, chunk.
pub fn spec_chunk(object: u32, chunk: u32) -> [u8; 8] {
    pair(object, chunk)
}

/// Reads [`spec_chunk`].
pub fn parse_spec_chunk(key: &[u8]) -> Option<(u32, u32)> {
    let (a, b) = key.split_at_checked(4)?;
    Some((parse_number(a)?, parse_number(b)?))
}

/// `block_index`: the first half of the hash, object number, block index.
pub fn block_row(hash: &BlockHash, object: u32, index: u32) -> [u8; 24] {
    let mut key = [0; 24];
    key[..PREFIX_LEN].copy_from_slice(&hash.as_bytes()[..PREFIX_LEN]);
    key[PREFIX_LEN..].copy_from_slice(&pair(object, index));
    key
}

/// Reads [`block_row`] without the hash.
pub fn parse_block_row(key: &[u8]) -> Option<(u32, u32)> {
    let (_, tail) = key.split_at_checked(PREFIX_LEN)?;
    parse_spec_chunk(tail)
}

/// `contents`: object number, offset.
pub fn content(object: u32, offset: u64) -> [u8; 12] {
    let mut key = [0; 12];
    key[..4].copy_from_slice(&number(object));
    key[4..].copy_from_slice(&offset.to_be_bytes());
    key
}

/// Reads [`content`].
pub fn parse_content(key: &[u8]) -> Option<(u32, u64)> {
    let (object, offset) = key.split_at_checked(4)?;
    Some((parse_number(object)?, u64::from_be_bytes(offset.try_into().ok()?)))
}

/// `content_index`: the first half of the hash, object number, offset.
pub fn content_row(hash: &BlockHash, object: u32, offset: u64) -> [u8; 28] {
    let mut key = [0; 28];
    key[..PREFIX_LEN].copy_from_slice(&hash.as_bytes()[..PREFIX_LEN]);
    key[PREFIX_LEN..].copy_from_slice(&content(object, offset));
    key
}

/// Reads [`content_row`] without the hash.
pub fn parse_content_row(key: &[u8]) -> Option<(u32, u64)> {
    let (_, tail) = key.split_at_checked(PREFIX_LEN)?;
    parse_content(tail)
}

/// `layers`: diffID (32), then the path (u32 length and bytes) for raw layers.
pub fn layer(key: &LayerKey) -> Vec<u8> {
    let writer = Writer::default().raw(key.diff_id.as_bytes());
    match &key.path {
        Some(path) => writer.bytes(path).done(),
        None => writer.done(),
    }
}

/// Reads [`layer`].
///
/// # Errors
/// [`RecordError`] where it is not one.
pub fn parse_layer(key: &[u8]) -> Result<LayerKey, RecordError> {
    let mut reader = Reader::new(key);
    let diff_id = Digest::from_bytes(reader.array()?);
    let path = if key.len() == 32 { None } else { Some(reader.bytes(PATH_MAX)?.to_vec()) };
    reader.end()?;
    Ok(LayerKey { diff_id, path })
}

/// `layer_objects`: slot, object id.
pub fn layer_object(slot: u32, object: &ObjectId) -> [u8; 36] {
    let mut key = [0; 36];
    key[..4].copy_from_slice(&number(slot));
    key[4..].copy_from_slice(object.as_bytes());
    key
}

/// Reads [`layer_object`].
pub fn parse_layer_object(key: &[u8]) -> Option<(u32, ObjectId)> {
    let (slot, id) = key.split_at_checked(4)?;
    Some((parse_number(slot)?, parse_object(id)?))
}

/// `references`: object id, slot.
pub fn reference(object: &ObjectId, slot: u32) -> [u8; 36] {
    let mut key = [0; 36];
    key[..32].copy_from_slice(object.as_bytes());
    key[32..].copy_from_slice(&number(slot));
    key
}

/// Reads [`reference`].
pub fn parse_reference(key: &[u8]) -> Option<(ObjectId, u32)> {
    let (id, slot) = key.split_at_checked(32)?;
    Some((parse_object(id)?, parse_number(slot)?))
}

/// `homes`: object id, blob digest.
pub fn home(object: &ObjectId, blob: &Digest) -> [u8; 64] {
    let mut key = [0; 64];
    key[..32].copy_from_slice(object.as_bytes());
    key[32..].copy_from_slice(blob.as_bytes());
    key
}

/// Reads [`home`].
pub fn parse_home(key: &[u8]) -> Option<(ObjectId, Digest)> {
    let (id, blob) = key.split_at_checked(32)?;
    Some((parse_object(id)?, parse_digest(blob)?))
}

/// `origins`: blob digest, repository.
pub fn origin(blob: &Digest, repository: &str) -> Vec<u8> {
    [&blob.as_bytes()[..], repository.as_bytes()].concat()
}

/// Reads [`origin`].
pub fn parse_origin(key: &[u8]) -> Option<(Digest, &str)> {
    let (blob, repository) = key.split_at_checked(32)?;
    Some((parse_digest(blob)?, std::str::from_utf8(repository).ok()?))
}

/// `promotions`: blob digest, stream name.
pub fn promotion(blob: &Digest, stream: Stream) -> Vec<u8> {
    [&blob.as_bytes()[..], stream.file_name().as_bytes()].concat()
}

/// Reads [`promotion`].
pub fn parse_promotion(key: &[u8]) -> Option<(Digest, Stream)> {
    let (blob, name) = key.split_at_checked(32)?;
    let stream = Stream::from_file_name(std::str::from_utf8(name).ok()?)?;
    Some((parse_digest(blob)?, stream))
}

fn pair(a: u32, b: u32) -> [u8; 8] {
    let mut key = [0; 8];
    key[..4].copy_from_slice(&number(a));
    key[4..].copy_from_slice(&number(b));
    key
}
