//! The dispatcher's ladder: which kinds of sources a layer may be asked of now.
//!
//! local, LAN, small layers straight from the registry, peers found within tau,
//! the registry. Source: PeerSync paper (`004`), III-C2 a) and Fig. 4; design
//! section 7.
//!
//! Invariants:
//! - a rung once reached stays usable: climbing adds sources and takes none away;
//! - every rung ends, by an answer or by its time, save the last;
//! - a rung that failed is left at once, and the next one takes over; when all
//!   have failed, the ladder goes round again after a pause, so that a source
//!   that comes back is found.

use std::time::Duration;

/// theta: a layer smaller than this goes straight to the registry, in bytes.
pub const THETA: u64 = 1 << 20;
/// First pause after all rungs failed; doubles up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(500);
/// Longest such pause.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// Where a layer's search stands; the order is the order of climbing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rung {
    /// The local store is looked at.
    Local,
    /// The neighbours in the LAN were asked.
    Lan,
    /// Peers elsewhere are looked up, within tau.
    Swarm,
    /// The registry is asked, and whoever else turned up.
    Registry,
    /// Every rung has failed; after a pause the neighbours are asked again.
    Pause,
}

/// Which kinds of sources may be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Reach {
    /// Neighbours in the LAN.
    pub lan: bool,
    /// Peers beyond it.
    pub swarm: bool,
    /// The registry.
    pub registry: bool,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LadderEvent {
    /// The local store does not have all of it.
    NotLocal,
    /// All neighbours have answered. Those who hold something are known by now.
    LanAnswered {
        /// Whether any holds, or is getting, anything of the layer.
        found: bool,
    },
    /// The look-up beyond the LAN has ended.
    SwarmAnswered {
        /// Whether any peer turned up.
        found: bool,
    },
    /// Peers that were found are gone or refused, or hold only part of what is
    /// wanted.
    PeersFailed,
    /// A peer that holds something turned up, whoever found it.
    PeersBack,
    /// The registry refused for good, or there is none.
    RegistryFailed,
    /// The registry answers again.
    RegistryBack,
    /// Only time has passed.
    Tick,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Ask the neighbours; answer with `LanAnswered`.
    AskLan {
        /// They count as silent after this long.
        within: Duration,
    },
    /// Look for peers; answer with `SwarmAnswered`.
    LookUp {
        /// tau: the ladder climbs on after this long.
        within: Duration,
    },
    /// The registry may be asked from now on.
    OpenRegistry,
    /// Nobody can be asked until the pause is over.
    Exhausted {
        /// Length of the pause.
        pause: Duration,
    },
}

/// The ladder of one layer.
#[derive(Clone, Debug)]
pub struct Ladder {
    rung: Rung,
    until: Option<Duration>,
    small: bool,
    registry: bool,
    peers: bool,
    /// Whether peers beyond the LAN were looked up in this round.
    looked: bool,
    rounds: u32,
}

impl Ladder {
    /// A ladder for a layer of `size` bytes; `theta` as [`THETA`]. `registry`:
    /// whether one is known that has it.
    pub fn new(size: u64, theta: u64, registry: bool) -> Self {
        let small = size < theta;
        Self {
            rung: Rung::Local,
            until: None,
            small,
            registry,
            peers: false,
            looked: false,
            rounds: 0,
        }
    }

    /// The rung reached.
    pub fn rung(&self) -> Rung {
        self.rung
    }

    /// Whom the layer's blocks may be asked of now. Peers known from elsewhere
    /// are as good as peers just found, so neighbours are open from the first
    /// miss on and others once the neighbours have answered; only the registry
    /// has to wait for its turn.
    pub fn reach(&self) -> Reach {
        Reach {
            lan: self.rung >= Rung::Lan,
            swarm: self.rung >= Rung::Swarm,
            registry: self.rung == Rung::Registry && self.registry,
        }
    }

    /// Somebody is in a hurry: a rung that is being climbed ends no later than this.
    pub fn hurry(&mut self, until: Duration) {
        if self.rung != Rung::Pause {
            self.until = self.until.map(|at| at.min(until));
        }
    }

    /// When to come back with [`LadderEvent::Tick`].
    pub fn wake(&self) -> Option<Duration> {
        self.until
    }

