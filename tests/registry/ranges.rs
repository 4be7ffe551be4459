//! Registries that ignore ranges, lie about them, or break off.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use peersync::oci::{ImageSource, RegistryError, ResumingBlob, RetryPolicy, SourceError, Trouble};
use peersync::types::Digest;

use crate::fixture::{collect, noise, repository, settings};
use crate::hostile::{Hostile, answer, blob_answer};

const EAGER: RetryPolicy = RetryPolicy {
    attempts: 3,
    base: Duration::ZERO,
    cap: Duration::ZERO,
    retry_after_max: Duration::ZERO,
};

fn content() -> (Vec<u8>, Digest) {
    let content = noise(200_000);
    let digest = Digest::of(&content);
    (content, digest)
}

#[tokio::test]
async fn a_registry_that_ignores_ranges_is_noticed_and_still_of_use() {
    let (content, digest) = content();
    let whole = content.clone();
    let server = Hostile::start(move |_| answer(200, &[], whole.clone())).await;
    let client = repository(settings(), &server.reference("x"));
    let stream = client.open_blob(&digest, Some(1000..2000)).await.expect("opened");
    assert!(!stream.facts().range_honoured);
    assert_eq!((stream.facts().start, stream.facts().total), (0, Some(200_000)));
    assert_eq!(collect(stream).await.expect("read"), content);

    let mut blob = ResumingBlob::new(client, digest, 200_000, 150_000..160_000, EAGER, 1);
    let mut read = Vec::new();
    while let Some(chunk) = blob.next().await.expect("read") {
        assert_eq!(blob.position(), 150_000 + (read.len() + chunk.len()) as u64);
        read.extend_from_slice(&chunk);
    }
    assert_eq!(read, &content[150_000..160_000]);
}

/// Asks a server that writes these bytes for bytes 10 to 19 of a blob.
async fn lie(answer: &'static str) -> Result<Vec<u8>, SourceError> {
    let server = Hostile::raw(move |_| Some(answer.as_bytes().to_vec())).await;
    let mut settings = settings();
    settings.retry = RetryPolicy::NEVER;
    let client = repository(settings, &server.reference("x"));
    collect(client.open_blob(&Digest::of(b""), Some(10..20)).await?).await
}

#[tokio::test]
async fn lying_heads_are_errors() {
    for head in [
        // Another range than the one asked for.
        "HTTP/1.1 206 P\r\nContent-Range: bytes 0-9/100\r\nContent-Length: 10\r\n\r\n0123456789",
        // More than asked for.
        "HTTP/1.1 206 P\r\nContent-Range: bytes 10-29/100\r\nContent-Length: 20\r\n\r\n01234567890123456789",
        // Two statements that can't both be true.
        "HTTP/1.1 206 P\r\nContent-Range: bytes 10-19/100\r\nContent-Length: 5\r\n\r\n01234",
        // None at all.
        "HTTP/1.1 206 P\r\nContent-Length: 10\r\n\r\n0123456789",
        "HTTP/1.1 206 P\r\nContent-Type: multipart/byteranges; boundary=x\r\nContent-Length: 2\r\n\r\n--",
        "HTTP/1.1 416 R\r\nContent-Range: bytes */5\r\nContent-Length: 0\r\n\r\n",
    ] {
        let error = lie(head).await.expect_err(head);
        assert!(matches!(error, SourceError::Registry(RegistryError::Protocol { .. })), "{error}");
        assert_eq!(error.trouble(), Trouble::Corrupt);
    }
}

