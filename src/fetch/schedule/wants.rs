//! What is wanted: it joins, changes class, arrives, is given up, fails.

use std::time::Duration;

use super::model::{
    Action, BlockKey, Class, Failure, Home, InterestId, Place, Scope, Time, Wanted,
};
use super::peers::REGISTRY;
use super::registry::DUPLICATE_DISTANCE;
use super::table::{Block, Interest, Lane, Ref, State};
use super::{Scheduler, Timer};
use crate::fetch::ladder::{Ladder, LadderEvent, Rung, Step};

/// How often layers are looked at for wants that got nothing.
const SWEEP: Duration = Duration::from_secs(1);
/// After this long without progress a layer's sources are looked for anew.
const FORGOTTEN: Duration = Duration::from_secs(60);

/// Neighbours may take this long to answer where no reader waits: they may be getting
/// the layer, and it would come into the LAN twice.
const LAN_BULK: Duration = Duration::from_secs(2);

/// Blocks of a run where no stream says where runs begin.
const RUN_BLOCKS: u32 = 256;

impl Scheduler {
    pub(super) fn on_home(&mut self, home: Home, size: u64, whole: bool, registry: bool) {
        let theta = self.settings.theta;
        let Some(n) = self.homes.open(home, theta, self.now) else { return };
        let anew = self.homes.describe(n, size, whole, registry, theta);
        self.registry.unsettle();
        if anew && self.homes.get(n).is_some_and(|state| state.blocks > 0) {
            self.climb(n, LadderEvent::NotLocal);
        }
    }

    /// Somebody new waits for the layer: a pause after a failure is over.
    pub(super) fn on_retry(&mut self, home: &Home) {
        let now = self.now;
        let Some(n) = self.homes.find(home) else { return };
        let Some(state) = self.homes.get_mut(n).filter(|s| s.not_before.is_some()) else { return };
        state.not_before = Some(now);
        self.arm_home(n, now);
    }

    pub(super) fn on_want(
        &mut self,
        interest: InterestId,
        home: Home,
        class: Class,
        deadline: Option<Time>,
        blocks: Vec<Wanted>,
    ) {
        let home = self.homes.open(home, self.settings.theta, self.now);
        let most = match class {
            Class::Urgent => self.settings.wants_max * 2,
            _ => self.settings.wants_max,
        };
        if let Some(home) = home.filter(|_| class.is_reader()) {
            self.hurry_home(home);
        }
        let default = (class == Class::Urgent).then(|| self.now + self.settings.urgent_deadline);
        let interest = Interest { id: interest, class, deadline: deadline.or(default) };
        for wanted in blocks {
            let (key, found) = (wanted.key, self.blocks.find(&wanted.key));
            let r = match (found, home) {
                (Some(r), _) => r,
                (None, Some(home)) if self.blocks.len() < most => self.add(wanted, home, class),
                _ => {
                    self.actions.push(Action::Failed { key, why: Failure::Full });
                    continue;
                }
            };
            self.join(r, interest);
        }
    }

    /// A reader wants something of a layer: neighbours have no more than tau to answer.
    fn hurry_home(&mut self, n: u32) {
        let until = self.now + self.lan_rtts.tau(self.now);
        let Some(state) = self.homes.get_mut(n).filter(|state| !state.hurried) else { return };
        state.hurried = true;
        state.ladder.hurry(until);
        if let Some(at) = state.ladder.wake() {
            self.arm_home(n, at);
        }
    }

    fn add(&mut self, mut wanted: Wanted, home: u32, class: Class) -> Ref {
        let key = wanted.key;
        wanted.place = wanted.place.filter(Place::is_sane);
        let whole = self.homes.get(home).is_some_and(|s| s.whole);
        let run = match &wanted.place {
            // One stream is one run.
            Some(_) if whole => 0,
            Some(place) => place.run,
            None => key.index / RUN_BLOCKS,
        };
        let r = self.blocks.add(wanted, home, run, class, self.now);
        let (holders, getting) = (self.holdings.holders(&key), self.gettings.holders(&key));
        if let Some(block) = self.blocks.get_mut(r) {
            (block.holders, block.getting) = (holders, getting);
        }
        self.planning.dirty = true;
        let (now, theta) = (self.now, self.settings.theta);
        let Some(state) = self.homes.get_mut(home) else { return r };
        state.blocks += 1;
        if state.blocks > 1 {
            return r;
        }
        if state.last_progress + FORGOTTEN <= now {
            // Whoever had it then may be gone, and others there.
            state.ladder = Ladder::new(state.size, theta, !state.refused);
        }
        state.last_progress = now;
        if !state.announced {
            state.announced = true;
            self.actions.push(Action::Announce { home: state.home, on: true });
        }
        self.climb(home, LadderEvent::NotLocal);
        self.arm_home(home, now + SWEEP);
        r
    }

