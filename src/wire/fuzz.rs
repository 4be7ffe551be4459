//! Entries for fuzzers: bytes in, and a panic if an invariant does not hold.

use super::frame::{HEADER, Header, Kind};
use super::have::Ledger;
use super::hello::{Binding, Hello, Role};
use super::message::Message;
use crate::types::PeerId;

/// A stream of frames as a peer could send it, read as a tunnel reads it.
///
/// # Panics
/// If what was read does not come back the same, or grows.
pub fn fuzz_frames(bytes: &[u8]) {
    let mut rest = bytes;
    let mut ledger = Ledger::default();
    while let Some((head, body)) = rest.split_first_chunk::<HEADER>() {
        let Ok(header) = Header::decode(head) else { return };
        let Some((body, next)) = body.split_at_checked(header.length as usize) else { return };
        if let Some(kind) = header.kind
            && let Ok(message) = Message::decode(kind, body)
        {
            let frame = message.to_frame();
            assert_eq!(Message::decode(kind, &frame[HEADER..]).as_ref(), Ok(&message));
            assert_eq!(frame.len(), HEADER + body.len(), "two ways to say {message:?}");
            if let Message::Have(have) = message {
                let _ = ledger.subscribe(have.home);
                let _ = ledger.apply(have, |_| Some(100));
            }
        }
        rest = next;
    }
}

/// One message: the first byte is its kind.
///
/// # Panics
/// As [`fuzz_frames`].
pub fn fuzz_message(bytes: &[u8]) {
    let Some((kind, body)) = bytes.split_first() else { return };
    let _ = Hello::check_version(body);
    let mut frame = Vec::with_capacity(HEADER + body.len());
    frame.extend((body.len() as u32).to_le_bytes());
    frame.extend([*kind, 0, 0, 0]);
    frame.extend(body);
    fuzz_frames(&frame);
    frame[5] = 1;
    fuzz_frames(&frame);
}

/// What a caller sends first, read as a listener reads it: the first byte says
/// whether the proof that the listener looks for is put into what comes.
///
/// # Panics
/// If somebody is taken for a member who has not proved it, or a member is not.
pub fn fuzz_handshake(bytes: &[u8]) {
    const KEY: [u8; 32] = [7; 32];
    let Some((member, bytes)) = bytes.split_first() else { return };
    let Some((head, body)) = bytes.split_first_chunk::<HEADER>() else { return };
    let Ok(Header { kind: Some(Kind::Hello), length }) = Header::decode(head) else { return };
    let Some(body) = body.get(..length as usize) else { return };
    if Hello::check_version(body).is_err() {
        return;
    }
    let Ok(Message::Hello(mut hello)) = Message::decode(Kind::Hello, body) else { return };
    let (caller, listener) = (PeerId([1; 32]), PeerId([2; 32]));
    let binding = Binding { exporter: [3; 32], caller, listener, prover: Role::Caller };
    let proof = binding.proof(&KEY);
    if member & 1 == 1
        && let Some(last) = hello.proofs.last_mut()
    {
        *last = proof;
    }
    let has_it = hello.proofs.contains(&proof);
    assert_eq!(binding.is_proved(&KEY, &hello.proofs), has_it);
    // A proof is of one connection, one end and one key.
    let sent_back = Binding { prover: Role::Listener, ..binding };
    let elsewhere = Binding { exporter: [4; 32], ..binding };
    assert!(!has_it || !sent_back.is_proved(&KEY, &[proof]));
    assert!(!has_it || !elsewhere.is_proved(&KEY, &[proof]));
    assert!(!has_it || !binding.is_proved(&[8; 32], &[proof]));
}
