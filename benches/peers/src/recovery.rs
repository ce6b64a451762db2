//! Opening a journal of which a power cut left much to be done again.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use journal_kb::Journal;
use journal_kb_peers::shared::{Homes, Place, content, path};
use journal_kb_peers::{Kind, Result};
use rusqlite::Connection;
use rusqlite::config::DbConfig;
use serde::{Deserialize, Serialize};

use crate::child;
use crate::scale::Scale;

/// Files in each transaction that is recovered.
const FILES: usize = 100;

/// How long opening takes, in nanoseconds, in each round.
pub fn measure(place: &Place, homes: &mut Homes, scale: &Scale) -> Result<Vec<f64>> {
    (0..scale.recovery_rounds).map(|_| recover(&homes.make(place)?, scale.recovered / FILES)).collect()
}

fn recover(root: &Path, transactions: usize) -> Result<f64> {
    kill_after(root, transactions)?;
    lose_what_was_not_synced(root, transactions)?;
    let start = Instant::now();
    let journal = Journal::open(root)?;
    let took = start.elapsed();
    check(root, transactions)?;
    let recovered = journal.recover()?;
    if recovered.applied != transactions as u64 || recovered.moved_aside + recovered.pending + recovered.quarantined > 0
    {
        return Err(format!("of {transactions} transactions: {recovered:?}").into());
    }
    journal.close()?;
    Ok(took.as_nanos() as f64)
}

/// Has a child commit, and kills it before anything is settled.
fn kill_after(root: &Path, transactions: usize) -> Result<()> {
    let task = child::Task::Recovery(Task { root: root.to_owned(), transactions });
    let mut child = child::command(&[], &task)?.stdout(Stdio::piped()).spawn()?;
    let done = says_so(&mut child);
    child.kill()?;
    child.wait()?;
    done
}

/// Waits until the child says that it is done, which it does without ending.
fn says_so(child: &mut Child) -> Result<()> {
    let mut said = [0];
    child.stdout.as_mut().ok_or("the child has no output")?.read_exact(&mut said)?;
    Ok(())
}

/// Makes of a killed process a power cut: the files are empty or not there, and the notes of what was applied count no
/// longer. The log stays, as it would.
fn lose_what_was_not_synced(root: &Path, transactions: usize) -> Result<()> {
    let database = Connection::open(root.join(".journal/journal.db"))?;
    database.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    let changed = database.execute(
        "UPDATE journal_txn SET state = 'committed', applied_mark = x'00' WHERE state IN ('committed', 'applied')",
        (),
    )?;
    if changed != transactions {
        return Err(format!("{changed} of {transactions} transactions were left unsettled").into());
    }
    for file in 0..transactions * FILES {
        let path = root.join(path(file));
        if file % 2 == 0 { fs::write(path, "")? } else { fs::remove_file(path)? }
    }
    Ok(())
}

/// Every file is there again.
fn check(root: &Path, transactions: usize) -> Result<()> {
    for file in 0..transactions * FILES {
        if fs::read(root.join(path(file))).ok().is_none_or(|found| found != content(file / FILES)) {
            return Err(format!("{} was not recovered", path(file)).into());
        }
    }
    Ok(())
}

/// Commits, says so, and waits to be killed.
#[derive(Debug, Serialize, Deserialize)]
pub struct Task {
    root: PathBuf,
    transactions: usize,
}

impl Task {
    pub fn run(&self) -> Result<()> {
        let never = Duration::from_secs(3600);
        let options = Journal::options().settle_after(never).settle_bytes(u64::MAX).settle_paths(u64::MAX);
        let journal = Kind::Journal.open_with(&self.root, options)?;
        for round in 0..self.transactions {
            journal.write(round * FILES..(round + 1) * FILES, round)?;
        }
        println!("done");
        loop {
            std::thread::park();
        }
    }
}
