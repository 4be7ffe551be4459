//! What the doctor says, for people and for programs.

use std::fmt;

use serde_json::{Value, json};

/// How a check went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    /// As it should be.
    Fine,
    /// Can't be told here, or does not matter in this set-up.
    Skipped,
    /// Works, with less than there could be.
    Warning,
    /// Does not work.
    Failed,
}

impl Status {
    /// The word in the output.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fine => "ok",
            Self::Skipped => "skipped",
            Self::Warning => "warning",
            Self::Failed => "failed",
        }
    }
}

/// The outcome of one check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The check's name; stable, for scripts.
    pub check: &'static str,
    /// How it went.
    pub status: Status,
    /// What was found.
    pub message: String,
    /// What to do about it; empty where it is fine.
    pub advice: String,
}

/// All findings, in the order of the checks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// One for each check.
    pub findings: Vec<Finding>,
}

impl Report {
    /// The worst of all findings.
    pub fn status(&self) -> Status {
        self.findings.iter().map(|finding| finding.status).max().unwrap_or(Status::Fine)
    }

    /// `{"status": ..., "checks": [{"check", "status", "message", "advice"}, ...]}`
    pub fn to_json(&self) -> Value {
        let checks: Vec<Value> = self
            .findings
            .iter()
            .map(|finding| {
                json!({
                    "check": finding.check,
                    "status": finding.status.as_str(),
                    "message": finding.message,
                    "advice": finding.advice,
                })
            })
            .collect();
        json!({ "status": self.status().as_str(), "checks": checks })
    }
}

/// A line for each check, advice indented below it, and a summary.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.findings.iter().map(|finding| finding.check.len()).max().unwrap_or(0);
        for Finding { check, status, message, advice } in &self.findings {
            writeln!(f, "{:<8} {check:<width$}  {message}", status.as_str())?;
            for line in advice.lines() {
                writeln!(f, "{:<8} {:<width$}    {line}", "", "")?;
            }
        }
        let count = |status| self.findings.iter().filter(|found| found.status == status).count();
        match (count(Status::Failed), count(Status::Warning)) {
            (0, 0) => write!(f, "all is well"),
            (failed, warnings) => write!(f, "{failed} failed, {warnings} with a warning"),
        }
    }
}
