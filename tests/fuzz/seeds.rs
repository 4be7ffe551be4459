//! Writes the seeds of the corpus: `cargo run --example seeds` in this directory.

use std::io::Write;
use std::path::Path;

use bytes::Bytes;
use peersync::layer::build::{LayerBuilder, NullSink};
use peersync::layer::root::{LayerRoot, PartRef, RootBody};
use peersync::layer::seek::{Entry, SeekPoint, SeekTableBuilder};
use peersync::layer::skeleton::SkeletonWriter;
use peersync::layer::tree::TreeLimits;
use peersync::types::{BlockHash, Digest, ObjectId, PeerId};
use peersync::wire::{
    Challenge, Class, Control, Encoding, End, Extent, Features, HEADER, Have, HaveBody, Head,
    Hello, Holder, Holding, Home, Keep, LayerNews, Limits, Message, Refusal, Reply, Request,
    SignedClaim, Stage, Zone,
};

fn main() {
    let archives = archives();
    for (name, bytes) in &archives {
        write("tar", name, &[&[40][..], bytes].concat());
    }
    let text: Vec<u8> = (0..2000u32).flat_map(|n| (n * n / 7).to_string().into_bytes()).collect();
    for (name, blob) in gzips(&text) {
        write("gzip", name, &[&[99][..], &blob].concat());
    }
    for (name, blob) in zstds(&text) {
        write("zstd", name, &[&[99][..], &blob].concat());
    }
    for (name, first, text) in DOCUMENTS {
        write("manifest", name, &[&[first][..], text.as_bytes()].concat());
    }
    for (name, text) in REQUESTS {
        write("mirror", name, text.as_bytes());
    }
    messages();
    parts(&archives[0].1);
    spans(&text);
}

/// Name; method, target and range of a request.
const REQUESTS: [(&str, &str); 6] = [
    ("base", "GET\n/v2/\n"),
    ("tag", "HEAD\n/v2/library/alpine/manifests/3.20?ns=docker.io\n"),
    ("prefix", "GET\n/v2/127.0.0.1:5000/a/b/manifests/v1\n"),
    (
        "blob",
        "GET\n/v2/quay.io/a/blobs/sha256%3A4bf4736b62a17d4cf13fdc92c38962f8a2a1a193f7fb65c6a15ee945b38ccc59\nbytes=100-500",
    ),
    ("tags", "GET\n/v2/a/tags/list?n=10&last=v1\nbytes=-100"),
    (
        "referrers",
        "GET\n/v2/a/referrers/sha256:4bf4736b62a17d4cf13fdc92c38962f8a2a1a193f7fb65c6a15ee945b38ccc59?artifactType=a%2Fb\nbytes=0-",
    ),
];

/// Name, what it is parsed as, text.
const DOCUMENTS: [(&str, u8, &str); 4] = [
    (
        "image",
        0,
        r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:3d57e7d0a90dfd4d28fe71eb03c6bc00af0a90279b5fd586c604ddaa8ffe4c2c","size":134},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"sha256:4bf4736b62a17d4cf13fdc92c38962f8a2a1a193f7fb65c6a15ee945b38ccc59","size":63375846,"annotations":{"org.opencontainers.image.title":"model.safetensors"}}]}"#,
    ),
    (
        "index",
        0,
        r#"{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:3d57e7d0a90dfd4d28fe71eb03c6bc00af0a90279b5fd586c604ddaa8ffe4c2c","size":670,"platform":{"architecture":"arm64","os":"linux","variant":"v8"}},{"mediaType":"application/vnd.docker.distribution.manifest.v2+json","digest":"sha256:4bf4736b62a17d4cf13fdc92c38962f8a2a1a193f7fb65c6a15ee945b38ccc59","size":1}]}"#,
    ),
    (
        "config",
        1,
        r#"{"architecture":"amd64","os":"linux","config":{},"rootfs":{"type":"layers","diff_ids":["sha256:4bf4736b62a17d4cf13fdc92c38962f8a2a1a193f7fb65c6a15ee945b38ccc59"]},"history":[{"empty_layer":true}]}"#,
    ),
    (
        "reference",
        2,
        "registry.example:5000/a/b_c:v1.0@sha256:4bf4736b62a17d4cf13fdc92c38962f8a2a1a193f7fb65c6a15ee945b38ccc59",
    ),
];

