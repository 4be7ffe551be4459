//! Pins: what is not to be evicted; and whether neighbours rely on what is here.

use super::objects::object_record;
use super::open::collect;
use super::{MetaError, Store};
use crate::store::format::keys;
use crate::store::format::records::{decode_number, decode_time, encode_number, encode_time};
use crate::store::format::tables::Table;
use crate::types::ObjectId;

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

    /// Notes that promises are given to neighbours, or that all have expired; durable
    /// when this returns.
    ///
    /// # Errors
    /// [`MetaError`].
    pub fn set_promised(&self, promised: bool) -> Result<(), MetaError> {
        self.inner.meta.update(true, |_, batch| {
            batch.put(Table::State, keys::STATE_PROMISED, encode_number(u32::from(promised)));
            Ok(())
        })
    }

    /// Whether promises were given that may not have expired when the store was
    /// used last.
    ///
    /// # Errors
    /// [`MetaError`].
    pub fn is_promised(&self) -> Result<bool, MetaError> {
        self.inner.meta.read(|view| {
            let Some(payload) = view.get(Table::State, keys::STATE_PROMISED)? else {
                return Ok(false);
            };
            let number = decode_number(&payload);
            number.map(|n| n != 0).map_err(|e| MetaError::record(Table::State.name(), e))
        })
    }

    /// Whether all of an object is here and would outlast a loss of power.
    ///
    /// # Errors
    /// [`MetaError`] where its record can't be read.
    pub fn is_durable(&self, id: &ObjectId) -> Result<bool, MetaError> {
        if self.inner.is_removing(id) || !self.is_complete(id) {
            return Ok(false);
        }
        let record = self.inner.meta.read(|view| object_record(view, id))?;
        Ok(record.is_some_and(|record| record.complete))
    }
}
