//! The metadata database, row by row, without the engine.
//!
//! Nothing that redb does with a damaged file may end the checker: its panics
//! are caught and become errors.

use std::cell::Cell;
use std::fs::File;
use std::io::ErrorKind;
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use peersync::store::format::overlay::Overlay;
use peersync::store::format::tables::Table;
use peersync::store::format::{RecordError, seal, unseal};
use redb::{Database, ReadOnlyTable, ReadTransaction, ReadableDatabase, ReadableTableMetadata};

/// Memory for redb's pages.
const CACHE: usize = 32 << 20;
/// Memory for what redb writes when nothing may be written to the file.
const OVERLAY: usize = 256 << 20;

/// Why the database can't be used.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// It contradicts itself.
    #[error("{0}")]
    Damaged(String),
    /// The disk failed, or is full.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// A change that a repair makes.
#[derive(Debug)]
pub(crate) enum Change {
    Put(Table, Vec<u8>, Vec<u8>),
    Delete(Table, Vec<u8>),
}

/// An open database.
#[derive(Debug)]
pub(crate) struct Db(Database);

impl Db {
    /// Opens the database at `path`; the file is changed only if `writable`.
    pub(crate) fn open(path: &Path, writable: bool) -> Result<Self, DatabaseError> {
        let mut builder = Database::builder();
        builder.set_cache_size(CACHE);
        guarded(|| {
            let db = if writable {
                builder.open(path).map_err(redb_error)?
            } else {
                let overlay = Overlay::new(File::open(path)?, OVERLAY)?;
                builder.create_with_backend(overlay).map_err(redb_error)?
            };
            Ok(Self(db))
        })
    }

    /// Makes a new database with all tables.
    pub(crate) fn create(path: &Path) -> Result<Self, DatabaseError> {
        guarded(|| {
            let db = Self(Database::builder().create(path).map_err(redb_error)?);
            db.write_inner(&[])?;
            Ok(db)
        })
    }

    /// Lets redb verify the checksum of every page. `false` if it had to go
    /// back to an older state of the database.
    pub(crate) fn check_integrity(&mut self) -> Result<bool, DatabaseError> {
        guarded(|| self.0.check_integrity().map_err(redb_error))
    }

    pub(crate) fn snapshot(&self) -> Result<Snapshot, DatabaseError> {
        guarded(|| Ok(Snapshot(self.0.begin_read().map_err(redb_error)?)))
    }

    /// Makes changes, durably.
    pub(crate) fn write(&self, changes: &[Change]) -> Result<(), DatabaseError> {
        guarded(|| self.write_inner(changes))
    }

    fn write_inner(&self, changes: &[Change]) -> Result<(), DatabaseError> {
        let mut txn = self.0.begin_write().map_err(redb_error)?;
        txn.set_quick_repair(true);
        for table in Table::ALL {
            let mut open = txn.open_table(table.definition()).map_err(redb_error)?;
            for change in changes {
                match change {
                    Change::Put(t, key, payload) if *t == table => {
                        let value = if table.is_index() {
                            payload.clone()
                        } else {
                            seal(table.name(), key, payload.clone())
                        };
                        drop(open.insert(&key[..], &value[..]).map_err(redb_error)?);
                    }
                    Change::Delete(t, key) if *t == table => {
                        drop(open.remove(&key[..]).map_err(redb_error)?);
                    }
                    _ => {}
                }
            }
        }
        txn.commit().map_err(redb_error)
    }
}

/// The database at one point in time.
pub(crate) struct Snapshot(ReadTransaction);

/// What stands under a key.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Lookup {
    Absent,
    Damaged(RecordError),
    Good(Vec<u8>),
}

impl Lookup {
    pub(crate) fn good(self) -> Option<Vec<u8>> {
        match self {
            Self::Good(payload) => Some(payload),
            _ => None,
        }
    }
}

type Open = ReadOnlyTable<&'static [u8], &'static [u8]>;

impl Snapshot {
    /// `None` where the store is from before there was such a table.
    fn table(&self, table: Table) -> Result<Option<Open>, DatabaseError> {
        match self.0.open_table(table.definition()) {
            Err(redb::TableError::TableDoesNotExist(_)) if table.is_newer() => Ok(None),
            opened => opened.map(Some).map_err(redb_error),
        }
    }

