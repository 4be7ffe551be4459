//! Questions to one peer that the scheduler has no part in: roots, block lists
//! and the parts of an index.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::oneshot;
use tracing::{debug, info, warn};

use super::Net;
use crate::fetch::engine::{Engine, Inner};
use crate::fetch::install::IndexParts;
use crate::fetch::schedule::RequestId;
use crate::fetch::tunnel::{Content, Near, RequestError, Tunnel, TunnelId, Want};
use crate::layer::root::{LayerRoot, PartRef};
use crate::types::{Digest, ObjectSpec};
use crate::wire::Class;

/// Names of calls begin here; those of the scheduler's requests never get so far.
const FIRST: RequestId = 1 << 63;
/// A neighbour that has not said what it knows after this long is passed over,
const ANSWER_LAN: Duration = Duration::from_secs(1);
/// and so is anybody else.
const ANSWER_FAR: Duration = Duration::from_secs(3);
/// A list, or a few blocks, take no longer than this.
const PIECE: Duration = Duration::from_secs(20);
/// Peers that are asked for roots at a time.
const ASKED_MAX: usize = 16;
/// Blocks of a part that are asked for at a time: at most 8 MiB.
const BLOCKS: u32 = 8;
/// No part of an index is longer, in bytes. It is held in memory.
const PART_MAX: u64 = 1 << 30;

/// A question that is being answered.
pub(super) struct Call {
    tunnel: TunnelId,
    got: Vec<Content>,
    done: oneshot::Sender<Vec<Content>>,
}

/// Why a peer did not give what it was asked for.
#[derive(Debug, thiserror::Error)]
enum CallError {
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error("no answer in time")]
    Late,
    #[error("it does not have it, or the tunnel broke")]
    Nothing,
    #[error("a part of the index of {0} bytes")]
    TooLong(u64),
}

impl Engine {
    /// The index of a layer from a peer: neighbours are asked first. `None` where
    /// nobody has one, or where what they have contradicts itself. The root's
    /// signature is right and the parts are what it names; whether it is of the
    /// layer that is meant, and consistent, is for the caller to check.
    pub async fn index_from_peers(&self, blob: &Digest) -> Option<(LayerRoot, IndexParts)> {
        for (near, patience) in [(Near::Lan, ANSWER_LAN), (Near::Remote, ANSWER_FAR)] {
            let found = self.inner.roots(blob, near, patience).await;
            let mut roots = found.iter().map(|(_, root)| root);
            let first = roots.next();
            if let Some(first) = first
                && roots.any(|root| root.contradicts(first))
            {
                warn!(%blob, "peers have indexes that contradict each other: none is believed");
                return None;
            }
            for (tunnel, root) in found {
                match self.inner.parts(&tunnel, &root).await {
                    Ok(parts) => {
                        info!(%blob, peer = ?tunnel.info().peer, "index from a peer");
                        return Some((root, parts));
                    }
                    Err(error) => {
                        info!(%blob, peer = ?tunnel.info().peer, "index from a peer: {error}");
                    }
                }
            }
        }
        None
    }
}

impl Inner {
    /// The roots that peers have of a blob's index, by whom they came.
    async fn roots(
        &self,
        blob: &Digest,
        near: Near,
        patience: Duration,
    ) -> Vec<(Arc<dyn Tunnel>, LayerRoot)> {
        let tunnels: Vec<Arc<dyn Tunnel>> = {
            let state = self.state();
            let Some(net) = &state.net else { return Vec::new() };
            let peers = net.peers.values().filter(|peer| peer.near == near);
            let tunnels = peers.filter_map(|peer| net.tunnels.get(peer.tunnels.first()?));
            tunnels.take(ASKED_MAX).cloned().collect()
        };
        let calls = tunnels.iter().map(|tunnel| async move {
            let want = Want::Roots { blob: *blob };
            let answer = self.call(tunnel, want, patience).await;
            let roots =
                answer.unwrap_or_default().into_iter().filter_map(|content| match content {
                    Content::Root { root, .. } if root.body().blob == *blob => Some(*root),
                    _ => None,
                });
            roots.map(|root| (Arc::clone(tunnel), root)).collect::<Vec<_>>()
        });
        join_all(calls).await.into_iter().flatten().collect()
    }

