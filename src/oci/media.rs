//! Media types: what a document or layer says it is.

/// OCI image manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// OCI image index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// OCI image configuration.
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// The empty JSON object `{}` that stands where a manifest needs a descriptor.
pub const OCI_EMPTY: &str = "application/vnd.oci.empty.v1+json";
/// Docker image manifest, version 2 schema 2.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker manifest list.
pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const DOCKER_PLUGIN_CONFIG: &str = "application/vnd.docker.plugin.v1+json";
const DOCKER_SCHEMA1: &str = "application/vnd.docker.distribution.manifest.v1+";

/// What to put into `Accept` when asking for a manifest: all that is understood.
pub(super) const ACCEPT_MANIFEST: &str = "application/vnd.oci.image.index.v1+json, \
     application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.docker.distribution.manifest.v2+json";

/// Longest media type that is accepted, in bytes (RFC 6838: 127 on each side).
pub const MEDIA_TYPE_MAX: usize = 255;

/// True for an OCI index or Docker manifest list.
pub fn is_index(media_type: &str) -> bool {
    matches!(media_type, OCI_INDEX | DOCKER_INDEX)
}

/// True for an OCI or Docker image manifest.
pub fn is_manifest(media_type: &str) -> bool {
    matches!(media_type, OCI_MANIFEST | DOCKER_MANIFEST)
}

/// True for the configuration of a container image, which has `rootfs.diff_ids`.
pub fn is_image_config(media_type: &str) -> bool {
    matches!(media_type, OCI_CONFIG | DOCKER_CONFIG | DOCKER_PLUGIN_CONFIG)
}

/// True for Docker's first manifest format, which nobody serves any more.
pub(super) fn is_schema1(media_type: &str) -> bool {
    media_type.starts_with(DOCKER_SCHEMA1)
}

/// True for the configuration of a model (ModelPack, in its old and new name).
pub(super) fn is_model_config(media_type: &str) -> bool {
    ["application/vnd.cncf.model.config.", "application/vnd.cnai.model.config."]
        .iter()
        .any(|prefix| media_type.starts_with(prefix))
}

/// True for a ModelPack layer, whose media type alone says whether it is a tar.
pub(super) fn is_model_layer(media_type: &str) -> bool {
    ["application/vnd.cncf.model.", "application/vnd.cnai.model."]
        .iter()
        .any(|prefix| media_type.starts_with(prefix))
}

/// True for a layer that only its key's owner can read.
pub(super) fn is_encrypted(media_type: &str) -> bool {
    media_type.ends_with("+encrypted")
}

/// How the bytes of a layer's tar are compressed, as its media type says.
/// The bytes themselves decide when they are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TarType {
    /// `...tar`.
    Plain,
    /// `...tar+gzip`, `...tar.gzip`.
    Gzip,
    /// `...tar+zstd`, `...tar.zstd`.
    Zstd,
}

/// Says whether a layer of this media type is a tar, and which.
pub fn tar_type(media_type: &str) -> Option<TarType> {
    // Parameters (`; charset=...`) don't change what it is.
    let essence = media_type.split(';').next().unwrap_or_default().trim_end();
    let (stem, tar) = [
        ("+gzip", TarType::Gzip),
        (".gzip", TarType::Gzip),
        ("+zstd", TarType::Zstd),
        (".zstd", TarType::Zstd),
    ]
    .into_iter()
    .find_map(|(suffix, tar)| Some((essence.strip_suffix(suffix)?, tar)))
    .unwrap_or((essence, TarType::Plain));
    matches!(stem.rsplit(['.', '/']).next(), Some("tar" | "x-tar")).then_some(tar)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tar_layers_are_told_from_files() {
        for (media_type, expected) in [
            ("application/vnd.oci.image.layer.v1.tar", Some(TarType::Plain)),
            ("application/vnd.oci.image.layer.v1.tar+gzip", Some(TarType::Gzip)),
            ("application/vnd.oci.image.layer.v1.tar+zstd", Some(TarType::Zstd)),
            ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", Some(TarType::Gzip)),
            ("application/vnd.docker.image.rootfs.diff.tar.gzip", Some(TarType::Gzip)),
            ("application/vnd.docker.image.rootfs.diff.tar.zstd", Some(TarType::Zstd)),
            ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", Some(TarType::Gzip)),
            ("application/vnd.cncf.model.weight.v1.tar", Some(TarType::Plain)),
            ("application/vnd.cncf.model.weight.v1.raw", None),
            ("application/vnd.docker.ai.gguf.v3", None),
            ("application/x-tar", Some(TarType::Plain)),
            ("application/octet-stream", None),
            ("application/guitar", None),
            ("application/gzip", None),
            ("", None),
        ] {
            assert_eq!(tar_type(media_type), expected, "{media_type}");
        }
    }
}
