//! `images`, `layers`, `status` and `index show`.

use std::fmt::Write;

use super::Exit;
use super::owner::Owner;
use crate::admin::{
    Event, FailureKind, ImageInfo, LayerInfo, PeerInfo, Request, Status, SwarmNode,
};
use crate::config::ByteSize;

pub(super) fn images(owner: &Owner) -> Result<(), Exit> {
    match owner.ask(&Request::Images, |_| ())? {
        Event::Images { images } if !owner.json => {
            let rows = images.iter().map(|image| {
                [
                    image.image.clone(),
                    short(&image.manifest),
                    image.layers.len().to_string(),
                    ByteSize(image.content_bytes).to_string(),
                    percent(image.resident_bytes, image.content_bytes),
                ]
            });
            print!("{}", table(["IMAGE", "MANIFEST", "LAYERS", "CONTENT", "HERE"], rows));
            Ok(())
        }
        answer => print_json(&answer),
    }
}

pub(super) fn layers(owner: &Owner) -> Result<(), Exit> {
    match owner.ask(&Request::Layers, |_| ())? {
        Event::Layers { layers } if !owner.json => {
            print!("{}", layer_table(&layers));
            Ok(())
        }
        answer => print_json(&answer),
    }
}

pub(super) fn index_show(owner: &Owner, image: &str) -> Result<(), Exit> {
    let image = super::mount::absolute_image(image)?;
    let (Event::Images { images }, Event::Layers { layers }) =
        (owner.ask(&Request::Images, |_| ())?, owner.ask(&Request::Layers, |_| ())?)
    else {
        return Err(Exit::new(FailureKind::Failed, "the owner's answer is of another kind"));
    };
    let known = |known: &&ImageInfo| known.image == image || known.image == canonical(&image);
    let Some(found) = images.iter().find(known) else {
        let message =
            format!("{image} is not known here: `peersync index build {image}` makes its index");
        return Err(Exit::new(FailureKind::NotFound, message));
    };
    let of_image = |id: &String| layers.iter().find(|layer| layer.diff_id == *id).cloned();
    let layers: Vec<LayerInfo> = found.layers.iter().filter_map(of_image).collect();
    if owner.json {
        return print_json(&Event::Layers { layers });
    }
    print!("{}", layer_table(&layers));
    Ok(())
}

pub(super) fn peers(owner: &Owner) -> Result<(), Exit> {
    match owner.ask(&Request::Peers, |_| ())? {
        Event::Peers { node, peers } if !owner.json => {
            match node {
                Some(node) => println!("{}", swarm_text(&node)),
                None => println!(
                    "this node is alone: set swarm.key_file or swarm.peers (`peersync swarm-key new`)"
                ),
            }
            if !peers.is_empty() {
                print!("{}", peer_table(&peers));
            }
            Ok(())
        }
        answer => print_json(&answer),
    }
}

fn peer_table(peers: &[PeerInfo]) -> String {
    let rows = peers.iter().map(|peer| {
        let address = peer.address.map_or_else(|| "not known".to_owned(), |at| at.to_string());
        let mut tunnels = String::new();
        for kind in ["tcp", "quic"] {
            let count = peer.tunnels.iter().filter(|tunnel| *tunnel == kind).count();
            if count > 0 {
                let gap = if tunnels.is_empty() { "" } else { " " };
                let _ = write!(tunnels, "{gap}{count} {kind}");
            }
        }
        [
            peer.id.clone(),
            address,
            if peer.lan { "LAN" } else { "remote" }.to_owned(),
            zone(peer),
            tunnels,
            format!("{}/s", ByteSize(peer.speed)),
            score(peer),
            ByteSize(peer.received_bytes).to_string(),
            ByteSize(peer.sent_bytes).to_string(),
            format!("{} late, {} wrong", peer.timeouts, peer.wrong_blocks),
        ]
    });
    let heads = [
        "PEER",
        "ADDRESS",
        "WHERE",
        "ZONE",
        "TUNNELS",
        "V_CONN",
        "SCORE",
        "RECEIVED",
        "SENT",
        "PENALTIES",
    ];
    table(heads, rows)
}

/// Country first, as far as it is told.
fn zone(peer: &PeerInfo) -> String {
    let parts = ["country", "provider", "state", "city"];
    let told: Vec<&str> =
        parts.iter().filter_map(|part| peer.zone.get(*part)).map(String::as_str).collect();
    if told.is_empty() { "-".to_owned() } else { told.join("/") }
}

