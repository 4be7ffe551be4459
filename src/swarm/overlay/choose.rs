//! What the overlay does next: who makes room, who is probed, asked and told.

use std::net::SocketAddr;
use std::time::Duration;

use super::{
    ASK, ASK_FEW, Action, BUSY, CARRIES, DISMISSED, EXPLORE, GRACE, Link, NEIGHBOURS_MAX,
    NEIGHBOURS_WANTED, Neighbour, Node, Overlay, PROBE, PROBES_MAX, SLOW, Source, State, TELL,
    TOLD_MAX, VAIN_MAX, VISIT, VISITORS_MAX, next,
};
use crate::types::PeerId;

/// A neighbour that was chosen, and that may be let go.
struct Chosen {
    peer: PeerId,
    since: Duration,
    speed: Option<f64>,
    busy: bool,
    carries: bool,
}

impl Overlay {
    /// The slowest neighbours make room: one at a time for those that may be
    /// better, and as many as are too many. Of these, who carries something or has just
    /// come stays while there is room for visitors: it was found to have what somebody
    /// wants.
    pub(super) fn drop_slow(&mut self, now: Duration) -> Vec<Action> {
        let mut chosen = self.chosen(now);
        let mut speeds: Vec<f64> = chosen.iter().filter_map(|one| one.speed).collect();
        speeds.sort_by(f64::total_cmp);
        let (middle, good) = (speeds.get(speeds.len() / 2), speeds.get(speeds.len() * 3 / 4));
        // Those that were not measured count as middling; of equals the youngest go.
        let rank = |one: &Chosen| one.speed.or(middle.copied()).unwrap_or(0.0);
        chosen.sort_by(|a, b| rank(a).total_cmp(&rank(b)).then(b.since.cmp(&a.since)));
        let surplus = chosen.len().saturating_sub(NEIGHBOURS_MAX);
        let (idle, visiting): (Vec<_>, Vec<_>) =
            chosen.iter().partition(|one| !one.carries && now >= one.since + VISIT);
        let mut gone: Vec<PeerId> = idle.iter().take(surplus).map(|one| one.peer).collect();
        let crowd = surplus.saturating_sub(gone.len()).saturating_sub(VISITORS_MAX);
        gone.extend(visiting.iter().take(crowd).map(|one| one.peer));
        let waiting = self.nodes.values().any(Node::is_candidate);
        let slow = |one: &&Chosen| {
            let (Some(speed), Some(good)) = (one.speed, good) else { return false };
            now >= one.since + GRACE && !one.busy && speed < SLOW * good
        };
        if surplus == 0 && waiting && chosen.len() >= NEIGHBOURS_WANTED {
            gone.extend(chosen.iter().find(slow).map(|one| one.peer));
        }
        // They may come back, after all others had their turn.
        gone.iter().for_each(|peer| self.rest(peer, now + DISMISSED));
        gone.into_iter().map(Action::Drop).collect()
    }

    fn chosen(&self, now: Duration) -> Vec<Chosen> {
        let chosen = self.nodes.iter().filter_map(|(peer, node)| match node.state {
            State::Neighbour(Link { since, near: false, kept: false, .. }) => Some(Chosen {
                peer: *peer,
                since,
                speed: node.speed,
                busy: node.busy.is_some_and(|then| now < then + BUSY),
                carries: node.busy.is_some_and(|then| now < then + CARRIES),
            }),
            _ => None,
        });
        chosen.collect()
    }

    /// Probes candidates, each source in its turn.
    pub(super) fn probe(&mut self, now: Duration, actions: &mut Vec<Action>) {
        let probes = |node: &&Node| matches!(node.state, State::Probed { .. });
        let mut probed = self.nodes.values().filter(probes).count();
        let neighbours = self.nodes.values().filter(|node| node.is_chosen()).count();
        while probed < PROBES_MAX {
            let few = neighbours + probed < NEIGHBOURS_WANTED;
            let explore = self.explored.is_none_or(|then| now >= then + EXPLORE)
                && neighbours + probed < NEIGHBOURS_MAX;
            if !few && !explore {
                return;
            }
            let Some((peer, address)) = self.next_candidate() else { return };
            if let Some(node) = self.nodes.get_mut(&peer) {
                node.state = State::Probed { until: now + PROBE };
            }
            if !few {
                self.explored = Some(now);
            }
            probed += 1;
            actions.push(Action::Probe(peer, address));
        }
    }

