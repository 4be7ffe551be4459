//! The socket that containerd connects to, from making its directory to removing it.
//!
//! A lock beside the socket decides who serves it, so that two daemons can't take
//! it from one another. An old socket is removed only by the holder of the lock and
//! only when nobody answers on it; a new one appears under its name by a rename,
//! with its permissions, already listening: containerd never meets half a socket.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

/// Longest path of a Unix socket on Linux, in bytes.
const PATH_MAX: usize = 107;
/// Appended while the socket is being made.
const NEW: &str = ".new";

/// Why the socket can't be had.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The path is too long for a socket.
    #[error("{path}: a socket's path has at most {PATH_MAX} bytes")]
    TooLong {
        /// The path.
        path: PathBuf,
    },
    /// Its directory can't be made.
    #[error("{path}: directory of the socket: {source}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another process serves it.
    #[error("{path}: another process listens on this socket; stop it or configure another path")]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// Something else has this name, and is not ours to remove.
    #[error("{path}: exists and is not a socket")]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The system refused.
    #[error("{path}: {what}: {source}")]
    System {
        /// The path.
        path: PathBuf,
        /// What was attempted.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// A listening socket with mode 0600, removed when this is dropped.
#[derive(Debug)]
pub struct Socket {
    path: PathBuf,
    listener: UnixListener,
    identity: (u64, u64),
    _lock: Flock<File>,
}

impl Socket {
    /// Listens at `path`. Its directory is made (0755) if it is not there.
    ///
    /// # Errors
    /// See [`BindError`].
    pub fn bind(path: &Path) -> Result<Self, BindError> {
        let system = |what| move |source| BindError::System { path: path.to_owned(), what, source };
        let new = suffixed(path, NEW);
        if new.as_os_str().len() > PATH_MAX {
            return Err(BindError::TooLong { path: path.to_owned() });
        }
        if let Some(directory) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(directory)
                .map_err(|source| BindError::Directory { path: directory.to_owned(), source })?;
        }
        let lock = lock(path)?;
        remove_stale(path)?;
        remove_stale(&new)?;

        let listener = UnixListener::bind(&new).map_err(system("bind"))?;
        fs::set_permissions(&new, Permissions::from_mode(0o600)).map_err(system("chmod"))?;
        listener.set_nonblocking(true).map_err(system("configure"))?;
        fs::rename(&new, path).map_err(system("rename"))?;
        let identity = identity(path).map_err(system("stat"))?;
        Ok(Self { path: path.to_owned(), listener, identity, _lock: lock })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A handle for an asynchronous listener; non-blocking.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn listener(&self) -> io::Result<UnixListener> {
        self.listener.try_clone()
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Not if somebody has put another one there.
        if identity(&self.path).is_ok_and(|found| found == self.identity) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn lock(path: &Path) -> Result<Flock<File>, BindError> {
    let lock_path = suffixed(path, ".lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&lock_path)
        .map_err(|source| BindError::System { path: lock_path.clone(), what: "open", source })?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock)
        .map_err(|_| BindError::InUse { path: path.to_owned() })
}

/// Removes a socket that nobody listens on.
fn remove_stale(path: &Path) -> Result<(), BindError> {
    let system = |what| move |source| BindError::System { path: path.to_owned(), what, source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(system("stat")(error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(BindError::NotASocket { path: path.to_owned() });
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(BindError::InUse { path: path.to_owned() }),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(system("remove old socket"))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        // A full queue (EAGAIN): somebody is there.
        Err(error) if error.kind() == ErrorKind::WouldBlock => {
            Err(BindError::InUse { path: path.to_owned() })
        }
        Err(error) => Err(system("connect to old socket")(error)),
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()))
}

fn suffixed(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn makes_its_directory_and_a_private_socket_and_removes_it() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("run/peersync/snapshotter.sock");
        let socket = Socket::bind(&path).unwrap();
        assert_eq!(mode(&path), 0o600);
        UnixStream::connect(&path).unwrap();
        socket.listener().unwrap().accept().unwrap();
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn an_old_socket_is_replaced_and_a_live_one_is_not() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("s.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "std leaves the file behind");
        let first = Socket::bind(&path).unwrap();
        assert!(matches!(Socket::bind(&path), Err(BindError::InUse { .. })));
        drop(first);

        let foreign = UnixListener::bind(&path).unwrap();
        assert!(matches!(Socket::bind(&path), Err(BindError::InUse { .. })));
        drop(foreign);
        Socket::bind(&path).unwrap();
    }

    #[test]
    fn what_is_no_socket_is_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("file");
        fs::write(&path, b"precious").unwrap();
        assert!(matches!(Socket::bind(&path), Err(BindError::NotASocket { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"precious");

        let below = path.join("s.sock");
        assert!(matches!(Socket::bind(&below), Err(BindError::Directory { .. })));
        let long = root.path().join("x".repeat(PATH_MAX));
        assert!(matches!(Socket::bind(&long), Err(BindError::TooLong { .. })));
    }

    #[test]
    fn a_socket_that_was_replaced_is_not_removed() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("s.sock");
        let socket = Socket::bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let _other = UnixListener::bind(&path).unwrap();
        drop(socket);
        assert!(path.exists());
    }
}
