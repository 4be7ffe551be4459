//! The paper's experiment (section V-A4, tables VIII and XI): nodes of one LAN
//! ask for images of a catalogue that is larger than one disk.
//!
//! Nodes ask by a Poisson process, for images by Zipf's law; image sizes are
//! log-uniform. What a node lacks it copies from a neighbour that has it, else
//! from outside. Each neighbour's line and the line outside serve one transfer
//! after the other. All from one seed: both policies see the same requests.

use std::collections::BTreeMap;
use std::time::Duration;

use fastrand::Rng;
use peersync::eviction::{Budget, Item, Ledger, Member, PeerSet, View, Weights, plan};
use peersync::types::{ObjectId, PeerId};

/// Line of each node, bytes per second (1 Gbit/s, as in the paper's testbed).
const LAN: f64 = 125e6;
/// Line of the LAN to the outside (100 Mbit/s).
const OUTSIDE: f64 = 12.5e6;
const MIB: u64 = 1 << 20;
/// Seconds after which a use counts half as much.
const HALF_LIFE: f64 = 86_400.0;
/// How often a node looks for copies that nobody uses.
const LOOK: f64 = 600.0;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Policy {
    /// The plan with what is known of the neighbours, and their promises.
    Ours,
    /// The same plan, blind: no neighbours, and value by the last use alone.
    Lru,
}

#[derive(Clone, Copy)]
pub(crate) struct Setting {
    pub(crate) nodes: usize,
    pub(crate) images: usize,
    /// Exponent of Zipf's law.
    pub(crate) zipf: f64,
    /// Catalogue over one disk.
    pub(crate) ratio: f64,
    /// Mean seconds between two requests of one node.
    pub(crate) every: f64,
    pub(crate) days: f64,
    pub(crate) seed: u64,
}

pub(crate) struct Outcome {
    /// Bytes on all disks together: mean over the second half of the time.
    pub(crate) space: f64,
    /// Mean seconds until an image is there; local ones count 0.
    pub(crate) seconds: f64,
    /// Bytes from outside the LAN.
    pub(crate) outside: u64,
}

struct Held {
    last: f64,
    uses: f64,
}

struct Node {
    me: Member,
    disk: BTreeMap<usize, Held>,
    ledger: Ledger,
    line_free: f64,
    coming: BTreeMap<usize, f64>,
    looked: f64,
}

struct Site<'a> {
    setting: &'a Setting,
    policy: Policy,
    sizes: Vec<u64>,
    ids: Vec<ObjectId>,
    peers: Vec<Member>,
    nodes: Vec<Node>,
    budget: Budget,
}

pub(crate) fn catalogue(setting: &Setting) -> Vec<u64> {
    let mut rng = Rng::with_seed(setting.seed);
    // 16 MiB to 1 GiB.
    (0..setting.images).map(|_| ((16.0 * 64f64.powf(rng.f64())) as u64) * MIB).collect()
}

pub(crate) fn disk(setting: &Setting) -> u64 {
    (catalogue(setting).iter().sum::<u64>() as f64 / setting.ratio) as u64
}

pub(crate) fn run(setting: &Setting, policy: Policy) -> Outcome {
    let mut site = Site::new(setting, policy);
    let mut rng = Rng::with_seed(setting.seed + 1);
    let zipf: Vec<f64> = (1..=setting.images)
        .scan(0.0, |sum, rank| {
            *sum += (rank as f64).powf(-setting.zipf);
            Some(*sum)
        })
        .collect();
    let end = setting.days * 86_400.0;
    let (mut now, mut outside_free) = (0.0, 0.0);
    let (mut waited, mut requests, mut outside) = (0.0, 0u32, 0u64);
    let (mut space, mut looked_at) = (0.0, 0u32);
    while now < end {
        now += -(1.0 - rng.f64()).ln() * setting.every / setting.nodes as f64;
        let n = rng.usize(..setting.nodes);
        let draw = rng.f64() * zipf[setting.images - 1];
        let image = zipf.partition_point(|sum| *sum <= draw).min(setting.images - 1);
        site.settle(now);
        requests += 1;
        if now > end / 2.0 {
            space += site.occupied();
            looked_at += 1;
        }
        if let Some(held) = site.nodes[n].disk.get_mut(&image) {
            held.used(now);
            continue;
        }
        if let Some(there) = site.nodes[n].coming.get(&image) {
            waited += there - now;
            continue;
        }
        let bytes = site.sizes[image] as f64;
        let near = (0..setting.nodes)
            .filter(|other| site.nodes[*other].disk.contains_key(&image))
            .min_by(|a, b| site.nodes[*a].line_free.total_cmp(&site.nodes[*b].line_free));
        let there = match near {
            Some(other) => {
                let node = &mut site.nodes[other];
                if let Some(held) = node.disk.get_mut(&image) {
                    held.used(now);
                }
                node.line_free = node.line_free.max(now) + bytes / LAN;
                node.line_free
            }
            None => {
                outside += site.sizes[image];
                outside_free = f64::max(outside_free, now) + bytes / OUTSIDE;
                outside_free
            }
        };
        waited += there - now;
        site.nodes[n].coming.insert(image, there);
    }
    Outcome { space: space / f64::from(looked_at), seconds: waited / f64::from(requests), outside }
}

