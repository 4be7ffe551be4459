//! Images in registries and OCI layouts.

mod reference;

pub use reference::{DEFAULT_DOMAIN, DEFAULT_TAG, Reference, ReferenceError};
