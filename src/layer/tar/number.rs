//! Numbers as headers write them.

/// A header field: octal text, or base-256 when the first bit is set. `None`
/// where it is neither or exceeds 64 bits. An empty field is 0.
pub(super) fn parse_number(field: &[u8]) -> Option<i64> {
    let (first, rest) = field.split_first()?;
    if first & 0x80 == 0 {
        return octal(field).and_then(|n| i64::try_from(n).ok());
    }
    // Two's complement in all bits but the very first one.
    let top = i64::from((first << 1).cast_signed() >> 1);
    rest.iter().try_fold(top, |number, byte| {
        let shifted = number << 8;
        (shifted >> 8 == number).then_some(shifted | i64::from(*byte))
    })
}

/// Octal digits between spaces and NULs.
pub(super) fn octal(field: &[u8]) -> Option<u64> {
    let is_blank = |b: &u8| matches!(b, b' ' | 0);
    let start = field.iter().position(|b| !is_blank(b));
    let Some(start) = start else { return Some(0) };
    let digits = &field[start..];
    let end = digits.iter().position(|b| *b == 0).unwrap_or(digits.len());
    digits[..end].trim_ascii_end().iter().try_fold(0u64, |n, b| {
        let digit = matches!(b, b'0'..=b'7').then(|| u64::from(b - b'0'))?;
        n.checked_mul(8)?.checked_add(digit)
    })
}

/// Decimal digits, at least one, as PAX and sparse maps write them.
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u64, |n, b| {
        let digit = b.is_ascii_digit().then(|| u64::from(b - b'0'))?;
        n.checked_mul(10)?.checked_add(digit)
    })
}

/// Decimal digits with an optional minus.
pub(super) fn signed_decimal(text: &[u8]) -> Option<i64> {
    match text.strip_prefix(b"-") {
        Some(text) => 0i64.checked_sub_unsigned(decimal(text)?),
        None => i64::try_from(decimal(text)?).ok(),
    }
}

/// A PAX time: seconds with an optional fraction, of which nine digits count.
/// The result's nanoseconds count upwards, also before 1970.
pub(super) fn pax_time(text: &[u8]) -> Option<(i64, u32)> {
    let dot = text.iter().position(|b| *b == b'.');
    let (whole, fraction) = match dot {
        Some(dot) => (&text[..dot], &text[dot + 1..]),
        None => (text, &b""[..]),
    };
    let seconds = signed_decimal(whole)?;
    let mut nanos = 0;
    for place in 0..9 {
        let digit = fraction.get(place).copied().unwrap_or(b'0');
        nanos = nanos * 10 + u32::from(digit.is_ascii_digit().then(|| digit - b'0')?);
    }
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    match (text.starts_with(b"-"), nanos) {
        (_, 0) | (false, _) => Some((seconds, nanos)),
        (true, _) => Some((seconds.checked_sub(1)?, 1_000_000_000 - nanos)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_numbers() {
        assert_eq!(parse_number(b"0000644\0"), Some(0o644));
        assert_eq!(parse_number(b"   644 \0"), Some(0o644));
        assert_eq!(parse_number(b"\0\0\0\0"), Some(0));
        assert_eq!(parse_number(b"77777777"), Some(0o7777_7777));
        assert_eq!(parse_number(b"0649"), None);
        assert_eq!(parse_number(b"12\x0099"), Some(0o12));
        assert_eq!(parse_number(&[0x80, 0, 0, 1, 0]), Some(256));
        assert_eq!(parse_number(&[0xff; 8]), Some(-1));
        assert_eq!(parse_number(&[0xff; 12]), Some(-1));
        let max = [0x80, 0, 0, 0, 0x7f, 255, 255, 255, 255, 255, 255, 255];
        assert_eq!(parse_number(&max), Some(i64::MAX));
        let over = [0x80, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(parse_number(&over), None);
        let min = [0xff, 255, 255, 255, 0x80, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(parse_number(&min), Some(i64::MIN));
        let under = [0xff, 255, 255, 255, 0x7f, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(parse_number(&under), None);
        assert_eq!(parse_number(&[0xbf; 12]), None);
    }

    #[test]
    fn pax_times() {
        assert_eq!(pax_time(b"12"), Some((12, 0)));
        assert_eq!(pax_time(b"12.5"), Some((12, 500_000_000)));
        assert_eq!(pax_time(b"12.0000000019"), Some((12, 1)));
        assert_eq!(pax_time(b"-1.5"), Some((-2, 500_000_000)));
        assert_eq!(pax_time(b"-0.25"), Some((-1, 750_000_000)));
        assert_eq!(pax_time(b"-9223372036854775808"), Some((i64::MIN, 0)));
        for bad in
            [&b""[..], b".5", b"1.x", b"1.0000000000x", b"+1", b"--1", b"9223372036854775808"]
        {
            assert_eq!(pax_time(bad), None);
        }
    }
}
