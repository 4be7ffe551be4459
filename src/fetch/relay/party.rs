//! Who of a LAN reads a blob from beyond it. Pure.
//!
//! Every node says how it stands ([`Stage`]) and which pieces it has. Nodes that
//! begin at the same time agree by rendezvous hashing; whoever leads goes on
//! leading; when it is gone, or brings nothing for [`PATIENCE`], the next in order
//! goes on where it stopped, with what it and the others have already.
//!
//! Invariant: where nobody else is there, or nobody else moves, this node leads in
//! the end.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::fetch::schedule::{Time, builders};
use crate::types::{Digest, PeerId};
use crate::wire::{BlockSet, Stage};

/// After it has said that it takes part, a node hears the others for so long
/// before it leads.
const SETTLE: Duration = Duration::from_millis(100);
/// One that leads and brings nothing for so long is not waited for.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// Runs of pieces that are remembered of one neighbour: a first pass has as many
/// as it reads segments at a time.
const RUNS_MAX: usize = 256;

/// What to do about a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Read it from beyond the LAN.
    Mine,
    /// Ask this neighbour, which has it.
    Ask(PeerId),
    /// Somebody brings it; look again when something changed, or then.
    Wait(Time),
}

#[derive(Debug)]
struct Neighbour {
    stage: Stage,
    pieces: BlockSet,
    news: Time,
    /// It has led before: that it does so again is no news until it brings something.
    led: bool,
    /// It did not give what it said it had, and is let be until then.
    failed: Option<Time>,
}

impl Neighbour {
    fn is_sound(&self, now: Time) -> bool {
        self.failed.is_none_or(|until| until <= now)
    }
}

/// The nodes of a LAN and one blob.
#[derive(Debug)]
pub struct Party {
    me: PeerId,
    blob: Digest,
    /// This node; `None` if it takes no part.
    mine: Option<Stage>,
    since: Time,
    /// Since when nobody leads.
    vacant: Option<Time>,
    neighbours: BTreeMap<PeerId, Neighbour>,
}

impl Party {
    /// A blob that a neighbour spoke of, or that this node needs.
    pub fn new(me: PeerId, blob: Digest) -> Self {
        let neighbours = BTreeMap::new();
        Self { me, blob, mine: None, since: Time::ZERO, vacant: None, neighbours }
    }

    /// How this node stands.
    pub fn mine(&self) -> Option<Stage> {
        self.mine
    }

    /// This node takes part from now on.
    pub fn join(&mut self, now: Time) {
        (self.mine, self.since, self.vacant) = (Some(Stage::Waits), now, None);
        for neighbour in self.neighbours.values_mut() {
            neighbour.failed = None;
        }
    }

    /// This node has its index, or gave it up.
    pub fn end(&mut self, done: bool) {
        self.mine = done.then_some(Stage::Done);
    }

    /// Nobody speaks of it any more, and this node takes no part.
    pub fn is_over(&self) -> bool {
        self.mine.is_none() && self.neighbours.is_empty()
    }

    /// Whether a neighbour is still on its first pass.
    pub fn is_needed(&self) -> bool {
        self.neighbours.values().any(|n| matches!(n.stage, Stage::Waits | Stage::Leads))
    }

    /// A neighbour that has the index.
    pub fn is_indexed(&self) -> bool {
        self.neighbours.values().any(|n| n.stage == Stage::Done)
    }

    /// A neighbour said how it stands.
    pub fn told(&mut self, now: Time, peer: PeerId, stage: Stage, pieces: std::ops::Range<u32>) {
        if stage == Stage::Out {
            self.neighbours.remove(&peer);
            return;
        }
        let fresh =
            || Neighbour { stage, pieces: BlockSet::new(), news: now, led: false, failed: None };
        let neighbour = self.neighbours.entry(peer).or_insert_with(fresh);
        neighbour.stage = stage;
        // Words alone keep nobody in the lead.
        if stage == Stage::Leads && !std::mem::replace(&mut neighbour.led, true) {
            neighbour.news = now;
        }
        let before = neighbour.pieces.len();
        if neighbour.pieces.runs().len() < RUNS_MAX {
            neighbour.pieces.insert(pieces);
        }
        if neighbour.pieces.len() > before {
            neighbour.news = now;
        }
    }

    /// A neighbour is gone.
    pub fn gone(&mut self, peer: &PeerId) {
        self.neighbours.remove(peer);
    }

    /// A neighbour did not give a piece that it said it had.
    pub fn failed(&mut self, now: Time, peer: &PeerId) {
        if let Some(neighbour) = self.neighbours.get_mut(peer) {
            neighbour.failed = Some(now + PATIENCE);
        }
    }

    /// Where a piece is to come from. May make this node lead, or step back.
    pub fn turn(&mut self, now: Time, piece: u32) -> Turn {
        let has = |n: &Neighbour| n.is_sound(now) && n.pieces.contains(piece);
        // Spread over those that have it, so that one does not serve all.
        let mut holders: Vec<PeerId> =
            self.neighbours.iter().filter(|(_, n)| has(n)).map(|(id, _)| *id).collect();
        if !holders.is_empty() {
            let place = usize::from(self.me.0[0]).wrapping_add(piece as usize / 8);
            return Turn::Ask(holders.swap_remove(place % holders.len()));
        }
        self.lead(now)
    }

