//! `Range` (RFC 9110, section 14): which bytes of a blob are asked for. Pure.

use std::ops::Range;

/// Longest header that is looked at, in bytes.
const TEXT_MAX: usize = 1024;

/// What a `Range` header asks of something of a known length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// All of it: the header asks for nothing that this server gives in parts
    /// (another unit, several ranges, no grammar), and such a header is ignored.
    Whole,
    /// These bytes, at least one.
    Bytes(Range<u64>),
    /// Nothing that there is.
    Unsatisfiable,
}

/// Reads a `Range` header about `length` bytes.
pub fn part(header: Option<&str>, length: u64) -> Part {
    let Some(text) = header.filter(|text| text.len() <= TEXT_MAX) else { return Part::Whole };
    let Some((unit, set)) = text.trim().split_once('=') else { return Part::Whole };
    if !unit.trim_end().eq_ignore_ascii_case("bytes") {
        return Part::Whole;
    }
    // Empty elements of a list count for nothing.
    let mut ranges = set.split(',').map(str::trim).filter(|range| !range.is_empty());
    let (Some(range), None) = (ranges.next(), ranges.next()) else { return Part::Whole };
    let Some((first, last)) = range.split_once('-') else { return Part::Whole };
    match (first.trim_end(), last.trim_start()) {
        ("", "") => Part::Whole,
        ("", suffix) => match number(suffix) {
            None => Part::Whole,
            Some(0) => Part::Unsatisfiable,
            Some(_) if length == 0 => Part::Unsatisfiable,
            Some(suffix) => Part::Bytes(length.saturating_sub(suffix)..length),
        },
        (first, last) => {
            let Some(first) = number(first) else { return Part::Whole };
            let last = if last.is_empty() { Some(u64::MAX) } else { number(last) };
            match last {
                Some(last) if last >= first => {
                    let end = last.saturating_add(1).min(length);
                    if first < end { Part::Bytes(first..end) } else { Part::Unsatisfiable }
                }
                _ => Part::Whole,
            }
        }
    }
}

/// A number of any length; one that is too large to be one here is beyond the end
/// of everything.
fn number(text: &str) -> Option<u64> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_form_is_understood() {
        let bytes = |range: Range<u64>| Part::Bytes(range);
        for (header, expected) in [
            ("bytes=0-99", bytes(0..100)),
            ("bytes=100-", bytes(100..1000)),
            ("bytes=-100", bytes(900..1000)),
            ("bytes=-2000", bytes(0..1000)),
            ("bytes=100-500", bytes(100..501)),
            ("bytes=0-0", bytes(0..1)),
            ("bytes=999-", bytes(999..1000)),
            ("bytes=990-2000", bytes(990..1000)),
            ("bytes=0-18446744073709551615", bytes(0..1000)),
            ("bytes=0-99999999999999999999999", bytes(0..1000)),
            ("BYTES = 5-9", bytes(5..10)),
            ("bytes=,5-9,", bytes(5..10)),
            ("bytes=1000-", Part::Unsatisfiable),
            ("bytes=1000-1001", Part::Unsatisfiable),
            ("bytes=99999999999999999999999-", Part::Unsatisfiable),
            ("bytes=-0", Part::Unsatisfiable),
            ("bytes=0-1,5-9", Part::Whole),
            ("bytes=9-5", Part::Whole),
            ("bytes=-", Part::Whole),
            ("bytes=a-b", Part::Whole),
            ("bytes=+1-2", Part::Whole),
            ("bytes=1", Part::Whole),
            ("bytes=", Part::Whole),
            ("items=0-5", Part::Whole),
            ("bytes", Part::Whole),
            ("", Part::Whole),
        ] {
            assert_eq!(part(Some(header), 1000), expected, "{header}");
        }
        assert_eq!(part(None, 1000), Part::Whole);
        assert_eq!(part(Some("bytes=-5"), 0), Part::Unsatisfiable);
        assert_eq!(part(Some("bytes=0-"), 0), Part::Unsatisfiable);
    }

    proptest! {
        #[test]
        fn a_part_is_in_the_whole(text in "(bytes=)?[0-9,-]{0,44}", length in 0..2000u64) {
            if let Part::Bytes(range) = part(Some(&text), length) {
                prop_assert!(range.start < range.end && range.end <= length);
            }
        }
    }
}
