//! Blobs that are on their way: one fetch, however many want it.
//!
//! Invariant: there is one flight for a blob at a time, and it goes on as long as
//! somebody holds it. The last who lets go cancels what is under way; what came
//! stays in the staging area for the next.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{info, warn};

use super::answer::{Asked, Refusal};
use crate::fetch::{Arriving, Engine, ExactPass, PassError, Relay, Way};
use crate::oci::{
    Artifact, BlobStream, Descriptor, Document, ImageSource, RegistryClient, RegistryError,
    SourceError, Target,
};
use crate::store::Store;
use crate::types::Digest;

/// Blobs below this are kept as documents are (configurations, small artifacts):
/// an index would take more than they do.
pub(super) const SMALL: u64 = 256 << 10;

/// A blob of which neighbours say that they have its index, and don't give it, is
/// read by this node after so many attempts.
const TURNS: usize = 4;
/// Blobs that are remembered to have come wrong where neighbours had a part in it.
const DOUBTED_MAX: usize = 1024;

/// How far a flight is.
#[derive(Clone)]
pub(super) enum Stage {
    /// Nobody has answered yet.
    Opening,
    /// It comes from upstream.
    Arriving(Arc<Arriving>),
    /// The store has it, or an index of it.
    Here,
    /// It does not come.
    Failed(Arc<Failure>),
}

/// Why a blob does not come.
pub(super) enum Failure {
    /// The source does not give it.
    Source(SourceError),
    /// The store does not take it: it can still be passed through.
    Store(String),
    /// It is not what it should be, or the node is closing.
    Other(String),
}

impl Failure {
    pub(super) fn refusal(&self) -> Refusal {
        match self {
            Self::Source(error) => Refusal::upstream(error, Asked::Blob),
            Self::Store(message) | Self::Other(message) => Refusal::failed(message.clone()),
        }
    }

    pub(super) fn message(&self) -> String {
        match self {
            Self::Source(error) => error.to_string(),
            Self::Store(message) | Self::Other(message) => message.clone(),
        }
    }
}

/// One blob on its way. It goes on while this is held.
pub(super) struct Flight {
    stage: watch::Receiver<Stage>,
    _cancel: DropGuard,
}

impl Flight {
    pub(super) fn stage(&self) -> watch::Receiver<Stage> {
        self.stage.clone()
    }
}

/// All blobs on their way.
pub(super) struct Flights {
    engine: Arc<Engine>,
    store: Arc<Store>,
    pass: ExactPass,
    /// Whether members of the swarm are believed.
    swarm: bool,
    flying: Mutex<HashMap<Digest, Weak<Flight>>>,
    /// Blobs that came wrong, from neighbours or by their fault.
    doubted: Mutex<HashSet<Digest>>,
}

/// From where a blob is to come.
pub(super) struct Wanted {
    pub(super) blob: Digest,
    /// Where that is known from a manifest.
    pub(super) size: Option<u64>,
    pub(super) upstream: RegistryClient,
}

impl Flights {
    pub(super) fn new(
        engine: Arc<Engine>,
        store: Arc<Store>,
        pass: ExactPass,
        swarm: bool,
    ) -> Arc<Self> {
        let (flying, doubted) = (Mutex::default(), Mutex::default());
        Arc::new(Self { engine, store, pass, swarm, flying, doubted })
    }

    /// Joins the blob's flight; begins one if there is none.
    pub(super) fn join(self: &Arc<Self>, wanted: Wanted) -> Arc<Flight> {
        let mut flying = lock(&self.flying);
        let over = |flight: &Flight| matches!(*flight.stage.borrow(), Stage::Failed(_));
        if let Some(flight) = flying.get(&wanted.blob).and_then(Weak::upgrade)
            && !over(&flight)
        {
            return flight;
        }
        flying.retain(|_, flight| flight.strong_count() > 0);
        let (stage, news) = watch::channel(Stage::Opening);
        let cancel = CancellationToken::new();
        let flight = Arc::new(Flight { stage: news, _cancel: cancel.clone().drop_guard() });
        flying.insert(wanted.blob, Arc::downgrade(&flight));
        let flights = Arc::clone(self);
        tokio::spawn(async move {
            let blob = wanted.blob;
            let end = tokio::select! {
                () = cancel.cancelled() => {
                    info!(%blob, "nobody wants it any more");
                    return;
                }
                end = flights.bring(wanted, &stage) => end,
            };
            stage.send_replace(match end {
                Ok(()) => Stage::Here,
                Err(failure) => {
                    warn!(%blob, "not had: {}", failure.message());
                    Stage::Failed(Arc::new(failure))
                }
            });
        });
        flight
    }

