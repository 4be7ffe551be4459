//! Indexes and documents from peers.
//!
//! A peer that the swarm's rules let in gives the roots that it believes itself;
//! with that it vouches for them as much as their builder's signature does: every
//! member can make a key and sign. Two roots of one blob that contradict each
//! other are both refused, and so is what a revoked node has signed.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::{Instant, timeout_at};
use tracing::{info, warn};

use super::question::Unanswered;
use crate::fetch::IndexParts;
use crate::fetch::engine::{Engine, Inner};
use crate::fetch::tunnel::{Content, Near, Want};
use crate::layer::root::{LayerRoot, PartRef};
use crate::types::{BlockHash, Digest, ObjectSpec, PeerId};
use crate::wire::BLOCKS_MAX;

/// Peers that one question is put to; neighbours first.
const ASKED_MAX: usize = 64;
/// How long the first answer may take,
const PATIENCE: Duration = Duration::from_secs(3);
/// and others after it, so that a contradiction shows.
const GRACE: Duration = Duration::from_millis(100);
/// Largest index that is taken from a peer, all parts together, in bytes.
const INDEX_MAX: u64 = 1 << 30;
/// Blocks of one request for a part, and requests at a time: 8 MiB each.
const RUN: u32 = 16;
const RUNS: usize = 2;

/// Says whether a root is of the layer that is meant.
type Fits<'a> = dyn Fn(&LayerRoot) -> Result<(), String> + Send + Sync + 'a;

/// The roots that peers have of one blob's index, which agree with one another.
pub struct IndexOffers {
    blob: Digest,
    offers: Vec<(PeerId, LayerRoot)>,
    near: bool,
}

impl IndexOffers {
    /// Whether a neighbour is among those who have it.
    pub fn are_near(&self) -> bool {
        self.near
    }
}

impl Engine {
    /// The index of a blob from a peer that has it. `None` if nobody has one that
    /// fits, or peers contradict one another.
    pub async fn index_from_peers(
        &self,
        blob: &Digest,
        fits: &Fits<'_>,
    ) -> Option<(LayerRoot, IndexParts)> {
        self.offered_index(&self.index_offers(blob, fits).await?).await
    }

    /// Who has an index of a blob that fits. `None` if nobody has, or peers
    /// contradict one another.
    pub async fn index_offers(&self, blob: &Digest, fits: &Fits<'_>) -> Option<IndexOffers> {
        let inner = &self.inner;
        let mut offers = inner.roots(blob).await;
        if offers.is_empty() {
            inner.expect_holders(*blob).await;
            offers = inner.roots(blob).await;
        }
        let offers: Vec<(PeerId, LayerRoot)> = offers
            .into_iter()
            .filter(|(peer, root)| match believable(inner, root).and_then(|()| fits(root)) {
                Ok(()) => true,
                Err(why) => {
                    warn!(?peer, %blob, "a peer's index is not used: {why}");
                    false
                }
            })
            .collect();
        let (_, first) = offers.first()?;
        if let Some((peer, _)) = offers.iter().find(|(_, root)| root.contradicts(first)) {
            let other = offers.first().map(|(peer, _)| *peer);
            warn!(%blob, a = ?other, b = ?peer, "peers' indexes contradict each other: neither is used");
            return None;
        }
        let near = offers.iter().any(|(peer, _)| inner.is_near(peer));
        Some(IndexOffers { blob: *blob, offers, near })
    }

    /// An index that peers offer, neighbours' first.
    pub async fn offered_index(&self, offered: &IndexOffers) -> Option<(LayerRoot, IndexParts)> {
        let (inner, blob, offers) = (&self.inner, &offered.blob, &offered.offers);
        let mut tried = HashSet::new();
        for (_, root) in offers {
            // Seek tables and skeletons differ with who built them.
            if !tried.insert(root.encode()) {
                continue;
            }
            let same = offers.iter().filter(|(_, other)| other == root);
            let holders: Vec<PeerId> = same.map(|(peer, _)| *peer).collect();
            if let Some(parts) = inner.parts(root, &holders).await {
                let bytes: u64 = parts.iter().map(|part| part.len() as u64).sum();
                inner.counters.bytes_index_peers.add(bytes);
                info!(%blob, peer = ?holders.first(), bytes, "index from a peer");
                return Some((root.clone(), parts));
            }
        }
        None
    }

    /// A manifest, index or configuration from a peer that has it.
    pub async fn document_from_peers(&self, digest: &Digest) -> Option<Bytes> {
        let inner = &self.inner;
        let want = Want::Document { digest: *digest };
        inner.settle().await;
        let mut answers = inner.ask_everybody(&want);
        let deadline = Instant::now() + PATIENCE;
        while let Ok(Some((_, pieces))) = timeout_at(deadline, answers.next()).await {
            for piece in pieces {
                if let Content::Document { bytes, .. } = piece {
                    inner.counters.bytes_index_peers.add(bytes.len() as u64);
                    return Some(bytes);
                }
            }
        }
        None
    }

    /// What a name last stood for at the peers that know it: the digest of its
    /// manifest, of the one that looked it up last.
    pub async fn image_from_peers(&self, name: &str) -> Option<Digest> {
        let want = Want::Image { name: BlockHash::of(name.as_bytes()) };
        let found =
            self.inner.gather(&want).await.into_iter().filter_map(|(_, piece)| match piece {
                Content::Image { manifest, resolved_at, .. } => Some((resolved_at, manifest)),
                _ => None,
            });
        found.max_by_key(|(at, _)| *at).map(|(_, manifest)| manifest)
    }
}

