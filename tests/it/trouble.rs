//! Trouble: full disks, refused paths, other filesystems, databases in the tree. A typed error, and nothing lost.

use std::fs;
use std::process::Command;

use journal_kb::{Error, Journal, rusqlite};

use crate::skip::skip;
use crate::support::{Tree, child, child_root, manifest};

/// A small tmpfs, unmounted on drop.
pub(crate) struct Small(pub(crate) tempfile::TempDir);

impl Small {
    pub(crate) fn mount(size: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "journal-kb-test"])
            .arg(dir.path())
            .status();
        match mounted {
            Ok(status) if status.success() => Some(Self(dir)),
            _ => {
                skip("a tmpfs cannot be mounted here");
                None
            }
        }
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_disk_aborts_and_loses_nothing() {
    let Some(small) = Small::mount("16m") else { return };
    let root = small.0.path();
    let journal = Journal::open(root).unwrap();
    journal.migrate(&["CREATE TABLE n(x)"]).unwrap();
    let mut stored = 0_i64;
    let failed = loop {
        let n = stored;
        let done = journal.transact(|txn| {
            for part in 0..8 {
                txn.write(format!("{n}/{part}"), vec![b'x'; 20_000])?;
            }
            txn.sql(move |rows| rows.execute("INSERT INTO n VALUES (?1)", [n]).map(drop))
        });
        match done {
            Ok(done) => {
                assert_eq!(done.receipt.warnings(), []);
                stored += 1;
            }
            Err(error) => break error,
        }
    };
    assert!(failed.is_full(), "{failed}");
    assert!(stored > 2);
    let check = |journal: &Journal, from: i64| {
        let rows: i64 = journal.read(|rows| rows.query_row("SELECT count(*) FROM n", (), |row| row.get(0))).unwrap();
        assert_eq!(rows, stored);
        for n in from..stored {
            for part in 0..8 {
                assert_eq!(fs::read(root.join(format!("{n}/{part}"))).unwrap(), vec![b'x'; 20_000]);
            }
        }
        assert!(!root.join(stored.to_string()).exists());
    };
    check(&journal, 0);
    let large = journal.transact(|txn| txn.write_from("large", &mut std::io::repeat(1)));
    assert!(matches!(&large, Err(error) if error.is_full()), "{large:?}");
    check(&journal, 0);
    drop(journal);
    fs::write(root.join("filler"), vec![0; 32 << 20]).unwrap_err();
    if let Err(error) = Journal::open(root) {
        assert!(error.is_full() && error.to_string().contains("full"), "{error}");
    }
    fs::remove_file(root.join("filler")).unwrap();
    // Somebody makes room: what they removed was applied, so it stays removed.
    let gone = stored - 1;
    (0..gone).for_each(|n| fs::remove_dir_all(root.join(n.to_string())).unwrap());
    let journal = Journal::open(root).unwrap();
    check(&journal, gone);
    journal.settle().unwrap();
    assert!(!root.join("0").exists());
    journal.transact(|txn| txn.write("again", b"room")).unwrap();
}

#[test]
fn a_read_only_root_says_so() {
    let Some(small) = Small::mount("4m") else { return };
    let root = small.0.path();
    Journal::open(root).unwrap().transact(|txn| txn.write("f", b"f")).unwrap();
    let remount = |how: &str| {
        let done = Command::new("mount").args(["-o", how]).arg(root).status().unwrap();
        assert!(done.success());
    };
    remount("remount,ro");
    let refused = Journal::open(root);
    remount("remount,rw");
    match refused {
        Err(error) => {
            assert!(error.is_io() && !error.is_retryable() && error.to_string().contains("read-only"), "{error}")
        }
        Ok(_) => panic!("opened on a read-only filesystem"),
    }
    Journal::open(root).unwrap().transact(|txn| txn.write("f", b"again")).unwrap();
}

