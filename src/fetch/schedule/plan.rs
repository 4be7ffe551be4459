//! `PreSchedule`: which tunnel shall bring which piece.
//!
//! Source: PPIO, "Real-time Data Streaming" (`003`), the pre-allocation
//! algorithm. Pieces in order of priority go one after another to the tunnel
//! where they are expected to arrive first; its queue grows by the time that the
//! piece takes. A tunnel with a request in flight starts at that request's
//! expected arrival, an idle one starts now (the source's pseudo code has the
//! test the wrong way round).
//!
//! The source looks at every tunnel for every piece. Here each peer knows which of
//! its tunnels is next, and peers that hold the same pieces stand in one heap, so
//! that a piece costs O(log peers).

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::Range;

/// Groups of at most this many peers are searched one by one.
const SCAN_MAX: usize = 48;

/// A tunnel, as the plan sees it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lane {
    /// When it is through with what it has, in seconds from now; not negative.
    pub ready: f64,
    /// `V_conn` in bytes per second; above zero.
    pub speed: f64,
}

/// A piece to be placed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Piece {
    /// Its priority: smaller is placed, and served, earlier.
    pub order: u128,
    /// Its size in bytes.
    pub bytes: u32,
    /// Which peers can bring it: a number among the groups.
    pub group: u32,
    /// The caller's name for it.
    pub name: u32,
}

/// Sets of peers that hold the same pieces, by number. They lie one behind the other:
/// a plan looks into one for every piece, in no order, and a set of its own memory
/// each would mean to wait for memory each time.
#[derive(Clone, Debug, Default)]
pub struct Groups {
    ends: Vec<u32>,
    peers: Vec<u16>,
}

impl Groups {
    /// Takes in a set of peers, by their numbers; gives its own.
    pub fn push(&mut self, peers: impl IntoIterator<Item = u16>) -> u32 {
        self.peers.extend(peers);
        self.ends.push(self.peers.len() as u32);
        self.ends.len() as u32 - 1
    }

    /// The peers of a set.
    fn get(&self, group: u32) -> Option<&[u16]> {
        let group = group as usize;
        let start =
            group.checked_sub(1).map_or(Some(0), |before| self.ends.get(before).copied())?;
        self.peers.get(start as usize..*self.ends.get(group)? as usize)
    }

    fn iter(&self) -> impl Iterator<Item = &[u16]> {
        (0..self.ends.len() as u32).filter_map(|group| self.get(group))
    }
}

/// Where a piece goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Placed {
    /// The piece's name.
    pub name: u32,
    /// The lane.
    pub lane: u32,
    /// Expected arrival, in seconds from now.
    pub arrival: f64,
}

/// Sorts the pieces by priority and places each in the lane where it arrives
/// first. Gives them in order of priority; a piece whose group has no lane is
/// left out. `lanes` are left as they would be after all of it.
///
/// `peers` are the lanes of each peer, by number. Lanes are compared by when a piece of the largest size
/// would arrive, so a smaller one arrives no later than the largest could.
pub fn pre_schedule(
    lanes: &mut [Lane],
    peers: &[Range<u32>],
    groups: &Groups,
    pieces: &mut [Piece],
) -> Vec<Placed> {
    pieces.sort_unstable_by_key(|piece| piece.order);
    let largest = pieces.iter().map(|piece| piece.bytes).max().unwrap_or(0);
    let mut peers = Peers::new(lanes, peers, f64::from(largest));
    let large = groups.iter().any(|group| group.len() > SCAN_MAX);
    let mut heaps: Vec<Option<Heap>> = Vec::new();
    heaps.resize_with(if large { groups.ends.len() } else { 0 }, || None);
    let mut placed = Vec::with_capacity(pieces.len());
    for piece in pieces.iter() {
        let Some(group) = groups.get(piece.group) else { continue };
        let peer = if group.len() <= SCAN_MAX {
            group.iter().copied().min_by_key(|peer| peers.at[usize::from(*peer)])
        } else {
            let heap = &mut heaps[piece.group as usize];
            heap.get_or_insert_with(|| Heap::new(&peers.at, group)).first(&peers.at)
        };
        let Some((lane, arrival)) = peer.and_then(|peer| peers.give(peer, piece.bytes)) else {
            continue;
        };
        placed.push(Placed { name: piece.name, lane, arrival });
    }
    for (lane, state) in lanes.iter_mut().zip(peers.lanes) {
        lane.ready = state.ready;
    }
    placed
}

