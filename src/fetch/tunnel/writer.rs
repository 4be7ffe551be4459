//! Writes frames: the most urgent lane first, content in turns of 64 KiB.

use std::io::{self, IoSlice};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc::Receiver;
use tokio::time::timeout;

use crate::wire::{DATA_MAX, HEADER, Header, Kind, RequestId};

/// Small frames that are put together, in bytes: a TLS record.
const BATCH: usize = 16 << 10;

/// What is to be written.
#[derive(Debug)]
pub(super) enum Out {
    /// Frames as they are.
    Frames(Vec<u8>),
    /// A piece of content: the frame of its head, and its bytes.
    Piece {
        /// Of which request.
        request: RequestId,
        /// The head's frame.
        head: Vec<u8>,
        /// What follows it as data.
        body: Bytes,
    },
    /// Nothing comes after this.
    End,
}

/// A piece on its way.
struct Rest {
    request: RequestId,
    head: Vec<u8>,
    body: Bytes,
}

/// Why writing ended.
#[derive(Debug)]
pub(super) enum WriteEnd {
    /// It was told to.
    Told,
    /// The connection broke.
    Io(io::Error),
    /// The peer took nothing for too long.
    Stalled,
}

/// Writes what comes out of the queues, the first one first. Between two turns of
/// a later one, everything in the earlier ones goes.
pub(super) async fn run<W: AsyncWrite + Unpin>(
    mut io: W,
    mut queues: Vec<Receiver<Out>>,
    patience: Duration,
) -> WriteEnd {
    let mut rests: Vec<Option<Rest>> = queues.iter().map(|_| None).collect();
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        let mut idle = true;
        for (queue, rest) in queues.iter_mut().zip(&mut rests) {
            batch.clear();
            let mut told = false;
            while rest.is_none() && batch.len() < BATCH {
                match queue.try_recv() {
                    Ok(Out::Frames(frames)) => batch.extend(frames),
                    Ok(Out::Piece { request, head, body }) => {
                        *rest = Some(Rest { request, head, body });
                    }
                    Ok(Out::End) => {
                        told = true;
                        break;
                    }
                    Err(_) => break,
                }
            }
            if batch.is_empty() && rest.is_none() && !told {
                continue;
            }
            idle = false;
            let turn = async {
                match rest {
                    Some(piece) => {
                        let done = turn(&mut io, &mut batch, piece).await?;
                        if done {
                            *rest = None;
                        }
                    }
                    None => io.write_all(&batch).await?,
                }
                if told {
                    io.flush().await?;
                    let _ = io.shutdown().await;
                }
                Ok(())
            };
            match timeout(patience, turn).await {
                Ok(Ok(())) if told => return WriteEnd::Told,
                Ok(Ok(())) => {}
                Ok(Err(error)) => return WriteEnd::Io(error),
                Err(_) => return WriteEnd::Stalled,
            }
            break;
        }
        if idle {
            match timeout(patience, io.flush()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return WriteEnd::Io(error),
                Err(_) => return WriteEnd::Stalled,
            }
            let Some((n, out)) = next(&mut queues).await else { return WriteEnd::Told };
            match out {
                Out::Frames(frames) => {
                    // Goes through the same turn as the rest.
                    rests[n] = Some(Rest { request: 0, head: frames, body: Bytes::new() });
                }
                Out::Piece { request, head, body } => {
                    rests[n] = Some(Rest { request, head, body });
                }
                Out::End => {
                    let _ = timeout(patience, io.shutdown()).await;
                    return WriteEnd::Told;
                }
            }
        }
    }
}

/// The next thing in any queue. `None`: all are closed.
async fn next(queues: &mut [Receiver<Out>]) -> Option<(usize, Out)> {
    std::future::poll_fn(|context| {
        let mut open = false;
        for (n, queue) in queues.iter_mut().enumerate() {
            match queue.poll_recv(context) {
                std::task::Poll::Ready(Some(out)) => return Some((n, out)).into(),
                std::task::Poll::Ready(None) => {}
                std::task::Poll::Pending => open = true,
            }
        }
        if open { std::task::Poll::Pending } else { None.into() }
    })
    .await
}

