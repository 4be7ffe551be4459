//! Who is near, what they have, and what they are being asked.
//!
//! Neighbours are asked which of this node's objects they have when that matters:
//! nothing is announced, and what is remembered is about objects that are here. What
//! they answer only says whom to ask for a promise; the promise proves it.

use std::collections::HashMap;
use std::time::Duration;

use crate::eviction::promise::ANSWER;
use crate::eviction::{LAN_MAX, Member, PeerSet};
use crate::fetch::tunnel::TunnelId;
use crate::types::{ObjectId, PeerId};
use crate::wire::HELD_MAX;

/// A neighbour's answer is asked for anew after this long,
const FRESH: Duration = Duration::from_secs(60);
/// and much sooner where nobody had the object and last copies are about to go: a copy
/// may have come since.
const FRESH_ALONE: Duration = Duration::from_secs(1);
/// In a larger store that many are asked about in this time.
const FRESH_OBJECTS: usize = 8_000;
/// Questions about holdings that are open with one neighbour, of [`HELD_MAX`] each:
/// with a look four times a second a quarter of the news that a tunnel takes.
const QUESTIONS_MAX: usize = 4;
/// Questions for promises that are open with one neighbour.
const ASKS_MAX: usize = 4;
/// Promises that one neighbour may ask for in a second: each costs a block's read.
const ASKED_MAX: u32 = 1024;
/// A neighbour that could so often not prove what it said it has
const LIES_MAX: u32 = 3;
/// is not believed for this long.
const DISTRUST: Duration = Duration::from_secs(600);
/// No store is larger, whatever a neighbour says.
const CAPACITY_MAX: u64 = 1 << 60;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Neighbours {
    /// At most [`LAN_MAX`]; a neighbour keeps its place while it is there.
    places: Vec<Option<Neighbour>>,
    known: HashMap<ObjectId, Known>,
    questions: HashMap<u64, Question>,
    asks: HashMap<[u8; 32], Asks>,
    /// Number of the next question.
    next: u64,
    alone_for: Duration,
    distrusted: HashMap<PeerId, Duration>,
}

#[derive(Debug)]
struct Neighbour {
    id: PeerId,
    tunnel: TunnelId,
    capacity: u64,
    lies: u32,
    /// Since when promises that it asks for are counted, and how many.
    asked: (Duration, u32),
}

/// What neighbours have said about one object; bits are their places.
#[derive(Debug, Clone, Copy, Default)]
struct Known {
    holders: u64,
    answered: u64,
    /// Who is to be asked, and who has been.
    due: u64,
    asked: u64,
    /// When it was begun to ask for the answers that are here,
    since: Duration,
    /// and for those that are awaited.
    began: Duration,
}

#[derive(Debug)]
struct Question {
    place: usize,
    peer: PeerId,
    at: Duration,
    objects: Vec<ObjectId>,
}

/// Promises that are asked for with one message.
#[derive(Debug)]
struct Asks {
    of: PeerId,
    at: Duration,
    asked: Vec<Asked>,
}

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) object: ObjectId,
    /// The ledger's number of the question.
    pub(super) number: u64,
    /// The block that is the proof.
    pub(super) block: u32,
}

/// A question about holdings that is to be sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ToAsk {
    pub(super) peer: PeerId,
    pub(super) id: u64,
    pub(super) objects: Vec<ObjectId>,
}

impl Neighbours {
    /// Takes in who is near now, by the tunnel for news: what one said on an earlier
    /// tunnel is forgotten.
    pub(super) fn meet(&mut self, links: &[(PeerId, TunnelId)]) {
        for place in 0..self.places.len() {
            let there = |one: &Neighbour| links.contains(&(one.id, one.tunnel));
            if self.places[place].as_ref().is_some_and(|one| !there(one)) {
                self.lose(place);
            }
        }
        for (id, tunnel) in links {
            if self.place(id).is_some() {
                continue;
            }
            let new = Neighbour {
                id: *id,
                tunnel: *tunnel,
                capacity: 0,
                lies: 0,
                asked: (Duration::ZERO, 0),
            };
            match self.places.iter().position(Option::is_none) {
                Some(free) => self.places[free] = Some(new),
                None if self.places.len() < LAN_MAX => self.places.push(Some(new)),
                // Not seen: what it alone has is kept here.
                None => {}
            }
        }
        if self.places.iter().all(Option::is_none) {
            self.known = HashMap::new();
        }
    }

