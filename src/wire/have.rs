//! Who holds what, told as differences with sequence numbers.
//!
//! A holder keeps a [`Journal`]; whoever listens to it keeps a [`Ledger`].
//!
//! Invariants:
//! - a ledger that has applied a journal's messages in order holds what the
//!   journal was told; one that missed any is told so by the numbers, and
//!   subscribes again;
//! - both are bounded: a journal forgets old changes, and says all from nothing to
//!   whoever missed them; a ledger takes what it has asked for, and not more of it
//!   than there can be.

use std::collections::{HashMap, HashSet, VecDeque};

use super::blockset::{BLOCKS_MAX, BlockSet};
use super::codec::{Reader, WireError};
use super::message::{HAVE_OBJECTS_MAX, Have, HaveBody, Message};
use super::request::Home;
use crate::types::ObjectId;

/// Most layers and single objects that are listened to at one peer, or that a
/// journal is kept of.
pub const HOMES_MAX: usize = 4096;
/// Most objects that a ledger remembers of one peer.
pub const OBJECTS_MAX: usize = 1 << 14;
/// Changes of one home that a journal remembers.
const CHANGES_MAX: usize = 1024;
/// Bytes of entries in one message; the rest of its frame is for the fixed part.
const ENTRIES_MAX: usize = (64 << 10) - 128;

/// A change in what is held of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holding {
    /// The whole object.
    All,
    /// Nothing of it.
    Nothing,
    /// These blocks, too.
    Add(BlockSet),
    /// These no more.
    Remove(BlockSet),
}

impl Holding {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::All => out.push(0),
            Self::Nothing => out.push(1),
            Self::Add(set) => {
                out.push(2);
                set.encode(out);
            }
            Self::Remove(set) => {
                out.push(3);
                set.encode(out);
            }
        }
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        match reader.u8()? {
            0 => Ok(Self::All),
            1 => Ok(Self::Nothing),
            2 => BlockSet::decode(reader).map(Self::Add),
            3 => BlockSet::decode(reader).map(Self::Remove),
            _ => Err(WireError::Invalid("no such holding")),
        }
    }

    /// Whether nothing before it matters.
    fn is_absolute(&self) -> bool {
        matches!(self, Self::All | Self::Nothing)
    }

    /// Takes in a change that comes right after; `false` if it can't.
    fn merge(&mut self, next: &Self) -> bool {
        match (self, next) {
            (me, next) if next.is_absolute() => *me = next.clone(),
            (Self::Add(set), Self::Add(more)) | (Self::Remove(set), Self::Remove(more)) => {
                more.runs().iter().for_each(|run| set.insert(run.clone()));
            }
            _ => return false,
        }
        true
    }

    /// As entries that fit a message each.
    fn pieces(self) -> Vec<Self> {
        match self {
            Self::Add(set) => set.pieces().map(Self::Add).collect(),
            Self::Remove(set) => set.pieces().map(Self::Remove).collect(),
            whole => vec![whole],
        }
    }

    fn encoded_max(&self) -> usize {
        1 + match self {
            Self::Add(set) | Self::Remove(set) => set.encoded_max(),
            _ => 0,
        }
    }
}

/// A state of a journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The life of the holder.
    pub epoch: u64,
    /// The change that came last.
    pub number: u64,
}

/// What a node tells others of its holdings.
#[derive(Debug)]
pub struct Journal {
    epoch: u64,
    number: u64,
    homes: HashMap<Home, Log>,
}

/// Changes of one home, from state `base` on.
#[derive(Debug, Default)]
struct Log {
    base: u64,
    changes: VecDeque<(u64, ObjectId, Holding)>,
}

impl Log {
    fn last(&self) -> u64 {
        self.changes.back().map_or(self.base, |(number, ..)| *number)
    }
}

impl Journal {
    /// A journal of a new life. `epoch`: a number that no earlier life had, such
    /// as a random one.
    pub fn new(epoch: u64) -> Self {
        Self { epoch, number: 0, homes: HashMap::new() }
    }

