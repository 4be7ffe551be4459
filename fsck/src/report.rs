//! What was found, for people and for programs.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

/// Findings that are listed one by one; beyond, they are only counted.
const LISTED_MAX: usize = 1000;

/// What is wrong. The names are part of the JSON and stay as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The format file is missing or damaged.
    Format,
    /// The database can't be read, or its own checksums fail.
    Database,
    /// A record's checksum fails, or its fields are not those of the format.
    Record,
    /// Records that should agree don't: numbers, slots, counters, index rows.
    Relation,
    /// A layer and its objects don't agree on who needs whom.
    References,
    /// An object's block list is incomplete, or not that of its name.
    BlockList,
    /// A block whose bytes are not those of its hash.
    BadBlock,
    /// A block that is claimed where nothing was written, or no file is.
    MissingData,
    /// A bitmap whose header or lines can't be believed.
    Bitmap,
    /// A data file longer than its object.
    Length,
    /// A data file or bitmap without a record.
    Orphan,
    /// Something that does not belong into a store.
    Stranger,
    /// An index part that does not parse, or parts that contradict each other.
    LayerIndex,
    /// A layer root whose signature fails.
    Signature,
    /// A layer that does not come out as its diffID says.
    DiffId,
    /// A document whose bytes are not those of its digest.
    Document,
}

impl Kind {
    /// The kind in words, for the summary.
    pub fn words(self) -> &'static str {
        match self {
            Self::Format => "format file damaged",
            Self::Database => "database damaged",
            Self::Record => "damaged records",
            Self::Relation => "records that don't agree",
            Self::References => "wrong references",
            Self::BlockList => "damaged block lists",
            Self::BadBlock => "bad blocks",
            Self::MissingData => "claimed blocks without data",
            Self::Bitmap => "damaged bitmaps",
            Self::Length => "data files of a wrong length",
            Self::Orphan => "files without a record",
            Self::Stranger => "strange files",
            Self::LayerIndex => "damaged layer indexes",
            Self::Signature => "failing signatures",
            Self::DiffId => "layers that are not what they say",
            Self::Document => "damaged documents",
        }
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What kind of thing.
    pub kind: Kind,
    /// Where: an object, a file, a table and key.
    pub place: String,
    /// What exactly.
    pub message: String,
    /// The number of the block, where it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block: Option<u32>,
    /// Whether it was put right.
    pub repaired: bool,
}

/// How much of one kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Count {
    /// Found.
    pub found: u64,
    /// Of these, put right.
    pub repaired: u64,
}

/// How much was looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Checked {
    /// Records in the database.
    pub records: u64,
    /// Objects.
    pub objects: u64,
    /// Blocks that are claimed, and were read and hashed.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Layers whose index was parsed.
    pub layers: u64,
    /// Layers that were rebuilt and compared with their diffID.
    pub rebuilt: u64,
}

/// How the store was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Nobody has it open; nothing was to be changed.
    Check,
    /// Nobody has it open, and what is wrong was to be put right.
    Repair,
    /// It is in use; its owner gave the inventory.
    Live,
}

/// The result of a check.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The store's directory.
    pub store: String,
    /// How it was looked at.
    pub mode: Mode,
    /// What is wrong, the first thousand one by one.
    pub findings: Vec<Finding>,
    /// How much of each kind.
    pub counts: BTreeMap<Kind, Count>,
    /// How much was looked at.
    pub checked: Checked,
    /// Harmless leftovers, for instance of a crash.
    pub notes: Vec<String>,
    /// What could not be checked.
    pub unchecked: Vec<String>,
}

impl Report {
    /// An empty report.
    pub fn new(store: String, mode: Mode) -> Self {
        Self {
            store,
            mode,
            findings: Vec::new(),
            counts: BTreeMap::new(),
            checked: Checked::default(),
            notes: Vec::new(),
            unchecked: Vec::new(),
        }
    }

    /// Adds a finding.
    pub fn add(&mut self, finding: Finding) {
        let count = self.counts.entry(finding.kind).or_default();
        count.found += 1;
        count.repaired += u64::from(finding.repaired);
        if self.findings.len() < LISTED_MAX {
            self.findings.push(finding);
        }
    }

