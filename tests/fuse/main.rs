//! The file system against a model, and through the kernel's own FUSE.

#![allow(unreachable_pub, reason = "nothing here is a library")]

mod children;
mod lifecycle;
#[expect(dead_code, reason = "the benchmark uses the rest")]
mod memory;
mod model;
mod overlay;
mod passthrough;
mod support;
mod tree;
mod unprivileged;
mod waiting;