    fn join(&mut self, r: Ref, interest: Interest) {
        let Some(block) = self.blocks.get_mut(r) else { return };
        match block.interests.iter_mut().find(|i| i.id == interest.id) {
            Some(same) => {
                same.class = same.class.min(interest.class);
                same.deadline = same.deadline.into_iter().chain(interest.deadline).min();
            }
            None => {
                block.interests.push(interest);
                self.by_interest.entry(interest.id).or_default().push(r);
            }
        }
        self.reclass(r);
    }

    pub(super) fn on_withdraw(&mut self, interest: InterestId) {
        for r in self.by_interest.remove(&interest).unwrap_or_default() {
            let Some(block) = self.blocks.get_mut(r) else { continue };
            block.interests.retain(|i| i.id != interest);
            if block.interests.is_empty() {
                self.take_out(r, None);
            } else {
                self.reclass(r);
            }
        }
    }

    pub(super) fn on_found(&mut self, key: &BlockKey) {
        if let Some(r) = self.blocks.find(key)
            && let Some(block) = self.take_out(r, None)
        {
            self.totals.found += u64::from(block.len);
            self.progressed(block.home);
        }
    }

    /// Class and deadline follow from who is interested.
    pub(super) fn reclass(&mut self, r: Ref) {
        let Some(block) = self.blocks.get(r) else { return };
        let neighbour = block.neighbour_waits.then_some(Class::Sequential);
        let classes = block.interests.iter().map(|i| i.class).chain(neighbour);
        let class = classes.min().unwrap_or(block.class);
        let deadline = block.interests.iter().filter_map(|i| i.deadline).min();
        let (before, fresh) = (block.class, block.timer.is_none());
        let in_registry = block.state() == State::Planned(Lane::Registry);
        if in_registry && class != before {
            self.registry.remove(&self.blocks, r);
        }
        let now = self.now;
        if let Some(block) = self.blocks.get_mut(r) {
            block.deadline = deadline;
            if class != before {
                (block.class, block.since) = (class, now);
            }
        }
        if in_registry && class != before {
            self.registry.insert(&self.blocks, r);
        }
        if class == Class::Urgent && (before != Class::Urgent || fresh) {
            self.release_from_run(r);
            self.urgent.push(r);
        } else if class != before {
            self.planning.dirty = true;
        }
    }

    /// A block that became urgent does not wait for a bulk run that is far from
    /// it: the run goes on without it.
    fn release_from_run(&mut self, r: Ref) {
        let Some(block) = self.blocks.get(r) else { return };
        let Some(flight) = block.flights.iter().find(|f| f.lane == Lane::Registry) else { return };
        let behind = flight.requests.iter().filter_map(|id| self.requests.get(id)).any(|request| {
            let end = block.place.as_ref().map_or(0, |p| p.stream.end);
            request.class > Class::Urgent
                && end.saturating_sub(request.position) > DUPLICATE_DISTANCE
        });
        if behind {
            self.return_flight(r, Lane::Registry);
        }
    }

    /// Takes a block out of all tables: it is here, or nobody wants it any more.
    /// Who else is bringing it is told to stop, save `delivered`.
    pub(super) fn take_out(&mut self, r: Ref, delivered: Option<u64>) -> Option<Block> {
        let block = self.blocks.get(r)?;
        if block.state() == State::Planned(Lane::Registry) {
            self.registry.remove(&self.blocks, r);
        }
        let block = self.blocks.remove(r)?;
        if let Some(at) = block.timer {
            self.timers.remove(&(at, Timer::Block(r)));
        }
        for interest in &block.interests {
            if let Some(refs) = self.by_interest.get_mut(&interest.id) {
                refs.retain(|other| *other != r);
                if refs.is_empty() {
                    self.by_interest.remove(&interest.id);
                }
            }
        }
        for flight in &block.flights {
            if let Lane::Tunnel(id) = flight.lane
                && let Some(tunnel) = self.peers.tunnels.get_mut(&id)
                && tunnel.partial == Some(r)
            {
                tunnel.partial = None;
            }
            for id in &flight.requests {
                self.forget_block(*id, r, block.key, delivered != Some(*id));
            }
        }
        if block.claimed && delivered.is_none() {
            self.say_claim(block.home, block.run, block.key, false, None);
        }
        if let Some(state) = self.homes.get_mut(block.home) {
            state.blocks -= 1;
            if state.blocks == 0 {
                state.hurried = false;
                state.stolen.clear();
                state.forget_own();
            }
        }
        Some(block)
    }

    /// Bytes of a layer came in.
    pub(super) fn progressed(&mut self, home: u32) {
        let now = self.now;
        if let Some(state) = self.homes.get_mut(home) {
            state.last_progress = now;
        }
    }

