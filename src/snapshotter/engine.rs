//! What the snapshotter does with a request.
//!
//! Each request is decided by the snapshot table ([`super::meta`]), on files by
//! [`super::directories`], and for remote layers by [`RemoteLayers`]. An answer
//! that changes something is given when the change is durable. Requests that only
//! look never touch a disk, the size of an active snapshot apart.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Instant, SystemTime};

use super::directories::{Directories, Owner};
use super::error::Error;
use super::filter::Filter;
use super::in_use;
use super::labels::{self, SNAPSHOT_REF};
use super::meta::{
    Adoption, Content, Kind, Labels, MetaError, MetaStore, OpenError, Record, Snapshot, Timestamp,
    Usage,
};
use super::meter::Meter;
use super::mounts::{self, Directories as _, Mount, OverlayOptions, is_mountable};
use super::overlay;
use super::remote::{KnownChain, RemoteChain, RemoteError, RemoteLayer, RemoteLayers};
use super::usage::measure;
use crate::types::Digest;

/// Why the snapshotter can't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store's path can't stand in mount options.
    #[error("{0}: overlay mounts need an absolute path without comma, colon or backslash")]
    Path(PathBuf),
    /// Its directories can't be made or read.
    #[error("{path}: {source}")]
    Directories {
        /// The snapshotter's directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The database can't be opened.
    #[error(transparent)]
    Meta(#[from] OpenError),
}

/// The snapshotter: all of containerd's snapshot operations, without gRPC.
///
/// Methods are called within a tokio runtime; work on files runs on its blocking
/// threads and is finished even if the caller goes away.
pub struct Snapshotter {
    inner: Arc<Inner>,
}

struct Inner {
    meta: MetaStore,
    directories: Directories,
    remote: Arc<dyn RemoteLayers>,
    overlay: OverlayOptions,
    meter: Meter,
    sweep: tokio::sync::Mutex<()>,
    closing: AtomicBool,
}

/// What became of a request for a remote layer.
enum Prepared {
    /// It is committed under its chain ID.
    Remote,
    /// containerd unpacks it into an ordinary snapshot; perhaps with a reason.
    Ordinary(Option<String>),
}

impl Snapshotter {
    /// Opens the snapshots in `root` (`<store>/snapshotter`), and sets right what
    /// a crash has left: directories without a record go, an active snapshot
    /// without a directory gets an empty one.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn open(root: &Path, remote: Arc<dyn RemoteLayers>) -> Result<Self, StartError> {
        let failed = |source| StartError::Directories { path: root.to_owned(), source };
        if !is_mountable(root) {
            return Err(StartError::Path(root.to_owned()));
        }
        let directories = Directories::open(root).map_err(failed)?;
        let meta = MetaStore::open(&directories.meta())?;
        let inner = Inner {
            overlay: overlay::detect(root),
            meta,
            directories,
            remote,
            meter: Meter::default(),
            sweep: tokio::sync::Mutex::default(),
            closing: AtomicBool::new(false),
        };
        inner.discard_orphans().map_err(failed)?;
        inner.restore_missing().map_err(failed)?;
        Ok(Self { inner: Arc::new(inner) })
    }

    /// A writable snapshot `key` on `parent`; or, where the labels name a remote
    /// layer and it is available, that layer committed under its chain ID.
    ///
    /// # Errors
    /// `AlreadyExists` also tells containerd that the remote layer is there.
    pub async fn prepare(
        &self,
        key: &str,
        parent: &str,
        labels: &Labels,
    ) -> Result<Vec<Mount>, Error> {
        // The plain errors come first: a remote layer can take minutes.
        let _ = self.inner.meta.read().create(Kind::Active, key, parent, labels, now())?;
        match self.prepare_remote(parent, labels).await? {
            Prepared::Remote => {
                let target = labels.get(SNAPSHOT_REF).map_or("", String::as_str);
                return Err(MetaError::AlreadyExists(format!("target snapshot {target:?}")).into());
            }
            Prepared::Ordinary(None) => {}
            Prepared::Ordinary(Some(reason)) => {
                tracing::warn!(key, parent, reason, "layer is not lazy: containerd unpacks it");
            }
        }
        self.create(Kind::Active, key, parent, labels).await
    }

    /// A read-only snapshot `key` of `parent`.
    ///
    /// # Errors
    /// Those of containerd's overlayfs snapshotter; `Unavailable` where a remote
    /// chain below can't be mounted.
    pub async fn view(
        &self,
        key: &str,
        parent: &str,
        labels: &Labels,
    ) -> Result<Vec<Mount>, Error> {
        self.create(Kind::View, key, parent, labels).await
    }

    /// The mounts of an active snapshot or view, again; also after a reboot.
    ///
    /// # Errors
    /// As [`Snapshotter::view`].
    pub async fn mounts(&self, key: &str) -> Result<Vec<Mount>, Error> {
        let (snapshot, parent) = {
            let state = self.inner.meta.read();
            (state.snapshot(key)?, state.get(key)?.parent.clone())
        };
        let chain = self.chain_path(self.inner.known_chain(&parent)).await?;
        Ok(self.inner.mounts(&snapshot, chain.as_deref()))
    }

    /// Commits the active snapshot `key` as `name`, with its size as it is now.
    ///
    /// # Errors
    /// Those of containerd's overlayfs snapshotter.
    pub async fn commit(&self, name: &str, key: &str, labels: &Labels) -> Result<(), Error> {
        let (name, key, labels) = (name.to_owned(), key.to_owned(), labels.clone());
        self.blocking(move |inner| inner.commit(&name, &key, &labels)).await
    }

    /// Removes a snapshot that none stands on. Its directory vanishes soon after;
    /// [`Snapshotter::cleanup`] waits for that.
    ///
    /// # Errors
    /// `NotFound`, or `FailedPrecondition` where it has children.
    pub async fn remove(&self, key: &str) -> Result<(), Error> {
        let key = key.to_owned();
        let litter = self.blocking(move |inner| inner.remove(&key)).await?;
        if litter {
            let inner = Arc::clone(&self.inner);
            tokio::spawn(async move { inner.empty_trash().await });
        }
        Ok(())
    }

    /// Everything known about a snapshot.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn stat(&self, key: &str) -> Result<Record, Error> {
        Ok(self.inner.meta.read().get(key)?.clone())
    }

    /// Writes labels; see [`super::meta::State::update`].
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument` for anything but labels.
    pub async fn update(
        &self,
        name: &str,
        labels: &Labels,
        paths: &[String],
    ) -> Result<Record, Error> {
        let (name, labels, paths) = (name.to_owned(), labels.clone(), paths.to_owned());
        self.blocking(move |inner| {
            let writer = inner.meta.lock();
            let (change, record) = writer.state().update(&name, &labels, &paths, now())?;
            writer.commit(change)?;
            Ok(record)
        })
        .await
    }

    /// Snapshots that match any of the filters, in name order.
    ///
    /// # Errors
    /// A filter that is not one.
    pub fn list(&self, filters: &[String]) -> Result<Vec<(String, Record)>, Error> {
        let filter = Filter::parse(filters)?;
        let state = self.inner.meta.read();
        Ok(state.walk(&filter).map(|(name, record)| (name.to_owned(), record.clone())).collect())
    }

    /// Bytes and inodes of a snapshot itself: for an ordinary committed one as
    /// counted at its commit, for a remote one what is cached now, for an active
    /// one as [`Meter`] counts, for a view nothing (as in overlayfs).
    ///
    /// # Errors
    /// `NotFound`, or the directory can't be read.
    pub async fn usage(&self, key: &str) -> Result<Usage, Error> {
        let (id, kind, content, usage) = {
            let state = self.inner.meta.read();
            let record = state.get(key)?;
            (record.id, record.kind, record.content, record.usage)
        };
        match (kind, content) {
            (_, Content::Chain(chain)) => Ok(self.inner.remote.usage(&chain)),
            (Kind::Active, Content::Directory) => {
                self.blocking(move |inner| {
                    inner
                        .meter
                        .usage(id, inner.directories.fs(id), Instant::now())
                        .map_err(|error| Error::files("usage", error))
                })
                .await
            }
            (Kind::View | Kind::Committed, Content::Directory) => Ok(usage),
        }
    }

    /// Removes what no snapshot owns, and returns when it is gone.
    ///
    /// # Errors
    /// Directories that can't be listed; what can't be removed is only logged, as
    /// containerd does.
    pub async fn cleanup(&self) -> Result<(), Error> {
        self.blocking(|inner| {
            inner.discard_orphans().map_err(|error| Error::files("list snapshots", error))
        })
        .await?;
        Arc::clone(&self.inner).empty_trash().await;
        Ok(())
    }

    /// Keys of active snapshots and views that stand on a remote chain and are
    /// mounted, as `mountinfo` (proc(5)) has it, each with the chain: containers
    /// that are running, in name order.
    pub fn mounted_on_chains(&self, mountinfo: &[u8]) -> Vec<(String, Digest)> {
        let mounted = in_use::Mounted::parse(mountinfo);
        let state = self.inner.meta.read();
        let open = state.records().iter().filter(|(_, record)| record.kind != Kind::Committed);
        open.filter_map(|(key, record)| {
            let chain = state.snapshot(key).ok()?.chain_below()?;
            let is_mounted = match record.kind {
                Kind::View => mounted.has_chain(&chain),
                _ => mounted.has_upper(&self.inner.directories.fs(record.id)),
            };
            is_mounted.then(|| (key.clone(), chain))
        })
        .collect()
    }

    /// All chains that snapshots name: what the cache must not forget.
    pub fn chains(&self) -> Vec<Digest> {
        let state = self.inner.meta.read();
        let chains = state.records().values().filter_map(|record| match record.content {
            Content::Chain(chain) => Some(chain),
            Content::Directory => None,
        });
        chains.collect()
    }

    /// Ends work in the background soon. Snapshots stay as they are, and what is
    /// left of removed ones goes next time.
    pub fn stop_background(&self) {
        self.inner.closing.store(true, Ordering::Relaxed);
    }

    /// Lets go of the database when the write under way is through, so that it can
    /// be opened again even while a connection lingers. Changes are refused then.
    pub async fn close(&self) {
        self.stop_background();
        let inner = Arc::clone(&self.inner);
        let _ = tokio::task::spawn_blocking(move || inner.meta.close()).await;
    }

    async fn prepare_remote(&self, parent: &str, labels: &Labels) -> Result<Prepared, Error> {
        let Some(target) = labels.get(SNAPSHOT_REF) else { return Ok(Prepared::Ordinary(None)) };
        let below = match self.inner.parent_chain(parent)? {
            ParentChain::Base => None,
            ParentChain::Chain(chain) => Some(chain),
            ParentChain::Ordinary => return Ok(Prepared::Ordinary(None)),
        };
        let layer = labels::remote_layer(labels, below);
        // Also for what is there: this image may say of another place to fetch it from.
        if let Ok(Some(layer)) = &layer {
            self.inner.remote.start_all(&layer.image);
        }
        if let Ok(chain) = target.parse::<Digest>()
            && self.inner.has_chain(target, parent, chain)
            && self.chain_path(self.inner.known_chain(target)).await.is_ok()
        {
            return Ok(Prepared::Remote);
        }
        let layer = match layer {
            Ok(Some(layer)) => layer,
            Ok(None) => return Ok(Prepared::Ordinary(None)),
            Err(error) => return Ok(Prepared::Ordinary(Some(error.to_string()))),
        };
        match self.inner.remote.prepare(layer.clone()).await {
            Ok(chain) => self.adopt(target, parent, labels, &layer, &chain).await,
            Err(RemoteError::Declined(reason)) => Ok(Prepared::Ordinary(Some(reason))),
            Err(RemoteError::Unavailable(reason)) if below.is_none() => {
                Ok(Prepared::Ordinary(Some(reason)))
            }
            Err(RemoteError::Unavailable(reason)) => Err(Error::Unavailable(reason)),
        }
    }

    async fn adopt(
        &self,
        target: &str,
        parent: &str,
        labels: &Labels,
        layer: &RemoteLayer,
        chain: &RemoteChain,
    ) -> Result<Prepared, Error> {
        if !is_mountable(&chain.path) {
            let reason = format!("{} can't be a lower directory", chain.path.display());
            return Ok(Prepared::Ordinary(Some(reason)));
        }
        let (name, parent, labels) = (target.to_owned(), parent.to_owned(), labels.clone());
        let chain_id = layer.chain_id;
        let adopted = self
            .blocking(move |inner| {
                let writer = inner.meta.lock();
                let adoption = writer.state().adopt(&name, &parent, chain_id, &labels, now())?;
                match adoption {
                    Adoption::New(change) => writer.commit(change)?,
                    Adoption::Known => {}
                    Adoption::Conflict => {
                        let reason = format!("{name:?} names another snapshot");
                        return Ok(Prepared::Ordinary(Some(reason)));
                    }
                }
                Ok(Prepared::Remote)
            })
            .await;
        if !matches!(adopted, Ok(Prepared::Remote)) && !self.chains().contains(&chain_id) {
            self.inner.remote.removed(&chain_id);
        }
        adopted
    }

    async fn create(
        &self,
        kind: Kind,
        key: &str,
        parent: &str,
        labels: &Labels,
    ) -> Result<Vec<Mount>, Error> {
        // The chain below has to be mounted first, which can wait; what is below
        // can't change meanwhile, since names of chains say what they hold.
        let (_, planned) = self.inner.meta.read().create(kind, key, parent, labels, now())?;
        let chain_id = planned.chain_below();
        let chain = self.chain_path(self.inner.known_chain(parent)).await?;
        let (key, parent, labels) = (key.to_owned(), parent.to_owned(), labels.clone());
        self.blocking(move |inner| {
            inner.create(kind, &key, &parent, &labels, chain_id, chain.as_deref())
        })
        .await
    }

    /// Where the chain is now, mounted and fit for a lower directory.
    async fn chain_path(&self, chain: Option<KnownChain>) -> Result<Option<PathBuf>, Error> {
        let Some(chain) = chain else { return Ok(None) };
        let chain_id = chain.chain_id;
        let found = self.inner.remote.revalidate(chain).await.map_err(|error| {
            let (RemoteError::Declined(reason) | RemoteError::Unavailable(reason)) = error;
            Error::Unavailable(format!("chain {chain_id}: {reason}"))
        })?;
        if !is_mountable(&found.path) {
            let path = found.path.display();
            return Err(Error::Internal(format!("{path} can't be a lower directory")));
        }
        Ok(Some(found.path))
    }

    /// Runs `work` on a thread that may block; it is finished even if the caller
    /// of the request is gone.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let inner = Arc::clone(&self.inner);
        tokio::task::spawn_blocking(move || work(&inner))
            .await
            .map_err(|error| Error::Internal(format!("request was cut off: {error}")))?
    }
}

enum ParentChain {
    Base,
    Chain(Digest),
    Ordinary,
}

impl Inner {
    fn parent_chain(&self, parent: &str) -> Result<ParentChain, Error> {
        if parent.is_empty() {
            return Ok(ParentChain::Base);
        }
        Ok(match self.meta.read().get(parent)?.content {
            Content::Chain(chain) => ParentChain::Chain(chain),
            Content::Directory => ParentChain::Ordinary,
        })
    }

    fn has_chain(&self, name: &str, parent: &str, chain: Digest) -> bool {
        self.meta
            .read()
            .get(name)
            .is_ok_and(|record| record.content == Content::Chain(chain) && record.parent == parent)
    }

    /// The nearest chain at or below the committed snapshot `name`.
    fn known_chain(&self, name: &str) -> Option<KnownChain> {
        let state = self.meta.read();
        let (mut chain_id, mut layers, mut name) = (None, Vec::new(), name);
        // Bounded, should a damaged database hold a cycle.
        for _ in 0..state.records().len() {
            let Some(record) = state.records().get(name) else { break };
            if let Content::Chain(chain) = record.content {
                chain_id.get_or_insert(chain);
                let below = state.records().get(&record.parent).map(|below| below.content);
                let below = match below {
                    Some(Content::Chain(below)) => Some(below),
                    _ => None,
                };
                layers.extend(labels::remote_layer(&record.labels, below).ok().flatten());
            }
            name = &record.parent;
        }
        layers.reverse();
        chain_id.map(|chain_id| KnownChain { chain_id, layers })
    }

    fn mounts(&self, snapshot: &Snapshot, chain: Option<&Path>) -> Vec<Mount> {
        mounts::mounts(snapshot, chain, &self.directories, self.overlay)
    }

    fn create(
        &self,
        kind: Kind,
        key: &str,
        parent: &str,
        labels: &Labels,
        chain_id: Option<Digest>,
        chain: Option<&Path>,
    ) -> Result<Vec<Mount>, Error> {
        let writer = self.meta.lock();
        let (change, snapshot) = writer.state().create(kind, key, parent, labels, now())?;
        if snapshot.chain_below() != chain_id {
            return Err(Error::Unavailable(format!("parent {parent:?} was replaced meanwhile")));
        }
        let owner = self.owner_below(&snapshot, chain)?;
        self.directories
            .create(snapshot.id, kind, owner)
            .map_err(|error| Error::files("create snapshot directory", error))?;
        if let Err(error) = writer.commit(change) {
            if let Err(error) = self.directories.discard(&snapshot.id.to_string()) {
                tracing::warn!(id = snapshot.id, %error, "directory stays until the next clean-up");
            }
            return Err(error.into());
        }
        Ok(self.mounts(&snapshot, chain))
    }

    /// Whom the root directory below belongs to: the new one covers it.
    fn owner_below(
        &self,
        snapshot: &Snapshot,
        chain: Option<&Path>,
    ) -> Result<Option<Owner>, Error> {
        let Some(nearest) = snapshot.parents.first() else { return Ok(None) };
        let path = match (nearest.content, chain) {
            (Content::Chain(_), Some(chain)) => chain.to_owned(),
            _ => self.directories.fs(nearest.id),
        };
        Directories::owner(&path)
            .map(Some)
            .map_err(|error| Error::files("failed to stat parent", error))
    }

    fn commit(&self, name: &str, key: &str, labels: &Labels) -> Result<(), Error> {
        let id = {
            let state = self.meta.read();
            // Wrong requests are told so before a long count.
            if state.commit(name, key, labels, Usage::default(), now())?.is_empty() {
                return Ok(());
            }
            state.get(key)?.id
        };
        let usage = measure(&self.directories.fs(id), usize::MAX)
            .map_err(|error| Error::files("disk usage", error))?
            .usage();
        let writer = self.meta.lock();
        let change = writer.state().commit(name, key, labels, usage, now())?;
        writer.commit(change)?;
        self.meter.forget(id);
        Ok(())
    }

    /// Whether a directory is in the trash now.
    fn remove(&self, key: &str) -> Result<bool, Error> {
        let writer = self.meta.lock();
        let (id, content, change) = {
            let state = writer.state();
            let (change, record) = state.remove(key)?;
            (record.id, record.content, change)
        };
        writer.commit(change)?;
        self.meter.forget(id);
        match content {
            Content::Chain(chain) => {
                drop(writer);
                self.remote.removed(&chain);
                Ok(false)
            }
            Content::Directory => {
                if let Err(error) = self.directories.discard(&id.to_string()) {
                    tracing::warn!(id, %error, "directory stays until the next clean-up");
                }
                Ok(true)
            }
        }
    }

    /// Moves directories without a record into the trash. No snapshot is being
    /// made meanwhile.
    fn discard_orphans(&self) -> std::io::Result<()> {
        let writer = self.meta.lock();
        let orphans = self.directories.orphans(&writer.state(), self.meta.damaged())?;
        for name in orphans {
            tracing::info!(name, "removing a directory that no snapshot owns");
            self.directories.discard(&name)?;
        }
        Ok(())
    }

    /// After a power failure a record can be without its directory. An active
    /// snapshot or view gets an empty one; of a committed one the content is lost,
    /// which is for containerd to find out and for the log to tell.
    fn restore_missing(&self) -> std::io::Result<()> {
        let writer = self.meta.lock();
        for (name, record) in writer.state().records() {
            if record.content != Content::Directory || self.directories.exists(record.id) {
                continue;
            }
            if record.kind == Kind::Committed {
                tracing::error!(name, id = record.id, "files of a committed snapshot are gone");
            } else {
                tracing::warn!(
                    name,
                    id = record.id,
                    "files of a snapshot are gone; it is empty now"
                );
                self.directories.create(record.id, record.kind, None)?;
            }
        }
        Ok(())
    }

    async fn empty_trash(self: Arc<Self>) {
        let _one = self.sweep.lock().await;
        let inner = Arc::clone(&self);
        let emptied = tokio::task::spawn_blocking(move || {
            inner.directories.empty_trash(|| inner.closing.load(Ordering::Relaxed))
        })
        .await;
        match emptied {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "removed snapshots can't be deleted yet"),
            Err(error) => tracing::warn!(%error, "deleting removed snapshots was cut off"),
        }
    }
}

fn now() -> Timestamp {
    SystemTime::now().into()
}

#[cfg(test)]
mod tests;
