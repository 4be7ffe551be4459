use super::*;
use proptest::prelude::*;
use serde_json::{Value, json};

fn descriptor(media_type: &str, content: &str) -> Value {
    json!({
        "mediaType": media_type,
        "digest": Digest::of(content.as_bytes()).to_string(),
        "size": content.len(),
    })
}

fn image(layers: usize) -> Value {
    let layer = descriptor("application/vnd.oci.image.layer.v1.tar+gzip", "layer");
    json!({
        "schemaVersion": 2,
        "mediaType": media::OCI_MANIFEST,
        "config": descriptor(media::OCI_CONFIG, "config"),
        "layers": vec![layer; layers],
    })
}

fn parse(value: &Value) -> Result<Manifest, DocumentError> {
    Manifest::parse(None, value.to_string().as_bytes())
}

fn with(mut value: Value, key: &str, new: Value) -> Value {
    value[key] = new;
    value
}

#[test]
fn oci_and_docker_manifests_are_read() {
    for media_type in [media::OCI_MANIFEST, media::DOCKER_MANIFEST] {
        let value = with(image(3), "mediaType", json!(media_type));
        let bytes = value.to_string();
        let Ok(Manifest::Image(manifest)) = Manifest::parse(Some(media_type), bytes.as_bytes())
        else {
            panic!("{bytes}");
        };
        assert_eq!(manifest.layers.len(), 3);
        assert_eq!(manifest.config.digest, Digest::of(b"config"));
        assert_eq!(manifest.media_type, media_type);
    }
    // Without a media type of its own, and served under none that says anything.
    let mut bare = image(1);
    bare.as_object_mut().expect("an object").remove("mediaType");
    for served in [None, Some("text/plain"), Some(media::DOCKER_MANIFEST)] {
        let manifest = Manifest::parse(served, bare.to_string().as_bytes()).expect("a manifest");
        let expected = served.filter(|s| media::is_manifest(s)).unwrap_or(media::OCI_MANIFEST);
        assert_eq!(manifest.media_type(), expected);
    }
    // Go writes null for what is empty.
    let nulls = with(with(image(0), "layers", Value::Null), "annotations", Value::Null);
    assert!(parse(&nulls).is_ok());
}

#[test]
fn what_can_be_read_two_ways_is_not_read() {
    for (value, expected) in [
        (with(image(1), "manifests", json!([])), DocumentError::Ambiguous),
        (with(image(1), "mediaType", json!(media::OCI_INDEX)), DocumentError::Ambiguous),
        (
            json!({"schemaVersion": 2, "mediaType": media::OCI_MANIFEST, "manifests": []}),
            DocumentError::Ambiguous,
        ),
        (json!({"schemaVersion": 1, "fsLayers": []}), DocumentError::Schema1),
        (
            with(image(1), "mediaType", json!("application/json")),
            DocumentError::Unsupported("application/json".to_owned()),
        ),
    ] {
        assert_eq!(parse(&value), Err(expected), "{value}");
    }
    assert!(matches!(parse(&json!({})), Err(DocumentError::Malformed(_))));
    let served = Manifest::parse(Some(media::DOCKER_MANIFEST), image(1).to_string().as_bytes());
    assert!(matches!(served, Err(DocumentError::Contradiction { .. })));
}

#[test]
fn counts_and_sizes_are_bounded() {
    assert!(parse(&image(LAYERS_MAX)).is_ok());
    assert_eq!(parse(&image(LAYERS_MAX + 1)), Err(DocumentError::TooManyLayers(1001)));
    let entry = descriptor(media::OCI_MANIFEST, "m");
    let index = |n| json!({"schemaVersion": 2, "manifests": vec![entry.clone(); n]});
    assert!(parse(&index(INDEX_MAX)).is_ok());
    assert_eq!(parse(&index(INDEX_MAX + 1)), Err(DocumentError::TooManyEntries(4097)));
    let mut layer = descriptor("x/y", "z");
    layer["size"] = json!(BLOB_MAX + 1);
    let huge = with(image(0), "layers", json!([layer]));
    assert_eq!(parse(&huge), Err(DocumentError::BlobSize(BLOB_MAX + 1)));
    for size in [json!(-1), json!(1.5), json!("7"), Value::Null] {
        layer["size"] = size;
        let bad = with(image(0), "layers", json!([layer.clone()]));
        assert!(matches!(parse(&bad), Err(DocumentError::Malformed(_))));
    }
    let blanks = vec![b' '; DOCUMENT_MAX as usize + 1];
    assert_eq!(Manifest::parse(None, &blanks), Err(DocumentError::TooLarge));
    for media_type in ["x".repeat(256), "a/b\n".to_owned(), "a/ü".to_owned()] {
        let layer = with(descriptor("", "z"), "mediaType", json!(media_type));
        let bad = with(image(0), "layers", json!([layer]));
        assert_eq!(parse(&bad), Err(DocumentError::MediaType));
    }
    let deep = format!("{}1{}", "[".repeat(200), "]".repeat(200));
    assert!(matches!(Manifest::parse(None, deep.as_bytes()), Err(DocumentError::Malformed(_))));
}

