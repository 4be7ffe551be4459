//! Whom to ask: the score of a peer, and the choice by it.
//!
//! Source: PeerSync paper (`004`), eq. (2), (3) and (6). The paper weights a
//! sample by `e^(L-t')`, which grows with age where `L` is the current time;
//! recent samples must weigh most, so the weight here is `e^-(now-t')/tau_s`.

use std::collections::VecDeque;
use std::time::Duration;

/// Length of a round: the unit of the paper's logical time.
pub const ROUND: Duration = Duration::from_secs(1);
/// Smoothing time constant: 2 rounds (paper, section IV-A).
pub const TAU_S: Duration = Duration::from_secs(2);
/// The network score of a neighbour in the LAN.
pub const LAN_NET: f64 = 100.0;
/// Network score of a peer that nothing is known about: the middle, so that it
/// is tried.
const UNKNOWN_NET: f64 = 50.0;
/// Softmax temperature, in points of utility: 20 points are a factor of e^2.
pub const TEMPERATURE: f64 = 10.0;
/// Samples of a peer's window; at 2 rounds smoothing the rest weighs nothing.
const SAMPLES_MAX: usize = 32;

/// Observed speeds of one peer, one sample a round: `W_p` of eq. (2).
#[derive(Clone, Debug, Default)]
pub struct SpeedWindow {
    samples: VecDeque<(Duration, f64)>,
}

impl SpeedWindow {
    /// The peer delivered `speed` bytes per second in the round that ends now.
    pub fn record(&mut self, now: Duration, speed: f64) {
        if !speed.is_finite() || speed < 0.0 {
            return;
        }
        if self.samples.len() == SAMPLES_MAX {
            self.samples.pop_front();
        }
        self.samples.push_back((now, speed));
    }

    /// `s_p^t`, eq. (2): exponentially weighted mean speed; `None` without samples.
    pub fn average(&self, now: Duration) -> Option<f64> {
        weighted(now, self.samples.iter().copied())
    }
}

/// One peer as [`net_scores`] sees it.
#[derive(Clone, Copy, Debug)]
pub struct PeerSpeed<'a> {
    /// Whether it is a neighbour in the LAN.
    pub lan: bool,
    /// What it delivered.
    pub window: &'a SpeedWindow,
}

/// `net_p^t` of all peers, in 0..=100.
///
/// A neighbour in the LAN has 100. Others: the speed of eq. (2) less the
/// baseline of eq. (3), negatives clamped to the lowest, rescaled linearly so
/// that the fastest has 100. A peer without history gets 50.
pub fn net_scores(now: Duration, peers: &[PeerSpeed<'_>]) -> Vec<f64> {
    let remote = || peers.iter().filter(|p| !p.lan);
    let all = remote().flat_map(|p| p.window.samples.iter().copied());
    let baseline = weighted(now, all).unwrap_or(0.0);
    let raw = |p: &PeerSpeed<'_>| p.window.average(now).map(|s| (s - baseline).max(0.0));
    let top = remote().filter_map(raw).fold(0.0, f64::max);
    peers
        .iter()
        .map(|peer| match raw(peer) {
            _ if peer.lan => LAN_NET,
            None => UNKNOWN_NET,
            // All are equally fast: the baseline is everybody's speed.
            Some(_) if top <= 0.0 => UNKNOWN_NET,
            Some(advantage) => (100.0 * advantage / top).clamp(0.0, 100.0),
        })
        .collect()
}

/// `alpha`, `beta` and `gamma` of eq. (6).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Weights {
    /// Of the network score.
    pub alpha: f64,
    /// Of the popularity score.
    pub beta: f64,
    /// Of the custom score.
    pub gamma: f64,
}

impl Default for Weights {
    /// The paper's: one half, one half, no custom score.
    fn default() -> Self {
        Self { alpha: 0.5, beta: 0.5, gamma: 0.0 }
    }
}

impl Weights {
    /// Weights that sum to 1. Negative ones and such that are no numbers count
    /// as 0; three zeros give the default.
    pub fn normalised(self) -> Self {
        let clean = |w: f64| if w.is_finite() { w.max(0.0) } else { 0.0 };
        let (alpha, beta, gamma) = (clean(self.alpha), clean(self.beta), clean(self.gamma));
        let sum = alpha + beta + gamma;
        if sum.is_finite() && sum > 0.0 {
            Self { alpha: alpha / sum, beta: beta / sum, gamma: gamma / sum }
        } else {
            Self::default()
        }
    }
}

/// `U(p; t)`, eq. (6), in 0..=100; the parts are clamped to that range first.
pub fn utility(weights: Weights, net: f64, pop: f64, custom: f64) -> f64 {
    let clean = |s: f64| if s.is_finite() { s.clamp(0.0, 100.0) } else { 0.0 };
    weights.alpha * clean(net) + weights.beta * clean(pop) + weights.gamma * clean(custom)
}

/// A place for a site's own policy: `cst_p^t` of eq. (6).
pub trait CustomScore<P>: Send {
    /// The score of a peer, in 0..=100.
    fn score(&self, peer: &P) -> f64;
}

/// No policy: every peer scores 0.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoCustomScore;

impl<P> CustomScore<P> for NoCustomScore {
    fn score(&self, _peer: &P) -> f64 {
        0.0
    }
}

