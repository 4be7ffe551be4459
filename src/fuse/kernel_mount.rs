//! Mounting and unmounting: by system call as root, through `fusermount3`
//! otherwise.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSliceMut, Read as _};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use tracing::warn;

use super::mountinfo;

const DEVICE: &str = "/dev/fuse";
const FUSERMOUNT: &str = "fusermount3";
const SUBTYPE: &str = "peersync";
/// Most of what `fusermount3` says on standard error that is kept.
const STDERR_MAX: u64 = 4096;

/// How to mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountOptions {
    /// What is mounted, as `mount` and `df` show it.
    pub source: String,
    /// Users other than the one who mounts may use it. Ordinary users need
    /// `user_allow_other` in `/etc/fuse.conf` for this.
    pub allow_other: bool,
    /// Set-id bits and file capabilities count. Only root can ask for it.
    pub suid: bool,
    /// Device nodes work. Only root can ask for it.
    pub dev: bool,
    /// How deep file systems may be stacked below this one: with 1, complete
    /// files are passed through and an overlay may be put on top; with 0 nothing
    /// is passed through and an overlay on an overlay on top works.
    pub stack_depth: u32,
    /// Threads that take requests, at least 1.
    pub threads: usize,
    /// How far the kernel reads ahead in files that are not passed through, in
    /// KiB; `None`: as it likes (128). Needs root. The kernel also reads as much
    /// around each fault in a mapped file, so more of it fetches more that nobody
    /// asked for; and neither 256 nor 1024 reads faster (`benches/fs.rs`).
    pub read_ahead_kib: Option<u32>,
}

impl MountOptions {
    /// The usual for the user that runs this: as root for all users with
    /// passthrough, else for the user alone.
    pub fn new(source: impl Into<String>) -> Self {
        let root = nix::unistd::geteuid().is_root();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            source: source.into(),
            allow_other: root,
            suid: false,
            dev: false,
            stack_depth: u32::from(root),
            threads: cores.clamp(2, 4),
            read_ahead_kib: None,
        }
    }
}

/// Why a file system was not mounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The mount point is not there or can't be used.
    #[error("{}: {error}", dir.display())]
    MountPoint {
        /// The mount point.
        dir: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// There is a mount of ours there, and it is alive.
    #[error("{}: something is mounted there already", .0.display())]
    AlreadyMounted(PathBuf),
    /// There is no FUSE here.
    #[error("{DEVICE}: {0} (is the fuse module loaded?)")]
    Device(io::Error),
    /// The kernel refused.
    #[error("mounting on {}: {error}", dir.display())]
    Kernel {
        /// The mount point.
        dir: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// `fusermount3`, which ordinary users need, is not there.
    #[error("{FUSERMOUNT}: {0} (it is part of the package fuse3)")]
    NoHelper(io::Error),
    /// `fusermount3` refused, with its own words.
    #[error("{FUSERMOUNT}: {0}")]
    Helper(String),
    /// Set-id bits and devices are for root.
    #[error("the options suid and dev need root")]
    NeedsRoot,
    /// The kernel and the FUSE library did not come to terms.
    #[error("starting the FUSE session: {0}")]
    Session(io::Error),
}

/// Why a file system was not unmounted.
#[derive(Debug, thiserror::Error)]
pub enum UnmountError {
    /// Programs have files open in it or stand in it.
    #[error("{}: in use", .0.display())]
    Busy(PathBuf),
    /// Something else is mounted over it.
    #[error("{}: something else is mounted there", .0.display())]
    Covered(PathBuf),
    /// The kernel or `fusermount3` refused.
    #[error("unmounting {}: {error}", dir.display())]
    Failed {
        /// The mount point.
        dir: PathBuf,
        /// Why.
        error: io::Error,
    },
}

/// Unmounts what is mounted on `dir`, whoever serves it. Lazily: it disappears at
/// once, and ends when its last user lets go.
///
/// # Errors
/// [`UnmountError`].
pub fn unmount(dir: &Path, lazily: bool) -> Result<(), UnmountError> {
    unmount_at(dir, lazily)
}

/// Mounts on `dir`, which must be canonical, and gives the connection to the
/// kernel, on which nothing has been said yet.
pub(super) fn mount_at(dir: &Path, options: &MountOptions) -> Result<OwnedFd, MountError> {
    if !nix::unistd::geteuid().is_root() {
        if options.suid || options.dev {
            return Err(MountError::NeedsRoot);
        }
        return mount_by_helper(dir, options);
    }
    let device = open_device().map_err(MountError::Device)?;
    let mut flags = MsFlags::MS_RDONLY;
    flags.set(MsFlags::MS_NOSUID, !options.suid);
    flags.set(MsFlags::MS_NODEV, !options.dev);
    let mut data = format!(
        "fd={},rootmode=40000,user_id={},group_id={},default_permissions",
        device.as_raw_fd(),
        nix::unistd::getuid(),
        nix::unistd::getgid(),
    );
    if options.allow_other {
        data.push_str(",allow_other");
    }
    let kind = kind();
    let source = options.source.as_str();
    nix::mount::mount(Some(source), dir, Some(kind.as_str()), flags, Some(data.as_str()))
        .map_err(|errno| MountError::Kernel { dir: dir.to_owned(), error: errno.into() })?;
    Ok(device.into())
}

/// Whether a second connection can be opened for each thread.
pub(super) fn can_open_device() -> bool {
    open_device().is_ok()
}

/// Unmounts what is mounted on `dir`. Lazily: at once from sight, for good when
/// the last program lets go.
pub(super) fn unmount_at(dir: &Path, lazily: bool) -> Result<(), UnmountError> {
    let mut flags = MntFlags::UMOUNT_NOFOLLOW;
    flags.set(MntFlags::MNT_DETACH, lazily);
    match nix::mount::umount2(dir, flags) {
        Ok(()) => Ok(()),
        Err(Errno::EBUSY) => Err(UnmountError::Busy(dir.to_owned())),
        Err(Errno::EPERM) => unmount_by_helper(dir, lazily),
        Err(errno) => Err(UnmountError::Failed { dir: dir.to_owned(), error: errno.into() }),
    }
}

fn open_device() -> io::Result<File> {
    OpenOptions::new().read(true).write(true).custom_flags(nix::libc::O_CLOEXEC).open(DEVICE)
}

fn mount_by_helper(dir: &Path, options: &MountOptions) -> Result<OwnedFd, MountError> {
    let mut list = format!(
        "ro,nosuid,nodev,default_permissions,subtype={SUBTYPE},fsname={}",
        escape(&options.source)
    );
    if options.allow_other {
        list.push_str(",allow_other");
    }
    let (ours, theirs) = UnixStream::pair().map_err(MountError::NoHelper)?;
    // As its standard input the helper inherits the socket and nothing else.
    let mut helper = Command::new(FUSERMOUNT)
        .args(["-o", &list, "--"])
        .arg(dir)
        .env("_FUSE_COMMFD", "0")
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(MountError::NoHelper)?;
    let device = receive_descriptor(&ours);
    let mut words = Vec::new();
    if let Some(stderr) = helper.stderr.take() {
        // Its exit status says enough if its words can't be had.
        let _ = stderr.take(STDERR_MAX).read_to_end(&mut words);
    }
    let status = helper.wait().map_err(MountError::NoHelper)?;
    match device {
        Ok(Some(device)) if status.success() => Ok(device),
        Err(error) => Err(MountError::Session(error)),
        Ok(_) => {
            let words = String::from_utf8_lossy(&words).trim().to_owned();
            Err(MountError::Helper(match words.is_empty() {
                true => status.to_string(),
                false => words,
            }))
        }
    }
}

/// The descriptor that comes over the socket; `None` if it is closed instead.
fn receive_descriptor(socket: &UnixStream) -> io::Result<Option<OwnedFd>> {
    let mut byte = [0];
    let mut slices = [IoSliceMut::new(&mut byte)];
    let mut control = nix::cmsg_space!(RawFd);
    let message = loop {
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        match recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut control), flags) {
            Err(Errno::EINTR) => (),
            result => break result?,
        }
    };
    let descriptors = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    Ok(descriptors.and_then(|all| all.first().copied()).map(|fd| {
        // SAFETY: the kernel has just put this descriptor into our table for
        // this message, and nobody else knows of it.
        unsafe { OwnedFd::from_raw_fd(fd) }
    }))
}

