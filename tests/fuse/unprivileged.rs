//! The mount of an ordinary user, through `fusermount3`.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use peersync::fs::{FsOptions, Root};
use peersync::fuse::{MountError, MountOptions};

use crate::memory::{Item, MemoryCatalog, MemoryReader, Resolution, layer, slot};
use crate::support::{self, Mounted, as_child, can_mount, errno, xattr};

const NOBODY: u32 = 65534;

#[test]
fn an_ordinary_user_can_mount_and_gains_nothing() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    std::os::unix::fs::chown(dir.path(), Some(NOBODY), Some(NOBODY)).expect("as root");
    let child = as_child("user", dir.path());
    // The user may not be able to reach the directory that this binary is in.
    let binary = dir.path().join("tests");
    fs::copy(child.get_program(), &binary).expect("a copy");
    // Where the device is root's alone, show the user one like on other machines.
    let script = "mknod -m 666 \"$1/fuse\" c 10 229
        mount --bind \"$1/fuse\" /dev/fuse
        shift
        exec setpriv --reuid=65534 --regid=65534 --clear-groups -- \"$@\"";
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-ec", script, "sh"])
        .args([dir.path(), &binary])
        .args(child.get_args())
        .envs(child.get_envs().filter_map(|(name, value)| Some((name, value?))))
        .env("TMPDIR", dir.path())
        .current_dir(dir.path());
    let output = command.output().expect("unshare");
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("a user's mount works"), "{text}");
}

/// Runs as an ordinary user.
pub fn as_user(dir: &Path) {
    assert!(!nix::unistd::geteuid().is_root());
    let large = vec![5; 400 << 10];
    let items = [
        Item::file("mine", "for all").owner(0, 0),
        Item::file("secret", "for root").owner(0, 0).mode(0o600),
        Item::file("large", large.clone()),
        Item::file("tool", fs::read("/usr/bin/id").expect("a program")).mode(0o4755),
        Item::new("null", peersync::layer::entry::EntryKind::CharDevice { major: 1, minor: 3 })
            .mode(0o666),
        Item::dir("opaque"),
        Item::opaque("opaque"),
    ];
    let reader = MemoryReader::new();
    let catalog = MemoryCatalog::new();
    let view = layer(slot(1), &items, &reader);
    catalog.add_layer(&view);
    catalog.add_chain(support::CHAIN(), &[view]);
    catalog.set_registry("docker.io/library/x:1", Resolution::Image(support::CHAIN()));

    let options = FsOptions { user_opaque: true, owner: (NOBODY, NOBODY), resolve_group: None };
    let mounted = Mounted::over(catalog, reader, Root::Whole, options, |_| ());
    let (object, _) = mounted.reader.add(&large);
    mounted.reader.complete(&object, dir.join("object"));

    let table = fs::read_to_string("/proc/self/mountinfo").expect("a table");
    let point = mounted.point().to_str().expect("text");
    let line = table.lines().find(|line| line.contains(point)).expect("our mount");
    for word in ["ro,", "nosuid", "nodev", "fuse.peersync", "default_permissions"] {
        assert!(line.contains(word), "{word}: {line}");
    }
    assert!(line.contains("a\\040test,\\040of\\040course"), "{line}");
    assert!(!line.contains("allow_other"), "{line}");

    let at = |path: &str| mounted.chain(path);
    assert_eq!(fs::read(at("mine")).expect("a file"), b"for all");
    assert_eq!(errno(fs::read(at("secret"))), nix::libc::EACCES);
    assert_eq!(fs::metadata(at("secret")).expect("its attributes").uid(), 0);
    assert_eq!(fs::read(at("large")).expect("a file"), large);
    assert_eq!(mounted.handle.stats().passthrough_opens, 0);
    let id = Command::new(at("tool")).arg("-u").output().expect("a program");
    assert_eq!(id.stdout, b"65534\n");
    assert_eq!(errno(File::open(at("null"))), nix::libc::EACCES);
    assert_eq!(xattr(&mounted.layer(1, "opaque"), "user.overlay.opaque"), Ok(b"y".to_vec()));
    // It is the user's own mount, so the user may have images resolved.
    let image = mounted.point().join("images/docker.io/library/x:1/mine");
    assert_eq!(fs::read(image).expect("resolved"), b"for all");

    // What is for root only is refused with a reason.
    let other = dir.join("other");
    fs::create_dir(&other).expect("own directory");
    let mut options = MountOptions::new("x");
    options.suid = true;
    let fs = peersync::fs::FileSystem::new(
        Root::Whole,
        mounted.catalog.clone(),
        mounted.reader.clone(),
        FsOptions::default(),
    );
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_time().build();
    let runtime = runtime.expect("a runtime");
    let refused =
        peersync::fuse::mount(fs.clone(), &other, &options, runtime.handle().clone(), || ());
    assert!(matches!(refused, Err(MountError::NeedsRoot)));
    let options = MountOptions::new("x");
    let refused =
        peersync::fuse::mount(fs, Path::new("/usr"), &options, runtime.handle().clone(), || ());
    match refused {
        Err(MountError::Helper(words)) => assert!(words.contains("/usr"), "{words}"),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("/usr is not ours"),
    }

    // In use, then not.
    let open = File::open(at("mine")).expect("a file");
    let busy = mounted.handle.unmount(false);
    assert!(matches!(busy, Err(peersync::fuse::UnmountError::Busy(_))), "{busy:?}");
    drop(open);
    mounted.handle.unmount(false).expect("nobody uses it");
    mounted.ended.recv_timeout(support::PATIENCE).expect("it has ended");
    println!("a user's mount works");
}

#[test]
fn who_may_not_resolve_sees_what_is_known() {
    if !can_mount() {
        return;
    }
    const GROUP: u32 = 4321;
    let options = FsOptions { resolve_group: Some(GROUP), ..FsOptions::default() };
    let items = [Item::file("file", "content")];
    let mounted = Mounted::with(&[&items], Root::Whole, options, |_| ());
    mounted.catalog.set_registry("docker.io/library/x:1", Resolution::Image(support::VIEW()));
    mounted.catalog.add_image("docker.io/library/known:1", support::VIEW());
    let images = mounted.point().join("images");
    let read = |groups: &str, path: &str| {
        let output = Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", groups, "--", "cat"])
            .arg(images.join(path))
            .output()
            .expect("setpriv");
        (output.status.success(), output.stdout)
    };
    let content = (true, b"content".to_vec());
    let unknown = "docker.io/library/x:1/file";
    assert_eq!(read("--clear-groups", unknown), (false, vec![]));
    assert_eq!(read("--groups=100,200", unknown), (false, vec![]));
    assert_eq!(read("--clear-groups", "quay.io/x:1/file"), (false, vec![]));
    assert_eq!(mounted.catalog.resolved(), 0);
    assert_eq!(read("--clear-groups", "docker.io/library/known:1/file"), content);
    assert_eq!(read("--groups=100,4321", unknown), content);
    assert_eq!(mounted.catalog.resolved(), 1);
}
