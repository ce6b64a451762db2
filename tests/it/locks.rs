//! Named locks: who gets one, who is told what, what is recovered first, and what a loss means.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Barrier};
use std::time::Duration;

use journal_kb::{Acquire, Begin, Error, Flight, Journal, Lock, Retention, StopToken};

use crate::support::{Tree, child, child_root, manifest, wait_for_word};

const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(30);

fn raw(tree: &Tree) -> rusqlite::Connection {
    rusqlite::Connection::open(tree.path(".journal/journal.db")).unwrap()
}

/// Waits until something is true.
#[track_caller]
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let so = (0..12_000).any(|_| {
        std::thread::sleep(Duration::from_millis(5));
        is_so()
    });
    assert!(so, "{what}");
}

/// On another thread, as somebody else.
fn elsewhere<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| scope.spawn(work).join().unwrap())
}

#[test]
fn one_has_it_alone_and_many_share_it() {
    let tree = Tree::new();
    // Two sessions, so that the kernel decides; and two threads of one.
    let (one, two) = (tree.journal(), tree.journal());
    for other in [&one, &two] {
        let alone = one.lock("a").unwrap();
        assert!(elsewhere(|| other.try_lock("a").unwrap().is_none()));
        let shared = || other.lock_with(Acquire::new("a").shared().wait(SHORT));
        assert!(matches!(elsewhere(|| shared().map(drop)), Err(Error::Busy { .. })));
        drop(alone);
        let first = one.lock_with(Acquire::new("a").shared()).unwrap();
        elsewhere(|| {
            let second = shared().unwrap();
            assert!(elsewhere(|| other.try_lock("a").unwrap().is_none()));
            drop(second);
        });
        assert!(elsewhere(|| other.try_lock("a").unwrap().is_none()), "one still shares it");
        assert!(matches!(first.fence(), Err(Error::LockShared { .. })));
        assert!(matches!(first.begin(""), Err(Error::LockShared { .. })));
        assert!(matches!(first.write(|_| Ok(())), Err(Error::LockShared { .. })));
        assert!(first.is_held() && first.release().is_empty());
        assert!(elsewhere(|| other.try_lock("a").unwrap().is_some()));
    }
}

#[test]
fn who_shares_keeps_transactions_out() {
    let tree = Tree::new();
    let journal = tree.journal();
    let reading = journal.lock_with(Acquire::new("main").shared()).unwrap();
    let begin = || journal.begin_with(Begin::new("").wait(SHORT));
    assert!(matches!(elsewhere(|| begin().map(drop)), Err(Error::Busy { .. })));
    drop(reading);
    begin().unwrap().commit().unwrap();
}

#[test]
fn what_would_wait_for_itself_is_refused_and_says_so() {
    let tree = Tree::new();
    let journal = tree.journal();
    let share = || journal.lock_with(Acquire::new("a").shared());
    let is_refused = |outcome: journal_kb::Result<Lock>, word: &str| match outcome {
        Err(error @ Error::AlreadyHeld { .. }) => assert!(error.to_string().contains(word), "{error}"),
        other => panic!("{other:?}"),
    };
    let alone = journal.lock("a").unwrap();
    is_refused(journal.lock("a"), "by this thread");
    is_refused(share(), "by this thread");
    assert!(matches!(journal.single_flight("a", |_| Ok(())), Err(Error::AlreadyHeld { .. })));
    assert!(matches!(journal.begin_with(Begin::new("").lock("a")), Err(Error::AlreadyHeld { .. })));
    drop(alone);
    let shared = share().unwrap();
    is_refused(journal.lock("a"), "cannot become exclusive");
    is_refused(share(), "shares it");
    // In other hands it is somebody else's, and can be waited for.
    let (sent, received) = mpsc::channel();
    let other = std::thread::spawn(move || {
        assert!(shared.is_held());
        sent.send(()).unwrap();
        std::thread::sleep(SHORT);
        drop(shared);
    });
    received.recv().unwrap();
    drop(journal.lock("a").unwrap());
    other.join().unwrap();
    let open = journal.begin("").unwrap();
    assert!(matches!(journal.begin(""), Err(Error::AlreadyHeld { .. })));
    drop(open);
    for bad in ["", &"x".repeat(81)] {
        assert!(matches!(journal.lock(bad), Err(Error::BadLockName { .. })));
    }
}

