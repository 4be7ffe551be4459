//! The pull side of the OCI distribution specification.

use serde_json::Value;

use crate::harness::layout::digest;
use crate::harness::needs_mounts;
use crate::http::{Connection, get, head};
use crate::node::{Node, World, blob};

#[test]
fn what_clients_of_the_specification_expect() {
    needs_mounts!();
    let world = World::new(2 << 20);
    let node = Node::start(&world.upstream());
    let at = node.mirror;

    let base = get(at, "/v2/", &[]);
    assert_eq!((base.status(), &base.body[..]), (200, &b"{}"[..]));
    assert_eq!(base.head.header("docker-distribution-api-version"), "registry/2.0");

    // A manifest by tag and by digest, with its head alone, and by condition.
    let tagged = get(at, "/v2/test/image/manifests/v1", &[("Accept", "*/*")]);
    assert_eq!(tagged.status(), 200);
    assert_eq!(digest(&tagged.body), world.manifest);
    assert_eq!(tagged.head.header("docker-content-digest"), world.manifest);
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    assert_eq!(tagged.head.header("content-type"), media_type);
    let by_digest = format!("/v2/test/image/manifests/{}", world.manifest);
    assert_eq!(get(at, &by_digest, &[]).body, tagged.body);
    for target in ["/v2/test/image/manifests/v1", &by_digest] {
        let head = head(at, target);
        assert_eq!((head.status, head.length()), (200, tagged.body.len()));
        assert_eq!(head.header("docker-content-digest"), world.manifest);
    }
    let tag = tagged.head.header("etag").to_owned();
    let unchanged = get(at, "/v2/test/image/manifests/v1", &[("If-None-Match", &tag)]);
    assert_eq!((unchanged.status(), unchanged.body.len()), (304, 0));

    // Blobs: the head of one that is not here yet, the whole, and again.
    let layer = &world.layers[1];
    let bytes = world.blob(layer);
    let before = node.stored();
    let there = head(at, &blob(layer));
    assert_eq!((there.status, there.length()), (200, bytes.len()));
    assert!(node.stored() < before + (1 << 20), "asking for a head fetches nothing");
    for _ in 0..2 {
        let whole = get(at, &blob(layer), &[]);
        assert_eq!((whole.status(), whole.body == bytes), (200, true));
        assert_eq!(whole.head.header("docker-content-digest"), layer);
        assert_eq!(whole.head.header("accept-ranges"), "bytes");
    }
    // With the colon as some clients write it, and in the form with a prefix.
    let encoded = blob(&layer.replace(':', "%3A"));
    assert_eq!(get(at, &encoded, &[]).body, bytes);
    let prefixed = format!("/v2/{}/test/image/blobs/{layer}", world.upstream());
    assert_eq!(get(at, &prefixed, &[]).body, bytes);
    let named = format!("{}?ns={}", blob(layer), world.upstream());
    assert_eq!(get(at, &named, &[]).body, bytes);

    let list = |target: &str| -> Value {
        let reply = get(at, target, &[]);
        assert_eq!(reply.status(), 200, "{target}");
        serde_json::from_slice(&reply.body).expect("JSON")
    };
    let tags = list("/v2/test/image/tags/list");
    assert_eq!(tags["tags"], serde_json::json!(["v1"]));
    let referrers = list(&format!("/v2/test/image/referrers/{}", world.manifest));
    assert_eq!(referrers["mediaType"], "application/vnd.oci.image.index.v1+json");
    assert_eq!(referrers["manifests"], serde_json::json!([]));
    let held = list("/v2/_catalog");
    let name = format!("{}/test/image", world.upstream());
    assert_eq!(held["repositories"], serde_json::json!([name]));
}

