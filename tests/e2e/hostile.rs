//! Bad input: a clear error or the right tree, bounded memory, nothing wrong
//! ever readable.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::json;

use crate::harness::host::{Host, Reply, Request};
use crate::harness::layout::{Compression, Layer, Layout};
use crate::harness::peersync::{Mount, Peersync, failure, is_mounted};
use crate::harness::tar::{Header, Tar};
use crate::harness::{needs_mounts, output, scratch};

/// More than any input here may cost, in KiB of resident memory.
const MEMORY: u64 = 400 << 10;

/// An image with one layer of a megabyte that does not compress.
fn honest() -> (tempfile::TempDir, Layout, Layer, Vec<u8>) {
    let place = scratch();
    let mut layout = Layout::create(place.path());
    let mut content = vec![0; 1 << 20];
    blake3::Hasher::new().finalize_xof().fill(&mut content);
    let mut tar = Tar::new();
    tar.file(b"file", &content);
    let layer = layout.layer(&tar.finish(), Compression::Gzip);
    layout.image_of("v1", std::slice::from_ref(&layer));
    (place, layout, layer, content)
}

/// Mounts an image that must be refused: says why, leaves nothing mounted.
#[track_caller]
fn refused(image: &str) -> String {
    let peersync = Peersync::new();
    refused_by(&peersync, image)
}

#[track_caller]
fn refused_by(peersync: &Peersync, image: &str) -> String {
    let point = peersync.mount_point();
    let guard = Mount::watch(&point);
    let said = peersync.fails(&["mount", image, &point.display().to_string()]);
    assert!(!is_mounted(&guard.path), "refused, and mounted nevertheless");
    assert_eq!(fs::read_dir(&point).expect("mount point").count(), 0);
    said
}

fn is_blob(request: &Request, layer: &Layer) -> bool {
    request.path.ends_with(&format!("/blobs/{}", layer.digest()))
}

/// Mounts through a host that says something else about the layer's blob.
fn lying(lie: impl Fn(&Request, Reply) -> Reply + Send + Sync + 'static) -> Result<(), String> {
    let (_place, layout, layer, content) = honest();
    let host = Host::serve(&layout.dir, move |request, right| {
        if is_blob(request, &layer) { lie(request, right) } else { right }
    });
    let peersync = Peersync::new();
    let point = peersync.mount_point();
    let guard = Mount::watch(&point);
    let image = host.reference("v1");
    let output = output(&mut peersync.command(&["mount", &image, &point.display().to_string()]));
    if output.status.success() {
        // What was mounted after all must be right.
        assert!(fs::read(guard.join("file")).expect("file") == content, "wrong bytes");
        return Ok(());
    }
    assert!(!is_mounted(&point));
    Err(failure(&output))
}

#[test]
fn a_corrupt_blob_is_refused() {
    needs_mounts!();
    let said = lying(|_, mut right| {
        let middle = right.body.len() / 2;
        right.body[middle] ^= 1;
        right
    });
    let said = said.expect_err("a corrupt blob was mounted");
    assert!(said.contains("sha256:") || said.contains("digest"), "{said}");
}

#[test]
fn a_truncated_blob_is_refused() {
    needs_mounts!();
    let said = lying(|_, right| {
        let half = right.body.len() / 2;
        Reply { cut: Some(half), ..right }
    });
    said.expect_err("a truncated blob was mounted");
    let said = lying(|_, right| {
        let half = right.body[..right.body.len() / 2].to_vec();
        Reply::new(200, half)
    });
    said.expect_err("a short blob was mounted");
}

#[test]
fn another_blob_under_the_digest_is_refused() {
    needs_mounts!();
    let mut tar = Tar::new();
    tar.file(b"file", b"something else");
    let other = Compression::Gzip.compress(&tar.finish());
    lying(move |_, _| Reply::new(200, other.clone())).expect_err("another blob was mounted");
}

#[test]
fn a_content_length_that_lies_does_no_harm() {
    needs_mounts!();
    for length in ["1", "99999999", "18446744073709551615", "-1"] {
        let _ = lying(move |_, right| right.with("Content-Length", length));
    }
}

