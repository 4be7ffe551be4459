//! A catalog and a reader in memory, and layers from lists of entries.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use peersync::blocks::{BlockReader, ReadError, ReadFuture, ReadRequest, StreamId};
use peersync::fs::{
    Catalog, ChainView, LayerName, LayerView, NameLookup, NameTarget, ReadFailure, ResolveError,
    Slot, Timestamp, Usage,
};
use peersync::layer::entry::{Entry, EntryKind, Extent};
use peersync::layer::tree::{FileContent, Tree, TreeBuilder};
use peersync::types::{BlockHash, Digest, ObjectId, ObjectSpec, PASSTHROUGH_MIN};
use tokio::sync::watch;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The slot with this number.
pub fn slot(number: u32) -> Slot {
    Slot::new(number).expect("a small number")
}

// ---------------------------------------------------------------- entries

/// An entry of a layer with the bytes that belong to it.
#[derive(Clone, Debug)]
pub struct Item {
    pub entry: Entry,
    /// Dense bytes of a file.
    pub data: Vec<u8>,
}

impl Item {
    pub fn new(path: &str, kind: EntryKind) -> Self {
        Self {
            entry: Entry {
                path: path.into(),
                kind,
                mode: 0o644,
                uid: 0,
                gid: 0,
                mtime: (1_700_000_000, 123_456_789),
                xattrs: Vec::new(),
            },
            data: Vec::new(),
        }
    }

    pub fn dir(path: &str) -> Self {
        Self::new(path, EntryKind::Directory).mode(0o755)
    }

    pub fn file(path: &str, data: impl Into<Vec<u8>>) -> Self {
        let data = data.into();
        let size = data.len() as u64;
        let extents = None;
        Self { data, ..Self::new(path, EntryKind::File { size, extents }) }
    }

    /// A sparse file of `size` bytes with data at these offsets.
    pub fn sparse(path: &str, size: u64, parts: &[(u64, &[u8])]) -> Self {
        let extents = parts
            .iter()
            .map(|(logical, bytes)| Extent { logical: *logical, len: bytes.len() as u64 });
        let extents = Some(extents.collect());
        Self {
            data: parts.iter().flat_map(|(_, bytes)| *bytes).copied().collect(),
            ..Self::new(path, EntryKind::File { size, extents })
        }
    }

    pub fn symlink(path: &str, target: &str) -> Self {
        let target = target.into();
        Self::new(path, EntryKind::Symlink { target })
    }

    pub fn link(path: &str, target: &str) -> Self {
        let target = target.into();
        Self::new(path, EntryKind::HardLink { target })
    }

    pub fn whiteout(dir: &str, name: &str) -> Self {
        let path = format!("{dir}/.wh.{name}");
        Self::file(path.trim_start_matches('/'), "")
    }

    pub fn opaque(dir: &str) -> Self {
        Self::whiteout(dir, ".wh..opq")
    }

    pub fn mode(mut self, mode: u16) -> Self {
        self.entry.mode = mode;
        self
    }

    pub fn owner(mut self, uid: u32, gid: u32) -> Self {
        (self.entry.uid, self.entry.gid) = (uid, gid);
        self
    }

    pub fn mtime(mut self, seconds: i64, nanos: u32) -> Self {
        self.entry.mtime = (seconds, nanos);
        self
    }

    pub fn xattr(mut self, name: &str, value: &[u8]) -> Self {
        self.entry.xattrs.push((name.into(), value.into()));
        self.entry.xattrs.sort();
        self
    }
}

