//! How nodes find each other, with no central server.
//!
//! - `beacon`: what a node calls into its LAN, and what it makes of others' calls;
//! - `neighbours`: whom of those it has heard it knows, bounded;
//! - `multicast`: the sockets around these two;
//! - `elect`: which node of a partition is its tracker, with `claim`, the signatures;
//! - `tracker`: what a tracker knows of who holds what;
//! - `lookups`: questions to a tracker, and whether it is of use;
//! - `address`: which addresses are called because somebody named them;
//! - `history`: nodes that were good before, by network;
//! - `popularity`: which layers are rare, and who holds such;
//! - `differences`: how sets are told so that gaps show.
//!
//! All but `multicast` are values and machines that take the time as an argument.
//! This module knows neither the store nor the fetch engine: the composition root
//! carries what it finds to them.

pub mod address;
pub mod beacon;
pub mod claim;
pub mod dht;
pub mod differences;
pub mod elect;
pub mod history;
pub mod lookups;
pub mod multicast;
pub mod neighbours;
pub mod overlay;
pub mod popularity;
pub mod tracker;
