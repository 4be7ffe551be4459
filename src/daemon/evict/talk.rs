//! What neighbours ask, and what they answer.

use std::collections::HashMap;
use std::sync::PoisonError;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use tracing::{debug, warn};

use super::neighbours::Asked;
use super::{EvictError, Evictor, Node, Round, State, first};
use crate::eviction::promise::{PROMISE, Standing};
use crate::eviction::{Member, Parties, Pressure};
use crate::store::Store;
use crate::types::{ObjectId, PeerId};
use crate::wire::{Challenge, Keep, Message, PROMISES_MAX, Reply};

/// Something that a neighbour said, and when.
pub(super) struct Said {
    peer: PeerId,
    keep: Keep,
    at: Duration,
}

impl Evictor {
    /// A peer says something about copies. Does not wait; too much is not heard.
    pub(in crate::daemon) fn hear(&self, peer: PeerId, keep: Keep) {
        let at = self.now();
        if self.says.try_send(Said { peer, keep, at }).is_err() {
            debug!(?peer, "more about copies than can be answered");
        }
    }

    /// What is heard, for whoever answers; once.
    pub(super) fn heard(&self) -> Option<Receiver<Said>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Answers, or takes in what was said.
    pub(super) fn said(&self, node: &Node, said: Said) {
        let Said { peer, keep, at } = said;
        if !self.state().neighbours.is_near(&peer) {
            self.meet(node);
            if !self.state().neighbours.is_near(&peer) {
                // Only neighbours keep copies for each other.
                return;
            }
        }
        match keep {
            Keep::WhoHolds { id, objects } => self.who_holds(node, &peer, id, &objects),
            Keep::Holds { id, capacity, whole } => {
                let asked = self.state().neighbours.holds(&peer, id, capacity, &whole);
                if asked {
                    self.bell.ring();
                }
            }
            Keep::AskPromises { nonce, capacity, asks } => {
                if let Err(error) = self.asked(node, &peer, nonce, capacity, &asks) {
                    warn!(?peer, "promises can't be given: {error}");
                }
            }
            Keep::Promises { nonce, seconds, answers, signature } => {
                self.answered(node, &peer, at, &nonce, seconds, &answers, &signature);
            }
            Keep::Withdrawn { all, objects } => {
                let mut state = self.state();
                if all {
                    state.ledger.withdrawn_all(&peer, at);
                }
                objects.iter().for_each(|object| state.ledger.withdrawn(object, &peer, at));
            }
            Keep::Gone { objects } => {
                let mut state = self.state();
                state.neighbours.gone(&peer, &objects);
                objects.iter().for_each(|object| state.ledger.withdrawn(object, &peer, at));
            }
        }
    }

    fn who_holds(&self, node: &Node, peer: &PeerId, id: u64, objects: &[ObjectId]) {
        let Ok((_, budget)) = self.disk() else { return };
        let whole = objects.iter().map(|object| is_whole(&self.store, object)).collect();
        let answer = Keep::Holds { id, capacity: budget.hard, whole };
        let _ = node.engine.tell(peer, Message::Keep(answer));
    }

    /// A neighbour asks for promises: each binds this node from now on.
    fn asked(
        &self,
        node: &Node,
        peer: &PeerId,
        nonce: [u8; 32],
        capacity: u64,
        asks: &[Challenge],
    ) -> Result<(), EvictError> {
        if self.store.is_read_only()
            || !self.state().neighbours.may_ask(peer, asks.len(), self.now())
        {
            return Ok(());
        }
        self.make_durable(asks)?;
        let (disk, budget) = self.disk()?;
        let full = budget.pressure(disk.occupied) != Pressure::None;
        let (me, from) = (
            Member { id: self.me, capacity: budget.hard },
            Member { id: *peer, capacity: capacity.min(1 << 60) },
        );
        let parties = Parties { promiser: &self.me, asker: peer, nonce: &nonce };
        let mut answers = Vec::with_capacity(asks.len());
        for Challenge { object, block } in asks {
            let proof = match self.store.is_durable(object)? {
                true => self.store.read_block(object, *block).ok().flatten(),
                false => None,
            };
            let Some(read) = proof else {
                answers.push(Reply::NotHere);
                continue;
            };
            let bytes = self.store.object_info(object)?.map_or(0, |info| info.length);
            let promised = {
                let mut state = self.state();
                self.note_promises(&mut state)?;
                let now = self.now();
                // Of two that ask each other one must, however full it is.
                let crossed = state.ledger.standing(object, now) == Standing::Open;
                let limit = if full && !crossed { budget.soft } else { u64::MAX };
                state.may_promise(object, bytes, limit, budget.soft)
                    // Looked at again, as it may have been removed meanwhile.
                    && self.store.is_durable(object)?
                    && state.ledger.give(object, &me, &from, true, now)
                    && state.gave(object, bytes, now)
            };
            answers.push(if promised {
                Reply::Promised(parties.proof(object, *block, read.data()))
            } else {
                Reply::Unwilling
            });
        }
        let given = answers.iter().filter(|answer| matches!(answer, Reply::Promised(_))).count();
        self.counters.promises_given.add(given as u64);
        let seconds = PROMISE.as_secs() as u16;
        let signature = parties.sign(seconds, &statement(asks, &answers), &self.key);
        let answer = Keep::Promises { nonce, seconds, answers, signature };
        let _ = node.engine.tell(peer, Message::Keep(answer));
        Ok(())
    }

