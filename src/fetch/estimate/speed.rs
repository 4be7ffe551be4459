//! `V_conn`: how fast a tunnel is expected to be.
//!
//! Source: PPIO, "Data-Driven Scheduling" (`003`), steps 2, 3 and 5: an expected
//! speed for each connection from its transfers, an empirical value where there
//! is no history, and more connections to faster peers.

use std::time::Duration;

/// `V_conn` of a tunnel without history, in bytes per second.
pub const DEFAULT_SPEED: f64 = 2.0 * 1024.0 * 1024.0;
/// Time constant of the weights: a sample this old counts `1/e` of a fresh one.
const WINDOW: Duration = Duration::from_secs(5);
/// The default stands for this much transfer time until samples outweigh it.
const PRIOR: Duration = Duration::from_millis(20);
/// No estimate lies outside, in bytes per second: a plan divides by it.
const SPEED_MIN: f64 = 1024.0;
const SPEED_MAX: f64 = 64.0 * 1024.0 * 1024.0 * 1024.0;

/// Speed of one tunnel from what it delivered, exponentially weighted.
///
/// `V = sum(w bytes) / sum(w seconds)` with `w = e^-(age/5 s)`: two numbers of
/// memory, and samples weigh by how long they took, so that a burst out of a
/// socket buffer does not count as a fast line. An idle tunnel keeps its value.
#[derive(Clone, Copy, Debug)]
pub struct SpeedMeter {
    bytes: f64,
    seconds: f64,
    at: Duration,
}

impl SpeedMeter {
    /// A meter that expects `speed` bytes per second until it knows better.
    pub fn new(now: Duration, speed: f64) -> Self {
        let seconds = PRIOR.as_secs_f64();
        let speed =
            if speed.is_finite() { speed.clamp(SPEED_MIN, SPEED_MAX) } else { DEFAULT_SPEED };
        Self { bytes: speed * seconds, seconds, at: now }
    }

    /// `bytes` came in `took` of transfer time that ended now. No bytes in some
    /// time is a sample too: it is how a stall shows.
    pub fn record(&mut self, now: Duration, bytes: u64, took: Duration) {
        let age = now.saturating_sub(self.at).as_secs_f64();
        let keep = (-age / WINDOW.as_secs_f64()).exp();
        // What is left of a long idle time must stay a ratio, not 0/0.
        let keep = keep.max(1e-6);
        self.bytes = self.bytes * keep + bytes as f64;
        self.seconds = self.seconds * keep + took.as_secs_f64().max(1e-6);
        self.at = self.at.max(now);
    }

    /// `V_conn` in bytes per second, between 1 KiB/s and 64 GiB/s.
    pub fn speed(&self) -> f64 {
        (self.bytes / self.seconds).clamp(SPEED_MIN, SPEED_MAX)
    }
}

/// How many tunnels a peer of this speed shall have: one, and one more for each
/// factor of four above [`DEFAULT_SPEED`], halved for each recent timeout;
/// between 1 and `most`.
pub fn tunnels_for(speed: f64, timeouts: u32, most: usize) -> usize {
    let octaves = (speed / DEFAULT_SPEED).max(1.0).log2();
    let wanted = (1 + (octaves / 2.0) as usize).min(most.max(1));
    (wanted >> timeouts.min(usize::BITS - 1)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn starts_with_the_default_and_follows_the_line() {
        let mut meter = SpeedMeter::new(Duration::ZERO, DEFAULT_SPEED);
        assert!((meter.speed() - DEFAULT_SPEED).abs() < 1.0);
        for n in 1..=40u32 {
            meter.record(MS * 10 * n, 125_000, MS * 10);
        }
        assert!((meter.speed() / 12.5e6 - 1.0).abs() < 0.05, "{}", meter.speed());
    }

    #[test]
    fn recent_samples_weigh_most() {
        let mut meter = SpeedMeter::new(Duration::ZERO, DEFAULT_SPEED);
        for n in 1..=100u32 {
            meter.record(MS * 100 * n, 1_000_000, MS * 100);
        }
        for n in 101..=250u32 {
            meter.record(MS * 100 * n, 100_000, MS * 100);
        }
        let speed = meter.speed();
        assert!((0.9e6..1.6e6).contains(&speed), "{speed}");
    }

    #[test]
    fn idle_time_changes_nothing_and_a_stall_does() {
        let mut meter = SpeedMeter::new(Duration::ZERO, 1e6);
        meter.record(MS * 100, 1_000_000, MS * 100);
        let before = meter.speed();
        assert!((meter.speed() - before).abs() < f64::EPSILON);
        meter.record(MS * 2100, 0, MS * 2000);
        assert!(meter.speed() < before / 5.0);
    }

    #[test]
    fn faster_peers_get_more_tunnels_and_timeouts_take_them() {
        assert_eq!(tunnels_for(1.0, 0, 4), 1);
        assert_eq!(tunnels_for(DEFAULT_SPEED * 4.0, 0, 4), 2);
        assert_eq!(tunnels_for(DEFAULT_SPEED * 1e6, 0, 4), 4);
        assert_eq!(tunnels_for(DEFAULT_SPEED * 1e6, 1, 4), 2);
        assert_eq!(tunnels_for(DEFAULT_SPEED * 1e6, 99, 4), 1);
    }

    proptest! {
        #[test]
        fn always_a_usable_number(samples in prop::collection::vec(
            (0u64..1 << 40, 0u64..1 << 40, 0u64..1 << 40), 0..50)) {
            let mut meter = SpeedMeter::new(Duration::ZERO, f64::NAN);
            for (at, bytes, took) in samples {
                meter.record(Duration::from_micros(at), bytes, Duration::from_micros(took));
                prop_assert!((SPEED_MIN..=SPEED_MAX).contains(&meter.speed()));
            }
        }
    }
}
