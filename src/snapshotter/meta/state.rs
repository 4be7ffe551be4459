//! The rules of the snapshot table, without I/O.
//!
//! Invariants, which every [`Change`] that a method returns keeps:
//! - a parent is a committed record that exists;
//! - `children` counts, for each record, the records that name it as parent;
//! - identifiers are unique and grow; `next` is above all of them.

use std::collections::{BTreeMap, HashMap};

use super::{
    Content, Kind, LABEL_MAX, LABELS_MAX, Labels, Layer, MetaError, NAME_MAX, Record,
    SNAPSHOTS_MAX, Snapshot, Timestamp, Usage,
};
use crate::snapshotter::filter::{Filter, Subject};
use crate::types::Digest;

// Errors read as containerd's own do.
const CREATE: &str = "failed to create snapshot";
const COMMIT: &str = "failed to commit snapshot";

/// All snapshots of one snapshotter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    records: BTreeMap<String, Record>,
    children: HashMap<String, usize>,
    next: u64,
}

/// What a request changes. Nothing has happened until it is applied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Change {
    /// Records written under their names.
    pub put: Vec<(String, Record)>,
    /// Names that vanish; done before `put`.
    pub delete: Vec<String>,
    /// The lowest identifier not yet given out, afterwards.
    pub next: u64,
}

impl Change {
    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.put.is_empty() && self.delete.is_empty()
    }
}

/// What [`State::adopt`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Adoption {
    /// The remote snapshot has to be written.
    New(Change),
    /// It was there before: a second commit of the same chain is a success.
    Known,
    /// The name is taken by another snapshot (another parent, or not remote).
    Conflict,
}

impl Default for State {
    fn default() -> Self {
        Self { records: BTreeMap::new(), children: HashMap::new(), next: 1 }
    }
}

impl State {
    /// Rebuilds the table from what was stored. Records that contradict an
    /// invariant are kept: losing one must not hide the others.
    pub fn load(records: BTreeMap<String, Record>, next: u64) -> Self {
        let mut children = HashMap::new();
        let mut above = next.max(1);
        for record in records.values() {
            above = above.max(record.id.saturating_add(1));
            if !record.parent.is_empty() {
                *children.entry(record.parent.clone()).or_insert(0) += 1;
            }
        }
        Self { records, children, next: above }
    }

    /// All records by name.
    pub fn records(&self) -> &BTreeMap<String, Record> {
        &self.records
    }

    /// The record of `name`.
    pub fn get(&self, name: &str) -> Result<&Record, MetaError> {
        self.records.get(name).ok_or_else(|| not_found(name))
    }

