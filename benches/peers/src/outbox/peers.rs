//! Those who have queues, each measured in processes of its own.

use std::path::Path;
use std::process::Command;

use journal_kb_peers::Result;
use journal_kb_peers::shared::{Homes, Place};
use serde::{Deserialize, Serialize};

use super::queue::{self, Queued};
use super::scale::Scale;
use super::work::{self, BATCH};
use crate::{child, strace};

/// The environment variables that name the directory with what came from the registry of Python, and the program in `effectum/`.
const HUEY: &str = "JOURNAL_KB_BENCH_OUTBOX_PEERS";
const EFFECTUM: &str = "JOURNAL_KB_BENCH_EFFECTUM";
const WITH_HUEY: &str = include_str!("with_huey.py");
/// How many messages are put in while syncs are counted: what the first so many do not do alike is left out.
const TRACED: [usize; 2] = [50, 150];

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Side {
    Journal,
    /// As it comes.
    Huey,
    /// Asked to sync.
    HueyDurable,
    /// As it comes.
    Effectum,
    /// Its database set to a write-ahead log by hand.
    EffectumWal,
}

/// What became of one here: what it is, or why it could not be had.
pub type Standing = std::result::Result<What, String>;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct What {
    pub version: String,
    /// How its database is written, as it says itself.
    pub journal_mode: String,
    /// What SQLite calls `synchronous`, where it can be asked.
    pub synchronous: Option<u8>,
}

/// What a peer answers.
#[derive(Debug, Deserialize)]
struct Answer {
    #[serde(flatten)]
    what: What,
    #[serde(flatten)]
    queued: Queued,
}

impl Side {
    pub const ALL: [Self; 5] = [Self::Journal, Self::Huey, Self::HueyDurable, Self::Effectum, Self::EffectumWal];

    pub fn name(self) -> &'static str {
        match self {
            Self::Journal => "journal-kb",
            Self::Huey => "huey",
            Self::HueyDurable => "huey with `fsync=True`",
            Self::Effectum => "effectum",
            Self::EffectumWal => "effectum, its database set to a write-ahead log by hand",
        }
    }

    fn command(self, before: &[&str], root: &Path, messages: usize, crowd: usize, only_one: bool) -> Result<Command> {
        if self == Self::Journal {
            let task = queue::Task { root: root.to_owned(), messages, crowd, only_one };
            return child::command(before, &child::Task::Outbox(work::Task::Queue(task)));
        }
        let mut command: Vec<String> = before.iter().map(|&word| word.to_owned()).collect();
        match self {
            Self::Huey | Self::HueyDurable => command.extend(["python3", "-c", WITH_HUEY].map(str::to_owned)),
            _ => command.push(std::env::var(EFFECTUM).map_err(|_| "the program with effectum was not built")?),
        }
        command.push(root.to_str().ok_or("the name of a directory is not UTF-8")?.to_owned());
        let mode = match self {
            Self::HueyDurable => "durable",
            Self::EffectumWal => "wal",
            _ => "delete",
        };
        command.extend([mode.to_owned(), messages.to_string(), crowd.to_string()]);
        if matches!(self, Self::Effectum | Self::EffectumWal) {
            command.push(BATCH.to_string());
        }
        command.extend(only_one.then(|| "one".to_owned()));
        let (program, arguments) = command.split_first().ok_or("a command has no words")?;
        let mut command = Command::new(program);
        command.args(arguments).env("PYTHONPATH", std::env::var_os(HUEY).unwrap_or_default());
        Ok(command)
    }

    /// Whether it can be had here.
    pub fn look(self, crowd: usize) -> Standing {
        let look = || {
            let directory = tempfile::tempdir()?;
            child::answer_of::<Answer>(self.command(&[], directory.path(), crowd, crowd, false)?)
        };
        look().map(|answer| answer.what).map_err(|error| last_line(&error.to_string()).to_owned())
    }

    fn measure(self, root: &Path, scale: &Scale) -> Result<Queued> {
        let command = self.command(&[], root, scale.queued, scale.crowd, false)?;
        match self {
            Self::Journal => Ok(child::answer_of::<Option<_>>(command)?.ok_or("nothing was measured")?),
            _ => child::answer_of::<Answer>(command).map(|answer| answer.queued),
        }
    }

    /// The system calls that sync of each message that is put in by itself; none where they cannot be counted.
    fn syncs(self, place: &Place, homes: &mut Homes) -> Result<Option<f64>> {
        let mut counted = Vec::new();
        for messages in TRACED {
            let root = homes.make(place)?;
            let command = |before: &[&str]| self.command(before, &root, messages, 1, true);
            let Some((None::<Queued>, trace)) = strace::traced(command)? else { return Ok(None) };
            counted.push(strace::syncs(&trace) as f64);
        }
        let more = counted.last().zip(counted.first()).map(|(last, first)| last - first);
        Ok(more.map(|more| more / (TRACED[1] - TRACED[0]) as f64))
    }
}

/// Of what Python says of an error, the error.
fn last_line(text: &str) -> &str {
    text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or(text)
}

/// What was measured of each side, and its syncs.
type Measured = (Vec<(Side, Queued)>, Vec<(Side, f64)>);

/// All that are here, in turns.
pub fn measure(place: &Place, homes: &mut Homes, scale: &Scale, sides: &[Side]) -> Result<Measured> {
    let (mut queued, mut syncs) = (Vec::new(), Vec::new());
    for _ in 0..scale.rounds {
        for side in sides {
            queued.push((*side, side.measure(&homes.make(place)?, scale)?));
        }
    }
    for side in sides {
        syncs.extend(side.syncs(place, homes)?.map(|counted| (*side, counted)));
    }
    Ok((queued, syncs))
}
