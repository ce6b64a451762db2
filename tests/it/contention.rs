//! The store while others are at it: applications with connections of their own, readers that misbehave, other processes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use journal_kb::{Error, Journal};
use rusqlite::Connection;

use crate::support::Tree;

const SCHEMA: &[&str] = &["CREATE TABLE n (x)"];
/// Rows without an end.
const NUMBERS: &str = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT x FROM n";
/// So much is written while a reader misbehaves, in MiB; an hour of it is some hundred thousand.
const MEBIBYTES: &str = "JOURNAL_KB_LOG_MEBIBYTES";
/// As it is promised, in bytes.
const LONGEST_LOG: u64 = 64 << 20;

fn count(journal: &Journal) -> i64 {
    journal.read(|rows| rows.query_row("SELECT count(*) FROM n", (), |row| row.get(0))).unwrap()
}

/// Longer than SQLite waits by itself.
#[test]
fn who_writes_without_the_turn_for_long_is_waited_for() {
    let tree = Tree::new();
    let journal = tree.journal();
    journal.migrate(SCHEMA).unwrap();
    let mine = Connection::open(tree.path(".journal/journal.db")).unwrap();
    mine.execute_batch("BEGIN IMMEDIATE; INSERT INTO n VALUES ('mine')").unwrap();
    thread::scope(|scope| {
        let row = scope.spawn(|| journal.write(|rows| rows.execute("INSERT INTO n VALUES ('row')", ())));
        let file = scope.spawn(|| journal.transact(|txn| txn.write("f", "file")));
        thread::sleep(Duration::from_millis(6500));
        assert!(!row.is_finished() && !file.is_finished());
        assert_eq!(count(&journal), 0);
        mine.execute_batch("COMMIT").unwrap();
        row.join().unwrap().unwrap();
        file.join().unwrap().unwrap();
    });
    assert_eq!(count(&journal), 2);
}

#[test]
fn who_writes_without_the_turn_is_named_once_the_time_is_over() {
    let tree = Tree::new();
    let journal = Journal::options().turn_wait(Duration::from_millis(200)).open(tree.root()).unwrap();
    journal.migrate(SCHEMA).unwrap();
    let mine = Connection::open(tree.path(".journal/journal.db")).unwrap();
    mine.execute_batch("BEGIN IMMEDIATE").unwrap();
    match journal.write(|rows| rows.execute("INSERT INTO n VALUES (1)", ())) {
        Err(Error::Busy { what, holder, .. }) => {
            assert!(what.contains("journal.db") && holder.contains("connection"), "{what} {holder}");
        }
        other => panic!("{other:?}"),
    }
    mine.execute_batch("ROLLBACK").unwrap();
    journal.write(|rows| rows.execute("INSERT INTO n VALUES (1)", ())).unwrap();
    assert_eq!(count(&journal), 1);
}

#[test]
fn a_read_of_many_short_statements_is_ended_too() {
    let tree = Tree::new();
    let journal = Journal::options().read_limit(Duration::from_millis(100)).open(tree.root()).unwrap();
    let ended: Result<(), Error> = journal.read(|rows| {
        loop {
            rows.query_row("SELECT 1", (), |row| row.get::<_, i64>(0))?;
            thread::sleep(Duration::from_millis(5));
        }
    });
    assert!(matches!(ended, Err(Error::ReadTooLong { .. })), "{ended:?}");
}

#[test]
fn a_read_that_goes_through_its_rows_at_leisure_is_ended_too() {
    let tree = Tree::new();
    let journal = Journal::options().read_limit(Duration::from_millis(100)).open(tree.root()).unwrap();
    let ended: Result<Vec<()>, Error> = journal.read(|rows| {
        rows.query_map(NUMBERS, (), |_| {
            thread::sleep(Duration::from_millis(5));
            Ok(())
        })
    });
    assert!(matches!(ended, Err(Error::ReadTooLong { .. })), "{ended:?}");
}

/// One snapshot after the other, each held for as long as it may be, and a row taken now and then.
#[test]
fn the_log_stays_short_beside_a_reader_that_never_stops() {
    let mebibytes: u64 = std::env::var(MEBIBYTES).map_or(90, |text| text.parse().unwrap());
    let tree = Tree::new();
    let journal = Journal::options().read_limit(Duration::from_millis(400)).open(tree.root()).unwrap();
    journal.migrate(SCHEMA).unwrap();
    journal.write(|rows| rows.execute("INSERT INTO n VALUES (zeroblob(1 << 20))", ())).unwrap();
    let stop = AtomicBool::new(false);
    let longest = thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let mut ended = 0;
                    while !stop.load(Ordering::Relaxed) {
                        let read = journal.read(|rows| {
                            rows.query_row("SELECT count(*) FROM n", (), |row| row.get::<_, i64>(0))?;
                            let mut statement = rows.prepare(NUMBERS)?;
                            let mut numbers = statement.query(())?;
                            // By hand: only SQLite can end it, and for that it has to be interrupted.
                            while numbers.next()?.is_some() {
                                thread::sleep(Duration::from_millis(20));
                            }
                            Ok(())
                        });
                        ended += usize::from(matches!(read, Err(Error::ReadTooLong { .. })));
                    }
                    ended
                })
            })
            .collect();
        let mut longest = 0;
        for _ in 0..mebibytes {
            journal.write(|rows| rows.execute("UPDATE n SET x = randomblob(1 << 20)", ())).unwrap();
            longest = longest.max(tree.path(".journal/journal.db-wal").metadata().unwrap().len());
        }
        stop.store(true, Ordering::Relaxed);
        let ended: usize = readers.into_iter().map(|reader| reader.join().unwrap()).sum();
        assert!(ended > 0, "none was ended");
        longest
    });
    assert!(longest <= LONGEST_LOG, "{} MiB", longest >> 20);
    // The readers did stand in the way.
    assert!(longest > 8 << 20, "{} MiB", longest >> 20);
}
