//! Maps of sparse files: four spellings of the same thing.

use crate::layer::entry::Extent;

use super::number::{decimal, parse_number};

/// Stretches of data in one file. An archive spends at least four bytes on each;
/// real files stay far below.
pub(super) const EXTENTS_MAX: usize = 1 << 20;

/// A map that doesn't fit its file, or is malformed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BadMap;

/// Adds the entries of an old GNU header or extension block: pairs of 12-byte
/// numbers, ended by an empty one.
pub(super) fn push_gnu(map: &mut Vec<Extent>, entries: &[u8]) -> Result<(), BadMap> {
    for pair in entries.chunks_exact(24) {
        if pair[0] == 0 {
            break;
        }
        let number = |field| parse_number(field).and_then(|n| u64::try_from(n).ok());
        let (logical, len) = number(&pair[..12]).zip(number(&pair[12..])).ok_or(BadMap)?;
        push(map, logical, len)?;
    }
    Ok(())
}

/// The map of PAX formats 0.0 and 0.1: offsets and lengths in turn.
pub(super) fn from_pairs(numbers: &[u64]) -> Result<Vec<Extent>, BadMap> {
    let mut map = Vec::new();
    let (pairs, rest) = numbers.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(BadMap);
    }
    for [logical, len] in pairs {
        push(&mut map, *logical, *len)?;
    }
    Ok(map)
}

/// Reads the map of PAX format 1.0, which stands before the data: decimal
/// numbers, one a line: how many pairs, then the pairs.
#[derive(Debug, Default)]
pub(super) struct MapReader {
    count: Option<u64>,
    offset: Option<u64>,
    digits: Vec<u8>,
    pub(super) map: Vec<Extent>,
    pairs: u64,
}

impl MapReader {
    /// Takes the next block of the map. `true` when the map is complete: the
    /// data begin at the next block.
    pub(super) fn feed(&mut self, block: &[u8]) -> Result<bool, BadMap> {
        for byte in block {
            if *byte != b'\n' {
                // No number has more digits.
                if self.digits.len() == 20 {
                    return Err(BadMap);
                }
                self.digits.push(*byte);
                continue;
            }
            let number = decimal(&self.digits).ok_or(BadMap)?;
            self.digits.clear();
            match (self.count, self.offset.take()) {
                (None, _) => {
                    if number > EXTENTS_MAX as u64 {
                        return Err(BadMap);
                    }
                    self.count = Some(number);
                }
                (_, None) => self.offset = Some(number),
                (_, Some(offset)) => {
                    push(&mut self.map, offset, number)?;
                    self.pairs += 1;
                }
            }
            if self.count == Some(self.pairs) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Whether the map holds exactly `dense` bytes of data within `size`.
pub(super) fn fits(map: &[Extent], size: u64, dense: u64) -> bool {
    let data = map.iter().map(|e| e.len).sum::<u64>();
    data == dense && map.last().is_none_or(|e| e.logical + e.len <= size)
}

/// Appends a stretch. Empty ones, with which GNU tar marks a hole at the end,
/// say nothing.
fn push(map: &mut Vec<Extent>, logical: u64, len: u64) -> Result<(), BadMap> {
    let end = logical.checked_add(len).filter(|end| *end <= i64::MAX as u64);
    let before = map.last().map_or(0, |e| e.logical + e.len);
    if end.is_none() || logical < before || map.len() >= EXTENTS_MAX {
        return Err(BadMap);
    }
    if len > 0 {
        map.push(Extent { logical, len });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_in_front_of_the_data() {
        let mut reader = MapReader::default();
        assert_eq!(reader.feed(b"2\n10\n5"), Ok(false));
        assert_eq!(reader.feed(b"\n30\n0\n\0\0\0"), Ok(true));
        assert_eq!(reader.map, [Extent { logical: 10, len: 5 }]);
        for bad in
            [&b"x\n"[..], b"\n", b"9999999999\n", b"000000000000000000001\n", b"2\n5\n5\n6\n1\n"]
        {
            assert_eq!(MapReader::default().feed(bad), Err(BadMap));
        }
        assert_eq!(MapReader::default().feed(b"0\n"), Ok(true));
    }

    #[test]
    fn overlaps_and_overflows_are_refused() {
        assert!(from_pairs(&[0, 5, 4, 1]).is_err());
        assert!(from_pairs(&[0]).is_err());
        assert!(from_pairs(&[u64::MAX, 1]).is_err());
        assert_eq!(from_pairs(&[0, 5, 5, 1]).map(|m| m.len()), Ok(2));
        assert!(fits(&[Extent { logical: 3, len: 2 }], 5, 2));
        assert!(!fits(&[Extent { logical: 3, len: 2 }], 4, 2));
    }
}
