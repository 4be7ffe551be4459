//! Where tunnels come from: listens, opens, and keeps count.

mod callers;
mod control;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::debug;

pub use control::{Control, ControlError, Controls};

use super::handshake::{Greeting, OpenError, greet, refuse};
use super::link::{Lanes, Link};
use super::paths::{HEAD_START, Paths};
use super::quic::Quic;
use super::serve::governor::{Rate, UploadLimits};
use super::session::{Session, Shared};
use super::tls::Tls;
use super::turns::{Throttle, Turns};
use super::watch::Patience;
use super::{BlockServer, Event, Near, Transport, Tunnel, TunnelId, TunnelInfo, tcp};
use crate::identity::{Membership, NodeKey};
use crate::types::PeerId;
use crate::wire::{Features, Hello, Limits, Refusal, Role, Zone};

/// Events that wait for their owner; each may hold a block, within its tunnel's
/// share of memory.
const EVENTS_MAX: usize = 1024;
/// Bans that are remembered.
const BANS_MAX: usize = 4096;

/// What can be set.
#[derive(Clone)]
pub struct Settings {
    /// Address for TCP and UDP; port 0 takes one that is free for both.
    pub listen: SocketAddr,
    /// Transports that are used.
    pub transports: Vec<Transport>,
    /// Where a peer at an address is.
    pub near: Arc<dyn Fn(IpAddr) -> Near + Send + Sync>,
    /// Where this node is, to be told to peers.
    pub zone: Zone,
    /// What this node can do.
    pub features: Features,
    /// What this node takes on for each tunnel.
    pub limits: Limits,
    /// Limits of what is sent.
    pub upload: UploadLimits,
    /// Limit of what is received, in bytes per second.
    pub download: Rate,
    /// How patient this node is with its peers.
    pub patience: Patience,
    /// A tunnel must be open this long after its first packet.
    pub handshake: Duration,
    /// Callers that have not proved themselves yet, in all,
    pub callers_max: usize,
    /// and from one address (IPv6: one /64).
    pub callers_per_source: usize,
    /// Tunnels in all,
    pub tunnels_max: usize,
    /// and with one peer.
    pub tunnels_per_peer: usize,
    /// Head start of the transport that is tried first.
    pub head_start: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([0, 0, 0, 0], 7400)),
            transports: vec![Transport::Tcp, Transport::Quic],
            near: Arc::new(|address| {
                if address.to_canonical().is_loopback() { Near::Lan } else { Near::Remote }
            }),
            zone: Zone::default(),
            features: Features::ALL,
            limits: Limits { requests: 256, bytes: 64 << 20 },
            upload: UploadLimits::default(),
            download: None,
            patience: Patience::default(),
            handshake: Duration::from_secs(5),
            callers_max: 128,
            callers_per_source: 8,
            tunnels_max: 512,
            tunnels_per_peer: 8,
            head_start: HEAD_START,
        }
    }
}

/// Whom to open a tunnel to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    /// Who must be there; `None`: whoever is there and of the swarm.
    pub peer: Option<PeerId>,
    /// Where.
    pub address: SocketAddr,
}

/// Why there is no endpoint.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The address can't be listened at.
    #[error("listening at {address}: {error}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        error: io::Error,
    },
    /// The node's key can't be used.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// No transport was chosen.
    #[error("no transport is switched on")]
    NoTransport,
}

/// What happens on the tunnels of an endpoint.
#[derive(Debug)]
pub struct Events(mpsc::Receiver<Event>);

impl Events {
    /// The next event. `None` once the endpoint is dropped and all tunnels are
    /// closed.
    pub async fn next(&mut self) -> Option<Event> {
        self.0.recv().await
    }
}

/// A node's end of all its tunnels. Dropping it closes them.
pub struct Endpoint(Arc<Inner>);

struct Inner {
    me: PeerId,
    address: SocketAddr,
    settings: Settings,
    tls: Tls,
    quic: Option<Quic>,
    tcp: bool,
    membership: RwLock<Arc<Membership>>,
    shared: Arc<Shared>,
    table: Mutex<Table>,
    paths: Mutex<Paths>,
    next: AtomicU64,
    started: Instant,
    closed: CancellationToken,
}

