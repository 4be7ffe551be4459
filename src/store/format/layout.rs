//! Directory layout and file names.

use crate::types::{Digest, ObjectId};

/// The version of the format that this build writes.
pub const FORMAT_VERSION: u32 = 1;
/// The file that says that a directory is a store, and of which version.
pub const FORMAT_FILE: &str = "format";
/// Where the format file is written before it gets its name.
pub const FORMAT_TEMP: &str = "format.new";
/// Locked by the process that owns the store; holds its process number.
pub const LOCK_FILE: &str = "lock";
/// The owner's control socket.
pub const CONTROL_SOCKET: &str = "control.sock";
/// What an owner that was started in the background says.
pub const OWNER_LOG: &str = "owner.log";
/// The metadata database (redb).
pub const META_FILE: &str = "meta";
/// Where a new database is made before it gets its name.
pub const META_TEMP: &str = "meta.new";
/// Space that is given up when the disk is full, so that the database can
/// record an eviction.
pub const RESERVE_FILE: &str = "reserve";
/// Data files and bitmaps.
pub const OBJECTS_DIR: &str = "objects";
/// First passes that are under way.
pub const STAGING_DIR: &str = "staging";
/// What was found damaged and may still interest a person.
pub const QUARANTINE_DIR: &str = "quarantine";
/// Follows a data file's name: its presence bitmap.
pub const BITS_SUFFIX: &str = ".bits";

/// Follows a blob's name in the quarantine: the root of an index that lied.
pub const ROOT_SUFFIX: &str = ".root";

/// Follows the name of a file that is being replaced.
pub const TEMP_SUFFIX: &str = ".new";

const FORMAT_WORD: &str = "peersync-store";

/// The text of the format file: `peersync-store 1\n`.
pub fn format_text(version: u32) -> String {
    format!("{FORMAT_WORD} {version}\n")
}

/// Reads the version from a format file; `None` if it is not one.
pub fn parse_format(text: &[u8]) -> Option<u32> {
    let line = std::str::from_utf8(text).ok()?.strip_suffix('\n')?;
    let number = line.strip_prefix(FORMAT_WORD)?.strip_prefix(' ')?;
    let version = number.parse().ok()?;
    // One spelling only: no sign, no leading zero. Versions count from 1.
    (version > 0 && format_text(version).as_bytes() == text).then_some(version)
}

/// `objects/<2 hex>`: the directory of an object's files.
pub fn object_dir(id: &ObjectId) -> String {
    format!("{OBJECTS_DIR}/{:02x}", id.as_bytes()[0])
}

/// `objects/<2 hex>/<64 hex>`: an object's data file.
pub fn data_path(id: &ObjectId) -> String {
    format!("{}/{id}", object_dir(id))
}

/// `objects/<2 hex>/<64 hex>.bits`: an incomplete object's presence bitmap.
pub fn bits_path(id: &ObjectId) -> String {
    format!("{}/{id}{BITS_SUFFIX}", object_dir(id))
}

/// `objects/<2 hex>/<64 hex>.bits.new`: a bitmap that is being replaced. Means
/// nothing.
pub fn bits_temp_path(id: &ObjectId) -> String {
    format!("{}{TEMP_SUFFIX}", bits_path(id))
}

/// What a file below `objects/` is, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ObjectFile {
    /// A data file.
    Data(ObjectId),
    /// A presence bitmap.
    Bits(ObjectId),
    /// A bitmap that was being written.
    Temp(ObjectId),
}

/// Reads the name of a file in `objects/<dir>`; `None` for a stranger.
pub fn parse_object_file(dir: &str, name: &str) -> Option<ObjectFile> {
    let (hex, make): (&str, fn(ObjectId) -> ObjectFile) = match name.split_once('.') {
        None => (name, ObjectFile::Data),
        Some((hex, "bits")) => (hex, ObjectFile::Bits),
        Some((hex, "bits.new")) => (hex, ObjectFile::Temp),
        Some(_) => return None,
    };
    let id: ObjectId = hex.parse().ok()?;
    (hex.get(..2) == Some(dir)).then(|| make(id))
}

/// A stream of a first pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stream {
    /// The bytes of the tar that are not file content.
    Literals,
    /// The contents of the small files in tar order.
    Bundle,
    /// Large file number `n` in tar order.
    File(u32),
}

impl Stream {
    /// The stream's file name: `literals`, `bundle`, `file-<n>`.
    pub fn file_name(self) -> String {
        match self {
            Self::Literals => "literals".into(),
            Self::Bundle => "bundle".into(),
            Self::File(n) => format!("file-{n}"),
        }
    }

    /// Reads [`Self::file_name`]'s form.
    pub fn from_file_name(name: &str) -> Option<Self> {
        let stream = match name {
            "literals" => Self::Literals,
            "bundle" => Self::Bundle,
            _ => Self::File(name.strip_prefix("file-")?.parse().ok()?),
        };
        (stream.file_name() == name).then_some(stream)
    }
}

/// `staging/<64 hex>`: the directory of the first pass over a blob.
pub fn staging_dir(blob: &Digest) -> String {
    format!("{STAGING_DIR}/{}", blob.hex())
}

/// The file of one stream.
pub fn staging_path(blob: &Digest, stream: Stream) -> String {
    format!("{}/{}", staging_dir(blob), stream.file_name())
}

/// The checkpoint file of sequence number `sequence`: the last two are kept,
/// in turn in `checkpoint-0` and `checkpoint-1`.
pub fn checkpoint_path(blob: &Digest, sequence: u64) -> String {
    format!("{}/{}", staging_dir(blob), CHECKPOINT_NAMES[(sequence % 2) as usize])
}

/// The two checkpoint files.
pub const CHECKPOINT_NAMES: [&str; 2] = ["checkpoint-0", "checkpoint-1"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_line_has_one_spelling() {
        assert_eq!(parse_format(b"peersync-store 1\n"), Some(1));
        assert_eq!(parse_format(b"peersync-store 42\n"), Some(42));
        for bad in [
            "",
            "peersync-store 1",
            "peersync-store +1\n",
            "peersync-store 01\n",
            "peersync-store 0\n",
            "peersync-store\n",
            "other 1\n",
            "peersync-store 1\n\n",
        ] {
            assert_eq!(parse_format(bad.as_bytes()), None, "{bad:?}");
        }
    }

    #[test]
    fn a_flipped_bit_in_the_format_file_shows() {
        let good = format_text(FORMAT_VERSION).into_bytes();
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let read = parse_format(&bad);
            assert!(read.is_none_or(|version| version > FORMAT_VERSION), "bit {bit}: {read:?}");
        }
    }

    #[test]
    fn names_parse_as_they_are_printed() {
        let id = ObjectId::from_bytes([0xab; 32]);
        let name = id.to_string();
        assert_eq!(parse_object_file("ab", &name), Some(ObjectFile::Data(id)));
        assert_eq!(parse_object_file("ab", &format!("{name}.bits")), Some(ObjectFile::Bits(id)));
        assert_eq!(parse_object_file("ac", &name), None);
        assert_eq!(parse_object_file("ab", "x"), None);
        for stream in [Stream::Literals, Stream::Bundle, Stream::File(7)] {
            assert_eq!(Stream::from_file_name(&stream.file_name()), Some(stream));
        }
        assert_eq!(Stream::from_file_name("file-07"), None);
    }
}
