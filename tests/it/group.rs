//! What several threads commit at once shares one COMMIT, and everyone is answered for itself alone.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Barrier, mpsc};
use std::thread;
use std::time::Duration;

use journal_kb::{Begin, Error, Journal, Result, Rows};

use crate::counts::system_calls::between_marks;
use crate::support::{Tree, child_root};

const SCHEMA: &[&str] = &[
    "CREATE TABLE n (x INTEGER PRIMARY KEY, parent INTEGER REFERENCES n DEFERRABLE INITIALLY DEFERRED) STRICT",
    "INSERT INTO n VALUES (0, NULL)",
];
/// Nothing here takes nearly as long.
const WATCHDOG: Duration = Duration::from_secs(120);

fn journal(tree: &Tree) -> Journal {
    let journal = tree.journal();
    journal.migrate(SCHEMA).unwrap();
    journal
}

fn numbers(journal: &Journal) -> BTreeSet<i64> {
    let rows = journal.read(|rows| rows.query_map("SELECT x FROM n", (), |row| row.get(0))).unwrap();
    rows.into_iter().collect()
}

/// Runs `work` on a thread of its own, and fails instead of waiting for ever.
fn watched<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (send, done) = mpsc::channel();
    let worker = thread::spawn(move || send.send(work()));
    match done.recv_timeout(WATCHDOG) {
        Ok(value) => value,
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("it hangs"),
        Err(mpsc::RecvTimeoutError::Disconnected) => std::panic::resume_unwind(worker.join().unwrap_err()),
    }
}

/// Takes the turn, lets `others` ask for it meanwhile, and gives it back when they all wait for it, as far as one can tell.
fn while_taken(journal: &Journal, others: Vec<Box<dyn FnOnce() + Send + '_>>, then: impl FnOnce()) {
    let (taken, is_taken) = mpsc::channel();
    let (go, may_go) = mpsc::channel::<()>();
    let asking = AtomicUsize::new(0);
    thread::scope(|scope| {
        let holder = scope.spawn(move || {
            journal.write(|_| {
                taken.send(()).unwrap();
                may_go.recv_timeout(WATCHDOG).map_err(Error::caller)
            })
        });
        is_taken.recv_timeout(WATCHDOG).unwrap();
        let wanted = others.len();
        for other in others {
            scope.spawn(|| {
                asking.fetch_add(1, Ordering::SeqCst);
                other();
            });
        }
        while asking.load(Ordering::SeqCst) < wanted {
            thread::yield_now();
        }
        thread::sleep(Duration::from_millis(50));
        then();
        go.send(()).unwrap();
        holder.join().unwrap().unwrap();
    });
}

/// What a thread does, and what is to come of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Rows,
    Transaction,
    /// An error of its own.
    Fails,
    Panics,
    /// SQL that ends the whole SQLite transaction.
    Ends,
    /// What COMMIT itself refuses.
    Orphan,
    /// Denied to it.
    Denied,
}

const KINDS: [Kind; 7] =
    [Kind::Rows, Kind::Transaction, Kind::Fails, Kind::Panics, Kind::Ends, Kind::Orphan, Kind::Denied];

impl Kind {
    fn on(self, rows: &Rows<'_>, x: i64) -> Result<()> {
        let parent = if self == Self::Orphan { x + 1_000_000 } else { 0 };
        rows.execute("INSERT INTO n VALUES (?1, ?2)", [x, parent])?;
        match self {
            Self::Rows | Self::Transaction | Self::Orphan => Ok(()),
            Self::Fails => Err(Error::caller("mine")),
            Self::Panics => panic!("a closure of a test that panics"),
            Self::Ends => rows.execute("INSERT OR ROLLBACK INTO n VALUES (0, 0)", ()).map(drop),
            Self::Denied => rows.execute("DELETE FROM journal_txn", ()).map(drop),
        }
    }

    fn run(self, journal: &Journal, x: i64) -> thread::Result<Result<()>> {
        catch_unwind(AssertUnwindSafe(|| match self {
            Self::Transaction => {
                let mut txn = journal.begin_with(Begin::new("one").lock(format!("lock {}", x % 1000)))?;
                txn.write(format!("dir/{x}"), x.to_string())?;
                txn.sql(move |rows| self.on(rows, x))?;
                txn.commit().map(drop)
            }
            _ => journal.write(|rows| self.on(rows, x)),
        }))
    }

    fn is_answered(self, answer: &thread::Result<Result<()>>) -> bool {
        match (self, answer) {
            (Self::Panics, Err(_)) | (Self::Rows | Self::Transaction, Ok(Ok(()))) => true,
            (Self::Fails, Ok(Err(Error::Caller(mine)))) => mine.to_string() == "mine",
            (Self::Ends, Ok(Err(Error::EndedBySql))) | (Self::Denied, Ok(Err(Error::Denied { .. }))) => true,
            (Self::Orphan, Ok(Err(Error::Sql { source, .. }))) => {
                source.sqlite_error_code() == Some(rusqlite::ErrorCode::ConstraintViolation)
            }
            _ => false,
        }
    }
}

