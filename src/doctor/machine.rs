//! What has to be tried, or asked of the kernel, to be known.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::thread;

use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::Pid;

use super::FuseOffer;

/// How long the kernel may take to open a FUSE connection, in milliseconds.
const OPENING: u16 = 2000;
/// Least that has to be readable from a FUSE connection at a time.
const BUFFER: usize = 8192;
/// Length of the header of a request, `struct fuse_in_header`.
const HEADER: usize = 40;
/// The request that opens a connection.
const INIT: u32 = 26;
/// Its flags go on in a second word.
const INIT_EXT: u32 = 1 << 30;
/// Files can be backed by local ones, in that word.
const PASSTHROUGH_EXT: u32 = 1 << (37 - 32);

/// Mounts a FUSE file system for a moment, in a mount namespace of its own, and
/// reads what the kernel says it can do. Needs root.
///
/// # Errors
/// What the system says, to whichever step.
pub(super) fn mount_fuse() -> io::Result<FuseOffer> {
    // A namespace is a thread's own, and goes with it, mounts and all.
    let tried = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNS)?;
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
        let mut device = OpenOptions::new().read(true).write(true).open("/dev/fuse")?;
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
        let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("peersync-doctor"), "/proc", Some("fuse"), flags, Some(options.as_str()))?;
        first_request(&mut device).and_then(|request| offer(&request))
    });
    tried.join().unwrap_or_else(|_| Err(ErrorKind::Other.into()))
}

fn first_request(device: &mut File) -> io::Result<Vec<u8>> {
    let mut ready = [PollFd::new(device.as_fd(), PollFlags::POLLIN)];
    if poll(&mut ready, PollTimeout::from(OPENING))? == 0 {
        return Err(ErrorKind::TimedOut.into());
    }
    let mut request = vec![0; BUFFER];
    let length = device.read(&mut request)?;
    request.truncate(length);
    Ok(request)
}

/// Reads `struct fuse_init_in`: version, read-ahead, flags, more flags.
fn offer(request: &[u8]) -> io::Result<FuseOffer> {
    let word = |at: usize| {
        let bytes = request.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        bytes.map(u32::from_ne_bytes)
    };
    let (Some(INIT), Some(flags)) = (word(4), word(HEADER + 12)) else {
        return Err(io::Error::other("the kernel opened with something else than INIT"));
    };
    let more = word(HEADER + 16).filter(|_| flags & INIT_EXT != 0).unwrap_or(0);
    Ok(FuseOffer { passthrough: more & PASSTHROUGH_EXT != 0 })
}

/// Whether a process has a TCP or UDP socket on a local port; none where its
/// descriptors can't be looked at.
pub(super) fn listens(process: Pid, port: u16) -> Option<bool> {
    let directory = Path::new("/proc").join(process.to_string());
    let descriptors = fs::read_dir(directory.join("fd")).ok()?;
    let links = descriptors.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    let sockets: Vec<String> =
        links.filter_map(|link| Some(inode(link.to_str()?)?.to_owned())).collect();
    let tables = ["tcp", "tcp6", "udp", "udp6"];
    let texts =
        tables.iter().filter_map(|name| fs::read_to_string(directory.join("net").join(name)).ok());
    let owns = |text: String| on_port(&text, port).any(|inode| sockets.iter().any(|s| s == inode));
    Some(texts.into_iter().any(owns))
}

/// `socket:[12345]`
fn inode(link: &str) -> Option<&str> {
    link.strip_prefix("socket:[")?.strip_suffix(']')
}

/// Inodes of the sockets on a local port, in a table of `/proc/net` (proc(5)).
fn on_port(table: &str, port: u16) -> impl Iterator<Item = &str> {
    let suffix = format!(":{port:04X}");
    table.lines().skip(1).filter_map(move |line| {
        let mut words = line.split_whitespace();
        let has_port = words.nth(1)?.ends_with(&suffix);
        words.nth(7).filter(|_| has_port)
    })
}

/// Whether a time service keeps the clock, as the kernel was told.
pub(super) fn clock_synchronised() -> Option<bool> {
    // SAFETY: all zeros is a request to change nothing, in a structure of numbers.
    let mut clock: nix::libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the structure is ours, and lives until the call returns.
    let state = unsafe { nix::libc::adjtimex(&raw mut clock) };
    (state >= 0).then_some(clock.status & nix::libc::STA_UNSYNC == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(opcode: u32, flags: u32, more: u32) -> Vec<u8> {
        let mut request = vec![0; HEADER];
        request[4..8].copy_from_slice(&opcode.to_ne_bytes());
        for word in [7, 45, 0, flags, more] {
            request.extend_from_slice(&u32::to_ne_bytes(word));
        }
        request
    }

    #[test]
    fn what_the_kernel_offers_is_read_from_its_first_request() {
        let offers = |flags, more| offer(&request(INIT, flags, more)).unwrap().passthrough;
        assert!(offers(INIT_EXT, PASSTHROUGH_EXT));
        assert!(!offers(INIT_EXT, !PASSTHROUGH_EXT));
        assert!(!offers(0, PASSTHROUGH_EXT), "an old kernel has no second word");
        assert!(offer(&request(1, INIT_EXT, PASSTHROUGH_EXT)).is_err());
        assert!(offer(&request(INIT, 0, 0)[..HEADER]).is_err());
        let old = &request(INIT, 0, 0)[..HEADER + 16];
        assert!(!offer(old).unwrap().passthrough);
    }

    #[test]
    fn a_port_is_found_with_whoever_has_it() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert_eq!(listens(Pid::this(), port), Some(true));
        drop(listener);
        assert_eq!(listens(Pid::this(), port), Some(false));
    }
}
