//! What this node has of blobs, and how it is read.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tracing::warn;

use super::sendfile::Mapped;
use crate::blocks::{BlockReader, ReadError, ReadRequest};
use crate::fetch::{Engine, ExactBlob};
use crate::store::Store;
use crate::types::Digest;

/// Blobs by peers' indexes that are remembered to be what they should.
const PROVED_MAX: usize = 16 << 10;

/// A blob that this node can serve.
#[derive(Clone)]
pub(super) enum Held {
    /// A small one.
    Document(Bytes),
    /// One that is an object; some of its blocks may have to come first.
    Exact(ExactBlob),
}

impl Held {
    pub(super) fn length(&self) -> u64 {
        match self {
            Self::Document(bytes) => bytes.len() as u64,
            Self::Exact(exact) => exact.length(),
        }
    }
}

/// Where blobs are read from.
pub(super) struct Source {
    pub(super) store: Arc<Store>,
    pub(super) engine: Arc<Engine>,
    pub(super) reader: Arc<dyn BlockReader>,
    /// Blobs by peers' indexes that were given whole and had the right digest.
    proved: Mutex<HashSet<Digest>>,
}

impl Source {
    pub(super) fn new(
        store: Arc<Store>,
        engine: Arc<Engine>,
        reader: Arc<dyn BlockReader>,
    ) -> Self {
        Self { store, engine, reader, proved: Mutex::default() }
    }

    /// Whether the blob's bytes are known to make its digest.
    pub(super) fn is_proved(&self, blob: &Digest, exact: &ExactBlob) -> bool {
        exact.is_proved() || self.proved().contains(blob)
    }

    /// All of the blob's bytes have been seen to make its digest.
    pub(super) fn prove(&self, blob: &Digest) {
        let mut proved = self.proved();
        if proved.len() >= PROVED_MAX {
            proved.clear();
        }
        proved.insert(*blob);
    }

    /// The file that has the whole blob, if all of it is here and verified.
    pub(super) async fn file(&self, blob: &Digest, exact: &ExactBlob) -> Option<Arc<Mapped>> {
        if !self.is_proved(blob, exact) {
            return None;
        }
        let (reader, object, length) = (Arc::clone(&self.reader), *exact.object()?, exact.length());
        let mapped = tokio::task::spawn_blocking(move || {
            Mapped::of(reader.backing_file(&object)?, length)
                .inspect_err(|error| warn!(%object, "its file can't be sent: {error}"))
                .ok()
        });
        mapped.await.ok()?
    }

    /// What there is of a blob.
    pub(super) async fn held(&self, blob: &Digest) -> Option<Held> {
        match self.engine.exact(*blob).await {
            Ok(Some(exact)) => return Some(Held::Exact(exact)),
            Ok(None) => {}
            Err(error) => warn!(%blob, "its index can't be used: {error}"),
        }
        self.document(blob).await.map(Held::Document)
    }

    /// A document of the store.
    pub(super) async fn document(&self, digest: &Digest) -> Option<Bytes> {
        let (store, digest) = (Arc::clone(&self.store), *digest);
        match tokio::task::spawn_blocking(move || store.document(&digest)).await {
            Ok(Ok(found)) => found.map(Bytes::from),
            Ok(Err(error)) => {
                warn!(%digest, "a document can't be read: {error}");
                None
            }
            Err(_) => None,
        }
    }

    /// Reads from the store; what is not there is fetched.
    pub(super) async fn read(&self, request: ReadRequest) -> Result<Bytes, ReadError> {
        let reader = Arc::clone(&self.reader);
        let resident = tokio::task::spawn_blocking(move || {
            let mut bytes = Vec::with_capacity(request.len as usize);
            let here = reader.read_resident(&request, &mut bytes)?;
            Ok::<_, ReadError>(here.then_some(bytes))
        });
        match resident.await {
            Ok(read) => match read? {
                Some(bytes) => Ok(bytes.into()),
                None => self.reader.read(request).await,
            },
            Err(_) => Err(ReadError::Closed),
        }
    }

    fn proved(&self) -> MutexGuard<'_, HashSet<Digest>> {
        self.proved.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