/// A peer without lanes brings nothing, ever.
const NEVER: u64 = u64::MAX;

/// For each peer, on which of its lanes the largest piece would arrive first, and
/// when: as the bits of a float, which sort as it does where it is not negative.
struct Peers<'a> {
    own: &'a [Range<u32>],
    lanes: Vec<State>,
    at: Vec<u64>,
    on: Vec<u32>,
}

/// A lane, in the terms of one plan.
struct State {
    ready: f64,
    /// Seconds for the largest piece, and for a byte.
    largest: f64,
    byte: f64,
}

impl<'a> Peers<'a> {
    fn new(lanes: &[Lane], own: &'a [Range<u32>], largest: f64) -> Self {
        let state = |lane: &Lane| State {
            ready: lane.ready.max(0.0),
            largest: largest / lane.speed,
            byte: 1.0 / lane.speed,
        };
        let lanes = lanes.iter().map(state).collect();
        let (at, on) = (vec![NEVER; own.len()], vec![0; own.len()]);
        let mut peers = Self { own, lanes, at, on };
        (0..own.len()).for_each(|peer| peers.look(peer));
        peers
    }

    /// Gives a peer a piece: on which lane, and when it arrives.
    fn give(&mut self, peer: u16, bytes: u32) -> Option<(u32, f64)> {
        let peer = usize::from(peer);
        if self.at[peer] == NEVER {
            return None;
        }
        let lane = self.on[peer];
        let state = &mut self.lanes[lane as usize];
        state.ready += f64::from(bytes) * state.byte;
        let arrival = state.ready;
        self.look(peer);
        Some((lane, arrival))
    }

    fn look(&mut self, peer: usize) {
        let mut best = (NEVER, 0);
        for lane in self.own[peer].clone() {
            let state = &self.lanes[lane as usize];
            let at = (state.ready + state.largest).to_bits();
            if at < best.0 {
                best = (at, lane);
            }
        }
        (self.at[peer], self.on[peer]) = best;
    }
}

/// The peers of a group by when a piece would arrive. A peer only gets later
/// during a plan, so an entry that another group's piece has made stale is a
/// lower bound: it is corrected when it comes to the top.
struct Heap(BinaryHeap<Reverse<(u64, u16)>>);

impl Heap {
    fn new(at: &[u64], group: &[u16]) -> Self {
        Self(group.iter().map(|peer| Reverse((at[usize::from(*peer)], *peer))).collect())
    }

