//! What a tar file holds, and where: only the headers are read.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// The unit of a tar.
const BLOCK: u64 = 512;
/// Most entries of an archive: an image has at most 1,000 layers, of three
/// files each in the oldest form.
const ENTRIES_MAX: usize = 20_000;
/// Longest extended header or long name.
const EXTENSION_MAX: u64 = 64 << 10;
/// Most links that are followed one after the other.
const LINKS_MAX: usize = 8;

/// Where a file's bytes lie in the archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) offset: u64,
    pub(super) length: u64,
}

/// The files of a tar by their names.
#[derive(Debug, Default)]
pub(super) struct Contents {
    files: HashMap<String, Place>,
    /// Old versions of `docker save` write a layer that comes twice as a link.
    links: HashMap<String, String>,
}

impl Contents {
    /// Reads the headers of a whole archive of `size` bytes.
    ///
    /// # Errors
    /// What is wrong with it, in words, or why it can't be read.
    pub(super) fn read(file: &File, size: u64) -> Result<Self, ReadError> {
        let mut contents = Self::default();
        let (mut at, mut entries) = (0, 0);
        let mut next = Extension::default();
        while at + BLOCK <= size {
            let mut header = [0; BLOCK as usize];
            file.read_exact_at(&mut header, at)?;
            if header.iter().all(|byte| *byte == 0) {
                break;
            }
            at += BLOCK;
            entries += 1;
            if entries > ENTRIES_MAX {
                return Err(ReadError::Bad("it has too many entries"));
            }
            if !is_header(&header) {
                return Err(ReadError::Bad(no_tar(&header)));
            }
            let kind = header[156];
            let extends = matches!(kind, b'x' | b'g' | b'L' | b'K');
            let stated = number(&header[124..136]).ok_or(ReadError::Bad("an entry has no size"))?;
            // A size in an extended header is of the entry after it.
            let length = if extends { stated } else { next.size.unwrap_or(stated) };
            let place = Place { offset: at, length };
            let end = at.checked_add(length).filter(|end| *end <= size);
            at = end.ok_or(ReadError::Bad("it is cut off"))?.next_multiple_of(BLOCK);
            if extends {
                if length > EXTENSION_MAX {
                    return Err(ReadError::Bad("an extended header is too large"));
                }
                next.take(kind, &super::file::read_at(file, place.offset, length)?);
                continue;
            }
            let Extension { path, link, .. } = std::mem::take(&mut next);
            let Some(name) = path.or_else(|| name_of(&header)).and_then(|n| clean("", &n)) else {
                continue;
            };
            match kind {
                b'0' | 0 => {
                    contents.files.insert(name, place);
                }
                b'1' | b'2' => {
                    let from = if kind == b'2' { parent(&name) } else { "" };
                    let target = link.or_else(|| text(&header[157..257]));
                    if let Some(target) = target.and_then(|target| clean(from, &target)) {
                        contents.links.insert(name, target);
                    }
                }
                _ => {}
            }
        }
        Ok(contents)
    }

    /// The file of that name, through links.
    pub(super) fn get(&self, name: &str) -> Option<Place> {
        let mut name = clean("", name)?;
        for _ in 0..LINKS_MAX {
            match self.files.get(&name) {
                Some(place) => return Some(*place),
                None => name = self.links.get(&name)?.clone(),
            }
        }
        None
    }
}

/// Why an archive's contents are not known.
#[derive(Debug)]
pub(super) enum ReadError {
    Io(io::Error),
    Bad(&'static str),
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// What an extended header says about the entry after it.
#[derive(Default)]
struct Extension {
    path: Option<String>,
    link: Option<String>,
    size: Option<u64>,
}

impl Extension {
    fn take(&mut self, kind: u8, bytes: &[u8]) {
        match kind {
            b'L' => self.path = text(bytes),
            b'K' => self.link = text(bytes),
            b'x' => self.pax(bytes),
            _ => {}
        }
    }

    /// Records of the form `LENGTH KEY=VALUE\n` (POSIX pax); what is malformed ends them.
    fn pax(&mut self, mut bytes: &[u8]) {
        while let Some(space) = bytes.iter().position(|byte| *byte == b' ') {
            let length = std::str::from_utf8(&bytes[..space]).ok().and_then(|t| t.parse().ok());
            let Some(length) = length.filter(|l| (space + 2..=bytes.len()).contains(l)) else {
                return;
            };
            let (record, rest) = bytes.split_at(length);
            bytes = rest;
            let Ok(record) = std::str::from_utf8(&record[space + 1..length - 1]) else { continue };
            match record.split_once('=') {
                Some(("path", value)) => self.path = Some(value.to_owned()),
                Some(("linkpath", value)) => self.link = Some(value.to_owned()),
                Some(("size", value)) => self.size = value.parse().ok(),
                _ => {}
            }
        }
    }
}

/// Whether a block's checksum is right: the sum of its bytes, with the
/// checksum's own taken as spaces.
fn is_header(header: &[u8; BLOCK as usize]) -> bool {
    let own = 148..156;
    let sum: u64 = (0..header.len())
        .map(|n| if own.contains(&n) { u64::from(b' ') } else { u64::from(header[n]) })
        .sum();
    number(&header[own]) == Some(sum)
}

/// What a file that is no tar may be.
fn no_tar(start: &[u8]) -> &'static str {
    match start {
        [0x1f, 0x8b, ..] => "it is compressed with gzip: decompress it first (gunzip)",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "it is compressed with zstd: decompress it first (unzstd)",
        _ => "it is not a tar, or damaged",
    }
}

/// A number in octal, or in base 256 where the first bit is set.
fn number(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        let (high, low) = field.split_at(field.len().saturating_sub(8));
        let zero = high.iter().enumerate().all(|(n, b)| *b == if n == 0 { 0x80 } else { 0 });
        return zero.then(|| low.iter().fold(0, |sum, b| sum << 8 | u64::from(*b)));
    }
    let digits = text(field)?;
    let digits = digits.trim_matches(' ');
    if digits.is_empty() { Some(0) } else { u64::from_str_radix(digits, 8).ok() }
}

