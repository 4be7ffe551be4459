//! Content: open files, reads, holes.

use std::collections::HashMap;
use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use bytes::Bytes;

use super::catalog::{LayerView, ReadFailure};
use super::error::FsError;
use super::filesystem::{FileSystem, Resolved};
use super::graft::path_of;
use super::inode::{Node, NodeId};
use crate::blocks::{BlockReader, ReadError, ReadFuture, ReadRequest, StreamId};
use crate::layer::tree::{FileData, NodeIx, NodeKind, Range, Tree};
use crate::types::ObjectId;

/// A file that a program has open.
pub struct OpenFile {
    /// The node.
    pub id: NodeId,
    content: Content,
}

enum Content {
    /// A file of a layer.
    Layer(LayerFile),
    /// A status file: what it said when it was opened.
    Made(Bytes),
}

struct LayerFile {
    layer: Arc<LayerView>,
    ix: NodeIx,
    reader: Arc<dyn BlockReader>,
    /// Begins with the first read: most opens are closed unread, or passed
    /// through.
    stream: OnceLock<StreamId>,
}

impl Drop for LayerFile {
    fn drop(&mut self) {
        if let Some(stream) = self.stream.get() {
            self.reader.close(*stream);
        }
    }
}

/// What comes of a read.
pub enum Read {
    /// The bytes are in the buffer.
    Done,
    /// They have to be fetched; the buffer says nothing. The future gives all of
    /// them.
    Wait(ReadFuture),
}

/// Where a seek goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeekTo {
    /// The next byte of data.
    Data,
    /// The next byte of a hole; the end of a file counts as one.
    Hole,
}

/// Open files by handle. As many as the kernel has open.
#[derive(Default)]
pub(super) struct Files {
    open: RwLock<HashMap<u64, Arc<OpenFile>>>,
    last: AtomicU64,
}

impl OpenFile {
    /// Whether the content is made on the fly and must not be cached.
    pub fn is_made(&self) -> bool {
        matches!(self.content, Content::Made(_))
    }

    /// The file that holds exactly this file's bytes, where it is complete and
    /// verified: reads may go there, past all of this.
    pub fn backing_file(&self) -> Option<File> {
        let Content::Layer(file) = &self.content else {
            return None;
        };
        let data = file.data()?;
        let whole = data.offset == 0 && data.length == data.object_length;
        if !whole || data.extents.is_sparse() || data.size == 0 {
            return None;
        }
        let backing = file.reader.backing_file(&data.object)?;
        // The kernel would show what it finds there, and zeros after its end.
        let length = backing.metadata().ok()?.len();
        (length == data.size).then_some(backing)
    }
}

impl LayerFile {
    fn data(&self) -> Option<FileData<'_>> {
        self.layer.tree.file(self.ix)
    }

    fn stream(&self, data: &FileData<'_>) -> StreamId {
        *self.stream.get_or_init(|| {
            let span = data.offset..data.offset.saturating_add(data.length);
            self.reader.open(&data.object, span)
        })
    }
}

impl FileSystem {
    /// Opens a file for reading and gives its handle.
    ///
    /// # Errors
    /// [`FsError::IsDirectory`], [`FsError::NotFile`], [`FsError::LinkElsewhere`],
    /// [`FsError::Stale`].
    pub fn open(&self, id: NodeId) -> Result<(u64, Arc<OpenFile>), FsError> {
        let content = match self.resolve(id)? {
            Resolved::Layer(layer, ix, _) => match layer.tree.kind(ix) {
                Some(NodeKind::File) => Content::Layer(LayerFile {
                    layer,
                    ix,
                    reader: Arc::clone(&self.reader),
                    stream: OnceLock::new(),
                }),
                Some(NodeKind::Directory) => return Err(FsError::IsDirectory),
                Some(NodeKind::ExternalLink) => return Err(FsError::LinkElsewhere),
                _ => return Err(FsError::NotFile),
            },
            Resolved::Synthetic(Node::Status(index)) => {
                let content = self.catalog.status(index).ok_or(FsError::Stale)?;
                Content::Made(content.into())
            }
            Resolved::Synthetic(Node::LayerLink(_)) => return Err(FsError::NotFile),
            Resolved::Synthetic(_) | Resolved::Merged(..) => return Err(FsError::IsDirectory),
        };
        let file = Arc::new(OpenFile { id, content });
        let handle = self.files.last.fetch_add(1, Ordering::Relaxed) + 1;
        let mut open = self.files.open.write().unwrap_or_else(PoisonError::into_inner);
        open.insert(handle, Arc::clone(&file));
        Ok((handle, file))
    }

