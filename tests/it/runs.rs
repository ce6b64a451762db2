//! Runs: what is recorded stays recorded, items are tried as often as they may be, and every end banks what is left.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use journal_kb::{Begun, Ended, Error, Job, Journal, Run, Started, StopToken, Transaction, Verdict};

use crate::support::Tree;

pub(crate) fn running(started: journal_kb::Result<Started>) -> Run {
    match started.unwrap() {
        Started::Running(run) => run,
        Started::Skipped(holder) => panic!("{holder} is at it"),
    }
}

fn start(journal: &Journal, job: &str) -> Run {
    running(journal.run(job, "1"))
}

fn items(n: std::ops::Range<usize>) -> Vec<String> {
    n.map(|n| format!("item-{n}")).collect()
}

fn partial(ended: journal_kb::Result<Ended>) -> (u64, String) {
    match ended.unwrap() {
        Ended::Partial { banked, reason } => (banked, reason),
        finished => panic!("{finished:?}"),
    }
}

pub(crate) fn count(tree: &Tree, sql: &str) -> i64 {
    let conn = rusqlite::Connection::open(tree.path(".journal/journal.db")).unwrap();
    conn.query_row(sql, (), |row| row.get(0)).unwrap()
}

/// Does an item: its effect is a row and a file.
fn import(txn: &mut Transaction, item: &str) -> journal_kb::Result<()> {
    txn.write(item, item)?;
    let item = item.to_owned();
    txn.sql(move |rows| rows.execute("INSERT INTO effect VALUES (?1)", [&item]).map(drop))
}

#[test]
fn what_is_recorded_is_done_in_every_later_session() {
    let tree = Tree::new();
    let journal = tree.journal();
    let run = start(&journal, "a");
    assert_eq!((run.begun(), run.banked()), (Begun::New, 0));
    run.record("x").unwrap();
    assert_eq!(run.banked(), 1, "the first is banked at once");
    for item in items(0..500) {
        run.record(&item).unwrap();
        run.record(&item).unwrap();
    }
    assert!(run.is_done("item-7") && run.banked() == 1);
    assert_eq!(partial(run.stop("enough")), (501, "enough".into()));

    let run = start(&journal, "a");
    assert_eq!(run.begun(), Begun::Resumed { banked: 501 });
    assert_eq!(run.pending(items(498..503)).collect::<Vec<_>>(), items(500..503));
    drop(run);
    drop(journal);
    let journal = tree.journal();
    let run = start(&journal, "a");
    assert_eq!(run.begun(), Begun::Resumed { banked: 501 });
    for item in run.pending(items(0..510)) {
        run.record(&item).unwrap();
    }
    assert_eq!(run.finish().unwrap(), Ended::Finished { banked: 511, set_aside: 0 });
    assert_eq!(start(&journal, "a").begun(), Begun::New, "a run that is finished is over");
    assert_eq!(start(&journal, "b").begun(), Begun::New, "another job");
}

#[test]
fn an_item_and_its_effect_are_one() {
    let tree = Tree::new();
    let journal = tree.journal();
    journal.migrate(&["CREATE TABLE effect (item TEXT PRIMARY KEY)"]).unwrap();
    let run = start(&journal, "a");
    let both = |run: &Run, item: &str| {
        let mut txn = run.begin(item)?;
        import(&mut txn, item)?;
        txn.commit()
    };
    both(&run, "one").unwrap();
    // Rolled back, it is not done; and another transaction of the journal is no item.
    let mut txn = run.begin("two").unwrap();
    import(&mut txn, "two").unwrap();
    drop(txn);
    let mut txn = run.begin("three").unwrap();
    import(&mut txn, "one").unwrap();
    txn.commit().unwrap_err();
    assert_eq!(["one", "two", "three"].map(|item| run.is_done(item)), [true, false, false]);
    let refused = both(&run, "one").unwrap_err();
    assert!(matches!(refused, Error::ItemRefused { .. }), "{refused}");
    // Two that were begun before either was committed: the second is refused inside COMMIT.
    let mut txn = journal.begin("by hand").unwrap();
    txn.record(&run, "four").unwrap();
    let mut other = journal.begin_with(journal_kb::Begin::new("").lock("other")).unwrap();
    import(&mut other, "four").unwrap();
    other.record(&run, "four").unwrap();
    txn.commit().unwrap();
    assert!(matches!(other.commit(), Err(Error::ItemRefused { .. })));
    assert_eq!(run.banked(), 2);
    drop(run);
    let run = start(&journal, "a");
    assert_eq!(run.begun(), Begun::Resumed { banked: 2 });
    assert!(!tree.path("two").exists() && !tree.path("four").exists());
    assert_eq!(count(&tree, "SELECT count(*) FROM effect"), 1);
    // What comes after the end of a run is not part of it, and does not happen.
    let mut late = journal.begin("late").unwrap();
    late.record(&run, "five").unwrap();
    late.write("five", "five").unwrap();
    partial(run.stop("over"));
    assert!(matches!(late.commit(), Err(Error::RunEnded { .. })));
    assert!(!tree.path("five").exists());
}

