//! The seam at which blocks come in: a registry today, peers beside it.

use std::future::Future;
use std::ops::{ControlFlow, Range};
use std::pin::Pin;
use std::sync::Arc;

use super::index::LayerIndex;
use crate::types::VerifiedBlock;

/// The future of a source's work on one run.
pub type SourceFuture = Pin<Box<dyn Future<Output = Result<(), SourceError>> + Send>>;

/// Somewhere that blocks come from.
pub trait BlockSource: Send + Sync + 'static {
    /// Brings the blocks in a stretch of a layer's stream, cut at its end, and
    /// any other that it comes by. Ends early where the sink says so. Dropping
    /// the future stops the work.
    fn fetch(
        &self,
        index: Arc<LayerIndex>,
        stream: Range<u64>,
        sink: Arc<dyn BlockSink>,
    ) -> SourceFuture;

    /// Whether the blob can only be had from its start, as one stream.
    fn is_sequential(&self, index: &LayerIndex) -> bool;
}

/// Takes what a source brings. Called from a thread that may block.
pub trait BlockSink: Send + Sync + 'static {
    /// Whether block `index` of the layer's object number `object` is of use.
    fn needs(&self, object: u32, index: u32) -> bool;

    /// A block that somebody needs.
    fn block(&self, object: u32, index: u32, block: VerifiedBlock);

    /// The stream has been decoded up to `position`; `Break`: nobody wants the
    /// rest any more.
    fn progress(&self, position: u64) -> ControlFlow<()>;
}

/// Why a source did not bring everything.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SourceError {
    /// It may work later: a broken connection, a busy server.
    #[error("{0}")]
    Transient(String),
    /// It will not: refused, gone.
    #[error("{0}")]
    Permanent(String),
    /// What came is not what the index says.
    #[error("{0}")]
    Corrupt(String),
}

impl SourceError {
    /// Whether asking again can help.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Transient(_))
    }
}