    /// Whether nobody is near.
    pub(super) fn is_empty(&self) -> bool {
        self.places.iter().all(Option::is_none)
    }

    /// Whether anything is being asked about holdings.
    pub(super) fn is_asking(&self) -> bool {
        !self.questions.is_empty()
    }

    /// Whether the peer is near.
    pub(super) fn is_near(&self, peer: &PeerId) -> bool {
        self.place(peer).is_some()
    }

    /// Who is near.
    pub(super) fn ids(&self) -> impl Iterator<Item = PeerId> {
        self.places.iter().flatten().map(|one| one.id)
    }

    /// All by their places; who is not there has none of anything.
    pub(super) fn members(&self) -> Vec<Member> {
        let nobody = Member { id: PeerId([0; 32]), capacity: 0 };
        let member = |one: &Neighbour| Member { id: one.id, capacity: one.capacity };
        self.places.iter().map(|one| one.as_ref().map_or(nobody, member)).collect()
    }

    /// Who has the object, and whether that is not known yet of all.
    pub(super) fn of(&self, object: &ObjectId, now: Duration) -> (PeerSet, bool) {
        let live = self.live();
        let Some(known) = self.known.get(object) else {
            return (PeerSet::default(), live != 0);
        };
        let asked = known.answered & live == live;
        let fresh = now.saturating_sub(known.since) < self.alone_for.max(FRESH_ALONE);
        let unsure = known.holders == 0 && !(asked && fresh);
        (PeerSet::from_bits(known.holders), unsure && live != 0)
    }

    /// What is to be asked about `objects`, all of those that matter now. `last`: if
    /// nothing else helps, last copies go.
    pub(super) fn look(&mut self, objects: &[ObjectId], last: bool, now: Duration) -> Vec<ToAsk> {
        self.forget_others(objects);
        let times = (objects.len() / FRESH_OBJECTS).max(1) as u32;
        self.alone_for = if last { FRESH_ALONE } else { FRESH } * times;
        let live = self.live();
        let room = self.room();
        let mut lists: Vec<Vec<ObjectId>> = vec![Vec::new(); self.places.len()];
        for object in objects {
            let known = self.known.entry(*object).or_default();
            // Asked again before it counts as old, so that nothing has to wait for it.
            let lasts = match known.holders {
                0 => self.alone_for / 2,
                _ => self.alone_for.max(FRESH),
            };
            let old = known.answered == 0 || now.saturating_sub(known.since) >= lasts;
            if old && known.due | known.asked == 0 {
                (known.due, known.began) = (live, now);
            }
            known.due |= live & !known.answered & !known.asked;
            for place in PeerSet::from_bits(known.due).iter() {
                if lists[place].len() < room[place] * HELD_MAX {
                    known.due &= !(1 << place);
                    known.asked |= 1 << place;
                    lists[place].push(*object);
                }
            }
        }
        let mut asks = Vec::new();
        for (place, list) in lists.iter().enumerate() {
            let Some(peer) = self.places[place].as_ref().map(|one| one.id) else { continue };
            for objects in list.chunks(HELD_MAX) {
                let id = self.next;
                self.next += 1;
                let objects = objects.to_vec();
                let question = Question { place, peer, at: now, objects: objects.clone() };
                self.questions.insert(id, question);
                asks.push(ToAsk { peer, id, objects });
            }
        }
        asks
    }

