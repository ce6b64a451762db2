//! The caller's SQL: everything of the application's, nothing of the engine's.

use std::time::Duration;

use journal_kb::{Error, Journal, rusqlite};

use crate::support::Tree;

#[test]
fn the_engines_tables_and_transactions_are_out_of_reach() {
    let tree = Tree::new();
    let journal = tree.journal();
    journal.migrate(&["CREATE TABLE t(x); CREATE TABLE other(x)"]).unwrap();
    let refused = [
        "BEGIN",
        "COMMIT",
        "END",
        "ROLLBACK",
        "SAVEPOINT s",
        "RELEASE member",
        "ATTACH ':memory:' AS x",
        "DETACH main",
        "PRAGMA synchronous = 0",
        "PRAGMA journal_mode = DELETE",
        "PRAGMA user_version = 7",
        "DELETE FROM journal_txn",
        "DELETE FROM main.JOURNAL_txn",
        "UPDATE journal_meta SET fence = 0",
        "INSERT INTO journal_event (at_ms, level, kind, details) VALUES (0, 'info', 'x', x'')",
        "DROP TABLE journal_redo",
        "ALTER TABLE journal_redo ADD COLUMN x",
        "CREATE INDEX mine ON journal_txn (label)",
        "CREATE TRIGGER mine AFTER INSERT ON journal_txn BEGIN DELETE FROM t; END",
        "CREATE TEMP TRIGGER mine AFTER INSERT ON main.journal_txn BEGIN DELETE FROM t; END",
        "CREATE TEMP TABLE journal_txn(x)",
        "CREATE TABLE journal_mine(x)",
        "CREATE VIEW journal_view AS SELECT 1",
        "ALTER TABLE other RENAME TO journal_other",
        "SELECT load_extension('x')",
        "VACUUM",
    ];
    for sql in refused {
        let failed = journal.transact(|txn| {
            txn.write("f", b"f")?;
            txn.sql(move |rows| rows.execute_batch(sql))
        });
        assert!(failed.is_err(), "{sql} was let through");
        if sql != "VACUUM" && sql != "RELEASE member" {
            assert!(matches!(failed, Err(Error::Denied { .. })), "{sql}: {failed:?}");
        }
        assert!(!tree.path("f").exists(), "{sql}");
    }
    // The text of a statement that the engine keeps prepared is no way in either.
    let failed = journal.transact(|txn| txn.sql(|rows| rows.execute("COMMIT", ()).map(drop)));
    assert!(matches!(failed, Err(Error::Denied { .. })), "{failed:?}");
    journal.transact(|txn| txn.sql(|rows| rows.execute("INSERT INTO t VALUES (1)", ()).map(drop))).unwrap();
    let counted: i64 = journal.read(|rows| rows.query_row("SELECT count(*) FROM t", (), |row| row.get(0))).unwrap();
    assert_eq!(counted, 1);
}

#[test]
fn a_statement_that_ends_the_transaction_is_found_out() {
    let tree = Tree::new();
    let journal = tree.journal();
    journal.migrate(&["CREATE TABLE t(x UNIQUE); INSERT INTO t VALUES (1)"]).unwrap();
    let failed = journal.transact(|txn| {
        txn.write("f", b"f")?;
        txn.sql(|rows| {
            // Even when its error is swallowed.
            let _ = rows.execute("INSERT OR ROLLBACK INTO t VALUES (1)", ());
            Ok(())
        })
    });
    assert!(matches!(failed, Err(Error::EndedBySql)), "{failed:?}");
    assert!(!tree.path("f").exists());
}

#[test]
fn full_text_search_works_inside_a_transaction() {
    let tree = Tree::new();
    let journal = tree.journal();
    journal.migrate(&["CREATE VIRTUAL TABLE words USING fts5(body)"]).unwrap();
    journal
        .transact(|txn| {
            txn.sql(|rows| rows.execute("INSERT INTO words VALUES ('the quick fox')", ()).map(drop))?;
            txn.sql(|rows| rows.execute("DELETE FROM words WHERE words MATCH 'nothing'", ()).map(drop))
        })
        .unwrap();
    let found: Vec<String> = journal
        .read(|rows| rows.query_map("SELECT body FROM words WHERE words MATCH ?1", ["quick"], |row| row.get(0)))
        .unwrap();
    assert_eq!(found, ["the quick fox"]);
}

#[test]
fn the_journal_refuses_to_be_called_from_its_own_closures() {
    let tree = Tree::new();
    let journal = tree.journal();
    let inner = journal.clone();
    let failed = journal.transact(|txn| {
        let inner = inner.clone();
        txn.sql(move |_| inner.transact(|txn| txn.write("f", b"f")).map(drop))
    });
    assert!(matches!(failed, Err(Error::Reentrant { .. })), "{failed:?}");
    let nested = journal.transact(|_| inner.transact(|txn| txn.write("f", b"f")).map(drop));
    assert!(matches!(nested, Err(Error::AlreadyHeld { .. })), "{nested:?}");
    let read = journal.read(|_| inner.read(|_| Ok(())));
    assert!(matches!(read, Err(Error::Reentrant { .. })), "{read:?}");
    journal.transact(|txn| txn.write("f", b"f")).unwrap();
}

