//! What is to come from a registry: blocks in the order of their layer's stream.
//!
//! A registry gives bytes of a compressed stream, which can be entered at some
//! points only. So neighbouring blocks become one run, and a run reads over what
//! lies between rather than entering anew.

use std::collections::BTreeSet;
use std::ops::Range;

use super::model::{Class, Place};
use super::table::{Ref, Table};

/// Stream bytes nobody wants that a run reads over rather than ending there: a
/// request costs a round trip, in which a 100 Mbit/s line at 20 ms carries this much.
pub const GAP: u64 = 256 << 10;
/// Longest run for readers, in stream bytes.
pub const RUN_READER: u64 = 8 << 20;
/// Longest run of bulk, in stream bytes: 16 spans of 4 MiB.
pub const RUN_BULK: u64 = 64 << 20;
/// No run goes farther than this beyond what is wanted, in stream bytes.
const REACH_MAX: u64 = 4 << 20;
/// A run for no reader that waits, and shorter than this, is not begun while
/// another one brings bytes of the same layer: it would enter the stream anew for
/// little, and more neighbours may be wanted by then.
pub const RUN_MIN: u64 = 4 << 20;
/// How far ahead of a bulk run's position a block that became urgent may lie and
/// still wait for it.
pub const DUPLICATE_DISTANCE: u64 = 2 << 20;

/// Blocks planned to come from a registry, by urgency and by place.
#[derive(Default)]
pub(super) struct RegistryQueue {
    by_class: BTreeSet<(Class, u64, Ref)>,
    by_place: BTreeSet<(u32, u64, Ref)>,
    /// Nothing has changed since there was no run to begin.
    settled: bool,
}

/// A stretch to be asked for.
pub(super) struct Stretch {
    pub(super) home: u32,
    pub(super) stream: Range<u64>,
    pub(super) class: Class,
    pub(super) blocks: Vec<Ref>,
}

/// How a layer stands with its registry.
#[derive(Clone, Copy, Debug)]
pub(super) struct HomeIs {
    /// It may be asked now.
    pub(super) ready: bool,
    /// It can only be read from its start.
    pub(super) whole: bool,
    /// A run of it is in flight.
    pub(super) flying: bool,
}

impl RegistryQueue {
    /// Takes in a block that is planned for the registry.
    pub(super) fn insert(&mut self, table: &Table, r: Ref) {
        if let Some((class, place)) = keys(table, r) {
            self.by_class.insert(class);
            self.by_place.insert(place);
            self.settled = false;
        }
    }