    /// Notes a change of an object that stands in `home`. Only what somebody
    /// listens to is noted.
    pub fn record(&mut self, home: &Home, object: ObjectId, holding: Holding) {
        let Some(log) = self.homes.get_mut(home) else { return };
        self.number += 1;
        log.changes.push_back((self.number, object, holding));
        if log.changes.len() > CHANGES_MAX
            && let Some((number, ..)) = log.changes.pop_front()
        {
            log.base = number;
        }
    }

    /// Whether anybody listens to `home`.
    pub fn is_heard(&self, home: &Home) -> bool {
        self.homes.contains_key(home)
    }

    /// Answers a subscription, and keeps a log from now on. `snapshot` gives all
    /// that is held, and is asked for only where differences won't do. `None` if
    /// too much is listened to.
    pub fn answer(
        &mut self,
        home: Home,
        since: Option<Mark>,
        root: bool,
        snapshot: impl FnOnce() -> Vec<(ObjectId, Holding)>,
    ) -> Option<Vec<Have>> {
        if !self.homes.contains_key(&home) {
            if self.homes.len() >= HOMES_MAX {
                return None;
            }
            let log = Log { base: self.number, changes: VecDeque::new() };
            self.homes.insert(home, log);
        }
        let since = since.filter(|mark| mark.epoch == self.epoch).map(|mark| mark.number);
        match since.and_then(|number| self.news(home, number, root)) {
            Some(news) if news.is_empty() => {
                let from = since.unwrap_or(0);
                Some(self.messages(home, Some(from), from, root, Vec::new()))
            }
            Some(news) => Some(news),
            None => {
                let to = self.homes.get(&home).map_or(self.number, Log::last);
                Some(self.messages(home, None, to, root, snapshot()))
            }
        }
    }

    /// What changed after state `from`; nothing if nothing did. `None` if that is
    /// not known any more: the listener is to be answered anew.
    pub fn news(&self, home: Home, from: u64, root: bool) -> Option<Vec<Have>> {
        let log = self.homes.get(&home)?;
        let to = log.last();
        if from < log.base || from > to {
            return None;
        }
        if from == to {
            return Some(Vec::new());
        }
        let after = log.changes.iter().filter(|(number, ..)| *number > from);
        let changes = coalesce(after.map(|(_, object, holding)| (object, holding)));
        Some(self.messages(home, Some(from), to, root, changes))
    }

    /// The state that a listener has reached that was told everything.
    pub fn latest(&self, home: &Home) -> Option<u64> {
        self.homes.get(home).map(Log::last)
    }

    /// Nobody listens to `home` any more.
    pub fn forget(&mut self, home: &Home) {
        self.homes.remove(home);
    }

    fn messages(
        &self,
        home: Home,
        from: Option<u64>,
        to: u64,
        root: bool,
        changes: Vec<(ObjectId, Holding)>,
    ) -> Vec<Have> {
        let mut bodies = vec![Vec::new()];
        let mut size = 0;
        for (object, holding) in changes {
            for piece in holding.pieces() {
                let more = 32 + piece.encoded_max();
                let full = bodies.last().is_some_and(|body| body.len() >= HAVE_OBJECTS_MAX);
                if full || size + more > ENTRIES_MAX {
                    bodies.push(Vec::new());
                    size = 0;
                }
                size += more;
                if let Some(body) = bodies.last_mut() {
                    body.push((object, piece));
                }
            }
        }
        let count = bodies.len();
        let message = |(n, objects)| Have {
            home,
            epoch: self.epoch,
            // Those after the first go on from where it led.
            from: if n == 0 { from } else { Some(to) },
            to,
            body: HaveBody { root, last: n + 1 == count, objects },
        };
        bodies.into_iter().enumerate().map(message).collect()
    }
}

/// The same changes in fewer entries.
fn coalesce<'a>(
    changes: impl Iterator<Item = (&'a ObjectId, &'a Holding)>,
) -> Vec<(ObjectId, Holding)> {
    let mut out: Vec<(ObjectId, Holding)> = Vec::new();
    let mut latest: HashMap<ObjectId, usize> = HashMap::new();
    for (object, holding) in changes {
        if let Some((_, before)) = latest.get(object).and_then(|at| out.get_mut(*at))
            && before.merge(holding)
        {
            continue;
        }
        latest.insert(*object, out.len());
        out.push((*object, holding.clone()));
    }
    out
}

