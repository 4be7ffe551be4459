//! A blob that nobody has an index of comes into a LAN once: one node reads it
//! from beyond and hands it on, piece by piece, while it comes; each node makes
//! its own first pass over what it gets.
//!
//! [`party`] decides, without I/O: who leads, and whom a piece is asked of.
//! [`spool`] keeps the pieces that are handed on. `peers::relay` is the shell.

pub mod party;
mod spool;

pub use party::{Party, Turn};
pub use spool::{Pieces, Spool, Spools};
