//! Giving content away: uploads that lead elsewhere, lists of referrers.

use std::sync::{Arc, Mutex};

use axum::body::{Body, Bytes};
use peersync::oci::{Artifact, Descriptor, ImageSource, RegistryError, SourceError, media};
use peersync::types::Digest;

use crate::fixture::{login, repository, settings};
use crate::hostile::{Hostile, answer, status};

fn artifact() -> Artifact {
    Artifact {
        artifact_type: "application/vnd.test".to_owned(),
        subject: Descriptor::of(media::OCI_MANIFEST, b"subject"),
        layers: Vec::new(),
        annotations: [("n".to_owned(), "1".to_owned())].into(),
    }
}

#[tokio::test]
async fn an_upload_that_goes_elsewhere_goes_without_the_login() {
    let storage = Hostile::start(|_| status(201)).await;
    let target = storage.url("/upload?session=1");
    let registry =
        Hostile::start(move |seen| match (seen.header("authorization"), seen.method.as_str()) {
            (None, _) => answer(401, &[("www-authenticate", "Basic realm=x")], Body::empty()),
            (_, "POST") => answer(202, &[("location", &target)], Body::empty()),
            _ => status(404),
        })
        .await;
    let mut settings = settings();
    settings.credentials = login(&registry.host, "anna", "geheim");
    let client = repository(settings, &registry.reference("x"));
    let digest = Digest::of(b"blob");
    client.push_blob(&digest, Bytes::from_static(b"blob")).await.expect("taken");
    let seen = storage.seen();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].body, "blob");
    assert!(seen[0].headers.get("authorization").is_none());
    let query = format!("/upload?session=1&digest=sha256%3A{}", digest.hex());
    assert_eq!(seen[0].path, query);
}

#[tokio::test]
async fn an_upload_that_is_redirected_is_refused() {
    let registry = Hostile::start(|seen| match seen.method.as_str() {
        "POST" => answer(302, &[("location", "/elsewhere")], Body::empty()),
        _ => status(404),
    })
    .await;
    let client = repository(settings(), &registry.reference("x"));
    let error = client.push_blob(&Digest::of(b"blob"), Bytes::from_static(b"blob")).await;
    let error = error.expect_err("not followed");
    assert!(matches!(error, SourceError::Registry(RegistryError::Redirect { .. })), "{error}");
}

#[tokio::test]
async fn a_failing_upload_is_begun_anew() {
    let failures = Arc::new(Mutex::new(2));
    let registry = Hostile::start(move |seen| match seen.method.as_str() {
        "POST" => answer(202, &[("location", "/v2/x/blobs/uploads/1")], Body::empty()),
        "PUT" => {
            let mut left = failures.lock().expect("no panic");
            if *left == 0 {
                status(201)
            } else {
                *left -= 1;
                status(502)
            }
        }
        _ => status(404),
    })
    .await;
    let client = repository(settings(), &registry.reference("x"));
    client.push_blob(&Digest::of(b"blob"), Bytes::from_static(b"blob")).await.expect("taken");
    let methods: Vec<_> = registry.seen().iter().map(|s| s.method.to_string()).collect();
    assert_eq!(methods.concat(), "HEADPOSTPUT".repeat(3));
}

/// A registry that keeps manifests, with the referrers API or without.
async fn keeper(api: bool) -> (Hostile, Arc<Mutex<Vec<(String, Bytes)>>>) {
    let kept: Arc<Mutex<Vec<(String, Bytes)>>> = Arc::default();
    let inside = kept.clone();
    let server = Hostile::start(move |seen| {
        let name = seen.path.rsplit('/').next().unwrap_or_default().to_owned();
        let mut kept = inside.lock().expect("no panic");
        match seen.method.as_str() {
            // Every blob is there.
            "HEAD" => status(200),
            "PUT" => {
                kept.push((name, seen.body.clone()));
                let subject = [("oci-subject", "sha256:x")];
                answer(201, if api { &subject } else { &[] }, Body::empty())
            }
            _ => match kept.iter().rfind(|(kept, _)| *kept == name) {
                Some((_, body)) => answer(200, &[], body.clone()),
                None => status(404),
            },
        }
    })
    .await;
    (server, kept)
}

