//! The promise for SQLite databases: a guarded one comes back with what lies beside it, byte for byte when nobody has it open,
//! else with equal content that those who have it open see.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Stdio;

use journal_kb::rusqlite::Connection;
use journal_kb::{Guard, Journal, Transaction};

use crate::guard::full;
use crate::support::{Tree, child, child_root};

const MODES: [&str; 2] = ["wal", "delete"];

/// How the database is guarded: by its name, or in a tree.
const WAYS: [Way; 3] = [Way::Name, Way::Tree, Way::Replacing];

#[derive(Clone, Copy, Debug)]
enum Way {
    Name,
    Tree,
    Replacing,
}

fn guard(txn: &mut Transaction, way: Way) {
    txn.guard_with(match way {
        Way::Name => Guard::paths(["d/index.db"]),
        Way::Tree => Guard::tree("d"),
        Way::Replacing => Guard::tree("d").replacing(),
    })
    .unwrap();
}

fn open(path: &Path, mode: &str) -> Connection {
    let connection = Connection::open(path).unwrap();
    let set: String = connection.pragma_update_and_check(None, "journal_mode", mode, |row| row.get(0)).unwrap();
    assert_eq!(set, mode);
    connection
}

fn add(connection: &Connection, n: i64) {
    connection.execute("INSERT INTO t VALUES (?1, randomblob(3000))", [n]).unwrap();
}

fn sum(connection: &Connection) -> i64 {
    connection.query_row("SELECT total(n) FROM t", (), |row| row.get::<_, f64>(0)).unwrap() as i64
}

fn sound(connection: &Connection) {
    let check: String = connection.query_row("PRAGMA integrity_check", (), |row| row.get(0)).unwrap();
    assert_eq!(check, "ok");
}

/// A tree with a database of a hundred rows, closed.
fn tree(mode: &str) -> (Tree, Journal) {
    let tree = Tree::new();
    fs::create_dir(tree.path("d")).unwrap();
    let connection = open(&tree.path("d/index.db"), mode);
    connection.execute_batch("CREATE TABLE t (n INTEGER, filling BLOB)").unwrap();
    (0..100).for_each(|n| add(&connection, n));
    connection.close().unwrap();
    let journal = tree.journal();
    (tree, journal)
}

#[test]
fn a_closed_database_comes_back_byte_for_byte() {
    for mode in MODES {
        for named in ["d/index.db", "d/index.db-wal"] {
            let (tree, journal) = tree(mode);
            let before = full(tree.root());
            let mut txn = journal.begin("").unwrap();
            txn.guard_paths([named]).unwrap();
            let connection = open(&tree.path("d/index.db"), mode);
            (0..50).for_each(|n| add(&connection, n));
            connection.execute_batch("CREATE TABLE more (x); VACUUM").unwrap();
            connection.close().unwrap();
            txn.rollback().unwrap();
            assert_eq!(full(tree.root()), before, "{mode}");
            sound(&open(&tree.path("d/index.db"), mode));
        }
    }
}

#[test]
fn a_closed_database_in_a_tree_comes_back_byte_for_byte() {
    for mode in MODES {
        for way in WAYS {
            let (tree, journal) = tree(mode);
            let before = full(tree.root());
            // The baseline is made, used, and used again.
            for round in 0..3 {
                let mut txn = journal.begin("").unwrap();
                guard(&mut txn, way);
                let connection = open(&tree.path("d/index.db"), mode);
                (0..50).for_each(|n| add(&connection, n));
                connection.close().unwrap();
                txn.rollback().unwrap();
                assert_eq!(full(tree.root()), before, "{mode}, {way:?}, round {round}");
            }
            sound(&open(&tree.path("d/index.db"), mode));
        }
    }
}

