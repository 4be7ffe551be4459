//! A push parser for tar streams: ustar, v7, star, GNU and PAX.
//!
//! Bytes go in as they come; what comes out, in order, is every byte again,
//! either as [`Event::Literal`] or as [`Event::Content`], and an
//! [`Event::Entry`] before the content that it announces. Nothing is copied but
//! headers, and memory is bounded whatever the archive says of itself.
//!
//! Where the formats leave room, this does what Go's `archive/tar` does, since
//! containerd, Docker and umoci read layers with it:
//! - links, devices, FIFOs and directories have no content, whatever their size field says;
//! - global extended headers change nothing (containerd and Docker skip them too);
//! - a file may lack the padding at the end of the stream, and the end marks.
//!
//! It is more tolerant in one point: POSIX wants an unknown typeflag to be
//! treated as a regular file, where Go's users fail.

mod acl;
mod header;
mod number;
mod pax;
mod sparse;

#[cfg(test)]
mod tests;

use bytes::{Buf, Bytes};

use super::entry::{Entry, EntryKind, Extent};
use header::{BLOCK, Format, Header};
use pax::Pax;

/// Longest extended header, in bytes; Go has the same bound.
const PAX_MAX: u64 = 1 << 20;
/// Longest GNU long name or link target, in bytes. No kernel takes more than
/// 4,096; the tree says so with the name.
const LONG_NAME_MAX: u64 = 64 << 10;

/// What the parser found next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Bytes of the stream that are not content of a file.
    Literal(Bytes),
    /// A member of the archive, and how many bytes of content follow at once:
    /// those of a sparse file without its holes.
    Entry(Box<Entry>, u64),
    /// Content of the entry before.
    Content(Bytes),
}

/// What the next bytes of the stream will be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// At least this many, above 0, that are not content.
    Literal(u64),
    /// Exactly this many, above 0, of the entry's content.
    Content(u64),
}

/// Why a stream is not a tar archive. Offsets are those of the header, in bytes
/// from the start of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TarError {
    /// A header whose checksum is wrong: most often no tar archive at all.
    #[error("no tar header at byte {offset} of the layer's stream")]
    Checksum {
        /// Where.
        offset: u64,
    },
    /// One block of zeros that is not followed by a second.
    #[error("the tar stream has a lone block of zeros before byte {offset}")]
    LoneZeroBlock {
        /// Where.
        offset: u64,
    },
    /// A number that can't be read or is out of bounds.
    #[error("the tar header at byte {offset} has an impossible {field}")]
    Number {
        /// Where.
        offset: u64,
        /// Which.
        field: &'static str,
    },
    /// A malformed extended header.
    #[error("the extended tar header at byte {offset} has a malformed {record}")]
    Pax {
        /// Where.
        offset: u64,
        /// Which.
        record: &'static str,
    },
    /// An extended header above its bound.
    #[error("the extended tar header at byte {offset} is too long: {length} bytes")]
    TooLong {
        /// Where.
        offset: u64,
        /// As stated.
        length: u64,
    },
    /// A sparse file whose map is malformed or doesn't fit.
    #[error("the sparse file at byte {offset} of the tar stream has a malformed map")]
    Sparse {
        /// Where.
        offset: u64,
    },
    /// A part of a multi-volume archive.
    #[error("the tar entry at byte {offset} is continued from another volume")]
    MultiVolume {
        /// Where.
        offset: u64,
    },
    /// The stream ends inside an entry.
    #[error("the tar stream ends early, at byte {offset}")]
    Truncated {
        /// Where it ends.
        offset: u64,
    },
}

/// See the [module](self).
#[derive(Debug)]
pub struct TarParser {
    state: State,
    /// Bytes taken so far.
    offset: u64,
    /// Offset of the header that is being read, or was read last.
    header_at: u64,
    block: Box<[u8; BLOCK]>,
    /// What extended headers said about the next entry.
    pending: Pending,
    /// An entry to hand out before more bytes are taken.
    ready: Option<(Box<Entry>, u64)>,
}

