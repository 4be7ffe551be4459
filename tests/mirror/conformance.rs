//! The official conformance suite of the OCI distribution specification, as far as
//! it is about registries that are only read from.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::harness::{needs_mounts, output};
use crate::node::{Node, World};

#[test]
fn the_official_suite_passes() {
    needs_mounts!();
    let suite = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/lab/bin/conformance");
    if !suite.exists() {
        eprintln!("skipped: tests/run builds the suite where there is Go");
        return;
    }
    let world = World::new(1 << 20);
    let registry = world.registry.as_ref().expect("there");
    for tag in ["v2", "v3"] {
        registry.push(&world.layout.dir, "v1", &format!("test/image:{tag}"));
    }
    let node = Node::start(&world.upstream());
    // Something that refers to the image.
    let image = format!("{}/test/image:v1", world.upstream());
    for what in ["build", "push"] {
        node.peersync.run(&["index", what, &image]);
    }
    let results = world.path("results");
    let mut command = Command::new(suite);
    command.current_dir(world.place.path()).env("OCI_RESULTS_DIR", &results);
    for (name, value) in [
        ("REGISTRY", node.mirror.to_string().as_str()),
        ("TLS", "disabled"),
        ("REPO1", "test/image"),
        ("VERSION", "1.1"),
        ("API_PUSH", "false"),
        ("API_BLOBS_DELETE", "false"),
        ("API_MANIFESTS_DELETE", "false"),
        ("API_TAGS_DELETE", "false"),
        // Of manifests it does not look at the header where it has not pushed them
        // itself; `protocol` does.
        ("API_BLOBS_DIGEST_HEADER", "true"),
        // A digest that can't be checked is not served.
        ("DATA_SHA512", "false"),
        ("RO_DATA_TAGS", "v1 v2 v3"),
        ("RO_DATA_MANIFESTS", &world.manifest),
        ("RO_DATA_BLOBS", &world.layers.join(" ")),
        ("RO_DATA_REFERRERS", &world.manifest),
    ] {
        command.env(format!("OCI_{name}"), value);
    }
    let said = output(&mut command);
    let report = String::from_utf8_lossy(&said.stdout).into_owned();
    let details = fs::read_to_string(results.join("results.yaml")).unwrap_or_default();
    eprintln!("{report}");
    assert!(said.status.success(), "{report}\n{details}");
}