#[test]
fn several_are_taken_in_the_order_of_their_names() {
    if !cfg!(debug_assertions) {
        return;
    }
    let tree = Tree::new();
    let journal = tree.journal();
    let b = journal.lock("b").unwrap();
    assert!(
        matches!(journal.lock("a"), Err(Error::LockOrder { held, wanted }) if (&*held, &*wanted) == ("b", "a")),
        "two that do it the other way round would wait for each other"
    );
    let c = journal.lock("c").unwrap();
    // Transactions come after locks, whatever they are called.
    let txn = journal.begin_with(Begin::new("").lock("a")).unwrap();
    assert!(matches!(journal.lock("d"), Err(Error::LockOrder { .. })));
    assert!(elsewhere(|| journal.lock("d").is_ok()), "another thread holds nothing");
    drop((txn, b, c));
    drop(journal.lock("a").unwrap());
}

#[test]
fn who_waits_is_told_who_has_it_and_may_be_called_off() {
    let tree = Tree::new();
    let (journal, second) =
        (tree.journal(), Journal::options().heartbeat(Duration::from_millis(50)).open(tree.root()).unwrap());
    // The kernel's queue, and that of this process.
    for other in [&second, &journal] {
        let held = second.lock_with(Acquire::new("a").purpose("the long one")).unwrap();
        held.set_progress("3 of 7");
        let token = StopToken::new();
        let told = AtomicUsize::new(0);
        let waiting = || {
            let tell = |waiting: &journal_kb::Waiting| {
                let Some(holder) = &waiting.holder else { return };
                assert_eq!((holder.pid, &*holder.purpose), (i64::from(std::process::id()), "the long one"));
                if holder.progress == "3 of 7" {
                    told.fetch_add(1, Ordering::SeqCst);
                }
            };
            other.lock_with(Acquire::new("a").cancel(&token).on_wait(Duration::from_millis(10), tell))
        };
        let outcome = std::thread::scope(|scope| {
            let waiter = scope.spawn(|| waiting().map(drop));
            until("it is told how far the holder is", || told.load(Ordering::SeqCst) > 1);
            token.stop("no more time");
            waiter.join().unwrap()
        });
        assert!(matches!(&outcome, Err(Error::Cancelled { reason, .. }) if reason == "no more time"), "{outcome:?}");
        drop(held);
        // Nobody has been left behind in any queue.
        drop(elsewhere(|| other.lock("a").unwrap()));
    }
}

#[test]
fn a_flight_is_run_once_and_who_skips_it_writes_nothing() {
    let tree = Tree::new();
    let (journal, second) = (tree.journal(), tree.journal());
    let barrier = Barrier::new(2);
    std::thread::scope(|scope| {
        let runner = scope.spawn(|| {
            journal.single_flight("sync", |lock| {
                lock.set_progress("half way");
                lock.fence()?;
                barrier.wait();
                barrier.wait();
                Ok(7)
            })
        });
        barrier.wait();
        // What was late has been written down.
        std::thread::sleep(Duration::from_millis(100));
        let version =
            |db: &rusqlite::Connection| -> i64 { db.query_row("PRAGMA data_version", (), |row| row.get(0)).unwrap() };
        let db = raw(&tree);
        let before = version(&db);
        for other in [&journal, &second] {
            let skipped = other.single_flight("sync", |_| -> journal_kb::Result<i32> { unreachable!() }).unwrap();
            let Flight::Skipped(holder) = skipped else { panic!("{skipped:?}") };
            assert_eq!(holder.pid, i64::from(std::process::id()));
        }
        assert_eq!(version(&db), before, "a skip has written to the database");
        barrier.wait();
        assert_eq!(runner.join().unwrap().unwrap(), Flight::Ran(7));
    });
    let own = journal.single_flight("sync", |_| -> journal_kb::Result<()> { Err(Error::caller("mine")) });
    assert!(matches!(own, Err(Error::Caller(error)) if error.to_string() == "mine"));
    assert_eq!(second.single_flight("sync", |_| Ok(8)).unwrap(), Flight::Ran(8));
    let held = journal.begin_flight(Acquire::new("sync").purpose("nightly")).unwrap().unwrap();
    let holder = elsewhere(|| journal.begin_flight(Acquire::new("sync"))).unwrap().unwrap_err();
    assert_eq!((&*holder.purpose, holder.to_string().contains("nightly")), ("nightly", true));
    drop(held);
    assert!(journal.holder("sync").unwrap().is_none());
}

