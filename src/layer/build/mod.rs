//! The pass over a blob that makes its index and its objects.
//!
//! Two machines that may run on different threads: a [`Decompressor`] turns the
//! blob into the uncompressed stream and finds the places where decoding can
//! begin; a [`LayerBuilder`] turns the stream into blocks, literals and the
//! index. Both take bytes as they come and hold only what their bounds allow.
//!
//! # Resuming
//! Right after a [`Decoded::Point`], [`Decompressor::save`] gives the first
//! machine's state. Once the second has been fed all that came before the point,
//! everything that it was fed is in the sink or in [`LayerBuilder::tails`]. To
//! resume: [`Decompressor::restore`], and a [`Replay`] up to the point's stream
//! offset, which reads back what the sink and the tails hold.

mod cutter;
mod decompress;
mod layer;
mod replay;

#[cfg(test)]
mod tests;

pub use decompress::{DecodeLimits, Decoded, DecompressError, Decompressed, Decompressor};
pub use layer::{
    BuildError, BuildObject, BuiltLayer, Expected, LayerBuilder, NullSink, Sink, SinkError, Tails,
};
pub use replay::Replay;
