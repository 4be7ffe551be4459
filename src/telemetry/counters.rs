//! The counters of a node. Names, units and meaning stand in one place.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

/// A counter that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds to it.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// Its value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// Everything that is counted since the node started.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[doc = $doc])+ pub $name: Counter,)+
        }

        impl Counters {
            /// All values by name.
            pub fn snapshot(&self) -> Snapshot {
                BTreeMap::from([$((stringify!($name), self.$name.get()),)+])
            }
        }
    };
}

/// Values of [`Counters`] by name.
pub type Snapshot = BTreeMap<&'static str, u64>;

counters! {
    /// Bytes of layer content received from registries, as on the wire.
    bytes_registry,
    /// Bytes of manifests, configs and indexes received from registries.
    bytes_index,
    /// Bytes of manifests, configs and indexes received from peers.
    bytes_index_peers,
    /// Bytes of blocks that were assembled from content held locally.
    bytes_dedup,
    /// Bytes of blocks that came from neighbours in the LAN.
    content_lan,
    /// Bytes of blocks that came from peers elsewhere.
    content_remote,
    /// Bytes of blocks that came from registries, uncompressed.
    content_registry,
    /// Bytes of blocks that came although they were here already.
    content_wasted,
    /// Bytes given to readers.
    bytes_read,
    /// Bytes given to readers without waiting for a source.
    bytes_read_resident,
    /// Requests for content sent to registries.
    registry_requests,
    /// Requests or streams that a registry broke off or refused.
    registry_failures,
    /// Blocks whose bytes were not what their name says, from any source.
    blocks_corrupt,
    /// First passes over layers that were completed.
    first_passes,
    /// Objects that were verified in the background.
    objects_verified,
    /// Layers by somebody else's index whose content was proved.
    layers_proved,
    /// Layers whose index turned out to be a lie.
    layers_quarantined,
    /// Reads that failed because no source made progress.
    reads_failed,
}
