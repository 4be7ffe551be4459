//! Redirects: content may be elsewhere, credentials are not for there.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use axum::body::Body;
use peersync::oci::registry::Settings;
use peersync::oci::{ImageSource, RegistryError, SourceError};
use peersync::types::Digest;

use crate::fixture::{Clock, collect, login, repository, settings};
use crate::hostile::{Hostile, answer, blob_answer, status};

const CONTENT: &[u8] = b"the content of the blob";

fn redirect(to: &str) -> axum::response::Response {
    answer(307, &[("location", to)], Body::empty())
}

/// Settings with a login and a configured header for a host.
fn with_secrets(server: &Hostile, dir: &tempfile::TempDir) -> Settings {
    let host_dir = dir.path().join(&server.host);
    std::fs::create_dir_all(&host_dir).expect("made");
    let toml = format!("server = \"http://{}\"\nheader = {{x-secret = \"geheim\"}}", server.host);
    std::fs::write(host_dir.join("hosts.toml"), toml).expect("written");
    let mut settings = settings();
    settings.hosts_dir = Some(dir.path().to_owned());
    settings.credentials = login(&server.host, "anna", "geheim");
    settings
}

#[tokio::test]
async fn credentials_stay_with_the_registry() {
    let storage = Hostile::start(|seen| blob_answer(seen, CONTENT)).await;
    let target = storage.url("/bucket/blob?signature=abc");
    let registry = Hostile::start(move |seen| match seen.header("authorization") {
        None => answer(401, &[("www-authenticate", "Basic realm=x")], Body::empty()),
        // Once within the registry, then away.
        Some(_) if seen.path.contains("/blobs/") => redirect("/elsewhere"),
        Some(_) => redirect(&target),
    })
    .await;
    let dir = tempfile::tempdir().expect("a directory");
    let client = repository(with_secrets(&registry, &dir), &registry.reference("x"));
    let digest = Digest::of(CONTENT);
    for range in [None, Some(4..11)] {
        let part = range
            .clone()
            .map_or(CONTENT, |r: std::ops::Range<u64>| &CONTENT[r.start as usize..r.end as usize]);
        let stream = client.open_blob(&digest, range).await.expect("opened");
        assert_eq!(collect(stream).await.expect("read"), part);
    }
    let seen = storage.seen();
    assert_eq!(seen.len(), 2);
    for request in &seen {
        assert_eq!(request.path, "/bucket/blob?signature=abc");
        assert!(request.headers.get("authorization").is_none());
        assert!(request.headers.get("x-secret").is_none());
        assert!(!format!("{request:?}").contains("geheim"));
    }
    // The range travels on, the login to the registry's own pages.
    assert_eq!(seen[1].range(), Some((4, 10)));
    let own = registry.seen();
    let within: Vec<_> = own.iter().filter(|s| s.path == "/elsewhere").collect();
    // The second time the place is known.
    assert_eq!(within.len(), 1);
    assert!(within.iter().all(|s| s.headers.contains_key("authorization")));
    assert!(own.iter().all(|s| s.header("x-secret") == Some("geheim")));
}

#[tokio::test]
async fn a_place_is_remembered_until_it_no_longer_helps() {
    let expired = Arc::new(AtomicBool::new(false));
    let gone = expired.clone();
    let storage = Hostile::start(move |seen| {
        let old = seen.path.contains("n=1") && gone.load(Ordering::Relaxed);
        if old { status(403) } else { blob_answer(seen, CONTENT) }
    })
    .await;
    let (target, count) = (storage.url("/blob"), AtomicUsize::new(0));
    let count = Arc::new(count);
    let registry = Hostile::start(move |_| {
        let n = count.fetch_add(1, Ordering::Relaxed) + 1;
        redirect(&format!("{target}?n={n}"))
    })
    .await;
    let clock = Clock::default();
    let mut settings = settings();
    clock.install(&mut settings);
    let client = repository(settings, &registry.reference("x"));
    let read = async || {
        let stream = client.open_blob(&Digest::of(CONTENT), Some(4..11)).await.expect("opened");
        assert_eq!(collect(stream).await.expect("read"), &CONTENT[4..11]);
        registry.seen().len()
    };
    assert_eq!((read().await, read().await, read().await), (1, 1, 1));
    // The signature expired: the registry gives a new place.
    expired.store(true, Ordering::Relaxed);
    assert_eq!((read().await, read().await), (2, 2));
    // And it is not kept for ever.
    clock.advance(61);
    assert_eq!((read().await, read().await), (3, 3));
}

#[tokio::test]
async fn a_401_of_the_storage_is_not_answered_with_the_registrys_login() {
    let storage = Hostile::start(|_| {
        answer(401, &[("www-authenticate", "Basic realm=\"give it to me\"")], Body::empty())
    })
    .await;
    let target = storage.url("/x");
    let registry = Hostile::start(move |_| redirect(&target)).await;
    let dir = tempfile::tempdir().expect("a directory");
    let client = repository(with_secrets(&registry, &dir), &registry.reference("x"));
    let error = client.open_blob(&Digest::of(CONTENT), None).await.expect_err("refused");
    assert!(matches!(error, SourceError::Registry(RegistryError::Unauthorized { .. })), "{error}");
    assert_eq!(storage.seen().len(), 1);
    assert!(storage.seen()[0].headers.get("authorization").is_none());
}

#[tokio::test]
async fn redirects_that_lead_nowhere_are_errors() {
    for target in ["file:///etc/passwd", "ftp://127.0.0.1/x", "http://", "http://[", "data:,x"] {
        let registry = Hostile::start(move |_| redirect(target)).await;
        let client = repository(settings(), &registry.reference("x"));
        let error = client.open_blob(&Digest::of(CONTENT), None).await.expect_err(target);
        assert!(matches!(error, SourceError::Registry(RegistryError::Redirect { .. })), "{error}");
        assert_eq!(registry.seen().len(), 1);
    }
    // Without a Location.
    let registry = Hostile::start(|_| status(302)).await;
    let client = repository(settings(), &registry.reference("x"));
    assert!(client.open_blob(&Digest::of(CONTENT), None).await.is_err());
    // In a circle.
    let registry = Hostile::start(|_| redirect("/again")).await;
    let client = repository(settings(), &registry.reference("x"));
    let error = client.open_blob(&Digest::of(CONTENT), None).await.expect_err("a circle");
    assert!(error.to_string().contains("more than 10 times"), "{error}");
    assert_eq!(registry.seen().len(), 11);
}

#[tokio::test]
async fn a_login_in_a_redirect_is_not_used() {
    let storage = Hostile::start(|seen| blob_answer(seen, CONTENT)).await;
    let target = format!("http://user:password@{}/x", storage.host);
    let registry = Hostile::start(move |_| redirect(&target)).await;
    let client = repository(settings(), &registry.reference("x"));
    let stream = client.open_blob(&Digest::of(CONTENT), None).await.expect("opened");
    assert_eq!(collect(stream).await.expect("read"), CONTENT);
    assert!(storage.seen()[0].headers.get("authorization").is_none());
}
