//! What is not of a guard's kind: staged operations, settling, a file that is appended to, a SQLite database.

use std::fs;
use std::io::Write;
use std::path::Path;

use journal_kb::{Guard, Journal, Result, Transaction};

use super::manifest;
use super::sweep::Workload;

pub(crate) fn registered() -> Vec<Workload> {
    let staged = |name: &'static str, kind: &'static str| Workload {
        past: Box::new(|journal| publishable(journal.root())),
        ..Workload::new(name, prepare, move |journal, say| {
            tell(say, "committed", stage(journal, kind));
            tell(say, "settled", journal.settle());
        })
    };
    let settle = Workload {
        past: Box::new(|journal| {
            publishable(journal.root());
            stage(journal, "contents").unwrap();
        }),
        fresh: true,
        ..Workload::new("settle", prepare, |journal, say| tell(say, "settled", journal.settle()))
    };
    let guarded = |name, guard: fn() -> Guard, program: fn(&Path) -> rusqlite::Result<()>, commits| Workload {
        others: &["by the program"],
        // SQLite as the program uses it names files by their whole paths, and the engine within the root.
        between: &["app.db-wal>", "/app.db-wal\""],
        keeps: &["by the program\n"],
        ..Workload::new(name, programs, move |journal, say| under(journal, guard(), program, commits, say))
    };
    let log = || Guard::append(["log"]);
    let database = || Guard::paths(["app.db"]);
    let tree = || Guard::tree("data");
    vec![
        staged("staged, contents", "contents"),
        staged("staged, structure", "structure"),
        settle,
        guarded("append, rolled back", log, append, false),
        guarded("append, committed", log, append, true),
        guarded("database, rolled back", database, |root| insert(&root.join("app.db"), true), false),
        // Without a log: its salts are random.
        guarded("database, committed", database, |root| insert(&root.join("app.db"), false), true),
        guarded("database in a tree, rolled back", tree, |root| insert(&root.join("data/app.db"), true), false),
    ]
}

fn tell<T>(say: &dyn Fn(&str), word: &str, done: Result<T>) {
    match done {
        Ok(_) => say(word),
        Err(error) => say(&format!("not {word}: {error}")),
    }
}

fn prepare(root: &Path) {
    super::prepare(root).unwrap();
}

/// What is to be published.
fn publishable(root: &Path) {
    let outside = root.with_extension("outside");
    fs::create_dir_all(outside.join("sub")).unwrap();
    fs::write(outside.join("sub/page.md"), "published\n").unwrap();
}

fn stage(journal: &Journal, kind: &str) -> Result<()> {
    let outside = journal.root().with_extension("outside");
    journal.transact(|txn| super::change(txn, kind, &outside)).map(drop)
}

/// A log and two databases, for programs that know nothing of a journal.
fn programs(root: &Path) {
    fs::create_dir_all(root.join("data")).unwrap();
    super::open(root).close().unwrap();
    fs::write(root.join("log"), "line\n".repeat(3000)).unwrap();
    for name in ["app.db", "data/app.db"] {
        let database = rusqlite::Connection::open(root.join(name)).unwrap();
        database
            .execute_batch(
                "PRAGMA journal_mode = WAL; CREATE TABLE page (x); INSERT INTO page VALUES (zeroblob(20000)), ('one')",
            )
            .unwrap();
    }
    manifest::age(root);
}

fn append(root: &Path) -> rusqlite::Result<()> {
    let mut log = fs::File::options().append(true).open(root.join("log")).unwrap();
    log.write_all(b"by the program\n").unwrap();
    Ok(())
}

/// Changes rows; leaves the log beside the database if told so, as a program does that is killed.
fn insert(database: &Path, leaves_log: bool) -> rusqlite::Result<()> {
    let database = rusqlite::Connection::open(database)?;
    database.set_db_config(rusqlite::config::DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, leaves_log)?;
    database.execute_batch("UPDATE page SET x = zeroblob(30000) WHERE x = 'one'; INSERT INTO page VALUES ('two')")
}

/// A program works under a guard, and may meet the errors that are meant for the engine.
fn under(
    journal: &Journal,
    guard: Guard,
    program: fn(&Path) -> rusqlite::Result<()>,
    commits: bool,
    say: &dyn Fn(&str),
) {
    let work = |txn: &mut Transaction| -> Result<bool> {
        txn.guard_with(guard)?;
        say("guarded");
        let did = program(journal.root());
        if did.is_ok() && journal.root().join("log").metadata().unwrap().len() > 15_000 {
            say("changed");
        }
        txn.sql(|rows| rows.execute("INSERT INTO doc VALUES ('program', 'Program')", ()).map(drop))?;
        Ok(commits && did.is_ok())
    };
    let mut txn = match journal.begin("program") {
        Ok(txn) => txn,
        Err(error) => return say(&format!("not begun: {error}")),
    };
    match work(&mut txn) {
        Ok(true) => tell(say, "committed", txn.commit()),
        Ok(false) => tell(say, "rolled back", txn.rollback()),
        Err(error) => say(&format!("not guarded: {error}")),
    }
}
