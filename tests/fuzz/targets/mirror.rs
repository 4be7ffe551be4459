//! What a client of the mirror may ask for: method, target and `Range`, a line each.
//!
//! The modules are the mirror's own files; the node around them is not built.
#![no_main]
#![allow(dead_code)]

use libfuzzer_sys::fuzz_target;

mod types {
    pub(crate) use peersync::types::{Digest, DigestError};
}
mod oci {
    pub(crate) use crate::reference::Reference;
}
#[path = "../../../src/mirror/range.rs"]
mod range;
#[path = "../../../src/oci/reference.rs"]
mod reference;
#[path = "../../../src/mirror/request.rs"]
mod request;

use range::{Part, part};
use request::{Question, Rules, What, parse};

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut lines = text.splitn(3, '\n');
    let mut line = || lines.next().unwrap_or_default();
    let (method, target, range) = (line(), line(), line());
    let registries = vec!["quay.io".to_owned(), "127.0.0.1:5000".to_owned()];
    let rules = Rules { upstream: "docker.io".to_owned(), registries };
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    };
    if let Ok(Question::Of(repository, what)) = parse(method, path, query, &rules) {
        // Only configured registries, and a name that reads back as it is.
        let reference = &repository.reference;
        let known = ["docker.io", "quay.io", "127.0.0.1:5000"];
        assert!(known.contains(&reference.domain()));
        assert_eq!(repository.name().parse().as_ref(), Ok(reference));
        assert!(reference.tag().is_none() && reference.digest().is_none());
        assert!(!reference.path().split('/').any(|part| matches!(part, "" | "." | "..")));
        if let What::Tag(tag) = &what {
            let again = format!("{}:{tag}", repository.name()).parse::<oci::Reference>();
            assert_eq!(again.expect("a reference").tag(), Some(tag.as_str()));
        }
    }
    let length = data.len() as u64 * 997;
    if let Part::Bytes(range) = part(Some(range), length) {
        assert!(range.start < range.end && range.end <= length);
    }
});