/// Builds a layer's tree, and hands its content to `reader`.
pub fn layer(slot: Slot, items: &[Item], reader: &MemoryReader) -> Arc<LayerView> {
    let mut bundle = Vec::new();
    let mut large: Vec<&[u8]> = Vec::new();
    let mut builder = TreeBuilder::default();
    for item in items {
        let content = matches!(item.entry.kind, EntryKind::File { .. }).then(|| {
            let own = item.data.len() as u64 >= PASSTHROUGH_MIN;
            let (object, offset) = if own {
                large.push(&item.data);
                (large.len() as u32, 0)
            } else {
                bundle.extend_from_slice(&item.data);
                (0, (bundle.len() - item.data.len()) as u64)
            };
            FileContent {
                object,
                offset,
                length: item.data.len() as u64,
                hash: BlockHash::of(&item.data),
            }
        });
        builder.add(&item.entry, content).expect("a good layer");
    }
    let mut objects = vec![reader.add(&bundle)];
    objects.extend(large.iter().map(|data| reader.add(data)));
    let bytes = builder.finish(&objects).expect("within bounds");
    Arc::new(LayerView {
        slot,
        name: Digest::of(&bytes).file_name(),
        tree: Tree::open(bytes).expect("a built tree is valid"),
    })
}

// ----------------------------------------------------------------- reader

/// Whether the bytes of an object can be read.
#[derive(Clone, Debug)]
pub enum State {
    Resident,
    /// They have to be waited for.
    Held,
    Failing(ReadError),
}

enum Data {
    Memory(Vec<u8>),
    File(File, u64),
}

struct Object {
    data: Data,
    state: watch::Sender<State>,
    /// The file that can be passed through.
    backing: Mutex<Option<PathBuf>>,
}

/// Objects that are there, held back, or failing, as a test wants it.
#[derive(Default)]
pub struct MemoryReader {
    objects: Mutex<HashMap<ObjectId, Arc<Object>>>,
    streams: AtomicU64,
    open_streams: Mutex<i64>,
    waiting: Arc<(Mutex<usize>, Condvar)>,
    /// Reads that had to wait, since the beginning.
    pub misses: AtomicU64,
    /// Bytes given out.
    pub bytes: AtomicU64,
}

struct Waiting(Arc<(Mutex<usize>, Condvar)>);

impl Waiting {
    fn new(count: &Arc<(Mutex<usize>, Condvar)>) -> Self {
        *lock(&count.0) += 1;
        count.1.notify_all();
        Self(Arc::clone(count))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        *lock(&self.0.0) -= 1;
        self.0.1.notify_all();
    }
}

impl MemoryReader {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Adds an object; its id and length.
    pub fn add(&self, data: &[u8]) -> (ObjectId, u64) {
        let id = ObjectSpec::of(data).id();
        self.insert(id, Data::Memory(data.to_vec()));
        (id, data.len() as u64)
    }

    /// Adds an object whose bytes are those of a file.
    pub fn add_file(&self, id: ObjectId, path: PathBuf) -> u64 {
        let file = File::open(&path).expect("the object's file");
        let len = file.metadata().expect("its length").len();
        self.insert(id, Data::File(file, len));
        *lock(&self.object(&id).expect("just added").backing) = Some(path);
        len
    }

    fn insert(&self, id: ObjectId, data: Data) {
        let object =
            Object { data, state: watch::Sender::new(State::Resident), backing: Mutex::default() };
        lock(&self.objects).entry(id).or_insert(Arc::new(object));
    }

    fn object(&self, id: &ObjectId) -> Result<Arc<Object>, ReadError> {
        let objects = lock(&self.objects);
        objects.get(id).cloned().ok_or(ReadError::Unknown(*id))
    }

    /// Sets the state of one object, or of all.
    pub fn set(&self, id: Option<&ObjectId>, state: &State) {
        for (own, object) in lock(&self.objects).iter() {
            if id.is_none_or(|id| id == own) {
                object.state.send_replace(state.clone());
            }
        }
    }

    /// Writes an object to a file if it is not there yet; it is the object's
    /// backing from now on.
    pub fn complete(&self, id: &ObjectId, path: PathBuf) {
        let object = self.object(id).expect("an object");
        if let Data::Memory(data) = &object.data
            && !path.exists()
        {
            std::fs::write(&path, data).expect("writing the backing file");
        }
        *lock(&object.backing) = Some(path);
    }

