use proptest::prelude::*;

use super::*;
use crate::layer::entry::{Entry, EntryKind, Extent};

fn entry(path: &str, kind: EntryKind) -> Entry {
    Entry {
        path: path.into(),
        kind,
        mode: 0o644,
        uid: 1,
        gid: 2,
        mtime: (3, 4),
        xattrs: Vec::new(),
    }
}

fn content(n: u8) -> FileContent {
    FileContent { object: 0, offset: u64::from(n), length: 1, hash: BlockHash::of(&[n]) }
}

const FILE: EntryKind = EntryKind::File { size: 1, extents: None };

fn link(target: &str) -> EntryKind {
    EntryKind::HardLink { target: target.into() }
}

fn symlink(target: &str) -> EntryKind {
    EntryKind::Symlink { target: target.into() }
}

fn try_build(entries: &[Entry]) -> Result<Tree, BuildTreeError> {
    let mut builder = TreeBuilder::default();
    for (n, entry) in entries.iter().enumerate() {
        let is_file = matches!(entry.kind, EntryKind::File { .. });
        builder.add(entry, is_file.then(|| content(n as u8)))?;
    }
    let bytes = builder.finish(&[(ObjectId::from_bytes([7; 32]), 1000)])?;
    Ok(Tree::open(bytes).expect("a built tree is valid"))
}

fn build(entries: &[(&str, EntryKind)]) -> Tree {
    let entries: Vec<_> = entries.iter().map(|(p, k)| entry(p, k.clone())).collect();
    try_build(&entries).expect("a good layer")
}

/// All paths with one letter for the kind, opaque directories with `!`.
fn list(tree: &Tree) -> Vec<String> {
    let mut out = Vec::new();
    let mut todo = vec![(NodeIx::ROOT, String::new())];
    while let Some((dir, path)) = todo.pop() {
        for DirEntry { name, ix } in tree.entries(dir) {
            let path = format!("{path}/{}", name.escape_ascii());
            let node = tree.node(ix).expect("named");
            let letter = match node.kind {
                NodeKind::Directory if node.opaque => '!',
                NodeKind::Directory => 'd',
                NodeKind::File => 'f',
                NodeKind::Symlink => 'l',
                NodeKind::Whiteout => 'w',
                NodeKind::ExternalLink => 'x',
                _ => 'o',
            };
            out.push(format!("{letter}{path}"));
            if node.kind == NodeKind::Directory {
                assert_eq!(tree.parent(ix), Some(dir));
                assert_eq!(tree.name_of(ix), name);
                todo.push((ix, path));
            }
        }
    }
    out.sort_by(|a, b| a[1..].cmp(&b[1..]));
    out
}

#[test]
fn an_empty_layer_is_a_root() {
    let tree = build(&[]);
    let root = tree.node(NodeIx::ROOT).expect("root");
    assert!(root.implicit && root.kind == NodeKind::Directory && root.nlink == 2);
    assert_eq!((root.mode, tree.len()), (0o755, 1));
    assert_eq!(tree.parent(NodeIx::ROOT), Some(NodeIx::ROOT));
    assert_eq!(tree.name_of(NodeIx::ROOT), b"");
}

#[test]
fn names_are_cleaned_and_stay_inside() {
    let tree = build(&[
        ("./", EntryKind::Directory),
        ("./a//b", FILE),
        ("/abs", FILE),
        ("../../up", FILE),
        ("x/../y", FILE),
    ]);
    assert_eq!(list(&tree), ["d/a", "f/a/b", "f/abs", "f/up", "f/y"]);
    assert!(!tree.node(NodeIx::ROOT).expect("root").implicit);
    assert!(tree.node(tree.resolve(b"/a").expect("a")).expect("a").implicit);
    assert_eq!(tree.resolve(b"a/./b"), tree.resolve(b"a/b"));
}