    pub(super) fn on_looked_up(&mut self, home: &Home, scope: Scope, found: bool) {
        let Some(n) = self.homes.find(home) else { return };
        let event = match scope {
            Scope::Lan => LadderEvent::LanAnswered { found },
            Scope::Swarm => LadderEvent::SwarmAnswered { found },
        };
        let late = scope == Scope::Swarm
            && self.homes.get_mut(n).is_some_and(|state| {
                std::mem::take(&mut state.looking) && state.ladder.rung() == Rung::Pause
            });
        self.climb(n, event);
        if late && !found {
            self.exhausted(n);
        }
    }

    /// Tells a layer's ladder what happened, and does what it says.
    pub(super) fn climb(&mut self, n: u32, event: LadderEvent) {
        let now = self.now;
        let (lan, far) = (self.lan_rtts.tau(now), self.far_rtts.tau(now));
        let Some(state) = self.homes.get_mut(n) else { return };
        let lan = if state.hurried { lan } else { lan.max(LAN_BULK) };
        let (home, before) = (state.home, state.ladder.reach());
        let tau = if state.ladder.rung() == Rung::Local { lan } else { far };
        let steps = state.ladder.apply(now, event, tau);
        let changed = state.ladder.reach() != before;
        if changed {
            state.climbed = now;
        }
        let wake = state.ladder.wake();
        if changed {
            self.planning.dirty = true;
            self.registry.unsettle();
            self.replace_urgent();
        }
        for step in steps {
            match step {
                Step::AskLan { within } => {
                    self.actions.push(Action::LookUp { home, scope: Scope::Lan, within });
                }
                Step::LookUp { within } => {
                    if let Some(state) = self.homes.get_mut(n) {
                        state.looking = true;
                    }
                    self.actions.push(Action::LookUp { home, scope: Scope::Swarm, within });
                }
                Step::OpenRegistry => {}
                Step::Exhausted { .. } => self.exhausted(n),
            }
        }
        if let Some(at) = wake {
            self.arm_home(n, at);
        }
    }

    pub(super) fn home_due(&mut self, n: u32) {
        let now = self.now;
        let Some(state) = self.homes.get_mut(n) else { return };
        state.timer = None;
        if state.not_before.is_some_and(|at| at <= now) {
            state.not_before = None;
            self.registry.unsettle();
            let gone = !state.ladder.reach().registry && !state.refused;
            if gone {
                self.climb(n, LadderEvent::RegistryBack);
            }
        }
        if self.homes.get(n).and_then(|s| s.ladder.wake()).is_some_and(|at| at <= now) {
            self.climb(n, LadderEvent::Tick);
        }
        self.fail_starved(n);
        if let Some(state) = self.homes.get_mut(n).filter(|s| s.blocks == 0 && s.announced) {
            // Not with the last block: the next read often follows at once.
            state.announced = false;
            self.actions.push(Action::Announce { home: state.home, on: false });
        }
        if let Some(state) = self.homes.get(n).filter(|s| s.blocks > 0) {
            let next = [state.ladder.wake(), state.not_before].into_iter().flatten().min();
            let next = next.map_or(now + SWEEP, |at| at.min(now + SWEEP));
            self.arm_home(n, next.max(now + Duration::from_millis(1)));
        }
    }

    /// Nothing came for too long: the wants that waited all that time end.
    fn fail_starved(&mut self, n: u32) {
        let limit = self.settings.no_progress;
        let Some(state) = self.homes.get(n) else { return };
        if state.last_progress + limit > self.now || state.blocks == 0 {
            return;
        }
        let starved = |b: &Block| b.home == n && b.since + limit <= self.now;
        let refs: Vec<Ref> =
            self.blocks.iter().filter(|(_, b)| starved(b)).map(|(r, _)| r).collect();
        self.fail(refs, Failure::NoProgress(limit));
    }

    /// Every rung of the ladder has failed. What nobody has, and the registry
    /// will never give, ends now; other wants wait for the next round, also those
    /// whose holder is left alone for a while, as after a sleep of this machine all are,
    /// and those that a look-up may still find somebody for.
    fn exhausted(&mut self, n: u32) {
        if !self.homes.get(n).is_some_and(|s| s.refused && !s.looking) {
            return;
        }
        let alive = self.peers.alive();
        let lost = |b: &Block| {
            let sources = b.holders.without(b.refused);
            b.home == n
                && b.flights.is_empty()
                && sources.is_empty()
                && b.getting.and(alive).is_empty()
        };
        let refs: Vec<Ref> = self.blocks.iter().filter(|(_, b)| lost(b)).map(|(r, _)| r).collect();
        self.fail(refs, Failure::Refused);
    }

    fn fail(&mut self, refs: Vec<Ref>, why: Failure) {
        for r in refs {
            if let Some(block) = self.take_out(r, None) {
                self.actions.push(Action::Failed { key: block.key, why });
            }
        }
    }

    /// Whether a source elsewhere than in the LAN brings the block.
    pub(super) fn crosses(&self, block: &Block) -> bool {
        block.flights.iter().any(|f| f.peer == REGISTRY || !self.peers.lan.contains(f.peer))
    }
}
