//! A disk in memory that fails on demand and forgets what was not synced.
//!
//! The model is stricter than any one file system: until a file is synced,
//! each 512-byte sector of each write may or may not survive a crash; until a
//! directory is synced, so may each change to its entries. A rename between two
//! directories is atomic once its source directory is synced, and leaves both
//! names while only the target is. What a failed sync covered is never made
//! durable by a later one.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Device, DeviceFile, Kind, LockGuard, Mode, Space, Stat};

const SECTOR: usize = 512;

/// What happens at a chosen operation. Only operations that change something
/// are counted, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It fails with `EIO`, once.
    Fail(u64),
    /// It fails with `ENOSPC`, and so does everything that needs space, until
    /// [`FaultyDevice::heal`].
    Full(u64),
    /// The power goes: it and everything after it fails.
    Crash(u64),
}

/// What becomes of unsynced changes at a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CrashStyle {
    /// All are lost.
    LoseAll,
    /// All survive: what `kill -9` does.
    KeepAll,
    /// Each sector and each entry is decided by the seed.
    Random(u64),
}

/// See the module's documentation. Clones share one disk.
#[derive(Debug, Clone)]
pub struct FaultyDevice {
    disk: Arc<Mutex<Disk>>,
}

#[derive(Debug, Default)]
struct Disk {
    ops: u64,
    fault: Option<Fault>,
    dead: bool,
    full: bool,
    locked: bool,
    clock: i64,
    next_inode: u64,
    nodes: BTreeMap<u64, Node>,
    live: BTreeMap<String, u64>,
    durable: BTreeMap<String, u64>,
    pending: Vec<Entry>,
}

#[derive(Debug, Clone)]
enum Entry {
    Add(String, u64),
    Remove(String),
    Rename(String, String, u64),
}

#[derive(Debug, Clone, Default)]
struct Node {
    dir: bool,
    data: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Change>,
    ctime: i64,
    /// Bytes that were read.
    read: u64,
}

#[derive(Debug, Clone)]
enum Change {
    Write(u64, Vec<u8>),
    Zero(u64, u64),
    SetLen(u64),
}

impl Default for FaultyDevice {
    fn default() -> Self {
        Self::new()
    }
}

impl FaultyDevice {
    /// An empty disk.
    pub fn new() -> Self {
        Self { disk: Arc::new(Mutex::new(Disk { next_inode: 1, ..Disk::default() })) }
    }

    /// Plans a fault; `None` for none.
    pub fn plan(&self, fault: Option<Fault>) {
        self.disk().fault = fault;
    }

    /// Ends a [`Fault::Full`].
    pub fn heal(&self) {
        self.disk().full = false;
    }

    /// Operations that changed something so far.
    pub fn operations(&self) -> u64 {
        self.disk().ops
    }

    /// Bytes that were read so far from the files whose path begins with `prefix`.
    pub fn bytes_read(&self, prefix: &str) -> u64 {
        let disk = self.disk();
        let files = disk.live.iter().filter(|(path, _)| path.starts_with(prefix));
        files.filter_map(|(_, inode)| disk.nodes.get(inode)).map(|node| node.read).sum()
    }

    /// Whether the power has gone.
    pub fn is_dead(&self) -> bool {
        self.disk().dead
    }

    /// Cuts the power now: nothing that holds this disk can change it any more.
    pub fn cut(&self) {
        self.disk().dead = true;
    }

    /// The disk as it is found after the power went. This one is dead.
    pub fn reboot(&self, style: CrashStyle) -> Self {
        let mut disk = self.disk();
        disk.dead = true;
        let mut rng = Rng(match style {
            CrashStyle::Random(seed) => seed,
            _ => 0,
        });
        let mut keep = |style: CrashStyle| match style {
            CrashStyle::LoseAll => false,
            CrashStyle::KeepAll => true,
            CrashStyle::Random(_) => rng.next() & 1 == 0,
        };
        let mut names = disk.durable.clone();
        for entry in &disk.pending {
            if !keep(style) {
                // The new name may be there before the old one has gone.
                if let Entry::Rename(from, to, inode) = entry
                    && dir_of(from) != dir_of(to)
                    && keep(style)
                {
                    names.insert(to.clone(), *inode);
                }
                continue;
            }
            apply(&mut names, entry);
        }
        // What stands in a directory that is not there is not there either.
        let reachable: Vec<String> = names
            .keys()
            .filter(|path| {
                let mut dir = dir_of(path);
                loop {
                    if dir.is_empty() {
                        return true;
                    }
                    if !names.contains_key(dir) {
                        return false;
                    }
                    dir = dir_of(dir);
                }
            })
            .cloned()
            .collect();
        names.retain(|path, _| reachable.binary_search(path).is_ok());
        let mut nodes = BTreeMap::new();
        for inode in names.values() {
            let Some(node) = disk.nodes.get(inode) else {
                continue;
            };
            let mut data = node.durable.clone();
            for change in &node.pending {
                change.survive(&mut data, || keep(style));
            }
            nodes.insert(
                *inode,
                Node {
                    dir: node.dir,
                    durable: data.clone(),
                    data,
                    pending: Vec::new(),
                    ctime: node.ctime,
                    read: 0,
                },
            );
        }
        Self {
            disk: Arc::new(Mutex::new(Disk {
                clock: disk.clock + 1,
                next_inode: disk.next_inode,
                nodes,
                live: names.clone(),
                durable: names,
                ..Disk::default()
            })),
        }
    }

