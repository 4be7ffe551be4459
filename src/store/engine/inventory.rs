//! What a checker is told of a store that is in use.
//!
//! A consistent inventory: each object's bits are taken at one moment, and what
//! they claim is in the data file at that moment. Later removals are the
//! checker's to find out, by asking for the object again.

use std::collections::VecDeque;
use std::fmt::Write as _;

use super::{Inner, MetaError, Store};
use crate::store::format::inventory::{BLOCKS_PER_LINE, InventoryLine};
use crate::store::format::keys;
use crate::store::format::tables::Table;
use crate::types::{Hex, ObjectId};

/// Objects that are looked up at a time.
const PAGE: usize = 128;

/// The lines of an inventory; see [`InventoryLine`]. Memory is bounded by the
/// largest object's block list.
#[derive(Debug)]
pub struct Inventory<'a> {
    inner: &'a Inner,
    last: Option<Vec<u8>>,
    ids: VecDeque<ObjectId>,
    current: Option<Current>,
    objects: u64,
    state: State,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    All,
    /// The objects in `ids` only.
    Listed,
    Ended,
}

/// The object whose block list is being given.
#[derive(Debug)]
struct Current {
    spec: std::sync::Arc<crate::types::ObjectSpec>,
    present: Vec<u64>,
    next: u32,
}

impl Store {
    /// The inventory of all objects.
    pub fn inventory(&self) -> Inventory<'_> {
        self.inventory_of(State::All, VecDeque::new())
    }

    /// The inventory of one object; nothing but the end if it is not known.
    pub fn inventory_object(&self, id: &ObjectId) -> Inventory<'_> {
        self.inventory_of(State::Listed, VecDeque::from([*id]))
    }

    fn inventory_of(&self, state: State, ids: VecDeque<ObjectId>) -> Inventory<'_> {
        Inventory { inner: &self.inner, last: None, ids, current: None, objects: 0, state }
    }
}

impl Iterator for Inventory<'_> {
    type Item = InventoryLine;

    fn next(&mut self) -> Option<InventoryLine> {
        loop {
            if let Some(current) = &mut self.current {
                if let Some(line) = current.line() {
                    return Some(line);
                }
                self.current = None;
            }
            if let Some(id) = self.ids.pop_front() {
                if let Some(line) = self.object(&id) {
                    self.objects += 1;
                    return Some(line);
                }
                continue;
            }
            match self.state {
                State::Ended => return None,
                State::Listed => return Some(self.end()),
                State::All => match self.page() {
                    Ok(true) => {}
                    Ok(false) => return Some(self.end()),
                    Err(e) => {
                        self.state = State::Ended;
                        let message = e.to_string();
                        return Some(InventoryLine::Error { message });
                    }
                },
            }
        }
    }
}

impl Inventory<'_> {
    fn end(&mut self) -> InventoryLine {
        self.state = State::Ended;
        InventoryLine::End { objects: self.objects }
    }

    fn page(&mut self) -> Result<bool, MetaError> {
        let keys: Vec<Vec<u8>> = self
            .inner
            .meta
            .read(|view| view.keys_after(Table::Objects, self.last.as_deref(), PAGE))?;
        let Some(last) = keys.last() else {
            return Ok(false);
        };
        self.last = Some(last.clone());
        self.ids = keys.iter().filter_map(|k| keys::parse_object(k)).collect();
        Ok(true)
    }

    fn object(&mut self, id: &ObjectId) -> Option<InventoryLine> {
        let entry = match self.inner.entry(id) {
            Ok(entry) => entry,
            // Removed since.
            Err(super::ReadError::Unknown(_)) => return None,
            Err(e) => {
                return Some(InventoryLine::Damaged {
                    object: id.to_string(),
                    reason: e.to_string(),
                });
            }
        };
        let present = entry.present.snapshot();
        let line = InventoryLine::Object {
            object: id.to_string(),
            block_size: entry.spec.block_size(),
            length: entry.spec.length(),
            blocks: entry.spec.block_count(),
            complete: entry.present.is_full(&present),
        };
        self.current = Some(Current { spec: std::sync::Arc::clone(&entry.spec), present, next: 0 });
        Some(line)
    }
}

impl Current {
    fn line(&mut self) -> Option<InventoryLine> {
        let first = self.next;
        let end = first.saturating_add(BLOCKS_PER_LINE).min(self.spec.block_count());
        if first == end {
            return None;
        }
        self.next = end;
        let mut bits = vec![0u8; (end - first).div_ceil(8) as usize];
        let mut list = String::with_capacity(72 * (end - first) as usize);
        for index in first..end {
            if self.present[index as usize / 64] & (1 << (index % 64)) != 0 {
                bits[(index - first) as usize / 8] |= 1 << ((index - first) % 8);
            }
            if let Some(block) = self.spec.block(index) {
                // Writing to a string does not fail.
                let _ = write!(list, "{}", Hex(&block.len.to_le_bytes()));
                let _ = write!(list, "{}", Hex(block.hash.as_bytes()));
            }
        }
        Some(InventoryLine::Blocks { first, present: Hex(&bits).to_string(), list })
    }
}
