//! Who has told this node that it has a layer.
//!
//! Invariants: never more than [`RECORDS_MAX`] records of others, of those
//! [`PER_NODE_MAX`] of one node and [`PER_LAYER_MAX`] of one layer; values, which
//! Kademlia can keep besides, are not kept at all.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::iter::Empty;
use std::time::Instant;

use libp2p_core::Multiaddr;
use libp2p_core::PeerId as Libp2pId;
use libp2p_kad::store::{Error, RecordStore, Result};
use libp2p_kad::{ProviderRecord, Record, RecordKey};

use super::LIFETIME;
use super::transport::{libp2p_id, node_of};
use crate::types::PeerId;

/// Records of others that are kept: about 200 bytes each.
pub const RECORDS_MAX: usize = 32 << 10;
/// Of these, from one node.
pub const PER_NODE_MAX: usize = 4096;
/// Of these, of one layer: a look-up needs few.
pub const PER_LAYER_MAX: usize = 32;

type Key = [u8; 32];

struct Kept {
    expires: Instant,
    address: Multiaddr,
}

/// The records. It stands where libp2p's `MemoryStore` would, which holds 1,024
/// keys and lets one node take them all.
pub(super) struct Records {
    me: Libp2pId,
    /// Layers of this node.
    own: HashSet<Key>,
    kept: BTreeMap<(Key, PeerId), Kept>,
    of_node: HashMap<PeerId, usize>,
}

impl Records {
    pub(super) fn new(me: Libp2pId) -> Self {
        Self { me, own: HashSet::new(), kept: BTreeMap::new(), of_node: HashMap::new() }
    }

    /// Records of others.
    pub(super) fn len(&self) -> usize {
        self.kept.len()
    }

    /// A node says that it has a layer, and can be called at `address`. `false` if
    /// there is no room.
    pub(super) fn keep(
        &mut self,
        key: Key,
        peer: PeerId,
        address: Multiaddr,
        now: Instant,
    ) -> bool {
        let expires = now + LIFETIME;
        if let Some(kept) = self.kept.get_mut(&(key, peer)) {
            *kept = Kept { expires, address };
            return true;
        }
        if self.is_full(&key, &peer) {
            self.sweep(now);
        }
        if self.is_full(&key, &peer) {
            return false;
        }
        self.kept.insert((key, peer), Kept { expires, address });
        *self.of_node.entry(peer).or_default() += 1;
        true
    }

    fn is_full(&self, key: &Key, peer: &PeerId) -> bool {
        self.kept.len() >= RECORDS_MAX
            || self.of_node.get(peer).is_some_and(|count| *count >= PER_NODE_MAX)
            || self.of_layer(key).count() >= PER_LAYER_MAX
    }

    /// Drops what has expired.
    pub(super) fn sweep(&mut self, now: Instant) {
        self.retain(|_, kept| kept.expires > now);
    }

    /// Drops what nodes have said that are not admitted any more.
    pub(super) fn retain_nodes(&mut self, admitted: impl Fn(&PeerId) -> bool) {
        self.retain(|peer, _| admitted(peer));
    }

    fn retain(&mut self, keep: impl Fn(&PeerId, &Kept) -> bool) {
        let of_node = &mut self.of_node;
        self.kept.retain(|(_, peer), kept| {
            let stays = keep(peer, kept);
            if !stays {
                uncount(of_node, peer);
            }
            stays
        });
    }

    fn of_layer(&self, key: &Key) -> impl Iterator<Item = (&PeerId, &Kept)> {
        let of = |byte| (*key, PeerId([byte; 32]));
        self.kept.range(of(0)..=of(255)).map(|((_, peer), kept)| (peer, kept))
    }
}

fn uncount(of_node: &mut HashMap<PeerId, usize>, peer: &PeerId) {
    if let Some(count) = of_node.get_mut(peer) {
        *count -= 1;
        if *count == 0 {
            of_node.remove(peer);
        }
    }
}

/// Names are 32 bytes long; what is not is nobody's.
pub(super) fn key(key: &RecordKey) -> Option<Key> {
    key.as_ref().try_into().ok()
}

impl RecordStore for Records {
    type RecordsIter<'a> = Empty<Cow<'a, Record>>;
    type ProvidedIter<'a> = Empty<Cow<'a, ProviderRecord>>;

