//! TLS 1.3 over TCP.

use std::io;
use std::net::SocketAddr;

use rustls::pki_types::ServerName;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::{BufReader, split};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use super::Transport;
use super::link::{Link, OneLane};
use super::tls::{NAME, Tls, peer_of};
use crate::types::PeerId;
use crate::wire::{Binding, Role};

/// The kernel takes no more than this that it can't send yet, in bytes: urgent
/// content would have to wait behind it.
const UNSENT_MAX: u32 = 64 << 10;
/// Bytes that are taken from the socket at a time: the TLS library would ask for
/// less than a record each time.
pub(super) const READ_MAX: usize = 128 << 10;
/// What TLS may have encrypted and not yet given to the socket, in bytes.
const ENCRYPTED_MAX: usize = 128 << 10;
const BACKLOG: i32 = 1024;

pub(super) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Calls an address; takes up to `read_max` bytes from the socket at a time.
pub(super) async fn connect(
    tls: &Tls,
    me: PeerId,
    address: SocketAddr,
    read_max: usize,
) -> io::Result<Link> {
    let stream = prepare(TcpStream::connect(address).await?, read_max)?;
    let name = ServerName::try_from(NAME).map_err(io::Error::other)?;
    let connector = TlsConnector::from(std::sync::Arc::clone(&tls.client));
    let stream = connector.connect(name, stream).await?;
    link(stream.into(), Role::Caller, me, address)
}

pub(super) async fn accept(
    tls: &Tls,
    me: PeerId,
    stream: TcpStream,
    address: SocketAddr,
    read_max: usize,
) -> io::Result<Link> {
    let acceptor = TlsAcceptor::from(std::sync::Arc::clone(&tls.server));
    let stream = acceptor.accept(prepare(stream, read_max)?).await?;
    link(stream.into(), Role::Listener, me, address)
}

fn prepare(stream: TcpStream, read_max: usize) -> io::Result<BufReader<TcpStream>> {
    stream.set_nodelay(true)?;
    SockRef::from(&stream).set_tcp_notsent_lowat(UNSENT_MAX)?;
    Ok(BufReader::with_capacity(read_max, stream))
}

fn link(
    mut stream: TlsStream<BufReader<TcpStream>>,
    role: Role,
    me: PeerId,
    address: SocketAddr,
) -> io::Result<Link> {
    let mut exporter = [0; 32];
    let exported = match &mut stream {
        TlsStream::Client(stream) => {
            let session = stream.get_mut().1;
            session.set_buffer_limit(Some(ENCRYPTED_MAX));
            session.export_keying_material(&mut exporter, Binding::LABEL, Some(&[]))
        }
        TlsStream::Server(stream) => {
            let session = stream.get_mut().1;
            session.set_buffer_limit(Some(ENCRYPTED_MAX));
            session.export_keying_material(&mut exporter, Binding::LABEL, Some(&[]))
        }
    };
    exported.map_err(io::Error::other)?;
    let no_key = || io::Error::new(io::ErrorKind::InvalidData, "the peer showed no key");
    let keys = stream.get_ref().1.peer_certificates();
    let peer = keys.and_then(peer_of).ok_or_else(no_key)?;
    let (read, write) = split(stream);
    Ok(Link {
        transport: Transport::Tcp,
        role,
        me,
        peer,
        address,
        exporter,
        read: Box::new(read),
        write: Box::new(write),
        carrier: Box::new(OneLane),
    })
}