#[test]
fn what_is_not_there_or_not_allowed_is_said_as_the_specification_has_it() {
    needs_mounts!();
    let world = World::new(1 << 20);
    let node = Node::start(&world.upstream());
    let none = digest(b"nobody has this");
    let cases: &[(&str, &str, u16, &str)] = &[
        ("GET", "/v2/test/image/manifests/v2", 404, "MANIFEST_UNKNOWN"),
        ("GET", "/v2/test/none/manifests/v1", 404, "MANIFEST_UNKNOWN"),
        ("GET", &format!("/v2/test/image/manifests/{none}"), 404, "MANIFEST_UNKNOWN"),
        ("GET", &blob(&none), 404, "BLOB_UNKNOWN"),
        ("GET", "/v2/test/none/tags/list", 404, "NAME_UNKNOWN"),
        ("GET", "/v2/Test/manifests/v1", 400, "NAME_INVALID"),
        ("GET", "/v2/a/%2e%2e/%2e%2e/manifests/v1", 400, "NAME_INVALID"),
        ("GET", "/v2/a/../../etc/passwd/manifests/v1", 400, "NAME_INVALID"),
        ("GET", &blob("sha256:00"), 400, "DIGEST_INVALID"),
        ("GET", &blob("sha512:00"), 400, "DIGEST_INVALID"),
        ("GET", "/v2/test/image/manifests/v1?ns=169.254.169.254", 403, "DENIED"),
        ("GET", "/v2/test/image/manifests/v1?ns=evil.example", 403, "DENIED"),
        ("GET", "/v1/", 404, "UNSUPPORTED"),
        ("POST", "/v2/test/image/blobs/uploads/", 405, "UNSUPPORTED"),
        ("PUT", "/v2/test/image/manifests/v1", 405, "UNSUPPORTED"),
        ("DELETE", "/v2/test/image/manifests/v1", 405, "UNSUPPORTED"),
        // An absolute target is not a proxy's.
        ("GET", "http://evil.example/v2/test/image/manifests/v2", 404, "MANIFEST_UNKNOWN"),
    ];
    for (method, target, status, code) in cases {
        let mut connection = Connection::open(node.mirror);
        let head = connection.ask(method, target, &[("Content-Length", "0")]);
        let reply = crate::http::Reply { body: connection.read(head.length()), head };
        assert_eq!((reply.status(), reply.error().as_str()), (*status, *code), "{method} {target}");
        assert!(reply.head.header("content-type").starts_with("application/json"));
    }
    // What a repository does not have is not served out of it, though it is here.
    assert_eq!(get(node.mirror, &blob(&world.layers[0]), &[]).status(), 200);
    let other = format!("/v2/other/image/blobs/{}", world.layers[0]);
    assert_eq!(get(node.mirror, &other, &[]).status(), 404);
}

#[test]
fn a_blob_without_bytes_is_one() {
    needs_mounts!();
    let mut world = World::new(1);
    world.layout.artifact("empty", &[("nothing", &b""[..]), ("something", &b"x"[..])]);
    let registry = world.registry.as_ref().expect("there");
    registry.push(&world.layout.dir, "empty", "test/image:empty");
    let node = Node::start(&world.upstream());
    let empty = blob(&digest(b""));
    // Asked for before its manifest, and when it is here.
    for _ in 0..2 {
        let head = head(node.mirror, &empty);
        assert_eq!((head.status, head.length()), (200, 0));
        let reply = get(node.mirror, &empty, &[]);
        assert_eq!((reply.status(), reply.body.len()), (200, 0));
        let none = get(node.mirror, &empty, &[("Range", "bytes=0-")]);
        assert_eq!((none.status(), none.head.header("content-range")), (416, "bytes */0"));
    }
    assert_eq!(get(node.mirror, &blob(&digest(b"x")), &[]).body, b"x");
}

#[test]
fn ranges_in_every_form() {
    needs_mounts!();
    let world = World::new(2 << 20);
    let node = Node::start(&world.upstream());
    let check = |layer: &str, uncached: bool| {
        let bytes = world.blob(layer);
        let size = bytes.len();
        let part =
            |from: usize, to: usize| (206, format!("bytes {from}-{}/{size}", to - 1), from..to);
        let (whole, none) = ((200, String::new(), 0..size), (416, format!("bytes */{size}"), 0..0));
        let cases = [
            ("bytes=-100", part(size - 100, size)),
            ("bytes=0-100", part(0, 101)),
            ("bytes=100-", part(100, size)),
            ("bytes=100-500", part(100, 501)),
            ("bytes=0-0", part(0, 1)),
            ("bytes=0-", part(0, size)),
            ("bytes=-99999999999", part(0, size)),
            ("bytes=100-99999999999", part(100, size)),
            ("bytes=262100-262200", part(262_100, 262_201)),
            ("bytes=99999999999-", none.clone()),
            ("bytes=-0", none),
            ("bytes=0-1,5-9", whole.clone()),
            ("bytes=9-5", whole.clone()),
            ("items=0-5", whole),
        ];
        for (n, (range, (status, said, expected))) in cases.into_iter().enumerate() {
            let reply = get(node.mirror, &blob(layer), &[("Range", range)]);
            assert_eq!(reply.status(), status, "{range}");
            assert!(reply.body == bytes[expected], "{range}, uncached: {}", uncached && n == 0);
            let given = reply.head.headers.get("content-range").cloned().unwrap_or_default();
            assert_eq!(given, said, "{range}");
        }
    };
    // The first of each is answered while the blob comes.
    check(&world.layers[0], true);
    check(&world.layers[1], true);
    check(&world.layers[1], false);

    // Resumed downloads: what the condition names has to be this blob.
    let layer = &world.layers[1];
    let bytes = world.blob(layer);
    let etag = format!("\"{layer}\"");
    let resumed = get(node.mirror, &blob(layer), &[("Range", "bytes=1000-"), ("If-Range", &etag)]);
    assert_eq!((resumed.status(), resumed.body == bytes[1000..]), (206, true));
    let other = [("Range", "bytes=1000-"), ("If-Range", "\"another\"")];
    assert_eq!(get(node.mirror, &blob(layer), &other).status(), 200);
}
