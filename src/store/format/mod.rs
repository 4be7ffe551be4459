//! The on-disk format of a store: what the engine and the checker share.
//!
//! `docs/FORMAT.md` describes it byte by byte. Nothing here opens a file or
//! knows the engine. All integers are little-endian in values and big-endian
//! in keys, so that keys sort by number.

pub mod bits;
pub mod checkpoint;
mod codec;
pub mod inventory;
pub mod keys;
pub mod layout;
pub mod overlay;
pub mod records;
pub mod spec;
pub mod tables;

pub use codec::{RecordError, SEAL_LEN, seal, unseal};
