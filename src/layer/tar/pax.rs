//! PAX extended headers.

use std::collections::BTreeMap;

use super::acl;
use super::number::{decimal, pax_time, signed_decimal};

/// What a local extended header says about the entry that follows.
#[derive(Default, Debug)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) linkpath: Option<Vec<u8>>,
    pub(super) uid: Option<i64>,
    pub(super) gid: Option<i64>,
    pub(super) size: Option<u64>,
    pub(super) mtime: Option<(i64, u32)>,
    pub(super) sparse: PaxSparse,
    /// From the most specific spelling of each name; see [`Pax::xattrs`].
    xattrs: BTreeMap<Vec<u8>, (Source, Vec<u8>)>,
}

/// The `GNU.sparse.*` records.
#[derive(Default, Debug)]
pub(super) struct PaxSparse {
    pub(super) major: Option<u64>,
    pub(super) minor: Option<u64>,
    pub(super) name: Option<Vec<u8>>,
    /// Logical size, by whichever name.
    pub(super) size: Option<u64>,
    /// Offsets and lengths in turn: the map of formats 0.0 and 0.1.
    pub(super) map: Option<Vec<u64>>,
}

/// Who wrote an attribute: where several did, the later of these counts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Source {
    AclText,
    Libarchive,
    Schily,
}

impl Pax {
    /// Reads all records of a header. `Err` names the record that is malformed.
    pub(super) fn parse(mut body: &[u8]) -> Result<Self, &'static str> {
        let mut pax = Self::default();
        while !body.is_empty() {
            let (key, value, rest) = record(body).ok_or("record")?;
            pax.set(key, value)?;
            body = rest;
        }
        Ok(pax)
    }

    /// All extended attributes, sorted by name. A `SCHILY.xattr` counts before
    /// a `LIBARCHIVE.xattr`, and both before an ACL in words.
    pub(super) fn xattrs(&mut self) -> Vec<(Vec<u8>, Vec<u8>)> {
        std::mem::take(&mut self.xattrs)
            .into_iter()
            .map(|(name, (_, value))| (name, value))
            .collect()
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        // An empty value takes back what was said before; an attribute can be empty.
        let given = !value.is_empty();
        match key {
            b"path" => self.path = text(value, "path")?,
            b"linkpath" => self.linkpath = text(value, "linkpath")?,
            b"uid" => self.uid = maybe(given, || signed_decimal(value), "uid")?,
            b"gid" => self.gid = maybe(given, || signed_decimal(value), "gid")?,
            b"size" => self.size = maybe(given, || length(value), "size")?,
            b"mtime" => self.mtime = maybe(given, || pax_time(value), "mtime")?,
            b"SCHILY.acl.access" => self.acl(b"system.posix_acl_access", value, true),
            b"SCHILY.acl.default" => self.acl(b"system.posix_acl_default", value, false),
            b"RHT.security.selinux" if given => {
                self.xattr(Source::Libarchive, b"security.selinux", value.to_vec());
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattr(Source::Schily, name, value.to_vec());
                } else if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
                    let decoded = percent_decode(name).zip(base64_decode(value));
                    let (name, value) = decoded.ok_or("LIBARCHIVE.xattr")?;
                    self.xattr(Source::Libarchive, &name, value);
                } else if let Some(name) = key.strip_prefix(b"GNU.sparse.") {
                    self.sparse.set(name, value)?;
                }
            }
        }
        Ok(())
    }

    fn acl(&mut self, name: &[u8], text: &[u8], is_access: bool) {
        if let Some(value) = acl::encode(text, is_access) {
            self.xattr(Source::AclText, name, value);
        }
    }

    fn xattr(&mut self, source: Source, name: &[u8], value: Vec<u8>) {
        let known = self.xattrs.get(name).map(|(source, _)| *source);
        if known.is_none_or(|known| known <= source) {
            self.xattrs.insert(name.to_vec(), (source, value));
        }
    }
}

impl PaxSparse {
    fn set(&mut self, name: &[u8], value: &[u8]) -> Result<(), &'static str> {
        const BAD: &str = "GNU.sparse";
        match name {
            b"major" => self.major = Some(decimal(value).ok_or(BAD)?),
            b"minor" => self.minor = Some(decimal(value).ok_or(BAD)?),
            b"name" => self.name = text(value, BAD)?,
            b"size" | b"realsize" => self.size = Some(length(value).ok_or(BAD)?),
            b"map" => {
                let numbers = value.split(|b| *b == b',').map(|n| length(n).ok_or(BAD));
                self.map = Some(numbers.collect::<Result<_, _>>()?);
            }
            // Format 0.0: one record for each number, in turn.
            b"offset" | b"numbytes" => {
                let map = self.map.get_or_insert_default();
                if map.len() % 2 != usize::from(name == b"numbytes") {
                    return Err(BAD);
                }
                map.push(length(value).ok_or(BAD)?);
            }
            _ => {}
        }
        Ok(())
    }
}