#[test]
fn a_content_range_that_lies_does_no_harm() {
    needs_mounts!();
    for range in ["bytes 0-0/1", "bytes 7-1048999/1048999", "bytes */0", "nonsense"] {
        let _ = lying(move |_, right| {
            let status = 206;
            Reply { status, ..right }.with("Content-Range", range)
        });
    }
    // The range is as asked for, the bytes are from elsewhere.
    let said = lying(|request, mut right| {
        if request.headers.contains_key("range") {
            right.body.rotate_left(1);
        } else {
            right.body[99] ^= 0xff;
        }
        right
    });
    said.expect_err("wrong bytes were mounted");
}

#[test]
fn a_registry_that_ignores_ranges_serves_all_the_same() {
    needs_mounts!();
    let (_place, layout, ..) = honest();
    let dir = layout.dir;
    let said = lying(move |request, right| match request.headers.get("range") {
        Some(_) => {
            let digest = request.path.rsplit('/').next().unwrap_or_default();
            Reply::new(
                200,
                fs::read(crate::harness::layout::blob_path(&dir, digest)).expect("blob"),
            )
        }
        None => right,
    });
    said.expect("whole answers are enough");
}

#[test]
fn refusals_of_a_registry_are_named() {
    needs_mounts!();
    for (status, word) in [
        (401, "401|unauthorized|authenti|credentials"),
        (403, "403|forbidden|denied"),
        (404, "404|not found|does not have"),
    ] {
        let said = lying(move |_, _| Reply::status(status)).expect_err("mounted without a blob");
        let said = said.to_lowercase();
        assert!(word.split('|').any(|word| said.contains(word)), "{status}: {said}");
    }
}

#[test]
fn a_registry_that_is_busy_for_a_moment_is_asked_again() {
    needs_mounts!();
    for status in [429, 500, 502, 503] {
        let refusals = Arc::new(AtomicU32::new(0));
        let said = lying(move |_, right| {
            if refusals.fetch_add(1, Ordering::Relaxed) < 2 {
                Reply::status(status).with("Retry-After", "0")
            } else {
                right
            }
        });
        said.unwrap_or_else(|said| panic!("{status} twice, then the blob: {said}"));
    }
}

#[test]
fn a_registry_that_stays_broken_is_an_error() {
    needs_mounts!();
    let (_place, layout, ..) = honest();
    let host = Host::serve(&layout.dir, |_, _| Reply::status(503));
    let said = refused(&host.reference("v1"));
    assert!(said.contains("503") || said.to_lowercase().contains("unavailable"), "{said}");
    assert!(host.requests().len() < 40, "{} requests", host.requests().len());
}

#[test]
fn credentials_do_not_follow_a_redirect_to_another_host() {
    needs_mounts!();
    let (_place, layout, layer, content) = honest();
    let elsewhere = Host::serve(&layout.dir, |_, right| right);
    let target = format!("http://localhost:{}", elsewhere.address.port());
    let host = Host::serve(&layout.dir, move |request, right| {
        if !request.headers.contains_key("authorization") {
            Reply::status(401).with("WWW-Authenticate", "Basic realm=\"test\"")
        } else if is_blob(request, &layer) {
            Reply::status(307).with("Location", &format!("{target}{}", request.path))
        } else {
            right
        }
    });
    let peersync = Peersync::new();
    fs::create_dir_all(peersync.path("docker")).expect("docker configuration");
    // user:password
    let config =
        json!({ "auths": { host.address.to_string(): { "auth": "dXNlcjpwYXNzd29yZA==" } } });
    fs::write(peersync.path("docker/config.json"), config.to_string()).expect("config.json");
    let mount = peersync.mount(&host.reference("v1"), &[]);
    assert!(fs::read(mount.join("file")).expect("file") == content, "wrong bytes");
    let followed = elsewhere.requests();
    assert!(!followed.is_empty(), "the redirect was followed");
    assert!(followed.iter().all(|request| !request.headers.contains_key("authorization")));
}

