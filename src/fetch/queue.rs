//! Which blocks are wanted, and what to ask of a source next. Pure.
//!
//! Invariants:
//! - a wanted block is one want, however many readers wait for it (single flight);
//! - a want nobody is interested in any more is not started;
//! - runs follow the order of the layer's stream, because that is the order in
//!   which a registry can give bytes; neighbouring wants become one run;
//! - an urgent want never waits behind more than [`DUPLICATE_DISTANCE`] bytes of
//!   a run of a lower class: it is then asked for once more.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

use crate::types::{Digest, ObjectId};

/// Most wants at a time. Urgent wants are always taken: readers bound them.
pub(super) const WANTS_MAX: usize = 1 << 16;
/// Stream bytes nobody wants that a run reads over rather than ending there: a
/// request costs a round trip, in which a 100 Mbit/s line at 20 ms carries this much.
pub(super) const GAP: u64 = 256 << 10;
/// Longest run of urgent and sequential wants, in stream bytes.
pub(super) const RUN_READER: u64 = 8 << 20;
/// Longest run of bulk wants, in stream bytes: 16 spans of 4 MiB.
pub(super) const RUN_BULK: u64 = 64 << 20;
/// How far ahead of a bulk run's position an urgent want may lie and still wait
/// for it.
pub(super) const DUPLICATE_DISTANCE: u64 = 2 << 20;

/// How urgent a want is; the order is the order of service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// A reader waits.
    Urgent,
    /// Readahead behind a sequential reader.
    Sequential,
    /// Where readers are likely to look first: headers, tables, ends of files.
    AccessPoint,
    /// Everything else that shall be here in the end.
    Background,
}

/// A block's place in its object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct BlockKey {
    /// The object.
    pub object: ObjectId,
    /// Number of the block in the object.
    pub index: u32,
}

/// Where a block's bytes lie in the uncompressed stream of a layer blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The blob.
    pub blob: Digest,
    /// From the block's first byte to its last, what lies between included.
    pub stream: Range<u64>,
    /// The nearest point at or before the first byte at which the stream can be
    /// entered.
    pub entry: u64,
}

/// Names whoever is interested in wants: one reader's request, or one stream's
/// readahead. Made by the caller, unique.
pub(super) type InterestId = u64;

/// Names a run.
pub(super) type RunId = u64;

/// A stretch of a layer's stream to be fetched and decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// Its name.
    pub id: RunId,
    /// The blob.
    pub blob: Digest,
    /// The stretch of the stream.
    pub stream: Range<u64>,
    /// The most urgent class in it.
    pub class: Class,
}

/// How many runs may be in flight.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Runs of all classes.
    pub runs: usize,
    /// Of these, runs that are not urgent.
    pub bulk: usize,
}

/// What [`WantQueue::add`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Added {
    /// A new want.
    New,
    /// Somebody wanted the block already.
    Joined,
    /// The queue is full; a want that is not urgent was turned away.
    Full,
}

struct Want<W> {
    place: Place,
    class: Class,
    /// Set while the want stands in the queue.
    queued: Option<u64>,
    /// Set while a run will bring it.
    run: Option<RunId>,
    interests: Vec<Interest<W>>,
}

struct Interest<W> {
    id: InterestId,
    class: Class,
    waiter: Option<W>,
}

struct Flight {
    class: Class,
    blob: Digest,
    /// How far the run has been decoded.
    position: u64,
    /// End of the run in the stream.
    end: u64,
    keys: Vec<BlockKey>,
}

/// The wants of a node. `W` is what is handed back when a block arrives.
pub(super) struct WantQueue<W> {
    wants: HashMap<BlockKey, Want<W>>,
    by_class: BTreeMap<(Class, u64), BlockKey>,
    by_place: BTreeSet<(Digest, u64, BlockKey)>,
    by_interest: HashMap<InterestId, Vec<BlockKey>>,
    flights: HashMap<RunId, Flight>,
    next: u64,
}

impl<W> Default for WantQueue<W> {
    fn default() -> Self {
        Self {
            wants: HashMap::new(),
            by_class: BTreeMap::new(),
            by_place: BTreeSet::new(),
            by_interest: HashMap::new(),
            flights: HashMap::new(),
            next: 0,
        }
    }
}

