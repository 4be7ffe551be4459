//! The shell of [`relay`](crate::fetch::relay): who leads a first pass, said and
//! heard, and a source of blobs that asks neighbours before it asks another one.

use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::unfold;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tracing::{debug, info, warn};

use super::Net;
use crate::fetch::engine::{Engine, Inner};
use crate::fetch::exact::exact_name;
use crate::fetch::relay::{Party, Pieces, Spool, Spools, Turn};
use crate::fetch::schedule::Time;
use crate::fetch::tunnel::{Content, Near, Tunnel, Want};
use crate::oci::{
    Artifact, BlobFacts, BlobStream, Descriptor, Document, ImageSource, SourceError, Target,
};
use crate::types::{Digest, PeerId};
use crate::wire::{Message, PASS_PIECE, Stage};

/// Blobs that neighbours may speak of.
const PARTIES_MAX: usize = 1024;
/// Pieces of one request to a neighbour: 2 MiB.
const ASKED: u32 = 8;

/// This node's part in getting a blob that has no index yet; ends when dropped.
pub struct Relay {
    inner: Arc<Inner>,
    blob: Digest,
    /// What the blob is called in the LAN: a layer's first pass and one over the
    /// same blob's exact bytes end with two indexes, and have nothing to share.
    name: Digest,
    size: u64,
    /// `None` where the pass itself keeps the blob's bytes, or nothing can.
    spool: Option<Arc<Spool>>,
    relayed: AtomicU64,
    done: AtomicBool,
}

/// How a blob comes to this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// This node reads it from beyond the LAN.
    Beyond,
    /// A neighbour hands it on.
    HandedOn,
    /// A neighbour has its index.
    Indexed,
}

impl Engine {
    /// Takes part in getting a blob of `size` bytes into the LAN. `None` where
    /// there is no swarm.
    pub fn relay(&self, blob: &Digest, size: u64) -> Option<Arc<Relay>> {
        let inner = &self.inner;
        inner.state().net.as_ref()?;
        let spool = match inner.spools.make(blob, size) {
            Ok(spool) => Some(spool),
            Err(error) => {
                warn!(%blob, "nothing is handed on: {error}");
                None
            }
        };
        self.take_part(blob, blob, size, spool)
    }

    /// As [`Engine::relay`] for a blob's exact bytes, of which the pass says what
    /// there is to be handed on.
    pub fn relay_exact(&self, blob: &Digest, size: u64) -> Option<Arc<Relay>> {
        self.take_part(blob, &exact_name(blob), size, None)
    }

    fn take_part(
        &self,
        blob: &Digest,
        name: &Digest,
        size: u64,
        spool: Option<Arc<Spool>>,
    ) -> Option<Arc<Relay>> {
        let inner = Arc::clone(&self.inner);
        let (blob, name, now) = (*blob, *name, inner.now());
        {
            let mut state = inner.state();
            let net = state.net.as_mut()?;
            let me = net.endpoint.me();
            net.parties.entry(name).or_insert_with(|| Party::new(me, name)).join(now);
            net.say_stage(&name, Stage::Waits, 0..0);
        }
        let (relayed, done) = (AtomicU64::new(0), AtomicBool::new(false));
        Some(Arc::new(Relay { inner, blob, name, size, spool, relayed, done }))
    }
}

impl Relay {
    /// Waits until this node is to get the index from beyond its LAN (`true`), or
    /// a neighbour has it.
    pub async fn leads(&self) -> bool {
        let passes = self.inner.passes();
        loop {
            let mut changed = pin!(passes.notified());
            changed.as_mut().enable();
            match self.inner.turn(&self.name, None) {
                (_, true) => return false,
                (Turn::Wait(until), _) => self.inner.pause(changed, until).await,
                (Turn::Mine | Turn::Ask(_), _) => return true,
            }
        }
    }

    /// Waits until it is known how the blob comes.
    pub async fn way(&self) -> Way {
        let passes = self.inner.passes();
        loop {
            let mut changed = pin!(passes.notified());
            changed.as_mut().enable();
            match self.inner.turn(&self.name, Some(0)) {
                (_, true) => return Way::Indexed,
                (Turn::Ask(_), _) => return Way::HandedOn,
                (Turn::Mine, _) => return Way::Beyond,
                (Turn::Wait(until), _) => self.inner.pause(changed, until).await,
            }
        }
    }