/// Every kind beside every other, in this order or that.
#[test]
fn everybody_is_answered_for_what_it_did_itself() {
    watched(|| {
        let tree = Tree::new();
        let journal = journal(&tree);
        let mut expected = BTreeSet::from([0]);
        let mut x = 0;
        for round in 0..3 * KINDS.len() {
            let mut parts = Vec::new();
            for n in 0..KINDS.len() {
                // Neighbours differ from round to round.
                let kind = KINDS[(n * (1 + round % 6) + round) % KINDS.len()];
                x += 1;
                parts.push((kind, x));
                if matches!(kind, Kind::Rows | Kind::Transaction) {
                    expected.insert(x);
                }
            }
            let others = parts.iter().map(|&(kind, x)| {
                let journal = &journal;
                Box::new(move || {
                    let answer = kind.run(journal, x);
                    assert!(kind.is_answered(&answer), "{kind:?}: {answer:?}");
                }) as Box<dyn FnOnce() + Send>
            });
            while_taken(&journal, others.collect(), || ());
            assert_eq!(numbers(&journal), expected);
            for &(kind, x) in parts.iter().filter(|(kind, _)| *kind == Kind::Transaction) {
                assert_eq!(std::fs::read_to_string(tree.path(&format!("dir/{x}"))).unwrap(), x.to_string(), "{kind:?}");
            }
        }
        journal.close().unwrap();
    });
}

/// The same without any order, and all of it through the same few paths.
#[test]
fn under_load_what_is_answered_with_ok_is_there_and_nothing_else() {
    const THREADS: i64 = 8;
    const EACH: i64 = 60;
    watched(|| {
        let tree = Tree::new();
        let journal = journal(&tree);
        let start = Barrier::new(THREADS as usize);
        let expected: BTreeSet<i64> = thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS)
                .map(|me| {
                    let (journal, start) = (&journal, &start);
                    scope.spawn(move || {
                        start.wait();
                        let mut kept = Vec::new();
                        for n in 0..EACH {
                            // The rare ones are rare, or there would be no groups.
                            let kind =
                                if n % 10 == me { KINDS[(n as usize / 10) % 7] } else { KINDS[(n % 2) as usize] };
                            let x = 1 + n * 1000 + me;
                            let answer = kind.run(journal, x);
                            assert!(kind.is_answered(&answer), "{kind:?}: {answer:?}");
                            kept.extend(matches!(answer, Ok(Ok(()))).then_some(x));
                        }
                        kept
                    })
                })
                .collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).chain([0]).collect()
        });
        assert_eq!(numbers(&journal), expected);
        journal.close().unwrap();
        let again = tree.journal();
        assert_eq!(numbers(&again), expected);
        assert_eq!(again.recover().unwrap().moved_aside, 0);
    });
}

/// Several have the same files in view: they are carried into the tree in the order in which they were committed.
#[test]
fn what_overlaps_follows_the_order_of_commits() {
    watched(|| {
        let tree = Tree::new();
        let journal = journal(&tree);
        for round in 0..10_i64 {
            let others = (0..6_i64).map(|n| {
                let journal = &journal;
                Box::new(move || {
                    let mut txn = journal.begin_with(Begin::new("overlaps").lock(format!("lock {n}"))).unwrap();
                    // One file, a file in a directory that each makes, and a file of its own.
                    txn.write("same", n.to_string()).unwrap();
                    txn.write(format!("made {round}/{}", n % 3), n.to_string()).unwrap();
                    txn.sql(move |rows| {
                        rows.execute("INSERT INTO n SELECT max(x) + 1, 0 FROM n", ())?;
                        rows.execute("UPDATE n SET parent = NULL WHERE x = ?1", [n]).map(drop)
                    })
                    .unwrap();
                    let receipt = txn.commit().unwrap();
                    assert!(receipt.warnings().is_empty(), "{receipt:?}");
                }) as Box<dyn FnOnce() + Send>
            });
            while_taken(&journal, others.collect(), || ());
            let db = rusqlite::Connection::open(tree.path(".journal/journal.db")).unwrap();
            let last = |path: &str| -> String {
                let sql = "SELECT t.lock FROM journal_change c JOIN journal_txn t ON t.id = c.txn \
                    WHERE c.path = ?1 ORDER BY t.id DESC LIMIT 1";
                db.query_row(sql, [path.as_bytes()], |row| row.get(0)).unwrap()
            };
            for path in ["same".to_owned(), format!("made {round}/0"), format!("made {round}/2")] {
                let n = std::fs::read_to_string(tree.path(&path)).unwrap();
                assert_eq!(last(&path), format!("lock {n}"), "{path}");
            }
        }
    });
}