#[test]
fn a_commit_that_was_there_already_is_recorded_alone() {
    let tree = Tree::new();
    let journal = tree.journal();
    let begin = || journal_kb::Begin::new("").key("k");
    let mut txn = journal.begin_with(begin()).unwrap();
    txn.write("a", "a").unwrap();
    txn.commit().unwrap();
    let run = start(&journal, "a");
    let mut txn = run.begin_with("a", begin()).unwrap();
    txn.write("a", "a").unwrap();
    assert!(txn.commit().unwrap().repeated());
    assert!(run.is_done("a"));
    assert_eq!(partial(run.stop("enough")).0, 1);
}

#[test]
fn a_changed_fingerprint_begins_afresh_and_keeps_the_old_one() {
    let tree = Tree::new();
    let journal = tree.journal();
    let run = start(&journal, "a");
    run.record("x").unwrap();
    drop(run);
    let run = running(journal.run("a", "2"));
    assert_eq!((run.begun(), run.is_done("x")), (Begun::Changed { banked: 1 }, false));
    drop(run);
    assert_eq!(count(&tree, "SELECT count(*) FROM journal_run_item"), 1);
    assert_eq!(count(&tree, "SELECT count(*) FROM journal_event WHERE kind = 'run'"), 1);
    drop(journal);
    // What is over, and what nobody goes on with, is forgotten after a while.
    let journal = Journal::options().run_retention(Duration::ZERO).open(tree.root()).unwrap();
    std::thread::sleep(Duration::from_millis(5));
    journal.settle().unwrap();
    journal.settle().unwrap();
    for table in ["journal_run", "journal_run_item", "journal_run_try"] {
        assert_eq!(count(&tree, &format!("SELECT count(*) FROM {table}")), 0, "{table}");
    }
}

#[test]
fn who_comes_while_somebody_is_at_it_is_told_so() {
    let tree = Tree::new();
    let (one, two) = (tree.journal(), tree.journal());
    let run = start(&one, "a");
    let before = count(&tree, "SELECT count(*) FROM journal_run");
    match two.run("a", "other").unwrap() {
        Started::Skipped(holder) => assert_eq!(holder.pid, i64::from(std::process::id())),
        Started::Running(run) => panic!("{run:?}"),
    }
    assert_eq!(count(&tree, "SELECT count(*) FROM journal_run"), before);
    assert!(matches!(two.runs().reset("a"), Err(Error::Busy { .. })));
    drop(run);
    two.runs().reset("a").unwrap();
    assert!(matches!(two.runs().reset("a"), Err(Error::NoRun { .. })));
    assert_eq!(start(&two, "a").begun(), Begun::New);
}

