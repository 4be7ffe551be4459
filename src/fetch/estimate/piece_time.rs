//! How long a piece takes: what duplicates of urgent requests are bounded by.
//!
//! Design section 7: the number of duplicates of an urgent piece is at most the
//! elapsed time over `mean + dev/2` of the piece time; the first one goes out at
//! the observed 90th percentile.

use std::collections::VecDeque;
use std::time::Duration;

/// Weights of a new sample, as TCP's timer has them (RFC 6298, 2.3).
const MEAN_GAIN: f64 = 1.0 / 8.0;
const DEV_GAIN: f64 = 1.0 / 4.0;
/// No patience is shorter: timers and threads are not finer.
const PATIENCE_MIN: Duration = Duration::from_millis(2);

/// Smoothed mean and mean deviation of the time from asking to having.
#[derive(Clone, Copy, Debug)]
pub struct PieceTime {
    mean: f64,
    dev: f64,
    measured: bool,
}

impl PieceTime {
    /// Expects `mean` until the first sample.
    pub fn new(mean: Duration) -> Self {
        Self { mean: mean.as_secs_f64(), dev: 0.0, measured: false }
    }

    /// A piece took this long.
    pub fn record(&mut self, took: Duration) {
        let took = took.as_secs_f64();
        if self.measured {
            self.dev += ((took - self.mean).abs() - self.dev) * DEV_GAIN;
            self.mean += (took - self.mean) * MEAN_GAIN;
        } else {
            (self.mean, self.dev, self.measured) = (took, took / 2.0, true);
        }
    }

    /// `mean + dev/2`.
    pub fn patience(&self) -> Duration {
        Duration::from_secs_f64(self.mean + self.dev / 2.0).max(PATIENCE_MIN)
    }

    /// How many duplicates there may be of a piece that was first asked for
    /// `elapsed` ago.
    pub fn duplicates(&self, elapsed: Duration) -> usize {
        (elapsed.as_secs_f64() / self.patience().as_secs_f64()) as usize
    }
}

/// A quantile of the last samples.
#[derive(Clone, Debug)]
pub struct Quantile {
    percent: usize,
    samples: VecDeque<Duration>,
    value: Duration,
}

/// Samples a [`Quantile`] remembers.
const SAMPLES_MAX: usize = 128;

impl Quantile {
    /// The `percent`-th percentile; `initial` until the first sample.
    pub fn new(percent: usize, initial: Duration) -> Self {
        Self { percent: percent.clamp(1, 100), samples: VecDeque::new(), value: initial }
    }

    /// Adds a sample; the oldest of more than 128 is forgotten.
    pub fn record(&mut self, sample: Duration) {
        if self.samples.len() == SAMPLES_MAX {
            self.samples.pop_front();
        }
        self.samples.push_back(sample);
        let mut sorted: Vec<Duration> = self.samples.iter().copied().collect();
        let rank = (sorted.len() * self.percent).div_ceil(100) - 1;
        self.value = *sorted.select_nth_unstable(rank).1;
    }

    /// The percentile (nearest rank).
    pub fn value(&self) -> Duration {
        self.value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn duplicates_grow_with_elapsed_time_over_mean_and_half_deviation() {
        let mut time = PieceTime::new(MS * 500);
        assert_eq!(time.duplicates(MS * 499), 0);
        assert_eq!(time.duplicates(MS * 1001), 2);
        for _ in 0..200 {
            time.record(MS * 40);
        }
        let patience = time.patience();
        assert!((MS * 40..MS * 41).contains(&patience), "{patience:?}");
        assert_eq!(time.duplicates(patience - MS), 0);
        assert_eq!(time.duplicates(patience + MS), 1);
    }

    #[test]
    fn p90_of_the_last_samples() {
        let mut p90 = Quantile::new(90, MS * 7);
        assert_eq!(p90.value(), MS * 7);
        for n in 1..=100u32 {
            p90.record(MS * n);
        }
        assert_eq!(p90.value(), MS * 90);
        for _ in 0..SAMPLES_MAX {
            p90.record(MS);
        }
        assert_eq!(p90.value(), MS);
    }
}
