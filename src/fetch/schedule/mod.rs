//! The scheduler: which block is asked of whom, and when. Pure.
//!
//! One state machine: [`Scheduler::apply`] takes the time and an [`Event`], and
//! gives the [`Action`]s that follow. It knows nothing of sockets and clocks.
//!
//! Invariants, checked by [`Scheduler::check`] and in `tests/sim`:
//! - a wanted block is in exactly one state (`table`);
//! - on a tunnel, urgent blocks go before all others, and of the others at most
//!   two bandwidth-delay products are in flight;
//! - a block is never asked of a peer that is already bringing it, and not of
//!   more peers than elapsed time over `mean + dev/2` of the piece time allows;
//! - what a neighbour holds or is getting is not asked of anybody beyond the
//!   LAN, unless its reader would miss its deadline;
//! - every want ends, in data or in [`Action::Failed`], and every table is bounded.
//!
//! The layers of it, from the bottom: `peer_set`, `sizes`, `plan` (PreSchedule),
//! `lan` (who gets what for the LAN); the tables `table`, `holdings`, `peers`,
//! `homes`, `registry`; and the machine: `wants` (what is wanted), `verdict`
//! (whom a block may be asked of), `planning`, `issue`, `claims`, `hedge`, `answer`.

mod answer;
mod check;
mod claims;
mod hedge;
mod holdings;
mod homes;
mod issue;
mod lan;
mod model;
mod peer_set;
mod peers;
mod plan;
mod planning;
mod registry;
mod sizes;
mod swarm;
mod table;
mod verdict;
mod wants;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Duration;

pub use lan::{builders, order as lan_order};
pub use model::*;
pub use plan::{Groups as PlanGroups, Lane as PlanLane, Piece as PlanPiece, Placed, pre_schedule};
pub use registry::{DUPLICATE_DISTANCE, GAP, RUN_BULK, RUN_MIN, RUN_READER};
pub use sizes::{WIRE_MAX, assignment, bulk_cap, line_holds, wire_request};
pub use swarm::{ScoreParts, Standing};

use self::holdings::Holdings;
use self::homes::Homes;
use self::issue::Request;
use self::peer_set::Slot;
use self::peers::Peers;
use self::planning::Planning;
use self::registry::RegistryQueue;
use self::table::{Ref, Table};
use super::estimate::{PieceTime, Quantile, ROUND, RttWindow};
use crate::types::PeerId;

/// Time of an urgent piece before any was measured.
const LAN_TIME: Duration = Duration::from_millis(20);
const FAR_TIME: Duration = Duration::from_millis(250);

/// The scheduler of one node.
pub struct Scheduler {
    me: PeerId,
    settings: Settings,
    now: Time,
    rng: fastrand::Rng,
    blocks: Table,
    by_interest: HashMap<InterestId, Vec<Ref>>,
    homes: Homes,
    peers: Peers,
    holdings: Holdings,
    /// What neighbours said that they are getting.
    gettings: Holdings,
    requests: BTreeMap<RequestId, Request>,
    /// Of these, the runs.
    runs: BTreeSet<RequestId>,
    next_request: RequestId,
    /// Blocks that were let go of, and that a request on a tunnel still brings,
    /// because it brings others too.
    passing: HashMap<BlockKey, RequestId>,
    /// Whom requests were of that have ended lately: their blocks may still come.
    ended: VecDeque<(RequestId, Slot)>,
    registry: RegistryQueue,
    planning: Planning,
    /// Blocks that became urgent and are to be placed before anything else.
    urgent: Vec<Ref>,
    timers: BTreeSet<(Time, Timer)>,
    round: Option<Time>,
    last_round: Time,
    lan_rtts: RttWindow,
    far_rtts: RttWindow,
    lan_pieces: Pieces,
    far_pieces: Pieces,
    totals: Totals,
    actions: Vec<Action>,
}

/// How long urgent pieces take.
struct Pieces {
    time: PieceTime,
    p90: Quantile,
}

impl Pieces {
    fn new(initial: Duration) -> Self {
        Self { time: PieceTime::new(initial), p90: Quantile::new(90, initial) }
    }

    fn record(&mut self, took: Duration) {
        self.time.record(took);
        self.p90.record(took);
    }
}

/// What may have to be looked at again at some time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Request(RequestId),
    Block(Ref),
    Home(u32),
    Peer(Slot),
    Plan,
    Round,
}

impl Scheduler {
    /// A scheduler for node `me`. Equal seeds and events give equal actions.
    pub fn new(me: PeerId, settings: Settings, seed: u64) -> Self {
        Self {
            me,
            settings,
            now: Time::ZERO,
            rng: fastrand::Rng::with_seed(seed),
            blocks: Table::default(),
            by_interest: HashMap::new(),
            homes: Homes::default(),
            peers: Peers::default(),
            holdings: Holdings::default(),
            gettings: Holdings::default(),
            requests: BTreeMap::new(),
            runs: BTreeSet::new(),
            next_request: 0,
            passing: HashMap::new(),
            ended: VecDeque::new(),
            registry: RegistryQueue::default(),
            planning: Planning::default(),
            urgent: Vec::new(),
            timers: BTreeSet::new(),
            round: None,
            last_round: Time::ZERO,
            lan_rtts: RttWindow::default(),
            far_rtts: RttWindow::default(),
            lan_pieces: Pieces::new(LAN_TIME),
            far_pieces: Pieces::new(FAR_TIME),
            totals: Totals::default(),
            actions: Vec::new(),
        }
    }

