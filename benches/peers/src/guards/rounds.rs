//! Transactions that guard, in a process that does nothing else: how long they take, and how much memory.

use std::hint::black_box;
use std::os::unix::process::parent_id;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use journal_kb::{Guard, Journal, Transaction};
use journal_kb_peers::Result;
use serde::{Deserialize, Serialize};

use super::tree::{self, Shape, TREE, Touch};
use crate::memory;

/// The four ways to guard that are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Way {
    /// `guard_paths` of what is changed.
    Paths,
    /// The same, of writers that replace files.
    PathsReplacing,
    /// The whole tree, whose writers replace files.
    Replacing,
    /// The whole tree, whose writers may do anything.
    Any,
}

/// How a transaction ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    RollBack,
    Commit,
    /// By SIGKILL, after it has said so.
    Death,
}

/// Transactions, one after the other.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Task {
    pub root: PathBuf,
    pub shape: Shape,
    pub way: Way,
    pub touched: usize,
    pub end: End,
    pub rounds: usize,
    /// One before them is not counted: it takes up what was done to the tree before.
    pub warms_up: bool,
}

/// One transaction, in nanoseconds. What is done to the files between the two is somebody else's work.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Round {
    /// Beginning it, and guarding.
    pub begin: f64,
    /// Rolling back or committing.
    pub end: f64,
}

impl Round {
    pub fn total(&self) -> f64 {
        self.begin + self.end
    }
}

/// What a process found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ran {
    pub rounds: Vec<Round>,
    /// The most memory it had, in bytes.
    pub peak: u64,
}

impl Task {
    pub fn run(&self) -> Result<Ran> {
        let journal = quiet(&self.root)?;
        let mut rounds = Vec::with_capacity(self.rounds);
        for round in 0..self.rounds + usize::from(self.warms_up) {
            let counts = round > 0 || !self.warms_up;
            let took = self.round(&journal, round, counts)?;
            if counts {
                rounds.push(took);
            }
        }
        journal.close()?;
        Ok(Ran { rounds, peak: memory::of_this_process()? })
    }

    fn round(&self, journal: &Journal, round: usize, counts: bool) -> Result<Round> {
        let Self { root, shape, touched, .. } = self;
        let files: Vec<usize> = shape.touched(*touched, round).collect();
        let before = self.versions(&files)?;
        let mark = || {
            if counts {
                mark()
            }
        };
        mark();
        let start = Instant::now();
        let mut txn = journal.begin("measured")?;
        self.guard(&mut txn, &files)?;
        let begin = start.elapsed();
        mark();
        let how = match self.way {
            Way::Replacing | Way::PathsReplacing => Touch::Replace,
            Way::Any | Way::Paths => Touch::InPlace,
        };
        // No content recurs, whatever was done to this tree before.
        let version = begin.subsec_nanos() as usize + (round << 32) + 1;
        for &file in &files {
            tree::touch(root, *shape, file, how, version)?;
        }
        let changed = self.versions(&files)?;
        mark();
        let start = Instant::now();
        let expected = match self.end {
            End::RollBack => {
                txn.rollback()?;
                before
            }
            End::Commit => {
                let receipt = txn.commit()?;
                if receipt.changes().len() != *touched {
                    return Err(format!("of {touched} changes {} were found", receipt.changes().len()).into());
                }
                changed
            }
            End::Death => {
                println!("{}", serde_json::to_string(&before)?);
                loop {
                    std::thread::park();
                }
            }
        };
        let end = start.elapsed();
        mark();
        check(root, *shape, &files, &expected)?;
        Ok(Round { begin: begin.as_nanos() as f64, end: end.as_nanos() as f64 })
    }

    fn guard(&self, txn: &mut Transaction, files: &[usize]) -> Result<()> {
        let paths = || files.iter().map(|&file| self.shape.path(file));
        match self.way {
            Way::Paths => txn.guard_paths(paths())?,
            Way::PathsReplacing => txn.guard_with(Guard::paths(paths()).replacing())?,
            Way::Any => txn.guard(TREE)?,
            Way::Replacing => txn.guard_with(Guard::tree(TREE).replacing())?,
        }
        Ok(())
    }

    fn versions(&self, files: &[usize]) -> Result<Versions> {
        files.iter().map(|&file| tree::version(&self.root, self.shape, file)).collect()
    }
}

/// Which content each file has.
pub type Versions = Vec<(Vec<u8>, usize)>;

/// Every file has the content that it should have.
pub fn check(root: &Path, shape: Shape, files: &[usize], expected: &Versions) -> Result<()> {
    for (&file, expected) in files.iter().zip(expected) {
        if tree::version(root, shape, file)? != *expected {
            return Err(format!("{}: neither put back nor kept", shape.path(file).display()).into());
        }
    }
    Ok(())
}

/// A journal that does nothing in the background while this is measured.
pub fn quiet(root: &Path) -> Result<Journal> {
    let never = Duration::from_secs(3600);
    Ok(Journal::options().settle_after(never).settle_bytes(u64::MAX).settle_paths(u64::MAX).open(root)?)
}

/// A system call that changes nothing, for the tracer to see.
pub fn mark() {
    black_box(parent_id());
}
