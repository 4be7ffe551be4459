//! Whose turn it is to be served: by class, by peer, and within the limits. Pure.
//!
//! Invariants:
//! - urgent grants go before bulk ones, those before background ones;
//! - within a class, peers take turns by bytes (deficit round robin; Shreedhar and
//!   Varghese 1995): over any time in which two peers wait, what they get differs
//!   by at most one quantum and one block;
//! - over any time `t` at most `rate * t + burst` and one block are granted.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use crate::types::PeerId;
use crate::wire::Class;

/// What a peer may take in one turn, in bytes: no less than the usual block, so
/// that a turn is seldom in vain.
const QUANTUM: u64 = 256 << 10;
/// A bucket holds as much as flows in this time, and at least [`BURST_MIN`].
const BURST: Duration = Duration::from_millis(50);
const BURST_MIN: f64 = 64.0 * 1024.0;
/// Grants that are out at a time: readers of the disk. Urgent ones don't count,
/// and are bounded by one for each tunnel.
const OUT_MAX: usize = 8;

/// Bytes per second; `None`: no limit.
pub type Rate = Option<u64>;

/// Limits of what is sent to peers, in bytes per second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UploadLimits {
    /// All of it.
    pub total: Rate,
    /// What nobody waits for; counts against the total as well.
    pub background: Rate,
}

/// Names one who waits.
pub(crate) type Ticket = u64;

/// Meters a flow. It may be overdrawn by one grant, and pays that back in time.
#[derive(Debug)]
pub(crate) struct Bucket {
    rate: Option<f64>,
    level: f64,
    at: Duration,
}

impl Bucket {
    pub(crate) fn new(rate: Rate) -> Self {
        let rate = rate.map(|rate| rate.max(1) as f64);
        let mut bucket = Self { rate, level: 0.0, at: Duration::ZERO };
        bucket.level = bucket.burst();
        bucket
    }

    fn burst(&self) -> f64 {
        self.rate.map_or(0.0, |rate| (rate * BURST.as_secs_f64()).max(BURST_MIN))
    }

    /// How long until something may flow.
    pub(crate) fn wait(&mut self, now: Duration) -> Duration {
        let Some(rate) = self.rate else { return Duration::ZERO };
        let passed = now.saturating_sub(self.at).as_secs_f64();
        self.at = self.at.max(now);
        self.level = (self.level + passed * rate).min(self.burst());
        if self.level > 0.0 {
            return Duration::ZERO;
        }
        // One byte more than nothing, and no rounding down to "now".
        Duration::from_secs_f64(((1.0 - self.level) / rate).min(3600.0)) + Duration::from_micros(1)
    }

    pub(crate) fn take(&mut self, bytes: u64) {
        self.add(-(bytes as f64));
    }

    fn add(&mut self, bytes: f64) {
        if self.rate.is_some() {
            self.level += bytes;
        }
    }
}

/// Hands out turns to all tunnels of a node.
#[derive(Debug)]
pub(crate) struct Governor {
    total: Bucket,
    background: Bucket,
    classes: [Ring; 3],
    out: HashMap<Ticket, Class>,
}

/// Peers that wait in one class.
#[derive(Debug, Default)]
struct Ring {
    /// Peers with somebody waiting, in order of their turns.
    turns: VecDeque<PeerId>,
    waiting: BTreeMap<PeerId, Line>,
}

#[derive(Debug, Default)]
struct Line {
    deficit: u64,
    /// Whether its turn has begun.
    begun: bool,
    tickets: VecDeque<(Ticket, u64)>,
}

impl Governor {
    pub(crate) fn new(limits: UploadLimits) -> Self {
        Self {
            total: Bucket::new(limits.total),
            background: Bucket::new(limits.background),
            classes: Default::default(),
            out: HashMap::new(),
        }
    }

    /// Somebody waits to send so many bytes. The ticket must be a new one.
    pub(crate) fn wait(&mut self, ticket: Ticket, peer: PeerId, class: Class, bytes: u64) {
        let ring = &mut self.classes[class as usize];
        let line = ring.waiting.entry(peer).or_insert_with(|| {
            ring.turns.push_back(peer);
            Line::default()
        });
        line.tickets.push_back((ticket, bytes));
    }

