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

    /// As [`Events::send`], from a thread that may block.
    pub fn send_blocking(&self, event: Event) -> bool {
        self.0.blocking_send(event).is_ok()
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

#[cfg(test)]
mod tests {
    use super::super::client::Client;
    use super::super::protocol::{Progress, Stage};
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::sync::Notify;

    /// Tells a note and progress, then waits for ever on `Images`.
    #[derive(Default)]
    struct Fake {
        clients: AtomicUsize,
        withdrawn: Arc<Notify>,
    }

    struct Withdrawn(Arc<Notify>);

    impl Drop for Withdrawn {
        fn drop(&mut self) {
            self.0.notify_one();
        }
    }

    impl Service for Fake {
        fn handle(
            self: Arc<Self>,
            request: Request,
            events: Events,
        ) -> Pin<Box<dyn Future<Output = Result<Event, Failure>> + Send>> {
            Box::pin(async move {
                match request {
                    Request::Ping => {
                        let stage = Stage::Fetch;
                        let progress = Progress {
                            layer: "l".into(),
                            stage,
                            done: 1,
                            total: 2,
                            sources: Default::default(),
                        };
                        events.tell(Event::Progress(progress));
                        Ok(Event::Pong { pid: 7 })
                    }
                    Request::Images => {
                        let _guard = Withdrawn(Arc::clone(&self.withdrawn));
                        std::future::pending().await
                    }
                    _ => Err(Failure::new(FailureKind::NotFound, "nothing here")),
                }
            })
        }

        fn client(&self, came: bool) {
            let _ = if came {
                self.clients.fetch_add(1, Ordering::SeqCst)
            } else {
                self.clients.fetch_sub(1, Ordering::SeqCst)
            };
        }
    }

    async fn start() -> (tempfile::TempDir, Arc<Fake>) {
        let dir = tempfile::tempdir().expect("directory");
        let listener = UnixListener::bind(dir.path().join(super::super::SOCKET)).expect("bind");
        let fake = Arc::new(Fake::default());
        tokio::spawn(serve(listener, Arc::clone(&fake) as Arc<dyn Service>));
        (dir, fake)
    }

    async fn ask(dir: &tempfile::TempDir, request: &Request) -> Client {
        let stream = super::super::connect(dir.path()).await.expect("connects");
        Client::request(stream, request).await.expect("sent")
    }

    #[tokio::test]
    async fn events_come_in_order_and_the_answer_last() {
        let (dir, _fake) = start().await;
        let mut client = ask(&dir, &Request::Ping).await;
        assert!(matches!(client.event().await, Ok(Event::Progress(_))));
        assert!(matches!(client.event().await, Ok(Event::Pong { pid: 7 })));
        let mut client = ask(&dir, &Request::Layers).await;
        let Ok(Event::Failed(failure)) = client.event().await else { panic!("no failure") };
        assert_eq!(failure.kind.exit_code(), 3);
    }

    #[tokio::test]
    async fn a_client_that_leaves_withdraws_its_request() {
        let (dir, fake) = start().await;
        let client = ask(&dir, &Request::Images).await;
        // The request is under way once another one has been answered after it.
        assert!(ask(&dir, &Request::Ping).await.event().await.is_ok());
        drop(client);
        fake.withdrawn.notified().await;
    }

    #[tokio::test]
    async fn what_is_no_request_is_answered_with_a_usage_error() {
        use tokio::io::AsyncReadExt;
        let (dir, _fake) = start().await;
        for bad in ["{}\n", "hello\n", "{\"op\":\"fly\"}\n", "\n"] {
            let mut stream = super::super::connect(dir.path()).await.expect("connects");
            stream.write_all(bad.as_bytes()).await.expect("sent");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.expect("answer");
            assert!(answer.contains("\"usage\""), "{bad}: {answer}");
        }
    }
}
