//! Pins: what is not to be evicted.

use super::open::collect;
use super::{MetaError, Store};
use crate::store::format::records::{decode_time, encode_time};
use crate::store::format::tables::Table;

impl Store {
    /// Pins what `name` stands for (an image's reference or a layer's digest) at
    /// `now` in seconds since 1970; durable when this returns.
    ///
    /// # Errors
    /// [`MetaError`].
    pub fn pin(&self, name: &str, now: u64) -> Result<(), MetaError> {
        self.inner.meta.update(true, |_, batch| {
            batch.put(Table::Pins, name.as_bytes(), encode_time(now));
            Ok(())
        })
    }

    /// Takes a pin away and tells whether there was one.
    ///
    /// # Errors
    /// [`MetaError`].
    pub fn unpin(&self, name: &str) -> Result<bool, MetaError> {
        self.inner.meta.update(true, |view, batch| {
            let there = view.contains(Table::Pins, name.as_bytes())?;
            batch.delete(Table::Pins, name.as_bytes());
            Ok(there)
        })
    }

    /// All pins, by name, with when they were set.
    ///
    /// # Errors
    /// [`MetaError`].
    pub fn pins(&self) -> Result<Vec<(String, u64)>, MetaError> {
        collect(&self.inner.meta, Table::Pins, &[], |key, payload| {
            Some((std::str::from_utf8(key).ok()?.to_owned(), decode_time(payload).ok()?))
        })
    }
}
