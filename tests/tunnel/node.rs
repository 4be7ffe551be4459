//! A node with an endpoint on loopback, and its events.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use peersync::fetch::tunnel::{
    Content, Ended, Endpoint, Event, EventKind, Events, OpenError, Settings, Target, Transport,
    Tunnel, Want,
};
use peersync::identity::{Door, Membership, NodeKey, Revoked, SwarmKey, SwarmKeys};
use peersync::types::{ObjectId, PeerId, VerifiedBlock};
use peersync::wire::{Class, Refusal};
use tokio::time::timeout;

use crate::content::{Object, Shelf};

/// Nothing in these tests takes this long.
pub const LONG: Duration = Duration::from_secs(20);

pub fn swarm(keys: &[u8]) -> Door {
    let keys = keys.iter().map(|n| SwarmKey::from_secret([*n; 32]));
    Door::Closed(SwarmKeys::new(keys).expect("few keys"))
}

pub fn settings() -> Settings {
    Settings { listen: "127.0.0.1:0".parse().expect("address"), ..Settings::default() }
}

pub fn over(transport: Transport) -> Settings {
    Settings { transports: vec![transport], ..settings() }
}

pub struct Node {
    pub endpoint: Endpoint,
    pub events: Events,
    pub shelf: Arc<Shelf>,
}

impl Node {
    pub fn new(n: u8, settings: Settings, shelf: Arc<Shelf>) -> Self {
        Self::member(n, settings, shelf, Membership::new(swarm(&[1]), Revoked::default()))
    }

    pub fn member(n: u8, settings: Settings, shelf: Arc<Shelf>, membership: Membership) -> Self {
        let server = Arc::clone(&shelf);
        let (endpoint, events) =
            Endpoint::bind(settings, &key(n), membership, server).expect("loopback");
        Self { endpoint, events, shelf }
    }

    /// A node at an address that another one has just left: its sockets close when
    /// the runtime comes by.
    pub async fn again(n: u8, settings: Settings, address: SocketAddr, shelf: Arc<Shelf>) -> Self {
        let settings = Settings { listen: address, ..settings };
        let bind = || {
            let membership = Membership::new(swarm(&[1]), Revoked::default());
            Endpoint::bind(settings.clone(), &key(n), membership, Arc::clone(&shelf) as _)
        };
        let bound = async {
            loop {
                match bind() {
                    Ok(bound) => return bound,
                    Err(_) => tokio::task::yield_now().await,
                }
            }
        };
        let (endpoint, events) = timeout(LONG, bound).await.expect("a free port");
        Self { endpoint, events, shelf }
    }

    pub fn id(&self) -> PeerId {
        self.endpoint.me()
    }

    pub fn target(&self) -> Target {
        Target { peer: Some(self.id()), address: self.endpoint.address() }
    }

    pub async fn open(&self, other: &Self) -> Result<Arc<dyn Tunnel>, OpenError> {
        timeout(LONG, self.endpoint.open(other.target())).await.expect("an answer")
    }

    pub async fn next(&mut self) -> Event {
        timeout(LONG, self.events.next()).await.expect("an event").expect("an open endpoint")
    }

    /// The next event that gives something; the others are passed over.
    pub async fn until<T>(&mut self, mut find: impl FnMut(Event) -> Option<T>) -> T {
        loop {
            if let Some(found) = find(self.next().await) {
                return found;
            }
        }
    }

    pub async fn up(&mut self) -> Arc<dyn Tunnel> {
        self.until(|event| match event.kind {
            EventKind::Up(tunnel) => Some(tunnel),
            _ => None,
        })
        .await
    }

    pub async fn down(&mut self) -> Ended {
        self.until(|event| match event.kind {
            EventKind::Down { why, .. } => Some(why),
            _ => None,
        })
        .await
    }

    /// Everything that comes of a request, to its end.
    pub async fn answer(&mut self, request: u64) -> Answer {
        let mut answer = Answer::default();
        loop {
            let event = self.next().await;
            match event.kind {
                EventKind::Content { request: r, content, wire, .. } if r == request => {
                    answer.wire += u64::from(wire);
                    answer.contents.push(content);
                }
                EventKind::NotHave { request: r, numbers } if r == request => {
                    answer.not_have.extend(numbers);
                }
                EventKind::Wrong(wrong) if wrong.request == request => answer.wrong += 1,
                EventKind::Done { request: r } if r == request => return answer,
                EventKind::Busy { request: r, .. } if r == request => {
                    answer.busy = true;
                    return answer;
                }
                EventKind::Failed { request: r } if r == request => {
                    answer.failed = true;
                    return answer;
                }
                EventKind::Down { why, requests } if requests.contains(&request) => {
                    answer.down = Some(why);
                    return answer;
                }
                _ => {}
            }
        }
    }
}

/// What came of a request.
#[derive(Default, Debug)]
pub struct Answer {
    pub contents: Vec<Content>,
    pub not_have: Vec<u64>,
    pub wrong: usize,
    pub wire: u64,
    pub busy: bool,
    pub failed: bool,
    pub down: Option<Ended>,
}

impl Answer {
    pub fn blocks(&self) -> Vec<(ObjectId, u32, VerifiedBlock)> {
        let blocks = self.contents.iter().filter_map(|content| match content {
            Content::Block { object, index, block } => Some((*object, *index, block.clone())),
            _ => None,
        });
        blocks.collect()
    }

    /// All blocks put together.
    pub fn bytes(&self) -> Vec<u8> {
        let mut blocks = self.blocks();
        blocks.sort_by_key(|(_, index, _)| *index);
        blocks.iter().flat_map(|(.., block)| block.data().to_vec()).collect()
    }
}

pub fn key(n: u8) -> NodeKey {
    NodeKey::from_secret(&[n; 32])
}

/// All of an object.
pub fn all(object: &Object) -> Want {
    let spec = Arc::clone(&object.spec);
    Want::Blocks { object: object.id, spec, blocks: 0..object.count() }
}

/// Two nodes with a tunnel between them; the second one has the shelf.
pub async fn pair(transport: Transport, shelf: Arc<Shelf>) -> (Node, Node, Arc<dyn Tunnel>) {
    let a = Node::new(1, over(transport), Arc::default());
    let b = Node::new(2, over(transport), shelf);
    let tunnel = a.open(&b).await.expect("open");
    (a, b, tunnel)
}

pub const BOTH: [Transport; 2] = [Transport::Tcp, Transport::Quic];

pub fn refused(result: Result<Arc<dyn Tunnel>, OpenError>) -> Refusal {
    match result {
        Err(OpenError::Refused(why)) => why,
        other => panic!("not refused: {other:?}"),
    }
}

pub fn bulk(tunnel: &Arc<dyn Tunnel>, request: u64, want: Want) {
    tunnel.request(request, Class::Bulk, want).expect("room");
}
