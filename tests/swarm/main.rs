//! Real engines, stores and tunnels on loopback, and a registry over HTTP, in one
//! process. Each test says where every byte must have come from, and does so once
//! more with the registry stopped.

#![allow(unreachable_pub)]

mod node;
mod registry;

mod faults;
mod lan;
mod manners;
mod sources;
mod table;
