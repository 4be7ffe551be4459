//! Tar streams written by hand, byte by byte where it matters: tests need
//! archives that no well-behaved library writes.

/// A tar stream under construction.
#[derive(Default)]
pub(crate) struct Tar {
    bytes: Vec<u8>,
    /// PAX records for the next member.
    records: Vec<u8>,
}

/// The fields of one header that tests set.
pub(crate) struct Header<'a> {
    pub(crate) name: &'a [u8],
    pub(crate) kind: u8,
    pub(crate) mode: u32,
    pub(crate) owner: (u64, u64),
    pub(crate) modified: i64,
    pub(crate) link: &'a [u8],
    pub(crate) device: (u32, u32),
    /// The length field; the data that follows is up to the caller.
    pub(crate) size: u64,
}

impl Default for Header<'_> {
    fn default() -> Self {
        Self {
            name: b"",
            kind: b'0',
            mode: 0o644,
            owner: (0, 0),
            modified: 1_600_000_000,
            link: b"",
            device: (0, 0),
            size: 0,
        }
    }
}

impl Tar {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn file(&mut self, name: &[u8], content: &[u8]) -> &mut Self {
        self.member(&Header { name, ..Header::default() }, content)
    }

    pub(crate) fn directory(&mut self, name: &[u8]) -> &mut Self {
        self.member(&Header { name, kind: b'5', mode: 0o755, ..Header::default() }, b"")
    }

    pub(crate) fn symlink(&mut self, name: &[u8], link: &[u8]) -> &mut Self {
        self.member(&Header { name, kind: b'2', mode: 0o777, link, ..Header::default() }, b"")
    }

    pub(crate) fn hard_link(&mut self, name: &[u8], link: &[u8]) -> &mut Self {
        self.member(&Header { name, kind: b'1', link, ..Header::default() }, b"")
    }

    pub(crate) fn device(&mut self, name: &[u8], kind: u8, device: (u32, u32)) -> &mut Self {
        self.member(&Header { name, kind, mode: 0o600, device, ..Header::default() }, b"")
    }

    /// A member with its data; the length field says how long it is.
    pub(crate) fn member(&mut self, header: &Header<'_>, content: &[u8]) -> &mut Self {
        if !self.records.is_empty() {
            let records = std::mem::take(&mut self.records);
            let pax = Header { name: b"PaxHeaders/x", kind: b'x', ..Header::default() };
            self.raw(&pax, &records);
        }
        self.raw(header, content)
    }

    /// A PAX record of the next member: `length key=value\n`.
    pub(crate) fn pax(&mut self, key: &[u8], value: &[u8]) -> &mut Self {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length != rest + length.to_string().len() {
            length += 1;
        }
        self.records.extend_from_slice(length.to_string().as_bytes());
        self.records.push(b' ');
        self.records.extend_from_slice(key);
        self.records.push(b'=');
        self.records.extend_from_slice(value);
        self.records.push(b'\n');
        self
    }

    /// GNU's own long name (`L`) or long link (`K`) for the next member.
    pub(crate) fn gnu_long(&mut self, kind: u8, value: &[u8]) -> &mut Self {
        let header = Header { name: b"././@LongLink", kind, ..Header::default() };
        self.raw(&header, &[value, b"\0"].concat())
    }

