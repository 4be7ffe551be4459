//! The metadata database: sealed records in redb, durable in batches.
//!
//! A change is visible at once and becomes durable with the next durable one.
//! redb refuses all work after one failed write; on a full disk that is an
//! ordinary event, so the database is then opened again, and the changes since
//! the last durable commit, which are kept here, are made once more.

use std::io::ErrorKind;
use std::ops::{Bound, ControlFlow};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use redb::{
    Database, Durability, ReadTransaction, ReadableDatabase, ReadableTableMetadata as _,
    StorageError, WriteTransaction,
};

use super::error::MetaError;
use crate::store::device::{Device, DeviceBackend, Mode, is_full};
use crate::store::format::keys;
use crate::store::format::layout::{META_FILE, META_TEMP, RESERVE_FILE};
use crate::store::format::overlay::Overlay;
use crate::store::format::records::{decode_number, encode_number};
use crate::store::format::tables::Table;
use crate::store::format::{seal, unseal};

/// Changes kept for a second try; beyond, a change is made durable at once.
const LOG_MAX: usize = 8 << 20;
/// Memory that reading a read-only store may take for redb's own writes.
const OVERLAY_MAX: usize = 64 << 20;
/// Size of the reserve that is given up on a full disk.
const RESERVE_LEN: u64 = 2 << 20;
/// Tables that this program's databases have.
const TABLES: u32 = Table::ALL.len() as u32;

/// Changes to be made together.
#[derive(Debug, Default)]
pub(super) struct Batch {
    rows: Vec<Row>,
    bytes: usize,
}

#[derive(Debug)]
struct Row {
    table: Table,
    key: Vec<u8>,
    value: Option<Vec<u8>>,
}

impl Batch {
    /// Writes a record; it is sealed here.
    pub(super) fn put(&mut self, table: Table, key: &[u8], payload: Vec<u8>) {
        let value = if table.is_index() { payload } else { seal(table.name(), key, payload) };
        self.push(table, key, Some(value));
    }

    pub(super) fn delete(&mut self, table: Table, key: &[u8]) {
        self.push(table, key, None);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    fn push(&mut self, table: Table, key: &[u8], value: Option<Vec<u8>>) {
        self.bytes += size_of::<Row>() + key.len() + value.as_ref().map_or(0, Vec::len);
        self.rows.push(Row { table, key: key.to_vec(), value });
    }
}

/// The database.
#[derive(Debug)]
pub(super) struct Meta {
    device: Arc<dyn Device>,
    cache: usize,
    read_only: bool,
    closed: AtomicBool,
    db: RwLock<Option<Database>>,
    writer: Mutex<Writer>,
}

#[derive(Debug, Default)]
struct Writer {
    /// Changes since the last durable commit.
    log: Batch,
    /// The log holds new objects.
    new_objects: bool,
}

impl Meta {
    /// Opens the database, which must exist.
    pub(super) fn open(
        device: Arc<dyn Device>,
        cache: usize,
        read_only: bool,
    ) -> Result<Self, MetaError> {
        let meta = Self::unopened(device, cache, read_only);
        let db = meta.open_database(META_FILE)?;
        *meta.db.write().unwrap_or_else(PoisonError::into_inner) = Some(db);
        meta.settle_tables()?;
        if !read_only {
            meta.restore_reserve();
        }
        Ok(meta)
    }

    fn unopened(device: Arc<dyn Device>, cache: usize, read_only: bool) -> Self {
        Self {
            device,
            cache,
            read_only,
            closed: AtomicBool::new(false),
            db: RwLock::new(None),
            writer: Mutex::default(),
        }
    }

    /// Makes an empty database. It gets its name when it is whole.
    pub(super) fn create(device: &Arc<dyn Device>) -> Result<(), MetaError> {
        device.unlink(META_TEMP).map_err(io_error)?;
        let maker = Self::unopened(Arc::clone(device), 1 << 20, false);
        let db = maker.open_database(META_TEMP)?;
        guarded(|| {
            make_tables(&db)?;
            drop(db);
            Ok(())
        })?;
        let file = device.open(META_TEMP, Mode::Write).map_err(io_error)?;
        file.sync_data().map_err(io_error)?;
        device.rename(META_TEMP, META_FILE).map_err(io_error)?;
        device.sync_dir(".").map_err(io_error)
    }

