//! The node: store, engine, images and mounts, put together.

mod key;
mod remote;
mod report;
mod service;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use dashmap::DashSet;
use tokio::net::UnixListener;
use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;
use tracing::{error, info, warn};

use crate::admin::{self, Failure, FailureKind, SOCKET};
use crate::blocks::{BlockReader, ReadThrough, Settings as ReadSettings};
use crate::config::{Config, IndexOrigin, Verify};
use crate::fetch::{Engine, Registries, RegistrySource};
use crate::fs::{FileSystem, FsOptions, Root};
use crate::fuse::{MountError, MountOptions};
use crate::mount::{Images, Mounted, Mounts, NodeCatalog, Repositories, Settings, Trust};
use crate::oci::registry;
use crate::snapshotter::{self, Snapshotter, Socket};
use crate::store::{OpenError, OpenOptions, Store, VerifyPolicy};
use crate::telemetry::Counters;
use crate::types::PeerId;

/// An owner that was started for others ends when nothing has been mounted or
/// asked for this long.
const IDLE: Duration = Duration::from_secs(2);

/// Why a node runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It was asked to, and ends when told.
    Daemon,
    /// A command needed it; it ends when nobody does any more.
    Started,
}

/// A node.
pub struct Node {
    config: Config,
    role: Role,
    store: Arc<Store>,
    engine: Arc<Engine>,
    reader: Arc<dyn BlockReader>,
    images: Arc<Images>,
    catalog: Arc<NodeCatalog>,
    mounts: Arc<Mounts>,
    counters: Arc<Counters>,
    clients: AtomicUsize,
    clients_changed: Notify,
    listener: Mutex<Option<UnixListener>>,
    socket: PathBuf,
    socket_inode: Option<u64>,
    /// Images that containerd is about to ask for, and that are being prepared.
    starting: DashSet<String>,
    snapshots: Mutex<Option<Snapshots>>,
    runtime: Handle,
    started: Instant,
}

