//! Images and settings that the tests share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use peersync::oci::registry::{Settings, Timeouts};
use peersync::oci::{
    Credentials, Descriptor, ImageSource, Login, Registry, RegistryClient, RetryPolicy, Secret,
    media,
};
use peersync::types::Digest;
use serde_json::json;

pub(crate) const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
pub(crate) const TAR_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

/// Five attempts without a pause; short limits; no logins, no configuration.
pub(crate) fn settings() -> Settings {
    Settings {
        hosts_dir: None,
        credentials: Credentials::Anonymous,
        retry: RetryPolicy {
            attempts: 5,
            base: Duration::ZERO,
            cap: Duration::ZERO,
            retry_after_max: Duration::from_secs(5),
        },
        // Generous: only tests of these limits should ever reach them.
        timeouts: Timeouts {
            connect: Duration::from_secs(20),
            idle: Duration::from_secs(20),
            document: Duration::from_secs(60),
        },
        seed: Some(1),
        ..Settings::default()
    }
}

/// A clock that a test turns.
#[derive(Clone, Default)]
pub(crate) struct Clock(Arc<AtomicU64>);

impl Clock {
    pub(crate) fn advance(&self, seconds: u64) {
        self.0.fetch_add(seconds, Ordering::Relaxed);
    }

    pub(crate) fn install(&self, settings: &mut Settings) {
        let (start, seconds) = (Instant::now(), self.0.clone());
        settings.now =
            Arc::new(move || start + Duration::from_secs(seconds.load(Ordering::Relaxed)));
    }
}

pub(crate) fn login(host: &str, user: &str, password: &str) -> Credentials {
    let login = Login::Basic { username: user.to_owned(), password: Secret::new(password) };
    Credentials::Fixed { host: host.to_owned(), login }
}

pub(crate) fn repository(settings: Settings, reference: &str) -> Arc<RegistryClient> {
    let reference = reference.parse().expect("a reference");
    Arc::new(Registry::new(settings).repository(&reference).expect("a repository"))
}

/// A tar with one file.
pub(crate) fn tar(name: &str, content: &[u8]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    builder.append_data(&mut header, name, content).expect("in memory");
    builder.into_inner().expect("in memory")
}

/// Content that repeats nowhere soon.
pub(crate) fn noise(len: usize) -> Vec<u8> {
    let mut hash = Digest::of(b"noise");
    let mut out = Vec::with_capacity(len + 32);
    while out.len() < len {
        hash = Digest::of(hash.as_bytes());
        out.extend(hash.as_bytes());
    }
    out.truncate(len);
    out
}

/// A layer's blob, its media type and its diffID.
#[derive(Clone)]
pub(crate) struct Layer {
    pub(crate) blob: Bytes,
    pub(crate) media_type: &'static str,
    pub(crate) diff_id: Digest,
}

pub(crate) fn plain_layer(name: &str, content: &[u8]) -> Layer {
    let tar = tar(name, content);
    Layer { diff_id: Digest::of(&tar), blob: tar.into(), media_type: TAR }
}

pub(crate) fn zstd_layer(name: &str, content: &[u8]) -> Layer {
    let tar = tar(name, content);
    let blob = zstd::encode_all(&tar[..], 3).expect("in memory");
    Layer { diff_id: Digest::of(&tar), blob: blob.into(), media_type: TAR_ZSTD }
}

pub(crate) fn config(architecture: &str, layers: &[Layer]) -> Bytes {
    let diff_ids: Vec<_> = layers.iter().map(|l| l.diff_id.to_string()).collect();
    json!({
        "architecture": architecture,
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    })
    .to_string()
    .into()
}

pub(crate) fn manifest(config: &[u8], layers: &[Layer]) -> Bytes {
    let describe = |media_type: &str, bytes: &[u8]| {
        json!({
            "mediaType": media_type,
            "digest": Digest::of(bytes).to_string(),
            "size": bytes.len(),
        })
    };
    json!({
        "schemaVersion": 2,
        "mediaType": media::OCI_MANIFEST,
        "config": describe(media::OCI_CONFIG, config),
        "layers": layers.iter().map(|l| describe(l.media_type, &l.blob)).collect::<Vec<_>>(),
    })
    .to_string()
    .into()
}

/// Gives an image to a source, whole.
pub(crate) async fn push_image(
    source: &dyn ImageSource,
    tag: Option<&str>,
    architecture: &str,
    layers: &[Layer],
) -> Descriptor {
    let config = config(architecture, layers);
    for blob in layers.iter().map(|l| &l.blob).chain([&config]) {
        source.push_blob(&Digest::of(blob), blob.clone()).await.expect("pushed");
    }
    source.push_manifest(tag, manifest(&config, layers)).await.expect("pushed")
}

pub(crate) fn index(images: &[(&str, &Descriptor)]) -> Bytes {
    let entries: Vec<_> = images
        .iter()
        .map(|(architecture, d)| {
            json!({
                "mediaType": d.media_type,
                "digest": d.digest.to_string(),
                "size": d.size,
                "platform": {"os": "linux", "architecture": architecture},
            })
        })
        .collect();
    json!({"schemaVersion": 2, "mediaType": media::OCI_INDEX, "manifests": entries})
        .to_string()
        .into()
}

/// All bytes of a stream.
pub(crate) async fn collect(
    stream: peersync::oci::BlobStream,
) -> Result<Vec<u8>, peersync::oci::SourceError> {
    use futures_util::StreamExt;
    let mut stream = stream;
    let mut out = Vec::new();
    while let Some(chunk) = stream.next().await {
        out.extend_from_slice(&chunk?);
    }
    Ok(out)
}
