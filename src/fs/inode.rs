//! Node numbers: what FUSE calls a nodeid and `stat` shows as `st_ino`.
//!
//! Invariant: a number says by itself what it stands for, and never comes to
//! stand for anything else. A fresh process resolves any number that an
//! earlier one gave out from the [`Catalog`](super::Catalog) alone; so there
//! is no inode table, and nothing to count on lookup and forget.
//!
//! ```text
//! bit 63 62..60 59..36   35..26    25..0
//!      0  kind   slot   position  node in its layer's tree
//! ```
//!
//! A *slot* is the persistent small number of a layer, a chain, an image view
//! or a name below `images/`; slots are never reused. A *position* counts the
//! layers of a chain from the bottom.
//!
//! - A file has one number wherever it shows, that of its layer: one inode,
//!   one page cache. The exception is a file whose number of hard links in a
//!   merged view is not that of its layer ([`Node::Counted`]).
//! - A directory has a number of its own in each view. The kernel allows one
//!   name for a directory inode: if two views shared it, looking it up in one
//!   would move it away from under those who stand in the other.

use std::fmt;

use crate::layer::tree::NodeIx;

const NODE_BITS: u32 = 26;
const POSITION_BITS: u32 = 10;
const SLOT_BITS: u32 = 24;

/// The persistent number of a layer, a chain, an image view or a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(u32);

impl Slot {
    /// One more than the highest slot: 16 million, and slots are used up only
    /// by what is new to this node.
    pub const LIMIT: u32 = 1 << SLOT_BITS;

    /// The slot with this number, if it is below [`Slot::LIMIT`].
    pub const fn new(number: u32) -> Option<Self> {
        if number < Self::LIMIT { Some(Self(number)) } else { None }
    }

    /// The number.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The place of a layer in a chain, counted from the bottom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Position(u16);

impl Position {
    /// The most layers a chain can have.
    pub const LIMIT: usize = 1 << POSITION_BITS;
    /// The bottom layer's.
    pub const BOTTOM: Self = Self(0);

    /// The position with this index, if it is below [`Position::LIMIT`].
    pub const fn new(index: usize) -> Option<Self> {
        if index < Self::LIMIT {
            // Below 2^10.
            Some(Self(index as u16))
        } else {
            None
        }
    }

    /// The index into the chain's layers, bottom first.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// The number of a node. Never 0; the root of a mount is always 1.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(u64);

impl NodeId {
    /// The root of every mount.
    pub const ROOT: Self = Self(1);

    /// A number that came from outside. Whether it stands for anything is for
    /// [`Node::decode`] to say.
    pub const fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    /// The number.
    pub const fn raw(self) -> u64 {
        self.0
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Node::decode(*self) {
            Some(node) => write!(f, "{:#x}={node:?}", self.0),
            None => write!(f, "{:#x}", self.0),
        }
    }
}

/// What a number stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Node {
    /// The root of a mount.
    Root,
    /// `layers/`
    Layers,
    /// `chains/`
    Chains,
    /// `images/`
    Images,
    /// `.peersync/`
    StatusDir,
    /// A file in `.peersync/`, by its index in the catalog's list.
    Status(u16),
    /// A directory below `images/` that is no image: a registry, or the
    /// beginning of a repository's name.
    Name(Slot),
    /// The symlink from a blob's digest to the layer in this slot.
    LayerLink(Slot),
    /// A node of one layer: everything below `layers/<name>/`, and every
    /// non-directory of the merged views.
    Layer(Slot, NodeIx),
    /// A directory of a merged view, named by the topmost layer that has it.
    Merged(Slot, Position, NodeIx),
    /// A non-directory that has another number of hard links in this chain
    /// than in its layer.
    Counted(Slot, Position, NodeIx),
}

// Numbers of kind 0 with slot 0 and position 0.
const ROOT: u64 = 1;
const LAYERS: u64 = 2;
const CHAINS: u64 = 3;
const IMAGES: u64 = 4;
const STATUS_DIR: u64 = 5;
const STATUS_FIRST: u64 = 1 << 16;
const STATUS_LAST: u64 = STATUS_FIRST + u16::MAX as u64;

const KIND_SHIFT: u32 = NODE_BITS + POSITION_BITS + SLOT_BITS;
const KIND_SYNTHETIC: u64 = 0;
const KIND_LAYER: u64 = 1;
const KIND_MERGED: u64 = 2;
const KIND_COUNTED: u64 = 3;
const KIND_NAME: u64 = 4;
const KIND_LINK: u64 = 5;

impl Node {
    /// The node's number.
    pub fn id(self) -> NodeId {
        let zero = Position(0);
        match self {
            Self::Root => NodeId(ROOT),
            Self::Layers => NodeId(LAYERS),
            Self::Chains => NodeId(CHAINS),
            Self::Images => NodeId(IMAGES),
            Self::StatusDir => NodeId(STATUS_DIR),
            Self::Status(index) => NodeId(STATUS_FIRST + u64::from(index)),
            Self::Name(slot) => pack(KIND_NAME, slot, zero, 0),
            Self::LayerLink(slot) => pack(KIND_LINK, slot, zero, 0),
            Self::Layer(slot, ix) => pack(KIND_LAYER, slot, zero, ix.0),
            Self::Merged(slot, position, ix) => pack(KIND_MERGED, slot, position, ix.0),
            Self::Counted(slot, position, ix) => pack(KIND_COUNTED, slot, position, ix.0),
        }
    }