impl<W> WantQueue<W> {
    /// Wants a block for `interest`, which gets `waiter` back on arrival.
    pub(super) fn add(
        &mut self,
        key: BlockKey,
        place: Place,
        class: Class,
        interest: InterestId,
        waiter: Option<W>,
    ) -> Added {
        let interest = Interest { id: interest, class, waiter };
        if let Some(want) = self.wants.get_mut(&key) {
            self.by_interest.entry(interest.id).or_default().push(key);
            want.interests.push(interest);
            if class < want.class {
                self.raise(key, class);
            }
            return Added::Joined;
        }
        if class > Class::Urgent && self.wants.len() >= WANTS_MAX {
            return Added::Full;
        }
        self.by_interest.entry(interest.id).or_default().push(key);
        let interests = vec![interest];
        self.wants.insert(key, Want { place, class, queued: None, run: None, interests });
        self.enqueue(key);
        Added::New
    }

    /// The interest is over: a reader gave up or a stream was closed. Wants that
    /// nobody else is interested in and that no run brings are dropped.
    pub(super) fn withdraw(&mut self, interest: InterestId) {
        for key in self.by_interest.remove(&interest).unwrap_or_default() {
            let Some(want) = self.wants.get_mut(&key) else {
                continue;
            };
            want.interests.retain(|i| i.id != interest);
            match want.interests.iter().map(|i| i.class).min() {
                Some(class) if want.queued.is_some() && class != want.class => {
                    self.dequeue(key);
                    if let Some(want) = self.wants.get_mut(&key) {
                        want.class = class;
                    }
                    self.enqueue(key);
                }
                Some(_) => {}
                None => {
                    self.dequeue(key);
                    if self.wants.get(&key).is_some_and(|w| w.run.is_none()) {
                        self.wants.remove(&key);
                    }
                }
            }
        }
    }

    /// The next run to start, if the limits allow one. `ready` says whether a
    /// blob may be asked for now; `whole` whether it can only be read from the
    /// start, as one stream: its run is all of it, and there is one at a time.
    pub(super) fn next(
        &mut self,
        limits: Limits,
        ready: impl Fn(&Digest) -> bool,
        whole: impl Fn(&Digest) -> bool,
    ) -> Option<Run> {
        if self.flights.len() >= limits.runs {
            return None;
        }
        let bulk = self.flights.values().filter(|f| f.class > Class::Urgent).count();
        let (class, first) = self
            .by_class
            .iter()
            .take_while(|((class, _), _)| *class == Class::Urgent || bulk < limits.bulk)
            .find(|((class, _), key)| {
                let place = &self.wants[key].place;
                let flying = || whole(&place.blob) && self.is_flying(&place.blob);
                ready(&place.blob) && !flying() && !self.is_coming(place, *class)
            })
            .map(|((class, _), key)| (*class, *key))?;
        let blob = self.wants[&first].place.blob;
        let limit = if class <= Class::Sequential { RUN_READER } else { RUN_BULK };
        let (keys, mut stream) = self.gather(first, class, limit);
        if whole(&blob) {
            stream = 0..u64::MAX;
        }
        let id = self.ticket();
        for key in &keys {
            self.dequeue(*key);
            if let Some(want) = self.wants.get_mut(key) {
                want.run = Some(id);
            }
        }
        let (position, end) = (stream.start, stream.end);
        self.flights.insert(id, Flight { class, blob, position, end, keys });
        Some(Run { id, blob, stream, class })
    }

    /// A run has been decoded up to `position` of its stream.
    pub(super) fn progress(&mut self, run: RunId, position: u64) {
        if let Some(flight) = self.flights.get_mut(&run) {
            flight.position = flight.position.max(position);
        }
    }

    /// A block is here, whoever brought it. Gives all who wait for it.
    pub(super) fn delivered(&mut self, key: &BlockKey) -> Vec<W> {
        self.dequeue(*key);
        let Some(want) = self.wants.remove(key) else {
            return Vec::new();
        };
        self.forget_interests(*key, &want.interests);
        want.interests.into_iter().filter_map(|i| i.waiter).collect()
    }

