//! The registry client against Debian's `docker-registry`, filled by `skopeo`,
//! and against a server that lies, stalls and breaks off.
//!
//! Nothing here waits for time to pass: retries have no pause, clocks are
//! turned by hand, and what is waited for is an event.
#![cfg(feature = "node")]

mod auth;
mod documents;
mod fixture;
mod hostile;
mod mirrors;
mod push;
mod ranges;
mod real;
mod redirects;
mod retries;
