//! Opening what is a store, and what is none.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use nix::libc;
use peersync::store::format::layout::{data_path, object_dir};
use peersync::store::{OpenError, OpenOptions, PutError, Removal, Store, SyncError};

use crate::util::{Content, open, options, read_all};

fn read_only() -> OpenOptions {
    OpenOptions { read_only: true, ..options() }
}

#[test]
fn a_second_owner_is_told_who_has_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let _store = open(dir.path());
    let error = Store::open(dir.path(), options()).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, OpenError::Locked { .. }), "{text}");
    assert!(text.contains(&std::process::id().to_string()), "{text}");
    assert!(text.contains(&dir.path().display().to_string()), "{text}");
    assert!(matches!(Store::open(dir.path(), read_only()), Err(OpenError::Locked { .. })));
}

#[test]
fn what_is_no_store_is_refused_and_not_touched() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, b"x").unwrap();
    assert!(matches!(Store::open(&file, options()), Err(OpenError::NotADirectory(_))));
    assert!(matches!(Store::open(file.join("x"), options()), Err(OpenError::NotADirectory(_))));
    // The directory holds somebody's file.
    let error = Store::open(dir.path(), options()).unwrap_err();
    assert!(error.to_string().contains("file"), "{error}");
    assert!(matches!(error, OpenError::NotAStore { .. }));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    let missing = dir.path().join("missing");
    let no_create = OpenOptions { create: false, ..options() };
    assert!(matches!(Store::open(&missing, no_create), Err(OpenError::NotFound(_))));
    assert!(matches!(Store::open(&missing, read_only()), Err(OpenError::NotFound(_))));
    assert!(!missing.exists());
}

#[test]
fn formats_that_are_newer_or_damaged_are_named() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    let format = dir.path().join("format");
    fs::write(&format, "peersync-store 2\n").unwrap();
    let error = Store::open(dir.path(), options()).unwrap_err();
    assert!(matches!(error, OpenError::NewerFormat { found: 2, known: 1, .. }), "{error}");
    for text in ["", "peersync-store", "something else\n", "peersync-store 99999999999\n"] {
        fs::write(&format, text).unwrap();
        let error = Store::open(dir.path(), options()).unwrap_err();
        assert!(matches!(error, OpenError::FormatDamaged(_)), "{text:?}: {error}");
    }
    fs::remove_file(&format).unwrap();
    let error = Store::open(dir.path(), options()).unwrap_err();
    assert!(matches!(error, OpenError::FormatDamaged(_)), "{error}");
}

#[test]
fn a_database_that_is_missing_or_damaged_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    Content::random(1, 4096, 5000).put_all(&store);
    drop(store);
    let meta = dir.path().join("meta");
    let good = fs::read(&meta).unwrap();
    fs::remove_file(&meta).unwrap();
    let error = Store::open(dir.path(), options()).unwrap_err();
    assert!(matches!(error, OpenError::DatabaseMissing(_)), "{error}");
    for len in [0, 100, 5000] {
        fs::write(&meta, vec![9; len]).unwrap();
        let error = Store::open(dir.path(), options()).unwrap_err();
        assert!(matches!(error, OpenError::DatabaseDamaged { .. }), "{len}: {error}");
    }
    fs::write(&meta, &good[..good.len() / 2]).unwrap();
    let error = Store::open(dir.path(), options()).unwrap_err();
    assert!(matches!(error, OpenError::DatabaseDamaged { .. }), "{error}");
}

#[test]
fn links_in_objects_are_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    let content = Content::random(1, 4096, 5000);
    let id = content.spec.id();
    let store = open(dir.path());
    content.put_all(&store);
    store.close().unwrap();
    // The file is a link to what would be the right bytes.
    let data = dir.path().join(data_path(&id));
    let elsewhere = outside.path().join("data");
    fs::rename(&data, &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &data).unwrap();
    let store = open(dir.path());
    assert!(!matches!(read(&store, &content), Ok(true)));
    assert!(store.backing_file(&id).is_none());
    drop(store);
    // The directory is a link.
    let objects = dir.path().join(object_dir(&id));
    fs::remove_dir_all(&objects).unwrap();
    std::os::unix::fs::symlink(outside.path(), &objects).unwrap();
    let store = open(dir.path());
    assert!(!matches!(read(&store, &content), Ok(true)));
    assert!(store.put_block(&id, 0, &content.block(0)).is_err());
    drop(store);
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
}

fn read(store: &Store, content: &Content) -> Result<bool, peersync::store::ReadError> {
    store.read_at(&content.spec.id(), 0, content.data.len(), &mut Vec::new())
}