    fn get(&self, _key: &RecordKey) -> Option<Cow<'_, Record>> {
        None
    }

    fn put(&mut self, _record: Record) -> Result<()> {
        Err(Error::MaxRecords)
    }

    fn remove(&mut self, _key: &RecordKey) {}

    fn records(&self) -> Self::RecordsIter<'_> {
        std::iter::empty()
    }

    /// Of this node itself: others' come by way of [`Records::keep`].
    fn add_provider(&mut self, record: ProviderRecord) -> Result<()> {
        match key(&record.key) {
            Some(key) if record.provider == self.me => {
                self.own.insert(key);
                Ok(())
            }
            _ => Err(Error::MaxProvidedKeys),
        }
    }

    fn providers(&self, of: &RecordKey) -> Vec<ProviderRecord> {
        let Some(name) = key(of) else { return Vec::new() };
        let now = Instant::now();
        let record = |provider, expires, addresses| ProviderRecord {
            key: of.clone(),
            provider,
            expires,
            addresses,
        };
        let own = self.own.contains(&name).then(|| record(self.me, None, Vec::new()));
        let others = self.of_layer(&name).filter(|(_, kept)| kept.expires > now);
        let others = others.map(|(peer, kept)| {
            record(libp2p_id(peer), Some(kept.expires), vec![kept.address.clone()])
        });
        own.into_iter().chain(others).collect()
    }

    /// None: when own records are told again says `schedule`.
    fn provided(&self) -> Self::ProvidedIter<'_> {
        std::iter::empty()
    }

    fn remove_provider(&mut self, of: &RecordKey, provider: &Libp2pId) {
        let Some(name) = key(of) else { return };
        if *provider == self.me {
            self.own.remove(&name);
            return;
        }
        let Some(peer) = node_of(provider) else { return };
        if self.kept.remove(&(name, peer)).is_some() {
            uncount(&mut self.of_node, &peer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn node(n: u32) -> PeerId {
        let mut name = [7; 32];
        name[..4].copy_from_slice(&n.to_be_bytes());
        PeerId(name)
    }

    fn of_node_0() -> Records {
        Records::new(libp2p_id(&node(0)))
    }

    fn layer(n: u32) -> Key {
        *blake3::hash(&n.to_le_bytes()).as_bytes()
    }

    fn address() -> Multiaddr {
        "/ip4/10.0.0.1/tcp/7401".parse().expect("address")
    }

    fn holders(records: &Records, n: u32) -> Vec<PeerId> {
        let found = records.providers(&RecordKey::from(layer(n).to_vec()));
        found.into_iter().filter_map(|record| node_of(&record.provider)).collect()
    }

    #[test]
    fn one_node_can_take_a_part_of_the_table_only() {
        let (mut records, now) = (of_node_0(), Instant::now());
        let kept = (0..PER_NODE_MAX as u32 * 2)
            .filter(|n| records.keep(layer(*n), node(1), address(), now));
        assert_eq!(kept.count(), PER_NODE_MAX);
        assert!(records.keep(layer(1 << 20), node(2), address(), now));
        // What is known already is renewed at any time.
        assert!(records.keep(layer(0), node(1), address(), now));
        assert_eq!(records.len(), PER_NODE_MAX + 1);
    }

    #[test]
    fn many_nodes_fill_neither_a_layer_nor_the_table() {
        let (mut records, now) = (of_node_0(), Instant::now());
        let kept = (1..100).filter(|n| records.keep(layer(0), node(*n), address(), now));
        assert_eq!(kept.count(), PER_LAYER_MAX);
        assert_eq!(holders(&records, 0).len(), PER_LAYER_MAX);
        for n in 0..RECORDS_MAX as u32 + 100 {
            records.keep(layer(n / 8 + 1), node(n), address(), now);
        }
        assert_eq!(records.len(), RECORDS_MAX);
        // Everything is old some day, and makes room.
        assert!(records.keep(layer(1 << 20), node(1), address(), now + LIFETIME));
        assert_eq!((records.len(), records.of_node.len()), (1, 1));
    }

    #[test]
    fn what_is_old_or_revoked_is_not_given_to_anybody() {
        let mut records = of_node_0();
        let now = Instant::now();
        let long_ago = now.checked_sub(LIFETIME + Duration::from_secs(1));
        if let Some(then) = long_ago {
            records.keep(layer(0), node(1), address(), then);
        }
        records.keep(layer(0), node(2), address(), now);
        records.keep(layer(0), node(3), address(), now);
        records.keep(layer(1), node(4), address(), now);
        assert_eq!(holders(&records, 0), [node(2), node(3)]);
        records.retain_nodes(|peer| *peer != node(2));
        assert_eq!(holders(&records, 0), [node(3)]);
        let own = ProviderRecord::new(layer(0).to_vec(), libp2p_id(&node(0)), Vec::new());
        records.add_provider(own).expect("own");
        assert_eq!(holders(&records, 0), [node(0), node(3)]);
        let forged = ProviderRecord::new(layer(0).to_vec(), libp2p_id(&node(9)), Vec::new());
        assert!(records.add_provider(forged).is_err());
        records.remove_provider(&RecordKey::from(layer(0).to_vec()), &libp2p_id(&node(0)));
        assert_eq!(holders(&records, 0), [node(3)]);
    }
}