#[test]
fn who_is_asked_to_stop_banks_and_says_so() {
    let tree = Tree::new();
    let journal = tree.journal();
    let stop = StopToken::new();
    let job = || Job::new("a").fingerprint("1").stop(&stop);
    let run = running(journal.run_with(job()));
    let mut done = 0;
    for item in run.pending(items(0..100)) {
        run.record(&item).unwrap();
        done += 1;
        if done == 30 {
            stop.stop("SIGTERM");
        }
    }
    assert_eq!(done, 30);
    assert_eq!(partial(run.finish()), (30, "SIGTERM".into()));
    assert_eq!(count(&tree, "SELECT count(*) FROM journal_run WHERE state = 'open' AND reason = 'SIGTERM'"), 1);
    assert!(journal.try_lock("run:a").unwrap().is_some());

    // By the clock, and whatever the work is at: what is recorded is banked behind its back.
    let soon = StopToken::after(Duration::from_millis(100));
    let run = running(journal.run_with(Job::new("a").fingerprint("1").stop(&soon)));
    run.record("x").unwrap();
    run.record("y").unwrap();
    for _ in 0..2000 {
        std::thread::sleep(Duration::from_millis(5));
        if run.banked() == 32 {
            break;
        }
    }
    assert_eq!(run.banked(), 32);
    let (banked, reason) = partial(run.finish());
    assert!(banked == 32 && reason.contains("time was over"), "{reason}");
}

#[test]
fn an_item_that_fails_is_tried_three_times_and_then_set_aside() {
    let tree = Tree::new();
    let journal = tree.journal();
    journal.migrate(&["CREATE TABLE effect (item TEXT PRIMARY KEY)"]).unwrap();
    let tried = AtomicUsize::new(0);
    let session = |journal: &Journal| {
        let run = start(journal, "a");
        for item in run.pending(items(0..5)) {
            let mut txn = run.begin(&item).unwrap();
            if item == "item-2" {
                tried.fetch_add(1, Ordering::Relaxed);
                drop(txn);
                let verdict = run.fail(&item, "it is poison").unwrap();
                assert_eq!(verdict == Verdict::SetAside, tried.load(Ordering::Relaxed) == 3);
                continue;
            }
            import(&mut txn, &item).unwrap();
            txn.commit().unwrap();
        }
        run.finish().unwrap()
    };
    for banked in [4, 4] {
        let failed = Ended::Partial { banked, reason: "1 item failed, to be tried again".into() };
        assert_eq!(session(&journal), failed);
    }
    assert_eq!(session(&journal), Ended::Finished { banked: 4, set_aside: 1 });
    // It stays aside in the next run under the same fingerprint.
    let run = start(&journal, "a");
    assert_eq!(run.pending(items(0..5)).count(), 4);
    assert!(matches!(run.begin("item-2"), Err(Error::ItemRefused { .. })));
    drop(run);
    assert_eq!(journal.runs().retry("a", Some(b"item-1")).unwrap(), 0);
    assert_eq!(journal.runs().retry("a", None).unwrap(), 1);
    assert_eq!(start(&journal, "a").pending(items(0..5)).count(), 5);
}

#[test]
fn what_was_only_about_to_be_tried_is_not_counted() {
    let tree = Tree::new();
    let journal = tree.journal();
    for _ in 0..5 {
        let run = start(&journal, "a");
        let mut pending = run.pending(items(0..9));
        let first = pending.next().unwrap();
        let txn = run.begin(&first).unwrap();
        assert_eq!(count(&tree, "SELECT tries FROM journal_run_try"), 1, "it is counted before it is tried");
        drop(pending);
        partial(run.stop("by somebody"));
        drop(txn);
        assert_eq!(count(&tree, "SELECT count(*) FROM journal_run_try"), 0, "nobody's fault");
    }
    // Whose session ends by an error may have been the reason.
    for tries in 1..=3 {
        let run = start(&journal, "a");
        let attempt = run.attempt("item-0").unwrap();
        std::mem::forget(attempt);
        drop(run);
        let sql = format!("SELECT count(*) FROM journal_run_try WHERE tries = {tries}");
        assert_eq!(count(&tree, &sql), 1);
    }
    assert_eq!(start(&journal, "a").pending(items(0..2)).collect::<Vec<_>>(), items(1..2));
}

