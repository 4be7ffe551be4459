//! Control connections: who is there is proved as on tunnels, by the same keys and
//! the same hello, and what is said after that is another protocol's.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Join, join};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::super::handshake::{Greeting, OpenError, greet};
use super::super::link::Link;
use super::super::tcp;
use super::super::tls::Tls;
use super::{Endpoint, Inner};
use crate::swarm::dht::{Greeted, Greeter, Greeting as Met};
use crate::types::PeerId;
use crate::wire::Features;

/// The protocol's name in the TLS handshake: a tunnel's port takes no control
/// connection, and the other way round.
const ALPN: &[u8] = b"peersync-control/1";
/// Messages are small.
const READ_MAX: usize = 4 << 10;
/// A control connection must be open this long after its first packet.
const HANDSHAKE: Duration = Duration::from_secs(3);
/// One that nobody acknowledges anything on is dead after this.
const SILENCE: Duration = Duration::from_secs(20);

/// Opens and answers control connections, with an endpoint's key, its rules about
/// members, its bans and its limit of callers.
#[derive(Clone)]
pub struct Controls {
    inner: Arc<Inner>,
    tls: Tls,
}

/// A control connection to a member.
pub struct Control {
    /// Who is there.
    pub peer: PeerId,
    /// The port of its tunnels, at the address where it was met; 0: none.
    pub tunnels: u16,
    /// The port at which it answers control connections; 0: none.
    pub control: u16,
    /// What is said.
    pub stream: Join<Box<dyn AsyncRead + Send + Unpin>, Box<dyn AsyncWrite + Send + Unpin>>,
}

/// Why there is no control connection.
pub type ControlError = OpenError;

impl Endpoint {
    /// Control connections of this endpoint's node. They end by themselves, not
    /// with the endpoint; new ones follow its membership as it changes.
    pub fn controls(&self) -> Controls {
        let Tls { client, server } = &self.0.tls;
        let (mut client, mut server) = ((**client).clone(), (**server).clone());
        client.alpn_protocols = vec![ALPN.to_vec()];
        server.alpn_protocols = vec![ALPN.to_vec()];
        let tls = Tls { client: Arc::new(client), server: Arc::new(server) };
        Controls { inner: Arc::clone(&self.0), tls }
    }
}

impl Greeter for Controls {
    fn call(&self, address: SocketAddr, control: u16) -> Met {
        let this = self.clone();
        Box::pin(async move {
            Ok(greeted(Self::call(&this, address, control).await.map_err(io::Error::other)?))
        })
    }

    fn answer(&self, stream: TcpStream, from: SocketAddr, control: u16) -> Met {
        let this = self.clone();
        Box::pin(async move {
            let answered = Self::answer(&this, stream, from, control).await;
            Ok(greeted(answered.map_err(io::Error::other)?))
        })
    }

    fn admits(&self, peer: &PeerId) -> bool {
        Self::admits(self, peer)
    }
}

fn greeted(control: Control) -> Greeted {
    let Control { peer, tunnels, control, stream } = control;
    Greeted { peer, tunnels, control, stream: Box::new(stream) }
}

impl Controls {
    /// Calls an address. `listens` is the port at which this node answers control
    /// connections, or 0.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn call(&self, address: SocketAddr, listens: u16) -> Result<Control, OpenError> {
        let connect = async {
            let link = tcp::connect(&self.tls, self.inner.me, address, READ_MAX).await?;
            self.greet(link, listens).await
        };
        timeout(HANDSHAKE, connect).await.unwrap_or(Err(OpenError::Timeout(HANDSHAKE)))
    }

    /// Answers a call.
    ///
    /// # Errors
    /// [`OpenError`]; [`OpenError::TooMany`] where too many callers have not proved
    /// themselves yet.
    pub async fn answer(
        &self,
        stream: TcpStream,
        from: SocketAddr,
        listens: u16,
    ) -> Result<Control, OpenError> {
        let _caller = self.inner.caller(from.ip()).ok_or(OpenError::TooMany)?;
        let connect = async {
            SockRef::from(&stream).set_tcp_user_timeout(Some(SILENCE))?;
            let link = tcp::accept(&self.tls, self.inner.me, stream, from, READ_MAX).await?;
            self.greet(link, listens).await
        };
        timeout(HANDSHAKE, connect).await.unwrap_or(Err(OpenError::Timeout(HANDSHAKE)))
    }

    /// Whether the node may take part: neither revoked nor banned, and not this
    /// one.
    pub fn admits(&self, peer: &PeerId) -> bool {
        self.inner.check_peer(peer).is_ok()
    }

    async fn greet(&self, mut link: Link, listens: u16) -> Result<Control, OpenError> {
        let inner = &self.inner;
        inner.check_peer(&link.peer)?;
        let greeting = Greeting {
            features: Features::default(),
            zone: inner.settings.zone.clone(),
            port: inner.address.port(),
            limits: inner.settings.limits,
            agent: concat!("peersync/", env!("CARGO_PKG_VERSION")).to_owned(),
        };
        let hello = greet(&mut link, &inner.membership(), &greeting).await?;
        link.write.write_all(&listens.to_le_bytes()).await?;
        link.write.flush().await?;
        let control = link.read.read_u16_le().await?;
        let stream = join(link.read, link.write);
        Ok(Control { peer: link.peer, tunnels: hello.port, control, stream })
    }
}