    /// Sees that every table is there: a damaged name must not pass for an empty
    /// table. A store from before there were some of them gets these.
    fn settle_tables(&self) -> Result<(), MetaError> {
        let stated = self.read(|view| {
            let stated = match view.get(Table::State, keys::STATE_TABLES)? {
                Some(row) => {
                    let number = decode_number(&row);
                    Some(number.map_err(|e| MetaError::record(Table::State.name(), e))?)
                }
                None => None,
            };
            for table in Table::required(stated) {
                if view.open_table(*table)?.is_none() {
                    return Err(damaged(format!("table {} is missing", table.name())));
                }
            }
            Ok(stated)
        })?;
        if self.read_only || stated.is_some_and(|stated| stated >= TABLES) {
            return Ok(());
        }
        let db = self.db();
        let db = db.as_ref().ok_or_else(unavailable)?;
        guarded(|| make_tables(db))
    }

    /// Reads at one point in time.
    pub(super) fn read<T, E: From<MetaError>>(
        &self,
        look: impl FnOnce(&View) -> Result<T, E>,
    ) -> Result<T, E> {
        let view = match self.begin_read() {
            Ok(view) => view,
            Err(_) => {
                // A write failed and the database could not be opened again yet.
                let mut writer = self.writer();
                self.reopen(&mut writer)?;
                self.begin_read()?
            }
        };
        guarded_as(|| look(&view))
    }

    /// Reads, then writes what `change` put into the batch; nobody else writes
    /// in between. Durable now, or visible now and durable with the next
    /// durable change.
    ///
    /// On an error nothing was changed, save that a durable change whose very
    /// last sync failed may be found made after a crash.
    pub(super) fn update<T, E: From<MetaError>>(
        &self,
        durable: bool,
        change: impl FnOnce(&View, &mut Batch) -> Result<T, E>,
    ) -> Result<T, E> {
        if self.read_only {
            return Err(MetaError::ReadOnly.into());
        }
        let mut writer = self.writer();
        if self.db().is_none() {
            self.reopen(&mut writer)?;
        }
        let mut batch = Batch::default();
        let out = {
            let view = self.begin_read()?;
            guarded_as(|| change(&view, &mut batch))?
        };
        self.apply(&mut writer, batch, durable)?;
        Ok(out)
    }

    /// Closes the database for good. Waits for those who write to it.
    pub(super) fn close(&self) {
        let _writer = self.writer();
        self.closed.store(true, Ordering::Release);
        let db = self.db.write().unwrap_or_else(PoisonError::into_inner).take();
        // redb panics rather than close over some failures.
        let _ = guarded(|| {
            drop(db);
            Ok(())
        });
    }

    /// Makes all changes so far durable.
    pub(super) fn sync(&self) -> Result<(), MetaError> {
        if self.writer().log.is_empty() {
            return Ok(());
        }
        self.update(true, |_, _| Ok(()))
    }

    /// Makes the records of new objects durable, if there are any that are not.
    pub(super) fn sync_objects(&self) -> Result<(), MetaError> {
        if self.writer().new_objects {
            self.sync()?;
        }
        Ok(())
    }

    /// Gives up the reserve, so that an eviction can be recorded on a full disk.
    pub(super) fn release_reserve(&self) {
        // Best effort: where it fails the eviction fails as it would have.
        let _ = self.device.unlink(RESERVE_FILE);
    }

    /// Takes the reserve again where there is space.
    pub(super) fn restore_reserve(&self) {
        let room = self.device.space().is_ok_and(|space| space.free > 16 * RESERVE_LEN);
        if room && let Ok(None) = self.device.stat(RESERVE_FILE) {
            // Best effort.
            let _ = self
                .device
                .open(RESERVE_FILE, Mode::Create)
                .and_then(|file| file.reserve(RESERVE_LEN));
        }
    }

    fn apply(&self, writer: &mut Writer, batch: Batch, durable: bool) -> Result<(), MetaError> {
        let durable = durable || writer.log.bytes + batch.bytes > LOG_MAX;
        if batch.is_empty() && (!durable || writer.log.is_empty()) {
            return Ok(());
        }
        let done = {
            let db = self.db();
            let db = db.as_ref().ok_or_else(unavailable)?;
            guarded(|| write(db, &batch, durable))
        };
        match done {
            Ok(()) if durable => *writer = Writer::default(),
            Ok(()) => {
                writer.new_objects |= batch.rows.iter().any(|row| row.table == Table::Objects);
                writer.log.bytes += batch.bytes;
                writer.log.rows.extend(batch.rows);
            }
            Err(e) => {
                // If this fails too, the next operation tries again.
                let _ = self.reopen(writer);
                return Err(e);
            }
        }
        Ok(())
    }