    /// Takes an event and gives what is to be done, in order. Events about what
    /// is not known, or no more, are ignored.
    pub fn apply(&mut self, now: Time, event: Event) -> Vec<Action> {
        self.now = self.now.max(now);
        self.handle(event);
        self.expire();
        self.settle();
        std::mem::take(&mut self.actions)
    }

    /// When to come with [`Event::Tick`] if nothing else happens before.
    pub fn next_wake(&self) -> Option<Time> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Bytes by source since the start.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// Number of wanted blocks.
    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Whether nothing is wanted.
    pub fn is_empty(&self) -> bool {
        self.blocks.len() == 0
    }

    /// Whether anybody waits for the block.
    pub fn is_wanted(&self, key: &BlockKey) -> bool {
        self.blocks.find(key).is_some()
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Home { home, size, whole, registry } => {
                self.on_home(home, size, whole, registry);
            }
            Event::Retry { home } => self.on_retry(&home),
            Event::Want { interest, home, class, deadline, blocks } => {
                self.on_want(interest, home, class, deadline, blocks);
            }
            Event::Withdraw { interest } => self.on_withdraw(interest),
            Event::Found { key } => self.on_found(&key),
            Event::PeerUp { peer, near } => self.on_peer_up(peer, near),
            Event::PeerGone { peer } => self.on_peer_gone(&peer),
            Event::TunnelUp { peer, tunnel, rtt } => self.on_tunnel_up(&peer, tunnel, rtt),
            Event::TunnelDown { tunnel } => self.on_tunnel_down(tunnel),
            Event::TunnelFailed { peer } => self.on_tunnel_failed(&peer),
            Event::Rtt { tunnel, rtt } => self.on_rtt(tunnel, rtt),
            Event::Have { peer, object, holding } => self.on_have(&peer, object, &holding),
            Event::Getting { peer, home, run, object, blocks, on } => {
                self.on_getting(&peer, (home, run), object, blocks, on);
            }
            Event::Wants { peer, home, on } => self.on_wants(&peer, home, on),
            Event::Asked { peer, key } => self.on_asked(&peer, &key),
            Event::Scored { peer, pop, custom } => self.on_scored(&peer, pop, custom),
            Event::LookedUp { home, scope, found } => self.on_looked_up(&home, scope, found),
            Event::Progress { request, bytes } => self.on_progress(request, bytes),
            Event::Block { request, key, len } => self.on_block(request, &key, len),
            Event::Wrong { request, key } => self.on_wrong(request, &key),
            Event::Done { request } => self.on_done(request),
            Event::Refused { request, why } => self.on_refused(request, why),
            Event::Tick => {}
        }
    }

    /// Everything whose time has come.
    fn expire(&mut self) {
        while let Some((at, timer)) = self.timers.first().copied().filter(|(at, _)| *at <= self.now)
        {
            self.timers.remove(&(at, timer));
            match timer {
                Timer::Request(id) => self.request_due(id),
                Timer::Block(r) => self.block_due(r),
                Timer::Home(n) => self.home_due(n),
                Timer::Peer(slot) => self.peer_due(slot),
                Timer::Plan => self.planning.timer = None,
                Timer::Round => self.round_due(),
            }
        }
    }

    /// Restores what shall hold after every event: urgent blocks are placed,
    /// the plan is fresh enough, and every source has enough to do.
    fn settle(&mut self) {
        for r in std::mem::take(&mut self.urgent) {
            self.place_urgent(r);
        }
        if self.plan_is_due() {
            self.plan();
        }
        self.pump();
        self.arm_plan();
        self.arm_round();
    }

    fn arm_round(&mut self) {
        let idle = self.blocks.len() == 0 && self.requests.is_empty();
        match self.round {
            Some(at) if idle => {
                self.timers.remove(&(at, Timer::Round));
                self.round = None;
            }
            None if !idle => {
                let at = self.now + ROUND;
                self.timers.insert((at, Timer::Round));
                self.round = Some(at);
                self.last_round = self.now;
            }
            _ => {}
        }
    }

    fn round_due(&mut self) {
        self.round = None;
        let length = self.now.saturating_sub(self.last_round);
        for (peer, count) in self.peers.round(self.now, length, &self.settings, &mut self.rng) {
            self.actions.push(Action::Tunnels { peer, count });
        }
        self.planning.dirty = true;
    }

    /// The next time at which something about a block may have to be done.
    fn arm_block(&mut self, r: Ref, at: Time) {
        let Some(block) = self.blocks.get_mut(r) else { return };
        if let Some(old) = block.timer.replace(at) {
            self.timers.remove(&(old, Timer::Block(r)));
        }
        self.timers.insert((at, Timer::Block(r)));
    }

    fn arm_home(&mut self, n: u32, at: Time) {
        let Some(state) = self.homes.get_mut(n) else { return };
        if state.timer.is_some_and(|old| old <= at) {
            return;
        }
        if let Some(old) = state.timer.replace(at) {
            self.timers.remove(&(old, Timer::Home(n)));
        }
        self.timers.insert((at, Timer::Home(n)));
    }
}
