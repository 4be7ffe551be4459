//! How a command fails.

use std::process::ExitCode;

use crate::admin::{ClientError, Failure, FailureKind};

/// A command's failure: what is said, and with which code the process ends.
#[derive(Debug)]
pub struct Exit(Failure);

impl Exit {
    /// A failure of the given kind.
    pub fn new(kind: FailureKind, message: impl std::fmt::Display) -> Self {
        Self(Failure::new(kind, message))
    }

    /// Says it on standard error and gives the exit code.
    pub fn report(self, json: bool) -> ExitCode {
        let Self(failure) = self;
        match serde_json::to_string(&serde_json::json!({ "error": &failure })) {
            Ok(line) if json => eprintln!("{line}"),
            _ => eprintln!("peersync: {}", failure.message),
        }
        ExitCode::from(failure.kind.exit_code())
    }
}

impl From<Failure> for Exit {
    fn from(failure: Failure) -> Self {
        Self(failure)
    }
}

impl From<ClientError> for Exit {
    fn from(error: ClientError) -> Self {
        Self::new(FailureKind::Failed, error)
    }
}
