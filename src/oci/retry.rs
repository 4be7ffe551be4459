//! When to try again. Pure: time and chance are arguments.

use std::time::{Duration, SystemTime};

/// How often and how soon a request is repeated.
///
/// The wait before attempt n+1 is drawn evenly from zero to
/// `min(cap, base * 2^n)` ("full jitter"): many clients that failed together
/// don't come back together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Attempts in all, the first one included; at least 1.
    pub attempts: u32,
    /// Upper bound of the first wait.
    pub base: Duration,
    /// Upper bound of every wait that we choose ourselves.
    pub cap: Duration,
    /// The longest wait that a server may ask for (`Retry-After`); one that
    /// asks for more gets no further attempt.
    pub retry_after_max: Duration,
}

impl Default for RetryPolicy {
    /// Five attempts within about 10 s: a registry's restart or a burst of its
    /// rate limit passes, and a reader's patience (60 s) is not used up.
    fn default() -> Self {
        Self {
            attempts: 5,
            base: Duration::from_millis(250),
            cap: Duration::from_secs(5),
            retry_after_max: Duration::from_secs(20),
        }
    }
}

impl RetryPolicy {
    /// One attempt only.
    pub const NEVER: Self = Self {
        attempts: 1,
        base: Duration::ZERO,
        cap: Duration::ZERO,
        retry_after_max: Duration::ZERO,
    };

    /// How long to wait after `failures` failed attempts (1 or more); `None`
    /// to give up. `random` is any evenly distributed number.
    pub fn wait(
        &self,
        failures: u32,
        retry_after: Option<Duration>,
        random: u64,
    ) -> Option<Duration> {
        if failures >= self.attempts {
            return None;
        }
        let doublings = failures.saturating_sub(1).min(20);
        let most = self.base.saturating_mul(1 << doublings).min(self.cap);
        let nanos = u64::try_from(most.as_nanos()).unwrap_or(u64::MAX);
        // The upper 64 bits of the product: even over 0..=nanos.
        let wait = (u128::from(random) * (u128::from(nanos) + 1)) >> 64;
        let jitter = Duration::from_nanos(wait as u64);
        match retry_after {
            Some(asked) if asked > self.retry_after_max => None,
            Some(asked) => Some(asked.max(jitter)),
            None => Some(jitter),
        }
    }
}

/// True for the statuses after which the same request may succeed.
pub(super) fn is_retryable(status: u16) -> bool {
    matches!(status, 408 | 429 | 500 | 502 | 503 | 504)
}

/// Reads `Retry-After`: seconds, or a date to be compared with `now` (best
/// taken from the answer's own `Date`).
pub fn parse_retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse::<u32>() {
        return Some(Duration::from_secs(u64::from(seconds)));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(now).unwrap_or(Duration::ZERO))
}

/// Evenly distributed numbers from a seed (SplitMix64, Steele et al. 2014).
/// Good enough for jitter, and the same in every run of a test.
#[derive(Debug, Clone)]
pub(super) struct Jitter(u64);

impl Jitter {
    /// Starts from a seed.
    pub(super) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    proptest! {
        #[test]
        fn waits_are_bounded_and_end(
            attempts in 1u32..10,
            base in 0u64..5_000,
            cap in 0u64..5_000,
            asked in prop::option::of(0u64..40),
            seed: u64,
        ) {
            let policy = RetryPolicy {
                attempts,
                base: Duration::from_millis(base),
                cap: Duration::from_millis(cap),
                retry_after_max: 20 * SECOND,
            };
            let asked = asked.map(Duration::from_secs);
            let mut jitter = Jitter::new(seed);
            for failures in 1..attempts {
                match policy.wait(failures, asked, jitter.next()) {
                    Some(wait) => {
                        let bound = Duration::from_millis(cap).min(Duration::from_millis(base << (failures - 1)));
                        prop_assert!(wait <= bound.max(asked.unwrap_or_default()));
                        prop_assert!(wait >= asked.unwrap_or_default());
                    }
                    None => prop_assert!(asked > Some(20 * SECOND)),
                }
            }
            prop_assert_eq!(policy.wait(attempts, None, jitter.next()), None);
            prop_assert_eq!(policy.wait(u32::MAX, None, 0), None);
        }
    }

    #[test]
    fn jitter_uses_the_whole_interval() {
        let policy = RetryPolicy::default();
        assert_eq!(policy.wait(1, None, 0), Some(Duration::ZERO));
        assert_eq!(policy.wait(1, None, u64::MAX), Some(policy.base));
        assert_eq!(policy.wait(2, None, u64::MAX), Some(policy.base * 2));
        assert_eq!(policy.wait(4, None, 1 << 63), Some(policy.base * 4));
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").expect("a date");
        assert_eq!(parse_retry_after(" 7 ", now), Some(7 * SECOND));
        assert_eq!(parse_retry_after("Sun, 06 Nov 1994 08:50:37 GMT", now), Some(60 * SECOND));
        assert_eq!(parse_retry_after("Sun, 06 Nov 1994 08:00:00 GMT", now), Some(Duration::ZERO));
        for bad in ["", "-1", "soon", "99999999999999999999", "1.5"] {
            assert_eq!(parse_retry_after(bad, now), None, "{bad}");
        }
    }
}