    /// Whoever waited, or was granted, has no use for it any more.
    pub(crate) fn leave(&mut self, ticket: Ticket, peer: &PeerId, class: Class) {
        if self.out.remove(&ticket).is_some() {
            return;
        }
        let ring = &mut self.classes[class as usize];
        if let Some(line) = ring.waiting.get_mut(peer) {
            line.tickets.retain(|(waiting, _)| *waiting != ticket);
            if line.tickets.is_empty() {
                ring.waiting.remove(peer);
                ring.turns.retain(|turn| turn != peer);
            }
        }
    }

    /// A grant was for `granted` bytes, and `sent` went out.
    pub(crate) fn correct(&mut self, class: Class, granted: u64, sent: u64) {
        let back = granted as f64 - sent as f64;
        self.total.add(back);
        if class == Class::Background {
            self.background.add(back);
        }
    }

    /// Who may send now, in order; and when to look again if nothing happens
    /// before, as time from now.
    pub(crate) fn grant(&mut self, now: Duration) -> (Vec<Ticket>, Option<Duration>) {
        let mut granted = Vec::new();
        loop {
            let busy = self.out.values().filter(|class| **class != Class::Urgent).count();
            let rings = [Class::Urgent, Class::Bulk, Class::Background].into_iter();
            let free = |class: &Class| {
                let ring = &self.classes[*class as usize];
                !ring.turns.is_empty() && (*class == Class::Urgent || busy < OUT_MAX)
            };
            let Some(class) = rings.into_iter().find(free) else { return (granted, None) };
            let mut wait = self.total.wait(now);
            if class == Class::Background {
                wait = wait.max(self.background.wait(now));
            }
            if !wait.is_zero() {
                return (granted, Some(wait));
            }
            let Some((ticket, bytes)) = self.classes[class as usize].next() else {
                return (granted, None);
            };
            self.total.take(bytes);
            if class == Class::Background {
                self.background.take(bytes);
            }
            self.out.insert(ticket, class);
            granted.push(ticket);
        }
    }
}