/// Its removal was not synced when the power failed, and the transaction is over.
#[test]
fn a_copy_that_was_written_back_and_is_still_there_is_swept() {
    let (tree, journal) = tree("wal");
    let mut txn = journal.begin("").unwrap();
    guard(&mut txn, Way::Tree);
    let connection = open(&tree.path("d/index.db"), "wal");
    add(&connection, 100);
    connection.close().unwrap();
    txn.rollback().unwrap();
    journal.close().unwrap();
    let history = || -> Vec<_> {
        let entries = fs::read_dir(tree.path(".journal/history")).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    let kept = history();
    let displaced = kept.iter().find_map(|name| name.strip_suffix(".was")).expect("what was written is kept");
    fs::copy(tree.path("d/index.db"), tree.path(&format!(".journal/stage/{displaced}"))).unwrap();
    let journal = tree.journal();
    journal.recover().unwrap();
    journal.close().unwrap();
    assert_eq!(fs::read_dir(tree.path(".journal/stage")).unwrap().count(), 0);
    assert_eq!(history(), kept);
}

#[test]
fn a_database_that_did_not_change_is_not_copied_again() {
    for way in [Way::Tree, Way::Replacing] {
        let (tree, journal) = tree("wal");
        let copy = || {
            let mut found: Vec<_> = walkdir::WalkDir::new(tree.path(".journal/baseline"))
                .into_iter()
                .map(|entry| entry.unwrap())
                .filter(|entry| entry.file_name() == "index.db")
                .map(|entry| entry.metadata().unwrap())
                .map(|meta| (meta.ino(), meta.ctime(), meta.ctime_nsec()))
                .collect();
            assert_eq!(found.len(), 1);
            found.remove(0)
        };
        let mut copies = Vec::new();
        for round in 0..3 {
            let mut txn = journal.begin("").unwrap();
            guard(&mut txn, way);
            copies.push(copy());
            txn.rollback().unwrap();
            if round == 1 {
                let connection = open(&tree.path("d/index.db"), "wal");
                add(&connection, 1);
                connection.close().unwrap();
            }
        }
        assert!(copies[0] == copies[1] && copies[1] != copies[2], "{copies:?}");
    }
}

#[test]
fn a_log_that_nobody_has_open_comes_back_with_its_database() {
    let (tree, journal) = tree("wal");
    // Left by a process that was killed: copied away while it was open, and back.
    let connection = open(&tree.path("d/index.db"), "wal");
    (0..50).for_each(|n| add(&connection, n));
    for name in ["index.db", "index.db-wal"] {
        fs::copy(tree.path("d").join(name), tree.path(name)).unwrap();
    }
    let expected = sum(&connection);
    connection.close().unwrap();
    for name in ["index.db", "index.db-wal"] {
        fs::rename(tree.path(name), tree.path("d").join(name)).unwrap();
    }
    let before = full(tree.root());
    let mut txn = journal.begin("").unwrap();
    txn.guard_paths(["d/index.db"]).unwrap();
    // Brings the log into the database, and removes it.
    let connection = open(&tree.path("d/index.db"), "wal");
    assert_eq!(sum(&connection), expected);
    add(&connection, 1000);
    connection.close().unwrap();
    assert!(!tree.path("d/index.db-wal").exists());
    txn.rollback().unwrap();
    assert_eq!(full(tree.root()), before);
    let connection = open(&tree.path("d/index.db"), "wal");
    assert_eq!(sum(&connection), expected);
    sound(&connection);
}

#[test]
fn a_database_that_was_not_there_is_not_there_again() {
    let (tree, journal) = tree("wal");
    let before = full(tree.root());
    let mut txn = journal.begin("").unwrap();
    txn.guard_paths(["d/new.db", "d/new.db-wal", "d/new.db-shm"]).unwrap();
    let connection = open(&tree.path("d/new.db"), "wal");
    connection.execute_batch("CREATE TABLE t (n INTEGER, filling BLOB)").unwrap();
    connection.close().unwrap();
    txn.rollback().unwrap();
    assert_eq!(full(tree.root()), before);
}

#[test]
fn a_commit_keeps_what_was_done_to_a_database() {
    for mode in MODES {
        let (tree, journal) = tree(mode);
        let mut txn = journal.begin("").unwrap();
        txn.guard_paths(["d/index.db"]).unwrap();
        let connection = open(&tree.path("d/index.db"), mode);
        add(&connection, 1000);
        let expected = sum(&connection);
        connection.close().unwrap();
        let receipt = txn.commit().unwrap();
        assert!(
            receipt.changes().iter().any(|change| change.path() == Path::new("d/index.db")),
            "{:?}",
            receipt.changes()
        );
        assert_eq!(sum(&open(&tree.path("d/index.db"), mode)), expected);
    }
}

#[test]
fn those_who_have_it_open_see_what_comes_back() {
    for (mode, way) in MODES.iter().flat_map(|mode| WAYS.map(|way| (*mode, way))) {
        for elsewhere in [false, true] {
            let (tree, journal) = tree(mode);
            let path = tree.path("d/index.db");
            let expected = sum(&open(&path, mode));
            // A pooled connection, of this process or of another, that has read and written already.
            let mut other = Other::new(&path, mode, elsewhere);
            assert_eq!(other.ask("sum"), expected);
            let mut txn = journal.begin("").unwrap();
            guard(&mut txn, way);
            // It goes on writing during the transaction.
            for _ in 0..20 {
                other.ask("add");
            }
            assert_eq!(other.ask("sum"), expected + 20 * 7);
            txn.rollback().unwrap();
            assert_eq!(other.ask("sum"), expected, "{mode}, {way:?}, elsewhere: {elsewhere}");
            let fresh = open(&path, mode);
            assert_eq!(sum(&fresh), expected);
            sound(&fresh);
            drop(fresh);
            // And goes on afterwards.
            assert_eq!(other.ask("add"), expected + 7);
            other.end();
            let fresh = open(&path, mode);
            assert_eq!(sum(&fresh), expected + 7);
            sound(&fresh);
        }
    }
}

#[test]
fn a_killed_process_leaves_the_database_as_before() {
    for (mode, way) in MODES.iter().flat_map(|mode| WAYS.map(|way| (*mode, way))) {
        let (tree, journal) = tree(mode);
        journal.close().unwrap();
        let expected = sum(&open(&tree.path("d/index.db"), mode));
        let before = full(tree.root());
        let mut guarding = child("guard_database::guarding_child", tree.root())
            .env("MODE", mode)
            .env("WAY", format!("{way:?}"))
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(guarding.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains("damage done")));
        guarding.kill().unwrap();
        guarding.wait().unwrap();
        let journal = tree.journal();
        assert_eq!(full(tree.root()), before, "{mode}, {way:?}");
        assert_eq!(journal.recover().unwrap().rolled_back, 1);
        let fresh = open(&tree.path("d/index.db"), mode);
        assert_eq!(sum(&fresh), expected);
        sound(&fresh);
    }
}

