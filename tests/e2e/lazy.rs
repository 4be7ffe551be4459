//! With an index, reading fetches what is read. Bytes are counted on the line
//! to the registry.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use crate::harness::indexed::{IMAGE, lazy_image};
use crate::harness::layout::{Compression, Layout, layer_bytes, layer_streams};
use crate::harness::line::{Conditions, Line};
use crate::harness::peersync::Peersync;
use crate::harness::registry::Registry;
use crate::harness::tree::Tree;
use crate::harness::{lab_images, needs_mounts, output, scratch};
use crate::trees::{root_time, unpack};

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every name below a directory, its metadata read.
fn list(root: &Path) -> usize {
    let mut waiting = vec![root.to_owned()];
    let mut names = 0;
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(&directory).expect("directory") {
            let entry = entry.expect("entry");
            names += 1;
            if entry.metadata().expect("metadata").is_dir() {
                waiting.push(entry.path());
            }
        }
    }
    names
}

#[test]
fn an_indexed_image_fetches_what_is_read() {
    needs_mounts!();
    let indexed = lazy_image();
    let (line, image) = indexed.line();
    let peersync = Peersync::new();
    let mount = peersync.mount(&image, &["--index", "require"]);
    let mounted = line.down();
    assert!(list(&mount.path) > 500);
    let listed = line.down();
    for path in ["etc/passwd", "usr/bin/dash", "usr/lib/os-release"] {
        assert_eq!(read(&mount.join(path)), read(&Path::new("/").join(path)), "{path}");
    }
    let used = line.down();
    let whole = indexed.image_bytes;
    eprintln!("mount {mounted}, list {listed}, files {used} of {whole} bytes");
    assert_eq!(mounted, listed, "listing is answered from the index");
    assert!(mounted < whole / 20, "the index is small: {mounted} of {whole}");
    assert!(used < whole / 4, "{used} of {whole}");
    // The store's own count agrees with what the line saw, headers apart. More may
    // be read ahead meanwhile: the line is looked at last.
    let (counted, used) = (peersync.registry_bytes(), line.down());
    assert!(counted <= used && counted + used / 10 + 65_536 >= used, "{counted} of {used}");
}

#[test]
fn an_indexed_image_is_the_same_tree() {
    needs_mounts!();
    let indexed = lazy_image();
    let (line, image) = indexed.line();
    let peersync = Peersync::new();
    let mount = peersync.mount(&image, &["--index", "require"]);
    let wanted = unpack(&lab_images().join("oci"), "v1");
    wanted.assert_same(&Tree::read(&mount.path), &root_time());
    // Reading everything in the order of names, which is not that of the stream,
    // costs not much more than everything: a block across a seek point is decoded
    // from the point before it.
    let (down, whole) = (line.down(), indexed.image_bytes);
    assert!(down < whole + whole / 4, "{down} of {whole}");
    // And nothing twice: the same again is all there.
    mount.umount(&peersync);
    let before = line.down();
    let mount = peersync.mount(&image, &[]);
    wanted.assert_same(&Tree::read(&mount.path), &root_time());
    assert!(line.down() - before < 100_000, "{} bytes again", line.down() - before);
}

/// One layer with a large file, in the given compression, indexed.
fn first_bytes_of_a_large_file(how: Compression) -> (u64, u64) {
    const LENGTH: usize = 96 << 20;
    let place = scratch();
    let mut layout = Layout::create(place.path());
    let content: Vec<u8> = blake3::Hasher::new().finalize_xof_bytes(LENGTH);
    let mut tar = crate::harness::tar::Tar::new();
    tar.file(b"before", b"small").file(b"large", &content).file(b"after", b"small");
    layout.image("v1", &[tar.finish()], how);
    let registry = Registry::start();
    registry.push(&layout.dir, "v1", "test/large:v1");
    let builder = Peersync::new();
    let image = format!("{}/test/large:v1", registry.address);
    builder.run(&["index", "build", &image]);
    builder.run(&["index", "push", &image]);

    let line = Line::to(registry.address);
    let peersync = Peersync::new();
    let image = format!("{}/test/large:v1", line.address);
    // Speculative classes off: what this one read costs.
    let config = peersync.path("config.toml");
    fs::write(&config, "[mount]\nreadahead = false\n").expect("configuration");
    let config = config.display().to_string();
    let mount = peersync.mount(&image, &["--config", &config, "--index", "require"]);
    let before = line.down();
    let mut bytes = [0; 4096];
    let file = File::open(mount.join("large")).expect("large file");
    let offset = (LENGTH / 2 + 12_345) as u64;
    file.read_exact_at(&mut bytes, offset).expect("4 KiB in the middle");
    assert_eq!(bytes, content[LENGTH / 2 + 12_345..][..4096]);
    (line.down() - before, layer_bytes(&layout.dir, "v1"))
}

