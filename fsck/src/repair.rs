//! Putting files right: dropping claims, and moving away what does not belong.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use peersync::store::format::bits;
use peersync::store::format::layout::{
    QUARANTINE_DIR, TEMP_SUFFIX, bits_path, data_path, object_dir,
};
use peersync::store::format::records::ObjectRecord;
use peersync::store::format::tables::Table;
use peersync::types::ObjectId;

use crate::FsckError;
use crate::checker::Checker;
use crate::data::{Claims, claims};
use crate::database::Snapshot;
use crate::objects::object_record;
use crate::open::at;

impl Checker<'_> {
    /// Drops the claims of these blocks.
    pub(crate) fn drop_blocks(
        &mut self,
        snapshot: &Snapshot,
        id: &ObjectId,
        blocks: impl Iterator<Item = u32>,
    ) -> Result<(), FsckError> {
        let Some(record) = object_record(snapshot, id)? else {
            return Ok(());
        };
        let mut words = match claims(&self.root, id, &record, |_| {}) {
            Ok(Claims::All) => all(record.blocks),
            Ok(Claims::Some(words)) => words,
            Err(_) => vec![0; record.blocks.div_ceil(64) as usize],
        };
        for index in blocks {
            if let Some(word) = words.get_mut(index as usize / 64) {
                *word &= !(1 << (index % 64));
            }
        }
        self.rewrite_claims(id, &record, &Claims::Some(words))
    }

    /// Drops all claims of an object, and its files.
    pub(crate) fn drop_all(
        &mut self,
        id: &ObjectId,
        record: &ObjectRecord,
    ) -> Result<(), FsckError> {
        let words = vec![0; record.blocks.div_ceil(64) as usize];
        self.rewrite_claims(id, record, &Claims::Some(words))
    }

    /// Makes `claims` what the object claims on the disk. The bitmap comes before
    /// the record, which follows with the next changes: claims that are in neither
    /// are only forgotten, and a repair that is broken off is made once more.
    pub(crate) fn rewrite_claims(
        &mut self,
        id: &ObjectId,
        record: &ObjectRecord,
        claims: &Claims,
    ) -> Result<(), FsckError> {
        let (true, Claims::Some(words)) = (self.repairs(), claims) else {
            return Ok(());
        };
        let bitmap = self.root.join(bits_path(id));
        if claims.any() {
            let mut bytes = bits::header(id, record.blocks).to_vec();
            for number in 0..bits::line_count(record.blocks) {
                bytes.extend(bits::line(id, number, &bits::line_bits(words, number)));
            }
            replace(&bitmap, &bytes)?;
        }
        if record.complete {
            let record = ObjectRecord { complete: false, ..*record };
            self.put(Table::Objects, id.as_bytes(), record.encode())?;
            self.delete(Table::Marks, id.as_bytes())?;
        }
        if !claims.any() {
            for path in [bitmap, self.root.join(data_path(id))] {
                remove(&path)?;
            }
            let dir = self.root.join(object_dir(id));
            if dir.exists() {
                sync_dir(&dir)?;
            }
        }
        Ok(())
    }

    /// Cuts a file that is too long.
    pub(crate) fn cut_file(&self, path: &str, len: u64) -> Result<(), FsckError> {
        if self.repairs() {
            let path = self.root.join(path);
            let file = std::fs::OpenOptions::new()
                .write(true)
                .custom_flags(nix::fcntl::OFlag::O_NOFOLLOW.bits())
                .open(&path)
                .map_err(|e| at(&path, e))?;
            file.set_len(len).and_then(|()| file.sync_all()).map_err(|e| at(&path, e))?;
        }
        Ok(())
    }

    /// Moves something that does not belong into the quarantine.
    pub(crate) fn quarantine(&self, path: &Path) -> Result<(), FsckError> {
        if !self.repairs() {
            return Ok(());
        }
        let dir = self.root.join(QUARANTINE_DIR);
        std::fs::create_dir_all(&dir).map_err(|e| at(&dir, e))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let free = (0..u32::MAX)
            .map(|n| dir.join(if n == 0 { name.clone() } else { format!("{name}.{n}") }))
            .find(|to| std::fs::symlink_metadata(to).is_err());
        let to = free.unwrap_or_else(|| dir.join(&name));
        std::fs::rename(path, &to).map_err(|e| at(path, e))
    }
}

/// The bits of all blocks.
fn all(blocks: u32) -> Vec<u64> {
    let mut words = vec![u64::MAX; blocks.div_ceil(64) as usize];
    if let Some(last) = words.last_mut()
        && !blocks.is_multiple_of(64)
    {
        *last = (1 << (blocks % 64)) - 1;
    }
    words
}

/// Removes a file; it may not be there.
pub(crate) fn remove(path: &Path) -> Result<(), FsckError> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(at(path, e)),
        _ => Ok(()),
    }
}

/// Replaces a file's content, so that after a crash there is the old or the new.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<(), FsckError> {
    let mut new = path.as_os_str().to_owned();
    new.push(TEMP_SUFFIX);
    let new = std::path::PathBuf::from(new);
    let write = || {
        remove_io(&new)?;
        let mut file =
            std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&new, path)
    };
    write().map_err(|e| at(path, e))?;
    sync_dir(path.parent().unwrap_or(path))
}

fn remove_io(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

fn sync_dir(path: &Path) -> Result<(), FsckError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(|e| at(path, e))
}
