//! A blob in memory, for the tests of what reads blobs.

use std::fmt;
use std::ops::Range;
use std::sync::Mutex;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream;

use super::document::{Descriptor, Document};
use super::error::{RegistryError, SourceError};
use super::referrer::Artifact;
use super::source::{BlobFacts, BlobStream, ImageSource, Target};
use crate::types::Digest;

/// How one stream goes.
#[derive(Debug, Clone)]
pub(super) struct Turn {
    /// Bytes until it breaks.
    pub(super) bytes: usize,
    /// Bytes at a time.
    pub(super) chunk: usize,
    pub(super) ignores_range: bool,
    pub(super) states_length: bool,
}

impl Turn {
    /// All that was asked for.
    pub(super) const PERFECT: Self =
        Self { bytes: usize::MAX, chunk: 100_000, ignores_range: false, states_length: true };
}

/// A source with one blob, whose streams go as they are told to.
pub(super) struct Memory {
    content: Bytes,
    /// Told which stream it is, from 1, and the bytes that are asked for.
    turn: Box<dyn Fn(usize, usize) -> Turn + Send + Sync>,
    asked: Mutex<Vec<Option<Range<u64>>>>,
}

impl Memory {
    pub(super) fn new(
        content: Bytes,
        turn: impl Fn(usize, usize) -> Turn + Send + Sync + 'static,
    ) -> Self {
        Self { content, turn: Box::new(turn), asked: Mutex::default() }
    }

    /// The ranges that were asked for; `None` for the whole blob.
    pub(super) fn asked(&self) -> Vec<Option<Range<u64>>> {
        self.asked.lock().expect("no panic").clone()
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Memory({} bytes)", self.content.len())
    }
}

fn broken() -> SourceError {
    RegistryError::Broken {
        what: String::new(),
        host: String::new(),
        received: 0,
        problem: String::new(),
    }
    .into()
}

impl ImageSource for Memory {
    fn name(&self) -> String {
        "memory".to_owned()
    }

    fn open_blob<'a>(
        &'a self,
        _: &'a Digest,
        range: Option<Range<u64>>,
    ) -> BoxFuture<'a, Result<BlobStream, SourceError>> {
        let total = self.content.len() as u64;
        let asked = range.clone().unwrap_or(0..total);
        let number = {
            let mut all = self.asked.lock().expect("no panic");
            all.push(range.clone());
            all.len()
        };
        let turn = (self.turn)(number, (asked.end - asked.start) as usize);
        let sent = if turn.ignores_range { 0..total } else { asked };
        let part = self.content.slice(sent.start as usize..sent.end.min(total) as usize);
        let facts = BlobFacts {
            start: sent.start,
            length: turn.states_length.then_some(part.len() as u64),
            total: turn.states_length.then_some(total),
            range_honoured: range.is_none() || !turn.ignores_range,
        };
        let cut = part.slice(..turn.bytes.min(part.len()));
        let mut chunks: Vec<_> = cut.chunks(turn.chunk).map(|c| Ok(cut.slice_ref(c))).collect();
        if cut.len() < part.len() && turn.states_length {
            chunks.push(Err(broken()));
        }
        Box::pin(async move { Ok(BlobStream::new(facts, "memory", stream::iter(chunks))) })
    }

    fn resolve<'a>(&'a self, _: &'a Target) -> BoxFuture<'a, Result<Document, SourceError>> {
        unreachable!("only blobs are read")
    }
    fn manifest<'a>(&'a self, _: &'a Digest) -> BoxFuture<'a, Result<Document, SourceError>> {
        unreachable!("only blobs are read")
    }
    fn referrers<'a>(
        &'a self,
        _: &'a Digest,
        _: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Vec<Descriptor>, SourceError>> {
        unreachable!("only blobs are read")
    }
    fn push_blob<'a>(&'a self, _: &'a Digest, _: Bytes) -> BoxFuture<'a, Result<(), SourceError>> {
        unreachable!("only blobs are read")
    }
    fn push_manifest<'a>(
        &'a self,
        _: Option<&'a str>,
        _: Bytes,
    ) -> BoxFuture<'a, Result<Descriptor, SourceError>> {
        unreachable!("only blobs are read")
    }
    fn push_referrer<'a>(
        &'a self,
        _: &'a Artifact,
    ) -> BoxFuture<'a, Result<Descriptor, SourceError>> {
        unreachable!("only blobs are read")
    }
}
