//! A peer that does on its tunnels what no honest peer does is shut out for a while,
//! and for longer each time. (Wrong blocks are the scheduler's to judge: it knows who
//! else has them.)

use std::collections::HashMap;
use std::fmt::Display;
use std::time::{Duration, Instant};

use tracing::warn;

use super::Net;
use crate::types::PeerId;

/// How long it is shut out the first time; twice as long each time after it,
const FIRST: Duration = Duration::from_secs(10);
/// and no longer than this.
const LONGEST: Duration = Duration::from_secs(3600);
/// Peers whose misdeeds are remembered.
const PEERS_MAX: usize = 1024;

/// What peers did wrong, and until when they are shut out for it.
#[derive(Default)]
pub(super) struct Penalties(HashMap<PeerId, (u32, Instant)>);

impl Penalties {
    /// Notes a misdeed; gives how long the peer is to be shut out.
    fn note(&mut self, now: Instant, peer: PeerId) -> Duration {
        if !self.0.contains_key(&peer) && self.0.len() >= PEERS_MAX {
            let first = self.0.iter().min_by_key(|(_, (_, until))| *until);
            if let Some(first) = first.map(|(peer, _)| *peer) {
                self.0.remove(&first);
            }
        }
        let (times, until) = self.0.entry(peer).or_insert((0, now));
        let time = FIRST.saturating_mul(1 << (*times).min(16)).min(LONGEST);
        (*times, *until) = (times.saturating_add(1), now + time);
        time
    }
}

impl Net {
    /// Shuts a peer out for what it did.
    pub(super) fn misbehaved(&mut self, peer: PeerId, why: &dyn Display) {
        let shut_out = self.penalties.note(Instant::now(), peer);
        warn!(?peer, ?shut_out, "peer misbehaved: {why}");
        self.endpoint.ban(peer, shut_out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_longer_each_time_and_few_are_remembered() {
        let (mut penalties, now) = (Penalties::default(), Instant::now());
        let peer = |n: u16| {
            let mut id = [0; 32];
            id[..2].copy_from_slice(&n.to_le_bytes());
            PeerId(id)
        };
        let seconds: Vec<u64> = (0..10).map(|_| penalties.note(now, peer(1)).as_secs()).collect();
        assert_eq!(seconds, [10, 20, 40, 80, 160, 320, 640, 1280, 2560, 3600]);
        for n in 2..5000 {
            assert_eq!(penalties.note(now, peer(n)), FIRST);
        }
        assert_eq!(penalties.0.len(), PEERS_MAX);
        assert_eq!(penalties.note(now, peer(1)), LONGEST, "the worst are remembered longest");
    }
}
