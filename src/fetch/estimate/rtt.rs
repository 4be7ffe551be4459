//! Round-trip times, and the dynamic timeout tau.
//!
//! Source: PeerSync paper (`004`), III-C2 a): tau is the 95th percentile of the
//! round-trip times in the last 10 s.

use std::collections::VecDeque;
use std::time::Duration;

/// Age at which a sample is forgotten.
const WINDOW: Duration = Duration::from_secs(10);
/// Most samples kept; beyond it the oldest go first.
const SAMPLES_MAX: usize = 256;
/// tau where nothing was measured lately.
pub const TAU_DEFAULT: Duration = Duration::from_millis(200);
/// A look-up gets at least this long: a LAN's round trips are shorter than a
/// neighbour's thread takes to wake.
pub const TAU_MIN: Duration = Duration::from_millis(20);
/// And at most this long: a reader waits.
pub const TAU_MAX: Duration = Duration::from_secs(2);

/// The round-trip times of the last 10 s.
#[derive(Clone, Debug, Default)]
pub struct RttWindow {
    samples: VecDeque<(Duration, Duration)>,
}

impl RttWindow {
    /// A round trip of `rtt` ended now.
    pub fn record(&mut self, now: Duration, rtt: Duration) {
        self.forget(now);
        if self.samples.len() == SAMPLES_MAX {
            self.samples.pop_front();
        }
        self.samples.push_back((now, rtt));
    }

    /// tau: the 95th percentile (nearest rank), between [`TAU_MIN`] and
    /// [`TAU_MAX`]; [`TAU_DEFAULT`] where the window is empty.
    pub fn tau(&self, now: Duration) -> Duration {
        self.percentile(now, 95).map_or(TAU_DEFAULT, |rtt| rtt.clamp(TAU_MIN, TAU_MAX))
    }

    /// The `percent`-th percentile (nearest rank) of the window.
    pub fn percentile(&self, now: Duration, percent: usize) -> Option<Duration> {
        let mut rtts: Vec<Duration> = self.recent(now).collect();
        let rank = (rtts.len() * percent.min(100)).div_ceil(100).max(1) - 1;
        if rank >= rtts.len() {
            return None;
        }
        Some(*rtts.select_nth_unstable(rank).1)
    }

    /// The shortest round trip of the window: the path without queues.
    pub fn min(&self, now: Duration) -> Option<Duration> {
        self.recent(now).min()
    }

    fn recent(&self, now: Duration) -> impl Iterator<Item = Duration> + '_ {
        self.samples.iter().filter(move |(at, _)| *at + WINDOW > now).map(|(_, rtt)| *rtt)
    }

    fn forget(&mut self, now: Duration) {
        while self.samples.front().is_some_and(|(at, _)| *at + WINDOW <= now) {
            self.samples.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn tau_is_the_95th_percentile_of_the_last_ten_seconds() {
        let mut window = RttWindow::default();
        assert_eq!(window.tau(MS), TAU_DEFAULT);
        for n in 1..=100u32 {
            window.record(MS * n, MS * n);
        }
        assert_eq!(window.tau(MS * 100), MS * 95);
        assert_eq!(window.min(MS * 100), Some(MS));
        window.record(MS * 9_000, MS * 400);
        assert_eq!(window.tau(MS * 11_000), MS * 400);
        assert_eq!(window.tau(MS * 19_001), TAU_DEFAULT);
    }

    proptest! {
        #[test]
        fn bounded_and_as_a_sorted_list_says(
            rtts in prop::collection::vec(1u32..5_000, 1..600), percent in 1usize..=100) {
            let mut window = RttWindow::default();
            for (n, rtt) in (0u32..).zip(&rtts) {
                window.record(MS * n, MS * *rtt);
            }
            prop_assert!(window.samples.len() <= SAMPLES_MAX);
            let mut kept: Vec<u32> = rtts[rtts.len().saturating_sub(SAMPLES_MAX)..].to_vec();
            kept.sort_unstable();
            let rank = (kept.len() * percent).div_ceil(100) - 1;
            prop_assert_eq!(window.percentile(MS * 600, percent), Some(MS * kept[rank]));
        }
    }
}