    /// The object is not complete any more.
    pub fn forget(&self, id: &ObjectId) {
        *lock(&self.object(id).expect("an object").backing) = None;
    }

    /// Waits until exactly `count` reads wait.
    pub fn until_waiting(&self, count: usize) {
        let waiting = lock(&self.waiting.0);
        let wait =
            self.waiting
                .1
                .wait_timeout_while(waiting, std::time::Duration::from_secs(20), |n| *n != count);
        let (waiting, timeout) = wait.expect("no panic under the lock");
        assert!(!timeout.timed_out(), "{} reads wait, not {count}", *waiting);
    }

    /// Number of streams that are open.
    pub fn open_streams(&self) -> i64 {
        *lock(&self.open_streams)
    }
}

impl Object {
    fn read(&self, request: &ReadRequest, buf: &mut Vec<u8>) -> Result<(), ReadError> {
        let unknown = || ReadError::Unknown(request.object);
        let start = usize::try_from(request.offset).map_err(|_| unknown())?;
        let end = start.checked_add(request.len as usize).ok_or_else(unknown)?;
        match &self.data {
            Data::Memory(data) => {
                buf.extend_from_slice(data.get(start..end).ok_or_else(unknown)?);
            }
            Data::File(file, len) => {
                if end as u64 > *len {
                    return Err(unknown());
                }
                let before = buf.len();
                buf.resize(before + request.len as usize, 0);
                file.read_exact_at(&mut buf[before..], request.offset)
                    .map_err(|error| ReadError::Store(error.to_string()))?;
            }
        }
        Ok(())
    }
}

impl BlockReader for MemoryReader {
    fn open(&self, _: &ObjectId, _: Range<u64>) -> StreamId {
        *lock(&self.open_streams) += 1;
        StreamId(self.streams.fetch_add(1, Ordering::Relaxed))
    }

    fn close(&self, _: StreamId) {
        *lock(&self.open_streams) -= 1;
    }

    fn read_resident(&self, request: &ReadRequest, buf: &mut Vec<u8>) -> Result<bool, ReadError> {
        let object = self.object(&request.object)?;
        if !matches!(*object.state.borrow(), State::Resident) {
            return Ok(false);
        }
        object.read(request, buf)?;
        self.bytes.fetch_add(request.len.into(), Ordering::Relaxed);
        Ok(true)
    }

    fn read(&self, request: ReadRequest) -> ReadFuture {
        self.misses.fetch_add(1, Ordering::Relaxed);
        let object = match self.object(&request.object) {
            Ok(object) => object,
            Err(error) => return Box::pin(std::future::ready(Err(error))),
        };
        let waiting = Arc::clone(&self.waiting);
        Box::pin(async move {
            let _waiting = Waiting::new(&waiting);
            let mut state = object.state.subscribe();
            let now = state
                .wait_for(|state| !matches!(state, State::Held))
                .await
                .map_err(|_| ReadError::Closed)?
                .clone();
            match now {
                State::Failing(error) => Err(error),
                State::Held | State::Resident => {
                    let mut bytes = Vec::new();
                    object.read(&request, &mut bytes)?;
                    Ok(Bytes::from(bytes))
                }
            }
        })
    }

    fn backing_file(&self, id: &ObjectId) -> Option<File> {
        let object = self.object(id).ok()?;
        let path = lock(&object.backing).clone()?;
        File::open(path).ok()
    }
}

// ---------------------------------------------------------------- catalog

/// What comes of resolving an image.
#[derive(Clone, Debug)]
pub enum Resolution {
    Image(Slot),
    Fails(ResolveError),
    /// Never ends.
    Hangs,
}

