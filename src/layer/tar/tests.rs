use proptest::prelude::*;

use super::*;

/// A header with a right checksum.
struct Raw([u8; BLOCK]);

impl Raw {
    fn new(name: &str, typeflag: u8, size: u64) -> Self {
        let mut raw = Self([0; BLOCK]);
        raw.put(0, name.as_bytes());
        for (at, field) in [(100, "0000644"), (108, "0000001"), (116, "0000002")] {
            raw.put(at, field.as_bytes());
        }
        raw.put(124, format!("{size:011o}").as_bytes());
        raw.put(136, b"00000000007");
        raw.put(156, &[typeflag]);
        raw.put(257, b"ustar\x0000");
        raw
    }

    fn gnu(name: &str, typeflag: u8, size: u64) -> Self {
        let mut raw = Self::new(name, typeflag, size);
        raw.put(257, b"ustar  \0");
        raw
    }

    fn put(&mut self, at: usize, bytes: &[u8]) -> &mut Self {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    fn bytes(&mut self) -> Vec<u8> {
        self.0[148..156].fill(b' ');
        let sum: u32 = self.0.iter().map(|b| u32::from(*b)).sum();
        self.put(148, format!("{sum:06o}\0").as_bytes());
        self.0.to_vec()
    }
}

fn padded(bytes: &[u8]) -> Vec<u8> {
    let mut out = bytes.to_vec();
    out.resize(bytes.len().next_multiple_of(BLOCK), 0);
    out
}

fn pax(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (key, value) in records {
        let rest = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
        let mut len = rest.len() + 1;
        while len != rest.len() + len.to_string().len() {
            len = rest.len() + len.to_string().len();
        }
        body.extend(len.to_string().as_bytes());
        body.extend(rest);
    }
    [Raw::new("pax", b'x', body.len() as u64).bytes(), padded(&body)].concat()
}

#[derive(Debug, Default, PartialEq)]
struct Parsed {
    entries: Vec<(Entry, Vec<u8>)>,
    literal: u64,
}

/// Parses in chunks of the given sizes, in turn; checks on the way that every
/// byte comes out as what was expected.
fn parse_in(bytes: &[u8], chunks: &[usize]) -> Result<Parsed, TarError> {
    let mut parser = TarParser::new();
    let mut parsed = Parsed::default();
    let mut left = Bytes::copy_from_slice(bytes);
    let mut seen = Vec::new();
    for size in chunks.iter().cycle() {
        if left.is_empty() {
            break;
        }
        let mut chunk = left.split_to(left.len().min(*size));
        loop {
            let expected = parser.expects();
            match parser.next(&mut chunk)? {
                None => break,
                Some(Event::Literal(bytes)) => {
                    let Expect::Literal(most) = expected else {
                        panic!("literal where content was expected")
                    };
                    assert!(!bytes.is_empty() && bytes.len() as u64 <= most);
                    parsed.literal += bytes.len() as u64;
                    seen.extend_from_slice(&bytes);
                }
                Some(Event::Entry(entry, _)) => parsed.entries.push((*entry, Vec::new())),
                Some(Event::Content(bytes)) => {
                    let Expect::Content(most) = expected else {
                        panic!("content where a literal was expected")
                    };
                    assert!(!bytes.is_empty() && bytes.len() as u64 <= most);
                    let (_, content) = parsed.entries.last_mut().expect("announced");
                    content.extend_from_slice(&bytes);
                    seen.extend_from_slice(&bytes);
                }
            }
        }
    }
    assert_eq!(seen, bytes);
    assert_eq!(parser.offset(), bytes.len() as u64);
    parser.finish()?;
    Ok(parsed)
}

fn parse(bytes: &[u8]) -> Result<Parsed, TarError> {
    let whole = parse_in(bytes, &[usize::MAX]);
    assert_eq!(parse_in(bytes, &[1]), whole);
    assert_eq!(parse_in(bytes, &[511, 3, 700]), whole);
    whole
}

fn one(bytes: &[u8]) -> Entry {
    let mut parsed = parse(bytes).expect("a good archive");
    assert_eq!(parsed.entries.len(), 1);
    parsed.entries.remove(0).0
}

fn file(size: u64) -> EntryKind {
    EntryKind::File { size, extents: None }
}

#[test]
fn kinds_by_typeflag() {
    let kind = |typeflag| {
        let mut raw = Raw::new("n", typeflag, 0);
        raw.put(157, b"t").put(329, b"0000007").put(337, b"0000011");
        one(&raw.bytes()).kind
    };
    let target = b"t".to_vec();
    assert_eq!(kind(b'0'), file(0));
    assert_eq!(kind(0), file(0));
    assert_eq!(kind(b'7'), file(0));
    assert_eq!(kind(b'q'), file(0));
    assert_eq!(kind(b'1'), EntryKind::HardLink { target: target.clone() });
    assert_eq!(kind(b'2'), EntryKind::Symlink { target });
    assert_eq!(kind(b'3'), EntryKind::CharDevice { major: 7, minor: 9 });
    assert_eq!(kind(b'4'), EntryKind::BlockDevice { major: 7, minor: 9 });
    assert_eq!(kind(b'5'), EntryKind::Directory);
    assert_eq!(kind(b'6'), EntryKind::Fifo);
    assert_eq!(one(&Raw::new("d/", 0, 0).bytes()).kind, EntryKind::Directory);
    assert_eq!(one(&Raw::new("d/", b'0', 0).bytes()).kind, file(0));
}

#[test]
fn only_files_have_content() {
    let data = padded(b"abc");
    let dir = Raw::new("d", b'5', 3).bytes();
    let file = Raw::new("f", b'0', 3).bytes();
    let parsed = parse(&[dir, file.clone(), data.clone()].concat()).expect("good");
    assert_eq!(parsed.entries[1].1, b"abc");
    // A volume name and GNU's list of a directory are passed over.
    let label = Raw::gnu("v", b'V', 3).bytes();
    let dump = Raw::gnu("d", b'D', 3).bytes();
    let bytes = [label, data.clone(), dump, data.clone(), file, data].concat();
    let parsed = parse(&bytes).expect("good");
    assert_eq!(parsed.entries.len(), 2);
    assert_eq!(parsed.entries[0].0.kind, EntryKind::Directory);
    assert_eq!(parsed.literal, bytes.len() as u64 - 3);
}

#[test]
fn names_of_every_dialect() {
    let mut ustar = Raw::new("name", b'0', 0);
    ustar.put(345, b"prefix");
    assert_eq!(one(&ustar.bytes()).path, b"prefix/name");
    let mut star = Raw::new("name", b'0', 0);
    star.put(345, &[b'p'; 131]).put(476, b"00000000000 ").put(508, b"tar\0");
    assert_eq!(one(&star.bytes()).path, [&[b'p'; 131][..], b"/name"].concat());
    let mut gnu = Raw::gnu("name", b'0', 0);
    gnu.put(345, b"00000000007").put(357, b"00000000007");
    assert_eq!(one(&gnu.bytes()).path, b"name");
    let mut old_go = Raw::gnu("name", b'0', 0);
    old_go.put(345, b"prefix");
    assert_eq!(one(&old_go.bytes()).path, b"prefix/name");
    let mut v7 = Raw::new("name", b'0', 0);
    v7.put(257, &[0; 8]).put(345, b"prefix");
    assert_eq!(one(&v7.bytes()).path, b"name");
    let full = "x".repeat(100);
    assert_eq!(one(&Raw::new(&full, b'0', 0).bytes()).path, full.as_bytes());
}

#[test]
fn extended_headers_win_over_the_header() {
    let long = vec![b'l'; 600];
    let records = pax(&[
        ("path", &[0xff; 300]),
        ("uid", b"4294967294"),
        ("gid", b"-2"),
        ("mtime", b"-1.25"),
        ("size", b"3"),
        ("comment", b"x"),
        ("SCHILY.xattr.user.k", b"v\0w\n"),
    ]);
    let header = Raw::new("short", b'0', 0).bytes();
    let bytes = [records, header, padded(b"abc")].concat();
    let parsed = parse(&bytes).expect("good");
    let (entry, content) = &parsed.entries[0];
    assert_eq!(entry.path, [0xff; 300]);
    assert_eq!((entry.uid, entry.gid), (u32::MAX - 1, u32::MAX - 1));
    assert_eq!(entry.mtime, (-2, 750_000_000));
    assert_eq!(entry.xattrs, [(b"user.k".to_vec(), b"v\0w\n".to_vec())]);
    assert_eq!(content, b"abc");

    let name = [Raw::gnu("././@LongLink", b'L', 601).bytes(), padded(&[&long[..], b"\0"].concat())]
        .concat();
    let link = [Raw::gnu("././@LongLink", b'K', 3).bytes(), padded(b"to\0")].concat();
    let header = Raw::gnu("short", b'2', 0).bytes();
    let entry = one(&[name, link, header].concat());
    assert_eq!(entry.path, long);
    assert_eq!(entry.kind, EntryKind::Symlink { target: b"to".to_vec() });
}

#[test]
fn extended_headers_are_for_one_entry_and_global_ones_for_none() {
    let mut global = pax(&[("path", b"global"), ("uid", b"77")]);
    let raw = Raw::new("g", b'g', 26).bytes();
    global[..BLOCK].copy_from_slice(&raw);
    let first = Raw::new("first", b'0', 0).bytes();
    let second = Raw::new("second", b'0', 0).bytes();
    let bytes = [global, pax(&[("path", b"x")]), first, second].concat();
    let parsed = parse(&bytes).expect("good");
    let names: Vec<_> = parsed.entries.iter().map(|(e, _)| (&e.path[..], e.uid)).collect();
    assert_eq!(names, [(&b"x"[..], 1), (b"second", 1)]);
}

fn extents(list: &[(u64, u64)]) -> Option<Vec<Extent>> {
    Some(list.iter().map(|(logical, len)| Extent { logical: *logical, len: *len }).collect())
}

#[test]
fn sparse_files_of_every_spelling() {
    let data = [vec![b'a'; 512], vec![b'b'; 5]].concat();
    let expected = EntryKind::File { size: 1 << 40, extents: extents(&[(1024, 512), (8192, 5)]) };
    let size = (1u64 << 40).to_string();
    let check = |bytes: Vec<u8>, path: &[u8]| {
        let parsed = parse(&bytes).expect("good");
        assert_eq!(parsed.entries.len(), 1);
        let (entry, content) = &parsed.entries[0];
        assert_eq!(entry.kind, expected);
        assert_eq!(entry.path, path);
        assert_eq!(content, &data);
    };
    let header = |size| Raw::new("GNUSparseFile.1/f", b'0', size).bytes();
    let v00 = pax(&[
        ("GNU.sparse.size", size.as_bytes()),
        ("GNU.sparse.numblocks", b"2"),
        ("GNU.sparse.offset", b"1024"),
        ("GNU.sparse.numbytes", b"512"),
        ("GNU.sparse.offset", b"8192"),
        ("GNU.sparse.numbytes", b"5"),
    ]);
    check([v00, header(517), padded(&data)].concat(), b"GNUSparseFile.1/f");
    let v01 = pax(&[
        ("GNU.sparse.size", size.as_bytes()),
        ("GNU.sparse.name", b"f"),
        ("GNU.sparse.map", b"1024,512,8192,5"),
    ]);
    check([v01, header(517), padded(&data)].concat(), b"f");
    let v10 = pax(&[
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.realsize", size.as_bytes()),
        ("GNU.sparse.name", b"f"),
    ]);
    let map = format!("3\n1024\n512\n8192\n5\n{size}\n0\n");
    check([v10, header(517 + 512), padded(map.as_bytes()), padded(&data)].concat(), b"f");
    // GNU's own: four entries in the header, further ones in blocks of their own.
    let mut old = Raw::gnu("f", b'S', 517);
    old.put(386, b"00000002000\x0000000001000\0");
    old.put(482, &[1]);
    old.put(483, &[0x80, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0]);
    let mut more = vec![0; 512];
    more[..24].copy_from_slice(b"00000020000\x0000000000005\0");
    check([old.bytes(), more, padded(&data)].concat(), b"f");
}

#[test]
fn maps_that_do_not_fit_are_refused() {
    let header = Raw::new("f", b'0', 5).bytes();
    for (map, size) in [("0,5,3,1", "9"), ("0,6", "9"), ("0,5", "4"), ("0", "9"), ("9,5", "13")] {
        let records =
            pax(&[("GNU.sparse.size", size.as_bytes()), ("GNU.sparse.map", map.as_bytes())]);
        let bytes = [records, header.clone(), padded(b"abcde")].concat();
        assert_eq!(parse(&bytes), Err(TarError::Sparse { offset: 1024 }), "{map}");
    }
    let v10 = pax(&[("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0")]);
    let bytes = [v10.clone(), header, padded(b"1\n0\n5")].concat();
    assert_eq!(parse(&bytes), Err(TarError::Sparse { offset: 1024 }));
    let long = Raw::new("f", b'0', 1 << 30).bytes();
    let bytes = [v10, long, vec![b'1'; 1 << 12]].concat();
    assert_eq!(parse(&bytes), Err(TarError::Sparse { offset: 1024 }));
    assert!(parse(&Raw::new("f", b'S', 0).bytes()).is_err());
}

#[test]
fn ends_are_where_go_sees_them() {
    let file = [Raw::new("f", b'0', 3).bytes(), padded(b"abc")].concat();
    let count = |bytes: &[u8]| parse(bytes).map(|p| p.entries.len());
    assert_eq!(count(b""), Ok(0));
    assert_eq!(count(&file), Ok(1));
    // The last file may lack its padding, one block of zeros is an end too.
    assert_eq!(count(&file[..515]), Ok(1));
    assert_eq!(count(&[&file[..], &[0; 512]].concat()), Ok(1));
    // Whatever follows two blocks of zeros is kept and means nothing.
    let trailing = [&file[..], &[0; 1024], &file[..], b"anything"].concat();
    assert_eq!(count(&trailing), Ok(1));
    let lone = [&file[..], &[0; 512], &file[..]].concat();
    assert_eq!(count(&lone), Err(TarError::LoneZeroBlock { offset: 1536 }));
    for cut in [1, 511, 512, 514] {
        let offset = cut as u64;
        assert_eq!(count(&file[..cut]), Err(TarError::Truncated { offset }));
    }
    let records = pax(&[("path", b"x")]);
    assert!(count(&records[..600]).is_ok_and(|n| n == 0) || count(&records[..520]).is_err());
}

#[test]
fn hostile_headers_are_errors() {
    assert_eq!(parse(&[b'x'; 512]), Err(TarError::Checksum { offset: 0 }));
    let long = Raw::new("x", b'x', (1 << 20) + 1).bytes();
    let length = (1 << 20) + 1;
    assert_eq!(parse(&long), Err(TarError::TooLong { offset: 0, length }));
    let long = Raw::gnu("x", b'L', 65537).bytes();
    assert_eq!(parse(&long), Err(TarError::TooLong { offset: 0, length: 65537 }));
    let number = |raw: &mut Raw, field| {
        assert_eq!(parse(&raw.bytes()), Err(TarError::Number { offset: 0, field }));
    };
    number(Raw::new("x", b'0', 0).put(124, &[0xff; 12]), "size");
    number(Raw::new("x", b'0', 0).put(100, b"9"), "mode");
    // A uid beyond 32 bits must not become somebody else's.
    number(Raw::new("x", b'0', 0).put(108, &[0x80, 0, 0, 1, 0, 0, 0, 0]), "uid");
    number(Raw::new("x", b'3', 0).put(329, &[0x80, 0, 0, 1, 0, 0, 0, 0]), "device number");
    let huge = Raw::new("x", b'V', 0).put(124, b"777777777777").bytes();
    assert!(matches!(parse(&huge), Err(TarError::Truncated { .. })));
    assert_eq!(parse(&Raw::gnu("x", b'M', 0).bytes()), Err(TarError::MultiVolume { offset: 0 }));
    let signed = {
        let mut raw = Raw::new("\u{e9}", b'0', 0);
        raw.bytes();
        raw.0[148..156].fill(b' ');
        let sum: i64 = raw.0.iter().map(|b| i64::from(b.cast_signed())).sum();
        raw.put(148, format!("{sum:06o}\0").as_bytes());
        raw.0.to_vec()
    };
    assert_eq!(one(&signed).path, "\u{e9}".as_bytes());
}

/// One member as the `tar` crate writes it.
#[derive(Clone, Debug)]
struct Member {
    path: String,
    link: Option<String>,
    data: Vec<u8>,
    gnu: bool,
    mode: u32,
    id: u64,
    time: u64,
    attribute: Option<Vec<u8>>,
}

fn member() -> impl Strategy<Value = Member> {
    let name = "[a-z\u{e4}]{1,120}(/[a-z]{1,90}){0,2}";
    (
        name,
        prop::option::of(name),
        prop::collection::vec(any::<u8>(), 0..2000),
        any::<bool>(),
        0u32..0o10000,
        0u64..1 << 32,
        0u64..1 << 33,
        prop::option::of(prop::collection::vec(any::<u8>(), 0..100)),
    )
        .prop_map(|(path, link, data, gnu, mode, id, time, attribute)| Member {
            path,
            link,
            data,
            gnu,
            mode,
            id,
            time,
            attribute,
        })
}

proptest! {
    #[test]
    fn archives_of_the_tar_crate_come_back(
        members in prop::collection::vec(member(), 0..8),
        chunks in prop::collection::vec(1usize..3000, 1..10),
    ) {
        let mut builder = tar::Builder::new(Vec::new());
        let mut expected = Vec::new();
        for m in &members {
            let mut header = if m.gnu { tar::Header::new_gnu() } else { tar::Header::new_ustar() };
            header.set_mode(m.mode);
            header.set_mtime(m.time);
            header.set_uid(if m.gnu { m.id } else { m.id & 0o777_7777 });
            header.set_gid(7);
            let mut xattrs = Vec::new();
            if let Some(value) = &m.attribute {
                builder
                    .append_pax_extensions([("SCHILY.xattr.user.k", &value[..])])
                    .expect("in memory");
                xattrs.push((b"user.k".to_vec(), value.clone()));
            }
            let kind = match &m.link {
                Some(target) => {
                    header.set_entry_type(tar::EntryType::Symlink);
                    header.set_size(0);
                    let done = builder.append_link(&mut header, &m.path, target);
                    prop_assume!(done.is_ok());
                    EntryKind::Symlink { target: target.clone().into_bytes() }
                }
                None => {
                    header.set_size(m.data.len() as u64);
                    let done = builder.append_data(&mut header, &m.path, &m.data[..]);
                    prop_assume!(done.is_ok());
                    file(m.data.len() as u64)
                }
            };
            let content = if m.link.is_some() { Vec::new() } else { m.data.clone() };
            let entry = Entry {
                path: m.path.clone().into_bytes(),
                kind,
                mode: m.mode as u16,
                uid: if m.gnu { m.id as u32 } else { (m.id & 0o777_7777) as u32 },
                gid: 7,
                mtime: (m.time as i64, 0),
                xattrs,
            };
            expected.push((entry, content));
        }
        let bytes = builder.into_inner().expect("in memory");
        let parsed = parse_in(&bytes, &chunks).expect("a good archive");
        prop_assert_eq!(parsed.entries, expected);
    }

    #[test]
    fn damage_is_found_or_harmless(
        damage in prop::collection::vec((0usize..3000, any::<u8>()), 1..5),
        fix in any::<bool>(),
    ) {
        let mut bytes = [
            pax(&[("path", b"abc"), ("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0")]),
            Raw::new("f", b'0', 600).bytes(),
            padded(b"1\n5\n88\n"),
            padded(&[7; 88]),
            Raw::gnu("l", b'L', 3).bytes(),
            padded(b"abc"),
            Raw::gnu("s", b'S', 3).put(482, &[1]).bytes(),
        ].concat();
        for (at, value) in damage {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        if fix {
            for at in [0, 1024, 2560, 3584] {
                let mut header = Raw([0; BLOCK]);
                header.0.copy_from_slice(&bytes[at..at + BLOCK]);
                bytes[at..at + BLOCK].copy_from_slice(&header.bytes());
            }
        }
        let _ = parse(&bytes);
    }
}