    /// Pieces that are kept elsewhere are handed on as they come.
    pub fn hand_on(&self, pieces: Arc<dyn Pieces>) {
        self.inner.spools.hand_on(&self.name, pieces);
    }

    /// Tells the neighbours of pieces that can be handed on.
    pub fn tell(&self, pieces: Range<u32>) {
        let mut state = self.inner.state();
        let Some(net) = state.net.as_mut() else { return };
        let stage = net.parties.get(&self.name).and_then(Party::mine).unwrap_or(Stage::Waits);
        net.say_stage(&self.name, stage, pieces);
    }

    /// The blob from neighbours, and from `source` what none of them has or gets.
    pub fn source(self: &Arc<Self>, source: &Arc<dyn ImageSource>) -> Arc<dyn ImageSource> {
        Arc::new(Relayed { relay: Arc::clone(self), source: Arc::clone(source) })
    }

    /// Bytes of the blob that neighbours gave.
    pub fn relayed(&self) -> u64 {
        self.relayed.load(Ordering::Relaxed)
    }

    /// This node has the index now.
    pub fn done(&self) {
        self.done.store(true, Ordering::Relaxed);
    }

    /// Keeps a piece in the spool, and tells the neighbours.
    async fn keep(&self, piece: u32, bytes: &Bytes) {
        let Some(spool) = self.spool.clone() else { return };
        let (blob, bytes) = (self.blob, bytes.clone());
        match tokio::task::spawn_blocking(move || spool.put(piece, &bytes)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return debug!(%blob, piece, "not handed on: {error}"),
            Err(_) => return,
        }
        self.tell(piece..piece + 1);
    }

    /// Pieces from `first` on, from a neighbour that said it has it.
    async fn ask(&self, peer: &PeerId, first: u32, end: u32) -> Vec<Bytes> {
        let numbers = u64::from(first)..u64::from(end);
        let want = Want::Items { blob: self.name, numbers };
        let contents = self.inner.ask_all(peer, &want).await.unwrap_or_default();
        let mut pieces: Vec<(u64, Bytes)> = contents
            .into_iter()
            .filter_map(|content| match content {
                Content::Item { number, block, .. } => Some((number, block.data().clone())),
                _ => None,
            })
            .collect();
        pieces.sort_unstable_by_key(|(number, _)| *number);
        let expected = |(at, (number, bytes)): &(u32, (u64, Bytes))| {
            *number == u64::from(*at) && bytes.len() as u64 == self.piece_len(*at)
        };
        (first..).zip(pieces).take_while(expected).map(|(_, (_, bytes))| bytes).collect()
    }

    fn piece_len(&self, piece: u32) -> u64 {
        PASS_PIECE.min(self.size.saturating_sub(u64::from(piece) * PASS_PIECE))
    }

    fn failed(&self, peer: &PeerId) {
        let (now, mut state) = (self.inner.now(), self.inner.state());
        let parties = state.net.as_mut().map(|net| &mut net.parties);
        if let Some(party) = parties.and_then(|parties| parties.get_mut(&self.name)) {
            party.failed(now, peer);
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let done = self.done.load(Ordering::Relaxed);
        let mut state = self.inner.state();
        let Some(net) = state.net.as_mut() else { return self.inner.spools.remove(&self.name) };
        if let Some(party) = net.parties.get_mut(&self.name) {
            party.end(done);
        }
        net.say_stage(&self.name, if done { Stage::Done } else { Stage::Out }, 0..0);
        net.tidy_pass(&self.inner.spools, &self.name);
    }
}

impl Inner {
    fn passes(&self) -> Arc<Notify> {
        self.state().net.as_ref().map(|net| Arc::clone(&net.passes)).unwrap_or_default()
    }

    async fn pause(&self, changed: Pin<&mut Notified<'_>>, until: Time) {
        tokio::select! {
            () = changed => {}
            () = tokio::time::sleep_until((self.started + until).into()) => {}
        }
    }

