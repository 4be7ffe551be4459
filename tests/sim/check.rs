//! What must hold, seen from outside the scheduler.

use std::collections::BTreeMap;
use std::time::Duration;

use peersync::fetch::schedule::{BlockKey, Class, Failure, TunnelId};

/// What was wanted, by whom, and what became of it.
#[derive(Default)]
pub struct Checks {
    wants: BTreeMap<(usize, BlockKey), Want>,
    /// Wants that ended with an error.
    pub failures: Vec<(usize, BlockKey, Failure)>,
    /// Blocks that came more than once, or without being wanted, by node.
    pub duplicates: BTreeMap<usize, u32>,
    /// Bytes sent, bulk and urgent.
    pub sent: [u64; 2],
}

struct Want {
    interests: Vec<u64>,
    urgent_since: Option<Duration>,
    /// Bulk requests that were sent before it, by tunnel.
    overtaken: BTreeMap<TunnelId, u32>,
}

impl Checks {
    pub fn wanted(&mut self, node: usize, key: BlockKey, interest: u64, class: Class, now: Duration) {
        let want = self.wants.entry((node, key)).or_insert(Want {
            interests: Vec::new(),
            urgent_since: None,
            overtaken: BTreeMap::new(),
        });
        want.interests.push(interest);
        if class == Class::Urgent {
            want.urgent_since.get_or_insert(now);
        }
    }

    pub fn withdrawn(&mut self, node: usize, interest: u64) {
        self.wants.retain(|(n, _), want| {
            if *n == node {
                want.interests.retain(|i| *i != interest);
            }
            !want.interests.is_empty()
        });
    }

    pub fn arrived(&mut self, node: usize, key: &BlockKey) {
        if self.wants.remove(&(node, *key)).is_none() {
            *self.duplicates.entry(node).or_default() += 1;
        }
    }

    pub fn failed(&mut self, node: usize, key: &BlockKey, why: Failure) {
        if self.wants.remove(&(node, *key)).is_some() {
            self.failures.push((node, *key, why));
        }
    }

    pub fn sent(&mut self, _tunnel: TunnelId, urgent: bool, bytes: u64) {
        self.sent[usize::from(urgent)] += bytes;
    }

    /// Wants of living nodes that have not ended.
    pub fn open_wants(&self, alive: impl Fn(usize) -> bool) -> usize {
        self.wants.keys().filter(|(node, _)| alive(*node)).count()
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
        for ((n, key), want) in &mut self.wants {
            let urgent = want.urgent_since.is_some_and(|since| since < now);
            if *n != node || !urgent || !waits(key) {
                continue;
            }
            let times = want.overtaken.entry(tunnel).or_default();
            *times += 1;
            if *times > 1 {
                return Err(format!("urgent {key:?} waits behind {times} bulk requests"));
            }
        }
        Ok(())
    }
}
