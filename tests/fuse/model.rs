//! Merged views against an obviously correct model: an unpacker that applies
//! one layer after the other to a map of paths.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use peersync::fs::{
    Attr, Caller, Entry, FileSystem, FsOptions, Kind, Lookup, NodeId, Read, Root, Validity,
};
use peersync::layer::entry::EntryKind;
use proptest::prelude::*;

use crate::memory::{Item, MemoryCatalog, MemoryReader, layer, slot};

type Path = Vec<String>;

#[derive(Clone, Debug)]
struct Inode {
    item: Item,
}

/// What has been unpacked so far.
#[derive(Clone, Default)]
struct Unpacked {
    inodes: Vec<Inode>,
    paths: BTreeMap<Path, usize>,
}

/// How a directory looks that nobody described.
fn implicit() -> Item {
    Item::dir("").mtime(0, 0)
}

fn split(path: &str) -> Path {
    path.split('/').filter(|c| !c.is_empty()).map(str::to_owned).collect()
}

fn path_of(item: &Item) -> Path {
    split(std::str::from_utf8(&item.entry.path).expect("text"))
}

impl Unpacked {
    fn new() -> Self {
        let mut new = Self::default();
        new.put(Vec::new(), implicit());
        new
    }

    fn put(&mut self, path: Path, item: Item) {
        self.remove(&path);
        self.inodes.push(Inode { item });
        self.paths.insert(path, self.inodes.len() - 1);
    }

    fn remove(&mut self, path: &Path) {
        self.paths.retain(|own, _| !own.starts_with(path));
    }

    fn is_dir(&self, path: &[String]) -> bool {
        let inode = self.paths.get(path);
        inode.is_some_and(|i| self.inodes[*i].item.entry.kind == EntryKind::Directory)
    }

    /// Applies a layer and gives the items that make sense, in order.
    ///
    /// A whiteout is about the layers below wherever it stands in its own; one
    /// that is meant to work stands before its siblings.
    fn apply(&mut self, items: &[Item]) -> Vec<Item> {
        let (accepted, links) = self.clone().check(items);
        for item in &accepted {
            let mut path = path_of(item);
            match path.pop() {
                Some(name) if name == ".wh..wh..opq" => {
                    self.paths.retain(|own, _| !own.starts_with(&path) || *own == path);
                }
                Some(name) if name.starts_with(".wh.") => {
                    path.push(name[4..].to_owned());
                    self.remove(&path);
                }
                _ => (),
            }
        }
        let mut links = links.into_iter();
        for item in &accepted {
            let path = path_of(item);
            let lower = match item.entry.kind {
                EntryKind::HardLink { .. } => links.next().expect("one for each"),
                _ => None,
            };
            self.enter(&path, item, lower);
        }
        accepted
    }

    /// The items of a layer that make sense; and for each hard link among them
    /// the inode, if that is one of the layers below.
    fn check(mut self, items: &[Item]) -> (Vec<Item>, Vec<Option<usize>>) {
        let lower_inodes = self.inodes.len();
        let mut upper = BTreeSet::new();
        let (mut accepted, mut links) = (Vec::new(), Vec::new());
        for item in items {
            let path = path_of(item);
            let parents = &path[..path.len().saturating_sub(1)];
            // An entry below what this layer has as something else than a
            // directory is an error.
            let blocked = |n| !self.is_dir(&parents[..n]) && upper.contains(&parents[..n]);
            if (1..=parents.len()).any(blocked) {
                continue;
            }
            if let EntryKind::HardLink { target } = &item.entry.kind {
                let target = split(std::str::from_utf8(target).expect("text"));
                // Making the way must not remove the target.
                let in_the_way = (1..=path.len())
                    .filter(|n| *n == path.len() || !self.is_dir(&path[..*n]))
                    .any(|n| target.starts_with(&path[..n]));
                match self.paths.get(&target) {
                    Some(inode) if !self.is_dir(&target) && !in_the_way => {
                        links.push(Some(*inode).filter(|inode| *inode < lower_inodes));
                    }
                    _ => continue,
                }
            }
            upper.extend((1..=parents.len()).map(|n| parents[..n].to_vec()));
            upper.insert(path.clone());
            accepted.push(item.clone());
            let lower = match item.entry.kind {
                EntryKind::HardLink { .. } => links.last().copied().flatten(),
                _ => None,
            };
            self.enter(&path, item, lower);
        }
        (accepted, links)
    }

