//! Slots: what nodeids are made of.

use peersync::store::format::keys;
use peersync::store::format::records::{ChainRecord, SlotOwner, decode_number, encode_number};
use peersync::store::format::tables::Table;

use crate::FsckError;
use crate::checker::{Checker, row};
use crate::database::Snapshot;
use crate::relations::{layer_of, slot_owner};
use crate::report::Kind;

impl Checker<'_> {
    /// Every slot belongs to somebody who says so too, and the counter is above
    /// all of them.
    pub(crate) fn check_slot_owners(&mut self) -> Result<(), FsckError> {
        let snapshot = self.snapshot()?;
        let mut highest = 0;
        snapshot.scan(Table::Slots, &[], |key, payload| {
            self.progress.advance(1);
            let owner = payload.ok().and_then(|p| SlotOwner::decode(p).ok());
            let (Some(slot), Some(owner)) = (keys::parse_number(key), owner) else {
                return Ok(());
            };
            highest = highest.max(slot);
            if let SlotOwner::Name(name) = &owner
                && !snapshot.contains(Table::Names, name.as_bytes())?
            {
                // Its nodeids may be in use: the name keeps its slot.
                self.found(Kind::Relation, row(Table::Slots, key), "its name is not on record");
                return self.put(Table::Names, name.as_bytes(), encode_number(slot));
            }
            if !claims_slot(&snapshot, slot, &owner)? {
                self.found(Kind::Relation, row(Table::Slots, key), "its owner is not on record");
                self.delete(Table::Slots, key)?;
            }
            Ok::<_, FsckError>(())
        })?;
        let snapshot = self.snapshot()?;
        snapshot.scan(Table::Names, &[], |key, payload| {
            let Some(slot) = payload.ok().and_then(|p| decode_number(p).ok()) else {
                return Ok(());
            };
            let name = String::from_utf8_lossy(key).into_owned();
            if slot_owner(&snapshot, slot)? != Some(SlotOwner::Name(name)) {
                self.found(Kind::Relation, row(Table::Names, key), "its slot is another's");
                self.delete(Table::Names, key)?;
            }
            Ok::<_, FsckError>(())
        })?;
        self.check_counter(keys::STATE_NEXT_SLOT, highest)
    }
}

fn claims_slot(snapshot: &Snapshot, slot: u32, owner: &SlotOwner) -> Result<bool, FsckError> {
    match owner {
        SlotOwner::Layer(_) => Ok(layer_of(snapshot, slot)?.is_some()),
        SlotOwner::Chain(digest) => {
            let payload = snapshot.get(Table::Chains, digest.as_bytes())?.good();
            let chain = payload.and_then(|payload| ChainRecord::decode(&payload).ok());
            Ok(chain.is_some_and(|chain| chain.slot == slot))
        }
        SlotOwner::Name(name) => {
            let payload = snapshot.get(Table::Names, name.as_bytes())?.good();
            Ok(payload.and_then(|payload| decode_number(&payload).ok()) == Some(slot))
        }
    }
}
