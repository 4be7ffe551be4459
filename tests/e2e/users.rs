//! What an ordinary user can do, and what nobody can gain.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use crate::harness::layout::{Compression, Layout};
use crate::harness::peersync::Peersync;
use crate::harness::tar::{Header, Tar};
use crate::harness::{needs_mounts, output, tool};

/// `nobody`: any user without rights will do.
const USER: u32 = 65_534;

/// An image whose program would give root to whoever runs it.
fn tempting() -> (tempfile::TempDir, Layout) {
    let id = fs::read("/usr/bin/id").expect("a program");
    let mut tar = Tar::new();
    tar.member(&Header { name: b"setuid-id", mode: 0o4755, ..Header::default() }, &id);
    tar.member(&Header { name: b"secret", mode: 0o600, ..Header::default() }, b"for root");
    tar.member(&Header { name: b"public", mode: 0o644, ..Header::default() }, b"for all");
    tar.member(
        &Header {
            name: b"of-user",
            mode: 0o600,
            owner: (USER.into(), USER.into()),
            ..Header::default()
        },
        b"for one",
    );
    tar.member(
        &Header { name: b"disk", kind: b'3', mode: 0o666, device: (1, 3), ..Header::default() },
        b"",
    );
    let place = open_scratch();
    let mut layout = Layout::create(&place.path().join("oci"));
    layout.image("v1", &[tar.finish()], Compression::Gzip);
    tool("chmod", &["-R", "a+rX", &place.path().display().to_string()]);
    (place, layout)
}

/// A command as the user without rights. New privileges are allowed: the mount
/// has to prevent them, not the caller.
fn as_user(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    let user = USER.to_string();
    command.args(["--reuid", &user, "--regid", &user, "--clear-groups", "--"]).arg(program);
    command
}

/// A directory that every user can walk to.
fn open_scratch() -> tempfile::TempDir {
    let place = tempfile::Builder::new().prefix("e2e-").tempdir().expect("scratch directory");
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).expect("permissions");
    place
}

#[test]
fn a_setuid_program_in_an_image_gives_nothing() {
    needs_mounts!();
    let (_place, layout) = tempting();
    let peersync = Peersync::below(open_scratch());
    let mount = peersync.mount(&layout.reference("v1"), &[]);
    // The bit shows, and does nothing.
    let mode = fs::metadata(mount.join("setuid-id")).expect("metadata").permissions().mode();
    assert_eq!(mode & 0o7777, 0o4755);
    let output = output(as_user(&mount.join("setuid-id")).arg("-u"));
    let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    assert_eq!(said, USER.to_string(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn other_users_see_what_modes_allow() {
    needs_mounts!();
    let (_place, layout) = tempting();
    let peersync = Peersync::below(open_scratch());
    let mount = peersync.mount(&layout.reference("v1"), &[]);
    let cat = |name: &str| output(as_user(Path::new("cat")).arg(mount.join(name)));
    assert_eq!(cat("public").stdout, b"for all");
    assert_eq!(cat("of-user").stdout, b"for one");
    assert!(!cat("secret").status.success(), "a file of root with mode 600");
    assert!(!cat("disk").status.success(), "a device node opens nothing");
}

#[test]
fn nobody_can_write() {
    needs_mounts!();
    let (_place, layout) = tempting();
    let peersync = Peersync::below(open_scratch());
    let mount = peersync.mount(&layout.reference("v1"), &[]);
    let read_only = |result: std::io::Result<()>| {
        let error = result.expect_err("a write to an image").raw_os_error();
        assert_eq!(error, Some(nix::libc::EROFS));
    };
    read_only(fs::write(mount.join("public"), b"x"));
    read_only(fs::write(mount.join("new"), b"x"));
    read_only(fs::create_dir(mount.join("directory")));
    read_only(fs::remove_file(mount.join("public")));
    read_only(fs::rename(mount.join("public"), mount.join("other")));
    read_only(fs::set_permissions(mount.join("public"), fs::Permissions::from_mode(0o777)));
    read_only(xattr::set(mount.join("public"), "user.x", b"x"));
    read_only(std::os::unix::fs::symlink("x", mount.join("link")));
}

#[test]
fn an_ordinary_user_mounts_through_fusermount() {
    needs_mounts!();
    let (place, layout) = tempting();
    let user = place.path().join("user");
    fs::create_dir(&user).expect("home");
    std::os::unix::fs::chown(&user, Some(USER), Some(USER)).expect("chown");
    let program = place.path().join("peersync");
    fs::copy(env!("CARGO_BIN_EXE_peersync"), &program).expect("copy the program");
    // The device may be open to root only; the user gets one of its own, seen
    // in a mount namespace of this test alone.
    let device = place.path().join("fuse");
    tool("mknod", &["-m", "666", &device.display().to_string(), "c", "10", "229"]);
    let script = r#"
        set -eu
        mount --bind "$DEVICE" /dev/fuse
        user() { setpriv --reuid 65534 --regid 65534 --clear-groups -- env HOME="$USER_DIR" \
            XDG_DATA_HOME="$USER_DIR/data" XDG_RUNTIME_DIR="$USER_DIR" PATH="$PATH" "$@"; }
        user mkdir "$USER_DIR/mnt"
        if user "$PROGRAM" mount -o suid "$IMAGE" "$USER_DIR/mnt" >&2; then exit 1; fi
        user "$PROGRAM" mount "$IMAGE" "$USER_DIR/mnt" >&2
        user cat "$USER_DIR/mnt/public"
        echo
        user stat -c '%n %a %u %s' "$USER_DIR/mnt/of-user" "$USER_DIR/mnt/secret"
        user "$USER_DIR/mnt/setuid-id" -u
        grep -F "$USER_DIR/mnt" /proc/self/mountinfo
        user "$PROGRAM" umount "$USER_DIR/mnt" >&2
        ! grep -qF "$USER_DIR/mnt" /proc/self/mountinfo
        [ -d "$USER_DIR/data/peersync" ]
    "#;
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", script]);
    command.env("DEVICE", &device).env("USER_DIR", &user).env("PROGRAM", &program);
    command.env("IMAGE", layout.reference("v1"));
    let output = output(&mut command);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}\n{error}");
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[0], "for all");
    assert!(lines[1].ends_with("of-user 600 65534 7"), "{said}");
    assert!(lines[2].ends_with("secret 600 0 8"), "recorded owners show: {said}");
    assert_eq!(lines[3], USER.to_string(), "{said}");
    assert!(lines[4].contains("nosuid") && lines[4].contains("nodev"), "{said}");
}

#[test]
fn only_root_may_ask_for_setuid_and_devices() {
    needs_mounts!();
    let (_place, layout) = tempting();
    let peersync = Peersync::below(open_scratch());
    let mount = peersync.mount(&layout.reference("v1"), &["-o", "suid,dev"]);
    let output = output(as_user(&mount.join("setuid-id")).arg("-u"));
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "0");
}
