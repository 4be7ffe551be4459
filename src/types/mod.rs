//! The words that every layer shares: content names and verified bytes.
//!
//! Nothing here does I/O. [`Digest`] (SHA-256, the OCI name of a blob or layer)
//! and [`BlockHash`] (BLAKE3, our name of a block) are different types and
//! never interchangeable.

mod block;
mod digest;
mod hex;
mod object;
mod peer;

pub use block::{BlockHash, Mismatch, VerifiedBlock};
pub use digest::{Digest, DigestError, DigestHasher};
pub use hex::Hex;
pub use object::{
    BLOCK_MAX, BLOCK_SIZE_LARGE, BLOCK_SIZE_SMALL, BlockEntry, LARGE_OBJECT, ObjectId, ObjectSpec,
    PASSTHROUGH_MIN, SpecError, block_size_for,
};
pub use peer::PeerId;