    /// What is asked about and came a moment ago is made durable: only that can be
    /// promised.
    fn make_durable(&self, asks: &[Challenge]) -> Result<(), EvictError> {
        for Challenge { object, .. } in asks {
            if is_whole(&self.store, object) && !self.store.is_durable(object)? {
                if let Err(error) = self.store.sync() {
                    warn!("promises wait for the disk: {error}");
                }
                return Ok(());
            }
        }
        Ok(())
    }

    /// Durably, before the first promise: after a crash it must be waited out.
    fn note_promises(&self, state: &mut State) -> Result<(), EvictError> {
        if !state.noted {
            self.store.set_promised(true)?;
            state.noted = true;
        }
        Ok(())
    }

    /// A neighbour answers: what it promises counts once it is signed and proved.
    #[expect(clippy::too_many_arguments, reason = "a message's parts, and where it came from")]
    fn answered(
        &self,
        node: &Node,
        peer: &PeerId,
        at: Duration,
        nonce: &[u8; 32],
        seconds: u16,
        answers: &[Reply],
        signature: &[u8; 64],
    ) {
        let Some(asked) = self.state().neighbours.answered(peer, nonce) else {
            debug!(?peer, "promises that nobody asked for");
            return;
        };
        let asks: Vec<Challenge> = asked
            .iter()
            .map(|asked| Challenge { object: asked.object, block: asked.block })
            .collect();
        let parties = Parties { promiser: peer, asker: &self.me, nonce };
        let signed = asked.len() == answers.len()
            && parties.is_signed(seconds, &statement(&asks, answers), signature);
        if !signed {
            // It came over the promiser's own tunnel: nobody else can have made it.
            warn!(?peer, "forged promises");
            self.counters.promises_false.add(1);
            node.engine.expel(*peer);
            return;
        }
        // One that ends before it may be relied on to the end is none.
        let long = u64::from(seconds) >= PROMISE.as_secs();
        if !long {
            warn!(?peer, seconds, "promises that expire too early");
            self.counters.promises_false.add(answers.len() as u64);
        }
        for (asked, answer) in asked.iter().zip(answers) {
            let promised = match answer {
                Reply::Promised(proof) => long && self.is_proved(&parties, asked, proof, at),
                Reply::NotHere => {
                    self.state().neighbours.gone(peer, &[asked.object]);
                    false
                }
                Reply::Unwilling => false,
            };
            if promised {
                self.counters.promises_received.add(1);
            }
            self.state().ledger.answered(&asked.object, peer, asked.number, promised, at);
        }
        self.bell.ring();
    }

    /// Whether the promiser has shown that it has the block that was asked for.
    fn is_proved(
        &self,
        parties: &Parties<'_>,
        asked: &Asked,
        proof: &[u8; 32],
        at: Duration,
    ) -> bool {
        // What is gone here meanwhile can't be compared, nor need it be dropped.
        let block = self.store.read_block(&asked.object, asked.block).ok().flatten();
        let Some(block) = block else { return false };
        if parties.proof(&asked.object, asked.block, block.data()) == *proof {
            return true;
        }
        let peer = parties.promiser;
        self.counters.promises_false.add(1);
        warn!(?peer, object = %asked.object, "a promise to keep what it can't show that it has");
        let mut state = self.state();
        state.neighbours.gone(peer, &[asked.object]);
        if state.neighbours.lied(peer, at) {
            warn!(?peer, "what it says that it has is not believed for a while");
        }
        false
    }

