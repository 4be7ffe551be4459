//! The node: store, engine, images and mounts, put together.

mod caretaker;
mod evict;
pub(crate) mod memory;
mod mirror;
mod operator;
mod remote;
mod report;
mod service;
mod swarm;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ed25519_dalek::SigningKey;
use tokio::net::UnixListener;
use tokio::runtime::Handle;
use tokio::signal::unix::Signal;
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;
use tracing::{error, info, warn};

use crate::admin::{self, Failure, FailureKind, SOCKET};
use crate::blocks::{BlockReader, ReadThrough, Settings as ReadSettings};
use crate::config::{Config, EvictionConfig, IndexOrigin, Verify};
use crate::eviction::Weights;
use crate::fetch::{Engine, Names, Registries, RegistrySource, StoreServer};
use crate::fs::{FileSystem, FsOptions, Root};
use crate::fuse::{MountError, MountOptions};
use crate::identity::{KeyError, NodeKey};
use crate::mount::{Care, Images, Mounted, Mounts, NodeCatalog, Repositories, Settings, Trust};
use crate::oci::registry;
use crate::snapshotter::{self, BindError, Snapshotter, Socket, StartError};
use crate::store::{OpenError, OpenOptions, Store, VerifyPolicy};
use crate::telemetry::Counters;
use swarm::Swarm;

/// An owner that was started for others ends when nothing has been mounted or
/// asked for this long.
const IDLE: Duration = Duration::from_secs(2);
/// Most containers that are named in one line of the log.
const CONTAINERS_NAMED: usize = 20;

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
    signals: Mutex<Option<Signals>>,
    caretaker: Mutex<Option<caretaker::Caretaker>>,
    evictor: Arc<evict::Evictor>,
    evicting: Mutex<Option<evict::Thread>>,
    socket: PathBuf,
    socket_inode: Option<u64>,
    /// Images that containerd asks for, and whose layers are on their way.
    coming: remote::Coming,
    snapshots: Mutex<Option<Snapshots>>,
    /// Where `/metrics` is served.
    operator: Mutex<Option<SocketAddr>>,
    mirror: Mutex<Option<mirror::Serving>>,
    /// What the mirror knows of tags, for peers.
    names: Arc<Names>,
    /// Signs the indexes that are built here.
    key: SigningKey,
    runtime: Handle,
    started: Instant,
    /// This node's part in its swarm.
    swarm: Option<swarm::Joined>,
    /// Nodes that were good before.
    memory: Arc<swarm::Memory>,
}

