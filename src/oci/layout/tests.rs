use super::*;

fn layout() -> (tempfile::TempDir, Layout) {
    let dir = tempfile::tempdir().expect("a directory");
    let layout = Layout::create(dir.path()).expect("a new layout");
    (dir, layout)
}

fn manifest(n: u32) -> Bytes {
    let config = Descriptor::of(media::OCI_CONFIG, b"{}");
    json!({
        "schemaVersion": 2,
        "mediaType": media::OCI_MANIFEST,
        "config": {"mediaType": config.media_type, "digest": config.digest, "size": 2},
        "layers": [],
        "annotations": {"n": n.to_string()},
    })
    .to_string()
    .into()
}

async fn resolve(layout: &Layout, target: Target) -> Result<Digest, SourceError> {
    layout.resolve(&target).await.map(|document| document.descriptor.digest)
}

#[tokio::test]
async fn images_are_found_by_name_and_digest() {
    let (_dir, layout) = layout();
    let error = resolve(&layout, Target::Default).await.expect_err("empty");
    assert!(error.is_not_found());
    let one = layout.push_manifest(Some("one"), manifest(1)).await.expect("pushed").digest;
    assert_eq!(resolve(&layout, Target::Default).await.expect("the only one"), one);
    let two = layout.push_manifest(Some("two"), manifest(2)).await.expect("pushed").digest;
    let error = resolve(&layout, Target::Default).await.expect_err("which?");
    assert!(error.to_string().contains("one, two"), "{error}");
    let latest = layout.push_manifest(Some("latest"), manifest(3)).await.expect("pushed").digest;
    assert_eq!(resolve(&layout, Target::Default).await.expect("latest"), latest);
    for (tag, digest) in [("one", one), ("two", two), ("latest", latest)] {
        assert_eq!(resolve(&layout, Target::Tag(tag.to_owned())).await.expect("there"), digest);
        assert_eq!(resolve(&layout, Target::Digest(digest)).await.expect("there"), digest);
    }
    // A name moves.
    layout.push_manifest(Some("one"), manifest(2)).await.expect("pushed");
    assert_eq!(resolve(&layout, Target::Tag("one".to_owned())).await.expect("there"), two);
    let error = resolve(&layout, Target::Tag("three".to_owned())).await.expect_err("missing");
    assert!(error.is_not_found() && error.to_string().contains("latest"), "{error}");
    assert!(resolve(&layout, Target::Digest(Digest::of(b"x"))).await.is_err());
}

#[tokio::test]
async fn several_writers_lose_nothing() {
    let (_dir, layout) = layout();
    let pushes = (0..20).map(|n| {
        let layout = layout.clone();
        async move {
            let tag = format!("t{n}");
            layout.push_manifest(Some(&tag), manifest(n)).await.expect("pushed");
        }
    });
    futures_util::future::join_all(pushes).await;
    assert_eq!(layout.index().expect("whole").manifests.len(), 20);
}

#[tokio::test]
async fn what_is_no_layout_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let open = || Layout::open(dir.path());
    assert!(matches!(open(), Err(LayoutError::NotALayout { .. })));
    for marker in ["", "{}", r#"{"imageLayoutVersion": "2.0.0"}"#, r#"{"imageLayoutVersion": 1}"#] {
        fs::write(dir.path().join("oci-layout"), marker).expect("written");
        assert!(matches!(open(), Err(LayoutError::NotALayout { .. })), "{marker}");
    }
    fs::write(dir.path().join("oci-layout"), r#"{"imageLayoutVersion": "1.1.0"}"#)
        .expect("written");
    let layout = open().expect("a layout");
    for index in ["", "{}", r#"{"config": {}, "layers": []}"#, "[1]"] {
        fs::write(dir.path().join("index.json"), index).expect("written");
        assert!(layout.resolve(&Target::Default).await.is_err(), "{index}");
    }
}

#[tokio::test]
async fn damaged_blobs_are_noticed() {
    let (dir, layout) = layout();
    let pushed = layout.push_manifest(Some("x"), manifest(1)).await.expect("pushed");
    let blobs = dir.path().join("blobs/sha256");
    fs::write(blobs.join(pushed.digest.hex()), b"{}").expect("written");
    let error = resolve(&layout, Target::Default).await.expect_err("damaged");
    assert!(matches!(error, SourceError::DigestMismatch { .. }), "{error}");
    // What is no file is not waited for.
    let fifo = Digest::of(b"fifo");
    nix::unistd::mkfifo(&blobs.join(fifo.hex()), nix::sys::stat::Mode::S_IRWXU).expect("made");
    let directory = Digest::of(b"directory");
    fs::create_dir(blobs.join(directory.hex())).expect("made");
    for digest in [fifo, directory] {
        let error = layout.open_blob(&digest, None).await.expect_err("no file");
        assert!(matches!(error, SourceError::Layout(LayoutError::BadBlob { .. })), "{error}");
    }
    let missing = layout.open_blob(&Digest::of(b"missing"), None).await.expect_err("missing");
    assert!(missing.is_not_found());
}

#[tokio::test]
async fn blobs_are_read_whole_and_in_ranges() {
    use futures_util::StreamExt;
    let (_dir, layout) = layout();
    let content: Vec<u8> = (0..1_500_000u32).map(|n| ((n * 7) >> 3) as u8).collect();
    let digest = Digest::of(&content);
    layout.push_blob(&digest, content.clone().into()).await.expect("pushed");
    for range in [None, Some(0..1), Some(600_000..1_400_000), Some(1_499_999..9_000_000)] {
        let stream = layout.open_blob(&digest, range.clone()).await.expect("opened");
        let range = range.unwrap_or(0..1_500_000);
        let end = range.end.min(1_500_000);
        assert_eq!(stream.facts().length, Some(end - range.start));
        let chunks: Vec<_> = stream.map(|chunk| chunk.expect("read")).collect().await;
        assert_eq!(chunks.concat(), &content[range.start as usize..end as usize]);
    }
    for range in [1_500_000..1_500_001, 5..5] {
        assert!(layout.open_blob(&digest, Some(range)).await.is_err());
    }
    let empty = Digest::of(b"");
    layout.push_blob(&empty, Bytes::new()).await.expect("pushed");
    let mut stream = layout.open_blob(&empty, None).await.expect("opened");
    assert!(stream.next().await.is_none());
}
