//! What comes over the wire: lazy reads, and the first pass.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::harness::layout::{Compression, Layout, layer_bytes, layer_streams};
use crate::harness::line::Line;
use crate::harness::peersync::Peersync;
use crate::harness::registry::Registry;
use crate::harness::{run, scratch, tool};
use crate::report::{Table, at_most, cpu, memory, mib, percent, seconds};
use crate::thin::{RATE, ROUND_TRIP, ThinLine};

/// The real images: a layout with the tags a and b.
pub(crate) fn full_images() -> PathBuf {
    if let Some(place) = std::env::var_os("LAB_IMAGES") {
        return PathBuf::from(place).join("oci");
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lab/images.sh");
    // Minutes the first time: not under the limit of an ordinary command.
    let output = Command::new(script).arg("full").output().expect("images.sh");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()).join("oci")
}

/// Builds the index of an image and pushes it beside the image.
fn push_index(image: &str) {
    let builder = Peersync::new();
    builder.run(&["index", "build", image]);
    builder.run(&["index", "push", image]);
}

/// Times something.
pub(crate) fn timed<T>(run: impl FnOnce() -> T) -> (Duration, T) {
    let start = Instant::now();
    let result = run();
    (start.elapsed(), result)
}

pub(crate) fn drop_caches() {
    tool("sync", &[""; 0]);
    fs::write("/proc/sys/vm/drop_caches", "3").expect("drop caches");
}

/// `import numpy` over a thin line: first sight and indexed, cold and warm.
pub(crate) fn import() {
    const NAME: &str = "bench/a:v1";
    let layout = full_images();
    let whole = layer_bytes(&layout, "a");
    let registry = Registry::start();
    registry.push(&layout, "a", NAME);
    let mut table = Table::new(&[
        "100 Mbit/s, 40 ms",
        "mount",
        "index",
        "import",
        "content",
        "of the image",
        "warm import",
    ]);
    let mut share = 0.0;
    for (what, index) in [("first sight", "never"), ("indexed", "require")] {
        if index == "require" {
            push_index(&format!("{}/{NAME}", registry.address));
        }
        let line = ThinLine::to(registry.address, RATE, ROUND_TRIP);
        let image = format!("{}/{NAME}", line.counted.address);
        let peersync = Peersync::new();
        drop_caches();
        let options = ["--plain-http", "--index", index];
        let (mounting, mount) = timed(|| peersync.mount(&image, &options));
        let mounted = line.counted.down();
        let numpy = || {
            let script = "import numpy; print(numpy.arange(10).sum())";
            let said = run(Command::new("chroot").arg(&mount.path).args(["python3", "-c", script]));
            assert_eq!(said.trim(), "45");
        };
        let (cold, ()) = timed(numpy);
        let fetched = line.counted.down() - mounted;
        let (warm, ()) = timed(numpy);
        let pass = index == "never";
        let (index_bytes, content) = if pass { (0, mounted + fetched) } else { (mounted, fetched) };
        share = content as f64 * 100.0 / whole as f64;
        table.row([
            what.into(),
            seconds(mounting),
            mib(index_bytes),
            seconds(cold),
            mib(content),
            percent(content, whole),
            seconds(warm),
        ]);
    }
    table.print();
    println!("\nThe image has {} in its layers.\n", mib(whole));
    at_most("content fetched with an index", share, 25.0, "% of the image");
}

/// The first 4 KiB of a file of 1 GiB, by compression.
pub(crate) fn first_bytes() {
    let layout = full_images();
    let mut stream = layer_streams(&layout, "b").pop().expect("the layer with the large file");
    let registry = Registry::start();
    let place = scratch();
    let mut made = Layout::create(place.path());
    let kinds = [
        ("plain", Compression::Plain),
        ("zstd", Compression::ZstdFrames(1 << 20)),
        ("gzip", Compression::Gzip),
    ];
    for (tag, how) in kinds {
        let layer = made.layer(&stream, how);
        made.image_of(tag, &[layer]);
        registry.push(place.path(), tag, &format!("bench/{tag}:v1"));
    }
    stream.clear();
    stream.shrink_to_fit();
    let mut table = Table::new(&["layer", "where", "fetched", "loopback", "100 Mbit/s, 40 ms"]);
    let mut most = Vec::new();
    for (tag, _) in kinds {
        let name = format!("bench/{tag}:v1");
        push_index(&format!("{}/{name}", registry.address));
        for (place, offset) in [("at the start", 4096), ("in the middle", 512 << 20)] {
            let near = Line::to(registry.address);
            let near_image = format!("{}/{name}", near.address);
            let (time, fetched) = one_read(&near, &near_image, offset);
            let thin = ThinLine::to(registry.address, RATE, ROUND_TRIP);
            let far_image = format!("{}/{name}", thin.counted.address);
            let (far_time, _) = one_read(&thin.counted, &far_image, offset);
            table.row([tag.into(), place.into(), mib(fetched), seconds(time), seconds(far_time)]);
            most.push((format!("{tag}, {place}"), fetched, if tag == "gzip" { 6.0 } else { 1.0 }));
        }
    }
    table.print();
    println!();
    for (what, fetched, target) in most {
        at_most(&what, fetched as f64 / 1_048_576.0, target, "MiB");
    }
}

