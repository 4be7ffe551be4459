//! Registries and OCI layouts as a source of blocks.
//!
//! The unit is the span: the compressed blob is entered at the seek point at or
//! before the run, read in one range request, decoded, and cut into blocks.
//! Every block that passes whole is given on.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::mpsc;

use super::assemble::{Assembler, RawBlock};
use super::index::LayerIndex;
use super::source::{BlockSink, BlockSource, SourceError, SourceFuture};
use crate::layer::span::SpanDecoder;
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
}

impl RegistrySource {
    /// A source that asks what `origins` names.
    pub fn new(origins: Arc<dyn Origins>, counters: Arc<Counters>) -> Arc<Self> {
        Arc::new(Self { origins, counters, no_ranges: Mutex::default() })
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
        !index.seek().is_enterable() || self.0.no_ranges().contains(index.blob())
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
        let seek = self.index.seek();
        let mut decoder = Decoder::start(self.index, self.sink, stream.clone())?;
        loop {
            let from = decoder.blob_position;
            let to = seek.blob_end(stream.end, from).min(seek.blob_length());
            if from >= to {
                return Err(SourceError::Corrupt(format!(
                    "layer {}: the compressed stream ends before its index says",
                    self.index.blob()
                )));
            }
            let whole = from == 0 && to == seek.blob_length();
            let range = (!whole).then_some(from..to);
            self.source.counters.registry_requests.add(1);
            let blob = self.index.blob();
            let answer = self.origin.open_blob(blob, range).await.map_err(source_error)?;
            if !answer.facts().range_honoured {
                self.source.no_ranges().insert(*blob);
                // What was decoded stays; this stream begins at the blob's start.
                decoder = Decoder::start(self.index, self.sink, 0..stream.end)?;
            }
            decoder = decoder.take(answer, self.source.counters.clone()).await?;
            if decoder.done {
                return Ok(());
            }
        }
    }
}

/// Decodes on a thread that may block, fed from the network.
struct Decoder {
    index: Arc<LayerIndex>,
    sink: Arc<dyn BlockSink>,
    span: SpanDecoder,
    cut: Cut,
    /// The next byte of the blob that the decoder needs.
    blob_position: u64,
    /// All of the run has been decoded, or nobody wants the rest.
    done: bool,
}