#[derive(Debug, Default)]
struct Pending {
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    pax: Option<Pax>,
}

#[derive(Debug)]
enum State {
    /// `have` bytes of a header block; `zeros`: the block before was all zero.
    Header { have: usize, zeros: bool },
    /// The body of an extended header.
    Extension { kind: Extension, body: Vec<u8>, left: u64 },
    /// An old GNU sparse file's further map blocks.
    GnuMap { have: usize, sparse: Box<Sparse> },
    /// A PAX 1.0 sparse file's map, in front of its data.
    PaxMap { have: usize, reader: sparse::MapReader, sparse: Box<Sparse> },
    /// Content of a file, and the bytes of padding after it.
    Content { left: u64, padding: u64 },
    /// Bytes of no further meaning, padding included: at most `optional` of them
    /// may be missing at the end of the stream.
    Skip { left: u64, optional: u64 },
    /// After the end marks.
    End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extension {
    Pax,
    GlobalPax,
    LongName,
    LongLink,
}

/// A sparse file whose map is not complete yet.
#[derive(Debug)]
struct Sparse {
    entry: Entry,
    /// Logical size.
    size: u64,
    /// Bytes in the archive that are left: data, and the rest of a PAX map.
    dense: u64,
    padding: u64,
    map: Vec<Extent>,
}

impl Default for TarParser {
    fn default() -> Self {
        Self::new()
    }
}

impl TarParser {
    /// A parser at the start of a stream.
    pub fn new() -> Self {
        Self {
            state: State::Header { have: 0, zeros: false },
            offset: 0,
            header_at: 0,
            block: Box::new([0; BLOCK]),
            pending: Pending::default(),
            ready: None,
        }
    }

    /// Bytes of the stream taken so far.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Takes bytes off the front of `input` up to the next event. `None` when
    /// `input` is used up.
    ///
    /// # Errors
    /// [`TarError`]; the parser is of no use after one.
    pub fn next(&mut self, input: &mut Bytes) -> Result<Option<Event>, TarError> {
        if let Some((entry, content)) = self.ready.take() {
            return Ok(Some(Event::Entry(entry, content)));
        }
        if input.is_empty() {
            return Ok(None);
        }
        if let State::Content { left, padding } = &mut self.state {
            let bytes = take(input, *left);
            *left -= bytes.len() as u64;
            self.offset += bytes.len() as u64;
            if *left == 0 {
                self.state = State::padding(*padding);
            }
            return Ok(Some(Event::Content(bytes)));
        }
        let bytes = take(input, self.literal_ahead());
        self.literal(&bytes)?;
        Ok(Some(Event::Literal(bytes)))
    }

    /// What the next bytes are going to be. The next entry may still have to be
    /// fetched with [`TarParser::next`].
    pub fn expects(&self) -> Expect {
        match self.state {
            State::Content { left, .. } => Expect::Content(left),
            _ => Expect::Literal(self.literal_ahead()),
        }
    }

    /// Ends the stream.
    ///
    /// # Errors
    /// [`TarError::Truncated`] inside a header or a file.
    pub fn finish(&self) -> Result<(), TarError> {
        match self.state {
            State::End | State::Header { have: 0, .. } => Ok(()),
            State::Skip { left, optional } if left <= optional => Ok(()),
            _ => Err(TarError::Truncated { offset: self.offset }),
        }
    }

    /// How many of the next bytes belong to the same literal unit.
    fn literal_ahead(&self) -> u64 {
        match &self.state {
            State::Header { have, .. }
            | State::GnuMap { have, .. }
            | State::PaxMap { have, .. } => (BLOCK - have) as u64,
            State::Extension { left, .. } | State::Skip { left, .. } => *left,
            State::Content { .. } | State::End => u64::MAX,
        }
    }

