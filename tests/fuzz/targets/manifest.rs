//! Documents of a registry, and references. The first byte chooses.
//!
//! The modules are the node's own files; the node around them is not built.
#![no_main]
#![allow(dead_code)]

use libfuzzer_sys::fuzz_target;

mod types {
    pub(crate) use peersync::types::{Digest, DigestError, DigestHasher};
}
#[path = "../../../src/oci/document.rs"]
mod document;
#[path = "../../../src/oci/layers.rs"]
mod layers;
#[path = "../../../src/oci/media.rs"]
mod media;
#[path = "../../../src/oci/platform.rs"]
mod platform;
#[path = "../../../src/oci/reference.rs"]
mod reference;

use document::{ImageConfig, Manifest};
use layers::{chain_ids, layers};
use platform::Platform;
use reference::Reference;

fuzz_target!(|data: &[u8]| {
    let Some((first, rest)) = data.split_first() else { return };
    match first % 3 {
        0 => manifest(rest),
        1 => {
            if let Ok(config) = ImageConfig::parse(rest) {
                assert_eq!(chain_ids(&config.diff_ids).len(), config.diff_ids.len());
            }
        }
        _ => {
            let Ok(text) = std::str::from_utf8(rest) else { return };
            if let Ok(reference) = text.parse::<Reference>() {
                assert_eq!(reference.to_string().parse(), Ok(reference));
            }
        }
    }
});

/// What can be shown has names that stay where they belong.
fn manifest(bytes: &[u8]) {
    match Manifest::parse(None, bytes) {
        Ok(Manifest::Index(index)) => {
            let _ = index.choose(&Platform::new("linux", "arm64", Some("v8")));
        }
        Ok(Manifest::Image(manifest)) => {
            let Ok((_, layers)) = layers(&manifest, None) else { return };
            assert!(layers.len() <= manifest.layers.len());
            for path in layers.iter().filter_map(|layer| layer.path.as_deref()) {
                assert!(!path.split('/').any(|part| matches!(part, "" | "." | "..")));
            }
        }
        Err(error) => assert!(error.to_string().len() < 1 << 12),
    }
}