#[test]
fn state_on_another_filesystem_works() {
    let Some(small) = Small::mount("16m") else { return };
    let tree = Tree::new();
    tree.put("replaced", "before");
    tree.put("gone/file", "x");
    let open = || Journal::options().state_dir(small.0.path().join("state")).open(tree.root()).unwrap();
    let journal = open();
    let mut txn = journal.begin("across").unwrap();
    txn.write("replaced", b"after").unwrap();
    txn.write_from("large", &mut &vec![7_u8; 300 << 10][..]).unwrap();
    txn.remove_dir_all("gone").unwrap();
    txn.symlink("large", "link").unwrap();
    let staging = txn.staging().unwrap();
    fs::write(staging.join("page"), "published").unwrap();
    txn.publish(staging.join("page"), "pages/page").unwrap();
    assert_eq!(txn.commit().unwrap().warnings(), []);
    assert_eq!(fs::read(tree.path("replaced")).unwrap(), b"after");
    assert_eq!(fs::read(tree.path("large")).unwrap(), vec![7_u8; 300 << 10]);
    assert_eq!(fs::read(tree.path("pages/page")).unwrap(), b"published");
    assert!(!tree.path("gone").exists() && !tree.path(".journal").exists());
    journal.close().unwrap();
    let before = manifest(&tree);
    let journal = open();
    assert!(matches!(journal.transact(|txn| txn.write(".journal-stage/x", b"x")), Err(Error::BadPath { .. })));
    assert_eq!(manifest(&tree), before);
    assert_eq!(fs::read_dir(tree.path(".journal-stage/stage")).unwrap().count(), 0);
}

#[test]
fn a_mount_inside_the_root_has_a_stage_of_its_own() {
    let tree = Tree::new();
    let Some(small) = Small::mount("8m") else { return };
    fs::create_dir(tree.path("mounted")).unwrap();
    let bound = Command::new("mount").arg("--bind").arg(small.0.path()).arg(tree.path("mounted")).status().unwrap();
    if !bound.success() {
        return skip("a bind mount cannot be made here");
    }
    tree.put("mounted/replaced", "before");
    let journal = tree.journal();
    let done = journal.transact(|txn| {
        txn.write("mounted/replaced", b"after")?;
        txn.write("mounted/sub/new", b"new")?;
        txn.write("beside", b"beside")
    });
    let moved = journal.transact(|txn| txn.rename("beside", "mounted/beside"));
    tree.put("above it/x", "x");
    fs::create_dir(tree.path("above it/m")).unwrap();
    let inner = tree.path("above it/m");
    assert!(Command::new("mount").arg("--bind").arg(small.0.path()).arg(&inner).status().unwrap().success());
    let taken = journal.transact(|txn| txn.remove_dir_all("above it"));
    Command::new("umount").arg(&inner).status().unwrap();
    assert!(matches!(taken, Err(Error::Io { .. })) && tree.path("above it/x").exists(), "{taken:?}");
    drop(journal);
    let read = fs::read(tree.path("mounted/replaced")).unwrap();
    let new = fs::read(tree.path("mounted/sub/new")).unwrap();
    Command::new("umount").arg(tree.path("mounted")).status().unwrap();
    assert_eq!(done.unwrap().receipt.warnings(), []);
    assert_eq!((read, new), (b"after".to_vec(), b"new".to_vec()));
    assert!(matches!(moved, Err(Error::CrossDevice { .. })), "{moved:?}");
    assert_eq!(fs::read(tree.path("beside")).unwrap(), b"beside");
}

#[test]
fn a_path_that_cannot_be_changed_is_pending_and_blocks_only_itself() {
    let tree = Tree::new();
    tree.put("stuck", "before");
    let immutable = |on: bool| {
        let file = fs::File::open(tree.path("stuck")).unwrap();
        let (flags, flag) = (rustix::fs::ioctl_getflags(&file)?, rustix::fs::IFlags::IMMUTABLE);
        rustix::fs::ioctl_setflags(&file, if on { flags | flag } else { flags & !flag })
    };
    // What can be known before the commit is refused before it.
    if immutable(true).is_err() {
        return skip("files cannot be made immutable here");
    }
    let early = tree.journal().transact(|txn| {
        txn.write("free", b"after")?;
        txn.write("stuck", b"after")
    });
    assert!(early.is_err() && !tree.path("free").exists(), "{early:?}");
    immutable(false).unwrap();

    // The second rename of the child, of `stuck`, fails; it could not have been known.
    let test = child("trouble::refused_child", tree.root());
    let traced = Command::new("strace")
        .args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=renameat2"])
        .args(["-e", "inject=renameat2:error=EACCES:when=2"])
        .arg(test.get_program())
        .args(test.get_args())
        .envs(test.get_envs().filter_map(|(key, value)| Some((key, value?))))
        .output();
    let Ok(output) = traced else { return skip("failing renames need strace") };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(fs::read(tree.path("free")).unwrap(), b"after");
    assert_eq!(fs::read(tree.path("stuck")).unwrap(), b"before");

    immutable(true).unwrap();
    let journal = tree.journal();
    let overlapping = journal.transact(|txn| txn.write("stuck/below", b"later"));
    let beside = journal.transact(|txn| txn.write("beside", b"x"));
    immutable(false).unwrap();
    assert!(overlapping.is_err(), "{overlapping:?}");
    beside.unwrap();
    assert_eq!(fs::read(tree.path("stuck")).unwrap(), b"before");
    // Work that overlaps it retries it first.
    journal.transact(|txn| txn.write("stuck", b"later")).unwrap();
    assert_eq!(fs::read(tree.path("stuck")).unwrap(), b"later");
    assert_eq!(journal.recover().unwrap().pending, 0);
}

