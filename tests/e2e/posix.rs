//! What a POSIX program expects of a file system, beyond the tree itself.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::Command;
use std::thread;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statvfs::statvfs;
use nix::unistd::{Whence, lseek};

use crate::harness::indexed::lazy_image;
use crate::harness::layout::{Compression, Layout};
use crate::harness::peersync::{Mount, Peersync};
use crate::harness::tar::Tar;
use crate::harness::{lab_images, needs_mounts, output, run, scratch};

const LARGE: usize = 12 << 20;

/// A large and a small file and a sparse one, mounted; with the large file's bytes.
fn mounted() -> (Peersync, Mount, Vec<u8>) {
    let place = scratch();
    let mut layout = Layout::create(place.path());
    let mut content = vec![0; LARGE];
    blake3::Hasher::new().finalize_xof().fill(&mut content);
    let mut tar = Tar::new();
    tar.file(b"large", &content).file(b"small", b"small").directory(b"directory");
    tar.pax_sparse(b"sparse", 8 << 20, &[(4 << 20, &content[..65_536]), (8 << 20, &[])]);
    layout.image("v1", &[tar.finish()], Compression::Gzip);
    let peersync = Peersync::new();
    let mount = peersync.mount(&layout.reference("v1"), &[]);
    (peersync, mount, content)
}

fn lab_image() -> String {
    format!("oci:{}:v1", lab_images().join("oci").display())
}

#[test]
fn programs_of_the_image_run_in_a_chroot() {
    needs_mounts!();
    let peersync = Peersync::new();
    let mount = peersync.mount(&lab_image(), &[]);
    let script = "import sys; print([sys.version_info[0], 6 * 7])";
    let said =
        run(Command::new("chroot").arg(&mount.path).args(["/usr/bin/python3", "-c", script]));
    assert_eq!(said.trim(), "[3, 42]");
}

#[test]
fn programs_run_while_they_are_fetched() {
    needs_mounts!();
    let indexed = lazy_image();
    let (line, image) = indexed.line();
    let peersync = Peersync::new();
    let mount = peersync.mount(&image, &["--index", "require"]);
    let before = line.down();
    let said = run(Command::new("chroot").arg(&mount.path).args([
        "/usr/bin/bash",
        "-c",
        "echo $((6 * 7))",
    ]));
    assert_eq!(said.trim(), "42");
    let fetched = line.down() - before;
    assert!(fetched > 0 && fetched < indexed.image_bytes / 4, "{fetched} bytes");
}

#[test]
fn reads_at_any_offset_give_the_right_bytes() {
    needs_mounts!();
    let (_peersync, mount, content) = mounted();
    let file = File::open(mount.join("large")).expect("large");
    let mut state = 7_u64;
    for _ in 0..500 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let offset = (state >> 20) as usize % LARGE;
        let length = (state >> 50) as usize % 70_000;
        let mut bytes = vec![0; length];
        let read = file.read_at(&mut bytes, offset as u64).expect("read");
        let end = (offset + length).min(LARGE);
        assert!(bytes[..read] == content[offset..offset + read], "{length} at {offset}");
        assert!(read == end - offset || read > 0, "{read} of {length} at {offset}");
    }
    assert_eq!(file.read_at(&mut [0; 10], LARGE as u64).expect("at the end"), 0);
    assert_eq!(file.read_at(&mut [0; 10], 1 << 60).expect("past the end"), 0);
}

#[test]
fn many_readers_at_once_see_the_same() {
    needs_mounts!();
    let indexed = lazy_image();
    let (line, image) = indexed.line();
    let peersync = Peersync::new();
    let mount = peersync.mount(&image, &["--index", "require"]);
    let before = line.down();
    let path = mount.join("models/model.safetensors");
    let hashes: Vec<blake3::Hash> = thread::scope(|scope| {
        let readers: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| blake3::hash(&fs::read(&path).expect("model"))))
            .collect();
        readers.into_iter().map(|reader| reader.join().expect("reader")).collect()
    });
    assert!(hashes.iter().all(|hash| *hash == hashes[0]));
    // Eight readers of one file fetch it once.
    let fetched = line.down() - before;
    assert!(fetched < 30 << 20, "{fetched} bytes for a file of 24 MiB");
}