    /// Unpacks one entry, which makes sense. `lower`: the inode that a hard link
    /// means if it is not of the same layer.
    fn enter(&mut self, path: &Path, item: &Item, lower: Option<usize>) {
        let parents = &path[..path.len().saturating_sub(1)];
        for n in 1..=parents.len() {
            if !self.is_dir(&parents[..n]) {
                self.put(parents[..n].to_vec(), implicit());
            }
        }
        if path.last().is_some_and(|name| name.starts_with(".wh.")) {
            return;
        }
        match &item.entry.kind {
            EntryKind::HardLink { target } => {
                let target = split(std::str::from_utf8(target).expect("text"));
                let inode = lower.unwrap_or_else(|| self.paths[&target]);
                self.remove(path);
                self.paths.insert(path.clone(), inode);
            }
            EntryKind::Directory if self.is_dir(path) => {
                let inode = self.paths[path];
                self.inodes[inode].item = item.clone();
            }
            _ => self.put(path.clone(), item.clone()),
        }
    }

    /// All that there is to see.
    fn seen(&self) -> BTreeMap<Path, Seen> {
        let mut names = BTreeMap::new();
        for inode in self.paths.values() {
            *names.entry(*inode).or_insert(0) += 1;
        }
        let subdirs = |path: &Path| {
            let children = self.paths.keys();
            let children = children.filter(|own| own.len() == path.len() + 1);
            children.filter(|own| own.starts_with(path) && self.is_dir(own)).count()
        };
        let seen = |(path, inode): (&Path, &usize)| {
            let item = &self.inodes[*inode].item;
            let is_dir = item.entry.kind == EntryKind::Directory;
            let target = match &item.entry.kind {
                EntryKind::Symlink { target } => Some(target.clone()),
                _ => None,
            };
            let seen = Seen {
                kind: match &item.entry.kind {
                    EntryKind::Directory => Kind::Directory,
                    EntryKind::Symlink { .. } => Kind::Symlink,
                    EntryKind::CharDevice { .. } => Kind::CharDevice,
                    EntryKind::Fifo => Kind::Fifo,
                    _ => Kind::File,
                },
                mode: match target {
                    Some(_) => 0o777,
                    None => item.entry.mode,
                },
                owner: (item.entry.uid, item.entry.gid),
                mtime: item.entry.mtime,
                nlink: match is_dir {
                    true => 2 + subdirs(path) as u32,
                    false => names[inode],
                },
                rdev: match item.entry.kind {
                    EntryKind::CharDevice { major, minor } => (major, minor),
                    _ => (0, 0),
                },
                same_as: self
                    .paths
                    .iter()
                    .find(|(_, other)| *other == inode)
                    .map(|(first, _)| first.clone())
                    .expect("itself"),
                target,
                xattrs: item.entry.xattrs.iter().cloned().collect(),
                data: item.data.clone(),
            };
            (path.clone(), seen)
        };
        self.paths.iter().map(seen).collect()
    }
}

/// A node as a program sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    kind: Kind,
    mode: u16,
    owner: (u32, u32),
    mtime: (i64, u32),
    nlink: u32,
    rdev: (u32, u32),
    /// The first path of the same inode.
    same_as: Path,
    target: Option<Vec<u8>>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    data: Vec<u8>,
}

const ROOT_CALLER: Caller<'static> = Caller { uid: 0, in_group: &|_| false };

