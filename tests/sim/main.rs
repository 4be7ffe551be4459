//! A deterministic simulation of nodes, lines and a registry around the real
//! schedulers. The seed is printed with every failure.

#![allow(unreachable_pub)]

mod check;
mod judge;
mod layer;
mod net;
mod serve;
mod world;

mod again;
mod any_events;
mod basics;
mod faults;
mod mutations;
