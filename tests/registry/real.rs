//! Debian's `docker-registry`, with images that `skopeo` copied there.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use futures_util::StreamExt;
use peersync::oci::{
    Artifact, Credentials, Descriptor, Image, ImageSource, Layout, Platform, RegistryError,
    ResumingBlob, RetryPolicy, Source, SourceError, Target, chain_ids, media,
};
use peersync::types::Digest;

use crate::fixture::{
    collect, index, login, noise, plain_layer, push_image, repository, settings, zstd_layer,
};

/// `geheim`, for the user `anna`.
const HTPASSWD: &str = "anna:$2b$05$abcdefghijklmnopqrstuuVWu8RjbNovPZWAMRdd7iqaaG0mI53Uu\n";

/// A registry of its own, which ends with the test.
struct RealRegistry {
    child: Child,
    host: String,
    dir: tempfile::TempDir,
}

impl RealRegistry {
    fn start(auth: &str, tls: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("htpasswd"), HTPASSWD).expect("written");
        let config = format!(
            "version: 0.1\nlog: {{level: info}}\n\
             storage: {{filesystem: {{rootdirectory: {0}/data}}}}\n\
             http: {{addr: '127.0.0.1:0', secret: test{tls}}}\n{auth}",
            dir.path().display(),
        );
        let config = config.replace("@DIR@", &dir.path().display().to_string());
        let file = dir.path().join("registry.yml");
        std::fs::write(&file, config).expect("written");
        if !tls.is_empty() {
            make_certificate(dir.path());
        }
        let mut child = Command::new("docker-registry")
            .arg("serve")
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("docker-registry runs (Debian package docker-registry)");
        // It says where it listens.
        let mut log = BufReader::new(child.stderr.take().expect("a pipe"));
        let host = loop {
            let mut line = String::new();
            assert!(log.read_line(&mut line).expect("readable") > 0, "the registry ended");
            if let Some((_, rest)) = line.split_once("listening on ") {
                let address: String =
                    rest.chars().take_while(|c| c.is_ascii_digit() || ".:".contains(*c)).collect();
                break address;
            }
        };
        // Its log must not block it.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Self { child, host, dir }
    }

    fn open() -> Self {
        Self::start("", "")
    }

    fn with_passwords() -> Self {
        Self::start("auth: {htpasswd: {realm: test, path: '@DIR@/htpasswd'}}\n", "")
    }

    fn reference(&self, name: &str) -> String {
        format!("{}/{name}", self.host)
    }
}