    /// Where a piece is to come from, or who leads if none is given; and whether a
    /// neighbour has the index.
    fn turn(&self, blob: &Digest, piece: Option<u32>) -> (Turn, bool) {
        let (now, mut state) = (self.now(), self.state());
        let Some(net) = state.net.as_mut() else { return (Turn::Mine, false) };
        let Some(party) = net.parties.get_mut(blob) else { return (Turn::Mine, false) };
        let before = party.mine();
        let turn = match piece {
            Some(piece) => party.turn(now, piece),
            None => party.lead(now),
        };
        let (after, indexed) = (party.mine(), party.is_indexed());
        if let Some(stage) = after.filter(|_| before != after) {
            debug!(%blob, ?stage, "first pass");
            net.say_stage(blob, stage, 0..0);
        }
        (turn, indexed)
    }

    pub(super) fn on_passed(&self, peer: PeerId, blob: Digest, stage: Stage, pieces: Range<u32>) {
        let (now, mut state) = (self.now(), self.state());
        let Some(net) = state.net.as_mut() else { return };
        let is_near = net.peers.get(&peer).is_some_and(|peer| peer.near == Near::Lan);
        let is_new = !net.parties.contains_key(&blob);
        if !is_near || (is_new && (net.parties.len() >= PARTIES_MAX || stage == Stage::Out)) {
            return;
        }
        let me = net.endpoint.me();
        let party = net.parties.entry(blob).or_insert_with(|| Party::new(me, blob));
        party.told(now, peer, stage, pieces);
        net.tidy_pass(&self.spools, &blob);
        net.passes.notify_waiters();
    }
}

impl Net {
    fn say_stage(&self, blob: &Digest, stage: Stage, pieces: Range<u32>) {
        for tunnel in self.neighbours() {
            // Who does not hear it waits, or reads for itself.
            let _ = tunnel.tell(Message::Passed { blob: *blob, stage, pieces: pieces.clone() });
        }
    }

    /// Tells a neighbour that has just come how this node stands.
    pub(super) fn tell_passes(&self, spools: &Spools, link: &dyn Tunnel) {
        for (blob, party) in &self.parties {
            let Some(stage) = party.mine() else { continue };
            let pieces = spools.get(blob).map(|spool| spool.pieces()).unwrap_or_default();
            for pieces in std::iter::once(0..0).chain(pieces.runs().iter().cloned()) {
                let _ = link.tell(Message::Passed { blob: *blob, stage, pieces });
            }
        }
    }

    /// A neighbour is gone.
    pub(super) fn left_passes(&mut self, spools: &Spools, peer: &PeerId) {
        self.parties.values_mut().for_each(|party| party.gone(peer));
        let blobs: Vec<Digest> = self.parties.keys().copied().collect();
        for blob in blobs {
            self.tidy_pass(spools, &blob);
        }
        self.passes.notify_waiters();
    }

    /// What nobody needs any more is not kept.
    fn tidy_pass(&mut self, spools: &Spools, blob: &Digest) {
        let Some(party) = self.parties.get_mut(blob) else { return };
        if party.mine() == Some(Stage::Done) && !party.is_needed() {
            party.end(false);
            self.say_stage(blob, Stage::Out, 0..0);
        }
        let Some(party) = self.parties.get(blob) else { return };
        if party.mine().is_none() {
            spools.remove(blob);
        }
        if party.is_over() {
            self.parties.remove(blob);
        }
    }
}

/// A source of which one blob comes from neighbours where they have it.
struct Relayed {
    relay: Arc<Relay>,
    source: Arc<dyn ImageSource>,
}

/// A stretch of the blob on its way.
struct Flow {
    relay: Arc<Relay>,
    source: Arc<dyn ImageSource>,
    /// What is still to be given.
    rest: Range<u64>,
    ready: VecDeque<Bytes>,
    beyond: Option<Beyond>,
    ended: bool,
}

/// The stream from beyond the LAN.
struct Beyond {
    stream: BlobStream,
    /// Offset in the blob of the next byte that it brings.
    at: u64,
    /// What came of the next piece.
    kept: BytesMut,
}

impl Flow {
    async fn next(&mut self) -> Option<Result<Bytes, SourceError>> {
        while !self.ended {
            if let Some(bytes) = self.ready.pop_front() {
                self.rest.start += bytes.len() as u64;
                return Some(Ok(bytes));
            }
            if self.rest.is_empty() {
                return None;
            }
            if let Err(error) = self.step().await {
                self.ended = true;
                return Some(Err(error));
            }
        }
        None
    }