impl Ring {
    /// The next in turn.
    fn next(&mut self) -> Option<(Ticket, u64)> {
        loop {
            let peer = *self.turns.front()?;
            let line = self.waiting.get_mut(&peer)?;
            if !line.begun {
                line.deficit += QUANTUM;
                line.begun = true;
            }
            let (_, bytes) = *line.tickets.front()?;
            if bytes > line.deficit {
                line.begun = false;
                self.turns.rotate_left(1);
                continue;
            }
            line.deficit -= bytes;
            let next = line.tickets.pop_front();
            if line.tickets.is_empty() {
                self.waiting.remove(&peer);
                self.turns.pop_front();
            }
            return next;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn peer(n: u8) -> PeerId {
        PeerId([n; 32])
    }

    /// Serves whoever is granted at once, until `end`; gives bytes by peer.
    fn run(
        governor: &mut Governor,
        class: Class,
        sizes: &[(u8, u64)],
        end: Duration,
    ) -> HashMap<u8, u64> {
        let mut tickets = HashMap::new();
        let mut next = 0;
        let ask =
            |governor: &mut Governor, tickets: &mut HashMap<_, _>, next: &mut u64, n, size| {
                governor.wait(*next, peer(n), class, size);
                tickets.insert(*next, (n, size));
                *next += 1;
            };
        for (n, size) in sizes {
            ask(governor, &mut tickets, &mut next, *n, *size);
        }
        let (mut now, mut sent) = (Duration::ZERO, HashMap::new());
        while now < end {
            let (granted, wake) = governor.grant(now);
            for ticket in &granted {
                let (n, size) = tickets.remove(ticket).expect("asked");
                *sent.entry(n).or_default() += size;
                governor.leave(*ticket, &peer(n), class);
                ask(governor, &mut tickets, &mut next, n, size);
            }
            now += wake.unwrap_or(Duration::ZERO).max(Duration::from_micros(100));
        }
        sent
    }

    #[test]
    fn peers_share_by_bytes_whatever_the_size_of_their_blocks() {
        let limits = UploadLimits { total: Some(10 << 20), background: None };
        let mut governor = Governor::new(limits);
        let sizes = [(1, 16 << 10), (2, 512 << 10), (3, 256 << 10), (2, 512 << 10)];
        let sent = run(&mut governor, Class::Bulk, &sizes, Duration::from_secs(20));
        let share = |n: u8| sent[&n] as f64 / f64::from(200 << 20);
        // One with tickets of 16 KiB has one at a time: it can't take a quantum.
        assert!(share(2) > 0.3 && share(3) > 0.3, "{sent:?}");
        assert!((share(2) - share(3)).abs() < 0.01, "{sent:?}");
        let total: u64 = sent.values().sum();
        assert!((total as f64 / f64::from(200 << 20) - 1.0).abs() < 0.02, "{total}");
    }

    #[test]
    fn urgent_goes_first_and_background_has_its_own_limit() {
        let limits = UploadLimits { total: Some(1 << 20), background: Some(100 << 10) };
        let mut governor = Governor::new(limits);
        governor.wait(1, peer(1), Class::Background, 1000);
        governor.wait(2, peer(1), Class::Bulk, 1000);
        governor.wait(3, peer(2), Class::Urgent, 1000);
        assert_eq!(governor.grant(Duration::ZERO).0, [3, 2, 1]);
        let mut governor = Governor::new(limits);
        let sent = run(&mut governor, Class::Background, &[(1, 10_000)], Duration::from_secs(20));
        assert!((sent[&1] as f64 / f64::from(2000 << 10) - 1.0).abs() < 0.1, "{sent:?}");
    }

    #[test]
    fn readers_of_the_disk_are_few_but_an_urgent_one_gets_through() {
        let mut governor = Governor::new(UploadLimits::default());
        for ticket in 0..20 {
            governor.wait(ticket, peer(ticket as u8), Class::Bulk, 1 << 20);
        }
        assert_eq!(governor.grant(Duration::ZERO).0.len(), OUT_MAX);
        assert!(governor.grant(Duration::ZERO).0.is_empty());
        governor.wait(99, peer(1), Class::Urgent, 1);
        assert_eq!(governor.grant(Duration::ZERO).0, [99]);
        governor.leave(0, &peer(0), Class::Bulk);
        assert_eq!(governor.grant(Duration::ZERO).0.len(), 1);
    }

    proptest! {
        /// Whoever waits is granted or leaves; nobody is forgotten, whatever the order.
        #[test]
        fn nobody_is_forgotten(steps in prop::collection::vec((0u8..4, 0u8..3, 1u64..1 << 20, any::<bool>()), 1..60)) {
            let mut governor = Governor::new(UploadLimits { total: Some(1 << 20), background: Some(1 << 18) });
            let classes = [Class::Urgent, Class::Bulk, Class::Background];
            let mut waiting: HashMap<u64, (u8, Class)> = HashMap::new();
            let mut now = Duration::ZERO;
            for (ticket, (n, class, bytes, leave)) in steps.into_iter().enumerate() {
                let (ticket, class) = (ticket as u64, classes[usize::from(class)]);
                governor.wait(ticket, peer(n), class, bytes);
                if leave {
                    governor.leave(ticket, &peer(n), class);
                } else {
                    waiting.insert(ticket, (n, class));
                }
            }
            for _ in 0..10_000 {
                let (granted, wake) = governor.grant(now);
                for ticket in granted {
                    let (n, class) = waiting.remove(&ticket).expect("waits");
                    governor.leave(ticket, &peer(n), class);
                }
                if waiting.is_empty() {
                    break;
                }
                now += wake.unwrap_or_default();
            }
            prop_assert!(waiting.is_empty());
            prop_assert!(governor.out.is_empty() && governor.classes.iter().all(|ring| ring.turns.is_empty()));
        }
    }
}
