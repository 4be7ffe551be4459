//! A bitmap that many threads read and set.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// One bit for each block of an object.
#[derive(Debug)]
pub(super) struct Bits {
    words: Box<[AtomicU64]>,
    len: u32,
}

impl Bits {
    pub(super) fn new(len: u32) -> Self {
        Self { words: (0..len.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(), len }
    }

    pub(super) fn get(&self, index: u32) -> bool {
        index < self.len
            && self.words[index as usize / 64].load(Ordering::Acquire) & mask(index) != 0
    }

    /// Sets a bit and tells whether it was clear.
    pub(super) fn set(&self, index: u32) -> bool {
        let old = self.words[index as usize / 64].fetch_or(mask(index), Ordering::AcqRel);
        old & mask(index) == 0
    }

    /// Clears a bit and tells whether it was set.
    pub(super) fn clear(&self, index: u32) -> bool {
        let old = self.words[index as usize / 64].fetch_and(!mask(index), Ordering::AcqRel);
        old & mask(index) != 0
    }

    pub(super) fn set_all(&self) {
        for (word, n) in self.words.iter().zip(0..) {
            word.store(self.full_word(n), Ordering::Release);
        }
    }

    pub(super) fn clear_all(&self) {
        for word in &self.words {
            word.store(0, Ordering::Release);
        }
    }

    /// Takes the bits of `words`.
    pub(super) fn load(&self, words: &[u64]) {
        for ((word, value), n) in self.words.iter().zip(words).zip(0..) {
            word.store(value & self.full_word(n), Ordering::Release);
        }
    }

    /// Clears every bit that is clear in `words`.
    pub(super) fn retain(&self, words: &[u64]) {
        for (word, value) in self.words.iter().zip(words) {
            word.fetch_and(*value, Ordering::AcqRel);
        }
    }

    pub(super) fn snapshot(&self) -> Vec<u64> {
        self.words.iter().map(|w| w.load(Ordering::Acquire)).collect()
    }

    pub(super) fn all(&self) -> bool {
        self.words.iter().zip(0..).all(|(w, n)| w.load(Ordering::Acquire) == self.full_word(n))
    }

    pub(super) fn all_in(&self, mut range: Range<u32>) -> bool {
        range.all(|i| self.get(i))
    }

    /// Whether `words` has a bit for each block.
    pub(super) fn is_full(&self, words: &[u64]) -> bool {
        words.iter().zip(0..).all(|(word, n)| *word == self.full_word(n))
    }

    fn full_word(&self, n: u32) -> u64 {
        match self.len - n * 64 {
            64.. => u64::MAX,
            rest => (1 << rest) - 1,
        }
    }
}

fn mask(index: u32) -> u64 {
    1 << (index % 64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_counted_to_the_last() {
        for len in [0, 1, 63, 64, 65, 128, 200] {
            let bits = Bits::new(len);
            assert_eq!(bits.all(), len == 0);
            for i in 0..len {
                assert!(bits.set(i) && !bits.set(i));
            }
            assert!(bits.all() && bits.all_in(0..len) && !bits.get(len));
            assert!(bits.is_full(&bits.snapshot()));
            if len > 0 {
                assert!(bits.clear(len - 1) && !bits.all());
                bits.set_all();
                assert!(bits.all());
            }
        }
    }
}
