//! The tables of the metadata database.
//!
//! Keys and values are byte strings in redb; their fields are ours. Every value
//! is a [sealed](super::seal) record save in the pure index tables, whose rows
//! have empty values and repeat what another record says, and are compared
//! with it whenever they are used.

use redb::TableDefinition;

/// A table of byte strings.
pub type Definition = TableDefinition<'static, &'static [u8], &'static [u8]>;

/// Blocks of an object after this many are not in [`Table::BlockIndex`]: an
/// object of 128 GiB is not looked through for single blocks to copy.
pub const INDEXED_BLOCKS_MAX: u32 = 1 << 18;

/// Tables of a database that does not say how many it has: those of the first
/// stores. `state` of a later one has a row [`STATE_TABLES`](super::keys::STATE_TABLES).
pub const FIRST_TABLES: u32 = 21;

/// One of the store's tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Table {
    /// Text key to counters and session state.
    State,
    /// Object id to [`ObjectRecord`](super::records::ObjectRecord).
    Objects,
    /// Object number to object id.
    Numbers,
    /// Object number, chunk number to a stretch of the block list.
    Specs,
    /// Index: block hash (16 bytes), object number, block index.
    BlockIndex,
    /// Object id to [`VerifiedMark`](super::records::VerifiedMark).
    Marks,
    /// Object id: its files are being removed.
    Removing,
    /// Blob digest and stream to the object that the staged file becomes.
    Promotions,
    /// Object number, offset to whole-content hash and length.
    Contents,
    /// Index: content hash (16 bytes), object number, offset.
    ContentIndex,
    /// Layer key to [`LayerRecord`](super::records::LayerRecord).
    Layers,
    /// Layer slot, object id to the object's role in the layer.
    LayerObjects,
    /// Index: object id, layer slot: who needs the object.
    References,
    /// Blob digest to [`BlobRecord`](super::records::BlobRecord).
    Blobs,
    /// Index: object id, blob digest: which blobs contain the object.
    Homes,
    /// Blob digest, repository: where the blob can be had.
    Origins,
    /// Slot to its [`SlotOwner`](super::records::SlotOwner).
    Slots,
    /// Chain digest to [`ChainRecord`](super::records::ChainRecord).
    Chains,
    /// Path to slot.
    Names,
    /// Reference to [`ImageRecord`](super::records::ImageRecord).
    Images,
    /// Digest to the document's bytes.
    Documents,
    /// Object id to when it was last used.
    Accesses,
    /// Name of an image or digest of a layer to when it was pinned.
    Pins,
}

impl Table {
    /// All tables, in the order in which the format got them: a new one is the last.
    pub const ALL: [Self; 23] = [
        Self::State,
        Self::Objects,
        Self::Numbers,
        Self::Specs,
        Self::BlockIndex,
        Self::Marks,
        Self::Removing,
        Self::Promotions,
        Self::Contents,
        Self::ContentIndex,
        Self::Layers,
        Self::LayerObjects,
        Self::References,
        Self::Blobs,
        Self::Homes,
        Self::Origins,
        Self::Slots,
        Self::Chains,
        Self::Names,
        Self::Images,
        Self::Documents,
        Self::Accesses,
        Self::Pins,
    ];

    /// The table's name in the database.
    pub const fn name(self) -> &'static str {
        match self {
            Self::State => "state",
            Self::Objects => "objects",
            Self::Numbers => "numbers",
            Self::Specs => "specs",
            Self::BlockIndex => "block_index",
            Self::Marks => "marks",
            Self::Removing => "removing",
            Self::Promotions => "promotions",
            Self::Contents => "contents",
            Self::ContentIndex => "content_index",
            Self::Layers => "layers",
            Self::LayerObjects => "layer_objects",
            Self::References => "references",
            Self::Blobs => "blobs",
            Self::Homes => "homes",
            Self::Origins => "origins",
            Self::Slots => "slots",
            Self::Chains => "chains",
            Self::Names => "names",
            Self::Images => "images",
            Self::Documents => "documents",
            Self::Accesses => "accesses",
            Self::Pins => "pins",
        }
    }

    /// Whether rows have empty values and no seal.
    pub const fn is_index(self) -> bool {
        matches!(self, Self::BlockIndex | Self::ContentIndex | Self::References | Self::Homes)
    }

    /// The tables that a database must have which says that it has `stated` tables,
    /// or does not say (`None`). Those of a newer program are not known here.
    pub fn required(stated: Option<u32>) -> &'static [Self] {
        let all: &'static [Self] = &Self::ALL;
        let count = stated.unwrap_or(FIRST_TABLES).max(FIRST_TABLES) as usize;
        &all[..count.min(all.len())]
    }

    /// Whether a store of the first programs lacks it until it is opened by a newer
    /// one: it is then empty.
    pub fn is_newer(self) -> bool {
        !Self::required(None).contains(&self)
    }

    /// The table as redb wants it.
    pub const fn definition(self) -> Definition {
        TableDefinition::new(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_must_have_the_tables_that_it_says() {
        assert!(Table::Pins.is_newer() && Table::Accesses.is_newer());
        assert!(!Table::Documents.is_newer());
        assert_eq!(Table::required(None), &Table::ALL[..21]);
        assert_eq!(Table::required(Some(22)), &Table::ALL[..22]);
        // A damaged row takes none away, and what a newer program has is its own.
        assert_eq!(Table::required(Some(0)).len(), 21);
        assert_eq!(Table::required(Some(u32::MAX)), &Table::ALL);
    }
}
