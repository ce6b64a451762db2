//! Opening: what cannot be opened says why and is not touched; what can be, can be by many.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use journal_kb::{Begin, Error, Journal, Transaction, rusqlite};

use crate::support::Tree;

#[test]
fn handles_cross_threads() {
    fn send_and_sync<T: Send + Sync + Clone>() {}
    fn send<T: Send>() {}
    send_and_sync::<Journal>();
    send::<Transaction>();
    send::<Error>();
}

#[test]
fn what_is_no_place_for_a_journal_is_refused() {
    let tree = Tree::new();
    tree.put("file", "x");
    assert!(matches!(Journal::open(tree.path("file")), Err(Error::NotADirectory { .. })));
    assert!(matches!(Journal::open(tree.path("missing")), Err(Error::NotFound { .. })));
    let none = Journal::options().create(false).open(tree.root());
    assert!(matches!(none, Err(Error::NoJournal { .. })), "{none:?}");
    assert!(!tree.path(".journal").exists(), "nothing is made by being refused");
    // A filesystem that can be neither locked nor written: /proc stands for a read-only one.
    assert!(Journal::open("/proc").is_err());
}

#[test]
fn a_database_that_is_none_is_refused_and_left_alone() {
    let tree = Tree::new();
    tree.journal().close().unwrap();
    let db = tree.path(".journal/journal.db");
    let good = fs::read(&db).unwrap();
    let garbage = vec![b'x'; 8192];
    fs::write(&db, &garbage).unwrap();
    assert!(matches!(Journal::open(tree.root()), Err(Error::NotADatabase { .. })));
    assert_eq!(fs::read(&db).unwrap(), garbage);
    let mut damaged = good.clone();
    damaged[100..4000].fill(0xff);
    fs::write(&db, &damaged).unwrap();
    let corrupt = Journal::open(tree.root());
    assert!(matches!(&corrupt, Err(Error::Corrupt { .. })), "{corrupt:?}");
    fs::write(&db, &good).unwrap();
    tree.journal();
}

#[test]
fn a_newer_schema_is_refused_and_left_alone() {
    let tree = Tree::new();
    tree.journal().close().unwrap();
    let db = tree.path(".journal/journal.db");
    rusqlite::Connection::open(&db).unwrap().execute("UPDATE journal_meta SET schema = 99", ()).unwrap();
    let before = fs::read(&db).unwrap();
    assert!(matches!(Journal::open(tree.root()), Err(Error::NewerSchema { found: 99, .. })));
    assert_eq!(fs::read(&db).unwrap(), before);
}

#[test]
fn a_schema_that_there_never_was_is_refused() {
    for version in [0, -1, i64::MIN] {
        let tree = Tree::new();
        tree.journal().close().unwrap();
        let db = rusqlite::Connection::open(tree.path(".journal/journal.db")).unwrap();
        db.execute("UPDATE journal_meta SET schema = ?1", [version]).unwrap();
        let opened = Journal::open(tree.root());
        assert!(matches!(&opened, Err(Error::Corrupt { .. })), "{version}: {opened:?}");
    }
}

#[test]
fn paths_out_of_the_tree_are_refused() {
    let tree = Tree::new();
    let outside = tempfile::tempdir().unwrap();
    symlink(outside.path(), tree.path("way-out")).unwrap();
    fs::create_dir(tree.path("real")).unwrap();
    symlink("real", tree.path("inside")).unwrap();
    tree.put("real/target", "kept");
    symlink("target", tree.path("real/link")).unwrap();
    let journal = tree.journal();
    let long = "n".repeat(256);
    for bad in ["", "/etc/passwd", "../x", "a/../../x", ".journal/x", ".journal", "a\0b", long.as_str()] {
        let refused = journal.transact(|txn| txn.write(bad, b"x"));
        assert!(matches!(&refused, Err(Error::BadPath { path, .. }) if path == Path::new(bad)), "{bad:?}: {refused:?}");
    }
    for through in ["way-out/x", "inside/x"] {
        let refused = journal.transact(|txn| txn.write(through, b"x"));
        assert!(matches!(refused, Err(Error::SymlinkOnTheWay { .. })), "{through}: {refused:?}");
    }
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    // As the last component a symlink is replaced, never followed.
    journal.transact(|txn| txn.write("real/link", b"a file")).unwrap();
    assert_eq!(fs::read(tree.path("real/target")).unwrap(), b"kept");
    assert!(fs::symlink_metadata(tree.path("real/link")).unwrap().is_file());
    // Names need not be UTF-8.
    let odd = Path::new(std::ffi::OsStr::from_bytes(b"caf\xe9/\xff"));
    journal.transact(|txn| txn.write(odd, b"x")).unwrap();
    assert_eq!(fs::read(tree.root().join(odd)).unwrap(), b"x");
}

