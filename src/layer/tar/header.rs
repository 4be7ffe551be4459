//! One 512-byte header block.

use super::number::{octal, parse_number};

/// Bytes of a header, and the unit to which everything is padded.
pub(super) const BLOCK: usize = 512;

/// The dialect that a header's magic tells.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Format {
    V7,
    Ustar,
    Star,
    Gnu,
}

/// A header whose checksum is right.
#[derive(Clone, Copy)]
pub(super) struct Header<'a> {
    block: &'a [u8; BLOCK],
    pub(super) format: Format,
}

impl<'a> Header<'a> {
    /// `None` if the checksum is wrong, counted over unsigned or (as some old
    /// writers did) signed bytes.
    pub(super) fn check(block: &'a [u8; BLOCK]) -> Option<Self> {
        let expected = octal(&block[148..156])?;
        let (mut unsigned, mut signed) = (0u64, 0i64);
        for (at, byte) in block.iter().enumerate() {
            let byte = match at {
                148..156 => b' ',
                _ => *byte,
            };
            unsigned += u64::from(byte);
            signed += i64::from(byte.cast_signed());
        }
        if unsigned != expected && u64::try_from(signed) != Ok(expected) {
            return None;
        }
        let format = match &block[257..265] {
            b"ustar\x0000" if block[508..] == *b"tar\0" => Format::Star,
            b"ustar\x0000" => Format::Ustar,
            b"ustar  \0" => Format::Gnu,
            _ => Format::V7,
        };
        Some(Self { block, format })
    }

    pub(super) fn typeflag(&self) -> u8 {
        self.block[156]
    }

    /// Name with the prefix that ustar and star keep apart.
    pub(super) fn name(&self) -> Vec<u8> {
        let name = text(&self.block[..100]);
        let prefix = match self.format {
            Format::Ustar => text(&self.block[345..500]),
            Format::Star => text(&self.block[345..476]),
            // Go before 1.8 wrote prefixes into GNU headers, where times stand.
            Format::Gnu if !self.has_gnu_times() => {
                let prefix = text(&self.block[345..500]);
                match prefix.is_ascii() {
                    true => prefix,
                    false => b"",
                }
            }
            Format::Gnu | Format::V7 => b"",
        };
        match prefix {
            b"" => name.to_vec(),
            _ => [prefix, b"/", name].concat(),
        }
    }

    pub(super) fn link_name(&self) -> &'a [u8] {
        text(&self.block[157..257])
    }

    pub(super) fn mode(&self) -> Option<i64> {
        parse_number(&self.block[100..108])
    }

    pub(super) fn uid(&self) -> Option<i64> {
        parse_number(&self.block[108..116])
    }

    pub(super) fn gid(&self) -> Option<i64> {
        parse_number(&self.block[116..124])
    }

    pub(super) fn size(&self) -> Option<i64> {
        parse_number(&self.block[124..136])
    }

    pub(super) fn mtime(&self) -> Option<i64> {
        parse_number(&self.block[136..148])
    }

    /// Major and minor number.
    pub(super) fn device(&self) -> Option<(i64, i64)> {
        match self.format {
            Format::V7 => Some((0, 0)),
            _ => Some((parse_number(&self.block[329..337])?, parse_number(&self.block[337..345])?)),
        }
    }

    /// The four map entries of an old GNU sparse header, whether more follow in
    /// extension blocks, and the file's logical size.
    pub(super) fn gnu_sparse(&self) -> (&'a [u8], bool, Option<i64>) {
        (&self.block[386..482], self.block[482] != 0, parse_number(&self.block[483..495]))
    }

    fn has_gnu_times(&self) -> bool {
        [345, 357].iter().all(|at| {
            let time = &self.block[*at..*at + 12];
            time[0] == 0 || parse_number(time).is_some()
        })
    }
}

/// A field up to its first NUL.
pub(super) fn text(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|b| *b == 0);
    &field[..end.unwrap_or(field.len())]
}
