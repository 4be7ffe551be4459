//! First passes that were not finished.

use std::path::Path;

use peersync::store::format::checkpoint::Checkpoint;
use peersync::store::format::keys;
use peersync::store::format::layout::{
    CHECKPOINT_NAMES, STAGING_DIR, Stream, data_path, staging_path,
};
use peersync::store::format::records::PromotionRecord;
use peersync::store::format::tables::Table;
use peersync::types::Digest;

use crate::FsckError;
use crate::checker::{Checker, row};
use crate::database::Snapshot;
use crate::files::each_entry;
use crate::open::{at, is_damage, read_small};
use crate::report::Kind;

/// Largest checkpoint that is looked at, in bytes: the format's own bound on
/// its parts.
const CHECKPOINT_MAX: u64 = 128 << 20;

impl Checker<'_> {
    /// A first pass that can't go on is a leftover: nothing in it is content
    /// of the store yet. Strangers go into quarantine.
    pub(crate) fn check_staging(&mut self) -> Result<(), FsckError> {
        self.progress.stage("staging", None);
        let dir = self.root.join(STAGING_DIR);
        if !dir.is_dir() {
            if self.repairs() {
                std::fs::create_dir(&dir).map_err(|e| at(&dir, e))?;
            }
            self.found(Kind::Stranger, STAGING_DIR, "the staging directory is missing");
            return Ok(());
        }
        each_entry(&dir, |entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            let is_dir = entry.file_type().map_err(|e| at(&entry.path(), e))?.is_dir();
            match format!("sha256:{name}").parse::<Digest>() {
                Ok(blob) if is_dir => self.check_stage(&blob, entry),
                _ => self.strange(entry),
            }
        })?;
        self.check_promotions()
    }

    fn check_stage(&mut self, blob: &Digest, entry: &std::fs::DirEntry) -> Result<(), FsckError> {
        let snapshot = self.snapshot()?;
        let mut checkpoints = 0;
        each_entry(&entry.path(), |file| {
            let (path, name) = (file.path(), file.file_name().to_string_lossy().into_owned());
            let is_file = file.file_type().map_err(|e| at(&path, e))?.is_file();
            if is_file && CHECKPOINT_NAMES.contains(&&name[..]) {
                if self.is_usable(&snapshot, blob, &path)? {
                    checkpoints += 1;
                } else {
                    let place = format!("{STAGING_DIR}/{}/{name}", blob.hex());
                    self.report.note(format!("{place}: torn or damaged; nothing goes on from it"));
                }
                Ok(())
            } else if is_file && Stream::from_file_name(&name).is_some() {
                Ok(())
            } else {
                self.strange(file)
            }
        })?;
        if checkpoints == 0 {
            let place = format!("{STAGING_DIR}/{}", blob.hex());
            self.report.note(format!("{place}: a first pass without a checkpoint begins anew"));
        }
        Ok(())
    }

    /// Whether a first pass can go on from a checkpoint: all of its streams are as
    /// long as it says, or have become objects.
    fn is_usable(
        &self,
        snapshot: &Snapshot,
        blob: &Digest,
        path: &Path,
    ) -> Result<bool, FsckError> {
        let bytes = match read_small(path, CHECKPOINT_MAX) {
            Ok(bytes) => bytes,
            Err(e) if is_damage(&e) => return Ok(false),
            Err(e) => return Err(at(path, e)),
        };
        let Ok(checkpoint) = Checkpoint::decode(&bytes) else { return Ok(false) };
        for (stream, length) in checkpoint.streams {
            let file = self.root.join(staging_path(blob, stream));
            let staged = std::fs::symlink_metadata(file);
            if !staged.is_ok_and(|found| found.is_file() && found.len() >= length)
                && !snapshot.contains(Table::Promotions, &keys::promotion(blob, stream))?
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// A staged file that was to become an object is under one of the names.
    fn check_promotions(&mut self) -> Result<(), FsckError> {
        let snapshot = self.snapshot()?;
        snapshot.scan(Table::Promotions, &[], |key, payload| {
            let record = payload.ok().and_then(|p| PromotionRecord::decode(p).ok());
            let (Some((blob, stream)), Some(record)) = (keys::parse_promotion(key), record) else {
                return Ok(());
            };
            if record.done {
                return Ok(());
            }
            let staged = self.root.join(staging_path(&blob, stream)).exists();
            let object = self.root.join(data_path(&record.object)).exists();
            if !staged && !object {
                self.found(Kind::Relation, row(Table::Promotions, key), "the file is nowhere");
                self.delete(Table::Promotions, key)?;
            }
            Ok::<_, FsckError>(())
        })
    }
}
