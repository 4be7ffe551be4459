//! The staging area of first passes: streams that grow, durable checkpoints,
//! and streams that become objects.
//!
//! A checkpoint is durable only after the streams are, up to the lengths it
//! names; the last two are kept, so that a torn one costs one step back. A
//! stream becomes an object by a rename. What it is to become is durable before,
//! so a crash in between is finished at the next opening.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::error::{MetaError, ReadError, StageError};
use super::objects::add_to_batch;
use super::promote::Promotion;
use super::{Inner, Store};
use crate::store::device::{DeviceFile, Kind, Mode, Syncing, read_exact_at, read_whole};
use crate::store::format::checkpoint::{Checkpoint, STATE_MAX, STREAMS_MAX};
use crate::store::format::layout::{
    CHECKPOINT_NAMES, STAGING_DIR, Stream, checkpoint_path, staging_dir, staging_path,
};
use crate::store::format::tables::Table;
use crate::types::{BlockHash, Digest, ObjectId, ObjectSpec, VerifiedBlock};

/// Stream files that are open at a time, for each first pass.
const OPEN_MAX: usize = 64;
/// Largest checkpoint file: the state, and a line for each stream.
const CHECKPOINT_MAX: u64 = STATE_MAX as u64 + (STREAMS_MAX as u64) * 44 + 64;

/// The first passes that are under way in this process.
#[derive(Debug, Default)]
pub(super) struct Active(Mutex<HashSet<Digest>>);

impl Active {
    fn set(&self) -> MutexGuard<'_, HashSet<Digest>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where an interrupted first pass goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resumed {
    /// The state that was given to the last durable checkpoint.
    pub state: Vec<u8>,
    /// The streams, cut to their lengths at that point.
    pub streams: Vec<(Stream, u64)>,
}

/// The staging area of one blob's first pass.
///
/// Dropping it leaves what is there for another attempt; what was written
/// since the last checkpoint is cut off then.
#[derive(Debug)]
pub struct Staging {
    inner: Arc<Inner>,
    blob: Digest,
    resumed: Option<Resumed>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    streams: BTreeMap<Stream, StreamState>,
    /// Turn of the last use, for closing files.
    turn: u64,
    open: usize,
    sequence: u64,
    new_files: bool,
    /// There is no directory yet: it is made for the first file.
    no_dir: bool,
    /// The directory's own name is not durable yet.
    new_dir: bool,
    /// A sync failed: what it covered may be lost, and a later one would not
    /// tell. Only another [`Store::stage`] goes on from here.
    broken: bool,
}

#[derive(Debug, Default)]
struct StreamState {
    len: u64,
    file: Option<(Arc<dyn DeviceFile>, u64)>,
    dirty: bool,
    /// A failed write may have left bytes after the end.
    ragged: bool,
    /// Blocks put in this session, if the stream began in it: what the stream
    /// must be when it is promoted.
    blocks: Option<Vec<(BlockHash, u32)>>,
    promoted: Option<ObjectId>,
}

impl Store {
    /// Opens the staging area of a blob's first pass, with what an interrupted
    /// one left.
    ///
    /// # Errors
    /// [`StageError::Busy`] if it is open already.
    pub fn stage(&self, blob: &Digest) -> Result<Staging, StageError> {
        if self.inner.is_read_only() {
            return Err(StageError::ReadOnly);
        }
        if !self.inner.stagings.set().insert(*blob) {
            return Err(StageError::Busy(*blob));
        }
        let mut staging = Staging {
            inner: Arc::clone(&self.inner),
            blob: *blob,
            resumed: None,
            state: Mutex::default(),
        };
        // On an error dropping it takes the blob off the list.
        staging.load()?;
        Ok(staging)
    }

    /// The blobs whose first pass was begun and not finished.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn staged(&self) -> io::Result<Vec<Digest>> {
        let names = self.inner.device.read_dir(STAGING_DIR)?;
        Ok(names
            .iter()
            .filter(|(_, kind)| *kind == Kind::Dir)
            .filter_map(|(name, _)| format!("sha256:{name}").parse().ok())
            .collect())
    }
}

