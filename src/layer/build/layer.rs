//! The second stage of a pass: stream in; blocks, literals, tree and layout out.

use std::collections::HashMap;

use bytes::Bytes;

use crate::layer::blocks;
use crate::layer::entry::{Entry, EntryKind};
use crate::layer::skeleton::Layout;
use crate::layer::tar::{Event, Expect, TarError, TarParser};
use crate::layer::tree::{BuildTreeError, FileContent, TreeBuilder, TreeLimits};
use crate::types::{
    BLOCK_SIZE_SMALL, BlockHash, Digest, DigestHasher, ObjectId, ObjectSpec, PASSTHROUGH_MIN,
    SpecError, VerifiedBlock, block_size_for,
};

use super::cutter::Cutter;

/// A bundle's block ends early where it would hold contents with more than this
/// many bytes of the stream between them, all gaps together: one block never
/// stands for much more of the blob than itself.
const BUNDLE_GAP: u64 = 4 << 20;

/// An object while it is being built: its id is not known yet.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum BuildObject {
    /// The layer's bundle of small files.
    Bundle,
    /// The large file with this number: they count from 0 in the order of the
    /// stream, equal contents again and again. [`BuiltLayer::files`] tells which
    /// object it became.
    File(u32),
}

/// Content that is in no block yet: of which object, from which byte on, the bytes.
pub type Tails = Vec<(BuildObject, u64, Bytes)>;

/// Whatever a [`Sink`] fails with.
pub type SinkError = Box<dyn std::error::Error + Send + Sync>;

/// Where a pass leaves what it makes. An error ends the pass.
pub trait Sink {
    /// The next block of an object, which starts at byte `offset` of it. Blocks
    /// of one object come in order and without gaps.
    ///
    /// # Errors
    /// Anything that keeps the block from being stored.
    fn block(
        &mut self,
        object: BuildObject,
        offset: u64,
        block: VerifiedBlock,
    ) -> Result<(), SinkError>;

    /// The next bytes of the stream that are not content.
    ///
    /// # Errors
    /// Anything that keeps them from being stored.
    fn literal(&mut self, bytes: &Bytes) -> Result<(), SinkError>;

    /// Large file number `file` is complete: all of its blocks have been given.
    /// `content` is the BLAKE3 of all its bytes.
    ///
    /// # Errors
    /// Anything that keeps it from being stored.
    fn file_done(
        &mut self,
        file: u32,
        spec: &ObjectSpec,
        content: &BlockHash,
    ) -> Result<(), SinkError>;
}

/// A sink that keeps nothing: for replays, checks and measurements.
#[derive(Clone, Copy, Debug, Default)]
pub struct NullSink;

impl Sink for NullSink {
    fn block(&mut self, _: BuildObject, _: u64, _: VerifiedBlock) -> Result<(), SinkError> {
        Ok(())
    }

    fn literal(&mut self, _: &Bytes) -> Result<(), SinkError> {
        Ok(())
    }

    fn file_done(&mut self, _: u32, _: &ObjectSpec, _: &BlockHash) -> Result<(), SinkError> {
        Ok(())
    }
}

