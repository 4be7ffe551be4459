//! The file system against a model, and through the kernel's own FUSE.

mod memory;
mod model;
