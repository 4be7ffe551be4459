//! What must hold of a whole node and of the swarm, seen from outside.

use std::collections::BTreeSet;
use std::time::Duration;

use peersync::fetch::schedule::{Action, BlockKey, Extent, Why};
use peersync::swarm::elect::LIFE;
use peersync::swarm::popularity::PeerSets;
use peersync::swarm::tracker::GRACE;
use peersync::types::PeerId;

use super::content::BLOCK;
use super::fetch::Pull;
use super::node::{Manner, name, number};
use super::world::{Event, S, SILENCE, World};
use crate::check::Ask;
use crate::clock::SKEW;

/// A beat is under way no longer than this.
const UNDER_WAY: Duration = Duration::from_millis(400);
/// Something of what a live node holds comes within this time, or it was forgotten.
const PATIENCE: Duration = Duration::from_secs(45);
/// What has changed is known to those whom it concerns after this long.
const KNOWN: Duration = Duration::from_secs(8);

/// What fetches came to.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Layers that were fetched, and readings that failed and were tried again.
    pub fetched: u32,
    pub failed: u32,
    /// Of those that only nodes have: time until the first block.
    pub took: Vec<Duration>,
    /// Bytes from the LAN, from elsewhere, and from the registry.
    pub bytes: [u64; 3],
    /// How often a checker looked at something.
    pub looks: u64,
}

impl Outcome {
    pub fn brought(&mut self, near: Option<bool>, bytes: u64) {
        self.bytes[near.map_or(2, |near| usize::from(!near))] += bytes;
    }

    /// So many in a hundred took no longer than this.
    pub fn percentile(&self, of: usize) -> Duration {
        let mut took = self.took.clone();
        took.sort_unstable();
        took[(took.len() * of / 100).min(took.len() - 1)]
    }
}

impl World {
    /// Of a layer that is pulled another block is here.
    pub fn pulled(&mut self, node: usize, layer: usize, whole: bool) {
        let now = self.now;
        let is_it = |pull: &Pull| (pull.node, pull.layer) == (node, layer);
        let Some(at) = self.pulls.iter().position(is_it) else { return };
        let pull = &mut self.pulls[at];
        if pull.last.replace(now).is_none() && !self.content.layers[layer].public {
            self.outcome.took.push(now - pull.since);
        }
        if whole {
            self.pulls.swap_remove(at);
            self.outcome.fetched += 1;
        }
    }

    /// A want has ended without data.
    pub fn failed(&mut self, node: usize, key: &BlockKey) {
        let layer = self.content.of_key(key);
        let is_it = |pull: &&mut Pull| (pull.node, pull.layer) == (node, layer) && !pull.again;
        if let Some(pull) = self.pulls.iter_mut().find(is_it) {
            pull.again = true;
            self.outcome.failed += 1;
            let life = self.nodes[node].life;
            self.post(S * 5, Event::Again { node, life, layer });
        }
        self.checks.failed(node, key, peersync::fetch::schedule::Failure::Refused);
    }

    /// Each second.
    pub fn check(&mut self) {
        for node in 0..self.nodes.len() {
            if self.nodes[node].is_alive() {
                self.check_overlay(node);
            }
        }
        for _ in 0..10 {
            let node = self.rng.usize(0..self.nodes.len());
            if self.nodes[node].is_alive() {
                self.check_tracker(node);
                self.check_popularity(node);
            }
        }
        (0..self.pulls.len()).for_each(|at| self.check_pull(at));
    }

    fn fail(&self, why: &str) -> ! {
        panic!("seed {}, {:?}: {why}", self.seed, self.now)
    }

