//! `/proc/self/mountinfo`: what is mounted at a directory, without asking the
//! file system there, which may not answer.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// What is mounted at a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mount {
    /// The device number: major and minor.
    pub(super) device: (u32, u32),
    /// The type of the file system.
    pub(super) kind: String,
}

/// The topmost mount at `dir`, which must be canonical.
pub(super) fn mount_at(dir: &Path) -> io::Result<Option<Mount>> {
    let table = fs::read("/proc/self/mountinfo")?;
    Ok(mount_in(&table, dir))
}

/// The device number of the topmost mount at `dir`, which must be canonical.
pub(super) fn device_at(dir: &Path) -> io::Result<Option<(u32, u32)>> {
    Ok(mount_at(dir)?.map(|mount| mount.device))
}

fn mount_in(table: &[u8], dir: &Path) -> Option<Mount> {
    let lines = table.split(|b| *b == b'\n').rev();
    lines.filter_map(|line| parse(line, dir)).next()
}

/// Number, parent, major:minor, root, mount point, options, any number of tags,
/// a dash, type.
fn parse(line: &[u8], dir: &Path) -> Option<Mount> {
    let mut fields = line.split(|b| *b == b' ').skip(2);
    let device = str::from_utf8(fields.next()?).ok()?;
    let point = unescape(fields.nth(1)?);
    if OsStr::from_bytes(&point) != dir.as_os_str() {
        return None;
    }
    let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
    let (major, minor) = device.split_once(':')?;
    Some(Mount {
        device: (major.parse().ok()?, minor.parse().ok()?),
        kind: String::from_utf8_lossy(kind).into_owned(),
    })
}

/// Blanks, line ends and backslashes stand as three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let octal = tail
            .get(..3)
            .and_then(|digits| u8::from_str_radix(str::from_utf8(digits).ok()?, 8).ok());
        match (first, octal) {
            (b'\\', Some(byte)) => {
                out.push(byte);
                rest = &tail[3..];
            }
            _ => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_mount_at_a_place_is_on_top() {
        let table = b"36 35 98:0 / /mnt/a rw - ext4 /dev/x rw\n\
            37 35 0:41 / /mnt/a\\040b ro shared:1 - fuse.peersync p rw\n\
            38 36 0:42 / /mnt/a ro - fuse.peersync p rw\n";
        let device = |dir: &str| mount_in(table, Path::new(dir)).map(|mount| mount.device);
        assert_eq!(device("/mnt/a"), Some((0, 42)));
        assert_eq!(device("/mnt/a b"), Some((0, 41)));
        assert_eq!(device("/mnt"), None);
        let kind = mount_in(table, Path::new("/mnt/a b")).map(|mount| mount.kind);
        assert_eq!(kind.as_deref(), Some("fuse.peersync"));
    }
}
