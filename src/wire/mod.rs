//! What nodes say to each other, byte by byte. Pure: no sockets, no clock.
//!
//! `docs/PROTOCOL.md` is the specification. A tunnel is a stream of [frames]
//! each of which is one [`Message`]; the first one each way is [`Hello`].
//!
//! Invariants:
//! - whatever comes in is bounded before it is allocated: a frame by its kind, a
//!   count by a constant, a compressed block by the length that it must have;
//! - what is decoded and encoded again is the same bytes: there is one way to
//!   say a thing;
//! - no input makes it panic, and none makes it recurse.
//!
//! [frames]: frame

mod blockset;
mod codec;
mod control;
pub mod frame;
mod fuzz;
mod have;
mod hello;
mod keep;
mod message;
mod request;

pub use blockset::{BLOCKS_MAX, BlockSet, RUNS_MAX};
pub use codec::WireError;
pub use control::{
    ASKED_MAX, Control, HOLDERS_MAX, Holder, IMAGE_LAYERS_MAX, IMAGES_LAYERS_MAX, IMAGES_MAX,
    OTHERS_MAX, SignedClaim,
};
pub use frame::{FRAME_MAX, HEADER, Header, Kind};
pub use fuzz::{fuzz_frames, fuzz_handshake, fuzz_message};
pub use have::{Applied, HOMES_MAX, Holding, Journal, Ledger, LedgerError, Mark, OBJECTS_MAX};
pub use hello::{
    Binding, Features, Hello, Limits, PROOFS_MAX, Proof, Role, VERSION, VersionError, Zone,
};
pub use keep::{Challenge, HELD_MAX, Keep, PROMISES_MAX, Reply};
pub use message::{
    HAVE_OBJECTS_MAX, Have, HaveBody, LAYERS_MAX, LayerNews, Message, PASS_PIECE, Refusal, Stage,
};
pub use request::{
    Class, DATA_MAX, Encoding, End, Extent, HANDED_MAX, Head, Home, IMAGE_LEN, Item, PART_SPEC_MAX,
    Place, RUN_MAX, Request, RequestId, decode_image, encode_image,
};
