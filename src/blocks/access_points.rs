//! Where readers of known formats look next. Pure.

use std::ops::Range;

/// Longest header that is fetched on suspicion, in bytes.
const HEADER_MAX: u64 = 16 << 20;
/// A zip's central directory is looked for in this much of its end.
const ZIP_TAIL: u64 = 256 << 10;

/// Stretches of a file that its readers are likely to want after its beginning,
/// judged by its first bytes. `head` is hostile: it only ever costs bounded work.
pub(super) fn access_points(head: &[u8], length: u64) -> Vec<Range<u64>> {
    let clip = |range: Range<u64>| range.start.min(length)..range.end.min(length);
    let point = if head.starts_with(b"PK\x03\x04") {
        // zip, wheel, jar, torch: the directory stands at the end.
        clip(length.saturating_sub(ZIP_TAIL)..length)
    } else if head.starts_with(b"GGUF") {
        // Metadata and tensor table follow the magic; their length is not said.
        clip(0..4 << 20)
    } else if let Some(header) = safetensors_header(head) {
        clip(0..header)
    } else {
        return Vec::new();
    };
    if point.is_empty() { Vec::new() } else { vec![point] }
}

/// A safetensors file begins with the length of a JSON object, and the object.
fn safetensors_header(head: &[u8]) -> Option<u64> {
    let length = u64::from_le_bytes(head.get(..8)?.try_into().ok()?);
    let looks_right = head.get(8) == Some(&b'{') && length <= HEADER_MAX;
    looks_right.then(|| length + 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_formats_have_points_and_others_none() {
        let mut head = 100_000u64.to_le_bytes().to_vec();
        head.extend(b"{\"a\":");
        assert_eq!(access_points(&head, 1 << 30), vec![0..100_008]);
        assert_eq!(access_points(b"PK\x03\x04", 1 << 20), vec![(1 << 20) - ZIP_TAIL..1 << 20]);
        assert_eq!(access_points(b"GGUF", 100), vec![0..100]);
        assert!(access_points(b"\x7fELF", 1 << 20).is_empty());
        assert!(access_points(b"", 0).is_empty());
        assert!(access_points(&[0xff; 64], 1 << 20).is_empty(), "a length beyond bounds");
    }
}
