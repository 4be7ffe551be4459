//! A blob's bytes in one go, however often the connection breaks.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use futures_util::{StreamExt, stream};

use super::error::{RegistryError, SourceError, Trouble};
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
    ignores_ranges: bool,
    end_unranged: Option<u64>,
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
            ignores_ranges: false,
            end_unranged: None,
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

    /// Whether the source was asked for a range and sends the whole blob.
    pub fn ignores_ranges(&self) -> bool {
        self.ignores_ranges
    }

    /// Where the source ignores ranges and sends the whole blob, goes on up to
    /// `end`: it would be sent again for whoever else asked for a part.
    pub(super) fn or_up_to(&mut self, end: u64) {
        self.end_unranged = Some(end.min(self.size));
    }

    /// Takes [`Self::or_up_to`] back: somebody else reads what comes after.
    pub(super) fn not_further(&mut self) {
        self.end_unranged = None;
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
            return Err(match stream.facts().length {
                // It promised less than what is wanted.
                Some(_) => self.short(self.rest.start),
                // It promised nothing: an end may be a break.
                None => RegistryError::Broken {
                    what: self.what(),
                    host: stream.from().to_owned(),
                    received: self.rest.start,
                    problem: "it ended too early".to_owned(),
                }
                .into(),
            });
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
        if !facts.range_honoured {
            self.ignores_ranges = true;
            self.rest.end = self.rest.end.max(self.end_unranged.unwrap_or(0));
        }
        self.skip = self.rest.start.saturating_sub(facts.start);
        Ok(stream)
    }

    fn short(&self, actual: u64) -> SourceError {
        SourceError::SizeMismatch { what: self.what(), expected: self.size, actual }
    }

    fn what(&self) -> String {
        format!("blob {} of {}", self.digest, self.source.name())
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::oci::testing::{Memory, Turn};

    fn turn() -> impl Strategy<Value = Turn> {
        (0usize..60, 1usize..20, any::<bool>(), any::<bool>()).prop_map(
            |(bytes, chunk, ignores_range, states_length)| Turn {
                bytes,
                chunk,
                ignores_range,
                states_length,
            },
        )
    }

    proptest! {
        #[test]
        fn what_comes_is_the_range_or_an_error_after_a_true_prefix(
            len in 0usize..100,
            start in 0u64..110,
            end in 0u64..110,
            turns in prop::collection::vec(turn(), 0..12),
            attempts in 1u32..6,
        ) {
            let content: Vec<u8> = (0..len).map(|n| n as u8).collect();
            let digest = Digest::of(&content);
            let expected = content.get(start as usize..(end as usize).min(len)).unwrap_or_default().to_vec();
            let few = turns.len() < attempts as usize;
            // As they are told to, then perfectly.
            let perfect = Turn { chunk: 7, ..Turn::PERFECT };
            let script = move |number: usize, _| turns.get(number - 1).unwrap_or(&perfect).clone();
            let source = Arc::new(Memory::new(content.into(), script));
            let policy = RetryPolicy {
                attempts,
                base: Duration::ZERO,
                cap: Duration::ZERO,
                retry_after_max: Duration::ZERO,
            };
            let mut blob = ResumingBlob::new(source, digest, len as u64, start..end, policy, 1);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
            let (read, error) = runtime.block_on(async {
                let mut read = Vec::new();
                loop {
                    match blob.next().await {
                        Ok(Some(chunk)) => read.extend_from_slice(&chunk),
                        Ok(None) => return (read, None),
                        Err(error) => return (read, Some(error)),
                    }
                }
            });
            prop_assert!(expected.starts_with(&read));
            if error.is_none() {
                prop_assert_eq!(read, expected);
            }
            prop_assert!(error.is_none() || !few, "{:?}", error);
        }
    }
}
