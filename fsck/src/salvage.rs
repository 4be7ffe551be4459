//! A damaged database: saying so, and saving what can be saved.

use std::ops::Bound;
use std::path::Path;

use peersync::store::format::layout::{META_FILE, META_TEMP, QUARANTINE_DIR};
use peersync::store::format::tables::Table;

use crate::FsckError;
use crate::database::{Change, DatabaseError, Db, Snapshot, payload};
use crate::open::at;

/// Rows that are written in one transaction.
const ROWS_MAX: usize = 4096;

/// What is wrong with the database file; `None` if it is sound. Nothing is
/// written.
pub(crate) fn verify(path: &Path) -> Result<Option<String>, FsckError> {
    let checked = Db::open(path, false).and_then(|mut db| {
        let sound = db.check_integrity()?;
        // All tables are there.
        let snapshot = db.snapshot()?;
        for table in Table::ALL {
            snapshot.count(table)?;
        }
        Ok(sound)
    });
    match checked {
        Ok(true) => Ok(None),
        Ok(false) => Ok(Some("its pages contradict each other".into())),
        Err(DatabaseError::Damaged(reason)) => Ok(Some(reason)),
        Err(e) => Err(e.into()),
    }
}

/// Makes a new database of all records that can be read and whose seals hold,
/// and puts the damaged one into quarantine. Gives the number of records.
pub(crate) fn rebuild(root: &Path) -> Result<u64, FsckError> {
    let (path, new) = (root.join(META_FILE), root.join(META_TEMP));
    if new.exists() {
        std::fs::remove_file(&new).map_err(|e| at(&new, e))?;
    }
    let target = Db::create(&new)?;
    let mut copy = Copy { target: &target, rows: Vec::new(), kept: 0, failed: None };
    if path.exists() {
        // As redb repairs it, else as it is, else nothing.
        let repaired = Db::open(&path, false)
            .and_then(|mut db| db.check_integrity().map(|_| db))
            .or_else(|_| Db::open(&path, false));
        if let Ok(db) = repaired
            && let Ok(snapshot) = db.snapshot()
        {
            for table in Table::ALL {
                copy.table(&snapshot, table);
            }
        }
    }
    copy.flush();
    if let Some(e) = copy.failed {
        return Err(e.into());
    }
    let kept = copy.kept;
    drop(target);
    let quarantine = root.join(QUARANTINE_DIR);
    std::fs::create_dir_all(&quarantine).map_err(|e| at(&quarantine, e))?;
    if path.exists() {
        let name = (0..u32::MAX)
            .map(|n| quarantine.join(format!("meta-{n}")))
            .find(|name| !name.exists())
            .unwrap_or_else(|| quarantine.join("meta"));
        std::fs::rename(&path, &name).map_err(|e| at(&name, e))?;
    }
    std::fs::rename(&new, &path).map_err(|e| at(&path, e))?;
    for dir in [root, &quarantine] {
        let synced = std::fs::File::open(dir).and_then(|dir| dir.sync_all());
        synced.map_err(|e| at(dir, e))?;
    }
    Ok(kept)
}

struct Copy<'a> {
    target: &'a Db,
    rows: Vec<Change>,
    kept: u64,
    failed: Option<DatabaseError>,
}

impl Copy<'_> {
    /// Copies a table in 256 stretches by the first byte of the key; a stretch
    /// that can't be read through is copied from both ends.
    fn table(&mut self, snapshot: &Snapshot, table: Table) {
        let whole = (Bound::Unbounded, Bound::Unbounded);
        let mut rows = 0u64;
        let fine = snapshot.salvage(table, whole.0, whole.1, false, |_, _| rows += 1);
        if fine {
            snapshot.salvage(table, whole.0, whole.1, false, |key, value| {
                self.keep(table, key, value);
            });
            return;
        }
        for first in 0..=u8::MAX {
            let from = [first];
            let to = [first.wrapping_add(1)];
            let from = Bound::Included(&from[..]);
            let to = if first == u8::MAX { Bound::Unbounded } else { Bound::Excluded(&to[..]) };
            for backwards in [false, true] {
                let fine = snapshot.salvage(table, from, to, backwards, |key, value| {
                    self.keep(table, key, value);
                });
                if fine {
                    break;
                }
            }
        }
    }

    fn keep(&mut self, table: Table, key: &[u8], value: &[u8]) {
        if let Ok(payload) = payload(table, key, value) {
            self.rows.push(Change::Put(table, key.to_vec(), payload.to_vec()));
            self.kept += 1;
        }
        if self.rows.len() >= ROWS_MAX {
            self.flush();
        }
    }

    fn flush(&mut self) {
        if self.failed.is_none()
            && !self.rows.is_empty()
            && let Err(e) = self.target.write(&self.rows)
        {
            self.failed = Some(e);
        }
        self.rows.clear();
    }
}