/// Who is connected, who knocks, and who must not.
#[derive(Default)]
struct Table {
    tunnels: HashMap<TunnelId, Open>,
    callers: HashMap<IpAddr, usize>,
    banned: HashMap<PeerId, Instant>,
}

struct Open {
    peer: PeerId,
    /// `None` while it is being set up.
    session: Option<Weak<Session>>,
}

/// A connection that has become a member's.
struct Greeted {
    link: Link,
    lanes: Lanes,
    hello: Hello,
    rtt: Duration,
    place: Place,
}

impl Endpoint {
    /// Listens, serves what `server` has, and gives what happens.
    ///
    /// # Errors
    /// [`BindError`].
    pub fn bind(
        settings: Settings,
        key: &NodeKey,
        membership: Membership,
        server: Arc<dyn BlockServer>,
    ) -> Result<(Self, Events), BindError> {
        let tls = Tls::new(key)?;
        let (listener, quic, address) = listen(&settings, &tls)?;
        let (events, queue) = mpsc::channel(EVENTS_MAX);
        let turns = Turns::new(settings.upload);
        let shared = Shared {
            events,
            server,
            turns: Arc::clone(&turns),
            download: Throttle::new(settings.download),
            patience: settings.patience,
            limits: settings.limits,
        };
        let inner = Arc::new(Inner {
            me: key.peer_id(),
            address,
            tls,
            quic,
            tcp: listener.is_some(),
            membership: RwLock::new(Arc::new(membership)),
            shared: Arc::new(shared),
            table: Mutex::default(),
            paths: Mutex::default(),
            next: AtomicU64::new(1),
            started: Instant::now(),
            closed: CancellationToken::new(),
            settings,
        });
        let closed = inner.closed.clone();
        tokio::spawn(closed.clone().run_until_cancelled_owned(turns.run()));
        if let Some(listener) = listener {
            let accepting = Arc::clone(&inner).accept_tcp(listener);
            tokio::spawn(closed.clone().run_until_cancelled_owned(accepting));
        }
        if inner.quic.is_some() {
            let accepting = Arc::clone(&inner).accept_quic();
            tokio::spawn(closed.run_until_cancelled_owned(accepting));
        }
        Ok((Self(inner), Events(queue)))
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.0.address
    }

    /// This node.
    pub fn me(&self) -> PeerId {
        self.0.me
    }

    /// Opens a tunnel. Several can be open to one peer. The transports are raced,
    /// the likelier one with a head start. [`super::EventKind::Up`] tells of it,
    /// too.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn open(&self, target: Target) -> Result<Arc<dyn Tunnel>, OpenError> {
        let inner = &self.0;
        if let Some(peer) = &target.peer {
            inner.check_peer(peer)?;
        }
        let open = inner.race(target);
        let greeted = inner.closed.run_until_cancelled(open).await.ok_or(OpenError::Closed)??;
        Ok(inner.start(greeted).await as Arc<dyn Tunnel>)
    }

    /// Tunnels that are open to a peer.
    pub fn tunnels(&self, peer: &PeerId) -> Vec<Arc<dyn Tunnel>> {
        self.0.sessions(|open| open == peer).map(|session| session as Arc<dyn Tunnel>).collect()
    }

    /// Closes all tunnels to a peer.
    pub fn close_peer(&self, peer: &PeerId, why: Refusal) {
        self.0.sessions(|open| open == peer).for_each(|session| session.close(why));
    }

    /// Closes all tunnels to a peer, and lets none be opened for a time.
    pub fn ban(&self, peer: PeerId, time: Duration) {
        {
            let mut table = self.0.table();
            let now = Instant::now();
            table.banned.retain(|_, until| *until > now);
            if table.banned.len() >= BANS_MAX {
                // The one that would end first makes room.
                let first = table.banned.iter().min_by_key(|(_, until)| **until);
                if let Some(first) = first.map(|(peer, _)| *peer) {
                    table.banned.remove(&first);
                }
            }
            table.banned.insert(peer, now + time);
        }
        self.close_peer(&peer, Refusal::Banned);
    }

    /// Changes who is of the swarm. Tunnels to nodes that are revoked now are
    /// closed; others stay, whichever key they were opened with.
    pub fn set_membership(&self, membership: Membership) {
        let membership = Arc::new(membership);
        let mut current = self.0.membership.write().unwrap_or_else(PoisonError::into_inner);
        *current = Arc::clone(&membership);
        drop(current);
        self.0
            .sessions(|peer| membership.check_revoked(peer).is_err())
            .for_each(|session| session.close(Refusal::Revoked));
    }

    /// Whether the node was excluded from the swarm.
    pub fn is_revoked(&self, peer: &PeerId) -> bool {
        self.0.membership().check_revoked(peer).is_err()
    }

    /// Closes all tunnels and listens no more.
    pub fn close(&self) {
        self.0.close();
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "endpoint of {:?} at {}", self.0.me, self.0.address)
    }
}

