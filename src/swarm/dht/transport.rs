//! Connections for libp2p, made by a [`Greeter`]: TCP, then whatever the greeter
//! does to know that a member is there, then streams (yamux). libp2p sees members
//! only, and negotiates neither security nor multiplexing.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

use futures_util::future::BoxFuture;
use libp2p_core::connection::Endpoint;
use libp2p_core::multihash::Multihash;
use libp2p_core::muxing::StreamMuxerBox;
use libp2p_core::transport::{DialOpts, ListenerId, TransportError, TransportEvent};
use libp2p_core::upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade};
use libp2p_core::{Multiaddr, PeerId as Libp2pId, Transport};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpListener;
use tokio_util::compat::TokioAsyncReadCompatExt;
use tracing::debug;

use super::address::{multiaddr, socket_address};
use super::{Duplex, Greeted, Greeter};
use crate::types::PeerId;

/// Connections in all,
const CONNECTIONS_MAX: usize = 256;
/// and with one node: two that call each other at once have two for a moment, and
/// what died unnoticed lingers.
const PER_NODE_MAX: usize = 4;
/// Nodes that are remembered after they have gone.
const KNOWN_MAX: usize = 1024;
/// Streams of one connection. Each may hold 256 KiB that were not read yet.
const STREAMS_MAX: usize = 64;
/// An ed25519 key as libp2p writes it into a node's name: this, and 32 bytes.
const KEY: [u8; 4] = [0x08, 0x01, 0x12, 0x20];
/// What that is wrapped in: nothing is hashed.
const IDENTITY: u64 = 0;

/// A node's name as libp2p writes it.
pub(super) fn libp2p_id(peer: &PeerId) -> Libp2pId {
    let mut key = [0; 36];
    key[..4].copy_from_slice(&KEY);
    key[4..].copy_from_slice(&peer.0);
    let name = Multihash::wrap(IDENTITY, &key).expect("36 bytes fit into 64");
    Libp2pId::from_multihash(name).expect("42 bytes at most are not hashed")
}

/// The node of a name. `None`: not an ed25519 key.
pub(super) fn node_of(peer: &Libp2pId) -> Option<PeerId> {
    let name: &Multihash<64> = peer.as_ref();
    let key = name.digest().strip_prefix(&KEY).filter(|_| name.code() == IDENTITY)?;
    key.try_into().ok().map(PeerId)
}

/// A node that was met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// Who.
    pub peer: PeerId,
    /// Where it answers control connections, if it does.
    pub control: Option<SocketAddr>,
    /// Where its tunnels are, if it has any.
    pub tunnels: Option<SocketAddr>,
    /// Whether there is a connection now.
    pub connected: bool,
    /// When it was last seen.
    pub seen: Instant,
}

/// The connections that there are, and who was met.
#[derive(Default)]
pub(super) struct Links(Mutex<Table>);

#[derive(Default)]
struct Table {
    open: usize,
    nodes: HashMap<PeerId, (Known, usize)>,
}

impl Links {
    pub(super) fn known(&self) -> Vec<Known> {
        let mut known: Vec<_> = self.table().nodes.values().map(|(known, _)| *known).collect();
        known.sort_unstable_by_key(|known| (std::cmp::Reverse(known.seen), known.peer));
        known
    }

    pub(super) fn get(&self, peer: &PeerId) -> Option<Known> {
        self.table().nodes.get(peer).map(|(known, _)| *known)
    }

