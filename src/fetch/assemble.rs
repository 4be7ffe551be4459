//! From a layer's stream to blocks. Pure.
//!
//! A run of the stream passes through once; every block that lies in it as a
//! whole comes out, whoever asked for the run. Blocks that are cut by the run's
//! ends, or that nobody needs, cost no copy.

use std::collections::HashMap;
use std::iter::Peekable;

use bytes::{Bytes, BytesMut};

use crate::types::ObjectSpec;

/// A stretch of the stream that is content of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// First byte in the stream.
    pub stream: u64,
    /// Number of the object in the layer.
    pub object: u32,
    /// First byte in the object.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
}

/// A block as it came out of the stream, not verified yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RawBlock {
    /// Number of the object in the layer.
    pub object: u32,
    /// Number of the block in the object.
    pub index: u32,
    /// The bytes that the stream has for it.
    pub data: Bytes,
}

/// Cuts blocks out of a stream that is fed in order. Holds at most one open
/// block per object that is interleaved at a place: the bundle's and one file's.
pub(super) struct Assembler<'a, I: Iterator<Item = Stretch>, N> {
    specs: &'a [std::sync::Arc<ObjectSpec>],
    stretches: Peekable<I>,
    /// Stream offset of the next byte to be fed.
    position: u64,
    open: HashMap<u32, Open>,
    needed: N,
}

/// An assembler that has been put aside between two stretches of its stream.
pub(super) struct CutState {
    position: u64,
    open: HashMap<u32, Open>,
}

impl CutState {
    /// Whether a block that begins at this place of the stream is under way.
    pub(super) fn has_begun(&self, stream: u64) -> bool {
        self.open.values().any(|open| open.began == stream && open.data.is_some())
    }

    /// Bytes of unfinished blocks in it.
    pub(super) fn bytes(&self) -> usize {
        self.open.values().filter_map(|open| open.data.as_ref()).map(BytesMut::len).sum()
    }
}

struct Open {
    index: u32,
    /// Where the block's first byte lies in the stream.
    began: u64,
    /// `None`: the block is let pass.
    data: Option<BytesMut>,
    /// Bytes of the block that are still to come.
    left: u64,
}