fn write(target: &str, name: &str, bytes: &[u8]) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    std::fs::create_dir_all(&dir).expect("a writable corpus");
    std::fs::write(dir.join(name), bytes).expect("a writable corpus");
}

/// One message of each kind that has something in it, and all of them as a stream.
fn messages() {
    let object = ObjectId::from_bytes([1; 32]);
    let blob = Digest::of(b"blob");
    let home = Home::Layer(blob);
    let hello = Message::Hello(Hello {
        features: Features::ALL,
        proofs: vec![[5; 32], [6; 32]],
        zone: Zone { country: "de".into(), ..Zone::default() },
        port: 7400,
        limits: Limits { requests: 256, bytes: 1 << 26 },
        agent: "peersync/0.1.0".into(),
    });
    let some = Holding::Add([3..9, 20..21].into_iter().collect());
    let objects = vec![(object, Holding::All), (object, some)];
    let body = HaveBody { root: true, last: true, objects };
    let extents = [
        Extent::Blocks { object, first: 4, count: 8 },
        Extent::Part { object, index: 1, offset: 5, len: 100 },
        Extent::Items { blob, first: 0, count: 16 },
        Extent::Roots { blob },
        Extent::Spec { object },
        Extent::Document { digest: blob },
        Extent::Image { name: BlockHash::of(b"alpine") },
    ];
    let request = |(id, extent)| {
        Message::Request(Request { id, class: Class::Urgent, zstd: true, extent })
    };
    let head = Head { request: 1, index: 4, len: 9000, encoding: Encoding::Zstd(5000), place: None };
    let mut all = vec![
        hello.clone(),
        Message::Subscribe { home, on: true, since: Some((1, 2)) },
        Message::Have(Have { home, epoch: 1, from: Some(2), to: 3, body }),
        Message::Wants { home, on: true },
        Message::Getting { object, blocks: [1..4].into_iter().collect(), on: true },
        Message::Ask { object, index: 7 },
        Message::Layers { full: true, number: 0, layers: vec![LayerNews::nothing(blob)] },
        Message::Passed { blob, stage: Stage::Leads, pieces: 1..9 },
        Message::Head(head),
        Message::NotHave { request: 1, first: 3, count: 2 },
        Message::Busy { request: 1, retry_ms: 50 },
        Message::End { request: 1, end: End::Done },
        Message::Close(Refusal::Shutdown),
    ];
    all.extend((1..).zip(extents).map(request));
    all.extend(about_trackers(blob).map(Message::Control));
    all.extend(about_copies(object).map(Message::Keep));
    let mut stream = vec![0];
    for (n, message) in all.iter().enumerate() {
        let frame = message.to_frame();
        write("wire", &format!("{n:02}"), &[&[message.kind() as u8][..], &frame[HEADER..]].concat());
        stream.extend(frame);
    }
    write("wire", "stream", &stream);
    write("handshake", "stranger", &[&[0][..], &hello.to_frame()].concat());
    write("handshake", "member", &[&[1][..], &hello.to_frame()].concat());
}

fn about_copies(object: ObjectId) -> [Keep; 6] {
    let (nonce, signature) = ([7; 32], [8; 64]);
    let objects = vec![object, ObjectId::from_bytes([2; 32])];
    let answers = vec![Reply::Promised([9; 32]), Reply::NotHere, Reply::Unwilling];
    [
        Keep::WhoHolds { id: 1, objects: objects.clone() },
        Keep::Holds { id: 1, capacity: 1 << 30, whole: vec![true, false] },
        Keep::AskPromises { nonce, capacity: 1 << 30, asks: vec![Challenge { object, block: 3 }] },
        Keep::Promises { nonce, seconds: 60, answers, signature },
        Keep::Withdrawn { all: false, objects: objects.clone() },
        Keep::Gone { objects },
    ]
}

