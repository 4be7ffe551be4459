//! What this machine's overlayfs wants.

use std::fs;
use std::path::Path;

use nix::sys::statfs::{TMPFS_MAGIC, statfs};

use super::mounts::OverlayOptions;

/// Finds out which options overlay mounts below `root` take here, by the rules of
/// containerd's overlayfs snapshotter.
pub(super) fn detect(root: &Path) -> OverlayOptions {
    let tmpfs = statfs(root).is_ok_and(|found| found.filesystem_type() == TMPFS_MAGIC);
    let uid_map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    OverlayOptions {
        index_off: Path::new("/sys/module/overlay/parameters/index").exists(),
        userxattr: needs_userxattr(&uid_map, tmpfs, kernel_version(&release)),
    }
}

/// In a user namespace whiteouts and opaque marks have to be `user.` attributes,
/// which the kernel knows since 5.11 and tmpfs does not take. (Some distributions
/// patched older kernels to do without; they need no option.)
fn needs_userxattr(uid_map: &str, tmpfs: bool, kernel: Option<(u32, u32)>) -> bool {
    in_user_namespace(uid_map) && !tmpfs && kernel.is_some_and(|version| version >= (5, 11))
}

/// The initial namespace maps all users to themselves.
fn in_user_namespace(uid_map: &str) -> bool {
    let mut lines = uid_map.lines();
    let Some(first) = lines.next() else { return false };
    first.split_whitespace().ne(["0", "0", "4294967295"]) || lines.next().is_some()
}

/// Major and minor version of a release such as `6.1.0-13-amd64`.
fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.trim().split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = "         0          0 4294967295\n";
    const ROOTLESS: &str = "         0       1000          1\n         1     100000      65536\n";

    #[test]
    fn userxattr_is_for_user_namespaces_on_kernels_that_know_it() {
        let new = Some((6, 1));
        assert!(!needs_userxattr(HOST, false, new));
        assert!(needs_userxattr(ROOTLESS, false, new));
        assert!(!needs_userxattr(ROOTLESS, true, new));
        assert!(!needs_userxattr(ROOTLESS, false, Some((5, 10))));
        assert!(!needs_userxattr("", false, new));
    }

    #[test]
    fn kernel_releases_are_read() {
        assert_eq!(kernel_version("6.1.0-13-amd64\n"), Some((6, 1)));
        assert_eq!(kernel_version("5.4"), Some((5, 4)));
        assert_eq!(kernel_version("linux"), None);
    }
}
