//! Runs, read by somebody who wished them ill: what came of threads, failures and strange rows at the wrong instant.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use journal_kb::{Begin, Begun, Ended, Error, Job, Journal, Run, Started, StopToken, Verdict};

use crate::runs::{count, running};
use crate::support::Tree;

fn start(journal: &Journal) -> Run {
    running(journal.run("a", "1"))
}

fn by_hand(tree: &Tree) -> rusqlite::Connection {
    let conn = rusqlite::Connection::open(tree.path(".journal/journal.db")).unwrap();
    conn.busy_timeout(Duration::from_secs(60)).unwrap();
    conn
}

const REFUSE: &str =
    "CREATE TRIGGER refuse BEFORE INSERT ON journal_run_item BEGIN SELECT RAISE(ABORT, 'unwritable'); END";

#[test]
fn a_replacement_that_fails_loses_nothing_that_was_recorded() {
    let tree = Tree::new();
    let journal = tree.journal();
    let run = start(&journal);
    drop(run.attempt("tried").unwrap());
    ["x", "y", "z"].iter().for_each(|item| run.record(item).unwrap());
    let other = by_hand(&tree);
    other.execute_batch(REFUSE).unwrap();
    run.replace(["tried", "other"]).unwrap_err();
    other.execute_batch("DROP TRIGGER refuse").unwrap();
    assert!(run.is_done("y") && !run.is_done("other"));
    drop(run);
    let run = start(&journal);
    assert_eq!(run.begun(), Begun::Resumed { banked: 3 });
    assert_eq!(count(&tree, "SELECT tries FROM journal_run_try"), 1);
    // And one that does not fail leaves nothing of what was tried.
    run.replace(["tried", "other"]).unwrap();
    assert_eq!(count(&tree, "SELECT count(*) FROM journal_run_try"), 0);
    assert_eq!(run.finish().unwrap(), Ended::Finished { banked: 2, set_aside: 0 });
}

/// What a session says is done and what the database says are the same, whatever its threads did at once.
#[test]
fn what_threads_record_and_replace_at_once_is_what_the_rows_say() {
    let tree = Tree::new();
    let journal = tree.journal();
    let all: Vec<String> = (0..240).map(|n| format!("item-{n}")).collect();
    for round in 0..5 {
        let run = running(journal.run_with(Job::new(format!("{round}")).flush_items(3)));
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (run, all, journal) = (&run, &all, &journal);
                scope.spawn(move || {
                    for n in 0..60 {
                        let item = &all[(thread * 60 + n * 7) % all.len()];
                        match (n + thread) % 4 {
                            0 => {
                                let begin = Begin::new("").lock(format!("t{thread}"));
                                let mut txn = journal.begin_with(begin).unwrap();
                                if txn.record(run, item).is_ok() {
                                    let _ = txn.commit();
                                }
                            }
                            1 if n % 12 < 4 => run.replace(&all[n..n + 20]).unwrap(),
                            _ => run.record(item).unwrap(),
                        }
                    }
                });
            }
        });
        run.flush().unwrap();
        let rows = format!("FROM journal_run_item WHERE id >> 36 = (SELECT id FROM journal_run WHERE job = '{round}')");
        let said: Vec<&String> = all.iter().filter(|item| run.is_done(*item)).collect();
        assert_eq!(count(&tree, &format!("SELECT count(*) {rows}")), run.banked() as i64, "no item has two rows");
        assert_eq!(count(&tree, &format!("SELECT count(DISTINCT item) {rows}")), said.len() as i64);
        for item in said {
            assert_eq!(count(&tree, &format!("SELECT count(*) {rows} AND item = CAST('{item}' AS BLOB)")), 1, "{item}");
        }
    }
}