    /// Records that match any of `filter`, in name order.
    pub fn walk<'a>(
        &'a self,
        filter: &'a Filter,
    ) -> impl Iterator<Item = (&'a str, &'a Record)> + 'a {
        self.records
            .iter()
            .filter(|(name, record)| filter.matches(&(name.as_str(), *record)))
            .map(|(name, record)| (name.as_str(), record))
    }

    /// A writable or read-only snapshot under `key` on top of `parent`, which
    /// is empty or a committed snapshot.
    ///
    /// # Errors
    /// As containerd's `CreateSnapshot`: a missing parent is `NotFound`, one that
    /// is not committed `InvalidArgument`, a taken key `AlreadyExists`; in this order.
    pub fn create(
        &self,
        kind: Kind,
        key: &str,
        parent: &str,
        labels: &Labels,
        now: Timestamp,
    ) -> Result<(Change, Snapshot), MetaError> {
        check_name("key", key)?;
        check_labels(labels)?;
        if kind == Kind::Committed {
            return Err(MetaError::InvalidArgument(
                "only snapshots of type Active or View can be created".into(),
            ));
        }
        let parents = self.chain_of_parent(parent)?;
        if self.records.contains_key(key) {
            return Err(MetaError::AlreadyExists(format!("{CREATE}: snapshot {key}")));
        }
        let id = self.allocate()?;
        let record = Record {
            id,
            parent: parent.to_owned(),
            kind,
            content: Content::Directory,
            labels: without_empty(labels),
            created: now,
            updated: now,
            usage: Usage::default(),
            committed_from: String::new(),
        };
        let change =
            Change { put: vec![(key.to_owned(), record)], delete: Vec::new(), next: id + 1 };
        Ok((change, Snapshot { id, kind, content: Content::Directory, parents }))
    }

    /// A committed remote snapshot of `chain` under `name`, without an active
    /// one before it.
    ///
    /// # Errors
    /// Those of [`State::create`], the taken name apart, which is an [`Adoption`].
    pub fn adopt(
        &self,
        name: &str,
        parent: &str,
        chain: Digest,
        labels: &Labels,
        now: Timestamp,
    ) -> Result<Adoption, MetaError> {
        check_name("name", name)?;
        check_labels(labels)?;
        if let Some(found) = self.records.get(name) {
            let same = found.kind == Kind::Committed
                && found.content == Content::Chain(chain)
                && found.parent == parent;
            return Ok(if same { Adoption::Known } else { Adoption::Conflict });
        }
        self.chain_of_parent(parent)?;
        let id = self.allocate()?;
        let record = Record {
            id,
            parent: parent.to_owned(),
            kind: Kind::Committed,
            content: Content::Chain(chain),
            labels: without_empty(labels),
            created: now,
            updated: now,
            usage: Usage::default(),
            committed_from: String::new(),
        };
        Ok(Adoption::New(Change {
            put: vec![(name.to_owned(), record)],
            delete: Vec::new(),
            next: id + 1,
        }))
    }

    /// Turns the active snapshot `key` into the committed snapshot `name`.
    /// Labels are replaced, not inherited.
    ///
    /// The same commit again (same name, same key) changes nothing and is a
    /// success: containerd repeats it after a crash between our commit and its own.
    ///
    /// # Errors
    /// As containerd's `CommitActive`: a taken name is `AlreadyExists`, a missing
    /// key `NotFound`, a key that is not active `FailedPrecondition`; in this order.
    pub fn commit(
        &self,
        name: &str,
        key: &str,
        labels: &Labels,
        usage: Usage,
        now: Timestamp,
    ) -> Result<Change, MetaError> {
        check_name("name", name)?;
        check_labels(labels)?;
        if self.is_repeated_commit(name, key) {
            return Ok(Change { next: self.next, ..Change::default() });
        }
        if self.records.contains_key(name) {
            return Err(MetaError::AlreadyExists(format!("{COMMIT}: committed snapshot {name}")));
        }
        let active = self
            .records
            .get(key)
            .ok_or_else(|| MetaError::NotFound("snapshot does not exist".to_owned()))?;
        if active.kind != Kind::Active {
            return Err(MetaError::FailedPrecondition(format!(
                "{COMMIT}: snapshot {key:?} is not active"
            )));
        }
        if !active.parent.is_empty() && !self.records.contains_key(&active.parent) {
            return Err(MetaError::NotFound(format!(
                "missing parent {:?} of snapshot {key:?}",
                active.parent
            )));
        }
        let record = Record {
            kind: Kind::Committed,
            labels: without_empty(labels),
            created: now,
            updated: now,
            usage,
            committed_from: key.to_owned(),
            ..active.clone()
        };
        Ok(Change {
            put: vec![(name.to_owned(), record)],
            delete: vec![key.to_owned()],
            next: self.next,
        })
    }

    /// Whether `name` was committed from `key`, which is gone since.
    pub fn is_repeated_commit(&self, name: &str, key: &str) -> bool {
        !self.records.contains_key(key)
            && self
                .records
                .get(name)
                .is_some_and(|found| found.kind == Kind::Committed && found.committed_from == key)
    }

    /// Removes `key`, which must have no children.
    ///
    /// # Errors
    /// `NotFound`, or `FailedPrecondition` where another snapshot stands on it.
    pub fn remove(&self, key: &str) -> Result<(Change, &Record), MetaError> {
        let record = self.get(key)?;
        if self.children.get(key).is_some_and(|count| *count > 0) {
            return Err(MetaError::FailedPrecondition(
                "failed to remove: cannot remove snapshot with child".to_owned(),
            ));
        }
        Ok((Change { put: Vec::new(), delete: vec![key.to_owned()], next: self.next }, record))
    }

    /// Writes labels: all of them when `paths` is empty, or those that `paths`
    /// (`labels`, `labels.<key>`) name. A label written as empty vanishes.
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument` for a path that may not change.
    pub fn update(
        &self,
        name: &str,
        labels: &Labels,
        paths: &[String],
        now: Timestamp,
    ) -> Result<(Change, Record), MetaError> {
        let mut record = self.get(name)?.clone();
        if paths.is_empty() {
            record.labels = labels.clone();
        }
        for path in paths {
            if path == "labels" {
                record.labels = labels.clone();
            } else if let Some(key) = path.strip_prefix("labels.") {
                let value = labels.get(key).cloned().unwrap_or_default();
                record.labels.insert(key.to_owned(), value);
            } else {
                return Err(MetaError::InvalidArgument(format!(
                    "cannot update {path:?} field on snapshot {name:?}"
                )));
            }
        }
        record.labels = without_empty(&record.labels);
        check_labels(&record.labels)?;
        record.updated = now;
        let change = Change {
            put: vec![(name.to_owned(), record.clone())],
            delete: Vec::new(),
            next: self.next,
        };
        Ok((change, record))
    }

    /// The active or view snapshot `key` with all that lies below it.
    ///
    /// # Errors
    /// `NotFound`; `FailedPrecondition` for a committed snapshot, which has no mounts.
    pub fn snapshot(&self, key: &str) -> Result<Snapshot, MetaError> {
        let record = self.get(key)?;
        if record.kind == Kind::Committed {
            return Err(MetaError::FailedPrecondition(format!(
                "failed to get active mount: requested snapshot {key} not active or view"
            )));
        }
        Ok(Snapshot {
            id: record.id,
            kind: record.kind,
            content: record.content,
            parents: self.chain_of(&record.parent)?,
        })
    }

    /// Makes a change of this very state real.
    pub fn apply(&mut self, change: Change) {
        for name in &change.delete {
            if let Some(old) = self.records.remove(name) {
                self.unlink(&old.parent);
            }
        }
        for (name, record) in change.put {
            if !record.parent.is_empty() {
                *self.children.entry(record.parent.clone()).or_insert(0) += 1;
            }
            if let Some(old) = self.records.insert(name, record) {
                self.unlink(&old.parent);
            }
        }
        self.next = self.next.max(change.next);
    }

    fn unlink(&mut self, parent: &str) {
        if let Some(count) = self.children.get_mut(parent) {
            *count -= 1;
            if *count == 0 {
                self.children.remove(parent);
            }
        }
    }

    /// The layers of `parent` and below, after checking that it can be one.
    fn chain_of_parent(&self, parent: &str) -> Result<Vec<Layer>, MetaError> {
        if parent.is_empty() {
            return Ok(Vec::new());
        }
        let found = self.records.get(parent).ok_or_else(|| {
            MetaError::NotFound(format!("{CREATE}: missing parent {parent:?} bucket"))
        })?;
        if found.kind != Kind::Committed {
            return Err(MetaError::InvalidArgument(format!(
                "{CREATE}: parent {parent:?} is not committed snapshot"
            )));
        }
        self.chain_of(parent)
    }

    /// The layers from `name` down, nearest first. Bounded by the number of
    /// records, should a damaged database hold a cycle.
    fn chain_of(&self, name: &str) -> Result<Vec<Layer>, MetaError> {
        let mut layers = Vec::new();
        let mut name = name;
        while !name.is_empty() {
            let record = self
                .records
                .get(name)
                .ok_or_else(|| MetaError::NotFound(format!("missing parent {name:?}")))?;
            if layers.len() >= self.records.len() {
                return Err(MetaError::FailedPrecondition(format!(
                    "snapshot {name:?} is its own ancestor"
                )));
            }
            layers.push(Layer { id: record.id, content: record.content });
            name = &record.parent;
        }
        Ok(layers)
    }

    fn allocate(&self) -> Result<u64, MetaError> {
        if self.records.len() >= SNAPSHOTS_MAX || self.next == u64::MAX {
            return Err(MetaError::Exhausted(format!("{SNAPSHOTS_MAX} snapshots")));
        }
        Ok(self.next)
    }
}

fn not_found(name: &str) -> MetaError {
    MetaError::NotFound(format!("snapshot {name:?} does not exist"))
}

fn check_name(what: &str, name: &str) -> Result<(), MetaError> {
    match name.len() {
        0 => Err(MetaError::InvalidArgument(format!("snapshot {what} is empty"))),
        length if length > NAME_MAX => Err(MetaError::InvalidArgument(format!(
            "snapshot {what} of {length} bytes: at most {NAME_MAX}"
        ))),
        _ => Ok(()),
    }
}

fn check_labels(labels: &Labels) -> Result<(), MetaError> {
    let mut total = 0usize;
    for (key, value) in labels {
        let size = key.len() + value.len();
        if size > LABEL_MAX {
            let key: String = key.chars().take(10).collect();
            return Err(MetaError::InvalidArgument(format!(
                "label key and value greater than maximum size ({LABEL_MAX} bytes), key: {key}"
            )));
        }
        total += size;
    }
    if total > LABELS_MAX {
        return Err(MetaError::InvalidArgument(format!(
            "labels of {total} bytes: at most {LABELS_MAX}"
        )));
    }
    Ok(())
}

/// containerd's database does not keep labels with empty values.
fn without_empty(labels: &Labels) -> Labels {
    labels
        .iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

/// The fields that containerd's filters know: name, parent, kind and labels.
impl Subject for (&str, &Record) {
    fn field(&self, path: &[Box<[u8]>]) -> Option<&str> {
        let (name, record) = self;
        let (first, rest) = path.split_first()?;
        match &**first {
            b"name" => Some(name),
            b"parent" => Some(&record.parent),
            b"kind" => Some(record.kind.as_str()),
            b"labels" => {
                let key = rest.join(&b'.');
                record.labels.get(std::str::from_utf8(&key).ok()?).map(String::as_str)
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
