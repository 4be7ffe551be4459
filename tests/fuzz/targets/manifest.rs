//! Documents of a registry, and references. The first byte chooses.
#![no_main]

use libfuzzer_sys::fuzz_target;
use peersync::oci::{ImageConfig, Manifest, Platform, Reference, chain_ids};

fuzz_target!(|data: &[u8]| {
    let Some((first, rest)) = data.split_first() else { return };
    match first % 3 {
        0 => match Manifest::parse(None, rest) {
            Ok(Manifest::Index(index)) => {
                let _ = index.choose(&Platform::new("linux", "arm64", Some("v8")));
            }
            Ok(image) => assert!(!image.media_type().is_empty()),
            Err(error) => assert!(error.to_string().len() < 1 << 12),
        },
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