#[test]
fn migrations_run_once_and_in_order() {
    let tree = Tree::new();
    let first = "CREATE TABLE t(x)";
    let second = "INSERT INTO t VALUES (1)";
    tree.journal().migrate(&[first]).unwrap();
    let journal = tree.journal();
    journal.migrate(&[first, second]).unwrap();
    journal.migrate(&[first, second]).unwrap();
    let count: i64 = journal.read(|rows| rows.query_row("SELECT count(*) FROM t", (), |row| row.get(0))).unwrap();
    assert_eq!(count, 1);
    let broken = journal.migrate(&[first, second, "CREATE TABLE u(x); SELECT nonsense"]);
    assert!(matches!(broken, Err(Error::Migration { step: 3, .. })), "{broken:?}");
    let tables: i64 = journal
        .read(|rows| rows.query_row("SELECT count(*) FROM sqlite_schema WHERE name = 'u'", (), |row| row.get(0)))
        .unwrap();
    assert_eq!(tables, 0, "a step that fails leaves nothing");
    assert!(matches!(journal.migrate(&[first]), Err(Error::NewerMigrations { found: 2, known: 1 })));
}

#[test]
fn a_database_of_the_applications_own_stays_its_own() {
    let tree = Tree::new();
    let path = tree.path("app.db");
    {
        let conn = rusqlite::Connection::open(&path).unwrap();
        conn.execute_batch(
            "CREATE TABLE mine(x); INSERT INTO mine VALUES (1); PRAGMA user_version = 42; PRAGMA application_id = 4711",
        )
        .unwrap();
    }
    let not_wal = Journal::options().database("app.db").open(tree.root());
    assert!(matches!(not_wal, Err(Error::NotWal { .. })), "{not_wal:?}");
    let app = rusqlite::Connection::open(&path).unwrap();
    app.query_row("PRAGMA journal_mode = WAL", (), |_| Ok(())).unwrap();

    let journal = Journal::options().database("app.db").open(tree.root()).unwrap();
    journal
        .transact(|txn| {
            txn.write("f", b"f")?;
            txn.sql(|rows| rows.execute("INSERT INTO mine VALUES (2)", ()).map(drop))
        })
        .unwrap();
    let mine: i64 = app.query_row("SELECT count(*) FROM mine", (), |row| row.get(0)).unwrap();
    assert_eq!(mine, 2, "the application's own connection sees it");
    let number = |name: &str| app.pragma_query_value(None, name, |row| row.get::<_, i64>(0)).unwrap();
    assert_eq!((number("user_version"), number("application_id")), (42, 4711));
    for own in ["app.db", "app.db-wal", "app.db-shm"] {
        let refused = journal.transact(|txn| txn.write(own, b"x"));
        assert!(matches!(refused, Err(Error::BadPath { .. })), "{own}: {refused:?}");
    }
    // The application's own writer in the middle of something: the journal waits, and nothing is lost.
    app.execute_batch("BEGIN IMMEDIATE; INSERT INTO mine VALUES (3)").unwrap();
    let waiting = std::thread::spawn(move || journal.transact(|txn| txn.write("g", b"g")).map(drop));
    std::thread::sleep(Duration::from_millis(100));
    app.execute_batch("COMMIT").unwrap();
    waiting.join().unwrap().unwrap();
    assert!(tree.path("g").exists());
}

#[test]
fn reads_are_query_only_and_limited() {
    let tree = Tree::new();
    let journal = Journal::options()
        .pool_size(1)
        .pool_timeout(Duration::from_millis(200))
        .read_limit(Duration::from_millis(300))
        .open(tree.root())
        .unwrap();
    journal.migrate(&["CREATE TABLE t(x)"]).unwrap();
    assert!(journal.read(|rows| rows.execute("INSERT INTO t VALUES (1)", ())).is_err());
    assert!(matches!(journal.read(|rows| rows.execute_batch("BEGIN")), Err(Error::Denied { .. })));
    assert!(matches!(journal.read(|rows| rows.execute_batch("PRAGMA query_only = 0")), Err(Error::Denied { .. })));
    let endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n";
    let ended = journal.read(|rows| rows.query_row(endless, (), |row| row.get::<_, i64>(0)));
    assert!(matches!(ended, Err(Error::ReadTooLong { .. })), "{ended:?}");
    // One reader, taken: a second one waits and is told so; a write does not care.
    let (taken, release) = (std::sync::Barrier::new(2), std::sync::Barrier::new(2));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            journal
                .read(|_| {
                    taken.wait();
                    release.wait();
                    Ok(())
                })
                .unwrap();
        });
        taken.wait();
        let none = journal.read(|_| Ok(()));
        journal.transact(|txn| txn.write("f", b"f")).unwrap();
        release.wait();
        assert!(matches!(none, Err(Error::PoolTimeout { .. })), "{none:?}");
    });
    journal.read(|rows| rows.query_row("SELECT count(*) FROM t", (), |row| row.get::<_, i64>(0))).unwrap();
}

#[test]
fn a_read_is_one_snapshot() {
    let tree = Tree::new();
    let journal = tree.journal();
    journal.migrate(&["CREATE TABLE t(x)"]).unwrap();
    let count = "SELECT count(*) FROM t";
    let (first, second) = journal
        .read(|rows| {
            let first: i64 = rows.query_row(count, (), |row| row.get(0))?;
            std::thread::scope(|scope| {
                let insert = || {
                    let sql = |rows: &journal_kb::Rows<'_>| rows.execute("INSERT INTO t VALUES (1)", ()).map(drop);
                    journal.transact(|txn| txn.sql(sql)).unwrap();
                };
                scope.spawn(insert).join().unwrap();
            });
            Ok((first, rows.query_row(count, (), |row| row.get::<_, i64>(0))?))
        })
        .unwrap();
    assert_eq!((first, second), (0, 0));
}
