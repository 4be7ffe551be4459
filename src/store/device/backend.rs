//! The database on the seam.

use std::io;
use std::sync::Arc;

use super::{DeviceFile, read_exact_at};
use crate::store::format::overlay::ReadAt;

/// Carries redb's storage over a device's file.
#[derive(Debug)]
pub struct DeviceBackend(Arc<dyn DeviceFile>);

impl DeviceBackend {
    /// Stores a database in `file`.
    pub fn new(file: Arc<dyn DeviceFile>) -> Self {
        Self(file)
    }
}

impl redb::StorageBackend for DeviceBackend {
    fn len(&self) -> io::Result<u64> {
        self.0.stat().map(|stat| stat.size)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        read_exact_at(&*self.0, offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        // Real space: a full disk is found when the file grows, between
        // commits, and not when pages are written in the middle of one.
        self.0.reserve(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_at(offset, data)
    }
}

impl ReadAt for DeviceBackend {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read_at(offset, buf)
    }

    fn len(&self) -> io::Result<u64> {
        self.0.stat().map(|stat| stat.size)
    }
}
