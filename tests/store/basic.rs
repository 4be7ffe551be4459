//! What the store does when nothing goes wrong.

use std::os::unix::fs::FileExt;

use peersync::store::{
    BlobRecord, ImageRecord, IndexOrigin, LayerKey, MetaError, NewLayer, OpenOptions, PutError,
    Removal, Role, SlotOwner, Store, Stream, VerifyPolicy,
};
use peersync::types::{BlockHash, Digest, ObjectId};

use crate::util::{Content, open, options, read_all};

#[test]
fn blocks_are_read_back_before_and_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let content = Content::random(1, 4096, 20_000);
    let id = content.spec.id();
    let store = open(dir.path());
    assert!(store.spec(&id).unwrap().is_none());
    assert!(matches!(store.put_block(&id, 0, &content.block(0)), Err(PutError::Unknown(_))));
    store.add_object(&content.spec).unwrap();
    assert_eq!(store.missing(&id, 0..100), [0, 1, 2, 3, 4]);
    assert!(matches!(
        store.put_block(&id, 1, &content.block(0)),
        Err(PutError::NotInObject { .. })
    ));
    for index in [4, 1, 2] {
        store.put_block(&id, index, &content.block(index)).unwrap();
    }
    assert_eq!(store.missing(&id, 0..100), [0, 3]);
    let mut out = b"before".to_vec();
    assert!(store.read_at(&id, 5000, 3000, &mut out).unwrap());
    assert_eq!(&out[6..], &content.data[5000..8000]);
    assert!(!store.read_at(&id, 0, 10, &mut out).unwrap());
    assert_eq!(out.len(), 3006);
    assert!(store.read_at(&id, 19_999, 2, &mut out).is_err());
    assert_eq!(store.resident_bytes(&id, 0..u64::MAX), 2 * 4096 + 20_000 - 4 * 4096);
    assert_eq!(store.resident_bytes(&id, 4000..5000), 904);
    store.close().unwrap();

    let store = open(dir.path());
    assert_eq!(store.missing(&id, 0..100), [0, 3]);
    assert!(store.backing_file(&id).is_none());
    for index in [0, 3] {
        store.put_block(&id, index, &content.block(index)).unwrap();
    }
    assert!(store.is_complete(&id));
    store.sync().unwrap();
    assert_eq!(read_all(&store, &content).unwrap(), content.data);
    store.close().unwrap();

    let store = open(dir.path());
    assert_eq!(store.spec(&id).unwrap().as_deref(), Some(&content.spec));
    assert_eq!(read_all(&store, &content).unwrap(), content.data);
    let file = store.backing_file(&id).unwrap();
    let mut bytes = vec![0; content.data.len()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(bytes, content.data);
    assert_eq!(&store.map_object(&id).unwrap().unwrap()[..], &content.data[..]);
}

#[test]
fn the_verified_mark_survives_a_clean_close_only() {
    let dir = tempfile::tempdir().unwrap();
    let content = Content::random(2, 4096, 10_000);
    let id = content.spec.id();
    let store = open(dir.path());
    content.put_all(&store);
    store.close().unwrap();
    let store = open(dir.path());
    assert!(store.is_verified(&id), "the mark holds");
    assert!(store.backing_file(&id).is_some());
    // A crash: what is on the disk now, copied away.
    let copy = tempfile::tempdir().unwrap();
    let status = std::process::Command::new("cp")
        .args(["-a", "--"])
        .arg(dir.path().join("."))
        .arg(copy.path())
        .status();
    assert!(status.unwrap().success());
    let crashed = open(copy.path());
    assert!(!crashed.is_verified(&id) && crashed.backing_file(&id).is_none());
    assert_eq!(crashed.verify_object(&id).unwrap(), 0);
    assert!(crashed.backing_file(&id).is_some());
    drop(store);
    // Changed by somebody else after an orderly close: no mark.
    let name = id.to_string();
    let path = dir.path().join("objects").join(&name[..2]).join(&name);
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(&content.data[..1], 0).unwrap();
    let store = open(dir.path());
    assert!(!store.is_verified(&id) && store.backing_file(&id).is_none());
    assert_eq!(read_all(&store, &content).unwrap(), content.data);
    assert!(store.backing_file(&id).is_some(), "read, so verified");
}

