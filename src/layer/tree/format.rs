//! The tree's bytes: a header, then tables of fixed-size records, then strings.
//!
//! All integers are little-endian and unaligned. The sections follow each other
//! without gaps in the order of [`Section`]. Everything is in breadth-first
//! order of the directories, each directory's entries sorted by name: the same
//! layer has the same bytes whoever built it.
//!
//! | section | record | fields |
//! |---|---|---|
//! | nodes | 36 | mode u16 (kind in the upper 4 bits), flags u16, uid, gid, nlink, mtime ns u32, mtime s i64, payload u32, xattr set + 1 u32 |
//! | dirs | 16 | node, first entry, parent's node, entry that names it |
//! | files | 56 | object u32, sparse record + 1 u32, offset u64, dense length u64, BLAKE3 of the dense bytes |
//! | entries | 8 | string offset of the name, node |
//! | links | 8 | node, entry: all names of nodes that have several |
//! | sets | 4 | offset into the xattr bytes |
//! | sparse | 12 | logical size u64, first extent u32 |
//! | extents | 16 | logical offset u64, dense offset u64 |
//! | objects | 40 | id, length u64 |
//! | xattrs | bytes | for each attribute: name length u8, value length u32, name, value |
//! | strings | bytes | length (1 byte below 128, else 2), bytes |
//!
//! A node's payload is the number of its dirs or files record, the string
//! offset of a link's target, or a device number as the kernel encodes it.

use super::TreeError;

pub(super) const MAGIC: [u8; 8] = *b"PSTREE\x00\x01";
pub(super) const HEADER: usize = 64;
/// Nodes of one tree, so that a node fits 26 bits of an inode number.
pub(super) const NODES_MAX: u32 = 1 << 26;
pub(super) const NAME_MAX: usize = 255;
pub(super) const PATH_MAX: usize = 4096;
pub(super) const XATTR_NAME_MAX: usize = 255;
pub(super) const XATTR_VALUE_MAX: usize = 64 << 10;
/// All names of one node with their terminators, as the kernel bounds a list.
pub(super) const XATTR_LIST_MAX: usize = 64 << 10;
/// "No entry" in the root's record.
pub(super) const NONE: u32 = u32::MAX;

pub(super) const FLAG_IMPLICIT: u16 = 1;
pub(super) const FLAG_OPAQUE: u16 = 2;

/// The sections in file order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Section {
    Nodes,
    Dirs,
    Files,
    Entries,
    Links,
    Sets,
    Sparse,
    Extents,
    Objects,
    Xattrs,
    Strings,
}

pub(super) const SECTIONS: usize = 11;
/// Record size of each section; 1 for bytes.
pub(super) const RECORD: [usize; SECTIONS] = [36, 16, 56, 8, 8, 4, 12, 16, 40, 1, 1];

/// Where the sections lie, from the header alone.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sections {
    start: [usize; SECTIONS],
    count: [u32; SECTIONS],
}

impl Sections {
    /// Reads the header; all sections together must fill the bytes exactly.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, TreeError> {
        if bytes.len() < HEADER || bytes[..8] != MAGIC {
            return Err(TreeError::Magic);
        }
        let (mut start, mut count) = ([0; SECTIONS], [0; SECTIONS]);
        let mut at = HEADER;
        for s in 0..SECTIONS {
            count[s] = u32_at(bytes, 8 + 4 * s);
            start[s] = at;
            at = (count[s] as usize)
                .checked_mul(RECORD[s])
                .and_then(|len| at.checked_add(len))
                .ok_or(TreeError::Length)?;
        }
        // The rest of the header is reserved.
        if at != bytes.len() || bytes[8 + 4 * SECTIONS..HEADER].iter().any(|b| *b != 0) {
            return Err(TreeError::Length);
        }
        Ok(Self { start, count })
    }

    pub(super) fn count(&self, section: Section) -> u32 {
        self.count[section as usize]
    }

    /// The bytes of record `i`; empty when there is no such record.
    pub(super) fn record<'a>(&self, bytes: &'a [u8], section: Section, i: u32) -> &'a [u8] {
        let s = section as usize;
        if i >= self.count[s] {
            return &[];
        }
        let at = self.start[s] + i as usize * RECORD[s];
        bytes.get(at..at + RECORD[s]).unwrap_or(&[])
    }

    /// All bytes of a section.
    pub(super) fn section<'a>(&self, bytes: &'a [u8], section: Section) -> &'a [u8] {
        let s = section as usize;
        let len = self.count[s] as usize * RECORD[s];
        bytes.get(self.start[s]..self.start[s] + len).unwrap_or(&[])
    }
}

/// Writes the header for sections of these sizes.
pub(super) fn header(counts: &[u32; SECTIONS]) -> [u8; HEADER] {
    let mut out = [0; HEADER];
    out[..8].copy_from_slice(&MAGIC);
    for (s, count) in counts.iter().enumerate() {
        out[8 + 4 * s..12 + 4 * s].copy_from_slice(&count.to_le_bytes());
    }
    out
}

// Reads beyond the end yield zero: a tree is validated once, and a damaged
// memory map must not bring the process down afterwards.

pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    array(bytes, at).map_or(0, u16::from_le_bytes)
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    array(bytes, at).map_or(0, u32::from_le_bytes)
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    array(bytes, at).map_or(0, u64::from_le_bytes)
}

pub(super) fn hash_at(bytes: &[u8], at: usize) -> [u8; 32] {
    array(bytes, at).unwrap_or([0; 32])
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

/// The string at `offset` of the string section.
pub(super) fn string_at(strings: &[u8], offset: u32) -> Option<&[u8]> {
    let rest = strings.get(offset as usize..)?;
    let (first, rest) = rest.split_first()?;
    if *first < 128 {
        return rest.get(..*first as usize);
    }
    let (second, rest) = rest.split_first()?;
    rest.get(..usize::from(first & 127) | usize::from(*second) << 7)
}

/// Appends a string in the section's form. At most 32,767 bytes long.
pub(super) fn push_string(strings: &mut Vec<u8>, text: &[u8]) {
    if text.len() < 128 {
        strings.push(text.len() as u8);
    } else {
        strings.push(text.len() as u8 | 128);
        strings.push((text.len() >> 7) as u8);
    }
    strings.extend(text);
}

/// A device number as `mknod(2)` packs it: 12 bits of major, 20 of minor. Higher
/// bits are lost there too.
pub(super) fn pack_device(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major & 0xfff) << 8 | (minor & 0xf_ff00) << 12
}

pub(super) fn unpack_device(packed: u32) -> (u32, u32) {
    (packed >> 8 & 0xfff, packed & 0xff | packed >> 12 & 0xf_ff00)
}