    pub(super) fn forget(&self, drop_it: impl Fn(&PeerId) -> bool) {
        self.table().nodes.retain(|peer, (_, open)| *open > 0 || !drop_it(peer));
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A member has been met at an address. `None`: there are too many.
    fn enter(self: &Arc<Self>, greeted: &Greeted, ip: IpAddr) -> Option<Entered> {
        let peer = greeted.peer;
        let at = |port: u16| (port > 0).then(|| SocketAddr::new(ip.to_canonical(), port));
        let mut table = self.table();
        let open = table.nodes.get(&peer).map_or(0, |(_, open)| *open);
        if table.open >= CONNECTIONS_MAX || open >= PER_NODE_MAX {
            return None;
        }
        if open == 0 && table.nodes.len() >= KNOWN_MAX {
            let gone = table.nodes.iter().filter(|(_, (_, open))| *open == 0);
            let oldest = gone.min_by_key(|(_, (known, _))| known.seen).map(|(peer, _)| *peer);
            table.nodes.remove(&oldest?);
        }
        table.open += 1;
        let known = Known {
            peer,
            control: at(greeted.control),
            tunnels: at(greeted.tunnels),
            connected: true,
            seen: Instant::now(),
        };
        table.nodes.insert(peer, (known, open + 1));
        drop(table);
        Some(Entered { links: Arc::clone(self), peer })
    }
}

/// A connection's place in the table; free again when dropped.
struct Entered {
    links: Arc<Links>,
    peer: PeerId,
}

impl Drop for Entered {
    fn drop(&mut self) {
        let mut table = self.links.table();
        table.open -= 1;
        if let Some((known, open)) = table.nodes.get_mut(&self.peer) {
            *open -= 1;
            known.connected = *open > 0;
            known.seen = Instant::now();
        }
    }
}

/// A stream that holds its place.
struct Placed {
    stream: Box<dyn Duplex>,
    _place: Entered,
}

impl AsyncRead for Placed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Placed {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// What libp2p calls and is called through.
pub(super) struct Members {
    pub(super) listener: Option<TcpListener>,
    pub(super) greeter: Arc<dyn Greeter>,
    pub(super) links: Arc<Links>,
    pub(super) dialable: Arc<dyn Fn(IpAddr) -> bool + Send + Sync>,
    /// Addresses of the configuration are called whatever they are.
    pub(super) bootstrap: Arc<Mutex<HashSet<SocketAddr>>>,
    id: Option<ListenerId>,
    announced: bool,
    control: u16,
}

type Connected = (Libp2pId, StreamMuxerBox);
type Connecting = BoxFuture<'static, io::Result<Connected>>;

impl Members {
    pub(super) fn new(
        listener: Option<TcpListener>,
        greeter: Arc<dyn Greeter>,
        links: Arc<Links>,
        dialable: Arc<dyn Fn(IpAddr) -> bool + Send + Sync>,
        bootstrap: Arc<Mutex<HashSet<SocketAddr>>>,
    ) -> io::Result<Self> {
        let control = match &listener {
            Some(listener) => listener.local_addr()?.port(),
            None => 0,
        };
        let (id, announced) = (None, false);
        Ok(Self { listener, greeter, links, dialable, bootstrap, id, announced, control })
    }

    fn may_dial(&self, address: &SocketAddr) -> bool {
        let named = self.bootstrap.lock().unwrap_or_else(PoisonError::into_inner);
        named.contains(address) || (self.dialable)(address.ip())
    }
}

/// From a member's stream to what libp2p takes.
async fn connected(
    links: &Arc<Links>,
    greeted: Greeted,
    ip: IpAddr,
    side: Endpoint,
) -> io::Result<Connected> {
    let place =
        links.enter(&greeted, ip).ok_or_else(|| io::Error::other("too many connections"))?;
    let id = libp2p_id(&greeted.peer);
    let stream = Placed { stream: greeted.stream, _place: place }.compat();
    let mut yamux = libp2p_yamux::Config::default();
    yamux.set_max_num_streams(STREAMS_MAX);
    let muxer = match side {
        Endpoint::Dialer => yamux.upgrade_outbound(stream, "").await?,
        Endpoint::Listener => yamux.upgrade_inbound(stream, "").await?,
    };
    Ok((id, StreamMuxerBox::new(muxer)))
}

impl Transport for Members {
    type Output = Connected;
    type Error = io::Error;
    type ListenerUpgrade = Connecting;
    type Dial = Connecting;

