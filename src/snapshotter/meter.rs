//! The size of active snapshots, in bounded time.
//!
//! The kubelet polls `Usage` every ten seconds, and an answer must not depend on
//! how much a container has written. So a request looks at no more than
//! [`INLINE`] entries itself: the usual small upper directory is counted exactly,
//! as containerd's overlayfs snapshotter does. A larger one is counted in the
//! background, one snapshot at a time, and the request gets the last full count
//! (or, before the first is through, what it saw). A count of a large directory
//! is therefore up to a polling interval old; with it goes at most a tenth of one
//! core, because the next count of a snapshot waits nine times as long as the
//! last one took.
//!
//! What was rejected: counting in full on every request (seconds for a large
//! directory, and containers are polled one after the other); project quotas
//! (exact and free, but only on some file systems, and not without `prjquota`).

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use nix::errno::Errno;
use tokio::sync::Semaphore;

use super::meta::Usage;
use super::usage::{Measured, measure};

/// Entries that a request looks at itself: well under a millisecond.
const INLINE: usize = 256;
/// Pause after a full count, as a multiple of the time that it took.
const PAUSE: u32 = 9;

/// Sizes of active snapshots by identifier.
#[derive(Clone, Debug)]
pub struct Meter {
    counts: Arc<Mutex<HashMap<u64, Count>>>,
    turn: Arc<Semaphore>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Count {
    full: Option<Usage>,
    running: bool,
    not_before: Option<Instant>,
}

impl Default for Meter {
    fn default() -> Self {
        Self { counts: Arc::default(), turn: Arc::new(Semaphore::new(1)) }
    }
}

impl Meter {
    /// The size of snapshot `id`, whose files are at `path`. Blocks for a bounded
    /// number of system calls; must be called within a tokio runtime.
    ///
    /// # Errors
    /// The directory can't be read.
    pub fn usage(&self, id: u64, path: PathBuf, now: Instant) -> Result<Usage, Errno> {
        let seen = match measure(&path, INLINE)? {
            Measured::Complete(usage) => {
                // It is small (again): an old full count would be wrong from here on.
                self.lock().remove(&id);
                return Ok(usage);
            }
            Measured::AtLeast(seen) => seen,
        };
        let mut counts = self.lock();
        let count = counts.entry(id).or_default();
        if !count.running && count.not_before.is_none_or(|time| time <= now) {
            count.running = true;
            self.count_in_background(id, path);
        }
        Ok(count.full.unwrap_or(seen))
    }

    /// The snapshot is no longer active.
    pub fn forget(&self, id: u64) {
        self.lock().remove(&id);
    }

    fn count_in_background(&self, id: u64, path: PathBuf) {
        let this = self.clone();
        tokio::spawn(async move {
            let _turn = this.turn.clone().acquire_owned().await;
            let begun = Instant::now();
            let measured = tokio::task::spawn_blocking(move || measure(&path, usize::MAX)).await;
            let took = begun.elapsed();
            if let Some(count) = this.lock().get_mut(&id) {
                count.running = false;
                count.not_before = Some(Instant::now() + took * PAUSE);
                if let Ok(Ok(measured)) = measured {
                    count.full = Some(measured.usage());
                }
            }
        });
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Count>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until no count is under way.
    #[cfg(test)]
    async fn idle(&self) {
        while self.lock().values().any(|count| count.running) {
            let _turn = self.turn.acquire().await;
            tokio::task::yield_now().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn small_directories_are_exact_and_large_ones_are_counted_behind() {
        let root = tempfile::tempdir().unwrap();
        let meter = Meter::default();
        let path = root.path().to_owned();
        let usage = |now| meter.usage(1, path.clone(), now).unwrap();
        let exact = || measure(&path, usize::MAX).unwrap().usage();
        let now = Instant::now();
        assert_eq!(usage(now), exact());

        for i in 0..2 * INLINE {
            std::fs::write(path.join(i.to_string()), b"x").unwrap();
        }
        let first = usage(now);
        assert!(first.inodes >= INLINE as u64 && first.inodes <= exact().inodes);
        meter.idle().await;
        assert_eq!(usage(now), exact());

        std::fs::write(path.join("more"), b"x").unwrap();
        usage(now + Duration::from_secs(3600));
        meter.idle().await;
        assert_eq!(usage(now), exact());

        for i in 0..2 * INLINE {
            std::fs::remove_file(path.join(i.to_string())).unwrap();
        }
        assert_eq!(usage(now), exact(), "small again: exact again");
    }

    #[tokio::test]
    async fn the_next_full_count_waits() {
        let root = tempfile::tempdir().unwrap();
        for i in 0..=INLINE {
            std::fs::write(root.path().join(i.to_string()), b"").unwrap();
        }
        let meter = Meter::default();
        let now = Instant::now();
        meter.usage(1, root.path().to_owned(), now).unwrap();
        meter.idle().await;
        let due = meter.lock()[&1].not_before.unwrap();
        assert!(due > now);
        meter.usage(1, root.path().to_owned(), now).unwrap();
        assert!(!meter.lock()[&1].running, "too early for another");
        meter.forget(1);
        assert!(meter.lock().is_empty());
    }
}
