//! Who this node is, and who is of its swarm.
//!
//! A node is its ed25519 key, made on first start. A swarm is a key that its
//! nodes share: closed by default where there is one. Several keys can be valid
//! at once, so that they can be changed without a day on which half the nodes
//! don't know each other: give every node the new key as its second, then as its
//! first, then take the old one away. A node that must go without changing the
//! key is revoked.

mod membership;
mod node;
mod swarm;

pub use membership::{Denied, Door, Membership, Revoked, RevokedError};
pub use node::{KeyError, NodeKey};
pub use swarm::{SWARM_KEYS_MAX, SwarmKey, SwarmKeyError, SwarmKeys};