fn believable(inner: &Inner, root: &LayerRoot) -> Result<(), String> {
    let body = root.body();
    let parts = [body.tree, body.blocks, body.seek, body.skeleton];
    let bytes = parts.iter().try_fold(0u64, |sum, part| sum.checked_add(part.length));
    if bytes.is_none_or(|bytes| bytes > INDEX_MAX) {
        return Err("it is too large".into());
    }
    let builder = PeerId(*root.builder());
    let state = inner.state();
    let revoked = state.net.as_ref().is_none_or(|net| net.endpoint.is_revoked(&builder));
    if revoked { Err(format!("its builder {builder} was revoked")) } else { Ok(()) }
}

impl Inner {
    /// The roots that peers have of a blob's index, neighbours' first.
    async fn roots(self: &Arc<Self>, blob: &Digest) -> Vec<(PeerId, LayerRoot)> {
        self.find(blob).await;
        let found = self.gather(&Want::Roots { blob: *blob }).await;
        let root = |(peer, piece)| match piece {
            Content::Root { root, .. } => Some((peer, *root)),
            _ => None,
        };
        let mut roots: Vec<_> = found.into_iter().filter_map(root).collect();
        // Whoever answers first, what a neighbour has is taken from it.
        let order = self.reachable();
        roots.sort_by_key(|(peer, _)| order.iter().position(|there| there == peer));
        roots
    }

    /// What peers answer, until all have, or some have and the others are late.
    async fn gather(self: &Arc<Self>, want: &Want) -> Vec<(PeerId, Content)> {
        self.settle().await;
        let mut answers = self.ask_everybody(want);
        let mut deadline = Instant::now() + PATIENCE;
        let mut found = Vec::new();
        while let Ok(Some((peer, pieces))) = timeout_at(deadline, answers.next()).await {
            if !pieces.is_empty() {
                deadline = deadline.min(Instant::now() + GRACE);
            }
            found.extend(pieces.into_iter().map(|piece| (peer, piece)));
        }
        found
    }

    fn ask_everybody<'a>(
        self: &'a Arc<Self>,
        want: &'a Want,
    ) -> FuturesUnordered<impl Future<Output = (PeerId, Vec<Content>)> + use<'a>> {
        let ask = |peer: PeerId| async move {
            (peer, self.ask_all(&peer, want).await.unwrap_or_default())
        };
        self.reachable().into_iter().map(ask).collect()
    }

    fn is_near(&self, peer: &PeerId) -> bool {
        let state = self.state();
        let peer = state.net.as_ref().and_then(|net| net.peers.get(peer));
        peer.is_some_and(|peer| peer.near == Near::Lan)
    }

    /// Peers that can be asked, neighbours first.
    fn reachable(&self) -> Vec<PeerId> {
        let state = self.state();
        let peers = state.net.iter().flat_map(|net| &net.peers);
        let mut there: Vec<(bool, PeerId)> = peers
            .filter(|(_, peer)| peer.news.is_some())
            .map(|(id, peer)| (peer.near == Near::Remote, *id))
            .collect();
        there.sort_unstable();
        there.into_iter().take(ASKED_MAX).map(|(_, id)| id).collect()
    }

    /// The four parts of an index, each from the first of the holders that gives it.
    async fn parts(self: &Arc<Self>, root: &LayerRoot, holders: &[PeerId]) -> Option<IndexParts> {
        let body = root.body();
        let mut parts = IndexParts::default();
        for (bytes, part) in
            parts.iter_mut().zip([body.tree, body.blocks, body.seek, body.skeleton])
        {
            let mut found = None;
            for peer in holders {
                match self.part(peer, &part).await {
                    Ok(bytes) => {
                        found = Some(bytes);
                        break;
                    }
                    Err(why) => warn!(?peer, part = %part.id, ?why, "part of an index not had"),
                }
            }
            *bytes = found?;
        }
        Some(parts)
    }

    /// An object of that name and length: its block list, which its name vouches
    /// for, and then its blocks, which the list does.
    async fn part(self: &Arc<Self>, peer: &PeerId, part: &PartRef) -> Result<Vec<u8>, Unanswered> {
        if part.length == 0 {
            return Ok(Vec::new());
        }
        let want = Want::Spec { object: part.id };
        let spec = self.ask_all(peer, &want).await?.into_iter().find_map(|piece| match piece {
            Content::Spec { spec, .. } => Some(spec),
            _ => None,
        });
        let spec: Arc<ObjectSpec> = spec.ok_or(Unanswered::Gone)?;
        let count = spec.block_count();
        if spec.length() != part.length || count > BLOCKS_MAX {
            return Err(Unanswered::Gone);
        }
        let runs = (0..count.div_ceil(RUN)).map(|n| n * RUN..count.min((n + 1) * RUN));
        let asked = runs.map(|blocks| {
            let want = Want::Blocks { object: part.id, spec: Arc::clone(&spec), blocks };
            async move { self.ask_all(peer, &want).await }
        });
        let mut answers = futures_util::stream::iter(asked).buffered(RUNS);
        // What has come is what it was announced to be: memory grows with it.
        let mut bytes = Vec::new();
        while let Some(answer) = answers.next().await {
            let mut blocks: Vec<_> = answer?
                .into_iter()
                .filter_map(|piece| match piece {
                    Content::Block { index, block, .. } => Some((index, block)),
                    _ => None,
                })
                .collect();
            blocks.sort_unstable_by_key(|(index, _)| *index);
            for (index, block) in blocks {
                let at = spec.block(index).map(|entry| entry.offset);
                if at != Some(bytes.len() as u64) {
                    return Err(Unanswered::Gone);
                }
                bytes.extend_from_slice(block.data());
            }
        }
        if bytes.len() as u64 == part.length { Ok(bytes) } else { Err(Unanswered::Gone) }
    }
}
