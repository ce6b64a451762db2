//! Small transactions of many at once: processes, or threads of one process.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use journal_kb::{Begin, Journal};
use journal_kb_peers::Result;
use journal_kb_peers::shared::{Homes, Place};
use rusqlite::{Connection, TransactionBehavior};
use serde::{Deserialize, Serialize};

use super::scale::Scale;
use super::talk::Talk;
use crate::child;

const SCHEMA: &str = "CREATE TABLE entry (id INTEGER PRIMARY KEY, who INTEGER NOT NULL, text TEXT NOT NULL) STRICT";
const INSERT: &str = "INSERT INTO entry (who, text) VALUES (?1, ?2)";
const TEXT: &str = "pages/greeting.md";
/// What others wait for SQLite's busy handler, at most: longer than anything here lasts.
const BUSY: Duration = Duration::from_secs(60);

/// How a row is committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum How {
    /// A transaction of the journal, under a lock that nobody else wants.
    Transactions,
    /// A write of rows alone.
    Write,
    /// Plain SQLite at FULL, with its own busy handler.
    Sqlite,
}

/// Threads that commit as long as they are told.
#[derive(Debug, Serialize, Deserialize)]
pub struct Task {
    root: PathBuf,
    how: How,
    number: usize,
    threads: usize,
    ms: u64,
}

/// What one thread did.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Ran {
    pub commits: usize,
    /// The longest that a commit took, in nanoseconds.
    pub longest: f64,
    /// How long it was at it, in nanoseconds.
    pub time: f64,
}

/// Some who committed at the same time.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Crowd {
    pub how: How,
    pub processes: usize,
    pub threads: usize,
    pub ran: Vec<Ran>,
}

impl Crowd {
    /// What a commit took on average, over all of them.
    pub fn each(&self) -> f64 {
        1.0 / self.ran.iter().map(|ran| ran.commits as f64 / ran.time).sum::<f64>()
    }

    /// The same, of the one who came to do the least, and the most.
    pub fn slowest_and_fastest(&self) -> (f64, f64) {
        let each = self.ran.iter().map(|ran| ran.time / ran.commits.max(1) as f64);
        each.fold((0.0, f64::INFINITY), |(slowest, fastest), each| (each.max(slowest), each.min(fastest)))
    }

    pub fn longest(&self) -> f64 {
        self.ran.iter().map(|ran| ran.longest).fold(0.0, f64::max)
    }
}

impl Task {
    /// Says when it is ready, begins when it is told, and answers what its threads did.
    pub fn run(&self) -> Result<Vec<Ran>> {
        let journal = if self.how == How::Sqlite { None } else { Some(Journal::open(&self.root)?) };
        println!("0");
        std::io::stdin().read_line(&mut String::new())?;
        let threads: Vec<_> = std::thread::scope(|scope| {
            let start = |thread: usize| {
                let journal = journal.as_ref();
                scope.spawn(move || self.commit(journal, thread).map_err(|error| error.to_string()))
            };
            let threads: Vec<_> = (0..self.threads).map(start).collect();
            threads.into_iter().map(|thread| thread.join()).collect()
        });
        let mut ran = Vec::new();
        for thread in threads {
            ran.push(thread.map_err(|_| "a thread panicked")??);
        }
        if let Some(journal) = journal {
            journal.close()?;
        }
        Ok(ran)
    }

    fn commit(&self, journal: Option<&Journal>, thread: usize) -> Result<Ran> {
        let who = (self.number * self.threads + thread) as i64;
        let lock = format!("of-{who}");
        match (journal, self.how) {
            (Some(journal), How::Write) => {
                self.over_and_over(|| Ok(journal.write(|rows| rows.execute(INSERT, (who, TEXT)).map(drop))?))
            }
            (Some(journal), _) => self.over_and_over(|| {
                let mut txn = journal.begin_with(Begin::new("").lock(&lock))?;
                txn.sql(move |rows| rows.execute(INSERT, (who, TEXT)).map(drop))?;
                txn.commit()?;
                Ok(())
            }),
            (None, _) => {
                let mut connection = plain(&self.root)?;
                self.over_and_over(|| {
                    let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
                    tx.prepare_cached(INSERT)?.execute((who, TEXT))?;
                    Ok(tx.commit()?)
                })
            }
        }
    }