#[test]
fn a_file_that_becomes_complete_while_it_is_open_stays_readable() {
    needs_mounts!();
    let indexed = lazy_image();
    let (_line, image) = indexed.line();
    let peersync = Peersync::new();
    let mount = peersync.mount(&image, &["--index", "require"]);
    let path = mount.join("models/model.safetensors");
    // Opened while nothing is here (cached), completed, opened again: an inode
    // can't be open in both modes, and nobody may see that.
    let early = File::open(&path).expect("open early");
    let mut first = [0; 4096];
    early.read_exact_at(&mut first, 0).expect("first bytes");
    let all = fs::read(&path).expect("all of it");
    let late = File::open(&path).expect("open late");
    for file in [&early, &late] {
        let mut bytes = [0; 4096];
        file.read_exact_at(&mut bytes, 9 << 20).expect("read");
        assert!(bytes == all[9 << 20..][..4096]);
    }
    drop((early, late));
    assert!(fs::read(&path).expect("again, idle before") == all);
}

#[test]
fn a_file_can_be_mapped() {
    needs_mounts!();
    let (_peersync, mount, content) = mounted();
    let file = File::open(mount.join("large")).expect("large");
    // SAFETY: nobody can write to an image.
    let map = unsafe { memmap2::Mmap::map(&file) }.expect("map");
    drop(file);
    assert!(map[..] == content[..]);
}

#[test]
fn holes_are_found() {
    needs_mounts!();
    let (_peersync, mount, _) = mounted();
    let file = File::open(mount.join("sparse")).expect("sparse");
    assert_eq!(lseek(&file, 0, Whence::SeekData).expect("data"), 4 << 20);
    assert_eq!(lseek(&file, 4 << 20, Whence::SeekHole).expect("hole"), (4 << 20) + 65_536);
    let error = lseek(&file, 6 << 20, Whence::SeekData).expect_err("no data after it");
    assert_eq!(error, nix::errno::Errno::ENXIO);
    let large = File::open(mount.join("large")).expect("large");
    assert_eq!(lseek(&large, 5, Whence::SeekHole).expect("the end"), LARGE as i64);
    assert!(file.metadata().expect("metadata").blocks() < 1024);
}

#[test]
fn the_file_system_has_a_size() {
    needs_mounts!();
    let (_peersync, mount, _) = mounted();
    let stat = statvfs(&mount.path).expect("statvfs");
    assert!(stat.blocks() > 0 && stat.block_size() > 0 && stat.name_max() == 255);
    let said = run(Command::new("df").arg(&mount.path));
    assert!(said.contains(&mount.path.display().to_string()), "{said}");
}

#[test]
fn what_is_not_there_is_not_there() {
    needs_mounts!();
    let (_peersync, mount, _) = mounted();
    let code = |path: &str| fs::metadata(mount.join(path)).expect_err(path).raw_os_error();
    for _ in 0..2 {
        assert_eq!(code("nothing"), Some(nix::libc::ENOENT));
        assert_eq!(code("directory/nothing"), Some(nix::libc::ENOENT));
        assert_eq!(code("small/nothing"), Some(nix::libc::ENOTDIR));
        assert_eq!(code(&"n".repeat(256)), Some(nix::libc::ENAMETOOLONG));
    }
    let unknown = xattr::get(mount.join("small"), "user.nothing").expect("no such attribute");
    assert!(unknown.is_none());
}

#[test]
fn an_overlay_on_top_can_be_written_to() {
    needs_mounts!();
    let (peersync, lower, content) = mounted();
    let at = |name: &str| {
        let path = peersync.path(name);
        fs::create_dir(&path).expect("directory");
        path
    };
    let (upper, work, merged) = (at("upper"), at("work"), at("merged"));
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.path.display(),
        upper.display(),
        work.display()
    );
    let kind = Some("overlay");
    mount(kind, &merged, kind, MsFlags::empty(), Some(options.as_str())).expect("overlay");
    fs::write(merged.join("new"), b"new").expect("write");
    let large = File::options().write(true).open(merged.join("large")).expect("copy up");
    large.write_all_at(b"changed", 5 << 20).expect("write");
    drop(large);
    let copied = fs::read(merged.join("large")).expect("read");
    assert!(copied[..5 << 20] == content[..5 << 20] && &copied[5 << 20..][..7] == b"changed");
    fs::remove_file(merged.join("small")).expect("remove");
    assert!(!merged.join("small").exists() && lower.join("small").exists());
    umount2(&merged, MntFlags::MNT_DETACH).expect("umount");
}

#[test]
fn ordinary_tools_walk_it() {
    needs_mounts!();
    let peersync = Peersync::new();
    let mount = peersync.mount(&lab_image(), &[]);
    for command in [
        &["find", ".", "-xdev", "-ls"][..],
        &["du", "-s", "."],
        &["tar", "-cf", "/dev/null", "."],
        &["grep", "-rqa", "no such words here, surely", "usr/lib/os-release"],
    ] {
        let output = output(Command::new(command[0]).args(&command[1..]).current_dir(&mount.path));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.is_empty(), "{command:?}: {said}");
    }
}