#[test]
fn a_manifest_that_is_not_what_its_digest_says_is_refused() {
    needs_mounts!();
    let (_place, layout, ..) = honest();
    let host = Host::serve(&layout.dir, |request, mut right| {
        if request.path.contains("/manifests/sha256:") {
            right.body.push(b' ');
            let length = right.body.len().to_string();
            right = right.with("Content-Length", &length);
        }
        right
    });
    let (digest, ..) =
        crate::harness::layout::read_manifest_bytes(&layout.dir, "v1").expect("manifest");
    refused(&format!("{}/test/image@{digest}", host.address));
}

#[test]
fn a_manifest_of_a_hundred_megabytes_is_refused_in_bounded_memory() {
    needs_mounts!();
    let (_place, layout, ..) = honest();
    let host = Host::serve(&layout.dir, |request, right| {
        if request.path.contains("/manifests/") {
            let mut body = right.body;
            body.resize(100 << 20, b' ');
            Reply::new(200, body).with("Content-Type", "application/vnd.oci.image.manifest.v1+json")
        } else {
            right
        }
    });
    assert!(peak_of_refusal(&host.reference("v1")) < MEMORY);
}

/// Peak resident memory, in KiB, of the command that refuses an image.
fn peak_of_refusal(image: &str) -> u64 {
    let peersync = Peersync::new();
    let point = peersync.mount_point();
    let command = peersync.command(&["mount", image, &point.display().to_string()]);
    // GNU time prints the most that the command had; the owner is its child.
    let mut timed = std::process::Command::new("python3");
    timed.args(["-c", PEAK]).arg(command.get_program()).args(command.get_args());
    let output = output(&mut timed);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let peak = said.lines().rev().find_map(|line| line.strip_prefix("peak "));
    let peak = peak.unwrap_or_else(|| panic!("{said}"));
    assert!(!output.status.success() && !is_mounted(&point), "{said}");
    peak.parse().expect("KiB")
}

/// Runs a command and says the most memory that it or a child of it had.
const PEAK: &str = r#"
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
print("peak", resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
sys.exit(code)
"#;

#[test]
fn a_gzip_bomb_costs_neither_memory_nor_disk() {
    needs_mounts!();
    let place = scratch();
    let mut layout = Layout::create(place.path());
    // 3 GiB of zeros after a header that tells of one byte: nothing of a tar.
    let zeros = vec![0; 1 << 20];
    let one = Compression::Gzip.compress(&zeros);
    let mut tar = Tar::new();
    tar.file(b"file", b"x");
    let mut blob = Compression::Gzip.compress(&tar.unfinished());
    for _ in 0..3072 {
        blob.extend_from_slice(&one);
    }
    let descriptor = json!({
        "mediaType": Compression::Gzip.media_type(),
        "digest": layout.blob(&blob),
        "size": blob.len(),
    });
    let diff_id = format!("sha256:{}", "0".repeat(64));
    layout.image_of("v1", &[Layer { descriptor, diff_id }]);
    assert!(peak_of_refusal(&layout.reference("v1")) < MEMORY);
}

#[test]
fn a_layer_whose_diff_id_lies_is_refused() {
    needs_mounts!();
    let (_place, mut layout, layer, _) = honest();
    let diff_id = format!("sha256:{}", "ab".repeat(32));
    layout.image_of("wrong", &[Layer { diff_id, ..layer }]);
    let said = refused(&layout.reference("wrong"));
    assert!(said.contains("digest") || said.to_lowercase().contains("diff"), "{said}");
}

#[test]
fn a_hundred_thousand_names_in_one_directory_are_listed() {
    needs_mounts!();
    let mut tar = Tar::new();
    tar.directory(b"many");
    for number in 0..100_000 {
        tar.file(format!("many/name-{number:06}").as_bytes(), b"");
    }
    let place = scratch();
    let mut layout = Layout::create(place.path());
    layout.image("v1", &[tar.finish()], Compression::Gzip);
    let peersync = Peersync::new();
    let mount = peersync.mount(&layout.reference("v1"), &[]);
    let mut names: Vec<_> = fs::read_dir(mount.join("many"))
        .expect("directory")
        .map(|entry| entry.expect("entry").file_name())
        .collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 100_000);
    let owner = peersync.owner().expect("owner");
    let status = fs::read_to_string(format!("/proc/{owner}/status")).expect("status");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("VmHWM");
    let peak: u64 = peak.trim().trim_end_matches(" kB").trim().parse().expect("KiB");
    assert!(peak < MEMORY, "{peak} KiB");
}

