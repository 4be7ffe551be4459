//! Connections: how many, how long, and how slow.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, Sleep, sleep};
use tracing::{debug, warn};

use super::answer::Answer;
use super::sendfile::Mapped;

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
            let stream = Patient::new(stream);
            let sending = Arc::clone(&stream.sending);
            let service = service_fn(move |request| {
                let (answer, sending) = (answer(request), Arc::clone(&sending));
                async move {
                    let answer = answer.await;
                    let mapped = answer.extensions().get::<Arc<Mapped>>();
                    *lock(&sending) = mapped.map(Arc::downgrade).unwrap_or_default();
                    Ok::<_, Infallible>(answer)
                }
            });
            let served = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIME)
                .max_buf_size(HEAD_MAX)
                .max_headers(HEADERS_MAX)
                .serve_connection(TokioIo::new(stream), service)
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
        let mut counts = lock(&clients.0);
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
        let mut counts = lock(&self.clients.0);
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
    /// The file that is being sent, if it is one.
    sending: Arc<Mutex<Weak<Mapped>>>,
    /// When the write that waits has waited long enough.
    deadline: Option<Pin<Box<Sleep>>>,
}

impl Patient {
    fn new(stream: TcpStream) -> Self {
        Self { stream, sending: Arc::default(), deadline: None }
    }

    /// Writes; what lies in the file that is being sent the kernel takes from there.
    fn write(
        &mut self,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let file = lock(&self.sending).upgrade();
        let place = |slice: &io::IoSlice<'_>| file.as_ref().and_then(|file| file.place(slice));
        let before = slices.iter().take_while(|slice| place(slice).is_none()).count();
        let sent = match (&file, slices.first()) {
            (Some(file), Some(slice)) if before == 0 => {
                place(slice).map(|at| (file, at, slice.len()))
            }
            _ => None,
        };
        let Some((file, at, len)) = sent else {
            return Pin::new(&mut self.stream).poll_write_vectored(context, &slices[..before]);
        };
        loop {
            ready!(self.stream.poll_write_ready(context))?;
            let send = || file.send(&self.stream, at, len);
            match self.stream.try_io(Interest::WRITABLE, send) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // A file system that can't: the mapping is sent as memory.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                    return Pin::new(&mut self.stream).poll_write_vectored(context, slices);
                }
                sent => return Poll::Ready(sent),
            }
        }
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
        let written = self.write(context, slices);
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::StatusCode;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::mirror::answer::with_body;

    const LARGE: usize = 64 << 20;

    /// A server whose every answer is large.
    async fn server() -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listener");
        let address = listener.local_addr().expect("address");
        tokio::spawn(serve(listener, |_| async {
            with_body(StatusCode::OK, LARGE as u64, Body::from(vec![7; LARGE]))
        }));
        TcpStream::connect(address).await.expect("connection")
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_does_not_come_to_its_end_is_not_waited_for() {
        let mut client = server().await;
        client.write_all(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n").await.expect("half a head");
        let begun = Instant::now();
        let mut answer = Vec::new();
        let _ = client.read_to_end(&mut answer).await;
        assert!(answer.len() < 1024, "no more than a refusal");
        assert!(begun.elapsed() >= HEAD_TIME && begun.elapsed() < HEAD_TIME * 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_let_go_and_one_that_is_slow_is_not() {
        let mut client = server().await;
        client.write_all(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("asked");
        let mut buffer = vec![0; 8 << 20];
        let mut taken = 0;
        for _ in 0..6 {
            tokio::time::sleep(WRITE_TIME * 3 / 4).await;
            // Enough that there is room in the connection again.
            taken += client.read_exact(&mut buffer).await.expect("still served");
        }
        tokio::time::sleep(WRITE_TIME * 2).await;
        let mut rest = Vec::new();
        let _ = client.read_to_end(&mut rest).await;
        assert!(taken + rest.len() < LARGE, "{} bytes", taken + rest.len());
    }

    #[test]
    fn places_of_one_address_are_counted() {
        let clients = Arc::<Clients>::default();
        let one = || Clients::admit(&clients, IpAddr::from([10, 0, 0, 1]));
        let mut all: Vec<Client> = (0..CONNECTIONS_OF_ONE_MAX).filter_map(|_| one()).collect();
        assert_eq!(all.len(), CONNECTIONS_OF_ONE_MAX);
        assert!(one().is_none());
        assert!(Clients::admit(&clients, IpAddr::from([10, 0, 0, 2])).is_some());
        all.pop();
        assert!(one().is_some());
        drop(all);
        assert!(lock(&clients.0).is_empty());
    }
}
