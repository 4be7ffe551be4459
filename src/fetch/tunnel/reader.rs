//! Reads frames, and sorts what they bring.

use std::io;
use std::sync::Arc;

use bytes::BufMut;
use tokio::io::AsyncReadExt;

use super::link::BoxRead;
use super::session::Session;
use super::{Ended, EventKind, Fault};
use crate::wire::{Class, Features, HEADER, Header, Kind, Message, Refusal, WireError};

/// Bytes of content after which progress is told, if its piece is not whole yet.
const PROGRESS: u32 = 64 << 10;
/// Longest pause that a busy peer may ask for, in milliseconds.
const RETRY_MAX: u32 = 30_000;

/// Reads one lane until the session ends or breaks. Says why.
pub(super) async fn run(session: Arc<Session>, mut io: BoxRead) -> Ended {
    let mut body = Vec::new();
    loop {
        let mut head = [0; HEADER];
        if let Err(error) = io.read_exact(&mut head).await {
            return broken(&error);
        }
        let header = match Header::decode(&head) {
            Ok(header) => header,
            Err(error) => return error.into(),
        };
        let done = match header.kind {
            Some(Kind::Data) => data(&session, &mut io, header.length).await,
            Some(kind) => {
                body.resize(header.length as usize, 0);
                match io.read_exact(&mut body).await {
                    Ok(_) => message(&session, kind, &body).await,
                    Err(error) => Err(broken(&error)),
                }
            }
            None => skip(&session, &mut io, header.length).await,
        };
        if let Err(ended) = done {
            return ended;
        }
    }
}

fn broken(error: &io::Error) -> Ended {
    if let Some(why) = super::quic::closed_by_peer(error) {
        return Ended::ByPeer(why);
    }
    match error.kind() {
        io::ErrorKind::UnexpectedEof => Ended::Broken("the peer went away".into()),
        _ => Ended::Broken(error.to_string()),
    }
}

impl From<WireError> for Ended {
    fn from(error: WireError) -> Self {
        Self::Fault { fault: Fault::Protocol, detail: error.to_string() }
    }
}

impl From<super::AnswerError> for Ended {
    fn from(error: super::AnswerError) -> Self {
        Self::Fault { fault: Fault::Protocol, detail: error.to_string() }
    }
}

fn flood(_: Refusal) -> Ended {
    Ended::Fault { fault: Fault::Flood, detail: "too many messages".into() }
}

/// A frame that is not known, and may be skipped.
async fn skip(session: &Session, io: &mut BoxRead, length: u32) -> Result<(), Ended> {
    session.watch().news(session.now(), u64::from(length)).map_err(flood)?;
    let mut rest = io.take(u64::from(length));
    match tokio::io::copy(&mut rest, &mut tokio::io::sink()).await {
        Ok(skipped) if skipped == u64::from(length) => {
            session.watch().heard(session.now());
            Ok(())
        }
        Ok(_) => Err(Ended::Broken("the peer went away".into())),
        Err(error) => Err(broken(&error)),
    }
}

/// Bytes of content: straight to where they belong.
async fn data(session: &Session, io: &mut BoxRead, length: u32) -> Result<(), Ended> {
    let id = io.read_u64_le().await.map_err(|error| broken(&error))?;
    let len = length.checked_sub(8).ok_or(WireError::Truncated)? as usize;
    let mut buffer = session.inbox().data(id, len)?;
    let end = buffer.len() + len;
    while buffer.len() < end {
        let left = end - buffer.len();
        let read = io.read_buf(&mut (&mut buffer).limit(left)).await;
        match read {
            Ok(0) => return Err(Ended::Broken("the peer went away".into())),
            Ok(_) => {}
            Err(error) => return Err(broken(&error)),
        }
    }
    session.note_received(len as u64);
    let arrived = session.inbox().filled(id, buffer);
    let Some(arrived) = arrived else {
        session.emit_progress(id, PROGRESS.min(len as u32));
        return Ok(());
    };
    let (request, class, wire) = (arrived.request, arrived.class, arrived.wire_len());
    if class != Class::Urgent {
        session.throttle(wire.into()).await;
    }
    let hold = session.hold(arrived.len()).await;
    let kind = match arrived.verify() {
        Ok(content) => EventKind::Content { request, class, content, wire, hold },
        Err(wrong) => EventKind::Wrong(wrong),
    };
    session.emit(kind).await;
    Ok(())
}

async fn message(session: &Session, kind: Kind, body: &[u8]) -> Result<(), Ended> {
    let now = session.now();
    if kind.is_news() {
        session.watch().news(now, body.len() as u64).map_err(flood)?;
    }
    let message = Message::decode(kind, body)?;
    session.watch().heard(now);
    match message {
        Message::Ping(number) => session.reply(&Message::Pong(number))?,
        Message::Pong(number) => {
            let rtt = session.watch().pong(now, number);
            if let Some(rtt) = rtt {
                session.emit(EventKind::Rtt(rtt)).await;
            }
        }
        Message::Close(why) => return Err(Ended::ByPeer(why)),
        Message::Head(head) => session.inbox().head(head)?,
        Message::NotHave { request, first, count } => {
            let wanted = session.inbox().not_have(request, first, count)?;
            session.watch().settled(now);
            if wanted {
                let numbers = first..first.saturating_add(u64::from(count));
                session.emit(EventKind::NotHave { request, numbers }).await;
            }
        }
        Message::Busy { request, retry_ms } => {
            let ended = session.end_request(request)?;
            let retry = std::time::Duration::from_millis(retry_ms.min(RETRY_MAX).into());
            if !ended.cancelled {
                session.emit(EventKind::Busy { request, retry }).await;
            }
        }
        Message::End { request, end } => {
            let ended = session.end_request(request)?;
            if !ended.cancelled {
                session.emit_end(request, end, ended.missing).await;
            }
        }
        Message::Request(request) => {
            let known = request.extent.needs(session.features());
            if !known || !session.serve().push(request) {
                session.watch().refused(now).map_err(flood)?;
                session.busy(request.id)?;
            } else {
                session.serve_changed();
            }
        }
        Message::Cancel(request) => {
            session.serve().cancel(request);
            session.serve_changed();
        }
        Message::Hello(_) | Message::Refuse(_) => {
            return Err(WireError::Invalid("a second hello").into());
        }
        news => session.emit(EventKind::News(news)).await,
    }
    Ok(())
}

/// What an extent asks of whoever serves it.
trait Needs {
    fn needs(&self, features: Features) -> bool;
}

impl Needs for crate::wire::Extent {
    fn needs(&self, features: Features) -> bool {
        !matches!(self, Self::Items { .. }) || features.has(Features::PASSES)
    }
}
