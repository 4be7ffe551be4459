//! The distributed hash table: who has a layer, without anybody in the middle.
//!
//! Kademlia of libp2p with disjoint look-up paths, over control connections that
//! only members get. A node tells the nodes closest to a layer's name that it has
//! something of the layer; who looks for the layer asks those. Names are keyed by
//! the swarm's key, so a record says nothing to whoever does not have it.
//!
//! - `names`: what a layer is called, by the swarm's keys;
//! - `records`: what others have told this node, bounded;
//! - `schedule`: when this node tells what it has, and again;
//! - `address`: how libp2p writes addresses;
//! - `transport`: connections, by way of a [`Greeter`] that lets in members only;
//! - `task`: the one owner of all of it.
//!
//! Where a holder's tunnels are is not taken from a record: the holder says it
//! itself in the handshake of a control connection, at the address where it was
//! reached. A record that points elsewhere costs one connection that fails.

mod address;
mod names;
mod records;
mod schedule;
mod task;
mod transport;

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};

pub use names::Names;
pub use records::{PER_LAYER_MAX, PER_NODE_MAX, RECORDS_MAX};
pub use schedule::{PROVIDED_MAX, REPUBLISH};
pub use transport::Known;

use crate::types::{Digest, PeerId};

/// A record that is not repeated is gone after this long: a cache drops layers,
/// and nodes go without a word. libp2p's default of 48 h is for archives.
pub const LIFETIME: Duration = Duration::from_secs(30 * 60);
/// Commands that wait for the task.
const COMMANDS_MAX: usize = 256;
/// Holders that one look-up gives.
pub const HOLDERS_MAX: usize = 16;

/// A future of a [`Greeter`].
pub type Greeting = Pin<Box<dyn Future<Output = io::Result<Greeted>> + Send>>;

/// Both directions of a connection.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A connection to a member.
pub struct Greeted {
    /// Who is there: proved.
    pub peer: PeerId,
    /// The port of its tunnels, at the address that it was met at; 0: none.
    pub tunnels: u16,
    /// The port of its control connections; 0: none.
    pub control: u16,
    /// What it says.
    pub stream: Box<dyn Duplex>,
}

/// Makes connections to members, and refuses everybody else.
pub trait Greeter: Send + Sync {
    /// Calls an address. `control` is the port at which this node answers calls.
    fn call(&self, address: SocketAddr, control: u16) -> Greeting;

    /// Answers a call.
    fn answer(&self, stream: TcpStream, from: SocketAddr, control: u16) -> Greeting;

    /// Whether a node may take part: it was neither revoked nor banned.
    fn admits(&self, peer: &PeerId) -> bool;
}

/// What a node's part in the table is.
pub struct Settings {
    /// This node.
    pub me: PeerId,
    /// Where it answers; `None`: it only asks.
    pub listener: Option<TcpListener>,
    /// What layers are called.
    pub names: Names,
    /// Who makes connections.
    pub greeter: Arc<dyn Greeter>,
    /// Which addresses of others may be called, besides those in `bootstrap`.
    pub dialable: Arc<dyn Fn(std::net::IpAddr) -> bool + Send + Sync>,
    /// Control addresses to begin with.
    pub bootstrap: Vec<SocketAddr>,
}

/// Somebody who says that it has something of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Holder {
    /// Who.
    pub peer: PeerId,
    /// Where its tunnels are.
    pub tunnels: SocketAddr,
}

/// A node's part in the table. Dropping it ends it.
#[derive(Clone)]
pub struct Dht {
    commands: mpsc::Sender<Command>,
    links: Arc<transport::Links>,
    listens: Option<SocketAddr>,
}

enum Command {
    Provide { layers: Vec<Digest>, on: bool },
    Find { layer: Digest, found: mpsc::Sender<Holder> },
    Join { addresses: Vec<SocketAddr> },
    Bootstrap { addresses: Vec<SocketAddr> },
    Renew { names: Names },
    Records { answer: oneshot::Sender<usize> },
}

impl Dht {
    /// Takes part from now on.
    ///
    /// # Errors
    /// What the system says of the listener.
    pub fn start(settings: Settings) -> io::Result<Self> {
        let listens = settings.listener.as_ref().map(TcpListener::local_addr).transpose()?;
        let (commands, receiver) = mpsc::channel(COMMANDS_MAX);
        let links = Arc::new(transport::Links::default());
        let task = task::Task::new(settings, receiver, Arc::clone(&links))?;
        tokio::spawn(task.run());
        Ok(Self { commands, links, listens })
    }

    /// Where it answers.
    pub fn listens(&self) -> Option<SocketAddr> {
        self.listens
    }

    /// Tells others that this node has something of these layers, now and again.
    /// Beyond [`PROVIDED_MAX`] no more are told of.
    pub async fn provide(&self, layers: Vec<Digest>) {
        let _ = self.commands.send(Command::Provide { layers, on: true }).await;
    }

    /// Tells it no more. Records of it live on for up to [`LIFETIME`].
    pub async fn stop_providing(&self, layers: Vec<Digest>) {
        let _ = self.commands.send(Command::Provide { layers, on: false }).await;
    }

    /// Looks for nodes that have something of a layer: they come one by one, each
    /// reached once and its tunnels' address heard from itself, at most
    /// [`HOLDERS_MAX`]. The channel ends with the search.
    pub async fn find(&self, layer: Digest) -> mpsc::Receiver<Holder> {
        let (found, holders) = mpsc::channel(HOLDERS_MAX);
        let _ = self.commands.send(Command::Find { layer, found }).await;
        holders
    }

    /// Calls these control addresses once: nodes that are remembered, or that
    /// others named.
    pub async fn join(&self, addresses: Vec<SocketAddr>) {
        let _ = self.commands.send(Command::Join { addresses }).await;
    }

    /// Replaces the addresses to begin with.
    pub async fn set_bootstrap(&self, addresses: Vec<SocketAddr>) {
        let _ = self.commands.send(Command::Bootstrap { addresses }).await;
    }

    /// The swarm's keys, or the revoked nodes, have changed: all connections are
    /// made anew, and what is provided is told by its new names.
    pub async fn renew(&self, names: Names) {
        let _ = self.commands.send(Command::Renew { names }).await;
    }

    /// Nodes that were met in this table, the latest first.
    pub fn known(&self) -> Vec<Known> {
        self.links.known()
    }

    /// Records of others that this node keeps.
    pub async fn records(&self) -> usize {
        let (answer, records) = oneshot::channel();
        let _ = self.commands.send(Command::Records { answer }).await;
        records.await.unwrap_or(0)
    }
}

impl std::fmt::Debug for Dht {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DHT at {:?}", self.listens)
    }
}
