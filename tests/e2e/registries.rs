//! Registries as they are in the world: with tokens, mirrors, several
//! platforms, and tags beside digests.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::host::{Host, Reply};
use crate::harness::layout::{Compression, Layout, read_manifest_bytes};
use crate::harness::line::{Conditions, Line};
use crate::harness::peersync::Peersync;
use crate::harness::registry::Registry;
use crate::harness::tar::Tar;
use crate::harness::{needs_mounts, scratch};

/// A layout with one image for each word, the word in a file.
fn images(words: &[&str]) -> (tempfile::TempDir, Layout) {
    let place = scratch();
    let mut layout = Layout::create(place.path());
    for word in words {
        let mut tar = Tar::new();
        tar.file(b"word", word.as_bytes());
        layout.image(word, &[tar.finish()], Compression::Gzip);
    }
    (place, layout)
}

#[track_caller]
fn shows(peersync: &Peersync, image: &str, options: &[&str], word: &str) {
    let mount = peersync.mount(image, options);
    assert_eq!(fs::read_to_string(mount.join("word")).expect("word"), word);
    mount.umount(peersync);
}

#[test]
fn an_image_by_digest() {
    needs_mounts!();
    let (_place, layout) = images(&["v1"]);
    let registry = Registry::start();
    registry.push(&layout.dir, "v1", "test/image:v1");
    let (digest, ..) = read_manifest_bytes(&layout.dir, "v1").expect("manifest");
    let peersync = Peersync::new();
    shows(&peersync, &format!("{}/test/image@{digest}", registry.address), &[], "v1");
    shows(&peersync, &format!("{}/test/image:v1@{digest}", registry.address), &[], "v1");
}

#[test]
fn a_tag_that_moved_is_mounted_anew() {
    needs_mounts!();
    let (_place, layout) = images(&["old", "new"]);
    let registry = Registry::start();
    let image = format!("{}/test/image:v1", registry.address);
    let peersync = Peersync::new();
    for word in ["old", "new"] {
        registry.push(&layout.dir, word, "test/image:v1");
        shows(&peersync, &image, &[], word);
    }
}

#[test]
fn the_platform_of_this_machine_is_chosen() {
    needs_mounts!();
    let (_place, mut layout) = images(&["other", "mine"]);
    let own = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let entry = |word: &str, architecture: &str| {
        let (digest, media_type, bytes) = read_manifest_bytes(&layout.dir, word).expect("manifest");
        json!({
            "mediaType": media_type, "digest": digest, "size": bytes.len(),
            "platform": { "os": "linux", "architecture": architecture },
        })
    };
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [entry("other", "riscv64"), entry("mine", own)],
    });
    layout.manifest("all", &index);
    let host = Host::serve(&layout.dir, |_, right| right);
    let peersync = Peersync::new();
    shows(&peersync, &host.reference("all"), &[], "mine");
    shows(&Peersync::new(), &layout.reference("all"), &[], "mine");
}

#[test]
fn an_image_for_other_platforms_only_is_said() {
    let (_place, mut layout) = images(&["other"]);
    let (digest, media_type, bytes) = read_manifest_bytes(&layout.dir, "other").expect("manifest");
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{
            "mediaType": media_type, "digest": digest, "size": bytes.len(),
            "platform": { "os": "windows", "architecture": "amd64" },
        }],
    });
    layout.manifest("all", &index);
    let host = Host::serve(&layout.dir, |_, right| right);
    let said = Peersync::new().fails(&["pull", &host.reference("all")]);
    assert!(said.contains("windows/amd64"), "{said}");
}