/// A transaction is just committing an item when another thread records it alone, having done the same work.
#[test]
fn what_is_recorded_alone_and_by_a_commit_at_once_has_one_row() {
    let tree = Tree::new();
    let journal = tree.journal();
    journal.migrate(&["CREATE TABLE one (n INTEGER PRIMARY KEY)", "INSERT INTO one VALUES (1)"]).unwrap();
    for (round, beside) in ["INSERT INTO one VALUES (2)", "INSERT OR ROLLBACK INTO one VALUES (1)"].iter().enumerate() {
        let run = Arc::new(running(journal.run(&format!("{round}"), "")));
        run.record("first").unwrap();
        let begin = |lock: &str| journal.begin_with(Begin::new("").lock(lock)).unwrap();
        // They share a COMMIT: the second one's SQL runs when the first one's items are in it.
        let (mut one, mut two) = (begin("one"), begin("two"));
        let (came, comes) = std::sync::mpsc::channel();
        let (goes, go) = std::sync::mpsc::channel::<()>();
        one.sql(move |_| {
            if came.send(()).is_ok() {
                let _ = go.recv();
            }
            Ok(())
        })
        .unwrap();
        one.record(&run, "x").unwrap();
        let recording = Arc::clone(&run);
        let shared = Arc::new(AtomicBool::new(false));
        let shares = Arc::clone(&shared);
        let beside = *beside;
        two.sql(move |rows| {
            shares.store(!recording.is_done("x"), Ordering::SeqCst);
            recording.record("x")?;
            rows.execute(beside, ()).map(drop)
        })
        .unwrap();
        std::thread::scope(|scope| {
            let first = scope.spawn(move || one.commit().map(drop));
            comes.recv().unwrap();
            let second = scope.spawn(move || two.commit().map(drop));
            // By then the second is in the queue, behind the first.
            std::thread::sleep(Duration::from_millis(20));
            drop(goes);
            let first = first.join().unwrap();
            // Where the machine was too slow they did not share it, and one came after the other.
            let both = round == 0 || !shared.load(Ordering::SeqCst);
            assert_eq!((first.is_ok(), second.join().unwrap().is_ok()), (both, round == 0), "{first:?}");
        });
        run.flush().unwrap();
        assert!(run.is_done("x"));
        assert_eq!(run.banked(), 2);
        let rows = "SELECT count(*) FROM journal_run_item WHERE item = x'78'";
        assert_eq!(count(&tree, rows), round as i64 + 1, "of each run, one");
    }
}

#[test]
fn who_waits_for_ever_is_ended_all_the_same() {
    let tree = Tree::new();
    let journal = tree.journal();
    let stop = StopToken::after(Duration::MAX);
    let job = || Job::new("a").stop(&stop).flush_every(Duration::MAX).retry_pause(Duration::MAX);
    let run = running(journal.run_with(job()));
    run.record("x").unwrap();
    let other = by_hand(&tree);
    other.execute_batch(REFUSE).unwrap();
    std::thread::scope(|scope| {
        run.record("y").unwrap();
        let flushing = scope.spawn(|| run.flush());
        // However far it is: it begins no pause once it is to stop, and ends one that it has begun.
        stop.stop("enough");
        assert!(flushing.join().unwrap().is_err());
    });
    other.execute_batch("DROP TRIGGER refuse").unwrap();
    assert_eq!(run.finish().unwrap(), Ended::Partial { banked: 2, reason: "enough".into() });
}

#[test]
fn a_panic_banks_what_is_recorded_and_frees_the_lock() {
    let tree = Tree::new();
    let journal = tree.journal();
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let run = start(&journal);
        ["x", "y"].iter().for_each(|item| run.record(item).unwrap());
        let _txn = run.begin("z").unwrap();
        panic!("by the job");
    }));
    panicked.unwrap_err();
    let run = start(&tree.journal());
    assert_eq!(run.begun(), Begun::Resumed { banked: 2 });
    assert_eq!(count(&tree, "SELECT tries FROM journal_run_try WHERE item = x'7a'"), 1);
}

#[test]
fn a_run_in_the_database_of_the_application() {
    let tree = Tree::new();
    let path = tree.path("app.db");
    let app = rusqlite::Connection::open(&path).unwrap();
    app.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE journal (n)").unwrap();
    let journal = Journal::options().database(&path).open(tree.root()).unwrap();
    for banked in [1, 2] {
        let run = start(&journal);
        run.record(&banked).unwrap();
        assert_eq!(run.stop("").unwrap(), Ended::Partial { banked, reason: String::new() });
    }
    assert_eq!(app.query_row("SELECT count(*) FROM journal_run_item", (), |row| row.get::<_, i64>(0)).unwrap(), 2);
}

