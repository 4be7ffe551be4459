//! Promises to keep: what lets a node drop a copy and be sure that another stays.
//!
//! Invariant: as long as somebody may act on a promise for an object, the one who
//! gave it does not drop the object, whatever happens. So a copy that goes on a
//! promise is never the last.
//!
//! - The one who asks counts a promise from the moment of *asking*, and only half
//!   as long as the one who gives counts it from the moment of *answering*. No
//!   clock needs to agree with another one; they only must not differ in speed by
//!   a factor of two.
//! - Who has asked, or been promised, and is asked for the same object by somebody
//!   else, gives way if it is the keeper of the two, and refuses otherwise: of two
//!   who want to be rid of the same object, exactly one may.
//! - What was promised before a crash is not known after it: a node that starts
//!   drops nothing that it could have promised until its last promise has expired.
//!
//! A keeper that wants to leave asks the next holder like everybody else (the
//! withdrawal), and waits until its own promises have expired.

use std::collections::HashMap;
use std::time::Duration;

use super::keeper::{LAN_MAX, Member, outranks};
use crate::types::{ObjectId, PeerId};

/// How long the one who gives a promise is bound by it, from its answer on.
pub const PROMISE: Duration = Duration::from_secs(60);
/// How long the one who was promised may act on it, from its question on.
pub const USABLE: Duration = Duration::from_secs(30);
/// How long an answer is waited for. Below [`USABLE`].
pub const ANSWER: Duration = Duration::from_secs(15);
/// How long a refusal, or no answer, is taken for granted. A neighbour that has no room
/// for promises has some a moment later, when it is promised something itself.
pub const REFUSED: Duration = Duration::from_secs(10);
/// How long in a row nobody must have promised to keep what others are known to have,
/// before it counts as the last copy. Nodes that come under pressure all at once refuse
/// each other until they have found out who has room for what; dropping meanwhile, they
/// would drop the same.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// Most objects with a promise given, and most that were asked for; about 6 MiB.
pub const LEDGER_MAX: usize = 1 << 16;

/// What is promised, in both directions.
///
/// Times are of the node's monotonic clock, from any origin.
#[derive(Debug, Clone)]
pub struct Ledger {
    /// Until when I must keep the object.
    given: HashMap<ObjectId, Duration>,
    asked: HashMap<ObjectId, Asked>,
    /// Number of the next question.
    next: u64,
    /// Until when promises of an earlier run may bind me.
    quiet_until: Duration,
}

#[derive(Debug, Clone)]
struct Asked {
    number: u64,
    of: PeerId,
    at: Duration,
    answer: Answer,
    /// Who refused or did not answer, from `refused_at` on; at most [`LAN_MAX`].
    refused: Vec<PeerId>,
    refused_at: Duration,
    /// Since when nobody has promised.
    in_vain: Option<Duration>,
}

impl Asked {
    /// Who refused in the last [`REFUSED`].
    fn refusers(&self, now: Duration) -> &[PeerId] {
        if now.saturating_sub(self.refused_at) < REFUSED { &self.refused } else { &[] }
    }

    fn refuse(&mut self, now: Duration) {
        if self.refusers(now).is_empty() {
            self.refused.clear();
            self.refused_at = now;
        }
        if self.refused.len() < LAN_MAX && !self.refused.contains(&self.of) {
            self.refused.push(self.of);
        }
        self.in_vain.get_or_insert(now);
        self.answer = Answer::No;
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    None,
    Yes,
    No,
}

/// How a question stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Nobody was asked, or too long ago, or it refused or did not answer.
    Unasked,
    /// Asked, and the answer may still come.
    Open,
    /// Promised by this one: may be dropped now.
    Promised(PeerId),
}

impl Ledger {
    /// The ledger of a node that starts at `now`. `fresh`: it has made no promise
    /// in an earlier run, as its store is new.
    pub fn new(now: Duration, fresh: bool) -> Self {
        let quiet_until = if fresh { now } else { now.saturating_add(PROMISE) };
        Self { given: HashMap::new(), asked: HashMap::new(), next: 0, quiet_until }
    }

    /// Whether `object`, of which this node has all or a part, must stay.
    pub fn binds(&self, object: &ObjectId, whole: bool, now: Duration) -> bool {
        // Nobody promises what it has in part.
        (whole && now < self.quiet_until)
            || (!self.given.is_empty() && self.given.get(object).is_some_and(|until| now < *until))
    }

    /// How the question for `object` stands.
    pub fn standing(&self, object: &ObjectId, now: Duration) -> Standing {
        if self.asked.is_empty() {
            return Standing::Unasked;
        }
        let Some(asked) = self.asked.get(object) else { return Standing::Unasked };
        let age = now.saturating_sub(asked.at);
        match asked.answer {
            Answer::Yes if age < USABLE => Standing::Promised(asked.of),
            Answer::None if age < ANSWER => Standing::Open,
            _ => Standing::Unasked,
        }
    }