    /// Adds a note; of many, the first are kept.
    pub fn note(&mut self, text: impl Into<String>) {
        if self.notes.len() < LISTED_MAX {
            self.notes.push(text.into());
        }
    }

    /// Says that something could not be checked.
    pub fn skip(&mut self, text: impl Into<String>) {
        if self.unchecked.len() < LISTED_MAX {
            self.unchecked.push(text.into());
        }
    }

    /// All repairs came to nothing: what was said to be put right was not.
    pub fn not_repaired(&mut self) {
        for finding in &mut self.findings {
            finding.repaired = false;
        }
        for count in self.counts.values_mut() {
            count.repaired = 0;
        }
    }

    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.counts.is_empty()
    }

    /// The exit code of fsck(8): 0 clean, 1 all put right, 4 errors left.
    pub fn exit_code(&self) -> u8 {
        if self.is_clean() {
            0
        } else if self.counts.values().all(|c| c.repaired == c.found) {
            1
        } else {
            4
        }
    }

    /// The report as one JSON object.
    pub fn json(&self) -> String {
        #[derive(Serialize)]
        struct Whole<'a> {
            #[serde(flatten)]
            report: &'a Report,
            exit_code: u8,
        }
        let whole = Whole { report: self, exit_code: self.exit_code() };
        serde_json::to_string_pretty(&whole).unwrap_or_else(|e| format!("{{\"error\":\"{e}\"}}"))
    }

    /// The report in words.
    pub fn summary(&self) -> String {
        let mut out = String::new();
        // Writing to a string does not fail.
        let mut say = |line: String| {
            let _ = writeln!(out, "{line}");
        };
        for finding in &self.findings {
            let block = finding.block.map(|n| format!(" block {n}")).unwrap_or_default();
            let done = if finding.repaired { " [repaired]" } else { "" };
            say(format!("{}{block}: {}{done}", finding.place, finding.message));
        }
        let found: u64 = self.counts.values().map(|c| c.found).sum();
        if found > self.findings.len() as u64 {
            say(format!("... and {} more", found - self.findings.len() as u64));
        }
        for note in &self.notes {
            say(format!("note: {note}"));
        }
        for text in &self.unchecked {
            say(format!("not checked: {text}"));
        }
        let c = &self.checked;
        say(format!(
            "{}: {} objects, {} blocks ({:.1} MiB) read and hashed, {} records, {} layers ({} rebuilt)",
            self.store,
            c.objects,
            c.blocks,
            c.bytes as f64 / f64::from(1 << 20),
            c.records,
            c.layers,
            c.rebuilt
        ));
        for (kind, count) in &self.counts {
            let left = count.found - count.repaired;
            say(format!(
                "  {}: {} found, {} repaired, {left} left",
                kind.words(),
                count.found,
                count.repaired
            ));
        }
        say(match self.exit_code() {
            0 => "The store is clean.".into(),
            1 => "What was wrong has been dropped; it will be fetched again when it is needed."
                .into(),
            _ if self.mode == Mode::Live => {
                "The store has errors. Stop its owner and run peersync-fsck --repair.".into()
            }
            _ if self.mode == Mode::Repair => "The store still has errors.".into(),
            _ => "The store has errors. Run peersync-fsck --repair.".to_owned(),
        });
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_says_what_is_left() {
        let finding = |repaired| Finding {
            kind: Kind::BadBlock,
            place: "object".into(),
            message: "wrong".into(),
            block: Some(3),
            repaired,
        };
        let mut report = Report::new("/store".into(), Mode::Repair);
        assert_eq!(report.exit_code(), 0);
        report.add(finding(true));
        assert_eq!(report.exit_code(), 1);
        report.add(finding(false));
        assert_eq!(report.exit_code(), 4);
        assert!(report.summary().contains("object block 3: wrong [repaired]"));
        assert!(report.json().contains("\"exit_code\": 4"));
        for _ in 0..2000 {
            report.add(finding(true));
        }
        assert_eq!(report.findings.len(), LISTED_MAX);
        assert_eq!(report.counts[&Kind::BadBlock].found, 2002);
    }
}
