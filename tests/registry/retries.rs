//! Failing, throttling and silent registries.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use peersync::oci::{ImageSource, RegistryError, SourceError, Target, Trouble};

use crate::fixture::{repository, settings};
use crate::hostile::{Hostile, answer, manifest_answer, status};

/// A server that gives `first` to the first `count` requests, then a manifest.
async fn flaky(
    count: usize,
    first: impl Fn() -> Response + Clone + Send + Sync + 'static,
) -> (Hostile, Result<(), SourceError>) {
    let seen = Arc::new(AtomicUsize::new(0));
    let server = Hostile::start(move |_| {
        if seen.fetch_add(1, Ordering::Relaxed) < count { first() } else { manifest_answer() }
    })
    .await;
    let client = repository(settings(), &server.reference("x"));
    let outcome = client.resolve(&Target::Default).await.map(drop);
    (server, outcome)
}

fn registry_error(outcome: Result<(), SourceError>) -> RegistryError {
    match outcome {
        Err(SourceError::Registry(error)) => error,
        other => panic!("not a registry's error: {other:?}"),
    }
}

#[tokio::test]
async fn passing_trouble_is_waited_out() {
    for code in [408, 429, 500, 502, 503, 504] {
        let (server, outcome) = flaky(4, move || status(code)).await;
        assert!(outcome.is_ok(), "{code}: {outcome:?}");
        assert_eq!(server.seen().len(), 5);
    }
    let (server, outcome) = flaky(2, || answer(429, &[("retry-after", "0")], Body::empty())).await;
    assert!(outcome.is_ok());
    assert_eq!(server.seen().len(), 3);
}

#[tokio::test]
async fn lasting_trouble_is_given_up() {
    let (server, outcome) = flaky(usize::MAX, || status(503)).await;
    let error = registry_error(outcome);
    assert!(matches!(error, RegistryError::Server { status: 503, .. }), "{error}");
    assert_eq!(error.trouble(), Trouble::Transient);
    assert_eq!(server.seen().len(), 5);
}

#[tokio::test]
async fn a_wait_that_is_too_long_is_reported_at_once() {
    let (server, outcome) = flaky(9, || answer(429, &[("retry-after", "3600")], "slow down")).await;
    let error = registry_error(outcome);
    let hour = Some(Duration::from_secs(3600));
    assert!(matches!(&error, RegistryError::Throttled { retry_after, .. } if *retry_after == hour));
    assert!(error.to_string().contains("3600 s") && error.to_string().contains("slow down"));
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test]
async fn answers_that_will_not_change_are_not_asked_for_again() {
    let denied = || answer(403, &[], r#"{"errors":[{"code":"DENIED","message":"not yours"}]}"#);
    let (server, outcome) = flaky(9, denied).await;
    let error = registry_error(outcome);
    assert!(matches!(error, RegistryError::Forbidden { .. }));
    assert!(error.to_string().contains("DENIED: not yours"), "{error}");
    assert_eq!(server.seen().len(), 1);

    for code in [400, 404, 405, 410, 418, 451] {
        let (server, outcome) = flaky(9, move || status(code)).await;
        let error = registry_error(outcome);
        assert_eq!(matches!(error, RegistryError::NotFound { .. }), code == 404, "{error}");
        assert_eq!(server.seen().len(), 1);
    }
}

#[tokio::test]
async fn a_registry_that_is_not_there_is_named() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let host = listener.local_addr().expect("an address").to_string();
    drop(listener);
    let client = repository(settings(), &format!("{host}/x"));
    let error = client.resolve(&Target::Default).await.expect_err("nobody is there");
    assert!(matches!(error, SourceError::Registry(RegistryError::Connect { .. })), "{error:?}");
    assert!(error.to_string().contains(&host));
}

#[tokio::test]
async fn silence_ends() {
    let server = Hostile::raw(|_| None).await;
    let mut impatient = settings();
    impatient.timeouts.idle = Duration::from_millis(30);
    impatient.retry.attempts = 2;
    let client = repository(impatient, &server.reference("x"));
    let error = client.resolve(&Target::Default).await.expect_err("no answer");
    assert!(matches!(error, SourceError::Registry(RegistryError::Timeout { .. })), "{error:?}");
    assert_eq!(server.seen().len(), 2);
}

#[tokio::test]
async fn silence_in_the_middle_of_a_blob_ends() {
    let server = Hostile::start(|_| {
        use futures_util::StreamExt;
        let some = futures_util::stream::iter([Ok::<_, std::io::Error>("some")]);
        answer(200, &[], Body::from_stream(some.chain(futures_util::stream::pending())))
    })
    .await;
    let mut impatient = settings();
    impatient.timeouts.idle = Duration::from_millis(30);
    let client = repository(impatient, &server.reference("x"));
    let digest = peersync::types::Digest::of(b"");
    let stream = client.open_blob(&digest, None).await.expect("opened");
    let error = crate::fixture::collect(stream).await.expect_err("it stops");
    assert!(matches!(error, SourceError::Registry(RegistryError::Timeout { .. })), "{error:?}");
}
