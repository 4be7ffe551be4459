//! `PreSchedule`: which tunnel shall bring which piece.
//!
//! Source: PPIO, "Real-time Data Streaming" (`003`), the pre-allocation
//! algorithm. Pieces in order of priority go one after another to the tunnel
//! where they are expected to arrive first; its queue grows by the time that the
//! piece takes. A tunnel with a request in flight starts at that request's
//! expected arrival, an idle one starts now (the source's pseudo code has the
//! test the wrong way round).
//!
//! The source looks at every tunnel for every piece. Here the tunnels that can
//! bring the same pieces stand in one heap, so that a piece costs O(log tunnels).

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

/// Groups of at most this many lanes are searched one by one.
const SCAN_MAX: usize = 12;

/// A tunnel, as the plan sees it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lane {
    /// When it is through with what it has, in seconds from now.
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
    pub bytes: u64,
    /// Which lanes can bring it: a number among the groups.
    pub group: u32,
    /// The caller's name for it.
    pub name: u32,
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
/// In groups of many lanes the choice counts sizes in steps of an eighth of an
/// octave, so that equal pieces share a heap: the chosen lane is the best one
/// for a piece at most 12.5 % larger.
pub fn pre_schedule(lanes: &mut [Lane], groups: &[Vec<u32>], pieces: &mut [Piece]) -> Vec<Placed> {
    pieces.sort_unstable_by_key(|piece| piece.order);
    let mut heaps: HashMap<(u32, u64), Heap> = HashMap::new();
    // Neighbours in the order are mostly alike; this saves looking up the heap.
    let mut last: Option<((u32, u64), Heap)> = None;
    let mut placed = Vec::with_capacity(pieces.len());
    for piece in pieces.iter() {
        let Some(group) = groups.get(piece.group as usize).filter(|g| !g.is_empty()) else {
            continue;
        };
        let lane = if group.len() <= SCAN_MAX {
            scan(lanes, group, piece.bytes)
        } else {
            let size = step(piece.bytes);
            let key = (piece.group, size);
            if last.as_ref().is_none_or(|(k, _)| *k != key) {
                if let Some((key, heap)) = last.take() {
                    heaps.insert(key, heap);
                }
                let heap = heaps.remove(&key).unwrap_or_else(|| Heap::new(lanes, group, size));
                last = Some((key, heap));
            }
            match last.as_mut().and_then(|(_, heap)| heap.earliest(lanes, piece.bytes)) {
                Some(lane) => lane,
                None => continue,
            }
        };
        let Lane { ready, speed } = &mut lanes[lane as usize];
        *ready += piece.bytes as f64 / *speed;
        placed.push(Placed { name: piece.name, lane, arrival: *ready });
    }
    placed
}

fn scan(lanes: &[Lane], group: &[u32], bytes: u64) -> u32 {
    let mut best = (f64::INFINITY, group[0]);
    for lane in group {
        let Lane { ready, speed } = lanes[*lane as usize];
        let arrival = ready + bytes as f64 / speed;
        if arrival < best.0 {
            best = (arrival, *lane);
        }
    }
    best.1
}

/// Rounds up to an eighth of an octave.
fn step(bytes: u64) -> u64 {
    let bits = u64::BITS - bytes.leading_zeros();
    bytes.checked_next_multiple_of(1 << bits.saturating_sub(4)).unwrap_or(bytes)
}

/// The lanes of a group by when a piece of one size would arrive. A lane only
/// gets later during a plan, so an entry that another heap's piece has made
/// stale is a lower bound: it is corrected when it comes to the top.
struct Heap {
    size: f64,
    lanes: BinaryHeap<Reverse<(u64, u32)>>,
}

impl Heap {
    fn new(lanes: &[Lane], group: &[u32], size: u64) -> Self {
        let size = size as f64;
        let entry = |lane: &u32| Reverse((arrival(lanes[*lane as usize], size), *lane));
        Self { size, lanes: group.iter().map(entry).collect() }
    }