    /// Opens the database again after a failed write and makes the logged
    /// changes once more.
    fn reopen(&self, writer: &mut Writer) -> Result<(), MetaError> {
        if self.closed.load(Ordering::Acquire) {
            return Err(unavailable());
        }
        let mut slot = self.db.write().unwrap_or_else(PoisonError::into_inner);
        // redb panics rather than close over some failures.
        let old = slot.take();
        let _ = guarded(|| {
            drop(old);
            Ok(())
        });
        let db = self.open_database(META_FILE)?;
        if !writer.log.is_empty() {
            guarded(|| write(&db, &writer.log, false))?;
        }
        *slot = Some(db);
        Ok(())
    }

    fn open_database(&self, name: &str) -> Result<Database, MetaError> {
        let mode = match (self.read_only, name) {
            (true, _) => Mode::Read,
            (false, META_TEMP) => Mode::Create,
            (false, _) => Mode::Write,
        };
        let file = self.device.open(name, mode).map_err(io_error)?;
        let backend = DeviceBackend::new(file);
        let mut builder = Database::builder();
        builder.set_cache_size(self.cache);
        guarded(|| {
            if self.read_only {
                let overlay = Overlay::new(backend, OVERLAY_MAX)?;
                builder.create_with_backend(overlay).map_err(redb_error)
            } else {
                builder.create_with_backend(backend).map_err(redb_error)
            }
        })
    }

    fn begin_read(&self) -> Result<View, MetaError> {
        let db = self.db();
        let db = db.as_ref().ok_or_else(unavailable)?;
        guarded(|| Ok(View(db.begin_read().map_err(redb_error)?)))
    }

    fn db(&self) -> std::sync::RwLockReadGuard<'_, Option<Database>> {
        self.db.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Meta {
    /// A store that can't be opened to the end never closes its database itself.
    fn drop(&mut self) {
        self.close();
    }
}

fn begin(db: &Database, durable: bool) -> Result<WriteTransaction, MetaError> {
    let mut txn = db.begin_write().map_err(redb_error)?;
    // Without it, opening after a crash reads the whole database.
    txn.set_quick_repair(true);
    let durability = if durable { Durability::Immediate } else { Durability::None };
    txn.set_durability(durability)
        .map_err(|e| MetaError::Io(std::io::Error::other(e.to_string())))?;
    Ok(txn)
}

/// Makes the tables that are not there, and says that all are.
fn make_tables(db: &Database) -> Result<(), MetaError> {
    let txn = begin(db, true)?;
    for table in Table::ALL {
        txn.open_table(table.definition()).map_err(redb_error)?;
    }
    let row = seal(Table::State.name(), keys::STATE_TABLES, encode_number(TABLES));
    let mut state = txn.open_table(Table::State.definition()).map_err(redb_error)?;
    drop(state.insert(keys::STATE_TABLES, &row[..]).map_err(redb_error)?);
    drop(state);
    txn.commit().map_err(redb_error)
}

fn write(db: &Database, batch: &Batch, durable: bool) -> Result<(), MetaError> {
    let txn = begin(db, durable)?;
    let mut rows = batch.rows.iter().peekable();
    // A table is opened once for each run of rows of the same table.
    while let Some(first) = rows.peek() {
        let id = first.table;
        let mut table = txn.open_table(id.definition()).map_err(redb_error)?;
        while let Some(row) = rows.next_if(|row| row.table == id) {
            let old = match &row.value {
                Some(value) => table.insert(&row.key[..], &value[..]),
                None => table.remove(&row.key[..]),
            };
            drop(old.map_err(redb_error)?);
        }
    }
    txn.commit().map_err(redb_error)
}

/// The database at one point in time.
pub(super) struct View(ReadTransaction);

type OpenTable = redb::ReadOnlyTable<&'static [u8], &'static [u8]>;

impl View {
    /// `None` where the store is from before there was such a table: that it must
    /// be there was seen when the database was opened.
    fn open_table(&self, table: Table) -> Result<Option<OpenTable>, MetaError> {
        match self.0.open_table(table.definition()) {
            Err(redb::TableError::TableDoesNotExist(_)) if table.is_newer() => Ok(None),
            opened => opened.map(Some).map_err(redb_error),
        }
    }

