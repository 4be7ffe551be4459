//! Archives that hold everything that tar can say. What comes out is compared
//! with `umoci unpack`, attribute by attribute.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use crate::harness::layout::{Compression, Layout};
use crate::harness::peersync::{Mount, Peersync};
use crate::harness::tar::{Header, Tar};
use crate::harness::tree::{Allow, Kind, Tree};
use crate::harness::{needs_mounts, scratch, tool};
use crate::trees::{status_directory, unpack};

/// Names that are directories in no layer: their times are whatever the
/// unpacking made of them.
const IMPLICIT: &[&[u8]] = &[b"implicit", b"implicit/deeper"];

/// `security.capability` as the kernel keeps it: version 2, effective, `cap_net_raw`.
const CAPABILITY: &[u8] = &[1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
/// `user::rw-,user:1234:r--,group::r--,mask::r--,other::r--` as an xattr.
const ACL: &[u8] = &[
    2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 4, 0, 210, 4, 0, 0, 4, 0, 4, 0, 255, 255,
    255, 255, 16, 0, 4, 0, 255, 255, 255, 255, 32, 0, 4, 0, 255, 255, 255, 255,
];

/// Bytes of a sparse file and their place.
type Stretch<'a> = (u64, &'a [u8]);

/// `length` bytes that are not zero and differ from their neighbours.
fn bytes(seed: u8, length: usize) -> Vec<u8> {
    let mut state = u32::from(seed) + 1;
    let next = std::iter::from_fn(move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        Some((state >> 24) as u8 | 1)
    });
    next.take(length).collect()
}

fn bottom() -> Vec<u8> {
    let mut tar = Tar::new();
    tar.member(
        &Header {
            name: b"./",
            kind: b'5',
            mode: 0o755,
            modified: 1_111_111_111,
            ..Header::default()
        },
        b"",
    );
    names(&mut tar);
    attributes(&mut tar);
    contents(&mut tar);
    // What the layers above take away or replace.
    for name in [&b"gone"[..], b"shadowed", b"becomes-directory", b"kept/by-all"] {
        if name.contains(&b'/') {
            tar.directory(b"kept/");
        }
        tar.file(name, &bytes(name[0], 3000));
    }
    for directory in [&b"emptied"[..], b"emptied/below", b"opaque", b"becomes-file", b"removed"] {
        tar.directory(directory);
        tar.file(&[directory, b"/inside"].concat(), b"old");
    }
    tar.finish()
}

/// Every way to say a name.
fn names(tar: &mut Tar) {
    let long = |length: usize| [b"long/".as_slice(), &b"n".repeat(length)].concat();
    tar.directory(b"long/");
    tar.pax(b"path", &long(255)).file(b"long/pax", b"a pax name");
    tar.gnu_long(b'L', &long(254)).file(b"long/gnu", b"a gnu name");
    let deep = b"d/".repeat(300);
    tar.pax(b"path", &[b"long/", deep.as_slice(), b"leaf"].concat()).file(b"x", b"deep");
    tar.pax(b"linkpath", &b"to/".repeat(500)).symlink(b"long/pax-link", b"x");
    tar.gnu_long(b'K', &b"../".repeat(400)).symlink(b"long/gnu-link", b"x");
    // The prefix field of ustar is used by writers for names of up to 255 bytes.
    tar.file("unicode-\u{e4}\u{1f980}-\u{6f22}".as_bytes(), b"unicode");
    tar.file(b"not-utf8-\xff\xfe\x80", b"bytes");
    tar.pax(b"path", b"not-utf8-in-pax-\xc3\x28").file(b"x", b"bytes");
    tar.file(b"white space\tand\nlines", b"blank");
    tar.file(b"./dot/./slashes//name", b"normal");
    tar.file(b"/absolute/name", b"inside");
    tar.file(b"implicit/deeper/file", b"its directories stand nowhere");
    tar.symlink(b"dangling", b"no/where").symlink(b"absolute-link", b"/etc/passwd");
    tar.symlink(b"up-link", b"../../../..").symlink(b"self-link", b"self-link");
    // A name that comes twice: the last one counts.
    tar.file(b"twice", b"first").file(b"twice", b"second, which counts");
    tar.file(b"twice-kinds", b"file first").symlink(b"twice-kinds", b"twice");
    tar.directory(b"twice-directory").file(b"twice-directory/kept", b"kept");
    tar.member(
        &Header { name: b"twice-directory", kind: b'5', mode: 0o700, ..Header::default() },
        b"",
    );
}

