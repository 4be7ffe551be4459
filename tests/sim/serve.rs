//! The side that answers: tunnels of peers, and a registry's streams.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::time::Duration;

use peersync::fetch::schedule::{BlockKey, Event, Extent, Refusal, RequestId, TunnelId};
use peersync::types::ObjectId;

use crate::net::CHUNK;
use crate::world::{MS, Manner, Msg, RegistryState, World};

#[derive(Clone, Debug)]
pub struct Chunk {
    pub tunnel: TunnelId,
    request: RequestId,
    bytes: u64,
    /// The bytes are the last of a block (or of a part of it).
    block: Option<(BlockKey, u64)>,
    end: bool,
}

/// A request at the side that answers it.
#[derive(Clone, Debug)]
pub struct Job {
    pub request: RequestId,
    pub urgent: bool,
    /// Bytes to send, and the block that is through with them.
    pub items: VecDeque<(u64, u64, Option<BlockKey>)>,
}

/// A connection: to a peer, or a registry's answer to one run.
#[derive(Debug)]
pub struct Tunnel {
    pub server: Option<usize>,
    pub client: usize,
    pub urgent: VecDeque<Job>,
    pub bulk: VecDeque<Job>,
    flying: u64,
    last_arrival: Duration,
    /// Bytes of blocks that come in parts.
    got: BTreeMap<BlockKey, u64>,
}

impl Tunnel {
    pub fn new(server: Option<usize>, client: usize) -> Self {
        Self {
            server,
            client,
            urgent: VecDeque::new(),
            bulk: VecDeque::new(),
            flying: 0,
            last_arrival: Duration::ZERO,
            got: BTreeMap::new(),
        }
    }
}

impl World {
    pub fn begin_run(&mut self, node: usize, request: RequestId, stream: Range<u64>) {
        let why = match self.registry {
            RegistryState::Up => None,
            RegistryState::Down => Some(Refusal::Broken),
            RegistryState::NotFound => Some(Refusal::Never),
        };
        if let Some(why) = why {
            self.post(self.net.far_delay * 2, Msg::Tell(node, Event::Refused { request, why }));
            return;
        }
        let block = u64::from(self.layer.block);
        let end = stream.end.min(self.layer.size());
        let entry = stream.start / self.layer.span * self.layer.span;
        let mut items = VecDeque::new();
        // What is decoded on the way is kept.
        for n in entry / block..end.div_ceil(block) {
            items.push_back((block, block, Some(self.layer.key(n as u32))));
        }
        self.next += 1;
        let tunnel = self.next;
        self.tunnels.insert(tunnel, Tunnel::new(None, node));
        self.nodes[node].runs.insert(request, tunnel);
        let job = Job { request, urgent: false, items };
        self.post(self.net.far_delay * 2, Msg::Serve { tunnel, job });
    }

    pub fn cancel(&mut self, node: usize, request: RequestId) {
        if let Some(tunnel) = self.nodes[node].runs.remove(&request) {
            self.tunnels.remove(&tunnel);
            return;
        }
        for tunnel in self.tunnels.values_mut().filter(|t| t.client == node) {
            tunnel.urgent.retain(|j| j.request != request);
            tunnel.bulk.retain(|j| j.request != request);
        }
    }

    pub fn serve(&mut self, id: TunnelId, job: Job) {
        let Some(tunnel) = self.tunnels.get_mut(&id) else { return };
        let (client, server) = (tunnel.client, tunnel.server);
        if let Some(server) = server {
            if !self.nodes[server].alive {
                return;
            }
            let busy = self.nodes[server].manner == Manner::Busy && self.rng.u8(..4) == 0;
            let has =
                |key: &Option<BlockKey>| key.is_none_or(|k| self.nodes[server].has.contains(&k));
            let lacks = self.nodes[server].manner == Manner::Denies
                || !job.items.iter().all(|(_, _, key)| has(key));
            let why = match (busy, lacks) {
                (true, _) => Some(Refusal::Busy(MS * 100)),
                (_, true) => Some(Refusal::NotHave),
                _ => None,
            };
            if let Some(why) = why {
                let delay = self.net.delay(Some(server), client);
                self.post(delay, Msg::Tell(client, Event::Refused { request: job.request, why }));
                return;
            }
            if self.nodes[server].manner == Manner::Stalls {
                return;
            }
        }
        let Some(tunnel) = self.tunnels.get_mut(&id) else { return };
        if job.urgent {
            tunnel.urgent.push_back(job);
        } else {
            tunnel.bulk.push_back(job);
        }
        self.pump(id);
    }

