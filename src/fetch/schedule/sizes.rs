//! How much to ask for at once.

use std::time::Duration;

const MIB: u64 = 1 << 20;

/// Smallest wire request of bulk data, in bytes.
const WIRE_MIN: u64 = 64 << 10;
/// A wire request may be this large on any line (design, section 2).
pub const WIRE_MAX: u64 = 256 << 10;
/// A wire request of bulk data takes about this long on the line, so that what
/// is urgent does not wait longer for it.
const WIRE_TIME: Duration = Duration::from_millis(10);

/// Size of a bulk assignment, in bytes: how much of a layer of `size` bytes one
/// source is given at a time. Source: PeerSync paper (`004`), eq. (1), where
/// `size` is the image's.
pub fn assignment(size: u64) -> u64 {
    let parts = match size / MIB {
        1024.. => 256,
        256..1024 => 64,
        16..256 => 16,
        _ => 1,
    };
    (size / parts).max(1)
}

/// Bytes that a line of `speed` bytes per second and round trip `rtt` holds:
/// its bandwidth-delay product.
pub fn line_holds(speed: f64, rtt: Duration) -> u64 {
    (speed * rtt.as_secs_f64()) as u64
}

/// Size of a wire request of bulk data, in bytes: at most 256 KiB or one
/// bandwidth-delay product, whichever is larger; less on slow lines.
pub fn wire_request(speed: f64, rtt: Duration) -> u64 {
    let product = line_holds(speed, rtt);
    let timely = (speed * WIRE_TIME.as_secs_f64()) as u64;
    // Half a product at most: two are in flight, so that the line never idles.
    let size = timely.min(WIRE_MAX).max(product / 2).clamp(WIRE_MIN, WIRE_MAX.max(product));
    size.next_multiple_of(16 << 10).min(WIRE_MAX.max(product))
}

/// Bulk bytes that may be in flight on a tunnel: two bandwidth-delay products,
/// or two wire requests where these are more. Two, because `speed` is what was
/// seen: with one, a line that is faster than it seemed could never show it.
pub fn bulk_cap(speed: f64, rtt: Duration) -> u64 {
    line_holds(speed, rtt).max(wire_request(speed, rtt)).saturating_mul(2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn assignments_follow_equation_1() {
        assert_eq!(assignment(2048 * MIB), 8 * MIB);
        assert_eq!(assignment(1024 * MIB), 4 * MIB);
        assert_eq!(assignment(1023 * MIB), 1023 * MIB / 64);
        assert_eq!(assignment(256 * MIB), 4 * MIB);
        assert_eq!(assignment(255 * MIB), 255 * MIB / 16);
        assert_eq!(assignment(16 * MIB), MIB);
        assert_eq!(assignment(15 * MIB), 15 * MIB);
        assert_eq!(assignment(0), 1);
    }

    proptest! {
        #[test]
        fn wire_requests_are_bounded(speed in 1024.0f64..1e11, rtt_us in 0u64..2_000_000) {
            let rtt = Duration::from_micros(rtt_us);
            let (size, product) = (wire_request(speed, rtt), line_holds(speed, rtt));
            prop_assert!(size >= WIRE_MIN && size <= WIRE_MAX.max(product));
            let cap = bulk_cap(speed, rtt);
            prop_assert!(cap >= 2 * product && cap <= (2 * product).max(2 * size));
        }
    }
}
