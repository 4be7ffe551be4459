//! The directories of ordinary snapshots.
//!
//! ```text
//! <root>/meta                    the snapshot table
//! <root>/snapshots/<id>/fs       a snapshot's files (the upper directory while it is active)
//! <root>/snapshots/<id>/work     overlayfs' scratch directory, for active ones
//! <root>/trash/<n>               what is on its way out
//! ```
//!
//! A directory appears under its identifier by one rename, complete, before its
//! record is written, and leaves by one rename into the trash after its record is
//! gone. So a directory without a record is always litter, and a crash at any
//! point leaves nothing worse.

use std::ffi::{CStr, CString};
use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat, renameat};
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::meta::{Content, Kind, State};
use super::mounts;

/// Owner of a directory: user and group.
pub type Owner = (u32, u32);

/// The snapshotter's part of the store.
#[derive(Debug)]
pub struct Directories {
    root: PathBuf,
    discarded: AtomicU64,
}

impl mounts::Directories for Directories {
    fn fs(&self, id: u64) -> PathBuf {
        self.snapshots().join(id.to_string()).join("fs")
    }

    fn work(&self, id: u64) -> PathBuf {
        self.snapshots().join(id.to_string()).join("work")
    }
}

impl Directories {
    /// Makes the directories below `root` that are not there yet, for their owner only.
    ///
    /// # Errors
    /// What the system says.
    pub fn open(root: &Path) -> io::Result<Self> {
        // Trash gets names that no earlier process has used.
        let start = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        #[allow(clippy::cast_possible_truncation)]
        let this = Self { root: root.to_owned(), discarded: AtomicU64::new(start as u64) };
        for directory in [this.root.clone(), this.snapshots(), this.trash()] {
            DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        }
        Ok(this)
    }

    /// The snapshot table's file.
    pub fn meta(&self) -> PathBuf {
        self.root.join("meta")
    }

    /// Makes the directory of snapshot `id`, durably. `owner` is that of the
    /// directory below, whose place this one takes in an overlay; none: ours.
    ///
    /// # Errors
    /// What the system says; nothing is left behind under `id` then.
    pub fn create(&self, id: u64, kind: Kind, owner: Option<Owner>) -> io::Result<()> {
        let new = self.snapshots().join(format!("new-{id}"));
        if fs::symlink_metadata(&new).is_ok() {
            self.discard(&format!("new-{id}"))?;
        }
        let made = self.fill(&new, kind, owner).and_then(|()| {
            let path = self.snapshots().join(id.to_string());
            // An empty directory would be replaced, a full one is an error: an
            // identifier that was given out before an unclean end may have litter.
            if fs::symlink_metadata(&path).is_ok() {
                self.discard(&id.to_string())?;
            }
            fs::rename(&new, path)?;
            File::open(self.snapshots())?.sync_all()
        });
        if made.is_err() {
            let _ = self.discard(&format!("new-{id}"));
            let _ = self.discard(&id.to_string());
        }
        made
    }

    fn fill(&self, new: &Path, kind: Kind, owner: Option<Owner>) -> io::Result<()> {
        let make = |path: &Path, mode| {
            fs::create_dir(path)?;
            // Whatever the umask: these modes show inside containers.
            fs::set_permissions(path, Permissions::from_mode(mode))
        };
        make(new, 0o700)?;
        make(&new.join("fs"), 0o755)?;
        if kind == Kind::Active {
            make(&new.join("work"), 0o711)?;
        }
        if let Some((user, group)) = owner {
            lchown(new.join("fs"), Some(user), Some(group))?;
        }
        Ok(())
    }

