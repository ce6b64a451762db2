//! What is asked of the disk: the system calls that sync, and the flushes that reach the device.

use std::fs;
use std::hint::black_box;
use std::os::unix::process::parent_id;
use std::path::{Path, PathBuf};
use std::time::Duration;

use journal_kb::Journal;
use journal_kb_peers::shared::{Homes, Place, content, path};
use journal_kb_peers::{Contender, Kind, Result};
use rusqlite::Connection;
use serde::{Deserialize, Serialize};

use crate::child;
use crate::filesystem::LoopDevice;
use crate::scale::Scale;
use crate::strace::TRACED;

/// Who is counted: with settling after each write, or without.
const COUNTED: [(Kind, bool); 5] = [
    (Kind::Journal, false),
    (Kind::Journal, true),
    (Kind::Bare, false),
    (Kind::Fstx, false),
    (Kind::FsTransaction, false),
];

/// The syncs of one contender. A round is one write of this many new files, and perhaps settling after it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Syncs {
    pub kind: Kind,
    pub settles: bool,
    pub files: usize,
    pub write: Counts,
    pub settle: Counts,
}

/// One figure a round. None where nothing can be counted.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Counts {
    pub calls: Vec<u64>,
    pub flushes: Vec<u64>,
}

/// Counts the syncs of everybody.
pub fn measure(place: &Place, homes: &mut Homes, scale: &Scale) -> Result<Vec<Syncs>> {
    let mut all = Vec::new();
    for files in [1, 100] {
        for (kind, settles) in COUNTED {
            all.push(count(Task { kind, settles, root: homes.make(place)?, files, rounds: scale.sync_rounds })?);
        }
    }
    Ok(all)
}

fn count(task: Task) -> Result<Syncs> {
    let Task { kind, settles, ref root, files, rounds } = task;
    let root = root.clone();
    let log = tempfile::NamedTempFile::new()?;
    let log_path = log.path().to_str().ok_or("the name of a temporary file is not UTF-8")?;
    let tracer = ["strace", "-f", "-qq", "--seccomp-bpf", "-e", TRACED, "-o", log_path];
    let tracer = if child::has_strace() { tracer.as_slice() } else { &[] };
    let flushes: Vec<Flushes> = child::answer_of(child::command(tracer, &child::Task::Syncs(task))?)?;
    check(&root, files, rounds)?;
    let (mut write, mut settle) = (Counts::default(), Counts::default());
    for [before, between, after] in flushes.into_iter().flatten() {
        write.flushes.push(between - before);
        settle.flushes.push(after - between);
    }
    for [of_write, of_settle] in between_marks(&fs::read_to_string(log.path())?) {
        write.calls.push(of_write);
        settle.calls.push(of_settle);
    }
    Ok(Syncs { kind, settles, files, write, settle })
}

/// Everything that was to be written is there.
fn check(root: &Path, files: usize, rounds: usize) -> Result<()> {
    for file in 0..files * rounds {
        let path = root.join(path(file));
        let found = fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        if found != content(file / files) {
            return Err(format!("{}: not what was written", path.display()).into());
        }
    }
    Ok(())
}

/// How many calls stand in a trace between the first and the second mark of each round, and the second and the third.
fn between_marks(trace: &str) -> Vec<[u64; 2]> {
    let mut rounds = Vec::new();
    let (mut marks, mut counted) = (0, [0; 2]);
    for call in trace.lines().filter(|line| line.contains('(') && !line.contains("resumed")) {
        match (call.contains("getppid("), marks) {
            (true, 2) => {
                rounds.push(std::mem::take(&mut counted));
                marks = 0;
            }
            (true, _) => marks += 1,
            (false, 0) => {}
            (false, _) => counted[marks - 1] += 1,
        }
    }
    rounds
}

/// Writes, and perhaps settles, `rounds` times.
#[derive(Debug, Serialize, Deserialize)]
pub struct Task {
    kind: Kind,
    settles: bool,
    root: PathBuf,
    files: usize,
    rounds: usize,
}

/// What the device had been asked for before, between and after. None where that cannot be told.
type Flushes = Option<[u64; 3]>;

impl Task {
    pub fn run(&self) -> Result<Vec<Flushes>> {
        let never = Duration::from_secs(3600);
        let options = Journal::options().settle_after(never).settle_bytes(u64::MAX).settle_paths(u64::MAX);
        let contender = self.kind.open_with(&self.root, options)?;
        let device = LoopDevice::below(&self.root)?;
        // As much before it counts. A log that has been filled once and carried over, as the background does, is written
        // over from then on; of one that grows, the filesystem has to note that, too.
        for round in self.rounds..2 * self.rounds {
            let first = round * self.files;
            contender.write(first..first + self.files, round)?;
        }
        if self.kind == Kind::Journal {
            let database = Connection::open(self.root.join(".journal/journal.db"))?;
            database.query_row("PRAGMA wal_checkpoint(PASSIVE)", (), |_| Ok(()))?;
        }
        (0..self.rounds).map(|round| self.round(&contender, device.as_ref(), round)).collect()
    }

    fn round(&self, contender: &Contender, device: Option<&LoopDevice>, round: usize) -> Result<Flushes> {
        let flushes = || device.map(LoopDevice::flushes).transpose();
        let before = flushes()?;
        mark();
        let first = round * self.files;
        contender.write(first..first + self.files, round)?;
        mark();
        let between = flushes()?;
        if self.settles {
            contender.settle()?;
        }
        mark();
        let after = flushes()?;
        Ok(before.zip(between).zip(after).map(|((before, between), after)| [before, between, after]))
    }
}

/// A system call that changes nothing, for the tracer to see.
fn mark() {
    black_box(parent_id());
}