    fn first(&mut self, at: &[u64]) -> Option<u16> {
        loop {
            let mut top = self.0.peek_mut()?;
            let Reverse((was, peer)) = *top;
            let is = at[usize::from(peer)];
            if was == is {
                return Some(peer);
            }
            *top = Reverse((is, peer));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The source's algorithm, word by word: every lane for every piece.
    fn reference(lanes: &mut [Lane], groups: &[Vec<u32>], pieces: &[Piece]) -> Vec<Placed> {
        let mut pieces = pieces.to_vec();
        pieces.sort_by_key(|p| p.order);
        let mut placed = Vec::new();
        for piece in pieces {
            let arrival = |l: &u32| {
                let Lane { ready, speed } = lanes[*l as usize];
                ready + f64::from(piece.bytes) / speed
            };
            let group = groups[piece.group as usize].iter().copied();
            let Some(lane) = group.min_by(|a, b| arrival(a).total_cmp(&arrival(b))) else {
                continue;
            };
            let arrival = arrival(&lane);
            lanes[lane as usize].ready = arrival;
            placed.push(Placed { name: piece.name, lane, arrival });
        }
        placed
    }

    fn lanes() -> impl Strategy<Value = Vec<Lane>> {
        let lane = (0.0f64..5.0, 1e4f64..1e9).prop_map(|(ready, speed)| Lane { ready, speed });
        prop::collection::vec(lane, 1..140)
    }

    /// One to three lanes for each peer.
    fn peers(lanes: u32, rng: &mut fastrand::Rng) -> Vec<Range<u32>> {
        let mut peers: Vec<Range<u32>> = Vec::new();
        let mut start = 0;
        while start < lanes {
            let end = (start + rng.u32(1..4)).min(lanes);
            peers.push(start..end);
            start = end;
        }
        peers
    }

    proptest! {
        /// Equal sizes: the heaps give what looking at every lane gives.
        #[test]
        fn as_looking_at_every_lane(lanes in lanes(), pieces in prop::collection::vec(
            (any::<u32>(), 0u32..3), 0..300), seed in any::<u64>()) {
            let mut rng = fastrand::Rng::with_seed(seed);
            let peers = peers(lanes.len() as u32, &mut rng);
            let all: Vec<u16> = (0..peers.len() as u16).collect();
            let some: Vec<u16> = all.iter().copied().filter(|_| rng.bool()).collect();
            let mut groups = Groups::default();
            for group in [all, some, vec![]] {
                groups.push(group);
            }
            let flat: Vec<Vec<u32>> = groups.iter().map(|group| {
                group.iter().flat_map(|p| peers[usize::from(*p)].clone()).collect()
            }).collect();
            let mut pieces: Vec<Piece> = (0u32..).zip(pieces).map(|(name, (order, group))| Piece {
                order: u128::from(order) << 32 | u128::from(name), bytes: 1 << 20, group, name,
            }).collect();
            let expected = reference(&mut lanes.clone(), &flat, &pieces);
            let mut lanes = lanes;
            let placed = pre_schedule(&mut lanes, &peers, &groups, &mut pieces);
            prop_assert_eq!(placed.len(), expected.len());
            for (a, b) in placed.iter().zip(&expected) {
                prop_assert_eq!(a.name, b.name);
                prop_assert!((a.arrival - b.arrival).abs() <= 1e-9 * b.arrival.max(1.0));
            }
        }

        /// Any sizes: every piece arrives no later than the largest one could.
        #[test]
        fn no_later_than_the_largest(lanes in lanes(), sizes in prop::collection::vec(1u32..1 << 24, 1..300)) {
            let peers: Vec<Range<u32>> = (0..lanes.len() as u32).map(|n| n..n + 1).collect();
            let mut groups = Groups::default();
            groups.push(0..lanes.len() as u16);
            let largest = f64::from(sizes.iter().copied().max().unwrap_or(0));
            let mut pieces: Vec<Piece> = (0u32..).zip(sizes).map(|(name, bytes)| Piece {
                order: u128::from(name), bytes, group: 0, name }).collect();
            let mut state = lanes.clone();
            let mut lanes = lanes;
            let placed = pre_schedule(&mut lanes, &peers, &groups, &mut pieces);
            prop_assert_eq!(placed.len(), pieces.len());
            for placed in &placed {
                let best = state.iter().map(|l| l.ready + largest / l.speed).fold(f64::MAX, f64::min);
                prop_assert!(placed.arrival <= best * (1.0 + 1e-9));
                state[placed.lane as usize].ready = placed.arrival;
            }
        }
    }

    #[test]
    fn an_idle_lane_starts_now_and_a_busy_one_when_it_is_through() {
        let mut lanes = vec![Lane { ready: 3.0, speed: 2.0 }, Lane { ready: 0.0, speed: 1.0 }];
        let piece = |name| Piece { order: u128::from(name), bytes: 2, group: 0, name };
        let mut groups = Groups::default();
        groups.push([0, 1]);
        let pieces = &mut [piece(0), piece(1), piece(2)];
        let placed = pre_schedule(&mut lanes, &[0..1, 1..2], &groups, pieces);
        let lanes: Vec<u32> = placed.iter().map(|p| p.lane).collect();
        let arrivals: Vec<f64> = placed.iter().map(|p| p.arrival).collect();
        assert_eq!((lanes, arrivals), (vec![1, 0, 1], vec![2.0, 4.0, 4.0]));
    }
}
