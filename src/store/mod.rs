//! The block store: verified bytes on a disk, and what is known about them.
//!
//! [`format`] is the on-disk format, which the checker shares; [`device`] the
//! seam to the disk; `engine` keeps the invariants:
//!
//! 1. A presence bit becomes durable only after its data (`engine::flush`).
//! 2. A data file holds only verified bytes (`engine::objects`).
//! 3. Opening after a crash scans neither data nor database (`engine::open`).
//! 4. A file open for passthrough is never punched or truncated (`engine::remove`).
//! 5. The checker shares the format, never the engine ([`format`]).
//! 6. A full disk is an ordinary event (`engine::error`, `engine::meta`).
//! 7. One process owns a store (`engine::open`).
//!
//! Each has tests in `tests/store/invariants.rs`, and all of them hold in the
//! sweeps beside it: `tests/store/sweep.rs` lets every operation fail in turn,
//! `tests/store/model.rs` does random things.

pub mod format;

#[cfg(feature = "node")]
pub mod device;
#[cfg(feature = "node")]
mod engine;

#[cfg(feature = "node")]
pub use engine::*;
