//! The journal's side: a process that does with its locks what it is told.

use std::collections::HashMap;
use std::io::BufRead;
use std::path::{Path, PathBuf};

use journal_kb::{Acquire, Flight, Journal, Lock, Transaction};
use journal_kb_peers::Result;
use serde::{Deserialize, Serialize};

use super::talk::now;
use crate::guards::rounds::mark;

/// Knows some verbs more than the others: `fenced NAME TIMES`, a cycle in which the fence is asked for; `begin NAME`, which
/// takes a lock and begins a transaction under it; `skip NAME TIMES`, flights that another process is at already.
#[derive(Debug, Serialize, Deserialize)]
pub struct Task {
    root: PathBuf,
}

/// A lock, and what goes on under it.
struct Held {
    /// Goes first.
    _transaction: Option<Transaction>,
    lock: Lock,
}

impl Task {
    pub fn of(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    pub fn run(&self) -> Result<()> {
        let journal = Journal::open(&self.root)?;
        let mut held = HashMap::new();
        for line in std::io::stdin().lock().lines() {
            println!("{}", told(&journal, &mut held, &line?)?);
        }
        drop(held);
        Ok(journal.close()?)
    }
}

fn told(journal: &Journal, held: &mut HashMap<String, Held>, line: &str) -> Result<String> {
    let words: Vec<_> = line.split(' ').collect();
    let take = |name: &str| journal.lock_with(Acquire::new(name).purpose("measured"));
    Ok(match words[..] {
        ["cycle", name, times] => times_of(times, || {
            drop(journal.lock(name)?);
            Ok(())
        })?,
        ["fenced", name, times] => times_of(times, || {
            let lock = journal.lock(name)?;
            lock.fence()?;
            drop(lock);
            Ok(())
        })?,
        ["take", name] => {
            let lock = take(name)?;
            let got = now()?;
            held.insert(name.to_owned(), Held { _transaction: None, lock });
            got.to_string()
        }
        ["begin", name] => {
            let lock = take(name)?;
            let transaction = lock.begin("measured")?;
            held.insert(name.to_owned(), Held { _transaction: Some(transaction), lock });
            now()?.to_string()
        }
        ["free", name] => {
            let Held { lock, .. } = held.remove(name).ok_or("a lock that is not held")?;
            let start = now()?;
            match lock.release()[..] {
                [] => start.to_string(),
                [ref warning, ..] => return Err(warning.to_string().into()),
            }
        }
        ["skip", name, times] => {
            mark();
            let took = times_of(times, || match journal.single_flight(name, |_| Ok(()))? {
                Flight::Skipped(holder) if holder.purpose == "measured" => Ok(()),
                other => Err(format!("{other:?}: not skipped for the one who is at it").into()),
            });
            mark();
            took?
        }
        _ => return Err(format!("{line}: nothing that could be done").into()),
    })
}

/// What each of so many took, in nanoseconds, as JSON.
fn times_of(times: &str, mut once: impl FnMut() -> Result<()>) -> Result<String> {
    let mut took = Vec::new();
    for _ in 0..times.parse()? {
        let start = now()?;
        once()?;
        took.push(now()? - start);
    }
    Ok(serde_json::to_string(&took)?)
}
