//! One node's part in elections.

use std::cmp::Ordering;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::{
    Action, BEAT, Beat, Claim, DISTRUST, JOIN, LEAVE_MAX, LEAVE_MIN, LIFE, LINKS_MAX, Message,
    Near, RETIRED_MAX, SETTLE, STAND_MAX, Score, Time,
};
use crate::types::PeerId;

/// Two nodes of one score don't stand at one moment.
const STAND_SPREAD: Duration = Duration::from_millis(4);
/// Without a beat for so long, neighbours in the LAN are asked; a second time,
/// and those elsewhere, after [`SILENT_FAR`].
const SILENT: Duration = Duration::from_millis(1600);
const SILENT_FAR: Duration = Duration::from_millis(2100);

/// The state of a node. Give it what happens, and do what [`Elector::poll`] says;
/// call [`Elector::tick`] at [`Elector::wake`].
#[derive(Debug)]
pub struct Elector {
    me: PeerId,
    score: Score,
    /// Of the last beat of this node.
    sequence: u64,
    links: BTreeMap<PeerId, Link>,
    view: Option<View>,
    /// Beats up to these are not taken again: their trackers were given up.
    retired: VecDeque<Beat>,
    /// Whose claims are not believed, and until when.
    distrusted: VecDeque<(PeerId, Time)>,
    /// When this node stands, unless it hears of a greater claim before.
    stands: Option<Time>,
    /// When a new claim may leave the LAN.
    leaves: Option<Time>,
    rng: fastrand::Rng,
    shown: Option<PeerId>,
    actions: VecDeque<Action>,
}

#[derive(Debug)]
struct Link {
    near: Near,
    /// Whether beats are passed on to it without being asked for.
    push: bool,
    /// The newest beat that it is known to have, because it sent it or was sent it.
    has: Option<Beat>,
    /// Our beat that it was last told of unasked.
    corrected: Option<Beat>,
}

/// The claim that this node follows; its own while it is candidate or tracker.
#[derive(Debug)]
struct View {
    claim: Claim,
    /// It is given up then if no newer one comes: [`LIFE`] after its tracker said it,
    /// as far as the way is known. Not kept as the time at which that was, which may be
    /// before this node's clock began.
    until: Time,
    /// Whether it came from another LAN.
    abroad: bool,
    parent: Option<PeerId>,
    /// How often neighbours have been asked for a newer one.
    asked: u8,
    /// This node's own: when it stood, and when the next beat is due.
    own: Option<(Time, Time)>,
}

impl View {
    /// Time since the tracker said it.
    fn age(&self, now: Time) -> Duration {
        (now + LIFE).saturating_sub(self.until)
    }
}

