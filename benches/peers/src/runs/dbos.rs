//! Durable steps of dbos, in a process of Python.

use std::path::Path;
use std::process::Command;

use journal_kb_peers::Result;
use journal_kb_peers::shared::{Homes, Place};
use serde::{Deserialize, Serialize};

use super::scale::Scale;
use crate::child;

/// The environment variable that names the directory with what came from the registry of Python.
const PEERS: &str = "JOURNAL_KB_BENCH_RUN_PEERS";
const PROGRAM: &str = include_str!("with_dbos.py");

/// How the database of dbos writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// As dbos makes it.
    Default,
    /// Set to a write-ahead log by hand.
    Wal,
}

/// What it answers.
#[derive(Debug, Deserialize)]
struct Answer {
    version: String,
    /// The journal mode and the synchronous setting that the connections of dbos say they have.
    journal_mode: String,
    synchronous: u8,
    steps: usize,
    took: Vec<f64>,
}

impl Mode {
    pub const ALL: [Self; 2] = [Self::Default, Self::Wal];

    pub fn name(self) -> &'static str {
        match self {
            Self::Default => "dbos",
            Self::Wal => "dbos, its database set to a write-ahead log by hand",
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Default => "delete",
            Self::Wal => "wal",
        }
    }
}

fn run(directory: &Path, mode: Mode, steps: usize) -> Result<Answer> {
    let mut command = Command::new("python3");
    command.arg("-c").arg(PROGRAM).arg(directory).arg(mode.word()).arg(steps.to_string());
    command.env("PYTHONPATH", std::env::var_os(PEERS).unwrap_or_default());
    child::answer_of(command)
}

/// Its version, or why it cannot be had here.
pub fn look() -> std::result::Result<String, String> {
    let version = || {
        let directory = tempfile::tempdir()?;
        run(directory.path(), Mode::Default, 1).map(|answer| answer.version)
    };
    version().map_err(|error| last_line(&error.to_string()).to_owned())
}

/// Of what Python says of an error, the error.
fn last_line(text: &str) -> &str {
    text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or(text)
}

/// Nanoseconds of each step.
pub fn steps(place: &Place, homes: &mut Homes, scale: &Scale, mode: Mode) -> Result<Vec<f64>> {
    let answer = run(&homes.make(place)?, mode, scale.peer_steps)?;
    // FULL: what is committed is durable.
    if (answer.journal_mode.as_str(), answer.synchronous) != (mode.word(), 2) {
        return Err(format!("dbos commits in another way than it was told: {answer:?}").into());
    }
    match answer.steps {
        steps if steps == scale.peer_steps => Ok(answer.took),
        steps => Err(format!("{} steps of dbos left {steps} rows", scale.peer_steps).into()),
    }
}
