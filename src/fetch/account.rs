//! Where content came from: what a pull, a layer and a node report.

/// Where a block came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// This store had it, under this or another name.
    Local,
    /// A neighbour in the LAN.
    Lan,
    /// A peer elsewhere.
    Remote,
    /// A registry.
    Registry,
}

/// Bytes of content by source. Lengths are those of blocks as they are stored,
/// whatever they took on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    /// Put together from what the store held under other names.
    pub local: u64,
    /// From neighbours in the LAN.
    pub lan: u64,
    /// From peers elsewhere.
    pub remote: u64,
    /// From registries.
    pub registry: u64,
    /// Came although it was here already: what duplicates cost.
    pub wasted: u64,
}

impl Sources {
    /// `bytes` came from `source`.
    pub fn add(&mut self, source: Source, bytes: u64) {
        let count = match source {
            Source::Local => &mut self.local,
            Source::Lan => &mut self.lan,
            Source::Remote => &mut self.remote,
            Source::Registry => &mut self.registry,
        };
        *count += bytes;
    }

    /// All of them by name: `local`, `lan`, `remote`, `registry`, `wasted`.
    pub fn by_name(&self) -> [(&'static str, u64); 5] {
        [
            ("local", self.local),
            ("lan", self.lan),
            ("remote", self.remote),
            ("registry", self.registry),
            ("wasted", self.wasted),
        ]
    }

    /// The sum of two.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        Self {
            local: self.local + other.local,
            lan: self.lan + other.lan,
            remote: self.remote + other.remote,
            registry: self.registry + other.registry,
            wasted: self.wasted + other.wasted,
        }
    }

    /// What came since `before`, which was taken of the same counts.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        Self {
            local: self.local.saturating_sub(before.local),
            lan: self.lan.saturating_sub(before.lan),
            remote: self.remote.saturating_sub(before.remote),
            registry: self.registry.saturating_sub(before.registry),
            wasted: self.wasted.saturating_sub(before.wasted),
        }
    }
}
