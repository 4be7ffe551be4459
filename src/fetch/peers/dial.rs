//! Keeps tunnels to addresses that were given.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tracing::{debug, info};

use crate::fetch::engine::Inner;
use crate::fetch::tunnel::{OpenError, Target};

/// First pause after a call failed; doubles up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// Calls a node until it answers, and again when its last tunnel has gone, as
/// long as there is an engine.
pub(super) async fn keep(inner: Weak<Inner>, target: Target) {
    let mut pause = PAUSE_MIN;
    let mut known = target.peer;
    loop {
        let (endpoint, links, there) = {
            let Some(inner) = inner.upgrade() else { return };
            let state = inner.state();
            let Some(net) = state.net.as_ref().filter(|_| !state.closed) else { return };
            let there = known
                .is_some_and(|id| net.peers.get(&id).is_some_and(|peer| !peer.tunnels.is_empty()));
            (Arc::clone(&net.endpoint), Arc::clone(&net.links), there)
        };
        if there {
            // Looked at once more after a while, should the news have come between.
            tokio::select! {
                () = links.notified() => {}
                () = tokio::time::sleep(PAUSE_MAX) => {}
            }
            continue;
        }
        match endpoint.open(target).await {
            Ok(tunnel) => {
                known = Some(tunnel.info().peer);
                pause = PAUSE_MIN;
                // Its first event comes at once; until then it is not there.
                tokio::time::sleep(PAUSE_MIN).await;
            }
            Err(OpenError::Closed | OpenError::Myself) => return,
            Err(error) => {
                if pause == PAUSE_MIN {
                    info!(address = %target.address, "peer: {error}");
                } else {
                    debug!(address = %target.address, "peer: {error}");
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }
}