impl Drop for RealRegistry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn make_certificate(dir: &Path) {
    let status = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"])
        .args(["-nodes", "-days", "2", "-subj", "/CN=test"])
        .args(["-addext", "subjectAltName=IP:127.0.0.1"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .args(["-keyout", "key.pem", "-out", "cert.pem"])
        .current_dir(dir)
        .stderr(Stdio::null())
        .status();
    assert!(status.is_ok_and(|s| s.success()), "openssl makes a certificate");
}

fn skopeo(args: &[&str]) -> Vec<u8> {
    let output = Command::new("skopeo").arg("--insecure-policy").args(args).output();
    let output = output.expect("skopeo runs (Debian package skopeo)");
    let problem = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "skopeo {args:?}: {problem}");
    output.stdout
}

/// A layout with a two-platform image `multi` and a one-platform image `one`.
async fn layout(dir: &Path) -> Layout {
    let layout = Layout::create(dir).expect("a new layout");
    let layers = [plain_layer("etc/hello", b"hello"), zstd_layer("big", &noise(300_000))];
    push_image(&layout, Some("one"), "amd64", &layers).await;
    let amd = push_image(&layout, None, "amd64", &layers).await;
    let arm = push_image(&layout, None, "arm64", &layers[..1]).await;
    let both = index(&[("amd64", &amd), ("arm64", &arm)]);
    layout.push_manifest(Some("multi"), both).await.expect("pushed");
    layout
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_skopeo_pushed_is_the_image_in_the_layout() {
    let registry = RealRegistry::open();
    let dir = registry.dir.path().join("layout");
    let layout = layout(&dir).await;
    let host = &registry.host;
    for tag in ["one", "multi"] {
        let from = format!("oci:{}:{tag}", dir.display());
        let to = format!("docker://{host}/img:{tag}");
        let all = ["--all", "--preserve-digests", "--dest-tls-verify=false"];
        skopeo(&[&["copy", "-q"], &all[..], &[&from, &to]].concat());
    }
    let client = repository(settings(), &registry.reference("img"));
    let amd: Platform = "linux/amd64".parse().expect("a platform");
    let arm: Platform = "linux/arm64".parse().expect("a platform");

    for tag in ["one", "multi"] {
        let target = Target::Tag(tag.to_owned());
        let ours = Image::load(&layout, &target, Some(&amd)).await.expect("in the layout");
        let theirs = Image::load(&*client, &target, Some(&amd)).await.expect("in the registry");
        assert_eq!(ours.layers, theirs.layers);
        assert_eq!(ours.manifest.digest, theirs.manifest.digest);
        assert_eq!(ours.documents.len(), theirs.documents.len());
        assert_eq!(ours.platform, Some(amd.clone()));
        assert_eq!(ours.layers.len(), 2);
        let diff_ids: Vec<_> = ours.layers.iter().filter_map(|l| l.diff_id).collect();
        assert_eq!(theirs.chain_ids(), Some(chain_ids(&diff_ids)));
        // By digest it is the same.
        let by_digest = Target::Digest(theirs.resolved.digest);
        let again = Image::load(&*client, &by_digest, Some(&amd)).await.expect("by digest");
        assert_eq!(again.layers, theirs.layers);
    }

    let multi = Target::Tag("multi".to_owned());
    let image = Image::load(&*client, &multi, Some(&arm)).await.expect("for arm64");
    assert_eq!(image.layers.len(), 1);
    let s390x = "linux/s390x".parse().expect("a platform");
    let error = Image::load(&*client, &multi, Some(&s390x)).await.expect_err("not there");
    assert!(error.to_string().contains("linux/amd64, linux/arm64"), "{error}");
    assert!(error.is_not_found());

    let missing = Target::Tag("missing".to_owned());
    let error = client.resolve(&missing).await.expect_err("not there");
    assert!(matches!(&error, SourceError::Registry(RegistryError::NotFound { .. })), "{error}");
    assert!(error.to_string().contains("img:missing"), "{error}");
    assert!(client.resolve(&Target::Default).await.expect_err("no latest").is_not_found());
}

#[tokio::test(flavor = "multi_thread")]
async fn blobs_come_whole_in_ranges_and_resumed() {
    let registry = RealRegistry::open();
    let client = repository(settings(), &registry.reference("blobs"));
    let content = noise(3_000_000);
    let digest = Digest::of(&content);
    client.push_blob(&digest, content.clone().into()).await.expect("pushed");
    // It is there already.
    client.push_blob(&digest, content.clone().into()).await.expect("pushed again");

    let stream = client.open_blob(&digest, None).await.expect("opened");
    assert_eq!(stream.facts().total, Some(3_000_000));
    assert!(stream.facts().range_honoured);
    assert_eq!(collect(stream).await.expect("read"), content);

    for range in [0..1, 5..5_000, 2_999_999..3_000_000, 2_000_000..4_000_000] {
        let stream = client.open_blob(&digest, Some(range.clone())).await.expect("opened");
        let end = range.end.min(3_000_000);
        assert!(stream.facts().range_honoured);
        assert_eq!(
            (stream.facts().start, stream.facts().length),
            (range.start, Some(end - range.start))
        );
        let part = &content[range.start as usize..end as usize];
        assert_eq!(collect(stream).await.expect("read"), part);
    }
    #[expect(clippy::reversed_empty_ranges, reason = "what is refused")]
    for range in [5..5, 9..2, 3_000_000..3_000_001] {
        assert!(client.open_blob(&digest, Some(range)).await.is_err());
    }
    let blob =
        ResumingBlob::new(client.clone(), digest, 3_000_000, 7..2_500_000, RetryPolicy::NEVER, 1);
    let parts: Vec<_> = blob.into_stream().map(|chunk| chunk.expect("read")).collect().await;
    assert_eq!(parts.concat(), &content[7..2_500_000]);

    let nothing = Digest::of(b"nothing");
    assert!(client.open_blob(&nothing, None).await.expect_err("not there").is_not_found());
    let wrong = client.push_blob(&nothing, content.into()).await;
    assert!(matches!(wrong, Err(SourceError::DigestMismatch { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn skopeo_reads_what_was_pushed() {
    let registry = RealRegistry::open();
    let client = repository(settings(), &registry.reference("a/b/pushed"));
    let layers = [plain_layer("x", b"x"), zstd_layer("y", b"y")];
    let pushed = push_image(&*client, Some("v1"), "amd64", &layers).await;
    let name = format!("docker://{}", registry.reference("a/b/pushed:v1"));
    let raw = skopeo(&["inspect", "--raw", "--tls-verify=false", &name]);
    assert_eq!(Digest::of(&raw), pushed.digest);
    let copy = format!("oci:{}:v1", registry.dir.path().join("copy").display());
    skopeo(&["copy", "-q", "--preserve-digests", "--src-tls-verify=false", &name, &copy]);
    let Source::Layout { dir, target } = copy.parse().expect("a layout") else {
        panic!("{copy} is not a layout");
    };
    let image = Image::load(&Layout::open(&dir).expect("a layout"), &target, None).await;
    assert_eq!(image.expect("copied").manifest.digest, pushed.digest);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_layers_work() {
    let registry = RealRegistry::open();
    let client = repository(settings(), &registry.reference("tall"));
    let layers = vec![plain_layer("same", b"same"); 1000];
    let config = crate::fixture::config("amd64", &layers);
    for blob in [&layers[0].blob, &config] {
        client.push_blob(&Digest::of(blob), blob.clone()).await.expect("pushed");
    }
    let manifest = crate::fixture::manifest(&config, &layers);
    client.push_manifest(Some("latest"), manifest).await.expect("pushed");
    let image = Image::load(&*client, &Target::Default, None).await.expect("loaded");
    assert_eq!(image.layers.len(), 1000);
}

#[tokio::test(flavor = "multi_thread")]
async fn passwords_are_asked_for_found_and_never_shown() {
    let registry = RealRegistry::with_passwords();
    let anonymous = repository(settings(), &registry.reference("private"));
    let error = anonymous.resolve(&Target::Default).await.expect_err("a login is needed");
    assert!(matches!(error, SourceError::Registry(RegistryError::Unauthorized { .. })), "{error}");
    assert!(error.to_string().contains(&format!("docker login {}", registry.host)), "{error}");

    let mut known = settings();
    known.credentials = login(&registry.host, "anna", "geheim");
    let client = repository(known, &registry.reference("private"));
    let pushed = push_image(&*client, Some("latest"), "amd64", &[plain_layer("f", b"f")]).await;

    // As `docker login` stores it.
    let file = registry.dir.path().join("config.json");
    let stored = format!(r#"{{"auths": {{"{}": {{"auth": "YW5uYTpnZWhlaW0="}}}}}}"#, registry.host);
    std::fs::write(&file, stored).expect("written");
    let mut stored = settings();
    stored.credentials = Credentials::Files { paths: vec![file], helper_path: None };
    let client = repository(stored, &registry.reference("private"));
    let image = Image::load(&*client, &Target::Default, None).await.expect("allowed");
    assert_eq!(image.manifest.digest, pushed.digest);

    let mut wrong = settings();
    wrong.credentials = login(&registry.host, "anna", "falsch");
    let client = repository(wrong, &registry.reference("private"));
    for _ in 0..2 {
        let error = client.resolve(&Target::Default).await.expect_err("refused");
        assert!(matches!(error, SourceError::Registry(RegistryError::Unauthorized { .. })));
        assert!(!format!("{error} {error:?} {client:?}").contains("falsch"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn referrers_are_found_without_the_api() {
    let registry = RealRegistry::open();
    let client = repository(settings(), &registry.reference("img"));
    referrers_work(&*client).await;
    // As an older client sees it.
    let subject = client.resolve(&Target::Default).await.expect("there").descriptor;
    let tag = Target::Tag(subject.digest.file_name());
    let list = client.resolve(&tag).await.expect("the fallback tag");
    assert_eq!(list.descriptor.media_type, media::OCI_INDEX);
}

#[tokio::test(flavor = "multi_thread")]
async fn referrers_are_found_in_a_layout() {
    let dir = tempfile::tempdir().expect("a directory");
    let layout = Layout::create(dir.path()).expect("a new layout");
    referrers_work(&layout).await;
    // The image is still the only one, and skopeo still reads it by its name.
    assert!(layout.resolve(&Target::Default).await.is_ok());
    let name = format!("oci:{}:latest", dir.path().display());
    skopeo(&["inspect", "--raw", &name]);
}

async fn referrers_work(source: &dyn ImageSource) {
    let layers = [plain_layer("f", b"f")];
    let subject = push_image(source, Some("latest"), "amd64", &layers).await;
    assert_eq!(source.referrers(&subject.digest, None).await.expect("none yet"), []);
    let artifact = |kind: &str, content: &'static [u8]| Artifact {
        artifact_type: format!("application/vnd.test.{kind}"),
        subject: subject.clone(),
        layers: vec![Descriptor::of("application/vnd.test.part", content)],
        annotations: [("key".to_owned(), kind.to_owned())].into(),
    };
    let mut pushed = Vec::new();
    for (kind, content) in [("a", b"1".as_slice()), ("b", b"2"), ("a", b"1"), ("a", b"3")] {
        let artifact = artifact(kind, content);
        source.push_blob(&Digest::of(content), content.into()).await.expect("pushed");
        pushed.push(source.push_referrer(&artifact).await.expect("pushed"));
    }
    assert_eq!(pushed[0], pushed[2], "the same artifact is the same manifest");
    let found = source.referrers(&subject.digest, None).await.expect("found");
    assert_eq!(found.len(), 3);
    let of_a = source.referrers(&subject.digest, Some("application/vnd.test.a")).await;
    let of_a = of_a.expect("found");
    assert_eq!(of_a.len(), 2);
    assert!(of_a.contains(&pushed[0]) && of_a.contains(&pushed[3]));
    let other = source.referrers(&Digest::of(b"other"), None).await.expect("none");
    assert_eq!(other, []);
    // The artifact itself can be had: manifest, then part.
    let image = Image::load(source, &Target::Digest(pushed[0].digest), None).await.expect("loaded");
    assert_eq!(image.artifact_type.as_deref(), Some("application/vnd.test.a"));
    let stream = source.open_blob(&image.layers[0].digest, None).await.expect("opened");
    assert_eq!(collect(stream).await.expect("read"), b"1");
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_checked_and_can_be_given() {
    let tls = ", tls: {certificate: '@DIR@/cert.pem', key: '@DIR@/key.pem'}";
    let registry = RealRegistry::start("", tls);
    let certs = registry.dir.path().join("certs.d");
    let host_dir = certs.join(&registry.host);
    std::fs::create_dir_all(&host_dir).expect("made");
    let toml = |extra: &str| {
        let text = format!("server = \"https://{}\"\n{extra}", registry.host);
        std::fs::write(host_dir.join("hosts.toml"), text).expect("written");
        let mut settings = settings();
        settings.hosts_dir = Some(certs.clone());
        settings.retry = RetryPolicy::NEVER;
        repository(settings, &registry.reference("x"))
    };
    let error = toml("").resolve(&Target::Default).await.expect_err("not trusted");
    assert!(matches!(error, SourceError::Registry(RegistryError::Tls { .. })), "{error:?}");
    for trusted in [
        format!("ca = {:?}", registry.dir.path().join("cert.pem")),
        "skip_verify = true".to_owned(),
    ] {
        let error = toml(&trusted).resolve(&Target::Default).await.expect_err("empty");
        assert!(error.is_not_found(), "{error}");
    }
    // Plain HTTP to a port that speaks TLS, and the reverse.
    let error = repository(settings(), &registry.reference("x")).resolve(&Target::Default).await;
    let error = error.expect_err("not HTTP");
    assert!(error.to_string().contains("HTTPS"), "{error}");
    let plain = RealRegistry::open();
    let text = format!("server = \"https://{}\"", plain.host);
    std::fs::create_dir_all(certs.join(&plain.host)).expect("made");
    std::fs::write(certs.join(&plain.host).join("hosts.toml"), text).expect("written");
    let mut settings = settings();
    settings.hosts_dir = Some(certs.clone());
    let error = repository(settings, &plain.reference("x")).resolve(&Target::Default).await;
    let error = error.expect_err("no TLS");
    assert!(matches!(error, SourceError::Registry(RegistryError::Tls { .. })), "{error:?}");
}