    async fn bring(&self, wanted: Wanted, stage: &watch::Sender<Stage>) -> Result<(), Failure> {
        let Wanted { blob, size, upstream } = wanted;
        if size.is_none_or(|size| size < SMALL)
            && let Some(bytes) = self.engine.document_from_peers(&blob).await
        {
            return self.keep_small(blob, bytes).await;
        }
        let together = self.swarm && !lock(&self.doubted).contains(&blob);
        if together
            && size.is_none_or(|size| size >= SMALL)
            && self.engine.exact_from_peers(&blob).await
        {
            self.note_origin(&blob, &upstream).await;
            return Ok(());
        }
        let size = match size {
            Some(size) => size,
            None => size_of(&upstream, &blob).await.map_err(Failure::Source)?,
        };
        if size < SMALL {
            let bytes = collect(open(&upstream, &blob, size).await?, size).await?;
            if Digest::of(&bytes) != blob {
                return Err(Failure::Other(format!("blob {blob}: what came has another digest")));
            }
            return self.keep_small(blob, bytes).await;
        }
        let relay = if together { self.engine.relay_exact(&blob, size) } else { None };
        let mut way = Way::Beyond;
        for relay in relay.iter().cycle().take(TURNS) {
            way = relay.way().await;
            if way != Way::Indexed {
                break;
            }
            if self.engine.exact_from_peers(&blob).await {
                relay.done();
                self.note_origin(&blob, &upstream).await;
                return Ok(());
            }
        }
        // Where it comes from beyond the LAN, clients hear how that is answered.
        let first = match way {
            Way::HandedOn => None,
            Way::Beyond | Way::Indexed => Some(open(&upstream, &blob, size).await?),
        };
        let arriving = Arc::new(Arriving::new(size));
        stage.send_replace(Stage::Arriving(Arc::clone(&arriving)));
        let source: Arc<dyn ImageSource> =
            Arc::new(Opened { first: Mutex::new(first), rest: upstream.clone() });
        self.pass_over(&blob, source, &arriving, relay).await?;
        self.note_origin(&blob, &upstream).await;
        Ok(())
    }

    /// Reads the blob to its end, in turn with the neighbours.
    async fn pass_over(
        &self,
        blob: &Digest,
        source: Arc<dyn ImageSource>,
        arriving: &Arc<Arriving>,
        relay: Option<Arc<Relay>>,
    ) -> Result<(), Failure> {
        let passed = match &relay {
            None => self.pass.run(blob, &source, arriving).await,
            Some(relay) => {
                relay.hand_on(self.pass.pieces(arriving));
                let source = relay.source(&source);
                telling(relay, arriving, self.pass.run(blob, &source, arriving)).await
            }
        };
        match passed {
            Ok(()) => {
                if let Some(relay) = relay {
                    relay.tell(0..arriving.pieces());
                    relay.done();
                }
                Ok(())
            }
            Err(PassError::Source(error)) => Err(Failure::Source(error)),
            Err(PassError::Store(message)) => Err(Failure::Store(message)),
            Err(error) => {
                // Clients have some of it: it can't be begun anew for them.
                if relay.is_some_and(|relay| relay.relayed() > 0) {
                    warn!(%blob, "some of it came from neighbours: it is read without them next");
                    let mut doubted = lock(&self.doubted);
                    if doubted.len() >= DOUBTED_MAX {
                        doubted.clear();
                    }
                    doubted.insert(*blob);
                }
                Err(Failure::Other(error.to_string()))
            }
        }
    }

    async fn keep_small(&self, blob: Digest, bytes: Bytes) -> Result<(), Failure> {
        let store = Arc::clone(&self.store);
        let kept = tokio::task::spawn_blocking(move || store.put_document(&blob, &bytes)).await;
        match kept {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Failure::Store(error.to_string())),
            Err(error) => Err(Failure::Other(error.to_string())),
        }
    }

    /// Where the blocks of the blob can be had again.
    async fn note_origin(&self, blob: &Digest, upstream: &RegistryClient) {
        let (store, blob, name) = (Arc::clone(&self.store), *blob, upstream.name());
        let noted = tokio::task::spawn_blocking(move || {
            store.add_origin(&crate::fetch::exact_name(&blob), &name)
        });
        if let Ok(Err(error)) = noted.await {
            warn!(%blob, "where it came from is not kept: {error}");
        }
    }
}

