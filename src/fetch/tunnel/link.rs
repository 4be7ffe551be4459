//! A connection as sessions see it: lanes of bytes, whatever carries them.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;

use tokio::io::{AsyncRead, AsyncWrite};

use super::Transport;
use crate::types::PeerId;
use crate::wire::{Binding, Refusal, Role};

pub(super) type BoxRead = Box<dyn AsyncRead + Send + Unpin>;
pub(super) type BoxWrite = Box<dyn AsyncWrite + Send + Unpin>;
pub(super) type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A connection after its TLS handshake: who is there is proved, that it is of the
/// swarm is not.
pub(super) struct Link {
    pub(super) transport: Transport,
    pub(super) role: Role,
    pub(super) me: PeerId,
    pub(super) peer: PeerId,
    pub(super) address: SocketAddr,
    /// Keying material that only the two ends of this connection have.
    pub(super) exporter: [u8; 32],
    pub(super) read: BoxRead,
    pub(super) write: BoxWrite,
    pub(super) carrier: Box<dyn Carrier>,
}

/// What carries the lanes.
pub(super) trait Carrier: Send + Sync {
    /// Opens what a session needs beyond the first lane, once the peer has proved
    /// itself.
    fn lanes(&self) -> BoxFuture<'_, io::Result<Lanes>>;

    /// Ends the connection at once, with a word of why where it can carry one.
    fn close(&self, why: Refusal);
}

/// Lanes beside the first.
#[derive(Default)]
pub(super) struct Lanes {
    /// What the peer sends on lanes of its own.
    pub(super) reads: Vec<BoxRead>,
    /// Lanes for urgent and for bulk content. `None`: they share the first lane.
    pub(super) writes: Option<[BoxWrite; 2]>,
}

impl Link {
    /// What a proof of membership is bound to.
    pub(super) fn binding(&self, prover: Role) -> Binding {
        let (caller, listener) = match self.role {
            Role::Caller => (self.me, self.peer),
            Role::Listener => (self.peer, self.me),
        };
        Binding { exporter: self.exporter, caller, listener, prover }
    }
}

/// A connection that carries all lanes as one.
pub(super) struct OneLane;

impl Carrier for OneLane {
    fn lanes(&self) -> BoxFuture<'_, io::Result<Lanes>> {
        Box::pin(async { Ok(Lanes::default()) })
    }

    fn close(&self, _why: Refusal) {}
}