#[test]
fn fences_grow_and_an_overtaken_one_is_known() {
    let tree = Tree::new();
    let (journal, second) = (tree.journal(), tree.journal());
    let mut last = 0;
    let mut fences = Vec::new();
    for n in 0..6 {
        let journal = if n % 2 == 0 { &journal } else { &second };
        let lock = journal.lock("a").unwrap();
        let fence = lock.fence().unwrap();
        assert!(fence.fence().get() > last && fence.is_current().unwrap());
        assert_eq!(lock.fence().unwrap().fence(), fence.fence(), "one acquisition has one fence");
        let mut txn = lock.begin("").unwrap();
        txn.write("f", format!("{n}").as_bytes()).unwrap();
        let receipt = txn.commit().unwrap();
        assert_eq!(receipt.fence(), fence.fence(), "and its transactions have the same");
        assert!(lock.is_held() && lock.release().is_empty());
        assert!(fence.is_current().unwrap(), "released, but nobody has come");
        last = fence.fence().get();
        fences.push(fence);
    }
    let newest = fences.pop().unwrap();
    assert!(newest.is_current().unwrap() && newest.lock() == "a");
    for fence in &fences {
        assert!(!fence.is_current().unwrap());
    }
    let of_closed = fences[0].clone();
    drop(journal);
    assert!(matches!(of_closed.is_current(), Err(Error::Closed)));
}

#[test]
fn transactions_under_a_lock_come_one_after_the_other_and_nobody_between() {
    let tree = Tree::new();
    let journal = tree.journal();
    journal.migrate(&["CREATE TABLE t (x INTEGER) STRICT"]).unwrap();
    let lock = journal.lock("main").unwrap();
    for n in 0..3 {
        let mut txn = lock.begin(&format!("part {n}")).unwrap();
        assert!(matches!(lock.begin("beside"), Err(Error::AlreadyHeld { .. })));
        txn.write(format!("f{n}"), b"f").unwrap();
        if n == 1 {
            txn.rollback().unwrap();
            continue;
        }
        txn.commit().unwrap();
        let begin = Begin::new("").wait(Duration::ZERO);
        assert!(
            matches!(elsewhere(|| journal.begin_with(begin).map(drop)), Err(Error::Busy { .. })),
            "it came between"
        );
    }
    let elsewhere_named = lock.begin_with(Begin::new("").lock("other"));
    assert!(matches!(elsewhere_named, Err(Error::BadLockName { .. })));
    assert_eq!(lock.write(|rows| rows.execute("INSERT INTO t VALUES (1)", ())).unwrap(), 1);
    // A guard of a transaction under it is put back as any.
    let mut txn = lock.begin("").unwrap();
    txn.guard_paths(["f0"]).unwrap();
    fs::write(tree.path("f0"), "changed").unwrap();
    drop(txn);
    assert_eq!(fs::read(tree.path("f0")).unwrap(), b"f");
    // It goes with the last of them.
    let txn = lock.begin("").unwrap();
    drop(lock);
    assert!(elsewhere(|| journal.try_lock("main").unwrap().is_none()));
    drop(txn);
    journal.begin("").unwrap().commit().unwrap();
    assert_eq!(
        journal.read(|rows| rows.query_row("SELECT count(*) FROM t", (), |row| row.get::<_, i64>(0))).unwrap(),
        1
    );
    assert!(tree.path("f0").exists() && !tree.path("f1").exists() && tree.path("f2").exists());
}

fn heartbeat(tree: &Tree) -> (i64, String) {
    let row = "SELECT heartbeat_ms, progress FROM journal_lock WHERE name = 'a'";
    raw(tree).query_row(row, (), |row| Ok((row.get(0)?, row.get(1)?))).unwrap()
}

