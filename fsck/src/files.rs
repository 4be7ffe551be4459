//! Files: what stands in the store's directories, and whether it belongs there.

use std::fs::DirEntry;
use std::path::Path;

use peersync::store::format::layout::{
    CONTROL_SOCKET, FORMAT_FILE, FORMAT_TEMP, LOCK_FILE, META_FILE, META_TEMP, OBJECTS_DIR,
    OWNER_LOG, ObjectFile, QUARANTINE_DIR, RESERVE_FILE, STAGING_DIR, parse_object_file,
};
use peersync::store::format::tables::Table;

use crate::FsckError;
use crate::checker::Checker;
use crate::database::Snapshot;
use crate::objects::object_record;
use crate::open::at;
use crate::repair::remove;
use crate::report::Kind;

const FILES: [&str; 10] = [
    FORMAT_FILE,
    FORMAT_TEMP,
    LOCK_FILE,
    META_FILE,
    META_TEMP,
    RESERVE_FILE,
    OWNER_LOG,
    // The node's secret key.
    "node.key",
    // Nodes that were good peers, by network.
    "peers.json",
    "peers.json.new",
];
/// The last one is the snapshotter's.
const DIRS: [&str; 4] = [OBJECTS_DIR, STAGING_DIR, QUARANTINE_DIR, "snapshotter"];

impl Checker<'_> {
    /// Every file below `objects/` belongs to an object; nothing else is there,
    /// and no links. What does not belong goes into quarantine, since nothing
    /// vouches for it and nothing says that it is wrong.
    pub(crate) fn check_files(&mut self) -> Result<(), FsckError> {
        self.progress.stage("files", None);
        let snapshot = self.snapshot()?;
        let root = self.root.clone();
        each_entry(&root, |entry| {
            let name = entry.file_name();
            let kind = entry.file_type().map_err(|e| at(&entry.path(), e))?;
            let name = name.to_string_lossy();
            let fine = FILES.contains(&&*name) && kind.is_file()
                || DIRS.contains(&&*name) && kind.is_dir()
                || [CONTROL_SOCKET, "lost+found"].contains(&&*name);
            if !fine {
                // Not touched: it may be somebody's, and harms nobody here.
                self.report.note(format!("{name}: does not belong into a store"));
            }
            Ok(())
        })?;
        let objects = root.join(OBJECTS_DIR);
        if !objects.is_dir() {
            if self.repairs() {
                std::fs::create_dir(&objects).map_err(|e| at(&objects, e))?;
            }
            self.found(Kind::Stranger, OBJECTS_DIR, "the directory of objects is missing");
            return Ok(());
        }
        each_entry(&objects, |entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            let kind = entry.file_type().map_err(|e| at(&entry.path(), e))?;
            let hex = name.len() == 2
                && name.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
            if hex && kind.is_dir() {
                each_entry(&entry.path(), |file| self.check_file(&snapshot, &name, file))
            } else {
                self.strange(entry)
            }
        })
    }

    fn check_file(
        &mut self,
        snapshot: &Snapshot,
        dir: &str,
        entry: &DirEntry,
    ) -> Result<(), FsckError> {
        self.progress.advance(1);
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        let kind = entry.file_type().map_err(|e| at(&path, e))?;
        let place = format!("{OBJECTS_DIR}/{dir}/{name}");
        match parse_object_file(dir, &name) {
            Some(_) if !kind.is_file() => self.strange(entry),
            Some(ObjectFile::Data(id)) => {
                let record = object_record(snapshot, &id)?;
                if record.is_none() && !snapshot.contains(Table::Removing, id.as_bytes())? {
                    self.found(Kind::Orphan, place, "a data file without a record");
                    self.quarantine(&path)?;
                }
                Ok(())
            }
            Some(ObjectFile::Bits(id)) => match object_record(snapshot, &id)? {
                None => {
                    self.found(Kind::Orphan, place, "a bitmap without a record");
                    self.quarantine(&path)
                }
                // The record has the last word; a crash may leave the bitmap.
                Some(record) if record.complete => {
                    self.report.note(format!("{place}: left over from before completion"));
                    if self.repairs() { remove(&path) } else { Ok(()) }
                }
                Some(_) => Ok(()),
            },
            Some(ObjectFile::Temp(_)) => {
                self.report.note(format!("{place}: a bitmap that was being written"));
                if self.repairs() { remove(&path) } else { Ok(()) }
            }
            None => self.strange(entry),
        }
    }

    /// Something that the engine never makes.
    pub(crate) fn strange(&mut self, entry: &DirEntry) -> Result<(), FsckError> {
        let path = entry.path();
        let kind = entry.file_type().map_err(|e| at(&path, e))?;
        let what = if kind.is_symlink() {
            "a symbolic link"
        } else if kind.is_dir() {
            "a strange directory"
        } else if kind.is_file() {
            "a strange file"
        } else {
            "neither file nor directory"
        };
        let place = path.strip_prefix(&self.root).unwrap_or(&path).display().to_string();
        self.found(Kind::Stranger, place, what);
        self.quarantine(&path)
    }
}

/// Visits the entries of a directory as they come; there may be many.
pub(crate) fn each_entry(
    dir: &Path,
    mut visit: impl FnMut(&DirEntry) -> Result<(), FsckError>,
) -> Result<(), FsckError> {
    for entry in std::fs::read_dir(dir).map_err(|e| at(dir, e))? {
        visit(&entry.map_err(|e| at(dir, e))?)?;
    }
    Ok(())
}
