//! Those who have locks.

use std::path::Path;
use std::process::Command;

use journal_kb_peers::Result;
use serde::{Deserialize, Serialize};

use super::talk::Talk;
use super::{journal, scale::Scale};
use crate::child;

/// The environment variable that names the directory with what came from the registries of node and python.
const PEERS: &str = "JOURNAL_KB_BENCH_PEERS";
const PROPER_LOCKFILE: &str = include_str!("proper-lockfile.cjs");
const FILELOCK: &str = include_str!("with_filelock.py");

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Side {
    Journal,
    /// npm's.
    ProperLockfile,
    /// PyPI's.
    Filelock,
}

/// What became of one of them here: its version, or why it could not be had.
pub type Standing = std::result::Result<String, String>;

impl Side {
    pub const ALL: [Self; 3] = [Self::Journal, Self::ProperLockfile, Self::Filelock];

    pub fn name(self) -> &'static str {
        match self {
            Self::Journal => "journal-kb",
            Self::ProperLockfile => "proper-lockfile",
            Self::Filelock => "filelock",
        }
    }

    /// A process that has locks in this directory.
    pub fn start(self, directory: &Path, scale: &Scale) -> Result<Talk> {
        let peers = std::env::var_os(PEERS).unwrap_or_default();
        let peers = Path::new(&peers);
        Talk::start(match self {
            Self::Journal => child::command(&[], &child::Task::Locks(journal::Task::of(directory)))?,
            Self::ProperLockfile => {
                let mut command = Command::new("node");
                command.arg("-e").arg(PROPER_LOCKFILE).arg(directory).arg(scale.stale_ms.to_string());
                command.env("NODE_PATH", peers.join("node_modules"));
                command
            }
            Self::Filelock => {
                let mut command = Command::new("python3");
                command.arg("-c").arg(FILELOCK).arg(directory).env("PYTHONPATH", peers.join("python"));
                command
            }
        })
    }

    /// Whether it can be had here.
    pub fn look(self, directory: &Path, scale: &Scale) -> Standing {
        let version = || {
            let mut talk = self.start(directory, scale)?;
            let version: String = talk.ask("version")?;
            talk.end().map(|()| version)
        };
        version().map_err(|error| error.to_string())
    }
}