impl Staging {
    /// The blob.
    pub fn blob(&self) -> &Digest {
        &self.blob
    }

    /// Where to go on; `None` if there is nothing to go on from.
    pub fn resumed(&self) -> Option<&Resumed> {
        self.resumed.as_ref()
    }

    /// The length of a stream in bytes; 0 if it was not begun.
    pub fn len(&self, stream: Stream) -> u64 {
        self.state().streams.get(&stream).map_or(0, |s| s.len)
    }

    /// The object that the stream has become.
    pub fn promoted(&self, stream: Stream) -> Option<ObjectId> {
        self.state().streams.get(&stream)?.promoted
    }

    /// Appends bytes that are not content (literals), and gives their offset.
    ///
    /// # Errors
    /// [`StageError`]; the stream is as long as it was.
    pub fn append(&self, stream: Stream, data: &[u8]) -> Result<u64, StageError> {
        let mut state = self.writable()?;
        let offset = state.streams.get(&stream).map_or(0, |s| s.len);
        self.write(&mut state, stream, data, None)?;
        Ok(offset)
    }

    /// Appends a block of content, which begins at `offset` in the stream.
    ///
    /// # Errors
    /// [`StageError`]; the stream is as long as it was.
    pub fn put(
        &self,
        stream: Stream,
        offset: u64,
        block: &VerifiedBlock,
    ) -> Result<(), StageError> {
        let mut state = self.writable()?;
        let end = state.streams.get(&stream).map_or(0, |s| s.len);
        if offset != end {
            return Err(StageError::Order { stream: stream.file_name(), offset, end });
        }
        self.write(&mut state, stream, block.data(), Some(*block.hash()))
    }

    /// Reads up to `buf.len()` bytes of a stream; 0 at its end.
    ///
    /// # Errors
    /// [`StageError`].
    pub fn read(&self, stream: Stream, offset: u64, buf: &mut [u8]) -> Result<usize, StageError> {
        let mut state = self.state();
        let Some(known) = state.streams.get(&stream) else {
            return Ok(0);
        };
        let rest = known.len.saturating_sub(offset);
        let len = buf.len().min(usize::try_from(rest).unwrap_or(usize::MAX));
        if len == 0 {
            return Ok(0);
        }
        if let Some(id) = known.promoted {
            drop(state);
            return self.read_object(&id, offset, &mut buf[..len]);
        }
        let file = self.file(&mut state, stream)?;
        drop(state);
        read_exact_at(&*file, offset, &mut buf[..len])?;
        Ok(len)
    }

    /// Makes all streams durable as they are now, and `checkpoint` with them:
    /// a first pass that is interrupted goes on from there.
    ///
    /// # Errors
    /// [`StageError`]; the checkpoint before it then still counts.
    pub fn checkpoint(&self, checkpoint: &[u8]) -> Result<(), StageError> {
        if checkpoint.len() > STATE_MAX {
            return Err(StageError::TooLarge("the state"));
        }
        let mut state = self.writable()?;
        self.make_dir(&mut state)?;
        self.sync_streams(&mut state)?;
        let sequence = state.sequence + 1;
        let encoded = Checkpoint {
            sequence,
            streams: state.streams.iter().map(|(s, st)| (*s, st.len)).collect(),
            state: checkpoint.to_vec(),
        }
        .encode();
        let device = &self.inner.device;
        let path = checkpoint_path(&self.blob, sequence);
        let new = device.stat(&path)?.is_none();
        let file = device.open(&path, Mode::Create)?;
        file.write_at(0, &encoded)?;
        file.sync_data()?;
        if new {
            device.sync_dir(&staging_dir(&self.blob))?;
        }
        state.sequence = sequence;
        Ok(())
    }

