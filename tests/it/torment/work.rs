//! What the processes of a crew do.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use journal_kb::inspect::{Inspector, LockInfo};
use journal_kb::{Acquire, Begin, Journal, LockFence, Transaction};

use super::witness::{Mode, NOTHING, Witness};
use crate::guard_model::Random;
use crate::support;

const ORDERS: &str = "JOURNAL_KB_TORMENT";
const INSERT: &str = "INSERT INTO app_commit (value) VALUES (?1)";
/// Longer than any wait for a lock that is not stuck.
const LONG: Duration = Duration::from_secs(600);

/// What the threads of a process are to do, over and over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// Holds a lock; commits under it now and then, or does not.
    Hold,
    /// Holds a lock with others.
    Share,
    /// Commits a row under a lock of its own, and one without a lock.
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
        let work =
            [Work::Hold, Work::Share, Work::Commit].into_iter().find(|work| format!("{work:?}") == words[3]).unwrap();
        (number(0), Self { threads: number(1), locks: number(2), work })
    }
}

/// Makes the journal, and what is worked on.
pub(super) fn lay(root: &Path) {
    let journal = Journal::open(root).unwrap();
    journal
        .migrate(&[
            "CREATE TABLE app_seen (lock TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT",
            "CREATE TABLE app_commit (value TEXT PRIMARY KEY) STRICT",
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
        (0..20).map(|_| random.below(2)).for_each(drop);
        let lock = |random: &mut Random| format!("lock-{}", random.below(orders.locks as usize));
        let mut time = 0;
        while !self.home.join("stop").exists() {
            time += 1;
            let value = format!("{}.{time}", self.who);
            match orders.work {
                Work::Hold if random.below(5) == 0 => self.transact(&witness, "of-transactions", &value),
                Work::Hold => self.hold(&witness, &lock(&mut random), &value, random.below(10)),
                Work::Share => self.share(&witness, &lock(&mut random)),
                Work::Commit => self.commit(&witness, &value),
            }
        }
    }

    fn hold(&self, witness: &Witness, lock: &str, value: &str, how: usize) {
        match how {
            0..4 => {
                let held = self.journal.lock_with(Acquire::new(lock).wait(LONG)).unwrap();
                // A fence is only written down for those who ask.
                let fence = (how > 0).then(|| held.fence().unwrap());
                self.enter(witness, lock, Mode::Exclusive, fence.as_ref());
                assert!(fence.is_none_or(|fence| fence.is_current().unwrap()));
                self.leave(witness, lock);
                assert!(held.release().is_empty());
            }
            4..7 => {
                let held = self.journal.lock_with(Acquire::new(lock).wait(LONG)).unwrap();
                let fence = (how > 4).then(|| held.fence().unwrap());
                self.enter(witness, lock, Mode::Exclusive, fence.as_ref());
                let mut txn = held.begin("torment").unwrap();
                set(&mut txn, lock, value);
                witness.says(&format!("intend {} {lock} {value}", self.who));
                let receipt = txn.commit().unwrap();
                witness.says(&format!("done {} {value}", self.who));
                assert!(fence.is_none_or(|fence| fence.fence() == receipt.fence()));
                self.leave(witness, lock);
            }
            7 => {
                // Changed in place under a guard, and put back.
                let held = self.journal.lock_with(Acquire::new(lock).wait(LONG)).unwrap();
                self.enter(witness, lock, Mode::Exclusive, None);
                let mut txn = held.begin("torment").unwrap();
                txn.guard_paths([lock]).unwrap();
                fs::write(self.journal.root().join(lock), "under-a-guard").unwrap();
                set(&mut txn, "rolled back", value);
                txn.rollback().unwrap();
                self.leave(witness, lock);
            }
            8 => {
                // Who is skipped has done nothing; who is not is as good as any holder.
                let flight = self.journal.single_flight(lock, |held| {
                    let fence = held.fence()?;
                    self.enter(witness, lock, Mode::Exclusive, Some(&fence));
                    self.leave(witness, lock);
                    Ok(())
                });
                flight.unwrap();
            }
            _ => self.share(witness, lock),
        }
    }

    /// A transaction by itself, whose lock is another one's name than any that is held otherwise.
    fn transact(&self, witness: &Witness, lock: &str, value: &str) {
        let mut txn = self.journal.begin_with(Begin::new("torment").lock(lock).wait(LONG)).unwrap();
        self.enter(witness, lock, Mode::Exclusive, None);
        set(&mut txn, lock, value);
        witness.says(&format!("intend {} {lock} {value}", self.who));
        // The commit releases the lock.
        self.leave(witness, lock);
        txn.commit().unwrap();
        witness.says(&format!("done {} {value}", self.who));
    }

    fn share(&self, witness: &Witness, lock: &str) {
        let held = self.journal.lock_with(Acquire::new(lock).shared().wait(LONG)).unwrap();
        self.enter(witness, lock, Mode::Shared, None);
        // So that others come to share it too.
        std::thread::sleep(Duration::from_millis(2));
        self.leave(witness, lock);
        drop(held);
    }

    fn commit(&self, witness: &Witness, value: &str) {
        let lock = format!("of-{}", self.who);
        let mut txn = self.journal.begin_with(Begin::new("torment").lock(&lock).wait(LONG)).unwrap();
        self.enter(witness, &lock, Mode::Exclusive, None);
        let under_lock = value.to_owned();
        txn.sql(move |rows| rows.execute(INSERT, [&under_lock]).map(drop)).unwrap();
        self.leave(witness, &lock);
        txn.commit().unwrap();
        witness.says(&format!("done {} {value}", self.who));
        let alone = format!("{value}.alone");
        self.journal.write(|rows| rows.execute(INSERT, [&alone]).map(drop)).unwrap();
        witness.says(&format!("done {} {alone}", self.who));
    }

    /// Says that a lock is held, and what is there.
    fn enter(&self, witness: &Witness, lock: &str, mode: Mode, fence: Option<&LockFence>) {
        let file = match fs::read_to_string(self.journal.root().join(lock)) {
            Ok(value) => value,
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{error}");
                NOTHING.to_owned()
            }
        };
        let row = self.journal.read(|rows| {
            rows.query_opt("SELECT value FROM app_seen WHERE lock = ?1", [lock], |row| row.get::<_, String>(0))
        });
        let row = row.unwrap().unwrap_or_else(|| NOTHING.to_owned());
        let fence = fence.map_or_else(|| NOTHING.to_owned(), |fence| fence.fence().get().to_string());
        witness.says(&format!("enter {} {lock} {} {fence} {file} {row}", self.who, mode.word()));
    }

    fn leave(&self, witness: &Witness, lock: &str) {
        witness.says(&format!("leave {} {lock}", self.who));
    }
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
pub(super) fn nothing_is_left(home: &Path) {
    let root = home.join("root");
    let witness = Witness::open(&home.join("witness"));
    let journal = Journal::open(&root).unwrap();
    let recovered = journal.recover().unwrap();
    assert_eq!((recovered.pending, recovered.quarantined, recovered.moved_aside), (0, 0, 0), "{recovered:?}");
    let last = Hand { home, journal: &journal, who: "0.0".to_owned() };
    let locks = Inspector::open(&root).unwrap().locks().unwrap();
    assert!(!locks.is_empty());
    for LockInfo { name: lock, .. } in locks {
        let held = journal.try_lock(&lock).unwrap().unwrap_or_else(|| panic!("{lock} is stuck"));
        let fence = held.fence().unwrap();
        last.enter(&witness, &lock, Mode::Exclusive, Some(&fence));
        last.leave(&witness, &lock);
        assert!(held.release().is_empty());
    }
    assert!(journal.quarantine().list().unwrap().is_empty());
    journal.close().unwrap();
    let stage: Vec<_> = fs::read_dir(root.join(".journal/stage")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(stage.is_empty(), "{stage:?}");
}