    /// Writes the disk's files into a real directory, for a checker.
    ///
    /// # Errors
    /// Those of the real disk.
    pub fn export(&self, to: &Path) -> io::Result<()> {
        let disk = self.disk();
        for (path, inode) in &disk.live {
            let Some(node) = disk.nodes.get(inode) else {
                continue;
            };
            if node.dir {
                std::fs::create_dir_all(to.join(path))?;
            } else {
                std::fs::write(to.join(path), &node.data)?;
            }
        }
        Ok(())
    }

    /// All files and their contents.
    pub fn files(&self) -> Vec<(String, Vec<u8>)> {
        let disk = self.disk();
        disk.live
            .iter()
            .filter_map(|(path, inode)| Some((path, disk.nodes.get(inode)?)))
            .filter(|(_, node)| !node.dir)
            .map(|(path, node)| (path.clone(), node.data.clone()))
            .collect()
    }

    /// Changes a file behind everybody's back; the change is durable.
    pub fn tamper(&self, path: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut disk = self.disk();
        let Some(inode) = disk.live.get(path).copied() else {
            return;
        };
        if let Some(node) = disk.nodes.get_mut(&inode) {
            change(&mut node.data);
            node.durable = node.data.clone();
            node.pending.clear();
        }
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Disk {
    /// Counts an operation that changes something, and lets the planned fault happen.
    fn step(&mut self, needs_space: bool) -> io::Result<()> {
        self.alive()?;
        let n = self.ops;
        self.ops += 1;
        self.clock += 1;
        match self.fault {
            Some(Fault::Fail(at)) if at == n => return Err(io::Error::from_raw_os_error(5)),
            Some(Fault::Full(at)) if at == n => self.full = true,
            Some(Fault::Crash(at)) if at == n => self.dead = true,
            _ => {}
        }
        self.alive()?;
        if self.full && needs_space {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    fn alive(&self) -> io::Result<()> {
        if self.dead { Err(io::Error::from_raw_os_error(5)) } else { Ok(()) }
    }

    fn find(&self, path: &str) -> io::Result<u64> {
        self.alive()?;
        self.live.get(path).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn add(&mut self, path: &str, dir: bool) -> io::Result<u64> {
        let parent = dir_of(path);
        if !parent.is_empty() && !self.live.contains_key(parent) {
            return Err(io::ErrorKind::NotFound.into());
        }
        self.step(true)?;
        let inode = self.next_inode;
        self.next_inode += 1;
        let node = Node { dir, ctime: self.clock, ..Node::default() };
        self.nodes.insert(inode, node);
        self.change(Entry::Add(path.to_owned(), inode));
        Ok(inode)
    }

    fn change(&mut self, entry: Entry) {
        apply(&mut self.live, &entry);
        self.pending.push(entry);
    }

    fn node(&mut self, inode: u64) -> io::Result<&mut Node> {
        self.nodes.get_mut(&inode).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

fn apply(names: &mut BTreeMap<String, u64>, entry: &Entry) {
    match entry {
        Entry::Add(path, inode) => {
            names.insert(path.clone(), *inode);
        }
        Entry::Remove(path) => {
            names.remove(path);
        }
        Entry::Rename(from, to, inode) => {
            names.remove(from);
            names.insert(to.clone(), *inode);
        }
    }
}

fn dir_of(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(dir, _)| dir)
}

impl Change {
    fn apply(&self, data: &mut Vec<u8>) {
        self.survive(data, || true);
    }

    /// Applies the sectors that `keep` keeps.
    fn survive(&self, data: &mut Vec<u8>, mut keep: impl FnMut() -> bool) {
        match self {
            Self::Write(offset, bytes) => {
                let mut at = *offset as usize;
                let mut rest = &bytes[..];
                while !rest.is_empty() {
                    let n = (SECTOR - at % SECTOR).min(rest.len());
                    let (head, tail) = rest.split_at(n);
                    if keep() {
                        if data.len() < at + n {
                            data.resize(at + n, 0);
                        }
                        data[at..at + n].copy_from_slice(head);
                    }
                    (at, rest) = (at + n, tail);
                }
            }
            Self::Zero(offset, len) => {
                let end = ((offset + len) as usize).min(data.len());
                if keep() && (*offset as usize) < end {
                    data[*offset as usize..end].fill(0);
                }
            }
            Self::SetLen(len) => {
                if keep() {
                    data.resize(*len as usize, 0);
                }
            }
        }
    }
}

impl Device for FaultyDevice {
    fn open(&self, path: &str, mode: Mode) -> io::Result<Arc<dyn DeviceFile>> {
        let mut disk = self.disk();
        let inode = match disk.find(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound && mode == Mode::Create => {
                disk.add(path, false)?
            }
            other => other?,
        };
        if disk.node(inode)?.dir {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        Ok(Arc::new(FaultyFile { device: self.clone(), inode }))
    }

    fn stat(&self, path: &str) -> io::Result<Option<Stat>> {
        let mut disk = self.disk();
        match disk.find(path) {
            Ok(inode) => Ok(Some(disk.node(inode)?.stat(inode))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut disk = self.disk();
        let inode = disk.find(from)?;
        disk.step(true)?;
        let now = disk.clock;
        disk.node(inode)?.ctime = now;
        disk.change(Entry::Rename(from.to_owned(), to.to_owned(), inode));
        Ok(())
    }

    fn unlink(&self, path: &str) -> io::Result<()> {
        let mut disk = self.disk();
        disk.alive()?;
        if disk.live.contains_key(path) {
            disk.step(false)?;
            disk.change(Entry::Remove(path.to_owned()));
        }
        Ok(())
    }

    fn mkdir(&self, path: &str) -> io::Result<bool> {
        let mut disk = self.disk();
        disk.alive()?;
        if disk.live.contains_key(path) {
            return Ok(false);
        }
        disk.add(path, true)?;
        Ok(true)
    }

    fn rmdir(&self, path: &str) -> io::Result<()> {
        let mut disk = self.disk();
        disk.alive()?;
        if disk.live.keys().any(|other| dir_of(other) == path) {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        if disk.live.contains_key(path) {
            disk.step(false)?;
            disk.change(Entry::Remove(path.to_owned()));
        }
        Ok(())
    }

    fn sync_dir(&self, path: &str) -> io::Result<()> {
        let mut disk = self.disk();
        let path = if path == "." { "" } else { path };
        disk.step(false)?;
        let pending = std::mem::take(&mut disk.pending);
        for entry in pending {
            match &entry {
                Entry::Rename(from, to, inode) if dir_of(from) != path => {
                    if dir_of(to) == path {
                        disk.durable.insert(to.clone(), *inode);
                        disk.pending.push(Entry::Remove(from.clone()));
                    } else {
                        disk.pending.push(entry);
                    }
                }
                Entry::Add(at, _) | Entry::Remove(at) if dir_of(at) != path => {
                    disk.pending.push(entry);
                }
                _ => apply(&mut disk.durable, &entry),
            }
        }
        Ok(())
    }

    fn read_dir(&self, path: &str) -> io::Result<Vec<(String, Kind)>> {
        let disk = self.disk();
        disk.alive()?;
        let path = if path == "." { "" } else { path };
        let kind = |inode: &u64| match disk.nodes.get(inode) {
            Some(node) if node.dir => Kind::Dir,
            _ => Kind::File,
        };
        Ok(disk
            .live
            .iter()
            .filter(|(name, _)| dir_of(name) == path)
            .map(|(name, inode)| {
                let name = name.rsplit_once('/').map_or(&name[..], |(_, name)| name);
                (name.to_owned(), kind(inode))
            })
            .collect())
    }

    fn space(&self) -> io::Result<Space> {
        let disk = self.disk();
        disk.alive()?;
        Ok(Space { total: 1 << 40, free: if disk.full { 0 } else { 1 << 39 } })
    }

    fn lock(&self, path: &str, content: &str, shared: bool) -> io::Result<Option<LockGuard>> {
        if shared && self.disk().locked {
            return Ok(None);
        }
        if !shared {
            let file = self.open(path, Mode::Create)?;
            if std::mem::replace(&mut self.disk().locked, true) {
                return Ok(None);
            }
            let unlock = Unlock(self.clone());
            file.set_len(0)?;
            file.write_at(0, content.as_bytes())?;
            return Ok(Some(Box::new(unlock)));
        }
        Ok(Some(Box::new(())))
    }
}

struct Unlock(FaultyDevice);

impl Drop for Unlock {
    fn drop(&mut self) {
        self.0.disk().locked = false;
    }
}

impl Node {
    fn stat(&self, inode: u64) -> Stat {
        Stat {
            kind: if self.dir { Kind::Dir } else { Kind::File },
            size: self.data.len() as u64,
            allocated: self.data.len() as u64,
            inode,
            ctime: (self.ctime, 0),
        }
    }
}

#[derive(Debug)]
struct FaultyFile {
    device: FaultyDevice,
    inode: u64,
}

impl FaultyFile {
    fn change(&self, change: Change, needs_space: bool) -> io::Result<()> {
        let mut disk = self.device.disk();
        disk.step(needs_space)?;
        let now = disk.clock;
        let node = disk.node(self.inode)?;
        change.apply(&mut node.data);
        node.pending.push(change);
        node.ctime = now;
        Ok(())
    }
}

impl DeviceFile for FaultyFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let mut disk = self.device.disk();
        disk.alive()?;
        let node = disk.node(self.inode)?;
        let tail = node.data.get(offset as usize..).unwrap_or_default();
        let n = tail.len().min(buf.len());
        buf[..n].copy_from_slice(&tail[..n]);
        node.read += n as u64;
        Ok(n)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.change(Change::Write(offset, data.to_vec()), true)
    }

    fn stat(&self) -> io::Result<Stat> {
        let mut disk = self.device.disk();
        disk.alive()?;
        Ok(disk.node(self.inode)?.stat(self.inode))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(Change::SetLen(len), false)
    }

    fn reserve(&self, len: u64) -> io::Result<()> {
        self.change(Change::SetLen(len), true)
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.change(Change::Zero(offset, len), false)
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut disk = self.device.disk();
        let step = disk.step(false);
        let node = disk.node(self.inode)?;
        let pending = std::mem::take(&mut node.pending);
        step?;
        for change in pending {
            change.apply(&mut node.durable);
        }
        Ok(())
    }
}

/// splitmix64.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_synced_survives_and_the_rest_may_not() {
        let device = FaultyDevice::new();
        device.mkdir("d").expect("made");
        device.sync_dir(".").expect("synced");
        let file = device.open("d/f", Mode::Create).expect("made");
        file.write_at(0, &[1; 1024]).expect("written");
        file.sync_data().expect("synced");
        assert!(device.clone_for_test().reboot(CrashStyle::LoseAll).files().is_empty());
        device.sync_dir("d").expect("synced");
        file.write_at(512, &[2; 512]).expect("written");
        let lost = device.clone_for_test().reboot(CrashStyle::LoseAll).files();
        assert_eq!(lost, [("d/f".to_owned(), vec![1; 1024])]);
        let kept = device.reboot(CrashStyle::KeepAll).files();
        assert_eq!(kept[0].1[512..], [2; 512]);
        assert!(file.write_at(0, b"x").is_err(), "the old disk is dead");
    }

    #[test]
    fn what_a_failed_sync_covered_is_not_made_durable_later() {
        let device = FaultyDevice::new();
        let file = device.open("f", Mode::Create).expect("made");
        device.sync_dir(".").expect("synced");
        file.write_at(0, b"data").expect("written");
        device.plan(Some(Fault::Fail(device.operations())));
        assert!(file.sync_data().is_err());
        file.sync_data().expect("the fault is over");
        let files = device.reboot(CrashStyle::LoseAll).files();
        assert_eq!(files, [("f".to_owned(), Vec::new())]);
    }

    impl FaultyDevice {
        /// A second disk in the same state.
        fn clone_for_test(&self) -> Self {
            let disk = self.disk();
            Self {
                disk: Arc::new(Mutex::new(Disk {
                    ops: disk.ops,
                    clock: disk.clock,
                    next_inode: disk.next_inode,
                    nodes: disk.nodes.clone(),
                    live: disk.live.clone(),
                    durable: disk.durable.clone(),
                    pending: disk.pending.clone(),
                    ..Disk::default()
                })),
            }
        }
    }
}