    /// Turns finished streams into complete objects, all together. A stream
    /// whose object is complete already is dropped. Streams can still be read
    /// afterwards, but not written.
    ///
    /// # Errors
    /// [`StageError::NotTheObject`] where a stream has other blocks or another
    /// length than the object; nothing is changed then. With other errors some
    /// may have become objects; to call it again is right.
    pub fn promote(&self, streams: &[(Stream, ObjectSpec)]) -> Result<Vec<ObjectId>, StageError> {
        let mut state = self.writable()?;
        let ids: Vec<ObjectId> = streams.iter().map(|(_, spec)| spec.id()).collect();
        for ((stream, spec), id) in streams.iter().zip(&ids) {
            self.check(&state, *stream, spec, id)?;
        }
        self.sync_streams(&mut state)?;
        let specs: Vec<&ObjectSpec> = streams.iter().map(|(_, spec)| spec).collect();
        let planned: Vec<Promotion> = streams
            .iter()
            .zip(&ids)
            .filter(|((stream, _), _)| self.is_unpromoted(&state, *stream))
            .map(|((stream, _), id)| Promotion { blob: self.blob, stream: *stream, object: *id })
            .collect();
        self.inner.meta.update(true, |view, batch| {
            add_to_batch(view, batch, &ids, &specs)?;
            for promotion in &planned {
                promotion.record(batch, false);
            }
            Ok::<_, MetaError>(())
        })?;
        for promotion in &planned {
            if let Some(known) = state.streams.get_mut(&promotion.stream)
                && known.file.take().is_some()
            {
                state.open -= 1;
            }
        }
        let moved = self.inner.promote(&planned)?;
        for promotion in &planned {
            let known = state.streams.entry(promotion.stream).or_default();
            known.promoted = Some(promotion.object);
            // Blocks that were put in this session were hashed then.
            if known.blocks.take().is_some()
                && let Some(entry) = moved.iter().find(|e| e.id == promotion.object)
            {
                entry.verified.set_all();
            }
        }
        Ok(ids)
    }

    /// Ends the first pass: all that is still staged goes.
    ///
    /// # Errors
    /// [`StageError`]; what is left goes with another attempt.
    pub fn discard(self) -> Result<(), StageError> {
        self.writable()?.streams.clear();
        self.clear()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn writable(&self) -> Result<MutexGuard<'_, State>, StageError> {
        if self.inner.is_read_only() {
            return Err(StageError::ReadOnly);
        }
        Ok(self.state())
    }

    /// Finds the last checkpoint that holds and cuts the streams to it.
    fn load(&mut self) -> Result<(), StageError> {
        let device = Arc::clone(&self.inner.device);
        let dir = staging_dir(&self.blob);
        if device.stat(&dir)?.is_none() {
            self.state().no_dir = true;
            return Ok(());
        }
        let promoted: BTreeMap<Stream, ObjectId> = self
            .inner
            .promotions(self.blob.as_bytes())?
            .into_iter()
            .map(|(promotion, _)| (promotion.stream, promotion.object))
            .collect();
        let mut checkpoints: Vec<Checkpoint> = CHECKPOINT_NAMES
            .iter()
            .filter_map(|name| {
                let file = device.open(&format!("{dir}/{name}"), Mode::Read).ok()?;
                Checkpoint::decode(&read_whole(&*file, CHECKPOINT_MAX).ok()?).ok()
            })
            .collect();
        checkpoints.sort_by_key(|c| std::cmp::Reverse(c.sequence));
        let good = checkpoints.into_iter().find(|checkpoint| self.holds(checkpoint, &promoted));
        let Some(checkpoint) = good else {
            self.clear()?;
            self.state().no_dir = true;
            return Ok(());
        };
        let mut state = self.state();
        state.sequence = checkpoint.sequence;
        for (stream, len) in &checkpoint.streams {
            let known = StreamState {
                len: *len,
                promoted: promoted.get(stream).copied(),
                ..StreamState::default()
            };
            if known.promoted.is_none() {
                let path = staging_path(&self.blob, *stream);
                device.open(&path, Mode::Write)?.set_len(*len)?;
            }
            state.streams.insert(*stream, known);
        }
        for (name, _) in device.read_dir(&dir)? {
            let known = Stream::from_file_name(&name)
                .is_some_and(|stream| state.streams.contains_key(&stream));
            if !known && !CHECKPOINT_NAMES.contains(&&name[..]) {
                device.unlink(&format!("{dir}/{name}"))?;
            }
        }
        drop(state);
        self.resumed = Some(Resumed { state: checkpoint.state, streams: checkpoint.streams });
        Ok(())
    }