    async fn parts(
        &self,
        tunnel: &Arc<dyn Tunnel>,
        root: &LayerRoot,
    ) -> Result<IndexParts, CallError> {
        let body = root.body();
        let mut parts = IndexParts::default();
        let named = [&body.tree, &body.blocks, &body.seek, &body.skeleton];
        for (part, named) in parts.iter_mut().zip(named) {
            *part = self.part(tunnel, named).await?;
        }
        Ok(parts)
    }

    async fn part(&self, tunnel: &Arc<dyn Tunnel>, part: &PartRef) -> Result<Vec<u8>, CallError> {
        if part.length > PART_MAX {
            return Err(CallError::TooLong(part.length));
        }
        let object = part.id;
        let answer = self.call(tunnel, Want::Spec { object }, PIECE).await?;
        let spec = answer.into_iter().find_map(|content| match content {
            Content::Spec { spec, .. } => Some(spec),
            _ => None,
        });
        let spec = spec.filter(|spec| spec.length() == part.length).ok_or(CallError::Nothing)?;
        let mut bytes = Vec::new();
        let mut next = 0;
        while next < spec.block_count() {
            let blocks = next..spec.block_count().min(next + BLOCKS);
            next = blocks.end;
            self.blocks(tunnel, object, &spec, blocks, &mut bytes).await?;
        }
        Ok(bytes)
    }

    async fn blocks(
        &self,
        tunnel: &Arc<dyn Tunnel>,
        object: crate::types::ObjectId,
        spec: &Arc<ObjectSpec>,
        blocks: Range<u32>,
        out: &mut Vec<u8>,
    ) -> Result<(), CallError> {
        let want = Want::Blocks { object, spec: Arc::clone(spec), blocks: blocks.clone() };
        let mut got: Vec<_> = self
            .call(tunnel, want, PIECE)
            .await?
            .into_iter()
            .filter_map(|content| match content {
                Content::Block { index, block, .. } => Some((index, block)),
                _ => None,
            })
            .collect();
        got.sort_unstable_by_key(|(index, _)| *index);
        if !got.iter().map(|(index, _)| *index).eq(blocks) {
            return Err(CallError::Nothing);
        }
        got.iter().for_each(|(_, block)| out.extend_from_slice(block.data()));
        Ok(())
    }

    /// Asks a peer something and gives all that comes.
    async fn call(
        &self,
        tunnel: &Arc<dyn Tunnel>,
        want: Want,
        patience: Duration,
    ) -> Result<Vec<Content>, CallError> {
        let (done, answer) = oneshot::channel();
        let request = {
            let mut state = self.state();
            let net = state.net.as_mut().ok_or(CallError::Nothing)?;
            net.next_call += 1;
            let request = FIRST + net.next_call;
            tunnel.request(request, Class::Urgent, want)?;
            let call = Call { tunnel: tunnel.info().id, got: Vec::new(), done };
            net.calls.insert(request, call);
            request
        };
        match tokio::time::timeout(patience, answer).await {
            Ok(answer) => answer.map_err(|_| CallError::Nothing),
            Err(_) => {
                tunnel.cancel(request);
                if let Some(net) = self.state().net.as_mut() {
                    net.calls.remove(&request);
                }
                Err(CallError::Late)
            }
        }
    }
}

impl Net {
    /// Content in answer to a call; gives back what is not.
    pub(super) fn answer(&mut self, request: RequestId, content: Content) -> Option<Content> {
        match self.calls.get_mut(&request) {
            Some(call) => call.got.push(content),
            // It came after nobody waited any more.
            None if request >= FIRST => {}
            None => return Some(content),
        }
        None
    }

    /// A request has ended; `true` if it was a call.
    pub(super) fn end_call(&mut self, request: RequestId) -> bool {
        if let Some(call) = self.calls.remove(&request) {
            // Who asked may have gone.
            let _ = call.done.send(call.got);
        }
        request >= FIRST
    }

    /// A tunnel is gone, and no answer comes on it.
    pub(super) fn forget_calls(&mut self, tunnel: TunnelId) {
        let before = self.calls.len();
        self.calls.retain(|_, call| call.tunnel != tunnel);
        if self.calls.len() < before {
            debug!(tunnel, "calls broke off");
        }
    }
}