/// The process that commits and cannot apply all of it.
#[test]
fn refused_child() {
    let Some(root) = child_root() else { return };
    let journal = Journal::open(&root).unwrap();
    let mut txn = journal.begin("partly").unwrap();
    txn.write("stuck", b"after").unwrap();
    txn.write("free", b"after").unwrap();
    let receipt = txn.commit().unwrap();
    assert_eq!(receipt.warnings().len(), 1, "{receipt:?}");
    assert!(receipt.warnings()[0].to_string().contains("stuck"), "{}", receipt.warnings()[0]);
    std::process::exit(0);
}

#[test]
fn a_database_in_use_is_not_replaced() {
    let tree = Tree::new();
    let journal = tree.journal();
    for mode in ["WAL", "DELETE"] {
        let _ = fs::remove_file(tree.path("app.db"));
        let app = rusqlite::Connection::open(tree.path("app.db")).unwrap();
        app.query_row(&format!("PRAGMA journal_mode = {mode}"), (), |_| Ok(())).unwrap();
        app.execute_batch("CREATE TABLE t(x); INSERT INTO t VALUES (1); BEGIN; SELECT * FROM t").unwrap();
        let mut reading = app.prepare("SELECT x FROM t").unwrap();
        let mut rows = reading.query(()).unwrap();
        rows.next().unwrap();
        let refused = [
            journal.transact(|txn| txn.write("app.db", b"x")).map(drop),
            journal.transact(|txn| txn.remove("app.db")).map(drop),
            journal.transact(|txn| txn.rename("app.db", "other.db")).map(drop),
        ];
        for refused in refused {
            assert!(matches!(refused, Err(Error::DatabaseInUse { .. })), "{mode}: {refused:?}");
        }
        drop(rows);
        drop(reading);
        drop(app);
        // Closed, it is a file like any other.
        journal.transact(|txn| txn.rename("app.db", "other.db")).unwrap();
        journal.transact(|txn| txn.remove("other.db")).unwrap();
    }
    // A new database beside an old log would silently read as the old one.
    tree.put("new.db-wal", "left over");
    let header = b"SQLite format 3\0 and so on";
    assert!(matches!(journal.transact(|txn| txn.write("new.db", header)), Err(Error::DatabaseInUse { .. })));
    journal
        .transact(|txn| {
            txn.remove("new.db-wal")?;
            txn.write("new.db", header)
        })
        .unwrap();
}

#[test]
fn looking_at_a_database_of_the_tree_keeps_the_locks_on_it() {
    let tree = Tree::new();
    let path = tree.path("app.db");
    let app = rusqlite::Connection::open(&path).unwrap();
    app.execute_batch("CREATE TABLE t(x); BEGIN EXCLUSIVE").unwrap();
    let locked = || {
        use std::os::unix::fs::MetadataExt;
        let inode = format!(":{} ", fs::metadata(&path).unwrap().ino());
        let locks = fs::read_to_string("/proc/locks").unwrap();
        locks.lines().any(|lock| lock.contains("POSIX") && lock.contains("WRITE") && lock.contains(&inode))
    };
    assert!(locked());
    let journal = tree.journal();
    let txn = journal.begin("reader").unwrap();
    txn.read("app.db").unwrap();
    drop(txn);
    journal.transact(|txn| txn.remove("app.db")).unwrap_err();
    journal.settle().unwrap();
    assert!(locked(), "SQLite's lock is gone: its next COMMIT could be lost");
}

