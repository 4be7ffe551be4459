//! Questions to a tracker, and what is made of its answers.
//!
//! Invariants: at most [`OPEN_MAX`] questions are open; an answer counts once, from
//! the tracker that was asked, and leads to at most [`NAMED_MAX`] calls; none of
//! them goes to an address that is not believed of it. A tracker that answers
//! late, nonsense, or with nodes of which none can be reached, time after time, is
//! found out by [`Lookups::tick`].

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::address::{is_believable, is_dialable};
use crate::types::{Digest, PeerId};

/// Questions that wait for an answer.
pub const OPEN_MAX: usize = 64;
/// Holders of one layer that are called.
pub const NAMED_MAX: usize = 8;
/// A tracker must answer within this time.
pub const PATIENCE: Duration = Duration::from_secs(2);
/// Nodes that were named have this long to turn up.
pub const TURN_UP: Duration = Duration::from_secs(8);
/// So many faults one after the other, and a tracker is not asked any more.
pub const FAULTS_MAX: u32 = 3;
/// Answers whose nodes are still waited for.
const JUDGED_MAX: usize = 64;

/// A node that a tracker has named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Named {
    /// Who.
    pub peer: PeerId,
    /// Where.
    pub address: SocketAddr,
}

/// Why a question is not asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotAsked {
    /// It is open already.
    Open,
    /// Too many others are.
    Full,
}

/// Questions that are open, and the trackers' record.
#[derive(Debug, Default)]
pub struct Lookups {
    next: u64,
    open: HashMap<u64, Question>,
    judged: VecDeque<Judged>,
    faults: u32,
    answered: u64,
    failed: u64,
}

#[derive(Debug)]
struct Question {
    tracker: PeerId,
    layer: Digest,
    asked: Duration,
}

#[derive(Debug)]
struct Judged {
    named: Vec<PeerId>,
    since: Duration,
}

impl Lookups {
    /// A question to a tracker about a layer: gives its name.
    ///
    /// # Errors
    /// [`NotAsked`].
    pub fn ask(&mut self, tracker: PeerId, layer: Digest, now: Duration) -> Result<u64, NotAsked> {
        let asked = |open: &Question| open.tracker == tracker && open.layer == layer;
        if self.open.values().any(asked) {
            return Err(NotAsked::Open);
        }
        if self.open.len() >= OPEN_MAX {
            return Err(NotAsked::Full);
        }
        self.next += 1;
        self.open.insert(self.next, Question { tracker, layer, asked: now });
        Ok(self.next)
    }

    /// The question could not be sent.
    pub fn take_back(&mut self, id: u64) {
        self.open.remove(&id);
    }

    /// An answer from a node and its address: the layer that it is about, and whom to
    /// call. `None`: nobody has asked for it.
    pub fn answer(
        &mut self,
        (from, at): (&PeerId, IpAddr),
        id: u64,
        holders: &[Vec<Named>],
        me: &PeerId,
        now: Duration,
    ) -> Option<(Digest, Vec<Named>)> {
        if self.open.get(&id).is_none_or(|question| question.tracker != *from) {
            return None;
        }
        let layer = self.open.remove(&id)?.layer;
        let [holders] = holders else {
            self.fault();
            return Some((layer, Vec::new()));
        };
        let mut named: Vec<Named> = Vec::new();
        for holder in holders {
            let twice = named
                .iter()
                .any(|other| other.peer == holder.peer || other.address == holder.address);
            if holder.peer != *me && is_believable(holder.address, at) && !twice {
                named.push(*holder);
            }
        }
        named.truncate(NAMED_MAX);
        if named.is_empty() && !holders.is_empty() {
            // A tracker in two networks names nodes of one to a node of the other.
            if !holders.iter().any(|holder| is_dialable(holder.address.ip())) {
                self.fault();
            }
            return Some((layer, named));
        }
        self.answered += 1;
        if named.is_empty() {
            self.faults = 0;
        } else if self.judged.len() < JUDGED_MAX {
            let names = named.iter().map(|named| named.peer).collect();
            self.judged.push_back(Judged { named: names, since: now });
        }
        Some((layer, named))
    }

    /// Time has passed: gives the layers whose questions were not answered in time.
    /// `is_there` says whether a node could be reached.
    pub fn tick(&mut self, now: Duration, is_there: impl Fn(&PeerId) -> bool) -> Vec<Digest> {
        let late: Vec<u64> = self
            .open
            .iter()
            .filter(|(_, question)| now.saturating_sub(question.asked) >= PATIENCE)
            .map(|(id, _)| *id)
            .collect();
        let late: Vec<Digest> =
            late.into_iter().filter_map(|id| Some(self.open.remove(&id)?.layer)).collect();
        late.iter().for_each(|_| self.fault());
        let (mut good, mut bad) = (false, 0);
        self.judged.retain(|judged| {
            if judged.named.iter().any(&is_there) {
                good = true;
                return false;
            }
            let over = now.saturating_sub(judged.since) >= TURN_UP;
            bad += u32::from(over);
            !over
        });
        if good {
            self.faults = 0;
        } else {
            (0..bad).for_each(|_| self.fault());
        }
        late
    }

    /// Whether the tracker that is asked is to be done without.
    pub fn is_found_out(&self) -> bool {
        self.faults >= FAULTS_MAX
    }

