//! The metadata database, row by row, without the engine.
//!
//! Nothing that redb does with a damaged file may end the checker: its panics
//! are caught and become errors.

use std::cell::Cell;
use std::cmp::Ordering;
use std::io::ErrorKind;
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use peersync::store::format::keys;
use peersync::store::format::overlay::Overlay;
use peersync::store::format::records::decode_number;
use peersync::store::format::tables::Table;
use peersync::store::format::{RecordError, seal, unseal};
use redb::{
    Database, ReadOnlyTable, ReadTransaction, ReadableDatabase, ReadableTableMetadata,
    StorageBackend,
};

use crate::open::open_file;

/// Memory for redb's pages; what is not in it the kernel has.
const CACHE: usize = 8 << 20;
/// Memory for what redb writes when nothing may be written to the file.
const OVERLAY: usize = 256 << 20;

/// Bytes of redb's header: 64, and two commit slots of 128 bytes.
pub(crate) const HEADER_LEN: usize = 320;
/// redb's header, as it stands at the beginning of the file.
pub(crate) type Header = [u8; HEADER_LEN];

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

impl Change {
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Put(_, key, payload) => key.len() + payload.len(),
            Self::Delete(_, key) => key.len(),
        }
    }
}

/// An open database; `None` only while it is dropped.
#[derive(Debug)]
pub(crate) struct Db(Option<Database>);

impl Drop for Db {
    fn drop(&mut self) {
        // Closing writes, and asserts what a damaged file can break.
        let db = self.0.take();
        let _ = guarded(|| {
            drop(db);
            Ok(())
        });
    }
}

impl Db {
    /// Opens the database at `path`; the file is changed only if `writable`.
    pub(crate) fn open(path: &Path, writable: bool) -> Result<Self, DatabaseError> {
        if !writable {
            return Self::open_over(path, |_| {});
        }
        guarded(|| Ok(Self(Some(builder().open(path).map_err(redb_error)?))))
    }

    /// Opens the database at `path` with another header, which `mend` makes of the
    /// one that is there. The file is not changed.
    pub(crate) fn open_over(
        path: &Path,
        mend: impl FnOnce(&mut Header),
    ) -> Result<Self, DatabaseError> {
        guarded(|| {
            let file = open_file(path)?;
            let overlay = Overlay::new(file, OVERLAY)?;
            if overlay.len()? >= HEADER_LEN as u64 {
                let mut header = [0; HEADER_LEN];
                overlay.read(0, &mut header)?;
                let found = header;
                mend(&mut header);
                if header != found {
                    overlay.write(0, &header)?;
                }
            }
            let db = builder().create_with_backend(overlay).map_err(redb_error)?;
            Ok(Self(Some(db)))
        })
    }

    /// Makes a new database with all tables.
    pub(crate) fn create(path: &Path) -> Result<Self, DatabaseError> {
        guarded(|| {
            let db = Self(Some(Database::builder().create(path).map_err(redb_error)?));
            db.write_inner(&[])?;
            Ok(db)
        })
    }

    /// Lets redb verify the checksum of every page. `false` if it had to go
    /// back to an older state of the database.
    pub(crate) fn check_integrity(&mut self) -> Result<bool, DatabaseError> {
        guarded(|| match &mut self.0 {
            Some(db) => db.check_integrity().map_err(redb_error),
            None => Err(closed()),
        })
    }

    pub(crate) fn snapshot(&self) -> Result<Snapshot, DatabaseError> {
        guarded(|| Ok(Snapshot(self.inner()?.begin_read().map_err(redb_error)?)))
    }

    /// Makes changes, durably.
    pub(crate) fn write(&self, changes: &[Change]) -> Result<(), DatabaseError> {
        guarded(|| self.write_inner(changes))
    }

    fn write_inner(&self, changes: &[Change]) -> Result<(), DatabaseError> {
        let mut txn = self.inner()?.begin_write().map_err(redb_error)?;
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

    fn inner(&self) -> Result<&Database, DatabaseError> {
        self.0.as_ref().ok_or_else(closed)
    }
}

fn builder() -> redb::Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE);
    builder
}

fn closed() -> DatabaseError {
    DatabaseError::Damaged("not open".into())
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
    /// The name of a table that must be there and is not: one that the database
    /// says it has, or that all databases have.
    pub(crate) fn missing_table(&self) -> Result<Option<&'static str>, DatabaseError> {
        let stated = self.get(Table::State, keys::STATE_TABLES)?.good();
        let stated = stated.and_then(|payload| decode_number(&payload).ok());
        for table in Table::required(stated) {
            match guarded(|| Ok(self.0.open_table(table.definition())))? {
                Ok(_) => {}
                Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Some(table.name())),
                Err(e) => return Err(redb_error(e)),
            }
        }
        Ok(None)
    }

    /// `None` where the store is from before there was such a table; that all are
    /// there that must be was seen first.
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

    /// Visits rows between two keys, from one end or the other, until one can't be
    /// read or is out of order. `true` if all could.
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
            let mut last: Option<Vec<u8>> = None;
            loop {
                let row = if backwards { rows.next_back() } else { rows.next() };
                let Some(row) = row else { return Ok(()) };
                let (key, value) = row.map_err(redb_error)?;
                let key = key.value();
                // Pages that a damaged one leads to may be any, and lead in a circle.
                let order = last.as_deref().map(|last| key.cmp(last));
                let expected = if backwards { Ordering::Less } else { Ordering::Greater };
                if order.is_some_and(|order| order != expected) {
                    return Err(DatabaseError::Damaged("keys out of order".into()));
                }
                keep(key, value.value());
                last = Some(key.to_vec());
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
