//! Which snapshots are mounted, as the kernel's table has it. Pure.

use std::collections::HashSet;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::types::Digest;

/// What the mount table says of snapshots, in its own spelling.
#[derive(Debug, Default)]
pub(super) struct Mounted<'a> {
    /// Upper directories of overlays.
    uppers: HashSet<&'a [u8]>,
    /// Last components of lower directories of overlays without an upper one, and
    /// of directories that are mounted themselves.
    lowers: HashSet<&'a [u8]>,
}

impl<'a> Mounted<'a> {
    /// Reads `/proc/self/mountinfo` (proc(5)). Lines that are not understood count
    /// for nothing.
    pub(super) fn parse(mountinfo: &'a [u8]) -> Self {
        let mut mounted = Self::default();
        for line in mountinfo.split(|byte| *byte == b'\n') {
            let _ = mounted.add(line);
        }
        mounted
    }

    /// Number, parent, device, root, mount point, options, any number of tags, a
    /// dash, type, source, options of the file system.
    fn add(&mut self, line: &'a [u8]) -> Option<()> {
        let mut fields = line.split(|byte| *byte == b' ').skip(3);
        let root = fields.next()?;
        self.lowers.extend(last_component(root));
        let mut system = fields.skip_while(|field| *field != b"-").skip(1);
        if system.next()? != b"overlay" {
            return None;
        }
        let options = system.nth(1)?;
        let option = |name: &[u8]| {
            options.split(|byte| *byte == b',').find_map(|option| option.strip_prefix(name))
        };
        match (option(b"upperdir="), option(b"lowerdir=")) {
            (Some(upper), _) => {
                self.uppers.insert(upper);
            }
            (None, Some(lower)) => {
                let lowers = lower.split(|byte| *byte == b':');
                self.lowers.extend(lowers.filter_map(last_component));
            }
            (None, None) => {}
        }
        Some(())
    }

    /// Whether this is the upper directory of a mounted overlay.
    pub(super) fn has_upper(&self, path: &Path) -> bool {
        self.uppers.contains(escape(path).as_slice())
    }

    /// Whether the chain is mounted to be read only.
    pub(super) fn has_chain(&self, chain: &Digest) -> bool {
        self.lowers.contains(chain.file_name().as_bytes())
    }
}

fn last_component(path: &[u8]) -> Option<&[u8]> {
    path.rsplit(|byte| *byte == b'/').next().filter(|name| !name.is_empty())
}

/// As the kernel writes a path: blanks, line ends and backslashes as octal digits.
fn escape(path: &Path) -> Vec<u8> {
    let mut out = Vec::new();
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b' ' | b'\t' | b'\n' | b'\\' => out.extend(format!("\\{byte:03o}").bytes()),
            _ => out.push(*byte),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlays_and_binds_are_found() {
        let (chain, other, view) = (Digest::of(b"a"), Digest::of(b"b"), Digest::of(b"c"));
        let table = format!(
            "21 1 8:1 / / rw - ext4 /dev/sda rw\n\
             30 21 0:40 / /mnt/peersync ro,nosuid - fuse.peersync peersync ro\n\
             40 21 0:41 / /run/c/rootfs rw,relatime shared:3 - overlay overlay \
             rw,lowerdir=/mnt/peersync/chains/{chain},upperdir=/my\\040store/snapshots/7/fs,\
             workdir=/my\\040store/snapshots/7/work\n\
             41 21 0:40 /chains/{view} /run/v/rootfs ro - fuse.peersync peersync ro\n\
             42 21 0:44 / /run/w ro - overlay overlay ro,lowerdir=/s/3/fs:/m/chains/{other}\n\
             garbage\n\n43 21 0:45",
            chain = chain.file_name(),
            view = view.file_name(),
            other = other.file_name(),
        );
        let mounted = Mounted::parse(table.as_bytes());
        assert!(mounted.has_upper(Path::new("/my store/snapshots/7/fs")));
        assert!(!mounted.has_upper(Path::new("/my store/snapshots/8/fs")));
        assert!(mounted.has_chain(&view) && mounted.has_chain(&other));
        assert!(!mounted.has_chain(&chain), "that one is below an upper directory");
    }
}