#[test]
fn the_try_of_the_next_item_rides_along() {
    let tree = Tree::new();
    let journal = tree.journal();
    let run = start(&journal, "a");
    for item in run.pending(items(0..10)) {
        let mut txn = run.begin(&item).unwrap();
        txn.write(&item, &item).unwrap();
        txn.commit().unwrap();
        let next = count(&tree, "SELECT count(*) FROM journal_run_try WHERE state = 'trying' AND tries = 1");
        assert_eq!(next, i64::from(item != "item-9"));
    }
    assert_eq!(run.finish().unwrap(), Ended::Finished { banked: 10, set_aside: 0 });
    assert_eq!(count(&tree, "SELECT count(*) FROM journal_run_try"), 0);
}

#[test]
fn what_vanished_from_its_source_is_done() {
    let tree = Tree::new();
    let journal = tree.journal();
    let run = start(&journal, "a");
    for item in run.pending(items(0..3)) {
        drop(run.attempt(&item).unwrap());
    }
    partial(run.finish());
    let run = start(&journal, "a");
    for item in run.pending(items(0..2)) {
        run.record(&item).unwrap();
    }
    assert_eq!(run.finish().unwrap(), Ended::Finished { banked: 3, set_aside: 0 });
}

#[test]
fn who_leaves_before_the_end_has_not_finished() {
    let tree = Tree::new();
    let journal = tree.journal();
    let run = start(&journal, "a");
    for item in run.pending(items(0..10)).take(4) {
        run.record(&item).unwrap();
    }
    assert_eq!(partial(run.finish()), (4, "not all items were gone through".into()));
    let run = start(&journal, "a");
    assert_eq!(run.pending(items(0..10)).next().unwrap(), "item-4");
    run.pending(items(0..10)).take(6).for_each(|item| run.record(&item).unwrap());
    assert_eq!(run.finish().unwrap(), Ended::Finished { banked: 10, set_aside: 0 });
}

#[test]
fn a_cursor_goes_with_the_items_and_a_strange_one_is_set_aside() {
    let tree = Tree::new();
    let journal = tree.journal();
    let run = start(&journal, "a");
    assert_eq!(run.cursor::<u64>().unwrap(), None);
    run.record("x").unwrap();
    run.set_cursor(&("page", 7)).unwrap();
    assert_eq!(run.cursor::<(String, u64)>().unwrap(), Some(("page".into(), 7)));
    drop(run);
    let run = start(&journal, "a");
    assert_eq!(run.cursor::<(String, u64)>().unwrap(), Some(("page".into(), 7)));
    let mut txn = run.begin("y").unwrap();
    txn.set_cursor(&run, &("page", 8)).unwrap();
    txn.commit().unwrap();
    drop(run);
    let run = start(&journal, "a");
    assert_eq!(run.cursor::<Vec<bool>>().unwrap(), None);
    assert_eq!(run.cursor::<(String, u64)>().unwrap(), None);
    assert!(run.is_done("x") && run.is_done("y"));
    assert_eq!(count(&tree, r#"SELECT bad_cursor = '["page",8]' FROM journal_run"#), 1);
}

#[test]
fn the_whole_is_replaced_in_one_commit() {
    let tree = Tree::new();
    let journal = tree.journal();
    let run = start(&journal, "a");
    items(0..20).iter().for_each(|item| run.record(item).unwrap());
    run.replace(items(15..40)).unwrap();
    assert_eq!((run.banked(), run.is_done("item-3"), run.is_done("item-39")), (25, false, true));
    run.record("item-3").unwrap();
    drop(run);
    let run = start(&journal, "a");
    assert_eq!(run.begun(), Begun::Resumed { banked: 26 });
    assert_eq!(run.pending(items(0..41)).count(), 15);
}

#[test]
fn with_all_readers_taken_a_run_resumes_flushes_and_ends() {
    let tree = Tree::new();
    let journal = Journal::options().pool_size(1).pool_timeout(Duration::from_millis(200)).open(tree.root()).unwrap();
    let run = start(&journal, "a");
    run.record("x").unwrap();
    drop(run);
    std::thread::scope(|scope| {
        let (taken, is_taken) = std::sync::mpsc::channel();
        let (done, is_done) = std::sync::mpsc::channel::<()>();
        let reader = &journal;
        scope.spawn(move || {
            let read = reader.read(|_| {
                taken.send(()).unwrap();
                let _ = is_done.recv();
                Ok(())
            });
            read.unwrap();
        });
        is_taken.recv().unwrap();
        assert!(matches!(journal.read(|_| Ok(())), Err(Error::PoolTimeout { .. })));
        let run = start(&journal, "a");
        assert_eq!(run.begun(), Begun::Resumed { banked: 1 });
        run.record("y").unwrap();
        run.set_cursor(&1).unwrap();
        assert_eq!(run.cursor::<i32>().unwrap(), Some(1));
        run.begin("z").unwrap().commit().unwrap();
        run.flush().unwrap();
        assert_eq!(run.finish().unwrap(), Ended::Finished { banked: 3, set_aside: 0 });
        done.send(()).unwrap();
    });
}

#[test]
fn many_threads_lose_nothing_when_flushes_fail() {
    const THREADS: usize = 8;
    const EACH: usize = 400;
    let tree = Tree::new();
    let journal = tree.journal();
    let job = Job::new("a").flush_items(10).flush_retries(0).failed_flushes(u32::MAX);
    let run = running(journal.run_with(job));
    let other = rusqlite::Connection::open(tree.path(".journal/journal.db")).unwrap();
    other.busy_timeout(Duration::from_secs(60)).unwrap();
    let refuse = "CREATE TRIGGER refuse BEFORE INSERT ON journal_run_item BEGIN SELECT RAISE(ABORT, 'unwritable'); END";
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let run = &run;
            scope.spawn(move || {
                for n in 0..EACH {
                    run.record(&format!("{thread}/{n}")).unwrap();
                }
            });
        }
        for _ in 0..20 {
            other.execute_batch(refuse).unwrap();
            std::thread::sleep(Duration::from_millis(3));
            other.execute_batch("DROP TRIGGER refuse").unwrap();
            std::thread::sleep(Duration::from_millis(3));
        }
    });
    assert_eq!(run.finish().unwrap(), Ended::Finished { banked: (THREADS * EACH) as u64, set_aside: 0 });
    assert_eq!(count(&tree, "SELECT count(DISTINCT item) FROM journal_run_item"), (THREADS * EACH) as i64);
    assert_eq!(count(&tree, "SELECT count(*) FROM journal_run_item"), (THREADS * EACH) as i64);
}

