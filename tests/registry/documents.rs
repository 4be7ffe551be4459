//! Documents that are not what was asked for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::body::{Body, Bytes};
use futures_util::stream;
use peersync::oci::{
    DOCUMENT_MAX, Descriptor, DocumentError, Image, ImageSource, RegistryError, SourceError,
    Target, Trouble, media,
};
use peersync::types::Digest;

use crate::fixture::{config, manifest, plain_layer, repository, settings};
use crate::hostile::{Hostile, answer, blob_answer, empty_manifest, manifest_answer};

#[tokio::test]
async fn an_endless_manifest_is_cut_off() {
    let sent = Arc::new(AtomicU64::new(0));
    let counter = sent.clone();
    let server = Hostile::start(move |_| {
        let counter = counter.clone();
        let endless = stream::repeat_with(move || {
            counter.fetch_add(65536, Ordering::Relaxed);
            Ok::<_, std::io::Error>(Bytes::from_static(&[b' '; 65536]))
        });
        answer(200, &[("content-type", media::OCI_MANIFEST)], Body::from_stream(endless))
    })
    .await;
    let client = repository(settings(), &server.reference("x"));
    let error = client.resolve(&Target::Default).await.expect_err("it never ends");
    assert!(matches!(error, SourceError::Registry(RegistryError::TooLarge { .. })), "{error}");
    // What was read, and what fits into the buffers of two sockets.
    assert!(sent.load(Ordering::Relaxed) < DOCUMENT_MAX + (16 << 20));
}

#[tokio::test]
async fn a_manifest_of_a_hundred_megabytes_is_not_read() {
    let server = Hostile::raw(|_| {
        Some(b"HTTP/1.1 200 OK\r\nContent-Length: 104857600\r\n\r\n{\"schemaVersion\":2,".to_vec())
    })
    .await;
    let client = repository(settings(), &server.reference("x"));
    let error = client.resolve(&Target::Default).await.expect_err("too large");
    assert!(matches!(error, SourceError::Registry(RegistryError::TooLarge { .. })), "{error}");
    assert_eq!(error.trouble(), Trouble::Corrupt);
}

#[tokio::test]
async fn a_trickle_of_bytes_is_cut_off() {
    let server = Hostile::start(|_| {
        // A byte whenever the server gets to run: never idle, never done.
        let trickle = stream::unfold((), |()| async {
            tokio::task::yield_now().await;
            Some((Ok::<_, std::io::Error>(Bytes::from_static(b" ")), ()))
        });
        answer(200, &[], Body::from_stream(trickle))
    })
    .await;
    let mut settings = settings();
    settings.timeouts.document = Duration::from_millis(50);
    let client = repository(settings, &server.reference("x"));
    let error = client.resolve(&Target::Default).await.expect_err("too slow");
    assert!(matches!(error, SourceError::Registry(RegistryError::Timeout { .. })), "{error}");
}

#[tokio::test]
async fn content_with_another_digest_is_not_used() {
    let server = Hostile::start(|_| manifest_answer()).await;
    let client = repository(settings(), &server.reference("x"));
    let asked = Digest::of(b"something else");
    let error = client.manifest(&asked).await.expect_err("not that one");
    assert!(matches!(error, SourceError::DigestMismatch { expected, .. } if expected == asked));
    assert_eq!(error.trouble(), Trouble::Corrupt);

    // By tag only the registry itself can say what it should be.
    let (body, digest) = empty_manifest();
    for (stated, good) in [(digest, true), (asked.to_string(), false)] {
        let body = body.clone();
        let server = Hostile::start(move |_| {
            let headers = [("docker-content-digest", stated.as_str())];
            answer(200, &headers, body.clone())
        })
        .await;
        let client = repository(settings(), &server.reference("x"));
        assert_eq!(client.resolve(&Target::Default).await.is_ok(), good);
    }
}

#[tokio::test]
async fn what_a_tag_means_is_asked_cheaply_where_the_registry_says_it() {
    let (body, digest) = empty_manifest();
    for (headers, asked) in [
        (
            vec![("docker-content-digest", digest.as_str()), ("content-type", media::OCI_MANIFEST)],
            "HEAD",
        ),
        (vec![("content-type", media::OCI_MANIFEST)], "HEADGET"),
        (vec![("docker-content-digest", digest.as_str())], "HEADGET"),
    ] {
        let headers: Vec<_> =
            headers.into_iter().map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
        let body = body.clone();
        let server = Hostile::start(move |_| {
            let headers: Vec<_> = headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
            answer(200, &headers, body.clone())
        })
        .await;
        let client = repository(settings(), &server.reference("x"));
        let found = client.current(&Target::Default).await.expect("found");
        assert_eq!(found.digest.to_string(), digest);
        let methods: Vec<_> = server.seen().iter().map(|s| s.method.to_string()).collect();
        assert_eq!(methods.concat(), asked);
    }
}