    async fn step(&mut self) -> Result<(), SourceError> {
        let relay = Arc::clone(&self.relay);
        let piece = (self.rest.start / PASS_PIECE) as u32;
        if let Some(spool) = relay.spool.clone()
            && let Ok(Ok(Some(bytes))) =
                tokio::task::spawn_blocking(move || spool.read(piece)).await
        {
            self.give(piece, &bytes);
            return Ok(());
        }
        let passes = relay.inner.passes();
        let mut changed = pin!(passes.notified());
        changed.as_mut().enable();
        match relay.inner.turn(&relay.name, Some(piece)).0 {
            Turn::Mine if relay.spool.is_none() => self.read_on().await?,
            Turn::Mine => self.read(piece).await?,
            Turn::Ask(peer) => self.ask(&relay, peer, piece).await,
            Turn::Wait(until) => {
                self.beyond = None;
                relay.inner.pause(changed, until).await;
            }
        }
        Ok(())
    }

    async fn ask(&mut self, relay: &Relay, peer: PeerId, piece: u32) {
        self.beyond = None;
        let end = self.rest.end.div_ceil(PASS_PIECE).min(u64::from(piece + ASKED)) as u32;
        let pieces = relay.ask(&peer, piece, end).await;
        if pieces.is_empty() {
            info!(?peer, blob = %relay.blob, piece, "a piece was not had");
            relay.failed(&peer);
        }
        for (number, bytes) in (piece..).zip(pieces) {
            let len = bytes.len() as u64;
            relay.inner.counters.bytes_relayed.add(len);
            relay.relayed.fetch_add(len, Ordering::Relaxed);
            relay.keep(number, &bytes).await;
            self.give(number, &bytes);
        }
    }

    /// Reads the piece from beyond the LAN.
    async fn read(&mut self, piece: u32) -> Result<(), SourceError> {
        let relay = Arc::clone(&self.relay);
        let start = u64::from(piece) * PASS_PIECE;
        let stands = |b: &Beyond| b.at.saturating_sub(b.kept.len() as u64) == start;
        if !self.beyond.as_ref().is_some_and(stands) {
            let end = self.rest.end.next_multiple_of(PASS_PIECE).min(relay.size);
            let beyond = self.open(start..end).await?;
            self.beyond = Some(beyond);
        }
        let Some(beyond) = &mut self.beyond else { return Ok(()) };
        let len = relay.piece_len(piece) as usize;
        while beyond.kept.len() < len {
            let Some(chunk) = beyond.stream.next().await else {
                // Whoever reads asks again from here.
                self.ended = true;
                return Ok(());
            };
            let mut chunk = chunk?;
            relay.inner.counters.bytes_registry.add(chunk.len() as u64);
            // A source that ignores ranges begins at the blob's first byte.
            let before = start.saturating_sub(beyond.at).min(chunk.len() as u64);
            beyond.at += chunk.len() as u64;
            beyond.kept.extend_from_slice(&chunk.split_off(before as usize));
        }
        let bytes = beyond.kept.split_to(len).freeze();
        relay.keep(piece, &bytes).await;
        self.give(piece, &bytes);
        Ok(())
    }

    /// Reads on beyond the LAN, chunk by chunk: nothing has to be kept here before
    /// it is given.
    async fn read_on(&mut self) -> Result<(), SourceError> {
        if self.beyond.as_ref().is_none_or(|beyond| beyond.at > self.rest.start) {
            let beyond = self.open(self.rest.clone()).await?;
            self.beyond = Some(beyond);
        }
        let Some(beyond) = &mut self.beyond else { return Ok(()) };
        let Some(chunk) = beyond.stream.next().await else {
            self.ended = true;
            return Ok(());
        };
        let mut chunk = chunk?;
        self.relay.inner.counters.bytes_registry.add(chunk.len() as u64);
        let before = self.rest.start.saturating_sub(beyond.at).min(chunk.len() as u64);
        beyond.at += chunk.len() as u64;
        let mut wanted = chunk.split_off(before as usize);
        wanted.truncate(usize::try_from(self.rest.end - self.rest.start).unwrap_or(usize::MAX));
        if !wanted.is_empty() {
            self.ready.push_back(wanted);
        }
        Ok(())
    }