impl Elector {
    /// A node that starts now with this stability. `first` is a number higher than any sequence of the
    /// node's earlier lives, such as the time.
    pub fn new(me: PeerId, score: Score, first: u64, seed: u64, now: Time) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let stands = Some(now + JOIN + pause(score, &mut rng));
        Self {
            me,
            score,
            sequence: first,
            links: BTreeMap::new(),
            view: None,
            retired: VecDeque::new(),
            distrusted: VecDeque::new(),
            stands,
            leaves: None,
            rng,
            shown: None,
            actions: VecDeque::new(),
        }
    }

    /// The node's stability; it counts from its next claim on.
    pub fn set_score(&mut self, score: Score) {
        self.score = score;
    }

    /// The tracker in office, perhaps this node.
    pub fn tracker(&self) -> Option<PeerId> {
        self.view.as_ref().filter(|view| view.claim.settled).map(|view| view.claim.tracker)
    }

    /// The claim that this node follows.
    pub fn claim(&self) -> Option<Claim> {
        self.view.as_ref().map(|view| view.claim)
    }

    /// What to do next; `None`: nothing until something happens.
    pub fn poll(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When [`Elector::tick`] has something to do.
    pub fn wake(&self) -> Option<Time> {
        let of_view = self.view.as_ref().map(|view| match view.own {
            Some((_, next)) => next,
            None => match view.asked {
                0 => view.until.saturating_sub(LIFE - SILENT),
                1 => view.until.saturating_sub(LIFE - SILENT_FAR),
                _ => view.until,
            },
        });
        [of_view, self.stands, self.leaves].into_iter().flatten().min()
    }

    /// A neighbour can be talked to from now on. `false`: there are enough.
    pub fn link_up(&mut self, peer: PeerId, near: Near, now: Time) -> bool {
        if peer == self.me || self.links.len() >= LINKS_MAX {
            return false;
        }
        self.links.insert(peer, Link { near, push: true, has: None, corrected: None });
        self.pass_on_to(peer, now);
        true
    }

    /// A neighbour can't be talked to any more.
    pub fn link_down(&mut self, peer: &PeerId, now: Time) {
        self.links.remove(peer);
        if let Some(view) = self.view.as_mut().filter(|view| view.parent == Some(*peer)) {
            // Another branch is asked for at once.
            view.parent = None;
            self.ask(None);
        }
        self.tick(now);
    }

    /// A tracker answers nonsense or not at all: this node does without it. Its
    /// claims are neither believed nor passed on for [`DISTRUST`], or until 64 others
    /// were found worse. Not for ever: an honest one names nodes that can't be reached
    /// for as long as the network is cut.
    pub fn distrust(&mut self, tracker: PeerId, now: Time) {
        if tracker == self.me || self.is_distrusted(&tracker, now) {
            return;
        }
        self.distrusted.retain(|(_, until)| *until > now);
        remember(&mut self.distrusted, (tracker, now + DISTRUST));
        if self.view.as_ref().is_some_and(|view| view.claim.tracker == tracker) {
            self.lose(now);
        }
        self.show();
    }

    fn is_distrusted(&self, tracker: &PeerId, now: Time) -> bool {
        self.distrusted.iter().any(|(peer, until)| peer == tracker && *until > now)
    }

    /// A neighbour said something. Who is not linked is not heard.
    pub fn hear(&mut self, from: PeerId, message: Message, now: Time) {
        if !self.links.contains_key(&from) {
            return;
        }
        match message {
            Message::Claim { claim, age, abroad } => {
                self.link(from, |link| link.has = Some(claim.beat()));
                let far = self.links.get(&from).is_some_and(|link| link.near == Near::Remote);
                let until = now + LIFE.saturating_sub(age);
                if claim.tracker == self.me {
                    // From an earlier life with a better clock, or an echo.
                    self.sequence = self.sequence.max(claim.sequence);
                } else if age < LIFE && !self.is_distrusted(&claim.tracker, now) {
                    let claim = Claim { score: claim.score.min(Score::MAX), ..claim };
                    let abroad = abroad || far;
                    let view =
                        View { claim, until, abroad, parent: Some(from), asked: 0, own: None };
                    self.weigh(from, view, now);
                }
            }
            Message::Prune => self.link(from, |link| link.push = false),
            Message::Graft { known } => {
                self.link(from, |link| (link.push, link.has) = (true, known));
                self.pass_on_to(from, now);
            }
        }
        self.show();
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Time) {
        self.keep_office(now);
        if let Some(view) = self.view.as_mut().filter(|view| view.own.is_none()) {
            let silent = view.age(now);
            if silent >= LIFE {
                self.lose(now);
            } else if (view.asked == 0 && silent >= SILENT)
                || (view.asked == 1 && silent >= SILENT_FAR)
            {
                view.asked += 1;
                let near = if view.asked == 1 { Near::Lan } else { Near::Remote };
                self.ask(Some(near));
            }
        }
        if self.stands.is_some_and(|at| at <= now) {
            self.stands = None;
            self.stand(now);
        }
        if self.leaves.is_some_and(|at| at <= now) {
            self.leaves = None;
            self.pass_on(Some(Near::Remote), now);
        }
        self.show();
    }

    /// A neighbour follows this: shall this node, too?
    fn weigh(&mut self, from: PeerId, heard: View, now: Time) {
        let claim = heard.claim;
        let given_up =
            |(tracker, upto): &Beat| *tracker == claim.tracker && claim.sequence <= *upto;
        if self.retired.iter().any(given_up) {
            // It will find out by itself; a claim that lives may help it.
            return self.correct(from, now);
        }
        let Some(view) = &self.view else { return self.follow(heard, now) };
        if view.claim.tracker == claim.tracker {
            match claim.sequence.cmp(&view.claim.sequence) {
                Ordering::Greater => self.follow(heard, now),
                Ordering::Equal if self.is_second(from) && claim.settled => {
                    // Each has it from elsewhere: the link is no branch.
                    self.link(from, |link| link.push = false);
                    self.send(from, Message::Prune);
                }
                Ordering::Equal => {}
                Ordering::Less => self.correct(from, now),
            }
        } else if claim.rank() > view.claim.rank() {
            self.follow(heard, now);
        } else {
            self.correct(from, now);
        }
    }

    /// A beat that is known came from a neighbour: whether it came by another
    /// branch before. A node whose branch is gone takes this one.
    fn is_second(&mut self, from: PeerId) -> bool {
        let Some(view) = &mut self.view else { return false };
        *view.parent.get_or_insert(from) != from
    }

    /// Takes over what a neighbour follows, and passes it on.
    fn follow(&mut self, heard: View, now: Time) {
        let (claim, abroad) = (heard.claim, heard.abroad);
        let old = self.view.replace(heard).map(|view| view.claim.tracker);
        let is_new = old != Some(claim.tracker);
        if is_new {
            self.links.values_mut().for_each(|link| link.push = true);
            self.leaves = None;
        }
        // A node that would win keeps its pause until the election is over.
        let mine = Claim { tracker: self.me, score: self.score, sequence: 0, settled: false };
        if claim.rank() > mine.rank() {
            self.stands = None;
        }
        if is_new && !abroad {
            self.pass_on(Some(Near::Lan), now);
            self.leaves = Some(now + boundary(claim.score));
        } else if self.leaves.is_some() {
            self.pass_on(Some(Near::Lan), now);
        } else {
            self.pass_on(None, now);
        }
    }

    /// No tracker any more: an election begins.
    fn lose(&mut self, now: Time) {
        if let Some(view) = self.view.take() {
            self.retired.retain(|(tracker, _)| *tracker != view.claim.tracker);
            remember(&mut self.retired, view.claim.beat());
        }
        self.leaves = None;
        self.stands = Some(now + pause(self.score, &mut self.rng));
    }

    fn stand(&mut self, now: Time) {
        let sequence = self.sequence + 1;
        let claim = Claim { tracker: self.me, score: self.score, sequence, settled: false };
        if self.view.as_ref().is_some_and(|view| view.claim.rank() >= claim.rank()) {
            return;
        }
        self.sequence = sequence;
        let own = Some((now, now + SETTLE));
        self.view =
            Some(View { claim, until: now + LIFE, abroad: false, parent: None, asked: 0, own });
        self.links.values_mut().for_each(|link| link.push = true);
        self.pass_on(Some(Near::Lan), now);
        self.leaves = Some(now + boundary(claim.score));
    }

    /// The next beat of this node, if it is candidate or tracker and it is due.
    fn keep_office(&mut self, now: Time) {
        let Some(view) = &mut self.view else { return };
        let Some((since, next)) = view.own.filter(|(_, next)| *next <= now) else { return };
        self.sequence += 1;
        view.claim.sequence = self.sequence;
        view.claim.settled = now.saturating_sub(since) >= SETTLE;
        view.until = now + LIFE;
        // After a long sleep there is one beat, not one for each that was missed.
        let after = next + BEAT;
        view.own = Some((since, if after > now { after } else { now + BEAT }));
        self.pass_on(None, now);
    }

    /// Sends the claim to the neighbours on its branches that don't have it.
    fn pass_on(&mut self, near: Option<Near>, now: Time) {
        let Some(view) = &self.view else { return };
        let beat = view.claim.beat();
        let to: Vec<PeerId> = self
            .links
            .iter()
            .filter(|(_, link)| link.push && link.has != Some(beat))
            .filter(|(_, link)| near.is_none_or(|near| near == link.near))
            .map(|(peer, _)| *peer)
            .collect();
        to.into_iter().for_each(|to| self.pass_on_to(to, now));
    }

    /// Sends the claim to one neighbour, unless it has it.
    fn pass_on_to(&mut self, to: PeerId, now: Time) {
        let Some(view) = &self.view else { return };
        let (claim, age, abroad) = (view.claim, view.age(now), view.abroad);
        let Some(link) = self.links.get_mut(&to) else { return };
        if link.has != Some(claim.beat()) && age < LIFE {
            link.has = Some(claim.beat());
            self.send(to, Message::Claim { claim, age, abroad });
        }
    }

    /// A neighbour follows a lesser claim or an old beat: it is told, not more than
    /// once a beat of ours.
    fn correct(&mut self, to: PeerId, now: Time) {
        let Some(beat) = self.view.as_ref().map(|view| view.claim.beat()) else { return };
        let Some(link) = self.links.get_mut(&to) else { return };
        if link.corrected != Some(beat) {
            link.corrected = Some(beat);
            self.pass_on_to(to, now);
        }
    }

    /// Asks neighbours for beats, all or those in the LAN; the parent in any case.
    fn ask(&mut self, near: Option<Near>) {
        let Some(view) = &self.view else { return };
        let (known, parent) = (Some(view.claim.beat()), view.parent);
        let asked = |peer: &PeerId, link: &Link| {
            near.is_none_or(|near| near == link.near) || parent == Some(*peer)
        };
        let to: Vec<PeerId> =
            self.links.iter().filter(|(peer, link)| asked(peer, link)).map(|(p, _)| *p).collect();
        for to in to {
            self.link(to, |link| link.push = true);
            self.send(to, Message::Graft { known });
        }
    }

    fn link(&mut self, peer: PeerId, change: impl FnOnce(&mut Link)) {
        if let Some(link) = self.links.get_mut(&peer) {
            change(link);
        }
    }

    fn send(&mut self, to: PeerId, message: Message) {
        self.actions.push_back(Action::Send { to, message });
    }

    fn show(&mut self) {
        let tracker = self.tracker();
        if tracker != self.shown {
            self.shown = tracker;
            self.actions.push_back(Action::Tracker(tracker));
        }
    }
}

/// How long a node waits before it stands.
fn pause(score: Score, rng: &mut fastrand::Rng) -> Duration {
    STAND_MAX.mul_f64(1.0 - score.share()) + STAND_SPREAD.mul_f64(rng.f64())
}

/// How long a new claim stays inside its LAN.
fn boundary(score: Score) -> Duration {
    LEAVE_MIN + (LEAVE_MAX - LEAVE_MIN).mul_f64(1.0 - score.share())
}

/// Keeps the last [`RETIRED_MAX`].
fn remember<T>(list: &mut VecDeque<T>, value: T) {
    if list.len() == RETIRED_MAX {
        list.pop_front();
    }
    list.push_back(value);
}