fn unmount_by_helper(dir: &Path, lazily: bool) -> Result<(), UnmountError> {
    let failed = |error| UnmountError::Failed { dir: dir.to_owned(), error };
    let mut command = Command::new(FUSERMOUNT);
    command.arg("-u");
    if lazily {
        command.arg("-z");
    }
    let output = command.arg("--").arg(dir).stdin(Stdio::null()).output().map_err(failed)?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if words.ends_with("Device or resource busy") {
        return Err(UnmountError::Busy(dir.to_owned()));
    }
    Err(failed(io::Error::other(words)))
}

/// `fusermount3` splits its options at commas.
fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace(',', "\\,")
}

/// A mount point as the kernel will name it: absolute, without links. What a
/// daemon left there that died is cleared away.
pub(super) fn canonical(dir: &Path) -> Result<PathBuf, MountError> {
    let fail = |error| MountError::MountPoint { dir: dir.to_owned(), error };
    let canonical = match dir.canonicalize() {
        Err(error) if is_dead(&error) => without_last(dir),
        result => result,
    }
    .map_err(fail)?;
    clear_dead(&canonical)?;
    if !fs::metadata(&canonical).map_err(fail)?.is_dir() {
        return Err(fail(io::ErrorKind::NotADirectory.into()));
    }
    Ok(canonical)
}

/// What the kernel says of a mount whose daemon is gone.
fn is_dead(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::ENOTCONN as i32)
}

/// A path whose last component can't be looked at.
fn without_last(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    Ok(parent.unwrap_or(Path::new(".")).canonicalize()?.join(name))
}

/// Takes away mounts of ours that nobody serves any more. Processes that still
/// stand in one get errors, as they have since its daemon died.
fn clear_dead(dir: &Path) -> Result<(), MountError> {
    // As many as somebody may have put on top of each other.
    while let Ok(Some(mount)) = mountinfo::mount_at(dir) {
        if mount.kind != kind() {
            break;
        }
        // Unlike attributes, this is never answered from the kernel's memory.
        match nix::sys::statvfs::statvfs(dir) {
            Err(Errno::ENOTCONN) => (),
            _ => return Err(MountError::AlreadyMounted(dir.to_owned())),
        }
        if let Err(error) = unmount_at(dir, true) {
            warn!("{error}");
            break;
        }
        warn!(dir = %dir.display(), "cleared away a mount whose daemon has died");
    }
    Ok(())
}

/// The type of our mounts.
fn kind() -> String {
    format!("fuse.{SUBTYPE}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_with_commas_stays_one_option() {
        assert_eq!(escape("a,b\\c"), "a\\,b\\\\c");
    }

    #[test]
    fn a_mount_point_that_is_none_is_named() {
        let error = canonical(Path::new("/dev/null")).expect_err("no directory");
        assert!(error.to_string().contains("/dev/null"), "{error}");
        let error = canonical(Path::new("/nonexistent/x")).expect_err("not there");
        assert!(error.to_string().contains("/nonexistent/x"), "{error}");
    }
}
