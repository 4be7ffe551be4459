//! Hostile first words of a caller: nobody is let in who has not proved membership.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| peersync::wire::fuzz_handshake(data));
