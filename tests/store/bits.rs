//! Every single bit of a small store with something of everything in it, flipped, one
//! after the other.
//!
//! A database has millions of bits, so most of those are looked at by redb alone: it
//! refuses to open the file, or says that a checksum fails (both of which the checker
//! asks for and reports), or every record of every table reads as before: then nobody
//! can tell that there was a bit. The header, whatever is none of these, and one in a
//! hundred of the others go the whole way through checker, engine and repair.
//!
//! A few hundred by default; `PEERSYNC_FLIPS=all` for all.

use std::cell::Cell;
use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, Once};

use peersync::store::format::overlay::{Overlay, ReadAt};
use peersync::store::format::tables::Table;
use redb::{Database, ReadableDatabase, ReadableTable};

use crate::flip::{Good, wanted};
use crate::populated::Populated;

/// Of the database: two copies of what matters most, and its magic number.
const HEADER: u64 = 320;
/// One in so many bits is flipped by default: prime, so that it is never the same one
/// of a record.
const FEW: (usize, usize) = (1_009, 60_013);
/// Of those that redb decides about, one in so many is looked at in full.
const DOUBTED: u64 = 101;

/// A database with one bit flipped.
#[derive(Debug, Clone)]
struct Flipped {
    bytes: Arc<[u8]>,
    bit: u64,
}

impl ReadAt for Flipped {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let read = buf.len().min(self.bytes.len() - offset as usize);
        buf[..read].copy_from_slice(&self.bytes[offset as usize..][..read]);
        if let Some(at) = (self.bit / 8).checked_sub(offset).filter(|at| *at < read as u64) {
            buf[at as usize] ^= 1 << (self.bit % 8);
        }
        Ok(read)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes.len() as u64)
    }
}

type Records = Vec<(Vec<u8>, Vec<u8>)>;

/// All records, if the database is as it should be.
fn records(file: Flipped) -> Result<Records, redb::Error> {
    let overlay = Overlay::new(file, 64 << 20)?;
    let mut db = Database::builder().create_with_backend(overlay)?;
    if !db.check_integrity()? {
        return Err(redb::Error::Corrupted("a checksum".into()));
    }
    let txn = db.begin_read()?;
    let mut all = Vec::new();
    for table in Table::ALL {
        for record in txn.open_table(table.definition())?.iter()? {
            let (key, value) = record?;
            all.push((key.value().to_vec(), value.value().to_vec()));
        }
    }
    Ok(all)
}

thread_local! {
    static EXPECTED: Cell<bool> = const { Cell::new(false) };
}

/// As [`records`]; what redb panics about is damage, as the checker has it.
fn quietly(file: Flipped) -> Option<Records> {
    EXPECTED.set(true);
    let read = catch_unwind(AssertUnwindSafe(|| records(file)));
    EXPECTED.set(false);
    read.ok().and_then(Result::ok)
}

/// Panics over damage are not printed: there are many.
fn hush() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !EXPECTED.get() && !peersync_fsck::panic_is_expected() {
                usual(info);
            }
        }));
    });
}

/// What became of the bits of a file.
#[derive(Debug, Default)]
struct Tally {
    bits: u64,
    found: u64,
    /// Found, and not all could be put right.
    cost: u64,
    /// Looked at in full.
    full: u64,
}

impl Tally {
    fn full(&mut self, good: &Good, path: &Path, bit: u64) {
        let what = format!("bit {bit} of {}", good.name(path).display());
        let outcome = good.flip(path, bit, &what);
        self.full += 1;
        self.found += u64::from(outcome.found);
        self.cost += u64::from(outcome.lost > 0 || outcome.forgot);
    }
}

fn database(good: &Good, path: &Path, step: usize) -> Tally {
    let bytes: Arc<[u8]> = fs::read(path).unwrap().into();
    let len = bytes.len() as u64 * 8;
    // A bit that is not there.
    let right = quietly(Flipped { bytes: Arc::clone(&bytes), bit: len }).expect("it is right");
    let mut tally = Tally::default();
    for bit in (0..len).step_by(step) {
        tally.bits += 1;
        let read = (bit >= HEADER * 8).then(|| quietly(Flipped { bytes: Arc::clone(&bytes), bit }));
        let doubted = tally.bits.is_multiple_of(DOUBTED);
        match read {
            Some(None) if !doubted => tally.found += 1,
            Some(Some(records)) if records == right && !doubted => {}
            _ => tally.full(good, path, bit),
        }
    }
    tally
}

#[test]
fn every_bit_is_found_or_does_not_matter() {
    hush();
    let good = Good::new(Populated::small());
    let (step, in_database) = if wanted().is_none() { (1, 1) } else { FEW };
    for (path, len) in &good.files {
        let tally = if path.ends_with("meta") {
            database(&good, path, in_database)
        } else {
            let mut tally = Tally::default();
            for bit in (0..len * 8).step_by(step) {
                tally.bits += 1;
                tally.full(&good, path, bit);
            }
            tally
        };
        eprintln!("{}, {len} bytes: {tally:?}", good.name(path).display());
    }
}