/// The first `"<length> <key>=<value>\n"`: key, value, and what follows.
fn record(body: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = body.iter().take(20).position(|b| *b == b' ')?;
    let len = usize::try_from(decimal(&body[..space])?).ok()?;
    let (record, rest) = body.split_at_checked(len)?;
    let (last, record) = record.get(space + 1..)?.split_last()?;
    let equals = record.iter().position(|b| *b == b'=')?;
    let (key, value) = (&record[..equals], &record[equals + 1..]);
    (*last == b'\n' && !key.is_empty() && !key.contains(&0)).then_some((key, value, rest))
}

fn text(value: &[u8], name: &'static str) -> Result<Option<Vec<u8>>, &'static str> {
    match value.contains(&0) {
        true => Err(name),
        false => Ok((!value.is_empty()).then(|| value.to_vec())),
    }
}

fn maybe<T>(
    given: bool,
    parse: impl FnOnce() -> Option<T>,
    name: &'static str,
) -> Result<Option<T>, &'static str> {
    match given {
        true => parse().map(Some).ok_or(name),
        false => Ok(None),
    }
}

/// A length or offset: what fits `off_t`.
fn length(value: &[u8]) -> Option<u64> {
    decimal(value).filter(|n| *n <= i64::MAX as u64)
}

fn percent_decode(name: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'%' {
            out.push(*first);
            continue;
        }
        let (digits, after) = rest.split_at_checked(2)?;
        let value = std::str::from_utf8(digits).ok()?;
        out.push(u8::from_str_radix(value, 16).ok()?);
        rest = after;
    }
    Some(out)
}

/// Standard alphabet, padding optional. Written out here because the formats
/// are built without the node's base64 crate.
fn base64_decode(text: &[u8]) -> Option<Vec<u8>> {
    let text = match text.iter().rposition(|b| *b != b'=') {
        Some(last) if text.len() - last <= 3 => &text[..=last],
        Some(_) => return None,
        None => b"",
    };
    let mut out = Vec::with_capacity(text.len() / 4 * 3 + 2);
    for group in text.chunks(4) {
        let mut bits = 0u32;
        for digit in group {
            let value = match digit {
                b'A'..=b'Z' => digit - b'A',
                b'a'..=b'z' => digit - b'a' + 26,
                b'0'..=b'9' => digit - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => return None,
            };
            bits = bits << 6 | u32::from(value);
        }
        bits <<= 6 * (4 - group.len());
        let bytes = bits.to_be_bytes();
        match group.len() {
            4 => out.extend(&bytes[1..4]),
            3 => out.extend(&bytes[1..3]),
            2 => out.push(bytes[1]),
            _ => return None,
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rec(key: &str, value: &[u8]) -> Vec<u8> {
        let body = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
        let mut len = body.len();
        while len != body.len() + len.to_string().len() {
            len = body.len() + len.to_string().len();
        }
        [len.to_string().as_bytes(), &body].concat()
    }

    #[test]
    fn base64_with_and_without_padding() {
        for (text, value) in [
            (&b""[..], &b""[..]),
            (b"Zg==", b"f"),
            (b"Zg", b"f"),
            (b"Zm8=", b"fo"),
            (b"Zm9v", b"foo"),
            (b"Zm9vYg", b"foob"),
        ] {
            assert_eq!(base64_decode(text).as_deref(), Some(value));
        }
        for bad in [&b"Z"[..], b"Zg===", b"Z-==", b"Zm9vY"] {
            assert_eq!(base64_decode(bad), None);
        }
    }

    #[test]
    fn the_best_spelling_of_an_attribute_counts() {
        let body = [
            rec("SCHILY.xattr.user.a", b"1=2\n"),
            rec("LIBARCHIVE.xattr.user.a", b"Zm9v"),
            rec("LIBARCHIVE.xattr.user.%62%3d", b"Zm9v"),
            rec("SCHILY.xattr.user.e", b""),
            rec("RHT.security.selinux", b"ctx"),
        ]
        .concat();
        let xattrs = Pax::parse(&body).expect("good").xattrs();
        let expected = [
            ("security.selinux", &b"ctx"[..]),
            ("user.a", b"1=2\n"),
            ("user.b=", b"foo"),
            ("user.e", b""),
        ];
        let expected: Vec<_> = expected.map(|(n, v)| (n.as_bytes().to_vec(), v.to_vec())).into();
        assert_eq!(xattrs, expected);
    }

    #[test]
    fn an_empty_value_takes_back() {
        let body = [rec("path", b"x"), rec("path", b""), rec("uid", b"")].concat();
        let pax = Pax::parse(&body).expect("good");
        assert_eq!((pax.path, pax.uid), (None, None));
    }

    #[test]
    fn malformed_records_are_refused() {
        let cut = rec("path", b"abc");
        for bad in [
            &b"x"[..],
            b"5 a=\n!",
            b"99999999999999999999 a=b\n",
            b"8 path=a\n",
            b"0 a=b\n",
            b"6 =ab\n",
            b"6 a\0=\n",
            &cut[..cut.len() - 1],
            &rec("path", b"a\0b"),
            &rec("size", b"-1"),
            &rec("mtime", b"x"),
            &rec("GNU.sparse.numbytes", b"1"),
        ] {
            assert!(Pax::parse(bad).is_err(), "{}", bad.escape_ascii());
        }
    }
}