#[tokio::test]
async fn the_fallback_list_is_kept_only_where_it_is_needed() {
    for api in [true, false] {
        let (server, kept) = keeper(api).await;
        let client = repository(settings(), &server.reference("x"));
        let entry = client.push_referrer(&artifact()).await.expect("taken");
        let names: Vec<_> = kept.lock().expect("no panic").iter().map(|(n, _)| n.clone()).collect();
        let mut expected = vec![entry.digest.to_string()];
        expected.extend((!api).then(|| artifact().subject.digest.file_name()));
        assert_eq!(names, expected);
        if !api {
            let found = client.referrers(&artifact().subject.digest, None).await.expect("found");
            assert_eq!(found, [entry]);
        }
    }
}

#[tokio::test]
async fn a_list_that_others_overwrite_is_written_again_but_not_for_ever() {
    // The list is always empty when it is read.
    let server = Hostile::start(|seen| match seen.method.as_str() {
        "HEAD" => status(200),
        "PUT" => status(201),
        _ => status(404),
    })
    .await;
    let client = repository(settings(), &server.reference("x"));
    let error = client.push_referrer(&artifact()).await.expect_err("it never sticks");
    assert!(error.to_string().contains("others kept changing"), "{error}");
    assert!(server.seen().len() < 20);
}

#[tokio::test]
async fn what_is_no_list_is_not_overwritten() {
    let server = Hostile::start(|seen| match seen.method.as_str() {
        "HEAD" => status(200),
        "PUT" => status(201),
        _ => crate::hostile::manifest_answer(),
    })
    .await;
    let client = repository(settings(), &server.reference("x"));
    assert!(client.push_referrer(&artifact()).await.is_err());
    let written = server.seen().iter().filter(|s| s.method == "PUT").count();
    assert_eq!(written, 1, "only the artifact's own manifest");
}

fn list(entries: &[&[u8]]) -> String {
    let entries: Vec<_> = entries
        .iter()
        .map(|content| {
            serde_json::json!({
                "mediaType": media::OCI_MANIFEST,
                "digest": Digest::of(content).to_string(),
                "size": content.len(),
                "artifactType": if content.len() == 1 { "short" } else { "long" },
            })
        })
        .collect();
    serde_json::json!({"schemaVersion": 2, "mediaType": media::OCI_INDEX, "manifests": entries})
        .to_string()
}

#[tokio::test]
async fn pages_of_a_list_are_put_together_and_filtered() {
    let server = Hostile::start(|seen| match seen.path.as_str() {
        path if path.contains("page=2") => answer(200, &[], list(&[b"3", b"44"])),
        path if path.contains("/referrers/") => {
            let link = "</v2/x/referrers/next?page=2>; rel=\"next\"";
            answer(200, &[("link", link)], list(&[b"1", b"22"]))
        }
        _ => status(404),
    })
    .await;
    let client = repository(settings(), &server.reference("x"));
    let subject = Digest::of(b"subject");
    let digests = |found: Vec<Descriptor>| found.iter().map(|d| d.digest).collect::<Vec<_>>();
    let all = client.referrers(&subject, None).await.expect("found");
    assert_eq!(digests(all), [b"1".as_slice(), b"22", b"3", b"44"].map(Digest::of));
    // The server did not filter: we do.
    let short = client.referrers(&subject, Some("short")).await.expect("found");
    assert_eq!(digests(short), [b"1", b"3"].map(|c| Digest::of(c)));
    assert!(server.seen().iter().any(|s| s.path.contains("artifactType=short")));
}

#[tokio::test]
async fn a_list_that_goes_on_for_ever_or_elsewhere_ends() {
    let endless = Hostile::start(|_| {
        answer(200, &[("link", "</v2/x/referrers/a>; rel=\"next\"")], list(&[b"1"]))
    })
    .await;
    let client = repository(settings(), &endless.reference("x"));
    client.referrers(&Digest::of(b"s"), None).await.expect("cut off");
    assert!(endless.seen().len() <= 16);

    let other = Hostile::start(|_| status(500)).await;
    let link = format!("<{}>; rel=\"next\"", other.url("/v2/x/referrers/a"));
    let server = Hostile::start(move |_| answer(200, &[("link", &link)], list(&[b"1"]))).await;
    let client = repository(settings(), &server.reference("x"));
    client.referrers(&Digest::of(b"s"), None).await.expect_err("not followed");
    assert!(other.seen().is_empty());
}
