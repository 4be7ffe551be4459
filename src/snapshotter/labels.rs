//! The labels by which containerd says which layer it wants.
//!
//! Three dialects mean the same: those of containerd's CRI plugin and transfer
//! service (`containerd.io/snapshot/cri.*`, sent where
//! `disable_snapshot_annotations = false`), those of `ctr-remote images rpull`
//! (`containerd.io/snapshot/remote/stargz.*`), and what newer unpackers add on
//! top (`diff-id`, `parent-chain-id`). Labels that contradict each other or the
//! request are reported; the layer is an ordinary one then.

use super::meta::Labels;
use super::remote::{RemoteImage, RemoteLayer};
use crate::types::Digest;

/// The chain ID that the prepared snapshot will be committed as.
pub const SNAPSHOT_REF: &str = "containerd.io/snapshot.ref";
/// The layer's uncompressed digest (containerd 2.x).
pub const DIFF_ID: &str = "containerd.io/snapshot/diff-id";
/// The chain ID of the layers below (containerd 2.x).
pub const PARENT_CHAIN_ID: &str = "containerd.io/snapshot/parent-chain-id";

const CRI: Dialect = Dialect {
    reference: "containerd.io/snapshot/cri.image-ref",
    layer: "containerd.io/snapshot/cri.layer-digest",
    layers: "containerd.io/snapshot/cri.image-layers",
    manifest: Some("containerd.io/snapshot/cri.manifest-digest"),
};
const STARGZ: Dialect = Dialect {
    reference: "containerd.io/snapshot/remote/stargz.reference",
    layer: "containerd.io/snapshot/remote/stargz.digest",
    layers: "containerd.io/snapshot/remote/stargz.layers",
    manifest: None,
};

/// Most layers in a list; a label of 4096 bytes holds 57.
const LAYERS_MAX: usize = 128;

struct Dialect {
    reference: &'static str,
    layer: &'static str,
    layers: &'static str,
    manifest: Option<&'static str>,
}