    /// Whether this node is to read from beyond the LAN.
    pub fn lead(&mut self, now: Time) -> Turn {
        let live =
            |n: &Neighbour| n.stage == Stage::Leads && n.is_sound(now) && n.news + PATIENCE > now;
        let leaders = || self.neighbours.iter().filter(|(_, n)| live(n));
        if self.mine == Some(Stage::Leads) {
            let mut all: Vec<PeerId> = leaders().map(|(id, _)| *id).chain([self.me]).collect();
            builders(&self.blob, &mut all);
            if all.first() == Some(&self.me) {
                return Turn::Mine;
            }
            self.mine = Some(Stage::Waits);
        }
        if let Some(until) = leaders().map(|(_, n)| n.news + PATIENCE).max() {
            self.vacant = None;
            return Turn::Wait(until);
        }
        let settled = self.since + SETTLE;
        if !self.neighbours.is_empty() && settled > now {
            return Turn::Wait(settled);
        }
        // One that leads and stands still has lost its turn.
        let waits =
            self.neighbours.iter().filter(|(_, n)| n.stage == Stage::Waits && n.is_sound(now));
        let mut order: Vec<PeerId> = waits.map(|(id, _)| *id).chain([self.me]).collect();
        builders(&self.blob, &mut order);
        let rank = order.iter().position(|id| *id == self.me).unwrap_or(0) as u32;
        let due = *self.vacant.get_or_insert(now) + SETTLE * 5 * rank;
        if due > now {
            return Turn::Wait(due);
        }
        self.mine = Some(Stage::Leads);
        Turn::Mine
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);

    fn peer(n: u8) -> PeerId {
        PeerId([n; 32])
    }

    fn first(of: &[u8]) -> u8 {
        let mut order: Vec<PeerId> = of.iter().map(|n| peer(*n)).collect();
        builders(&Digest::of(b"blob"), &mut order);
        order[0].0[0]
    }

    /// Parties of nodes 0..n that hear each other.
    fn parties(n: u8) -> Vec<Party> {
        let mut all: Vec<Party> =
            (0..n).map(|i| Party::new(peer(i), Digest::of(b"blob"))).collect();
        for party in &mut all {
            party.join(Time::ZERO);
            let me = party.me;
            for other in (0..n).map(peer).filter(|other| *other != me) {
                party.told(Time::ZERO, other, Stage::Waits, 0..0);
            }
        }
        all
    }

    #[test]
    fn alone_it_leads_at_once() {
        let mut party = Party::new(peer(1), Digest::of(b"blob"));
        party.join(MS);
        assert_eq!(party.turn(MS, 0), Turn::Mine);
    }

    #[test]
    fn of_those_who_begin_together_one_leads_and_the_others_ask_it() {
        let mut all = parties(3);
        let leader = first(&[0, 1, 2]);
        let at = MS * 100;
        for party in &mut all {
            let turn = party.turn(at, 0);
            assert_eq!(turn == Turn::Mine, party.me == peer(leader), "{turn:?}");
        }
        for party in all.iter_mut().filter(|p| p.me != peer(leader)) {
            party.told(at, peer(leader), Stage::Leads, 0..1);
            assert_eq!(party.turn(at, 0), Turn::Ask(peer(leader)));
            assert_eq!(party.turn(at, 1), Turn::Wait(at + PATIENCE));
        }
    }

    #[test]
    fn when_the_leader_is_gone_or_stands_still_the_next_goes_on() {
        for dies in [true, false] {
            let mut all = parties(3);
            let leader = first(&[0, 1, 2]);
            let left: Vec<u8> = (0..3).filter(|n| *n != leader).collect();
            let next = first(&left);
            let mut now = MS * 200;
            for party in all.iter_mut().filter(|p| p.me != peer(leader)) {
                party.told(now, peer(leader), Stage::Leads, 0..1);
            }
            now += if dies { MS * 1000 } else { PATIENCE };
            for party in all.iter_mut().filter(|p| p.me != peer(leader)) {
                if dies {
                    party.gone(&peer(leader));
                }
                assert_eq!(party.turn(now, 1) == Turn::Mine, party.me == peer(next));
            }
        }
    }

    #[test]
    fn of_two_that_lead_the_one_behind_steps_back() {
        let mut all = parties(2);
        let now = MS * 2000;
        for party in &mut all {
            party.mine = Some(Stage::Leads);
        }
        let leader = first(&[0, 1]);
        for party in &mut all {
            let other = peer(1 - party.me.0[0]);
            party.told(now, other, Stage::Leads, 0..0);
            assert_eq!(party.turn(now, 5) == Turn::Mine, party.me == peer(leader));
        }
    }

    proptest! {
        /// Whatever was said before: if nobody says anything any more, this node
        /// leads after a bounded time, unless somebody has the piece.
        #[test]
        fn it_leads_in_the_end(said in prop::collection::vec((0u64..9000, 1u8..6, 0u8..4, 0u32..9), 0..60)) {
            let mut party = Party::new(peer(0), Digest::of(b"blob"));
            party.join(Time::ZERO);
            let mut now = Time::ZERO;
            for (wait, from, stage, piece) in said {
                now += MS * wait as u32;
                let stage = [Stage::Out, Stage::Waits, Stage::Leads, Stage::Done][usize::from(stage)];
                party.told(now, peer(from), stage, piece..piece + 1);
                party.turn(now, 100);
            }
            let end = now + PATIENCE + SETTLE * 50;
            for _ in 0..20 {
                match party.turn(now, 100) {
                    Turn::Wait(until) => {
                        prop_assert!(until > now && until <= end);
                        now = until;
                    }
                    turn => {
                        prop_assert_eq!(turn, Turn::Mine);
                        return Ok(());
                    }
                }
            }
            prop_assert!(false, "it still waits at {now:?}");
        }
    }
}