    /// Rows in a table.
    pub(super) fn count(&self, table: Table) -> Result<u64, MetaError> {
        match self.open_table(table)? {
            Some(open) => open.len().map_err(redb_error),
            None => Ok(0),
        }
    }

    /// The payload of a record.
    pub(super) fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, MetaError> {
        let Some(open) = self.open_table(table)? else { return Ok(None) };
        match open.get(key).map_err(redb_error)? {
            None => Ok(None),
            Some(value) => payload(table, key, value.value()).map(|p| Some(p.to_vec())),
        }
    }

    /// At most `max` keys that come after `after`.
    pub(super) fn keys_after(
        &self,
        table: Table,
        after: Option<&[u8]>,
        max: usize,
    ) -> Result<Vec<Vec<u8>>, MetaError> {
        let Some(open) = self.open_table(table)? else { return Ok(Vec::new()) };
        let from = match after {
            Some(key) => Bound::Excluded(key),
            None => Bound::Unbounded,
        };
        let rows = open.range::<&[u8]>((from, Bound::Unbounded)).map_err(redb_error)?;
        rows.take(max)
            .map(|row| row.map(|(key, _)| key.value().to_vec()).map_err(redb_error))
            .collect()
    }

    pub(super) fn contains(&self, table: Table, key: &[u8]) -> Result<bool, MetaError> {
        let Some(open) = self.open_table(table)? else { return Ok(false) };
        Ok(open.get(key).map_err(redb_error)?.is_some())
    }

    /// Visits the records whose key begins with `prefix`, in order. A record
    /// that is damaged is passed over here; the checker names it.
    pub(super) fn scan(
        &self,
        table: Table,
        prefix: &[u8],
        mut visit: impl FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), MetaError> {
        let Some(open) = self.open_table(table)? else { return Ok(()) };
        for row in open.range::<&[u8]>(prefix..).map_err(redb_error)? {
            let (key, value) = row.map_err(redb_error)?;
            let key = key.value();
            if !key.starts_with(prefix) {
                break;
            }
            if let Ok(payload) = payload(table, key, value.value())
                && visit(key, payload).is_break()
            {
                break;
            }
        }
        Ok(())
    }
}

fn payload<'a>(table: Table, key: &[u8], value: &'a [u8]) -> Result<&'a [u8], MetaError> {
    if table.is_index() {
        return Ok(value);
    }
    unseal(table.name(), key, value).map_err(|e| MetaError::record(table.name(), e))
}

fn unavailable() -> MetaError {
    MetaError::Io(std::io::Error::other("the database is not open"))
}

fn io_error(error: std::io::Error) -> MetaError {
    if is_full(&error) { MetaError::Full } else { MetaError::Io(error) }
}

fn redb_error(error: impl Into<redb::Error>) -> MetaError {
    match error.into() {
        // What redb says of a file that is none of its own, or too short.
        redb::Error::Io(e)
            if matches!(e.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof) =>
        {
            damaged(e.to_string())
        }
        redb::Error::Io(e) => io_error(e),
        redb::Error::Corrupted(reason) => damaged(reason),
        other @ (redb::Error::TableDoesNotExist(_)
        | redb::Error::TableTypeMismatch { .. }
        | redb::Error::TypeDefinitionChanged { .. }
        | redb::Error::TableIsMultimap(_)
        | redb::Error::UpgradeRequired(_)
        | redb::Error::RepairAborted) => damaged(other.to_string()),
        other => MetaError::Io(std::io::Error::other(other.to_string())),
    }
}

fn damaged(reason: String) -> MetaError {
    MetaError::Damaged { table: "database", reason }
}

/// Runs redb code. It asserts what a damaged file can break; such a panic is an
/// error of ours to report, never the end of the process.
fn guarded<T>(work: impl FnOnce() -> Result<T, MetaError>) -> Result<T, MetaError> {
    guarded_as(work)
}

fn guarded_as<T, E: From<MetaError>>(work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(done) => done,
        Err(panic) => {
            let text = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("inconsistent");
            Err(damaged(text.chars().take(200).collect()).into())
        }
    }
}

impl From<StorageError> for MetaError {
    fn from(error: StorageError) -> Self {
        redb_error(error)
    }
}
