//! Layers: tar streams as trees, objects and indexes. Pure: no I/O.
//!
//! A layer blob becomes, in one pass, the four parts of its *index* and the
//! objects that hold its content:
//!
//! ```text
//! blob -- Decompressor --> tar stream -- LayerBuilder --> blocks, literals (to a Sink)
//!              |                              |
//!           seek table                tree, blocks, layout
//! ```
//!
//! [`tree`] is what a mount reads, [`blocks`] what objects consist of, [`seek`]
//! and [`span`] how to enter the compressed blob in the middle, and
//! [`skeleton`] with [`rebuild`] how the exact tar stream comes back.

pub mod blocks;
pub mod build;
mod codec;
pub mod entry;
pub mod rebuild;
pub mod root;
pub mod seek;
pub mod skeleton;
pub mod span;
pub mod tar;
pub mod tree;
mod wire;