#[derive(Default)]
struct Lists {
    layers: BTreeMap<Slot, Arc<LayerView>>,
    links: BTreeMap<String, Slot>,
    chains: BTreeMap<Slot, Arc<ChainView>>,
    chain_names: BTreeMap<String, Slot>,
    /// Known images by path.
    images: BTreeMap<String, Slot>,
    /// What a registry would say.
    registry: BTreeMap<String, Resolution>,
    directories: Vec<Arc<str>>,
    changes: i64,
    resolved: u64,
    failures: Vec<ReadFailure>,
}

/// A catalog of whatever a test puts in.
#[derive(Default)]
pub struct MemoryCatalog {
    lists: Mutex<Lists>,
    waiting: Arc<(Mutex<usize>, Condvar)>,
}

/// Slots of directories of names begin here in this catalog.
const FIRST_NAME: u32 = 1 << 20;

impl MemoryCatalog {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    pub fn add_layer(&self, layer: &Arc<LayerView>) {
        let mut lists = lock(&self.lists);
        lists.layers.insert(layer.slot, Arc::clone(layer));
        lists.changes += 1;
    }

    pub fn remove_layer(&self, slot: Slot) {
        let mut lists = lock(&self.lists);
        lists.layers.remove(&slot);
        lists.changes += 1;
    }

    pub fn add_link(&self, name: &str, slot: Slot) {
        let mut lists = lock(&self.lists);
        lists.links.insert(name.into(), slot);
        lists.changes += 1;
    }

    /// Stacks layers, bottom first; the chain shows in `chains/`.
    pub fn add_chain(&self, slot: Slot, layers: &[Arc<LayerView>]) -> String {
        let names: Vec<_> = layers.iter().map(|layer| layer.name.as_str()).collect();
        let name = Digest::of(names.join(" ").as_bytes()).file_name();
        self.add_view(slot, slot, &name, layers);
        let mut lists = lock(&self.lists);
        lists.chain_names.insert(name.clone(), slot);
        name
    }

    /// A view with the content of a chain, for an image.
    pub fn add_view(&self, slot: Slot, content: Slot, name: &str, layers: &[Arc<LayerView>]) {
        let view = ChainView { slot, content, name: name.into(), layers: layers.to_vec() };
        let mut lists = lock(&self.lists);
        lists.chains.insert(slot, Arc::new(view));
        lists.changes += 1;
    }

    pub fn add_image(&self, path: &str, view: Slot) {
        let mut lists = lock(&self.lists);
        lists.images.insert(path.into(), view);
        lists.changes += 1;
    }

    pub fn set_registry(&self, path: &str, resolution: Resolution) {
        lock(&self.lists).registry.insert(path.into(), resolution);
    }

    /// Images that were asked of the registry.
    pub fn resolved(&self) -> u64 {
        lock(&self.lists).resolved
    }

    pub fn failures(&self) -> Vec<ReadFailure> {
        lock(&self.lists).failures.clone()
    }

    /// Waits until exactly `count` resolutions hang.
    pub fn until_waiting(&self, count: usize) {
        let waiting = lock(&self.waiting.0);
        let wait =
            self.waiting
                .1
                .wait_timeout_while(waiting, std::time::Duration::from_secs(20), |n| *n != count);
        let (waiting, timeout) = wait.expect("no panic under the lock");
        assert!(!timeout.timed_out(), "{} wait, not {count}", *waiting);
    }
}

impl Catalog for MemoryCatalog {
    fn layer(&self, slot: Slot) -> Option<Arc<LayerView>> {
        lock(&self.lists).layers.get(&slot).cloned()
    }

    fn chain(&self, slot: Slot) -> Option<Arc<ChainView>> {
        lock(&self.lists).chains.get(&slot).cloned()
    }

    fn layer_named(&self, name: &str) -> Option<LayerName> {
        let lists = lock(&self.lists);
        let layer = lists.layers.values().find(|layer| layer.name == name);
        let link = lists.links.get(name).copied().map(LayerName::Link);
        layer.map(|layer| LayerName::Layer(layer.slot)).or(link)
    }

    fn layer_name(&self, slot: Slot) -> Option<String> {
        let lists = lock(&self.lists);
        lists.layers.get(&slot).map(|layer| layer.name.clone())
    }