#[test]
fn a_store_that_was_opened_read_only_is_served_and_not_changed() {
    let dir = tempfile::tempdir().unwrap();
    let content = Content::random(1, 4096, 20_000);
    let id = content.spec.id();
    let store = open(dir.path());
    content.put_all(&store);
    store.close().unwrap();
    let before = fs::read(dir.path().join("meta")).unwrap();
    let store = Store::open(dir.path(), read_only()).unwrap();
    assert_eq!(read_all(&store, &content).unwrap(), content.data);
    assert!(store.backing_file(&id).is_some() && store.map_object(&id).unwrap().is_some());
    assert!(matches!(store.put_block(&id, 0, &content.block(0)), Err(PutError::ReadOnly)));
    assert!(store.add_object(&Content::random(2, 4096, 1).spec).is_err());
    assert!(store.remove_objects(&[id], Removal::Data).is_err());
    assert!(store.stage(&peersync::types::Digest::of(b"x")).is_err());
    store.sync().unwrap();
    store.close().unwrap();
    assert_eq!(fs::read(dir.path().join("meta")).unwrap(), before);
}

/// Does something as a user without rights; `None` where this one can't become it.
fn as_nobody<T: Send>(work: impl FnOnce() -> T + Send) -> Option<T> {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("not tested: only root can become somebody else");
        return None;
    }
    let done = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: the bare call takes three numbers, and changes who this thread is
            // and no other.
            let done = unsafe { libc::syscall(libc::SYS_setresuid, 65_534, 65_534, 65_534) };
            assert_eq!(done, 0);
            work()
        });
        thread.join()
    });
    Some(done.unwrap())
}

#[test]
fn who_has_no_permission_is_told_so() {
    let place = tempfile::tempdir().unwrap();
    fs::set_permissions(place.path(), Permissions::from_mode(0o755)).unwrap();
    let path = place.path().join("store");
    let content = Content::random(1, 4096, 5000);
    let store = open(&path);
    content.put_all(&store);
    store.close().unwrap();
    let denied = |path: &Path, options: OpenOptions| {
        let Some(error) = as_nobody(|| Store::open(path, options).unwrap_err()) else { return };
        let text = error.to_string();
        assert!(matches!(error, OpenError::Denied { .. }), "{error:?}");
        assert!(text.contains("Permission denied"), "{text}");
        assert!(text.contains(&path.display().to_string()), "{text}");
    };
    // The directory is root's, then only its files are, and one that can't be made.
    denied(&path, options());
    denied(&path, read_only());
    fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
    denied(&path, options());
    denied(&path, read_only());
    denied(&place.path().join("new"), options());
    assert_eq!(read_all(&open(&path), &content).unwrap(), content.data);
}

/// A small file system of its own; `None` without the right to mount one.
struct Small(tempfile::TempDir);

impl Small {
    fn new(size: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "small"])
            .arg(dir.path())
            .status();
        if mounted.is_ok_and(|status| status.success()) {
            Some(Self(dir))
        } else {
            eprintln!("not tested: no right to mount a file system");
            None
        }
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn remount(&self, how: &str) {
        let options = format!("remount,{how}");
        let done = Command::new("mount").args(["-o", &options]).arg(self.path()).status();
        assert!(done.unwrap().success());
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.path()).status();
    }
}

#[test]
fn a_full_disk_serves_what_it_has_and_can_be_emptied() {
    let Some(small) = Small::new("8M") else { return };
    let path = small.path().join("store");
    let store = open(&path);
    let kept = Content::random(1, 65_536, 1 << 20);
    kept.put_all(&store);
    store.sync().unwrap();
    let mut filler = Vec::new();
    let full = loop {
        let content = Content::random(10 + filler.len() as u64, 65_536, 1 << 20);
        let Ok(id) = store.add_object(&content.spec) else { break true };
        let put = (0..content.spec.block_count())
            .map(|index| store.put_block(&id, index, &content.block(index)))
            .find_map(Result::err);
        filler.push(id);
        match put {
            None => {}
            Some(PutError::Full) => break true,
            Some(e) => panic!("{e}"),
        }
        assert!(filler.len() < 100);
    };
    assert!(full);
    match store.sync() {
        Ok(()) | Err(SyncError::Full) => {}
        Err(e) => panic!("{e}"),
    }
    assert_eq!(read_all(&store, &kept).unwrap(), kept.data);
    // Eviction works on a disk that is full to the last byte.
    let _ = fs::write(small.path().join("rest"), vec![1; 8 << 20]);
    let freed = store.remove_objects(&filler, Removal::Data).unwrap();
    assert!(freed > 1 << 20, "{freed}");
    let more = Content::random(2, 65_536, 1 << 20);
    more.put_all(&store);
    store.close().unwrap();
    let store = open(&path);
    assert_eq!(read_all(&store, &kept).unwrap(), kept.data);
    assert_eq!(read_all(&store, &more).unwrap(), more.data);
}

#[test]
fn a_read_only_file_system_is_served() {
    let Some(small) = Small::new("16M") else { return };
    let path = small.path().join("store");
    let content = Content::random(1, 65_536, 1 << 20);
    let store = open(&path);
    content.put_all(&store);
    store.close().unwrap();
    small.remount("ro");
    assert!(matches!(Store::open(&path, options()), Err(OpenError::Denied { .. })));
    let store = Store::open(&path, read_only()).unwrap();
    assert_eq!(read_all(&store, &content).unwrap(), content.data);
    store.close().unwrap();
    let report =
        peersync_fsck::check(&path, &peersync_fsck::Options::default(), &peersync_fsck::Quiet);
    assert_eq!(report.unwrap().exit_code(), 0);
    small.remount("rw");
}
