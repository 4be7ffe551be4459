//! The checker on a store that is in use.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use peersync::store::format::layout::data_path;
use peersync::store::{OpenError, Store};
use peersync::types::ObjectId;
use peersync_fsck::{FsckError, Kind, Mode, Options, Progress, Quiet, Report};

use crate::populated::Populated;
use crate::util::{Content, open, options};

/// Answers inventories as the daemon does; before each, `meanwhile` happens.
fn serve(
    store: Arc<Store>,
    meanwhile: impl Fn(&Store, Option<&ObjectId>) + Clone + Send + 'static,
) {
    let listener = UnixListener::bind(store.path().join("control.sock")).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (store, meanwhile) = (Arc::clone(&store), meanwhile.clone());
            std::thread::spawn(move || answer(&store, stream.unwrap(), meanwhile));
        }
    });
}

fn answer(store: &Store, mut stream: UnixStream, meanwhile: impl Fn(&Store, Option<&ObjectId>)) {
    let mut request = String::new();
    BufReader::new(&stream).read_line(&mut request).unwrap();
    let request: serde_json::Value = serde_json::from_str(&request).unwrap();
    assert_eq!(request["op"], "inventory");
    let object: Option<ObjectId> = request["object"].as_str().map(|s| s.parse().unwrap());
    meanwhile(store, object.as_ref());
    let lines = match &object {
        Some(object) => store.inventory_object(object),
        None => store.inventory(),
    };
    for line in lines {
        let mut line = serde_json::to_vec(&line).unwrap();
        line.push(b'\n');
        if stream.write_all(&line).is_err() {
            break;
        }
    }
}

fn check(path: &Path) -> Result<Report, FsckError> {
    let options = Options { jobs: 2, ..Options::default() };
    peersync_fsck::check(path, &options, &peersync_fsck::Quiet)
}

fn flip(store: &Path, id: &ObjectId, offset: u64) {
    let path = store.join(data_path(id));
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[!byte[0]], offset).unwrap();
}

#[test]
fn data_is_verified_by_the_owners_inventory() {
    let dir = tempfile::tempdir().unwrap();
    let populated = Populated::new();
    let store = Arc::new(open(dir.path()));
    populated.fill(&store);
    // In use, and nobody answers.
    assert!(matches!(check(dir.path()), Err(FsckError::NoInventory { .. })));
    serve(Arc::clone(&store), |_, _| {});
    let report = check(dir.path()).unwrap();
    assert_eq!((report.exit_code(), report.mode), (0, Mode::Live), "{}", report.summary());
    // Equal index parts are one object.
    let mut blocks = BTreeSet::new();
    for content in populated.contents() {
        let id = content.spec.id();
        blocks.extend((0..content.spec.block_count()).map(|i| (id, i)));
    }
    blocks.retain(|(id, index)| populated.had(id, *index));
    assert_eq!(report.checked.blocks, blocks.len() as u64);
    assert!(!report.unchecked.is_empty());
    let repair = Options { repair: true, jobs: 1 };
    let refused = peersync_fsck::check(dir.path(), &repair, &peersync_fsck::Quiet);
    assert!(matches!(refused, Err(FsckError::InUse { .. })));
    flip(dir.path(), &populated.whole[0].spec.id(), 5000);
    let report = check(dir.path()).unwrap();
    assert_eq!(report.exit_code(), 4);
    assert_eq!(report.counts.keys().collect::<Vec<_>>(), [&Kind::BadBlock]);
    fs::remove_file(dir.path().join(data_path(&populated.whole[1].spec.id()))).unwrap();
    let report = check(dir.path()).unwrap();
    assert!(report.counts.contains_key(&Kind::MissingData), "{}", report.summary());
}

#[test]
fn what_the_owner_drops_meanwhile_is_no_finding() {
    let dir = tempfile::tempdir().unwrap();
    let populated = Populated::new();
    let store = Arc::new(open(dir.path()));
    populated.fill(&store);
    store.sync().unwrap();
    flip(dir.path(), &populated.whole[0].spec.id(), 5000);
    serve(Arc::clone(&store), |store, object| {
        // When the checker asks again, the owner has found it too.
        if let Some(object) = object {
            // Blocks that were put in this session count as verified.
            let mut bytes = vec![0; 4096];
            let path = store.path().join(data_path(object));
            fs::File::open(path).unwrap().read_exact_at(&mut bytes, 4096).unwrap();
            let _ = store.read_block(object, 1);
        }
    });
    let report = check(dir.path()).unwrap();
    assert_eq!(report.exit_code(), 0, "{}", report.summary());
}

/// More than the checker keeps: it asks again while the inventory goes on.
#[test]
fn much_that_is_wrong_is_found_to_the_last_block() {
    const BLOCKS: usize = 40_000;
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(open(dir.path()));
    let contents = [Content::random(1, 16, 16 * BLOCKS), Content::random(2, 16, 16 * BLOCKS)];
    for content in &contents {
        content.put_all(&store);
    }
    store.sync().unwrap();
    serve(Arc::clone(&store), |_, _| {});
    for content in &contents {
        let path = dir.path().join(data_path(&content.spec.id()));
        fs::write(path, vec![7; 16 * BLOCKS]).unwrap();
    }
    let report = check(dir.path()).unwrap();
    assert_eq!(report.exit_code(), 4);
    assert_eq!(report.counts[&Kind::BadBlock].found, 2 * BLOCKS as u64);
    assert_eq!(report.findings.len(), 1000);
    assert_eq!(report.checked.blocks, 2 * BLOCKS as u64);
}

/// Looks at the store, once, while it is being checked.
struct Meanwhile<'a>(&'a Path, AtomicBool);

impl Progress for Meanwhile<'_> {
    fn stage(&self, _name: &'static str, _total: Option<u64>) {
        if self.1.swap(true, Ordering::Relaxed) {
            return;
        }
        let report = check(self.0).unwrap();
        assert_eq!((report.exit_code(), report.mode), (0, Mode::Check), "{}", report.summary());
        let repair = Options { repair: true, jobs: 1 };
        let refused = peersync_fsck::check(self.0, &repair, &Quiet);
        assert!(matches!(refused, Err(FsckError::InUse { .. })), "{refused:?}");
        let locked = Store::open(self.0, options()).map(drop);
        assert!(matches!(locked, Err(OpenError::Locked { .. })), "{locked:?}");
    }

    fn advance(&self, _n: u64) {}
}

#[test]
fn two_that_only_look_share_a_closed_store_and_nobody_changes_it_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    Populated::new().fill(&store);
    store.close().unwrap();
    let meanwhile = Meanwhile(dir.path(), AtomicBool::new(false));
    let options = Options { jobs: 1, ..Options::default() };
    let report = peersync_fsck::check(dir.path(), &options, &meanwhile).unwrap();
    assert_eq!(report.exit_code(), 0, "{}", report.summary());
    assert!(meanwhile.1.load(Ordering::Relaxed));
}
