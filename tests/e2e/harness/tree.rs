//! Trees as they are: everything that a program can see of a directory tree,
//! read into values that can be compared.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::unistd::{Whence, lseek};

/// What is known of one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) kind: Kind,
    /// The lower 12 bits: permissions, setuid, setgid, sticky.
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    /// Seconds and nanoseconds.
    pub(crate) modified: (i64, i64),
    pub(crate) links: u64,
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory,
    /// Size and BLAKE3 of the content.
    File(u64, blake3::Hash),
    Symlink(Vec<u8>),
    /// Major and minor number.
    CharDevice(u64, u64),
    BlockDevice(u64, u64),
    Fifo,
    Socket,
}

/// A tree by path (relative to its root, which is the empty path).
pub(crate) struct Tree {
    pub(crate) entries: BTreeMap<Vec<u8>, Entry>,
    /// The names of each file that has more than one.
    pub(crate) linked: BTreeSet<BTreeSet<Vec<u8>>>,
}

/// What two trees may differ in.
#[derive(Default)]
pub(crate) struct Allow {
    /// Paths of which times don't count: directories that no layer names get
    /// the time of unpacking.
    pub(crate) times: BTreeSet<Vec<u8>>,
    /// Paths that count on neither side, with all below them.
    pub(crate) paths: BTreeSet<Vec<u8>>,
    /// Link counts of directories: not every file system under the reference keeps them.
    pub(crate) directory_links: bool,
}

impl Tree {
    /// Reads all of a tree.
    pub(crate) fn read(root: &Path) -> Self {
        let mut entries = BTreeMap::new();
        let mut inodes: BTreeMap<(u64, u64), BTreeSet<Vec<u8>>> = BTreeMap::new();
        let mut waiting = vec![PathBuf::new()];
        while let Some(relative) = waiting.pop() {
            let path =
                if relative.as_os_str().is_empty() { root.into() } else { root.join(&relative) };
            let meta = fs::symlink_metadata(&path).unwrap_or_else(|e| panic!("{path:?}: {e}"));
            if meta.is_dir() {
                for child in fs::read_dir(&path).unwrap_or_else(|e| panic!("{path:?}: {e}")) {
                    let child = child.unwrap_or_else(|e| panic!("{path:?}: {e}"));
                    waiting.push(relative.join(child.file_name()));
                }
            } else {
                let name = relative.clone().into_os_string().into_vec();
                inodes.entry((meta.dev(), meta.ino())).or_default().insert(name);
            }
            let entry = Entry::read(&path, &meta);
            entries.insert(relative.into_os_string().into_vec(), entry);
        }
        let linked = inodes.into_values().filter(|names| names.len() > 1).collect();
        Self { entries, linked }
    }

    /// Every difference in words, `self` being how it should be.
    pub(crate) fn differences(&self, other: &Self, allow: &Allow) -> Vec<String> {
        let counts = |path: &[u8]| {
            !allow.paths.iter().any(|skipped| {
                path == skipped || path.starts_with(&[skipped.as_slice(), b"/"].concat())
            })
        };
        let mut found = Vec::new();
        for (path, wanted) in self.entries.iter().filter(|(path, _)| counts(path)) {
            match other.entries.get(path) {
                None => found.push(format!("{}: missing", shown(path))),
                Some(given) => wanted.differences(given, path, allow, &mut found),
            }
        }
        let extra = other.entries.keys().filter(|path| counts(path));
        let extra = extra.filter(|path| !self.entries.contains_key(*path));
        found.extend(extra.map(|path| format!("{}: should not be there", shown(path))));
        for names in self.linked.symmetric_difference(&other.linked) {
            if names.iter().all(|name| counts(name)) {
                let side = if self.linked.contains(names) { "missing" } else { "wrong" };
                let names: Vec<String> = names.iter().map(|name| shown(name)).collect();
                found.push(format!("{side} link group: {}", names.join(" = ")));
            }
        }
        found
    }

    /// Fails with the first differences, if there are any.
    #[track_caller]
    pub(crate) fn assert_same(&self, other: &Self, allow: &Allow) {
        let found = self.differences(other, allow);
        let mut text = String::new();
        for line in found.iter().take(40) {
            let _ = writeln!(text, "  {line}");
        }
        assert!(found.is_empty(), "{} differences\n{text}", found.len());
    }
}

