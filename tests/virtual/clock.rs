//! What the clocks of a node show: they start apart, run fast or slow by some per
//! cent, and jump. Time that is the same for all is called true here.

#![allow(dead_code, reason = "each simulator uses a part of it")]

use std::time::Duration;

/// Clocks run fast or slow by at most this share.
pub(crate) const SKEW: f64 = 0.05;
/// Wall clocks of nodes differ by at most this.
const APART: u64 = 365 * 24 * 3600;
const PPM: u128 = 1_000_000;

/// The clocks of one life of a node.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    /// True time at which it was looked at last,
    at: Duration,
    /// what the monotonic clock showed then,
    shows: Duration,
    /// and its speed, in millionths of true time's.
    rate: u128,
    /// What the wall clock is ahead of the monotonic one.
    wall: Duration,
}

impl Clock {
    /// Shows true time.
    pub(crate) fn exact() -> Self {
        Self { at: Duration::ZERO, shows: Duration::ZERO, rate: PPM, wall: Duration::ZERO }
    }

    /// That of a node which starts now: the monotonic clock shows nothing yet, the
    /// wall clock anything.
    pub(crate) fn skewed(now: Duration, rng: &mut fastrand::Rng) -> Self {
        let most = (SKEW * PPM as f64) as u128;
        let rate = PPM - most + rng.u128(0..=2 * most);
        let wall = Duration::from_secs(rng.u64(0..APART));
        Self { at: now, shows: Duration::ZERO, rate, wall }
    }

    /// What the monotonic clock shows.
    pub(crate) fn monotonic(&self, now: Duration) -> Duration {
        let passed = now.saturating_sub(self.at).as_nanos() * self.rate / PPM;
        self.shows + Duration::from_nanos(passed as u64)
    }

    /// What the wall clock shows.
    pub(crate) fn wall(&self, now: Duration) -> Duration {
        self.wall + self.monotonic(now)
    }

    /// The true time at which the monotonic clock shows this; now, if it has by then.
    pub(crate) fn when(&self, shows: Duration, now: Duration) -> Duration {
        let left = shows.saturating_sub(self.shows).as_nanos() * PPM;
        now.max(self.at + Duration::from_nanos(left.div_ceil(self.rate) as u64))
    }

    /// The monotonic clock jumps ahead: the machine slept.
    pub(crate) fn jump(&mut self, now: Duration, by: Duration) {
        (self.shows, self.at) = (self.monotonic(now) + by, now);
    }
}
