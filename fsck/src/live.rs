//! A store that is in use: its owner says what it claims, and the data is
//! verified here.
//!
//! The owner goes on meanwhile. What is found wrong is asked for once more: it
//! may have been removed or fetched again since.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use peersync::store::format::inventory::{BLOCKS_PER_LINE, InventoryLine};
use peersync::store::format::layout::{CONTROL_SOCKET, data_path};
use peersync::store::format::spec::SpecHasher;
use peersync::types::{BLOCK_MAX, BlockHash, ObjectId};

use crate::data::{Bad, Block, Claims, Feed, verify};
use crate::open::{at, is_damage, open_file};
use crate::report::{Finding, Kind, Mode, Report};
use crate::{FsckError, Options, Progress};

/// Longest line that is read, in bytes.
const LINE_MAX: u64 = 1 << 20;

/// Checks a store by its owner's inventory.
pub(crate) fn check(
    path: &Path,
    pid: &str,
    options: &Options,
    progress: &dyn Progress,
) -> Result<Report, FsckError> {
    let live = Live { path, pid, options, progress };
    let mut report = Report::new(path.display().to_string(), Mode::Live);
    progress.stage("data", None);
    let (bad, sum) = verify(options.jobs, progress, |feed| {
        live.list(None, &mut report, |report, step| {
            step.to(feed);
            if feed.is_full() { live.confirm(feed.take(), report) } else { Ok(()) }
        })
    })?;
    report.checked.blocks = sum.blocks;
    report.checked.bytes = sum.bytes;
    live.confirm(bad, &mut report)?;
    report.skip("records, references, layer indexes and leftover files: the store is in use");
    Ok(report)
}

/// A claimed block that an inventory lists.
struct Step<'a> {
    object: &'a ObjectId,
    file: &'a Arc<File>,
    block: Block,
}

impl Step<'_> {
    fn to(&self, feed: &mut Feed<'_>) {
        feed.block(self.object, self.file, self.block);
    }
}

struct Live<'a> {
    path: &'a Path,
    pid: &'a str,
    options: &'a Options,
    progress: &'a dyn Progress,
}

/// The object whose block list is coming.
struct Current {
    id: ObjectId,
    file: Option<Arc<File>>,
    hasher: SpecHasher,
    block_size: u32,
    blocks: u32,
    next: u32,
    offset: u64,
    /// Claimed blocks of an object without a data file.
    lost: u32,
}