    /// A run has ended. What it should have brought and did not is wanted again;
    /// with `give_up` it fails instead, and all who wait are given back.
    pub(super) fn finished(&mut self, run: RunId, give_up: bool) -> Vec<W> {
        let mut failed = Vec::new();
        for key in self.flights.remove(&run).map(|f| f.keys).unwrap_or_default() {
            let Some(want) = self.wants.get_mut(&key) else {
                continue;
            };
            if want.run == Some(run) {
                want.run = None;
            }
            if want.interests.is_empty() {
                self.dequeue(key);
                self.wants.remove(&key);
            } else if give_up {
                failed.extend(self.delivered(&key));
            } else if want.queued.is_none() && want.run.is_none() {
                self.enqueue(key);
            }
        }
        failed
    }

    /// Whether the run still brings anything that somebody wants.
    pub(super) fn is_wanted(&self, run: RunId) -> bool {
        self.flights.get(&run).is_some_and(|flight| {
            flight.keys.iter().any(|key| {
                self.wants.get(key).is_some_and(|w| w.run == Some(run) && !w.interests.is_empty())
            })
        })
    }

    /// Whether anybody waits for the block itself.
    pub(super) fn is_awaited(&self, key: &BlockKey) -> bool {
        self.wants.contains_key(key)
    }

    fn is_flying(&self, blob: &Digest) -> bool {
        self.flights.values().any(|f| f.blob == *blob)
    }

    /// Whether a run in flight is about to pass the place, or will end in the
    /// same span before it: a run of its own would read the same bytes again.
    fn is_coming(&self, place: &Place, class: Class) -> bool {
        self.flights.values().any(|flight| {
            // A run reads somewhat beyond its end.
            let ahead = flight.position <= place.stream.start || flight.end <= place.stream.start;
            let passes =
                flight.blob == place.blob && ahead && place.entry < flight.end.max(flight.position);
            let until = place.stream.end.min(flight.end).saturating_sub(flight.position);
            let patience = match flight.class {
                Class::Urgent | Class::Sequential => RUN_READER,
                bulk if bulk <= class => RUN_BULK,
                _ => DUPLICATE_DISTANCE,
            };
            passes && until <= patience
        })
    }

    /// A want became more urgent. If a run of a lower class will bring it only
    /// much later, it goes back into the queue besides.
    fn raise(&mut self, key: BlockKey, class: Class) {
        let was_queued = self.wants[&key].queued.is_some();
        self.dequeue(key);
        let Some(want) = self.wants.get_mut(&key) else {
            return;
        };
        want.class = class;
        let behind = want.run.and_then(|run| self.flights.get(&run)).is_some_and(|flight| {
            let distance = want.place.stream.end.saturating_sub(flight.position);
            flight.class > class && distance > DUPLICATE_DISTANCE
        });
        if was_queued || (class == Class::Urgent && behind) {
            self.enqueue(key);
        }
    }

    /// Collects the queued wants around `first` in stream order that one run
    /// shall bring, and the stretch they cover.
    fn gather(&self, first: BlockKey, class: Class, limit: u64) -> (Vec<BlockKey>, Range<u64>) {
        let place = &self.wants[&first].place;
        let mut stream = place.stream.clone();
        let mut keys = vec![first];
        let here = (place.blob, place.stream.start, first);
        // Where the run can end so that what follows need not read a part of the
        // same span again: number of keys, and end.
        let mut seam = None;
        for (blob, _, key) in self.by_place.range(here..).skip(1) {
            let next = &self.wants[key].place;
            // Entering anew would read from `entry` on anyway.
            let near = next.stream.start <= stream.end + GAP || next.entry < stream.end;
            if *blob != place.blob || !near || self.is_coming(next, class) {
                break;
            }
            let last = keys.last().map_or(0, |last| self.wants[last].place.stream.start);
            if next.entry > last {
                seam = Some((keys.len(), stream.end));
            }
            let end = stream.end.max(next.stream.end);
            if end - stream.start > limit {
                if let Some((count, end)) = seam {
                    keys.truncate(count);
                    stream.end = end;
                }
                break;
            }
            stream.end = end;
            keys.push(*key);
        }
        // What lies between the entry and the first byte is decoded anyway.
        for (blob, start, key) in self.by_place.range(..here).rev() {
            let before = &self.wants[key].place;
            let near = before.stream.end + GAP >= stream.start || *start >= place.entry;
            let too_long = stream.end - *start > limit;
            if *blob != place.blob || !near || too_long || self.is_coming(before, class) {
                break;
            }
            stream.start = *start;
            stream.end = stream.end.max(before.stream.end);
            keys.push(*key);
        }
        (keys, stream)
    }

