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
    /// All tables.
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

    /// Whether a store of version 1 may lack it: it is then empty.
    pub const fn is_newer(self) -> bool {
        matches!(self, Self::Accesses | Self::Pins)
    }

    /// The table as redb wants it.
    pub const fn definition(self) -> Definition {
        TableDefinition::new(self.name())
    }
}