/// Writes what is in the batch and the next stretch of a piece; whether that was
/// its last.
async fn turn<W: AsyncWrite + Unpin>(
    io: &mut W,
    batch: &mut Vec<u8>,
    piece: &mut Rest,
) -> io::Result<bool> {
    batch.append(&mut piece.head);
    if piece.body.is_empty() {
        io.write_all(batch).await?;
        return Ok(true);
    }
    let data = piece.body.split_to(piece.body.len().min(DATA_MAX));
    batch.extend(Header::encode(Kind::Data, 8 + data.len()));
    batch.extend(piece.request.to_le_bytes());
    write_both(io, batch, &data).await?;
    // What TLS has encrypted goes to the kernel before anything else is chosen: the
    // next turn may be an urgent piece's, and would wait behind it.
    io.flush().await?;
    Ok(piece.body.is_empty())
}

/// Writes two stretches of bytes as one, without putting them together first.
async fn write_both<W: AsyncWrite + Unpin>(
    io: &mut W,
    mut first: &[u8],
    mut second: &[u8],
) -> io::Result<()> {
    while !first.is_empty() {
        let written = io.write_vectored(&[IoSlice::new(first), IoSlice::new(second)]).await?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        let from_first = written.min(first.len());
        first = &first[from_first..];
        second = &second[written - from_first..];
    }
    io.write_all(second).await
}

const _: () = assert!(HEADER + 8 + DATA_MAX == 64 << 10);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Message;
    use tokio::io::AsyncReadExt;
    use tokio::sync::mpsc::channel;

    const PATIENCE: Duration = Duration::from_secs(5);

    fn piece(request: u64, len: usize) -> Out {
        let head = Message::Ping(request).to_frame();
        Out::Piece { request, head, body: vec![request as u8; len].into() }
    }

    /// Kinds and lengths of all frames in the bytes.
    fn frames(mut bytes: &[u8]) -> Vec<(Kind, u32, u64)> {
        let mut out = Vec::new();
        while let Some((head, rest)) = bytes.split_first_chunk::<HEADER>() {
            let header = Header::decode(head).expect("a frame");
            let (body, rest) = rest.split_at(header.length as usize);
            let id = u64::from_le_bytes(body[..8].try_into().expect("a number"));
            out.push((header.kind.expect("known"), header.length, id));
            bytes = rest;
        }
        out
    }

    #[tokio::test]
    async fn an_urgent_piece_waits_for_one_turn_of_a_bulk_one() {
        let (near, mut far) = tokio::io::duplex(64 << 10);
        let (urgent, urgent_queue) = channel(4);
        let (bulk, bulk_queue) = channel(4);
        bulk.send(piece(1, 1 << 20)).await.expect("room");
        let writer = tokio::spawn(run(near, vec![urgent_queue, bulk_queue], PATIENCE));
        // The pipe holds one turn. Once the first bytes are here, the writer is in
        // its second turn at most.
        let mut bytes = vec![0; 100];
        far.read_exact(&mut bytes).await.expect("bytes");
        urgent.send(piece(2, 1000)).await.expect("room");
        bulk.send(Out::End).await.expect("room");
        far.read_to_end(&mut bytes).await.expect("bytes");
        assert!(matches!(writer.await, Ok(WriteEnd::Told)));
        let order: Vec<u64> =
            frames(&bytes).iter().filter(|f| f.0 == Kind::Data).map(|f| f.2).collect();
        let at = order.iter().position(|id| *id == 2).expect("urgent data");
        assert!(at <= 3, "{order:?}");
        let bulk: u32 =
            frames(&bytes).iter().filter(|f| f.0 == Kind::Data && f.2 == 1).map(|f| f.1 - 8).sum();
        assert_eq!(bulk, 1 << 20);
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_nothing_is_given_up() {
        let (near, far) = tokio::io::duplex(1000);
        let (bulk, queue) = channel(4);
        bulk.send(piece(1, 1 << 20)).await.expect("room");
        let end = run(near, vec![queue], PATIENCE).await;
        assert!(matches!(end, WriteEnd::Stalled));
        drop(far);
    }
}
