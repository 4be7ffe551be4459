//! The snapshotter under the real containerd and runc.
//!
//! A [`world::World`] is a containerd of its own with the snapshotter as its
//! plugin, an OCI layout of small images and a registry that counts. Who serves
//! the plugin is a [`plugin::Plugin`]: here the service in this process, with
//! layers unpacked by `tar` in place of lazy ones; the same scenarios can be
//! driven against the built daemon by another implementation.
//!
//! Needs root, containerd, runc and ctr; ctr-remote where it is there.

#[allow(dead_code, unused_imports, unused_macros)]
#[path = "../e2e/harness/mod.rs"]
mod harness;

mod api;
mod crash;
mod cri;
mod differential;
mod images;
mod ordinary;
mod parity;
mod plugin;
mod remote;
mod requests;
mod unpacked;
mod world;