#[test]
fn a_later_entry_replaces_the_earlier() {
    let tree = build(&[
        ("d", EntryKind::Directory),
        ("d/f", FILE),
        ("d", EntryKind::Directory),
        ("e/f/g", FILE),
        ("e", FILE),
        ("h", FILE),
        ("h", EntryKind::Directory),
    ]);
    assert_eq!(list(&tree), ["d/d", "f/d/f", "f/e", "!/h"]);
}

#[test]
fn hard_links_share_a_node() {
    let tree = build(&[
        ("a", FILE),
        ("d/b", link("a")),
        ("c", link("./d/b")),
        ("x", link("/lower/y")),
        ("x2", link("x")),
        ("a", link("a")),
    ]);
    assert_eq!(list(&tree), ["f/a", "f/c", "d/d", "f/d/b", "x/x", "x/x2"]);
    let a = tree.resolve(b"a").expect("a");
    assert_eq!(tree.resolve(b"d/b"), Some(a));
    assert_eq!(tree.node(a).map(|n| n.nlink), Some(3));
    let d = tree.resolve(b"d").expect("d");
    let expected: Vec<(NodeIx, &[u8])> =
        vec![(NodeIx::ROOT, b"a"), (NodeIx::ROOT, b"c"), (d, b"b")];
    assert_eq!(tree.links(a), expected);
    let x = tree.resolve(b"x").expect("x");
    assert_eq!(tree.symlink_target(x), b"lower/y");
    assert_eq!(tree.links(x).len(), 2);
}

#[test]
fn a_link_survives_the_directory_of_its_target() {
    let tree = build(&[("d/f", FILE), ("d", link("d/f"))]);
    assert_eq!(list(&tree), ["f/d"]);
    assert_eq!(tree.node(NodeIx(1)).map(|n| n.nlink), Some(1));
}

#[test]
fn links_to_directories_and_below_files_are_errors() {
    let errors = [
        vec![("d", EntryKind::Directory), ("l", link("d"))],
        vec![("l", link("/"))],
        vec![("f", FILE), ("f/g", FILE)],
        vec![(".", FILE)],
        vec![("l", symlink(""))],
        vec![("a", symlink("b")), ("b", symlink("a")), ("a/f", FILE)],
    ];
    for entries in errors {
        let entries: Vec<_> = entries.iter().map(|(p, k)| entry(p, k.clone())).collect();
        assert!(try_build(&entries).is_err(), "{entries:?}");
    }
    let long = "x".repeat(256);
    assert!(try_build(&[entry(&long, FILE)]).is_err());
    assert!(try_build(&[entry(&"x/".repeat(3000), FILE)]).is_err());
}

#[test]
fn parents_that_are_links_are_followed_inside_the_root() {
    let tree = build(&[
        ("usr/lib", EntryKind::Directory),
        ("lib", symlink("usr/lib")),
        ("lib/x", FILE),
        ("usr/abs", symlink("/../../usr/lib")),
        ("usr/abs/y", FILE),
        ("out", symlink("../../../nowhere")),
        ("out/z", FILE),
        ("h", link("lib/x")),
        ("lib", EntryKind::Directory),
    ]);
    assert_eq!(
        list(&tree),
        [
            "f/h",
            "!/lib",
            "d/nowhere",
            "f/nowhere/z",
            "l/out",
            "d/usr",
            "l/usr/abs",
            "d/usr/lib",
            "f/usr/lib/x",
            "f/usr/lib/y"
        ]
    );
}

#[test]
fn whiteouts_hide_lower_layers_only() {
    let tree = build(&[
        ("a/.wh.gone", FILE),
        ("f", FILE),
        (".wh.f", FILE),
        (".wh.d", FILE),
        ("d/x", FILE),
        ("e/.wh..wh..opq", FILE),
        (".wh..wh.plnk", FILE),
        (".wh...", FILE),
        (".wh.", FILE),
    ]);
    assert_eq!(list(&tree), ["d/a", "w/a/gone", "!/d", "f/d/x", "!/e", "f/f"]);
    let gone = tree.node(tree.resolve(b"a/gone").expect("w")).expect("w");
    assert_eq!((gone.kind, gone.rdev, gone.nlink), (NodeKind::Whiteout, (0, 0), 1));
}