/// The snapshotter while it is served.
struct Snapshots {
    snapshotter: Arc<Snapshotter>,
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
    Key(#[from] KeyError),
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
    /// The swarm can't be taken part in.
    #[error("swarm: {0}")]
    Swarm(#[from] swarm::SwarmError),
    /// containerd's socket can't be had.
    #[error("snapshotter socket {0}; `[snapshotter] socket = \"\"` does without containerd")]
    SnapshotterSocket(#[from] BindError),
    /// The operator's address can't be had.
    #[error("admin.listen: {address}: {error}; `[admin] listen = \"\"` does without")]
    Admin {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        error: std::io::Error,
    },
    /// The mirror's address can't be had.
    #[error("mirror.listen: {address}: {error}; `[mirror] listen = \"\"` does without")]
    Mirror {
        /// Which.
        address: SocketAddr,
        /// What the system said.
        error: std::io::Error,
    },
    /// The snapshots' state can't be used.
    #[error("snapshots: {0}")]
    Snapshots(#[from] StartError),
    /// The runtime is ending.
    #[error("start was cut off: {0}")]
    CutOff(#[from] tokio::task::JoinError),
}

impl NodeError {
    /// As it is told to a client. That the store has an owner already is the
    /// caller's matter.
    pub fn failure(&self) -> Failure {
        let kind = match self {
            Self::Store(OpenError::Locked { .. })
            | Self::SnapshotterSocket(BindError::InUse { .. }) => FailureKind::InUse,
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
        let signals = Signals::listen();
        let store = Arc::new(open_store(&config, path)?);
        let key = NodeKey::load_or_make(path)?;
        let socket = path.join(SOCKET);
        // The lock is ours: a socket that is left is nobody's.
        let _ = std::fs::remove_file(&socket);
        let listener = match UnixListener::bind(&socket) {
            // A daemon's mount is of use all the same; nobody could ask another.
            Err(error) if store.is_read_only() && role == Role::Daemon => {
                warn!("commands can't reach this process: {}: {error}", socket.display());
                None
            }
            bound => {
                Some(bound.map_err(|error| NodeError::Socket { path: socket.clone(), error })?)
            }
        };
        let counters = Arc::new(Counters::default());
        let runtime = Handle::current();
        let repositories = Repositories::new(Arc::clone(&store), registry_settings(&config));
        let repositories = Arc::new(repositories);
        let source = RegistrySource::new(Arc::clone(&repositories) as _, Arc::clone(&counters));
        let engine = Arc::new(Engine::new(
            key.peer_id(),
            Arc::clone(&store),
            Arc::new(Registries(source)),
            Arc::clone(&counters),
            config.registry.connections,
            runtime.clone(),
        ));
        let names = Arc::<Names>::default();
        let server = StoreServer::new(Arc::clone(&store), Arc::clone(&counters), engine.spools());
        let server = server.with_names(Arc::clone(&names));
        let memory = Arc::new(swarm::Memory::open(path, !store.is_read_only()));
        let swarm = match Swarm::join(&config, role, &key, server, &engine, &memory).await {
            // Whoever only wants to see an image need not be able to read the keys.
            Err(error) if role == Role::Started => {
                warn!("not in the swarm: {error}");
                None
            }
            joined => joined?,
        };
        let no_progress = Duration::from_secs(config.mount.no_progress_timeout);
        let reading = ReadSettings { no_progress, readahead: config.mount.readahead };
        let reader = ReadThrough::new(
            Arc::clone(&store),
            Arc::clone(&engine),
            Arc::clone(&counters),
            reading,
        );
        let trust = Trust {
            registry: config.believes(IndexOrigin::Registry),
            swarm: config.believes(IndexOrigin::Swarm),
        };
        let images = Arc::new(Images::new(
            Arc::clone(&store),
            Arc::clone(&engine),
            repositories,
            Arc::clone(&counters),
            Arc::default(),
            Settings { key: key.signing_key().clone(), trust, no_progress },
        ));
        let catalog = NodeCatalog::new(Arc::clone(&store), Arc::clone(&images));
        let mounts = Arc::<Mounts>::default();
        let shown = Arc::clone(&mounts);
        images.on_change(move || {
            for mounted in shown.list() {
                mounted.handle.listings_changed();
            }
        });
        let evictor = evict::Evictor::new(
            Arc::clone(&store),
            Arc::clone(&counters),
            config.store.clone(),
            weights(&config.eviction),
            key.signing_key(),
        );
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
            listener: Mutex::new(listener),
            signals: Mutex::new(Some(signals)),
            caretaker: Mutex::default(),
            evictor: Arc::new(evictor),
            evicting: Mutex::default(),
            socket_inode: inode(&socket),
            coming: remote::Coming::default(),
            snapshots: Mutex::default(),
            operator: Mutex::default(),
            mirror: Mutex::default(),
            names,
            key: key.signing_key().clone(),
            socket,
            runtime,
            started: Instant::now(),
            swarm: swarm.as_ref().map(Swarm::joined),
            memory,
        });
        if let Some(swarm) = swarm {
            swarm.take_part(&node);
        }
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
        match std::fs::create_dir_all(&dir) {
            // The dead mount of a daemon that crashed is there and can't be looked
            // at; mounting clears it away.
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(MountError::MountPoint { dir, error }.into());
            }
            _ => {}
        }
        let options = self.mount_options("peersync");
        self.mount(Root::Whole, None, dir, options).await?;
        Ok(())
    }

    /// Serves containerd on `snapshotter.socket`, as root and unless it is empty.
    ///
    /// That somebody else listens on the default socket is only said: it is the
    /// node's other daemon, and this one's mount and commands are of use without.
    ///
    /// # Errors
    /// [`NodeError`]: a daemon that containerd can't reach does not do what it was
    /// started for, and containers would find out much later.
    pub async fn serve_snapshots(self: &Arc<Self>) -> Result<(), NodeError> {
        let path = self.config.snapshotter.socket.clone();
        if path.as_os_str().is_empty() {
            return Ok(());
        }
        if !nix::unistd::geteuid().is_root() {
            info!("containerd is not served: that needs root");
            return Ok(());
        }
        if self.store.is_read_only() {
            error!("containerd is not served: the store is read-only");
            return Ok(());
        }
        let by_default = path == Config::default().snapshotter.socket;
        let root = self.store.path().join("snapshotter");
        let layers = Arc::new(remote::NodeLayers(Arc::downgrade(self)));
        let opened = tokio::task::spawn_blocking(move || {
            let socket = Socket::bind(&path)?;
            Ok((socket, Snapshotter::open(&root, layers)?))
        });
        let (socket, snapshotter) = match opened.await? {
            Err(NodeError::SnapshotterSocket(error @ BindError::InUse { .. })) if by_default => {
                error!("containerd is not served: {error}");
                return Ok(());
            }
            opened => opened?,
        };
        info!(socket = %socket.path().display(), "containerd is served");
        let (stop, stopped) = oneshot::channel();
        let snapshotter = Arc::new(snapshotter);
        let served = Arc::clone(&snapshotter);
        let ended = tokio::spawn(async move {
            let stopped = async {
                let _ = stopped.await;
            };
            if let Err(error) = snapshotter::serve(socket, served, stopped).await {
                error!("containerd is not served any more: {error}");
            }
        });
        *self.snapshots.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(Snapshots { snapshotter, stop, ended });
        Ok(())
    }

    /// Serves until told to end: by a signal, or, where it was started for
    /// others, when nobody needs it any more.
    pub async fn run(self: &Arc<Self>) {
        let listener = self.listener.lock().unwrap_or_else(PoisonError::into_inner).take();
        let signals = self.signals.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(signals) = signals else { return };
        self.take_care();
        let serving = async {
            match listener {
                Some(listener) => admin::serve(listener, Arc::clone(self) as _).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            result = serving => if let Err(error) = result {
                error!("control socket: {error}");
            },
            () = signals.first() => info!("told to end"),
            () = self.idle(), if self.role == Role::Started => info!("nobody needs this process"),
        }
    }

    /// Has the store looked after from now on.
    fn take_care(self: &Arc<Self>) {
        if self.store.is_read_only() {
            return;
        }
        let care = Care::new(
            Arc::clone(&self.store),
            Arc::clone(&self.engine),
            Arc::clone(&self.catalog),
            Arc::clone(&self.counters),
        );
        match caretaker::Caretaker::start(&self.store, care) {
            Ok(caretaker) => {
                let mut running = self.caretaker.lock().unwrap_or_else(PoisonError::into_inner);
                *running = Some(caretaker);
            }
            Err(error) => warn!("nobody looks after the store: {error}"),
        }
        match evict::Thread::start(self) {
            Ok(thread) => {
                let mut running = self.evicting.lock().unwrap_or_else(PoisonError::into_inner);
                *running = Some(thread);
            }
            Err(error) => warn!("nothing is evicted: {error}"),
        }
    }

    /// Takes the mounts away and closes the store.
    pub async fn close(&self) {
        // Unless it is another's by now: somebody may have put a new store here.
        if inode(&self.socket) == self.socket_inode {
            let _ = std::fs::remove_file(&self.socket);
        }
        let snapshots = self.snapshots.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Snapshots { snapshotter, stop, ended }) = snapshots {
            warn_of_containers(&snapshotter);
            let _ = stop.send(());
            let _ = ended.await;
        }
        let mirror = self.mirror.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mirror) = mirror {
            mirror.end().await;
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
        self.evictor.leave(self);
        self.engine.close();
        let caretaker = self.caretaker.lock().unwrap_or_else(PoisonError::into_inner).take();
        let evicting = self.evicting.lock().unwrap_or_else(PoisonError::into_inner).take();
        let store = Arc::clone(&self.store);
        let closing = move || {
            if let Some(evicting) = evicting {
                evicting.stop();
            }
            if let Some(caretaker) = caretaker {
                caretaker.stop();
            }
            store.shutdown()
        };
        match tokio::task::spawn_blocking(closing).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => error!("the store was not closed in order: {error}"),
            Err(error) => error!("the store was not closed in order: {error}"),
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

/// Names the containers that will find their files gone.
fn warn_of_containers(snapshotter: &Snapshotter) {
    let Ok(mounted) = std::fs::read("/proc/self/mountinfo") else { return };
    let running = snapshotter.mounted_on_chains(&mounted);
    if running.is_empty() {
        return;
    }
    let keys: Vec<&str> = running.iter().map(|(key, _)| key.as_str()).collect();
    let more = keys.len().saturating_sub(CONTAINERS_NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let named = keys[..keys.len().min(CONTAINERS_NAMED)].join(", ");
    warn!(
        "containers run on this node's lazy images and will see errors until they are started \
         anew ({}): {named}{more}",
        keys.len()
    );
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

fn weights(config: &EvictionConfig) -> Weights {
    let EvictionConfig { horizon, lan_cost, overhead, spare_after, popularity } = *config;
    let (horizon, overhead) = (horizon as f32, overhead.0 as f32);
    Weights { horizon, lan_cost, overhead, spare_after, popularity }
}

fn registry_settings(config: &Config) -> registry::Settings {
    registry::Settings {
        hosts_dir: Some(config.registry.hosts_dir.clone()),
        plain_http: config.registry.plain_http.clone(),
        own_addresses: config.mirror.own_addresses(&registry::own_addresses()),
        ..registry::Settings::default()
    }
}

/// SIGTERM and SIGINT, heard from the moment this is made: told to end while it
/// starts, a node takes its mount away again.
struct Signals(Option<(Signal, Signal)>);

impl Signals {
    fn listen() -> Self {
        use tokio::signal::unix::{SignalKind, signal};
        let signals =
            signal(SignalKind::terminate()).ok().zip(signal(SignalKind::interrupt()).ok());
        Self(signals)
    }

    /// Ends with the first of them.
    async fn first(self) {
        let Some((mut term, mut int)) = self.0 else { return std::future::pending().await };
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
    }
}
