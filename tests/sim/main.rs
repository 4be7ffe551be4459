//! A deterministic simulation of nodes, lines and a registry around the real
//! schedulers. The seed is printed with every failure.

#![allow(unreachable_pub)]

mod check;
mod net;
mod world;

mod basics;
mod tmp;