    /// Whether all streams are at least as long as the checkpoint says.
    fn holds(&self, checkpoint: &Checkpoint, promoted: &BTreeMap<Stream, ObjectId>) -> bool {
        checkpoint.streams.iter().all(|(stream, len)| {
            let size = match promoted.get(stream) {
                Some(id) => match self.inner.entry(id) {
                    Ok(entry) if entry.is_complete() => Some(entry.spec.length()),
                    _ => None,
                },
                None => self
                    .inner
                    .device
                    .stat(&staging_path(&self.blob, *stream))
                    .unwrap_or_default()
                    .map(|stat| stat.size),
            };
            size.is_some_and(|size| size >= *len)
        })
    }

    fn is_unpromoted(&self, state: &State, stream: Stream) -> bool {
        state.streams.get(&stream).is_none_or(|known| known.promoted.is_none())
    }

    /// Removes the directory and what is in it.
    ///
    /// What streams were to become is forgotten first, durably: a file that is
    /// gone must not be taken for one that was renamed.
    fn clear(&self) -> Result<(), StageError> {
        let device = &self.inner.device;
        let dir = staging_dir(&self.blob);
        let promotions = self.inner.promotions(self.blob.as_bytes())?;
        if !promotions.is_empty() {
            self.inner.meta.update(true, |_, batch| {
                for (promotion, _) in &promotions {
                    batch.delete(Table::Promotions, &promotion.key());
                }
                Ok::<_, StageError>(())
            })?;
        }
        let names = match device.read_dir(&dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        // Checkpoints first: without them the streams mean nothing, and whether
        // those are gone after a crash does not matter.
        let is_checkpoint = |name: &str| CHECKPOINT_NAMES.contains(&name);
        if names.iter().any(|(name, _)| is_checkpoint(name)) {
            for name in CHECKPOINT_NAMES {
                device.unlink(&format!("{dir}/{name}"))?;
            }
            device.sync_dir(&dir)?;
        }
        for (name, _) in names {
            device.unlink(&format!("{dir}/{name}"))?;
        }
        device.rmdir(&dir)?;
        Ok(())
    }

    fn write(
        &self,
        state: &mut State,
        stream: Stream,
        data: &[u8],
        hash: Option<BlockHash>,
    ) -> Result<(), StageError> {
        if !state.streams.contains_key(&stream) {
            if state.streams.len() >= STREAMS_MAX {
                return Err(StageError::TooLarge("the number of streams"));
            }
            let begun = StreamState { blocks: Some(Vec::new()), ..StreamState::default() };
            state.streams.insert(stream, begun);
            state.new_files = true;
        }
        let file = self.file(state, stream)?;
        let Some(known) = state.streams.get_mut(&stream) else {
            return Ok(());
        };
        known.dirty = true;
        if let Err(e) = file.write_at(known.len, data) {
            known.ragged = true;
            return Err(e.into());
        }
        known.len += data.len() as u64;
        match (&mut known.blocks, hash) {
            (Some(blocks), Some(hash)) => {
                blocks.push((hash, u32::try_from(data.len()).unwrap_or(u32::MAX)));
            }
            // Not all of the stream is blocks that were hashed here.
            _ => known.blocks = None,
        }
        Ok(())
    }

    /// The stream's file; opens it, and closes the one that was not used for
    /// the longest time if there are too many.
    fn file(&self, state: &mut State, stream: Stream) -> Result<Arc<dyn DeviceFile>, StageError> {
        self.make_dir(state)?;
        state.turn += 1;
        let turn = state.turn;
        let known = state.streams.entry(stream).or_default();
        if known.promoted.is_some() {
            return Err(StageError::Promoted(stream.file_name()));
        }
        if let Some((file, used)) = &mut known.file {
            *used = turn;
            return Ok(Arc::clone(file));
        }
        let path = staging_path(&self.blob, stream);
        let file = self.inner.device.open(&path, Mode::Create)?;
        known.file = Some((Arc::clone(&file), turn));
        state.open += 1;
        if state.open > OPEN_MAX {
            let oldest = state
                .streams
                .values_mut()
                .filter(|s| s.file.is_some())
                .min_by_key(|s| s.file.as_ref().map_or(0, |(_, used)| *used));
            if let Some(oldest) = oldest {
                oldest.file = None;
                state.open -= 1;
            }
        }
        Ok(file)
    }

    /// Makes the directory before the first file in it.
    fn make_dir(&self, state: &mut State) -> Result<(), StageError> {
        if std::mem::take(&mut state.no_dir) {
            let made = self.inner.device.mkdir(&staging_dir(&self.blob));
            state.no_dir = made.is_err();
            state.new_dir = made?;
        }
        Ok(())
    }

    fn sync_streams(&self, state: &mut State) -> Result<(), StageError> {
        if state.broken {
            let lost = io::Error::other("an earlier sync failed; the first pass must resume");
            return Err(StageError::Io(lost));
        }
        let dirty: Vec<Stream> = state
            .streams
            .iter()
            .filter(|(_, s)| s.dirty && s.promoted.is_none())
            .map(|(stream, _)| *stream)
            .collect();
        for stream in &dirty {
            let file = self.file(state, *stream)?;
            if let Some(known) = state.streams.get_mut(stream)
                && known.ragged
            {
                file.set_len(known.len)?;
                known.ragged = false;
            }
            file.start_sync();
        }
        // No more of them than may be open.
        for some in dirty.chunks(OPEN_MAX) {
            let files: Vec<_> =
                some.iter().map(|stream| self.file(state, *stream)).collect::<Result<_, _>>()?;
            let wanted: Vec<_> = files.iter().map(|file| Syncing::Data(&**file)).collect();
            for (stream, outcome) in some.iter().zip(self.inner.device.sync_all(&wanted)) {
                if let Err(e) = outcome {
                    state.broken = true;
                    return Err(e.into());
                }
                if let Some(known) = state.streams.get_mut(stream) {
                    known.dirty = false;
                }
            }
        }
        if state.new_dir {
            self.inner.device.sync_dir(STAGING_DIR)?;
            state.new_dir = false;
        }
        if state.new_files {
            self.inner.device.sync_dir(&staging_dir(&self.blob))?;
            state.new_files = false;
        }
        Ok(())
    }

    fn check(
        &self,
        state: &State,
        stream: Stream,
        spec: &ObjectSpec,
        id: &ObjectId,
    ) -> Result<(), StageError> {
        let known = state.streams.get(&stream);
        let same = match known {
            None => spec.length() == 0,
            Some(known) => match (known.promoted, &known.blocks) {
                (Some(promoted), _) => promoted == *id,
                (None, Some(blocks)) => {
                    known.len == spec.length()
                        && blocks.len() == spec.block_count() as usize
                        && spec.blocks().zip(blocks).all(|(a, b)| (a.hash, a.len) == *b)
                }
                // Resumed: the caller has hashed it all again from here, and
                // every block is verified once more when it is first read.
                (None, None) => known.len == spec.length(),
            },
        };
        if same {
            Ok(())
        } else {
            Err(StageError::NotTheObject { stream: stream.file_name(), object: *id })
        }
    }

    fn read_object(&self, id: &ObjectId, offset: u64, buf: &mut [u8]) -> Result<usize, StageError> {
        let store = &self.inner;
        let entry = store.entry(id).map_err(StageError::Read)?;
        let Some(index) = entry.spec.block_at(offset) else {
            return Ok(0);
        };
        let block = store.read_block(id, index).map_err(StageError::Read)?;
        let (Some(block), Some(at)) = (block, entry.spec.block(index)) else {
            return Err(StageError::Read(ReadError::Unknown(*id)));
        };
        let from = (offset - at.offset) as usize;
        let n = buf.len().min(block.data().len() - from);
        buf[..n].copy_from_slice(&block.data()[from..from + n]);
        Ok(n)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        self.inner.stagings.set().remove(&self.blob);
    }
}
