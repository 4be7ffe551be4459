//! `mount` and `umount`.

use std::path::{Path, PathBuf};

use super::Exit;
use super::args::{Mount, MountOption};
use super::list::print_json;
use super::owner::Owner;
use super::progress::Bars;
use crate::admin::{Event, FailureKind, MountArgs, Request};

pub(super) fn mount(owner: &Owner, mount: &Mount) -> Result<(), Exit> {
    let usage = |message: String| Exit::new(FailureKind::Usage, message);
    let dir = mount
        .dir
        .canonicalize()
        .map_err(|error| usage(format!("mount point {}: {error}", mount.dir.display())))?;
    if !dir.is_dir() {
        return Err(usage(format!("mount point {} is not a directory", dir.display())));
    }
    let has = |option| mount.options.contains(&option);
    let (suid, dev) = (has(MountOption::Suid), has(MountOption::Dev));
    if (suid || dev) && !nix::unistd::geteuid().is_root() {
        return Err(usage("mount options suid and dev are for root".into()));
    }
    let request = Request::Mount(MountArgs {
        image: absolute_image(&mount.image)?,
        dir: dir.clone(),
        plain_http: mount.plain_http,
        index: mount.index,
        suid,
        dev,
    });
    let mut bars = Bars::new(owner.json);
    let answer = owner.ask(&request, |event| bars.show(event))?;
    if owner.json {
        print_json(&answer)?;
    } else if let Event::Mounted(info) = &answer {
        eprintln!("{} is mounted on {}", mount.image, info.dir.display());
    }
    if mount.foreground { stay(&dir) } else { Ok(()) }
}

/// Stays until the mount is gone; takes it away on Ctrl-C and SIGTERM.
fn stay(dir: &Path) -> Result<(), Exit> {
    use tokio::signal::unix::{SignalKind, signal};
    let failed = |error: std::io::Error| Exit::new(FailureKind::Failed, error);
    super::owner::runtime()?.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
        // The kernel marks the mount table as readable for errors when it changes.
        let table = std::fs::File::open("/proc/self/mountinfo").map_err(failed)?;
        // SAFETY: the file is owned by the registration and stays open as long.
        let table = unsafe {
            tokio::io::unix::AsyncFd::register_with_interest(table, tokio::io::Interest::PRIORITY)
        };
        let table = table.map_err(|error| Exit::new(FailureKind::Failed, error))?;
        loop {
            if !is_mount_point(dir) {
                return Ok(());
            }
            tokio::select! {
                changed = table.ready(tokio::io::Interest::PRIORITY) => {
                    changed.map_err(failed)?.clear_ready();
                }
                _ = interrupt.recv() => return umount(dir, false),
                _ = terminate.recv() => return umount(dir, false),
            }
        }
    })
}

pub(super) fn umount(dir: &Path, lazy: bool) -> Result<(), Exit> {
    let dir = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
    if !is_mount_point(&dir) {
        let message = format!("{} is not a mount of PeerSync", dir.display());
        return Err(Exit::new(FailureKind::NotFound, message));
    }
    crate::fuse::unmount(&dir, lazy).map_err(|error| {
        let hint = match error {
            crate::fuse::UnmountError::Busy(_) => {
                " (`fuser -m` shows by whom; --lazy detaches it now)"
            }
            _ => "",
        };
        Exit::new(FailureKind::Failed, format!("{error}{hint}"))
    })
}

/// Whether a PeerSync file system is mounted on exactly this directory. Asks
/// the kernel's table, not the directory: a dead mount answers nothing.
fn is_mount_point(dir: &Path) -> bool {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table.lines().any(|line| {
        let Some((left, right)) = line.split_once(" - ") else { return false };
        right.starts_with("fuse.peersync ")
            && left.split(' ').nth(4).is_some_and(|path| unescape(path) == dir)
    })
}

/// Octal escapes of the mount table: space, tab, newline and backslash.
fn unescape(path: &str) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    let bytes = path.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let octal = (bytes[i] == b'\\')
            .then(|| path.get(i + 1..i + 4).and_then(|d| u8::from_str_radix(d, 8).ok()))
            .flatten();
        out.push(octal.unwrap_or(bytes[i]));
        i += if octal.is_some() { 4 } else { 1 };
    }
    std::ffi::OsString::from_vec(out).into()
}

/// Makes the path in `oci:DIR[:tag]` or `docker-archive:FILE[:name]` absolute:
/// the owner stands elsewhere.
pub(super) fn absolute_image(image: &str) -> Result<String, Exit> {
    let (kind, what, rest) =
        match (image.strip_prefix("oci:"), image.strip_prefix("docker-archive:")) {
            (Some(rest), _) => ("oci", "OCI layout", rest),
            (_, Some(rest)) => ("docker-archive", "archive", rest),
            _ => return Ok(image.to_owned()),
        };
    // Where the owner takes it apart too.
    let end = rest.find([':', '@']).filter(|_| !Path::new(rest).exists()).unwrap_or(rest.len());
    let (path, name) = rest.split_at(end);
    let path = Path::new(path)
        .canonicalize()
        .map_err(|error| Exit::new(FailureKind::NotFound, format!("{what} {path}: {error}")))?;
    let path = path.to_str().ok_or_else(|| {
        Exit::new(FailureKind::Usage, format!("{what} {}: not UTF-8", path.display()))
    })?;
    Ok(format!("{kind}:{path}{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_tables_escapes_are_read() {
        assert_eq!(unescape("/a\\040b\\134"), PathBuf::from("/a b\\"));
        assert_eq!(unescape("/plain"), PathBuf::from("/plain"));
    }
}