#[test]
fn a_heart_beats_whatever_its_caller_is_stuck_in() {
    let tree = Tree::new();
    let options = || Journal::options().heartbeat(Duration::from_millis(20)).pool_size(1);
    let journal = options().open(tree.root()).unwrap();
    let lock = journal.lock("a").unwrap();
    lock.fence().unwrap();
    let (began, _) = heartbeat(&tree);
    lock.set_progress("on it");
    // The only pooled connection is taken, and this thread is busy with it.
    journal
        .read(|_| {
            until("a beat came", || heartbeat(&tree).0 > began && heartbeat(&tree).1 == "on it");
            Ok(())
        })
        .unwrap();
    // A write that takes long keeps it out; it is left out, and comes again.
    let ended = journal.transact(|txn| {
        txn.sql(|rows| {
            std::thread::sleep(Duration::from_millis(1300));
            rows.execute("CREATE TABLE t (x INTEGER) STRICT", ()).map(drop)
        })
    });
    ended.unwrap();
    let (then, _) = heartbeat(&tree);
    until("it comes again", || heartbeat(&tree).0 > then);
    assert!(lock.is_held() && lock.release().is_empty());
    let row = "SELECT losses FROM journal_lock";
    assert_eq!(raw(&tree).query_row(row, (), |row| row.get::<_, i64>(0)).unwrap(), 0);
    // Once nobody holds anything, nothing beats.
    let (last, _) = heartbeat(&tree);
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(heartbeat(&tree).0, last);
}

#[test]
fn a_long_wait_is_seen_and_counted() {
    let tree = Tree::new();
    let (journal, second) = (tree.journal(), tree.journal());
    let held = journal.lock("a").unwrap();
    held.fence().unwrap();
    let waiting =
        || -> i64 { raw(&tree).query_row("SELECT count(*) FROM journal_wait", (), |row| row.get(0)).unwrap() };
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| second.lock("a").map(drop));
        until("who waits has a row", || waiting() == 1);
        drop(held);
        waiter.join().unwrap().unwrap();
    });
    until("who has got it waits no more", || waiting() == 0);
    let row = "SELECT waits, longest_wait_ms FROM journal_lock WHERE name = 'a'";
    let (waits, longest): (i64, i64) = raw(&tree).query_row(row, (), |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    assert!(waits == 1 && longest >= 1000, "{waits} {longest}");
}

/// The body of [`any_acquisition_recovers_whatever_died`]: dies, having changed what it guards under a lock.
#[test]
fn dying_child() {
    let Some(root) = child_root() else { return };
    let journal = Journal::options().history(Retention::OFF).open(&root).unwrap();
    let lock = journal.lock("dying").unwrap();
    let mut txn = lock.begin("").unwrap();
    txn.guard_paths(["f"]).unwrap();
    fs::write(Path::new(&root).join("f"), "half").unwrap();
    println!("ready");
    std::thread::sleep(LONG);
    drop(txn);
}

#[test]
fn any_acquisition_recovers_whatever_died() {
    type Take = fn(&Journal) -> journal_kb::Result<()>;
    let ways: [Take; 5] = [
        |journal| journal.lock("another").map(drop),
        |journal| journal.single_flight("another", |_| Ok(())).map(drop),
        |journal| journal.begin_with(Begin::new("").lock("another")).map(drop),
        // Who shares it cannot put back what was guarded under it; it is done first.
        |journal| journal.lock_with(Acquire::new("dying").shared()).map(drop),
        |journal| journal.lock("dying")?.begin("").map(drop),
    ];
    for (n, take) in ways.into_iter().enumerate() {
        let tree = Tree::new();
        tree.put("f", "whole");
        let before = manifest(&tree);
        let journal = tree.journal();
        let mut dying = child("locks::dying_child", tree.root()).stdout(std::process::Stdio::piped()).spawn().unwrap();
        wait_for_word(&mut dying, "ready");
        assert_ne!(manifest(&tree), before);
        dying.kill().unwrap();
        dying.wait().unwrap();
        take(&journal).unwrap();
        assert_eq!(manifest(&tree), before, "way {n}");
    }
}

