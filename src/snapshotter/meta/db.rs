//! The snapshot table on disk: one redb file of its own.
//!
//! Every change is one durable transaction with `quick_repair`, so that opening
//! after a crash does not walk the whole file. The table is also in memory
//! (a few KiB for each snapshot): a look-up never waits for a disk or a writer.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};

use super::{Change, MetaError, State, decode_record, encode_record};

const SNAPSHOTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("snapshots");
/// The identifier of every snapshot beside its record, so that the directory of
/// a record that can't be read any more is still known to be somebody's.
const IDENTIFIERS: TableDefinition<'_, u64, &str> = TableDefinition::new("identifiers");
const NUMBERS: TableDefinition<'_, &str, u64> = TableDefinition::new("numbers");

const VERSION: u64 = 1;
/// Pages that redb keeps in memory; the table itself is held in [`State`].
const CACHE_BYTES: usize = 1 << 20;

/// Why the database could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file is in use, damaged or not readable.
    #[error("snapshot database {path}: {source}")]
    Database {
        /// The file.
        path: String,
        /// What redb says.
        source: Box<redb::Error>,
    },
    /// Written by a later version of this program.
    #[error("snapshot database {path}: version {found}, this program knows {VERSION}")]
    Version {
        /// The file.
        path: String,
        /// The version found.
        found: u64,
    },
}

/// Why a change did not happen.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The rules forbid it.
    #[error(transparent)]
    Meta(#[from] MetaError),
    /// The database could not be written.
    #[error("snapshot database: {0}")]
    Database(Box<redb::Error>),
    /// The store was closed.
    #[error("the snapshotter is stopping")]
    Closed,
}

/// The snapshot table, durable and shared between threads.
///
/// Reads take the memory only. Writes block on the disk (about a millisecond)
/// and are for threads that may block.
#[derive(Debug)]
pub struct MetaStore {
    /// None once closed.
    database: Mutex<Option<Database>>,
    state: RwLock<State>,
    writer: Mutex<()>,
    /// Identifiers whose records could not be read: their directories stay.
    damaged: Vec<u64>,
}

impl MetaStore {
    /// Opens or creates the database at `path`.
    ///
    /// A single record that is damaged is logged and left out; the others work.
    ///
    /// # Errors
    /// The file can't be opened, is in use by another process, or is newer.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let name = || path.display().to_string();
        let database =
            Database::builder().set_cache_size(CACHE_BYTES).create(path).map_err(|error| {
                OpenError::Database { path: name(), source: Box::new(error.into()) }
            })?;
        let (state, damaged, version) = load(&database)
            .map_err(|error| OpenError::Database { path: name(), source: Box::new(error) })?;
        if version != VERSION {
            return Err(OpenError::Version { path: name(), found: version });
        }
        Ok(Self {
            database: Mutex::new(Some(database)),
            state: RwLock::new(state),
            writer: Mutex::new(()),
            damaged,
        })
    }

    /// The table as it is now.
    pub fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Identifiers whose records could not be read when the database was opened.
    pub fn damaged(&self) -> &[u64] {
        &self.damaged
    }

    /// Lets go of the file, after the write that is under way. What was written is
    /// still read, nothing is written any more.
    pub fn close(&self) {
        self.database.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Keeps every writer out while the guard lives.
    pub fn lock(&self) -> Writer<'_> {
        Writer { store: self, _guard: self.writer.lock().unwrap_or_else(PoisonError::into_inner) }
    }
}

/// The right to change the table; there is one at a time.
#[derive(Debug)]
pub struct Writer<'a> {
    store: &'a MetaStore,
    _guard: MutexGuard<'a, ()>,
}

impl Writer<'_> {
    /// The table, which nobody else changes now.
    pub fn state(&self) -> RwLockReadGuard<'_, State> {
        self.store.read()
    }

    /// Makes `change` durable, then visible.
    ///
    /// # Errors
    /// The database could not be written; nothing changed then.
    pub fn commit(&self, change: Change) -> Result<(), WriteError> {
        if change.is_empty() {
            return Ok(());
        }
        self.store.persist(&change)?;
        self.store.state.write().unwrap_or_else(PoisonError::into_inner).apply(change);
        Ok(())
    }
}

impl MetaStore {
    fn persist(&self, change: &Change) -> Result<(), WriteError> {
        let database = self.database.lock().unwrap_or_else(PoisonError::into_inner);
        let database = database.as_ref().ok_or(WriteError::Closed)?;
        self.write(database, change).map_err(|error| WriteError::Database(Box::new(error)))
    }

