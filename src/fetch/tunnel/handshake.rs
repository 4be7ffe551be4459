//! Hello, and the proof of membership. TLS has proved by now who is there.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::link::Link;
use crate::identity::{Denied, Membership};
use crate::types::PeerId;
use crate::wire::{
    Features, HEADER, Header, Hello, Kind, Limits, Message, Refusal, Role, VersionError, WireError,
    Zone,
};

/// Why a tunnel can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No connection, or it broke.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It took too long.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// Somebody else is there.
    #[error("another node is there: {0}")]
    WrongPeer(PeerId),
    /// This very node is there.
    #[error("it is this node itself")]
    Myself,
    /// The peer is not let in.
    #[error("the peer is {0}")]
    Denied(#[from] Denied),
    /// The peer was banned.
    #[error("the peer is banned")]
    Banned,
    /// The peer does not let this node in.
    #[error("refused by the peer: {0}")]
    Refused(Refusal),
    /// Another version of the protocol.
    #[error(transparent)]
    Version(#[from] VersionError),
    /// What it said is not the protocol.
    #[error("not the protocol: {0}")]
    Wire(#[from] WireError),
    /// As many tunnels as there may be.
    #[error("too many tunnels")]
    TooMany,
    /// The endpoint is closed.
    #[error("the endpoint is closed")]
    Closed,
}

/// What a caller may still say after it has been refused, in bytes.
const REST_MAX: u64 = 16 << 10;

/// What a node says of itself.
#[derive(Clone, Debug)]
pub(super) struct Greeting {
    pub(super) features: Features,
    pub(super) zone: Zone,
    pub(super) port: u16,
    pub(super) limits: Limits,
    pub(super) agent: String,
}

/// Exchanges hellos. The caller proves itself first; the listener answers nobody
/// who is not of the swarm, but for a word of refusal.
pub(super) async fn greet(
    link: &mut Link,
    membership: &Arc<Membership>,
    greeting: &Greeting,
) -> Result<Hello, OpenError> {
    if link.peer == link.me {
        return Err(OpenError::Myself);
    }
    match link.role {
        Role::Caller => {
            membership.check_revoked(&link.peer)?;
            say(link, &hello(link, membership, greeting)).await?;
            let theirs = hear(link).await?;
            admit(link, membership, &theirs)?;
            Ok(theirs)
        }
        Role::Listener => {
            let heard = match membership.check_revoked(&link.peer) {
                Ok(()) => hear(link).await,
                Err(denied) => Err(denied.into()),
            };
            let admitted = heard.and_then(|theirs| {
                admit(link, membership, &theirs)?;
                Ok(theirs)
            });
            match admitted {
                Ok(theirs) => {
                    say(link, &hello(link, membership, greeting)).await?;
                    Ok(theirs)
                }
                Err(error) => {
                    if let Some(why) = error.refusal() {
                        refuse(link, why).await;
                    }
                    Err(error)
                }
            }
        }
    }
}

/// Tells a caller why it is not let in.
pub(super) async fn refuse(link: &mut Link, why: Refusal) {
    let _ = say(link, &Message::Refuse(why)).await;
    let _ = link.write.shutdown().await;
    // A connection that is torn down at once may lose the word on its way: wait for
    // the caller to go.
    let rest = (&mut link.read).take(REST_MAX);
    let _ = tokio::io::copy(&mut { rest }, &mut tokio::io::sink()).await;
}

impl OpenError {
    fn refusal(&self) -> Option<Refusal> {
        match self {
            Self::Denied(Denied::NotMember) => Some(Refusal::NotMember),
            Self::Denied(Denied::Revoked) => Some(Refusal::Revoked),
            Self::Version(_) => Some(Refusal::Version),
            Self::Wire(_) => Some(Refusal::Protocol),
            _ => None,
        }
    }
}

fn admit(link: &Link, membership: &Membership, theirs: &Hello) -> Result<(), Denied> {
    let prover = match link.role {
        Role::Caller => Role::Listener,
        Role::Listener => Role::Caller,
    };
    let binding = link.binding(prover);
    let proves = |key: &[u8; 32]| binding.is_proved(key, &theirs.proofs);
    membership.admit(&link.peer, link.address.ip(), proves)
}

fn hello(link: &Link, membership: &Membership, greeting: &Greeting) -> Message {
    let binding = link.binding(link.role);
    let keys = membership.keys().into_iter().flat_map(|keys| keys.iter());
    Message::Hello(Hello {
        features: greeting.features,
        proofs: keys.map(|key| binding.proof(key.secret())).collect(),
        zone: greeting.zone.clone(),
        port: greeting.port,
        limits: greeting.limits,
        agent: greeting.agent.clone(),
    })
}

async fn say(link: &mut Link, message: &Message) -> io::Result<()> {
    link.write.write_all(&message.to_frame()).await?;
    link.write.flush().await
}

async fn hear(link: &mut Link) -> Result<Hello, OpenError> {
    let mut head = [0; HEADER];
    link.read.read_exact(&mut head).await?;
    let header = Header::decode(&head)?;
    let kind = header.kind.filter(|kind| matches!(kind, Kind::Hello | Kind::Refuse | Kind::Close));
    let kind = kind.ok_or(WireError::Invalid("not a hello"))?;
    let mut body = vec![0; header.length as usize];
    link.read.read_exact(&mut body).await?;
    if kind == Kind::Hello {
        Hello::check_version(&body)?;
    }
    match Message::decode(kind, &body)? {
        Message::Hello(hello) => Ok(hello),
        Message::Refuse(why) | Message::Close(why) => Err(OpenError::Refused(why)),
        _ => Err(WireError::Invalid("not a hello").into()),
    }
}