/// Every attribute.
fn attributes(tar: &mut Tar) {
    let each: [(&[u8], u32); 4] =
        [(b"setuid", 0o4755), (b"setgid", 0o2755), (b"sticky", 0o1777), (b"nothing", 0)];
    for (name, mode) in each {
        tar.member(&Header { name, mode, ..Header::default() }, b"mode");
    }
    tar.member(
        &Header { name: b"setgid-directory", kind: b'5', mode: 0o2775, ..Header::default() },
        b"",
    );
    tar.member(
        &Header { name: b"big-owner", owner: (3_000_000, 4_294_967_290), ..Header::default() },
        b"",
    );
    tar.pax(b"uid", b"4000000000").pax(b"gid", b"2097152").file(b"pax-owner", b"");
    tar.pax(b"mtime", b"1234567890.123456789").file(b"sub-second", b"");
    tar.pax(b"mtime", b"1234567890.5").directory(b"sub-second-directory");
    tar.pax(b"mtime", b"1234567890.000000001").symlink(b"sub-second-link", b"x");
    tar.member(&Header { name: b"epoch", modified: 0, ..Header::default() }, b"");
    tar.member(
        &Header { name: b"before-the-epoch", modified: -1_000_000, ..Header::default() },
        b"",
    );
    tar.pax(b"mtime", b"-1.25").file(b"before-the-epoch-by-pax", b"");
    tar.member(&Header { name: b"after-2038", modified: 5_000_000_000, ..Header::default() }, b"");
    tar.pax(b"SCHILY.xattr.user.colour", b"blue\0and=binary\xff").file(b"xattr", b"x");
    // No empty attribute: containerd and Docker restore one, umoci does not.
    tar.pax(b"SCHILY.xattr.security.capability", CAPABILITY).file(b"capability", b"x");
    tar.pax(b"SCHILY.xattr.system.posix_acl_access", ACL).file(b"acl", b"x");
    tar.pax(b"SCHILY.xattr.trusted.note", b"for root").directory(b"trusted-xattr");
    tar.device(b"null", b'3', (1, 3)).device(b"disk", b'4', (259, 65_536)).device(
        b"fifo",
        b'6',
        (0, 0),
    );
    tar.file(b"links-a", &bytes(9, 5000));
    tar.hard_link(b"links-b", b"links-a").hard_link(b"long/links-c", b"./links-a");
    tar.symlink(b"link-to-link", b"links-a").hard_link(b"linked-symlink", b"link-to-link");
}

/// Every kind of content.
fn contents(tar: &mut Tar) {
    tar.file(b"empty", b"").file(b"one-byte", b"1");
    for length in [511, 512, 513, 262_143, 262_144, 262_145, 1_048_577] {
        tar.file(format!("size-{length}").as_bytes(), &bytes(length as u8, length));
    }
    tar.file(b"copy-of-large", &bytes(1, 1_048_577));
    tar.file(b"zeros", &vec![0; 700_000]);
    let a = bytes(3, 5000);
    tar.pax_sparse(b"sparse", 2_000_000, &[(4096, &a[..4608]), (1_500_160, &a[..4000])]);
}

fn middle() -> Vec<u8> {
    let mut tar = Tar::new();
    tar.file(b".wh.gone", b"").file(b"shadowed", b"by the middle layer");
    tar.directory(b"emptied").file(b"emptied/.wh..wh..opq", b"");
    // An entry that stands before the opaque marker of its own layer stays.
    tar.directory(b"opaque").file(b"opaque/new", b"new").file(b"opaque/.wh..wh..opq", b"");
    tar.file(b".wh.removed", b"").file(b".wh.never-there", b"");
    tar.file(b"becomes-file", b"was a directory");
    tar.directory(b"becomes-directory").file(b"becomes-directory/inside", b"was a file");
    // A hard link to a file of the layer below; metadata alone changes.
    tar.hard_link(b"linked-from-above", b"links-a");
    tar.member(&Header { name: b"kept/", kind: b'5', mode: 0o711, ..Header::default() }, b"");
    tar.file(b"returns", b"for one layer");
    tar.finish()
}

fn top() -> Vec<u8> {
    let mut tar = Tar::new();
    tar.file(b"gone", b"back again").file(b".wh.returns", b"");
    tar.directory(b"removed").file(b"removed/anew", b"anew");
    tar.file(b"opaque/later", b"later");
    // No end-of-archive blocks: many writers leave them out, readers cope.
    tar.unfinished()
}