    /// The file of a handle.
    ///
    /// # Errors
    /// [`FsError::Invalid`]
    pub fn file(&self, handle: u64) -> Result<Arc<OpenFile>, FsError> {
        let open = self.files.open.read().unwrap_or_else(PoisonError::into_inner);
        open.get(&handle).cloned().ok_or(FsError::Invalid)
    }

    /// The objects of which files are open.
    pub fn open_objects(&self) -> Vec<ObjectId> {
        let open = self.files.open.read().unwrap_or_else(PoisonError::into_inner);
        let object = |file: &Arc<OpenFile>| match &file.content {
            Content::Layer(file) => Some(file.data()?.object),
            Content::Made(_) => None,
        };
        open.values().filter_map(object).collect()
    }

    /// Gives a handle back. The file is that of the handle, if there was one.
    pub fn close(&self, handle: u64) -> Option<Arc<OpenFile>> {
        let mut open = self.files.open.write().unwrap_or_else(PoisonError::into_inner);
        open.remove(&handle)
    }

    /// Reads up to `len` bytes from `offset`: all that the file has of them.
    /// `buf` is cleared first.
    ///
    /// # Errors
    /// [`FsError::Read`]; the catalog is told which file it was.
    pub fn read(
        self: &Arc<Self>,
        file: &Arc<OpenFile>,
        offset: u64,
        len: u32,
        buf: &mut Vec<u8>,
    ) -> Result<Read, FsError> {
        buf.clear();
        let layer_file = match &file.content {
            Content::Layer(layer_file) => layer_file,
            Content::Made(bytes) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
                let end = start.saturating_add(len as usize).min(bytes.len());
                buf.extend_from_slice(&bytes[start..end]);
                return Ok(Read::Done);
            }
        };
        let data = layer_file.data().ok_or(FsError::Corrupt("a file without content"))?;
        let end = offset.saturating_add(u64::from(len)).min(data.size);
        if offset >= end {
            return Ok(Read::Done);
        }
        let stream = layer_file.stream(&data);
        let mut ranges = data.extents.ranges(offset, end);
        while let Some(range) = ranges.next() {
            let Some(request) = request(&data, stream, range) else {
                let Range::Hole { len, .. } = range else {
                    return Err(FsError::Corrupt("data outside its object"));
                };
                // At most as long as the read.
                buf.resize(buf.len() + len as usize, 0);
                continue;
            };
            let before = buf.len();
            match self.reader.read_resident(&request, buf) {
                Ok(true) if buf.len() - before == request.len as usize => continue,
                Ok(true) => {
                    let error = ReadError::Store("a read came out short".into());
                    return Err(self.failed(file, offset, len, error).into());
                }
                Ok(false) => (),
                Err(error) => return Err(self.failed(file, offset, len, error).into()),
            }
            let rest: Vec<Range> = ranges.collect();
            let future = self.fetch(file, Vec::from(&buf[..before]), request, &rest)?;
            let (fs, file) = (Arc::clone(self), Arc::clone(file));
            return Ok(Read::Wait(Box::pin(async move {
                let read = future.await;
                read.map_err(|error| fs.failed(&file, offset, len, error))
            })));
        }
        Ok(Read::Done)
    }

    /// The next data or hole at or after `offset`.
    ///
    /// # Errors
    /// [`FsError::NoData`] past the end, or where only a hole follows.
    pub fn seek(&self, file: &OpenFile, offset: u64, to: SeekTo) -> Result<u64, FsError> {
        let (size, data) = match &file.content {
            Content::Made(bytes) => (bytes.len() as u64, None),
            Content::Layer(file) => {
                let data = file.data().ok_or(FsError::Corrupt("a file without content"))?;
                (data.size, Some(data))
            }
        };
        if offset >= size {
            return Err(FsError::NoData);
        }
        let Some(data) = data.filter(|data| data.extents.is_sparse()) else {
            return Ok(match to {
                SeekTo::Data => offset,
                SeekTo::Hole => size,
            });
        };
        let hit = data.extents.ranges(offset, size).find_map(|range| match range {
            Range::Data { offset, .. } => (to == SeekTo::Data).then_some(offset),
            Range::Hole { offset, .. } => (to == SeekTo::Hole).then_some(offset),
        });
        match (hit, to) {
            (Some(at), _) => Ok(at),
            (None, SeekTo::Hole) => Ok(size),
            (None, SeekTo::Data) => Err(FsError::NoData),
        }
    }

    /// What remains of a read: `first` is not at hand, `rest` follows it.
    fn fetch(
        &self,
        file: &Arc<OpenFile>,
        before: Vec<u8>,
        first: ReadRequest,
        rest: &[Range],
    ) -> Result<ReadFuture, FsError> {
        let fetched = self.reader.read(first);
        if before.is_empty() && rest.is_empty() {
            return Ok(Box::pin(async move { exactly(fetched.await?, first.len) }));
        }
        let Content::Layer(layer_file) = &file.content else {
            return Err(FsError::Invalid);
        };
        let data = layer_file.data().ok_or(FsError::Invalid)?;
        let rest: Vec<_> = rest
            .iter()
            .map(|range| (request(&data, first.stream, *range), range_len(*range)))
            .collect();
        let reader = Arc::clone(&self.reader);
        Ok(Box::pin(async move {
            let mut bytes = before;
            bytes.extend_from_slice(&exactly(fetched.await?, first.len)?);
            for (request, len) in rest {
                match request {
                    Some(request) => {
                        let more = reader.read(request).await?;
                        bytes.extend_from_slice(&exactly(more, request.len)?);
                    }
                    None => bytes.resize(bytes.len() + len, 0),
                }
            }
            Ok(bytes.into())
        }))
    }

    /// Tells the catalog, which writes the log and the status files.
    fn failed(&self, file: &OpenFile, offset: u64, len: u32, error: ReadError) -> ReadError {
        if let Content::Layer(file) = &file.content {
            let path = file_path(&file.layer.tree, file.ix);
            let path = String::from_utf8_lossy(&path).into_owned();
            let layer = file.layer.name.clone();
            self.catalog.read_failed(ReadFailure {
                layer,
                path,
                span: (offset, len),
                reason: error.to_string(),
            });
        }
        error
    }
}

