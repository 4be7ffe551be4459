//! The layers of an image, or the files of an artifact: what its manifest and
//! configuration say together. Pure.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::document::{Descriptor, DocumentError, ImageConfig, ImageManifest, model_diff_ids};
use super::media;
use super::platform::Platform;
use crate::types::{Digest, DigestHasher};

/// Longest path of a file that a layer is presented as, and its longest name.
const PATH_MAX: usize = 4095;
const NAME_MAX: usize = 255;

/// The name of a blob in an artifact (OCI, ORAS).
pub const TITLE: &str = "org.opencontainers.image.title";
/// The path of a blob in a model, in ModelPack's new and old name and Docker's.
const FILE_PATHS: [&str; 3] =
    ["org.cncf.model.filepath", "org.cnai.model.filepath", "ai.docker.model.filepath"];
/// ORAS packed a directory into this blob.
const ORAS_UNPACK: &str = "io.deis.oras.content.unpack";

/// One layer of an image, or one file of an artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerDescriptor {
    /// The blob.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// What it says it is.
    pub media_type: String,
    /// The digest of the uncompressed content: from the configuration for a
    /// tar, the blob's own for a file. `None` for a tar whose manifest doesn't say.
    pub diff_id: Option<Digest>,
    /// Where a layer that is no tar is shown: a relative path without `.`,
    /// `..` and empty parts. `None` for a tar.
    pub path: Option<String>,
    /// The descriptor's annotations, for the tables of contents that stand there.
    pub annotations: BTreeMap<String, String>,
}

impl LayerDescriptor {
    /// True if the blob is shown as one file, false if it is a tar.
    pub fn is_file(&self) -> bool {
        self.path.is_some()
    }

    /// What this layer contributes to [`chain_ids`]: the diffID of a tar, and
    /// for a file a digest over its path too, since the same content under
    /// another name is another tree. `None` while the diffID is unknown.
    pub fn chain_part(&self) -> Option<Digest> {
        match &self.path {
            None => self.diff_id,
            Some(path) => {
                let mut hasher = DigestHasher::default();
                hasher.update(b"peersync file\0");
                hasher.update(path.as_bytes());
                hasher.update(b"\0");
                hasher.update(self.digest.as_bytes());
                Some(hasher.finish())
            }
        }
    }
}

/// Puts together what manifest and configuration say about the layers. Pure.
///
/// # Errors
/// [`DocumentError`] where they contradict each other, or a name is unsafe.
pub fn layers(
    manifest: &ImageManifest,
    config: Option<&Bytes>,
) -> Result<(Option<Platform>, Vec<LayerDescriptor>), DocumentError> {
    let is_image = media::is_image_config(&manifest.config.media_type);
    let (platform, diff_ids) = match config {
        Some(bytes) if is_image => {
            let config = ImageConfig::parse(bytes)?;
            let (layers, diff_ids) = (manifest.layers.len(), config.diff_ids.len());
            if layers != diff_ids {
                return Err(DocumentError::LayerCount { layers, diff_ids });
            }
            (config.platform, config.diff_ids)
        }
        // Models list them too; where they don't fit they are of no use.
        Some(bytes) => (None, model_diff_ids(bytes).unwrap_or_default()),
        None => (None, Vec::new()),
    };
    let known = diff_ids.len() == manifest.layers.len();
    let mut layers: Vec<LayerDescriptor> = Vec::with_capacity(manifest.layers.len());
    for (n, descriptor) in manifest.layers.iter().enumerate() {
        if media::is_encrypted(&descriptor.media_type) {
            return Err(DocumentError::Encrypted(n));
        }
        let path =
            if is_tar(descriptor, is_image) { None } else { Some(file_path(n, descriptor)?) };
        let diff_id = match path {
            Some(_) => Some(descriptor.digest),
            None => diff_ids.get(n).filter(|_| known).copied(),
        };
        // The same file twice is one file.
        let twice = |layer: &LayerDescriptor| {
            path.is_some() && layer.path == path && layer.digest == descriptor.digest
        };
        if !is_image && layers.iter().any(twice) {
            continue;
        }
        layers.push(LayerDescriptor {
            digest: descriptor.digest,
            size: descriptor.size,
            media_type: descriptor.media_type.clone(),
            diff_id,
            path,
            annotations: descriptor.annotations.clone(),
        });
    }
    Ok((platform, layers))
}