#[test]
fn a_directory_in_the_way_is_refused_before_anything_happens() {
    let tree = Tree::new();
    tree.put("dir/file", "x");
    let journal = tree.journal();
    let refused = |work: &dyn Fn(&mut Transaction) -> journal_kb::Result<()>| {
        journal.transact(|txn| {
            txn.write("other", b"x")?;
            work(txn)
        })
    };
    assert!(matches!(refused(&|txn| txn.write("dir", b"x")), Err(Error::IsADirectory { .. })));
    assert!(matches!(refused(&|txn| txn.write("dir/file/x", b"x")), Err(Error::NotADirectory { .. })));
    assert!(matches!(refused(&|txn| txn.create_dir_all("dir/file")), Err(Error::NotADirectory { .. })));
    assert!(matches!(refused(&|txn| txn.remove("dir")), Err(Error::IsADirectory { .. })));
    assert!(matches!(refused(&|txn| txn.remove("none")), Err(Error::NotFound { .. })));
    assert!(matches!(refused(&|txn| txn.remove_dir_all("dir/file")), Err(Error::NotADirectory { .. })));
    assert!(matches!(refused(&|txn| txn.rename("none", "x")), Err(Error::NotFound { .. })));
    assert!(matches!(refused(&|txn| txn.rename("dir", "dir/inner")), Err(Error::BadPath { .. })));
    assert!(matches!(refused(&|txn| txn.rename("dir/file", "dir")), Err(Error::AlreadyExists { .. })));
    assert!(!tree.path("other").exists());
}

#[test]
fn the_holder_of_a_lock_is_named() {
    let tree = Tree::new();
    let journal = tree.journal();
    let held = journal.begin("the long one").unwrap();
    let second = tree.journal();
    for other in [&journal, &second] {
        let begin = || other.begin_with(Begin::new("impatient").wait(Duration::from_millis(50)));
        // On the very thread that holds it there would be nothing to wait for.
        match std::thread::scope(|scope| scope.spawn(begin).join().unwrap()) {
            Err(error @ Error::Busy { .. }) => {
                let text = error.to_string();
                assert!(error.is_retryable() && error.is_busy());
                assert!(text.contains("the long one") && text.contains(&std::process::id().to_string()), "{text}");
            }
            other => panic!("{other:?}"),
        }
        // Other locks are free.
        drop(other.begin_with(Begin::new("x").lock("other")).unwrap());
    }
    let waiter = std::thread::spawn(move || second.transact(|txn| txn.write("f", b"f")).map(drop));
    std::thread::sleep(Duration::from_millis(50));
    drop(held);
    waiter.join().unwrap().unwrap();
    assert!(tree.path("f").exists());
}

#[test]
fn a_replaced_lock_file_is_noticed() {
    let tree = Tree::new();
    let journal = tree.journal();
    let mut txn = journal.begin("robbed").unwrap();
    txn.write("f", b"f").unwrap();
    fs::remove_file(tree.path(".journal/locks/main.lock")).unwrap();
    fs::write(tree.path(".journal/locks/main.lock"), "").unwrap();
    let refused = txn.commit();
    assert!(matches!(refused, Err(Error::LockFileReplaced { .. })), "{refused:?}");
    assert!(!tree.path("f").exists());
    journal.transact(|txn| txn.write("f", b"f")).unwrap();
}

#[test]
fn a_lost_fence_rolls_everything_back() {
    let tree = Tree::new();
    let journal = tree.journal();
    let db = rusqlite::Connection::open(tree.path(".journal/journal.db")).unwrap();
    let held = || -> Option<bool> {
        let row = "SELECT session IS NOT NULL FROM journal_lock WHERE name = 'main'";
        db.query_row(row, (), |row| row.get(0)).ok()
    };
    journal.transact(|txn| txn.write("before", b"f")).unwrap();
    // Robbed before the row says who has it, and after.
    for recorded in [false, true] {
        let mut txn = journal.begin("robbed").unwrap();
        txn.write("f", b"f").unwrap();
        if recorded {
            let named = (0..1000).any(|_| {
                std::thread::sleep(Duration::from_millis(5));
                held() == Some(true)
            });
            assert!(named, "a lock that is held for long is recorded");
        }
        db.execute("UPDATE journal_lock SET fence = fence + 1 WHERE name = 'main'", ()).unwrap();
        let lost = txn.commit();
        assert!(matches!(&lost, Err(error @ Error::LockLost { .. }) if error.is_lock_lost()), "{lost:?}");
        assert!(!tree.path("f").exists());
        let losses: i64 = db.query_row("SELECT losses FROM journal_lock", (), |row| row.get(0)).unwrap();
        assert_eq!(losses, 1 + i64::from(recorded));
    }
    journal.transact(|txn| txn.write("after", b"f")).unwrap();
}

