//! Which transport to try first, and when the other. Pure.
//!
//! TCP inside a LAN, where it costs less CPU; QUIC elsewhere, where it loses less
//! to lost packets. Both are raced, the first one with a head start, since
//! networks that drop UDP do so in silence; what worked is remembered.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use super::{Near, Transport};

/// Head start of the transport that is tried first.
pub const HEAD_START: Duration = Duration::from_millis(400);
/// After this long, the usual order is tried again: networks change.
const MEMORY: Duration = Duration::from_secs(600);
/// Addresses that are remembered.
const ADDRESSES_MAX: usize = 4096;

/// What worked where.
#[derive(Debug, Default)]
pub(super) struct Paths {
    worked: HashMap<SocketAddr, (Transport, Duration)>,
}

impl Paths {
    /// Transports in the order in which to try them.
    pub(super) fn order(&self, now: Duration, address: &SocketAddr, near: Near) -> [Transport; 2] {
        let usual = match near {
            Near::Lan => [Transport::Tcp, Transport::Quic],
            Near::Remote => [Transport::Quic, Transport::Tcp],
        };
        match self.worked.get(address) {
            Some((worked, at)) if *worked != usual[0] && now < *at + MEMORY => [usual[1], usual[0]],
            _ => usual,
        }
    }

    /// A tunnel was opened.
    pub(super) fn worked(&mut self, now: Duration, address: SocketAddr, transport: Transport) {
        if self.worked.len() >= ADDRESSES_MAX && !self.worked.contains_key(&address) {
            self.worked.retain(|_, (_, at)| now < *at + MEMORY);
            if self.worked.len() >= ADDRESSES_MAX {
                self.worked.clear();
            }
        }
        // The time counts from when the usual order was last tried and failed.
        let entry = self.worked.entry(address).or_insert((transport, now));
        if entry.0 != transport || now >= entry.1 + MEMORY {
            *entry = (transport, now);
        }
    }

    /// What worked does not any more.
    pub(super) fn failed(&mut self, address: &SocketAddr) {
        self.worked.remove(address);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn what_worked_goes_first_for_a_while() {
        let (mut paths, at) = (Paths::default(), "10.0.0.1:7400".parse().expect("address"));
        assert_eq!(paths.order(S, &at, Near::Lan)[0], Transport::Tcp);
        assert_eq!(paths.order(S, &at, Near::Remote)[0], Transport::Quic);
        paths.worked(S, at, Transport::Tcp);
        assert_eq!(paths.order(S * 2, &at, Near::Remote)[0], Transport::Tcp);
        paths.worked(S * 300, at, Transport::Tcp);
        assert_eq!(paths.order(S * 602, &at, Near::Remote)[0], Transport::Quic);
        paths.worked(S * 602, at, Transport::Tcp);
        assert_eq!(paths.order(S * 603, &at, Near::Remote)[0], Transport::Tcp);
        paths.failed(&at);
        assert_eq!(paths.order(S * 604, &at, Near::Remote)[0], Transport::Quic);
    }

    #[test]
    fn memory_is_bounded() {
        let mut paths = Paths::default();
        for n in 0..2 * ADDRESSES_MAX as u32 {
            paths.worked(S, SocketAddr::from((n.to_le_bytes(), 1)), Transport::Tcp);
        }
        assert!(paths.worked.len() <= ADDRESSES_MAX);
    }
}
