//! Many items: recorded alone, beside plain SQLite, and gone on with.

use std::path::{Path, PathBuf};
use std::time::Instant;

use journal_kb::{Job, Journal, Run, Started};
use journal_kb_peers::Result;
use journal_kb_peers::shared::{Homes, Place};
use rusqlite::{Connection, TransactionBehavior};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::scale::Scale;
use super::{commits, starting};
use crate::child;
use crate::memory::of_this_process;

/// What everything here is called that is a job.
pub const JOB: &str = "measured";

/// A part of a measurement that has a process of its own.
#[derive(Debug, Serialize, Deserialize)]
pub enum Task {
    Record { root: PathBuf, way: Way, items: usize, flush: usize },
    Resume { root: PathBuf },
    Commit(commits::Task),
    Start(starting::Task),
}

/// How items are recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Way {
    Journal,
    /// The same, of items that [`Run::pending`] gives.
    Pending,
    /// By hand, into a table that counts its rows.
    Rows,
    /// By hand, into a table that knows no item twice.
    Keys,
}

/// How that went. Times are in nanoseconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Recorded {
    pub way: Way,
    pub total: f64,
    /// Of each call that wrote a whole batch.
    pub flushes: Vec<f64>,
    /// The most memory that the process had.
    pub peak: u64,
}

/// How going on with it went.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Resumed {
    /// From opening the journal until it was known of an item that it is done.
    pub opened: f64,
    /// The same from starting the run.
    pub started: f64,
    pub peak: u64,
}

impl Way {
    pub const ALL: [Self; 4] = [Self::Journal, Self::Pending, Self::Rows, Self::Keys];

    pub fn name(self) -> &'static str {
        match self {
            Self::Journal => "`record`",
            Self::Pending => "`record`, of what `pending` gives",
            Self::Rows => "plain SQLite, a row each",
            Self::Keys => "plain SQLite, `item TEXT PRIMARY KEY`",
        }
    }

    fn table(self) -> &'static str {
        match self {
            Self::Keys => "CREATE TABLE done (item TEXT PRIMARY KEY, at_ms INTEGER NOT NULL)",
            _ => "CREATE TABLE done (id INTEGER PRIMARY KEY, item TEXT NOT NULL, at_ms INTEGER NOT NULL)",
        }
    }
}

/// What an item is called: in the order in which a directory would be listed, which is the best that an index can have.
pub fn item(number: usize) -> String {
    format!("documents/{number:07}.md")
}

impl Task {
    pub fn run(&self) -> Result<Value> {
        Ok(match self {
            Self::Record { root, way, items, flush } => match way {
                Way::Journal | Way::Pending => serde_json::to_value(record(root, *way, *items, *flush)?)?,
                Way::Rows | Way::Keys => serde_json::to_value(insert(root, *way, *items, *flush)?)?,
            },
            Self::Resume { root } => serde_json::to_value(resume(root)?)?,
            Self::Commit(task) => serde_json::to_value(task.run()?)?,
            Self::Start(task) => task.run()?,
        })
    }
}

/// A run that is this process's.
pub fn running(journal: &Journal, job: Job) -> Result<Run> {
    match journal.run_with(job)? {
        Started::Running(run) => Ok(run),
        Started::Skipped(holder) => Err(format!("somebody else is at it: {holder}").into()),
    }
}

pub fn nanoseconds(since: Instant) -> f64 {
    since.elapsed().as_nanos() as f64
}

fn record(root: &Path, way: Way, items: usize, flush: usize) -> Result<Recorded> {
    let journal = Journal::open(root)?;
    let run = running(&journal, Job::new(JOB).flush_items(flush))?;
    let (start, mut flushes) = (Instant::now(), Vec::new());
    let mut number = 0;
    let mut record = |item: &str| {
        // The very first was banked by itself; the others are by whoever makes a batch full.
        let full = number > 0 && number % flush == 0;
        number += 1;
        let before = full.then(Instant::now);
        run.record(item)?;
        flushes.extend(before.map(nanoseconds));
        Ok::<_, journal_kb::Error>(())
    };
    match way {
        Way::Pending => run.pending((0..items).map(item)).try_for_each(|item| record(&item))?,
        _ => (0..items).try_for_each(|number| record(&item(number)))?,
    }
    run.flush()?;
    let total = nanoseconds(start);
    let peak = of_this_process()?;
    let _ = run.stop("measured")?;
    journal.close()?;
    Ok(Recorded { way, total, flushes, peak })
}

/// The same by hand: a transaction for each batch.
fn insert(root: &Path, way: Way, items: usize, flush: usize) -> Result<Recorded> {
    let mut connection = Connection::open(root.join("rows.db"))?;
    let mode: String = connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
    if mode != "wal" {
        return Err(format!("the journal mode is {mode}").into());
    }
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.execute_batch(way.table())?;
    let (start, mut flushes) = (Instant::now(), Vec::new());
    for first in (0..items).step_by(flush) {
        let before = Instant::now();
        let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut insert = tx.prepare_cached("INSERT INTO done (item, at_ms) VALUES (?1, ?2)")?;
        for number in first..items.min(first + flush) {
            insert.execute((item(number), number as i64))?;
        }
        drop(insert);
        tx.commit()?;
        flushes.push(nanoseconds(before));
    }
    let (total, peak) = (nanoseconds(start), of_this_process()?);
    Ok(Recorded { way, total, flushes, peak })
}

fn resume(root: &Path) -> Result<Resumed> {
    let opening = Instant::now();
    let journal = Journal::open(root)?;
    let starting = Instant::now();
    let run = running(&journal, Job::new(JOB))?;
    let is_done = run.is_done(&item(0));
    let (opened, started) = (nanoseconds(opening), nanoseconds(starting));
    if !is_done {
        return Err("what was banked is not known to be done".into());
    }
    let peak = of_this_process()?;
    let _ = run.stop("measured")?;
    journal.close()?;
    Ok(Resumed { opened, started, peak })
}

/// Records many items in each way, and goes on with those of the journal.
pub fn measure(place: &Place, homes: &mut Homes, scale: &Scale) -> Result<(Vec<Recorded>, Vec<Resumed>)> {
    let (mut recorded, mut resumed) = (Vec::new(), Vec::new());
    let &Scale { items, flush, .. } = scale;
    for _ in 0..scale.rounds {
        for way in Way::ALL {
            let root = homes.make(place)?;
            let task = Task::Record { root: root.clone(), way, items, flush };
            recorded.push(child::answer_of(child::command(&[], &child::Task::Runs(task))?)?);
            check(&root, way, items)?;
            if way == Way::Journal {
                resumed.push(child::answer_of(child::command(&[], &child::Task::Runs(Task::Resume { root }))?)?);
            }
        }
    }
    Ok((recorded, resumed))
}

/// Everything that was to be recorded is there.
fn check(root: &Path, way: Way, items: usize) -> Result<()> {
    let (database, table) = match way {
        Way::Journal | Way::Pending => (".journal/journal.db", "journal_run_item"),
        Way::Rows | Way::Keys => ("rows.db", "done"),
    };
    let sql = format!("SELECT count(DISTINCT item) FROM {table}");
    let found: usize = Connection::open(root.join(database))?.query_row(&sql, (), |row| row.get(0))?;
    if found == items { Ok(()) } else { Err(format!("{way:?}: {items} items left {found} rows").into()) }
}