    /// Takes a block out, before its class changes or it leaves the table.
    pub(super) fn remove(&mut self, table: &Table, r: Ref) {
        if let Some((class, place)) = keys(table, r) {
            self.by_class.remove(&class);
            self.by_place.remove(&place);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.by_class.len()
    }

    /// Something else changed on which the next run depends: one has ended, a
    /// layer may be asked for again.
    pub(super) fn unsettle(&mut self) {
        self.settled = false;
    }

    /// No run can begin until something changes.
    pub(super) fn settle(&mut self) {
        self.settled = true;
    }

    pub(super) fn is_settled(&self) -> bool {
        self.settled
    }

    /// The next stretch, if there is one of class `least` or more urgent among
    /// the layers that are `ready`. Its blocks stay in the queue until taken out.
    /// `shared`: there are neighbours that may want the same. `coming`: a run in
    /// flight is about to pass the place, or will end in the same span before it.
    pub(super) fn next(
        &self,
        table: &Table,
        least: Class,
        shared: bool,
        home_is: impl Fn(u32) -> HomeIs,
        coming: impl Fn(u32, &Place, Class) -> bool,
    ) -> Option<Stretch> {
        // Layers from which nothing more is taken now than what is urgent.
        let mut waiting: Vec<u32> = Vec::new();
        for (class, _, first) in self.by_class.iter().take_while(|(class, ..)| *class <= least) {
            let Some(block) = table.get(*first) else { continue };
            let home = block.home;
            let is = home_is(home);
            if !is.ready || (is.whole && is.flying) {
                continue;
            }
            if is.whole {
                let all = self.by_place.range((home, 0, Ref::MIN)..(home + 1, 0, Ref::MIN));
                let blocks = all.map(|(.., r)| *r).collect();
                return Some(Stretch { home, stream: 0..u64::MAX, class: *class, blocks });
            }
            if *class > Class::Urgent && waiting.contains(&home) {
                continue;
            }
            if block.place.as_ref().is_some_and(|place| coming(home, place, *class)) {
                continue;
            }
            let coming = |place: &Place| coming(home, place, *class);
            let (blocks, mut stream) = self.gather(table, *first, *class, shared, coming)?;
            let short = stream.end - stream.start < RUN_MIN;
            if shared && *class > Class::Urgent && short && is.flying {
                waiting.push(home);
                continue;
            }
            if shared {
                stream.end = reach(table, &blocks).max(stream.end);
            }
            return Some(Stretch { home, stream, class: *class, blocks });
        }
        None
    }

    /// Collects the blocks around `first` that one run shall bring, in order of
    /// the stream, and the stretch they cover.
    fn gather(
        &self,
        table: &Table,
        first: Ref,
        class: Class,
        shared: bool,
        coming: impl Fn(&Place) -> bool,
    ) -> Option<(Vec<Ref>, Range<u64>)> {
        let limit = if class.is_reader() { RUN_READER } else { RUN_BULK };
        let block = table.get(first)?;
        let place = block.place.as_ref()?;
        let here = (block.home, place.stream.start, first);
        let mut stream = place.stream.clone();
        // The runs of a LAN are shared out whole; bulk keeps to their bounds.
        let apart = |other: &Place| shared && !class.is_reader() && other.run != place.run;
        let mut after = vec![first];
        let mut last = place.stream.start;
        // Where the run can end so that what follows need not read a part of the
        // same span again: number of blocks, and end.
        let mut seam = None;
        for (home, _, r) in self.by_place.range(here..).skip(1) {
            let Some(next) = table.get(*r).and_then(|b| b.place.as_ref()) else { continue };
            // Entering anew would read from `entry` on anyway.
            let near = next.stream.start <= stream.end + GAP || next.entry < stream.end;
            if *home != block.home || !near || apart(next) || coming(next) {
                break;
            }
            if next.entry > last {
                seam = Some((after.len(), stream.end));
            }
            let end = stream.end.max(next.stream.end);
            if end - stream.start > limit {
                if let Some((count, end)) = seam {
                    after.truncate(count);
                    stream.end = end;
                }
                break;
            }
            stream.end = end;
            last = next.stream.start;
            after.push(*r);
        }
        let mut before = Vec::new();
        for (home, start, r) in self.by_place.range(..here).rev() {
            let Some(previous) = table.get(*r).and_then(|b| b.place.as_ref()) else { continue };
            // What lies between the entry and the first byte is decoded anyway.
            let near = previous.stream.end + GAP >= stream.start || *start >= place.entry;
            let too_long = stream.end.saturating_sub(*start) > limit;
            if *home != block.home || !near || too_long || apart(previous) || coming(previous) {
                break;
            }
            stream.start = *start;
            stream.end = stream.end.max(previous.stream.end);
            before.push(*r);
        }
        let blocks = before.into_iter().rev().chain(after).collect();
        Some((blocks, stream))
    }
}

/// How far a run goes beyond its last block: readahead goes on to where the stream
/// can be entered next, for the rest of a span costs as much again as all of it if
/// a neighbour asks for it later. What is urgent costs no more than it must, and
/// bulk is a whole run of spans in any case.
fn reach(table: &Table, blocks: &[Ref]) -> u64 {
    let last = blocks.last().and_then(|r| table.get(*r));
    let last = last.filter(|b| b.class == Class::Sequential).and_then(|b| b.place.as_ref());
    last.map_or(0, |place| place.next.min(place.stream.end + REACH_MAX))
}

type Keys = ((Class, u64, Ref), (u32, u64, Ref));

fn keys(table: &Table, r: Ref) -> Option<Keys> {
    let block = table.get(r)?;
    let start = block.place.as_ref()?.stream.start;
    // Bulk in the order of the stream, readers in the order of asking.
    let order = if block.class.is_reader() { block.seq } else { start };
    Some(((block.class, order, r), (block.home, start, r)))
}
