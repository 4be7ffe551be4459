//! A registry that serves blobs, counts what it sends, and can be slow or gone.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use futures_util::stream;
use peersync::oci::registry::Settings;
use peersync::oci::{Credentials, ImageSource, Registry as Client};
use peersync::types::Digest;

const CHUNK: usize = 64 << 10;

#[derive(Default)]
struct Inner {
    blobs: Mutex<HashMap<String, Bytes>>,
    sent: AtomicU64,
    stopped: AtomicBool,
    /// Bytes per second over all connections; 0: no limit.
    rate: AtomicU64,
    /// When the line is free again.
    line: Mutex<Option<tokio::time::Instant>>,
}

/// It listens on loopback until the test ends.
#[derive(Clone)]
pub struct Registry {
    inner: Arc<Inner>,
    pub address: SocketAddr,
}

impl Registry {
    pub async fn start() -> Self {
        let inner = Arc::new(Inner::default());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let address = listener.local_addr().expect("address");
        let app = Router::new()
            .route("/v2/", get(|| async { StatusCode::OK }))
            .route("/v2/{name}/blobs/{digest}", get(blob))
            .with_state(Arc::clone(&inner));
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { inner, address }
    }

    pub fn put(&self, blob: Bytes) -> Digest {
        let digest = Digest::of(&blob);
        self.inner.blobs.lock().expect("lock").insert(digest.to_string(), blob);
        digest
    }

    /// Bytes of blobs sent so far.
    pub fn sent(&self) -> u64 {
        self.inner.sent.load(Ordering::SeqCst)
    }

    /// Refuses everything from now on, and breaks off what is being sent.
    pub fn stop(&self) {
        self.inner.stopped.store(true, Ordering::SeqCst);
    }

    /// A line of so many bytes per second that all connections share.
    pub fn limit(&self, rate: u64) {
        self.inner.rate.store(rate, Ordering::SeqCst);
    }

    /// A client of it, as a node has one.
    pub fn client(&self) -> Arc<dyn ImageSource> {
        let settings = Settings {
            hosts_dir: None,
            credentials: Credentials::Anonymous,
            ..Settings::default()
        };
        let reference = format!("{}/image:v1", self.address).parse().expect("a reference");
        Arc::new(Client::new(settings).repository(&reference).expect("a repository"))
    }
}

async fn blob(
    State(inner): State<Arc<Inner>>,
    Path((_, digest)): Path<(String, String)>,
    headers: HeaderMap,
) -> Response {
    if inner.stopped.load(Ordering::SeqCst) {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    let blob = inner.blobs.lock().expect("lock").get(&digest).cloned();
    let Some(blob) = blob else { return StatusCode::NOT_FOUND.into_response() };
    let range = headers.get(header::RANGE).and_then(|range| range.to_str().ok()).map(|range| {
        let (from, to) = range.trim_start_matches("bytes=").split_once('-').expect("a range");
        let from: usize = from.parse().expect("a number");
        let to = to.parse::<usize>().map_or(blob.len(), |to| (to + 1).min(blob.len()));
        (from, to)
    });
    let (from, to) = range.unwrap_or((0, blob.len()));
    let part = blob.slice(from..to);
    let length = part.len();
    let chunks = stream::unfold((inner, part), |(inner, mut part)| async move {
        if part.is_empty() {
            return None;
        }
        if inner.stopped.load(Ordering::SeqCst) {
            return Some((Err(std::io::Error::other("stopped")), (inner, Bytes::new())));
        }
        let chunk = part.split_to(part.len().min(CHUNK));
        inner.turn(chunk.len()).await;
        inner.sent.fetch_add(chunk.len() as u64, Ordering::SeqCst);
        Some((Ok(chunk), (inner, part)))
    });
    let mut response = Response::builder().header(header::CONTENT_LENGTH, length);
    if range.is_some() {
        let value = format!("bytes {from}-{}/{}", to - 1, blob.len());
        response =
            response.status(StatusCode::PARTIAL_CONTENT).header(header::CONTENT_RANGE, value);
    }
    response.body(Body::from_stream(chunks)).expect("a response")
}

impl Inner {
    /// Waits until the line has carried what came before.
    async fn turn(&self, bytes: usize) {
        let rate = self.rate.load(Ordering::SeqCst);
        if rate == 0 {
            return;
        }
        let until = {
            let mut line = self.line.lock().expect("lock");
            let now = tokio::time::Instant::now();
            let start = line.map_or(now, |line| line.max(now));
            let until = start + Duration::from_secs_f64(bytes as f64 / rate as f64);
            *line = Some(until);
            until
        };
        tokio::time::sleep_until(until).await;
    }
}