/// Time and bytes of one read of 4 KiB in a new store, readahead off.
fn one_read(line: &Line, image: &str, offset: u64) -> (Duration, u64) {
    let peersync = Peersync::new();
    let config = peersync.path("config.toml");
    fs::write(&config, "[mount]\nreadahead = false\n").expect("configuration");
    let config = config.display().to_string();
    let options = ["--config", &config, "--plain-http", "--index", "require"];
    let mount = peersync.mount(image, &options);
    let before = line.down();
    let (time, ()) = timed(|| {
        let file = File::open(mount.join("models/model.safetensors")).expect("model");
        file.read_exact_at(&mut [0; 4096], offset).expect("4 KiB");
    });
    (time, line.down() - before)
}

/// The first pass over gzip layers against bare inflate, and against copying
/// and unpacking.
pub(crate) fn first_pass() {
    const NAME: &str = "bench/a:v1";
    let layout = full_images();
    let registry = Registry::start();
    registry.push(&layout, "a", NAME);
    let image = format!("{}/{NAME}", registry.address);
    let place = scratch();
    let mut table = Table::new(&["image a, gzip, loopback", "time", "uncompressed", "peak memory"]);
    let uncompressed: usize = layer_streams(&layout, "a").iter().map(Vec::len).sum();
    let speed = |time: Duration| {
        format!("{:.2} GiB/s", uncompressed as f64 / time.as_secs_f64() / (1_u64 << 30) as f64)
    };

    let blobs = gzip_blobs(&layout, "a");
    let (bare, inflated) = timed(|| blobs.iter().map(|blob| inflate(blob)).sum::<usize>());
    assert_eq!(inflated, uncompressed);
    table.row(["bare inflate, one thread".into(), seconds(bare), speed(bare), "-".into()]);

    let peersync = Peersync::new();
    drop_caches();
    let (ours, _mount) = timed(|| peersync.mount(&image, &["--index", "never"]));
    let owner = peersync.owner().expect("owner");
    let peak = format!("{} ({} of CPU)", mib(memory(owner, "VmHWM")), seconds(cpu(owner)));
    table.row(["peersync mount --index never".into(), seconds(ours), speed(ours), peak]);

    drop_caches();
    let copy = place.path().join("copy").display().to_string();
    let bundle = place.path().join("bundle").display().to_string();
    let (time, ()) = timed(|| {
        let options = ["--insecure-policy", "copy", "-q", "--src-tls-verify=false"];
        let ends = [format!("docker://{image}"), format!("oci:{copy}:a")];
        run(Command::new("skopeo").args(options).args(ends));
        tool("umoci", &["unpack", "--image", &format!("{copy}:a"), &bundle]);
    });
    table.row(["skopeo copy + umoci unpack".into(), seconds(time), speed(time), "-".into()]);
    table.print();
    println!();
    at_most("first pass", ours.as_secs_f64() / time.as_secs_f64(), 1.0, "of copy and unpack");
}

fn gzip_blobs(layout: &Path, tag: &str) -> Vec<Vec<u8>> {
    let manifest = crate::harness::layout::read_manifest(layout, tag);
    let layers = manifest["layers"].as_array().expect("layers").iter();
    layers
        .map(|layer| {
            let digest = layer["digest"].as_str().expect("digest");
            fs::read(crate::harness::layout::blob_path(layout, digest)).expect("layer")
        })
        .collect()
}

/// What the same inflate does with nothing around it; gives the output's length.
fn inflate(gzip: &[u8]) -> usize {
    use libz_rs_sys::{
        Z_NO_FLUSH, Z_OK, Z_STREAM_END, inflate, inflateEnd, inflateInit2_, inflateReset, z_stream,
        zlibVersion,
    };
    const GZIP: i32 = 15 + 16;
    let mut out = vec![0_u8; 256 << 10];
    let mut total = 0;
    let mut stream = z_stream::default();
    let size = i32::try_from(size_of::<z_stream>()).expect("size");
    // SAFETY: the stream is initialised by the first call; input and output
    // point at live buffers of the lengths given, for the whole of the loop.
    unsafe {
        assert_eq!(inflateInit2_(&raw mut stream, GZIP, zlibVersion(), size), Z_OK);
        stream.next_in = gzip.as_ptr().cast_mut();
        stream.avail_in = u32::try_from(gzip.len()).expect("a layer under 4 GiB");
        loop {
            stream.next_out = out.as_mut_ptr();
            stream.avail_out = out.len() as u32;
            let result = inflate(&raw mut stream, Z_NO_FLUSH);
            total += out.len() - stream.avail_out as usize;
            match result {
                Z_OK => {}
                // The next member, if there is one.
                Z_STREAM_END if stream.avail_in > 0 => {
                    inflateReset(&raw mut stream);
                }
                Z_STREAM_END => break,
                other => panic!("inflate: {other}"),
            }
        }
        inflateEnd(&raw mut stream);
    }
    total
}