    /// Takes bytes that are no content, at most up to the end of the unit.
    fn literal(&mut self, bytes: &Bytes) -> Result<(), TarError> {
        self.offset += bytes.len() as u64;
        match &mut self.state {
            State::Header { have, .. }
            | State::GnuMap { have, .. }
            | State::PaxMap { have, .. } => {
                self.block[*have..*have + bytes.len()].copy_from_slice(bytes);
                *have += bytes.len();
                if *have == BLOCK {
                    self.block_complete()?;
                }
            }
            State::Extension { kind, body, left } => {
                if *kind != Extension::GlobalPax {
                    body.extend_from_slice(bytes);
                }
                *left -= bytes.len() as u64;
                if *left == 0 {
                    let (kind, body) = (*kind, std::mem::take(body));
                    self.extension(kind, &body)?;
                }
            }
            State::Skip { left, .. } => {
                *left -= bytes.len() as u64;
                if *left == 0 {
                    self.state = State::padding(0);
                }
            }
            State::Content { .. } | State::End => {}
        }
        Ok(())
    }

    fn block_complete(&mut self) -> Result<(), TarError> {
        let state = std::mem::replace(&mut self.state, State::End);
        match state {
            State::Header { zeros, .. } => self.header(zeros),
            State::GnuMap { mut sparse, .. } => {
                let bad = self.bad_map();
                sparse::push_gnu(&mut sparse.map, &self.block[..504]).map_err(|_| bad)?;
                match self.block[504] {
                    0 => self.sparse_complete(*sparse),
                    _ => {
                        self.state = State::GnuMap { have: 0, sparse };
                        Ok(())
                    }
                }
            }
            State::PaxMap { mut reader, mut sparse, .. } => {
                let bad = self.bad_map();
                sparse.dense = sparse.dense.checked_sub(BLOCK as u64).ok_or(bad)?;
                if reader.feed(&*self.block).map_err(|_| bad)? {
                    sparse.map = reader.map;
                    self.sparse_complete(*sparse)
                } else {
                    self.state = State::PaxMap { have: 0, reader, sparse };
                    Ok(())
                }
            }
            _ => unreachable!("only blocks are completed"),
        }
    }

    fn header(&mut self, zeros: bool) -> Result<(), TarError> {
        let offset = self.offset - BLOCK as u64;
        if self.block.iter().all(|b| *b == 0) {
            self.state = match zeros {
                true => State::End,
                false => State::Header { have: 0, zeros: true },
            };
            return Ok(());
        }
        if zeros {
            return Err(TarError::LoneZeroBlock { offset });
        }
        self.header_at = offset;
        let block = self.block.clone();
        let header = Header::check(&block).ok_or(TarError::Checksum { offset })?;
        let size = header.size().and_then(|n| u64::try_from(n).ok());
        let size = size.ok_or(self.bad_number("size"))?;
        let extension = match header.typeflag() {
            // Solaris wrote the same thing under X.
            b'x' | b'X' => Some((Extension::Pax, PAX_MAX)),
            b'g' => Some((Extension::GlobalPax, PAX_MAX)),
            b'L' => Some((Extension::LongName, LONG_NAME_MAX)),
            b'K' => Some((Extension::LongLink, LONG_NAME_MAX)),
            _ => None,
        };
        match extension {
            Some((_, max)) if size > max => Err(TarError::TooLong { offset, length: size }),
            Some((kind, _)) => {
                self.state = State::Extension { kind, body: Vec::new(), left: size };
                match size {
                    0 => self.extension(kind, &[]),
                    _ => Ok(()),
                }
            }
            None => self.entry(&header, size),
        }
    }