    /// Another tracker, or none: gives the layers that nobody will answer about.
    pub fn tracker_changed(&mut self) -> Vec<Digest> {
        self.faults = 0;
        self.judged.clear();
        self.open.drain().map(|(_, question)| question.layer).collect()
    }

    /// Questions that were answered, and that were not or badly, since the start.
    pub fn counts(&self) -> (u64, u64) {
        (self.answered, self.failed)
    }

    fn fault(&mut self) {
        self.faults += 1;
        self.failed += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);
    const ME: PeerId = PeerId([1; 32]);
    const TRACKER: PeerId = PeerId([2; 32]);
    const AT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 9, 0, 1));

    fn layer(n: u8) -> Digest {
        Digest::of(&[n])
    }

    fn named(n: u8, address: &str) -> Named {
        Named { peer: PeerId([n; 32]), address: address.parse().expect("address") }
    }

    #[test]
    fn an_answer_counts_once_and_from_who_was_asked() {
        let mut lookups = Lookups::default();
        let id = lookups.ask(TRACKER, layer(1), S).expect("asked");
        assert_eq!(lookups.ask(TRACKER, layer(1), S), Err(NotAsked::Open));
        let holders = [vec![named(7, "10.1.0.7:7400")]];
        let other = PeerId([9; 32]);
        assert_eq!(lookups.answer((&other, AT), id, &holders, &ME, S), None);
        assert_eq!(lookups.answer((&TRACKER, AT), id + 1, &holders, &ME, S), None);
        let answer = lookups.answer((&TRACKER, AT), id, &holders, &ME, S);
        assert_eq!(answer, Some((layer(1), holders[0].clone())));
        assert_eq!(lookups.answer((&TRACKER, AT), id, &holders, &ME, S), None, "replayed");
    }

    #[test]
    fn nobody_is_sent_where_no_other_machine_is_and_not_twice_to_one_place() {
        let mut lookups = Lookups::default();
        let id = lookups.ask(TRACKER, layer(1), S).expect("asked");
        let holders = vec![
            named(3, "127.0.0.1:22"),
            named(4, "[::1]:22"),
            named(4, "[::ffff:127.0.0.1]:22"),
            named(5, "239.255.74.1:7402"),
            named(6, "255.255.255.255:9"),
            named(7, "0.0.0.0:80"),
            named(8, "10.1.0.8:0"),
            named(1, "10.1.0.1:7400"),
            named(9, "10.1.0.9:7400"),
            named(10, "10.1.0.9:7400"),
            named(9, "10.1.0.10:7400"),
        ];
        let answer = lookups.answer((&TRACKER, AT), id, &[holders], &ME, S);
        assert_eq!(answer, Some((layer(1), vec![named(9, "10.1.0.9:7400")])));
        let id = lookups.ask(TRACKER, layer(2), S).expect("asked");
        let flood = (20..200).map(|n| named(n, &format!("10.1.0.{n}:7400"))).collect();
        let answer = lookups.answer((&TRACKER, AT), id, &[flood], &ME, S).expect("asked");
        assert_eq!(answer.1.len(), NAMED_MAX);
    }

    #[test]
    fn a_tracker_of_nonsense_silence_or_ghosts_is_found_out() {
        type Fail<'a> = &'a dyn Fn(&mut Lookups, u64, Duration);
        let nonsense: [Fail<'_>; 3] = [
            &|lookups, id, now| {
                let loopback = vec![named(3, "127.0.0.1:22")];
                lookups.answer((&TRACKER, AT), id, &[loopback], &ME, now);
            },
            &|lookups, _, now| {
                assert_eq!(lookups.tick(now + PATIENCE, |_| true).len(), 1);
            },
            &|lookups, id, now| {
                let ghost = vec![named(3, "10.1.0.3:7400")];
                lookups.answer((&TRACKER, AT), id, &[ghost], &ME, now);
                lookups.tick(now + TURN_UP, |_| false);
            },
        ];
        for fail in nonsense {
            let mut lookups = Lookups::default();
            for n in 0..FAULTS_MAX {
                assert!(!lookups.is_found_out());
                let now = S * 100 * n;
                let id = lookups.ask(TRACKER, layer(n as u8), now).expect("asked");
                fail(&mut lookups, id, now);
            }
            assert!(lookups.is_found_out());
            lookups.tracker_changed();
            assert!(!lookups.is_found_out());
        }
    }

    #[test]
    fn one_that_is_right_now_and_then_stays() {
        let mut lookups = Lookups::default();
        for n in 0..20 {
            let now = S * 100 * n;
            let id = lookups.ask(TRACKER, layer(n as u8), now).expect("asked");
            let named = named(3, "10.1.0.3:7400");
            lookups.answer((&TRACKER, AT), id, &[vec![named]], &ME, now);
            lookups.tick(now + TURN_UP, |_| n % 2 == 0);
            assert!(!lookups.is_found_out());
        }
    }

    #[test]
    fn questions_are_bounded() {
        let mut lookups = Lookups::default();
        let asked = (0..200).filter_map(|n| lookups.ask(TRACKER, layer(n), S).ok()).count();
        assert_eq!(asked, OPEN_MAX);
        assert_eq!(lookups.tracker_changed().len(), OPEN_MAX);
        assert!(lookups.ask(TRACKER, layer(1), S).is_ok());
    }
}
