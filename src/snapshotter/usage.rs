//! How much room a directory takes.

use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};

use super::meta::Usage;

/// A relative path longer than this is continued from a descriptor of its own,
/// so that a tree of any depth can be walked with few descriptors and without
/// paths that the kernel refuses.
const REBASE: usize = 2048;

/// What a walk found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measured {
    /// The whole tree was seen.
    Complete(Usage),
    /// The walk stopped at its limit; the tree takes at least this.
    AtLeast(Usage),
}

impl Measured {
    /// What was counted.
    pub fn usage(self) -> Usage {
        match self {
            Self::Complete(usage) | Self::AtLeast(usage) => usage,
        }
    }
}

/// Counts the allocated bytes and inodes at and below `root`, a file with several
/// names once, as containerd's `DiskUsage` does. Stops after `limit` entries.
///
/// The tree may change meanwhile (a container runs in it): what vanishes is not
/// counted, symbolic links are never followed.
///
/// # Errors
/// `root` can't be opened, or a directory in it can't be read.
pub fn measure(root: &Path, limit: usize) -> Result<Measured, Errno> {
    let root = open(root, directory_flags(), Mode::empty())?;
    let mut usage = Usage::default();
    let mut linked = HashSet::new();
    add(&mut usage, &mut linked, &fstat(&root)?);
    let mut left = limit;
    let mut pending = vec![Place { base: Arc::new(root), path: c".".to_owned() }];
    while let Some(place) = pending.pop() {
        let Some(fd) =
            vanished(openat(&*place.base, &*place.path, directory_flags(), Mode::empty()))?
        else {
            continue;
        };
        let fd = Arc::new(fd);
        let twin = fd.try_clone().map_err(|_| Errno::EMFILE)?;
        for entry in Dir::from_fd(twin)?.iter() {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            if left == 0 {
                return Ok(Measured::AtLeast(usage));
            }
            left -= 1;
            let found = fstatat(&*fd, name, AtFlags::AT_SYMLINK_NOFOLLOW);
            let Some(stat) = vanished(found)? else { continue };
            add(&mut usage, &mut linked, &stat);
            if is_directory(&stat) {
                pending.push(place.below(name, &fd)?);
            }
        }
    }
    Ok(Measured::Complete(usage))
}

/// A directory still to be walked.
struct Place {
    base: Arc<OwnedFd>,
    path: CString,
}

impl Place {
    /// The child `name` of this place, which `own` is open on.
    fn below(&self, name: &CStr, own: &Arc<OwnedFd>) -> Result<Self, Errno> {
        if self.path.count_bytes() + name.count_bytes() >= REBASE {
            return Ok(Self { base: Arc::clone(own), path: name.to_owned() });
        }
        let mut path = self.path.to_bytes().to_vec();
        path.push(b'/');
        path.extend_from_slice(name.to_bytes());
        let path = CString::new(path).map_err(|_| Errno::EINVAL)?;
        Ok(Self { base: Arc::clone(&self.base), path })
    }
}

fn directory_flags() -> OFlag {
    OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC
}

fn add(usage: &mut Usage, linked: &mut HashSet<(u64, u64)>, stat: &FileStat) {
    // Only files with several names can be met twice.
    if !is_directory(stat) && stat.st_nlink > 1 && !linked.insert((stat.st_dev, stat.st_ino)) {
        return;
    }
    usage.inodes += 1;
    usage.bytes += u64::try_from(stat.st_blocks).unwrap_or_default() * 512;
}

fn is_directory(stat: &FileStat) -> bool {
    stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFDIR.bits()
}

/// Takes "not there any more" as nothing.
fn vanished<T>(result: nix::Result<T>) -> Result<Option<T>, Errno> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    /// The obviously correct count.
    fn plain(root: &Path, seen: &mut HashSet<u64>) -> Usage {
        let stat = fs::symlink_metadata(root).unwrap();
        let mut usage = Usage::default();
        if seen.insert(stat.ino()) {
            usage = Usage { bytes: stat.blocks() * 512, inodes: 1 };
        }
        if stat.is_dir() {
            for entry in fs::read_dir(root).unwrap() {
                let below = plain(&entry.unwrap().path(), seen);
                usage.bytes += below.bytes;
                usage.inodes += below.inodes;
            }
        }
        usage
    }

    #[test]
    fn counts_like_du() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        fs::create_dir_all(at("a/b/c")).unwrap();
        fs::write(at("a/big"), vec![1; 100_000]).unwrap();
        fs::write(at("a/b/small"), b"x").unwrap();
        fs::hard_link(at("a/big"), at("a/b/c/again")).unwrap();
        symlink("/", at("a/out")).unwrap();
        fs::File::create(at("sparse")).unwrap().set_len(1 << 30).unwrap();
        let measured = measure(root.path(), usize::MAX).unwrap();
        assert_eq!(measured, Measured::Complete(plain(root.path(), &mut HashSet::new())));
        assert!(measured.usage().bytes < 1 << 20, "holes take no room");
    }

    #[test]
    fn stops_at_its_limit() {
        let root = tempfile::tempdir().unwrap();
        for i in 0..20 {
            fs::write(root.path().join(i.to_string()), b"").unwrap();
        }
        assert!(matches!(measure(root.path(), 20), Ok(Measured::Complete(_))));
        assert!(matches!(measure(root.path(), 19), Ok(Measured::AtLeast(_))));
    }

    #[test]
    fn a_tree_deeper_than_any_path_is_walked() {
        let root = tempfile::tempdir().unwrap();
        let name = "d".repeat(200);
        let mut at = open(root.path(), directory_flags(), Mode::empty()).unwrap();
        for _ in 0..100 {
            nix::sys::stat::mkdirat(&at, name.as_str(), Mode::S_IRWXU).unwrap();
            at = openat(&at, name.as_str(), directory_flags(), Mode::empty()).unwrap();
        }
        assert_eq!(measure(root.path(), usize::MAX).unwrap().usage().inodes, 101);
        // Too deep for the test's own clean-up: flatten it first.
        crate::snapshotter::directories::remove_tree(root.path(), || false).unwrap();
    }

    #[test]
    fn a_missing_root_is_an_error_and_a_link_is_not_followed() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(measure(&root.path().join("no"), 1), Err(Errno::ENOENT));
        symlink("/", root.path().join("link")).unwrap();
        assert!(measure(&root.path().join("link"), 1).is_err());
    }
}