    pub(crate) fn get(&self, table: Table, key: &[u8]) -> Result<Lookup, DatabaseError> {
        guarded(|| {
            let Some(open) = self.table(table)? else { return Ok(Lookup::Absent) };
            let Some(value) = open.get(key).map_err(redb_error)? else {
                return Ok(Lookup::Absent);
            };
            Ok(match payload(table, key, value.value()) {
                Ok(payload) => Lookup::Good(payload.to_vec()),
                Err(e) => Lookup::Damaged(e),
            })
        })
    }

    pub(crate) fn contains(&self, table: Table, key: &[u8]) -> Result<bool, DatabaseError> {
        guarded(|| {
            let Some(open) = self.table(table)? else { return Ok(false) };
            Ok(open.get(key).map_err(redb_error)?.is_some())
        })
    }

    /// Rows in a table.
    pub(crate) fn count(&self, table: Table) -> Result<u64, DatabaseError> {
        guarded(|| match self.table(table)? {
            Some(open) => open.len().map_err(redb_error),
            None => Ok(0),
        })
    }

    /// Visits the rows whose key begins with `prefix`, in order, with their
    /// payload or what is wrong with it.
    pub(crate) fn scan<E: From<DatabaseError>>(
        &self,
        table: Table,
        prefix: &[u8],
        mut visit: impl FnMut(&[u8], Result<&[u8], RecordError>) -> Result<(), E>,
    ) -> Result<(), E> {
        let Some(open) = guarded(|| self.table(table))? else { return Ok(()) };
        let mut rows = guarded(|| open.range::<&[u8]>(prefix..).map_err(redb_error))?;
        while let Some(row) = guarded(|| rows.next().transpose().map_err(redb_error))? {
            let key = row.0.value();
            if !key.starts_with(prefix) {
                break;
            }
            visit(key, payload(table, key, row.1.value()))?;
        }
        Ok(())
    }

    /// Copies rows between two keys, from one end or the other, until one can't
    /// be read. `true` if all could.
    pub(crate) fn salvage(
        &self,
        table: Table,
        from: Bound<&[u8]>,
        to: Bound<&[u8]>,
        backwards: bool,
        mut keep: impl FnMut(&[u8], &[u8]),
    ) -> bool {
        let done = guarded(|| {
            let Some(open) = self.table(table)? else { return Ok(()) };
            let mut rows = open.range::<&[u8]>((from, to)).map_err(redb_error)?;
            loop {
                let row = if backwards { rows.next_back() } else { rows.next() };
                let Some(row) = row else { return Ok(()) };
                let (key, value) = row.map_err(redb_error)?;
                if payload(table, key.value(), value.value()).is_ok() {
                    keep(key.value(), value.value());
                }
            }
        });
        done.is_ok()
    }
}

/// A value without its seal.
pub(crate) fn payload<'a>(
    table: Table,
    key: &[u8],
    value: &'a [u8],
) -> Result<&'a [u8], RecordError> {
    if !table.is_index() {
        unseal(table.name(), key, value)
    } else if value.is_empty() {
        Ok(value)
    } else {
        Err(RecordError::Malformed)
    }
}

fn redb_error(error: impl Into<redb::Error>) -> DatabaseError {
    match error.into() {
        // What redb says of a file that is none of its own, or too short.
        redb::Error::Io(e)
            if !matches!(e.kind(), ErrorKind::UnexpectedEof | ErrorKind::InvalidData) =>
        {
            DatabaseError::Io(e)
        }
        other => DatabaseError::Damaged(other.to_string()),
    }
}

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Whether a panic of this thread will be caught and reported as a finding; a
/// panic hook then has nothing to say.
pub fn panic_is_expected() -> bool {
    GUARDED.get()
}

fn guarded<T>(work: impl FnOnce() -> Result<T, DatabaseError>) -> Result<T, DatabaseError> {
    let before = GUARDED.replace(true);
    let done = catch_unwind(AssertUnwindSafe(work));
    GUARDED.set(before);
    done.unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("inconsistent");
        Err(DatabaseError::Damaged(text.chars().take(200).collect()))
    })
}