fn mount_nasty(how: Compression) -> (Peersync, Mount, Tree, tempfile::TempDir) {
    let place = scratch();
    let mut layout = Layout::create(&place.path().join("oci"));
    layout.image("gzip", &[bottom(), middle(), top()], Compression::Gzip);
    layout.image("other", &[bottom(), middle(), top()], how);
    let wanted = unpack(&layout.dir, "gzip");
    let peersync = Peersync::new();
    let mount = peersync.mount(&layout.reference("other"), &[]);
    (peersync, mount, wanted, place)
}

fn allow() -> Allow {
    let deep = (0..=300).map(|n| [b"long".as_slice(), &b"/d".repeat(n)].concat());
    let mut allow = status_directory();
    allow.times = IMPLICIT.iter().map(|path| path.to_vec()).chain(deep.skip(1)).collect();
    // umoci makes these on the way, or in these: their times are its own.
    for path in [&b""[..], b"long", b"dot", b"dot/slashes", b"absolute"] {
        allow.times.insert(path.to_vec());
    }
    allow
}

#[test]
fn the_reference_is_what_the_layers_say() {
    needs_mounts!();
    let place = scratch();
    let mut layout = Layout::create(&place.path().join("oci"));
    layout.image("gzip", &[bottom(), middle(), top()], Compression::Gzip);
    let tree = unpack(&layout.dir, "gzip");
    let entry = |path: &[u8]| tree.entries.get(path).unwrap_or_else(|| panic!("{path:?}"));
    assert_eq!(entry(b"sub-second").modified, (1_234_567_890, 123_456_789));
    assert_eq!(entry(b"acl").xattrs[&b"system.posix_acl_access"[..]], ACL);
    assert_eq!(entry(b"capability").xattrs[&b"security.capability"[..]], CAPABILITY);
    assert_eq!(entry(b"big-owner").owner, (3_000_000, 4_294_967_290));
    assert_eq!(entry(b"linked-from-above").links, 4);
    assert!(matches!(entry(b"sparse").kind, Kind::File(2_000_000, _)));
    assert!(matches!(entry(b"null").kind, Kind::CharDevice(1, 3)));
    for gone in [&b"removed/inside"[..], b"opaque/inside", b"emptied/below", b"returns"] {
        assert!(!tree.entries.contains_key(gone), "{}", gone.escape_ascii());
    }
    assert!(tree.entries.contains_key(&b"opaque/new"[..]));
}

#[test]
fn everything_that_tar_can_say_in_gzip() {
    needs_mounts!();
    let (_peersync, mount, wanted, _place) = mount_nasty(Compression::Gzip);
    wanted.assert_same(&Tree::read(&mount.path), &allow());
}

#[test]
fn everything_that_tar_can_say_in_small_members() {
    needs_mounts!();
    let (_peersync, mount, wanted, _place) = mount_nasty(Compression::GzipMembers(40_000));
    wanted.assert_same(&Tree::read(&mount.path), &allow());
}

#[test]
fn everything_that_tar_can_say_in_zstd_frames() {
    needs_mounts!();
    let (_peersync, mount, wanted, _place) = mount_nasty(Compression::ZstdFrames(50_000));
    wanted.assert_same(&Tree::read(&mount.path), &allow());
}

#[test]
fn everything_that_tar_can_say_uncompressed() {
    needs_mounts!();
    let (_peersync, mount, wanted, _place) = mount_nasty(Compression::Plain);
    wanted.assert_same(&Tree::read(&mount.path), &allow());
}

