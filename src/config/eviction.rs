//! What copies are worth to a node.

use serde::Deserialize;

use super::ByteSize;

/// `[eviction]`
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct EvictionConfig {
    /// Seconds without use that halve the value of what was just used.
    pub horizon: u32,
    /// What a miss costs where the LAN has another copy, against 1 for the only one.
    pub lan_cost: f32,
    /// Bytes that could be moved in the time that asking for an object takes.
    pub overhead: ByteSize,
    /// Seconds without use after which a copy that a neighbour keeps goes even where
    /// there is room.
    pub spare_after: u32,
    /// Uses that a layer counts for which all images of the swarm contain.
    pub popularity: f32,
}

impl Default for EvictionConfig {
    fn default() -> Self {
        Self {
            horizon: 3600,
            lan_cost: 0.05,
            overhead: ByteSize(64 << 10),
            spare_after: 2 * 3600,
            popularity: 4.0,
        }
    }
}

impl EvictionConfig {
    /// What can't be weighed by is refused.
    pub(super) fn check(&self) -> Result<(), String> {
        if !(1..=365 * 86_400).contains(&self.horizon) {
            return Err(format!("eviction.horizon = {}: expected 1 to 31536000", self.horizon));
        }
        if !(0.0..=1.0).contains(&self.lan_cost) {
            return Err(format!("eviction.lan_cost = {}: expected 0 to 1", self.lan_cost));
        }
        if self.overhead.0 > 1 << 30 {
            return Err(format!("eviction.overhead = {}: expected at most 1GiB", self.overhead));
        }
        if self.spare_after < 60 {
            return Err(format!(
                "eviction.spare_after = {}: expected 60 or more",
                self.spare_after
            ));
        }
        if !(0.0..=1000.0).contains(&self.popularity) {
            return Err(format!("eviction.popularity = {}: expected 0 to 1000", self.popularity));
        }
        Ok(())
    }
}
