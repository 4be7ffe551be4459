//! What tags stood for when their registry was last asked: the answer while it
//! can't be, and the catalog.
//!
//! One small file for each tag, written beside it and renamed. What is lost in a
//! crash is asked for again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::types::{BlockHash, Digest};

/// Tags that are remembered; those asked for longest ago go first.
const TAGS_MAX: usize = 16 << 10;
/// Largest file, in bytes.
const FILE_MAX: u64 = 4096;
/// What is said again within this time is not written again.
const FRESH: Duration = Duration::from_secs(3600);

/// What a tag stood for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Known {
    repository: String,
    tag: String,
    digest: Digest,
    /// In seconds since 1970.
    seen: u64,
    /// What of that was last written.
    #[serde(skip)]
    written: u64,
}

impl Known {
    pub(super) fn digest(&self) -> &Digest {
        &self.digest
    }

    pub(super) fn seen(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(self.seen)
    }
}

/// The tags that this mirror has been asked for.
pub(super) struct Tags {
    /// `None` where nothing can be kept.
    dir: Option<PathBuf>,
    known: Mutex<BTreeMap<(String, String), Known>>,
}

impl Tags {
    /// Reads what an earlier process wrote. May block.
    pub(super) fn open(dir: &Path) -> Self {
        let kept = match std::fs::create_dir_all(dir) {
            Ok(()) => Some(dir.to_owned()),
            Err(error) => {
                warn!(dir = %dir.display(), "tags are not remembered: {error}");
                None
            }
        };
        let mut known = BTreeMap::new();
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let small = entry.metadata().is_ok_and(|meta| meta.len() <= FILE_MAX);
            let read = std::fs::read(entry.path()).ok().filter(|_| small);
            let parsed: Option<Known> = read.and_then(|text| serde_json::from_slice(&text).ok());
            match parsed {
                Some(tag) if known.len() < TAGS_MAX => {
                    let tag = Known { written: tag.seen, ..tag };
                    known.insert((tag.repository.clone(), tag.tag.clone()), tag);
                }
                _ => drop(std::fs::remove_file(entry.path())),
            }
        }
        Self { dir: kept, known: Mutex::new(known) }
    }

    /// What the tag last stood for.
    pub(super) fn get(&self, repository: &str, tag: &str) -> Option<Known> {
        self.known().get(&(repository.to_owned(), tag.to_owned())).cloned()
    }

    /// The tag stands for this at `now`. May block.
    pub(super) fn put(&self, repository: &str, tag: &str, digest: Digest, now: SystemTime) {
        let seen = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let (repository, tag) = (repository.to_owned(), tag.to_owned());
        let key = (repository.clone(), tag.clone());
        let said = Known { repository, tag, digest, seen, written: seen };
        let mut known = self.known();
        if let Some(old) = known.get_mut(&key)
            && old.digest == digest
            && seen < old.written + FRESH.as_secs()
        {
            old.seen = seen;
            return;
        }
        if known.len() >= TAGS_MAX && !known.contains_key(&key) {
            let oldest = known.values().min_by_key(|tag| tag.seen).cloned();
            if let Some(oldest) = oldest {
                known.remove(&(oldest.repository.clone(), oldest.tag.clone()));
                self.file(&oldest).map(std::fs::remove_file);
            }
        }
        if let Err(error) = self.write(&said) {
            warn!(repository = said.repository, tag = said.tag, "not remembered: {error}");
        }
        known.insert(key, said);
    }

    /// The tag is no more. May block.
    pub(super) fn forget(&self, repository: &str, tag: &str) {
        let gone = self.known().remove(&(repository.to_owned(), tag.to_owned()));
        if let Some(gone) = gone {
            self.file(&gone).map(std::fs::remove_file);
        }
    }

    /// The repositories of which there is a tag, in the order of bytes, once each.
    pub(super) fn repositories(&self) -> Vec<String> {
        let mut names: Vec<String> =
            self.known().keys().map(|(repository, _)| repository.clone()).collect();
        names.dedup();
        names
    }

    /// The known tags of a repository, in the order of bytes.
    pub(super) fn of(&self, repository: &str) -> Vec<String> {
        let known = self.known();
        let from = (repository.to_owned(), String::new());
        known
            .range(from..)
            .map(|(key, _)| key)
            .take_while(|(of, _)| of == repository)
            .map(|(_, tag)| tag.clone())
            .collect()
    }

    /// What the name `repository:tag` with this hash stands for, and since when.
    pub(super) fn by_hash(&self, name: &BlockHash) -> Option<Known> {
        let known = self.known();
        let named = |tag: &&Known| {
            BlockHash::of(format!("{}:{}", tag.repository, tag.tag).as_bytes()) == *name
        };
        known.values().find(named).cloned()
    }

    fn file(&self, tag: &Known) -> Option<PathBuf> {
        let name = BlockHash::of(format!("{}:{}", tag.repository, tag.tag).as_bytes());
        Some(self.dir.as_ref()?.join(name.to_string()))
    }

    fn write(&self, tag: &Known) -> std::io::Result<()> {
        let Some(file) = self.file(tag) else { return Ok(()) };
        let new = file.with_extension("new");
        std::fs::write(&new, serde_json::to_vec(tag)?)?;
        std::fs::rename(new, file)
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<(String, String), Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_remembered_by_the_next_process() {
        let dir = tempfile::tempdir().expect("directory");
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let (one, two) = (Digest::of(b"1"), Digest::of(b"2"));
        let tags = Tags::open(dir.path());
        tags.put("r.io/a", "1", one, at(10));
        tags.put("r.io/a", "2", one, at(10));
        tags.put("r.io/a", "1", two, at(20));
        tags.put("r.io/b", "1", one, at(20));
        // Said again it is newer, though not on the disk yet.
        tags.put("r.io/a", "2", one, at(30));
        assert_eq!(tags.get("r.io/a", "2").expect("known").seen(), at(30));
        tags.forget("r.io/b", "1");
        std::fs::write(dir.path().join("torn"), b"{").expect("written");
        let tags = Tags::open(dir.path());
        let known = tags.get("r.io/a", "1").expect("known");
        assert_eq!((*known.digest(), known.seen()), (two, at(20)));
        assert_eq!(tags.of("r.io/a"), ["1", "2"]);
        assert_eq!(tags.repositories(), ["r.io/a"]);
        assert_eq!(tags.get("r.io/b", "1"), None);
        let hashed = tags.by_hash(&BlockHash::of(b"r.io/a:2")).expect("known");
        assert_eq!(*hashed.digest(), one);
        assert!(!dir.path().join("torn").exists());
    }
}
