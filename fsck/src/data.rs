//! Data: every block that is claimed is read and hashed.
//!
//! One thread lists what is claimed, others read and hash. Memory: one buffer
//! for each of them, a bounded queue between, and a bounded number of faults: what
//! is found is dealt with while the rest is being listed, however much it is.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use peersync::store::format::bits;
use peersync::store::format::keys;
use peersync::store::format::layout::{bits_path, data_path};
use peersync::store::format::records::ObjectRecord;
use peersync::store::format::tables::Table;
use peersync::types::{BLOCK_MAX, BlockHash, ObjectId};

use crate::checker::Checker;
use crate::database::Snapshot;
use crate::objects::{Stretch, each_stretch};
use crate::open::{at, is_damage, open_file};
use crate::report::{Finding, Kind};
use crate::{FsckError, Progress};

/// Bytes of one piece of work, about: enough to read in long runs.
const PIECE: u64 = 4 << 20;
/// Blocks of one piece at most; they may be small.
const PIECE_BLOCKS: usize = 4096;
/// Faults that are kept until they are dealt with; each piece that is at work may
/// add its own.
const FAULTS_MAX: usize = 1 << 14;

/// Blocks of one file to read and hash.
pub(crate) struct Piece {
    object: ObjectId,
    file: Arc<File>,
    blocks: Vec<Block>,
}

/// Where a block stands and what it must be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Block {
    pub(crate) index: u32,
    pub(crate) offset: u64,
    pub(crate) len: u32,
    pub(crate) hash: BlockHash,
}

/// What is wrong with a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Other bytes.
    Wrong,
    /// Zeros, or the end of the file: nothing was ever written.
    Absent,
    /// The disk can't read it.
    Unreadable(String),
}

impl Fault {
    fn kind(&self) -> Kind {
        match self {
            Self::Wrong | Self::Unreadable(_) => Kind::BadBlock,
            Self::Absent => Kind::MissingData,
        }
    }

    /// The finding that block `index` of the object has this fault.
    pub(crate) fn finding(&self, object: &ObjectId, index: u32, repaired: bool) -> Finding {
        let (kind, message) = (self.kind(), self.message());
        Finding { kind, place: format!("object {object}"), message, block: Some(index), repaired }
    }

    fn message(&self) -> String {
        match self {
            Self::Wrong => "the bytes are not those of the block's hash".into(),
            Self::Absent => "the block is claimed, but nothing was written there".into(),
            Self::Unreadable(e) => format!("the disk can't read the block: {e}"),
        }
    }
}

/// Bad blocks by object.
pub(crate) type Bad = BTreeMap<ObjectId, Vec<(u32, Fault)>>;

/// A piece that was read and hashed.
struct Done {
    object: ObjectId,
    faults: Vec<(u32, Fault)>,
}

/// Takes blocks of objects, in order, and cuts them into pieces; gives what is wrong
/// with them.
pub(crate) struct Feed<'a> {
    work: &'a SyncSender<Piece>,
    done: Receiver<Done>,
    piece: Option<Piece>,
    bytes: u64,
    /// Pieces that were given out and did not come back.
    out: usize,
    bad: Bad,
    faults: usize,
}

impl Feed<'_> {
    pub(crate) fn block(&mut self, object: &ObjectId, file: &Arc<File>, block: Block) {
        let same = self.piece.as_ref().is_some_and(|p| {
            p.object == *object && p.blocks.len() < PIECE_BLOCKS && self.bytes < PIECE
        });
        if !same {
            self.finish();
            let (object, file) = (*object, Arc::clone(file));
            self.piece = Some(Piece { object, file, blocks: Vec::new() });
        }
        if let Some(piece) = &mut self.piece {
            piece.blocks.push(block);
            self.bytes += u64::from(block.len);
        }
    }

    /// Whether so much was found that it is to be taken now.
    pub(crate) fn is_full(&self) -> bool {
        self.faults >= FAULTS_MAX
    }

    /// What was found wrong with all blocks so far, and not taken yet.
    pub(crate) fn take(&mut self) -> Bad {
        self.finish();
        while self.out > 0
            && let Ok(done) = self.done.recv()
        {
            self.note(done);
        }
        for faults in self.bad.values_mut() {
            faults.sort_by_key(|(index, _)| *index);
        }
        self.faults = 0;
        std::mem::take(&mut self.bad)
    }

    fn finish(&mut self) {
        self.bytes = 0;
        // The workers end only after the feed.
        if let Some(piece) = self.piece.take()
            && self.work.send(piece).is_ok()
        {
            self.out += 1;
        }
        while let Ok(done) = self.done.try_recv() {
            self.note(done);
        }
    }

    fn note(&mut self, done: Done) {
        self.out -= 1;
        self.faults += done.faults.len();
        if !done.faults.is_empty() {
            self.bad.entry(done.object).or_default().extend(done.faults);
        }
    }
}