/// The text up to the first zero.
fn text(field: &[u8]) -> Option<String> {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    String::from_utf8(field[..end].to_vec()).ok()
}

fn name_of(header: &[u8; BLOCK as usize]) -> Option<String> {
    let name = text(&header[..100])?;
    match text(&header[345..500]) {
        Some(prefix) if &header[257..263] == b"ustar\0" && !prefix.is_empty() => {
            Some(format!("{prefix}/{name}"))
        }
        _ => Some(name),
    }
}

fn parent(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(parent, _)| parent)
}

/// A name below the archive's root in one spelling; `None` where it leads out.
fn clean(from: &str, name: &str) -> Option<String> {
    let mut parts: Vec<&str> = if name.starts_with('/') { Vec::new() } else { split(from) };
    for part in split(name) {
        match part {
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

fn split(name: &str) -> Vec<&str> {
    name.split('/').filter(|part| !matches!(*part, "" | ".")).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn read(bytes: &[u8]) -> Result<Contents, ReadError> {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(bytes).expect("written");
        Contents::read(&file, bytes.len() as u64)
    }

    fn archive(add: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        add(&mut builder);
        builder.into_inner().expect("an archive")
    }

    fn header(kind: tar::EntryType, size: u64) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(size);
        header
    }

    #[test]
    fn files_are_found_by_name_and_through_links() {
        let long = format!("{}/layer.tar", "d".repeat(150));
        let bytes = archive(|tar| {
            let mut file = header(tar::EntryType::Regular, 3);
            tar.append_data(&mut file.clone(), "./a/layer.tar", &b"abc"[..]).expect("added");
            tar.append_data(&mut file, &long, &b"def"[..]).expect("added");
            let mut link = header(tar::EntryType::Symlink, 0);
            tar.append_link(&mut link.clone(), "b/layer.tar", "../a/layer.tar").expect("added");
            tar.append_link(&mut link.clone(), "c", "c").expect("added");
            tar.append_link(&mut link, "out", "../../etc/passwd").expect("added");
        });
        let contents = read(&bytes).expect("read");
        for (name, content) in [("a/layer.tar", "abc"), ("b/layer.tar", "abc"), (&long, "def")] {
            let Place { offset, length } = contents.get(name).expect(name);
            assert_eq!(&bytes[offset as usize..][..length as usize], content.as_bytes());
        }
        for name in ["c", "out", "d", "../a/layer.tar"] {
            assert_eq!(contents.get(name), None, "{name}");
        }
    }

    #[test]
    fn names_and_sizes_in_extended_headers_count() {
        let records = b"25 path=deep/manifest.json\n9 size=4\n";
        let records = [&b"27"[..], &records[2..]].concat();
        let bytes = archive(|tar| {
            let mut extension = header(tar::EntryType::XHeader, records.len() as u64);
            extension.set_path("x").expect("a path");
            extension.set_cksum();
            tar.append(&extension, &records[..]).expect("added");
            let mut file = header(tar::EntryType::Regular, 4);
            tar.append_data(&mut file, "short", &b"1234"[..]).expect("added");
        });
        assert_eq!(
            read(&bytes).expect("read").get("deep/manifest.json").map(|p| p.length),
            Some(4)
        );
    }

    #[test]
    fn what_is_no_archive_is_refused() {
        let mut file = header(tar::EntryType::Regular, 2000);
        let whole = archive(|tar| {
            tar.append_data(&mut file, "x", &[7; 2000][..]).expect("added");
        });
        assert!(matches!(read(&whole[..1024]), Err(ReadError::Bad("it is cut off"))));
        let mut damaged = whole.clone();
        damaged[3] ^= 1;
        assert!(matches!(read(&damaged), Err(ReadError::Bad(_))));
        let gzip = [&[0x1f, 0x8b][..], &[1; 600]].concat();
        assert!(matches!(read(&gzip), Err(ReadError::Bad(why)) if why.contains("gunzip")));
        let mut huge = whole;
        huge[124..136].copy_from_slice(&[0xff; 12]);
        assert!(read(&huge).is_err());
    }
}