fn about_trackers(blob: Digest) -> [Control; 9] {
    let peer = PeerId([9; 32]);
    let address = std::net::SocketAddr::from(([10, 1, 0, 2], 7400));
    let claim = SignedClaim {
        tracker: peer,
        score: 700,
        sequence: 1 << 50,
        settled: true,
        signature: [3; 64],
        age_ms: 12,
        abroad: false,
        address: Some(address),
    };
    let holders = vec![vec![Holder { peer, address, whole: true }], Vec::new()];
    [
        Control::Claim(claim),
        Control::Prune,
        Control::Graft { known: Some((peer, 7)) },
        Control::WhoHas { id: 1, layers: vec![blob] },
        Control::Holders { id: 1, layers: holders },
        Control::Images { full: true, number: 0, images: vec![(1, Some(vec![2, 3])), (4, None)] },
        Control::Again,
        Control::WhoElse,
        Control::Others { nodes: vec![(peer, address)] },
    ]
}

fn archives() -> Vec<(&'static str, Vec<u8>)> {
    let mut kinds = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    let mut add = |path: &str, kind, link: Option<&str>, data: &[u8]| {
        header.set_entry_type(kind);
        header.set_size(data.len() as u64);
        header.set_mode(0o4755);
        header.set_device_major(1).expect("a GNU header");
        header.set_device_minor(3).expect("a GNU header");
        let done = match link {
            Some(target) => kinds.append_link(&mut header, path, target),
            None => kinds.append_data(&mut header, path, data),
        };
        done.expect("in memory");
    };
    add("d", tar::EntryType::Directory, None, b"");
    add("d/f", tar::EntryType::Regular, None, b"content");
    add("d/h", tar::EntryType::Link, Some("d/f"), b"");
    add("l", tar::EntryType::Symlink, Some("d"), b"");
    add("l/x", tar::EntryType::Regular, None, b"through a link");
    add("c", tar::EntryType::Char, None, b"");
    add("p", tar::EntryType::Fifo, None, b"");
    add("d/.wh.gone", tar::EntryType::Regular, None, b"");
    add("d/.wh..wh..opq", tar::EntryType::Regular, None, b"");
    add(&"long/".repeat(40), tar::EntryType::Directory, None, b"");
    add("d", tar::EntryType::Regular, None, b"replaces");
    let kinds = kinds.into_inner().expect("in memory");

    let mut pax = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(3);
    header.set_mode(0o644);
    let records: [(&str, &[u8]); 6] = [
        ("mtime", b"-1.5"),
        ("uid", b"4000000000"),
        ("SCHILY.xattr.user.a", b"v"),
        ("LIBARCHIVE.xattr.user.%62", b"Zm9v"),
        ("SCHILY.acl.access", b"user::rwx,user:1:r--,group::r-x,mask::r-x,other::---"),
        ("path", "\u{e4}".as_bytes()),
    ];
    pax.append_pax_extensions(records).expect("in memory");
    pax.append_data(&mut header, "a", &b"abc"[..]).expect("in memory");
    for version in [("1", "0"), ("0", "1")] {
        let records: [(&str, &[u8]); 4] = [
            ("GNU.sparse.major", version.0.as_bytes()),
            ("GNU.sparse.minor", version.1.as_bytes()),
            ("GNU.sparse.map", b"5,3"),
            ("GNU.sparse.realsize", b"1099511627776"),
        ];
        pax.append_pax_extensions(records).expect("in memory");
        let mut data = b"1\n5\n3\n".to_vec();
        data.resize(512, 0);
        data.extend(b"abc");
        let data = if version.0 == "1" { &data[..] } else { b"abc" };
        header.set_size(data.len() as u64);
        pax.append_data(&mut header, "s", data).expect("in memory");
    }
    let mut sparse = pax.into_inner().expect("in memory");
    sparse.truncate(sparse.len() - 1024);
    let mut old = tar::Header::new_gnu();
    old.set_path("o").expect("short");
    old.set_entry_type(tar::EntryType::GNUSparse);
    old.set_size(3);
    old.set_mode(0o644);
    let raw = old.as_mut_bytes();
    raw[386..398].copy_from_slice(b"00000001000\0");
    raw[398..410].copy_from_slice(b"00000000003\0");
    raw[483..495].copy_from_slice(b"00000100000\0");
    old.set_cksum();
    sparse.extend_from_slice(old.as_bytes());
    sparse.extend(b"abc");
    sparse.resize(sparse.len().next_multiple_of(512) + 1024, 0);
    vec![("kinds", kinds), ("pax", sparse)]
}