/// The probabilities of a softmax over utilities. Safe for any finite input:
/// the largest is subtracted first, so nothing overflows.
pub fn softmax(utilities: &[f64], temperature: f64) -> Vec<f64> {
    let temperature = temperature.max(1e-3);
    let top = utilities.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = utilities.iter().map(|u| ((u - top) / temperature).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.into_iter().map(|w| w / sum).collect()
}

/// Draws up to `k` different peers by softmax over their utilities, best luck
/// first. Drawing one after another without putting back is the same as adding
/// Gumbel noise to `U/T` and taking the `k` largest.
pub fn choose(
    utilities: &[f64],
    temperature: f64,
    k: usize,
    rng: &mut fastrand::Rng,
) -> Vec<usize> {
    let temperature = temperature.max(1e-3);
    let mut keys: Vec<(f64, usize)> = utilities
        .iter()
        .enumerate()
        .map(|(n, u)| {
            let uniform = rng.f64().clamp(f64::MIN_POSITIVE, 1.0 - f64::EPSILON);
            (u / temperature - (-uniform.ln()).ln(), n)
        })
        .collect();
    keys.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    keys.truncate(k);
    keys.into_iter().map(|(_, n)| n).collect()
}

fn weighted(now: Duration, samples: impl Iterator<Item = (Duration, f64)> + Clone) -> Option<f64> {
    // Ages count from the newest sample: only ratios matter, and after a long
    // silence all weights would be zero otherwise.
    let newest = samples.clone().map(|(at, _)| at).max()?.min(now);
    let (mut sum, mut weights) = (0.0, 0.0);
    for (at, value) in samples {
        let age = newest.saturating_sub(at).as_secs_f64();
        let weight = (-age / TAU_S.as_secs_f64()).exp();
        sum += weight * value;
        weights += weight;
    }
    (weights > 0.0).then(|| sum / weights)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const S: Duration = Duration::from_secs(1);

    fn window(samples: &[(u32, f64)]) -> SpeedWindow {
        let mut window = SpeedWindow::default();
        for (at, speed) in samples {
            window.record(S * *at, *speed);
        }
        window
    }

    #[test]
    fn a_recent_sample_weighs_more_than_an_old_one() {
        let speed = window(&[(0, 10.0), (2, 20.0)]).average(S * 2).expect("samples");
        let old = (-1.0f64).exp();
        assert!((speed - (20.0 + 10.0 * old) / (1.0 + old)).abs() < 1e-9);
        let idle = window(&[(0, 10.0), (2, 20.0)]).average(S * 100_000);
        assert_eq!(idle, Some(speed), "only ages relative to each other matter");
    }

    #[test]
    fn neighbours_score_100_and_others_by_their_advantage() {
        let (slow, mean, fast) = (window(&[(1, 1e6)]), window(&[(1, 5e6)]), window(&[(1, 9e6)]));
        let none = SpeedWindow::default();
        let peers = [(true, &slow), (false, &slow), (false, &mean), (false, &fast), (false, &none)]
            .map(|(lan, window)| PeerSpeed { lan, window });
        assert_eq!(net_scores(S * 2, &peers), vec![100.0, 0.0, 0.0, 100.0, 50.0]);
    }

    #[test]
    fn weights_sum_to_one() {
        let odd = Weights { alpha: 3.0, beta: f64::NAN, gamma: 1.0 }.normalised();
        assert_eq!(odd, Weights { alpha: 0.75, beta: 0.0, gamma: 0.25 });
        let none = Weights { alpha: 0.0, beta: -1.0, gamma: 0.0 }.normalised();
        assert_eq!(none, Weights::default());
        assert!((utility(Weights::default(), 100.0, 40.0, 99.0) - 70.0).abs() < 1e-9);
    }

    #[test]
    fn the_choice_follows_the_softmax() {
        let utilities = [0.0, 10.0, 20.0, -1e9];
        let expected = softmax(&utilities, TEMPERATURE);
        let mut rng = fastrand::Rng::with_seed(7);
        let mut counts = [0u32; 4];
        for _ in 0..20_000 {
            counts[choose(&utilities, TEMPERATURE, 1, &mut rng)[0]] += 1;
        }
        for (count, probability) in counts.iter().zip(expected) {
            assert!((f64::from(*count) / 20_000.0 - probability).abs() < 0.015);
        }
        let same = |seed| choose(&utilities, 10.0, 3, &mut fastrand::Rng::with_seed(seed));
        assert_eq!(same(3), same(3));
    }

    proptest! {
        #[test]
        fn softmax_is_a_distribution(utilities in prop::collection::vec(-1e12f64..1e12, 1..50),
                                     temperature in 0.0f64..1e3) {
            let sum: f64 = softmax(&utilities, temperature).iter().sum();
            prop_assert!((sum - 1.0).abs() < 1e-6);
            let mut rng = fastrand::Rng::with_seed(1);
            let mut chosen = choose(&utilities, temperature, 10, &mut rng);
            chosen.sort_unstable();
            chosen.dedup();
            prop_assert_eq!(chosen.len(), utilities.len().min(10));
        }

        #[test]
        fn net_scores_are_in_range(speeds in prop::collection::vec(
            (any::<bool>(), prop::collection::vec((0u32..100, 0.0f64..1e12), 0..40)), 0..20)) {
            let windows: Vec<_> = speeds.iter().map(|(lan, s)| (*lan, window(s))).collect();
            let peers: Vec<_> =
                windows.iter().map(|(lan, window)| PeerSpeed { lan: *lan, window }).collect();
            for (score, peer) in net_scores(S * 100, &peers).iter().zip(&peers) {
                prop_assert!((0.0..=100.0).contains(score) && (!peer.lan || *score == LAN_NET));
            }
        }
    }
}
