//! Roots of layer indexes that turned out to be lies, kept as evidence and so
//! that nobody believes their builders again.

use std::io;

use super::Store;
use crate::store::device::{Kind, Mode, read_whole};
use crate::store::format::layout::{QUARANTINE_DIR, ROOT_SUFFIX, TEMP_SUFFIX};
use crate::store::format::records::ROOT_MAX;
use crate::types::Digest;

/// Most roots that are looked at; an operator may empty the directory.
const ROOTS_MAX: usize = 1024;

impl Store {
    /// Keeps the root of a layer whose content is not what it says; durable when
    /// this returns.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn quarantine_root(&self, blob: &Digest, root: &[u8]) -> io::Result<()> {
        let device = &self.inner.device;
        let path = format!("{QUARANTINE_DIR}/{}{ROOT_SUFFIX}", blob.file_name());
        let temp = format!("{path}{TEMP_SUFFIX}");
        let file = device.open(&temp, Mode::Create)?;
        file.set_len(0)?;
        file.write_at(0, root)?;
        file.sync_data()?;
        device.rename(&temp, &path)?;
        device.sync_dir(QUARANTINE_DIR)
    }

    /// The roots that [`Store::quarantine_root`] kept, as they were given; at
    /// most 1,024.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn quarantined_roots(&self) -> io::Result<Vec<Vec<u8>>> {
        let device = &self.inner.device;
        let mut roots = Vec::new();
        for (name, kind) in device.read_dir(QUARANTINE_DIR)? {
            if kind == Kind::File && name.ends_with(ROOT_SUFFIX) && roots.len() < ROOTS_MAX {
                let file = device.open(&format!("{QUARANTINE_DIR}/{name}"), Mode::Read)?;
                roots.push(read_whole(&*file, ROOT_MAX as u64)?);
            }
        }
        Ok(roots)
    }
}
