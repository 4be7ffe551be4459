//! Sealed records: a payload and the checksum that binds it to its place.

/// Length in bytes of the checksum at the end of each record.
pub const SEAL_LEN: usize = 8;

/// Why a record can't be believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The checksum does not match table, key and payload.
    #[error("the record's checksum does not match")]
    Checksum,
    /// The checksum is right but the fields are not those of this format.
    #[error("the record is malformed")]
    Malformed,
    /// A value is larger than the format allows.
    #[error("the record is larger than the format allows")]
    TooLarge,
}

/// Appends the checksum to `payload`: the first [`SEAL_LEN`] bytes of BLAKE3
/// over table name, key and payload, the first two preceded by their length.
///
/// Table and key are covered, so a record found in the wrong place (a damaged
/// key, a misdirected write) does not pass.
pub fn seal(table: &str, key: &[u8], mut payload: Vec<u8>) -> Vec<u8> {
    let sum = checksum(table, key, &payload);
    payload.extend(sum);
    payload
}

/// Checks a sealed record and gives its payload.
///
/// # Errors
/// [`RecordError::Checksum`] where it does not match.
pub fn unseal<'a>(table: &str, key: &[u8], value: &'a [u8]) -> Result<&'a [u8], RecordError> {
    let at = value.len().checked_sub(SEAL_LEN).ok_or(RecordError::Checksum)?;
    let (payload, sum) = value.split_at(at);
    if checksum(table, key, payload) == sum { Ok(payload) } else { Err(RecordError::Checksum) }
}

fn checksum(table: &str, key: &[u8], payload: &[u8]) -> [u8; SEAL_LEN] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(table.len() as u32).to_le_bytes());
    hasher.update(table.as_bytes());
    hasher.update(&(key.len() as u32).to_le_bytes());
    hasher.update(key);
    hasher.update(payload);
    let mut out = [0; SEAL_LEN];
    out.copy_from_slice(&hasher.finalize().as_bytes()[..SEAL_LEN]);
    out
}

/// Builds payloads field by field.
#[derive(Default)]
pub(super) struct Writer(Vec<u8>);

impl Writer {
    pub(super) fn u8(mut self, v: u8) -> Self {
        self.0.push(v);
        self
    }

    pub(super) fn u32(mut self, v: u32) -> Self {
        self.0.extend(v.to_le_bytes());
        self
    }

    pub(super) fn u64(mut self, v: u64) -> Self {
        self.0.extend(v.to_le_bytes());
        self
    }

    pub(super) fn i64(mut self, v: i64) -> Self {
        self.0.extend(v.to_le_bytes());
        self
    }

    /// Bytes of a length that the reader knows.
    pub(super) fn raw(mut self, v: &[u8]) -> Self {
        self.0.extend(v);
        self
    }

    /// Bytes preceded by their length (u32).
    pub(super) fn bytes(self, v: &[u8]) -> Self {
        self.u32(v.len() as u32).raw(v)
    }

    pub(super) fn done(self) -> Vec<u8> {
        self.0
    }
}

/// Takes payloads apart; every read is bounded.
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn new(payload: &'a [u8]) -> Self {
        Self(payload)
    }

    pub(super) fn raw(&mut self, len: usize) -> Result<&'a [u8], RecordError> {
        let (head, tail) = self.0.split_at_checked(len).ok_or(RecordError::Malformed)?;
        self.0 = tail;
        Ok(head)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], RecordError> {
        let mut out = [0; N];
        out.copy_from_slice(self.raw(N)?);
        Ok(out)
    }

    pub(super) fn u8(&mut self) -> Result<u8, RecordError> {
        self.array::<1>().map(|b| b[0])
    }

    pub(super) fn u32(&mut self) -> Result<u32, RecordError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, RecordError> {
        self.array().map(u64::from_le_bytes)
    }

    pub(super) fn i64(&mut self) -> Result<i64, RecordError> {
        self.array().map(i64::from_le_bytes)
    }

    /// Bytes preceded by their length, at most `max`.
    pub(super) fn bytes(&mut self, max: usize) -> Result<&'a [u8], RecordError> {
        let len = self.u32()? as usize;
        if len > max {
            return Err(RecordError::TooLarge);
        }
        self.raw(len)
    }

    /// The rest must be empty.
    pub(super) fn end(self) -> Result<(), RecordError> {
        if self.0.is_empty() { Ok(()) } else { Err(RecordError::Malformed) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seal_binds_table_key_and_payload() {
        let sealed = seal("t", b"key", b"payload".to_vec());
        assert_eq!(unseal("t", b"key", &sealed), Ok(&b"payload"[..]));
        assert!(unseal("u", b"key", &sealed).is_err());
        assert!(unseal("t", b"kez", &sealed).is_err());
        assert!(unseal("t", b"key", &sealed[1..]).is_err());
        assert!(unseal("t", b"key", b"short").is_err());
        for bit in 0..sealed.len() * 8 {
            let mut bad = sealed.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(unseal("t", b"key", &bad).is_err());
        }
    }
}