    /// The lane where the piece arrives first; counts it in.
    fn earliest(&mut self, lanes: &[Lane], bytes: u64) -> Option<u32> {
        loop {
            let mut top = self.lanes.peek_mut()?;
            let Reverse((at, lane)) = *top;
            let now = arrival(lanes[lane as usize], self.size);
            if at != now {
                *top = Reverse((now, lane));
                continue;
            }
            let Lane { ready, speed } = lanes[lane as usize];
            let ready = ready + bytes as f64 / speed;
            *top = Reverse((arrival(Lane { ready, speed }, self.size), lane));
            return Some(lane);
        }
    }
}

/// Bits of a float that is not negative sort as the float does.
fn arrival(lane: Lane, size: f64) -> u64 {
    (lane.ready.max(0.0) + size / lane.speed).to_bits()
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
                ready + piece.bytes as f64 / speed
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
        prop::collection::vec(lane, 1..40)
    }

    proptest! {
        /// Equal sizes: the heaps give what looking at every lane gives.
        #[test]
        fn as_looking_at_every_lane(lanes in lanes(), pieces in prop::collection::vec(
            (any::<u32>(), 0u32..3), 0..300), seed in any::<u64>()) {
            let mut rng = fastrand::Rng::with_seed(seed);
            let all: Vec<u32> = (0..lanes.len() as u32).collect();
            let some: Vec<u32> = all.iter().copied().filter(|_| rng.bool()).collect();
            let groups = vec![all, some, vec![]];
            let mut pieces: Vec<Piece> = (0u32..).zip(pieces).map(|(name, (order, group))| Piece {
                order: u128::from(order) << 32 | u128::from(name), bytes: 1 << 20, group, name,
            }).collect();
            let expected = reference(&mut lanes.clone(), &groups, &pieces);
            let placed = pre_schedule(&mut lanes.clone(), &groups, &mut pieces);
            prop_assert_eq!(placed.len(), expected.len());
            for (a, b) in placed.iter().zip(&expected) {
                prop_assert_eq!(a.name, b.name);
                prop_assert!((a.arrival - b.arrival).abs() <= 1e-9 * b.arrival.max(1.0));
            }
        }

        /// Any sizes: no piece goes to a lane where one an eighth larger would
        /// have arrived later than elsewhere.
        #[test]
        fn nearly_the_earliest(lanes in lanes(), sizes in prop::collection::vec(1u64..1 << 24, 0..300)) {
            let groups = vec![(0..lanes.len() as u32).collect::<Vec<_>>()];
            let mut pieces: Vec<Piece> = (0u32..).zip(sizes).map(|(name, bytes)| Piece {
                order: u128::from(name), bytes, group: 0, name }).collect();
            let mut state = lanes.clone();
            let placed = pre_schedule(&mut lanes.clone(), &groups, &mut pieces);
            prop_assert_eq!(placed.len(), pieces.len());
            for (piece, placed) in pieces.iter().zip(&placed) {
                let larger = piece.bytes as f64 * 1.125 + 1.0;
                let best = state.iter().map(|l| l.ready + larger / l.speed).fold(f64::MAX, f64::min);
                let chosen = &mut state[placed.lane as usize];
                let bound = best.max(chosen.ready + piece.bytes as f64 / chosen.speed);
                prop_assert!(placed.arrival <= bound * (1.0 + 1e-9));
                prop_assert!(chosen.ready + piece.bytes as f64 / chosen.speed <= best * (1.0 + 1e-9));
                chosen.ready = placed.arrival;
            }
        }

        #[test]
        fn steps_are_within_an_eighth(bytes in any::<u64>()) {
            let step = step(bytes);
            prop_assert!(step >= bytes && step as f64 <= bytes as f64 * 1.125 + 1.0);
        }
    }

    #[test]
    fn an_idle_lane_starts_now_and_a_busy_one_when_it_is_through() {
        let mut lanes = vec![Lane { ready: 3.0, speed: 2.0 }, Lane { ready: 0.0, speed: 1.0 }];
        let piece = |name| Piece { order: u128::from(name), bytes: 2, group: 0, name };
        let placed = pre_schedule(&mut lanes, &[vec![0, 1]], &mut [piece(0), piece(1), piece(2)]);
        let lanes: Vec<u32> = placed.iter().map(|p| p.lane).collect();
        let arrivals: Vec<f64> = placed.iter().map(|p| p.arrival).collect();
        assert_eq!((lanes, arrivals), (vec![1, 0, 0], vec![2.0, 4.0, 5.0]));
    }
}
