//! Remembered nodes, in a file of the store.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use tracing::warn;

use crate::swarm::history::{FILE_MAX, History, Remembered};
use crate::types::PeerId;

/// The file's name; `peersync-fsck` knows it.
const FILE: &str = "peers.json";

/// What a node remembers of others, and where that is kept.
pub(in crate::daemon) struct Memory {
    path: PathBuf,
    /// Whether it is kept at all.
    writable: bool,
    history: Mutex<Kept>,
}

struct Kept {
    history: History,
    /// There is something that the file does not say.
    changed: bool,
}

impl Memory {
    /// Reads the file of a store. One that can't be read is as good as none: what it
    /// is about is found again.
    pub(in crate::daemon) fn open(store: &Path, writable: bool) -> Self {
        let path = store.join(FILE);
        let history = read(&path).unwrap_or_else(|error| {
            warn!("no nodes are remembered: {}: {error}", path.display());
            History::default()
        });
        Self { path, writable, history: Mutex::new(Kept { history, changed: false }) }
    }

    /// The first number for this life's claims; written down before it is given.
    pub(super) fn begin_life(&self) -> u64 {
        let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let first = {
            let mut kept = self.kept();
            kept.changed = true;
            kept.history.begin_life(clock)
        };
        self.save();
        first
    }

    /// The nodes of a network, the best first.
    pub(super) fn of(&self, network: &str) -> Vec<Remembered> {
        self.kept().history.of(network)
    }

    /// All that is remembered.
    pub(in crate::daemon) fn history(&self) -> History {
        self.kept().history.clone()
    }

    /// A node is a good neighbour. Whether that was not known.
    pub(super) fn good(&self, network: &str, node: Remembered) -> bool {
        let mut kept = self.kept();
        kept.changed = true;
        kept.history.good(network, node)
    }

    /// A node that is remembered did not answer.
    pub(super) fn failed(&self, network: &str, peer: &PeerId) {
        let mut kept = self.kept();
        kept.changed |= kept.history.failed(network, peer);
    }

    /// A node may not take part any more.
    pub(super) fn forget(&self, peer: &PeerId) {
        let mut kept = self.kept();
        kept.changed = true;
        kept.history.forget(peer);
    }

    /// Forgets a network or all: gives how many networks and nodes it were.
    ///
    /// # Errors
    /// What the system says of the file.
    pub(in crate::daemon) fn reset(&self, network: Option<&str>) -> io::Result<(usize, usize)> {
        let gone = {
            let mut kept = self.kept();
            kept.changed = true;
            kept.history.reset(network)
        };
        self.write()?;
        Ok(gone)
    }

    /// Writes what has changed, if anything has.
    pub(super) fn save(&self) {
        if let Err(error) = self.write() {
            warn!("nodes are not remembered: {}: {error}", self.path.display());
        }
    }

    fn write(&self) -> io::Result<()> {
        // Held while it is written: of two that write the later one has the last word.
        let mut kept = self.kept();
        if !kept.changed || !self.writable {
            return Ok(());
        }
        // Tried once: what keeps the disk from taking it now does so for a while.
        kept.changed = false;
        let new = self.path.with_extension("json.new");
        std::fs::write(&new, kept.history.to_text())?;
        std::fs::rename(&new, &self.path)
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read(path: &Path) -> Result<History, Box<dyn std::error::Error>> {
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(History::default()),
        Err(error) => return Err(error.into()),
    };
    let mut text = String::new();
    file.take(FILE_MAX).read_to_string(&mut text)?;
    Ok(History::from_text(&text)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(n: u8) -> Remembered {
        Remembered {
            peer: PeerId([n; 32]),
            tunnels: ([10, 0, 0, n], 7400).into(),
            control: None,
            speed: None,
            seen: 7,
            failures: 0,
        }
    }

    #[test]
    fn what_was_learned_is_there_after_a_restart_and_gone_after_a_reset() {
        let place = tempfile::tempdir().expect("directory");
        let open = || Memory::open(place.path(), true);
        let memory = open();
        assert!(memory.good("home", node(1)) && !memory.good("home", node(1)));
        memory.good("work", node(2));
        memory.save();
        let memory = open();
        assert_eq!(memory.of("home"), [node(1)]);
        assert_eq!(memory.reset(Some("home")).expect("written"), (1, 1));
        assert_eq!(open().of("home"), []);
        assert_eq!(open().of("work"), [node(2)]);
        assert_eq!(memory.reset(None).expect("written"), (1, 1));
        assert_eq!(open().history(), History::default());
    }

    #[test]
    fn a_file_that_is_not_one_is_as_good_as_none() {
        let place = tempfile::tempdir().expect("directory");
        let file = place.path().join(FILE);
        std::fs::write(&file, [0xff; 100]).expect("written");
        let memory = Memory::open(place.path(), true);
        assert_eq!(memory.history(), History::default());
        memory.good("home", node(1));
        memory.save();
        assert_eq!(Memory::open(place.path(), true).of("home"), [node(1)]);
        std::fs::write(&file, vec![b' '; FILE_MAX as usize + 1]).expect("written");
        assert_eq!(Memory::open(place.path(), true).history(), History::default());
    }

    #[test]
    fn in_a_store_that_is_only_read_nothing_is_written() {
        let place = tempfile::tempdir().expect("directory");
        let memory = Memory::open(place.path(), false);
        memory.good("home", node(1));
        memory.save();
        assert_eq!(memory.of("home"), [node(1)]);
        assert!(!place.path().join(FILE).exists());
    }
}