/// Half of those who have the key are refused by COMMIT itself: nobody is answered by what one of these would have done.
#[test]
fn one_key_in_several_threads_is_committed_once() {
    watched(|| {
        let tree = Tree::new();
        let journal = journal(&tree);
        for round in 1..=8 {
            let (send, answers) = mpsc::channel();
            let others = (0..4).map(|n| {
                let (journal, send) = (&journal, send.clone());
                Box::new(move || {
                    let begin = Begin::new("keyed").lock(format!("lock {n}")).key(format!("key {round}"));
                    let mut txn = journal.begin_with(begin).unwrap();
                    let kind = if n % 2 == 0 { Kind::Rows } else { Kind::Orphan };
                    txn.sql(move |rows| kind.on(rows, round)).unwrap();
                    let answer = txn.commit();
                    assert!(kind == Kind::Orphan || answer.is_ok(), "{answer:?}");
                    send.send(answer).unwrap();
                }) as Box<dyn FnOnce() + Send>
            });
            while_taken(&journal, others.collect(), || ());
            let receipts: Vec<_> = answers.try_iter().filter_map(Result::ok).collect();
            assert_eq!(receipts.iter().filter(|receipt| !receipt.repeated()).count(), 1, "{receipts:?}");
            assert_eq!(receipts.iter().map(|receipt| receipt.id()).collect::<BTreeSet<_>>().len(), 1);
            assert_eq!(numbers(&journal), (0..=round).collect());
        }
    });
}

#[test]
fn who_waits_for_the_turn_gives_up_in_time_and_the_others_go_on() {
    watched(|| {
        let tree = Tree::new();
        let journal = Journal::options().turn_wait(Duration::from_millis(40)).open(tree.root()).unwrap();
        journal.migrate(SCHEMA).unwrap();
        let (send, answers) = mpsc::channel();
        let others = (1..4).map(|x| {
            let (journal, send) = (&journal, send.clone());
            Box::new(move || send.send(journal.write(|rows| Kind::Rows.on(rows, x))).unwrap())
                as Box<dyn FnOnce() + Send>
        });
        let answered = || {
            for _ in 1..4 {
                let answer = answers.recv_timeout(WATCHDOG).unwrap();
                assert!(matches!(answer, Err(Error::Busy { .. })), "{answer:?}");
            }
        };
        while_taken(&journal, others.collect(), answered);
        journal.write(|rows| Kind::Rows.on(rows, 4)).unwrap();
        assert_eq!(numbers(&journal), BTreeSet::from([0, 4]));
    });
}

#[test]
fn a_transaction_begins_and_is_staged_while_others_commit() {
    watched(|| {
        let tree = Tree::new();
        let journal = journal(&tree);
        let mut begun = None;
        while_taken(&journal, vec![], || {
            let mut txn = journal.begin("meanwhile").unwrap();
            txn.write("meanwhile", "staged").unwrap();
            begun = Some(txn);
        });
        begun.unwrap().commit().unwrap();
        assert_eq!(std::fs::read_to_string(tree.path("meanwhile")).unwrap(), "staged");
    });
}

/// Each thread of the child that shares.
const SHARING: usize = 6;
/// As the other counts: the least of several rounds, because a thread may come late.
const ROUNDS: usize = 20;

#[test]
fn a_group_is_one_sync() {
    let syncs = &["--seccomp-bpf", "-e", "trace=getppid,fsync,fdatasync,syncfs,sync_file_range,sync,msync"];
    let Some(rounds) = between_marks("group::sharing_child", syncs) else { return };
    let counted: Vec<usize> =
        rounds.iter().map(|calls| calls.iter().filter(|call| call.has_a_name()).count()).collect();
    assert_eq!(counted.len(), 2 * ROUNDS);
    // Whoever has the turn until all wait writes nothing.
    assert_eq!(counted[..ROUNDS].iter().min(), Some(&1), "rows: {counted:?}");
    assert_eq!(counted[ROUNDS..].iter().min(), Some(&1), "transactions: {counted:?}");
}

/// The process whose syncs are counted, between one `getppid` and the next.
#[test]
fn sharing_child() {
    let Some(root) = child_root() else { return };
    let never = Duration::from_secs(3600);
    let options = Journal::options().settle_after(never).settle_bytes(u64::MAX).settle_paths(u64::MAX);
    std::fs::create_dir_all(&root).unwrap();
    let journal = options.open(&root).unwrap();
    journal.migrate(SCHEMA).unwrap();
    let mark = || {
        let _ = rustix::process::getppid();
    };
    for kind in [Kind::Rows, Kind::Transaction] {
        // The first makes the directory.
        Kind::Transaction.run(&journal, if kind == Kind::Rows { 1 } else { 2 }).unwrap().unwrap();
        for round in 0..ROUNDS {
            let others = (0..SHARING).map(|n| {
                let journal = &journal;
                let x = (100 + n + 1000 * (1 + round) + if kind == Kind::Rows { 0 } else { 100_000 }) as i64;
                Box::new(move || kind.run(journal, x).unwrap().unwrap()) as Box<dyn FnOnce() + Send>
            });
            while_taken(&journal, others.collect(), mark);
            mark();
        }
    }
    std::process::exit(0);
}