#[test]
fn a_bad_block_is_dropped_counted_and_can_be_stored_again() {
    let dir = tempfile::tempdir().unwrap();
    let content = Content::random(3, 4096, 10_000);
    let id = content.spec.id();
    let store = open(dir.path());
    content.put_all(&store);
    store.close().unwrap();
    let name = id.to_string();
    let path = dir.path().join("objects").join(&name[..2]).join(&name);
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(&[!content.data[5000]], 5000).unwrap();
    let store = open(dir.path());
    assert!(store.is_complete(&id));
    assert!(read_all(&store, &content).is_none());
    assert_eq!(store.stats().bad_blocks, 1);
    assert_eq!(store.missing(&id, 0..3), [1]);
    store.sync().unwrap();
    drop(store);
    let store = open(dir.path());
    assert_eq!(store.missing(&id, 0..3), [1]);
    store.put_block(&id, 1, &content.block(1)).unwrap();
    assert_eq!(read_all(&store, &content).unwrap(), content.data);
    drop(store);
    assert!(open(dir.path()).is_complete(&id));
}

/// What a block is hashed for, by policy: a bit that rots before the store is
/// opened, and one that rots after the first read.
#[test]
fn blocks_are_hashed_as_often_as_the_policy_says() {
    for (policy, found_at_once, found_later) in [
        (VerifyPolicy::Always, true, true),
        (VerifyPolicy::FirstRead, true, false),
        (VerifyPolicy::Never, false, false),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let content = Content::random(3, 4096, 10_000);
        let store = open(dir.path());
        content.put_all(&store);
        store.close().unwrap();
        let name = content.spec.id().to_string();
        let path = dir.path().join("objects").join(&name[..2]).join(&name);
        let rot = |at: u64| {
            let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
            file.write_all_at(&[!content.data[at as usize]], at).unwrap();
        };
        rot(5000);
        let store = Store::open(dir.path(), OpenOptions { verify: policy, ..options() }).unwrap();
        let read = |index: u32| {
            let block = content.spec.block(index).unwrap();
            let mut bytes = Vec::new();
            let (offset, len) = (block.offset, block.len as usize);
            store.read_at(&content.spec.id(), offset, len, &mut bytes).unwrap()
        };
        assert_eq!(read(1), !found_at_once, "{policy:?}");
        assert!(read(0) && read(2), "{policy:?}");
        rot(9000);
        assert_eq!(read(2), !found_later, "{policy:?}");
        let found = u64::from(found_at_once) + u64::from(found_later);
        assert_eq!(store.stats().bad_blocks, found, "{policy:?}");
    }
}

#[test]
fn removal_frees_space_and_leaves_open_files_alone() {
    let dir = tempfile::tempdir().unwrap();
    let content = Content::random(4, 4096, 100_000);
    let id = content.spec.id();
    let store = open(dir.path());
    content.put_all(&store);
    store.sync().unwrap();
    let file = store.backing_file(&id).unwrap();
    let map = store.map_object(&id).unwrap().unwrap();
    let freed = store.remove_objects(&[id], Removal::Data).unwrap();
    assert!(freed >= 100_000);
    assert_eq!(&map[..], &content.data[..]);
    let mut bytes = vec![0; content.data.len()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(bytes, content.data);
    assert!(store.spec(&id).unwrap().is_some());
    assert_eq!(store.missing(&id, 0..u32::MAX).len(), 25);
    assert!(read_all(&store, &content).is_none());
    content.put_all(&store);
    assert_eq!(read_all(&store, &content).unwrap(), content.data);
    store.remove_objects(&[id], Removal::Everything).unwrap();
    assert!(store.spec(&id).unwrap().is_none());
    assert!(store.find_block(&content.spec.block(0).unwrap().hash).unwrap().is_none());
    drop(store);
    let store = open(dir.path());
    assert!(store.spec(&id).unwrap().is_none());
}

#[test]
fn content_is_found_by_block_and_by_file() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let a = Content::random(5, 4096, 12_288);
    let mut data = vec![9; 4096];
    data.extend(&a.data[4096..8192]);
    let b = Content::new(4096, data);
    a.put_all(&store);
    let to = store.add_object(&b.spec).unwrap();
    let from = store.find_block(&b.spec.block(1).unwrap().hash).unwrap();
    assert_eq!(from, Some((a.spec.id(), 1)));
    assert!(store.copy_block(from.unwrap(), (to, 1)).unwrap());
    assert!(store.copy_block(from.unwrap(), (to, 0)).is_err());
    assert_eq!(store.missing(&to, 0..2), [0]);
    assert_eq!(store.stats().copied_bytes, 4096);
    let hash = BlockHash::of(&a.data[100..200]);
    store.add_contents([(hash, a.spec.id(), 100, 100), (hash, to, 0, 1)]).unwrap();
    let found = store.find_content(&hash).unwrap();
    assert_eq!(found, [(a.spec.id(), 100, 100), (to, 0, 1)]);
    store.remove_objects(&[a.spec.id()], Removal::Everything).unwrap();
    assert_eq!(store.find_content(&hash).unwrap(), [(to, 0, 1)]);
}