    /// Who need not be asked for `object`: they refused, or did not answer, a moment
    /// ago.
    pub fn refusers(&self, object: &ObjectId, now: Duration) -> &[PeerId] {
        self.asked.get(object).map_or(&[], |asked| asked.refusers(now))
    }

    /// Since when `object` has been asked for in vain, by whomever.
    pub fn in_vain(&self, object: &ObjectId) -> Option<Duration> {
        self.asked.get(object).and_then(|asked| asked.in_vain)
    }

    /// Notes who did not answer in time. To be called before planning.
    pub fn tick(&mut self, now: Duration) {
        self.given.retain(|_, until| now < *until);
        for asked in self.asked.values_mut() {
            if asked.answer == Answer::None && now.saturating_sub(asked.at) >= ANSWER {
                asked.refuse(now);
            }
        }
        // Long enough for whoever still wants to know to ask once more.
        self.asked.retain(|_, asked| now.saturating_sub(asked.at) < REFUSED * 2 + USABLE);
    }

    /// Whether `object` may be dropped because somebody promised to keep it.
    ///
    /// To be asked right before dropping, however old the plan is.
    pub fn may_drop(&self, object: &ObjectId, whole: bool, now: Duration) -> bool {
        !self.binds(object, whole, now)
            && matches!(self.standing(object, now), Standing::Promised(_))
    }

    /// Notes that `of` is asked now, and gives the number of the question. `None`,
    /// and nobody is to be asked, where the ledger is full or a question for the
    /// object is open.
    pub fn ask(&mut self, object: ObjectId, of: PeerId, now: Duration) -> Option<u64> {
        if self.standing(&object, now) != Standing::Unasked {
            return None;
        }
        if self.asked.len() >= LEDGER_MAX && !self.asked.contains_key(&object) {
            return None;
        }
        let number = self.next;
        self.next += 1;
        let asked = self.asked.entry(object).or_insert_with(|| Asked {
            number,
            of,
            at: now,
            answer: Answer::None,
            refused: Vec::new(),
            refused_at: now,
            in_vain: None,
        });
        (asked.number, asked.of, asked.at, asked.answer) = (number, of, now, Answer::None);
        Some(number)
    }

    /// Notes the answer to question `number`. One of somebody who was not asked, to
    /// an earlier question, or that comes after [`ANSWER`], is nothing: its promise
    /// may have begun too long ago.
    pub fn answered(
        &mut self,
        object: &ObjectId,
        from: &PeerId,
        number: u64,
        promised: bool,
        now: Duration,
    ) {
        if self.standing(object, now) != Standing::Open {
            return;
        }
        let asked = self.asked.get_mut(object);
        if let Some(asked) = asked.filter(|asked| asked.of == *from && asked.number == number) {
            if promised {
                asked.answer = Answer::Yes;
                asked.in_vain = None;
            } else {
                asked.refuse(now);
            }
        }
    }

    /// `from` takes its promise back, as it can: before it was acted on.
    pub fn withdrawn(&mut self, object: &ObjectId, from: &PeerId, now: Duration) {
        if let Some(asked) = self.asked.get_mut(object).filter(|asked| asked.of == *from) {
            asked.refuse(now);
        }
    }

    /// `from` takes all its promises back, as far as they were not acted on.
    pub fn withdrawn_all(&mut self, from: &PeerId, now: Duration) {
        for asked in self.asked.values_mut().filter(|asked| asked.of == *from) {
            asked.refuse(now);
        }
    }

    /// What this node has promised and must keep.
    pub fn given(&self) -> impl Iterator<Item = &ObjectId> {
        self.given.keys()
    }

    /// Answers the question of `from` whether I, `me`, keep `object`: `true` binds
    /// me for [`PROMISE`]. `whole`: I have all of it, durably.
    pub fn give(
        &mut self,
        object: &ObjectId,
        me: &Member,
        from: &Member,
        whole: bool,
        now: Duration,
    ) -> bool {
        if !whole || me.id == from.id {
            return false;
        }
        match self.standing(object, now) {
            Standing::Open | Standing::Promised(_) if !outranks(me, from, object) => return false,
            _ => {}
        }
        let until = now.saturating_add(PROMISE);
        if self.given.len() >= LEDGER_MAX && !self.given.contains_key(object) {
            return false;
        }
        self.given.insert(*object, until);
        // Bound now: what I was promised myself is of no use any more.
        self.asked.remove(object);
        true
    }

