//! The owner's side of the control socket.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tracing::{debug, warn};

use super::protocol::{Event, Failure, FailureKind, Request};

/// Longest request, in bytes.
const REQUEST_MAX: u64 = 64 << 10;
/// Most events on their way to a slow client; progress beyond it is dropped.
const EVENTS_MAX: usize = 64;

/// What answers requests.
pub trait Service: Send + Sync + 'static {
    /// Does what is asked and gives the last event. Others go to `events` as
    /// they happen. Dropping the future withdraws the request.
    fn handle(
        self: Arc<Self>,
        request: Request,
        events: Events,
    ) -> Pin<Box<dyn Future<Output = Result<Event, Failure>> + Send>>;

    /// A client came (`true`) or went.
    fn client(&self, came: bool);
}

/// Where events of one request go.
#[derive(Clone)]
pub struct Events(mpsc::Sender<Event>);

impl Events {
    /// Sends progress or a note; dropped where the client does not keep up.
    pub fn tell(&self, event: Event) {
        let _ = self.0.try_send(event);
    }

    /// Sends an event that must not be dropped; `false`: the client is gone.
    pub async fn send(&self, event: Event) -> bool {
        self.0.send(event).await.is_ok()
    }
}

/// Answers clients until the listener fails or the future is dropped.
///
/// # Errors
/// What `accept` fails with, save a client that is gone already.
pub async fn serve(listener: UnixListener, service: Arc<dyn Service>) -> io::Result<()> {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let service = Arc::clone(&service);
                service.client(true);
                tokio::spawn(async move {
                    if let Err(error) = converse(stream, Arc::clone(&service)).await {
                        debug!("control socket: {error}");
                    }
                    service.client(false);
                });
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                warn!("control socket: {error}");
                return Err(error);
            }
        }
    }
}

async fn converse(mut stream: UnixStream, service: Arc<dyn Service>) -> io::Result<()> {
    let (read, mut write) = stream.split();
    let mut reader = BufReader::new(read.take(REQUEST_MAX));
    let mut line = String::new();
    reader.read_line(&mut line).await?;
    let (sender, mut events) = mpsc::channel(EVENTS_MAX);
    let answer = async {
        match serde_json::from_str::<Request>(&line) {
            Ok(request) => service.handle(request, Events(sender)).await,
            Err(error) => Err(Failure::new(FailureKind::Usage, format!("not a request: {error}"))),
        }
    };
    tokio::pin!(answer);
    let mut hangup = [0u8; 1];
    loop {
        tokio::select! {
            biased;
            Some(event) = events.recv() => write_line(&mut write, &event).await?,
            last = &mut answer => {
                while let Ok(event) = events.try_recv() {
                    write_line(&mut write, &event).await?;
                }
                return write_line(&mut write, &last.unwrap_or_else(Event::Failed)).await;
            }
            // A client has nothing more to say: bytes or their end mean that it left.
            _ = reader.read(&mut hangup) => return Ok(()),
        }
    }
}

async fn write_line(write: &mut (impl AsyncWriteExt + Unpin), event: &Event) -> io::Result<()> {
    let mut line = serde_json::to_vec(event)?;
    line.push(b'\n');
    write.write_all(&line).await
}
