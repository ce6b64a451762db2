//! What a message adds to a commit.

use std::path::PathBuf;
use std::time::Instant;

use journal_kb::{Journal, Transaction};
use journal_kb_peers::Result;
use journal_kb_peers::shared::{Homes, Place, content, path};
use serde::{Deserialize, Serialize};

use super::scale::Scale;
use super::work::{self, Keys, TOPIC, nanoseconds, payload};
use crate::child;
use crate::guards::rounds::mark;
use crate::strace;

const SCHEMA: &str = "CREATE TABLE entry (id INTEGER PRIMARY KEY, text TEXT NOT NULL) STRICT";
const INSERT: &str = "INSERT INTO entry (text) VALUES ('a row of the application')";
/// How many commits of each kind are traced.
const SYNC_ROUNDS: usize = 20;

/// What a transaction does besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Work {
    File,
    Row,
}

/// A transaction, and the key of the message that goes with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kind {
    pub work: Work,
    pub message: Option<Keys>,
}

impl Work {
    pub const ALL: [Self; 2] = [Self::File, Self::Row];

    pub fn name(self) -> &'static str {
        match self {
            Self::File => "a transaction of one file of 4 KiB",
            Self::Row => "a transaction of one row",
        }
    }
}

impl Kind {
    /// Each work with no message, and with one.
    pub fn all() -> impl Iterator<Item = Self> {
        let messages = [None, Some(Keys::Different), Some(Keys::Same)];
        Work::ALL.into_iter().flat_map(move |work| messages.map(|message| Self { work, message }))
    }

    pub fn name(self) -> String {
        let message = match self.message {
            None => "",
            Some(Keys::Different) => ", with a message of a new key",
            Some(Keys::Same) => ", with a message of a key that has had others",
        };
        self.work.name().to_owned() + message
    }
}

/// Commits of each kind in turns.
#[derive(Debug, Serialize, Deserialize)]
pub struct Task {
    root: PathBuf,
    times: usize,
}

/// What came of a kind.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Committed {
    pub kind: Kind,
    /// Nanoseconds of each.
    pub took: Vec<f64>,
}

impl Task {
    pub fn run(&self) -> Result<Vec<Committed>> {
        let journal = Journal::open(&self.root)?;
        journal.migrate(&[SCHEMA])?;
        let mut all: Vec<_> = Kind::all().map(|kind| Committed { kind, took: Vec::new() }).collect();
        for (number, kind) in order(self.times).enumerate() {
            let committed = all.iter_mut().find(|committed| committed.kind == kind).ok_or("a kind that is none")?;
            let start = Instant::now();
            mark();
            let mut txn = journal.begin("measured")?;
            stage(&mut txn, kind, number)?;
            txn.commit()?;
            committed.took.push(nanoseconds(start));
            mark();
        }
        journal.close()?;
        Ok(all)
    }
}

/// Those of one kind of work in turns: each then comes behind one that leaves as much to be done by the next.
fn order(times: usize) -> impl Iterator<Item = Kind> {
    let in_turns = move |work| (0..times).flat_map(move |_| Kind::all().filter(move |kind| kind.work == work));
    Work::ALL.into_iter().flat_map(in_turns)
}

fn stage(txn: &mut Transaction, kind: Kind, number: usize) -> Result<()> {
    match kind.work {
        Work::File => txn.write(path(number), content(number))?,
        Work::Row => txn.sql(|rows| rows.execute(INSERT, ()).map(drop))?,
    }
    if let Some(keys) = kind.message {
        txn.send_bytes(TOPIC, &keys.key(number), payload(number))?;
    }
    Ok(())
}

/// What was measured of each, and the syncs that were counted.
type Measured = (Vec<Vec<Committed>>, Vec<(Kind, Vec<f64>)>);

/// Commits of each round, and the system calls that sync of some more.
pub fn measure(place: &Place, homes: &mut Homes, scale: &Scale) -> Result<Measured> {
    let task = |root: PathBuf, times: usize| child::Task::Outbox(work::Task::Commit(Task { root, times }));
    let mut rounds = Vec::new();
    for _ in 0..scale.rounds {
        rounds.push(child::answer_of(child::command(&[], &task(homes.make(place)?, scale.commits))?)?);
    }
    let mut syncs: Vec<(Kind, Vec<f64>)> = Vec::new();
    let counted = strace::syncs_between_marks(&task(homes.make(place)?, SYNC_ROUNDS))?;
    if let Some(counted) = counted {
        if counted.len() != order(SYNC_ROUNDS).count() {
            return Err(format!("{} transactions were traced", counted.len()).into());
        }
        for kind in Kind::all() {
            let of_kind = order(SYNC_ROUNDS).zip(&counted).filter(|(of, _)| *of == kind);
            syncs.push((kind, of_kind.map(|(_, count)| *count as f64).collect()));
        }
    }
    Ok((rounds, syncs))
}