trait Stream {
    fn finalize_xof_bytes(&self, length: usize) -> Vec<u8>;
}

impl Stream for blake3::Hasher {
    /// So many bytes that no compressor makes smaller.
    fn finalize_xof_bytes(&self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.finalize_xof().fill(&mut bytes);
        bytes
    }
}

/// Headers of requests and answers, apart from the content.
const HEADERS: u64 = 32 << 10;
const MIB: u64 = 1 << 20;

#[test]
fn four_kilobytes_of_a_large_file_in_a_plain_layer() {
    needs_mounts!();
    let (fetched, whole) = first_bytes_of_a_large_file(Compression::Plain);
    assert!(fetched <= MIB + HEADERS, "{fetched} of {whole}");
}

#[test]
fn four_kilobytes_of_a_large_file_in_zstd_frames() {
    needs_mounts!();
    let (fetched, whole) = first_bytes_of_a_large_file(Compression::ZstdFrames(256 << 10));
    assert!(fetched <= MIB + HEADERS, "{fetched} of {whole}");
}

#[test]
fn four_kilobytes_of_a_large_file_through_a_gzip_checkpoint() {
    needs_mounts!();
    let (fetched, whole) = first_bytes_of_a_large_file(Compression::Gzip);
    assert!(fetched <= 6 * MIB + HEADERS, "{fetched} of {whole}");
}

#[test]
fn the_index_is_at_most_a_hundredth_of_the_layers() {
    needs_mounts!();
    let indexed = lazy_image();
    let (line, image) = indexed.line();
    let peersync = Peersync::new();
    let _mount = peersync.mount(&image, &["--index", "require"]);
    let layers = layer_streams(&lab_images().join("oci"), "v1");
    let uncompressed: usize = layers.iter().map(Vec::len).sum();
    let (index, uncompressed) = (line.down(), uncompressed as u64);
    assert!(index * 100 <= uncompressed, "{index} of {uncompressed}");
}

#[test]
fn without_an_index_one_pass_brings_everything_and_keeps_it() {
    needs_mounts!();
    let registry = Registry::start();
    let layout = lab_images().join("oci");
    registry.push(&layout, "v1", IMAGE);
    let line = Line::to(registry.address);
    let peersync = Peersync::new();
    let mount = peersync.mount(&format!("{}/{IMAGE}", line.address), &["--index", "never"]);
    let passed = line.down();
    let whole = layer_bytes(&layout, "v1");
    assert!(passed >= whole && passed < whole + whole / 20, "{passed} of {whole}");
    unpack(&layout, "v1").assert_same(&Tree::read(&mount.path), &root_time());
    assert_eq!(line.down(), passed, "what has passed is not fetched again");
}

#[test]
fn a_required_index_that_is_not_there_is_said() {
    needs_mounts!();
    let registry = Registry::start();
    registry.push(&lab_images().join("oci"), "v1", IMAGE);
    let peersync = Peersync::new();
    let point = peersync.mount_point();
    let image = format!("{}/{IMAGE}", registry.address);
    let said =
        peersync.fails(&["mount", "--index", "require", &image, &point.display().to_string()]);
    assert!(said.contains("index"), "{said}");
}

#[test]
fn a_first_pass_that_a_crash_interrupts_goes_on_where_it_was() {
    needs_mounts!();
    let (fetched, whole) = crashed_first_pass(|_| {});
    // What was read ahead (16 MiB) and since the last checkpoint is read again.
    assert!(fetched < whole + whole / 2, "{fetched} of {whole}");
}