    /// A neighbour says what it has. What was not asked counts for nothing.
    pub(super) fn holds(&mut self, peer: &PeerId, id: u64, capacity: u64, whole: &[bool]) -> bool {
        let expected =
            |question: &Question| question.peer == *peer && question.objects.len() == whole.len();
        if !self.questions.get(&id).is_some_and(expected) {
            return false;
        }
        let Some(question) = self.questions.remove(&id) else { return false };
        let believed = !self.distrusted.contains_key(peer);
        if let Some(one) = self.places.get_mut(question.place).and_then(Option::as_mut) {
            one.capacity = capacity.min(CAPACITY_MAX);
        }
        for (object, whole) in question.objects.iter().zip(whole) {
            self.note(object, question.place, believed && *whole);
        }
        true
    }

    fn note(&mut self, object: &ObjectId, place: usize, holds: bool) {
        let Some(known) = self.known.get_mut(object) else { return };
        let bit = 1 << place;
        known.asked &= !bit;
        known.answered |= bit;
        known.holders = if holds { known.holders | bit } else { known.holders & !bit };
        if known.due | known.asked == 0 {
            known.since = known.began;
        }
    }

    /// A neighbour says, or has shown, that it does not have these.
    pub(super) fn gone(&mut self, peer: &PeerId, objects: &[ObjectId]) {
        let Some(place) = self.place(peer) else { return };
        for object in objects {
            if let Some(known) = self.known.get_mut(object) {
                known.holders &= !(1 << place);
            }
        }
    }

    /// How many promises a neighbour can be asked for now, in messages.
    pub(super) fn room_for_asks(&self, peer: &PeerId) -> usize {
        let open = self.asks.values().filter(|asks| asks.of == *peer).count();
        if self.is_near(peer) { ASKS_MAX.saturating_sub(open) } else { 0 }
    }

    /// Promises are asked for.
    pub(super) fn asks(&mut self, nonce: [u8; 32], of: PeerId, asked: Vec<Asked>, now: Duration) {
        self.asks.insert(nonce, Asks { of, at: now, asked });
    }

    /// An answer came: what it is about, unless nobody asked. It counts once.
    pub(super) fn answered(&mut self, peer: &PeerId, nonce: &[u8; 32]) -> Option<Vec<Asked>> {
        if self.asks.get(nonce)?.of != *peer {
            return None;
        }
        Some(self.asks.remove(nonce)?.asked)
    }

    /// A neighbour could not prove what it said. `true` if it is not believed any
    /// more from now on.
    pub(super) fn lied(&mut self, peer: &PeerId, now: Duration) -> bool {
        let Some(place) = self.place(peer) else { return false };
        let Some(one) = self.places[place].as_mut() else { return false };
        one.lies += 1;
        if one.lies < LIES_MAX {
            return false;
        }
        one.lies = 0;
        self.known.values_mut().for_each(|known| known.holders &= !(1 << place));
        self.distrusted.insert(*peer, now.saturating_add(DISTRUST));
        true
    }

    /// Whether a neighbour may ask for so many promises more.
    pub(super) fn may_ask(&mut self, peer: &PeerId, count: usize, now: Duration) -> bool {
        let Some(place) = self.place(peer) else { return false };
        let Some(one) = self.places[place].as_mut() else { return false };
        if now.saturating_sub(one.asked.0) >= Duration::from_secs(1) {
            one.asked = (now, 0);
        }
        one.asked.1 = one.asked.1.saturating_add(u32::try_from(count).unwrap_or(u32::MAX));
        one.asked.1 <= ASKED_MAX
    }

    /// Whoever does not answer has nothing, for now.
    pub(super) fn tick(&mut self, now: Duration) {
        let late = |at: Duration| now.saturating_sub(at) >= ANSWER;
        let ids: Vec<u64> =
            self.questions.iter().filter(|(_, q)| late(q.at)).map(|(id, _)| *id).collect();
        for question in ids.iter().filter_map(|id| self.questions.remove(id)).collect::<Vec<_>>() {
            for object in &question.objects {
                self.note(object, question.place, false);
            }
        }
        self.asks.retain(|_, asks| !late(asks.at));
        self.distrusted.retain(|_, until| now < *until);
    }