    /// Nobody believes a beat that was never said, nor a dead tracker for long.
    pub fn check_claim(&mut self, node: usize) {
        let Some(claim) = self.nodes[node].machines.elector.claim() else { return };
        let source = number(&claim.tracker);
        let of = &self.nodes[source];
        self.outcome.looks += 1;
        if source != node && claim.sequence > of.said {
            self.fail(&format!("beat {} of {source} was never said", claim.sequence));
        }
        let late = of.died.map(|died| self.now - died).unwrap_or_default();
        if late > LIFE.div_f64(1.0 - SKEW) + UNDER_WAY {
            self.fail(&format!("{node} follows a dead node {late:?}"));
        }
    }

    /// The overlay's own rules; and who is in its book has a tunnel, and who has a
    /// tunnel is in the book.
    fn check_overlay(&self, node: usize) {
        let overlay = &self.nodes[node].machines.overlay;
        if let Err(why) = overlay.check(self.shows(node)) {
            self.fail(&format!("node {node}: {why}"));
        }
        let book: BTreeSet<usize> =
            overlay.neighbours().iter().map(|known| number(&known.peer)).collect();
        let links = &self.nodes[node].links;
        if let Some(other) = book.iter().find(|other| !links.contains_key(other)) {
            self.fail(&format!("node {node}: {other} is in the book, and there is no tunnel"));
        }
        let old = links.iter().filter(|(_, link)| self.now - link.since > S * 2);
        let extra = old.map(|(other, _)| other).find(|other| !book.contains(other));
        if let Some(other) = extra {
            self.fail(&format!("node {node}: {other} is still linked, and not in the book"));
        }
    }

    /// What a node holds is known where it has been told long enough, and who is
    /// long gone is named by nobody.
    fn check_tracker(&mut self, node: usize) {
        let of = &self.nodes[node];
        let Some(tracker) = of.follows.filter(|tracker| *tracker != node) else { return };
        let there = &self.nodes[tracker];
        let settled = |n: usize| self.now - self.nodes[n].since >= KNOWN && !self.changed(n);
        if !self.reach(node, tracker) || there.follows != Some(tracker) {
            return;
        }
        if !settled(node) || !settled(tracker) || self.now - self.cut_at < SILENCE + KNOWN {
            return;
        }
        let Some(link) = of.links.get(&tracker).filter(|link| self.now - link.since >= KNOWN)
        else {
            return;
        };
        let same = there.links.get(&node).is_some_and(|other| other.number == link.number);
        let whole = of.whole.iter().filter(|(_, at)| self.now - **at >= KNOWN);
        let whole: Vec<usize> = whole.map(|(layer, _)| *layer).collect();
        let Some(layer) = whole.get(self.rng.usize(0..whole.len().max(1))).filter(|_| same) else {
            return;
        };
        let digest = self.content.layers[*layer].digest;
        let named = there.machines.table.who_has(&digest, &PeerId([0xff; 32]), None, usize::MAX);
        let named: BTreeSet<usize> = named.iter().map(|holder| number(&holder.peer)).collect();
        self.outcome.looks += 1;
        if !named.contains(&node) {
            self.fail(&format!("{node} holds layer {layer}, and its tracker does not know"));
        }
        let long = SILENCE + GRACE.div_f64(1.0 - SKEW) + S * 2;
        let gone = |n: &&usize| self.nodes[**n].died.is_some_and(|died| self.now - died > long);
        if let Some(gone) = named.iter().find(gone) {
            self.fail(&format!("{gone} is long gone and still named"));
        }
    }

    /// Whether something of a node has changed lately that others must be told.
    fn changed(&self, node: usize) -> bool {
        let of = &self.nodes[node];
        of.news || of.whole.values().any(|at| self.now - *at < KNOWN && !at.is_zero())
    }