    /// Moves the entry `name` out of the snapshots, to be removed by
    /// [`Directories::empty_trash`]. Nothing happens where there is none.
    ///
    /// # Errors
    /// What the system says.
    pub fn discard(&self, name: &str) -> io::Result<()> {
        let number = self.discarded.fetch_add(1, Ordering::Relaxed);
        let away = self.trash().join(format!("{name}-{number:x}"));
        match fs::rename(self.snapshots().join(name), away) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// Names in the snapshots' directory that belong to no record of `state`
    /// and to none of `keep`.
    ///
    /// # Errors
    /// What the system says.
    pub fn orphans(&self, state: &State, keep: &[u64]) -> io::Result<Vec<String>> {
        let mut ids: std::collections::HashSet<String> = state
            .records()
            .values()
            .filter(|record| record.content == Content::Directory)
            .map(|record| record.id.to_string())
            .collect();
        ids.extend(keep.iter().map(u64::to_string));
        let mut orphans = Vec::new();
        for entry in fs::read_dir(self.snapshots())? {
            let name = entry?.file_name();
            match name.to_str() {
                Some(name) if ids.contains(name) => {}
                Some(name) => orphans.push(name.to_owned()),
                None => {
                    // Nothing of ours: the names here are numbers.
                    tracing::warn!(?name, "foreign entry among the snapshots; left alone");
                }
            }
        }
        Ok(orphans)
    }

    /// The owner of the directory at `path`.
    ///
    /// # Errors
    /// What the system says.
    pub fn owner(path: &Path) -> io::Result<Owner> {
        fs::metadata(path).map(|found| (found.uid(), found.gid()))
    }

    /// Whether the files of snapshot `id` are there.
    pub fn exists(&self, id: u64) -> bool {
        use mounts::Directories as _;
        self.fs(id).is_dir()
    }

    /// Removes what was discarded, of any depth. Stops early when `stop` says so.
    ///
    /// # Errors
    /// The first thing that can't be removed (a mount below it, for one); the
    /// rest is removed all the same.
    pub fn empty_trash(&self, stop: impl Fn() -> bool) -> io::Result<()> {
        remove_tree(&self.trash(), stop).map_err(io::Error::from)
    }

    fn snapshots(&self) -> PathBuf {
        self.root.join("snapshots")
    }

    fn trash(&self) -> PathBuf {
        self.root.join("trash")
    }
}

/// Removes everything below `root`. A directory that is not empty is first moved
/// up to `root`, so neither descriptors nor stack nor path lengths grow with the
/// depth of what a container left behind.
///
/// # Errors
/// The first thing that can't be removed; the rest is removed all the same.
pub fn remove_tree(root: &Path, stop: impl Fn() -> bool) -> Result<(), Errno> {
    let root = open(root, directory_flags(), Mode::empty())?;
    let mut moved = 0u64;
    let mut failure = Ok(());
    // What could not be removed: not tried again, or this would never end.
    let mut stuck = std::collections::HashSet::new();
    loop {
        let names: Vec<CString> =
            names(&root)?.into_iter().filter(|name| !stuck.contains(name)).collect();
        if names.is_empty() {
            return failure;
        }
        for name in names {
            if stop() {
                return failure;
            }
            if let Err(error) = remove_flat(&root, &name, &mut moved) {
                failure = failure.and(Err(error));
                stuck.insert(name);
            }
        }
    }
}

/// Removes `name` in `root`; directories in it that are not empty end up in `root`.
fn remove_flat(root: &OwnedFd, name: &CStr, moved: &mut u64) -> Result<(), Errno> {
    match unlinkat(root, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => return Ok(()),
        Err(Errno::EISDIR | Errno::EPERM) => {}
        Err(error) => return Err(error),
    }
    let directory = match openat(root, name, directory_flags(), Mode::empty()) {
        Ok(directory) => directory,
        // An ordinary user's directory without permissions.
        Err(Errno::EACCES) => {
            let path = openat(root, name, OFlag::O_PATH | OFlag::O_NOFOLLOW, Mode::empty())?;
            let mode = Permissions::from_mode(0o700);
            fs::set_permissions(proc_path(&path), mode).map_err(|_| Errno::EACCES)?;
            openat(root, name, directory_flags(), Mode::empty())?
        }
        Err(error) => return Err(error),
    };
    // Root needs no permissions, others do; a failure shows below.
    let _ = fchmod(&directory, Mode::S_IRWXU);
    let mut failure = Ok(());
    for child in names(&directory)? {
        failure = failure.and(remove_child(&directory, &child, root, moved));
    }
    failure?;
    unlinkat(root, name, UnlinkatFlags::RemoveDir)
}

fn remove_child(
    directory: &OwnedFd,
    child: &CStr,
    root: &OwnedFd,
    moved: &mut u64,
) -> Result<(), Errno> {
    match unlinkat(directory, child, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => return Ok(()),
        Err(Errno::EISDIR | Errno::EPERM) => {}
        Err(error) => return Err(error),
    }
    match unlinkat(directory, child, UnlinkatFlags::RemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => return Ok(()),
        Err(Errno::ENOTEMPTY | Errno::EEXIST) => {}
        Err(error) => return Err(error),
    }
    *moved += 1;
    let up =
        CString::new(format!("up-{}-{moved}", std::process::id())).map_err(|_| Errno::EINVAL)?;
    renameat(directory, child, root, &*up)
}

fn names(directory: &OwnedFd) -> Result<Vec<CString>, Errno> {
    // A description of its own: reading it moves nobody else's position.
    let twin = openat(directory, c".", directory_flags(), Mode::empty())?;
    let mut names = Vec::new();
    for entry in Dir::from_fd(twin)?.iter() {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
    }
    Ok(names)
}

fn proc_path(fd: &OwnedFd) -> PathBuf {
    use std::os::fd::AsRawFd;
    PathBuf::from(std::ffi::OsStr::from_bytes(
        format!("/proc/self/fd/{}", fd.as_raw_fd()).as_bytes(),
    ))
}

fn directory_flags() -> OFlag {
    OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC
}

#[cfg(test)]
mod tests {
    use nix::sys::stat::mkdirat;

