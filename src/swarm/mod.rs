//! How nodes find each other, with no central server.
//!
//! - `beacon`: what a node calls into its LAN, and what it makes of others' calls;
//! - `neighbours`: whom of those it has heard it knows, bounded;
//! - `multicast`: the sockets around these two;
//! - `elect`: which node of a partition is its tracker.
//!
//! All but `multicast` are values and machines that take the time as an argument.
//! This module knows neither the store nor the fetch engine: the composition root
//! carries what it finds to them.

pub mod beacon;
pub mod dht;
pub mod elect;
pub mod multicast;
pub mod neighbours;
pub mod overlay;