/// Binds both transports to one port.
fn listen(
    settings: &Settings,
    tls: &Tls,
) -> Result<(Option<TcpListener>, Option<Quic>, SocketAddr), BindError> {
    let has = |transport| settings.transports.contains(&transport);
    if settings.transports.is_empty() {
        return Err(BindError::NoTransport);
    }
    let mut tries = if settings.listen.port() == 0 { 16 } else { 1 };
    loop {
        let mut address = settings.listen;
        let bound = (|| {
            let tcp = has(Transport::Tcp).then(|| tcp::listen(address)).transpose()?;
            if let Some(tcp) = &tcp {
                address = tcp.local_addr()?;
            }
            let quic = has(Transport::Quic).then(|| Quic::bind(tls, address)).transpose()?;
            if let Some(quic) = &quic {
                address = quic.address()?;
            }
            Ok((tcp, quic, address))
        })();
        tries -= 1;
        match bound {
            Ok(bound) => return Ok(bound),
            Err(_) if tries > 0 => {}
            Err(error) => return Err(BindError::Listen { address, error }),
        }
    }
}

impl Inner {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn paths(&self) -> MutexGuard<'_, Paths> {
        self.paths.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn membership(&self) -> Arc<Membership> {
        Arc::clone(&self.membership.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn sessions(&self, of: impl Fn(&PeerId) -> bool) -> impl Iterator<Item = Arc<Session>> {
        let table = self.table();
        let open = table.tunnels.values().filter(|open| of(&open.peer));
        let sessions: Vec<_> =
            open.filter_map(|open| open.session.as_ref().and_then(Weak::upgrade)).collect();
        sessions.into_iter()
    }

    fn check_peer(&self, peer: &PeerId) -> Result<(), OpenError> {
        if *peer == self.me {
            return Err(OpenError::Myself);
        }
        self.membership().check_revoked(peer)?;
        let banned = self.table().banned.get(peer).is_some_and(|until| *until > Instant::now());
        if banned { Err(OpenError::Banned) } else { Ok(()) }
    }

    fn close(&self) {
        self.closed.cancel();
        self.sessions(|_| true).for_each(|session| session.close(Refusal::Shutdown));
        if let Some(quic) = &self.quic {
            // Connections of sessions close by themselves; nothing new comes.
            quic.refuse_new();
        }
    }

    /// Tries the transports, the second one after the head start or when the first
    /// one has failed.
    async fn race(self: &Arc<Self>, target: Target) -> Result<Greeted, OpenError> {
        let near = (self.settings.near)(target.address.ip());
        let now = self.started.elapsed();
        let order = self.paths().order(now, &target.address, near);
        let mut usable = order.into_iter().filter(|transport| match transport {
            Transport::Tcp => self.tcp,
            Transport::Quic => self.quic.is_some(),
        });
        let (Some(first), second) = (usable.next(), usable.next()) else {
            return Err(OpenError::Closed);
        };
        let Some(second) = second else { return self.connect(first, target).await };
        let mut one = std::pin::pin!(self.connect(first, target));
        let head_start = sleep(self.settings.head_start);
        let opened = tokio::select! {
            done = &mut one => match done {
                Err(error) if error.is_about_the_path() => {
                    self.paths().failed(&target.address);
                    self.connect(second, target).await
                }
                done => done,
            },
            () = head_start => {
                let mut two = std::pin::pin!(self.connect(second, target));
                tokio::select! {
                    done = &mut one => match done {
                        Err(error) if error.is_about_the_path() => two.await,
                        done => done,
                    },
                    done = &mut two => match done {
                        Err(error) if error.is_about_the_path() => one.await,
                        done => done,
                    },
                }
            }
        };
        if let Ok(greeted) = &opened {
            let now = self.started.elapsed();
            self.paths().worked(now, target.address, greeted.link.transport);
        }
        opened
    }

    async fn connect(
        self: &Arc<Self>,
        transport: Transport,
        target: Target,
    ) -> Result<Greeted, OpenError> {
        let connect = async {
            let link = match (transport, &self.quic) {
                (Transport::Tcp, _) => {
                    tcp::connect(&self.tls, self.me, target.address, tcp::READ_MAX).await?
                }
                (Transport::Quic, Some(quic)) => quic.connect(self.me, target.address).await?,
                (Transport::Quic, None) => return Err(OpenError::Closed),
            };
            match target.peer {
                Some(expected) if expected != link.peer => Err(OpenError::WrongPeer(link.peer)),
                _ => self.greet(link).await,
            }
        };
        let time = self.settings.handshake;
        timeout(time, connect).await.unwrap_or(Err(OpenError::Timeout(time)))
    }

    /// From a TLS connection to a member's.
    async fn greet(self: &Arc<Self>, mut link: Link) -> Result<Greeted, OpenError> {
        let place = match self.check_peer(&link.peer).and_then(|()| self.place(link.peer)) {
            Ok(place) => place,
            Err(error) => {
                let why = match error {
                    OpenError::Banned => Some(Refusal::Banned),
                    OpenError::TooMany => Some(Refusal::TooMany),
                    OpenError::Denied(_) => Some(Refusal::Revoked),
                    _ => None,
                };
                if let (Role::Listener, Some(why)) = (link.role, why) {
                    refuse(&mut link, why).await;
                }
                return Err(error);
            }
        };
        let greeting = Greeting {
            features: self.settings.features,
            zone: self.settings.zone.clone(),
            port: self.address.port(),
            limits: self.settings.limits,
            agent: concat!("peersync/", env!("CARGO_PKG_VERSION")).to_owned(),
        };
        let began = Instant::now();
        let hello = greet(&mut link, &self.membership(), &greeting).await?;
        let rtt = began.elapsed();
        let lanes = link.carrier.lanes().await?;
        Ok(Greeted { link, lanes, hello, rtt, place })
    }

    /// A place in the table, or none.
    fn place(self: &Arc<Self>, peer: PeerId) -> Result<Place, OpenError> {
        let mut table = self.table();
        let of_peer = table.tunnels.values().filter(|open| open.peer == peer).count();
        let full = table.tunnels.len() >= self.settings.tunnels_max;
        if full || of_peer >= self.settings.tunnels_per_peer {
            return Err(OpenError::TooMany);
        }
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        table.tunnels.insert(id, Open { peer, session: None });
        Ok(Place { inner: Arc::clone(self), id })
    }

    async fn start(self: &Arc<Self>, greeted: Greeted) -> Arc<Session> {
        let Greeted { link, lanes, hello, rtt, place } = greeted;
        let info = TunnelInfo {
            id: place.id,
            peer: link.peer,
            address: link.address,
            listens: (hello.port != 0).then(|| SocketAddr::new(link.address.ip(), hello.port)),
            transport: link.transport,
            near: (self.settings.near)(link.address.ip()),
            opened: link.role == Role::Caller,
            rtt,
            features: hello.features.and(self.settings.features),
            limits: hello.limits,
            zone: hello.zone,
            agent: hello.agent,
        };
        debug!(tunnel = info.id, peer = ?info.peer, address = %info.address, transport = ?info.transport, "tunnel open");
        let (id, peer) = (place.id, link.peer);
        let session = Session::start(info, link, lanes, Arc::clone(&self.shared), move || {
            drop(place);
        })
        .await;
        if let Some(open) = self.table().tunnels.get_mut(&id) {
            open.session = Some(Arc::downgrade(&session));
        }
        // It may have been banned, or all closed, in the meantime.
        if self.closed.is_cancelled() {
            session.close(Refusal::Shutdown);
        } else if self.check_peer(&peer).is_err() {
            session.close(Refusal::Banned);
        }
        session
    }
}

/// A tunnel's place in the table; free again when dropped.
struct Place {
    inner: Arc<Inner>,
    id: TunnelId,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.inner.table().tunnels.remove(&self.id);
    }
}

impl OpenError {
    /// Whether another way to the same address may work.
    fn is_about_the_path(&self) -> bool {
        matches!(self, Self::Io(_) | Self::Timeout(_))
    }
}