    /// `rho` is the share of all images at a node and its peers that have a layer.
    fn check_popularity(&mut self, node: usize) {
        let of = &self.nodes[node];
        let peers: Vec<usize> = of.links.keys().copied().collect();
        let quiet = |other: &usize| {
            let link = &of.links[other];
            let back = self.nodes[*other].links.get(&node);
            self.reach(node, *other)
                && self.now - link.since >= KNOWN
                && back.is_some_and(|back| back.number == link.number)
                && !self.changed(*other)
        };
        let cut = self.now - self.cut_at < SILENCE + KNOWN && !self.cut_at.is_zero();
        if cut || self.changed(node) || !peers.iter().all(quiet) {
            return;
        }
        let images: Vec<_> = peers
            .iter()
            .chain([&node])
            .flat_map(|n| self.images_of(*n).into_values().collect::<Vec<_>>())
            .collect();
        let digest = self.content.layers[self.rng.usize(0..self.content.layers.len())].digest;
        let short = PeerSets::short(&digest);
        let with = images.iter().filter(|image| image.contains(&short)).count();
        let (right, rho) =
            (with as f64 / images.len().max(1) as f64, of.machines.sets.rho(&digest));
        self.outcome.looks += 1;
        if (right - rho).abs() > 1e-9 {
            self.fail(&format!("{node} takes a layer to be in {rho} of all, and it is in {right}"));
        }
    }

    /// What somebody has wanted for long is nowhere to be had: no honest node has
    /// been there and had it all the time.
    fn check_pull(&mut self, at: usize) {
        let pull = &self.pulls[at];
        let since = pull.last.unwrap_or(pull.since);
        if self.now - since < self.patience(pull.node, pull.layer) {
            return;
        }
        let cut = self.cut_at > since;
        let had = |n: &usize| {
            let of = &self.nodes[*n];
            of.manner == Manner::Honest
                && of.born <= since
                && self.reach(pull.node, *n)
                && of.whole.get(&pull.layer).is_some_and(|at| *at <= since)
        };
        let holder = (0..self.nodes.len()).find(|n| !cut && had(n));
        self.outcome.looks += 1;
        if let Some(holder) = holder {
            let (layer, node, past) = (pull.layer, pull.node, self.now - since);
            self.fail(&format!(
                "layer {layer} is lost to node {node} for {past:?}, and {holder} has it all the time: {}",
                self.standing(node, layer)
            ));
        }
    }

    /// How long nothing of a layer may come. Neighbours come first, also one that crawls
    /// and of whom much else is wanted.
    fn patience(&self, node: usize, layer: usize) -> Duration {
        let of = &self.content.layers[layer];
        let crawls = self.nodes[node].links.iter().any(|(peer, link)| {
            self.nodes[*peer].manner == Manner::Crawls
                && self.net.same_lan(node, *peer)
                && (0..of.blocks).any(|n| link.known.contains(&of.key(n)))
        });
        if crawls { PATIENCE * 4 } else { PATIENCE }
    }

    /// What a node knows of a layer, for people.
    fn standing(&self, node: usize, layer: usize) -> String {
        let (of, layer) = (&self.nodes[node], &self.content.layers[layer]);
        let keys: Vec<BlockKey> = (0..layer.blocks).map(|n| layer.key(n)).collect();
        let states: Vec<_> = keys.iter().map(|key| of.machines.scheduler.state_of(key)).collect();
        let knows: Vec<_> = of
            .links
            .iter()
            .filter(|(_, link)| keys.iter().any(|key| link.known.contains(key)))
            .map(|(peer, _)| {
                let open = of.tunnels.values().filter(|other| *other == peer).count();
                (*peer, self.nodes[*peer].manner, open)
            })
            .collect();
        let looks = of.findings.get(&layer.number).map(|f| (f.awaited, f.meeting.clone()));
        format!("{states:?}, peers that say they have it {knows:?}, look-up {looks:?}")
    }