#[test]
fn a_failed_sync_of_the_log_is_cured_before_the_next_commit() {
    let tree = Tree::new();
    let journal = tree.journal();
    journal.transact(|txn| txn.write("f", b"f")).unwrap();
    // As a process leaves it whose sync failed.
    fs::write(tree.path(".journal/sync-failed"), "").unwrap();
    journal.transact(|txn| txn.write("g", b"g")).unwrap();
    assert!(!tree.path(".journal/sync-failed").exists());
    let log = fs::metadata(tree.path(".journal/journal.db-wal")).unwrap().len();
    assert!(log < 200 << 10, "the log was emptied before: {log} bytes");
}

#[test]
fn a_sync_of_the_log_that_fails_is_never_believed() {
    let mut failed = 0;
    for when in 1..=12 {
        let tree = Tree::new();
        let inject = format!("inject=fsync,fdatasync:error=EIO:when={when}");
        let test = child("trouble::failing_child", &tree.path("kb"));
        fs::create_dir(tree.path("kb")).unwrap();
        // Only calls on the log count, and only they fail.
        let traced = Command::new("strace")
            .args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=fsync,fdatasync", "-e", &inject, "-P"])
            .arg(tree.path("kb/.journal/journal.db-wal"))
            .arg(test.get_program())
            .args(test.get_args())
            .envs(test.get_envs().filter_map(|(key, value)| Some((key, value?))))
            .output();
        let Ok(output) = traced else { return skip("failing syncs need strace") };
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let Ok(report) = fs::read_to_string(tree.path("kb/report")) else {
            // Making the journal failed, and said so; the next one to come makes it.
            assert!(said.contains("OutcomeUnknown"), "{when}: {said}");
            Journal::open(tree.path("kb")).unwrap().transact(|txn| txn.write("next", b"next")).unwrap();
            failed += 1;
            continue;
        };
        let steps: Vec<&str> = report.lines().collect();
        let marked = tree.path("kb/.journal/sync-failed").exists();
        // A fresh process: what was acknowledged is there, what was refused is not, what is unknown is one or other.
        let journal = Journal::open(tree.path("kb")).unwrap();
        journal.transact(|txn| txn.write("next", b"next")).unwrap();
        assert!(!tree.path("kb/.journal/sync-failed").exists(), "{when}: cured");
        for (n, step) in steps.iter().enumerate() {
            let (file, row) = (tree.path(&format!("kb/file-{n}")).exists(), row(&journal, n));
            match *step {
                "ok" => assert!(file && row, "{when}: {steps:?}"),
                "unknown" => assert!(file == row && marked, "{when}: {steps:?}"),
                "poisoned" => assert!(!file && !row && steps[..n].contains(&"unknown"), "{when}: {steps:?}"),
                other => panic!("{when}: {other}"),
            }
        }
        failed += usize::from(steps.contains(&"unknown"));
    }
    assert!(failed > 2, "the log is synced where this test believes it is");
}

fn row(journal: &Journal, n: usize) -> bool {
    journal.read(|rows| rows.query_opt("SELECT 1 FROM n WHERE x = ?1", [n], |_| Ok(()))).unwrap().is_some()
}

/// The process whose disk refuses one sync of the log. It reports each commit as it ended.
#[test]
fn failing_child() {
    let Some(root) = child_root() else { return };
    let journal = Journal::open(&root).unwrap();
    journal.migrate(&["CREATE TABLE n(x)"]).unwrap();
    let mut report = String::new();
    for n in 0..5_usize {
        let done = journal.transact(|txn| {
            txn.write(format!("file-{n}"), b"x")?;
            txn.sql(move |rows| rows.execute("INSERT INTO n VALUES (?1)", [n]).map(drop))
        });
        report += match done {
            Ok(_) => "ok\n",
            Err(error) if error.is_outcome_unknown() => "unknown\n",
            Err(Error::Poisoned { .. }) => "poisoned\n",
            Err(error) => panic!("{error}"),
        };
        fs::write(root.join("report"), &report).unwrap();
    }
    std::process::exit(0);
}
