//! What must hold, seen from outside the scheduler.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Range, RangeBounds};
use std::time::Duration;

use peersync::fetch::schedule::{BlockKey, Class, Failure, RequestId, TunnelId};
use peersync::types::ObjectId;

/// What was wanted, by whom, and what became of it.
#[derive(Default)]
pub struct Checks {
    wants: BTreeMap<(usize, BlockKey), Vec<u64>>,
    open: BTreeMap<usize, usize>,
    /// Blocks that readers wait for: since when, and by tunnel, the bulk
    /// requests that were sent before it.
    urgent: BTreeMap<(usize, BlockKey), (Duration, BTreeMap<TunnelId, u32>)>,
    /// Sources that bring a block.
    asked: BTreeMap<(usize, BlockKey), Vec<Ask>>,
    /// Blocks that a registry's stream passes.
    pub runs: BTreeMap<(usize, RequestId), (Range<u32>, Duration)>,
    /// Wants that ended with an error.
    pub failures: Vec<(usize, BlockKey, Failure)>,
    /// Blocks that came more than once, or without being wanted, by node.
    pub duplicates: BTreeMap<usize, u32>,
    /// Bytes sent, bulk and urgent.
    pub sent: [u64; 2],
}

/// A block, or part of it, asked of a source.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    pub source: usize,
    pub request: RequestId,
    pub at: Duration,
    pub offset: u32,
    pub part: bool,
    /// Bytes of it may still come.
    pub live: bool,
}

impl Checks {
    pub fn wanted(
        &mut self,
        node: usize,
        key: BlockKey,
        interest: u64,
        class: Class,
        now: Duration,
    ) {
        let interests = self.wants.entry((node, key)).or_default();
        if interests.is_empty() {
            *self.open.entry(node).or_default() += 1;
        }
        interests.push(interest);
        if class == Class::Urgent {
            self.urgent.entry((node, key)).or_insert((now, BTreeMap::new()));
        }
    }

    pub fn withdrawn(&mut self, node: usize, interest: u64) {
        let keys: Vec<_> = self.wants.range(of(node)).map(|(key, _)| *key).collect();
        for key in keys {
            if let Some(interests) = self.wants.get_mut(&key) {
                interests.retain(|i| *i != interest);
                if interests.is_empty() {
                    self.close(key);
                }
            }
        }
    }

    fn close(&mut self, key: (usize, BlockKey)) -> bool {
        self.urgent.remove(&key);
        self.asked.remove(&key);
        let was = self.wants.remove(&key).is_some();
        if was && let Some(open) = self.open.get_mut(&key.0) {
            *open -= 1;
        }
        was
    }

    pub fn arrived(&mut self, node: usize, key: &BlockKey) {
        if !self.close((node, *key)) {
            *self.duplicates.entry(node).or_default() += 1;
        }
    }

    pub fn failed(&mut self, node: usize, key: &BlockKey, why: Failure) {
        if self.close((node, *key)) {
            self.failures.push((node, *key, why));
        }
    }

    pub fn sent(&mut self, urgent: bool, bytes: u64) {
        self.sent[usize::from(urgent)] += bytes;
    }

    /// Wants of a node that have not ended.
    pub fn open_wants(&self, node: usize) -> usize {
        self.open.get(&node).copied().unwrap_or(0)
    }

    /// A source is asked for a block, or for what begins at `offset` of it.
    /// `patience` is the time that allows one duplicate.
    pub fn asked(
        &mut self,
        node: usize,
        key: BlockKey,
        number: u32,
        ask: Ask,
        patience: Duration,
    ) -> Result<(), String> {
        let asked = self.asked.entry((node, key)).or_default();
        if asked.iter().any(|a| a.live && (a.source, a.offset) == (ask.source, ask.offset)) {
            return Err(format!("{key:?} asked twice of {}", ask.source));
        }
        let now = ask.at;
        asked.push(ask);
        let runs = self.runs.range((node, RequestId::MIN)..=(node, RequestId::MAX));
        let passing = runs.filter(|(_, (blocks, _))| blocks.contains(&number));
        let first = asked.iter().map(|a| a.at).chain(passing.map(|(_, (_, at))| *at));
        let first = first.min().unwrap_or(now);
        let sources: BTreeSet<usize> = asked.iter().filter(|a| a.live).map(|a| a.source).collect();
        let allowed = ((now - first).as_secs_f64() / patience.as_secs_f64() * 1.000_001) as usize;
        if sources.len() - 1 > allowed {
            return Err(format!("{key:?}: {} duplicates, {allowed} allowed", sources.len() - 1));
        }
        Ok(())
    }

    /// A node is dead: what it wanted is nobody's concern.
    pub fn forget(&mut self, node: usize) {
        self.wants.retain(|(n, _), _| *n != node);
        self.urgent.retain(|(n, _), _| *n != node);
        self.asked.retain(|(n, _), _| *n != node);
        self.runs.retain(|(n, _), _| *n != node);
        self.open.remove(&node);
    }

    /// A request has ended. What was done in part is still being brought.
    pub fn ended(&mut self, node: usize, request: RequestId, in_part: bool) {
        self.runs.remove(&(node, request));
        for (_, asked) in self.asked.range_mut(of(node)) {
            asked.retain(|a| a.request != request || (in_part && a.part));
            asked.iter_mut().filter(|a| a.request == request).for_each(|a| a.live = false);
        }
    }

    /// Nothing that the source was asked for comes any more.
    pub fn source_gone(&mut self, node: usize, source: usize) {
        for (_, asked) in self.asked.range_mut(of(node)) {
            asked.retain(|a| a.source != source);
        }
    }

    /// Bulk was asked for on a tunnel. An urgent block that could have been
    /// asked for there, and was not, has been overtaken: once may happen.
    pub fn bulk_issued(
        &mut self,
        node: usize,
        tunnel: TunnelId,
        now: Duration,
        waits: impl Fn(&BlockKey) -> bool,
    ) -> Result<(), String> {
        for ((_, key), (since, overtaken)) in self.urgent.range_mut(of(node)) {
            if *since >= now || !waits(key) {
                continue;
            }
            let times = overtaken.entry(tunnel).or_default();
            *times += 1;
            if *times > 1 {
                return Err(format!("urgent {key:?} waits behind {times} bulk requests"));
            }
        }
        Ok(())
    }
}

/// All that is a node's in a table.
fn of(node: usize) -> impl RangeBounds<(usize, BlockKey)> {
    let [first, last] = [0, 0xff].map(|byte| ObjectId::from_bytes([byte; 32]));
    (node, BlockKey { object: first, index: 0 })
        ..=(node, BlockKey { object: last, index: u32::MAX })
}