/// The chainIDs of a stack of layers, lowest first (OCI image specification,
/// "Layer ChainID"): the first is its diffID, each further one the digest of
/// `<chainID below> <diffID>`.
pub fn chain_ids(diff_ids: &[Digest]) -> Vec<Digest> {
    let mut below: Option<Digest> = None;
    diff_ids
        .iter()
        .map(|diff_id| {
            let chain = match below {
                None => *diff_id,
                Some(below) => Digest::of(format!("{below} {diff_id}").as_bytes()),
            };
            *below.insert(chain)
        })
        .collect()
}

/// Whether a layer is unpacked. In a container image every tar is. In an
/// artifact a media type with `tar` is not enough: ORAS gives it to any file
/// by default, names the file in the title, and marks what is to be unpacked.
fn is_tar(descriptor: &Descriptor, is_image: bool) -> bool {
    let tar = media::tar_type(&descriptor.media_type).is_some();
    if is_image || media::is_model_layer(&descriptor.media_type) {
        return tar;
    }
    let titled = descriptor.annotations.contains_key(TITLE);
    let unpack = descriptor.annotations.get(ORAS_UNPACK).is_some_and(|value| value == "true");
    tar && (!titled || unpack)
}

/// The path under which a blob is shown: what the model says, the title, or
/// its digest.
fn file_path(layer: usize, descriptor: &Descriptor) -> Result<String, DocumentError> {
    let stated = FILE_PATHS.iter().chain([&TITLE]).find_map(|key| descriptor.annotations.get(*key));
    match stated {
        None => Ok(descriptor.digest.file_name()),
        Some(stated) => safe_path(stated).ok_or_else(|| DocumentError::LayerPath {
            layer,
            path: stated.chars().filter(|c| !c.is_control()).take(120).collect(),
        }),
    }
}