    /// The body of an extended header is complete.
    fn extension(&mut self, kind: Extension, body: &[u8]) -> Result<(), TarError> {
        let name = || Some(header::text(body).to_vec());
        match kind {
            Extension::LongName => self.pending.long_name = name(),
            Extension::LongLink => self.pending.long_link = name(),
            Extension::GlobalPax => {}
            Extension::Pax => {
                let offset = self.header_at;
                let pax = Pax::parse(body).map_err(|record| TarError::Pax { offset, record })?;
                self.pending.pax = Some(pax);
            }
        }
        // The body starts at a block.
        self.state = State::padding(padding(self.offset));
        Ok(())
    }

    /// A header that is an entry, with all that came before it.
    fn entry(&mut self, header: &Header<'_>, size: u64) -> Result<(), TarError> {
        let pending = std::mem::take(&mut self.pending);
        let mut pax = pending.pax.unwrap_or_default();
        let size = pax.size.unwrap_or(size);
        let bad = |field| self.bad_number(field);
        // As Go has it: a GNU long name wins, then PAX, then the header.
        let long = |name: Option<Vec<u8>>| name.filter(|name| !name.is_empty());
        let path = long(pending.long_name).or(pax.path.take()).unwrap_or_else(|| header.name());
        let target = long(pending.long_link)
            .or(pax.linkpath.take())
            .unwrap_or_else(|| header.link_name().to_vec());
        let mtime = match pax.mtime {
            Some(mtime) => mtime,
            None => (header.mtime().ok_or(bad("time"))?, 0),
        };
        let id = |pax: Option<i64>, header: Option<i64>, field| {
            pax.or(header).and_then(owner).ok_or(bad(field))
        };
        let mut entry = Entry {
            path,
            kind: EntryKind::Directory,
            mode: (header.mode().ok_or(bad("mode"))? & 0o7777) as u16,
            uid: id(pax.uid, header.uid(), "uid")?,
            gid: id(pax.gid, header.gid(), "gid")?,
            mtime,
            xattrs: pax.xattrs(),
        };
        let device = || {
            let (major, minor) = header.device().ok_or(bad("device number"))?;
            let number = |n| u32::try_from(n).map_err(|_| bad("device number"));
            Ok((number(major)?, number(minor)?))
        };
        entry.kind = match header.typeflag() {
            b'1' => EntryKind::HardLink { target },
            b'2' => EntryKind::Symlink { target },
            b'3' => {
                let (major, minor) = device()?;
                EntryKind::CharDevice { major, minor }
            }
            b'4' => {
                let (major, minor) = device()?;
                EntryKind::BlockDevice { major, minor }
            }
            b'5' => EntryKind::Directory,
            // Archives before POSIX mark directories by a slash.
            0 if entry.path.ends_with(b"/") => EntryKind::Directory,
            b'6' => EntryKind::Fifo,
            b'S' => return self.gnu_sparse(header, entry, size),
            b'M' => {
                let offset = self.header_at;
                return Err(TarError::MultiVolume { offset });
            }
            // GNU: a directory with a list of its files, a volume's name, old
            // long names. star and Solaris: inode data, ACLs.
            b'D' => {
                entry.kind = EntryKind::Directory;
                self.ready = Some((Box::new(entry), 0));
                return self.skip(size);
            }
            b'V' | b'N' | b'I' | b'A' => return self.skip(size),
            // Files: '0', NUL, '7' (contiguous), and by POSIX all unknown ones.
            _ => return self.file(entry, size, pax),
        };
        self.ready = Some((Box::new(entry), 0));
        self.state = State::padding(0);
        Ok(())
    }