/// Why a stream does not become a layer.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// It is not a tar archive.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// Its entries don't make a tree.
    #[error(transparent)]
    Tree(#[from] BuildTreeError),
    /// An object is larger than objects can be.
    #[error("a file of the layer is too large")]
    Object(#[source] SpecError),
    /// A raw blob that is not as long as was said.
    #[error("the blob has {found} bytes, not {expected}")]
    Length {
        /// As its descriptor says.
        expected: u64,
        /// As it came.
        found: u64,
    },
    /// The sink failed.
    #[error("the layer's content could not be stored")]
    Sink(#[source] SinkError),
}

/// What a pass made, besides what went to the sink.
#[derive(Debug)]
pub struct BuiltLayer {
    /// SHA-256 of the stream.
    pub diff_id: Digest,
    /// Bytes of the stream.
    pub stream_length: u64,
    /// The layer's objects: the bundle (possibly empty), then the large files,
    /// equal contents once.
    pub objects: Vec<ObjectSpec>,
    /// For each [`BuildObject::File`], its number in `objects`.
    pub files: Vec<u32>,
    /// The tree part.
    pub tree: Vec<u8>,
    /// The blocks part.
    pub blocks: Vec<u8>,
    /// The layout, which with the literals makes the skeleton part.
    pub layout: Layout,
}

/// What the next bytes of the stream will be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// At least this many, above 0, that go to [`Sink::literal`].
    Literal(u64),
    /// Exactly this many, above 0, of an object, from byte `offset` of it.
    Content {
        /// Which.
        object: BuildObject,
        /// First byte in the object.
        offset: u64,
        /// How many.
        len: u64,
    },
}

/// Makes a layer out of its uncompressed stream. Memory is in proportion to the
/// tree, not to the content.
pub struct LayerBuilder {
    source: Source,
    offset: u64,
    diff: DigestHasher,
    tree: TreeBuilder,
    bundle: Cutter,
    /// Where the last content of the bundle ended in the stream.
    bundle_end: u64,
    /// Bytes of the stream between the contents of the bundle's block that
    /// starts at this byte of the bundle: (block, bytes).
    bundle_gap: (u64, u64),
    file: Option<OpenFile>,
    objects: Vec<ObjectSpec>,
    ids: HashMap<ObjectId, u32>,
    files: Vec<u32>,
    layout: Layout,
}

enum Source {
    Tar(Box<TarParser>),
    /// One file of this many bytes.
    Raw {
        length: u64,
    },
}

/// The file whose content is coming.
struct OpenFile {
    entry: Entry,
    length: u64,
    left: u64,
    hasher: Box<blake3::Hasher>,
    place: Place,
}

enum Place {
    Bundle { offset: u64 },
    Own(Cutter),
}

impl LayerBuilder {
    /// For a tar stream.
    pub fn tar(limits: TreeLimits) -> Self {
        Self::new(Source::Tar(Box::default()), limits)
    }

    /// For a blob of `length` bytes that is to be shown as one file, named
    /// `path`: mode 0644, owner 0, time 0. It is one object, whatever its length.
    pub fn raw(path: &[u8], length: u64) -> Self {
        let mut this = Self::new(Source::Raw { length }, TreeLimits::default());
        let entry = Entry {
            path: path.to_vec(),
            kind: EntryKind::File { size: length, extents: None },
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: (0, 0),
            xattrs: Vec::new(),
        };
        this.file = Some(this.open_own(entry, length));
        this
    }

    fn new(source: Source, limits: TreeLimits) -> Self {
        Self {
            source,
            offset: 0,
            diff: DigestHasher::default(),
            tree: TreeBuilder::new(limits),
            bundle: Cutter::new(BuildObject::Bundle, BLOCK_SIZE_SMALL),
            bundle_end: 0,
            bundle_gap: (0, 0),
            file: None,
            objects: Vec::new(),
            ids: HashMap::new(),
            files: Vec::new(),
            layout: Layout::default(),
        }
    }

    /// Bytes of the stream taken so far.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The digest of the stream so far: what a replay of it must come to.
    pub fn stream_digest(&self) -> Digest {
        self.diff.clone().finish()
    }

    /// Takes the next bytes of the stream. Blocks may share their memory.
    ///
    /// # Errors
    /// [`BuildError`]; the builder is of no use after one.
    pub fn feed(&mut self, mut bytes: Bytes, sink: &mut dyn Sink) -> Result<(), BuildError> {
        self.diff.update(&bytes);
        loop {
            let event = match &mut self.source {
                Source::Tar(parser) => parser.next(&mut bytes)?,
                Source::Raw { .. } => {
                    (!bytes.is_empty()).then(|| Event::Content(std::mem::take(&mut bytes)))
                }
            };
            match event {
                None => return Ok(()),
                Some(Event::Literal(bytes)) => {
                    self.offset += bytes.len() as u64;
                    self.layout.push_literal(bytes.len() as u64);
                    sink.literal(&bytes).map_err(BuildError::Sink)?;
                }
                Some(Event::Entry(entry, length)) => self.entry(*entry, length, sink)?,
                Some(Event::Content(bytes)) => self.content(bytes, sink)?,
            }
        }
    }

    /// What the next bytes of the stream are going to be.
    pub fn expects(&self) -> Expected {
        let (offset, file) = match (&self.source, &self.file) {
            (Source::Tar(parser), file) => match (parser.expects(), file) {
                (Expect::Literal(len), _) => return Expected::Literal(len),
                (Expect::Content(_), None) => return Expected::Literal(1),
                (Expect::Content(_), Some(file)) => (file.length - file.left, file),
            },
            (Source::Raw { .. }, Some(file)) => (file.length - file.left, file),
            (Source::Raw { .. }, None) => return Expected::Literal(1),
        };
        let (object, base) = match &file.place {
            Place::Bundle { offset } => (BuildObject::Bundle, *offset),
            Place::Own(_) => (BuildObject::File(self.files.len() as u32), 0),
        };
        Expected::Content { object, offset: base + offset, len: file.left.max(1) }
    }

    /// Content that was taken and is in no block yet: at most one piece of the
    /// bundle and one of a large file, each shorter than a block, with its
    /// offset. To be kept beside a checkpoint.
    pub fn tails(&self) -> Tails {
        let own = match &self.file {
            Some(OpenFile { place: Place::Own(cutter), .. }) => cutter.open(),
            _ => None,
        };
        self.bundle.open().into_iter().chain(own).collect()
    }

    /// Ends the stream.
    ///
    /// # Errors
    /// [`BuildError`], if it ends early for one.
    pub fn finish(mut self, sink: &mut dyn Sink) -> Result<BuiltLayer, BuildError> {
        match &self.source {
            Source::Tar(parser) => parser.finish()?,
            Source::Raw { length } => {
                if self.offset != *length {
                    let (expected, found) = (*length, self.offset);
                    return Err(BuildError::Length { expected, found });
                }
                // An empty blob never had any content.
                self.file_complete(sink)?;
            }
        }
        let mut objects = vec![self.bundle.finish(sink)?];
        objects.append(&mut self.objects);
        let named: Vec<_> = objects.iter().map(|spec| (spec.id(), spec.length())).collect();
        Ok(BuiltLayer {
            diff_id: self.diff.finish(),
            stream_length: self.offset,
            tree: self.tree.finish(&named)?,
            blocks: blocks::encode(&objects),
            objects,
            files: self.files,
            layout: self.layout,
        })
    }

    fn entry(&mut self, entry: Entry, length: u64, sink: &mut dyn Sink) -> Result<(), BuildError> {
        if !matches!(entry.kind, EntryKind::File { .. }) {
            return Ok(self.tree.add(&entry, None)?);
        }
        if length >= PASSTHROUGH_MIN {
            self.file = Some(self.open_own(entry, length));
            return Ok(());
        }
        if length > 0 {
            self.leave_gap(self.offset - self.bundle_end, sink)?;
            self.bundle_end = self.offset + length;
        }
        let offset = self.bundle.length();
        self.file = Some(OpenFile {
            entry,
            length,
            left: length,
            hasher: Box::default(),
            place: Place::Bundle { offset },
        });
        match length {
            0 => self.file_complete(sink),
            _ => Ok(()),
        }
    }

    /// Another `bytes` of the stream lie before the bundle's next content.
    fn leave_gap(&mut self, bytes: u64, sink: &mut dyn Sink) -> Result<(), BuildError> {
        let block = self.bundle.block_start();
        let before = match self.bundle_gap {
            (same, gap) if same == block => gap,
            _ => 0,
        };
        let gap = match self.bundle.length() == block {
            true => 0,
            false => before + bytes,
        };
        if gap > BUNDLE_GAP {
            self.bundle.cut(sink)?;
        }
        self.bundle_gap = (block, gap);
        Ok(())
    }

    fn open_own(&self, entry: Entry, length: u64) -> OpenFile {
        let object = BuildObject::File(self.files.len() as u32);
        OpenFile {
            entry,
            length,
            left: length,
            hasher: Box::default(),
            place: Place::Own(Cutter::new(object, block_size_for(length))),
        }
    }

    fn content(&mut self, bytes: Bytes, sink: &mut dyn Sink) -> Result<(), BuildError> {
        let len = bytes.len() as u64;
        self.offset += len;
        let file = self.file.as_mut().filter(|file| file.left >= len);
        let Some(file) = file else {
            let Source::Raw { length: expected } = self.source else {
                unreachable!("the parser announces content")
            };
            let found = self.offset;
            return Err(BuildError::Length { expected, found });
        };
        file.left -= len;
        file.hasher.update(&bytes);
        match &mut file.place {
            Place::Bundle { .. } => self.bundle.push(bytes, sink)?,
            Place::Own(cutter) => cutter.push(bytes, sink)?,
        }
        match file.left {
            0 => self.file_complete(sink),
            _ => Ok(()),
        }
    }

    /// All content of the open file has come, if one is open.
    fn file_complete(&mut self, sink: &mut dyn Sink) -> Result<(), BuildError> {
        let Some(file) = self.file.take() else {
            return Ok(());
        };
        let hash = BlockHash::from_bytes(file.hasher.finalize().into());
        let (object, offset) = match file.place {
            Place::Bundle { offset } => (0, offset),
            Place::Own(cutter) => {
                let spec = cutter.finish(sink)?;
                let number = self.files.len() as u32;
                sink.file_done(number, &spec, &hash).map_err(BuildError::Sink)?;
                // The bundle is object 0.
                let next = self.objects.len() as u32 + 1;
                let object = *self.ids.entry(spec.id()).or_insert(next);
                if object == next {
                    self.objects.push(spec);
                }
                self.files.push(object);
                (object, 0)
            }
        };
        if file.length > 0 && !self.layout.push_content(object, file.length) {
            unreachable!("contents are pushed in the order of the stream")
        }
        let content = FileContent { object, offset, length: file.length, hash };
        Ok(self.tree.add(&file.entry, Some(content))?)
    }
}