    fn over_and_over(&self, mut commit: impl FnMut() -> Result<()>) -> Result<Ran> {
        let (start, limit) = (Instant::now(), Duration::from_millis(self.ms));
        let (mut commits, mut longest) = (0, Duration::ZERO);
        let mut before = start;
        while before.duration_since(start) < limit {
            commit()?;
            let now = Instant::now();
            longest = longest.max(now.duration_since(before));
            before = now;
            commits += 1;
        }
        let time = before.duration_since(start).as_nanos() as f64;
        Ok(Ran { commits, longest: longest.as_nanos() as f64, time })
    }
}

/// A database as those have it who want what is committed to be durable.
fn plain(root: &Path) -> Result<Connection> {
    let connection = Connection::open(root.join("rows.db"))?;
    connection.busy_timeout(BUSY)?;
    let mode: String = connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
    if mode != "wal" {
        return Err(format!("the journal mode is {mode}").into());
    }
    connection.pragma_update(None, "synchronous", "FULL")?;
    Ok(connection)
}

/// Has so many processes of so many threads commit at the same time, on a new tree.
fn crowd(place: &Place, homes: &mut Homes, how: How, processes: usize, threads: usize, ms: u64) -> Result<Crowd> {
    let root = homes.make(place)?;
    match how {
        How::Sqlite => plain(&root)?.execute_batch(SCHEMA)?,
        How::Transactions | How::Write => {
            let journal = Journal::open(&root)?;
            journal.migrate(&[SCHEMA])?;
            journal.close()?;
        }
    }
    let mut talks = Vec::new();
    for number in 0..processes {
        let task = Task { root: root.clone(), how, number, threads, ms };
        let mut talk = Talk::start(child::command(&[], &child::Task::Commits(task))?)?;
        talk.hear::<u64>()?;
        talks.push(talk);
    }
    talks.iter_mut().try_for_each(|talk| talk.tell("begin"))?;
    let mut ran: Vec<Ran> = Vec::new();
    for mut talk in talks {
        ran.extend(talk.hear::<Vec<Ran>>()?);
        talk.end()?;
    }
    let crowd = Crowd { how, processes, threads, ran };
    let rows = match how {
        How::Sqlite => plain(&root)?,
        How::Transactions | How::Write => Connection::open(root.join(".journal/journal.db"))?,
    };
    let rows: usize = rows.query_row("SELECT count(*) FROM entry", (), |row| row.get(0))?;
    let commits: usize = crowd.ran.iter().map(|ran| ran.commits).sum();
    if rows == commits { Ok(crowd) } else { Err(format!("{commits} commits left {rows} rows").into()) }
}

/// Processes that commit, beside one alone before and after them, and beside what SQLite does by itself.
pub fn processes(place: &Place, homes: &mut Homes, scale: &Scale) -> Result<Vec<Crowd>> {
    let (all, ms) = (scale.processes, scale.crowd_ms);
    let rounds = [
        (How::Transactions, 1, ms / 2),
        (How::Transactions, all, ms),
        (How::Transactions, 1, ms / 2),
        (How::Sqlite, 1, ms / 2),
        (How::Sqlite, all, ms),
    ];
    rounds.into_iter().map(|(how, processes, ms)| crowd(place, homes, how, processes, 1, ms)).collect()
}

/// Threads of one process that commit, beside plain SQLite, which has one at a time.
pub fn threads(place: &Place, homes: &mut Homes, scale: &Scale) -> Result<Vec<Crowd>> {
    let mut found = Vec::new();
    for _ in 0..scale.group_rounds {
        found.push(crowd(place, homes, How::Sqlite, 1, 1, scale.group_ms)?);
        for &threads in &scale.threads {
            for how in [How::Write, How::Transactions] {
                found.push(crowd(place, homes, how, 1, threads, scale.group_ms)?);
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_commits_as_often_as_all_of_it_together() {
        let ran = |commits: usize, longest: f64| Ran { commits, longest, time: 12.0 };
        let crowd = Crowd { how: How::Write, processes: 1, threads: 2, ran: vec![ran(4, 5.0), ran(2, 7.0)] };
        assert_eq!((crowd.each(), crowd.slowest_and_fastest(), crowd.longest()), (2.0, (6.0, 3.0), 7.0));
    }
}