    /// Asks neighbours what they have of what matters; `true` while any is asked.
    pub(super) fn survey(&self, node: &Node, round: &Round, all: bool) -> bool {
        let items = round.inventory.items.iter();
        let items = items.filter(|item| all || item.idle >= self.weights.spare_after);
        let objects: Vec<ObjectId> = items.map(|item| item.id).collect();
        let asks = {
            let mut state = self.state();
            let now = self.now();
            state.neighbours.look(&objects, round.plan.pressure == Pressure::Hard, now)
        };
        for ask in asks {
            let question = Keep::WhoHolds { id: ask.id, objects: ask.objects };
            // One that does not fit is as one that is not answered.
            let _ = node.engine.tell(&ask.peer, Message::Keep(question));
        }
        self.state().neighbours.is_asking()
    }

    /// Asks for the promises that the plan wants, as far as there is room, and takes
    /// back those that are in its way.
    pub(super) fn ask(&self, node: &Node, round: &Round) {
        let items = &round.inventory.items;
        let leaving: Vec<ObjectId> = round.plan.withdraw.iter().map(|n| items[*n].id).collect();
        self.withdraw(node, &leaving);
        let mut wanted: HashMap<PeerId, Vec<ObjectId>> = HashMap::new();
        for ask in &round.plan.ask {
            wanted.entry(ask.of).or_default().push(items[ask.item].id);
        }
        for (peer, objects) in wanted {
            let room = self.state().neighbours.room_for_asks(&peer);
            for objects in objects.chunks(PROMISES_MAX).take(room) {
                self.ask_one(node, peer, round.budget.hard, objects);
            }
        }
    }

    fn ask_one(&self, node: &Node, peer: PeerId, capacity: u64, objects: &[ObjectId]) {
        let mut nonce = [0; 32];
        if let Err(error) = getrandom::fill(&mut nonce) {
            warn!("no promises can be asked for: no random numbers: {error}");
            return;
        }
        let mut asked = Vec::with_capacity(objects.len());
        for object in objects {
            let Some(block) = any_block(&self.store, object) else { continue };
            let mut state = self.state();
            let now = self.now();
            if let Some(number) = state.ledger.ask(*object, peer, now) {
                asked.push(Asked { object: *object, number, block });
            }
        }
        if asked.is_empty() {
            return;
        }
        self.counters.promises_asked.add(asked.len() as u64);
        let asks = asked
            .iter()
            .map(|asked| Challenge { object: asked.object, block: asked.block })
            .collect();
        let now = self.now();
        self.state().neighbours.asks(nonce, peer, asked, now);
        // One that does not fit is as one that is not answered.
        let _ = node.engine.tell(&peer, Message::Keep(Keep::AskPromises { nonce, capacity, asks }));
    }
}

impl State {
    /// Whether one more object may be promised. A store above its soft mark promises
    /// only what its last copies leave room for, so that these are spread over the
    /// LAN as there is room, and what it has to keep anyway; and never more than
    /// `most` in all: the budget can be met whoever asks without end.
    fn may_promise(&self, object: &ObjectId, bytes: u64, limit: u64, most: u64) -> bool {
        if self.going.contains(object) || self.leaving.contains_key(object) {
            return false;
        }
        if self.promised.contains_key(object) {
            return true;
        }
        let promised = self.promised.values().sum::<u64>().saturating_add(bytes);
        let kept = self.keeps.contains(&first(object));
        promised <= most && (kept || self.kept.saturating_add(bytes) <= limit)
    }

    fn gave(&mut self, object: &ObjectId, bytes: u64, now: Duration) -> bool {
        let new = self.promised.insert(*object, bytes).is_none();
        if new && !self.keeps.contains(&first(object)) {
            self.kept = self.kept.saturating_add(bytes);
        }
        self.last_given = now;
        true
    }
}

/// What is signed: for each object its name, the block and the answer.
fn statement(asks: &[Challenge], answers: &[Reply]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(asks.len() * 69);
    for (ask, answer) in asks.iter().zip(answers) {
        bytes.extend(ask.object.as_bytes());
        bytes.extend(ask.block.to_le_bytes());
        answer.encode(&mut bytes);
    }
    bytes
}

fn is_whole(store: &Store, object: &ObjectId) -> bool {
    let info = store.object_info(object).ok().flatten();
    info.is_some_and(|info| info.complete && info.blocks > 0)
}

/// A block of the object that is here, any of them.
fn any_block(store: &Store, object: &ObjectId) -> Option<u32> {
    let words = store.bitfield(object)?;
    let count: u32 = words.iter().map(|word| word.count_ones()).sum();
    let mut nth = fastrand::u32(..count.max(1));
    for (n, word) in (0u32..).zip(words) {
        let ones = word.count_ones();
        if nth >= ones {
            nth -= ones;
            continue;
        }
        let mut left = word;
        for _ in 0..nth {
            left &= left - 1;
        }
        return Some(n * 64 + left.trailing_zeros());
    }
    None
}
