//! What this node gets for its LAN, told to the neighbours, so that none of them gets
//! it too.

use super::Scheduler;
use super::model::{Action, BlockKey};
use super::table::{Block, Ref};
use super::verdict::Verdict;
use crate::types::PeerId;

impl Scheduler {
    /// Tells the neighbours that this node gets a block from beyond the LAN.
    pub(super) fn claim(&mut self, r: Ref) {
        let Some(block) = self.blocks.get_mut(r).filter(|b| !b.claimed) else { return };
        if self.peers.lan.is_empty() {
            return;
        }
        block.claimed = true;
        let (home, run, key) = (block.home, block.run, block.key);
        let live = self.live_neighbours();
        if let Some(state) = self.homes.get_mut(home) {
            state.claim(run, None, |slot| live.contains(slot), &self.me, &self.peers);
        }
        self.say_claim(home, run, key, true, None);
    }

    /// Tells a neighbour that has just come to want a layer what this node gets of
    /// it: what was said before it knew the layer it has not heard.
    pub(super) fn repeat_claims(&mut self, home: u32, to: PeerId) {
        let of_home = |b: &Block| b.home == home && b.claimed;
        let blocks = self.blocks.iter().filter(|(_, b)| of_home(b));
        let mut claimed: Vec<(u32, BlockKey)> = blocks.map(|(_, b)| (b.run, b.key)).collect();
        claimed.sort_unstable();
        for (run, key) in claimed {
            self.say_claim(home, run, key, true, Some(to));
        }
    }

    /// One claim for neighbouring blocks.
    pub(super) fn say_claim(
        &mut self,
        home: u32,
        run: u32,
        key: BlockKey,
        on: bool,
        to: Option<PeerId>,
    ) {
        let Some(home) = self.homes.get(home).map(|s| s.home) else { return };
        if let Some(Action::Claim { object, blocks, run: same, on: how, to: whom, .. }) =
            self.actions.last_mut()
            && (*object, *same, *how, *whom) == (key.object, run, on, to)
            && blocks.end == key.index
        {
            blocks.end += 1;
            return;
        }
        let blocks = key.index..key.index + 1;
        self.actions.push(Action::Claim { home, run, object: key.object, blocks, on, to });
    }

    /// What a reader waits for is claimed when it is planned: neighbours whose
    /// readers are at the same place would not wait for it to be asked for.
    pub(super) fn claim_for_reader(&mut self, r: Ref, verdict: &Verdict) {
        let across = verdict.crosses(&self.peers.lan);
        let Some(block) = self.blocks.get_mut(r) else { return };
        if across && block.class.is_reader() {
            self.claim(r);
        } else if block.claimed {
            block.claimed = false;
            let (home, run, key) = (block.home, block.run, block.key);
            self.say_claim(home, run, key, false, None);
        }
    }
}