/// What was staged has no hashes of its own yet.
#[test]
fn a_first_pass_whose_staged_bytes_rot_begins_anew() {
    needs_mounts!();
    let (fetched, whole) = crashed_first_pass(|staging| {
        let mut rotten = 0;
        for pass in std::fs::read_dir(staging).expect("staging") {
            for file in std::fs::read_dir(pass.expect("entry").path()).expect("a first pass") {
                let path = file.expect("entry").path();
                let length = path.metadata().expect("metadata").len();
                if path.ends_with("file-2") && length > 0 {
                    let file = File::options().read(true).write(true).open(&path).expect("opened");
                    let mut byte = [0];
                    file.read_exact_at(&mut byte, length / 2).expect("read");
                    file.write_all_at(&[byte[0] ^ 1], length / 2).expect("written");
                    rotten += 1;
                }
            }
        }
        assert_eq!(rotten, 1, "a file was staged");
    });
    assert!(fetched > whole + whole / 2, "{fetched} of {whole}");
}

/// A first pass whose owner is killed when three quarters have come, `meanwhile`
/// with the staging directory, and a mount that shows what the image has. Gives the
/// bytes that were fetched and those of the layer.
fn crashed_first_pass(meanwhile: impl FnOnce(&Path)) -> (u64, u64) {
    let registry = Registry::start();
    // One large layer, so that the crash comes in the middle of it.
    let place = scratch();
    let mut layout = Layout::create(place.path());
    let mut tar = crate::harness::tar::Tar::new();
    let content = blake3::Hasher::new().finalize_xof_bytes(64 << 20);
    for (number, part) in content.chunks(3_000_000).enumerate() {
        tar.file(format!("file-{number}").as_bytes(), part);
    }
    layout.image("v1", &[tar.finish()], Compression::Gzip);
    registry.push(&layout.dir, "v1", "test/large:v1");
    let whole = layer_bytes(&layout.dir, "v1");

    // Slow enough for checkpoints, which come every second or so.
    let conditions = Conditions { rate: Some(12_500_000), ..Conditions::default() };
    let line = Line::shaped(registry.address, conditions);
    let image = format!("{}/test/large:v1", line.address);
    let peersync = Peersync::new();
    line.cut_at(u64::MAX);
    let first = crate::harness::Running::start(&mut peersync.command(&["pull", &image]));
    line.wait_for(whole / 4 * 3, Duration::from_secs(120));
    match peersync.owner() {
        Some(_) => peersync.crash(),
        None => {
            let pid = nix::unistd::Pid::from_raw(first.id());
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("kill");
        }
    }
    drop(first);
    meanwhile(&peersync.store().join("staging"));
    let before = line.down();
    let mount = peersync.mount(&image, &[]);
    let again = line.down() - before;
    eprintln!("{before} bytes before the crash, {again} after it, of {whole}");
    unpack(&layout.dir, "v1").assert_same(&Tree::read(&mount.path), &root_time());
    (before + again, whole)
}

#[test]
fn a_line_that_is_cut_in_the_first_pass_is_tried_again() {
    needs_mounts!();
    let registry = Registry::start();
    let layout = lab_images().join("oci");
    registry.push(&layout, "v1", IMAGE);
    let whole = layer_bytes(&layout, "v1");
    let line = Line::to(registry.address);
    line.cut_at(whole / 3);
    let image = format!("{}/{IMAGE}", line.address);
    let peersync = Peersync::new();
    let pull = crate::harness::Running::start(&mut peersync.command(&["pull", &image]));
    line.wait_for(whole / 3, Duration::from_secs(60));
    line.mend();
    let ended = pull.finish(Duration::from_secs(120));
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    assert!(line.down() < whole + whole / 3, "{} of {whole}", line.down());
}

#[test]
fn the_status_file_in_a_mount_tells_what_status_tells() {
    needs_mounts!();
    let peersync = Peersync::new();
    let image = format!("oci:{}:v1", lab_images().join("oci").display());
    let mount = peersync.mount(&image, &[]);
    let mut text = String::new();
    let mut file = File::open(mount.join(".peersync/stats")).expect("stats");
    file.read_to_string(&mut text).expect("stats");
    let stats: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert!(stats["bytes"]["registry"].is_u64(), "{stats}");
    assert!(mount.join(".peersync/version").exists());
    let status = peersync.status();
    let mounts = status["mounts"].as_array().expect("mounts");
    let point = mount.path.display().to_string();
    assert!(mounts.iter().any(|one| one.to_string().contains(&point)), "{status}");
    let output = output(&mut peersync.command(&["status"]));
    assert!(output.status.success() && !output.stdout.is_empty());
}
