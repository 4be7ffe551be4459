//! The presence bitmap beside an incomplete object.
//!
//! A file of 64-byte lines. The first is the header, each further one holds
//! the bits of 448 blocks and a checksum of its own, so that a torn or damaged
//! write costs the claims of one line and can never make a claim. Another
//! process may map the file: a line whose checksum fails at the moment claims
//! nothing.

use crate::types::ObjectId;

/// Length in bytes of the header and of each line.
pub const LINE_LEN: usize = 64;
/// Blocks whose bits are in one line.
pub const BITS_PER_LINE: u32 = 448;
/// Bytes of bits in one line.
pub const LINE_BITS_LEN: usize = 56;

const MAGIC: &[u8; 8] = b"PSYNCbit";
const VERSION: u32 = 1;

/// Lines that the bits of `blocks` blocks take, the header not counted.
pub fn line_count(blocks: u32) -> u32 {
    blocks.div_ceil(BITS_PER_LINE)
}

/// Length in bytes of the file for an object of `blocks` blocks.
pub fn file_len(blocks: u32) -> u64 {
    (u64::from(line_count(blocks)) + 1) * LINE_LEN as u64
}

/// Where line `line` begins in the file.
pub fn line_offset(line: u32) -> u64 {
    (u64::from(line) + 1) * LINE_LEN as u64
}

/// The header: magic (8), version (4), block count (4), object id (32),
/// zeros (8), checksum (8).
pub fn header(id: &ObjectId, blocks: u32) -> [u8; LINE_LEN] {
    let mut out = [0; LINE_LEN];
    out[..8].copy_from_slice(MAGIC);
    out[8..12].copy_from_slice(&VERSION.to_le_bytes());
    out[12..16].copy_from_slice(&blocks.to_le_bytes());
    out[16..48].copy_from_slice(id.as_bytes());
    let sum = checksum(id, u32::MAX, &out[..LINE_BITS_LEN]);
    out[LINE_BITS_LEN..].copy_from_slice(&sum);
    out
}

/// A line: bit `i % 8` of byte `i / 8` for block `448 * line + i`, then the
/// checksum over object id, line number and bits.
pub fn line(id: &ObjectId, line: u32, bits: &[u8; LINE_BITS_LEN]) -> [u8; LINE_LEN] {
    let mut out = [0; LINE_LEN];
    out[..LINE_BITS_LEN].copy_from_slice(bits);
    out[LINE_BITS_LEN..].copy_from_slice(&checksum(id, line, bits));
    out
}

/// Checks a line and gives its bits. A line of zeros only (never written) is
/// valid and claims nothing.
pub fn read_line(
    id: &ObjectId,
    number: u32,
    bytes: &[u8; LINE_LEN],
) -> Option<[u8; LINE_BITS_LEN]> {
    let mut bits = [0; LINE_BITS_LEN];
    bits.copy_from_slice(&bytes[..LINE_BITS_LEN]);
    if bytes.iter().all(|b| *b == 0) || checksum(id, number, &bits) == bytes[LINE_BITS_LEN..] {
        Some(bits)
    } else {
        None
    }
}

/// What is wrong with a bitmap file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BitsError {
    /// Not the header of this object's bitmap: nothing in the file counts.
    #[error("the bitmap's header is damaged or belongs to another object")]
    Header,
    /// Line `0` is damaged: its blocks count as absent.
    #[error("line {0} of the bitmap is damaged")]
    Line(u32),
    /// The file ends early: the blocks of missing lines count as absent.
    #[error("the bitmap is truncated")]
    Truncated,
    /// A bit after the last block is set: the line counts as damaged.
    #[error("line {0} of the bitmap claims blocks that the object does not have")]
    Beyond(u32),
}

/// Parses a whole bitmap file into words (bit `i % 64` of word `i / 64`).
/// Everything that can't be believed is absent, and reported to `report`.
pub fn parse(
    id: &ObjectId,
    blocks: u32,
    file: &[u8],
    mut report: impl FnMut(BitsError),
) -> Vec<u64> {
    let mut words = vec![0u64; blocks.div_ceil(64) as usize];
    if file.get(..LINE_LEN) != Some(&header(id, blocks)[..]) {
        report(BitsError::Header);
        return words;
    }
    let mut lines = file[LINE_LEN..].chunks_exact(LINE_LEN);
    for number in 0..line_count(blocks) {
        let Some(bytes) = lines.next() else {
            report(BitsError::Truncated);
            break;
        };
        let mut array = [0; LINE_LEN];
        array.copy_from_slice(bytes);
        let Some(bits) = read_line(id, number, &array) else {
            report(BitsError::Line(number));
            continue;
        };
        let first = number * BITS_PER_LINE;
        let valid = (blocks - first).min(BITS_PER_LINE);
        if (valid..BITS_PER_LINE).any(|i| bits[i as usize / 8] & (1 << (i % 8)) != 0) {
            report(BitsError::Beyond(number));
            continue;
        }
        // 448 = 7 * 64: a line is whole words.
        let start = first as usize / 64;
        for (word, chunk) in words[start..].iter_mut().zip(bits.chunks_exact(8)) {
            let mut le = [0; 8];
            le.copy_from_slice(chunk);
            *word = u64::from_le_bytes(le);
        }
    }
    words
}

/// The bits of line `number`, from words as [`parse`] gives them.
pub fn line_bits(words: &[u64], number: u32) -> [u8; LINE_BITS_LEN] {
    let start = (number * BITS_PER_LINE) as usize / 64;
    let mut bits = [0; LINE_BITS_LEN];
    for (chunk, word) in bits.chunks_exact_mut(8).zip(&words[start.min(words.len())..]) {
        chunk.copy_from_slice(&word.to_le_bytes());
    }
    bits
}

fn checksum(id: &ObjectId, line: u32, bits: &[u8]) -> [u8; 8] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(id.as_bytes());
    hasher.update(&line.to_le_bytes());
    hasher.update(bits);
    let mut out = [0; 8];
    out.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(id: &ObjectId, blocks: u32, words: &[u64]) -> Vec<u8> {
        let mut out = header(id, blocks).to_vec();
        for number in 0..line_count(blocks) {
            out.extend(line(id, number, &line_bits(words, number)));
        }
        out
    }

    #[test]
    fn bits_survive_the_file() {
        let id = ObjectId::from_bytes([3; 32]);
        for blocks in [1u32, 63, 64, 447, 448, 449, 1000] {
            let mut words = vec![0u64; blocks.div_ceil(64) as usize];
            for i in (0..blocks).step_by(3) {
                words[i as usize / 64] |= 1 << (i % 64);
            }
            let bytes = file(&id, blocks, &words);
            assert_eq!(bytes.len() as u64, file_len(blocks));
            let back = parse(&id, blocks, &bytes, |e| panic!("{e}"));
            assert_eq!(back, words);
        }
    }

    #[test]
    fn a_flipped_bit_never_makes_a_claim() {
        let id = ObjectId::from_bytes([3; 32]);
        let words = [0x5555_5555_5555_5555, 0b101];
        let bytes = file(&id, 67, &words);
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let mut reported = false;
            let back = parse(&id, 67, &bad, |_| reported = true);
            assert!(reported, "bit {bit}");
            assert!(back.iter().zip(&words).all(|(b, w)| b & !w == 0));
        }
    }
}
