//! The operator's HTTP endpoint: `/metrics` and `/healthz`.
//!
//! It only tells, and knows no secrets; who may ask is a matter of the address
//! that it listens at, which is loopback unless somebody says otherwise.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::telemetry::MEDIA_TYPE;

/// Most connections at a time; who comes on top waits to be accepted.
const CONNECTIONS_MAX: usize = 32;
/// Most answers that are made at a time; who comes on top is told to come later.
const ANSWERS_MAX: usize = 8;
/// An answer takes no longer than this.
const LIMIT: Duration = Duration::from_secs(30);

/// What is told.
pub trait Vitals: Send + Sync + 'static {
    /// The page for Prometheus.
    fn metrics(self: Arc<Self>) -> Pin<Box<dyn Future<Output = String> + Send>>;

    /// What does not work, in a sentence for each thing; empty: all is well.
    fn ailments(&self) -> Vec<String>;
}

/// Answers until the future is dropped.
///
/// # Errors
/// What the listener fails with.
pub async fn serve_http(listener: TcpListener, vitals: Arc<dyn Vitals>) -> io::Result<()> {
    let slots = Arc::new(Semaphore::new(ANSWERS_MAX));
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .layer(middleware::from_fn_with_state(slots, one_of_a_few))
        .with_state(vitals);
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    axum::serve(Few { listener, connections }, router).await
}

async fn metrics(State(vitals): State<Arc<dyn Vitals>>) -> Response {
    ([(header::CONTENT_TYPE, MEDIA_TYPE)], vitals.metrics().await).into_response()
}

async fn healthz(State(vitals): State<Arc<dyn Vitals>>) -> Response {
    let ailments = vitals.ailments();
    match ailments.is_empty() {
        true => "ok\n".into_response(),
        false => (StatusCode::SERVICE_UNAVAILABLE, ailments.join("\n") + "\n").into_response(),
    }
}

async fn one_of_a_few(
    State(slots): State<Arc<Semaphore>>,
    request: Request,
    next: Next,
) -> Response {
    let Ok(_slot) = slots.try_acquire() else {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    };
    match tokio::time::timeout(LIMIT, next.run(request)).await {
        Ok(response) => response,
        Err(_) => StatusCode::GATEWAY_TIMEOUT.into_response(),
    }
}

/// Accepts a bounded number of connections.
struct Few {
    listener: TcpListener,
    connections: Arc<Semaphore>,
}

/// A connection, and its place among the few.
struct Held {
    stream: TcpStream,
    _place: Option<OwnedSemaphorePermit>,
}

impl Listener for Few {
    type Io = Held;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Held, SocketAddr) {
        // The semaphore is never closed.
        let place = Arc::clone(&self.connections).acquire_owned().await.ok();
        let (stream, address) = Listener::accept(&mut self.listener).await;
        (Held { stream, _place: place }, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

impl AsyncRead for Held {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Held {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