/// What was read and hashed.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Verified {
    pub(crate) blocks: u64,
    pub(crate) bytes: u64,
}

/// Runs `list`, which gives all that is to be verified, beside `jobs` threads
/// that do it. Gives what is wrong, as far as `list` has not taken it.
pub(crate) fn verify<E>(
    jobs: usize,
    progress: &dyn Progress,
    list: impl FnOnce(&mut Feed<'_>) -> Result<(), E>,
) -> Result<(Bad, Verified), E> {
    let jobs = jobs.clamp(1, 256);
    let (work, pieces) = sync_channel::<Piece>(2 * jobs);
    let (found, done) = channel();
    let pieces = Mutex::new(pieces);
    let (blocks, bytes) = (AtomicU64::new(0), AtomicU64::new(0));
    let bad = std::thread::scope(|scope| {
        for _ in 0..jobs {
            let (pieces, found) = (&pieces, found.clone());
            let (blocks, bytes) = (&blocks, &bytes);
            scope.spawn(move || {
                let mut buffer = vec![0; BLOCK_MAX as usize];
                while let Some(piece) = next(pieces) {
                    let (sum, faults) = run(&piece, &mut buffer);
                    blocks.fetch_add(piece.blocks.len() as u64, Ordering::Relaxed);
                    bytes.fetch_add(sum, Ordering::Relaxed);
                    progress.advance(sum);
                    // Nobody wants it any more where the list failed.
                    let _ = found.send(Done { object: piece.object, faults });
                }
            });
        }
        drop(found);
        let (piece, bad) = (None, Bad::new());
        let mut feed = Feed { work: &work, done, piece, bytes: 0, out: 0, bad, faults: 0 };
        let listed = list(&mut feed);
        let bad = feed.take();
        drop(feed);
        drop(work);
        listed.map(|()| bad)
    })?;
    let sum = Verified { blocks: blocks.into_inner(), bytes: bytes.into_inner() };
    Ok((bad, sum))
}

fn next(pieces: &Mutex<Receiver<Piece>>) -> Option<Piece> {
    pieces.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
}

/// How many bytes the piece has, and what is wrong with its blocks.
fn run(piece: &Piece, buffer: &mut [u8]) -> (u64, Vec<(u32, Fault)>) {
    let (mut bytes, mut faults) = (0, Vec::new());
    for block in &piece.blocks {
        bytes += u64::from(block.len);
        let Some(buffer) = buffer.get_mut(..block.len as usize) else {
            continue;
        };
        let fault = match piece.file.read_exact_at(buffer, block.offset) {
            Ok(()) if BlockHash::of(buffer) == block.hash => continue,
            Ok(()) if buffer.iter().all(|b| *b == 0) => Fault::Absent,
            Ok(()) => Fault::Wrong,
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Fault::Absent,
            Err(e) => Fault::Unreadable(e.to_string()),
        };
        faults.push((block.index, fault));
    }
    (bytes, faults)
}

/// Which blocks an object claims on the disk.
pub(crate) enum Claims {
    All,
    Some(Vec<u64>),
}

impl Claims {
    pub(crate) fn has(&self, index: u32) -> bool {
        match self {
            Self::All => true,
            Self::Some(words) => {
                words.get(index as usize / 64).is_some_and(|w| w & (1 << (index % 64)) != 0)
            }
        }
    }

    pub(crate) fn any(&self) -> bool {
        match self {
            Self::All => true,
            Self::Some(words) => words.iter().any(|w| *w != 0),
        }
    }
}

/// Reads which blocks an object claims; `problem` is told what in the bitmap
/// can't be believed.
pub(crate) fn claims(
    root: &Path,
    id: &ObjectId,
    record: &ObjectRecord,
    mut problem: impl FnMut(bits::BitsError),
) -> io::Result<Claims> {
    if record.complete {
        return Ok(Claims::All);
    }
    let file =
        match crate::open::read_small(&root.join(bits_path(id)), bits::file_len(record.blocks)) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Ok(Claims::Some(vec![0; record.blocks.div_ceil(64) as usize]));
            }
            Err(e) => return Err(e),
        };
    Ok(Claims::Some(bits::parse(id, record.blocks, &file, &mut problem)))
}

