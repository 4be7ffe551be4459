//! Whom a node has heard in its LAN, and whom of them it should call.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use super::beacon::Beacon;
use crate::types::PeerId;

/// Most nodes that are known at a time.
pub const NEIGHBOURS_MAX: usize = 1024;
/// Most nodes that are known behind one address.
pub const PER_ADDRESS_MAX: usize = 8;
/// A node that was silent for this long is forgotten.
pub const LIFETIME: Duration = Duration::from_secs(60);
/// Of two nodes that hear each other, the one with the greater name waits this
/// long for the other's call before it calls itself.
pub const PATIENCE: Duration = Duration::from_secs(8);

/// The nodes that were heard. Times count from any one point.
#[derive(Debug)]
pub struct Neighbours {
    me: PeerId,
    known: HashMap<PeerId, Known>,
    rejected: u64,
}

#[derive(Debug)]
struct Known {
    address: SocketAddrV4,
    sequence: u64,
    first: Duration,
    last: Duration,
}

/// What to do about a beacon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Nothing: known, one's own, an old one, or one too many.
    Nothing,
    /// Open a tunnel, unless there is one by now.
    Call(PeerId, SocketAddrV4),
}

impl Neighbours {
    /// None yet.
    pub fn new(me: PeerId) -> Self {
        Self { me, known: HashMap::new(), rejected: 0 }
    }

    /// A beacon that was opened. Each of a node's beacons calls for a tunnel, at one
    /// side of the two if that works: one that broke is opened again so.
    pub fn hear(&mut self, beacon: &Beacon, now: Duration) -> Heard {
        let Beacon { peer, sequence, address, .. } = *beacon;
        if peer == self.me {
            return Heard::Nothing;
        }
        self.forget(now);
        let room = self.has_room(*address.ip());
        let first = self.me < peer;
        let Some(known) = self.known.get_mut(&peer) else {
            if !room {
                self.rejected += 1;
                return Heard::Nothing;
            }
            let known = Known { address, sequence, first: now, last: now };
            self.known.insert(peer, known);
            return if first { Heard::Call(peer, address) } else { Heard::Nothing };
        };
        if sequence <= known.sequence {
            self.rejected += 1;
            return Heard::Nothing;
        }
        (known.sequence, known.last) = (sequence, now);
        // A node in two of our networks is heard from both; either address will do.
        known.address = address;
        let due = first || now.saturating_sub(known.first) >= PATIENCE;
        if due { Heard::Call(peer, address) } else { Heard::Nothing }
    }

    /// Those that are there: name, address, time since the last beacon.
    pub fn list(
        &self,
        now: Duration,
    ) -> impl Iterator<Item = (PeerId, SocketAddrV4, Duration)> + '_ {
        let alive = move |known: &&Known| now.saturating_sub(known.last) < LIFETIME;
        let all = self.known.iter().filter(move |(_, known)| alive(known));
        all.map(move |(peer, known)| (*peer, known.address, now.saturating_sub(known.last)))
    }

    /// Beacons of members that were not heeded: old ones, and ones too many.
    pub fn rejected(&self) -> u64 {
        self.rejected
    }

    fn forget(&mut self, now: Duration) {
        self.known.retain(|_, known| now.saturating_sub(known.last) < LIFETIME);
    }

    fn has_room(&self, address: Ipv4Addr) -> bool {
        let same = || self.known.values().filter(|known| *known.address.ip() == address);
        self.known.len() < NEIGHBOURS_MAX && same().count() < PER_ADDRESS_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);
    const ME: PeerId = PeerId([5; 32]);

    fn beacon(peer: [u8; 32], sequence: u64, ip: u32) -> Beacon {
        let address = SocketAddrV4::new(ip.into(), 7400);
        Beacon { peer: PeerId(peer), sequence, address, asks: false }
    }

    #[test]
    fn one_of_two_calls_and_the_other_only_if_no_call_comes() {
        let mut neighbours = Neighbours::new(ME);
        let greater = beacon([9; 32], 1, 10);
        assert_eq!(neighbours.hear(&greater, S), Heard::Call(greater.peer, greater.address));
        let smaller = |sequence| beacon([1; 32], sequence, 11);
        assert_eq!(neighbours.hear(&smaller(1), S), Heard::Nothing);
        assert_eq!(neighbours.hear(&smaller(2), S + PATIENCE / 2), Heard::Nothing);
        let call = Heard::Call(smaller(3).peer, smaller(3).address);
        assert_eq!(neighbours.hear(&smaller(3), S + PATIENCE), call);
        // Its tunnel may have broken since: whoever opens tunnels knows.
        assert_ne!(neighbours.hear(&smaller(4), S * 20), Heard::Nothing);
        assert_eq!(neighbours.hear(&smaller(4), S * 30), Heard::Nothing, "an old one");
    }

    #[test]
    fn what_was_heard_before_is_not_heard_again() {
        let mut neighbours = Neighbours::new(ME);
        assert_ne!(neighbours.hear(&beacon([9; 32], 7, 10), S), Heard::Nothing);
        for old in [7, 6, 0] {
            assert_eq!(neighbours.hear(&beacon([9; 32], old, 66), S), Heard::Nothing);
        }
        assert_eq!(neighbours.rejected(), 3);
        let (_, address, silent) = neighbours.list(S * 2).next().expect("one");
        assert_eq!((address.ip().to_bits(), silent), (10, S));
    }

    #[test]
    fn a_node_that_moved_is_called_where_it_is() {
        let mut neighbours = Neighbours::new(ME);
        neighbours.hear(&beacon([9; 32], 1, 10), S);
        let moved = beacon([9; 32], 2, 20);
        assert_eq!(neighbours.hear(&moved, S), Heard::Call(moved.peer, moved.address));
    }

    #[test]
    fn the_silent_are_forgotten_and_called_when_they_come_back() {
        let mut neighbours = Neighbours::new(ME);
        neighbours.hear(&beacon([9; 32], 9, 10), S);
        assert_eq!(neighbours.list(S + LIFETIME).count(), 0);
        // With its clock set back, too.
        let back = beacon([9; 32], 1, 10);
        assert_eq!(neighbours.hear(&back, S + LIFETIME), Heard::Call(back.peer, back.address));
    }

    #[test]
    fn a_flood_of_names_is_bounded_and_ends() {
        let mut neighbours = Neighbours::new(ME);
        let name = |n: u32| {
            let mut name = [9; 32];
            name[..4].copy_from_slice(&n.to_be_bytes());
            name
        };
        for n in 0..100 {
            neighbours.hear(&beacon(name(n), 1, 10), S);
        }
        assert_eq!(neighbours.list(S).count(), PER_ADDRESS_MAX);
        for n in 100..10_000 {
            neighbours.hear(&beacon(name(n), 1, n), S);
        }
        assert_eq!(neighbours.list(S).count(), NEIGHBOURS_MAX);
        assert_ne!(neighbours.rejected(), 0);
        let honest = beacon([8; 32], 1, 7);
        assert_eq!(neighbours.hear(&honest, S * 2), Heard::Nothing);
        assert_ne!(neighbours.hear(&honest, S + LIFETIME), Heard::Nothing);
    }
}