/// What one peer has told of its holdings. The holdings themselves are the
/// scheduler's; this is their order, and the bounds.
#[derive(Debug, Default)]
pub struct Ledger {
    homes: HashMap<Home, Known>,
    /// In how many homes an object stands.
    objects: HashMap<ObjectId, u32>,
}

#[derive(Debug, Default)]
struct Known {
    mark: Option<Mark>,
    objects: HashSet<ObjectId>,
}

/// What a message said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// Whether the peer has the root of the layer's index.
    pub root: bool,
    /// Whether the answer to a subscription is complete.
    pub last: bool,
    /// What changed, in order.
    pub changes: Vec<(ObjectId, Holding)>,
}

/// Why a message about holdings is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LedgerError {
    /// Nobody asked for it; it may have crossed the end of a subscription.
    #[error("holdings that nobody asked for")]
    Unasked,
    /// Something before it is missing: subscribe again.
    #[error("holdings with a gap before them")]
    Gap,
    /// Blocks that the object does not have.
    #[error("holdings of blocks that the object does not have")]
    DoesNotFit,
    /// More objects than are remembered of a peer.
    #[error("holdings of too many objects")]
    TooMany,
}

impl LedgerError {
    /// Whether an honest peer never causes it.
    pub fn is_fault(self) -> bool {
        self == Self::DoesNotFit
    }
}

impl Ledger {
    /// The message that asks the peer for what it holds of `home`; says what is
    /// known already. `None` if too much is listened to.
    pub fn subscribe(&mut self, home: Home) -> Option<Message> {
        if self.homes.len() >= HOMES_MAX && !self.homes.contains_key(&home) {
            return None;
        }
        let mark = self.homes.entry(home).or_default().mark;
        let since = mark.map(|mark| (mark.epoch, mark.number));
        Some(Message::Subscribe { home, on: true, since })
    }

    /// The message that ends it.
    pub fn unsubscribe(&mut self, home: Home) -> Message {
        if let Some(known) = self.homes.remove(&home) {
            known.objects.iter().for_each(|object| {
                release(&mut self.objects, object);
            });
        }
        Message::Subscribe { home, on: false, since: None }
    }

    /// Takes a message in. `block_count` gives the number of blocks of an object
    /// where that is known.
    ///
    /// # Errors
    /// [`LedgerError`]; nothing has changed then.
    pub fn apply(
        &mut self,
        have: Have,
        block_count: impl Fn(&ObjectId) -> Option<u32>,
    ) -> Result<Applied, LedgerError> {
        let known = self.homes.get_mut(&have.home).ok_or(LedgerError::Unasked)?;
        let from = have.from.map(|number| Mark { epoch: have.epoch, number });
        if from.is_some() && from != known.mark {
            return Err(LedgerError::Gap);
        }
        for (object, holding) in &have.body.objects {
            let blocks = block_count(object).unwrap_or(BLOCKS_MAX);
            match holding {
                Holding::Add(set) | Holding::Remove(set) if set.end() > blocks => {
                    return Err(LedgerError::DoesNotFit);
                }
                _ => {}
            }
        }
        let fresh = have.body.objects.iter().filter(|(object, _)| !known.objects.contains(object));
        let kept = if from.is_none() { 0 } else { self.objects.len() };
        if kept + fresh.count() > OBJECTS_MAX {
            return Err(LedgerError::TooMany);
        }
        let mut changes = Vec::with_capacity(have.body.objects.len());
        if from.is_none() {
            for object in known.objects.drain() {
                if release(&mut self.objects, &object) {
                    changes.push((object, Holding::Nothing));
                }
            }
        }
        for (object, _) in &have.body.objects {
            if known.objects.insert(*object) {
                *self.objects.entry(*object).or_default() += 1;
            }
        }
        known.mark = Some(Mark { epoch: have.epoch, number: have.to });
        changes.extend(have.body.objects);
        Ok(Applied { root: have.body.root, last: have.body.last, changes })
    }
}

