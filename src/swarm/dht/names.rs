//! What a layer is called in the table.

use crate::types::Digest;

/// What a swarm's key is turned into first, so that the key itself is used for
/// nothing else.
const CONTEXT: &str = "peersync 2026 swarm layer names v1";

/// Names by each of the swarm's keys. Who has none of them can neither look for a
/// layer that it knows, nor tell from a name which layer it is.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Names(Vec<[u8; 32]>);

impl Names {
    /// By these keys of the swarm. Without any, the swarm is not closed, and names
    /// are keyed by nothing that is secret.
    pub fn new<'a>(keys: impl IntoIterator<Item = &'a [u8; 32]>) -> Self {
        let mut keys: Vec<_> =
            keys.into_iter().map(|key| blake3::derive_key(CONTEXT, key)).collect();
        if keys.is_empty() {
            keys.push(blake3::derive_key(CONTEXT, &[]));
        }
        Self(keys)
    }

    /// The layer's names, the newest key's first.
    pub fn of(&self, layer: &Digest) -> impl Iterator<Item = [u8; 32]> + use<'_> {
        let layer = *layer.as_bytes();
        self.0.iter().map(move |key| *blake3::keyed_hash(key, &layer).as_bytes())
    }
}

impl std::fmt::Debug for Names {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Names({})", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_has_one_name_for_each_key_and_none_tells_which_layer_it_is() {
        let layer = Digest::of(b"layer");
        let names = |keys: &[[u8; 32]]| Names::new(keys).of(&layer).collect::<Vec<_>>();
        let (one, two) = ([1; 32], [2; 32]);
        let both = names(&[one, two]);
        assert_eq!(both.len(), 2);
        assert_ne!(both[0], both[1]);
        // Who has one key in common looks where the other tells.
        assert_eq!(names(&[two]), both[1..]);
        assert!(both.iter().all(|name| name != layer.as_bytes()));
        assert_eq!(names(&[]), names(&[]));
        assert_eq!(names(&[]).len(), 1);
        assert_ne!(names(&[])[0], both[0]);
    }
}
