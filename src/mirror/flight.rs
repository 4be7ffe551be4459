//! Blobs that are on their way: one fetch, however many want it.
//!
//! Invariant: there is one flight for a blob at a time, and it goes on as long as
//! somebody holds it. The last who lets go cancels what is under way; what came
//! stays in the staging area for the next.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{info, warn};

use super::answer::{Asked, Refusal};
use crate::fetch::{Arriving, Engine, ExactPass, LanPass, LanTurn, PassError};
use crate::oci::{
    Artifact, BlobStream, Descriptor, Document, ImageSource, RegistryClient, SourceError, Target,
};
use crate::store::Store;
use crate::types::Digest;

/// Blobs below this are kept as documents are (configurations, small artifacts):
/// an index would take more than they do.
pub(super) const SMALL: u64 = 256 << 10;

/// A blob that neighbours have begun and not brought is read by this node after so
/// many of them.
const TURNS: usize = 4;
/// Neighbours are told this often that a pass gets further.
const SAY: Duration = Duration::from_secs(4);

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
        Arc::new(Self { engine, store, pass, swarm, flying: Mutex::default() })
    }

    /// Joins the blob's flight; begins one if there is none.
    pub(super) fn join(self: &Arc<Self>, wanted: Wanted) -> Arc<Flight> {
        let mut flying = self.flying.lock().unwrap_or_else(PoisonError::into_inner);
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
        let mut turn = None;
        if self.swarm && size.is_none_or(|size| size >= SMALL) {
            for _ in 0..TURNS {
                if self.engine.exact_from_peers(&blob).await {
                    self.note_origin(&blob, &upstream).await;
                    return Ok(());
                }
                // One of the LAN reads it from outside.
                if let LanTurn::Mine(pass) = self.engine.lan_turn(&blob).await {
                    turn = Some(pass);
                    break;
                }
            }
        }
        let opened = upstream.open_blob(&blob, None).await.map_err(Failure::Source)?;
        let Some(total) = opened.facts().total else {
            return Err(Failure::Other("the registry does not say how long the blob is".into()));
        };
        if size.is_some_and(|size| size != total) {
            return Err(Failure::Other(format!(
                "blob {blob}: the registry has {total} bytes, the manifest says otherwise"
            )));
        }
        if total < SMALL {
            let bytes = collect(opened, total).await?;
            if Digest::of(&bytes) != blob {
                return Err(Failure::Other(format!("blob {blob}: what came has another digest")));
            }
            return self.keep_small(blob, bytes).await;
        }
        let arriving = Arc::new(Arriving::new(total));
        stage.send_replace(Stage::Arriving(Arc::clone(&arriving)));
        let first = Mutex::new(Some(opened));
        let source: Arc<dyn ImageSource> = Arc::new(Opened { first, rest: upstream.clone() });
        let run = self.pass.run(&blob, &source, &arriving);
        let run = saying_so(turn.as_ref(), arriving.received(), run);
        run.await.map_err(|error| match error {
            PassError::Source(error) => Failure::Source(error),
            PassError::Store(message) => Failure::Store(message),
            error => Failure::Other(error.to_string()),
        })?;
        self.note_origin(&blob, &upstream).await;
        Ok(())
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

/// Runs a pass, and has the neighbours know that it gets further.
async fn saying_so<T>(
    turn: Option<&LanPass>,
    mut received: watch::Receiver<u64>,
    pass: impl Future<Output = T>,
) -> T {
    let mut pass = std::pin::pin!(pass);
    loop {
        tokio::select! {
            done = &mut pass => return done,
            () = tokio::time::sleep(SAY) => {
                if let Some(turn) = turn
                    && received.has_changed().unwrap_or(false)
                {
                    received.mark_unchanged();
                    turn.progress();
                }
            }
        }
    }
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
        let first = self.first.lock().unwrap_or_else(PoisonError::into_inner).take();
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
