//! Registries and OCI layouts as a source of blocks.
//!
//! The unit is the span: the compressed blob is entered at the seek point at or
//! before the run, read in one range request, decoded, and cut into blocks.
//! Every block that passes whole is given on.

use std::collections::{HashSet, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::mpsc;
use tracing::debug;

use super::assemble::{Assembler, CutState, RawBlock};
use super::index::LayerIndex;
use super::source::{BlockSink, BlockSource, SourceError, SourceFuture};
use crate::layer::seek::Compression;
use crate::layer::span::{SpanDecoder, SpanError};
use crate::oci::{BlobStream, ImageSource, Trouble};
use crate::telemetry::Counters;
use crate::types::{Digest, VerifiedBlock};

/// Chunks on their way from the network to the decoder: with hyper's chunks of
/// at most some 100 KiB this bounds a run's memory.
const CHUNKS: usize = 16;

/// Knows which repositories have a blob.
pub trait Origins: Send + Sync + 'static {
    /// The sources that have the blob, best first.
    fn sources(&self, blob: &Digest) -> Vec<Arc<dyn ImageSource>>;
}

/// The source of last resort: the registries that images came from.
pub struct RegistrySource {
    origins: Arc<dyn Origins>,
    counters: Arc<Counters>,
    /// Blobs whose registry ignores ranges. Bounded by the layers in use.
    no_ranges: Mutex<HashSet<Digest>>,
    parked: Parked,
}

/// Decoders that stopped between two seek points. A run that begins behind one
/// goes on with it instead of reading and decoding from the point again.
#[derive(Default)]
struct Parked(Mutex<VecDeque<(Digest, Stopped)>>);

/// Where a decoder stopped: the decoder, the next byte of the blob, and the
/// blocks of which it has passed a part.
struct Stopped {
    span: SpanDecoder,
    blob: u64,
    cut: CutState,
}

/// Most decoders kept: one holds about 80 KiB.
const PARKED_MAX: usize = 64;
/// Most bytes of unfinished blocks kept with them.
const PARKED_BYTES_MAX: usize = 16 << 20;

impl Parked {
    fn park(&self, blob: Digest, stopped: Stopped) {
        let mut parked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        parked.push_back((blob, stopped));
        let mut bytes: usize = parked.iter().map(|(_, stopped)| stopped.cut.bytes()).sum();
        while parked.len() > PARKED_MAX || bytes > PARKED_BYTES_MAX {
            let Some((_, oldest)) = parked.pop_front() else { break };
            bytes -= oldest.cut.bytes();
        }
    }

    /// The decoder that stopped last before a place in the stream, if it is
    /// behind the seek point.
    fn take(&self, blob: &Digest, point: u64, stream: u64) -> Option<Stopped> {
        let mut parked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let at = |stopped: &Stopped| stopped.span.stream_offset();
        let (index, _) = parked
            .iter()
            .enumerate()
            .filter(|(_, (of, s))| of == blob && at(s) > point)
            .filter(|(_, (_, s))| at(s) <= stream || s.cut.has_begun(stream))
            .max_by_key(|(_, (_, s))| at(s))?;
        parked.remove(index).map(|(_, stopped)| stopped)
    }
}

impl RegistrySource {
    /// A source that asks what `origins` names.
    pub fn new(origins: Arc<dyn Origins>, counters: Arc<Counters>) -> Arc<Self> {
        Arc::new(Self { origins, counters, no_ranges: Mutex::default(), parked: Parked::default() })
    }

    fn no_ranges(&self) -> std::sync::MutexGuard<'_, HashSet<Digest>> {
        self.no_ranges.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// [`BlockSource`] needs owned futures, so it is the handle that implements it.
pub struct Registries(pub Arc<RegistrySource>);

impl BlockSource for Registries {
    fn fetch(
        &self,
        index: Arc<LayerIndex>,
        stream: Range<u64>,
        sink: Arc<dyn BlockSink>,
    ) -> SourceFuture {
        let source = Arc::clone(&self.0);
        Box::pin(async move {
            let end = stream.end.min(index.stream_length());
            let mut last = SourceError::Permanent(format!(
                "no registry is known that has layer {}",
                index.blob()
            ));
            for origin in source.origins.sources(index.blob()) {
                let run = RunIn { source: &source, origin: &*origin, index: &index, sink: &sink };
                match run.fetch(stream.start..end).await {
                    Ok(()) => return Ok(()),
                    // A source that may work later outweighs one that won't.
                    Err(error) if error.is_transient() || !last.is_transient() => last = error,
                    Err(_) => {}
                }
            }
            Err(last)
        })
    }