/// Guards a database, writes to it, and waits to be killed with it open.
#[test]
fn guarding_child() {
    let Some(root) = child_root() else { return };
    let journal = Journal::open(&root).unwrap();
    let mut txn = journal.begin("").unwrap();
    let way = std::env::var("WAY").unwrap();
    guard(&mut txn, WAYS.into_iter().find(|known| format!("{known:?}") == way).unwrap());
    let connection = open(&root.join("d/index.db"), &std::env::var("MODE").unwrap());
    (0..30).for_each(|n| add(&connection, n));
    println!("damage done");
    std::thread::sleep(std::time::Duration::from_secs(600));
}

/// Somebody with a connection that stays open.
enum Other {
    Here(Connection),
    Elsewhere(std::process::Child, BufReader<std::process::ChildStdout>),
}

impl Other {
    fn new(path: &Path, mode: &str, elsewhere: bool) -> Self {
        if !elsewhere {
            return Self::Here(open(path, mode));
        }
        let mut child =
            child("guard_database::other_child", path).env("MODE", mode).stdin(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        Self::Elsewhere(child, out)
    }

    fn ask(&mut self, what: &str) -> i64 {
        match self {
            Self::Here(connection) => answer(connection, what),
            Self::Elsewhere(child, out) => {
                writeln!(child.stdin.as_mut().unwrap(), "{what}").unwrap();
                loop {
                    let mut line = String::new();
                    assert!(out.read_line(&mut line).unwrap() > 0, "the other process ended");
                    if let Some(answer) = line.trim().split_once("answer ").map(|(_, answer)| answer) {
                        return answer.parse().unwrap();
                    }
                }
            }
        }
    }

    fn end(self) {
        if let Self::Elsewhere(mut child, _) = self {
            drop(child.stdin.take());
            child.wait().unwrap();
        }
    }
}

fn answer(connection: &Connection, what: &str) -> i64 {
    if what == "add" {
        add(connection, 7);
    }
    sum(connection)
}

/// Answers on its standard output what it is asked on its standard input.
#[test]
fn other_child() {
    let Some(path) = child_root() else { return };
    let connection = open(&path, &std::env::var("MODE").unwrap());
    for line in std::io::stdin().lines() {
        println!("answer {}", answer(&connection, line.unwrap().trim()));
    }
}