    /// Sends as many chunks as the tunnel's window allows.
    pub fn pump(&mut self, id: TunnelId) {
        loop {
            let Some(tunnel) = self.tunnels.get_mut(&id) else { return };
            let far = tunnel.server.is_none_or(|s| !self.net.same_lan(s, tunnel.client));
            // Twice what the line holds, as a sender with a good estimate has.
            let rate = if far { 12.5e6 } else { 125e6 };
            let delay = self.net.delay(tunnel.server, tunnel.client);
            let window = ((rate * delay.as_secs_f64() * 4.0) as u64).max(4 * CHUNK);
            if tunnel.flying >= window {
                return;
            }
            let urgent = !tunnel.urgent.is_empty();
            let queue = if urgent { &mut tunnel.urgent } else { &mut tunnel.bulk };
            let Some(job) = queue.front_mut() else { return };
            let request = job.request;
            let Some((left, len, key)) = job.items.front_mut() else {
                queue.pop_front();
                continue;
            };
            let drips = tunnel.server.is_some_and(|s| self.nodes[s].manner == Manner::Drips);
            let bytes = if drips { 1 } else { CHUNK.min(*left) };
            *left -= bytes;
            let mut block = None;
            if *left == 0 {
                block = key.map(|key| (key, *len));
                job.items.pop_front();
            }
            let end = job.items.is_empty();
            if end {
                queue.pop_front();
            }
            tunnel.flying += bytes;
            let (server, client) = (tunnel.server, tunnel.client);
            self.checks.sent(urgent, bytes);
            let mut at = self.net.send(self.now, server, client, bytes, &mut self.rng);
            if server.is_none() {
                self.registry_bytes += bytes;
            }
            if drips {
                at += Duration::from_secs(1);
            }
            let Some(tunnel) = self.tunnels.get_mut(&id) else { return };
            at = at.max(tunnel.last_arrival);
            tunnel.last_arrival = at;
            let chunk = Chunk { tunnel: id, request, bytes, block, end };
            self.post(at.saturating_sub(self.now), Msg::Chunk(chunk));
            if drips {
                tunnel_stall(&mut self.tunnels, id, window);
                return;
            }
        }
    }

    pub fn arrive(&mut self, chunk: &Chunk) {
        let Some(tunnel) = self.tunnels.get_mut(&chunk.tunnel) else { return };
        let (server, client) = (tunnel.server, tunnel.client);
        if !self.nodes[client].alive || server.is_some_and(|s| !self.nodes[s].alive) {
            return;
        }
        tunnel.flying = tunnel.flying.saturating_sub(chunk.bytes.max(1)).min(tunnel.flying);
        if server.is_some_and(|s| self.nodes[s].manner == Manner::Drips) {
            tunnel.flying = 0;
        }
        let back = self.net.delay(server, client);
        self.post(back, Msg::Pump(chunk.tunnel));
        let request = chunk.request;
        self.tell(client, Event::Progress { request, bytes: chunk.bytes });
        if let Some((key, len)) = chunk.block {
            self.block_came(chunk.tunnel, client, server, request, key, len);
        }
        if chunk.end {
            if server.is_none() {
                self.nodes[client].runs.remove(&request);
                self.tunnels.remove(&chunk.tunnel);
            }
            self.tell(client, Event::Done { request });
        }
    }

    fn block_came(
        &mut self,
        tunnel: TunnelId,
        node: usize,
        server: Option<usize>,
        request: RequestId,
        key: BlockKey,
        len: u64,
    ) {
        let whole = u64::from(self.layer.block);
        if len < whole {
            let Some(tunnel) = self.tunnels.get_mut(&tunnel) else { return };
            let got = tunnel.got.entry(key).or_default();
            *got += len;
            if *got < whole {
                return;
            }
            tunnel.got.remove(&key);
        }
        if server.is_some_and(|s| self.nodes[s].manner == Manner::Lies) {
            self.wrong += 1;
            self.tell(node, Event::Wrong { request, key });
            return;
        }
        // A registry's stream carries what nobody asked for, too.
        if server.is_none()
            && !self.nodes[node].scheduler.is_wanted(&key)
            && !self.nodes[node].has.contains(&key)
        {
            self.keep(node, key);
            return;
        }
        self.checks.arrived(node, &key);
        self.tell(node, Event::Block { request, key, len: whole as u32 });
        self.keep(node, key);
        let number = self.layer.number(&key);
        let now = self.now;
        if let Some(script) = &mut self.nodes[node].script
            && let Some((n, since)) = script.waiting
            && n == number
        {
            script.waiting = None;
            script.times.push(now - since);
            let pause = script.pause;
            self.post(pause, Msg::Step(node));
        }
    }

    fn keep(&mut self, node: usize, key: BlockKey) {
        if !self.nodes[node].has.insert(key) {
            return;
        }
        for (far, wait) in [(false, MS * 2), (true, MS * 100)] {
            let news = &mut self.nodes[node].news[usize::from(far)];
            let first = news.is_empty();
            news.insert(key);
            if first {
                self.post(wait, Msg::FlushHaves { node, far });
            }
        }
    }

    pub fn items(
        &self,
        object: ObjectId,
        extent: &Extent,
    ) -> VecDeque<(u64, u64, Option<BlockKey>)> {
        match extent {
            Extent::Blocks(range) => range
                .clone()
                .map(|index| {
                    let len = u64::from(self.layer.block);
                    (len, len, Some(BlockKey { object, index }))
                })
                .collect(),
            Extent::Part { index, len, .. } => {
                let len = u64::from(*len);
                VecDeque::from([(len, len, Some(BlockKey { object, index: *index }))])
            }
        }
    }
}

/// One byte a second: nothing more until it has arrived.
fn tunnel_stall(tunnels: &mut BTreeMap<TunnelId, Tunnel>, id: TunnelId, window: u64) {
    if let Some(tunnel) = tunnels.get_mut(&id) {
        tunnel.flying = window;
    }
}