#[test]
fn an_image_of_a_thousand_layers_is_a_tree_or_an_error() {
    needs_mounts!();
    let place = scratch();
    let mut layout = Layout::create(place.path());
    let layers: Vec<Layer> = (0..1000)
        .map(|number: u32| {
            let mut tar = Tar::new();
            tar.file(b"last", number.to_string().as_bytes());
            tar.file(format!("file-{number}").as_bytes(), b"x");
            layout.layer(&tar.finish(), Compression::Plain)
        })
        .collect();
    layout.image_of("v1", &layers);
    let peersync = Peersync::new();
    let point = peersync.mount_point();
    let guard = Mount::watch(&point);
    let image = layout.reference("v1");
    let begun = std::time::Instant::now();
    let output = output(&mut peersync.command(&["mount", &image, &point.display().to_string()]));
    eprintln!("1,000 layers, first sight: {:.1} s", begun.elapsed().as_secs_f64());
    if output.status.success() {
        assert_eq!(fs::read(guard.join("last")).expect("last"), b"999");
        assert!(guard.join("file-0").exists() && guard.join("file-999").exists());
    } else {
        let said = failure(&output);
        assert!(said.contains("layers"), "{said}");
    }
}

#[test]
fn archives_that_contradict_themselves_are_refused() {
    needs_mounts!();
    let cases: [(&str, Vec<u8>); 5] = [
        ("a file longer than the archive", {
            let header = Header { name: b"file", size: 1 << 30, ..Header::default() };
            Tar::new().raw(&header, b"short").finish()
        }),
        ("a pax record longer than its block", {
            let header = Header { name: b"x", kind: b'x', ..Header::default() };
            Tar::new().raw(&header, b"999999999 path=y\n").file(b"file", b"").finish()
        }),
        ("a header whose checksum is wrong", {
            let mut bytes = Tar::new().file(b"file", b"x").finish();
            bytes[10] ^= 1;
            bytes
        }),
        ("a long name of a gigabyte", {
            let header =
                Header { name: b"././@LongLink", kind: b'L', size: 1 << 30, ..Header::default() };
            Tar::new().raw(&header, b"name").finish()
        }),
        ("no archive", b"this is no tar archive at all\n".repeat(100)),
    ];
    let mut accepted = Vec::new();
    for (what, stream) in cases {
        let place = scratch();
        let mut layout = Layout::create(place.path());
        layout.image("v1", &[stream], Compression::Gzip);
        let peersync = Peersync::new();
        let point = peersync.mount_point().display().to_string();
        let command = ["mount", &layout.reference("v1"), &point];
        let output = output(&mut peersync.command(&command));
        if output.status.success() {
            accepted.push(what);
            continue;
        }
        let said = failure(&output);
        assert!(said.contains("sha256:") || said.to_lowercase().contains("tar"), "{what}: {said}");
    }
    assert!(accepted.is_empty(), "mounted: {accepted:?}");
}

/// An empty gzip member that says where a table of contents begins, as eStargz ends.
fn estargz_footer(offset: u64) -> Vec<u8> {
    let mut footer = vec![0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff, 26, 0, b'S', b'G', 22, 0];
    footer.extend(format!("{offset:016x}STARGZ").as_bytes());
    footer.extend([1, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0]);
    footer
}

/// A frame that zstd passes over.
fn skippable_frame(content: &[u8]) -> Vec<u8> {
    [&0x184d_2a50_u32.to_le_bytes(), &(content.len() as u32).to_le_bytes(), content].concat()
}