#[test]
fn an_acquisition_is_recorded_once_and_so_is_its_release() {
    let tree = Tree::new();
    let journal = tree.journal();
    let row = || -> (i64, i64, bool) {
        let db = rusqlite::Connection::open(tree.path(".journal/journal.db")).unwrap();
        let row = "SELECT acquisitions, crashes, session IS NOT NULL FROM journal_lock WHERE name = 'main'";
        db.query_row(row, (), |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).unwrap()
    };
    let wait = |wanted: (i64, i64, bool)| {
        (0..1000).any(|_| {
            std::thread::sleep(Duration::from_millis(5));
            row() == wanted
        })
    };
    for n in 1..=5 {
        journal.transact(|txn| txn.write("f", b"f")).unwrap();
        assert_eq!(row(), (n, 0, false));
    }
    let mut long = journal.begin("long").unwrap();
    assert!(wait((6, 0, true)), "{:?}", row());
    long.write("f", b"long").unwrap();
    long.commit().unwrap();
    assert_eq!(row(), (6, 0, false));
    let dropped = journal.begin("dropped").unwrap();
    assert!(wait((7, 0, true)), "{:?}", row());
    drop(dropped);
    assert_eq!(row(), (7, 0, false));
    drop(journal.begin("short"));
    journal.transact(|txn| txn.write("f", b"f")).unwrap();
    assert_eq!(row(), (8, 0, false), "what was never recorded is not counted");
}

#[test]
fn fences_grow_and_never_repeat() {
    let tree = Tree::new();
    let mut last = 0;
    for round in 0..4 {
        let journal = tree.journal();
        for lock in ["main", "other"] {
            for _ in 0..3 {
                let mut txn = journal.begin_with(Begin::new("").lock(lock)).unwrap();
                txn.write("f", format!("{round}{lock}")).unwrap();
                let fence = txn.commit().unwrap().fence().get();
                assert!(fence > last);
                last = fence;
            }
        }
        journal.close().unwrap();
        // As after a power cut in another boot: the counter may be behind, and is not believed.
        let db = rusqlite::Connection::open(tree.path(".journal/journal.db")).unwrap();
        db.execute("UPDATE journal_meta SET fence = 0, fence_mark = x'00'", ()).unwrap();
    }
}

#[test]
fn threads_are_named_and_end_with_the_journal() {
    let tree = Tree::new();
    // A process of its own: other tests' threads are not to be counted.
    let output = crate::support::child("opening::threads_child", tree.root()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The body of [`threads_are_named_and_end_with_the_journal`].
#[test]
fn threads_child() {
    let Some(root) = crate::support::child_root() else { return };
    let names = || -> Vec<String> {
        let tasks = fs::read_dir("/proc/self/task").unwrap();
        let name = |task: fs::DirEntry| fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        tasks.map(|task| name(task.unwrap()).trim().to_owned()).collect()
    };
    let before = names().len();
    let journal = Journal::open(&root).unwrap();
    journal.transact(|txn| txn.write("f", b"f")).unwrap();
    journal.read(|_| Ok(())).unwrap();
    let ours = ["journal-settle", "journal-note", "journal-tree", "journal-pool"];
    let all = |names: &[String]| ours.iter().all(|name| names.iter().any(|thread| thread == name));
    // A thread takes its name itself, shortly after it is there.
    let named = (0..100).any(|_| {
        std::thread::sleep(Duration::from_millis(20));
        all(&names())
    });
    assert!(named && names().len() == before + ours.len(), "{:?}", names());
    journal.close().unwrap();
    let ended = (0..100).any(|_| {
        std::thread::sleep(Duration::from_millis(20));
        names().len() == before
    });
    assert!(ended, "{:?}", names());
}

#[test]
fn many_processes_may_make_one_journal_at_once() {
    let tree = Tree::new();
    let children: Vec<_> =
        (0..6).map(|_| crate::support::child("opening::making_child", tree.root()).spawn().unwrap()).collect();
    for child in children {
        assert!(child.wait_with_output().unwrap().status.success());
    }
    let journal = tree.journal();
    let counted: i64 = journal.read(|rows| rows.query_row("SELECT sum(x) FROM n", (), |row| row.get(0))).unwrap();
    assert_eq!(counted, 60);
    assert_eq!(fs::read_to_string(tree.path("log")).unwrap().lines().count(), 60);
}

/// One process of [`many_processes_may_make_one_journal_at_once`].
#[test]
fn making_child() {
    let Some(root) = crate::support::child_root() else { return };
    let journal = Journal::open(&root).unwrap();
    journal.migrate(&["CREATE TABLE n(x)"]).unwrap();
    for _ in 0..10 {
        journal
            .transact(|txn| {
                let mut log = if txn.exists("log")? { txn.read("log")? } else { Vec::new() };
                log.extend_from_slice(b"line\n");
                txn.write("log", log)?;
                txn.sql(|rows| rows.execute("INSERT INTO n VALUES (1)", ()).map(drop))
            })
            .unwrap();
    }
}