/// A relative path that stays inside its directory, in one spelling; `None`
/// for any other.
fn safe_path(stated: &str) -> Option<String> {
    if stated.starts_with('/') || stated.contains('\0') || stated.len() > PATH_MAX {
        return None;
    }
    let parts: Vec<&str> = stated.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    let fit = |part: &&str| *part != ".." && part.len() <= NAME_MAX;
    (!parts.is_empty() && parts.iter().all(fit)).then(|| parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn layer(media_type: &str, content: &str, annotations: &[(&str, &str)]) -> Descriptor {
        let own = |(k, v): &(&str, &str)| ((*k).to_owned(), (*v).to_owned());
        Descriptor {
            annotations: annotations.iter().map(own).collect(),
            ..Descriptor::of(media_type, content.as_bytes())
        }
    }

    fn manifest(config: &str, layers: Vec<Descriptor>) -> ImageManifest {
        ImageManifest {
            media_type: media::OCI_MANIFEST.to_owned(),
            artifact_type: None,
            config: Descriptor::of(config, b"{}"),
            layers,
            subject: None,
            annotations: BTreeMap::new(),
        }
    }

    /// How each layer is shown: `None` as a tree, else the file's path.
    fn shown(config: &str, layers: Vec<Descriptor>) -> Result<Vec<Option<String>>, DocumentError> {
        let (_, layers) = super::layers(&manifest(config, layers), None)?;
        Ok(layers.into_iter().map(|layer| layer.path).collect())
    }

    const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
    const TAR_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
    const UNKNOWN: &str = "application/vnd.unknown.config.v1+json";

    #[test]
    fn files_of_artifacts_have_their_names() {
        let file = |path: &str| Some(path.to_owned());
        let digest = Digest::of(b"x").file_name();
        for (descriptor, expected) in [
            (layer("application/octet-stream", "x", &[(TITLE, "a.onnx")]), file("a.onnx")),
            (layer("application/octet-stream", "x", &[(TITLE, "./d//a.onnx")]), file("d/a.onnx")),
            (layer("application/vnd.docker.ai.gguf.v3", "x", &[]), file(&digest)),
            // ORAS: a file by default, whatever the media type says.
            (layer(TAR, "x", &[(TITLE, "notes.txt")]), file("notes.txt")),
            (layer(TAR_GZIP, "x", &[(TITLE, "src.tar.gz")]), file("src.tar.gz")),
            (layer(TAR_GZIP, "x", &[(TITLE, "dir"), (ORAS_UNPACK, "true")]), None),
            (layer("application/vnd.cncf.helm.chart.content.v1.tar+gzip", "x", &[]), None),
            // ModelPack says it in the media type.
            (
                layer(
                    "application/vnd.cncf.model.weight.v1.raw",
                    "x",
                    &[(FILE_PATHS[0], "w/model.safetensors"), (TITLE, "other")],
                ),
                file("w/model.safetensors"),
            ),
            (layer("application/vnd.cncf.model.weight.v1.tar", "x", &[(FILE_PATHS[0], "w")]), None),
            (
                layer("application/vnd.cnai.model.doc.v1.raw", "x", &[(FILE_PATHS[1], "R.md")]),
                file("R.md"),
            ),
        ] {
            assert_eq!(
                shown(UNKNOWN, vec![descriptor.clone()]),
                Ok(vec![expected]),
                "{descriptor:?}"
            );
        }
    }

    #[test]
    fn names_that_lead_out_are_refused() {
        let long = "a".repeat(256);
        let deep = "d/".repeat(2048) + "f";
        for path in
            ["/etc/passwd", "../x", "a/../../x", "..", "a/..", "a\0b", "", ".", "//", &long, &deep]
        {
            let layers =
                vec![layer("a/b", "x", &[(TITLE, "ok")]), layer("a/b", "y", &[(TITLE, path)])];
            let error = shown(UNKNOWN, layers).expect_err(path);
            assert!(matches!(error, DocumentError::LayerPath { layer: 1, .. }), "{error}");
        }
    }

    #[test]
    fn the_same_file_twice_is_one_and_another_is_another() {
        let a = |content: &str| layer("a/b", content, &[(TITLE, "a")]);
        assert_eq!(shown(UNKNOWN, vec![a("1"), a("1")]).map(|l| l.len()), Ok(1));
        assert_eq!(shown(UNKNOWN, vec![a("1"), a("2")]).map(|l| l.len()), Ok(2));
        let (_, layers) =
            super::layers(&manifest(UNKNOWN, vec![a("1"), a("2")]), None).expect("valid");
        assert_ne!(layers[0].chain_part(), layers[1].chain_part());
        let b = LayerDescriptor { path: Some("b".to_owned()), ..layers[0].clone() };
        assert_ne!(layers[0].chain_part(), b.chain_part());
    }

    #[test]
    fn layers_of_an_image_are_paired_with_their_diff_ids() {
        let ids = [Digest::of(b"1"), Digest::of(b"2")];
        let config =
            serde_json::json!({"rootfs": {"diff_ids": [ids[0].to_string(), ids[1].to_string()]}});
        let config = Bytes::from(config.to_string());
        let both = manifest(
            media::OCI_CONFIG,
            vec![layer(TAR_GZIP, "a", &[(TITLE, "t")]), layer(TAR, "b", &[])],
        );
        let (_, layers) = super::layers(&both, Some(&config)).expect("they fit");
        assert_eq!(layers.iter().map(|l| l.diff_id).collect::<Vec<_>>(), ids.map(Some));
        assert!(layers.iter().all(|l| !l.is_file()));
        let one = manifest(media::OCI_CONFIG, vec![layer(TAR, "a", &[])]);
        let expected = DocumentError::LayerCount { layers: 1, diff_ids: 2 };
        assert_eq!(super::layers(&one, Some(&config)), Err(expected));
        let secret = manifest(
            media::OCI_CONFIG,
            vec![
                layer(TAR, "a", &[]),
                layer("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", "b", &[]),
            ],
        );
        assert_eq!(super::layers(&secret, Some(&config)), Err(DocumentError::Encrypted(1)));
    }

    #[test]
    fn a_models_diff_ids_are_used_where_they_fit() {
        let id = Digest::of(b"1");
        let model = "application/vnd.cncf.model.config.v1+json";
        let tar = layer("application/vnd.cncf.model.weight.v1.tar", "a", &[]);
        for (key, count, expected) in
            [("diffIds", 1, Some(id)), ("diff_ids", 1, Some(id)), ("diffIds", 2, None)]
        {
            let ids = vec![id.to_string(); count];
            let config = Bytes::from(serde_json::json!({"modelfs": {key: ids}}).to_string());
            let (_, layers) =
                super::layers(&manifest(model, vec![tar.clone()]), Some(&config)).expect("valid");
            assert_eq!(layers[0].diff_id, expected);
        }
    }

    #[test]
    fn chain_ids_are_those_of_the_specification() {
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        let ab = Digest::of(format!("{a} {b}").as_bytes());
        let abb = Digest::of(format!("{ab} {b}").as_bytes());
        assert_eq!(chain_ids(&[a, b, b]), [a, ab, abb]);
        assert_eq!(chain_ids(&[]), []);
    }

    proptest! {
        #[test]
        fn a_safe_path_stays_inside(stated in "[./a\0]{0,12}|\\PC{0,40}") {
            if let Some(path) = safe_path(&stated) {
                let path = std::path::Path::new(&path);
                let normal = |c: std::path::Component<'_>| matches!(c, std::path::Component::Normal(_));
                prop_assert!(path.components().all(normal));
                let again = path.to_str().and_then(safe_path);
                prop_assert_eq!(again.as_deref(), path.to_str());
            }
        }
    }
}
