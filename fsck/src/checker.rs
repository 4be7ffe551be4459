//! The check of a closed store, stage by stage.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use peersync::store::format::layout::{
    FORMAT_FILE, FORMAT_VERSION, META_FILE, OBJECTS_DIR, format_text,
};
use peersync::store::format::tables::Table;
use peersync::types::Hex;

use crate::database::{Change, DatabaseError, Db, Snapshot};
use crate::open::{self, at};
use crate::repair::replace;
use crate::report::{Finding, Kind, Mode, Report};
use crate::{FsckError, Options, Progress, salvage};

/// Changes that are made in one transaction, and their bytes.
const CHANGES_MAX: usize = 4096;
const CHANGED_BYTES_MAX: usize = 4 << 20;
/// Layers to be forgotten whose rows are known to follow; the rows of further ones
/// are found as if nobody had said why.
const LOST_MAX: usize = 1 << 18;

/// A check under way.
pub(crate) struct Checker<'a> {
    pub(crate) root: PathBuf,
    pub(crate) options: &'a Options,
    pub(crate) progress: &'a dyn Progress,
    pub(crate) report: Report,
    /// Slots of layers that are to be forgotten: their rows follow.
    pub(crate) lost: BTreeSet<u32>,
    /// The next object number, once one was given.
    pub(crate) next_object: Option<u32>,
    db: Option<Db>,
    changes: Vec<Change>,
    changed_bytes: usize,
}

impl<'a> Checker<'a> {
    pub(crate) fn new(root: &Path, options: &'a Options, progress: &'a dyn Progress) -> Self {
        let mode = if options.repair { Mode::Repair } else { Mode::Check };
        Self {
            root: root.to_owned(),
            options,
            progress,
            report: Report::new(root.display().to_string(), mode),
            lost: BTreeSet::new(),
            next_object: None,
            db: None,
            changes: Vec::new(),
            changed_bytes: 0,
        }
    }

    /// All stages. Records come first, since they say what the files mean.
    pub(crate) fn run(mut self) -> Result<Report, FsckError> {
        self.check_format()?;
        if self.open_database()? {
            self.check_records()?;
            self.check_objects()?;
            self.check_contents()?;
            self.adopt_objects()?;
            self.check_layers()?;
            self.check_files()?;
            self.check_data()?;
            self.check_indexes()?;
            self.check_references()?;
            self.check_slots()?;
            self.check_staging()?;
        }
        self.flush()?;
        Ok(self.report)
    }

    pub(crate) fn repairs(&self) -> bool {
        self.options.repair
    }

    /// Adds a finding that is put right in a repair.
    pub(crate) fn found(
        &mut self,
        kind: Kind,
        place: impl Into<String>,
        message: impl Into<String>,
    ) {
        let repaired = self.repairs();
        self.found_as(kind, place, message, repaired);
    }

    /// Adds a finding that is put right, or not.
    pub(crate) fn found_as(
        &mut self,
        kind: Kind,
        place: impl Into<String>,
        message: impl Into<String>,
        repaired: bool,
    ) {
        let (place, message) = (place.into(), message.into());
        self.report.add(Finding { kind, place, message, block: None, repaired });
    }

    /// Notes that a layer is to be forgotten.
    pub(crate) fn lose(&mut self, slot: u32) {
        if self.lost.len() < LOST_MAX {
            self.lost.insert(slot);
        }
    }

    /// Deletes a row, in a repair.
    pub(crate) fn delete(&mut self, table: Table, key: &[u8]) -> Result<(), FsckError> {
        self.change(Change::Delete(table, key.to_vec()))
    }

    /// Writes a row, in a repair.
    pub(crate) fn put(
        &mut self,
        table: Table,
        key: &[u8],
        payload: Vec<u8>,
    ) -> Result<(), FsckError> {
        self.change(Change::Put(table, key.to_vec(), payload))
    }

    fn change(&mut self, change: Change) -> Result<(), FsckError> {
        if self.repairs() {
            self.changed_bytes += change.bytes();
            self.changes.push(change);
            if self.changes.len() >= CHANGES_MAX || self.changed_bytes >= CHANGED_BYTES_MAX {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Makes the pending changes.
    pub(crate) fn flush(&mut self) -> Result<(), FsckError> {
        let changes = std::mem::take(&mut self.changes);
        self.changed_bytes = 0;
        if !changes.is_empty()
            && let Some(db) = &self.db
        {
            db.write(&changes)?;
        }
        Ok(())
    }

    /// The database as it is after all changes so far.
    pub(crate) fn snapshot(&mut self) -> Result<Snapshot, FsckError> {
        self.flush()?;
        match &self.db {
            Some(db) => Ok(db.snapshot()?),
            None => Err(DatabaseError::Damaged("not open".into()).into()),
        }
    }

    fn check_format(&mut self) -> Result<(), FsckError> {
        if open::version(&self.root)?.is_some() {
            return Ok(());
        }
        let path = self.root.join(FORMAT_FILE);
        if self.repairs() {
            replace(&path, format_text(FORMAT_VERSION).as_bytes())?;
        }
        self.found(Kind::Format, FORMAT_FILE, "the format file is missing or damaged");
        Ok(())
    }

    /// Opens the database and has redb verify its pages. `false` if there is
    /// nothing more to check.
    fn open_database(&mut self) -> Result<bool, FsckError> {
        self.progress.stage("database", None);
        let path = self.root.join(META_FILE);
        let objects = self.root.join(OBJECTS_DIR);
        let damage = match open::open_file(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let used = std::fs::read_dir(&objects).is_ok_and(|mut dirs| dirs.next().is_some());
                if !used {
                    // Made, and never opened.
                    return Ok(false);
                }
                Some("the database is missing".to_owned())
            }
            Err(e) => return Err(at(&path, e)),
            Ok(_) => salvage::verify(&path)?,
        };
        match damage {
            None => {
                self.db = Some(Db::open(&path, self.repairs())?);
                Ok(true)
            }
            Some(reason) if self.repairs() => {
                let kept = salvage::rebuild(&self.root)?;
                self.found(Kind::Database, META_FILE, reason);
                self.report.note(format!(
                    "the database was rebuilt from {kept} records; the damaged one is in quarantine/"
                ));
                self.db = Some(Db::open(&path, true)?);
                Ok(true)
            }
            Some(reason) => {
                self.found(Kind::Database, META_FILE, reason);
                self.report.skip("everything else: the database must be repaired first");
                Ok(false)
            }
        }
    }
}

/// A table and key as a place.
pub(crate) fn row(table: Table, key: &[u8]) -> String {
    const SHOWN: usize = 48;
    let shown = &key[..key.len().min(SHOWN)];
    let more = if key.len() > SHOWN { "..." } else { "" };
    match std::str::from_utf8(shown) {
        Ok(text) if !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic()) => {
            format!("{}/{text}{more}", table.name())
        }
        _ => format!("{}/{}{more}", table.name(), Hex(shown)),
    }
}
