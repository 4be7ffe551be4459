//! QUIC.
//!
//! The caller opens one bidirectional stream, on which the handshake, requests and
//! news travel. Then each end opens two streams for content: urgent and bulk.
//! Priorities order them, and a lost packet of one does not hold up another.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{
    ClientConfig, Connection, ConnectionError, Endpoint, EndpointConfig, Incoming, ReadError,
    ServerConfig, TokioRuntime, TransportConfig, VarInt,
};
use rustls::pki_types::CertificateDer;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::AsyncReadExt;

use super::Transport;
use super::link::{BoxFuture, BoxRead, BoxWrite, Carrier, Lanes, Link};
use super::tls::{NAME, Tls, peer_of};
use crate::types::PeerId;
use crate::wire::{Binding, Refusal, Role};

/// Bytes that a peer may send on a stream before they are read.
const STREAM_WINDOW: u32 = 8 << 20;
/// And on all streams, once it has proved itself,
const WINDOW: u32 = 16 << 20;
/// or not yet.
const WINDOW_BEFORE: u32 = 64 << 10;
/// Bytes that may be on their way or wait for it.
const SEND_WINDOW: u64 = 8 << 20;
/// Socket buffers, as far as the system allows.
const SOCKET_BUFFER: usize = 4 << 20;
/// A connection of which nothing is heard ends; the session looks earlier.
const IDLE: Duration = Duration::from_secs(45);

/// Priorities of the lanes.
const CONTROL: i32 = 2;
const URGENT: i32 = 1;
const BULK: i32 = 0;

pub(super) struct Quic {
    endpoint: Endpoint,
    client: ClientConfig,
}

impl Quic {
    pub(super) fn bind(tls: &Tls, address: SocketAddr) -> io::Result<Self> {
        let transport = Arc::new(transport());
        let client =
            QuicClientConfig::try_from(Arc::clone(&tls.client)).map_err(io::Error::other)?;
        let mut client = ClientConfig::new(Arc::new(client));
        client.transport_config(Arc::clone(&transport));
        let server =
            QuicServerConfig::try_from(Arc::clone(&tls.server)).map_err(io::Error::other)?;
        let mut server = ServerConfig::with_crypto(Arc::new(server));
        server.transport_config(transport);
        // Nodes don't move during a connection; without it a peer can't make this
        // node send to other addresses.
        server.migration(false);
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        let _ = socket.set_recv_buffer_size(SOCKET_BUFFER);
        let _ = socket.set_send_buffer_size(SOCKET_BUFFER);
        socket.bind(&address.into())?;
        let runtime = Arc::new(TokioRuntime);
        let endpoint =
            Endpoint::new(EndpointConfig::default(), Some(server), socket.into(), runtime)?;
        Ok(Self { endpoint, client })
    }

    /// The next connection that somebody wants to open. `None`: closed.
    pub(super) async fn incoming(&self) -> Option<Incoming> {
        self.endpoint.accept().await
    }

    pub(super) async fn connect(&self, me: PeerId, address: SocketAddr) -> io::Result<Link> {
        let connecting = self.endpoint.connect_with(self.client.clone(), address, NAME);
        let connection = connecting.map_err(io::Error::other)?.await?;
        let streams = connection.open_bi().await?;
        link(connection, streams, Role::Caller, me)
    }

    pub(super) fn address(&self) -> io::Result<SocketAddr> {
        self.endpoint.local_addr()
    }

    /// Lets no new connections in.
    pub(super) fn refuse_new(&self) {
        self.endpoint.set_server_config(None);
    }
}

pub(super) async fn accept(me: PeerId, incoming: Incoming) -> io::Result<Link> {
    let connection = incoming.accept()?.await?;
    let streams = connection.accept_bi().await?;
    link(connection, streams, Role::Listener, me)
}

fn transport() -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .max_concurrent_uni_streams(VarInt::from_u32(2))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(WINDOW_BEFORE))
        .send_window(SEND_WINDOW)
        .datagram_receive_buffer_size(None)
        .max_idle_timeout(IDLE.try_into().ok());
    transport
}

fn link(
    connection: Connection,
    (write, read): (quinn::SendStream, quinn::RecvStream),
    role: Role,
    me: PeerId,
) -> io::Result<Link> {
    let no_key = || io::Error::new(io::ErrorKind::InvalidData, "the peer showed no key");
    let keys = connection.peer_identity().and_then(|keys| keys.downcast().ok());
    let keys: Box<Vec<CertificateDer<'static>>> = keys.ok_or_else(no_key)?;
    let peer = peer_of(&keys).ok_or_else(no_key)?;
    let mut exporter = [0; 32];
    connection
        .export_keying_material(&mut exporter, Binding::LABEL, &[])
        .map_err(|_| io::Error::other("no keying material"))?;
    let _ = write.set_priority(CONTROL);
    Ok(Link {
        transport: Transport::Quic,
        role,
        me,
        peer,
        address: connection.remote_address(),
        exporter,
        read: Box::new(read),
        write: Box::new(write),
        carrier: Box::new(connection),
    })
}

impl Carrier for Connection {
    fn lanes(&self) -> BoxFuture<'_, io::Result<Lanes>> {
        Box::pin(async {
            self.set_receive_window(VarInt::from_u32(WINDOW));
            let open = async |priority: i32| {
                let mut stream = self.open_uni().await?;
                let _ = stream.set_priority(priority);
                // The peer hears of a stream with its first byte.
                stream.write_all(&[priority as u8]).await?;
                io::Result::Ok(Box::new(stream) as BoxWrite)
            };
            let writes = Some([open(URGENT).await?, open(BULK).await?]);
            let mut reads = Vec::new();
            for _ in 0..2 {
                let mut stream = self.accept_uni().await?;
                stream.read_u8().await?;
                reads.push(Box::new(stream) as BoxRead);
            }
            Ok(Lanes { reads, writes })
        })
    }

    fn close(&self, why: Refusal) {
        Self::close(self, VarInt::from_u32(why.code().into()), b"");
    }
}

/// What the peer said when it closed the connection, if that is the error.
pub(super) fn closed_by_peer(error: &io::Error) -> Option<Refusal> {
    let source = error.get_ref()?;
    let lost = match source.downcast_ref::<ReadError>() {
        Some(ReadError::ConnectionLost(lost)) => lost,
        _ => source.downcast_ref::<ConnectionError>()?,
    };
    match lost {
        ConnectionError::ApplicationClosed(closed) => {
            u8::try_from(closed.error_code.into_inner()).ok().map(Refusal::from_code)
        }
        _ => None,
    }
}
