//! How much memory writing takes at its peak, in a process that does nothing else.

use std::fs::{self, File};
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use journal_kb::Journal;
use journal_kb_peers::Result;
use journal_kb_peers::shared::{Place, content, path};
use serde::{Deserialize, Serialize};

use crate::child;
use crate::machine::field;
use crate::scale::Scale;

/// Where the one large file lies.
const LARGE: &str = "large";
/// What it is full of.
const BYTE: u8 = 7;

/// The peaks of each round, in bytes.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Memory {
    pub one_large: Vec<u64>,
    pub many_small: Vec<u64>,
}

/// What is written in one transaction.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum Work {
    OneLarge { bytes: u64 },
    ManySmall { files: usize },
}

pub fn measure(place: &Place, scale: &Scale) -> Result<Memory> {
    let mut memory = Memory::default();
    for _ in 0..scale.memory_rounds {
        memory.one_large.push(peak(place, Work::OneLarge { bytes: scale.large })?);
        memory.many_small.push(peak(place, Work::ManySmall { files: scale.many })?);
    }
    Ok(memory)
}

fn peak(place: &Place, work: Work) -> Result<u64> {
    let home = tempfile::tempdir_in(&place.path)?;
    let root = home.path().to_owned();
    let peak = child::answer_of(child::command(&[], &child::Task::Memory(Task { root, work }))?)?;
    check(home.path(), work)?;
    Ok(peak)
}

/// Everything that was to be written is there.
fn check(root: &Path, work: Work) -> Result<()> {
    let whole = match work {
        Work::OneLarge { bytes } => is_filled(&root.join(LARGE), bytes)?,
        Work::ManySmall { files } => {
            let content = content(0);
            (0..files).all(|file| fs::read(root.join(path(file))).is_ok_and(|found| found == content))
        }
    };
    if whole { Ok(()) } else { Err(format!("{work:?}: not what was written").into()) }
}

fn is_filled(path: &Path, bytes: u64) -> Result<bool> {
    let (mut file, mut left, mut buffer) = (BufReader::new(File::open(path)?), bytes, vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(left == 0),
            read if buffer[..read].iter().all(|byte| *byte == BYTE) => left = left.saturating_sub(read as u64),
            _ => return Ok(false),
        }
    }
}

/// Writes in one transaction, and answers the peak of this process.
#[derive(Debug, Serialize, Deserialize)]
pub struct Task {
    root: PathBuf,
    work: Work,
}

impl Task {
    pub fn run(&self) -> Result<u64> {
        let journal = Journal::open(&self.root)?;
        match self.work {
            Work::OneLarge { bytes } => {
                journal.transact(|txn| txn.write_from(LARGE, std::io::repeat(BYTE).take(bytes)))?;
            }
            Work::ManySmall { files } => {
                journal.transact(|txn| (0..files).try_for_each(|file| txn.write(path(file), content(0))))?;
            }
        }
        journal.close()?;
        of_this_process()
    }
}

/// The most memory that this process had, in bytes.
pub fn of_this_process() -> Result<u64> {
    status("VmHWM")
}

/// Forgets what the most was, and answers what it has now.
pub fn forget_peak() -> Result<u64> {
    fs::write("/proc/self/clear_refs", "5")?;
    status("VmRSS")
}

fn status(name: &str) -> Result<u64> {
    let kept = fs::read_to_string("/proc/self/status")?;
    let kept = field(&kept, name).ok_or_else(|| format!("this kernel does not say {name}"))?;
    Ok(kept.trim_end_matches(" kB").parse::<u64>()? << 10)
}
