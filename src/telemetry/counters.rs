//! The figures of a node. Names, units and meaning stand in one place: here.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use super::metric::{Definition, Kind, Sample};

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

/// `name as "metric" { label: "value" }`, with the meaning as docstring: the
/// metric is `peersync_<metric>_total`, its last word the unit if that is `bytes`
/// or `seconds`.
macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident as $metric:literal
        $({ $($label:ident: $value:literal),+ })?,)+) => {
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

            /// All values with their definitions.
            pub fn samples(&self) -> Vec<Sample> {
                vec![$((
                    Definition {
                        kind: Kind::Counter,
                        name: $metric,
                        labels: &[$($((stringify!($label), $value)),+)?],
                        help: concat!($($doc),+).trim_ascii_start(),
                    },
                    self.$name.get(),
                ),)+]
            }
        }
    };
}

/// As [`counters`], for what is looked at when somebody asks.
macro_rules! readings {
    ($($(#[doc = $doc:literal])+ $name:ident: $kind:ident as $metric:literal
        $({ $($label:ident: $value:literal),+ })?,)+) => {
        /// What is read off a node when somebody asks.
        #[derive(Clone, Debug, Default)]
        pub struct Readings {
            $($(#[doc = $doc])+ pub $name: u64,)+
        }

        impl Readings {
            /// All values with their definitions.
            pub fn samples(&self) -> Vec<Sample> {
                vec![$((
                    Definition {
                        kind: Kind::$kind,
                        name: $metric,
                        labels: &[$($((stringify!($label), $value)),+)?],
                        help: concat!($($doc),+).trim_ascii_start(),
                    },
                    self.$name,
                ),)+]
            }
        }
    };
}

/// Values of [`Counters`] by name.
pub type Snapshot = BTreeMap<&'static str, u64>;

counters! {
    /// Bytes of layer content received from registries, as on the wire.
    bytes_registry as "registry_received_bytes",
    /// Bytes of layers' indexes that were received; from peers, also of manifests and
    /// configs.
    bytes_index as "index_received_bytes" { source: "registry" },
    /// Bytes of manifests, configs and indexes received from peers.
    bytes_index_peers as "index_received_bytes" { source: "peers" },
    /// Bytes of blobs that came from neighbours during first passes.
    bytes_relayed as "relay_received_bytes",
    /// Bytes of blobs that were handed on to neighbours during first passes.
    bytes_handed_on as "relay_sent_bytes",
    /// Bytes of blocks that were had, uncompressed, by where they came from;
    /// "local" is content that the node held under another name.
    bytes_dedup as "content_bytes" { source: "local" },
    /// Bytes of blocks that came from neighbours in the LAN.
    content_lan as "content_bytes" { source: "lan" },
    /// Bytes of blocks that came from peers elsewhere.
    content_remote as "content_bytes" { source: "remote" },
    /// Bytes of blocks that came from registries, uncompressed.
    content_registry as "content_bytes" { source: "registry" },
    /// Bytes of blocks that came although they were here already.
    content_wasted as "content_wasted_bytes",
    /// Bytes of blocks that were given to peers, uncompressed.
    content_served as "content_served_bytes",
    /// Bytes given to readers.
    bytes_read as "read_bytes",
    /// Bytes given to readers without waiting for a source.
    bytes_read_resident as "read_resident_bytes",
    /// Requests for content sent to registries.
    registry_requests as "registry_requests",
    /// Requests or streams that a registry broke off or refused.
    registry_failures as "registry_failures",
    /// Blocks that came with other bytes than their name says, from any source.
    blocks_corrupt as "corrupt_blocks",
    /// First passes over layers that were completed.
    first_passes as "first_passes",
    /// Objects that were verified in the background.
    objects_verified as "objects_verified",
    /// Layers by somebody else's index whose content was proved.
    layers_proved as "layers_proved",
    /// Layers whose index turned out to be a lie.
    layers_quarantined as "layers_quarantined",
    /// Requests to the registry mirror.
    mirror_requests as "mirror_requests",
    /// Tags that the mirror served as last known, because their registry could not be
    /// asked.
    mirror_stale as "mirror_stale_tags",
    /// Bytes evicted: no layer needed them.
    evicted_orphan as "evicted_bytes" { reason: "orphan" },
    /// Bytes evicted: the budget wanted them gone.
    evicted_pressure as "evicted_bytes" { reason: "pressure" },
    /// Bytes evicted: a neighbour promised to keep its copy.
    evicted_spare as "evicted_bytes" { reason: "spare" },
    /// Promises to keep an object that neighbours were asked for.
    promises_asked as "promises" { way: "asked" },
    /// Promises that neighbours gave, signed and proved.
    promises_received as "promises" { way: "received" },
    /// Promises that were given to neighbours.
    promises_given as "promises" { way: "given" },
    /// Promises that were taken back from neighbours.
    promises_withdrawn as "promises" { way: "withdrawn" },
    /// Promises of neighbours that were forged, too short, or without the object.
    promises_false as "promises" { way: "false" },
    /// Objects that came back after they were evicted.
    eviction_misses as "eviction_misses",
    /// Bytes of them.
    eviction_missed_bytes as "eviction_missed_bytes",
    /// Reads that failed because no source made progress.
    reads_failed as "reads_failed",
}

readings! {
    /// Seconds since the node started.
    uptime: Gauge as "uptime_seconds",
    /// Objects of the layers that the store knows.
    store_objects: Gauge as "store_objects",
    /// Bytes of their blocks that are here.
    store_resident: Gauge as "store_resident_bytes",
    /// Bytes free on the store's file system.
    store_free: Gauge as "store_free_bytes",
    /// Bytes that are stored and would be lost with the power.
    store_dirty: Gauge as "store_dirty_bytes",
    /// Bytes that were stored.
    store_stored: Counter as "store_stored_bytes",
    /// Batches that were made durable.
    store_flushes: Counter as "store_flushes",
    /// Blocks in the store that were found wrong when read, and dropped.
    store_bad_blocks: Counter as "store_bad_blocks",
    /// Blocks in the store that the disk could not read, and that were dropped.
    store_unreadable_blocks: Counter as "store_unreadable_blocks",
    /// Whether the store is read-only (1) or not (0).
    store_read_only: Gauge as "store_read_only",
    /// Peers that there are tunnels to.
    peers_lan: Gauge as "peers" { near: "lan" },
    /// Peers elsewhere that there are tunnels to.
    peers_remote: Gauge as "peers" { near: "remote" },
    /// Layers that are worked on.
    work_first_pass: Gauge as "layers_in_work" { stage: "first-pass" },
    /// Layers whose missing content is fetched.
    work_fetch: Gauge as "layers_in_work" { stage: "fetch" },
    /// Whole objects here that no neighbour is known to have, when last looked at.
    copies_one: Gauge as "objects_by_copies" { copies: "1" },
    /// Whole objects here that one neighbour is known to have.
    copies_two: Gauge as "objects_by_copies" { copies: "2" },
    /// Whole objects here that several neighbours are known to have.
    copies_more: Gauge as "objects_by_copies" { copies: "more" },
    /// Mounts that are served.
    mounts: Gauge as "mounts",
    /// Snapshots of containerd that lie on lazy chains.
    snapshots_remote: Gauge as "remote_snapshots",
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn every_figure_has_a_name_a_meaning_and_one_kind() {
        let samples = [Counters::default().samples(), Readings::default().samples()].concat();
        let (mut seen, mut kinds) = (Vec::new(), HashMap::new());
        for (definition, _) in samples {
            let Definition { kind, name, labels, help } = definition;
            assert!(help.ends_with('.') && !help.contains('\n'), "{name}: {help:?}");
            let fine = |c: char| c.is_ascii_lowercase() || c == '_';
            assert!(name.chars().all(fine) && !name.ends_with("_total"), "{name}");
            assert!(!seen.contains(&(name, labels)), "{name} {labels:?} stands twice");
            seen.push((name, labels));
            let first = kinds.entry(name).or_insert((kind, labels.len()));
            assert_eq!(*first, (kind, labels.len()), "{name} is of two kinds");
        }
    }
}
