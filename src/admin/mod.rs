//! The control socket: how every command reaches the one process that owns a store;
//! and the HTTP endpoint for operators.
//!
//! Requests and events are lines of JSON. One request stands for one connection;
//! closing the connection withdraws it.

mod client;
mod http;
mod protocol;
mod server;

pub use client::{Client, ClientError, connect};
pub use http::{Vitals, serve_http};
pub use protocol::{
    Event, Failure, FailureKind, GcGroup, GcItem, GcReport, ImageInfo, LayerInfo, MountArgs,
    MountInfo, PeerInfo, PinInfo, Progress, PullReport, RememberedInfo, Request, SOCKET, Stage,
    Status, StoreInfo, SwarmNode, TrackerInfo,
};
pub use server::{Events, Service, serve};
