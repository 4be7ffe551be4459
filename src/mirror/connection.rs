//! Connections: how many, how long, and how slow.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, Sleep, sleep};
use tracing::{debug, warn};

use super::answer::Answer;

/// Connections at a time, and those of one address.
const CONNECTIONS_MAX: usize = 1024;
const CONNECTIONS_OF_ONE_MAX: usize = 512;
/// A request's head has to come within this, and the next one after an answer.
const HEAD_TIME: Duration = Duration::from_secs(60);
/// A client that takes nothing for this long is let go.
const WRITE_TIME: Duration = Duration::from_secs(120);
/// Bytes of a request's head, and its headers.
const HEAD_MAX: usize = 32 << 10;
const HEADERS_MAX: usize = 64;
/// After a failure to accept, as when there are no more descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves connections for ever.
pub(super) async fn serve<F, A>(listener: TcpListener, answer: F)
where
    F: Fn(Request<Incoming>) -> A + Clone + Send + 'static,
    A: Future<Output = Answer> + Send + 'static,
{
    let all = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let clients = Arc::<Clients>::default();
    loop {
        let Ok(place) = Arc::clone(&all).acquire_owned().await else { return };
        let (stream, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!("mirror: no connection accepted: {error}");
                sleep(PAUSE).await;
                continue;
            }
        };
        let Some(client) = Clients::admit(&clients, address.ip().to_canonical()) else {
            debug!(%address, "too many connections");
            continue;
        };
        let _ = stream.set_nodelay(true);
        let answer = answer.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let answer = answer(request);
                async move { Ok::<_, Infallible>(answer.await) }
            });
            let served = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIME)
                .max_buf_size(HEAD_MAX)
                .max_headers(HEADERS_MAX)
                .serve_connection(TokioIo::new(Patient::new(stream)), service)
                .await;
            if let Err(error) = served {
                debug!(%address, "connection: {error}");
            }
            drop((client, place));
        });
    }
}

/// Connections by address. Bounded by the connections.
#[derive(Default)]
struct Clients(Mutex<HashMap<IpAddr, usize>>);

/// A connection's place among those of its address.
struct Client {
    clients: Arc<Clients>,
    address: IpAddr,
}

impl Clients {
    fn admit(clients: &Arc<Self>, address: IpAddr) -> Option<Client> {
        let mut counts = clients.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(address).or_default();
        if *count >= CONNECTIONS_OF_ONE_MAX {
            return None;
        }
        *count += 1;
        drop(counts);
        Some(Client { clients: Arc::clone(clients), address })
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let mut counts = self.clients.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

/// A connection that fails when the other end takes nothing for too long.
struct Patient {
    stream: TcpStream,
    /// When the write that waits has waited long enough.
    deadline: Option<Pin<Box<Sleep>>>,
}

impl Patient {
    fn new(stream: TcpStream) -> Self {
        Self { stream, deadline: None }
    }

    fn patience<T>(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.deadline = None;
            return written;
        }
        let until = Instant::now() + WRITE_TIME;
        let deadline =
            self.deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
        match deadline.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncRead for Patient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Patient {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.patience(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.patience(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
