//! Making blocks durable, in batches.
//!
//! Invariant 1: a presence bit becomes durable only after its data. The order
//! of a batch is: take the bits that are set now; sync the data files; sync the
//! directories that got new files; write these bits, and no others, to the
//! bitmap files and sync them; commit to the database which objects are now
//! complete. A bit that is set while the batch runs waits for the next one.
//!
//! A failed sync of a data file may have lost any of the bytes it covered, and
//! a later sync would not tell. So their bits are dropped at once and the
//! blocks are fetched again.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::entry::Entry;
use super::error::{MetaError, SyncError};
use super::objects::object_record;
use super::{Counters, Inner, Store};
use crate::store::device::{DeviceFile, Mode, Syncing};
use crate::store::format::bits as bitmap;
use crate::store::format::layout::{OBJECTS_DIR, bits_path, data_path, object_dir};
use crate::store::format::tables::Table;
use crate::types::ObjectId;

/// When stored blocks become durable: what a crash may cost at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlushPolicy {
    /// At the latest when this many bytes are not durable. Default 64 MiB.
    pub bytes: u64,
    /// At the latest when the oldest is this old. Default 2 s.
    pub age: Duration,
}

impl Default for FlushPolicy {
    fn default() -> Self {
        Self { bytes: 64 << 20, age: Duration::from_secs(2) }
    }
}

impl FlushPolicy {
    /// How long a batch can wait that holds `bytes` bytes, the oldest of them
    /// `age` old; zero if it is due.
    pub fn wait(&self, bytes: u64, age: Duration) -> Duration {
        if bytes >= self.bytes { Duration::ZERO } else { self.age.saturating_sub(age) }
    }
}

/// The objects that have something to make durable.
#[derive(Debug)]
pub(super) struct Dirty {
    policy: FlushPolicy,
    state: Mutex<DirtyState>,
    wake: Condvar,
    /// One batch at a time.
    flushing: Mutex<()>,
}

#[derive(Debug, Default)]
struct DirtyState {
    objects: BTreeMap<ObjectId, Arc<Entry>>,
    bytes: u64,
    since: Option<Instant>,
    stopped: bool,
}

impl Dirty {
    pub(super) fn new(policy: FlushPolicy) -> Self {
        Self { policy, state: Mutex::default(), wake: Condvar::new(), flushing: Mutex::default() }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.state().bytes
    }

    /// Notes that `bytes` bytes of the object were stored, or that its bits on
    /// the disk are wrong.
    pub(super) fn add(&self, entry: &Arc<Entry>, bytes: u64) {
        let mut state = self.state();
        if state.since.is_none() {
            state.since = Some(Instant::now());
            self.wake.notify_one();
        }
        let before = state.bytes;
        state.bytes += bytes;
        if before < self.policy.bytes && state.bytes >= self.policy.bytes {
            self.wake.notify_one();
        }
        state.objects.entry(entry.id).or_insert_with(|| Arc::clone(entry));
    }

    pub(super) fn forget(&self, id: &ObjectId) {
        self.state().objects.remove(id);
    }

    /// Keeps batches from running while the guard lives.
    pub(super) fn flushing(&self) -> MutexGuard<'_, ()> {
        self.flushing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the background thread.
    pub(super) fn stop(&self) {
        self.state().stopped = true;
        self.wake.notify_all();
    }

    fn take(&self) -> Vec<Arc<Entry>> {
        let mut state = self.state();
        state.bytes = 0;
        state.since = None;
        std::mem::take(&mut state.objects).into_values().collect()
    }