#[tokio::test]
async fn pages_and_contradictions_are_no_manifests() {
    let (manifest, _) = empty_manifest();
    let manifest = String::from_utf8(manifest.to_vec()).expect("JSON");
    type Expected = fn(&DocumentError) -> bool;
    let cases: [(&str, String, Expected); 5] = [
        ("text/html", "<html>log in</html>".to_owned(), |e| {
            matches!(e, DocumentError::Malformed(_))
        }),
        (media::OCI_INDEX, manifest, |e| matches!(e, DocumentError::Contradiction { .. })),
        (media::OCI_INDEX, r#"{"schemaVersion":2,"manifests":[],"layers":[]}"#.to_owned(), |e| {
            matches!(e, DocumentError::Ambiguous)
        }),
        (
            "application/vnd.docker.distribution.manifest.v1+prettyjws",
            r#"{"schemaVersion":1,"fsLayers":[]}"#.to_owned(),
            |e| matches!(e, DocumentError::Schema1),
        ),
        ("", "[".repeat(100_000), |e| matches!(e, DocumentError::Malformed(_))),
    ];
    for (media_type, body, expected) in cases {
        let body_text = body.clone();
        let server =
            Hostile::start(move |_| answer(200, &[("content-type", media_type)], body.clone()))
                .await;
        let client = repository(settings(), &server.reference("x"));
        let error = client.resolve(&Target::Default).await.expect_err(media_type);
        let SourceError::Document { problem, .. } = &error else { panic!("{error}") };
        assert!(expected(problem), "{problem} for {:.40}", body_text);
    }
}

#[tokio::test]
async fn a_configuration_must_be_the_one_that_the_manifest_names() {
    let layers = [plain_layer("f", b"f")];
    let good = config("amd64", &layers);
    let longer = Bytes::from([&good[..], b" "].concat());
    let other = Bytes::from(good.iter().map(|b| b ^ 1).collect::<Vec<_>>());
    let short = config("amd64", &[]);
    for (named, served, problem) in [
        (&good, &good, None),
        (&good, &longer, Some("announced")),
        (&good, &other, Some("digest")),
        (&short, &short, Some("has 1 layers and its configuration lists 0")),
    ] {
        let (manifest, served) = (manifest(named, &layers), served.clone());
        let server = Hostile::start(move |seen| {
            if seen.path.contains("/manifests/") {
                answer(200, &[("content-type", media::OCI_MANIFEST)], manifest.clone())
            } else {
                blob_answer(seen, &served)
            }
        })
        .await;
        let client = repository(settings(), &server.reference("x"));
        let outcome = Image::load(&*client, &Target::Default, None).await;
        match (outcome, problem) {
            (Ok(image), None) => assert_eq!(image.layers.len(), 1),
            (Err(error), Some(problem)) => {
                assert!(error.to_string().contains(problem), "{error}");
            }
            (outcome, problem) => panic!("{outcome:?} where {problem:?} was expected"),
        }
    }
}

#[tokio::test]
async fn a_configuration_that_claims_to_be_huge_is_not_asked_for() {
    let server = Hostile::start(|_| answer(200, &[], "{}")).await;
    let client = repository(settings(), &server.reference("x"));
    let huge = Descriptor { size: 1 << 40, ..Descriptor::of(media::OCI_CONFIG, b"{}") };
    let error = client.document(&huge).await.expect_err("too large");
    assert!(matches!(error, SourceError::Document { problem: DocumentError::TooLarge, .. }));
    assert!(server.seen().is_empty());
}

#[tokio::test]
async fn indexes_that_go_round_end() {
    // An index whose only entry is another index, again and again.
    let server = Hostile::start(|seen| {
        let inner = |body: &str| {
            format!(
                r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{}","digest":"{}","size":{}}}]}}"#,
                media::OCI_INDEX,
                Digest::of(body.as_bytes()),
                body.len(),
            )
        };
        let mut chain = vec![r#"{"schemaVersion":2,"manifests":[]}"#.to_owned()];
        for _ in 0..20 {
            chain.push(inner(chain.last().expect("not empty")));
        }
        let wanted = seen.path.rsplit('/').next().unwrap_or_default();
        let found = chain.iter().find(|body| Digest::of(body.as_bytes()).to_string() == wanted);
        let body = found.or(chain.last()).expect("not empty").clone();
        answer(200, &[("content-type", media::OCI_INDEX)], body)
    })
    .await;
    let client = repository(settings(), &server.reference("x"));
    let error = Image::load(&*client, &Target::Default, None).await.expect_err("no image");
    assert!(
        matches!(error, SourceError::Document { problem: DocumentError::TooDeep, .. }),
        "{error}"
    );
    assert!(server.seen().len() < 10);
}
