//! What this node has of blobs, and how it is read.

use std::sync::Arc;

use bytes::Bytes;
use tracing::warn;

use crate::blocks::{BlockReader, ReadError, ReadRequest};
use crate::fetch::{Engine, ExactBlob};
use crate::store::Store;
use crate::types::Digest;

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
}

impl Source {
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
}