    fn listen_on(
        &mut self,
        id: ListenerId,
        address: Multiaddr,
    ) -> Result<(), TransportError<Self::Error>> {
        if self.listener.is_none() || self.id.is_some() {
            return Err(TransportError::MultiaddrNotSupported(address));
        }
        self.id = Some(id);
        Ok(())
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        let was = self.id == Some(id);
        if was {
            (self.id, self.listener) = (None, None);
        }
        was
    }

    fn dial(
        &mut self,
        address: Multiaddr,
        _options: DialOpts,
    ) -> Result<Self::Dial, TransportError<Self::Error>> {
        let at = socket_address(&address).filter(|at| self.may_dial(at));
        let at = at.ok_or(TransportError::MultiaddrNotSupported(address))?;
        let (greeter, links) = (Arc::clone(&self.greeter), Arc::clone(&self.links));
        let control = self.control;
        Ok(Box::pin(async move {
            let mut greeted = greeter.call(at, control).await?;
            // That it answers here is seen.
            greeted.control = at.port();
            connected(&links, greeted, at.ip(), Endpoint::Dialer).await
        }))
    }

    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, Self::Error>> {
        let this = &mut *self;
        let (Some(listener), Some(listener_id)) = (&this.listener, this.id) else {
            return Poll::Pending;
        };
        let local = match listener.local_addr() {
            Ok(local) => multiaddr(local),
            Err(error) => return Poll::Ready(TransportEvent::ListenerError { listener_id, error }),
        };
        if !this.announced {
            this.announced = true;
            return Poll::Ready(TransportEvent::NewAddress { listener_id, listen_addr: local });
        }
        match listener.poll_accept(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Err(error)) => {
                debug!("accepting a control connection: {error}");
                Poll::Ready(TransportEvent::ListenerError { listener_id, error })
            }
            Poll::Ready(Ok((stream, from))) => {
                let greeting = this.greeter.answer(stream, from, this.control);
                let links = Arc::clone(&this.links);
                let upgrade: Connecting = Box::pin(async move {
                    connected(&links, greeting.await?, from.ip(), Endpoint::Listener).await
                });
                Poll::Ready(TransportEvent::Incoming {
                    listener_id,
                    upgrade,
                    local_addr: local,
                    send_back_addr: multiaddr(from),
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_same_key_in_both_worlds() {
        let peer = PeerId([9; 32]);
        let id = libp2p_id(&peer);
        assert_eq!(node_of(&id), Some(peer));
        // Base58 of an ed25519 key's name, as libp2p documents it.
        assert!(id.to_string().starts_with("12D3KooW"), "{id}");
        assert_eq!(node_of(&Libp2pId::random()), None);
    }

    #[test]
    fn connections_are_counted_and_nodes_remembered_within_bounds() {
        let links = Arc::new(Links::default());
        let greeted = |n: u32| {
            let mut name = [0; 32];
            name[..4].copy_from_slice(&n.to_le_bytes());
            let stream = Box::new(tokio::io::empty());
            Greeted { peer: PeerId(name), tunnels: 7400, control: 0, stream }
        };
        let ip: IpAddr = "::ffff:10.0.0.1".parse().expect("address");
        let mut open: Vec<_> =
            (0..PER_NODE_MAX + 1).filter_map(|_| links.enter(&greeted(0), ip)).collect();
        assert_eq!(open.len(), PER_NODE_MAX);
        open.extend((1..1000).filter_map(|n| links.enter(&greeted(n), ip)));
        assert_eq!(open.len(), CONNECTIONS_MAX);
        drop(open);
        for n in 0..2000 {
            drop(links.enter(&greeted(n), ip).expect("room"));
        }
        let known = links.known();
        assert_eq!(known.len(), KNOWN_MAX);
        assert!(known.iter().all(|known| !known.connected && known.control.is_none()));
        assert_eq!(known[0].tunnels, "10.0.0.1:7400".parse().ok());
        links.forget(|peer| peer.0[0] == 0);
        assert!(links.known().len() < KNOWN_MAX);
    }
}