impl Entry {
    fn read(path: &Path, meta: &fs::Metadata) -> Self {
        let (kind, device) = (meta.file_type(), meta.rdev());
        let numbers = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
        let kind = if kind.is_dir() {
            Kind::Directory
        } else if kind.is_symlink() {
            Kind::Symlink(fs::read_link(path).expect("link").into_os_string().into_vec())
        } else if kind.is_char_device() {
            Kind::CharDevice(numbers.0, numbers.1)
        } else if kind.is_block_device() {
            Kind::BlockDevice(numbers.0, numbers.1)
        } else if kind.is_fifo() {
            Kind::Fifo
        } else if kind.is_socket() {
            Kind::Socket
        } else {
            Kind::File(meta.len(), content_hash(path, meta.len()))
        };
        let names = xattr::list(path).unwrap_or_else(|e| panic!("xattrs of {path:?}: {e}"));
        let xattrs = names
            .filter_map(|name| {
                let value = xattr::get(path, &name).ok().flatten()?;
                Some((name.as_bytes().to_vec(), value))
            })
            .collect();
        Self {
            kind,
            mode: meta.mode() & 0o7777,
            owner: (meta.uid(), meta.gid()),
            modified: (meta.mtime(), meta.mtime_nsec()),
            links: meta.nlink(),
            xattrs,
        }
    }

    fn differences(&self, given: &Self, path: &[u8], allow: &Allow, found: &mut Vec<String>) {
        let path_shown = shown(path);
        let mut differ = |what: &str, wanted: String, given: String| {
            if wanted != given {
                found.push(format!("{path_shown}: {what} {given}, should be {wanted}"));
            }
        };
        differ("is", format!("{:?}", self.kind), format!("{:?}", given.kind));
        if !matches!(self.kind, Kind::Symlink(_)) {
            differ("mode", format!("{:o}", self.mode), format!("{:o}", given.mode));
        }
        differ("owner", format!("{:?}", self.owner), format!("{:?}", given.owner));
        if !allow.times.contains(path) {
            differ("time", format!("{:?}", self.modified), format!("{:?}", given.modified));
        }
        if !(allow.directory_links && self.kind == Kind::Directory) {
            differ("links", self.links.to_string(), given.links.to_string());
        }
        differ("xattrs", shown_xattrs(&self.xattrs), shown_xattrs(&given.xattrs));
    }
}

/// BLAKE3 of a file's bytes. Of a file as large as only a sparse one can be
/// here, the blocks that hold more than zeros count, with their places: where
/// exactly a hole ends is the file system's own affair.
fn content_hash(path: &Path, length: u64) -> blake3::Hash {
    const SPARSE: u64 = 1 << 32;
    const BLOCK: u64 = 4096;
    let file = File::open(path).unwrap_or_else(|e| panic!("{path:?}: {e}"));
    let mut hasher = blake3::Hasher::new();
    let (mut at, mut buffer) = (0, vec![0; 1 << 18]);
    while at < length {
        let mut end = length;
        if length >= SPARSE {
            let Some((start, stop)) = next_data(&file, at) else {
                break;
            };
            at = start / BLOCK * BLOCK;
            end = stop;
        }
        while at < end {
            let wanted = buffer.len().min(usize::try_from(length - at).unwrap_or(usize::MAX));
            file.read_exact_at(&mut buffer[..wanted], at)
                .unwrap_or_else(|e| panic!("{path:?} at {at}: {e}"));
            if length < SPARSE {
                hasher.update(&buffer[..wanted]);
            } else {
                for (block, place) in buffer[..wanted].chunks(4096).zip((at..).step_by(4096)) {
                    if block.iter().any(|byte| *byte != 0) {
                        hasher.update(&place.to_le_bytes()).update(block);
                    }
                }
            }
            at += wanted as u64;
        }
    }
    hasher.finalize()
}

/// The next stretch of data at or after `at`.
fn next_data(file: &File, at: u64) -> Option<(u64, u64)> {
    let seek = |at: u64, whence| {
        let to = lseek(file, i64::try_from(at).expect("offset"), whence).ok()?;
        u64::try_from(to).ok()
    };
    let start = seek(at, Whence::SeekData)?;
    Some((start, seek(start, Whence::SeekHole)?))
}

fn shown(path: &[u8]) -> String {
    format!("/{}", path.escape_ascii())
}

fn shown_xattrs(xattrs: &BTreeMap<Vec<u8>, Vec<u8>>) -> String {
    let each = xattrs.iter().map(|(n, v)| format!("{}={}", n.escape_ascii(), v.escape_ascii()));
    each.collect::<Vec<_>>().join(" ")
}