    fn write(&self, database: &Database, change: &Change) -> Result<(), redb::Error> {
        let mut transaction = database.begin_write()?;
        transaction.set_quick_repair(true);
        transaction.set_durability(Durability::Immediate)?;
        {
            let state = self.read();
            let mut snapshots = transaction.open_table(SNAPSHOTS)?;
            let mut identifiers = transaction.open_table(IDENTIFIERS)?;
            let mut numbers = transaction.open_table(NUMBERS)?;
            for name in &change.delete {
                snapshots.remove(name.as_str())?;
                if let Some(record) = state.records().get(name) {
                    identifiers.remove(record.id)?;
                }
            }
            for (name, record) in &change.put {
                snapshots.insert(name.as_str(), encode_record(name, record).as_slice())?;
                identifiers.insert(record.id, name.as_str())?;
            }
            numbers.insert("next", change.next)?;
        }
        transaction.commit()?;
        Ok(())
    }
}

/// All readable records, identifiers of the others, and the format's version.
fn load(database: &Database) -> Result<(State, Vec<u64>, u64), redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_quick_repair(true);
    {
        transaction.open_table(SNAPSHOTS)?;
        transaction.open_table(IDENTIFIERS)?;
        let mut numbers = transaction.open_table(NUMBERS)?;
        if numbers.get("version")?.is_none() {
            numbers.insert("version", VERSION)?;
        }
    }
    transaction.commit()?;

    let transaction = database.begin_read()?;
    let numbers = transaction.open_table(NUMBERS)?;
    let version = numbers.get("version")?.map_or(VERSION, |value| value.value());
    let next = numbers.get("next")?.map_or(1, |value| value.value());
    let mut records = BTreeMap::new();
    for entry in transaction.open_table(SNAPSHOTS)?.iter()? {
        let (name, bytes) = entry?;
        match decode_record(name.value(), bytes.value()) {
            Ok(record) => {
                records.insert(name.value().to_owned(), record);
            }
            Err(error) => {
                tracing::error!(name = name.value(), %error, "snapshot record is damaged; skipped");
            }
        }
    }
    let mut damaged = Vec::new();
    for entry in transaction.open_table(IDENTIFIERS)?.iter()? {
        let (id, name) = entry?;
        if records.get(name.value()).is_none_or(|record| record.id != id.value()) {
            damaged.push(id.value());
        }
    }
    Ok((State::load(records, next), damaged, version))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshotter::meta::{Kind, Labels, Timestamp, Usage};

    const NOW: Timestamp = Timestamp { seconds: 7, nanos: 0 };

    fn create(store: &MetaStore, key: &str, parent: &str) -> u64 {
        let writer = store.lock();
        let labels = Labels::from([("k".to_owned(), "v".to_owned())]);
        let (change, snapshot) =
            writer.state().create(Kind::Active, key, parent, &labels, NOW).unwrap();
        writer.commit(change).unwrap();
        snapshot.id
    }

    fn commit(store: &MetaStore, name: &str, key: &str) {
        let writer = store.lock();
        let usage = Usage { bytes: 1, inodes: 2 };
        let change = writer.state().commit(name, key, &Labels::new(), usage, NOW).unwrap();
        writer.commit(change).unwrap();
    }

    #[test]
    fn what_was_committed_is_there_after_opening_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("meta");
        let store = MetaStore::open(&path).unwrap();
        assert_eq!(create(&store, "a", ""), 1);
        commit(&store, "base", "a");
        assert_eq!(create(&store, "b", "base"), 2);
        let writer = store.lock();
        let (change, _) = writer.state().remove("b").unwrap();
        writer.commit(change).unwrap();
        drop(writer);
        let before = store.read().clone();
        drop(store);

        let store = MetaStore::open(&path).unwrap();
        assert_eq!(*store.read(), before);
        assert!(store.damaged().is_empty());
        assert_eq!(create(&store, "c", "base"), 3, "an identifier is never given out again");
    }

    #[test]
    fn a_damaged_record_hides_no_other_and_its_identifier_stays_known() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("meta");
        let store = MetaStore::open(&path).unwrap();
        create(&store, "a", "");
        create(&store, "b", "");
        let guard = store.database.lock().unwrap();
        let transaction = guard.as_ref().unwrap().begin_write().unwrap();
        {
            let mut table = transaction.open_table(SNAPSHOTS).unwrap();
            table.insert("a", [0u8; 40].as_slice()).unwrap();
        }
        transaction.commit().unwrap();
        drop(guard);
        store.close();

        let store = MetaStore::open(&path).unwrap();
        assert!(store.read().get("a").is_err());
        assert!(store.read().get("b").is_ok());
        assert_eq!(store.damaged(), [1]);
        assert_eq!(create(&store, "a", ""), 3);
    }

    #[test]
    fn a_later_version_and_a_second_process_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("meta");
        let store = MetaStore::open(&path).unwrap();
        assert!(matches!(MetaStore::open(&path), Err(OpenError::Database { .. })));
        let guard = store.database.lock().unwrap();
        let transaction = guard.as_ref().unwrap().begin_write().unwrap();
        transaction.open_table(NUMBERS).unwrap().insert("version", 2).unwrap();
        transaction.commit().unwrap();
        drop(guard);
        drop(store);
        assert!(matches!(MetaStore::open(&path), Err(OpenError::Version { found: 2, .. })));
    }
}