impl<'a, I, N> Assembler<'a, I, N>
where
    I: Iterator<Item = Stretch>,
    N: FnMut(u32, u32) -> bool,
{
    /// Starts at stream offset `position`. `stretches` are those from there on,
    /// in order; one that began before may come first. `needed` says whether a
    /// block (object, index) is of use.
    pub(super) fn new(
        specs: &'a [std::sync::Arc<ObjectSpec>],
        stretches: I,
        position: u64,
        needed: N,
    ) -> Self {
        Self { specs, stretches: stretches.peekable(), position, open: HashMap::new(), needed }
    }

    /// Goes on where [`Assembler::pause`] stopped.
    pub(super) fn resume(
        specs: &'a [std::sync::Arc<ObjectSpec>],
        stretches: I,
        state: CutState,
        needed: N,
    ) -> Self {
        let CutState { position, open } = state;
        Self { specs, stretches: stretches.peekable(), position, open, needed }
    }

    /// Puts the assembler aside.
    pub(super) fn pause(self) -> CutState {
        CutState { position: self.position, open: self.open }
    }

    /// The stream offset of the next byte.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// Takes the next bytes of the stream; whole blocks go to `out`.
    pub(super) fn feed(&mut self, mut data: &[u8], out: &mut impl FnMut(RawBlock)) {
        while let Some(stretch) = self.stretches.peek().copied() {
            let end = stretch.stream + stretch.len;
            if stretch.len == 0 || end <= self.position {
                self.stretches.next();
                continue;
            }
            let gap = stretch.stream.saturating_sub(self.position);
            if gap >= data.len() as u64 {
                break;
            }
            data = &data[gap as usize..];
            self.position += gap;
            let take = (end - self.position).min(data.len() as u64);
            let (now, rest) = data.split_at(take as usize);
            let offset = stretch.offset + (self.position - stretch.stream);
            self.content(stretch.object, offset, now, self.position, out);
            self.position += take;
            data = rest;
        }
        self.position += data.len() as u64;
    }

    fn content(
        &mut self,
        object: u32,
        mut offset: u64,
        mut data: &[u8],
        mut stream: u64,
        out: &mut impl FnMut(RawBlock),
    ) {
        let Some(spec) = self.specs.get(object as usize) else {
            return;
        };
        while !data.is_empty() {
            let Some(block) = spec.block_at(offset).and_then(|i| Some((i, spec.block(i)?))) else {
                return;
            };
            let (index, entry) = block;
            let end = entry.offset + u64::from(entry.len);
            if offset == entry.offset {
                let data = (self.needed)(object, index)
                    .then(|| BytesMut::with_capacity(entry.len as usize));
                let left = u64::from(entry.len);
                self.open.insert(object, Open { index, began: stream, data, left });
            }
            let take = (end - offset).min(data.len() as u64);
            let (now, rest) = data.split_at(take as usize);
            if let Some(open) = self.open.get_mut(&object).filter(|o| o.index == index) {
                if let Some(buffer) = &mut open.data {
                    buffer.extend_from_slice(now);
                }
                open.left -= take;
                if open.left == 0
                    && let Some(done) = self.open.remove(&object).and_then(|o| o.data)
                {
                    out(RawBlock { object, index, data: done.freeze() });
                }
            }
            offset += take;
            stream += take;
            data = rest;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::BlockHash;
    use proptest::prelude::*;
    use std::sync::Arc;

    /// A bundle (object 0) of small files with a large file (object 1) between
    /// them, as a stream with headers.
    fn layer(files: &[(bool, u16)]) -> (Vec<u8>, Vec<Arc<ObjectSpec>>, Vec<Stretch>) {
        let (mut stream, mut contents, mut stretches) =
            (Vec::new(), [Vec::new(), Vec::new()], Vec::new());
        for (n, (large, len)) in files.iter().enumerate() {
            stream.extend([0xee; 37]);
            let object = u32::from(*large);
            let content: Vec<u8> = (0..*len).map(|i| (i as usize * 31 + n) as u8).collect();
            let offset = contents[object as usize].len() as u64;
            stretches.push(Stretch {
                stream: stream.len() as u64,
                object,
                offset,
                len: u64::from(*len),
            });
            stream.extend(&content);
            contents[object as usize].extend(content);
        }
        let specs = contents.map(|c| {
            let blocks = c.chunks(100).map(|b| (BlockHash::of(b), b.len() as u32));
            Arc::new(ObjectSpec::new(100, blocks).expect("chunks of 100"))
        });
        (stream, specs.to_vec(), stretches)
    }

    proptest! {
        #[test]
        fn every_whole_block_of_a_run_comes_out_once_and_right(
            files in prop::collection::vec((any::<bool>(), 0u16..600), 1..20),
            cut in (0.0f64..1.0, 0.0f64..1.0),
            chunk in 1usize..300,
        ) {
            let (stream, specs, stretches) = layer(&files);
            let a = (cut.0 * stream.len() as f64) as usize;
            let b = a + (cut.1 * (stream.len() - a) as f64) as usize;
            let mut assembler = Assembler::new(&specs, stretches.iter().copied(), a as u64, |_, _| true);
            let mut out = Vec::new();
            for piece in stream[a..b].chunks(chunk) {
                assembler.feed(piece, &mut |block| out.push(block));
            }
            prop_assert_eq!(assembler.position(), b as u64);
            for block in &out {
                let expected = specs[block.object as usize].block(block.index).expect("in spec");
                prop_assert_eq!(BlockHash::of(&block.data), expected.hash);
            }
            // The model: a block is whole if all its bytes lie in the run.
            let mut whole = Vec::new();
            for (object, spec) in specs.iter().enumerate() {
                for (index, entry) in spec.blocks().enumerate() {
                    let inside = (entry.offset..entry.offset + u64::from(entry.len)).all(|byte| {
                        stretches.iter().any(|s| {
                            let at = s.stream.wrapping_add(byte.wrapping_sub(s.offset));
                            s.object as usize == object && byte >= s.offset && byte < s.offset + s.len
                                && at >= a as u64 && at < b as u64
                        })
                    });
                    if inside {
                        whole.push((object as u32, index as u32));
                    }
                }
            }
            let mut got: Vec<_> = out.iter().map(|b| (b.object, b.index)).collect();
            got.sort_unstable();
            prop_assert_eq!(got, whole);
        }
    }

    #[test]
    fn blocks_that_nobody_needs_are_let_pass() {
        let (stream, specs, stretches) = layer(&[(false, 250), (true, 300)]);
        let mut assembler = Assembler::new(&specs, stretches.into_iter(), 0, |object, index| {
            (object, index) == (1, 1)
        });
        let mut out = Vec::new();
        assembler.feed(&stream, &mut |block| out.push((block.object, block.index)));
        assert_eq!(out, [(1, 1)]);
    }
}