#[test]
fn a_table_of_contents_that_contradicts_the_blob_counts_for_nothing() {
    needs_mounts!();
    let wrong = json!({
        "version": 1,
        "entries": [
            { "name": "file", "type": "reg", "size": 1, "offset": 99_999, "mode": 0o4755 },
            { "name": "made-up", "type": "reg", "size": 3, "offset": 0 },
        ],
    });
    let content = b"what the blob says".repeat(40_000);
    let mut tar = Tar::new();
    tar.file(b"file", &content).file(b"stargz.index.json", wrong.to_string().as_bytes());
    let stream = tar.finish();
    let checksum = crate::harness::layout::digest(b"another");
    for (how, footer, annotations) in [
        (
            Compression::GzipMembers(64 << 10),
            estargz_footer(7),
            json!({ "containerd.io/snapshot/stargz/toc.digest": checksum }),
        ),
        (
            Compression::ZstdFrames(64 << 10),
            skippable_frame(wrong.to_string().as_bytes()),
            json!({
                "io.github.containers.zstd-chunked.manifest-checksum": checksum,
                "io.github.containers.zstd-chunked.manifest-position": "99999:7:7:1",
            }),
        ),
    ] {
        let place = scratch();
        let mut layout = Layout::create(place.path());
        let blob = [how.compress(&stream), footer].concat();
        let descriptor = json!({
            "mediaType": how.media_type(),
            "digest": layout.blob(&blob),
            "size": blob.len(),
            "annotations": annotations,
        });
        let diff_id = crate::harness::layout::digest(&stream);
        layout.image_of("v1", &[Layer { descriptor, diff_id }]);
        let peersync = Peersync::new();
        let mount = peersync.mount(&layout.reference("v1"), &[]);
        let names: Vec<_> = fs::read_dir(&mount.path)
            .expect("root")
            .map(|entry| entry.expect("entry").file_name())
            .filter(|name| name != ".peersync")
            .collect();
        assert_eq!(names, ["file"], "{how:?}");
        assert!(fs::read(mount.join("file")).expect("file") == content, "{how:?}");
        let mode = fs::metadata(mount.join("file")).expect("file").mode();
        assert_eq!(mode & 0o7777, 0o644, "{how:?}");
    }
}

#[test]
fn hard_links_that_lead_nowhere_show_nothing() {
    needs_mounts!();
    let mut tar = Tar::new();
    tar.hard_link(b"link", b"no/such/file").file(b"file", b"content");
    tar.hard_link(b"a", b"b").hard_link(b"b", b"a").hard_link(b"self", b"self");
    let place = scratch();
    let mut layout = Layout::create(place.path());
    layout.image("v1", &[tar.finish()], Compression::Gzip);
    let peersync = Peersync::new();
    let point = peersync.mount_point();
    let guard = Mount::watch(&point);
    let image = layout.reference("v1");
    let output = output(&mut peersync.command(&["mount", &image, &point.display().to_string()]));
    if !output.status.success() {
        failure(&output);
        return;
    }
    for name in ["link", "a", "b", "self"] {
        assert!(fs::read(guard.join(name)).is_err(), "{name} shows something");
    }
    assert_eq!(fs::read(guard.join("file")).expect("file"), b"content");
}

#[test]
fn bad_input_takes_nothing_away_that_is_stored() {
    needs_mounts!();
    let (_place, layout, layer, content) = honest();
    let peersync = Peersync::new();
    let mount = peersync.mount(&layout.reference("v1"), &[]);
    let host = Host::serve(&layout.dir, move |request, mut right| {
        if is_blob(request, &layer) {
            right.body[77] ^= 1;
        }
        right
    });
    let point = peersync.mount_point();
    // The same blob is known already: what is stored counts, not what the host says.
    let image = host.reference("v1");
    let _ = output(&mut peersync.command(&["mount", &image, &point.display().to_string()]));
    assert!(fs::read(mount.join("file")).expect("file") == content, "stored bytes changed");
    drop(mount);
    let mount = peersync.mount(&layout.reference("v1"), &[]);
    assert!(fs::read(mount.join("file")).expect("file") == content, "stored bytes changed");
}
