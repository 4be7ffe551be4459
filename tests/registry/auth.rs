//! Tokens: anonymous, bought with a password or an identity token, renewed.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use axum::body::Body;
use axum::response::Response;
use peersync::oci::{Credentials, ImageSource, Login, RegistryError, Secret, SourceError, Target};

use crate::fixture::{Clock, login, repository, settings};
use crate::hostile::{Hostile, Seen, answer, manifest_answer, status};

/// A registry whose token server is at `realm` (its own `/token` by default),
/// and which accepts the tokens in `valid`.
async fn guarded(
    realm: Option<String>,
    valid: Arc<Mutex<Vec<String>>>,
    token: impl Fn(&Seen) -> Response + Clone + Send + Sync + 'static,
) -> Hostile {
    Hostile::start(move |seen| {
        if seen.path.starts_with("/token") {
            return token(seen);
        }
        let shown = seen.header("authorization").and_then(|v| v.strip_prefix("Bearer "));
        if shown.is_some_and(|shown| valid.lock().expect("no panic").iter().any(|v| v == shown)) {
            return manifest_answer();
        }
        let own = format!("http://{}/token", seen.header("host").unwrap_or_default());
        let realm = realm.clone().unwrap_or(own);
        let challenge = format!(
            "Bearer realm=\"{realm}\",service=\"the service\",scope=\"repository:team/app:pull\""
        );
        answer(401, &[("www-authenticate", &challenge)], Body::empty())
    })
    .await
}

