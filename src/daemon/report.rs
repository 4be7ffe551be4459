//! What a node says of itself: on the control socket and in `.peersync/`.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Weak};

use serde_json::json;
use tracing::warn;

use super::Node;
use crate::admin::{
    ImageInfo, LayerInfo, MountInfo, PeerInfo, Progress, Stage, Status, StoreInfo, SwarmNode,
    TrackerInfo,
};
use crate::fetch::tunnel::{Near, Transport};
use crate::fetch::{PeerStatus, Sources, WorkKind};
use crate::fs::ReadFailure;
use crate::mount::{Mounted, StatusFiles};
use crate::store::{IndexOrigin, LayerKey};
use crate::types::Digest;

impl Node {
    /// How the node is. Blocks for the store's file system.
    pub(super) fn status(&self) -> Status {
        let counters = self.counters.snapshot();
        let count = |name: &str| counters.get(name).copied().unwrap_or(0);
        let bytes = BTreeMap::from([
            ("registry".to_owned(), count("bytes_registry")),
            ("index".to_owned(), count("bytes_index")),
            ("relayed".to_owned(), count("bytes_relayed")),
            ("dedup".to_owned(), count("bytes_dedup")),
            ("lan".to_owned(), count("content_lan")),
            ("remote".to_owned(), count("content_remote")),
            ("wasted".to_owned(), count("content_wasted")),
            ("local".to_owned(), count("bytes_read_resident")),
        ]);
        let stats = self.store.stats();
        let mut all: BTreeMap<String, u64> =
            counters.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        all.insert("blocks_bad_in_store".into(), stats.bad_blocks);
        let (objects, resident_bytes) = self.held();
        let free_bytes = self.store.space().map_or(0, |space| space.free);
        Status {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            uptime_seconds: self.started.elapsed().as_secs(),
            store: StoreInfo {
                path: self.store.path().into(),
                objects,
                resident_bytes,
                free_bytes,
            },
            bytes,
            counters: all,
            mounts: self.mounts.list().iter().map(mount_info).collect(),
            work: self.work(),
            swarm: self.swarm_node(),
            peers: self.engine.links().len() as u64,
            metrics: self.operator().map(|address| format!("http://{address}/metrics")),
        }
    }

    /// This node among its peers.
    pub(super) fn peers(&self) -> (Option<SwarmNode>, Vec<PeerInfo>) {
        (self.swarm_node(), self.engine.peers().iter().map(peer_info).collect())
    }

    fn swarm_node(&self) -> Option<SwarmNode> {
        let swarm = self.swarm.as_ref()?;
        let seen = swarm.view.seen();
        let tracker = seen.tracker.map(|office| TrackerInfo {
            id: office.id.to_string(),
            is_this_node: office.is_me,
            score: office.score,
            since_seconds: office.since.elapsed().as_secs(),
            why: format!(
                "the highest stability of its partition when it was elected, {} of 1000{}",
                office.score,
                if office.is_me { "" } else { ", and its beats come every second" },
            ),
        });
        let (lookups_answered, lookups_failed) = seen.lookups;
        Some(SwarmNode {
            id: swarm.id.to_string(),
            listen: swarm.listen,
            score: seen.score,
            tracker,
            announced_nodes: seen.nodes as u64,
            announced_layers: seen.layers as u64,
            lookups_answered,
            lookups_failed,
        })
    }

    /// Number of the store's objects, and bytes of them that are here.
    pub(super) fn held(&self) -> (u64, u64) {
        match self.store.held() {
            Ok(held) => (held.objects, held.bytes),
            Err(error) => {
                warn!("what the store holds: {error}");
                (0, 0)
            }
        }
    }

    /// The work that goes on.
    pub(super) fn work(&self) -> Vec<Progress> {
        self.images.board().all().iter().map(|work| progress(work)).collect()
    }

    /// What layers are known, in the order of their slots.
    pub(super) fn layers(&self) -> Result<Vec<LayerInfo>, String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let mut blobs: HashMap<LayerKey, Vec<(Digest, IndexOrigin)>> = HashMap::new();
        for (digest, blob) in self.store.blobs().map_err(|e| text(&e))? {
            blobs.entry(blob.layer).or_default().push((digest, blob.origin));
        }
        let mut layers = self.store.layers().map_err(|e| text(&e))?;
        layers.sort_by_key(|(_, record)| record.slot);
        let mut infos = Vec::with_capacity(layers.len());
        for (key, _) in layers {
            let blobs = blobs.remove(&key).unwrap_or_default();
            match self.layer_info(&key, &blobs) {
                Ok(info) => infos.push(info),
                Err(error) => warn!(layer = %key.diff_id, "{error}"),
            }
        }
        Ok(infos)
    }

    fn layer_info(
        &self,
        key: &LayerKey,
        blobs: &[(Digest, IndexOrigin)],
    ) -> Result<LayerInfo, String> {
        let (first, origin) = blobs.first().ok_or("no blob of it is known")?;
        let index = self.locate(first)?;
        let progress = self.store.layer_progress(key).map_err(|e| e.to_string())?;
        Ok(LayerInfo {
            diff_id: key.diff_id.to_string(),
            blobs: blobs.iter().map(|(digest, _)| digest.to_string()).collect(),
            compression: format!("{:?}", index.seek().compression()).to_lowercase(),
            lazy: !index.is_sequential(),
            index: match origin {
                IndexOrigin::Own => "self",
                IndexOrigin::Registry => "registry",
                IndexOrigin::Swarm => "swarm",
            }
            .into(),
            index_bytes: crate::mount::artifact::refs(index.root()).iter().map(|p| p.length).sum(),
            nodes: index.tree().len().into(),
            content_bytes: progress.total,
            resident_bytes: progress.resident,
            popularity: self
                .swarm
                .as_ref()
                .map_or(0, |swarm| thousandths(swarm.view.popularity(first))),
        })
    }

    fn locate(&self, blob: &Digest) -> Result<Arc<crate::fetch::LayerIndex>, String> {
        let index = self.engine.layer_now(blob).map_err(|e| e.to_string())?;
        index.ok_or_else(|| format!("layer {blob} has no index"))
    }

    /// What images are known, by name.
    pub(super) fn image_infos(&self) -> Result<Vec<ImageInfo>, String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let layers = self.store.layers().map_err(|e| text(&e))?;
        let mut infos = Vec::new();
        for (image, record) in self.store.images().map_err(|e| text(&e))? {
            let chain = self.store.chain(&record.chain).map_err(|e| text(&e))?;
            let slots = chain.map(|chain| chain.layers).unwrap_or_default();
            let keys: Vec<&LayerKey> = slots
                .iter()
                .filter_map(|slot| layers.iter().find(|(_, layer)| layer.slot == *slot))
                .map(|(key, _)| key)
                .collect();
            let (mut content_bytes, mut resident_bytes) = (0, 0);
            for key in &keys {
                let progress = self.store.layer_progress(key).map_err(|e| text(&e))?;
                content_bytes += progress.total;
                resident_bytes += progress.resident;
            }
            infos.push(ImageInfo {
                image,
                manifest: record.manifest.to_string(),
                layers: keys.iter().map(|key| key.diff_id.to_string()).collect(),
                content_bytes,
                resident_bytes,
                resolved_at: u64::try_from(record.resolved_at).unwrap_or(0),
            });
        }
        Ok(infos)
    }
}