    /// GNU's old sparse file: the map of (offset, length) stands in the header
    /// (four at most) and in one extension block (21 more).
    pub(crate) fn gnu_sparse(&mut self, name: &[u8], real: u64, map: &[(u64, &[u8])]) -> &mut Self {
        let data: Vec<u8> = map.iter().flat_map(|(_, bytes)| bytes.to_vec()).collect();
        let header = Header { name, kind: b'S', size: data.len() as u64, ..Header::default() };
        let mut block = header.block();
        block[257..265].copy_from_slice(b"ustar  \0");
        block[345..500].fill(0);
        let pair = |place: &mut [u8], (offset, bytes): &(u64, &[u8])| {
            number(&mut place[..12], *offset);
            number(&mut place[12..24], bytes.len() as u64);
        };
        for (slot, stretch) in block[386..482].chunks_mut(24).zip(map) {
            pair(slot, stretch);
        }
        block[482] = u8::from(map.len() > 4);
        number(&mut block[483..495], real);
        checksum(&mut block);
        self.bytes.extend_from_slice(&block);
        if map.len() > 4 {
            let mut extension = [0; 512];
            for (slot, stretch) in extension[..504].chunks_mut(24).zip(&map[4..]) {
                pair(slot, stretch);
            }
            self.bytes.extend_from_slice(&extension);
        }
        self.data(&data)
    }

    /// A PAX 1.0 sparse file: the map stands before the data.
    pub(crate) fn pax_sparse(&mut self, name: &[u8], real: u64, map: &[(u64, &[u8])]) -> &mut Self {
        let mut data = format!("{}\n", map.len()).into_bytes();
        for (offset, bytes) in map {
            data.extend_from_slice(format!("{offset}\n{}\n", bytes.len()).as_bytes());
        }
        data.resize(data.len().next_multiple_of(512), 0);
        for (_, bytes) in map {
            data.extend_from_slice(bytes);
        }
        self.pax(b"GNU.sparse.major", b"1").pax(b"GNU.sparse.minor", b"0");
        self.pax(b"GNU.sparse.name", name).pax(b"GNU.sparse.realsize", real.to_string().as_bytes());
        self.member(&Header { name: b"GNUSparseFile.0/x", ..Header::default() }, &data)
    }

    /// A header and data as they are, whatever the header says.
    pub(crate) fn raw(&mut self, header: &Header<'_>, content: &[u8]) -> &mut Self {
        let size = if header.size > 0 { header.size } else { content.len() as u64 };
        let block = Header { size, ..*header }.block();
        self.bytes.extend_from_slice(&block);
        self.data(content)
    }

    fn data(&mut self, content: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(content);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self
    }

    /// The stream with its end.
    pub(crate) fn finish(&mut self) -> Vec<u8> {
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.resize(bytes.len() + 1024, 0);
        bytes
    }

    /// The stream without its two blocks of zeros.
    pub(crate) fn unfinished(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.bytes)
    }
}

impl Header<'_> {
    fn block(&self) -> [u8; 512] {
        let mut block = [0; 512];
        assert!(self.name.len() <= 100 && self.link.len() <= 100, "use pax or gnu_long");
        block[..self.name.len()].copy_from_slice(self.name);
        number(&mut block[100..108], u64::from(self.mode));
        number(&mut block[108..116], self.owner.0);
        number(&mut block[116..124], self.owner.1);
        number(&mut block[124..136], self.size);
        match u64::try_from(self.modified) {
            Ok(time) => number(&mut block[136..148], time),
            Err(_) => {
                block[136..140].fill(0xff);
                block[140..148].copy_from_slice(&self.modified.to_be_bytes());
            }
        }
        block[156] = self.kind;
        block[157..157 + self.link.len()].copy_from_slice(self.link);
        block[257..265].copy_from_slice(b"ustar\x0000");
        number(&mut block[329..337], u64::from(self.device.0));
        number(&mut block[337..345], u64::from(self.device.1));
        checksum(&mut block);
        block
    }
}

/// Octal with a final NUL where that fits, else base 256 as GNU writes it.
fn number(field: &mut [u8], value: u64) {
    let digits = format!("{value:0width$o}\0", width = field.len() - 1);
    if digits.len() <= field.len() {
        field.copy_from_slice(digits.as_bytes());
    } else {
        let from = field.len() - 8;
        field[..from].fill(0);
        field[from..].copy_from_slice(&value.to_be_bytes());
        field[0] |= 0x80;
    }
}

fn checksum(block: &mut [u8; 512]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
}
