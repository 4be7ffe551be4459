//! Remote layers that are unpacked by `tar` into plain directories: what the
//! snapshotter needs of lazy ones, without FUSE.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use futures_util::future::BoxFuture;
use peersync::snapshotter::labels::chain_id;
use peersync::snapshotter::meta::Usage;
use peersync::snapshotter::{
    KnownChain, RemoteChain, RemoteError, RemoteImage, RemoteLayer, RemoteLayers,
};
use peersync::types::Digest;
use serde_json::Value;

use crate::harness::layout::{blob_path, read_manifest_bytes};
use crate::harness::{output, run};

/// Takes images from a layout by their tag.
pub(crate) struct Unpacked {
    layout: PathBuf,
    place: PathBuf,
    seen: Mutex<Seen>,
}

/// What was asked for.
#[derive(Default)]
struct Seen {
    started: Vec<Vec<Digest>>,
    prepared: Vec<Digest>,
    removed: Vec<Digest>,
    /// Refusals to come, by blob.
    refuse: HashMap<Digest, RemoteError>,
}

impl Unpacked {
    pub(crate) fn new(place: &Path) -> Self {
        let unpacked = place.join("chains");
        fs::create_dir_all(&unpacked).expect("chains");
        Self { layout: place.join("oci"), place: unpacked, seen: Mutex::default() }
    }

    /// Chains that were prepared, in order.
    pub(crate) fn prepared(&self) -> Vec<Digest> {
        self.seen.lock().expect("seen").prepared.clone()
    }

    /// The layer lists that images were started with.
    pub(crate) fn started(&self) -> Vec<Vec<Digest>> {
        self.seen.lock().expect("seen").started.clone()
    }

    pub(crate) fn removed(&self) -> Vec<Digest> {
        self.seen.lock().expect("seen").removed.clone()
    }

    /// Refuses a blob, or no longer.
    pub(crate) fn refuse(&self, blob: &str, error: Option<RemoteError>) {
        let blob = blob.parse().expect("digest");
        let refuse = &mut self.seen.lock().expect("seen").refuse;
        match error {
            Some(error) => refuse.insert(blob, error),
            None => refuse.remove(&blob),
        };
    }

    pub(crate) fn chain(&self, chain: &Digest) -> PathBuf {
        self.place.join(chain.file_name())
    }

    fn unpack(&self, layer: &RemoteLayer) -> Result<PathBuf, RemoteError> {
        let path = self.chain(&layer.chain_id);
        if path.exists() {
            return Ok(path);
        }
        let diff_id = self.diff_id(layer)?;
        if chain_id(layer.parent.as_ref(), &diff_id) != layer.chain_id {
            return Err(RemoteError::Declined("the chain is not this layer's".into()));
        }
        let half = path.with_extension("half");
        match &layer.parent {
            Some(parent) => {
                run(Command::new("cp").arg("-a").arg(self.chain(parent)).arg(&half));
            }
            None => fs::create_dir(&half).expect("chain"),
        }
        apply(&blob_path(&self.layout, &layer.digest.to_string()), &half);
        fs::rename(half, &path).expect("chain");
        Ok(path)
    }

    /// The uncompressed digest of a blob, from the image's manifest and config.
    fn diff_id(&self, layer: &RemoteLayer) -> Result<Digest, RemoteError> {
        let declined = || RemoteError::Declined(format!("no {} in this image", layer.digest));
        let tag = layer.image.reference.rsplit_once(':').map_or("latest", |(_, tag)| tag);
        let (digest, _, manifest) = read_manifest_bytes(&self.layout, tag).ok_or_else(declined)?;
        if layer.image.manifest.is_some_and(|told| told.to_string() != digest) {
            return Err(RemoteError::Declined("another manifest".into()));
        }
        let manifest: Value = serde_json::from_slice(&manifest).expect("manifest");
        let layers = manifest["layers"].as_array().expect("layers");
        let wanted = layer.digest.to_string();
        let index = layers.iter().position(|l| l["digest"] == *wanted).ok_or_else(declined)?;
        let config = manifest["config"]["digest"].as_str().expect("config");
        let config = fs::read(blob_path(&self.layout, config)).expect("config");
        let config: Value = serde_json::from_slice(&config).expect("config");
        let diff_id = config["rootfs"]["diff_ids"][index].as_str().expect("diff id");
        Ok(diff_id.parse().expect("digest"))
    }
}

/// Unpacks a layer over those below, its whiteouts first.
fn apply(blob: &Path, target: &Path) {
    let listed = run(Command::new("tar").arg("-tzf").arg(blob));
    for name in listed.lines().map(Path::new) {
        let Some(file) = name.file_name().and_then(|file| file.to_str()) else { continue };
        let directory = target.join(name.parent().unwrap_or(Path::new("")));
        if file == ".wh..wh..opq" {
            for entry in fs::read_dir(&directory).expect("directory of an opaque mark") {
                remove(&entry.expect("entry").path());
            }
        } else if let Some(hidden) = file.strip_prefix(".wh.") {
            remove(&directory.join(hidden));
        }
    }
    let options = ["--xattrs", "--xattrs-include=*", "-xpzf"];
    run(Command::new("tar").args(options).arg(blob).arg("-C").arg(target).arg("--exclude=.wh.*"));
}

fn remove(path: &Path) {
    output(Command::new("rm").arg("-rf").arg(path));
}

impl RemoteLayers for Unpacked {
    fn start_all(&self, image: &RemoteImage) {
        self.seen.lock().expect("seen").started.push(image.layers.clone());
    }

    fn prepare(&self, layer: RemoteLayer) -> BoxFuture<'_, Result<RemoteChain, RemoteError>> {
        Box::pin(async move {
            // One at a time: the real one has its own single flight.
            let mut seen = self.seen.lock().expect("seen");
            if let Some(error) = seen.refuse.get(&layer.digest) {
                return Err(error.clone());
            }
            seen.prepared.push(layer.chain_id);
            self.unpack(&layer).map(|path| RemoteChain { path })
        })
    }

    fn revalidate(&self, chain: KnownChain) -> BoxFuture<'_, Result<RemoteChain, RemoteError>> {
        Box::pin(async move {
            let path = self.chain(&chain.chain_id);
            match path.exists() {
                true => Ok(RemoteChain { path }),
                false => Err(RemoteError::Unavailable("not unpacked".into())),
            }
        })
    }

    fn usage(&self, _: &Digest) -> Usage {
        Usage { bytes: 4096, inodes: 1 }
    }

    fn removed(&self, chain: &Digest) {
        self.seen.lock().expect("seen").removed.push(*chain);
        remove(&self.chain(chain));
    }
}