    fn is_sequential(&self, index: &LayerIndex) -> bool {
        index.is_sequential() || self.0.no_ranges().contains(index.blob())
    }
}

/// One run at one origin.
struct RunIn<'a> {
    source: &'a RegistrySource,
    origin: &'a dyn ImageSource,
    index: &'a Arc<LayerIndex>,
    sink: &'a Arc<dyn BlockSink>,
}

impl RunIn<'_> {
    async fn fetch(&self, stream: Range<u64>) -> Result<(), SourceError> {
        let blob = self.index.blob();
        let Some((mut decoder, mut to)) = self.decoder(stream.clone())? else { return Ok(()) };
        loop {
            let from = decoder.blob.start;
            if from >= to {
                // The estimate was short.
                let more = self.index.more(decoder.span.stream_offset()..stream.end);
                to = (from + more).min(decoder.blob.end);
            }
            if from >= to {
                let message = format!("layer {blob}: the blob ends before its index says");
                return Err(SourceError::Corrupt(message));
            }
            let whole = from == 0 && to == self.index.seek().blob_length();
            self.source.counters.registry_requests.add(1);
            let range = (!whole).then_some(from..to);
            debug!(%blob, ?range, stream = ?stream, at = decoder.span.stream_offset(), "request");
            let answer = self
                .origin
                .open_blob(self.index.source_blob(), range)
                .await
                .map_err(|e| source_error(&e))?;
            if !answer.facts().range_honoured {
                // The answer begins at the blob's start: so does the decoder. All
                // that passes is kept, and the blob is not asked for in parts again.
                self.source.no_ranges().insert(*blob);
                let Some((anew, _)) = self.decoder(0..stream.end)? else { return Ok(()) };
                decoder = anew;
                to = decoder.blob.end;
            }
            decoder = decoder.take(answer, to, &self.source.counters).await?;
            debug!(%blob, read = ?(from..decoder.blob.start), stream = decoder.span.stream_offset(), "read");
            if decoder.done {
                self.park(decoder);
                return Ok(());
            }
        }
    }

    /// Keeps a decoder that can be gone on with. A zstd decoder is not kept: its
    /// window can take 128 MiB.
    fn park(&self, decoder: Decoder) {
        if let Some(cut) = decoder.cut
            && self.index.seek().compression() == Compression::Gzip
            && decoder.span.remaining() > 0
        {
            let stopped = Stopped { blob: decoder.blob.start, span: decoder.span, cut };
            self.source.parked.park(*self.index.blob(), stopped);
        }
    }

    /// A decoder for a stretch of the stream, and where its bytes in the blob
    /// are likely to end. `None` for an empty stretch.
    fn decoder(&self, stream: Range<u64>) -> Result<Option<(Decoder, u64)>, SourceError> {
        let Some((mut span, likely)) = self.index.span(stream.clone()) else { return Ok(None) };
        let (seek, end) = (self.index.seek(), stream.end);
        if seek.compression() != Compression::Plain {
            // What is read beyond the run's end is decoded too: it was paid for.
            span.stream.end = seek.stream_length();
        }
        let parked = &self.source.parked;
        let stopped = parked.take(self.index.blob(), span.stream.start, stream.start);
        let (decoder, start, cut) = match stopped {
            Some(Stopped { span: mut decoder, blob, cut }) => {
                decoder.extend(span.stream.end);
                (decoder, blob, Some(cut))
            }
            None => (SpanDecoder::new(seek, &span).map_err(corrupt)?, span.blob.start, None),
        };
        let decoder = Decoder {
            index: Arc::clone(self.index),
            sink: Arc::clone(self.sink),
            cut,
            span: decoder,
            blob: start..span.blob.end,
            end,
            done: false,
        };
        Ok(Some((decoder, likely.max(start + 1))))
    }
}

