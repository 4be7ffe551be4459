//! A blob's bytes in one go, however often the connection breaks.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use futures_util::{StreamExt, stream};

use super::error::{SourceError, Trouble};
use super::retry::{Jitter, RetryPolicy};
use super::source::{BlobStream, ImageSource};
use crate::types::Digest;

/// Reads a range of a blob and goes on where it stopped after a broken
/// connection, as long as that gets it further.
///
/// Where the source ignores ranges, what came already is read again and
/// passed over. The bytes are not verified.
pub struct ResumingBlob {
    source: Arc<dyn ImageSource>,
    digest: Digest,
    /// What is still to come.
    rest: Range<u64>,
    /// Length of the whole blob, as its descriptor says.
    size: u64,
    policy: RetryPolicy,
    jitter: Jitter,
    stream: Option<BlobStream>,
    /// Bytes of the present stream that came before or aren't wanted.
    skip: u64,
    /// Attempts since the last byte that was new.
    barren: u32,
    breaks: u64,
}

impl ResumingBlob {
    /// Prepares to read `range` of a blob that is `size` bytes long; nothing
    /// is asked for yet. `policy` bounds the attempts that bring nothing new;
    /// `seed` is for their jitter.
    pub fn new(
        source: Arc<dyn ImageSource>,
        digest: Digest,
        size: u64,
        range: Range<u64>,
        policy: RetryPolicy,
        seed: u64,
    ) -> Self {
        let end = range.end.min(size);
        Self {
            source,
            digest,
            rest: range.start.min(end)..end,
            size,
            policy,
            jitter: Jitter::new(seed),
            stream: None,
            skip: 0,
            barren: 0,
            breaks: 0,
        }
    }

    /// Offset in the blob of the next byte.
    pub fn position(&self) -> u64 {
        self.rest.start
    }

    /// How many streams broke so far.
    pub fn breaks(&self) -> u64 {
        self.breaks
    }

    /// The next bytes; `None` once all of the range came.
    ///
    /// # Errors
    /// [`SourceError`] where it can't go on: after the policy's number of
    /// attempts in a row that brought nothing, or at once where another
    /// attempt is of no use.
    pub async fn next(&mut self) -> Result<Option<Bytes>, SourceError> {
        while !self.rest.is_empty() {
            match self.step().await {
                Ok(chunk) if chunk.is_empty() => {}
                Ok(chunk) => {
                    self.barren = 0;
                    self.rest.start += chunk.len() as u64;
                    return Ok(Some(chunk));
                }
                Err(error) => self.pause(error).await?,
            }
        }
        self.stream = None;
        Ok(None)
    }

    /// The same as a stream, which ends after an error.
    pub fn into_stream(self) -> impl stream::Stream<Item = Result<Bytes, SourceError>> + Send {
        stream::unfold(Some(self), |this| async {
            let mut this = this?;
            match this.next().await {
                Ok(Some(chunk)) => Some((Ok(chunk), Some(this))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        })
    }

    /// One chunk of the present stream, or of a new one. Empty if all of it
    /// came before.
    async fn step(&mut self) -> Result<Bytes, SourceError> {
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => self.open().await?,
        };
        let Some(chunk) = stream.next().await else {
            // Its promised length was less than what is wanted.
            return Err(self.short(self.rest.start));
        };
        let mut chunk = chunk?;
        let skipped = self.skip.min(chunk.len() as u64);
        self.skip -= skipped;
        chunk.advance(skipped as usize);
        // A source without ranges sends the rest of the blob too.
        chunk.truncate(usize::try_from(self.rest.end - self.rest.start).unwrap_or(usize::MAX));
        self.stream = Some(stream);
        Ok(chunk)
    }

    async fn open(&mut self) -> Result<BlobStream, SourceError> {
        let whole = self.rest == (0..self.size);
        let range = (!whole).then(|| self.rest.clone());
        let stream = self.source.open_blob(&self.digest, range).await?;
        let facts = *stream.facts();
        if let Some(total) = facts.total
            && total != self.size
        {
            return Err(self.short(total));
        }
        self.skip = self.rest.start.saturating_sub(facts.start);
        Ok(stream)
    }

    fn short(&self, actual: u64) -> SourceError {
        SourceError::SizeMismatch {
            what: format!("blob {} of {}", self.digest, self.source.name()),
            expected: self.size,
            actual,
        }
    }

    /// Waits before the next attempt, or gives the error back.
    async fn pause(&mut self, error: SourceError) -> Result<(), SourceError> {
        self.stream = None;
        self.breaks += 1;
        if !matches!(error.trouble(), Trouble::Transient | Trouble::Busy) {
            return Err(error);
        }
        self.barren += 1;
        let random = self.jitter.next();
        let Some(wait) = self.policy.wait(self.barren, None, random) else {
            return Err(error);
        };
        tracing::debug!(%error, position = self.rest.start, ?wait, "the stream broke; going on");
        tokio::time::sleep(wait).await;
        Ok(())
    }
}

impl fmt::Debug for ResumingBlob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ResumingBlob({} at {:?})", self.digest, self.rest)
    }
}
