//! A peer that speaks the protocol by hand, and so can break it. Written against
//! `docs/PROTOCOL.md`, not against the code that it tests.

use std::net::SocketAddr;
use std::sync::Arc;

use peersync::types::PeerId;
use peersync::wire::{Binding, HEADER, Hello, Kind, Message, Role};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use crate::node::{LONG, key};
use crate::tls::{client, server};

pub struct Raw {
    pub stream: TlsStream<TcpStream>,
    pub binding: Binding,
}

impl Raw {
    /// Calls a node; after this both know who is there, and no hello was said.
    pub async fn call(n: u8, address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.expect("connect");
        let name = ServerName::try_from("peersync.invalid").expect("name");
        let connector = TlsConnector::from(Arc::new(client(&key(n))));
        let stream = connector.connect(name, stream).await.expect("TLS");
        Self::new(stream.into(), n, Role::Caller)
    }

    /// Waits for a node's call.
    pub async fn answer(n: u8, listener: &TcpListener) -> Self {
        let (stream, _) = listener.accept().await.expect("a call");
        let acceptor = TlsAcceptor::from(Arc::new(server(&key(n))));
        let stream = acceptor.accept(stream).await.expect("TLS");
        Self::new(stream.into(), n, Role::Listener)
    }

    /// Calls a node as a member of the swarm, and is let in.
    pub async fn member(n: u8, address: SocketAddr) -> Self {
        let mut raw = Self::call(n, address).await;
        let hello = raw.hello(&[1; 32]);
        raw.send(&Message::Hello(hello)).await;
        assert!(matches!(raw.recv().await, Message::Hello(_)));
        raw
    }

    /// Lets a calling node in as a member.
    pub async fn host(n: u8, listener: &TcpListener) -> Self {
        let mut raw = Self::answer(n, listener).await;
        assert!(matches!(raw.recv().await, Message::Hello(_)));
        let hello = raw.hello(&[1; 32]);
        raw.send(&Message::Hello(hello)).await;
        raw
    }

    fn new(mut stream: TlsStream<TcpStream>, n: u8, prover: Role) -> Self {
        let mut exporter = [0; 32];
        let exported = match &mut stream {
            TlsStream::Client(s) => {
                s.get_mut().1.export_keying_material(&mut exporter, Binding::LABEL, Some(&[]))
            }
            TlsStream::Server(s) => {
                s.get_mut().1.export_keying_material(&mut exporter, Binding::LABEL, Some(&[]))
            }
        };
        exported.expect("exporter");
        let keys = stream.get_ref().1.peer_certificates().expect("a key");
        let other = PeerId(keys[0].as_ref()[12..].try_into().expect("32 bytes"));
        let me = key(n).peer_id();
        let (caller, listener) = match prover {
            Role::Caller => (me, other),
            Role::Listener => (other, me),
        };
        Self { stream, binding: Binding { exporter, caller, listener, prover } }
    }

    pub fn hello(&self, swarm_key: &[u8; 32]) -> Hello {
        Hello {
            features: peersync::wire::Features::ALL,
            proofs: vec![self.binding.proof(swarm_key)],
            zone: Default::default(),
            port: 0,
            limits: peersync::wire::Limits { requests: 256, bytes: 64 << 20 },
            agent: "raw".into(),
        }
    }

    pub async fn send(&mut self, message: &Message) {
        self.bytes(&message.to_frame()).await;
    }

    pub async fn frame(&mut self, kind: Kind, flags: u8, body: &[u8]) {
        let mut frame = (body.len() as u32).to_le_bytes().to_vec();
        frame.extend([kind as u8, flags, 0, 0]);
        frame.extend(body);
        self.bytes(&frame).await;
    }

    /// A data frame.
    pub async fn data(&mut self, request: u64, bytes: &[u8]) {
        let body = [&request.to_le_bytes()[..], bytes].concat();
        self.frame(Kind::Data, 0, &body).await;
    }

    /// Bytes as they are. That the other end is gone shows in what follows.
    pub async fn bytes(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes).await;
        let _ = self.stream.flush().await;
    }

    /// The next frame's kind and body. `None` if the other end is gone.
    pub async fn next(&mut self) -> Option<(u8, Vec<u8>)> {
        let frame = async {
            let mut head = [0; HEADER];
            self.stream.read_exact(&mut head).await.ok()?;
            let len = u32::from_le_bytes(head[..4].try_into().expect("4 bytes"));
            let mut body = vec![0; len as usize];
            self.stream.read_exact(&mut body).await.ok()?;
            Some((head[4], body))
        };
        timeout(LONG, frame).await.expect("an answer")
    }

    /// The next message.
    pub async fn recv(&mut self) -> Message {
        let (kind, body) = self.next().await.expect("a message");
        let kind = Kind::from_number(kind).expect("known");
        Message::decode(kind, &body).expect("well-formed")
    }

    /// The request that comes next, other messages aside.
    pub async fn request(&mut self) -> peersync::wire::Request {
        loop {
            if let Message::Request(request) = self.recv().await {
                return request;
            }
        }
    }

    /// Reads until the other end is gone.
    pub async fn rest(&mut self) {
        while self.next().await.is_some() {}
    }
}
