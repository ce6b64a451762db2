//! A lock that several threads work under, or that ends while somebody is at it beside: nobody is told that it was lost, and
//! no crash is counted where nothing crashed.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use journal_kb::{Acquire, Result};

use crate::support::Tree;

const MIGRATION: &[&str] = &["CREATE TABLE t (n INTEGER)"];

/// What the rows count that no test here does.
fn losses_and_crashes(tree: &Tree) -> (i64, i64) {
    let raw = rusqlite::Connection::open(tree.path(".journal/journal.db")).unwrap();
    raw.query_row("SELECT coalesce(sum(losses), 0), coalesce(sum(crashes), 0) FROM journal_lock", (), |row| {
        Ok((row.get(0)?, row.get(1)?))
    })
    .unwrap()
}

fn insert(rows: &journal_kb::Rows<'_>) -> Result<()> {
    rows.execute("INSERT INTO t VALUES (1)", ()).map(drop)
}

#[test]
fn threads_may_write_under_one_lock_at_once() {
    let tree = Tree::new();
    let journal = tree.journal();
    journal.migrate(MIGRATION).unwrap();
    for round in 0..30 {
        let lock = journal.lock("a").unwrap();
        let (start, lock) = (Barrier::new(4), &lock);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    start.wait();
                    lock.write(insert).unwrap();
                    assert!(lock.is_held());
                    lock.fence().unwrap();
                });
            }
            scope.spawn(|| {
                start.wait();
                let mut txn = lock.begin("beside").unwrap();
                txn.write("f", round.to_string()).unwrap();
                txn.commit().unwrap();
            });
        });
        assert!(lock.is_held());
    }
    assert_eq!(losses_and_crashes(&tree), (0, 0));
}

#[test]
fn a_write_that_panics_or_fails_leaves_the_lock_as_it_was() {
    let tree = Tree::new();
    let journal = tree.journal();
    journal.migrate(MIGRATION).unwrap();
    let lock = journal.lock("a").unwrap();
    let panicked = catch_unwind(AssertUnwindSafe(|| lock.write(|_| -> Result<()> { panic!("on purpose") })));
    assert!(panicked.is_err());
    let fence = lock.fence().unwrap();
    assert!(lock.write(|rows| rows.execute("INSERT INTO nothing VALUES (1)", ())).is_err());
    lock.write(insert).unwrap();
    assert!(lock.is_held() && fence.is_current().unwrap());
    assert!(lock.release().is_empty());
    assert_eq!(losses_and_crashes(&tree), (0, 0));
}

#[test]
fn a_lock_that_is_dropped_before_its_transaction_is_released_with_it() {
    let tree = Tree::new();
    let (journal, other) = (tree.journal(), tree.journal());
    for recorded in [false, true] {
        let lock = journal.lock("a").unwrap();
        let mut txn = lock.begin("").unwrap();
        txn.write("f", recorded.to_string()).unwrap();
        if recorded {
            lock.fence().unwrap();
        }
        drop(lock);
        assert!(other.try_lock("a").unwrap().is_none(), "a transaction is at work under it");
        txn.commit().unwrap();
        drop(other.try_lock("a").unwrap().unwrap());
        let lock = journal.lock("a").unwrap();
        let txn = lock.begin("").unwrap();
        lock.fence().unwrap();
        drop(lock);
        drop(txn);
        drop(other.try_lock("a").unwrap().unwrap());
    }
    assert_eq!(losses_and_crashes(&tree), (0, 0));
}

#[test]
fn what_is_released_while_it_is_recorded_is_nobodys() {
    let tree = Tree::new();
    let (journal, other) = (tree.journal(), tree.journal());
    journal.migrate(MIGRATION).unwrap();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                // Others before it in the order, so that to record them all takes a while.
                let others: Vec<_> = (0..30).map(|n| journal.lock(&format!("a{n:02}")).unwrap()).collect();
                let short = journal.lock("b").unwrap();
                // Two looks of the background, which are 10 ms apart.
                std::thread::sleep(Duration::from_millis(20));
                drop(short);
                drop(others);
            }
        });
        for _ in 0..400 {
            let lock = other.lock("b").unwrap();
            std::thread::sleep(Duration::from_millis(1));
            if let Err(error) = lock.write(insert) {
                over.store(true, Ordering::Relaxed);
                panic!("{error}");
            }
        }
        over.store(true, Ordering::Relaxed);
    });
    assert_eq!(losses_and_crashes(&tree), (0, 0));
}

