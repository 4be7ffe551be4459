//! The control socket: how every command reaches the one process that owns a store.
//!
//! Requests and events are lines of JSON. One request stands for one connection;
//! closing the connection withdraws it.

mod client;
mod protocol;
mod server;

pub use client::{Client, ClientError, connect};
pub use protocol::{
    Event, Failure, FailureKind, ImageInfo, LayerInfo, MountArgs, MountInfo, PeerInfo, Progress,
    PullReport, Request, SOCKET, Stage, Status, StoreInfo, SwarmNode,
};
pub use server::{Events, Service, serve};
