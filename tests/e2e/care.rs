//! What the owner does with the store when nobody asks for anything.

use std::fs;
use std::time::Duration;

use ed25519_dalek::SigningKey;
use peersync::layer::root::{LayerRoot, RootBody};
use peersync::store::{BlobRecord, IndexOrigin, LayerKey, NewLayer, OpenOptions, Store};
use peersync::types::Digest;

use crate::harness::indexed::lazy_image;
use crate::harness::layout::{Compression, Layout, digest, read_manifest};
use crate::harness::peersync::{Peersync, is_alive};
use crate::harness::tar::Tar;
use crate::harness::{needs_mounts, scratch, wait_until};

const CARED: Duration = Duration::from_secs(60);

fn counter(peersync: &Peersync, name: &str) -> u64 {
    let status = peersync.status();
    status["counters"][name].as_u64().unwrap_or_else(|| panic!("no {name} in {status}"))
}

/// A layout with images that differ in one file of the same length.
fn images(tags: &[&str]) -> (tempfile::TempDir, Layout) {
    let place = scratch();
    let mut layout = Layout::create(place.path());
    for tag in tags {
        let mut tar = Tar::new();
        tar.file(b"name", tag.as_bytes()).file(b"large", &tag.repeat(400_000).into_bytes());
        layout.image(tag, &[tar.finish()], Compression::Plain);
    }
    (place, layout)
}

#[test]
fn what_a_crash_left_unverified_is_verified_with_nobody_reading() {
    needs_mounts!();
    let (_place, layout) = images(&["one"]);
    let peersync = Peersync::new();
    let mount = peersync.mount(&layout.reference("one"), &[]);
    peersync.crash();
    drop(mount);
    let mount = peersync.mount(&layout.reference("one"), &[]);
    // The large file and the bundle.
    wait_until("verified", CARED, || counter(&peersync, "objects_verified") >= 2);
    drop(mount);
}

#[test]
fn a_layer_by_a_foreign_index_is_proved_once_it_is_all_here() {
    needs_mounts!();
    let indexed = lazy_image();
    let (_line, image) = indexed.line();
    let peersync = Peersync::new();
    let mount = peersync.mount(&image, &[]);
    assert_eq!(counter(&peersync, "layers_proved"), 0, "nothing is here yet");
    peersync.run(&["pull", &image]);
    let status = peersync.run(&["--json", "layers"]);
    let layers: serde_json::Value = serde_json::from_str(&status).expect("JSON");
    let layers = layers["layers"].as_array().expect("layers").len() as u64;
    wait_until("proved", CARED, || counter(&peersync, "layers_proved") >= layers);
    assert_eq!(counter(&peersync, "layers_quarantined"), 0);
    drop(mount);
}

/// Says that the blob of `victim` has the content of `other`, signed and
/// believed, with all of that content at hand.
fn plant_a_lie(store: &Store, other: &Digest, victim: &Digest) {
    let record = store.blob(other).expect("store").expect("the index of the other layer");
    let root = LayerRoot::decode(&record.root).expect("root");
    let body = RootBody { blob: *victim, diff_id: *victim, ..root.body().clone() };
    let (tree, list) = (body.tree.id, body.blocks.id);
    let parts = [tree, list, body.seek.id, body.skeleton.id];
    let list = store.map_object(&list).expect("store").expect("blocks");
    let specs = peersync::layer::blocks::decode(list.as_ref()).expect("blocks");
    let contents: Vec<_> = specs.iter().map(|spec| spec.id()).collect();
    let liar = SigningKey::from_bytes(&[7; 32]);
    let root = LayerRoot::sign(body, &liar).expect("root");
    let layer = LayerKey { diff_id: *victim, path: None };
    let new = NewLayer { tree, blocks: parts[1], parts: &parts, contents: &contents };
    store.add_layer(&layer, &new).expect("plant a layer");
    let record = BlobRecord { root: root.encode(), layer, origin: IndexOrigin::Registry };
    store.put_blob(victim, &record).expect("plant an index");
}

#[test]
fn an_index_that_lies_is_found_out_and_not_believed_again() {
    needs_mounts!();
    let (_place, layout) = images(&["one", "two"]);
    let blob = |tag: &str| -> Digest {
        let manifest = read_manifest(&layout.dir, tag);
        manifest["layers"][0]["digest"].as_str().expect("digest").parse().expect("digest")
    };
    let peersync = Peersync::new();
    peersync.run(&["pull", &layout.reference("one")]);
    if let Some(owner) = peersync.owner() {
        wait_until("the owner ends", CARED, || !is_alive(owner));
    }
    let store = Store::open(peersync.store(), OpenOptions::default()).expect("store");
    plant_a_lie(&store, &blob("one"), &blob("two"));
    store.close().expect("close");

    // It is found out because all that it speaks of is here.
    let other = peersync.mount(&layout.reference("one"), &[]);
    wait_until("quarantined", CARED, || counter(&peersync, "layers_quarantined") == 1);
    let said = fs::read_to_string(peersync.store().join("owner.log")).expect("log");
    assert!(said.contains("quarantined") && said.contains(&blob("two").to_string()), "{said}");
    let evidence = format!("quarantine/{}.root", blob("two").file_name());
    let evidence = fs::read(peersync.store().join(evidence)).expect("evidence");
    assert_eq!(LayerRoot::decode(&evidence).expect("root").body().blob, blob("two"));

    // Whoever wants the layer now looks for itself.
    let mount = peersync.mount(&layout.reference("two"), &[]);
    assert_eq!(fs::read(mount.join("name")).expect("name"), b"two");
    assert_eq!(
        digest(&fs::read(mount.join("large")).expect("large")),
        digest("two".repeat(400_000).as_bytes())
    );
    // The layer whose content was misused is as it was.
    assert_eq!(fs::read(other.join("name")).expect("name"), b"one");
    drop((mount, other));
}
