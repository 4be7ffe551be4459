//! A damaged database: saying so, and saving what can be saved.

use std::cmp::Reverse;
use std::io;
use std::ops::Bound;
use std::os::unix::fs::FileExt;
use std::path::Path;

use peersync::store::format::layout::{META_FILE, META_TEMP, QUARANTINE_DIR};
use peersync::store::format::tables::Table;

use crate::FsckError;
use crate::database::{Change, DatabaseError, Db, HEADER_LEN, Header, Snapshot, payload};
use crate::open::{at, open_file};

/// Rows, and their bytes, that are written in one transaction.
const ROWS_MAX: usize = 4096;
const BYTES_MAX: usize = 4 << 20;

/// What is wrong with the database file; `None` if it is sound. Nothing is
/// written.
pub(crate) fn verify(path: &Path) -> Result<Option<String>, FsckError> {
    // redb would make a new database of it.
    if open_file(path).and_then(|file| file.metadata()).is_ok_and(|found| found.len() == 0) {
        return Ok(Some("the file is empty".into()));
    }
    let checked = Db::open(path, false).and_then(|mut db| {
        let sound = db.check_integrity()?;
        Ok((sound, db.snapshot()?.missing_table()?))
    });
    match checked {
        Ok((true, None)) => Ok(None),
        Ok((true, Some(table))) => Ok(Some(format!("table {table} is missing"))),
        Ok((false, _)) => Ok(Some("its pages contradict each other".into())),
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
    let mut copy = Copy { target: &target, rows: Vec::new(), bytes: 0, kept: 0, failed: None };
    if path.exists() {
        let template = read_header(&new).map_err(|e| at(&new, e))?;
        if let Some(db) = best_state(&path, &template)
            && let Ok(snapshot) = db.snapshot()
        {
            for table in Table::ALL {
                each_row(&snapshot, table, |key, value| copy.keep(table, key, value));
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

/// A way to open a damaged database.
#[derive(Debug, Clone, Copy)]
enum State {
    /// As redb repairs it.
    Repaired,
    /// As it is: what lies around the damage can be read.
    AsItIs,
    /// The newest commit that is whole, by a header of which only the commit slots
    /// are believed.
    OlderCommit,
}

impl State {
    fn open(self, path: &Path, template: &Header) -> Result<Db, DatabaseError> {
        match self {
            Self::Repaired => {
                let mut db = Db::open(path, false)?;
                db.check_integrity()?;
                Ok(db)
            }
            Self::AsItIs => Db::open(path, false),
            Self::OlderCommit => Db::open_over(path, |header| mend(header, template)),
        }
    }
}

/// The database in the state of which most records can be read.
fn best_state(path: &Path, template: &Header) -> Option<Db> {
    let readable = |state: &State| {
        let Ok(db) = state.open(path, template) else { return 0 };
        let Ok(snapshot) = db.snapshot() else { return 0 };
        let mut rows = 0u64;
        for table in Table::ALL {
            each_row(&snapshot, table, |key, value| {
                rows += u64::from(payload(table, key, value).is_ok());
            });
        }
        rows
    };
    let states = [State::Repaired, State::AsItIs, State::OlderCommit];
    let (best, _) =
        states.iter().zip(0..).max_by_key(|(state, n)| (readable(state), Reverse(*n)))?;
    best.open(path, template).ok()
}

fn read_header(path: &Path) -> io::Result<Header> {
    let mut header = [0; HEADER_LEN];
    open_file(path)?.read_exact_at(&mut header, 0)?;
    Ok(header)
}

/// Writes into a header what is the same in all of this program's databases, and
/// has redb look for the newest commit whose pages are whole: as after a crash, with
/// neither slot preferred. (redb's `docs/design.md`, "Super-header".)
fn mend(header: &mut Header, template: &Header) {
    /// Magic number; page size and region sizes; versions of the two slots.
    const SAME: [std::ops::Range<usize>; 4] = [0..9, 10..24, 64..65, 192..193];
    const FLAGS: usize = 9;
    const RECOVERY_REQUIRED: u8 = 2;
    const TWO_PHASE_COMMIT: u8 = 4;
    for range in SAME {
        header[range.clone()].copy_from_slice(&template[range]);
    }
    header[FLAGS] = header[FLAGS] & !TWO_PHASE_COMMIT | RECOVERY_REQUIRED;
}

/// Visits the rows of a table that can be read: all of them, or in 256 stretches by
/// the first byte of the key, each from both ends as far as that goes.
fn each_row(snapshot: &Snapshot, table: Table, mut visit: impl FnMut(&[u8], &[u8])) {
    let whole = (Bound::Unbounded, Bound::Unbounded);
    if snapshot.salvage(table, whole.0, whole.1, false, |_, _| {}) {
        snapshot.salvage(table, whole.0, whole.1, false, visit);
        return;
    }
    for first in 0..=u8::MAX {
        let from = [first];
        let to = [first.wrapping_add(1)];
        let from = Bound::Included(&from[..]);
        let to = if first == u8::MAX { Bound::Unbounded } else { Bound::Excluded(&to[..]) };
        for backwards in [false, true] {
            if snapshot.salvage(table, from, to, backwards, &mut visit) {
                break;
            }
        }
    }
}

struct Copy<'a> {
    target: &'a Db,
    rows: Vec<Change>,
    bytes: usize,
    kept: u64,
    failed: Option<DatabaseError>,
}

impl Copy<'_> {
    fn keep(&mut self, table: Table, key: &[u8], value: &[u8]) {
        if let Ok(payload) = payload(table, key, value) {
            self.rows.push(Change::Put(table, key.to_vec(), payload.to_vec()));
            self.bytes += key.len() + payload.len();
            self.kept += 1;
        }
        if self.rows.len() >= ROWS_MAX || self.bytes >= BYTES_MAX {
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
        self.bytes = 0;
    }
}