#[test]
fn digests_other_than_sha256_are_refused_where_they_matter() {
    let other = json!({"mediaType": media::OCI_MANIFEST, "digest": "sha512:00", "size": 1});
    let bad = with(image(0), "layers", json!([other]));
    assert!(matches!(parse(&bad), Err(DocumentError::Digest(_))));
    // An index may name images that others can use.
    let mixed = json!({"manifests": [other, descriptor(media::OCI_MANIFEST, "m")]});
    let Ok(Manifest::Index(index)) = parse(&mixed) else { panic!("{mixed}") };
    assert_eq!(index.manifests.len(), 1);
}

#[test]
fn the_platforms_image_is_chosen() {
    let entry = |name: &str, platform: Value| {
        let mut entry = descriptor(media::OCI_MANIFEST, name);
        entry["platform"] = platform;
        entry
    };
    let linux = |arch: &str| json!({"os": "linux", "architecture": arch});
    let mut attestation = entry("att", json!({"os": "unknown", "architecture": "unknown"}));
    attestation["annotations"] = json!({"vnd.docker.reference.type": "attestation-manifest"});
    let v6 = json!({"os": "linux", "architecture": "arm", "variant": "v6"});
    let index = |entries: Value| match parse(&json!({"manifests": entries})) {
        Ok(Manifest::Index(index)) => index,
        other => panic!("{other:?}"),
    };
    let all = index(json!([
        attestation,
        entry("windows", json!({"os": "windows", "architecture": "amd64"})),
        entry("386", linux("386")),
        entry("first", linux("amd64")),
        entry("second", linux("amd64")),
        entry("v6", v6),
    ]));
    let chosen = |index: &Index, platform: &str| {
        let platform = platform.parse().expect("a platform");
        index.choose(&platform).map(|d| d.digest)
    };
    assert_eq!(chosen(&all, "linux/amd64"), Ok(Digest::of(b"first")));
    assert_eq!(chosen(&all, "linux/arm64"), Ok(Digest::of(b"v6")));
    let Err(DocumentError::NoPlatform { offered, .. }) = chosen(&all, "linux/s390x") else {
        panic!("there is none");
    };
    assert_eq!(offered, "windows/amd64, linux/386, linux/amd64, linux/amd64, linux/arm/v6");
    // An entry without a platform is better than none.
    let bare = index(json!([entry("386", linux("386")), descriptor(media::OCI_INDEX, "bare")]));
    assert_eq!(chosen(&bare, "linux/s390x"), Ok(Digest::of(b"bare")));
}

#[test]
fn configurations_give_platform_and_diff_ids() {
    let diff_id = Digest::of(b"layer");
    let config = json!({
        "architecture": "arm64", "os": "linux", "variant": "v8",
        "config": {"Env": null}, "history": [{"empty_layer": true}],
        "rootfs": {"type": "layers", "diff_ids": [diff_id.to_string()]},
    });
    let config = ImageConfig::parse(config.to_string().as_bytes()).expect("valid");
    assert_eq!(config.platform.map(|p| p.to_string()).as_deref(), Some("linux/arm64"));
    assert_eq!(config.diff_ids, [diff_id]);
    let empty = ImageConfig::parse(b"{}").expect("valid");
    assert_eq!((empty.platform, empty.diff_ids), (None, vec![]));
    for bad in ["", "[]", r#"{"rootfs": {"diff_ids": ["x"]}}"#, r#"{"rootfs": []}"#] {
        assert!(ImageConfig::parse(bad.as_bytes()).is_err(), "{bad}");
    }
}

proptest! {
    #[test]
    fn any_bytes_give_an_answer(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = Manifest::parse(None, &bytes);
        let _ = ImageConfig::parse(&bytes);
        let _ = model_diff_ids(&bytes);
    }

    #[test]
    fn a_damaged_manifest_gives_an_answer(at in 0usize..600, byte: u8, cut in 0usize..600) {
        let mut bytes = image(2).to_string().into_bytes();
        let len = bytes.len();
        bytes[at % len] = byte;
        bytes.truncate(len - cut % len);
        let _ = Manifest::parse(Some(media::OCI_MANIFEST), &bytes);
    }

    #[test]
    fn what_oci_spec_writes_is_read(sizes in prop::collection::vec(0u64..1 << 40, 0..20)) {
        use oci_spec::image as oci;
        let digest: oci::Digest = Digest::of(b"x").to_string().parse().expect("a digest");
        let layer = |size: &u64| oci::Descriptor::new(oci::MediaType::ImageLayerGzip, *size, digest.clone());
        let manifest = oci::ImageManifestBuilder::default()
            .schema_version(2u32)
            .config(oci::Descriptor::new(oci::MediaType::ImageConfig, 2, digest.clone()))
            .layers(sizes.iter().map(layer).collect::<Vec<_>>())
            .build()
            .expect("complete");
        let text = manifest.to_string().expect("JSON");
        let Ok(Manifest::Image(ours)) = Manifest::parse(None, text.as_bytes()) else {
            panic!("{text}");
        };
        prop_assert_eq!(ours.layers.iter().map(|l| l.size).collect::<Vec<_>>(), sizes);
    }
}
