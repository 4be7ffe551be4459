//! Small images, made of the machine's own programs and of tars written by hand.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::harness::layout::{Compression, Layout};
use crate::harness::run;
use crate::harness::tar::{Header, Tar};

/// What scripts in containers use.
const PROGRAMS: &[&str] = &[
    "sh", "cat", "chmod", "cp", "dd", "id", "ln", "ls", "mkdir", "mv", "rm", "setpriv", "sleep",
    "sort", "stat", "sync", "touch", "tr", "wc",
];

/// `cap_dac_override+ep`, as the kernel stores it (revision 2, little endian).
pub(crate) const CAP_DAC_OVERRIDE: [u8; 20] =
    [1, 0, 0, 2, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// The bottom layer of all images: a shell, its friends, and files to change.
pub(crate) fn base() -> &'static [u8] {
    static BASE: OnceLock<Vec<u8>> = OnceLock::new();
    BASE.get_or_init(|| {
        let mut tar = Tar::new();
        for name in
            ["bin", "lib", "lib64", "etc", "dev", "proc", "sys", "root", "data", "data/deep"]
        {
            tar.directory(name.as_bytes());
        }
        tar.member(&Header { name: b"tmp", kind: b'5', mode: 0o1777, ..Header::default() }, b"");
        tar.file(b"etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/:/bin/sh\n");
        tar.file(b"etc/group", b"root:x:0:\nuser:x:1000:\n");
        let mut libraries = BTreeSet::new();
        for program in PROGRAMS {
            let path = which(program);
            executable(&mut tar, &format!("bin/{program}"), &path, 0o755);
            libraries.extend(needed(&path));
        }
        let mut directories = BTreeSet::new();
        for library in libraries {
            let name = library.strip_prefix("/").expect("absolute");
            for above in name.ancestors().skip(1).filter(|above| above.components().count() > 1) {
                directories.insert(above.to_owned());
            }
            directories.remove(Path::new(""));
            executable(&mut tar, &name.display().to_string(), &library, 0o755);
        }
        tar.file(b"data/a", b"a in the image\n").file(b"data/b", b"b in the image\n");
        tar.file(b"data/deep/c", b"c in the image\n");
        tar.hard_link(b"data/link", b"data/a");
        tar.symlink(b"data/symlink", b"a");
        tar.finish()
    })
}

/// A layer that deletes, hides, gives privileges and adds.
pub(crate) fn changes() -> Vec<u8> {
    let id = which("id");
    let cat = which("cat");
    let mut tar = Tar::new();
    tar.directory(b"data").file(b"data/.wh.b", b"");
    tar.directory(b"data/deep").file(b"data/deep/.wh..wh..opq", b"");
    tar.file(b"data/deep/new", b"new in the second layer\n");
    tar.directory(b"opt");
    executable(&mut tar, "opt/suid-id", &id, 0o4755);
    tar.pax(b"SCHILY.xattr.security.capability", &CAP_DAC_OVERRIDE);
    executable(&mut tar, "opt/cap-cat", &cat, 0o755);
    let secret = Header { name: b"opt/secret", mode: 0o600, ..Header::default() };
    tar.member(&secret, b"only root may read this\n");
    let owned = Header { name: b"opt/owned", owner: (1000, 1000), ..Header::default() };
    tar.member(&owned, b"x");
    tar.finish()
}

/// A layer with one file.
pub(crate) fn extra(name: &str, content: &[u8]) -> Vec<u8> {
    let mut tar = Tar::new();
    tar.directory(b"extra");
    tar.file(format!("extra/{name}").as_bytes(), content);
    tar.finish()
}

/// Adds an image of these streams, gzip.
pub(crate) fn add(layout: &mut Layout, tag: &str, streams: &[&[u8]]) {
    let streams: Vec<Vec<u8>> = streams.iter().map(|stream| stream.to_vec()).collect();
    layout.image(tag, &streams, Compression::Gzip);
}

fn executable(tar: &mut Tar, name: &str, path: &Path, mode: u32) {
    let content = fs::read(path).expect("program");
    tar.member(&Header { name: name.as_bytes(), mode, ..Header::default() }, &content);
}

fn which(program: &str) -> PathBuf {
    ["/bin", "/usr/bin", "/sbin", "/usr/sbin"]
        .iter()
        .map(|place| Path::new(place).join(program))
        .find(|path| fs::metadata(path).is_ok_and(|file| file.permissions().mode() & 0o111 != 0))
        .unwrap_or_else(|| panic!("no {program} on this machine"))
}

/// The shared libraries that a program is started with, and the loader.
fn needed(program: &Path) -> Vec<PathBuf> {
    let said = run(Command::new("ldd").arg(program));
    said.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect()
}