pub fn find(fs: &Arc<FileSystem>, parent: NodeId, name: &str) -> Option<Entry> {
    match fs.lookup(&ROOT_CALLER, parent, name.as_bytes()) {
        Ok(Lookup::Found(entry)) => Some(entry),
        Ok(Lookup::Absent(_)) => None,
        Ok(Lookup::Wait(_)) => panic!("{name} waits"),
        Err(error) => panic!("{name}: {error}"),
    }
}

pub fn find_path(fs: &Arc<FileSystem>, path: &str) -> Option<Entry> {
    let mut at = None;
    for name in path.split('/') {
        let parent = at.map_or(NodeId::ROOT, |entry: Entry| entry.attr.id);
        at = Some(find(fs, parent, name)?);
    }
    at
}

/// The names in a directory, read in portions of `portion` entries.
pub fn list(fs: &Arc<FileSystem>, dir: NodeId, portion: usize) -> Vec<(String, Entry)> {
    let mut all = Vec::new();
    let mut offset = 0;
    loop {
        let (mut taken, mut next) = (0, None);
        fs.read_dir(dir, offset, true, &mut |entry| {
            if taken == portion {
                return true;
            }
            taken += 1;
            next = Some(entry.next);
            if let Some(known) = entry.entry {
                assert_eq!((known.attr.id, known.attr.kind), (entry.id, entry.kind));
                let name = String::from_utf8(entry.name.to_vec()).expect("text");
                all.push((name, known));
            } else {
                assert!(matches!(entry.name, b"." | b".."));
                assert_eq!(entry.kind, Kind::Directory);
            }
            false
        })
        .expect("a directory");
        match next {
            Some(next) => offset = next,
            None => return all,
        }
    }
}

pub fn read_all(fs: &Arc<FileSystem>, id: NodeId) -> Vec<u8> {
    let (handle, file) = fs.open(id).expect("a file");
    let (mut data, mut buf) = (Vec::new(), Vec::new());
    loop {
        match fs.read(&file, data.len() as u64, 7000, &mut buf) {
            Ok(Read::Done) if buf.is_empty() => break,
            Ok(Read::Done) => data.extend_from_slice(&buf),
            Ok(Read::Wait(_)) => panic!("all is resident"),
            Err(error) => panic!("{error}"),
        }
    }
    assert!(fs.close(handle).is_some());
    data
}

/// All nodes below a directory, itself included.
fn walk(fs: &Arc<FileSystem>, top: Attr) -> (BTreeMap<Path, Seen>, BTreeMap<Path, Attr>) {
    let mut attrs = BTreeMap::from([(Vec::new(), top)]);
    let mut todo = vec![(Vec::new(), top)];
    while let Some((path, dir)) = todo.pop() {
        for (name, entry) in list(fs, dir.id, 3) {
            assert_eq!(find(fs, dir.id, &name), Some(entry), "{path:?} {name}");
            assert_eq!(entry.name_valid, Validity::Forever);
            let mut path: Path = path.clone();
            path.push(name);
            if entry.attr.kind == Kind::Directory {
                todo.push((path.clone(), entry.attr));
            }
            attrs.insert(path, entry.attr);
        }
    }
    let mut first = BTreeMap::new();
    for (path, attr) in &attrs {
        first.entry(attr.id).or_insert_with(|| path.clone());
    }
    let seen = attrs.iter().map(|(path, attr)| {
        let names = fs.xattr_names(attr.id, true).expect("names");
        let names = names.split(|b| *b == 0).filter(|name| !name.is_empty());
        let seen = Seen {
            kind: attr.kind,
            mode: attr.mode,
            owner: (attr.uid, attr.gid),
            mtime: (attr.mtime.seconds, attr.mtime.nanos),
            nlink: attr.nlink,
            rdev: attr.rdev,
            same_as: first[&attr.id].clone(),
            target: (attr.kind == Kind::Symlink).then(|| fs.read_link(attr.id).expect("a link")),
            xattrs: names
                .map(|name| (name.to_vec(), fs.xattr(attr.id, name).expect("listed")))
                .collect(),
            data: match attr.kind {
                Kind::File => read_all(fs, attr.id),
                _ => Vec::new(),
            },
        };
        (path.clone(), seen)
    });
    (seen.collect(), attrs)
}