    fn layer_names(&self) -> Vec<(String, LayerName)> {
        let lists = lock(&self.lists);
        let layers = lists.layers.values();
        let links = lists.links.iter();
        layers
            .map(|layer| (layer.name.clone(), LayerName::Layer(layer.slot)))
            .chain(links.map(|(name, slot)| (name.clone(), LayerName::Link(*slot))))
            .collect()
    }

    fn chain_named(&self, name: &str) -> Option<Slot> {
        lock(&self.lists).chain_names.get(name).copied()
    }

    fn chain_names(&self) -> Vec<(String, Slot)> {
        let lists = lock(&self.lists);
        lists.chain_names.clone().into_iter().collect()
    }

    fn directory_path(&self, slot: Slot) -> Option<Arc<str>> {
        let index = slot.get().checked_sub(FIRST_NAME)?;
        lock(&self.lists).directories.get(index as usize).cloned()
    }

    fn directory(&self, path: &str, create: bool) -> Option<Slot> {
        let mut lists = lock(&self.lists);
        let beginning = format!("{path}/");
        let is_known = lists.images.keys().any(|image| image.starts_with(&beginning));
        let index = lists.directories.iter().position(|own| **own == *path);
        let index = match index {
            Some(index) if is_known || create => index,
            None if is_known || create => {
                lists.directories.push(path.into());
                lists.directories.len() - 1
            }
            _ => return None,
        };
        Slot::new(FIRST_NAME + index as u32)
    }

    fn image(&self, path: &str, may_resolve: bool) -> NameLookup {
        let mut lists = lock(&self.lists);
        if let Some(slot) = lists.images.get(path) {
            return NameLookup::Found(NameTarget::Image(*slot));
        }
        if !may_resolve {
            return NameLookup::Absent;
        }
        lists.resolved += 1;
        let resolution = lists.registry.get(path).cloned();
        let waiting = Arc::clone(&self.waiting);
        NameLookup::Resolve(Box::pin(async move {
            match resolution {
                Some(Resolution::Image(slot)) => Ok(slot),
                Some(Resolution::Fails(error)) => Err(error),
                Some(Resolution::Hangs) => {
                    let _waiting = Waiting::new(&waiting);
                    std::future::pending().await
                }
                None => Err(ResolveError::NotFound),
            }
        }))
    }

    fn names(&self, path: &str) -> Vec<(String, NameTarget)> {
        let images: Vec<_> = lock(&self.lists).images.clone().into_iter().collect();
        let beginning = match path {
            "" => String::new(),
            _ => format!("{path}/"),
        };
        let mut names = BTreeMap::new();
        for (image, slot) in images {
            let Some(rest) = image.strip_prefix(&beginning) else {
                continue;
            };
            match rest.split_once('/') {
                Some((first, _)) => {
                    let directory = self.directory(&format!("{beginning}{first}"), false);
                    let target = NameTarget::Directory(directory.expect("known"));
                    names.insert(first.to_owned(), target);
                }
                None => {
                    names.insert(rest.to_owned(), NameTarget::Image(slot));
                }
            }
        }
        names.into_iter().collect()
    }

    fn changed(&self) -> Timestamp {
        Timestamp { seconds: 1_750_000_000 + lock(&self.lists).changes, nanos: 0 }
    }

    fn status_names(&self) -> &[&'static str] {
        &["version", "stats"]
    }

    fn status(&self, index: u16) -> Option<Vec<u8>> {
        match index {
            0 => Some(b"peersync test\n".to_vec()),
            1 => Some(format!("changes {}\n", lock(&self.lists).changes).into_bytes()),
            _ => None,
        }
    }

    fn usage(&self) -> Usage {
        Usage { bytes: 10 << 30, free: 3 << 30, nodes: 1000 }
    }

    fn read_failed(&self, failure: ReadFailure) {
        lock(&self.lists).failures.push(failure);
    }
}