#[test]
fn layers_blobs_chains_images_and_names_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let tree = store.put_object(b"tree").unwrap();
    let blocks = store.put_object(b"blocks").unwrap();
    let content = Content::random(6, 4096, 5000);
    let object = store.add_object(&content.spec).unwrap();
    let key = LayerKey { diff_id: Digest::of(b"layer"), path: None };
    let new = NewLayer { tree, blocks, parts: &[tree, blocks], contents: &[object] };
    let slot = store.add_layer(&key, &new).unwrap();
    assert_eq!(store.add_layer(&key, &new).unwrap(), slot);
    let blob = Digest::of(b"blob");
    let record =
        BlobRecord { root: b"root".to_vec(), layer: key.clone(), origin: IndexOrigin::Own };
    store.put_blob(&blob, &record).unwrap();
    store.add_origin(&blob, "registry.example/a").unwrap();
    let chain = Digest::of(b"chain");
    let chain_slot = store.put_chain(&chain, &[slot]).unwrap();
    let name_slot = store.name_slot("images/docker.io").unwrap();
    let image = ImageRecord {
        manifest: Digest::of(b"{}"),
        chain,
        resolved_at: 1_700_000_000,
        platform: "linux/amd64".into(),
    };
    store.put_image("docker.io/library/x:1", &image).unwrap();
    store.put_document(&Digest::of(b"{}"), b"{}").unwrap();
    assert!(store.put_document(&Digest::of(b"{}"), b"[]").is_err());
    let check = |store: &Store| {
        assert_eq!(store.layer(&key).unwrap().unwrap().slot, slot);
        let roles: Vec<Role> = store.layer_objects(&key).unwrap().iter().map(|o| o.1).collect();
        assert_eq!(roles, [Role::Part, Role::Part, Role::Content(0)]);
        assert_eq!(store.blob(&blob).unwrap().as_ref(), Some(&record));
        assert_eq!(store.homes(&object).unwrap(), [blob]);
        assert_eq!(store.origins(&blob).unwrap(), ["registry.example/a"]);
        assert_eq!(store.slot(slot).unwrap(), Some(SlotOwner::Layer(key.clone())));
        assert_eq!(store.slot(chain_slot).unwrap(), Some(SlotOwner::Chain(chain)));
        assert_eq!(
            store.slot(name_slot).unwrap(),
            Some(SlotOwner::Name("images/docker.io".into()))
        );
        assert_eq!(store.name_slot("images/docker.io").unwrap(), name_slot);
        assert_eq!(store.chain(&chain).unwrap().unwrap().layers, [slot]);
        assert_eq!(store.images().unwrap().len(), 1);
        assert_eq!(store.document(&Digest::of(b"{}")).unwrap().unwrap(), b"{}");
        assert_eq!(store.layer_progress(&key).unwrap().total, 5000);
    };
    check(&store);
    store.close().unwrap();
    let store = open(dir.path());
    check(&store);
    assert!(store.remove_layer(&key).is_err(), "the chain needs it");
    assert!(store.remove_chain(&chain).is_err(), "the image needs it");
    store.remove_objects(&[tree], Removal::Everything).unwrap();
    assert!(store.spec(&tree).unwrap().is_some(), "the layer needs it");
    store.remove_image("docker.io/library/x:1").unwrap();
    store.remove_chain(&chain).unwrap();
    store.remove_layer(&key).unwrap();
    assert!(store.layers().unwrap().is_empty() && store.blobs().unwrap().is_empty());
    assert!(!store.is_referenced(&tree).unwrap());
    assert!(store.homes(&object).unwrap().is_empty());
    assert!(matches!(store.add_layer(&key, &new), Err(MetaError::Incomplete(_))));
    store.put_object(b"tree").unwrap();
    assert!(store.add_layer(&key, &new).unwrap() > name_slot, "slots are not reused");
}

