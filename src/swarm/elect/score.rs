//! How well a node would do as a tracker.

use std::time::Duration;

/// Stability, 0 to [`Score::MAX`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Score(u16);

/// What a score is made of. The paper (`004`, III-C3) names uptime and known
/// neighbours; bandwidth and load keep the part away from weak and busy nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stability {
    /// Since the daemon started.
    pub uptime: Duration,
    /// Nodes with a tunnel.
    pub neighbours: usize,
    /// Measured upload, in bytes per second.
    pub bandwidth: f64,
    /// Share of the node that is in use, 0 to 1.
    pub load: f64,
}

impl Score {
    /// The best there is; who says more is taken at this.
    pub const MAX: Self = Self(1000);

    /// A score that was told: cut to what can be.
    pub fn told(points: u16) -> Self {
        Self(points).min(Self::MAX)
    }

    /// In points.
    pub fn points(self) -> u16 {
        self.0
    }

    /// 0 to 1.
    pub(super) fn share(self) -> f64 {
        f64::from(self.0) / f64::from(Self::MAX.0)
    }
}

impl Stability {
    /// The score: 400 points for uptime (by its logarithm, full after a week), 200
    /// each for neighbours (full at 32), bandwidth (by its logarithm, full at
    /// 125 MB/s) and idleness. What is no number counts nothing.
    pub fn score(&self) -> Score {
        let share = |value: f64, full: f64| {
            let part = value.max(0.0).ln_1p() / full.ln_1p();
            if part.is_finite() { part.clamp(0.0, 1.0) } else { 0.0 }
        };
        let minutes = self.uptime.as_secs_f64() / 60.0;
        let neighbours = (self.neighbours as f64 / 32.0).min(1.0);
        let idle = if self.load.is_finite() { 1.0 - self.load.clamp(0.0, 1.0) } else { 0.0 };
        let points = 400.0 * share(minutes, 7.0 * 1440.0)
            + 200.0 * neighbours
            + 200.0 * share(self.bandwidth / 1e4, 12_500.0)
            + 200.0 * idle;
        Score::told(points as u16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn more_of_everything_is_better() {
        let low = Stability {
            uptime: Duration::from_secs(600),
            neighbours: 3,
            bandwidth: 1e6,
            load: 0.5,
        };
        for better in [
            Stability { uptime: Duration::from_secs(6000), ..low },
            Stability { neighbours: 9, ..low },
            Stability { bandwidth: 1e7, ..low },
            Stability { load: 0.1, ..low },
        ] {
            assert!(better.score() > low.score(), "{better:?}");
        }
        let week = Duration::from_secs(7 * 86_400);
        let best = Stability { uptime: week, neighbours: 32, bandwidth: 125e6, load: 0.0 };
        assert!(best.score().points() >= 999);
    }

    proptest! {
        #[test]
        fn any_input_gives_a_score(uptime in any::<u64>(), neighbours in any::<usize>(),
                                   bandwidth in any::<f64>(), load in any::<f64>()) {
            let uptime = Duration::from_secs(uptime);
            let score = Stability { uptime, neighbours, bandwidth, load }.score();
            prop_assert!(score <= Score::MAX);
        }
    }
}