/// Decodes on a thread that may block, fed from the network.
struct Decoder {
    index: Arc<LayerIndex>,
    sink: Arc<dyn BlockSink>,
    span: SpanDecoder,
    cut: Option<CutState>,
    /// What of the blob is still to be fed, at most.
    blob: Range<u64>,
    /// End of the run in the stream.
    end: u64,
    /// All of the run has been decoded, or nobody wants the rest.
    done: bool,
}

impl Decoder {
    /// Decodes what `answer` brings, up to byte `limit` of the blob.
    async fn take(
        self,
        mut answer: BlobStream,
        limit: u64,
        counters: &Counters,
    ) -> Result<Self, SourceError> {
        let (sender, chunks) = mpsc::channel::<Bytes>(CHUNKS);
        let decoding = tokio::task::spawn_blocking(move || self.decode(chunks));
        let mut left = limit - answer.facts().start;
        let mut broken = None;
        while left > 0 {
            let mut chunk = match answer.next().await {
                Some(Ok(chunk)) => chunk,
                Some(Err(error)) => {
                    broken = Some(source_error(&error));
                    break;
                }
                None => break,
            };
            counters.bytes_registry.add(chunk.len() as u64);
            chunk.truncate(usize::try_from(left).unwrap_or(usize::MAX));
            left -= chunk.len() as u64;
            if sender.send(chunk).await.is_err() {
                break;
            }
        }
        drop(sender);
        let decoder = match decoding.await {
            Ok(result) => result?,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => return Err(SourceError::Transient("the node is shutting down".into())),
        };
        match broken {
            // What came before the break is kept; the rest is asked for again.
            Some(error) if !decoder.done => Err(error),
            _ => Ok(decoder),
        }
    }

    fn decode(mut self, mut chunks: mpsc::Receiver<Bytes>) -> Result<Self, SourceError> {
        let index = Arc::clone(&self.index);
        let sink = Arc::clone(&self.sink);
        let start = self.span.stream_offset();
        let needs = |object, block| sink.needs(object, block);
        let mut cut = match self.cut.take() {
            Some(cut) => Assembler::resume(index.specs(), index.stretches(start), cut, needs),
            None => Assembler::new(index.specs(), index.stretches(start), start, needs),
        };
        let mut wrong = None;
        while let Some(mut chunk) = chunks.blocking_recv() {
            let before = chunk.len();
            while let Some(bytes) = self.span.feed(&mut chunk).map_err(corrupt)? {
                cut.feed(&bytes, &mut |raw| keep(&index, &*sink, raw, &mut wrong));
                if let Some(error) = wrong.take() {
                    return Err(error);
                }
                let wanted = sink.progress(cut.position()).is_continue();
                self.done = cut.position() >= self.end;
                if !wanted && !self.done {
                    self.done = true;
                    self.blob.start += (before - chunk.len()) as u64;
                    self.cut = Some(cut.pause());
                    return Ok(self);
                }
            }
            self.blob.start += (before - chunk.len()) as u64;
        }
        self.done |= cut.position() >= self.end;
        self.cut = Some(cut.pause());
        Ok(self)
    }
}

/// Verifies a block and gives it on.
fn keep(index: &LayerIndex, sink: &dyn BlockSink, raw: RawBlock, wrong: &mut Option<SourceError>) {
    let Some(entry) = index.specs().get(raw.object as usize).and_then(|s| s.block(raw.index))
    else {
        return;
    };
    match VerifiedBlock::verify(raw.data, &entry.hash) {
        Ok(block) => sink.block(raw.object, raw.index, block),
        Err(error) => {
            let (blob, object, index) = (index.blob(), raw.object, raw.index);
            let message = format!("layer {blob}, object {object}, block {index}: {error}");
            wrong.get_or_insert(SourceError::Corrupt(message));
        }
    }
}

fn corrupt(error: SpanError) -> SourceError {
    SourceError::Corrupt(error.to_string())
}

fn source_error(error: &crate::oci::SourceError) -> SourceError {
    let message = error.to_string();
    match error.trouble() {
        Trouble::Busy | Trouble::Transient => SourceError::Transient(message),
        Trouble::Corrupt => SourceError::Corrupt(message),
        Trouble::NotFound | Trouble::Denied | Trouble::Permanent => SourceError::Permanent(message),
    }
}