fn request(data: &FileData<'_>, stream: StreamId, range: Range) -> Option<ReadRequest> {
    match range {
        Range::Hole { .. } => None,
        Range::Data { dense, len, .. } => Some(ReadRequest {
            stream,
            object: data.object,
            offset: data.offset.checked_add(dense)?,
            len: u32::try_from(len).ok()?,
        }),
    }
}

fn range_len(range: Range) -> usize {
    match range {
        // A range is no longer than the read that it is part of.
        Range::Hole { len, .. } | Range::Data { len, .. } => len as usize,
    }
}

fn exactly(bytes: Bytes, len: u32) -> Result<Bytes, ReadError> {
    if bytes.len() == len as usize {
        Ok(bytes)
    } else {
        Err(ReadError::Store("a read came out short".into()))
    }
}

/// A path of a file in its layer, for a log: one of them if it has several.
/// Searches the whole tree.
fn file_path(tree: &Tree, ix: NodeIx) -> Vec<u8> {
    let directories =
        (0..tree.len()).map(NodeIx).filter(|d| tree.kind(*d) == Some(NodeKind::Directory));
    for directory in directories {
        if let Some(entry) = tree.entries(directory).find(|entry| entry.ix == ix) {
            let mut path = path_of(tree, directory);
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(entry.name);
            return path;
        }
    }
    format!("node {}", ix.0).into_bytes()
}