impl Live<'_> {
    /// Asks for the inventory and gives the blocks that it claims.
    fn list(
        &self,
        object: Option<&ObjectId>,
        report: &mut Report,
        mut visit: impl FnMut(&mut Report, Step<'_>) -> Result<(), FsckError>,
    ) -> Result<(), FsckError> {
        let mut lines = self.ask(object)?;
        let mut current: Option<Current> = None;
        loop {
            let line = self.line(&mut lines)?;
            if !matches!(line, InventoryLine::Blocks { .. })
                && let Some(done) = current.take()
            {
                self.finish(&done, report, object.is_some())?;
            }
            match line {
                InventoryLine::Object { object: id, block_size, blocks, .. } => {
                    let id = id.parse().map_err(|_| self.bad("not an object's name"))?;
                    if object.is_none() {
                        report.checked.objects += 1;
                    }
                    if block_size == 0 || block_size > BLOCK_MAX {
                        return Err(self.bad("an impossible block size"));
                    }
                    current = Some(Current {
                        id,
                        file: self.data_file(&id)?.map(Arc::new),
                        hasher: SpecHasher::new(block_size, blocks),
                        block_size,
                        blocks,
                        next: 0,
                        offset: 0,
                        lost: 0,
                    });
                }
                InventoryLine::Blocks { first, present, list } => {
                    let Some(current) = &mut current else {
                        return Err(self.bad("blocks without an object"));
                    };
                    let blocks = current
                        .take(first, &present, &list)
                        .ok_or_else(|| self.bad("a malformed block list"))?;
                    for block in blocks {
                        match &current.file {
                            Some(file) => visit(report, Step { object: &current.id, file, block })?,
                            None => current.lost += 1,
                        }
                    }
                }
                InventoryLine::Damaged { object, reason } => report.add(Finding {
                    kind: Kind::BlockList,
                    place: format!("object {object}"),
                    message: reason,
                    block: None,
                    repaired: false,
                }),
                InventoryLine::End { .. } => return Ok(()),
                InventoryLine::Error { message } => return Err(self.bad(&message)),
            }
        }
    }

    /// An object's data file; `None` if there is none that can be read.
    fn data_file(&self, id: &ObjectId) -> Result<Option<File>, FsckError> {
        let path = self.path.join(data_path(id));
        match open_file(&path) {
            Ok(file) => Ok(Some(file)),
            Err(e) if is_damage(&e) => Ok(None),
            Err(e) => Err(at(&path, e)),
        }
    }

    fn finish(&self, done: &Current, report: &mut Report, again: bool) -> Result<(), FsckError> {
        if done.next != done.blocks || done.hasher.finish() != done.id {
            report.add(Finding {
                kind: Kind::BlockList,
                place: format!("object {}", done.id),
                message: "the block list is not that of the object's name".into(),
                block: None,
                repaired: false,
            });
        } else if done.lost > 0 && (again || self.still_lost(&done.id)?) {
            report.add(Finding {
                kind: Kind::MissingData,
                place: format!("object {}", done.id),
                message: format!("{} blocks are claimed, but there is no data file", done.lost),
                block: None,
                repaired: false,
            });
        }
        Ok(())
    }

    /// Asks once more about an object whose file was not there.
    fn still_lost(&self, id: &ObjectId) -> Result<bool, FsckError> {
        let mut second = Report::new(String::new(), Mode::Live);
        self.list(Some(id), &mut second, |_, _| Ok(()))?;
        Ok(second.counts.contains_key(&Kind::MissingData))
    }

    /// Bad blocks that are still claimed, and still bad, are findings.
    fn confirm(&self, bad: Bad, report: &mut Report) -> Result<(), FsckError> {
        for (id, faults) in bad {
            let mut words = vec![];
            for (index, _) in &faults {
                let word = *index as usize / 64;
                if words.len() <= word {
                    words.resize(word + 1, 0u64);
                }
                words[word] |= 1 << (index % 64);
            }
            let suspects = Claims::Some(words);
            let mut ignored = Report::new(String::new(), Mode::Live);
            let (still, _) = verify(self.options.jobs, self.progress, |feed| {
                self.list(Some(&id), &mut ignored, |_, step| {
                    if suspects.has(step.block.index) {
                        step.to(feed);
                    }
                    if feed.is_full() {
                        add(report, &feed.take());
                    }
                    Ok(())
                })
            })?;
            add(report, &still);
        }
        Ok(())
    }

    fn ask(&self, object: Option<&ObjectId>) -> Result<BufReader<UnixStream>, FsckError> {
        let request = match object {
            None => "{\"op\":\"inventory\"}\n".to_owned(),
            Some(id) => format!("{{\"op\":\"inventory\",\"object\":\"{id}\"}}\n"),
        };
        let socket = self.path.join(CONTROL_SOCKET);
        let stream = UnixStream::connect(&socket)
            .and_then(|mut stream| stream.write_all(request.as_bytes()).map(|()| stream));
        stream.map(BufReader::new).map_err(|e| match e.kind() {
            ErrorKind::PermissionDenied => at(&socket, e),
            _ => self.bad(&e.to_string()),
        })
    }

    fn line(&self, lines: &mut BufReader<UnixStream>) -> Result<InventoryLine, FsckError> {
        let mut line = Vec::new();
        let read = lines.take(LINE_MAX).read_until(b'\n', &mut line);
        read.map_err(|e| self.bad(&e.to_string()))?;
        if line.last() != Some(&b'\n') {
            return Err(self.bad("the inventory ends early"));
        }
        serde_json::from_slice(&line).map_err(|e| self.bad(&e.to_string()))
    }

    fn bad(&self, reason: &str) -> FsckError {
        FsckError::NoInventory {
            path: self.path.to_owned(),
            pid: self.pid.to_owned(),
            reason: reason.to_owned(),
        }
    }
}

fn add(report: &mut Report, bad: &Bad) {
    for (id, faults) in bad {
        for (index, fault) in faults {
            report.add(fault.finding(id, *index, false));
        }
    }
}

impl Current {
    /// Takes a stretch of the block list and gives the blocks that are claimed;
    /// `None` if it is malformed.
    fn take(&mut self, first: u32, present: &str, list: &str) -> Option<Vec<Block>> {
        let (present, list) = (unhex(present)?, unhex(list)?);
        let count = list.len() / 36;
        if first != self.next || !list.len().is_multiple_of(36) || count > BLOCKS_PER_LINE as usize
        {
            return None;
        }
        self.hasher.update(&list);
        let mut claimed = Vec::new();
        for (entry, i) in list.chunks_exact(36).zip(0usize..) {
            let len = u32::from_le_bytes(entry[..4].try_into().ok()?);
            if len == 0 || len > self.block_size {
                return None;
            }
            let hash = BlockHash::from_bytes(entry[4..].try_into().ok()?);
            if present.get(i / 8)? & (1 << (i % 8)) != 0 {
                let index = first + i as u32;
                claimed.push(Block { index, offset: self.offset, len, hash });
            }
            self.offset += u64::from(len);
        }
        self.next += count as u32;
        Some(claimed)
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |c: u8| char::from(c).to_digit(16).map(|d| d as u8);
    if !text.len().is_multiple_of(2) {
        return None;
    }
    text.as_bytes()
        .chunks_exact(2)
        .map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?))
        .collect()
}
