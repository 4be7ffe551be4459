//! Lines with rate, delay and loss, on a virtual clock.

use std::time::Duration;

/// Data moves in chunks of at most this many bytes.
pub const CHUNK: u64 = 16 << 10;

/// A line: one chunk after another, in the order in which they come to it.
#[derive(Clone, Debug)]
pub struct Line {
    /// Bytes per second.
    pub rate: f64,
    /// All bytes that went over it.
    pub bytes: u64,
    free_at: Duration,
}

impl Line {
    pub fn new(rate: f64) -> Self {
        Self { rate, bytes: 0, free_at: Duration::ZERO }
    }

    /// A chunk that comes to the line at `at`: when it has left it.
    pub fn send(&mut self, at: Duration, bytes: u64) -> Duration {
        self.bytes += bytes;
        self.free_at = self.free_at.max(at) + Duration::from_secs_f64(bytes as f64 / self.rate);
        self.free_at
    }
}

/// Where a node stands: its own lines, and its LAN's to the rest of the world.
#[derive(Debug)]
pub struct Net {
    pub up: Vec<Line>,
    pub down: Vec<Line>,
    pub lan_in: Vec<Line>,
    pub lan_out: Vec<Line>,
    pub registry: Line,
    pub lan_of: Vec<usize>,
    /// One way, inside a LAN.
    pub lan_delay: Duration,
    /// One way, between LANs and to the registry.
    pub far_delay: Duration,
    /// Share of chunks between LANs that come late, because they were lost once.
    pub loss: f64,
}

impl Net {
    /// LANs of the given sizes; rates in bytes per second.
    pub fn new(lans: &[usize], inside: f64, between: f64) -> Self {
        let lan_of: Vec<usize> =
            lans.iter().enumerate().flat_map(|(lan, n)| vec![lan; *n]).collect();
        let (nodes, lans) = (lan_of.len(), lans.len());
        Self {
            up: vec![Line::new(inside); nodes],
            down: vec![Line::new(inside); nodes],
            lan_in: vec![Line::new(between); lans],
            lan_out: vec![Line::new(between); lans],
            registry: Line::new(inside),
            lan_of,
            lan_delay: Duration::from_micros(100),
            far_delay: Duration::from_millis(5),
            loss: 0.0,
        }
    }

    pub fn same_lan(&self, a: usize, b: usize) -> bool {
        self.lan_of[a] == self.lan_of[b]
    }

    /// One-way delay; `None` is the registry.
    pub fn delay(&self, from: Option<usize>, to: usize) -> Duration {
        match from {
            Some(from) if self.same_lan(from, to) => self.lan_delay,
            _ => self.far_delay,
        }
    }

    /// Sends a chunk; gives its time of arrival.
    pub fn send(
        &mut self,
        now: Duration,
        from: Option<usize>,
        to: usize,
        bytes: u64,
        rng: &mut fastrand::Rng,
    ) -> Duration {
        let delay = self.delay(from, to);
        let mut at = match from {
            Some(from) => self.up[from].send(now, bytes),
            None => self.registry.send(now, bytes),
        };
        if !from.is_some_and(|from| self.same_lan(from, to)) {
            if let Some(from) = from {
                at = self.lan_out[self.lan_of[from]].send(at, bytes);
            }
            at = self.lan_in[self.lan_of[to]].send(at, bytes);
            if rng.f64() < self.loss {
                at += delay * 3;
            }
        }
        self.down[to].send(at, bytes) + delay
    }
}
