//! The snapshotter under the real containerd and runc.
//!
//! A [`world::World`] is a containerd of its own with the snapshotter as its
//! plugin, an OCI layout of small images and a registry that counts. Who serves
//! the plugin is a [`plugin::Plugin`]: the built daemon with its store and FUSE
//! mount ([`node::Node`]), or, where a scenario needs a say in what is available,
//! the service in this process with layers unpacked by `tar` in place of lazy ones.
//!
//! Needs root, containerd, runc and ctr; ctr-remote where it is there.

#[allow(dead_code, unused_imports, unused_macros)]
#[path = "../e2e/harness/mod.rs"]
mod harness;

mod api;
mod cases;
mod crash;
mod cri;
mod differential;
mod images;
mod lazy;
mod logins;
mod node;
mod ordinary;
mod parity;
mod plugin;
mod power;
mod remote;
mod requests;
mod setup;
mod start;
mod unpacked;
mod world;