fn token(text: &str) -> Response {
    answer(200, &[], format!(r#"{{"token": "{text}", "expires_in": 300}}"#))
}

fn tokens(tokens: &[&str]) -> Arc<Mutex<Vec<String>>> {
    Arc::new(Mutex::new(tokens.iter().map(|t| (*t).to_owned()).collect()))
}

fn refused(outcome: Result<peersync::oci::Document, SourceError>) -> RegistryError {
    match outcome {
        Err(SourceError::Registry(error)) => error,
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test]
async fn an_anonymous_token_is_fetched_once() {
    let server = guarded(None, tokens(&["T1"]), |_| token("T1")).await;
    let client = repository(settings(), &server.reference("team/app"));
    for _ in 0..3 {
        client.resolve(&Target::Default).await.expect("allowed");
    }
    let asked: Vec<_> =
        server.seen().into_iter().filter(|s| s.path.starts_with("/token")).collect();
    assert_eq!(asked.len(), 1);
    assert!(asked[0].path.contains("service=the+service"), "{}", asked[0].path);
    assert!(asked[0].path.contains("scope=repository%3Ateam%2Fapp%3Apull"), "{}", asked[0].path);
    assert!(asked[0].headers.get("authorization").is_none());
    // One refusal, then three answers.
    assert_eq!(server.count("/v2/"), 4);
}

#[tokio::test]
async fn requests_that_start_together_share_a_token() {
    let server = guarded(None, tokens(&["T1"]), |_| token("T1")).await;
    let client = repository(settings(), &server.reference("team/app"));
    let requests = (0..20).map(|_| {
        let client = client.clone();
        async move { client.resolve(&Target::Default).await.map(drop) }
    });
    for outcome in futures_util::future::join_all(requests).await {
        outcome.expect("allowed");
    }
    assert_eq!(server.count("/token"), 1);
}

#[tokio::test]
async fn a_token_is_renewed_before_it_expires() {
    let valid = tokens(&[]);
    let (issue, count) = (valid.clone(), Arc::new(AtomicUsize::new(0)));
    let server = guarded(None, valid, move |seen| {
        assert_eq!(seen.header("authorization"), Some("Basic YW5uYTpnZWhlaW0="));
        let new = format!("T{}", count.fetch_add(1, Ordering::Relaxed));
        // The old one is worth nothing any more.
        *issue.lock().expect("no panic") = vec![new.clone()];
        token(&new)
    })
    .await;
    let clock = Clock::default();
    let mut settings = settings();
    settings.credentials = login(&server.host, "anna", "geheim");
    clock.install(&mut settings);
    let client = repository(settings, &server.reference("team/app"));
    for seconds in [0, 200, 69, 2, 268, 3, 4000] {
        clock.advance(seconds);
        client.resolve(&Target::Default).await.expect("allowed");
    }
    // At 0, 271, 542 and 4542 s: each lives 300 s and is renewed 30 s early.
    assert_eq!(server.count("/token"), 4);
    // Only the very first request was refused.
    assert_eq!(server.count("/v2/"), 7 + 1);
}

/// Everything that is logged by anything in this process.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no panic").extend_from_slice(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn no_secret_is_logged_at_any_level() {
    let log = Log::default();
    let writer = log.clone();
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .try_init()
        .expect("nobody else logs");
    let server = guarded(None, tokens(&["streng-geheim"]), |_| token("streng-geheim")).await;
    for credentials in [
        login(&server.host, "anna", "geheim"),
        Credentials::Fixed {
            host: server.host.clone(),
            login: Login::Identity(Secret::new("geheim")),
        },
    ] {
        let mut settings = settings();
        settings.credentials = credentials;
        let client = repository(settings, &server.reference("team/app"));
        client.resolve(&Target::Default).await.expect("allowed");
        assert!(client.resolve(&Target::Tag("x".to_owned())).await.is_ok());
    }
    let text = String::from_utf8_lossy(&log.0.lock().expect("no panic")).into_owned();
    assert!(text.contains("/v2/") || text.contains("manifest"), "something is logged: {text}");
    // In clear and in base64.
    assert!(!text.contains("geheim") && !text.contains("YW5uYTpnZWhlaW0"), "{text}");
}

#[tokio::test]
async fn a_token_that_is_withdrawn_is_replaced() {
    let valid = tokens(&["T0"]);
    let (issue, count) = (valid.clone(), Arc::new(AtomicUsize::new(0)));
    let server = guarded(None, valid.clone(), move |_| {
        let new = format!("T{}", count.fetch_add(1, Ordering::Relaxed));
        issue.lock().expect("no panic").push(new.clone());
        token(&new)
    })
    .await;
    let client = repository(settings(), &server.reference("team/app"));
    client.resolve(&Target::Default).await.expect("allowed");
    valid.lock().expect("no panic").clear();
    client.resolve(&Target::Default).await.expect("allowed again");
    assert_eq!(server.count("/token"), 2);
}

#[tokio::test]
async fn an_identity_token_buys_tokens_and_may_change() {
    let server = guarded(None, tokens(&["A1", "A2"]), |seen| {
        assert_eq!(seen.method, "POST");
        assert_eq!(seen.header("content-type"), Some("application/x-www-form-urlencoded"));
        let body = String::from_utf8_lossy(&seen.body);
        assert!(body.contains("grant_type=refresh_token"), "{body}");
        let next = match &*body {
            b if b.contains("refresh_token=R%2F1") => ("A1", "R/2"),
            b if b.contains("refresh_token=R%2F2") => ("A2", "R/3"),
            b => panic!("{b}"),
        };
        let body = format!(
            r#"{{"access_token": "{}", "refresh_token": "{}", "expires_in": 300}}"#,
            next.0, next.1
        );
        answer(200, &[], body)
    })
    .await;
    let clock = Clock::default();
    let mut settings = settings();
    let login = Login::Identity(Secret::new("R/1"));
    settings.credentials = Credentials::Fixed { host: server.host.clone(), login };
    clock.install(&mut settings);
    let client = repository(settings, &server.reference("team/app"));
    client.resolve(&Target::Default).await.expect("allowed");
    clock.advance(299);
    client.resolve(&Target::Default).await.expect("allowed again");
    assert_eq!(server.count("/token"), 2);
}

#[tokio::test]
async fn credentials_do_not_go_to_another_origin_over_plain_http() {
    let thief = Hostile::start(|_| token("T1")).await;
    let server = guarded(Some(thief.url("/token")), tokens(&["T1"]), |_| status(500)).await;
    for credentials in [
        login(&server.host, "anna", "geheim"),
        Credentials::Fixed {
            host: server.host.clone(),
            login: Login::Identity(Secret::new("geheim")),
        },
    ] {
        let mut settings = settings();
        settings.credentials = credentials;
        let client = repository(settings, &server.reference("team/app"));
        let error = refused(client.resolve(&Target::Default).await);
        assert!(matches!(error, RegistryError::InsecureRealm { .. }), "{error}");
        assert!(error.to_string().contains(&thief.host), "{error}");
    }
    assert!(thief.seen().is_empty());
    // Without anything to lose it may be asked.
    let client = repository(settings(), &server.reference("team/app"));
    client.resolve(&Target::Default).await.expect("allowed");
    assert_eq!(thief.seen().len(), 1);
}

#[tokio::test]
async fn a_token_server_that_redirects_gets_no_further_with_a_login() {
    let thief = Hostile::start(|_| token("T1")).await;
    let away = thief.url("/token");
    let server =
        guarded(None, tokens(&["T1"]), move |_| answer(307, &[("location", &away)], Body::empty()))
            .await;
    let mut settings = settings();
    settings.credentials = login(&server.host, "anna", "geheim");
    let client = repository(settings, &server.reference("team/app"));
    let _ = client.resolve(&Target::Default).await;
    for seen in thief.seen() {
        assert!(seen.headers.get("authorization").is_none());
        assert!(!seen.path.contains("geheim"));
    }
}

#[tokio::test]
async fn a_login_that_is_refused_is_reported_without_its_text() {
    for code in [401, 400] {
        let server = guarded(None, tokens(&[]), move |_| {
            answer(code, &[], r#"{"details": "incorrect username or password"}"#)
        })
        .await;
        let mut settings = settings();
        settings.credentials = login(&server.host, "anna", "geheim");
        let client = repository(settings, &server.reference("team/app"));
        let error = refused(client.resolve(&Target::Default).await);
        assert!(matches!(error, RegistryError::Unauthorized { .. }), "{error}");
        let text = format!("{error} {error:?}");
        assert!(text.contains("incorrect username") && text.contains("docker login"), "{text}");
        assert!(!text.contains("geheim") && !text.contains("YW5uYTpnZWhlaW0="), "{text}");
    }
}

#[tokio::test]
async fn a_token_that_does_not_help_ends_the_attempt() {
    let server = guarded(None, tokens(&["another"]), |_| token("T1")).await;
    let client = repository(settings(), &server.reference("team/app"));
    let error = refused(client.resolve(&Target::Default).await);
    assert!(matches!(error, RegistryError::Unauthorized { .. }), "{error}");
    assert_eq!(server.count("/token"), 1);
    assert_eq!(server.count("/v2/"), 2);
}

#[tokio::test]
async fn nonsense_from_a_token_server_is_an_error() {
    for body in ["", "[]", "{}", r#"{"token": ""}"#, r#"{"token": 7}"#, "{\"token\": \"a\\nb\"}"] {
        let server = guarded(None, tokens(&["T1"]), move |_| answer(200, &[], body)).await;
        let client = repository(settings(), &server.reference("team/app"));
        let error = refused(client.resolve(&Target::Default).await);
        assert!(matches!(error, RegistryError::Protocol { .. }), "{body}: {error}");
    }
    for realm in ["", "/token", "ftp://127.0.0.1/t", "no url"] {
        let server = guarded(Some(realm.to_owned()), tokens(&["T1"]), |_| token("T1")).await;
        let client = repository(settings(), &server.reference("team/app"));
        let error = refused(client.resolve(&Target::Default).await);
        assert!(matches!(error, RegistryError::Protocol { .. }), "{realm}: {error}");
    }
}

#[tokio::test]
async fn a_broken_helper_matters_only_where_a_login_does() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("config.json");
    std::fs::write(&file, r#"{"credsStore": "surely-not-installed"}"#).expect("written");
    let with_helper = || {
        let mut settings = settings();
        let paths = vec![file.clone()];
        settings.credentials = Credentials::Files { paths, helper_path: None };
        settings
    };
    let public = guarded(None, tokens(&["T1"]), |_| token("T1")).await;
    let client = repository(with_helper(), &public.reference("team/app"));
    client.resolve(&Target::Default).await.expect("allowed");

    let private = guarded(None, tokens(&["T1"]), |_| status(401)).await;
    let client = repository(with_helper(), &private.reference("team/app"));
    let error = refused(client.resolve(&Target::Default).await);
    assert!(error.to_string().contains("docker-credential-surely-not-installed"), "{error}");
}
