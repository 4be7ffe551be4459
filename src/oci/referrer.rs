//! Artifacts that refer to an image, and the lists in which they are found.
//!
//! Nothing here does I/O. The forms are those of the OCI distribution
//! specification 1.1: the referrers list is an index; where a registry has no
//! referrers API, that index is kept under the tag `sha256-<hex>` of the subject.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use oci_spec::image as oci;
use serde_json::{Map, Value, json};

use super::document::{Descriptor, DocumentError, ImageManifest, Index, Manifest};
use super::media;
use crate::types::Digest;

/// The configuration of an artifact: an empty object.
pub const EMPTY_CONFIG: &[u8] = b"{}";

/// An artifact to be pushed: named blobs that say something about an image.
#[derive(Debug, Clone)]
pub struct Artifact {
    /// What it is, a media type.
    pub artifact_type: String,
    /// The manifest that it is about.
    pub subject: Descriptor,
    /// Its blobs, which must be pushed first.
    pub layers: Vec<Descriptor>,
    /// Free-form texts.
    pub annotations: BTreeMap<String, String>,
}

impl Artifact {
    /// The artifact's manifest, and the entry under which it is listed.
    pub fn encode(&self) -> (Descriptor, Bytes) {
        let hash = |map: &BTreeMap<String, String>| -> Option<HashMap<String, String>> {
            (!map.is_empty()).then(|| map.clone().into_iter().collect())
        };
        let describe = |d: &Descriptor| {
            let mut out =
                oci::Descriptor::new(d.media_type.as_str().into(), d.size, sha256(&d.digest));
            out.set_annotations(hash(&d.annotations));
            out
        };
        let mut config = describe(&Descriptor::of(media::OCI_EMPTY, EMPTY_CONFIG));
        config.set_annotations(None);
        let subject = Descriptor { annotations: BTreeMap::new(), ..self.subject.clone() };
        let builder = oci::ImageManifestBuilder::default()
            .schema_version(oci::SCHEMA_VERSION)
            .media_type(oci::MediaType::ImageManifest)
            .artifact_type(self.artifact_type.as_str())
            .config(config)
            .layers(self.layers.iter().map(describe).collect::<Vec<_>>())
            .subject(describe(&subject));
        let built = match hash(&self.annotations) {
            Some(annotations) => builder.annotations(annotations).build(),
            None => builder.build(),
        };
        let manifest = built.unwrap_or_else(|_| unreachable!("all that is required was given"));
        // Through a value, whose maps are sorted: one artifact, one digest.
        let value = serde_json::to_value(&manifest).unwrap_or_default();
        let bytes = value.to_string();
        let entry = Descriptor {
            artifact_type: Some(self.artifact_type.clone()),
            annotations: self.annotations.clone(),
            ..Descriptor::of(media::OCI_MANIFEST, bytes.as_bytes())
        };
        (entry, bytes.into())
    }
}

/// The tag under which registries without the referrers API keep the list.
pub(super) fn fallback_tag(subject: &Digest) -> String {
    subject.file_name()
}

/// How a manifest that refers to another is listed.
pub(super) fn entry_for(descriptor: Descriptor, manifest: &ImageManifest) -> Descriptor {
    let config = (manifest.config.media_type != media::OCI_EMPTY)
        .then(|| manifest.config.media_type.clone());
    Descriptor {
        artifact_type: manifest.artifact_type.clone().or(config),
        annotations: manifest.annotations.clone(),
        ..descriptor
    }
}

/// Reads a list of referrers.
///
/// # Errors
/// [`DocumentError`] where it is not an index.
pub(super) fn parse_list(media_type: Option<&str>, bytes: &[u8]) -> Result<Index, DocumentError> {
    match Manifest::parse(media_type, bytes)? {
        Manifest::Index(index) => Ok(index),
        Manifest::Image(_) => Err(DocumentError::Malformed("it is not an index".to_owned())),
    }
}

/// Keeps what can be a referrer, and of these only the given artifact type.
pub(super) fn keep_type(found: &mut Vec<Descriptor>, artifact_type: Option<&str>) {
    found.retain(|d| {
        (media::is_manifest(&d.media_type) || media::is_index(&d.media_type))
            && artifact_type.is_none_or(|wanted| d.artifact_type.as_deref() == Some(wanted))
    });
}

/// An index without entries, to begin with.
pub(super) fn empty_list() -> Vec<u8> {
    json!({"schemaVersion": 2, "mediaType": media::OCI_INDEX, "manifests": []})
        .to_string()
        .into_bytes()
}