#[test]
fn a_cursor_never_goes_back() {
    let tree = Tree::new();
    let journal = tree.journal();
    let run = start(&journal);
    run.record("first").unwrap();
    run.set_cursor(&7).unwrap();
    let mut txn = journal.begin("on").unwrap();
    txn.set_cursor(&run, &8).unwrap();
    txn.commit().unwrap();
    assert_eq!(run.cursor::<u32>().unwrap(), Some(8));
    run.flush().unwrap();
    assert_eq!(count(&tree, "SELECT cursor = '8' FROM journal_run"), 1);
    // One that the job has set, and reads as something else, is what is set aside, once.
    run.set_cursor("nine").unwrap();
    assert_eq!(run.cursor::<u32>().unwrap(), None);
    assert_eq!(run.cursor::<u32>().unwrap(), None);
    drop(run);
    assert_eq!(count(&tree, r#"SELECT cursor IS NULL AND bad_cursor = '"nine"' FROM journal_run"#), 1);
}

#[test]
fn a_cursor_is_read_as_it_was_set_while_it_is_banked() {
    let tree = Tree::new();
    let journal = tree.journal();
    let run = running(journal.run_with(Job::new("a").retry_pause(Duration::from_millis(50)).flush_retries(4)));
    run.record("first").unwrap();
    run.record("second").unwrap();
    run.set_cursor(&7).unwrap();
    let other = by_hand(&tree);
    other.execute_batch(REFUSE).unwrap();
    std::thread::scope(|scope| {
        let flushing = scope.spawn(|| run.flush());
        let read: Vec<_> = (0..50)
            .map(|_| {
                std::thread::sleep(Duration::from_millis(1));
                run.cursor::<u32>().unwrap()
            })
            .collect();
        other.execute_batch("DROP TRIGGER refuse").unwrap();
        assert_eq!(read, [Some(7); 50]);
        assert_eq!(flushing.join().unwrap().unwrap(), 1);
    });
}

#[test]
fn a_cursor_of_strange_bytes_is_set_aside() {
    let tree = Tree::new();
    let journal = tree.journal();
    let run = start(&journal);
    run.record("x").unwrap();
    drop(run);
    by_hand(&tree).execute_batch("UPDATE journal_run SET cursor = CAST(x'22ff22' AS TEXT)").unwrap();
    let run = start(&journal);
    assert_eq!(run.cursor::<String>().unwrap(), None);
    assert!(run.is_done("x"));
    assert_eq!(count(&tree, "SELECT CAST(bad_cursor AS BLOB) = x'22ff22' AND cursor IS NULL FROM journal_run"), 1);
}

#[test]
fn who_only_says_that_items_fail_has_them_set_aside_too() {
    let tree = Tree::new();
    let journal = tree.journal();
    for n in 1..=3 {
        let run = start(&journal);
        let verdict = run.fail("poison", "as ever").unwrap();
        assert_eq!(verdict == Verdict::SetAside, n == 3, "{n}");
        assert_eq!(run.pending(["poison"]).count() == 0, n == 3);
    }
    // Said of a transaction that was dropped, it is why that failed, and no try more.
    let run = start(&journal);
    drop(run.begin("other").unwrap());
    run.fail("other", "why").unwrap();
    run.flush().unwrap();
    assert_eq!(count(&tree, "SELECT tries FROM journal_run_try WHERE error = 'why'"), 1);
}

#[test]
fn an_item_is_not_to_blame_for_what_the_database_does() {
    let tree = Tree::new();
    let journal = Journal::options().turn_wait(Duration::from_millis(50)).open(tree.root()).unwrap();
    let run = start(&journal);
    let txn = run.begin("x").unwrap();
    let other = by_hand(&tree);
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    assert!(txn.commit().unwrap_err().is_busy());
    other.execute_batch("ROLLBACK").unwrap();
    run.flush().unwrap();
    assert_eq!(count(&tree, "SELECT count(*) FROM journal_run_try"), 0);
    // Nor is one that did not come as far as its lock.
    let _held = journal.lock("main");
    let busy = std::thread::scope(|scope| {
        let begin = Begin::new("").wait(Duration::from_millis(5));
        scope.spawn(|| run.begin_with("y", begin).map(drop)).join().unwrap()
    });
    assert!(busy.unwrap_err().is_busy());
    run.flush().unwrap();
    assert_eq!(count(&tree, "SELECT count(*) FROM journal_run_try"), 0);
}

#[test]
fn the_lock_of_a_run_is_free_when_it_has_ended() {
    let tree = Tree::new();
    let journal = tree.journal();
    let run = start(&journal);
    let mut txn = journal.begin("late").unwrap();
    txn.record(&run, "x").unwrap();
    txn.write("x", "x").unwrap();
    let _ = run.stop("over").unwrap();
    assert!(tree.journal().try_lock("run:a").unwrap().is_some(), "though a transaction is still about");
    assert!(matches!(txn.commit(), Err(Error::RunEnded { .. })));
    assert!(!tree.path("x").exists());
}

#[test]
fn jobs_are_started_in_any_order_and_twice_by_one_thread() {
    let tree = Tree::new();
    let journal = tree.journal();
    let zebra = running(journal.run("zebra", ""));
    let _held = journal.lock("by-itself").unwrap();
    let ape = running(journal.run("ape", ""));
    let _more = journal.lock("c").unwrap();
    zebra.begin("x").unwrap().commit().unwrap();
    match journal.run("zebra", "").unwrap() {
        Started::Skipped(holder) => assert_eq!(holder.pid, i64::from(std::process::id())),
        Started::Running(run) => panic!("{run:?}"),
    }
    drop((zebra, ape));
}

#[test]
fn a_strange_row_is_no_trouble_to_others() {
    let tree = Tree::new();
    let journal = tree.journal();
    let run = start(&journal);
    run.record("x").unwrap();
    let attempt = run.attempt("y").unwrap();
    let _ = attempt.fail("it is like that").unwrap();
    drop(run);
    let by_hand = by_hand(&tree);
    // Names that no job can have, long ago; a number of tries that cannot be; an item that is done, and failed.
    by_hand
        .execute_batch(
            "INSERT INTO journal_run (id, job, fingerprint, state, began_ms, started_ms) VALUES \
               (-3, printf('%0200d', 1), x'', 'open', 1, 1), (-4, '', x'', 'open', 1, 1), \
               (1 << 40, CAST(x'ff' AS TEXT), x'', 'open', 1, 1), \
               (67108863, 'b', x'', 'finished', 1, 1), (9223372036854775807, 'c', x'', 'open', 1, 1);
             UPDATE journal_run_try SET tries = -5;
             INSERT INTO journal_run_try (id, item, tries, state, at_ms) \
               SELECT id + 9, x'78', 1, 'failed', 1 FROM journal_run_try;",
        )
        .unwrap();
    let run = running(journal.run_with(Job::new("a").fingerprint("1").expected(u64::MAX)));
    assert_eq!(run.begun(), Begun::Resumed { banked: 1 });
    let mut txn = run.begin("y").unwrap();
    txn.write("y", "y").unwrap();
    txn.commit().unwrap();
    assert_eq!(run.finish().unwrap(), Ended::Finished { banked: 2, set_aside: 0 });
    journal.settle().unwrap();
    assert_eq!(count(&tree, "SELECT count(*) FROM journal_run WHERE state = 'open'"), 0);
    for job in ["d", "e"] {
        assert_eq!(running(journal.run(job, "")).begun(), Begun::New);
    }
}

#[test]
fn what_died_with_its_session_is_set_aside_loudly() {
    let tree = Tree::new();
    let journal = tree.journal();
    drop(start(&journal));
    by_hand(&tree)
        .execute_batch(
            "INSERT INTO journal_run_try (id, item, tries, state, at_ms) \
             SELECT id << 36, x'78', 3, 'trying', 1 FROM journal_run",
        )
        .unwrap();
    let run = start(&journal);
    assert_eq!(run.pending(["x", "y"]).collect::<Vec<_>>(), ["y"]);
    assert_eq!(count(&tree, "SELECT count(*) FROM journal_event WHERE kind = 'run'"), 1);
}