fn any_path() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 1..=3)
        .prop_map(|names| names.join("/"))
}

fn any_item() -> impl Strategy<Value = Item> {
    let kind = prop_oneof![
        6 => Just(0),
        6 => Just(1),
        3 => Just(2),
        2 => Just(3),
        3 => Just(4),
        1 => Just(5),
        4 => Just(6),
        1 => Just(7),
    ];
    (kind, any_path(), any_path(), any::<u8>(), any::<bool>()).prop_map(
        |(kind, path, other, n, attribute)| {
            let (parent, name) = path.rsplit_once('/').unwrap_or(("", &path));
            let item = match kind {
                0 => Item::dir(&path),
                1 => Item::file(&path, vec![n; usize::from(n)]),
                2 => Item::link(&path, &other),
                3 => Item::whiteout(parent, name),
                4 => Item::opaque(parent),
                5 => Item::symlink(&path, "nowhere"),
                6 => Item::file(&path, [n]),
                _ => Item::new(&path, EntryKind::CharDevice { major: 1, minor: n.into() }),
            };
            let is_dir_or_file = matches!(kind, 0 | 1 | 6);
            let item = match attribute && is_dir_or_file {
                true => item.xattr("user.n", &[n]),
                false => item,
            };
            item.owner(n.into(), 7).mtime(i64::from(n) - 100, n.into()).mode(match kind {
                0 => 0o1700 | u16::from(n & 7),
                _ => 0o4600 | u16::from(n & 7),
            })
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn a_chain_looks_as_if_its_layers_were_unpacked(
        raw in prop::collection::vec(prop::collection::vec(any_item(), 0..14), 1..6)
    ) {
        let reader = MemoryReader::new();
        let catalog = MemoryCatalog::new();
        let mut model = Unpacked::new();
        let mut layers = Vec::new();
        let mut specs = Vec::new();
        for (number, items) in (1..).zip(&raw) {
            let items = model.apply(items);
            let view = layer(slot(number), &items, &reader);
            catalog.add_layer(&view);
            layers.push(view);
            specs.push(items);
        }
        let name = catalog.add_chain(slot(100), &layers);
        let fs = FileSystem::new(Root::Whole, catalog.clone(), reader.clone(), FsOptions::default());
        let top = find_path(&fs, &format!("chains/{name}")).expect("the chain");
        let (seen, attrs) = walk(&fs, top.attr);
        let expected = model.seen();
        if seen != expected {
            let differ = |path: &&Path| seen.get(*path) != expected.get(*path);
            for path in seen.keys().chain(expected.keys()).filter(differ) {
                println!("{path:?}\n  seen     {:?}\n  expected {:?}",
                    seen.get(path), expected.get(path));
            }
            println!("layers: {specs:#?}");
            prop_assert!(false, "the view differs from the model");
        }

        // Whoever comes after us knows the same numbers.
        let fresh = FileSystem::new(Root::Whole, catalog.clone(), reader, FsOptions::default());
        for attr in attrs.values().rev() {
            prop_assert_eq!(fresh.attributes(attr.id).expect("known"), (*attr, Validity::Forever));
        }

        // An image's view shows the same files, in directories of its own.
        catalog.add_view(slot(101), slot(100), "image", &layers);
        catalog.add_image("docker.io/library/x:1", slot(101));
        let image = find_path(&fs, "images/docker.io/library/x:1").expect("the image");
        let (again, image_attrs) = walk(&fs, image.attr);
        prop_assert_eq!(again, expected);
        for (path, attr) in &attrs {
            let same = image_attrs[path].id == attr.id;
            prop_assert_eq!(same, attr.kind != Kind::Directory, "{:?}", path);
        }

        // And so does the layer alone, for what it has under the same number.
        for (view, _) in layers.iter().zip(&specs) {
            let top = find_path(&fs, &format!("layers/{}", view.name)).expect("the layer");
            let mut todo = vec![top.attr];
            while let Some(dir) = todo.pop() {
                for (_, entry) in list(&fs, dir.id, 100) {
                    if entry.attr.kind == Kind::Directory {
                        todo.push(entry.attr);
                    } else if let Some(merged) = attrs.values().find(|a| a.id == entry.attr.id) {
                        prop_assert_eq!(*merged, entry.attr);
                    }
                }
            }
        }
    }
}

/// A file system over one chain of these layers, and the chain's path.
fn chain_of(layers: &[&[Item]]) -> (Arc<FileSystem>, String) {
    let reader = MemoryReader::new();
    let catalog = MemoryCatalog::new();
    let layers: Vec<_> =
        (1..).zip(layers).map(|(number, items)| layer(slot(number), items, &reader)).collect();
    for view in &layers {
        catalog.add_layer(view);
    }
    let name = catalog.add_chain(slot(100), &layers);
    let fs = FileSystem::new(Root::Whole, catalog, reader, FsOptions::default());
    (fs, format!("chains/{name}"))
}

fn names(fs: &Arc<FileSystem>, path: &str) -> Vec<String> {
    let dir = find_path(fs, path).expect("a directory");
    list(fs, dir.attr.id, 100).into_iter().map(|(name, _)| name).collect()
}

#[test]
fn a_path_through_a_link_of_a_lower_layer_ends_where_the_link_leads() {
    let (fs, chain) = chain_of(&[
        &[
            Item::dir("usr/lib").mtime(5, 0),
            Item::file("usr/lib/old", "old"),
            Item::dir("usr/lib/sub"),
            Item::file("usr/lib/sub/old", "old"),
            Item::symlink("lib", "usr/lib"),
            Item::symlink("usr/also", "/lib"),
        ],
        &[
            Item::file("lib/new", "new"),
            Item::file("lib/sub/new", "new"),
            Item::whiteout("lib", "old"),
            Item::file("usr/also/third", "third"),
        ],
        &[Item::file("lib/sub/newer", "newer")],
    ]);
    let at = |path: &str| find_path(&fs, &format!("{chain}/{path}"));
    assert_eq!(names(&fs, &chain), ["lib", "usr"]);
    assert_eq!(at("lib").expect("the link").attr.kind, Kind::Symlink);
    assert_eq!(at("usr/also").expect("the link").attr.kind, Kind::Symlink);
    assert_eq!(names(&fs, &format!("{chain}/usr/lib")), ["new", "sub", "third"]);
    assert_eq!(names(&fs, &format!("{chain}/usr/lib/sub")), ["new", "newer", "old"]);
    let lib = at("usr/lib").expect("the directory").attr;
    assert_eq!((lib.mtime.seconds, lib.nlink), (5, 3));
    let file = at("usr/lib/sub/newer").expect("the file").attr;
    assert_eq!(read_all(&fs, file.id), b"newer");
    // Numbers of directories that only a graft names are found again.
    for id in [lib.id, at("usr/lib/sub").expect("the directory").attr.id] {
        let (fresh, _) = (&fs, ());
        assert_eq!(fresh.attributes(id).expect("known").0.id, id);
    }
}

#[test]
fn a_directory_with_an_entry_replaces_a_link() {
    let (fs, chain) = chain_of(&[
        &[Item::dir("usr/lib"), Item::symlink("lib", "usr/lib")],
        &[Item::dir("lib"), Item::file("lib/new", "new")],
    ]);
    assert_eq!(names(&fs, &format!("{chain}/lib")), ["new"]);
    assert_eq!(names(&fs, &format!("{chain}/usr/lib")), [""; 0]);
}

#[test]
fn links_in_a_circle_end() {
    let (fs, chain) = chain_of(&[
        &[Item::symlink("a", "b"), Item::symlink("b", "a"), Item::file("f", "f")],
        &[Item::file("a/x", "x"), Item::link("l", "a/f")],
    ]);
    // The link leads nowhere, so the directory stands in its place.
    assert_eq!(names(&fs, &format!("{chain}/a")), ["x"]);
    assert_eq!(find_path(&fs, &format!("{chain}/l")), None);
    assert_eq!(names(&fs, &chain), ["a", "b", "f"]);
}

#[test]
fn a_hard_link_to_a_lower_layer_is_the_lower_file() {
    let (fs, chain) = chain_of(&[
        &[Item::file("d/one", "content").owner(3, 4), Item::symlink("s", "d")],
        &[Item::link("two", "d/one")],
        &[Item::link("three", "two"), Item::link("four", "s/one"), Item::whiteout("d", "one")],
    ]);
    let at = |path: &str| find_path(&fs, &format!("{chain}/{path}"));
    assert_eq!(at("d/one"), None);
    let two = at("two").expect("a file").attr;
    assert_eq!((two.nlink, two.uid, two.size), (3, 3, 7));
    for other in ["three", "four"] {
        assert_eq!(at(other).expect("a file").attr, two);
    }
    assert_eq!(read_all(&fs, two.id), b"content");
    // Alone, the layer can't show it, and says so.
    let (handle, _) = fs.open(two.id).expect("a file");
    fs.close(handle);
    let layers = find_path(&fs, "layers").expect("layers").attr.id;
    let (_, layer) = list(&fs, layers, 10)
        .into_iter()
        .find(|(_, layer)| find(&fs, layer.attr.id, "two").is_some())
        .expect("the layer");
    let alone = find(&fs, layer.attr.id, "two").expect("the link").attr;
    assert_eq!((alone.kind, alone.size), (Kind::File, 0));
    assert!(matches!(fs.open(alone.id), Err(peersync::fs::FsError::LinkElsewhere)));
}

#[test]
fn a_deep_chain_of_links_across_layers_is_bounded() {
    let mut layers: Vec<Vec<Item>> = vec![vec![Item::file("l0", "x")]];
    for n in 1..200 {
        layers.push(vec![Item::link(&format!("l{n}"), &format!("l{}", n - 1))]);
    }
    let layers: Vec<&[Item]> = layers.iter().map(Vec::as_slice).collect();
    let (fs, chain) = chain_of(&layers);
    assert!(find_path(&fs, &format!("{chain}/l30")).is_some());
    // More links than anybody has use for: no such file, and no overflow.
    assert_eq!(find_path(&fs, &format!("{chain}/l199")), None);
}

#[test]
fn an_image_without_layers_is_an_empty_directory() {
    let (fs, chain) = chain_of(&[]);
    let root = find_path(&fs, &chain).expect("the chain").attr;
    assert_eq!((root.kind, root.nlink, root.mode), (Kind::Directory, 2, 0o755));
    assert_eq!(names(&fs, &chain), [""; 0]);
    assert_eq!(find(&fs, root.id, "x"), None);
    assert_eq!(fs.attributes(root.id).expect("known").0, root);
}

#[test]
fn a_thousand_layers_are_shown_and_more_are_refused() {
    let layers: Vec<Vec<Item>> = (0..1024)
        .map(|n| vec![Item::file(&format!("d/f{n}"), "x"), Item::file("d/same", [n as u8])])
        .collect();
    let layers: Vec<&[Item]> = layers.iter().map(Vec::as_slice).collect();
    let (fs, chain) = chain_of(&layers);
    assert_eq!(names(&fs, &format!("{chain}/d")).len(), 1025);
    let same = find_path(&fs, &format!("{chain}/d/same")).expect("a file").attr;
    assert_eq!(read_all(&fs, same.id), [255]);

    let mut more = layers;
    more.push(&[]);
    let reader = MemoryReader::new();
    let catalog = MemoryCatalog::new();
    let views: Vec<_> = (1..).zip(&more).map(|(n, items)| layer(slot(n), items, &reader)).collect();
    let name = catalog.add_chain(slot(5000), &views);
    let fs = FileSystem::new(Root::Whole, catalog, reader, FsOptions::default());
    let chains = find_path(&fs, "chains").expect("chains").attr.id;
    assert!(fs.lookup(&ROOT_CALLER, chains, name.as_bytes()).is_err());
}