#[test]
fn a_panic_releases() {
    let tree = Tree::new();
    let (journal, second) = (tree.journal(), tree.journal());
    for n in 0..2 {
        let panicking = std::panic::AssertUnwindSafe(|| {
            journal.single_flight("a", |lock| -> journal_kb::Result<()> {
                let mut txn = lock.begin("")?;
                txn.write("f", b"f")?;
                if n == 1 {
                    lock.fence()?;
                }
                panic!("on purpose")
            })
        });
        assert!(std::panic::catch_unwind(panicking).is_err());
        assert!(second.try_lock("a").unwrap().is_some() && !tree.path("f").exists());
    }
}

#[test]
fn readers_that_come_later_wait_behind_a_writer() {
    let tree = Tree::new();
    let (reading, writing, late) = (tree.journal(), tree.journal(), tree.journal());
    let share = |journal: &Journal, wait| journal.lock_with(Acquire::new("a").shared().wait(wait));
    let first = share(&reading, LONG).unwrap();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let alone = writing.lock_with(Acquire::new("a").wait(LONG)).unwrap();
            std::thread::sleep(SHORT);
            drop(alone);
        });
        // The kernel alone would let them in for as long as one of them is there.
        let refused = (0..200).any(|_| {
            std::thread::sleep(Duration::from_millis(5));
            elsewhere(|| share(&late, Duration::ZERO).is_err())
        });
        assert!(refused, "a writer waits, and readers go past it");
        let reader = scope.spawn(|| share(&late, LONG).map(drop));
        std::thread::sleep(SHORT);
        assert!(!writer.is_finished() && !reader.is_finished());
        drop(first);
        writer.join().unwrap();
        reader.join().unwrap().unwrap();
    });
}

#[test]
fn threads_of_a_process_come_in_the_order_in_which_they_asked() {
    let tree = Tree::new();
    let journal = tree.journal();
    let first = journal.lock("a").unwrap();
    let order = Arc::new(std::sync::Mutex::new(Vec::new()));
    let threads: Vec<_> = (0..8)
        .map(|n| {
            let (journal, order) = (journal.clone(), Arc::clone(&order));
            let thread = std::thread::spawn(move || {
                // One in three shares it, and is not let past the others for that.
                let acquire = Acquire::new("a").on_wait(LONG, |_| {});
                let acquire = if n % 3 == 0 { acquire.shared() } else { acquire };
                let _held = journal.lock_with(acquire).unwrap();
                order.lock().unwrap().push(n);
                std::thread::sleep(Duration::from_millis(10));
            });
            // It has asked by then.
            std::thread::sleep(Duration::from_millis(20));
            thread
        })
        .collect();
    drop(first);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(*order.lock().unwrap(), (0..8).collect::<Vec<_>>());
}

/// Waits that come to nothing do not pile up: whoever polls has one thread in the kernel.
#[test]
fn who_tries_again_and_again_leaves_no_threads_behind() {
    let tree = Tree::new();
    // A process of its own: other tests' threads are not to be counted.
    let output = child("locks::polling_child", tree.root()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The body of [`who_tries_again_and_again_leaves_no_threads_behind`].
#[test]
fn polling_child() {
    let Some(root) = child_root() else { return };
    let (holding, polling) = (Journal::open(&root).unwrap(), Journal::open(&root).unwrap());
    let waiting = || {
        let tasks = fs::read_dir("/proc/self/task").unwrap();
        let comm = |task: fs::DirEntry| fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        tasks.map(|task| comm(task.unwrap())).filter(|comm| comm == "journal-wait\n").count()
    };
    let held = holding.lock("a").unwrap();
    let poll = |n: usize| {
        let acquire = Acquire::new("a").wait(Duration::from_millis(2));
        let acquire = if n.is_multiple_of(3) { acquire.shared() } else { acquire };
        assert!(matches!(polling.lock_with(acquire), Err(Error::Busy { .. })));
    };
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..100).for_each(poll));
        }
    });
    // At most one for each that waited at the same time, of each kind, at the lock and at its gate.
    assert!(waiting() <= 16, "{}", waiting());
    drop(held);
    until("each lets go of what it is handed", || waiting() == 0);
    elsewhere(|| polling.lock("a").unwrap().fence().map(drop).unwrap());
}
