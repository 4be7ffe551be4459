//! The file system against a model, and through the kernel's own FUSE.

mod children;
mod lifecycle;
mod memory;
mod model;
mod support;
mod unprivileged;
mod waiting;