/// One home less; whether it was the last.
fn release(objects: &mut HashMap<ObjectId, u32>, object: &ObjectId) -> bool {
    let Some(count) = objects.get_mut(object) else { return false };
    *count -= 1;
    let last = *count == 0;
    if last {
        objects.remove(object);
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Digest;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// What a listener that believes every change holds.
    #[derive(Default, Debug, PartialEq, Clone)]
    struct Model(BTreeMap<ObjectId, Option<BlockSet>>);

    impl Model {
        fn change(&mut self, object: ObjectId, holding: &Holding) {
            match holding {
                Holding::All => {
                    self.0.insert(object, None);
                }
                Holding::Nothing => {
                    self.0.remove(&object);
                }
                Holding::Add(set) => {
                    if let Some(mine) = self.0.entry(object).or_insert(Some(BlockSet::new())) {
                        set.runs().iter().for_each(|run| mine.insert(run.clone()));
                    }
                }
                Holding::Remove(set) => {
                    if let Some(Some(mine)) = self.0.get_mut(&object) {
                        set.runs().iter().for_each(|run| mine.remove(run));
                        if mine.is_empty() {
                            self.0.remove(&object);
                        }
                    }
                }
            }
        }

        fn snapshot(&self) -> Vec<(ObjectId, Holding)> {
            let holding = |set: &Option<BlockSet>| match set {
                None => Holding::All,
                Some(set) => Holding::Add(set.clone()),
            };
            self.0.iter().map(|(object, set)| (*object, holding(set))).collect()
        }
    }

    fn home() -> Home {
        Home::Layer(Digest::of(b"layer"))
    }

    fn holding() -> impl Strategy<Value = Holding> {
        let set = prop::collection::vec((0u32..100, 1u32..20), 1..4)
            .prop_map(|runs| runs.into_iter().map(|(start, len)| start..start + len).collect());
        let other = set.clone();
        prop_oneof![
            1 => Just(Holding::All),
            1 => Just(Holding::Nothing),
            6 => set.prop_map(Holding::Add),
            2 => other.prop_map(Holding::Remove),
        ]
    }

    #[derive(Clone, Debug)]
    enum Step {
        Change(u8, Holding),
        Tell,
        Lose,
        Restart,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            8 => (0u8..5, holding()).prop_map(|(object, holding)| Step::Change(object, holding)),
            3 => Just(Step::Tell),
            1 => Just(Step::Lose),
            1 => Just(Step::Restart),
        ]
    }

    proptest! {
        /// Messages may be lost and the holder may begin a new life: the listener
        /// finds out, and ends with what the holder has.
        #[test]
        fn a_listener_holds_what_the_holder_told(steps in prop::collection::vec(step(), 0..80)) {
            let mut epoch = 1;
            let (mut journal, mut ledger) = (Journal::new(epoch), Ledger::default());
            let (mut truth, mut heard) = (Model::default(), Model::default());
            let mut told = None;
            let mut lost = false;
            let steps = steps.into_iter().chain([Step::Restart, Step::Tell]);
            for step in steps {
                match step {
                    Step::Change(n, holding) => {
                        let object = ObjectId::from_bytes([n; 32]);
                        truth.change(object, &holding);
                        journal.record(&home(), object, holding);
                    }
                    Step::Restart => {
                        epoch += 1;
                        journal = Journal::new(epoch);
                        told = None;
                    }
                    Step::Lose => {
                        if let Some(number) = told {
                            let news = journal.news(home(), number, true);
                            lost |= news.as_ref().is_some_and(|news| !news.is_empty());
                            told = news.and(journal.latest(&home()));
                        }
                    }
                    Step::Tell => {
                        let news = told.and_then(|number| journal.news(home(), number, true));
                        let mut messages = news.unwrap_or_default();
                        let mut asked = told.is_none();
                        if messages.is_empty() && lost && !asked {
                            continue;
                        }
                        lost = false;
                        loop {
                            if asked {
                                let Some(Message::Subscribe { since, .. }) = ledger.subscribe(home()) else {
                                    panic!("room");
                                };
                                let since = since.map(|(epoch, number)| Mark { epoch, number });
                                messages = journal.answer(home(), since, true, || truth.snapshot()).expect("room");
                                prop_assert!(messages.last().is_some_and(|m| m.body.last));
                            }
                            let results: Vec<_> = messages.drain(..).map(|message| ledger.apply(message, |_| None)).collect();
                            let gap = results.contains(&Err(LedgerError::Gap));
                            for applied in results.into_iter().flatten() {
                                for (object, holding) in applied.changes {
                                    heard.change(object, &holding);
                                }
                            }
                            if !gap {
                                break;
                            }
                            prop_assert!(!asked, "an answer has no gap");
                            asked = true;
                        }
                        told = journal.latest(&home());
                        prop_assert_eq!(&heard, &truth);
                    }
                }
            }
        }
    }

    #[test]
    fn what_does_not_fit_or_was_not_asked_for_is_refused() {
        let object = ObjectId::from_bytes([1; 32]);
        let mut journal = Journal::new(1);
        let add = Holding::Add(std::iter::once(0..10).collect());
        let held = || vec![(object, add.clone())];
        let have = journal.answer(home(), None, true, held).expect("room").remove(0);
        let mut ledger = Ledger::default();
        assert_eq!(ledger.apply(have.clone(), |_| None), Err(LedgerError::Unasked));
        ledger.subscribe(home()).expect("room");
        assert_eq!(ledger.apply(have.clone(), |_| Some(9)), Err(LedgerError::DoesNotFit));
        assert!(ledger.apply(have.clone(), |_| Some(10)).is_ok());
        ledger.unsubscribe(home());
        assert_eq!(ledger.apply(have, |_| Some(10)), Err(LedgerError::Unasked));
        assert!(ledger.objects.is_empty());
    }

    #[test]
    fn large_answers_are_cut_into_messages_that_fit() {
        let many: BlockSet = (0..20_000).map(|n| n * 1000..n * 1000 + 1).collect();
        let some = (0..2000u32).map(|n| {
            let mut id = [0; 32];
            id[..4].copy_from_slice(&n.to_le_bytes());
            (ObjectId::from_bytes(id), Holding::All)
        });
        let held: Vec<_> =
            some.chain([(ObjectId::from_bytes([9; 32]), Holding::Add(many))]).collect();
        let mut journal = Journal::new(7);
        let messages = journal.answer(home(), None, true, || held.clone()).expect("room");
        assert!(messages.len() > 4);
        let mut ledger = Ledger::default();
        ledger.subscribe(home()).expect("room");
        let (mut model, mut truth) = (Model::default(), Model::default());
        for message in messages {
            let frame = Message::Have(message.clone()).to_frame();
            assert!(frame.len() <= (64 << 10) + 8);
            let changes = ledger.apply(message, |_| None).expect("in order").changes;
            changes.iter().for_each(|(object, holding)| model.change(*object, holding));
        }
        held.iter().for_each(|(object, holding)| truth.change(*object, holding));
        assert_eq!(model, truth);
    }

    #[test]
    fn a_peer_can_name_only_so_many_objects() {
        let mut ledger = Ledger::default();
        ledger.subscribe(home()).expect("room");
        let entry = |n: usize| {
            let mut id = [0; 32];
            id[..8].copy_from_slice(&n.to_le_bytes());
            (ObjectId::from_bytes(id), Holding::All)
        };
        let mut last = Ok(());
        for n in 0..OBJECTS_MAX / 500 + 1 {
            let objects = (n * 500..(n + 1) * 500).map(entry).collect();
            let from = (n > 0).then_some(1);
            let body = HaveBody { root: false, last: false, objects };
            let have = Have { home: home(), epoch: 1, from, to: 1, body };
            last = ledger.apply(have, |_| None).map(drop);
        }
        assert_eq!(last, Err(LedgerError::TooMany));
    }
}