    /// A candidate of the source whose turn it is: the one that failed least, and
    /// any of those.
    fn next_candidate(&mut self) -> Option<(PeerId, SocketAddr)> {
        for _ in 0..self.turns.len() {
            let source = self.turns.pop_front()?;
            let of_source = self.nodes.iter().filter(|(_, node)| node.source == source);
            let ready: Vec<_> = of_source.filter(|(_, node)| node.is_candidate()).collect();
            let Some(least) = ready.iter().map(|(_, node)| node.failures).min() else {
                // It has a turn again when it names somebody, or one has rested.
                if self.named_by(source).next().is_some() {
                    self.turns.push_back(source);
                }
                continue;
            };
            self.turns.push_back(source);
            let best: Vec<_> =
                ready.into_iter().filter(|(_, node)| node.failures == least).collect();
            let random = (next(&mut self.random) % best.len() as u64) as usize;
            let (peer, node) = best[random];
            return Some((*peer, node.address?));
        }
        None
    }

    /// Asks neighbours for theirs: each far one that was not asked for long, and one
    /// of the LAN. Whose names led nowhere is asked less and less. An answer takes the
    /// place of the one before.
    pub(super) fn ask(&mut self, now: Duration, actions: &mut Vec<Action>) {
        let few = self.nodes.values().filter(|node| node.is_chosen()).count() < NEIGHBOURS_WANTED;
        let due = |link: &Link| {
            let pause = if few && !link.near { ASK_FEW } else { ASK };
            let pause = pause * 2u32.pow((link.vain / VAIN_MAX).min(5));
            link.asked.is_none_or(|then| now >= then + pause)
        };
        let near = self.nodes.iter_mut().filter_map(|(peer, node)| Some((*peer, node.link()?)));
        let near: Vec<_> = near.filter(|(_, link)| link.near).collect();
        let lately = near.iter().any(|(_, link)| link.asked.is_some_and(|then| now < then + ASK));
        let next = near.into_iter().filter(|(_, link)| due(link));
        let next = next.min_by_key(|(_, link)| link.asked).map(|(peer, _)| peer);
        let next = next.filter(|_| !lately);
        let mut asked = Vec::new();
        for (peer, node) in &mut self.nodes {
            let chosen = node.is_chosen();
            let Some(link) = node.link() else { continue };
            if next == Some(*peer) || chosen && due(link) {
                (link.asked, link.owed) = (Some(now), TOLD_MAX);
                asked.push(*peer);
            }
        }
        self.nodes.retain(|_, node| match node.source {
            Source::Neighbour(by) => node.proved || !node.is_candidate() || !asked.contains(&by),
            _ => true,
        });
        actions.extend(asked.into_iter().map(Action::Ask));
    }

    /// A neighbour asks for others: any [`TOLD_MAX`] that can be called. `None`: it
    /// asks too often, or is none.
    pub fn tell(&mut self, now: Duration, peer: &PeerId) -> Option<Vec<(PeerId, SocketAddr)>> {
        let link = self.nodes.get_mut(peer)?.link()?;
        if link.told.is_some_and(|then| now < then + TELL) {
            return None;
        }
        link.told = Some(now);
        let mut others: Vec<Neighbour> = self.neighbours();
        others.retain(|other| other.peer != *peer);
        let count = others.len().min(TOLD_MAX);
        for place in 0..count {
            let from = place as u64 + next(&mut self.random) % (others.len() - place) as u64;
            others.swap(place, from as usize);
        }
        Some(others[..count].iter().map(|other| (other.peer, other.address)).collect())
    }
}