#[test]
fn landmarks_hide_at_the_top_only() {
    let tree = build(&[(".prefetch.landmark", FILE), ("d/stargz.index.json", FILE)]);
    assert_eq!(list(&tree), ["d/d", "f/d/stargz.index.json"]);
}

#[test]
fn attributes_come_back() {
    let mut e = entry("dev", EntryKind::CharDevice { major: 4095, minor: 0xf_1234 });
    e.mode = 0o4755;
    e.uid = u32::MAX - 1;
    e.mtime = (-5, 999_999_999);
    e.xattrs = vec![
        (b"security.capability".to_vec(), vec![0, 1, 2]),
        (b"trusted.overlay.opaque".to_vec(), b"y".to_vec()),
        (b"user.overlay.x".to_vec(), b"y".to_vec()),
        (b"user.x".to_vec(), Vec::new()),
    ];
    let mut s = entry("s", symlink("t"));
    s.xattrs = e.xattrs.clone();
    let tree = try_build(&[e, s]).expect("good");
    let ix = tree.resolve(b"dev").expect("dev");
    let node = tree.node(ix).expect("dev");
    assert_eq!((node.mode, node.uid, node.gid), (0o4755, u32::MAX - 1, 2));
    assert_eq!(node.mtime, (-5, 999_999_999));
    assert_eq!(node.rdev, (4095, 0xf_1234));
    let expected: Vec<(&[u8], &[u8])> =
        vec![(b"security.capability", &[0, 1, 2]), (b"user.x", b"")];
    assert_eq!(tree.xattrs(ix).collect::<Vec<_>>(), expected);
    let s = tree.resolve(b"s").expect("s");
    assert_eq!(tree.xattrs(s).count(), 2);
    assert_eq!(tree.node(s).map(|n| (n.mode, n.size)), Some((0o777, 1)));
}

#[test]
fn sparse_files_have_holes() {
    let extents = vec![
        Extent { logical: 10, len: 5 },
        Extent { logical: 15, len: 5 },
        Extent { logical: 30, len: 0 },
        Extent { logical: 90, len: 10 },
    ];
    let size = 1 << 40;
    let kind = EntryKind::File { size, extents: Some(extents) };
    let mut builder = TreeBuilder::default();
    let content = FileContent { offset: 100, length: 20, ..content(0) };
    builder.add(&entry("s", kind), Some(content)).expect("good");
    let hole = EntryKind::File { size: 7, extents: Some(Vec::new()) };
    let nothing = FileContent { offset: 100, length: 0, ..content };
    builder.add(&entry("hole", hole), Some(nothing)).expect("good");
    let bytes = builder.finish(&[(ObjectId::from_bytes([7; 32]), 120)]).expect("small");
    let tree = Tree::open(bytes).expect("valid");
    let ix = tree.resolve(b"s").expect("s");
    assert_eq!(tree.node(ix).map(|n| n.size), Some(size));
    let data = tree.file(ix).expect("file");
    assert!(data.extents.is_sparse());
    let hole = |offset, len| Range::Hole { offset, len };
    let part = |offset, dense, len| Range::Data { offset, dense, len };
    assert_eq!(
        data.extents.ranges(0, size).collect::<Vec<_>>(),
        [hole(0, 10), part(10, 0, 10), hole(20, 70), part(90, 10, 10), hole(100, size - 100)]
    );
    assert_eq!(
        data.extents.ranges(19, 91).collect::<Vec<_>>(),
        [part(19, 9, 1), hole(20, 70), part(90, 10, 1)]
    );
    let data = tree.file(tree.resolve(b"hole").expect("hole")).expect("file");
    assert_eq!((data.offset, data.size), (0, 7));
    assert_eq!(data.extents.ranges(0, 7).collect::<Vec<_>>(), [hole(0, 7)]);
}