    /// Takes an event; `tau` is the dynamic timeout now.
    pub fn apply(&mut self, now: Duration, event: LadderEvent, tau: Duration) -> Vec<Step> {
        let mut steps = Vec::new();
        let expired = self.until.is_some_and(|until| until <= now);
        match (self.rung, event) {
            (Rung::Local, LadderEvent::NotLocal) => self.ask_lan(now, tau, &mut steps),
            (Rung::Local, _) => {}
            (_, LadderEvent::RegistryFailed) => {
                self.registry = false;
                if self.rung == Rung::Registry && !self.peers {
                    self.pause(now, &mut steps);
                }
            }
            (_, LadderEvent::RegistryBack) => {
                self.registry = true;
                if self.rung == Rung::Pause {
                    self.open_registry(now, &mut steps);
                }
            }
            (rung, LadderEvent::PeersBack) => {
                self.peers = true;
                // The registry's turn comes when these fail or are too slow.
                if matches!(rung, Rung::Swarm | Rung::Pause) {
                    self.settle_on_peers();
                }
            }
            (Rung::Lan, LadderEvent::LanAnswered { found }) => {
                self.peers |= found;
                self.leave_lan(now, found, tau, &mut steps);
            }
            (Rung::Lan, _) if expired => self.leave_lan(now, false, tau, &mut steps),
            (Rung::Swarm, LadderEvent::SwarmAnswered { found: true }) => {
                self.peers = true;
                self.settle_on_peers();
            }
            (Rung::Swarm, LadderEvent::SwarmAnswered { found: false }) if self.until.is_some() => {
                self.open_registry(now, &mut steps);
            }
            (Rung::Swarm, LadderEvent::PeersFailed) if self.until.is_none() => {
                self.peers = false;
                if self.looked {
                    self.open_registry(now, &mut steps);
                } else {
                    self.look_up(now, tau, &mut steps);
                }
            }
            (Rung::Registry, LadderEvent::PeersFailed) => {
                self.peers = false;
                if !self.registry {
                    self.pause(now, &mut steps);
                }
            }
            (Rung::Swarm, _) if expired => self.open_registry(now, &mut steps),
            (Rung::Pause, _) if expired => self.ask_lan(now, tau, &mut steps),
            _ => {}
        }
        steps
    }

    fn ask_lan(&mut self, now: Duration, tau: Duration, steps: &mut Vec<Step>) {
        self.rung = Rung::Lan;
        self.looked = false;
        self.until = Some(now + tau);
        steps.push(Step::AskLan { within: tau });
    }

    fn leave_lan(&mut self, now: Duration, found: bool, tau: Duration, steps: &mut Vec<Step>) {
        if found {
            // The look-up is not needed while neighbours deliver.
            self.rung = Rung::Swarm;
            self.settle_on_peers();
        } else if self.small && self.registry {
            self.open_registry(now, steps);
        } else {
            self.look_up(now, tau, steps);
        }
    }

    fn look_up(&mut self, now: Duration, tau: Duration, steps: &mut Vec<Step>) {
        self.rung = Rung::Swarm;
        self.looked = true;
        self.until = Some(now + tau);
        steps.push(Step::LookUp { within: tau });
    }

    fn settle_on_peers(&mut self) {
        self.rung = Rung::Swarm;
        self.until = None;
        self.rounds = 0;
    }

    fn open_registry(&mut self, now: Duration, steps: &mut Vec<Step>) {
        if self.registry || self.peers {
            self.rung = Rung::Registry;
            self.until = None;
            self.rounds = 0;
            if self.registry {
                steps.push(Step::OpenRegistry);
            }
        } else {
            self.pause(now, steps);
        }
    }

    fn pause(&mut self, now: Duration, steps: &mut Vec<Step>) {
        let pause = PAUSE_MIN.saturating_mul(1 << self.rounds.min(8)).min(PAUSE_MAX);
        self.rounds = self.rounds.saturating_add(1);
        self.rung = Rung::Pause;
        self.until = Some(now + pause);
        steps.push(Step::Exhausted { pause });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);
    const TAU: Duration = Duration::from_millis(50);

    fn climb(ladder: &mut Ladder, at: u32, event: LadderEvent) -> Vec<Step> {
        ladder.apply(MS * at, event, TAU)
    }

    #[test]
    fn local_then_lan_then_swarm_within_tau_then_registry() {
        let mut ladder = Ladder::new(THETA, THETA, true);
        assert_eq!(ladder.reach(), Reach::default());
        let ask = climb(&mut ladder, 0, LadderEvent::NotLocal);
        assert_eq!(ask, vec![Step::AskLan { within: TAU }]);
        let look = climb(&mut ladder, 5, LadderEvent::LanAnswered { found: false });
        assert_eq!(look, vec![Step::LookUp { within: TAU }]);
        assert_eq!(climb(&mut ladder, 54, LadderEvent::Tick), vec![]);
        assert!(!ladder.reach().registry);
        assert_eq!(climb(&mut ladder, 55, LadderEvent::Tick), vec![Step::OpenRegistry]);
        assert_eq!(ladder.reach(), Reach { lan: true, swarm: true, registry: true });
        assert_eq!(ladder.wake(), None);
    }

