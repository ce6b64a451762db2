//! A run whose database cannot be written in the middle of it: it ends loudly, says what is banked, and goes on there afterwards.

use std::fs;
use std::io::Read;
use std::time::Duration;

use journal_kb::{Begun, Ended, Error, Job, Journal, Run};

use crate::runs::running;
use crate::support::{Tree, child, child_root, wait_for_word};
use crate::torment::Watchdog;
use crate::trouble::Small;

const LIMIT: Duration = Duration::from_secs(120);

fn job() -> Job {
    Job::new("a").flush_items(50).flush_retries(1).retry_pause(Duration::from_millis(1)).failed_flushes(2)
}

/// So long that they take room.
fn item(n: u64) -> String {
    format!("{n}/{}", "x".repeat(500))
}

/// Records items until that is refused. Answers the number of the next one.
fn record_until_refused(run: &Run, from: u64) -> u64 {
    for n in from..from + 100_000 {
        let banked = run.banked();
        match run.record(&item(n)) {
            Ok(()) => {}
            Err(Error::CheckpointUnavailable { job, banked: said, unbanked, .. }) => {
                assert_eq!((job.as_str(), said, said + unbanked), ("a", banked, n + 1));
                return n + 1;
            }
            Err(other) => panic!("{other}"),
        }
    }
    panic!("there is room for all of it");
}

/// What is banked is what the run has said, and the next one goes on there.
fn goes_on(journal: &Journal, banked: u64) {
    let run = running(journal.run_with(job()));
    assert_eq!(run.begun(), Begun::Resumed { banked });
    assert!((0..banked).all(|n| run.is_done(&item(n))) && !run.is_done(&item(banked)));
    for item in run.pending((0..banked + 100).map(item)) {
        run.record(&item).unwrap();
    }
    assert_eq!(run.finish().unwrap(), Ended::Finished { banked: banked + 100, set_aside: 0 });
}

#[test]
fn a_full_disk_ends_it_loudly_and_it_goes_on_when_there_is_room() {
    let Some(small) = Small::mount("6m") else { return };
    let root = small.0.path();
    fs::write(root.join("filler"), vec![0; 1 << 20]).unwrap();
    let journal = Journal::open(root).unwrap();
    let run = running(journal.run_with(job()));
    let next = record_until_refused(&run, 0);
    let banked = run.banked();
    assert!(banked > 100 && next - banked <= 3 * 50, "{banked} of {next}: no more is done than cannot be banked");
    assert!(matches!(run.record("one more"), Err(Error::CheckpointUnavailable { .. })));
    match run.finish() {
        Err(error @ Error::CheckpointUnavailable { .. }) => {
            let said = error.to_string();
            assert!(said.contains("full") && said.contains(&banked.to_string()), "{said}");
        }
        other => panic!("{other:?}"),
    }
    assert!(journal.try_lock("run:a").unwrap().is_some(), "its lock is free all the same");
    fs::remove_file(root.join("filler")).unwrap();
    goes_on(&journal, banked);
}

#[test]
fn what_a_flush_could_not_write_goes_with_the_next_one() {
    let tree = Tree::new();
    let journal = tree.journal();
    let run = running(journal.run_with(job().flush_retries(0).failed_flushes(3)));
    run.record(&item(0)).unwrap();
    let other = rusqlite::Connection::open(tree.path(".journal/journal.db")).unwrap();
    let refuse = "CREATE TRIGGER refuse BEFORE INSERT ON journal_run_item BEGIN SELECT RAISE(ABORT, 'unwritable'); END";
    for n in 1..3 {
        other.execute_batch(refuse).unwrap();
        run.record(&item(2 * n - 1)).unwrap();
        run.flush().unwrap_err();
        assert!(run.is_done(&item(2 * n - 1)) && run.banked() == 2 * n - 1, "recorded, and not banked");
        other.execute_batch("DROP TRIGGER refuse").unwrap();
        run.record(&item(2 * n)).unwrap();
        assert_eq!((run.flush().unwrap(), run.banked()), (2, 2 * n + 1));
    }
    drop(run);
    drop(other);
    goes_on(&journal, 5);
}

#[test]
fn a_database_that_somebody_else_keeps_locked_ends_it_loudly() {
    let _watchdog = Watchdog::new("a database that somebody else keeps locked", LIMIT);
    let tree = Tree::new();
    let journal = tree.journal();
    let run = running(journal.run_with(job().flush_retries(0).failed_flushes(1)));
    run.record(&item(0)).unwrap();
    let mut other = child("runs_unwritable::keeps_it_locked", tree.root());
    let mut other = other.stdin(std::process::Stdio::piped()).spawn().unwrap();
    wait_for_word(&mut other, "nobody else writes");
    let next = record_until_refused(&run, 1);
    assert_eq!((run.banked(), next), (1, 51));
    match run.finish() {
        Err(Error::CheckpointUnavailable { banked: 1, unbanked: 50, detail, .. }) => {
            assert!(detail.contains("does not wait"), "{detail}");
        }
        other => panic!("{other:?}"),
    }
    drop(other.stdin.take());
    assert!(other.wait().unwrap().success());
    goes_on(&journal, 1);
}

/// Not a test: what the one above starts.
#[test]
fn keeps_it_locked() {
    let Some(root) = child_root() else { return };
    let database = rusqlite::Connection::open(root.join(".journal/journal.db")).unwrap();
    database.execute_batch("BEGIN IMMEDIATE").unwrap();
    println!("nobody else writes");
    let _ = std::io::stdin().read(&mut [0]);
}
