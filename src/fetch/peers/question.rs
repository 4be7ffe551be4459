//! Questions to peers beside the scheduler's: roots and parts of an index, and
//! documents of images. Whoever asks waits for the answer; nothing is planned.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::timeout;
use tracing::warn;

use crate::fetch::engine::Inner;
use crate::fetch::schedule::RequestId;
use crate::fetch::tunnel::{Content, EventKind, Hold, RequestError, TunnelId, Want};
use crate::types::PeerId;
use crate::wire::{Class, Refusal};

/// Questions are named from here on; the scheduler counts its requests from 0.
const FIRST: RequestId = 1 << 63;
/// A peer that brings nothing for this long is not waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// A tunnel that is busy, or full, is asked so often, with this pause.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(50);
/// A peer whose answers were wrong so often is banned, for this long.
const WRONG_MAX: u32 = 2;
const BAN: Duration = Duration::from_secs(24 * 3600);

/// What comes in answer. Its number is bounded by what one request can bring,
/// its memory by the tunnel's share, which the hold is part of.
#[derive(Debug)]
pub(super) enum Heard {
    /// Something verified.
    Content(Content, Hold),
    /// There is no more.
    Over,
    /// Nothing now.
    Busy,
}

/// Questions that are open, on all tunnels.
#[derive(Default)]
pub(super) struct Questions {
    count: u64,
    open: HashMap<RequestId, (TunnelId, UnboundedSender<Heard>)>,
}

impl Questions {
    /// A tunnel is gone: who waits on it hears the end of its channel.
    pub(super) fn forget_tunnel(&mut self, tunnel: TunnelId) {
        self.open.retain(|_, (on, _)| *on != tunnel);
    }
}

/// A question that is open; it is taken back when dropped.
pub(super) struct Question {
    inner: Weak<Inner>,
    request: RequestId,
    tunnel: TunnelId,
    heard: UnboundedReceiver<Heard>,
}

/// Why a question was not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unanswered {
    /// The peer is gone, or what it has is not what was asked.
    Gone,
    /// It has too much to do.
    Busy,
}

impl Question {
    /// The next piece of the answer; `None`: there is no more.
    pub(super) async fn next(&mut self) -> Result<Option<Content>, Unanswered> {
        match timeout(PATIENCE, self.heard.recv()).await {
            Ok(Some(Heard::Content(content, hold))) => {
                drop(hold);
                Ok(Some(content))
            }
            Ok(Some(Heard::Over)) => Ok(None),
            Ok(Some(Heard::Busy)) => Err(Unanswered::Busy),
            Ok(None) | Err(_) => Err(Unanswered::Gone),
        }
    }
}

impl Drop for Question {
    fn drop(&mut self) {
        let Some(inner) = self.inner.upgrade() else { return };
        let mut state = inner.state();
        let Some(net) = state.net.as_mut() else { return };
        if net.questions.open.remove(&self.request).is_some()
            && let Some(tunnel) = net.tunnels.get(&self.tunnel)
        {
            tunnel.cancel(self.request);
        }
    }
}

impl Inner {
    /// Asks a peer; tries again for a while where it has too much to do.
    pub(super) async fn ask(
        self: &Arc<Self>,
        peer: &PeerId,
        want: &Want,
    ) -> Result<Question, Unanswered> {
        for _ in 0..TRIES {
            match self.ask_once(peer, want.clone()) {
                Err(Unanswered::Busy) => tokio::time::sleep(PAUSE).await,
                asked => return asked,
            }
        }
        Err(Unanswered::Busy)
    }

    /// All pieces of an answer, which must be few.
    pub(super) async fn ask_all(
        self: &Arc<Self>,
        peer: &PeerId,
        want: &Want,
    ) -> Result<Vec<Content>, Unanswered> {
        let mut tries = 0;
        loop {
            let mut question = self.ask(peer, want).await?;
            let mut pieces = Vec::new();
            let end = loop {
                match question.next().await {
                    Ok(Some(piece)) => pieces.push(piece),
                    Ok(None) => break Ok(pieces),
                    Err(error) => break Err(error),
                }
            };
            match end {
                Err(Unanswered::Busy) if tries < TRIES => {
                    tries += 1;
                    tokio::time::sleep(PAUSE).await;
                }
                end => return end,
            }
        }
    }

    fn ask_once(self: &Arc<Self>, peer: &PeerId, want: Want) -> Result<Question, Unanswered> {
        let mut state = self.state();
        let net = state.net.as_mut().ok_or(Unanswered::Gone)?;
        let tunnel = net.peers.get(peer).and_then(|peer| peer.news).ok_or(Unanswered::Gone)?;
        let link = net.tunnels.get(&tunnel).ok_or(Unanswered::Gone)?;
        let request = FIRST + net.questions.count;
        net.questions.count += 1;
        link.request(request, Class::Urgent, want).map_err(|error| match error {
            RequestError::Full => Unanswered::Busy,
            RequestError::Closed | RequestError::Malformed | RequestError::Duplicate => {
                Unanswered::Gone
            }
        })?;
        let (sender, heard) = unbounded_channel();
        net.questions.open.insert(request, (tunnel, sender));
        Ok(Question { inner: Arc::downgrade(self), request, tunnel, heard })
    }

    /// Takes in what answers a question; gives back what is the scheduler's.
    pub(super) fn on_answer(self: &Arc<Self>, peer: PeerId, event: EventKind) -> Option<EventKind> {
        let request = match &event {
            EventKind::Content { request, .. }
            | EventKind::Progress { request, .. }
            | EventKind::NotHave { request, .. }
            | EventKind::Busy { request, .. }
            | EventKind::Done { request }
            | EventKind::Failed { request } => *request,
            EventKind::Wrong(wrong) => wrong.request,
            _ => return Some(event),
        };
        if request < FIRST {
            return Some(event);
        }
        let mut state = self.state();
        let net = state.net.as_mut()?;
        let heard = match event {
            EventKind::Content { content, hold, .. } => Heard::Content(content, hold),
            EventKind::Busy { .. } => Heard::Busy,
            EventKind::Done { .. } | EventKind::Failed { .. } => Heard::Over,
            EventKind::Wrong(_) => {
                warn!(?peer, "an answer that is not what was asked");
                if let Some(entry) = net.peers.get_mut(&peer) {
                    entry.wrong += 1;
                    if entry.wrong >= WRONG_MAX {
                        net.endpoint.ban(peer, BAN);
                    } else {
                        net.endpoint.close_peer(&peer, Refusal::Protocol);
                    }
                }
                // Whoever waits hears the end of its channel.
                net.questions.open.remove(&request);
                return None;
            }
            _ => return None,
        };
        let last = !matches!(heard, Heard::Content(..));
        if let Some((_, sender)) = net.questions.open.get(&request) {
            let _ = sender.send(heard);
        }
        if last {
            net.questions.open.remove(&request);
        }
        None
    }
}
