//! The mount of an ordinary user.
use std::path::Path;
pub fn as_user(_: &Path) {}