/// The snapshotter while it is served.
struct Snapshots {
    stop: oneshot::Sender<()>,
    ended: JoinHandle<()>,
}

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The store can't be opened.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// The node's key can't be read or made.
    #[error(transparent)]
    Key(#[from] key::KeyError),
    /// The control socket can't be made.
    #[error("control socket {path}: {error}")]
    Socket {
        /// Where.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// The tree can't be mounted.
    #[error(transparent)]
    Mount(#[from] MountError),
}

impl NodeError {
    /// As it is told to a client. That the store has an owner already is the
    /// caller's matter.
    pub fn failure(&self) -> Failure {
        let kind = match self {
            Self::Store(OpenError::Locked { .. }) => FailureKind::InUse,
            _ => FailureKind::Failed,
        };
        Failure::new(kind, self)
    }
}

impl Node {
    /// Opens the store and listens on its control socket.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn open(config: Config, path: &Path, role: Role) -> Result<Arc<Self>, NodeError> {
        let store = Arc::new(open_store(&config, path)?);
        let key = key::load_or_make(path)?;
        let socket = path.join(SOCKET);
        // The lock is ours: a socket that is left is nobody's.
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket)
            .map_err(|error| NodeError::Socket { path: socket.clone(), error })?;
        let counters = Arc::new(Counters::default());
        let runtime = Handle::current();
        let repositories = Repositories::new(Arc::clone(&store), registry_settings(&config));
        let repositories = Arc::new(repositories);
        let source = RegistrySource::new(Arc::clone(&repositories) as _, Arc::clone(&counters));
        let engine = Arc::new(Engine::new(
            PeerId(key.verifying_key().to_bytes()),
            Arc::clone(&store),
            Arc::new(Registries(source)),
            Arc::clone(&counters),
            config.registry.connections,
            runtime.clone(),
        ));
        let no_progress = Duration::from_secs(config.mount.no_progress_timeout);
        let reading = ReadSettings { no_progress, readahead: config.mount.readahead };
        let reader = ReadThrough::new(
            Arc::clone(&store),
            Arc::clone(&engine),
            Arc::clone(&counters),
            reading,
        );
        let trust = Trust { registry: config.trust.index.contains(&IndexOrigin::Registry) };
        let images = Arc::new(Images::new(
            Arc::clone(&store),
            Arc::clone(&engine),
            repositories,
            Arc::clone(&counters),
            Arc::default(),
            Settings { key, trust, no_progress },
        ));
        let catalog = NodeCatalog::new(Arc::clone(&store), Arc::clone(&images));
        let mounts = Arc::<Mounts>::default();
        let shown = Arc::clone(&mounts);
        images.on_change(move || {
            for mounted in shown.list() {
                mounted.handle.listings_changed();
            }
        });
        let node = Arc::new(Self {
            config,
            role,
            store,
            engine,
            reader: Arc::new(reader),
            images,
            catalog,
            mounts,
            counters,
            clients: AtomicUsize::new(0),
            clients_changed: Notify::new(),
            listener: Mutex::new(Some(listener)),
            socket_inode: inode(&socket),
            starting: DashSet::new(),
            snapshots: Mutex::default(),
            socket,
            runtime,
            started: Instant::now(),
        });
        node.catalog.set_status(Arc::new(report::Files::new(&node)));
        info!(store = %path.display(), ?role, "ready");
        Ok(node)
    }

    /// Mounts the whole tree at `mount.path`.
    ///
    /// # Errors
    /// [`NodeError::Mount`].
    pub async fn mount_tree(self: &Arc<Self>) -> Result<(), NodeError> {
        let dir = self.config.mount.path.clone();
        if let Err(error) = std::fs::create_dir_all(&dir) {
            return Err(MountError::MountPoint { dir, error }.into());
        }
        let options = self.mount_options("peersync");
        self.mount(Root::Whole, None, dir, options).await?;
        Ok(())
    }

    /// Serves containerd on `snapshotter.socket`. Without it the rest of the node
    /// is of use all the same: a failure is said and no more.
    pub async fn serve_snapshots(self: &Arc<Self>) {
        let socket = self.config.snapshotter.socket.clone();
        if socket.as_os_str().is_empty() || !nix::unistd::geteuid().is_root() {
            return;
        }
        let root = self.store.path().join("snapshotter");
        let layers = Arc::new(remote::NodeLayers(Arc::downgrade(self)));
        let opened = tokio::task::spawn_blocking(move || {
            let socket = Socket::bind(&socket).map_err(|error| error.to_string())?;
            let snapshotter =
                Snapshotter::open(&root, layers).map_err(|error| error.to_string())?;
            Ok::<_, String>((socket, snapshotter))
        });
        let (socket, snapshotter) = match opened.await {
            Ok(Ok(opened)) => opened,
            Ok(Err(error)) => return error!("containerd is not served: {error}"),
            Err(error) => return error!("containerd is not served: {error}"),
        };
        info!(socket = %socket.path().display(), "containerd is served");
        let (stop, stopped) = oneshot::channel();
        let ended = tokio::spawn(async move {
            let stopped = async {
                let _ = stopped.await;
            };
            if let Err(error) = snapshotter::serve(socket, Arc::new(snapshotter), stopped).await {
                error!("containerd is not served any more: {error}");
            }
        });
        *self.snapshots.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(Snapshots { stop, ended });
    }

    /// Serves until told to end: by a signal, or, where it was started for
    /// others, when nobody needs it any more.
    pub async fn run(self: &Arc<Self>) {
        let listener = self.listener.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(listener) = listener else { return };
        let serving = admin::serve(listener, Arc::clone(self) as Arc<dyn admin::Service>);
        tokio::select! {
            result = serving => if let Err(error) = result {
                error!("control socket: {error}");
            },
            () = terminated() => info!("told to end"),
            () = self.idle(), if self.role == Role::Started => info!("nobody needs this process"),
        }
    }

    /// Takes the mounts away and closes the store.
    pub async fn close(&self) {
        // Unless it is another's by now: somebody may have put a new store here.
        if inode(&self.socket) == self.socket_inode {
            let _ = std::fs::remove_file(&self.socket);
        }
        let snapshots = self.snapshots.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Snapshots { stop, ended }) = snapshots {
            let _ = stop.send(());
            let _ = ended.await;
        }
        let mounts = Arc::clone(&self.mounts);
        let in_use = tokio::task::spawn_blocking(move || mounts.unmount_all()).await;
        for dir in in_use.unwrap_or_default() {
            warn!(
                "{} was in use and has been detached: containers and processes that use it \
                 will see errors until they are started anew",
                dir.display()
            );
        }
        self.engine.close();
        if let Err(error) = self.store.sync() {
            error!("store: {error}");
        }
    }

    async fn mount(
        self: &Arc<Self>,
        root: Root,
        image: Option<String>,
        dir: PathBuf,
        options: MountOptions,
    ) -> Result<Mounted, MountError> {
        let catalog = Arc::clone(&self.catalog) as Arc<dyn crate::fs::Catalog>;
        let fs = FileSystem::new(root, catalog, Arc::clone(&self.reader), self.fs_options());
        let (mounts, runtime) = (Arc::clone(&self.mounts), self.runtime.clone());
        let work = move || mounts.mount(fs, image, &dir, &options, runtime);
        match tokio::task::spawn_blocking(work).await {
            Ok(mounted) => mounted,
            Err(error) => Err(MountError::Session(std::io::Error::other(error))),
        }
    }

    fn mount_options(&self, source: &str) -> MountOptions {
        let mut options = MountOptions::new(source);
        options.threads = self.config.mount.threads;
        options.stack_depth = options.stack_depth.min(self.config.mount.stack_depth);
        options
    }

    fn fs_options(&self) -> FsOptions {
        let user = (nix::unistd::geteuid(), nix::unistd::getegid());
        let group = nix::unistd::Group::from_name(&self.config.mount.resolve_group);
        FsOptions {
            resolve_group: group.ok().flatten().map(|group| group.gid.as_raw()),
            user_opaque: !user.0.is_root(),
            owner: (user.0.as_raw(), user.1.as_raw()),
        }
    }

    /// Ends when there has been neither mount nor client for [`IDLE`].
    async fn idle(&self) {
        loop {
            let mounts = self.mounts.changed().notified();
            let clients = self.clients_changed.notified();
            let needed = self.clients.load(Ordering::SeqCst) > 0 || !self.mounts.is_empty();
            tokio::select! {
                () = mounts => {}
                () = clients => {}
                () = tokio::time::sleep(IDLE), if !needed => return,
            }
        }
    }
}

fn inode(path: &Path) -> Option<u64> {
    use std::os::unix::fs::MetadataExt;
    std::fs::symlink_metadata(path).ok().map(|meta| meta.ino())
}

fn open_store(config: &Config, path: &Path) -> Result<Store, OpenError> {
    let verify = match config.store.verify {
        Verify::Always => VerifyPolicy::Always,
        Verify::FirstRead => VerifyPolicy::FirstRead,
        Verify::Never => VerifyPolicy::Never,
    };
    let options = OpenOptions { verify, ..OpenOptions::default() };
    match Store::open(path, options.clone()) {
        // What is there can still be served.
        Err(OpenError::Full(_) | OpenError::Denied { .. }) => {
            let store = Store::open(path, OpenOptions { read_only: true, ..options })?;
            warn!(store = %path.display(), "opened read-only");
            Ok(store)
        }
        opened => opened,
    }
}

fn registry_settings(config: &Config) -> registry::Settings {
    registry::Settings {
        hosts_dir: Some(config.registry.hosts_dir.clone()),
        plain_http: config.registry.plain_http.clone(),
        ..registry::Settings::default()
    }
}

/// Ends with the first SIGTERM or SIGINT.
async fn terminated() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut term), Ok(mut int)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}
