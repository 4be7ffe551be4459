//! Sets that a node tells others of as differences, with numbers that show gaps.
//!
//! Invariant: what a receiver has taken in is what the sender had told by then, or
//! the receiver knows that it is not.

use std::collections::BTreeMap;

/// A part of what is told: with `full` the rest is not there, else as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference<K, V> {
    /// Whether what is not named is not there.
    pub full: bool,
    /// Counts from 0.
    pub number: u64,
    /// What there is now; none: it is not there any more.
    pub changes: Vec<(K, Option<V>)>,
}

/// What one receiver has been told, over one connection at a time.
#[derive(Clone, Debug)]
pub struct Teller<K, V> {
    /// The connection.
    link: Option<u64>,
    told: BTreeMap<K, V>,
    number: u64,
}

impl<K, V> Default for Teller<K, V> {
    fn default() -> Self {
        Self { link: None, told: BTreeMap::new(), number: 0 }
    }
}

impl<K: Ord + Clone, V: PartialEq + Clone> Teller<K, V> {
    /// What to say on connection `link` so that the receiver knows `all`: on a new
    /// one everything, else what has changed. Each message weighs at most `most`,
    /// with `weigh` saying what an entry does.
    pub fn say(
        &mut self,
        link: u64,
        all: &BTreeMap<K, V>,
        most: usize,
        weigh: impl Fn(&Option<V>) -> usize,
    ) -> Vec<Difference<K, V>> {
        let full = self.link != Some(link);
        if full {
            (self.link, self.number) = (Some(link), 0);
            self.told.clear();
        }
        let gone = self.told.keys().filter(|key| !all.contains_key(key));
        let new = all.iter().filter(|(key, value)| self.told.get(key) != Some(value));
        let changes: Vec<(K, Option<V>)> = gone
            .map(|key| (key.clone(), None))
            .chain(new.map(|(key, value)| (key.clone(), Some(value.clone()))))
            .collect();
        let mut said = Vec::new();
        let mut part = Difference { full, number: self.number, changes: Vec::new() };
        let mut weight = 0;
        for (key, value) in changes {
            match &value {
                Some(value) => self.told.insert(key.clone(), value.clone()),
                None => self.told.remove(&key),
            };
            let one = weigh(&value);
            if weight + one > most && !part.changes.is_empty() {
                self.number += 1;
                let next = Difference { full: false, number: self.number, changes: Vec::new() };
                said.push(std::mem::replace(&mut part, next));
                weight = 0;
            }
            weight += one;
            part.changes.push((key, value));
        }
        if part.full || !part.changes.is_empty() {
            self.number += 1;
            said.push(part);
        }
        said
    }

    /// The receiver does not know what it should: it is told all next time.
    pub fn again(&mut self) {
        self.link = None;
    }
}

/// Where a receiver is in what a sender tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    next: Option<u64>,
}

/// Why something told is not taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeardError {
    /// It was told before.
    #[error("told before")]
    Old,
    /// Something before it is missing.
    #[error("something is missing before it")]
    Gap,
    /// More than anybody may tell.
    #[error("too much")]
    TooMuch,
}

impl Heard {
    /// Takes in the number of a message.
    ///
    /// # Errors
    /// [`HeardError::Old`] and [`HeardError::Gap`]; nothing has changed then.
    pub fn take(&mut self, full: bool, number: u64) -> Result<(), HeardError> {
        match self.next {
            _ if full && number == 0 => self.next = Some(1),
            _ if full => return Err(HeardError::Gap),
            None => return Err(HeardError::Gap),
            Some(next) if number < next => return Err(HeardError::Old),
            Some(next) if number > next => return Err(HeardError::Gap),
            Some(next) => self.next = Some(next + 1),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_was_told_before_and_what_is_missing_are_told_apart() {
        let mut heard = Heard::default();
        assert_eq!(heard.take(false, 0), Err(HeardError::Gap), "nothing to go on from");
        assert_eq!(heard.take(true, 7), Err(HeardError::Gap));
        assert_eq!(heard.take(true, 0), Ok(()));
        assert_eq!(heard.take(false, 1), Ok(()));
        assert_eq!(heard.take(false, 1), Err(HeardError::Old), "replayed");
        assert_eq!(heard.take(false, 3), Err(HeardError::Gap));
        assert_eq!(heard.take(false, 2), Ok(()));
        assert_eq!(heard.take(true, 0), Ok(()), "it begins anew");
    }

    #[test]
    fn nothing_new_is_nothing_said() {
        let mut teller = Teller::default();
        let all = BTreeMap::from([(1, 'a'), (2, 'b')]);
        assert_eq!(teller.say(7, &all, 9, |_| 1).len(), 1);
        assert!(teller.say(7, &all, 9, |_| 1).is_empty());
        assert!(teller.say(8, &all, 9, |_| 1)[0].full, "another connection");
        teller.again();
        assert!(teller.say(8, &all, 9, |_| 1)[0].full);
        assert!(Teller::<u8, u8>::default().say(1, &BTreeMap::new(), 9, |_| 1)[0].full);
    }

    proptest! {
        #[test]
        fn the_receiver_knows_what_was_told(
            states in prop::collection::vec(prop::collection::btree_map(0u8..20, 0u8..4, 0..20), 1..9),
            links in prop::collection::vec(0u64..2, 9), most in 1usize..6) {
            let (mut teller, mut heard) = (Teller::default(), Heard::default());
            let mut known = BTreeMap::new();
            for (all, link) in states.iter().zip(links) {
                for Difference { full, number, changes } in teller.say(link, all, most, |_| 1) {
                    prop_assert!(changes.len() <= most);
                    prop_assert_eq!(heard.take(full, number), Ok(()));
                    if full {
                        known.clear();
                    }
                    for (key, value) in changes {
                        match value {
                            Some(value) => known.insert(key, value),
                            None => known.remove(&key),
                        };
                    }
                }
                prop_assert_eq!(&known, all);
            }
        }
    }
}