impl Checker<'_> {
    /// Verifies all claimed blocks; in a repair, drops the claims that are
    /// wrong.
    pub(crate) fn check_data(&mut self) -> Result<(), FsckError> {
        let snapshot = self.snapshot()?;
        let mut total = 0;
        each_object(&snapshot, |_, record| {
            total += record.length;
            Ok(())
        })?;
        self.progress.stage("data", Some(total));
        let (jobs, progress) = (self.options.jobs, self.progress);
        let (bad, sum) = verify(jobs, progress, |feed| {
            each_object(&snapshot, |id, record| self.list_object(&snapshot, id, record, feed))
        })?;
        self.report.checked.blocks += sum.blocks;
        self.report.checked.bytes += sum.bytes;
        self.drop_bad(bad)
    }

    /// Reports blocks that are wrong, and drops their claims in a repair.
    fn drop_bad(&mut self, bad: Bad) -> Result<(), FsckError> {
        let repaired = self.repairs();
        for (id, faults) in &bad {
            for (index, fault) in faults {
                self.report.add(fault.finding(id, *index, repaired));
            }
        }
        if !repaired {
            return Ok(());
        }
        // Of an object that had bad blocks before, the record has changed since.
        let snapshot = self.snapshot()?;
        for (id, faults) in bad {
            self.drop_blocks(&snapshot, &id, faults.iter().map(|(index, _)| *index))?;
        }
        Ok(())
    }

    /// Lists the claimed blocks of one object.
    fn list_object(
        &mut self,
        snapshot: &Snapshot,
        id: &ObjectId,
        record: &ObjectRecord,
        feed: &mut Feed<'_>,
    ) -> Result<(), FsckError> {
        if record.blocks == 0 {
            return Ok(());
        }
        let place = format!("object {id}");
        if snapshot.contains(Table::Removing, id.as_bytes())? {
            // It claims nothing any more, whatever files are left.
            self.progress.advance(record.length);
            self.report.note(format!("{place}: its removal will be finished at the next opening"));
            return Ok(());
        }
        let mut problems = Vec::new();
        let claims = claims(&self.root, id, record, |problem| problems.push(problem.to_string()));
        let claims = match claims {
            Ok(claims) => claims,
            Err(e) if is_damage(&e) => {
                problems.push(format!("the bitmap can't be read: {e}"));
                Claims::Some(vec![0; record.blocks.div_ceil(64) as usize])
            }
            Err(e) => return Err(at(&self.root.join(bits_path(id)), e)),
        };
        if !problems.is_empty() {
            for problem in problems {
                self.found(Kind::Bitmap, &place, problem);
            }
            self.rewrite_claims(id, record, &claims)?;
        }
        let path = self.root.join(data_path(id));
        let file = match open_file(&path) {
            Ok(file) => file,
            Err(e) if !is_damage(&e) => return Err(at(&path, e)),
            Err(_) if !claims.any() => return Ok(()),
            Err(e) => {
                self.found(Kind::MissingData, &place, format!("the data file: {e}"));
                return self.drop_all(id, record);
            }
        };
        let size = file.metadata().map_or(0, |m| m.len());
        if size > record.length {
            let message = format!("the data file has {size} bytes, not {}", record.length);
            self.found(Kind::Length, &place, message);
            self.cut_file(&data_path(id), record.length)?;
        } else if size < record.length && claims.any() {
            self.report
                .note(format!("{place}: the data file has {size} bytes, not {}", record.length));
        }
        let file = Arc::new(file);
        let mut offset = 0;
        // A list that can't be believed was found before.
        each_stretch(snapshot, id, record, |Stretch { first, blocks }| {
            for ((hash, len), index) in blocks.into_iter().zip(first..) {
                if claims.has(index) {
                    feed.block(id, &file, Block { index, offset, len, hash });
                } else {
                    self.progress.advance(u64::from(len));
                }
                offset += u64::from(len);
            }
            if feed.is_full() {
                self.drop_bad(feed.take())?;
            }
            Ok(())
        })?
        .unwrap_or_default();
        Ok(())
    }
}

/// Visits all objects whose record can be believed.
pub(crate) fn each_object(
    snapshot: &Snapshot,
    mut visit: impl FnMut(&ObjectId, &ObjectRecord) -> Result<(), FsckError>,
) -> Result<(), FsckError> {
    snapshot.scan(Table::Objects, &[], |key, payload| {
        let record = payload.ok().and_then(|p| ObjectRecord::decode(p).ok());
        match (keys::parse_object(key), record) {
            (Some(id), Some(record)) => visit(&id, &record),
            _ => Ok(()),
        }
    })
}