    fn file(&mut self, mut entry: Entry, size: u64, pax: Pax) -> Result<(), TarError> {
        let map = pax.sparse;
        let in_front = match (map.major, map.minor, &map.map) {
            (Some(1), Some(0), _) => true,
            (Some(0), Some(0 | 1), Some(_)) | (None, None, Some(_)) => false,
            // Not sparse, or in a way that nobody knows: the bytes as they are.
            _ => {
                entry.kind = EntryKind::File { size, extents: None };
                return self.content(entry, size, padding(size));
            }
        };
        if let Some(name) = map.name {
            entry.path = name;
        }
        let mut sparse = Sparse {
            entry,
            size: map.size.unwrap_or(size),
            dense: size,
            padding: padding(size),
            map: Vec::new(),
        };
        if in_front {
            self.state = State::PaxMap {
                have: 0,
                reader: sparse::MapReader::default(),
                sparse: Box::new(sparse),
            };
            // The map takes a block at least.
            return match size < BLOCK as u64 {
                true => Err(self.bad_map()),
                false => Ok(()),
            };
        }
        let pairs = map.map.unwrap_or_default();
        sparse.map = sparse::from_pairs(&pairs).map_err(|_| self.bad_map())?;
        self.sparse_complete(sparse)
    }

    fn gnu_sparse(&mut self, header: &Header<'_>, entry: Entry, size: u64) -> Result<(), TarError> {
        if header.format != Format::Gnu {
            return Err(self.bad_map());
        }
        let (entries, more, logical) = header.gnu_sparse();
        let logical = logical.and_then(|n| u64::try_from(n).ok());
        let mut sparse = Sparse {
            entry,
            size: logical.ok_or(self.bad_number("sparse size"))?,
            dense: size,
            padding: padding(size),
            map: Vec::new(),
        };
        sparse::push_gnu(&mut sparse.map, entries).map_err(|_| self.bad_map())?;
        if more {
            let sparse = Box::new(sparse);
            self.state = State::GnuMap { have: 0, sparse };
            return Ok(());
        }
        self.sparse_complete(sparse)
    }

    fn sparse_complete(&mut self, sparse: Sparse) -> Result<(), TarError> {
        let Sparse { mut entry, size, dense, padding, map } = sparse;
        if !sparse::fits(&map, size, dense) {
            return Err(self.bad_map());
        }
        entry.kind = EntryKind::File { size, extents: Some(map) };
        self.content(entry, dense, padding)
    }

    fn content(&mut self, entry: Entry, length: u64, padding: u64) -> Result<(), TarError> {
        if length > i64::MAX as u64 {
            return Err(self.bad_number("size"));
        }
        self.ready = Some((Box::new(entry), length));
        self.state = match length {
            0 => State::padding(padding),
            left => State::Content { left, padding },
        };
        Ok(())
    }

    /// Passes over a body that means nothing here.
    fn skip(&mut self, size: u64) -> Result<(), TarError> {
        let optional = padding(size);
        self.state = match size.checked_add(optional) {
            None => return Err(self.bad_number("size")),
            Some(0) => State::padding(0),
            Some(left) => State::Skip { left, optional },
        };
        Ok(())
    }

    fn bad_number(&self, field: &'static str) -> TarError {
        TarError::Number { offset: self.header_at, field }
    }

    fn bad_map(&self) -> TarError {
        TarError::Sparse { offset: self.header_at }
    }
}

impl State {
    /// Padding (which the last file may lack), then a header.
    fn padding(left: u64) -> Self {
        match left {
            0 => Self::Header { have: 0, zeros: false },
            _ => Self::Skip { left, optional: left },
        }
    }
}

/// Bytes from `length` to the next block.
fn padding(length: u64) -> u64 {
    length.wrapping_neg() % BLOCK as u64
}

/// At most `limit` bytes off the front.
fn take(input: &mut Bytes, limit: u64) -> Bytes {
    match usize::try_from(limit) {
        Ok(limit) if limit < input.remaining() => input.split_to(limit),
        _ => std::mem::take(input),
    }
}

/// An owner as `chown(2)` takes it. Negative numbers, with which some writers
/// mean `nobody`, wrap as they do there; what doesn't fit 32 bits is refused
/// rather than cut: half of a number could be somebody else, root even.
fn owner(id: i64) -> Option<u32> {
    match id {
        -0x8000_0000..=-1 => Some((id as i32).cast_unsigned()),
        _ => u32::try_from(id).ok(),
    }
}