#[test]
fn a_database_that_cannot_be_written_ends_it_loudly() {
    let tree = Tree::new();
    let journal = tree.journal();
    let job = Job::new("a").flush_items(10).flush_retries(2).retry_pause(Duration::from_millis(1));
    let run = running(journal.run_with(job));
    items(0..25).iter().for_each(|item| run.record(item).unwrap());
    let banked = run.banked();
    let other = rusqlite::Connection::open(tree.path(".journal/journal.db")).unwrap();
    other
        .execute_batch(
            "CREATE TRIGGER refuse BEFORE INSERT ON journal_run_item BEGIN SELECT RAISE(ABORT, 'unwritable'); END",
        )
        .unwrap();
    let mut done = 25;
    let error = run.pending(items(25..10_000)).find_map(|item| {
        done += 1;
        run.record(&item).err()
    });
    match error.unwrap() {
        Error::CheckpointUnavailable { job, banked: said, unbanked, detail } => {
            assert_eq!((job.as_str(), said, unbanked), ("a", banked, done - banked));
            assert!(detail.contains("unwritable"), "{detail}");
        }
        other => panic!("{other}"),
    }
    assert!(done < 50, "no more is done than cannot be banked: {done}");
    assert_eq!(run.pending(items(0..100)).count(), 0);
    assert!(matches!(run.begin("x"), Err(Error::CheckpointUnavailable { .. })));
    assert!(matches!(run.finish(), Err(Error::CheckpointUnavailable { .. })));
    assert!(journal.try_lock("run:a").unwrap().is_some());
    other.execute_batch("DROP TRIGGER refuse").unwrap();
    assert_eq!(running(journal.run_with(Job::new("a"))).begun(), Begun::Resumed { banked });
}
