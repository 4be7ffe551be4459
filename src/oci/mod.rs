//! Images in registries and OCI layouts.