#[test]
fn a_first_pass_goes_on_from_its_last_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let blob = Digest::of(b"blob");
    let content = Content::random(7, 4096, 12_000);
    let store = open(dir.path());
    let staging = store.stage(&blob).unwrap();
    assert!(staging.resumed().is_none() && store.stage(&blob).is_err());
    staging.append(Stream::Literals, b"header").unwrap();
    staging.put(Stream::File(0), 0, &content.block(0)).unwrap();
    staging.checkpoint(b"first").unwrap();
    staging.put(Stream::File(0), 4096, &content.block(1)).unwrap();
    assert!(staging.put(Stream::File(0), 4096, &content.block(1)).is_err());
    drop(staging);
    assert_eq!(store.staged().unwrap(), [blob]);
    store.close().unwrap();

    let store = open(dir.path());
    let staging = store.stage(&blob).unwrap();
    assert_eq!(staging.resumed().unwrap().state, b"first");
    assert_eq!(staging.len(Stream::File(0)), 4096);
    for index in 1..3 {
        let offset = content.spec.block(index).unwrap().offset;
        staging.put(Stream::File(0), offset, &content.block(index)).unwrap();
    }
    let other = Content::random(8, 4096, 12_001);
    assert!(staging.promote(&[(Stream::File(0), other.spec)]).is_err());
    let ids = staging.promote(&[(Stream::File(0), content.spec.clone())]).unwrap();
    assert_eq!(ids, [content.spec.id()] as [ObjectId; 1]);
    assert_eq!(staging.promoted(Stream::File(0)), Some(ids[0]));
    let mut buf = [0; 100];
    assert_eq!(staging.read(Stream::File(0), 4090, &mut buf).unwrap(), 6);
    assert_eq!(staging.read(Stream::File(0), 4096, &mut buf).unwrap(), 100);
    assert_eq!(buf, content.data[4096..4196]);
    assert_eq!(staging.read(Stream::Literals, 2, &mut buf).unwrap(), 4);
    assert!(staging.put(Stream::File(0), 12_000, &content.block(0)).is_err());
    assert_eq!(read_all(&store, &content).unwrap(), content.data);
    staging.discard().unwrap();
    assert!(store.staged().unwrap().is_empty());
    drop(store);
    let store = open(dir.path());
    assert!(store.is_complete(&ids[0]));
    assert_eq!(read_all(&store, &content).unwrap(), content.data);
}

#[test]
fn the_flusher_makes_blocks_durable_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = options();
    options.background_flush = true;
    options.flush.age = std::time::Duration::ZERO;
    let store = Store::open(dir.path(), options).unwrap();
    let content = Content::random(9, 4096, 20_000);
    content.put_all(&store);
    // An event, not a time: the thread has taken all that was stored.
    while store.stats().dirty_bytes > 0 {
        std::thread::yield_now();
    }
    store.close().unwrap();
}

#[test]
fn a_store_can_be_given_back_while_others_hold_it() {
    let dir = tempfile::tempdir().unwrap();
    let content = Content::random(10, 4096, 10_000);
    let id = content.spec.id();
    let store = open(dir.path());
    content.put_all(&store);
    let staging = store.stage(&Digest::of(b"blob")).unwrap();
    store.shutdown().unwrap();
    let next = open(dir.path());
    assert!(next.is_verified(&id), "closed in order");
    assert!(store.put_block(&id, 0, &content.block(0)).is_err());
    assert!(store.name_slot("x").is_err() && store.stage(&Digest::of(b"other")).is_err());
    assert!(staging.checkpoint(b"x").is_err());
    drop(staging);
    store.close().unwrap();
    assert_eq!(read_all(&next, &content).unwrap(), content.data);
}