fn peer_info(peer: &PeerStatus) -> PeerInfo {
    let tunnel = |transport: &Transport| match transport {
        Transport::Tcp => "tcp".to_owned(),
        Transport::Quic => "quic".to_owned(),
    };
    let score = peer.standing.map(|standing| standing.score).unwrap_or_default();
    PeerInfo {
        id: peer.id.to_string(),
        address: peer.address,
        lan: peer.near == Near::Lan,
        zone: zone(&peer.zone),
        score: thousandths(score.utility),
        score_parts: [("net", score.net), ("pop", score.pop), ("custom", score.custom)]
            .map(|(name, value)| (name.to_owned(), thousandths(value)))
            .into(),
        tunnels: peer.tunnels.iter().map(tunnel).collect(),
        speed: peer.standing.map_or(0, |standing| standing.speed as u64),
        received_bytes: peer.received,
        sent_bytes: peer.sent,
        timeouts: peer.standing.map_or(0, |standing| standing.timeouts),
        wrong_blocks: peer.wrong,
        connected_seconds: peer.connected.as_secs(),
    }
}

fn thousandths(points: f64) -> u32 {
    (points * 1000.0).round() as u32
}

/// The parts of a zone that are told.
fn zone(zone: &crate::wire::Zone) -> BTreeMap<String, String> {
    let parts = [
        ("country", &zone.country),
        ("provider", &zone.isp),
        ("state", &zone.state),
        ("city", &zone.city),
    ];
    let told = parts.into_iter().filter(|(_, value)| !value.is_empty());
    told.map(|(name, value)| (name.to_owned(), value.clone())).collect()
}

/// A mount as it is told to clients.
pub(super) fn mount_info(mounted: &Mounted) -> MountInfo {
    MountInfo {
        image: mounted.image.clone(),
        dir: mounted.handle.dir().into(),
        pid: std::process::id(),
    }
}

/// Work as it is told to clients.
pub(super) fn progress(work: &crate::fetch::Work) -> Progress {
    let stage = match work.kind {
        WorkKind::FirstPass => Stage::FirstPass,
        WorkKind::Fetch => Stage::Fetch,
        WorkKind::Push => Stage::Push,
    };
    let sources = match work.kind {
        WorkKind::Fetch => by_source(&work.sources()),
        WorkKind::FirstPass | WorkKind::Push => BTreeMap::new(),
    };
    let layer = work.blob.to_string();
    Progress { layer, stage, done: work.done(), total: work.total, sources }
}

/// Bytes by source as they are told to clients.
pub(super) fn by_source(sources: &Sources) -> BTreeMap<String, u64> {
    sources.by_name().map(|(name, bytes)| (name.to_owned(), bytes)).into()
}

/// The files in `.peersync/`.
pub(super) struct Files(Weak<Node>);

impl Files {
    pub(super) fn new(node: &Arc<Node>) -> Self {
        Self(Arc::downgrade(node))
    }
}

impl StatusFiles for Files {
    fn names(&self) -> &[&'static str] {
        &["version", "stats", "layers", "failures"]
    }

    fn content(&self, name: &str, failures: &[ReadFailure]) -> Vec<u8> {
        let Some(node) = self.0.upgrade() else { return Vec::new() };
        let value = match name {
            "version" => return concat!(env!("CARGO_PKG_VERSION"), "\n").into(),
            "stats" => serde_json::to_value(node.status()),
            "layers" => serde_json::to_value(node.layers().unwrap_or_default()),
            _ => Ok(failures.iter().map(failure).collect()),
        };
        let mut text = value.and_then(|value| serde_json::to_vec(&value)).unwrap_or_default();
        text.push(b'\n');
        text
    }
}

fn failure(failure: &ReadFailure) -> serde_json::Value {
    json!({
        "layer": failure.layer,
        "path": failure.path,
        "offset": failure.span.0,
        "bytes": failure.span.1,
        "reason": failure.reason,
    })
}
