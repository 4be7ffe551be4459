//! Who beyond the LAN has which objects, as far as blocks that came from there prove
//! it. What is only announced does not count: nobody drops a copy for it.

use std::collections::{HashMap, VecDeque};

use crate::fetch::engine::Engine;
use crate::types::{ObjectId, PeerId};
use crate::wire::Holding;

/// Objects that are remembered; those that came longest ago go first.
const OBJECTS_MAX: usize = 1 << 14;
/// Holders of one object that are remembered: more make no difference.
const HOLDERS_MAX: usize = 4;

/// Holders by object.
#[derive(Debug, Default)]
pub(super) struct Served {
    holders: HashMap<ObjectId, Vec<PeerId>>,
    order: VecDeque<ObjectId>,
}

impl Served {
    /// A verified block of the object came from the peer.
    pub(super) fn note(&mut self, peer: PeerId, object: ObjectId) {
        let holders = self.holders.entry(object).or_insert_with(|| {
            self.order.push_back(object);
            Vec::new()
        });
        if holders.len() < HOLDERS_MAX && !holders.contains(&peer) {
            holders.push(peer);
        }
        if self.order.len() > OBJECTS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.holders.remove(&oldest);
        }
    }

    /// The peer says what it holds of an object: less than before, perhaps.
    pub(super) fn heard(&mut self, peer: &PeerId, object: &ObjectId, holding: &Holding) {
        if matches!(holding, Holding::Nothing | Holding::Remove(_))
            && let Some(holders) = self.holders.get_mut(object)
        {
            holders.retain(|holder| holder != peer);
        }
    }

    /// The peer is gone.
    pub(super) fn forget(&mut self, peer: &PeerId) {
        self.holders.values_mut().for_each(|holders| holders.retain(|holder| holder != peer));
    }
}

impl Engine {
    /// How many peers beyond the LAN have proved, by a block that they served, that
    /// they have something of an object; those without any are left out.
    pub fn remote_holders(&self) -> HashMap<ObjectId, u32> {
        let state = self.inner.state();
        let served = state.net.iter().flat_map(|net| &net.served.holders);
        let counted = served.filter(|(_, holders)| !holders.is_empty());
        counted.map(|(object, holders)| (*object, holders.len() as u32)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(n: usize) -> ObjectId {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&(n as u64).to_le_bytes());
        ObjectId::from_bytes(bytes)
    }

    #[test]
    fn holders_count_until_they_say_otherwise_or_leave() {
        let mut served = Served::default();
        let peers: Vec<PeerId> = (0..6).map(|n| PeerId([n; 32])).collect();
        for peer in &peers {
            served.note(*peer, object(1));
            served.note(*peer, object(1));
        }
        assert_eq!(served.holders[&object(1)].len(), HOLDERS_MAX);
        served.heard(&peers[0], &object(1), &Holding::All);
        served.heard(&peers[1], &object(1), &Holding::Nothing);
        served.forget(&peers[2]);
        assert_eq!(served.holders[&object(1)], [peers[0], peers[3]]);
        for n in 0..2 * OBJECTS_MAX {
            served.note(peers[0], object(n + 2));
        }
        assert_eq!((served.holders.len(), served.order.len()), (OBJECTS_MAX, OBJECTS_MAX));
    }
}
