//! A deterministic simulation of nodes, lines and a registry around the real
//! schedulers. The seed is printed with every failure.

#![allow(unreachable_pub)]

mod check;
#[path = "../virtual/clock.rs"]
mod clock;
mod judge;
mod layer;
mod net;
#[path = "../virtual/queue.rs"]
mod queue;
mod serve;
mod world;

mod again;
mod any_events;
mod basics;
mod faults;
mod mutations;
mod swarm;