/// Why labels that name a remote layer can't be believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    /// A label is not a digest.
    #[error("label {label}: {source}")]
    Digest {
        /// The label.
        label: &'static str,
        /// What is wrong with it.
        source: crate::types::DigestError,
    },
    /// One label is there and its companion is not.
    #[error("label {0} is missing")]
    Missing(&'static str),
    /// A label has a value that it can't have.
    #[error("label {0} is malformed")]
    Malformed(&'static str),
    /// Two labels, or a label and the request, contradict each other.
    #[error("label {label} contradicts {other}")]
    Contradiction {
        /// The label.
        label: &'static str,
        /// What it does not fit.
        other: &'static str,
    },
}

/// The layer that `labels` ask for on top of the chain `parent`.
///
/// `None` where they ask for nothing of the kind: no snapshot reference, or no
/// word on the image.
///
/// # Errors
/// The labels lie or are garbled.
pub fn remote_layer(
    labels: &Labels,
    parent: Option<Digest>,
) -> Result<Option<RemoteLayer>, LabelError> {
    let Some(chain_id) = digest(labels, SNAPSHOT_REF)? else { return Ok(None) };
    let cri = CRI.read(labels)?;
    let stargz = STARGZ.read(labels)?;
    if let (Some(cri), Some(stargz)) = (&cri, &stargz)
        && cri.0 != stargz.0
    {
        return Err(LabelError::Contradiction { label: CRI.layer, other: STARGZ.layer });
    }
    let Some((digest, image)) = cri.or(stargz) else { return Ok(None) };
    let diff_id = diff_id(labels, chain_id, parent)?;
    Ok(Some(RemoteLayer { image, digest, diff_id, chain_id, parent }))
}

/// The chain ID of `diff_id` on top of `parent` (OCI image specification).
pub fn chain_id(parent: Option<&Digest>, diff_id: &Digest) -> Digest {
    match parent {
        None => *diff_id,
        Some(parent) => Digest::of(format!("{parent} {diff_id}").as_bytes()),
    }
}

impl Dialect {
    fn read(&self, labels: &Labels) -> Result<Option<(Digest, RemoteImage)>, LabelError> {
        let reference = labels.get(self.reference);
        let layer = digest(labels, self.layer)?;
        let (reference, layer) = match (reference, layer) {
            (None, None) => return Ok(None),
            (None, Some(_)) => return Err(LabelError::Missing(self.reference)),
            (Some(_), None) => return Err(LabelError::Missing(self.layer)),
            (Some(reference), Some(layer)) => (reference, layer),
        };
        let odd = |c: char| c.is_whitespace() || c.is_control();
        if reference.is_empty() || reference.contains(odd) {
            return Err(LabelError::Malformed(self.reference));
        }
        let layers = digests(labels, self.layers)?;
        if !layers.is_empty() && !layers.contains(&layer) {
            return Err(LabelError::Contradiction { label: self.layer, other: self.layers });
        }
        let manifest = self.manifest.map(|label| digest(labels, label)).transpose()?.flatten();
        let layers = if layers.is_empty() { vec![layer] } else { layers };
        Ok(Some((layer, RemoteImage { reference: reference.clone(), manifest, layers })))
    }
}

/// The layer's uncompressed digest; checks that the chain follows from it.
fn diff_id(
    labels: &Labels,
    chain: Digest,
    parent: Option<Digest>,
) -> Result<Option<Digest>, LabelError> {
    if let Some(below) = digest(labels, PARENT_CHAIN_ID)?
        && parent != Some(below)
    {
        return Err(LabelError::Contradiction {
            label: PARENT_CHAIN_ID,
            other: "the parent of the request",
        });
    }
    match digest(labels, DIFF_ID)? {
        Some(diff_id) if chain_id(parent.as_ref(), &diff_id) != chain => {
            Err(LabelError::Contradiction { label: DIFF_ID, other: SNAPSHOT_REF })
        }
        Some(diff_id) => Ok(Some(diff_id)),
        None => Ok(parent.is_none().then_some(chain)),
    }
}

fn digest(labels: &Labels, label: &'static str) -> Result<Option<Digest>, LabelError> {
    labels
        .get(label)
        .map(|text| text.parse().map_err(|source| LabelError::Digest { label, source }))
        .transpose()
}

fn digests(labels: &Labels, label: &'static str) -> Result<Vec<Digest>, LabelError> {
    let Some(list) = labels.get(label).filter(|list| !list.is_empty()) else {
        return Ok(Vec::new());
    };
    if list.split(',').count() > LAYERS_MAX {
        return Err(LabelError::Malformed(label));
    }
    list.split(',')
        .map(|text| text.parse().map_err(|source| LabelError::Digest { label, source }))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn d(n: u8) -> Digest {
        Digest::of(&[n])
    }

    fn labels(pairs: &[(&str, String)]) -> Labels {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect()
    }

    fn cri() -> Labels {
        labels(&[
            (SNAPSHOT_REF, chain_id(Some(&d(1)), &d(2)).to_string()),
            (CRI.reference, "docker.io/library/alpine:3.20".into()),
            (CRI.layer, d(12).to_string()),
            (CRI.layers, format!("{},{}", d(12), d(13))),
            ("containerd.io/snapshot/cri.manifest-digest", d(9).to_string()),
        ])
    }

    #[test]
    fn reads_what_the_cri_plugin_sends() {
        let layer = remote_layer(&cri(), Some(d(1))).unwrap().unwrap();
        assert_eq!(layer.image.reference, "docker.io/library/alpine:3.20");
        assert_eq!(layer.image.manifest, Some(d(9)));
        assert_eq!(layer.image.layers, [d(12), d(13)]);
        assert_eq!((layer.digest, layer.parent, layer.diff_id), (d(12), Some(d(1)), None));
    }

    #[test]
    fn newer_labels_are_checked_against_the_chain() {
        let mut newer = cri();
        newer.insert(DIFF_ID.into(), d(2).to_string());
        newer.insert(PARENT_CHAIN_ID.into(), d(1).to_string());
        let layer = remote_layer(&newer, Some(d(1))).unwrap().unwrap();
        assert_eq!(layer.diff_id, Some(d(2)));

        assert!(remote_layer(&newer, None).is_err());
        assert!(remote_layer(&newer, Some(d(7))).is_err());
        newer.insert(DIFF_ID.into(), d(3).to_string());
        let error = remote_layer(&newer, Some(d(1))).unwrap_err();
        assert_eq!(error, LabelError::Contradiction { label: DIFF_ID, other: SNAPSHOT_REF });
    }

    #[test]
    fn reads_what_ctr_remote_sends() {
        let stargz = labels(&[
            (SNAPSHOT_REF, d(2).to_string()),
            (STARGZ.reference, "127.0.0.1:5000/a:latest".into()),
            (STARGZ.layer, d(12).to_string()),
            (STARGZ.layers, d(12).to_string()),
            ("containerd.io/snapshot/remote/stargz.prefetch", "0".into()),
            ("containerd.io/snapshot/remote/urls", String::new()),
        ]);
        let layer = remote_layer(&stargz, None).unwrap().unwrap();
        assert_eq!(layer.image.reference, "127.0.0.1:5000/a:latest");
        assert_eq!(layer.diff_id, Some(d(2)), "the first layer's chain is its diff id");
        assert_eq!((layer.image.manifest, layer.parent), (None, None));
    }

    #[test]
    fn labels_without_an_image_ask_for_nothing() {
        assert_eq!(remote_layer(&Labels::new(), None), Ok(None));
        let only_ref = labels(&[(SNAPSHOT_REF, d(2).to_string())]);
        assert_eq!(remote_layer(&only_ref, None), Ok(None));
        let mut no_ref = cri();
        no_ref.remove(SNAPSHOT_REF);
        assert_eq!(remote_layer(&no_ref, None), Ok(None));
    }

    #[test]
    fn labels_that_lie_or_are_garbled_are_errors() {
        let with = |label: &str, value: &str| {
            let mut all = cri();
            all.insert(label.to_owned(), value.to_owned());
            remote_layer(&all, Some(d(1)))
        };
        for (label, value) in [
            (SNAPSHOT_REF, "latest"),
            (SNAPSHOT_REF, "sha512:00"),
            (CRI.layer, ""),
            (CRI.layer, "sha256:00"),
            (CRI.layers, ","),
            (CRI.layers, "sha256:zz"),
            (CRI.reference, ""),
            (CRI.reference, "a b"),
            (CRI.reference, "a\nb"),
            ("containerd.io/snapshot/cri.manifest-digest", "nonsense"),
            (CRI.layers, &d(13).to_string()),
            (CRI.layers, &vec![d(12).to_string(); LAYERS_MAX + 1].join(",")),
            (STARGZ.layer, &d(12).to_string()),
        ] {
            assert!(with(label, value).is_err(), "{label} = {value:?}");
        }
        for missing in [CRI.reference, CRI.layer] {
            let mut all = cri();
            all.remove(missing);
            assert_eq!(remote_layer(&all, Some(d(1))), Err(LabelError::Missing(missing)));
        }
        let mut both = cri();
        both.insert(STARGZ.reference.into(), "x".into());
        both.insert(STARGZ.layer.into(), d(13).to_string());
        assert!(remote_layer(&both, Some(d(1))).is_err());
    }
}
