//! How fast things go while somebody reads.
//!
//! A file system frees the blocks of a file in stretches that nothing interrupts, so
//! whoever wants a processor meanwhile waits, whatever the priorities. What keeps
//! that away from readers is to remove seldom: for so long as things take to go, a
//! multiple of it nothing goes. Nothing is gained by haste as long as the store comes
//! down to its budget, so the pace is the slowest at which it does.

use std::time::Duration;

/// Most times as long as the work, which waits for the disk half of the time, that is
/// rested after it.
const EASE_MAX: u32 = 50;
/// Longest rest at once.
const REST_MAX: Duration = Duration::from_secs(2);

/// The pace. By default the slowest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pace {
    /// Times as long as it worked, it rests.
    ease: u32,
    /// Bytes over the budget when it was last looked.
    over: Option<u64>,
}

impl Default for Pace {
    fn default() -> Self {
        Self { ease: EASE_MAX, over: None }
    }
}

impl Pace {
    /// The store is `over` its budget by so many bytes, at each look: four times as
    /// fast if that grew, and half as fast as before if it did not. `full`: other
    /// programs are about to find no space, nothing is waited for.
    pub fn looked(&mut self, over: u64, full: bool) {
        let grew = self.over.replace(over).is_some_and(|before| over > before);
        self.ease = match (full, grew) {
            (true, _) => 0,
            (false, true) => self.ease / 4,
            (false, false) => (self.ease * 2 + 1).min(EASE_MAX),
        };
    }

    /// How long nothing goes now, after removals that took `worked`. `read`:
    /// somebody has read meanwhile; nobody else is disturbed.
    pub fn rest(&self, worked: Duration, read: bool) -> Duration {
        if read { worked.saturating_mul(self.ease).min(REST_MAX) } else { Duration::ZERO }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORKED: Duration = Duration::from_millis(1);

    #[test]
    fn a_store_that_comes_down_does_not_disturb_its_readers() {
        let mut pace = Pace::default();
        for over in [100, 90, 90, 0] {
            pace.looked(over, false);
            assert_eq!(pace.rest(WORKED, true), WORKED * EASE_MAX);
            assert_eq!(pace.rest(WORKED, false), Duration::ZERO);
        }
        assert_eq!(pace.rest(Duration::MAX, true), REST_MAX);
    }

    #[test]
    fn a_store_that_grows_nonetheless_is_met_with_all_speed_and_then_with_less() {
        let mut pace = Pace::default();
        let rests = |over: &[u64], pace: &mut Pace| -> Vec<u32> {
            let rest = |over: &u64| {
                pace.looked(*over, false);
                pace.ease
            };
            over.iter().map(rest).collect()
        };
        assert_eq!(rests(&[1, 2, 3, 4], &mut pace), [50, 12, 3, 0]);
        assert_eq!(rests(&[3, 3, 2, 1, 0, 0, 0], &mut pace), [1, 3, 7, 15, 31, 50, 50]);
    }

    #[test]
    fn a_full_disk_is_met_at_once() {
        let mut pace = Pace::default();
        pace.looked(7, true);
        assert_eq!(pace.rest(WORKED, true), Duration::ZERO);
    }
}
