//! What this binary does as another program: with other rights, or to be killed.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::libc;

use crate::unprivileged;

pub const TASK: &str = "PEERSYNC_TEST_TASK";
pub const ARGUMENT: &str = "PEERSYNC_TEST_ARGUMENT";

/// Not a test, but what other tests run as another program.
#[test]
fn child() {
    let Ok(task) = std::env::var(TASK) else {
        return;
    };
    let path = PathBuf::from(std::env::var_os(ARGUMENT).expect("an argument"));
    match task.as_str() {
        "fault" => fault(&path),
        "direct" => direct(&path),
        "user" => unprivileged::as_user(&path),
        "cycles" => crate::lifecycle::cycles(),
        "die" => crate::lifecycle::die(&path),
        other => panic!("what is {other}?"),
    }
}

/// Touches a mapped file in a mapping that is not read ahead.
fn fault(path: &Path) {
    let file = File::open(path).expect("the file");
    const LEN: usize = 4096;
    // SAFETY: a fresh mapping of a file, read within its length.
    let byte = unsafe {
        let map = libc::mmap(
            std::ptr::null_mut(),
            LEN,
            libc::PROT_READ,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        );
        assert_ne!(map, libc::MAP_FAILED);
        assert_eq!(libc::madvise(map, LEN, libc::MADV_RANDOM), 0);
        map.cast::<u8>().read_volatile()
    };
    std::process::exit(i32::from(byte));
}

/// Reads past the page cache.
fn direct(path: &Path) {
    let file = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(path)
        .expect("the file");
    let mut buf = vec![0; 4096];
    let read = std::os::unix::fs::FileExt::read_at(&file, &mut buf, 0);
    std::process::exit(read.map_or(1, |_| 0));
}
