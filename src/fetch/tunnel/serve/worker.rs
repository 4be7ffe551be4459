//! Answers requests: waits for its turn, reads, sends. Two for each tunnel, one of
//! them for urgent requests only.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::mpsc::Sender;
use tokio::time::timeout;

use super::compress::{Worth, compress};
use super::queue::{Lane, RETRY_MS, Step};
use super::{BlockServer, Served};
use crate::fetch::tunnel::session::Session;
use crate::fetch::tunnel::writer::Out;
use crate::types::{BLOCK_MAX, ObjectId, PeerId};
use crate::wire::{
    Encoding, End, Extent, Head, Message, PART_SPEC_MAX, Place, Request, RequestId, encode_image,
};

/// What a block is taken to be long before it is read, in bytes.
const GUESS: u32 = 256 << 10;

/// The message that puts off a request.
pub(in crate::fetch::tunnel) fn busy(request: RequestId) -> Message {
    Message::Busy { request, retry_ms: RETRY_MS }
}

/// Serves one lane until the tunnel is closed.
pub(in crate::fetch::tunnel) async fn run(session: Arc<Session>, lane: Lane, out: Sender<Out>) {
    let worth = Arc::new(Mutex::new(Worth::default()));
    loop {
        let step = session.serve().next(lane);
        let sent = match step {
            None => {
                session.serve_change(lane).await;
                Ok(())
            }
            Some(Step::End { request, cancelled }) => {
                let end = if cancelled { End::Cancelled } else { End::Done };
                say(&out, &Message::End { request, end }).await
            }
            Some(Step::Send { request, index }) => {
                piece(&session, &out, &worth, request, index).await
            }
        };
        if sent.is_err() {
            return;
        }
    }
}

/// The tunnel's writer is gone.
struct Gone;

async fn say(out: &Sender<Out>, message: &Message) -> Result<(), Gone> {
    out.send(Out::Frames(message.to_frame())).await.map_err(|_| Gone)
}

/// Something read, as it goes on the wire.
struct Piece {
    index: u64,
    len: u32,
    place: Option<Place>,
    encoding: Encoding,
    body: Bytes,
}

async fn piece(
    session: &Arc<Session>,
    out: &Sender<Out>,
    worth: &Arc<Mutex<Worth>>,
    request: Request,
    index: u64,
) -> Result<(), Gone> {
    let shared = session.shared();
    let peer = crate::fetch::tunnel::Tunnel::info(&**session).peer;
    let guess = match request.extent {
        Extent::Part { len, .. } => len,
        _ => GUESS,
    };
    let turn = shared.turns.wait(peer, request.class, guess.into());
    let Ok(turn) = timeout(shared.patience.turn, turn).await else {
        // Better an honest word than a peer that waits in vain.
        session.serve().forget(request.id);
        return say(out, &busy(request.id)).await;
    };
    let (server, worth) = (Arc::clone(&shared.server), Arc::clone(worth));
    let reading =
        tokio::task::spawn_blocking(move || read(&*server, &peer, &request, index, &worth));
    let read = reading.await.unwrap_or(Served::Failed);
    if !session.serve().is_wanted(request.id) {
        return Ok(());
    }
    match read {
        Served::Yes(pieces) => {
            turn.spent(pieces.iter().map(|piece| piece.body.len() as u64).sum());
            for Piece { index, len, place, encoding, body } in pieces {
                let head = Head { request: request.id, index, len, encoding, place };
                session.note_sent(body.len() as u64);
                let head = Message::Head(head).to_frame();
                let piece = Out::Piece { request: request.id, head, body };
                out.send(piece).await.map_err(|_| Gone)?;
            }
            Ok(())
        }
        Served::No => {
            turn.spent(0);
            say(out, &Message::NotHave { request: request.id, first: index, count: 1 }).await
        }
        Served::Failed => {
            turn.spent(0);
            session.serve().forget(request.id);
            say(out, &Message::End { request: request.id, end: End::Failed }).await
        }
    }
}

/// Reads what is asked for. May block.
fn read(
    server: &dyn BlockServer,
    peer: &PeerId,
    request: &Request,
    index: u64,
    worth: &Mutex<Worth>,
) -> Served<Vec<Piece>> {
    let plain = |index, body: Bytes, place| Piece {
        index,
        len: body.len() as u32,
        place,
        encoding: Encoding::Raw,
        body,
    };
    // On thin lines blocks are asked for in parts: these are compressed, too.
    let packed = |object: &ObjectId, number: u32, body: Bytes| {
        let mut piece = plain(index, body, None);
        let lock = || worth.lock().unwrap_or_else(PoisonError::into_inner);
        if request.zstd && lock().try_it(object, number) {
            let packed = compress(&piece.body);
            lock().note(object, packed.is_some());
            if let Some(packed) = packed {
                piece.encoding = Encoding::Zstd(packed.len() as u32);
                piece.body = packed.into();
            }
        }
        piece
    };
    match request.extent {
        Extent::Blocks { object, .. } => {
            let Ok(number) = u32::try_from(index) else { return Served::No };
            let block = server.block(peer, &object, number);
            block.map(|block| vec![packed(&object, number, block.data().clone())])
        }
        Extent::Part { object, offset, len, .. } => {
            let Ok(number) = u32::try_from(index) else { return Served::No };
            match server.block(peer, &object, number) {
                Served::Yes(block) => {
                    let (from, to) = (offset as usize, offset as usize + len as usize);
                    if to > block.data().len() {
                        return Served::No;
                    }
                    Served::Yes(vec![packed(&object, number, block.data().slice(from..to))])
                }
                Served::No => Served::No,
                Served::Failed => Served::Failed,
            }
        }
        Extent::Items { blob, .. } => server.item(peer, &blob, index).map(|item| {
            let place = Some(item.place());
            vec![plain(index, item.block.data().clone(), place)]
        }),
        Extent::Roots { blob } => {
            let roots = server.roots(peer, &blob);
            if roots.is_empty() {
                return Served::No;
            }
            let roots = roots.iter().take(crate::fetch::tunnel::inbox::ROOTS_MAX as usize).zip(0..);
            Served::Yes(roots.map(|(root, n)| plain(n, root.encode().into(), None)).collect())
        }
        Extent::Document { digest } => match server.document(peer, &digest) {
            // An empty one can't be announced, and is no document.
            Served::Yes(bytes) if bytes.is_empty() || bytes.len() > BLOCK_MAX as usize => {
                Served::No
            }
            read => read.map(|bytes| vec![plain(0, bytes.into(), None)]),
        },
        Extent::Image { name } => server.image(peer, &name).map(|(manifest, resolved_at)| {
            vec![plain(0, encode_image(&manifest, resolved_at).into(), None)]
        }),
        Extent::Spec { object } => match server.spec(peer, &object) {
            Served::Yes(spec) => {
                let bytes = spec.encode();
                if bytes.len() > PART_SPEC_MAX as usize {
                    return Served::No;
                }
                Served::Yes(vec![plain(0, bytes.into(), None)])
            }
            Served::No => Served::No,
            Served::Failed => Served::Failed,
        },
    }
}

impl<T> Served<T> {
    fn map<U>(self, with: impl FnOnce(T) -> U) -> Served<U> {
        match self {
            Self::Yes(value) => Served::Yes(with(value)),
            Self::No => Served::No,
            Self::Failed => Served::Failed,
        }
    }
}