#[test]
fn a_token_is_fetched_with_the_stored_password_and_used() {
    needs_mounts!();
    let (_place, layout) = images(&["v1"]);
    // user:password
    const BASIC: &str = "Basic dXNlcjpwYXNzd29yZA==";
    let host = Host::serve(&layout.dir, move |request, right| {
        let header = |name: &str| request.headers.get(name).map(String::as_str);
        if request.path.starts_with("/token") {
            let scoped = request.path.contains("scope=repository%3Atest%2Fimage%3Apull")
                || request.path.contains("scope=repository:test/image:pull");
            return if header("authorization") == Some(BASIC) && scoped {
                Reply::new(200, br#"{"token":"the-token","expires_in":300}"#.to_vec())
                    .with("Content-Type", "application/json")
            } else {
                Reply::status(401)
            };
        }
        if header("authorization") == Some("Bearer the-token") {
            return right;
        }
        let realm = format!("http://{}/token", header("host").unwrap_or_default());
        let challenge = format!(
            "Bearer realm=\"{realm}\",service=\"test\",scope=\"repository:test/image:pull\""
        );
        Reply::status(401).with("WWW-Authenticate", &challenge)
    });
    let peersync = Peersync::new();
    fs::create_dir_all(peersync.path("docker")).expect("docker configuration");
    let auth = BASIC.trim_start_matches("Basic ");
    let config = json!({ "auths": { host.address.to_string(): { "auth": auth } } });
    fs::write(peersync.path("docker/config.json"), config.to_string()).expect("config.json");
    shows(&peersync, &host.reference("v1"), &[], "v1");
    assert!(host.requests().iter().any(|request| request.path.starts_with("/token")));
}

#[test]
fn a_wrong_password_is_named() {
    let (_place, layout) = images(&["v1"]);
    let host = Host::serve(&layout.dir, |_, _| {
        Reply::status(401).with("WWW-Authenticate", "Basic realm=\"test\"")
    });
    let peersync = Peersync::new();
    let said = peersync.fails(&["pull", &host.reference("v1")]).to_lowercase();
    assert!(
        ["401", "credentials", "unauthorized"].iter().any(|word| said.contains(word)),
        "{said}"
    );
}

#[test]
fn a_mirror_of_hosts_toml_stands_in_for_a_registry() {
    needs_mounts!();
    let (_place, layout) = images(&["v1"]);
    let mirror = Host::serve(&layout.dir, |_, right| right);
    let peersync = Peersync::new();
    let hosts = peersync.path("certs.d/registry.invalid");
    fs::create_dir_all(&hosts).expect("hosts directory");
    let text = format!(
        "server = \"https://registry.invalid\"\n[host.\"http://{}\"]\ncapabilities = \
         [\"pull\", \"resolve\"]\n",
        mirror.address
    );
    fs::write(hosts.join("hosts.toml"), text).expect("hosts.toml");
    let config = peersync.path("config.toml");
    let text = format!("[registry]\nhosts_dir = {:?}\n", peersync.path("certs.d"));
    fs::write(&config, text).expect("configuration");
    let config = config.display().to_string();
    let options = ["--config", config.as_str()];
    shows(&peersync, "registry.invalid/test/image:v1", &options, "v1");
    assert!(!mirror.requests().is_empty());
}

/// Each connection of this line has at most 1 MiB under way, so it takes several
/// to fill it.
#[test]
fn the_first_pass_reads_a_far_registry_over_several_connections() {
    needs_mounts!();
    let mut content = vec![0; 16 << 20];
    blake3::Hasher::new().finalize_xof().fill(&mut content);
    let place = scratch();
    let mut layout = Layout::create(place.path());
    let mut tar = Tar::new();
    tar.file(b"large", &content);
    layout.image("v1", &[tar.finish()], Compression::Gzip);
    let registry = Registry::start();
    registry.push(place.path(), "v1", "test/far:v1");
    let conditions = Conditions { rate: None, delay: Duration::from_millis(50) };
    let line = Line::shaped(registry.address, conditions);
    let peersync = Peersync::new();
    let begun = Instant::now();
    let mount = peersync.mount(&format!("{}/test/far:v1", line.address), &[]);
    eprintln!("16 MiB at 100 ms: {:.2} s", begun.elapsed().as_secs_f64());
    assert!(fs::read(mount.join("large")).expect("large") == content);
    assert!(line.connections() >= 4, "{} connections", line.connections());
    assert!(line.down() < 17 << 20, "nothing came twice: {} bytes", line.down());
}
