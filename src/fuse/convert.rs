//! From the file system's words to the library's.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, Generation, INodeNo};

use crate::fs::{Attr, Kind, Timestamp};

/// Numbers are never given to another node, so one generation is enough.
pub(super) const GENERATION: Generation = Generation(0);

/// What the kernel should take for the best size of a read, in bytes.
const READ_SIZE: u32 = 128 << 10;

pub(super) fn file_attr(attr: &Attr) -> FileAttr {
    let time = system_time(attr.mtime);
    FileAttr {
        ino: INodeNo(attr.id.raw()),
        size: attr.size,
        blocks: attr.blocks,
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind: file_type(attr.kind),
        perm: attr.mode,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: device(attr.rdev),
        blksize: READ_SIZE,
        flags: 0,
    }
}

pub(super) fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::Directory => FileType::Directory,
        Kind::File => FileType::RegularFile,
        Kind::Symlink => FileType::Symlink,
        Kind::CharDevice => FileType::CharDevice,
        Kind::BlockDevice => FileType::BlockDevice,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
    }
}

/// A device number as the kernel encodes it for FUSE: 12 bits of major and 20
/// of minor number, in an order of its own.
fn device((major, minor): (u32, u32)) -> u32 {
    (minor & 0xff) | (major & 0xfff) << 8 | (minor & 0xfff00) << 12
}

/// A time that the system can't express is shown as 1970.
fn system_time(time: Timestamp) -> SystemTime {
    let seconds = Duration::from_secs(time.seconds.unsigned_abs());
    let whole = match time.seconds {
        0.. => UNIX_EPOCH.checked_add(seconds),
        _ => UNIX_EPOCH.checked_sub(seconds),
    };
    whole
        .and_then(|whole| whole.checked_add(Duration::from_nanos(time.nanos.into())))
        .unwrap_or(UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_and_impossible_ones_are_times() {
        let at = |seconds, nanos| system_time(Timestamp { seconds, nanos });
        assert_eq!(at(-2, 800_000_000) + Duration::from_millis(1_200), UNIX_EPOCH);
        assert_eq!(at(1, 5), UNIX_EPOCH + Duration::new(1, 5));
        let last = at(i64::MAX, 999_999_999).duration_since(UNIX_EPOCH);
        assert_eq!(last.expect("after 1970").as_secs(), i64::MAX as u64);
        // The system may or may not know this one; it is a time all the same.
        assert!(at(i64::MIN, 0) <= UNIX_EPOCH);
    }

    #[test]
    fn device_numbers_are_encoded_as_the_kernel_does() {
        assert_eq!(device((0, 0)), 0);
        assert_eq!(device((1, 3)), 0x103);
        assert_eq!(device((0xabc, 0x12345)), 0x123a_bc45);
    }
}
