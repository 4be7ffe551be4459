//! Hostile frames on a tunnel: what is taken comes back the same, byte by byte.
#![no_main]

use libfuzzer_sys::fuzz_target;
use peersync::wire::{fuzz_frames, fuzz_message};

fuzz_target!(|data: &[u8]| {
    let Some((kind, rest)) = data.split_first() else { return };
    // A stream of frames, or one message whose header is right.
    if *kind == 0 { fuzz_frames(rest) } else { fuzz_message(data) }
});
