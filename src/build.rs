//! Generates the stubs of containerd's snapshot service from `snapshotter/proto`.
//!
//! Only a node needs them: without the `node` feature this does nothing, so the
//! checker builds from the format modules alone. The proto files are compiled by
//! protox, which is Rust; no `protoc` binary has to be there.

fn main() {
    println!("cargo::rerun-if-changed=src/build.rs");
    #[cfg(feature = "node")]
    snapshots();
}

#[cfg(feature = "node")]
fn snapshots() {
    const ROOT: &str = "src/snapshotter/proto";
    println!("cargo::rerun-if-changed={ROOT}");
    let files = protox::compile(["snapshots.proto"], [ROOT])
        .unwrap_or_else(|error| panic!("{ROOT}: {error}"));
    tonic_prost_build::configure()
        .build_transport(false)
        // Maps that are iterated in key order: what is stored and listed does
        // not depend on a hash seed.
        .btree_map(".")
        .compile_fds(files)
        .unwrap_or_else(|error| panic!("{ROOT}: {error}"));
}
