//! OCI layouts written by hand: images of given tar streams, in any
//! compression, and model artifacts.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// How a layer is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    Plain,
    /// One member, as `gzip` writes it.
    Gzip,
    /// As `pigz` writes it, with blocks that don't depend on each other.
    Pigz,
    /// Several members one after the other, each of this many bytes of the stream.
    GzipMembers(usize),
    /// One frame: it can't be entered in the middle.
    Zstd,
    /// Several frames, each of this many bytes of the stream.
    ZstdFrames(usize),
}

impl Compression {
    pub(crate) fn compress(self, stream: &[u8]) -> Vec<u8> {
        let zstd = |bytes: &[u8]| zstd::bulk::compress(bytes, 3).expect("zstd");
        match self {
            Self::Plain => stream.to_vec(),
            Self::Gzip => filter(Command::new("gzip").args(["-n", "-6"]), stream),
            Self::Pigz => filter(Command::new("pigz").args(["-n", "-i", "-p2"]), stream),
            Self::GzipMembers(each) => {
                let members = stream.chunks(each);
                members.flat_map(|bytes| filter(Command::new("gzip").arg("-n"), bytes)).collect()
            }
            Self::Zstd => zstd(stream),
            Self::ZstdFrames(each) => stream.chunks(each).flat_map(zstd).collect(),
        }
    }

    pub(crate) fn media_type(self) -> &'static str {
        match self {
            Self::Plain => "application/vnd.oci.image.layer.v1.tar",
            Self::Gzip | Self::Pigz | Self::GzipMembers(_) => {
                "application/vnd.oci.image.layer.v1.tar+gzip"
            }
            Self::Zstd | Self::ZstdFrames(_) => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

/// A layout directory that images are added to.
pub(crate) struct Layout {
    pub(crate) dir: PathBuf,
    manifests: Vec<Value>,
}

/// A layer as it stands in a manifest, and the digest of its stream.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    pub(crate) descriptor: Value,
    pub(crate) diff_id: String,
}

impl Layer {
    pub(crate) fn digest(&self) -> &str {
        self.descriptor["digest"].as_str().expect("digest")
    }
}

impl Layout {
    pub(crate) fn create(dir: &Path) -> Self {
        fs::create_dir_all(dir.join("blobs/sha256")).expect("layout directory");
        fs::write(dir.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#).expect("layout");
        let layout = Self { dir: dir.to_owned(), manifests: Vec::new() };
        layout.write_index();
        layout
    }

    /// `oci:DIR:TAG`.
    pub(crate) fn reference(&self, tag: &str) -> String {
        format!("oci:{}:{tag}", self.dir.display())
    }

    pub(crate) fn blob_path(&self, digest: &str) -> PathBuf {
        self.dir.join("blobs").join(digest.replace(':', "/"))
    }

    /// Stores bytes under their digest.
    pub(crate) fn blob(&self, bytes: &[u8]) -> String {
        let digest = digest(bytes);
        fs::write(self.blob_path(&digest), bytes).expect("blob");
        digest
    }

    pub(crate) fn layer(&self, stream: &[u8], compression: Compression) -> Layer {
        let compressed = compression.compress(stream);
        let descriptor = json!({
            "mediaType": compression.media_type(),
            "digest": self.blob(&compressed),
            "size": compressed.len(),
        });
        Layer { descriptor, diff_id: digest(stream) }
    }

    /// An image of tar streams, bottom first; gives the manifest's digest.
    pub(crate) fn image(&mut self, tag: &str, streams: &[Vec<u8>], how: Compression) -> String {
        let layers: Vec<Layer> = streams.iter().map(|stream| self.layer(stream, how)).collect();
        self.image_of(tag, &layers)
    }

    /// An image of layers that are there already.
    pub(crate) fn image_of(&mut self, tag: &str, layers: &[Layer]) -> String {
        let diff_ids: Vec<&str> = layers.iter().map(|layer| layer.diff_id.as_str()).collect();
        let config = json!({
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
            "os": "linux",
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
            "config": {},
        });
        let config = config.to_string();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": self.blob(config.as_bytes()),
                "size": config.len(),
            },
            "layers": layers.iter().map(|layer| &layer.descriptor).collect::<Vec<_>>(),
        });
        self.manifest(tag, &manifest)
    }

    /// A model artifact: each file is a layer as it is, named by its title.
    pub(crate) fn artifact(&mut self, tag: &str, files: &[(&str, &[u8])]) -> String {
        let layers: Vec<Value> = files
            .iter()
            .map(|(name, bytes)| {
                json!({
                    "mediaType": "application/octet-stream",
                    "digest": self.blob(bytes),
                    "size": bytes.len(),
                    "annotations": { "org.opencontainers.image.title": name },
                })
            })
            .collect();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "artifactType": "application/vnd.example.model.v1",
            "config": {
                "mediaType": "application/vnd.oci.empty.v1+json",
                "digest": self.blob(b"{}"),
                "size": 2,
            },
            "layers": layers,
        });
        self.manifest(tag, &manifest)
    }

    /// Any manifest, tagged.
    pub(crate) fn manifest(&mut self, tag: &str, manifest: &Value) -> String {
        let bytes = manifest.to_string();
        let digest = self.blob(bytes.as_bytes());
        let default = Value::from("application/vnd.oci.image.manifest.v1+json");
        self.manifests.push(json!({
            "mediaType": manifest.get("mediaType").unwrap_or(&default),
            "digest": digest,
            "size": bytes.len(),
            "annotations": { "org.opencontainers.image.ref.name": tag },
        }));
        self.write_index();
        digest
    }

    fn write_index(&self) {
        let index = json!({ "schemaVersion": 2, "manifests": self.manifests });
        fs::write(self.dir.join("index.json"), index.to_string()).expect("index");
    }
}

