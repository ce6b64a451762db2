//! What the processes of a crew do.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use journal_kb::{Begin, Journal, Transaction};

use super::witness::{NOTHING, Witness};
use crate::guard_model::Random;
use crate::support;

const ORDERS: &str = "JOURNAL_KB_TORMENT";
/// Longer than any wait for a lock that is not stuck.
const LONG: Duration = Duration::from_secs(600);

/// What the threads of a process are to do, over and over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// Holds a lock; commits under it now and then, or does not.
    Hold,
    /// Commits a row, under a lock of its own.
    Commit,
}

/// What a process is told.
#[derive(Clone, Debug)]
pub(super) struct Orders {
    pub(super) threads: u32,
    /// How many locks there are to choose from.
    pub(super) locks: u32,
    pub(super) work: Work,
}

impl Orders {
    pub(super) fn give<'c>(&self, process: u32, command: &'c mut Command) -> &'c mut Command {
        let Self { threads, locks, work } = self;
        command.env(ORDERS, format!("{process} {threads} {locks} {work:?}"))
    }

    fn taken() -> (u32, Self) {
        let orders = std::env::var(ORDERS).unwrap();
        let words: Vec<_> = orders.split(' ').collect();
        let number = |at: usize| words[at].parse().unwrap();
        let work = [Work::Hold, Work::Commit].into_iter().find(|work| format!("{work:?}") == words[3]).unwrap();
        (number(0), Self { threads: number(1), locks: number(2), work })
    }
}

/// Makes the journal, and what is worked on.
pub(super) fn lay(root: &Path) {
    let journal = Journal::open(root).unwrap();
    journal
        .migrate(&[
            "CREATE TABLE app_seen (lock TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT",
            "CREATE TABLE app_commit (id INTEGER PRIMARY KEY, who TEXT NOT NULL) STRICT",
        ])
        .unwrap();
    journal.close().unwrap();
}

#[test]
fn child() {
    let Some(home) = support::child_root() else { return };
    // A test that fails leaves nobody behind.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL)).unwrap();
    let (process, orders) = Orders::taken();
    let journal = Journal::open(home.join("root")).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..orders.threads {
            let hand = Hand { home: &home, journal: &journal, who: format!("{process}.{thread}") };
            let orders = &orders;
            let seed = (u64::from(process) << 32 | u64::from(thread)) + 1;
            scope.spawn(move || hand.work(orders, Random(seed)));
        }
    });
    journal.close().unwrap();
}

/// One thread of one process.
struct Hand<'h> {
    home: &'h Path,
    journal: &'h Journal,
    who: String,
}

impl Hand<'_> {
    fn work(&self, orders: &Orders, mut random: Random) {
        let witness = Witness::open(&self.home.join("witness"));
        // Neighbouring seeds begin alike.
        (0..20).for_each(|_| drop(random.below(2)));
        let mut time = 0;
        while !self.home.join("stop").exists() {
            time += 1;
            let value = format!("{}.{time}", self.who);
            match orders.work {
                Work::Hold => {
                    let lock = format!("lock-{}", random.below(orders.locks as usize));
                    self.hold(&witness, &lock, &value, random.below(10));
                }
                Work::Commit => self.commit(&witness, &value),
            }
        }
    }

    fn hold(&self, witness: &Witness, lock: &str, value: &str, how: usize) {
        let who = &self.who;
        let mut txn = self.journal.begin_with(Begin::new("torment").lock(lock).wait(LONG)).unwrap();
        enter(self.journal, witness, who, lock);
        match how {
            // Most of the time it is only held.
            0..6 => {
                witness.says(&format!("leave {who} {lock}"));
                drop(txn);
            }
            6..9 => {
                set(&mut txn, lock, value);
                witness.says(&format!("intend {who} {lock} {value}"));
                witness.says(&format!("leave {who} {lock}"));
                txn.commit().unwrap();
                witness.says(&format!("done {who} {value}"));
            }
            _ => {
                // Changed in place under a guard, and put back.
                txn.guard_paths([lock]).unwrap();
                fs::write(self.journal.root().join(lock), "under a guard").unwrap();
                set(&mut txn, "rolled back", value);
                witness.says(&format!("leave {who} {lock}"));
                txn.rollback().unwrap();
            }
        }
    }

    fn commit(&self, witness: &Witness, value: &str) {
        let who = self.who.clone();
        let lock = format!("of-{who}");
        let mut txn = self.journal.begin_with(Begin::new("torment").lock(&lock).wait(LONG)).unwrap();
        enter(self.journal, witness, &self.who, &lock);
        txn.sql(move |rows| rows.execute("INSERT INTO app_commit (who) VALUES (?1)", [&who]).map(drop)).unwrap();
        witness.says(&format!("leave {} {lock}", self.who));
        txn.commit().unwrap();
        witness.says(&format!("done {} {value}", self.who));
    }
}

/// Says that a lock is held, and what is there.
fn enter(journal: &Journal, witness: &Witness, who: &str, lock: &str) {
    let read = fs::read_to_string(journal.root().join(lock));
    let file = match read {
        Ok(value) => value,
        Err(error) => {
            assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{error}");
            NOTHING.to_owned()
        }
    };
    let row = journal.read(|rows| {
        rows.query_opt("SELECT value FROM app_seen WHERE lock = ?1", [lock], |row| row.get::<_, String>(0))
    });
    let row = row.unwrap().unwrap_or_else(|| NOTHING.to_owned());
    witness.says(&format!("enter {who} {lock} exclusive 0 {file} {row}"));
}

/// The value of a lock, in its file and in its row.
fn set(txn: &mut Transaction, lock: &str, value: &str) {
    txn.write(lock, value).unwrap();
    let row = (lock.to_owned(), value.to_owned());
    txn.sql(move |rows| {
        let (lock, value) = &row;
        rows.execute("INSERT INTO app_seen VALUES (?1, ?2) ON CONFLICT DO UPDATE SET value = ?2", [lock, value])
            .map(drop)
    })
    .unwrap();
}

/// Every lock that there ever was can be had at once, and nothing is left of what was killed.
pub(super) fn nothing_is_left(root: &Path, witness: &Witness) {
    let journal = Journal::open(root).unwrap();
    let recovered = journal.recover().unwrap();
    assert_eq!((recovered.pending, recovered.quarantined, recovered.moved_aside), (0, 0, 0), "{recovered:?}");
    for entry in fs::read_dir(root.join(".journal/locks")).unwrap() {
        let file = entry.unwrap().file_name().into_string().unwrap();
        let lock = file.strip_suffix(".lock").unwrap();
        let held = journal.begin_with(Begin::new("").lock(lock).wait(Duration::ZERO)).unwrap();
        enter(&journal, witness, "0.0", lock);
        witness.says(&format!("leave 0.0 {lock}"));
        held.rollback().unwrap();
    }
    assert!(journal.quarantine().list().unwrap().is_empty());
    journal.close().unwrap();
    let stage: Vec<_> = fs::read_dir(root.join(".journal/stage")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(stage.is_empty(), "{stage:?}");
}