    /// Waits until a batch is due; `false` when the store is being closed.
    fn wait(&self) -> bool {
        let mut state = self.state();
        loop {
            if state.stopped {
                return false;
            }
            state = match state.since {
                None => self.wake.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(since) => {
                    let wait = self.policy.wait(state.bytes, since.elapsed());
                    if wait.is_zero() {
                        return true;
                    }
                    let woken = self.wake.wait_timeout(state, wait);
                    woken.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    fn state(&self) -> MutexGuard<'_, DirtyState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Starts the thread that flushes by the policy.
pub(super) fn spawn(inner: &Arc<Inner>) -> std::io::Result<JoinHandle<()>> {
    let weak: Weak<Inner> = Arc::downgrade(inner);
    std::thread::Builder::new().name("store-flush".into()).spawn(move || {
        while let Some(inner) = weak.upgrade() {
            if !inner.dirty.wait() {
                break;
            }
            if let Err(e) = inner.sync() {
                tracing::warn!(error = %e, "stored blocks are not durable yet");
                inner.dirty.pause();
            }
        }
    })
}

impl Dirty {
    /// After a failure: not again at once.
    fn pause(&self) {
        let mut state = self.state();
        if state.since.is_some() {
            state.since = Some(Instant::now());
            // Or the byte bound would make it due again.
            state.bytes = 0;
        }
    }
}

impl Store {
    /// Makes everything that was stored and recorded so far durable.
    ///
    /// # Errors
    /// [`SyncError`]. What could not be made durable is tried again with the
    /// next call, or counts as absent.
    pub fn sync(&self) -> Result<(), SyncError> {
        self.inner.sync()
    }
}

/// An object in a batch.
struct Job {
    entry: Arc<Entry>,
    /// The bits that may become durable.
    bits: Vec<u64>,
    /// All blocks are there.
    full: bool,
    /// What the next step syncs: the data file, then the bitmap.
    file: Option<Arc<dyn DeviceFile>>,
    /// Blocks that were dropped before the data is synced.
    dropped: Vec<u32>,
}

/// Takes back what a failed sync may have lost.
fn forget_unsynced(job: &Job) {
    let mut disk = job.entry.disk();
    if !disk.complete {
        job.entry.retain(&disk.durable);
        job.entry.verified.retain(&disk.durable);
    }
    for index in &job.dropped {
        job.entry.clear(*index);
        job.entry.verified.clear(*index);
    }
    disk.dropped.extend(&job.dropped);
}

impl Inner {
    pub(super) fn sync(&self) -> Result<(), SyncError> {
        if self.is_read_only() {
            return Ok(());
        }
        self.flush()
    }

    /// One batch.
    pub(super) fn flush(&self) -> Result<(), SyncError> {
        let _one = self.dirty.flushing();
        let mut failure = None;
        let mut jobs = Vec::new();
        for entry in self.dirty.take() {
            match self.start_job(&entry) {
                Ok(job) => jobs.extend(job),
                Err(e) => self.put_back(&entry, e, &mut failure),
            }
        }
        let jobs = self.sync_data(jobs, &mut failure);
        let jobs = self.sync_dirs(jobs, &mut failure);
        let jobs = self.step(jobs, &mut failure, Self::write_bits);
        let jobs = self.sync_bits(jobs, &mut failure);
        self.commit(&jobs, &mut failure);
        Counters::add(&self.counters.flushes, 1);
        failure.map_or(Ok(()), Err)
    }

    /// Runs one step for all jobs; those that fail wait for the next batch.
    fn step(
        &self,
        jobs: Vec<Job>,
        failure: &mut Option<SyncError>,
        mut work: impl FnMut(&Self, &mut Job) -> Result<(), SyncError>,
    ) -> Vec<Job> {
        let mut done = Vec::with_capacity(jobs.len());
        for mut job in jobs {
            match work(self, &mut job) {
                Ok(()) => done.push(job),
                Err(e) => self.put_back(&job.entry, e, failure),
            }
        }
        done
    }

    /// Syncs the jobs' files, and gives each job what came of it; those without a
    /// file have nothing to sync.
    fn sync_files(&self, jobs: Vec<Job>) -> Vec<(Job, Result<(), SyncError>)> {
        let files: Vec<_> = jobs.iter().filter_map(|job| job.file.as_deref()).collect();
        let wanted: Vec<_> = files.into_iter().map(Syncing::Data).collect();
        let mut outcomes = self.device.sync_all(&wanted).into_iter();
        let synced = jobs.into_iter().map(|mut job| match job.file.take() {
            Some(_) => {
                let outcome = outcomes.next().unwrap_or_else(|| Err(ErrorKind::Other.into()));
                (job, outcome.map_err(SyncError::from))
            }
            None => (job, Ok(())),
        });
        synced.collect()
    }

    fn put_back(&self, entry: &Arc<Entry>, error: SyncError, failure: &mut Option<SyncError>) {
        self.dirty.add(entry, 0);
        failure.get_or_insert(error);
    }

    fn start_job(&self, entry: &Arc<Entry>) -> Result<Option<Job>, SyncError> {
        let slot = entry.file();
        if slot.gone {
            return Ok(None);
        }
        let bits = entry.present.snapshot();
        let full = entry.present.is_full(&bits);
        // The file may have been closed since it was written.
        let file = match &slot.handle {
            Some(file) => Some(Arc::clone(file)),
            None => match self.device.open(&data_path(&entry.id), Mode::Write) {
                Ok(file) => Some(file),
                Err(e) if e.kind() == ErrorKind::NotFound => None,
                Err(e) => return Err(e.into()),
            },
        };
        drop(slot);
        if let Some(file) = &file {
            file.start_sync();
        }
        Ok(Some(Job { entry: Arc::clone(entry), bits, full, file, dropped: Vec::new() }))
    }

    fn sync_data(&self, jobs: Vec<Job>, failure: &mut Option<SyncError>) -> Vec<Job> {
        let (mut jobs, mut done): (Vec<Job>, Vec<Job>) =
            jobs.into_iter().partition(|job| job.file.is_some());
        for job in &mut done {
            // Claims without a file: nothing may stay.
            job.bits.fill(0);
            job.full = false;
            job.entry.retain(&job.bits);
        }
        // Those that are dropped while the sync runs wait for the next batch.
        for job in &mut jobs {
            job.dropped = std::mem::take(&mut job.entry.disk().dropped);
        }
        for (job, outcome) in self.sync_files(jobs) {
            match outcome {
                Ok(()) => done.push(job),
                Err(error) => {
                    forget_unsynced(&job);
                    self.put_back(&job.entry, error, failure);
                }
            }
        }
        done
    }

    /// Syncs the names of new files, and of the directories that were made for them.
    fn sync_dirs(&self, jobs: Vec<Job>, failure: &mut Option<SyncError>) -> Vec<Job> {
        let mut dirs: BTreeSet<String> = jobs
            .iter()
            .filter(|job| job.entry.disk().new_file)
            .map(|job| object_dir(&job.entry.id))
            .collect();
        if !dirs.is_empty() {
            dirs.insert(OBJECTS_DIR.to_owned());
        }
        let wanted: Vec<_> = dirs.iter().map(|dir| Syncing::Dir(dir)).collect();
        let mut failed = BTreeSet::new();
        for (dir, outcome) in dirs.iter().zip(self.device.sync_all(&wanted)) {
            if let Err(e) = outcome {
                failed.insert(dir.clone());
                failure.get_or_insert(e.into());
            }
        }
        let mut done = Vec::with_capacity(jobs.len());
        let above_failed = failed.contains(OBJECTS_DIR);
        for job in jobs {
            let new = job.entry.disk().new_file;
            if new && above_failed || failed.contains(&object_dir(&job.entry.id)) {
                self.dirty.add(&job.entry, 0);
            } else {
                job.entry.disk().new_file = false;
                done.push(job);
            }
        }
        done
    }

    /// Writes the lines of the bitmap that differ. An object that is complete
    /// needs none: the database will say so in a moment.
    fn write_bits(&self, job: &mut Job) -> Result<(), SyncError> {
        let mut disk = job.entry.disk();
        if job.full && job.entry.present.all() {
            return Ok(());
        }
        job.full = false;
        let entry = &job.entry;
        if disk.complete || !disk.bitmap_made {
            // The first claims; or a block of a complete object was bad, or the
            // bitmap was damaged.
            disk.bitmap_made = false;
            if job.bits.iter().any(|word| *word != 0) {
                entry.replace_bitmap(&*self.device, &job.bits)?;
                disk.bitmap_made = true;
            } else {
                self.device.unlink(&bits_path(&entry.id))?;
            }
            disk.durable.clone_from(&job.bits);
            return Ok(());
        }
        // Until it is known to say the same as `durable` again.
        disk.bitmap_made = false;
        let file = self.device.open(&bits_path(&entry.id), Mode::Write)?;
        for number in 0..bitmap::line_count(entry.spec.block_count()) {
            let bits = bitmap::line_bits(&job.bits, number);
            if bits != bitmap::line_bits(&disk.durable, number) {
                let line = bitmap::line(&entry.id, number, &bits);
                file.write_at(bitmap::line_offset(number), &line)?;
                job.file = Some(Arc::clone(&file));
            }
        }
        disk.bitmap_made = job.file.is_none();
        Ok(())
    }

    fn sync_bits(&self, jobs: Vec<Job>, failure: &mut Option<SyncError>) -> Vec<Job> {
        let (written, mut done): (Vec<Job>, Vec<Job>) =
            jobs.into_iter().partition(|job| job.file.is_some());
        for (job, outcome) in self.sync_files(written) {
            match outcome {
                Ok(()) => {
                    let mut disk = job.entry.disk();
                    disk.durable.clone_from(&job.bits);
                    disk.bitmap_made = true;
                    drop(disk);
                    done.push(job);
                }
                Err(error) => self.put_back(&job.entry, error, failure),
            }
        }
        done
    }

    /// Commits which objects became complete, or are no longer, together with
    /// all metadata that waits.
    fn commit(&self, jobs: &[Job], failure: &mut Option<SyncError>) {
        let changed: Vec<&Job> =
            jobs.iter().filter(|job| job.entry.disk().complete != job.full).collect();
        let done = self.meta.update(true, |view, batch| {
            for job in &changed {
                let id = &job.entry.id;
                // Removed in between: there is nothing to say.
                if let Some(mut record) = object_record(view, id)? {
                    record.complete = job.full;
                    batch.put(Table::Objects, id.as_bytes(), record.encode());
                    batch.delete(Table::Marks, id.as_bytes());
                }
            }
            for job in jobs.iter().filter(|job| job.full) {
                if let Some(mark) = self.mark(&job.entry) {
                    batch.put(Table::Marks, job.entry.id.as_bytes(), mark.encode());
                }
            }
            Ok::<_, MetaError>(())
        });
        if let Err(e) = done {
            for job in changed {
                self.dirty.add(&job.entry, 0);
            }
            failure.get_or_insert(e.into());
            return;
        }
        for job in jobs {
            let slot = job.entry.file();
            if slot.gone {
                continue;
            }
            let mut disk = job.entry.disk();
            if job.full && !disk.complete {
                // The database has the last word; a bitmap that stays behind
                // is not read.
                let _ = self.device.unlink(&bits_path(&job.entry.id));
                disk.bitmap_made = false;
                disk.durable = Vec::new();
            }
            disk.complete = job.full;
            if job.full {
                disk.seal = self.device.stat(&data_path(&job.entry.id)).unwrap_or(None);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_due_by_size_or_by_age() {
        let policy = FlushPolicy { bytes: 100, age: Duration::from_secs(2) };
        let s = Duration::from_secs;
        assert_eq!(policy.wait(0, s(0)), s(2));
        assert_eq!(policy.wait(99, s(1)), s(1));
        assert_eq!(policy.wait(99, s(3)), s(0));
        assert_eq!(policy.wait(100, s(0)), s(0));
    }
}
