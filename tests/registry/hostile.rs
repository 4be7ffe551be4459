//! Servers that do what a test tells them, and remember what they saw.

use std::sync::{Arc, Mutex};

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::Response;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// A request as a server saw it.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) method: Method,
    /// With the query.
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The asked range, both ends included as on the wire.
    pub(crate) fn range(&self) -> Option<(usize, usize)> {
        let (first, last) = self.header("range")?.strip_prefix("bytes=")?.split_once('-')?;
        Some((first.parse().ok()?, last.parse().ok()?))
    }
}

/// A server on loopback; it ends with the test's runtime.
#[derive(Clone)]
pub(crate) struct Hostile {
    /// `127.0.0.1:port`.
    pub(crate) host: String,
    log: Arc<Mutex<Vec<Seen>>>,
}

impl Hostile {
    /// A well-formed HTTP server with the answers of `handler`.
    pub(crate) async fn start(
        handler: impl Fn(&Seen) -> Response + Clone + Send + Sync + 'static,
    ) -> Self {
        let (listener, this) = Self::listen().await;
        let log = this.log.clone();
        let answer = move |request: Request| {
            let (handler, log) = (handler.clone(), log.clone());
            async move {
                let (parts, body) = request.into_parts();
                let body = axum::body::to_bytes(body, 64 << 20).await.expect("a body");
                let seen = Seen {
                    method: parts.method,
                    path: parts.uri.to_string(),
                    headers: parts.headers,
                    body,
                };
                log.lock().expect("no panic").push(seen.clone());
                handler(&seen)
            }
        };
        let router = axum::Router::new().fallback(answer);
        tokio::spawn(async move { axum::serve(listener, router).await });
        this
    }

    /// A server that writes the very bytes of `handler` to each connection and
    /// closes it; with `None` it never says anything.
    pub(crate) async fn raw(
        handler: impl Fn(&Seen) -> Option<Vec<u8>> + Send + Sync + 'static,
    ) -> Self {
        let (listener, this) = Self::listen().await;
        let (log, handler) = (this.log.clone(), Arc::new(handler));
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let (log, handler) = (log.clone(), handler.clone());
                tokio::spawn(async move {
                    let mut head = Vec::new();
                    let mut byte = [0];
                    while !head.ends_with(b"\r\n\r\n") && socket.read_exact(&mut byte).await.is_ok()
                    {
                        head.push(byte[0]);
                    }
                    let seen = parse_head(&String::from_utf8_lossy(&head));
                    log.lock().expect("no panic").push(seen.clone());
                    match handler(&seen) {
                        // A client that is offended hangs up early.
                        Some(answer) => drop(socket.write_all(&answer).await),
                        None => std::future::pending().await,
                    }
                });
            }
        });
        this
    }

    async fn listen() -> (TcpListener, Self) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let host = listener.local_addr().expect("an address").to_string();
        (listener, Self { host, log: Arc::default() })
    }

    pub(crate) fn reference(&self, name: &str) -> String {
        format!("{}/{name}", self.host)
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.host)
    }

    /// All requests so far.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.log.lock().expect("no panic").clone()
    }

    /// How many requests there were whose path begins like this.
    pub(crate) fn count(&self, path: &str) -> usize {
        self.seen().iter().filter(|seen| seen.path.starts_with(path)).count()
    }
}

fn parse_head(head: &str) -> Seen {
    let mut lines = head.lines();
    let mut words = lines.next().unwrap_or_default().split(' ');
    let method = words.next().and_then(|m| m.parse().ok()).unwrap_or(Method::GET);
    let path = words.next().unwrap_or_default().to_owned();
    let headers = lines
        .filter_map(|line| line.split_once(": "))
        .filter_map(|(name, value)| {
            let name = axum::http::HeaderName::try_from(name).ok()?;
            Some((name, value.parse().ok()?))
        })
        .collect();
    Seen { method, path, headers, body: Bytes::new() }
}

/// An answer with a status, headers and a body.
pub(crate) fn answer(status: u16, headers: &[(&str, &str)], body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = StatusCode::from_u16(status).expect("a status");
    for (name, value) in headers {
        let name = axum::http::HeaderName::try_from(*name).expect("a name");
        response.headers_mut().append(name, value.parse().expect("a value"));
    }
    response
}

pub(crate) fn status(status: u16) -> Response {
    answer(status, &[], Body::empty())
}

/// A manifest without layers, and its digest's text.
pub(crate) fn empty_manifest() -> (Bytes, String) {
    let config = crate::fixture::config("amd64", &[]);
    let manifest = crate::fixture::manifest(&config, &[]);
    let digest = peersync::types::Digest::of(&manifest).to_string();
    (manifest, digest)
}

pub(crate) fn manifest_answer() -> Response {
    let (manifest, _) = empty_manifest();
    answer(200, &[("content-type", peersync::oci::media::OCI_MANIFEST)], manifest)
}

/// A blob with ranges, as honest servers give it.
pub(crate) fn blob_answer(seen: &Seen, content: &[u8]) -> Response {
    match seen.range() {
        None => answer(200, &[], content.to_vec()),
        Some((first, last)) => {
            let last = last.min(content.len() - 1);
            let range = format!("bytes {first}-{last}/{}", content.len());
            answer(206, &[("content-range", &range)], content[first..=last].to_vec())
        }
    }
}