/// The score, and what it is made of.
fn score(peer: &PeerInfo) -> String {
    let points = |thousandths: u32| (f64::from(thousandths) / 1000.0).round();
    let part = |name: &str| peer.score_parts.get(name).map_or(0.0, |value| points(*value));
    format!("{} = net {}, pop {}", points(peer.score), part("net"), part("pop"))
}

/// This node, and its tracker.
fn swarm_text(node: &SwarmNode) -> String {
    let mut text = format!("this node  {}  at {}\n", node.id, node.listen);
    let _ = match &node.tracker {
        Some(tracker) if tracker.is_this_node => writeln!(
            text,
            "tracker    this node, for {} s: {}; {} nodes announce {} layers",
            tracker.since_seconds, tracker.why, node.announced_nodes, node.announced_layers
        ),
        Some(tracker) => writeln!(
            text,
            "tracker    {}, for {} s: {}; this node has {}",
            tracker.id, tracker.since_seconds, tracker.why, node.score
        ),
        None => writeln!(text, "tracker    none: look-ups go to all peers"),
    };
    text
}

pub(super) fn status(owner: &Owner) -> Result<(), Exit> {
    match owner.ask(&Request::Status, |_| ())? {
        Event::Status(status) if owner.json => print_json(&*status),
        Event::Status(status) => {
            print!("{}", status_text(&status));
            Ok(())
        }
        answer => print_json(&answer),
    }
}

/// A table of layers. A layer that a registry can't be asked for in part is marked.
pub(super) fn layer_table(layers: &[LayerInfo]) -> String {
    let rows = layers.iter().map(|layer| {
        [
            short(&layer.diff_id),
            layer.compression.clone(),
            layer.index.clone(),
            ByteSize(layer.index_bytes).to_string(),
            layer.nodes.to_string(),
            ByteSize(layer.content_bytes).to_string(),
            percent(layer.resident_bytes, layer.content_bytes),
            if layer.lazy { "yes" } else { "no: one zstd frame" }.to_owned(),
        ]
    });
    let heads =
        ["LAYER", "COMPRESSION", "INDEX", "SIZE", "NODES", "CONTENT", "HERE", "LAZY FROM REGISTRY"];
    table(heads, rows)
}

/// Writes a value as one line of JSON.
pub(super) fn print_json(value: &impl serde::Serialize) -> Result<(), Exit> {
    let line = serde_json::to_string(value).map_err(|e| Exit::new(FailureKind::Failed, e))?;
    println!("{line}");
    Ok(())
}

fn status_text(status: &Status) -> String {
    let mut text = String::new();
    let store = &status.store;
    let _ = writeln!(
        text,
        "peersync  {} (process {}, up {} s)",
        status.version, status.pid, status.uptime_seconds
    );
    let _ = writeln!(
        text,
        "store     {}: {} objects, {} here, {} free",
        store.path.display(),
        store.objects,
        ByteSize(store.resident_bytes),
        ByteSize(store.free_bytes)
    );
    if let Some(metrics) = &status.metrics {
        let _ = writeln!(text, "metrics   {metrics}");
    }
    if let Some(node) = &status.swarm {
        let _ = writeln!(text, "{}peers      {}", swarm_text(node), status.peers);
    }
    for (source, bytes) in &status.bytes {
        let _ = writeln!(text, "{source:<9} {}", ByteSize(*bytes));
    }
    for mount in &status.mounts {
        let image = mount.image.as_deref().unwrap_or("the whole tree");
        let _ = writeln!(text, "mount     {} on {}", image, mount.dir.display());
    }
    for work in &status.work {
        let _ = writeln!(
            text,
            "working   {} {} of {} bytes",
            short(&work.layer),
            work.done,
            work.total
        );
    }
    text
}

/// Columns as wide as their widest cell.
pub(super) fn table<const N: usize>(
    heads: [&str; N],
    rows: impl Iterator<Item = [String; N]>,
) -> String {
    let rows: Vec<[String; N]> = std::iter::once(heads.map(str::to_owned)).chain(rows).collect();
    let width =
        |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            let _ = write!(line, "{cell:<width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn percent(part: u64, whole: u64) -> String {
    if whole == 0 { "100 %".into() } else { format!("{:.0} %", part as f64 * 100.0 / whole as f64) }
}

fn short(digest: &str) -> String {
    let hex = digest.split(':').next_back().unwrap_or(digest);
    hex.get(..12).unwrap_or(hex).to_owned()
}

fn canonical(image: &str) -> String {
    image
        .parse::<crate::oci::Reference>()
        .map(|r| r.to_string())
        .unwrap_or_else(|_| image.to_owned())
}