#[tokio::test]
async fn bodies_that_are_not_as_long_as_promised_are_errors() {
    // Too short by Content-Length, by Content-Range, and in chunks.
    for body in [
        "HTTP/1.1 206 P\r\nContent-Range: bytes 10-19/100\r\nContent-Length: 10\r\n\r\n01234",
        "HTTP/1.1 206 P\r\nContent-Range: bytes 10-19/100\r\n\r\n01234",
        "HTTP/1.1 206 P\r\nContent-Range: bytes 10-19/100\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n01234\r\n0\r\n\r\n",
        "HTTP/1.1 206 P\r\nContent-Range: bytes 10-19/100\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n01234\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n01234",
    ] {
        let error = lie(body).await.expect_err(body);
        assert!(
            matches!(error, SourceError::Registry(RegistryError::Broken { received: 5, .. })),
            "{error:?}"
        );
        assert_eq!(error.trouble(), Trouble::Transient);
    }
    // Longer than the Content-Range says.
    let long = "HTTP/1.1 206 P\r\nContent-Range: bytes 10-14/15\r\nTransfer-Encoding: chunked\r\n\r\n\
                6\r\n012345\r\n0\r\n\r\n";
    let error = lie(long).await.expect_err("too long");
    assert!(matches!(error, SourceError::Registry(RegistryError::Protocol { .. })), "{error}");
}

#[tokio::test]
async fn a_broken_stream_goes_on_where_it_stopped() {
    let (content, digest) = content();
    let served = content.clone();
    // At most 30,000 bytes for each connection, whatever was asked for.
    let server = Hostile::raw(move |seen| {
        let (first, last) = seen.range().unwrap_or((0, served.len() - 1));
        let cut = &served[first..=last][..30_000.min(last + 1 - first)];
        let total = served.len();
        let head = match seen.range() {
            None => format!("HTTP/1.1 200 OK\r\nContent-Length: {total}\r\n\r\n"),
            Some(_) => format!(
                "HTTP/1.1 206 P\r\nContent-Range: bytes {first}-{last}/{total}\r\nContent-Length: {}\r\n\r\n",
                last + 1 - first
            ),
        };
        Some([head.as_bytes(), cut].concat())
    })
    .await;
    let client = repository(settings(), &server.reference("x"));
    let mut blob = ResumingBlob::new(client, digest, 200_000, 0..200_000, EAGER, 1);
    let mut read = Vec::new();
    while let Some(chunk) = blob.next().await.expect("it goes on") {
        read.extend_from_slice(&chunk);
    }
    assert_eq!(read, content);
    let ranges: Vec<_> = server.seen().iter().map(|seen| seen.range()).collect();
    assert_eq!(ranges[0], None);
    assert_eq!(ranges.last(), Some(&Some((180_000, 199_999))));
    assert_eq!(blob.breaks(), 6);
}

#[tokio::test]
async fn a_stream_that_gets_nowhere_is_given_up() {
    let (content, digest) = content();
    let served = content.clone();
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    // Something at first, then nothing but heads.
    let server = Hostile::raw(move |seen| {
        let n = counted.fetch_add(1, Ordering::Relaxed);
        let (first, last) = seen.range().unwrap_or((0, served.len() - 1));
        let cut = if n == 0 { &served[..1000] } else { &[] };
        let total = served.len();
        let status = if n == 0 { "200 OK" } else { "206 P" };
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Range: bytes {first}-{last}/{total}\r\nContent-Length: {}\r\n\r\n",
            last + 1 - first
        );
        Some([head.as_bytes(), cut].concat())
    })
    .await;
    let client = repository(settings(), &server.reference("x"));
    let mut blob = ResumingBlob::new(client, digest, 200_000, 0..200_000, EAGER, 1);
    let mut read = Vec::new();
    let error = loop {
        match blob.next().await {
            Ok(chunk) => read.extend_from_slice(&chunk.expect("not the end")),
            Err(error) => break error,
        }
    };
    assert_eq!(read, &content[..1000]);
    assert_eq!(blob.position(), 1000);
    assert_eq!(error.trouble(), Trouble::Transient);
    assert_eq!(count.load(Ordering::Relaxed), 3);
}

#[tokio::test]
async fn a_blob_of_another_length_is_an_error_at_once() {
    let (content, digest) = content();
    let server = Hostile::start(move |seen| blob_answer(seen, &content)).await;
    let client = repository(settings(), &server.reference("x"));
    for (size, range) in [(100_000, 0..100_000), (300_000, 0..300_000), (100_000, 5..10)] {
        let mut blob = ResumingBlob::new(client.clone(), digest, size, range, EAGER, 1);
        let error = blob.next().await.expect_err("another length");
        assert!(matches!(error, SourceError::SizeMismatch { actual: 200_000, .. }), "{error}");
    }
}