/// Adds an entry to an index, and leaves all else in it as it is, fields
/// included that are unknown here. An entry of the same digest and name is
/// replaced; a name that another digest had moves to the new one.
///
/// # Errors
/// [`DocumentError`] where the bytes are not an index, or it becomes too large.
pub(super) fn add_entry(index: &[u8], entry: &Descriptor) -> Result<Vec<u8>, DocumentError> {
    parse_list(None, index)?;
    let malformed = |error: serde_json::Error| DocumentError::Malformed(error.to_string());
    let mut document: Map<String, Value> = serde_json::from_slice(index).map_err(malformed)?;
    let mut entries = match document.remove("manifests") {
        Some(Value::Array(entries)) => entries,
        _ => Vec::new(),
    };
    let name =
        |value: &Value| value["annotations"][super::layout::REF_NAME].as_str().map(str::to_owned);
    let new = encode_entry(entry);
    let new_name = name(&new);
    entries.retain(|old| {
        let old_name = name(old);
        if new_name.is_some() {
            old_name != new_name
        } else {
            old["digest"] != new["digest"] || old_name.is_some()
        }
    });
    entries.push(new);
    document.insert("manifests".to_owned(), Value::Array(entries));
    let bytes = serde_json::to_vec(&document).map_err(malformed)?;
    // Never write what we would not read again.
    parse_list(None, &bytes)?;
    Ok(bytes)
}

fn encode_entry(entry: &Descriptor) -> Value {
    let mut out = json!({
        "mediaType": entry.media_type,
        "digest": entry.digest.to_string(),
        "size": entry.size,
    });
    if let Some(artifact_type) = &entry.artifact_type {
        out["artifactType"] = json!(artifact_type);
    }
    if let Some(platform) = &entry.platform {
        out["platform"] = json!({"os": platform.os(), "architecture": platform.architecture()});
        if let Some(variant) = platform.variant() {
            out["platform"]["variant"] = json!(variant);
        }
    }
    if !entry.annotations.is_empty() {
        out["annotations"] = json!(entry.annotations);
    }
    out
}

fn sha256(digest: &Digest) -> oci::Digest {
    match digest.to_string().parse() {
        Ok(digest) => digest,
        Err(_) => unreachable!("a sha256 digest is one to oci-spec too"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn artifact() -> Artifact {
        Artifact {
            artifact_type: "application/vnd.example.index.v1".to_owned(),
            subject: Descriptor::of(media::OCI_MANIFEST, b"subject"),
            layers: vec![Descriptor {
                annotations: BTreeMap::from([("part".to_owned(), "tree".to_owned())]),
                ..Descriptor::of("application/vnd.example.part.v1", b"part")
            }],
            annotations: BTreeMap::from([
                ("b".to_owned(), "2".to_owned()),
                ("a".to_owned(), "1".to_owned()),
            ]),
        }
    }

    #[test]
    fn an_artifact_reads_back_and_has_one_digest() {
        let (entry, bytes) = artifact().encode();
        assert_eq!(artifact().encode(), (entry.clone(), bytes.clone()));
        let Ok(Manifest::Image(manifest)) = Manifest::parse(Some(media::OCI_MANIFEST), &bytes)
        else {
            panic!("not a manifest: {bytes:?}");
        };
        assert_eq!(manifest.layers, artifact().layers);
        assert_eq!(manifest.subject, Some(artifact().subject));
        assert_eq!(manifest.config.digest, Digest::of(EMPTY_CONFIG));
        assert_eq!(entry_for(Descriptor::of(media::OCI_MANIFEST, &bytes), &manifest), entry);
    }

    #[test]
    fn entries_are_added_once_and_names_move() {
        let (entry, _) = artifact().encode();
        let mut old: Value = serde_json::from_slice(&empty_list()).expect("JSON");
        old["x-unknown"] = json!({"kept": true});
        let once = add_entry(old.to_string().as_bytes(), &entry).expect("an index");
        let twice = add_entry(&once, &entry).expect("an index");
        assert_eq!(once, twice);
        assert_eq!(
            parse_list(None, &once).expect("an index").manifests,
            std::slice::from_ref(&entry)
        );
        assert!(String::from_utf8_lossy(&once).contains("x-unknown"));

        let named = |content: &[u8]| Descriptor {
            annotations: BTreeMap::from([(
                crate::oci::layout::REF_NAME.to_owned(),
                "v1".to_owned(),
            )]),
            ..Descriptor::of(media::OCI_MANIFEST, content)
        };
        let first = add_entry(&once, &named(b"1")).expect("an index");
        let second = add_entry(&first, &named(b"2")).expect("an index");
        let entries = parse_list(None, &second).expect("an index").manifests;
        assert_eq!(entries, [entry, named(b"2")]);
    }

    #[test]
    fn what_is_no_index_is_not_touched() {
        let (entry, manifest) = artifact().encode();
        assert!(add_entry(&manifest, &entry).is_err());
        assert!(add_entry(b"[]", &entry).is_err());
        assert!(add_entry(b"", &entry).is_err());
    }
}