    use super::mounts::Directories as _;
    use super::*;

    fn names_in(path: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(path)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_snapshot_directory_has_the_modes_that_containers_expect() {
        let root = tempfile::tempdir().unwrap();
        let directories = Directories::open(root.path()).unwrap();
        directories.create(1, Kind::Active, None).unwrap();
        directories.create(2, Kind::View, None).unwrap();
        let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode(directories.fs(1)), 0o755);
        assert_eq!(mode(directories.work(1)), 0o711);
        assert_eq!(mode(directories.snapshots()), 0o700);
        assert!(!directories.work(2).exists());
        assert_eq!(names_in(&directories.snapshots()), ["1", "2"]);
    }

    #[test]
    fn litter_of_an_earlier_life_is_not_taken_over() {
        let root = tempfile::tempdir().unwrap();
        let directories = Directories::open(root.path()).unwrap();
        for litter in ["new-1/fs/x", "1/fs/y"] {
            fs::create_dir_all(directories.snapshots().join(litter)).unwrap();
        }
        directories.create(1, Kind::Active, None).unwrap();
        assert!(names_in(&directories.fs(1)).is_empty());
        assert_eq!(names_in(&directories.snapshots()), ["1"]);
        directories.empty_trash(|| false).unwrap();
        assert!(names_in(&directories.trash()).is_empty());
    }

    #[test]
    fn only_directories_without_a_record_are_orphans() {
        let root = tempfile::tempdir().unwrap();
        let directories = Directories::open(root.path()).unwrap();
        for id in [1, 2, 3] {
            directories.create(id, Kind::Active, None).unwrap();
        }
        fs::create_dir(directories.snapshots().join("new-9")).unwrap();
        let mut state = State::default();
        let (change, _) =
            state.create(Kind::Active, "a", "", &Default::default(), Default::default()).unwrap();
        state.apply(change);
        let mut orphans = directories.orphans(&state, &[3]).unwrap();
        orphans.sort();
        assert_eq!(orphans, ["2", "new-9"]);
        directories.discard("2").unwrap();
        directories.discard("2").unwrap();
        assert_eq!(directories.orphans(&state, &[3]).unwrap(), ["new-9"]);
    }

    #[test]
    fn any_tree_is_removed_whatever_its_depth() {
        let root = tempfile::tempdir().unwrap();
        let directories = Directories::open(root.path()).unwrap();
        directories.create(1, Kind::Active, None).unwrap();
        let mut at = open(&directories.fs(1), directory_flags(), Mode::empty()).unwrap();
        for _ in 0..3000 {
            mkdirat(&at, "deep", Mode::S_IRWXU).unwrap();
            mkdirat(&at, "side", Mode::empty()).unwrap();
            at = openat(&at, "deep", directory_flags(), Mode::empty()).unwrap();
        }
        fs::write(directories.fs(1).join("file"), b"x").unwrap();
        std::os::unix::fs::symlink("/", directories.fs(1).join("link")).unwrap();
        directories.discard("1").unwrap();
        directories.empty_trash(|| false).unwrap();
        assert!(names_in(&directories.trash()).is_empty());
    }

    #[test]
    fn stopping_leaves_the_rest_for_the_next_time() {
        let root = tempfile::tempdir().unwrap();
        let directories = Directories::open(root.path()).unwrap();
        directories.create(1, Kind::Active, None).unwrap();
        directories.discard("1").unwrap();
        directories.empty_trash(|| true).unwrap();
        assert_eq!(names_in(&directories.trash()).len(), 1);
    }
}