    async fn open(&mut self, range: Range<u64>) -> Result<Beyond, SourceError> {
        let relay = &self.relay;
        let stream = self.source.open_blob(&relay.blob, Some(range)).await?;
        if let Some(total) = stream.facts().total.filter(|total| *total != relay.size) {
            let what = format!("blob {} of {}", relay.blob, self.source.name());
            return Err(SourceError::SizeMismatch { what, expected: relay.size, actual: total });
        }
        let at = stream.facts().start;
        Ok(Beyond { stream, at, kept: BytesMut::new() })
    }

    /// What is wanted of a piece goes to whoever reads.
    fn give(&mut self, piece: u32, bytes: &Bytes) {
        let start = u64::from(piece) * PASS_PIECE;
        let queued: u64 = self.ready.iter().map(|bytes| bytes.len() as u64).sum();
        let from = (self.rest.start + queued).saturating_sub(start).min(bytes.len() as u64);
        let to = self.rest.end.saturating_sub(start).min(bytes.len() as u64);
        if from < to {
            self.ready.push_back(bytes.slice(from as usize..to as usize));
        }
    }
}

impl fmt::Debug for Relayed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.source.fmt(f)
    }
}

impl ImageSource for Relayed {
    fn name(&self) -> String {
        self.source.name()
    }

    fn counts(&self) -> bool {
        true
    }

    fn is_local(&self) -> bool {
        self.source.is_local()
    }

    fn open_blob<'a>(
        &'a self,
        digest: &'a Digest,
        range: Option<Range<u64>>,
    ) -> BoxFuture<'a, Result<BlobStream, SourceError>> {
        if *digest != self.relay.blob {
            return self.source.open_blob(digest, range);
        }
        let size = self.relay.size;
        let rest = range.unwrap_or(0..size);
        let facts = BlobFacts {
            start: rest.start,
            length: Some(rest.end.saturating_sub(rest.start)),
            total: Some(size),
            range_honoured: true,
        };
        let flow = Flow {
            relay: Arc::clone(&self.relay),
            source: Arc::clone(&self.source),
            rest,
            ready: VecDeque::new(),
            beyond: None,
            ended: false,
        };
        let chunks = unfold(flow, |mut flow| async move {
            let next = flow.next().await?;
            Some((next, flow))
        });
        let stream = BlobStream::new(facts, &self.source.name(), chunks);
        Box::pin(std::future::ready(Ok(stream)))
    }

    fn resolve<'a>(&'a self, target: &'a Target) -> BoxFuture<'a, Result<Document, SourceError>> {
        self.source.resolve(target)
    }

    fn manifest<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, Result<Document, SourceError>> {
        self.source.manifest(digest)
    }

    fn referrers<'a>(
        &'a self,
        subject: &'a Digest,
        artifact_type: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Vec<Descriptor>, SourceError>> {
        self.source.referrers(subject, artifact_type)
    }

    fn push_blob<'a>(
        &'a self,
        digest: &'a Digest,
        data: Bytes,
    ) -> BoxFuture<'a, Result<(), SourceError>> {
        self.source.push_blob(digest, data)
    }

    fn push_manifest<'a>(
        &'a self,
        tag: Option<&'a str>,
        manifest: Bytes,
    ) -> BoxFuture<'a, Result<Descriptor, SourceError>> {
        self.source.push_manifest(tag, manifest)
    }

    fn push_referrer<'a>(
        &'a self,
        artifact: &'a Artifact,
    ) -> BoxFuture<'a, Result<Descriptor, SourceError>> {
        self.source.push_referrer(artifact)
    }

    fn distrust(&self, from: &str) {
        self.source.distrust(from);
    }
}