    /// What a number stands for; `None` if no node can have it.
    pub fn decode(id: NodeId) -> Option<Self> {
        let field = |shift: u32, bits: u32| ((id.0 >> shift) & ((1 << bits) - 1)) as u32;
        let ix = NodeIx(field(0, NODE_BITS));
        let position = Position(field(NODE_BITS, POSITION_BITS) as u16);
        let slot = Slot(field(NODE_BITS + POSITION_BITS, SLOT_BITS));
        let node = match id.0 >> KIND_SHIFT {
            KIND_SYNTHETIC => match id.0 {
                ROOT => Self::Root,
                LAYERS => Self::Layers,
                CHAINS => Self::Chains,
                IMAGES => Self::Images,
                STATUS_DIR => Self::StatusDir,
                STATUS_FIRST..=STATUS_LAST => Self::Status((id.0 - STATUS_FIRST) as u16),
                _ => return None,
            },
            KIND_LAYER => Self::Layer(slot, ix),
            KIND_MERGED => Self::Merged(slot, position, ix),
            KIND_COUNTED => Self::Counted(slot, position, ix),
            KIND_NAME => Self::Name(slot),
            KIND_LINK => Self::LayerLink(slot),
            _ => return None,
        };
        // Fields that the kind does not use are zero in a number of ours.
        (node.id() == id).then_some(node)
    }
}

fn pack(kind: u64, slot: Slot, position: Position, ix: u32) -> NodeId {
    // Trees are refused at this size when they are opened.
    debug_assert!(ix < 1 << NODE_BITS, "node index {ix} is out of range");
    NodeId(
        kind << KIND_SHIFT
            | u64::from(slot.0) << (NODE_BITS + POSITION_BITS)
            | u64::from(position.0) << NODE_BITS
            | u64::from(ix),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_node() -> impl Strategy<Value = Node> {
        let slot = (0..Slot::LIMIT).prop_map(Slot);
        let position = (0..Position::LIMIT as u16).prop_map(Position);
        let ix = (0..1u32 << NODE_BITS).prop_map(NodeIx);
        prop_oneof![
            Just(Node::Root),
            Just(Node::Layers),
            Just(Node::Chains),
            Just(Node::Images),
            Just(Node::StatusDir),
            any::<u16>().prop_map(Node::Status),
            slot.clone().prop_map(Node::Name),
            slot.clone().prop_map(Node::LayerLink),
            (slot.clone(), ix.clone()).prop_map(|(s, i)| Node::Layer(s, i)),
            (slot.clone(), position.clone(), ix.clone())
                .prop_map(|(s, p, i)| Node::Merged(s, p, i)),
            (slot, position, ix).prop_map(|(s, p, i)| Node::Counted(s, p, i)),
        ]
    }

    proptest! {
        #[test]
        fn a_number_says_what_it_stands_for(node in any_node()) {
            prop_assert_eq!(Node::decode(node.id()), Some(node));
            prop_assert!(node.id().raw() != 0 && node.id().raw() <= i64::MAX as u64);
        }

        #[test]
        fn a_number_from_outside_is_ours_or_refused(raw in any::<u64>()) {
            if let Some(node) = Node::decode(NodeId::from_raw(raw)) {
                prop_assert_eq!(node.id().raw(), raw);
            }
        }
    }

    #[test]
    fn numbers_stay_what_they_were_in_earlier_versions() {
        let slot = Slot(0x12_3456);
        let position = Position(0x155);
        let ix = NodeIx(0x1ab_cdef);
        assert_eq!(Node::Root.id().raw(), 1);
        assert_eq!(Node::Layer(slot, ix).id().raw(), 0x1123_4560_01ab_cdef);
        assert_eq!(Node::Merged(slot, position, ix).id().raw(), 0x2123_4565_55ab_cdef);
        assert_eq!(Node::Counted(slot, position, ix).id().raw(), 0x3123_4565_55ab_cdef);
        assert_eq!(Node::Name(slot).id().raw(), 0x4123_4560_0000_0000);
        assert_eq!(Node::LayerLink(slot).id().raw(), 0x5123_4560_0000_0000);
        assert_eq!(Node::Status(2).id().raw(), 0x1_0002);
    }

    #[test]
    fn numbers_out_of_range_are_no_slots() {
        assert!(Slot::new(Slot::LIMIT).is_none());
        assert!(Slot::new(Slot::LIMIT - 1).is_some());
        assert!(Position::new(Position::LIMIT).is_none());
    }
}
