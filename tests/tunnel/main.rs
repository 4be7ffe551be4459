//! Tunnels, from outside: real sockets, both transports, good and bad peers.

#![allow(missing_docs, unreachable_pub)]

mod content;
mod handshake;
mod hostile;
mod life;
mod node;
mod raw;
mod tls;
mod transfer;