fn gzip(data: &[u8], level: u32) -> Vec<u8> {
    let mut encoder = flate2::GzBuilder::new()
        .filename("name")
        .comment("comment")
        .extra([1, 2, 3])
        .write(Vec::new(), flate2::Compression::new(level));
    encoder.write_all(data).expect("in memory");
    encoder.finish().expect("in memory")
}

fn gzips(text: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let members = text.chunks(3000).flat_map(|part| gzip(part, 6)).collect();
    vec![
        ("one", gzip(text, 9)),
        ("stored", gzip(&text[..300], 0)),
        ("members", members),
        ("padded", [gzip(&text[..100], 6), vec![0; 9]].concat()),
    ]
}

fn zstds(text: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let one = |data| zstd::bulk::compress(data, 3).expect("memory");
    let skippable = b"\x50\x2a\x4d\x18\x03\0\0\0abc".to_vec();
    let frames = text.chunks(3000).flat_map(|p| [one(p), skippable.clone()].concat()).collect();
    vec![("one", one(text)), ("frames", frames), ("zeros", one(&[0; 100_000]))]
}

fn parts(archive: &[u8]) {
    let mut builder = LayerBuilder::tar(TreeLimits::default());
    builder.feed(Bytes::copy_from_slice(archive), &mut NullSink).expect("a good archive");
    let built = builder.finish(&mut NullSink).expect("a good archive");
    let mut skeleton = SkeletonWriter::new(&built.layout).expect("memory");
    skeleton.literal(&vec![7; built.layout.literal_length() as usize]).expect("all");
    let skeleton = skeleton.finish().expect("all");
    let seek = table(1000, 5000).encode();
    let part = PartRef::of;
    let body = RootBody {
        blob: Digest::of(archive),
        blob_size: 5000,
        stream_length: built.stream_length,
        diff_id: built.diff_id,
        media_type: "application/vnd.oci.image.layer.v1.tar+gzip".into(),
        path: Some(b"name".to_vec()),
        tree: part(&built.tree),
        blocks: part(&built.blocks),
        seek: part(&seek),
        skeleton: part(&skeleton),
    };
    let key = ed25519_dalek::SigningKey::from_bytes(&[1; 32]);
    let root = LayerRoot::sign(body, &key).expect("short").encode();
    let all = [built.tree, built.blocks, seek, skeleton, root];
    for (n, (name, bytes)) in
        ["tree", "blocks", "seek", "skeleton", "root"].iter().zip(all).enumerate()
    {
        write("index", name, &[&[n as u8][..], &bytes].concat());
    }
}

fn table(blob: u64, stream: u64) -> peersync::layer::seek::SeekTable {
    let mut builder = SeekTableBuilder::new();
    let window = zstd::bulk::compress(&[b'w'; 1000], 3).expect("memory").into();
    let entry = Entry::Block { bits: 3, value: 5, window };
    builder.push(SeekPoint { stream: stream / 3, blob: blob / 3, entry });
    builder.push(SeekPoint { stream: stream / 2, blob: blob / 2, entry: Entry::Start });
    builder.finish(peersync::layer::seek::Compression::Gzip, blob, stream)
}

fn spans(text: &[u8]) {
    let blob = gzip(text, 6);
    let seek = table(blob.len() as u64, text.len() as u64).encode();
    write("span", "table", &[&(seek.len() as u16).to_le_bytes()[..], &seek, &blob].concat());
}