    /// Forgets what was dropped.
    pub fn dropped(&mut self, object: &ObjectId) {
        self.asked.remove(object);
        self.given.remove(object);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn object() -> ObjectId {
        ObjectId::from_bytes([7; 32])
    }

    /// The keeper of the two first.
    fn two() -> (Member, Member) {
        let a = Member { id: PeerId([1; 32]), capacity: 1 << 30 };
        let b = Member { id: PeerId([2; 32]), capacity: 1 << 30 };
        if outranks(&a, &b, &object()) { (a, b) } else { (b, a) }
    }

    #[test]
    fn a_promise_is_usable_for_less_time_than_it_binds() {
        let (keeper, other) = two();
        let (mut giving, mut asking) = (Ledger::new(S, true), Ledger::new(S, true));
        assert_eq!(asking.ask(object(), keeper.id, 10 * S), Some(0));
        assert!(giving.give(&object(), &keeper, &other, true, 14 * S));
        asking.answered(&object(), &keeper.id, 0, true, 14 * S);
        for at in 0..100 {
            let now = at * S;
            let usable = at >= 14 && asking.may_drop(&object(), true, now);
            assert!(!usable || giving.binds(&object(), true, now), "at {at} s");
        }
        assert!(asking.may_drop(&object(), true, 39 * S));
        assert!(!asking.may_drop(&object(), true, 40 * S));
        assert!(giving.binds(&object(), true, 73 * S));
        assert!(!giving.binds(&object(), true, 74 * S));
    }

    #[test]
    fn of_two_who_ask_each_other_exactly_one_may_drop() {
        let (keeper, other) = two();
        let (mut k, mut o) = (Ledger::new(S, true), Ledger::new(S, true));
        assert_eq!(k.ask(object(), other.id, S), Some(0));
        assert_eq!(o.ask(object(), keeper.id, S), Some(0));
        let to_other = k.give(&object(), &keeper, &other, true, 2 * S);
        let to_keeper = o.give(&object(), &other, &keeper, true, 2 * S);
        assert!(to_other && !to_keeper);
        k.answered(&object(), &other.id, 0, to_keeper, 3 * S);
        o.answered(&object(), &keeper.id, 0, to_other, 3 * S);
        assert!(o.may_drop(&object(), true, 3 * S) && !k.may_drop(&object(), true, 3 * S));
    }

    #[test]
    fn a_start_waits_out_the_promises_of_the_run_before() {
        let ledger = Ledger::new(100 * S, false);
        assert!(ledger.binds(&object(), true, 159 * S) && !ledger.binds(&object(), true, 160 * S));
        assert!(!ledger.binds(&object(), false, 100 * S), "of a part nobody promised anything");
    }

    #[test]
    fn strangers_latecomers_and_the_withdrawn_promise_nothing() {
        let (keeper, other) = two();
        let mut ledger = Ledger::new(S, true);
        assert_eq!(ledger.ask(object(), keeper.id, S), Some(0));
        ledger.answered(&object(), &other.id, 0, true, 2 * S);
        assert_eq!(ledger.standing(&object(), 2 * S), Standing::Open);
        ledger.answered(&object(), &keeper.id, 0, true, 17 * S);
        assert_eq!(ledger.standing(&object(), 17 * S), Standing::Unasked);
        ledger.tick(17 * S);
        assert_eq!(ledger.refusers(&object(), 17 * S), [keeper.id]);
        assert!(ledger.refusers(&object(), 17 * S + REFUSED).is_empty());
        assert_eq!(ledger.ask(object(), keeper.id, 18 * S), Some(1));
        ledger.answered(&object(), &keeper.id, 0, true, 19 * S);
        assert_eq!(ledger.standing(&object(), 19 * S), Standing::Open, "an answer to the first");
        ledger.answered(&object(), &keeper.id, 1, true, 19 * S);
        ledger.withdrawn(&object(), &other.id, 19 * S);
        assert!(ledger.may_drop(&object(), true, 19 * S));
        ledger.withdrawn(&object(), &keeper.id, 19 * S);
        assert!(!ledger.may_drop(&object(), true, 19 * S));
        assert_eq!(ledger.ask(object(), keeper.id, 20 * S), Some(2));
        ledger.answered(&object(), &keeper.id, 2, true, 21 * S);
        ledger.withdrawn_all(&other.id, 21 * S);
        assert!(ledger.may_drop(&object(), true, 21 * S));
        ledger.withdrawn_all(&keeper.id, 21 * S);
        assert!(!ledger.may_drop(&object(), true, 21 * S));
        assert!(!ledger.give(&object(), &keeper, &other, false, 21 * S), "not whole");
        assert!(!ledger.give(&object(), &keeper, &keeper, true, 21 * S), "oneself");
    }

    #[test]
    fn the_ledger_is_bounded() {
        let (keeper, other) = two();
        let mut ledger = Ledger::new(S, true);
        let id = |n: usize| {
            let mut bytes = [0; 32];
            bytes[..8].copy_from_slice(&(n as u64).to_le_bytes());
            ObjectId::from_bytes(bytes)
        };
        for n in 0..LEDGER_MAX {
            assert!(ledger.give(&id(n), &keeper, &other, true, S));
            assert!(ledger.ask(id(n + LEDGER_MAX), keeper.id, S).is_some());
        }
        assert!(!ledger.give(&id(2 * LEDGER_MAX), &keeper, &other, true, S));
        assert!(ledger.ask(id(3 * LEDGER_MAX), keeper.id, S).is_none());
        ledger.tick(100 * S);
        assert!(ledger.give(&id(2 * LEDGER_MAX), &keeper, &other, true, 100 * S));
    }
}
