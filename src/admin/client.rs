//! A command's side of the control socket.

use std::io;
use std::path::Path;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedReadHalf;

use super::protocol::{Event, Request, SOCKET};

/// One request on its way. Dropping it withdraws the request.
pub struct Client {
    lines: tokio::io::Lines<BufReader<OwnedReadHalf>>,
    _write: tokio::net::unix::OwnedWriteHalf,
}

/// Why the owner's answer is missing.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The socket broke.
    #[error("the process that owns the store went away: {0}")]
    Io(#[from] io::Error),
    /// The connection ended before the answer.
    #[error(
        "the process that owns the store ended before it answered; its log is {0:?} in the store"
    )]
    Ended(&'static str),
    /// The owner speaks another version.
    #[error("the process that owns the store answered what this version does not know: {0}")]
    Version(#[from] serde_json::Error),
}

/// Connects to the owner of the store at `store`.
///
/// # Errors
/// `NotFound` or `ConnectionRefused` where the store has no owner.
pub async fn connect(store: &Path) -> io::Result<UnixStream> {
    UnixStream::connect(store.join(SOCKET)).await
}

impl Client {
    /// Sends a request.
    ///
    /// # Errors
    /// [`ClientError::Io`].
    pub async fn request(stream: UnixStream, request: &Request) -> Result<Self, ClientError> {
        let (read, mut write) = stream.into_split();
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        write.write_all(&line).await?;
        Ok(Self { lines: BufReader::new(read).lines(), _write: write })
    }

    /// The next event.
    ///
    /// # Errors
    /// [`ClientError`] where the owner ends, breaks off or is of another version.
    pub async fn event(&mut self) -> Result<Event, ClientError> {
        match self.lines.next_line().await? {
            Some(line) => Ok(serde_json::from_str(&line)?),
            None => Err(ClientError::Ended("owner.log")),
        }
    }
}
