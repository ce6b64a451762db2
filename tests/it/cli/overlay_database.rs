//! SQLite databases under `exec`: what the command did to one becomes the tree's as one consistent set, seen by whoever has it
//! open; what others wrote meanwhile is never lost.

use std::fs;
use std::os::unix::fs::MetadataExt;

use rusqlite::Connection;

use super::exec::has;
use super::overlay::{Home, as_everybody};
use crate::skip::skip;

const OVER: [&str; 2] = ["--isolate", "overlay"];

/// A command that works on a database.
fn sql(sql: &str) -> String {
    format!(
        "python3 -c \"import sqlite3; db = sqlite3.connect('wiki/index.db', timeout=5); db.executescript('''{sql}'''); db.close()\""
    )
}

/// Makes the database, with rows in its log where it has one and somebody has it open.
fn open(home: &Home, mode: &str) -> Connection {
    let db = Connection::open(home.path("wiki/index.db")).unwrap();
    db.pragma_update(None, "journal_mode", mode).unwrap();
    db.execute_batch("CREATE TABLE page (name TEXT); INSERT INTO page VALUES ('one'), ('two');").unwrap();
    home.give_away();
    db
}

fn names(db: &Connection) -> Vec<String> {
    let mut rows = db.prepare("SELECT name FROM page ORDER BY rowid").unwrap();
    rows.query_map((), |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
}

fn is_whole(db: &Connection) {
    let said: String = db.query_row("PRAGMA integrity_check", (), |row| row.get(0)).unwrap();
    assert_eq!(said, "ok");
}

fn for_each_mode(test: impl Fn(&Home, &str)) {
    if !has("python3") {
        return skip("this needs python3");
    }
    as_everybody(|home| {
        for mode in ["wal", "delete"] {
            for entry in fs::read_dir(home.path("wiki")).unwrap() {
                let path = entry.unwrap().path();
                if path.to_str().unwrap().contains("index.db") {
                    fs::remove_file(path).unwrap();
                }
            }
            test(home, mode);
        }
    });
}

#[test]
fn named_and_open_elsewhere_it_is_seen_there() {
    for_each_mode(|home, mode| {
        let db = open(home, mode);
        let options = [&OVER[..], &["--db", "wiki/index.db"]].concat();
        let before = names(&db);
        let ran = home.exec(&options, &format!("{}; exit 5", sql("INSERT INTO page VALUES ('lost');")));
        assert_eq!(ran.code, Some(5), "{mode}: {}", ran.err);
        assert_eq!(names(&db), before);
        let ran =
            home.exec(&options, &format!("{}; echo x > wiki/page1.md", sql("INSERT INTO page VALUES ('three');")));
        assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{mode}");
        assert_eq!(names(&db), ["one", "two", "three"], "{mode}");
        is_whole(&db);
        db.execute("INSERT INTO page VALUES ('four')", ()).unwrap();
        drop(db);
        let again = Connection::open(home.path("wiki/index.db")).unwrap();
        assert_eq!(names(&again), ["one", "two", "three", "four"], "{mode}");
        is_whole(&again);
    });
}

#[test]
fn closed_it_comes_back_as_the_command_left_it() {
    for_each_mode(|home, mode| {
        drop(open(home, mode));
        let inode = fs::metadata(home.path("wiki/index.db")).unwrap().ino();
        for options in [&OVER[..], &["--isolate", "overlay", "--db", "wiki/index.db"]] {
            let ran = home.exec(options, &sql("DELETE FROM page; INSERT INTO page VALUES ('only');"));
            assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{mode} {options:?}");
            // The same file, for whoever is about to open it.
            assert_eq!(fs::metadata(home.path("wiki/index.db")).unwrap().ino(), inode);
            let db = Connection::open(home.path("wiki/index.db")).unwrap();
            assert_eq!(names(&db), ["only"]);
            is_whole(&db);
        }
        // Looked at alone, nothing of it is touched.
        let before = fs::metadata(home.path("wiki/index.db")).unwrap();
        let ran = home.exec(&OVER, &sql("SELECT * FROM page;"));
        assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""));
        let now = fs::metadata(home.path("wiki/index.db")).unwrap();
        assert_eq!((before.ino(), before.ctime_nsec()), (now.ino(), now.ctime_nsec()));
        // Its log left behind by a command that was killed goes with it.
        let killed = "python3 -c \"import sqlite3, os; db = sqlite3.connect('wiki/index.db'); \
             db.execute('INSERT INTO page VALUES (\\\"late\\\")'); db.commit(); os.kill(os.getpid(), 9)\"; true";
        let ran = home.exec(&OVER, killed);
        // The shell may say that it was killed; nobody else says anything.
        assert_eq!((ran.code, ran.err.replace("Killed", "").trim()), (Some(0), ""));
        let db = Connection::open(home.path("wiki/index.db")).unwrap();
        assert_eq!(names(&db), ["only", "late"], "{mode}");
        is_whole(&db);
    });
}

#[test]
fn what_others_wrote_to_it_meanwhile_is_a_conflict() {
    for_each_mode(|home, mode| {
        let db = open(home, mode);
        let mine = sql("INSERT INTO page VALUES ('mine');");
        // Named or not, both wrote to it.
        for options in [&OVER[..], &["--isolate", "overlay", "--db", "wiki/index.db"]] {
            let before = names(&db);
            let running = home.start(options, &mine);
            db.execute("INSERT INTO page VALUES ('theirs')", ()).unwrap();
            let ran = home.go_on(running);
            assert_eq!(ran.code, Some(1), "{mode} {options:?}: {ran:?}");
            assert_eq!(names(&db), [before, vec!["theirs".into()]].concat());
            is_whole(&db);
        }
        // They alone did: the command's other work is kept.
        let before = names(&db);
        let running = home.start(&["--isolate", "overlay", "--db", "wiki/index.db"], "echo x > wiki/page1.md");
        db.execute("INSERT INTO page VALUES ('more')", ()).unwrap();
        let ran = home.go_on(running);
        assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{mode}");
        assert_eq!(names(&db), [before, vec!["more".into()]].concat());
        assert_eq!(fs::read_to_string(home.path("wiki/page1.md")).unwrap(), "x\n");
    });
}

#[test]
fn a_new_one_a_removed_one_and_one_in_use() {
    for_each_mode(|home, mode| {
        let ran = home.exec(
            &OVER,
            &sql(&format!(
                "PRAGMA journal_mode = {mode}; CREATE TABLE page (name TEXT); INSERT INTO page VALUES ('new');"
            )),
        );
        assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{mode}");
        let db = Connection::open(home.path("wiki/index.db")).unwrap();
        assert_eq!(names(&db), ["new"]);
        home.give_away();
        // Removed while somebody has it open, it would go on living where nobody finds it.
        let ran = home.exec(&OVER, "rm wiki/index.db");
        assert_eq!(ran.code, Some(125), "{mode}: {ran:?}");
        assert!(ran.err.contains("in use"), "{}", ran.err);
        assert_eq!(names(&db), ["new"]);
        drop(db);
        home.give_away();
        let ran = home.exec(&OVER, "rm wiki/index.db*");
        assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{mode}");
        assert!(!home.path("wiki/index.db").exists());
    });
}
