//! `/proc/self/mountinfo`: what is mounted at a directory, without asking the
//! file system there, which may not answer.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The device number of the topmost mount at `dir`, which must be canonical.
pub(super) fn device_at(dir: &Path) -> io::Result<Option<(u32, u32)>> {
    let table = fs::read("/proc/self/mountinfo")?;
    Ok(device_in(&table, dir))
}

fn device_in(table: &[u8], dir: &Path) -> Option<(u32, u32)> {
    let lines = table.split(|b| *b == b'\n').rev();
    lines
        .filter_map(|line| {
            // Number, parent, major:minor, root, mount point.
            let mut fields = line.split(|b| *b == b' ').skip(2);
            let device = str::from_utf8(fields.next()?).ok()?;
            let point = unescape(fields.nth(1)?);
            (OsStr::from_bytes(&point) == dir.as_os_str()).then_some(device)
        })
        .find_map(|device| {
            let (major, minor) = device.split_once(':')?;
            Some((major.parse().ok()?, minor.parse().ok()?))
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
        assert_eq!(device_in(table, Path::new("/mnt/a")), Some((0, 42)));
        assert_eq!(device_in(table, Path::new("/mnt/a b")), Some((0, 41)));
        assert_eq!(device_in(table, Path::new("/mnt")), None);
    }
}
