//! End to end: the built command against real registries, real images and real
//! FUSE, and against hosts and archives that no honest tool makes.
//!
//! The tests need root and `/dev/fuse`; see `tests/run`.

mod harness;

mod archives;
mod care;
mod commands;
mod compare;
mod copies;
mod crash;
mod daemon;
mod disk;
mod eviction;
mod hostile;
mod lazy;
mod models;
mod nasty;
mod operator;
mod peers;
mod posix;
mod registries;
mod store;
mod tracker;
mod trees;
mod users;
mod waiting;