/// The manifest of a tag of a layout that some tool wrote.
pub(crate) fn read_manifest(layout: &Path, tag: &str) -> Value {
    let found = read_manifest_bytes(layout, tag);
    let (_, _, bytes) = found.unwrap_or_else(|| panic!("no tag {tag} in {layout:?}"));
    serde_json::from_slice(&bytes).expect("manifest")
}

/// Digest, media type and bytes of a manifest by tag or digest.
pub(crate) fn read_manifest_bytes(layout: &Path, name: &str) -> Option<(String, String, Vec<u8>)> {
    let index = fs::read(layout.join("index.json")).expect("index.json");
    let index: Value = serde_json::from_slice(&index).expect("index.json");
    let digest = if name.starts_with("sha256:") {
        name.to_owned()
    } else {
        let tagged = index["manifests"].as_array()?.iter();
        let mut tagged =
            tagged.filter(|m| m["annotations"]["org.opencontainers.image.ref.name"] == name);
        tagged.next()?["digest"].as_str()?.to_owned()
    };
    let bytes = fs::read(blob_path(layout, &digest)).ok()?;
    let manifest: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let stated = manifest["mediaType"].as_str();
    let media_type = stated.unwrap_or("application/vnd.oci.image.manifest.v1+json").to_owned();
    Some((digest, media_type, bytes))
}

/// Compressed bytes of an image's layers.
pub(crate) fn layer_bytes(layout: &Path, tag: &str) -> u64 {
    let manifest = read_manifest(layout, tag);
    let layers = manifest["layers"].as_array().expect("layers");
    layers.iter().map(|layer| layer["size"].as_u64().expect("size")).sum()
}

/// The tar streams of a gzip image's layers, bottom first.
pub(crate) fn layer_streams(layout: &Path, tag: &str) -> Vec<Vec<u8>> {
    let manifest = read_manifest(layout, tag);
    let layers = manifest["layers"].as_array().expect("layers");
    layers
        .iter()
        .map(|layer| {
            let path = blob_path(layout, layer["digest"].as_str().expect("digest"));
            filter(Command::new("gzip").arg("-dc"), &fs::read(path).expect("layer"))
        })
        .collect()
}

pub(crate) fn blob_path(layout: &Path, digest: &str) -> PathBuf {
    layout.join("blobs").join(digest.replace(':', "/"))
}

pub(crate) fn digest(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// Feeds bytes to a program and gives what comes out.
fn filter(command: &mut Command, input: &[u8]) -> Vec<u8> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut stdin = child.stdin.take().expect("piped");
    std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(input).expect("feed a filter"));
        let output = child.wait_with_output().expect("filter");
        assert!(output.status.success(), "{command:?}: {}", output.status);
        output.stdout
    })
}