/// Runs a pass, and tells the neighbours of what has come.
async fn telling<T>(relay: &Relay, arriving: &Arriving, pass: impl Future<Output = T>) -> T {
    let (mut received, mut told) = (arriving.received(), 0);
    let mut pass = std::pin::pin!(pass);
    loop {
        tokio::select! {
            done = &mut pass => return done,
            _ = received.changed() => {
                let pieces = arriving.pieces();
                if pieces > told {
                    relay.tell(told..pieces);
                    told = pieces;
                }
            }
        }
    }
}

/// The blob from upstream, which has to be of that size.
async fn open(upstream: &RegistryClient, blob: &Digest, size: u64) -> Result<BlobStream, Failure> {
    let opened = upstream.open_blob(blob, None).await.map_err(Failure::Source)?;
    match opened.facts().total {
        Some(total) if total == size => Ok(opened),
        Some(total) => Err(Failure::Other(format!(
            "blob {blob}: the registry has {total} bytes, the manifest says otherwise"
        ))),
        None => Err(Failure::Other("the registry does not say how long the blob is".into())),
    }
}

/// How long a blob is, as its registry says.
pub(super) async fn size_of(upstream: &RegistryClient, blob: &Digest) -> Result<u64, SourceError> {
    // One without bytes has no first one.
    let first = (*blob != Digest::of(&[])).then_some(0..1);
    let opened = upstream.open_blob(blob, first).await?;
    opened.facts().total.ok_or_else(|| {
        let problem = "it does not say how long the blob is".to_owned();
        let (what, host) = (format!("GET blob @{blob}"), opened.from().to_owned());
        RegistryError::Protocol { what, host, problem }.into()
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All of a small stream.
async fn collect(mut stream: BlobStream, total: u64) -> Result<Bytes, Failure> {
    let mut bytes = Vec::with_capacity(total as usize);
    while let Some(chunk) = stream.next().await {
        bytes.extend_from_slice(&chunk.map_err(Failure::Source)?);
        if bytes.len() as u64 > total {
            return Err(Failure::Other("more bytes came than were announced".into()));
        }
    }
    Ok(bytes.into())
}

/// An upstream of which the answer to the first request is there already: asking
/// for the blob's length and for the blob is one round trip.
struct Opened {
    first: Mutex<Option<BlobStream>>,
    rest: RegistryClient,
}

impl std::fmt::Debug for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.rest.fmt(f)
    }
}

impl ImageSource for Opened {
    fn name(&self) -> String {
        self.rest.name()
    }

    fn resolve<'a>(&'a self, target: &'a Target) -> BoxFuture<'a, Result<Document, SourceError>> {
        self.rest.resolve(target)
    }

    fn manifest<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, Result<Document, SourceError>> {
        self.rest.manifest(digest)
    }

    fn open_blob<'a>(
        &'a self,
        digest: &'a Digest,
        range: Option<std::ops::Range<u64>>,
    ) -> BoxFuture<'a, Result<BlobStream, SourceError>> {
        let first = lock(&self.first).take();
        match first {
            Some(first) if range.as_ref().is_none_or(|range| range.start == 0) => {
                Box::pin(async move { Ok(first) })
            }
            _ => self.rest.open_blob(digest, range),
        }
    }

    fn referrers<'a>(
        &'a self,
        subject: &'a Digest,
        artifact_type: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Vec<Descriptor>, SourceError>> {
        self.rest.referrers(subject, artifact_type)
    }

    fn push_blob<'a>(
        &'a self,
        digest: &'a Digest,
        data: Bytes,
    ) -> BoxFuture<'a, Result<(), SourceError>> {
        self.rest.push_blob(digest, data)
    }

    fn push_manifest<'a>(
        &'a self,
        tag: Option<&'a str>,
        manifest: Bytes,
    ) -> BoxFuture<'a, Result<Descriptor, SourceError>> {
        self.rest.push_manifest(tag, manifest)
    }

    fn push_referrer<'a>(
        &'a self,
        artifact: &'a Artifact,
    ) -> BoxFuture<'a, Result<Descriptor, SourceError>> {
        self.rest.push_referrer(artifact)
    }

    fn distrust(&self, from: &str) {
        self.rest.distrust(from);
    }
}