/// Sparse files of both formats: as a directory, made by hand because umoci
/// knows no GNU sparse files and writes the holes out, and as an archive.
fn sparse() -> (tempfile::TempDir, Vec<u8>) {
    // Whole records of 512: tools disagree where a stretch in the middle is not.
    let (a, b) = (bytes(3, 5120), bytes(4, 300_032));
    let end = |at: u64| -> Stretch<'_> { (at, &[]) };
    let many = (0..12).map(|i| (i * 100_000, &a[..512])).chain([end(1_200_000)]).collect();
    // A file that ends in a hole has an empty last stretch, as GNU tar writes it.
    let files: [(&str, u64, Vec<Stretch<'_>>); 6] = [
        ("gnu", 40_000_000, vec![(4096, &a), (30_000_128, &b), end(40_000_000)]),
        ("gnu-many", 1_200_000, many),
        ("gnu-terabyte", 1 << 40, vec![(1 << 39, &a[..4096]), end(1 << 40)]),
        ("pax", 5_000_000_000, vec![(0, &a[..1024]), (4_999_000_000, &b), end(5_000_000_000)]),
        ("pax-hole", 1_000_000, vec![end(1_000_000)]),
        ("pax-ends-in-data", 3_000_000, vec![(2_699_968, &b)]),
    ];
    let place = scratch();
    let mut tar = Tar::new();
    for (name, length, map) in &files {
        let file = File::create(place.path().join(name)).expect("reference file");
        file.set_len(*length).expect("length");
        for (offset, bytes) in map {
            file.write_all_at(bytes, *offset).expect("stretch");
        }
        if name.starts_with("gnu") {
            tar.gnu_sparse(name.as_bytes(), *length, map);
        } else {
            tar.pax_sparse(name.as_bytes(), *length, map);
        }
    }
    (place, tar.finish())
}

#[track_caller]
fn assert_same_contents(wanted: &Path, given: &Path) {
    let (wanted, given) = (Tree::read(wanted), Tree::read(given));
    for (name, entry) in wanted.entries.iter().filter(|(name, _)| !name.is_empty()) {
        assert_eq!(entry.kind, given.entries[name].kind, "{}", name.escape_ascii());
    }
}

#[test]
fn the_sparse_archive_is_one_to_gnu_tar() {
    let (reference, archive) = sparse();
    let place = scratch();
    std::fs::write(place.path().join("archive.tar"), archive).expect("archive");
    let out = place.path().join("out");
    std::fs::create_dir(&out).expect("directory");
    let archive = place.path().join("archive.tar");
    tool("tar", &[Path::new("-C"), &out, Path::new("-xf"), &archive]);
    assert_same_contents(reference.path(), &out);
}

#[test]
fn sparse_files_of_every_writer_up_to_a_terabyte() {
    needs_mounts!();
    let (reference, archive) = sparse();
    let place = scratch();
    let mut layout = Layout::create(place.path());
    layout.image("v1", &[archive], Compression::Gzip);
    let peersync = Peersync::new();
    let mount = peersync.mount(&layout.reference("v1"), &[]);
    assert_same_contents(reference.path(), &mount.path);
    // A hole costs nothing on disk, and programs that ask find it.
    let terabyte = std::fs::metadata(mount.join("gnu-terabyte")).expect("terabyte");
    assert!(terabyte.blocks() < 10_000, "{} blocks", terabyte.blocks());
}

#[test]
fn the_overlay_marks_of_an_image_are_not_shown() {
    needs_mounts!();
    let mut tar = Tar::new();
    tar.pax(b"SCHILY.xattr.trusted.overlay.opaque", b"y").directory(b"directory");
    tar.pax(b"SCHILY.xattr.user.overlay.redirect", b"/etc").file(b"file", b"x");
    tar.pax(b"SCHILY.xattr.user.overlay", b"not one of them").file(b"other", b"x");
    let place = scratch();
    let mut layout = Layout::create(&place.path().join("oci"));
    layout.image("v1", &[tar.finish()], Compression::Gzip);
    let peersync = Peersync::new();
    let mount = peersync.mount(&layout.reference("v1"), &[]);
    let tree = Tree::read(&mount.path);
    assert!(tree.entries[&b"directory"[..]].xattrs.is_empty());
    assert!(tree.entries[&b"file"[..]].xattrs.is_empty());
    assert_eq!(tree.entries[&b"other"[..]].xattrs.len(), 1);
}

#[test]
fn nothing_leaves_the_root() {
    needs_mounts!();
    // A link to the outside and members that would be written through it.
    let mut tar = Tar::new();
    let outside = scratch();
    let target = outside.path().as_os_str().as_encoded_bytes().to_vec();
    tar.symlink(b"out", &target[..target.len().min(100)]).file(b"out/escaped", b"x");
    tar.file(b"../above", b"x").file(b"a/../../above-too", b"x");
    tar.hard_link(b"passwd", b"../../../../etc/passwd");
    let place = scratch();
    let mut layout = Layout::create(&place.path().join("oci"));
    layout.image("v1", &[tar.finish()], Compression::Gzip);
    let peersync = Peersync::new();
    // A refusal is right and so is a tree that keeps everything inside.
    let point = peersync.mount_point();
    let guard = Mount::watch(&point);
    let output = crate::harness::output(&mut peersync.command(&[
        "mount",
        &layout.reference("v1"),
        &point.display().to_string(),
    ]));
    assert!(!output.status.success() || crate::harness::peersync::is_mounted(&guard.path));
    assert_eq!(std::fs::read_dir(outside.path()).expect("outside").count(), 0);
    let escaped = std::fs::symlink_metadata(guard.join("passwd"));
    let real = std::fs::metadata("/etc/passwd").expect("passwd");
    assert!(escaped.map_or(true, |meta| meta.ino() != real.ino() || meta.len() == 0));
    assert!(!place.path().join("above").exists() && !peersync.path("above").exists());
}
