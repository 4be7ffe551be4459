//! The inventory that the owner of a store gives to a checker.
//!
//! Over the control socket: the request is `{"op":"inventory"}` and a newline,
//! or `{"op":"inventory","object":"<64 hex>"}` for one object; the answer is one
//! JSON object a line, each at most about 100 KiB, and ends with a line of type
//! `end`. An object is one `object` line followed by the `blocks` lines of its
//! block list in order. The block list is checked against the object's name by
//! whoever reads it.

use serde::{Deserialize, Serialize};

/// Blocks in one `blocks` line.
pub const BLOCKS_PER_LINE: u32 = 1024;

/// One line of an inventory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum InventoryLine {
    /// An object.
    Object {
        /// The object's name, 64 hexadecimal digits.
        object: String,
        /// Block size in bytes.
        block_size: u32,
        /// Length in bytes.
        length: u64,
        /// Number of blocks.
        blocks: u32,
        /// All blocks are said to be there.
        complete: bool,
    },
    /// A stretch of the block list of the object before it.
    Blocks {
        /// Number of the first block.
        first: u32,
        /// Which blocks are durably there: bit `i % 8` of byte `i / 8` for
        /// block `first + i`, in hexadecimal.
        present: String,
        /// For each block its length (u32, little-endian) and hash (32 bytes),
        /// in hexadecimal.
        list: String,
    },
    /// An object whose records can't be believed.
    Damaged {
        /// The object's name, 64 hexadecimal digits.
        object: String,
        /// What is wrong.
        reason: String,
    },
    /// All objects were listed.
    End {
        /// Number of objects.
        objects: u64,
    },
    /// The inventory can't be completed.
    Error {
        /// Why.
        message: String,
    },
}
