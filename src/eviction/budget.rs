//! How much of the disk the store may have.
//!
//! Three marks on the bytes that the store occupies. Above `soft`, copies that
//! the LAN has elsewhere go until `low` is reached; above `hard`, last copies go
//! as well, until `soft` is reached. The gaps between the marks are the
//! hysteresis: a store that was brought to `low` may take in `soft - low` before
//! anything is looked for again, and no plan is made for every block.

/// Share of the budget, in percent, above which spare copies go.
const SOFT_PERCENT: u64 = 90;
/// Share of the budget, in percent, that spare copies go down to.
const LOW_PERCENT: u64 = 80;

/// The disk as it is found, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disk {
    /// What the file system holds in all.
    pub size: u64,
    /// What is free for the store.
    pub free: u64,
    /// What the store occupies.
    pub occupied: u64,
}

/// The marks, in bytes that the store occupies: `low <= soft <= hard`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// What is aimed at once spare copies go.
    pub low: u64,
    /// Above it spare copies go.
    pub soft: u64,
    /// Above it last copies go.
    pub hard: u64,
}

/// How far over the marks a store is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pressure {
    /// At or under `soft`.
    None,
    /// Over `soft`.
    Soft,
    /// Over `hard`.
    Hard,
}

impl Budget {
    /// The budget of a store that may occupy `max_size` bytes, and whose file
    /// system is to keep `min_free` bytes free.
    ///
    /// The stricter of the two rules. What other programs take away from the free
    /// space, the store has to give: under `min_free`, the budget is what it
    /// occupies less what is missing. A maximum of 0, or one larger than the disk,
    /// is taken as it is; neither is an error here.
    pub fn of(max_size: Option<u64>, min_free: u64, disk: Disk) -> Self {
        let by_free = disk.occupied.saturating_add(disk.free).saturating_sub(min_free);
        Self::with_hard(by_free.min(max_size.unwrap_or(u64::MAX)).min(disk.size))
    }

    /// The marks under a hard one.
    pub fn with_hard(hard: u64) -> Self {
        let share = |percent: u64| {
            let of = u128::from(hard) * u128::from(percent) / 100;
            u64::try_from(of).unwrap_or(hard)
        };
        Self { low: share(LOW_PERCENT), soft: share(SOFT_PERCENT), hard }
    }

    /// Where `occupied` bytes stand.
    pub fn pressure(&self, occupied: u64) -> Pressure {
        if occupied > self.hard {
            Pressure::Hard
        } else if occupied > self.soft {
            Pressure::Soft
        } else {
            Pressure::None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_marks_are_in_order(
            max in proptest::option::of(any::<u64>()),
            min_free: u64, size: u64, free: u64, occupied: u64,
        ) {
            let budget = Budget::of(max, min_free, Disk { size, free, occupied });
            prop_assert!(budget.low <= budget.soft && budget.soft <= budget.hard);
            prop_assert!(budget.hard <= size && budget.hard <= max.unwrap_or(u64::MAX));
        }
    }

    #[test]
    fn other_programs_push_the_budget_down() {
        let disk = Disk { size: 1000, free: 60, occupied: 500 };
        // 40 bytes are missing under the 100 that are to stay free.
        assert_eq!(Budget::of(None, 100, disk).hard, 460);
        assert_eq!(Budget::of(Some(300), 100, disk).hard, 300);
        let crowded = Disk { size: 1000, free: 0, occupied: 50 };
        assert_eq!(Budget::of(None, 100, crowded).hard, 0);
    }

    #[test]
    fn zero_and_more_than_the_disk_are_budgets() {
        let disk = Disk { size: 1000, free: 900, occupied: 100 };
        assert_eq!(Budget::of(Some(0), 0, disk), Budget { low: 0, soft: 0, hard: 0 });
        assert_eq!(Budget::of(Some(u64::MAX), 0, disk).hard, 1000);
        assert_eq!(Budget::with_hard(u64::MAX).pressure(u64::MAX), Pressure::Soft);
    }
}
