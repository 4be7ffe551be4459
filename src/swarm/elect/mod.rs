//! Which node of a partition is its tracker: the one that others ask who holds
//! what.
//!
//! Source: PeerSync paper (`004`), section III-C3: FloodMax on a stability score
//! where no tracker answers, with pruned paths and no flooding across subnets.
//!
//! How it goes here. A tracker sends a *beat* each second, its [`Claim`] with a
//! higher sequence, and nodes pass it on along a tree: who gets the same beat
//! twice tells the second sender to spare itself ([`Message::Prune`]), and asks
//! around ([`Message::Graft`]) when its own branch stays silent. So a beat costs
//! about one message a node, whatever the number of links. When no beat has come
//! for [`LIFE`], a node stands for election after a pause that is the shorter the
//! higher its score, and is flooded as its claim is the greatest that a node knows.
//! Mostly that is one flood, because the others fall silent when they hear it.
//!
//! A new claim waits before it leaves its LAN, the longer the lower its score, so
//! that only what won inside goes out, and mostly only the best of that. When partitions heal, the lesser of two trackers
//! hears the greater's beat and steps down.
//!
//! Invariants:
//! - a beat is taken at most once: nobody but its tracker can make it live longer,
//!   and its age counts on the way, so that nothing outlives [`LIFE`] without it;
//! - tables are bounded by [`LINKS_MAX`] and [`RETIRED_MAX`];
//! - claims are authentic when they get here: the driver checks their signatures.

mod machine;
mod score;

use std::time::Duration;

use crate::types::PeerId;

pub use machine::Elector;
pub use score::{Score, Stability};

/// Time since any one point.
pub type Time = Duration;

/// Between two beats of a tracker.
pub const BEAT: Duration = Duration::from_secs(1);
/// A tracker whose beats stay away for so long is gone.
pub const LIFE: Duration = Duration::from_secs(3);
/// A claim counts as won when no greater one has come for so long. Longer than
/// [`STAND_MAX`], the pause at the LAN's boundary and a way through the partition.
pub const SETTLE: Duration = Duration::from_millis(1300);
/// The longest pause before a node stands: that of the lowest score.
pub const STAND_MAX: Duration = Duration::from_millis(400);
/// How long a new claim of the highest score stays inside its LAN.
pub const LEAVE_MIN: Duration = Duration::from_millis(60);
/// How long a new claim of the lowest score stays inside its LAN.
pub const LEAVE_MAX: Duration = Duration::from_millis(800);
/// How long a node that has just started listens before it stands.
pub const JOIN: Duration = Duration::from_millis(1500);
/// Most links to other nodes; more are not used.
pub const LINKS_MAX: usize = 64;
/// Most trackers that are remembered as gone, or as not to be trusted.
pub const RETIRED_MAX: usize = 64;

/// How long a tracker whose answers were of no use is not believed.
pub const DISTRUST: Duration = Duration::from_secs(300);

/// A node's claim to be the tracker; signed by it on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Who.
    pub tracker: PeerId,
    /// Its stability when it stood; it stays the same for as long as it is tracker.
    pub score: Score,
    /// Higher with each beat, over restarts too.
    pub sequence: u64,
    /// Whether the election is over.
    pub settled: bool,
}

impl Claim {
    /// What decides between two claims: a tracker in office goes before a
    /// candidate, then the score, then the name.
    pub fn rank(&self) -> (bool, Score, PeerId) {
        (self.settled, self.score, self.tracker)
    }

    /// This very beat.
    fn beat(&self) -> Beat {
        (self.tracker, self.sequence)
    }
}

/// Names one beat.
pub(crate) type Beat = (PeerId, u64);

/// What nodes say to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// The greatest claim that the sender knows.
    Claim {
        /// The claim.
        claim: Claim,
        /// Time since its tracker said it.
        age: Duration,
        /// Whether it has left its tracker's LAN.
        abroad: bool,
    },
    /// Your beats come to me by another way: spare yourself.
    Prune,
    /// My beats stay away: send me yours again, from now on.
    Graft {
        /// The newest that I know.
        known: Option<(PeerId, u64)>,
    },
}

/// Where a neighbour is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Near {
    /// In this node's LAN.
    Lan,
    /// Anywhere else.
    Remote,
}

/// What the driver has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send a message to a neighbour.
    Send {
        /// Whom.
        to: PeerId,
        /// What.
        message: Message,
    },
    /// The tracker is another one now, perhaps this node; none: look-ups go by
    /// other ways.
    Tracker(Option<PeerId>),
}
