//! A member of a swarm that a test speaks for: it has the key, and says what it likes.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use peersync::fetch::tunnel::{
    BlockServer, Endpoint, EventKind, Events, Handed, OpenError, Served, Settings, Target, Tunnel,
};
use peersync::identity::{Door, Membership, NodeKey, Revoked, SwarmKeys};
use peersync::layer::root::LayerRoot;
use peersync::swarm::claim;
use peersync::swarm::elect::{Claim, Score};
use peersync::types::{Digest, ObjectId, ObjectSpec, PeerId, VerifiedBlock};
use peersync::wire::{Control, Message, SignedClaim};

/// Nothing that is waited for here takes this long.
const LONG: Duration = Duration::from_secs(60);

/// It holds nothing.
struct Nothing;

impl BlockServer for Nothing {
    fn block(&self, _: &PeerId, _: &ObjectId, _: u32) -> Served<VerifiedBlock> {
        Served::No
    }

    fn spec(&self, _: &PeerId, _: &ObjectId) -> Served<Arc<ObjectSpec>> {
        Served::No
    }

    fn roots(&self, _: &PeerId, _: &Digest) -> Vec<LayerRoot> {
        Vec::new()
    }

    fn item(&self, _: &PeerId, _: &Digest, _: u64) -> Served<Handed> {
        Served::No
    }
}

/// The member, with a tunnel to one node.
pub(crate) struct Member {
    pub(crate) key: NodeKey,
    endpoint: Endpoint,
    events: Events,
    tunnel: Arc<dyn Tunnel>,
    at: SocketAddr,
}

impl Member {
    /// Joins the swarm of a key file and opens a tunnel to the node at `at`. Listens
    /// at the address `listen`. `n` makes its key.
    pub(crate) async fn join(n: u8, keys: &Path, listen: SocketAddr, at: SocketAddr) -> Self {
        let key = NodeKey::from_secret(&[n; 32]);
        let keys = SwarmKeys::load(keys).expect("keys");
        let membership = Membership::new(Door::Closed(keys), Revoked::default());
        let settings = Settings { listen, ..Settings::default() };
        let (endpoint, events) =
            Endpoint::bind(settings, &key, membership, Arc::new(Nothing)).expect("endpoint");
        let tunnel = endpoint.open(Target { peer: None, address: at }).await.expect("tunnel");
        Self { key, endpoint, events, tunnel, at }
    }

    pub(crate) fn id(&self) -> PeerId {
        self.key.peer_id()
    }

    /// Calls the node once more.
    pub(crate) async fn again(&self) -> Result<Arc<dyn Tunnel>, OpenError> {
        self.endpoint.open(Target { peer: None, address: self.at }).await
    }

    pub(crate) fn tell(&self, message: Message) {
        self.tunnel.tell(message).expect("told");
    }

    pub(crate) fn say(&self, control: Control) {
        self.tell(Message::Control(control));
    }

    /// What the node says next that is not about content. `None`: the tunnel is down.
    pub(crate) async fn hear(&mut self) -> Option<Message> {
        let next = async {
            loop {
                match self.events.next().await?.kind {
                    EventKind::News(message) => return Some(message),
                    EventKind::Down { .. } => return None,
                    _ => {}
                }
            }
        };
        tokio::time::timeout(LONG, next).await.expect("the node says something")
    }

    /// Waits for something.
    pub(crate) async fn until(&mut self, is_it: impl Fn(&Message) -> bool) {
        loop {
            if is_it(&self.hear().await.expect("the tunnel is up")) {
                return;
            }
        }
    }

    /// A beat of this node as tracker, with the highest score that there is. Signed
    /// by it, whoever `tracker` is.
    pub(crate) fn beat(&self, tracker: PeerId, sequence: u64) -> Control {
        let score = Score::told(u16::MAX);
        let claim = Claim { tracker, score, sequence, settled: true };
        Control::Claim(SignedClaim {
            tracker,
            score: score.points(),
            sequence,
            settled: true,
            signature: claim::sign(&claim, self.key.signing_key()),
            age_ms: 0,
            abroad: false,
            address: None,
        })
    }
}
