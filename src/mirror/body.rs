//! The bytes of a blob on their way to one client.
//!
//! A client is given bytes as it takes them, at most [`PIECE`] ahead: who reads
//! slowly costs a piece and a connection. The last byte of a blob that is not
//! proved is held back until it is: where it is not what it should be, the
//! connection is broken, and the client knows that it has nothing.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use tokio::sync::watch;
use tracing::error;

use super::flight::{Failure, Flight, Stage};
use super::held::{Held, Source};
use crate::blocks::{ReadRequest, StreamId};
use crate::fetch::{Arriving, ExactBlob};
use crate::oci::{BlobStream, ImageSource, RegistryClient};
use crate::types::{Digest, DigestHasher};

/// Bytes given to a client at a time.
pub(super) const PIECE: u64 = 256 << 10;

/// The bytes of a blob that is held, or of which there is an index.
pub(super) fn held(
    source: &Arc<Source>,
    blob: Digest,
    exact: ExactBlob,
    range: Range<u64>,
) -> Body {
    let reading = Reading::new(Arc::clone(source), blob, exact, range);
    Body::from_stream(stream::try_unfold(reading, |mut reading| async move {
        Ok::<_, io::Error>(reading.next().await?.map(|bytes| (bytes, reading)))
    }))
}

/// The bytes of a blob that is on its way.
pub(super) fn flying(
    source: &Arc<Source>,
    blob: Digest,
    flight: Arc<Flight>,
    arriving: Arc<Arriving>,
    upstream: RegistryClient,
    range: Range<u64>,
) -> Body {
    let stage = flight.stage();
    let received = arriving.received();
    let following = Following {
        source: Arc::clone(source),
        blob,
        stage,
        received,
        arriving,
        upstream,
        range,
        after: After::Nothing,
        _flight: flight,
    };
    Body::from_stream(stream::try_unfold(following, |mut following| async move {
        Ok::<_, io::Error>(following.next().await?.map(|bytes| (bytes, following)))
    }))
}

/// Bytes as upstream sends them, not kept.
pub(super) fn passed(stream: BlobStream) -> Body {
    Body::from_stream(stream.map(|chunk| chunk.map_err(io::Error::other)))
}

/// Reads an object, which may still have to come.
struct Reading {
    source: Arc<Source>,
    blob: Digest,
    exact: ExactBlob,
    /// For readahead.
    stream: Option<StreamId>,
    left: Range<u64>,
    /// Of a whole blob whose index is somebody else's: what its bytes are.
    proof: Option<DigestHasher>,
}

impl Reading {
    fn new(source: Arc<Source>, blob: Digest, exact: ExactBlob, left: Range<u64>) -> Self {
        let whole = left == (0..exact.length());
        let proof = (whole && !source.is_proved(&blob, &exact)).then(DigestHasher::default);
        let stream = exact.object().map(|object| source.reader.open(object, 0..exact.length()));
        Self { source, blob, exact, stream, left, proof }
    }

    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        let (Some(object), Some(stream)) = (self.exact.object().copied(), self.stream) else {
            return Ok(None);
        };
        if self.left.is_empty() {
            return Ok(None);
        }
        // Pieces end where blocks may.
        let end = (self.left.start / PIECE + 1) * PIECE;
        let len = end.min(self.left.end) - self.left.start;
        let request = ReadRequest { stream, object, offset: self.left.start, len: len as u32 };
        let bytes = self.source.read(request).await.map_err(io::Error::other)?;
        self.left.start += bytes.len() as u64;
        if let Some(proof) = &mut self.proof {
            proof.update(&bytes);
        }
        if self.left.is_empty()
            && let Some(proof) = self.proof.take()
        {
            if proof.finish() != self.blob {
                error!(blob = %self.blob, "its blocks, by a peer's index, do not make the digest");
                return Err(io::Error::other("the blob is not what its digest says"));
            }
            self.source.prove(&self.blob);
        }
        Ok(Some(bytes))
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        if let Some(stream) = self.stream {
            self.source.reader.close(stream);
        }
    }
}

/// Reads what a pass brings, as it comes.
struct Following {
    source: Arc<Source>,
    blob: Digest,
    stage: watch::Receiver<Stage>,
    received: watch::Receiver<u64>,
    arriving: Arc<Arriving>,
    upstream: RegistryClient,
    range: Range<u64>,
    after: After,
    _flight: Arc<Flight>,
}

/// Where the bytes come from after the pass.
enum After {
    /// The pass goes on.
    Nothing,
    /// From the object that the blob has become.
    Object(Box<Reading>),
    /// From upstream, since the store does not take it.
    Upstream(BlobStream),
}

impl Following {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            match &mut self.after {
                After::Object(reading) => return reading.next().await,
                After::Upstream(stream) => {
                    return stream.next().await.transpose().map_err(io::Error::other);
                }
                After::Nothing if self.range.is_empty() => return Ok(None),
                After::Nothing => {}
            }
            let stage = self.stage.borrow_and_update().clone();
            match stage {
                Stage::Here => self.go_on_in_the_object().await?,
                Stage::Failed(failure) => self.go_on_upstream(&failure).await?,
                Stage::Opening | Stage::Arriving(_) => {
                    // The last byte is given when it is known to be the right one.
                    let received = *self.received.borrow_and_update();
                    let end = received.min(self.arriving.size() - 1).min(self.range.end);
                    if self.range.start < end
                        && let Some(bytes) = self.read(end).await?
                    {
                        self.range.start += bytes.len() as u64;
                        return Ok(Some(bytes));
                    }
                    if self.range.start < end {
                        // Just ended: the stage says how.
                        let _ = self.stage.changed().await;
                        continue;
                    }
                    tokio::select! {
                        changed = self.stage.changed() => if changed.is_err() {
                            return Err(io::Error::other("the fetch was given up"));
                        },
                        _ = self.received.changed() => {}
                    }
                }
            }
        }
    }

    /// Bytes up to `end` from memory or disk; `None` if the pass has just ended.
    async fn read(&mut self, end: u64) -> io::Result<Option<Bytes>> {
        let position = self.range.start;
        let most = (end - position).min(PIECE) as usize;
        if let Some(mut bytes) = self.arriving.latest(position) {
            bytes.truncate(most);
            return Ok(Some(bytes));
        }
        let arriving = Arc::clone(&self.arriving);
        let read = tokio::task::spawn_blocking(move || arriving.read(position, most)).await;
        let bytes = read.map_err(io::Error::other)?.map_err(io::Error::other)?;
        Ok(bytes.filter(|bytes| !bytes.is_empty()))
    }

    async fn go_on_in_the_object(&mut self) -> io::Result<()> {
        let exact = match self.source.held(&self.blob).await {
            Some(Held::Exact(exact)) if exact.length() == self.arriving.size() => exact,
            _ => return Err(io::Error::other("the blob is gone")),
        };
        let (source, left) = (Arc::clone(&self.source), self.range.clone());
        self.after = After::Object(Box::new(Reading::new(source, self.blob, exact, left)));
        Ok(())
    }

    async fn go_on_upstream(&mut self, failure: &Failure) -> io::Result<()> {
        let Failure::Store(_) = failure else { return Err(io::Error::other(failure.message())) };
        let range = self.range.clone();
        let stream = self.upstream.open_blob(&self.blob, Some(range)).await;
        let stream = stream.map_err(io::Error::other)?;
        if stream.facts().start != self.range.start {
            return Err(io::Error::other("the registry gives no ranges"));
        }
        self.after = After::Upstream(stream);
        Ok(())
    }
}