impl<'a> Site<'a> {
    fn new(setting: &'a Setting, policy: Policy) -> Self {
        let sizes = catalogue(setting);
        let disk = disk(setting);
        let name = |kind: u8, n: usize| {
            *blake3::hash(format!("{kind} {n} {}", setting.seed).as_bytes()).as_bytes()
        };
        let member = |n| Member { id: PeerId(name(0, n)), capacity: disk };
        let peers: Vec<Member> = (0..setting.nodes).map(member).collect();
        let node = |me: &Member| Node {
            me: *me,
            disk: BTreeMap::new(),
            ledger: Ledger::new(Duration::ZERO, true),
            line_free: 0.0,
            coming: BTreeMap::new(),
            looked: 0.0,
        };
        let nodes = peers.iter().map(node).collect();
        let ids = (0..sizes.len()).map(|n| ObjectId::from_bytes(name(1, n))).collect();
        Self { setting, policy, sizes, ids, peers, nodes, budget: Budget::with_hard(disk) }
    }

    fn occupied(&self) -> f64 {
        let of = |node: &Node| node.disk.keys().map(|image| self.sizes[*image]).sum::<u64>();
        self.nodes.iter().map(of).sum::<u64>() as f64
    }

    /// Lets come in what is there by `now`, and has the nodes evict.
    fn settle(&mut self, now: f64) {
        loop {
            let next = (0..self.nodes.len())
                .flat_map(|n| self.nodes[n].coming.iter().map(move |(i, at)| (*at, n, *i)))
                .min_by(|a, b| a.0.total_cmp(&b.0));
            let Some((at, n, image)) = next.filter(|(at, ..)| *at <= now) else { break };
            self.nodes[n].coming.remove(&image);
            self.nodes[n].disk.insert(image, Held { last: at, uses: 1.0 });
            self.evict(n, at);
        }
        for n in 0..self.nodes.len() {
            if now - self.nodes[n].looked > LOOK {
                self.evict(n, now);
            }
        }
    }

    fn evict(&mut self, n: usize, now: f64) {
        self.nodes[n].looked = now;
        let clock = Duration::from_secs_f64(now);
        // Asked; answered; acted on; and once more where holders refused.
        for _ in 0..4 {
            self.nodes[n].ledger.tick(clock);
            let images: Vec<usize> = self.nodes[n].disk.keys().copied().collect();
            let items: Vec<Item> = images.iter().map(|image| self.item(n, *image, now)).collect();
            let occupied = items.iter().map(|item| item.bytes).sum();
            let node = &self.nodes[n];
            let weights = match self.policy {
                Policy::Ours => Weights::default(),
                Policy::Lru => Weights { overhead: 0.0, ..Weights::default() },
            };
            let peers = &self.peers;
            let view = View { me: node.me, peers, ledger: &node.ledger, weights };
            let made = plan(&items, occupied, &view, &self.budget, clock);
            for dropped in &made.drop {
                self.nodes[n].disk.remove(&images[dropped.item]);
                self.nodes[n].ledger.dropped(&items[dropped.item].id);
            }
            if made.ask.is_empty() {
                return;
            }
            for ask in made.ask {
                let (image, id) = (images[ask.item], self.ids[images[ask.item]]);
                let other = peers_position(&self.peers, &ask.of);
                let me = self.nodes[n].me;
                let Some(number) = self.nodes[n].ledger.ask(id, ask.of, clock) else { continue };
                let holder = &mut self.nodes[other];
                let has = holder.disk.contains_key(&image);
                let yes = holder.ledger.give(&id, &holder.me, &me, has, clock);
                self.nodes[n].ledger.answered(&id, &ask.of, number, yes, clock);
            }
        }
    }

    fn item(&self, n: usize, image: usize, now: f64) -> Item {
        let held = &self.nodes[n].disk[&image];
        let ours = self.policy == Policy::Ours;
        let others: Vec<usize> = (0..self.setting.nodes)
            .filter(|other| ours && *other != n && self.nodes[*other].disk.contains_key(&image))
            .collect();
        Item {
            bytes: self.sizes[image],
            idle: (now - held.last).max(0.0) as u32,
            uses: if ours { held.uses_at(now) as f32 } else { 0.0 },
            lan: PeerSet::of(&others),
            ..Item::new(self.ids[image])
        }
    }
}

fn peers_position(peers: &[Member], id: &PeerId) -> usize {
    peers.iter().position(|peer| peer.id == *id).expect("one of the site")
}

impl Held {
    fn uses_at(&self, now: f64) -> f64 {
        self.uses * 0.5f64.powf((now - self.last).max(0.0) / HALF_LIFE)
    }

    fn used(&mut self, now: f64) {
        self.uses = self.uses_at(now) + 1.0;
        self.last = now;
    }
}