    fn enqueue(&mut self, key: BlockKey) {
        let seq = self.ticket();
        if let Some(want) = self.wants.get_mut(&key) {
            want.queued = Some(seq);
            self.by_class.insert((want.class, seq), key);
            self.by_place.insert((want.place.blob, want.place.stream.start, key));
        }
    }

    fn dequeue(&mut self, key: BlockKey) {
        if let Some(want) = self.wants.get_mut(&key)
            && let Some(seq) = want.queued.take()
        {
            self.by_class.remove(&(want.class, seq));
            self.by_place.remove(&(want.place.blob, want.place.stream.start, key));
        }
    }

    fn forget_interests(&mut self, key: BlockKey, interests: &[Interest<W>]) {
        for interest in interests {
            if let Some(keys) = self.by_interest.get_mut(&interest.id) {
                keys.retain(|k| *k != key);
                if keys.is_empty() {
                    self.by_interest.remove(&interest.id);
                }
            }
        }
    }

    fn ticket(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: Limits = Limits { runs: 6, bulk: 4 };
    const BLOCK: u64 = 256 << 10;

    fn key(index: u32) -> BlockKey {
        BlockKey { object: ObjectId::from_bytes([7; 32]), index }
    }

    /// Block `index` of a layer that can be entered every 4 MiB.
    fn place(index: u32) -> Place {
        let start = u64::from(index) * BLOCK;
        let entry = start & !((4 << 20) - 1);
        Place { blob: Digest::of(b"layer"), stream: start..start + BLOCK, entry }
    }

    fn next(queue: &mut WantQueue<u32>) -> Option<Run> {
        queue.next(LIMITS, |_| true, |_| false)
    }

    fn add(queue: &mut WantQueue<u32>, index: u32, class: Class, interest: u64) -> Added {
        queue.add(key(index), place(index), class, interest, Some(index))
    }

    #[test]
    fn many_readers_of_one_block_are_one_want() {
        let mut queue = WantQueue::default();
        assert_eq!(add(&mut queue, 3, Class::Urgent, 1), Added::New);
        assert_eq!(add(&mut queue, 3, Class::Urgent, 2), Added::Joined);
        assert!(next(&mut queue).is_some());
        assert_eq!(next(&mut queue), None);
        assert_eq!(queue.delivered(&key(3)), vec![3, 3]);
        assert!(queue.wants.is_empty());
    }

    #[test]
    fn urgent_goes_first_and_neighbours_become_one_run() {
        let mut queue = WantQueue::default();
        for index in 100..200 {
            add(&mut queue, index, Class::Background, 1);
        }
        add(&mut queue, 5, Class::Urgent, 2);
        let run = next(&mut queue).expect("urgent");
        assert_eq!((run.class, run.stream), (Class::Urgent, place(5).stream));
        let run = next(&mut queue).expect("bulk");
        assert_eq!(run.stream, place(100).stream.start..place(199).stream.end);
    }

    #[test]
    fn bulk_leaves_room_for_urgent() {
        let mut queue = WantQueue::default();
        for n in 0..8 {
            add(&mut queue, n * 1000, Class::Background, 1);
        }
        for _ in 0..LIMITS.bulk {
            assert!(next(&mut queue).is_some());
        }
        assert_eq!(next(&mut queue), None);
        add(&mut queue, 77, Class::Urgent, 2);
        assert!(next(&mut queue).is_some());
    }

    #[test]
    fn an_urgent_want_far_ahead_in_a_bulk_run_is_asked_for_once_more() {
        let mut queue = WantQueue::default();
        for index in 0..256 {
            add(&mut queue, index, Class::Background, 1);
        }
        let bulk = next(&mut queue).expect("bulk");
        add(&mut queue, 2, Class::Urgent, 2);
        assert_eq!(next(&mut queue), None, "near: waits for the run");
        add(&mut queue, 200, Class::Urgent, 3);
        let urgent = next(&mut queue).expect("far: asked for once more");
        assert_eq!(urgent.stream, place(200).stream);
        assert_eq!(queue.delivered(&key(200)), vec![200, 200]);
        assert!(queue.finished(urgent.id, false).is_empty());
        assert!(queue.is_wanted(bulk.id));
    }

    #[test]
    fn a_withdrawn_want_is_not_started() {
        let mut queue = WantQueue::default();
        add(&mut queue, 1, Class::Sequential, 9);
        queue.withdraw(9);
        assert_eq!(next(&mut queue), None);
        assert!(queue.wants.is_empty());
    }

    #[test]
    fn a_stream_that_must_be_read_from_its_start_has_one_run_at_a_time() {
        let mut queue = WantQueue::default();
        add(&mut queue, 50, Class::Urgent, 1);
        let run = queue.next(LIMITS, |_| true, |_| true).expect("run");
        assert_eq!(run.stream, 0..u64::MAX);
        add(&mut queue, 900, Class::Urgent, 2);
        assert_eq!(queue.next(LIMITS, |_| true, |_| true), None);
        queue.delivered(&key(50));
        queue.finished(run.id, false);
        assert!(queue.next(LIMITS, |_| true, |_| true).is_some());
    }

    #[derive(Clone, Debug)]
    enum Step {
        Add(u32, Class, u64),
        Withdraw(u64),
        Start,
        Deliver(usize),
        Finish(usize, bool),
    }

    fn step() -> impl Strategy<Value = Step> {
        let class = prop_oneof![
            Just(Class::Urgent),
            Just(Class::Sequential),
            Just(Class::AccessPoint),
            Just(Class::Background)
        ];
        prop_oneof![
            4 => (0u32..300, class, 0u64..10).prop_map(|(b, c, i)| Step::Add(b, c, i)),
            1 => (0u64..10).prop_map(Step::Withdraw),
            3 => Just(Step::Start),
            3 => (0usize..64).prop_map(Step::Deliver),
            2 => (0usize..8, any::<bool>()).prop_map(|(r, g)| Step::Finish(r, g)),
        ]
    }

    proptest! {
        /// After any steps, serving the queue to the end answers every waiter
        /// exactly once, and nothing is left.
        #[test]
        fn every_want_ends(steps in prop::collection::vec(step(), 0..200)) {
            let mut queue = WantQueue::default();
            let mut waiting: HashMap<u32, (u64, u32)> = HashMap::new();
            let mut runs: Vec<Run> = Vec::new();
            let mut ticket = 0;
            let answer = |waiting: &mut HashMap<u32, (u64, u32)>, tickets: Vec<u32>| {
                for t in tickets {
                    assert!(waiting.remove(&t).is_some(), "answered twice");
                }
            };
            for step in steps {
                match step {
                    Step::Add(block, class, interest) => {
                        ticket += 1;
                        queue.add(key(block), place(block), class, interest, Some(ticket));
                        waiting.insert(ticket, (interest, block));
                    }
                    Step::Withdraw(interest) => {
                        queue.withdraw(interest);
                        waiting.retain(|_, (i, _)| *i != interest);
                    }
                    Step::Start => {
                        let run = queue.next(LIMITS, |_| true, |_| false);
                        prop_assert!(runs.len() + usize::from(run.is_some()) <= LIMITS.runs);
                        runs.extend(run);
                    }
                    Step::Deliver(n) => if let Some(run) = runs.first() {
                        let block = (run.stream.start / BLOCK) as u32 + n as u32;
                        let answered = queue.delivered(&key(block));
                        answer(&mut waiting, answered);
                    },
                    Step::Finish(n, give_up) => if n < runs.len() {
                        let run = runs.swap_remove(n);
                        let failed = queue.finished(run.id, give_up);
                        answer(&mut waiting, failed);
                    },
                }
            }
            loop {
                while let Some(run) = queue.next(LIMITS, |_| true, |_| false) {
                    runs.push(run);
                }
                let Some(run) = runs.pop() else { break };
                for block in run.stream.start / BLOCK..run.stream.end.div_ceil(BLOCK) {
                    let answered = queue.delivered(&key(block as u32));
                    answer(&mut waiting, answered);
                }
                let failed = queue.finished(run.id, false);
                answer(&mut waiting, failed);
            }
            prop_assert!(waiting.is_empty(), "{waiting:?}");
            prop_assert!(queue.wants.is_empty());
            prop_assert!(queue.by_interest.is_empty() && queue.by_place.is_empty());
        }
    }
}