    #[test]
    fn a_small_layer_goes_straight_to_the_registry_after_the_lan() {
        let mut ladder = Ladder::new(THETA - 1, THETA, true);
        climb(&mut ladder, 0, LadderEvent::NotLocal);
        assert_eq!(climb(&mut ladder, 50, LadderEvent::Tick), vec![Step::OpenRegistry]);
    }

    #[test]
    fn peers_are_enough_until_they_fail() {
        let mut ladder = Ladder::new(THETA, THETA, true);
        climb(&mut ladder, 0, LadderEvent::NotLocal);
        climb(&mut ladder, 1, LadderEvent::LanAnswered { found: false });
        assert_eq!(climb(&mut ladder, 9, LadderEvent::SwarmAnswered { found: true }), vec![]);
        assert_eq!(climb(&mut ladder, 9999, LadderEvent::Tick), vec![]);
        assert_eq!(climb(&mut ladder, 9999, LadderEvent::PeersFailed), vec![Step::OpenRegistry]);
    }

    #[test]
    fn neighbours_that_hold_only_part_of_it_are_not_the_last_word() {
        let mut ladder = Ladder::new(THETA, THETA, true);
        climb(&mut ladder, 0, LadderEvent::NotLocal);
        assert_eq!(climb(&mut ladder, 1, LadderEvent::LanAnswered { found: true }), vec![]);
        let look = climb(&mut ladder, 2, LadderEvent::PeersFailed);
        assert_eq!(look, vec![Step::LookUp { within: TAU }]);
        let open = climb(&mut ladder, 3, LadderEvent::SwarmAnswered { found: false });
        assert_eq!(open, vec![Step::OpenRegistry]);
    }

    #[test]
    fn all_fail_and_the_ladder_goes_round_again() {
        let mut ladder = Ladder::new(THETA, THETA, true);
        climb(&mut ladder, 0, LadderEvent::NotLocal);
        climb(&mut ladder, 50, LadderEvent::Tick);
        climb(&mut ladder, 100, LadderEvent::Tick);
        let end = climb(&mut ladder, 200, LadderEvent::RegistryFailed);
        assert_eq!(end, vec![Step::Exhausted { pause: PAUSE_MIN }]);
        assert_eq!(climb(&mut ladder, 700, LadderEvent::Tick), vec![Step::AskLan { within: TAU }]);
        climb(&mut ladder, 750, LadderEvent::Tick);
        let again = climb(&mut ladder, 800, LadderEvent::Tick);
        assert_eq!(again, vec![Step::Exhausted { pause: PAUSE_MIN * 2 }]);
        assert_eq!(climb(&mut ladder, 900, LadderEvent::RegistryBack), vec![Step::OpenRegistry]);
    }

    fn event() -> impl Strategy<Value = LadderEvent> {
        prop_oneof![
            Just(LadderEvent::NotLocal),
            any::<bool>().prop_map(|found| LadderEvent::LanAnswered { found }),
            any::<bool>().prop_map(|found| LadderEvent::SwarmAnswered { found }),
            Just(LadderEvent::PeersFailed),
            Just(LadderEvent::PeersBack),
            Just(LadderEvent::RegistryFailed),
            Just(LadderEvent::RegistryBack),
            Just(LadderEvent::Tick),
        ]
    }

    proptest! {
        /// Whatever fails and in whatever order: if the registry works in the
        /// end and no peer does, the ladder arrives at it.
        #[test]
        fn the_next_path_takes_over(events in prop::collection::vec((0u32..500, event()), 0..60),
                                    size in 0u64..2 * THETA, registry in any::<bool>()) {
            let mut ladder = Ladder::new(size, THETA, registry);
            let mut at = 0;
            for (wait, event) in events {
                at += wait;
                climb(&mut ladder, at, event);
                let waits = matches!(ladder.rung(), Rung::Lan | Rung::Pause);
                prop_assert!(!waits || ladder.wake().is_some());
                prop_assert!(ladder.rung() != Rung::Registry || ladder.peers || ladder.registry);
            }
            climb(&mut ladder, at, LadderEvent::NotLocal);
            climb(&mut ladder, at, LadderEvent::RegistryBack);
            for _ in 0..6 {
                at += 20_000;
                climb(&mut ladder, at, LadderEvent::PeersFailed);
                climb(&mut ladder, at, LadderEvent::Tick);
            }
            prop_assert!(ladder.reach().registry, "{:?}", ladder);
        }
    }
}
