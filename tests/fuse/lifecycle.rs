//! Mounts that come and go.
pub fn cycles() {}