    fn place(&self, peer: &PeerId) -> Option<usize> {
        self.places.iter().position(|one| one.as_ref().is_some_and(|one| one.id == *peer))
    }

    fn lose(&mut self, place: usize) {
        let Some(lost) = self.places[place].take() else { return };
        let bit = 1 << place;
        for known in self.known.values_mut() {
            known.holders &= !bit;
            known.answered &= !bit;
            known.due &= !bit;
            known.asked &= !bit;
        }
        self.questions.retain(|_, question| question.place != place);
        self.asks.retain(|_, asks| asks.of != lost.id);
    }

    fn live(&self) -> u64 {
        let there = self.places.iter().enumerate().filter(|(_, one)| one.is_some());
        there.fold(0, |live, (place, _)| live | 1 << place)
    }

    fn room(&self) -> Vec<usize> {
        let mut room = vec![QUESTIONS_MAX; self.places.len()];
        for question in self.questions.values() {
            room[question.place] = room[question.place].saturating_sub(1);
        }
        room
    }

    /// What is not here any more need not be known.
    fn forget_others(&mut self, objects: &[ObjectId]) {
        if self.known.len() > 2 * objects.len() + HELD_MAX {
            let here: std::collections::HashSet<&ObjectId> = objects.iter().collect();
            self.known.retain(|object, _| here.contains(object));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn object(n: u32) -> ObjectId {
        ObjectId::from_bytes(*blake3::hash(&n.to_le_bytes()).as_bytes())
    }

    fn peer(n: u8) -> PeerId {
        PeerId([n; 32])
    }

    fn two() -> Neighbours {
        let mut neighbours = Neighbours::default();
        neighbours.meet(&[(peer(1), 10), (peer(2), 20)]);
        neighbours
    }

    #[test]
    fn an_object_is_unsure_until_all_have_answered_or_kept_silent() {
        let mut neighbours = two();
        assert_eq!(neighbours.of(&object(1), S), (PeerSet::default(), true));
        let asks = neighbours.look(&[object(1), object(2)], true, S);
        assert_eq!(asks.len(), 2);
        assert!(neighbours.look(&[object(1), object(2)], true, S).is_empty(), "asked already");
        let of_first = asks.iter().find(|ask| ask.peer == peer(1)).expect("asked");
        assert!(!neighbours.holds(&peer(2), of_first.id, 9, &[true, true]), "of another");
        assert!(!neighbours.holds(&peer(1), of_first.id, 9, &[true]), "too short");
        assert!(neighbours.holds(&peer(1), of_first.id, 9, &[true, false]));
        assert!(!neighbours.holds(&peer(1), of_first.id, 9, &[true, true]), "twice");
        assert_eq!(neighbours.members()[0], Member { id: peer(1), capacity: 9 });
        assert_eq!(neighbours.of(&object(1), S), (PeerSet::of(&[0]), false));
        assert_eq!(neighbours.of(&object(2), S), (PeerSet::default(), true));
        // The other does not answer.
        neighbours.tick(S + ANSWER);
        assert!(!neighbours.questions.values().any(|q| q.peer == peer(2)));
        let again = neighbours.look(&[object(2)], true, S + ANSWER);
        assert!(again.iter().all(|ask| ask.objects == [object(2)]) && again.len() == 2);
        for ask in again {
            assert!(neighbours.holds(&ask.peer, ask.id, 9, &[false]));
        }
        assert_eq!(neighbours.of(&object(2), S + ANSWER), (PeerSet::default(), false));
        assert_eq!(neighbours.of(&object(2), 2 * ANSWER), (PeerSet::default(), true), "old");
    }

    #[test]
    fn who_leaves_has_nothing_and_who_comes_is_asked() {
        let mut neighbours = two();
        for ask in neighbours.look(&[object(1)], true, S) {
            neighbours.holds(&ask.peer, ask.id, 9, &[true]);
        }
        neighbours.asks([1; 32], peer(1), Vec::new(), S);
        assert_eq!(neighbours.of(&object(1), S).0, PeerSet::of(&[0, 1]));
        neighbours.gone(&peer(2), &[object(1)]);
        assert_eq!(neighbours.of(&object(1), S).0, PeerSet::of(&[0]));
        // The first one comes back on another tunnel.
        neighbours.meet(&[(peer(1), 11), (peer(2), 20)]);
        assert_eq!(neighbours.of(&object(1), S), (PeerSet::default(), true));
        assert_eq!(neighbours.answered(&peer(1), &[1; 32]), None);
        assert_eq!(neighbours.look(&[object(1)], true, S).len(), 1);
        neighbours.meet(&[]);
        assert!(neighbours.is_empty() && neighbours.known.is_empty());
        assert_eq!(neighbours.of(&object(1), S), (PeerSet::default(), false), "alone");
    }

    #[test]
    fn answers_count_once_and_liars_are_not_believed() {
        let mut neighbours = two();
        let asked = vec![Asked { object: object(1), number: 3, block: 0 }];
        neighbours.asks([1; 32], peer(1), asked.clone(), S);
        assert_eq!(neighbours.answered(&peer(2), &[1; 32]), None, "not asked");
        assert_eq!(neighbours.answered(&peer(1), &[1; 32]), Some(asked));
        assert_eq!(neighbours.answered(&peer(1), &[1; 32]), None, "replayed");
        let lies: Vec<bool> = (0..LIES_MAX).map(|_| neighbours.lied(&peer(1), S)).collect();
        assert_eq!(lies, [false, false, true]);
        for ask in neighbours.look(&[object(1)], true, S) {
            neighbours.holds(&ask.peer, ask.id, u64::MAX, &[true]);
        }
        assert_eq!(neighbours.of(&object(1), S), (PeerSet::of(&[1]), false));
        neighbours.tick(S + DISTRUST);
        assert!(neighbours.distrusted.is_empty());
    }

    #[test]
    fn what_is_asked_and_remembered_is_bounded() {
        let mut neighbours = Neighbours::default();
        let many: Vec<(PeerId, TunnelId)> = (0..200u8).map(|n| (peer(n), n.into())).collect();
        neighbours.meet(&many);
        assert_eq!(neighbours.members().len(), LAN_MAX);
        let mut neighbours = two();
        let objects: Vec<ObjectId> = (0..10_000).map(object).collect();
        let asks = neighbours.look(&objects, true, S);
        assert_eq!(asks.len(), 2 * QUESTIONS_MAX);
        assert!(asks.iter().all(|ask| ask.objects.len() == HELD_MAX));
        assert!(neighbours.look(&objects, true, S).is_empty(), "they have enough to answer");
        neighbours.look(&objects[..1], true, S);
        assert!(neighbours.known.len() <= 1);
        assert!(neighbours.may_ask(&peer(1), ASKED_MAX as usize, S));
        assert!(!neighbours.may_ask(&peer(1), 1, S) && neighbours.may_ask(&peer(1), 1, 2 * S));
        assert!(!neighbours.may_ask(&peer(9), 1, S), "a stranger");
        for n in 0..ASKS_MAX as u8 {
            neighbours.asks([n; 32], peer(1), Vec::new(), S);
        }
        assert_eq!(
            (neighbours.room_for_asks(&peer(1)), neighbours.room_for_asks(&peer(2))),
            (0, 4)
        );
        neighbours.tick(S + ANSWER);
        assert_eq!(neighbours.room_for_asks(&peer(1)), ASKS_MAX);
    }
}
