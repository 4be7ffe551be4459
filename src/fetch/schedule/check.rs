//! The invariants, as code: for tests, and cheap enough for debug builds.

use std::collections::BTreeMap;

use super::Scheduler;
use super::model::{BlockKey, Class, Time};
use super::table::{Block, Counts, Lane, State};

/// Blocks that a description tells of.
const DESCRIBED: usize = 32;

impl Scheduler {
    /// Checks every invariant of the tables.
    ///
    /// # Errors
    /// Says what does not hold.
    pub fn check(&self) -> Result<(), String> {
        let mut counts = Counts::default();
        let mut in_registry = 0;
        for (r, block) in self.blocks.iter() {
            match block.state() {
                State::Queued => counts.queued += 1,
                State::Reserved => counts.reserved += 1,
                State::Planned(lane) => {
                    counts.planned += 1;
                    in_registry += usize::from(lane == Lane::Registry);
                }
                State::Flying => counts.flying += 1,
            }
            self.check_block(block).map_err(|why| format!("{:?}: {why}", block.key))?;
            for id in block.flights.iter().flat_map(|f| &f.requests) {
                let known =
                    self.requests.get(id).is_some_and(|request| request.blocks.contains(&r));
                ensure(known, || format!("{:?}: request {id} does not know it", block.key))?;
            }
        }
        ensure(counts == self.blocks.counts(), || "states are counted wrongly".into())?;
        ensure(in_registry == self.registry.len(), || {
            format!(
                "{in_registry} blocks planned for the registry, {} in its queue",
                self.registry.len()
            )
        })?;
        self.check_requests()
    }

    fn check_block(&self, block: &Block) -> Result<(), String> {
        let flying = block.state() == State::Flying;
        ensure(flying != block.flights.is_empty(), || "flying and flights disagree".into())?;
        let peers = block.flying_peers().len();
        ensure(peers == block.flights.len(), || "asked twice of one peer".into())?;
        ensure(!block.interests.is_empty(), || "nobody wants it".into())?;
        for flight in &block.flights {
            ensure(flight.asked <= block.len, || "more asked than there is".into())?;
            let more = match flight.lane {
                Lane::Registry => false,
                Lane::Tunnel(id) => {
                    let tunnel = self.peers.tunnels.get(&id).ok_or("its tunnel is gone")?;
                    tunnel
                        .partial
                        .and_then(|r| self.blocks.get(r))
                        .is_some_and(|b| b.key == block.key)
                }
            };
            let brings = !flight.requests.is_empty() || more;
            ensure(brings, || "in flight, and no request brings it".into())?;
        }
        let waits_for = block.interests.iter().map(|i| i.class).min();
        ensure(waits_for.is_some_and(|class| block.class <= class), || "class too low".into())
    }

    fn check_requests(&self) -> Result<(), String> {
        for (key, id) in &self.passing {
            let known = self.requests.get(id).is_some_and(|q| q.let_go.contains(key));
            ensure(known, || format!("{key:?} passes, and request {id} does not know"))?;
        }
        let mut sums: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
        for (id, request) in &self.requests {
            if let Lane::Tunnel(tunnel) = request.lane {
                let sum = sums.entry(tunnel).or_default();
                let part = if request.class == Class::Urgent { &mut sum.0 } else { &mut sum.1 };
                *part += request.left;
                ensure(self.peers.tunnels.contains_key(&tunnel), || {
                    format!("request {id} on a tunnel that is gone")
                })?;
            }
        }
        for (id, tunnel) in &self.peers.tunnels {
            let sum = sums.get(id).copied().unwrap_or_default();
            let known = (tunnel.flying_urgent, tunnel.flying_bulk);
            ensure(known == sum, || {
                format!("tunnel {id}: {known:?} in flight, requests say {sum:?}")
            })?;
        }
        Ok(())
    }

    /// In which state a block is, for tests: one word, or `None` if it is not
    /// wanted.
    pub fn state_of(&self, key: &BlockKey) -> Option<&'static str> {
        let block = self.blocks.get(self.blocks.find(key)?)?;
        Some(match block.state() {
            State::Queued => "queued",
            State::Reserved => "reserved",
            State::Planned(_) => "planned",
            State::Flying => "flying",
        })
    }

    /// What it is waiting for, in a few lines: for logs of a node that hangs.
    pub fn describe(&self) -> String {
        let mut text = String::new();
        for (id, t) in &self.peers.tunnels {
            text += &format!(
                "tunnel {id} to {:?}: {} + {} bytes in flight, {} planned, part {:?}, {:.0} B/s, open {}\n",
                self.peers.get(t.peer).map(|p| p.id),
                t.flying_urgent,
                t.flying_bulk,
                t.queue.len(),
                t.partial.and_then(|r| self.blocks.get(r)).map(|b| b.key.index),
                t.speed(),
                t.is_open(self.now),
            );
        }
        for (id, q) in &self.requests {
            text += &format!(
                "request {id} on {:?}: {} blocks, {} bytes left, since {:?}, due {:?}\n",
                q.lane,
                q.blocks.len(),
                q.left,
                q.issued,
                q.timer
            );
        }
        for (_, b) in self.blocks.iter().take(DESCRIBED) {
            text += &format!(
                "block {:?} {:?} {:?}: {} flights, {} holders, {} getting, claimed {}, forced {}\n",
                b.key.index,
                b.class,
                b.state(),
                b.flights.len(),
                b.holders.len(),
                b.getting.len(),
                b.claimed,
                b.forced
            );
        }
        text + &format!("now {:?}, next wake {:?}\n", self.now, self.next_wake())
    }

    /// `mean + dev/2` of the time of urgent pieces, from neighbours and from
    /// elsewhere: the time that allows one duplicate.
    pub fn patience(&self) -> (Time, Time) {
        (self.lan_pieces.time.patience(), self.far_pieces.time.patience())
    }

    /// Bulk bytes in flight on a tunnel and its round trip, speed and cap, for
    /// tests and metrics: (bulk, urgent, bytes per second, seconds).
    pub fn tunnel_load(&self, tunnel: u64) -> Option<(u64, u64, f64, f64)> {
        let tunnel = self.peers.tunnels.get(&tunnel)?;
        Some((tunnel.flying_bulk, tunnel.flying_urgent, tunnel.speed(), tunnel.rtt().as_secs_f64()))
    }
}

fn ensure(holds: bool, otherwise: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(otherwise()) }
}