#[test]
fn who_asks_again_and_again_costs_no_more_than_who_asks_once() {
    let tree = Tree::new();
    let (journal, other) = (tree.journal(), tree.journal());
    // Of the lock and of its gate, by this process. Each that waits in the kernel has one, and a thread.
    let open = || {
        let fds = std::fs::read_dir("/proc/self/fd").unwrap();
        let links = fds.filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok());
        links.filter(|link| link.starts_with(tree.path(".journal/locks"))).count()
    };
    let ask = |shared: bool| {
        let acquire = Acquire::new("a").wait(Duration::from_millis(2));
        let acquire = if shared { acquire.shared() } else { acquire };
        std::thread::scope(|scope| scope.spawn(|| assert!(journal.lock_with(acquire).is_err())).join().unwrap());
    };
    let alone = other.lock("a").unwrap();
    for shared in [false, true] {
        (0..20).for_each(|_| ask(shared));
        assert!(open() < 10, "{} are open", open());
    }
    drop(alone);
    // Those who gave up keep nobody out, and the next to come waits as ever.
    drop(journal.lock("a").unwrap());
    let shares = other.lock_with(Acquire::new("a").shared()).unwrap();
    (0..20).for_each(|_| ask(false));
    assert!(open() < 10, "{} are open", open());
    // A second one waits in the kernel, and has the gate.
    std::thread::scope(|scope| {
        let waiter = tree.journal();
        let waiting = scope.spawn(move || drop(waiter.lock("a").unwrap()));
        std::thread::sleep(Duration::from_millis(50));
        (0..20).for_each(|_| ask(true));
        assert!(open() < 15, "{} are open", open());
        drop(shares);
        waiting.join().unwrap();
    });
    drop(journal.lock("a").unwrap());
}

#[test]
fn who_inherited_a_lock_that_was_released_does_not_hold_the_next_one() {
    let tree = Tree::new();
    let journal = tree.journal();
    let txn = journal.begin("").unwrap();
    let lent = txn.lend_lock().unwrap();
    let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
    drop(lent);
    let holds = || {
        let infos = std::fs::read_dir(format!("/proc/{}/fdinfo", child.id())).unwrap();
        let mut texts = infos.filter_map(|info| std::fs::read_to_string(info.unwrap().path()).ok());
        texts.any(|text| text.contains("FLOCK"))
    };
    assert!(holds(), "it was lent that");
    txn.commit().unwrap();
    let held = journal.lock("main").unwrap();
    let both = holds();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!both, "should this process die now, that child would keep the lock");
    drop(held);
}

/// The fence of an acquisition that was undone is given to the next one. What is said late of the first one's end is not of the
/// second.
#[test]
fn the_end_of_a_lock_whose_work_was_undone_does_not_end_the_next() {
    let tree = Tree::new();
    let (journal, other) = (tree.journal(), tree.journal());
    journal.migrate(MIGRATION).unwrap();
    for n in 0..20 {
        let undone = journal.lock("a").unwrap();
        let mut txn = undone.begin("undone").unwrap();
        txn.sql(|rows| rows.execute_batch("no SQL")).unwrap();
        assert!(txn.commit().is_err());
        drop(undone);
        let next = if n % 2 == 0 { &journal } else { &other };
        let lock = next.lock("a").unwrap();
        for _ in 0..3 {
            let mut txn = lock.begin("done").unwrap();
            txn.sql(insert).unwrap();
            txn.commit().unwrap_or_else(|error| panic!("{n}: {error}"));
            // The background writes down what it has been told.
            std::thread::sleep(Duration::from_millis(12));
        }
        assert!(lock.is_held(), "{n}");
        assert_eq!(lock.release(), []);
    }
    assert_eq!(losses_and_crashes(&tree), (0, 0));
}
