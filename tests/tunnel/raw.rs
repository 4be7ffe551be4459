//! A peer that speaks the protocol by hand, and so can break it. Written against
//! `docs/PROTOCOL.md`, not against the code that it tests.

use std::net::SocketAddr;
use std::sync::Arc;

use peersync::types::PeerId;
use peersync::wire::{Binding, HEADER, Hello, Kind, Message, Role};
use rustls::client::AlwaysResolvesClientRawPublicKeys;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{
    CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime,
};
use rustls::server::AlwaysResolvesServerRawPublicKeys;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, Error, ServerConfig, SignatureScheme,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use crate::node::{LONG, key};

pub struct Raw {
    pub stream: TlsStream<TcpStream>,
    pub binding: Binding,
}

impl Raw {
    /// Calls a node; after this both know who is there, and no hello was said.
    pub async fn call(n: u8, address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.expect("connect");
        let name = ServerName::try_from("peersync.invalid").expect("name");
        let connector = TlsConnector::from(Arc::new(client(n)));
        let stream = connector.connect(name, stream).await.expect("TLS");
        Self::new(stream.into(), n, Role::Caller)
    }

    /// Waits for a node's call.
    pub async fn answer(n: u8, listener: &TcpListener) -> Self {
        let (stream, _) = listener.accept().await.expect("a call");
        let acceptor = TlsAcceptor::from(Arc::new(server(n)));
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

fn own(n: u8, provider: &CryptoProvider) -> Arc<CertifiedKey> {
    let key = key(n);
    let pkcs8: [u8; 16] = [48, 46, 2, 1, 0, 48, 5, 6, 3, 43, 101, 112, 4, 34, 4, 32];
    let spki: [u8; 12] = [48, 42, 48, 5, 6, 3, 43, 101, 112, 3, 33, 0];
    let secret = [&pkcs8[..], &key.signing_key().to_bytes()].concat();
    let secret = PrivatePkcs8KeyDer::from(secret).into();
    let signer = provider.key_provider.load_private_key(secret).expect("a key");
    let public = [&spki[..], &key.peer_id().0].concat();
    Arc::new(CertifiedKey::new(vec![public.into()], signer))
}

fn client(n: u8) -> ClientConfig {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let own = own(n, &provider);
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(own)));
    config.alpn_protocols = vec![b"peersync/1".to_vec()];
    config
}

fn server(n: u8) -> ServerConfig {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let own = own(n, &provider);
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_client_cert_verifier(Arc::new(Anybody))
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(own)));
    config.alpn_protocols = vec![b"peersync/1".to_vec()];
    config
}

#[derive(Debug)]
struct Anybody;

fn signed(
    message: &[u8],
    key: &CertificateDer<'_>,
    signature: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    let key = SubjectPublicKeyInfoDer::from(key.as_ref());
    let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms;
    verify_tls13_signature_with_raw_key(message, &key, signature, &algorithms)
}

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("no TLS 1.2".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        signed(message, key, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for Anybody {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("no TLS 1.2".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        signed(message, key, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}
