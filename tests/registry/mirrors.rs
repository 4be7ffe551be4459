//! Mirrors from `hosts.toml`: asked in order, and of no harm.

use std::path::Path;
use std::sync::Arc;

use peersync::oci::{ImageSource, RegistryClient, Target};
use peersync::types::Digest;

use crate::fixture::{collect, login, repository, settings};
use crate::hostile::{Hostile, answer, blob_answer, empty_manifest, manifest_answer, status};

/// A client for `registry.example` with these mirrors and this server.
fn client(dir: &Path, mirrors: &[(&Hostile, &str)], server: &Hostile) -> Arc<RegistryClient> {
    let mut toml = format!("server = \"http://{}\"\n", server.host);
    for (mirror, capabilities) in mirrors {
        toml += &format!("[host.\"http://{}\"]\ncapabilities = [{capabilities}]\n", mirror.host);
    }
    let host_dir = dir.join("registry.example");
    std::fs::create_dir_all(&host_dir).expect("made");
    std::fs::write(host_dir.join("hosts.toml"), toml).expect("written");
    let mut settings = settings();
    settings.hosts_dir = Some(dir.to_owned());
    settings.credentials = login("registry.example", "anna", "geheim");
    repository(settings, "registry.example/team/app")
}

async fn good() -> Hostile {
    Hostile::start(|seen| {
        if seen.path.contains("/blobs/") { blob_answer(seen, b"blob") } else { manifest_answer() }
    })
    .await
}

#[tokio::test]
async fn the_first_mirror_that_can_answers() {
    let dir = tempfile::tempdir().expect("a directory");
    let (first, second, server) = (good().await, good().await, good().await);
    let mirrors = [(&first, r#""pull""#), (&second, r#""pull", "resolve""#)];
    let client = client(dir.path(), &mirrors, &server);
    client.resolve(&Target::Default).await.expect("found");
    assert_eq!((first.seen().len(), second.seen().len(), server.seen().len()), (0, 1, 0));
    // A mirror is told whose image is meant.
    assert_eq!(second.seen()[0].path, "/v2/team/app/manifests/latest?ns=registry.example");
    let stream = client.open_blob(&Digest::of(b"blob"), None).await.expect("found");
    assert_eq!(collect(stream).await.expect("read"), b"blob");
    assert_eq!((first.seen().len(), second.seen().len(), server.seen().len()), (1, 1, 0));
}

#[tokio::test]
async fn mirrors_that_fail_are_passed_over() {
    let dir = tempfile::tempdir().expect("a directory");
    let dead = {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let host = listener.local_addr().expect("an address").to_string();
        let mut dead = good().await;
        dead.host = host;
        dead
    };
    let missing = Hostile::start(|_| status(404)).await;
    let denying = Hostile::start(|_| status(403)).await;
    let failing = Hostile::start(|_| status(503)).await;
    let wrong = Hostile::start(|_| answer(200, &[], "{}")).await;
    let server = good().await;
    let all = r#""pull", "resolve""#;
    let mirrors = [&dead, &missing, &denying, &failing, &wrong].map(|mirror| (mirror, all));
    let client = client(dir.path(), &mirrors, &server);
    let (_, digest) = empty_manifest();
    let digest: Digest = digest.parse().expect("a digest");
    for _ in 0..3 {
        client.manifest(&digest).await.expect("the server has it");
    }
    assert_eq!(server.seen().len(), 3);
    // What is down is asked once, and then not before the others.
    assert_eq!(failing.seen().len(), 1);
    assert_eq!(missing.seen().len(), 3);
    assert_eq!(wrong.seen().len(), 3);
}

#[tokio::test]
async fn a_mirror_that_gave_wrong_bytes_is_asked_last() {
    let dir = tempfile::tempdir().expect("a directory");
    let wrong = Hostile::start(|seen| blob_answer(seen, b"evil")).await;
    let server = good().await;
    let client = client(dir.path(), &[(&wrong, r#""pull", "resolve""#)], &server);
    let digest = Digest::of(b"blob");
    let stream = client.open_blob(&digest, None).await.expect("opened");
    client.distrust(stream.from());
    assert_eq!(collect(stream).await.expect("read"), b"evil");
    for _ in 0..2 {
        let stream = client.open_blob(&digest, None).await.expect("opened");
        assert_eq!(collect(stream).await.expect("read"), b"blob");
    }
    assert_eq!(wrong.seen().len(), 1);
}

#[tokio::test]
async fn the_registrys_login_is_not_for_mirrors() {
    let dir = tempfile::tempdir().expect("a directory");
    let greedy = Hostile::start(|_| {
        answer(401, &[("www-authenticate", "Basic realm=x")], axum::body::Body::empty())
    })
    .await;
    let server = good().await;
    let client = client(dir.path(), &[(&greedy, r#""pull", "resolve""#)], &server);
    client.resolve(&Target::Default).await.expect("the server has it");
    assert_eq!(greedy.seen().len(), 1);
    assert!(greedy.seen()[0].headers.get("authorization").is_none());
}

#[tokio::test]
async fn content_goes_only_to_who_may_be_given_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let (mirror, server) = (good().await, Hostile::start(|_| status(201)).await);
    let client = client(dir.path(), &[(&mirror, r#""pull", "resolve""#)], &server);
    let (manifest, _) = empty_manifest();
    client.push_manifest(Some("v1"), manifest).await.expect("taken");
    assert!(mirror.seen().is_empty());
    assert_eq!(server.seen()[0].path, "/v2/team/app/manifests/v1?ns=registry.example");
}

#[tokio::test]
async fn with_no_one_to_ask_that_is_said() {
    let dir = tempfile::tempdir().expect("a directory");
    let host_dir = dir.path().join("registry.example");
    std::fs::create_dir_all(&host_dir).expect("made");
    let toml = "server = \"http://127.0.0.1:1\"\ncapabilities = [\"pull\"]";
    std::fs::write(host_dir.join("hosts.toml"), toml).expect("written");
    let mut settings = settings();
    settings.hosts_dir = Some(dir.path().to_owned());
    let client = repository(settings, "registry.example/a");
    let error = client.resolve(&Target::Default).await.expect_err("nobody may");
    assert!(error.to_string().contains("capability to resolve"), "{error}");
}