#[test]
fn limits_hold() {
    let limits = TreeLimits { nodes: 4, strings: 10, xattrs: 10, extents: 1 };
    let mut builder = TreeBuilder::new(limits);
    let many = |r| matches!(r, Err(BuildTreeError::TooMany(_)));
    for _ in 0..100 {
        builder.add(&entry("a/b", FILE), Some(content(0))).expect("replaces");
        builder.add(&entry("a", FILE), Some(content(0))).expect("replaces");
        builder.add(&entry("a", EntryKind::Directory), None).expect("replaces");
    }
    let mut full = TreeBuilder::new(limits);
    full.add(&entry("a/b", FILE), Some(content(0))).expect("fits");
    full.add(&entry("b", FILE), Some(content(0))).expect("fits");
    assert!(many(full.add(&entry("c", FILE), Some(content(0)))));
    let mut full = TreeBuilder::new(limits);
    assert!(many(full.add(&entry("12345678901", FILE), Some(content(0)))));
    let mut full = TreeBuilder::new(limits);
    let mut e = entry("a", FILE);
    e.xattrs = vec![(b"user.abcdefgh".to_vec(), Vec::new())];
    assert!(many(full.add(&e, Some(content(0)))));
    let mut full = TreeBuilder::new(limits);
    full.add(&entry(".wh.a", FILE), Some(content(0))).expect("fits");
    full.add(&entry(".wh.d", FILE), Some(content(0))).expect("fits");
    full.add(&entry(".wh.b", FILE), Some(content(0))).expect("fits");
    assert!(many(full.add(&entry(".wh.c", FILE), Some(content(0)))));
}

fn arbitrary_entry() -> impl Strategy<Value = Entry> {
    let name = prop::sample::select(vec!["a", "b", "c", ".wh.a", ".wh..wh..opq", ".."]);
    let path = prop::collection::vec(name, 1..4).prop_map(|v| v.join("/"));
    let kind = prop_oneof![
        3 => Just(FILE),
        3 => Just(EntryKind::Directory),
        1 => Just(EntryKind::Fifo),
        1 => path.clone().prop_map(|target| symlink(&target)),
        2 => path.clone().prop_map(|target| link(&target)),
    ];
    (path, kind, any::<u16>())
        .prop_map(|(path, kind, mode)| Entry { mode: mode & 0o7777, ..entry(&path, kind) })
}

proptest! {
    #[test]
    fn whatever_is_built_is_valid_and_canonical(
        entries in prop::collection::vec(arbitrary_entry(), 0..30)
    ) {
        // An entry that is refused is left out: the rest must do.
        let mut good: Vec<Entry> = Vec::new();
        for entry in entries {
            good.push(entry);
            if try_build(&good).is_err() {
                good.pop();
            }
        }
        let tree = try_build(&good).expect("good");
        let again = try_build(&good).expect("good");
        prop_assert_eq!(tree.bytes(), again.bytes());
        for ix in (0..tree.len()).map(NodeIx) {
            let node = tree.node(ix).expect("below len");
            let links = tree.links(ix);
            if node.kind != NodeKind::Directory {
                prop_assert_eq!(links.len() as u32, if node.nlink > 1 { node.nlink } else { 0 });
            }
            for (dir, name) in links {
                prop_assert_eq!(tree.lookup(dir, name), Some(ix));
            }
        }
        list(&tree);
    }

    #[test]
    fn damaged_trees_are_refused_or_harmless(
        entries in prop::collection::vec(arbitrary_entry(), 0..12),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let Ok(tree) = try_build(&entries) else { return Ok(()) };
        let mut bytes = tree.bytes().to_vec();
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok(tree) = Tree::open(bytes) {
            list(&tree);
            for ix in (0..tree.len() + 2).map(NodeIx) {
                tree.links(ix);
                tree.xattrs(ix).count();
                tree.symlink_target(ix);
                if let Some(file) = tree.file(ix) {
                    file.extents.ranges(0, file.size).count();
                }
            }
        }
    }
}
