//! Entries for fuzzers: bytes in, and a panic if an invariant does not hold.

use super::frame::{HEADER, Header};
use super::have::Ledger;
use super::hello::Hello;
use super::message::Message;

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
