//! Items that are recorded inside commits: what that adds to a transaction.

use std::path::PathBuf;
use std::time::Instant;

use journal_kb::{Job, Journal, Run, Transaction};
use journal_kb_peers::Result;
use journal_kb_peers::shared::{Homes, Place};
use serde::{Deserialize, Serialize};

use super::scale::Scale;
use super::work::{self, JOB, nanoseconds, running};
use crate::child;
use crate::guards::rounds::mark;
use crate::strace;

const SCHEMA: &str = "CREATE TABLE entry (id INTEGER PRIMARY KEY, text TEXT NOT NULL) STRICT";
const INSERT: &str = "INSERT INTO entry (text) VALUES (?1)";

/// A transaction with a row of the application.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    Alone,
    /// That records an item.
    Records,
    /// Of an item that `pending` gave, whose tries are counted.
    Tries,
    /// Of an item that comes from elsewhere, whose tries are counted.
    TriesAtOnce,
}

impl Kind {
    pub const ALL: [Self; 4] = [Self::Alone, Self::Records, Self::Tries, Self::TriesAtOnce];

    pub fn name(self) -> &'static str {
        match self {
            Self::Alone => "a transaction of one row",
            Self::Records => "the same, that records an item",
            Self::Tries => "the same by `run.begin`, of what `pending` gives",
            Self::TriesAtOnce => "the same by `run.begin`, of an item from elsewhere",
        }
    }
}

/// Commits of each of `kinds`, one after the other, again and again.
#[derive(Debug, Serialize, Deserialize)]
pub struct Task {
    root: PathBuf,
    kinds: Vec<Kind>,
    times: usize,
}

/// What came of each kind.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Committed {
    pub kind: Kind,
    /// Nanoseconds of each.
    pub took: Vec<f64>,
    /// System calls that sync, of each; none where they are not counted.
    pub syncs: Vec<usize>,
}

impl Task {
    pub fn run(&self) -> Result<Vec<Committed>> {
        let journal = Journal::open(&self.root)?;
        journal.migrate(&[SCHEMA])?;
        let run = running(&journal, Job::new(JOB))?;
        let items: Vec<_> = (0..=self.times).map(work::item).collect();
        let mut pending = run.pending(items);
        let committed = |kind: &Kind| Committed { kind: *kind, took: Vec::new(), syncs: Vec::new() };
        let mut all: Vec<_> = self.kinds.iter().map(committed).collect();
        for number in 0..self.times {
            for committed in &mut all {
                let (start, text) = (Instant::now(), work::item(number));
                mark();
                let mut txn = begin(&journal, &run, &mut pending, committed.kind, &text)?;
                txn.sql(move |rows| rows.execute(INSERT, [&text]).map(drop))?;
                txn.commit()?;
                committed.took.push(nanoseconds(start));
                mark();
            }
        }
        drop(pending);
        let _ = run.stop("measured")?;
        journal.close()?;
        Ok(all)
    }
}

fn begin(
    journal: &Journal,
    run: &Run,
    pending: &mut impl Iterator<Item = String>,
    kind: Kind,
    item: &str,
) -> Result<Transaction> {
    // What a run would call it.
    let label = format!("{JOB}: {item}");
    Ok(match kind {
        Kind::Alone => journal.begin(&label)?,
        Kind::Records => {
            let mut txn = journal.begin(&label)?;
            txn.record(run, &format!("{item}, recorded"))?;
            txn
        }
        Kind::Tries => run.begin(&pending.next().ok_or("there are too few items")?)?,
        Kind::TriesAtOnce => run.begin(&format!("{item}, from elsewhere"))?,
    })
}

/// Commits of each kind in turn, and their syncs counted.
pub fn measure(place: &Place, homes: &mut Homes, scale: &Scale) -> Result<(Vec<Vec<Committed>>, Vec<Committed>)> {
    let task = |root: PathBuf, times: usize| {
        let task = Task { root, kinds: Kind::ALL.into(), times };
        child::Task::Runs(work::Task::Commit(task))
    };
    let mut rounds = Vec::new();
    for _ in 0..scale.rounds {
        rounds.push(child::answer_of(child::command(&[], &task(homes.make(place)?, scale.commits))?)?);
    }
    let mut counted = Vec::new();
    if let Some(between) = strace::syncs_between_marks(&task(homes.make(place)?, SYNC_ROUNDS))? {
        counted = note_syncs(&between)?;
    }
    Ok((rounds, counted))
}

/// Steps that are durable, one at a time: what one took on average.
pub fn steps(place: &Place, homes: &mut Homes, scale: &Scale) -> Result<Vec<f64>> {
    let task = Task { root: homes.make(place)?, kinds: vec![Kind::Tries], times: scale.steps };
    let all: Vec<Committed> = child::answer_of(child::command(&[], &child::Task::Runs(work::Task::Commit(task)))?)?;
    Ok(all.into_iter().flat_map(|committed| committed.took).collect())
}

/// What was counted of each kind.
fn note_syncs(between: &[usize]) -> Result<Vec<Committed>> {
    let mut all = Kind::ALL.map(|kind| Committed { kind, took: Vec::new(), syncs: Vec::new() });
    let kinds = all.len();
    if between.len() != kinds * SYNC_ROUNDS {
        return Err(format!("{} transactions were traced", between.len()).into());
    }
    for (at, count) in between.iter().enumerate() {
        all[at % kinds].syncs.push(*count);
    }
    Ok(all.into())
}

/// How many commits of each kind are traced.
const SYNC_ROUNDS: usize = 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn syncs_belong_to_the_kinds_in_their_order() {
        let between: Vec<_> = (0..Kind::ALL.len()).cycle().take(Kind::ALL.len() * SYNC_ROUNDS).collect();
        let all = note_syncs(&between).unwrap();
        let expected: Vec<_> = (0..Kind::ALL.len()).map(|count| vec![count; SYNC_ROUNDS]).collect();
        assert_eq!(all.into_iter().map(|committed| committed.syncs).collect::<Vec<_>>(), expected);
        assert!(note_syncs(&between[1..]).is_err());
    }
}