    /// # Errors
    /// Says what the action does that no action may do.
    pub fn check_action(&mut self, node: usize, action: &Action) -> Result<(), String> {
        match action {
            Action::Fetch { request, tunnel, object, extent, urgent, why } => {
                let Some(server) = self.nodes[node].tunnels.get(tunnel).copied() else {
                    return Err("asked on no tunnel".into());
                };
                let (blocks, offset, part) = match extent {
                    Extent::Blocks(range) => (range.clone(), 0, false),
                    Extent::Part { index, offset, .. } => (*index..index + 1, *offset, true),
                };
                if !urgent || self.plan.fault == Some(super::world::Fault::SwapPriority) {
                    self.check_bulk(node, *tunnel, server)?;
                }
                let (at, live) = (self.shows(node), true);
                let ask = Ask { source: server, request: *request, at, offset, part, live };
                let (lan, far) = self.nodes[node].machines.scheduler.patience();
                for index in blocks {
                    let key = BlockKey { object: *object, index };
                    let place = self.content.layers[self.content.of_key(&key)].place(index);
                    self.checks.asked(node, key, place, ask, lan.min(far))?;
                    if !self.net.same_lan(node, server) && *why != Why::Deadline && offset == 0 {
                        self.check_near(node, &key)?;
                    }
                }
                Ok(())
            }
            Action::Run { request, home, stream, why, .. } => {
                let Some(layer) = self.content.of_home(home) else { return Ok(()) };
                let (of, block) = (&self.content.layers[layer], u64::from(BLOCK));
                let first = (stream.start / block) as u32;
                let end = stream.end.min(of.size()).div_ceil(block) as u32;
                let (key, places) = (of.key(first), of.place(first)..of.place(end));
                self.checks.runs.insert((node, *request), (places, self.shows(node)));
                if *why == Why::Deadline { Ok(()) } else { self.check_near(node, &key) }
            }
            Action::Cancel { request } => {
                self.checks.ended(node, *request, false);
                Ok(())
            }
            Action::Close { peer, .. } | Action::Ban { peer } => {
                self.checks.source_gone(node, number(peer));
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// What a living neighbour is known to have is not asked for elsewhere.
    fn check_near(&self, node: usize, key: &BlockKey) -> Result<(), String> {
        let of = &self.nodes[node];
        let standings = of.machines.scheduler.standings();
        // One that did not answer in time is asked after others.
        let slow = |peer: usize| standings.get(&name(peer)).is_none_or(|s| s.timeouts > 0);
        let neighbour = of.links.iter().find(|(peer, link)| {
            let open = of.tunnels.values().any(|other| other == *peer);
            let honest = self.nodes[**peer].manner == Manner::Honest && self.reach(node, **peer);
            self.net.same_lan(node, **peer)
                && honest
                && open
                && link.known.contains(key)
                && !slow(**peer)
        });
        match neighbour {
            Some((peer, _)) => {
                Err(format!("{key:?} asked for across the boundary, neighbour {peer} has it"))
            }
            None => Ok(()),
        }
    }

    /// No bulk goes before an urgent block that the same peer could bring.
    fn check_bulk(&mut self, node: usize, tunnel: u64, server: usize) -> Result<(), String> {
        let (of, now) = (&self.nodes[node], self.shows(node));
        let known = of.links.get(&server).map(|link| &link.known);
        let honest = self.nodes[server].manner == Manner::Honest;
        let scheduler = &of.machines.scheduler;
        let waits = |key: &BlockKey| {
            honest
                && known.is_some_and(|known| known.contains(key))
                && matches!(scheduler.state_of(key), Some("queued" | "planned"))
        };
        self.checks.bulk_issued(node, tunnel, now, waits)
    }

    /// Whether each of these LANs, or all that are not among them, has one tracker,
    /// and that one is there.
    pub fn agree(&self, lans: &BTreeSet<usize>, among: bool) -> bool {
        let part =
            |n: &usize| self.nodes[*n].is_alive() && lans.contains(&self.nodes[*n].lan) == among;
        let trackers: BTreeSet<_> =
            (0..self.nodes.len()).filter(part).map(|n| self.nodes[n].follows).collect();
        let one = trackers.first().copied().flatten();
        trackers.len() == 1 && one.is_some_and(|one| part(&one))
    }
}
