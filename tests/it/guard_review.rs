//! What a review of guards found: each of these once ended otherwise.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use journal_kb::{Begin, Error, Guard};

use crate::guard::full;
use crate::support::Tree;

pub(crate) fn append(path: impl AsRef<Path>, bytes: &str) {
    fs::File::options().append(true).open(path).unwrap().write_all(bytes.as_bytes()).unwrap();
}

pub(crate) fn kept(root: &Path, area: &str) -> Vec<String> {
    let mut kept: Vec<_> = walkdir::WalkDir::new(root.join(".journal").join(area))
        .into_iter()
        .map(Result::unwrap)
        .filter(|entry| entry.file_type().is_file())
        .map(|entry| fs::read_to_string(entry.path()).unwrap())
        .collect();
    kept.sort();
    kept
}

fn database(tree: &Tree) -> rusqlite::Connection {
    rusqlite::Connection::open(tree.path(".journal/journal.db")).unwrap()
}

#[test]
fn baselines_of_two_trees_may_be_made_at_once() {
    let tree = Tree::new();
    for n in 0..600 {
        tree.put(&format!("a/d{}/{n}", n % 60), "a");
        tree.put(&format!("b/d{}/{n}", n % 60), "b");
    }
    let journal = tree.journal();
    let before = full(tree.root());
    let together = std::sync::Barrier::new(2);
    std::thread::scope(|scope| {
        for name in ["a", "b"] {
            let (tree, journal, together) = (&tree, &journal, &together);
            scope.spawn(move || {
                let mut txn = journal.begin_with(Begin::new("").lock(name)).unwrap();
                together.wait();
                txn.guard(name).unwrap();
                together.wait();
                for n in 0..600 {
                    append(tree.path(&format!("{name}/d{}/{n}", n % 60)), "changed");
                }
                fs::remove_dir_all(tree.path(&format!("{name}/d7"))).unwrap();
                txn.rollback().unwrap();
            });
        }
    });
    assert!(full(tree.root()) == before);
}

#[test]
fn a_repeat_under_a_guard_does_nothing() {
    let tree = Tree::new();
    tree.put("wiki/a", "one");
    tree.put("b", "one");
    let journal = tree.journal();
    // Known at begin, and only at commit.
    for early in [true, false] {
        let key = if early { "early" } else { "late" };
        let work = |lock: &str| {
            let mut txn = journal.begin_with(Begin::new("").lock(lock).key(key)).unwrap();
            txn.guard("wiki").unwrap();
            txn.guard_paths(["b"]).unwrap();
            append(tree.path("wiki/a"), " more");
            fs::write(tree.path("b"), "two").unwrap();
            txn
        };
        let begin = || journal.begin_with(Begin::new("").lock("second").key(key)).unwrap();
        let waiting = (!early).then(begin);
        assert!(!work("third").commit().unwrap().repeated());
        let before = full(tree.root());
        let mut txn = waiting.unwrap_or_else(begin);
        txn.guard("wiki").unwrap();
        txn.guard_paths(["b"]).unwrap();
        append(tree.path("wiki/a"), " more");
        fs::write(tree.path("b"), "three").unwrap();
        assert!(txn.commit().unwrap().repeated());
        assert_eq!(full(tree.root()), before, "early: {early}");
        assert_eq!(journal.recover().unwrap().rolled_back, 0);
        assert_eq!(full(tree.root()), before, "early: {early}");
    }
}

#[test]
fn what_is_in_a_guarded_tree_is_not_guarded_as_it_is_later() {
    let tree = Tree::new();
    tree.put("wiki/d/a", "one");
    let journal = tree.journal();
    let before = full(tree.root());
    let mut txn = journal.begin("").unwrap();
    txn.guard("wiki").unwrap();
    fs::write(tree.path("wiki/d/a"), "two").unwrap();
    fs::set_permissions(tree.path("wiki/d"), fs::Permissions::from_mode(0o700)).unwrap();
    txn.touch("wiki/d/a").unwrap();
    txn.touch("wiki/d/b").unwrap();
    txn.rollback().unwrap();
    assert_eq!(full(tree.root()), before);
}

#[test]
fn a_weaker_guard_does_not_stand_for_a_stronger_one() {
    let tree = Tree::new();
    tree.put("wiki/d/a", "one");
    tree.put("b", "one");
    let journal = tree.journal();
    let mut txn = journal.begin("").unwrap();
    txn.guard_with(Guard::tree("wiki").replacing()).unwrap();
    txn.guard_with(Guard::paths(["b"]).replacing()).unwrap();
    for path in ["wiki", "wiki/d", "wiki/d/a", "b"] {
        assert!(matches!(txn.guard(path), Err(Error::BadPath { .. })), "{path}");
        assert!(matches!(txn.touch(path), Err(Error::BadPath { .. })), "{path}");
        txn.guard_with(Guard::tree(path).replacing()).unwrap();
    }
    txn.rollback().unwrap();
}

#[test]
fn a_tree_is_put_back_with_the_directories_it_lay_in() {
    for replacing in [false, true] {
        let tree = Tree::new();
        tree.put("a/b/c/d", "deep");
        let journal = tree.journal();
        let before = full(tree.root());
        for _ in 0..2 {
            let mut txn = journal.begin("").unwrap();
            let guard = Guard::tree("a/b/c");
            txn.guard_with(if replacing { guard.replacing() } else { guard }).unwrap();
            fs::remove_dir_all(tree.path("a")).unwrap();
            txn.rollback().unwrap();
            assert_eq!(full(tree.root()).keys().collect::<Vec<_>>(), before.keys().collect::<Vec<_>>());
            assert_eq!(fs::read(tree.path("a/b/c/d")).unwrap(), b"deep");
        }
    }
}

#[test]
fn what_was_displaced_after_a_failed_commit_survives_a_crash() {
    let tree = Tree::new();
    tree.put("wiki/a", "one");
    let journal = tree.journal();
    let mut txn = journal.begin("").unwrap();
    txn.guard("wiki").unwrap();
    fs::write(tree.path("wiki/a"), "by the program").unwrap();
    txn.sql(|rows| rows.execute("INSERT INTO nowhere VALUES (1)", ()).map(drop)).unwrap();
    assert!(txn.commit().is_err());
    assert_eq!(fs::read(tree.path("wiki/a")).unwrap(), b"one");
    // Each image of what the rollback displaced was recorded before it was.
    let recorded: i64 = {
        let shown = "SELECT count(*) FROM journal_change WHERE preimage IS NOT NULL";
        database(&tree).query_row(shown, (), |row| row.get(0)).unwrap()
    };
    assert_eq!(recorded, 1);
    assert_eq!(kept(tree.root(), "history"), ["by the program"]);
}

#[test]
fn who_was_robbed_of_a_guard_puts_nothing_back() {
    let tree = Tree::new();
    tree.put("a", "one");
    let journal = tree.journal();
    let mut txn = journal.begin("").unwrap();
    txn.guard_paths(["a"]).unwrap();
    fs::write(tree.path("a"), "two").unwrap();
    // As recovery does it for whoever took the lock: put back, and the guard is over.
    fs::write(tree.path("a"), "one").unwrap();
    database(&tree).execute_batch("DELETE FROM journal_preimage; DELETE FROM journal_guard").unwrap();
    fs::write(tree.path("a"), "committed by the next").unwrap();
    let lost = txn.rollback();
    assert!(matches!(&lost, Err(Error::LockLost { .. })), "{lost:?}");
    assert_eq!(fs::read(tree.path("a")).unwrap(), b"committed by the next");
}

#[test]
fn one_path_that_cannot_be_put_back_does_not_keep_the_others() {
    for replacing in [false, true] {
        let tree = Tree::new();
        tree.put("wiki/a", "one");
        tree.put("wiki/log", "line\n");
        let fifo = tree.path("wiki/fifo");
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        let journal = tree.journal();
        let mut txn = journal.begin("").unwrap();
        let guard = Guard::tree("wiki");
        txn.guard_with(if replacing { guard.replacing() } else { guard }).unwrap();
        fs::remove_file(&fifo).unwrap();
        fs::remove_file(tree.path("wiki/a")).unwrap();
        // As logs are rotated: in place, then by another name.
        append(tree.path("wiki/log"), "another\n");
        fs::rename(tree.path("wiki/log"), tree.path("wiki/log.1")).unwrap();
        let done = txn.rollback().unwrap();
        assert_eq!(fs::read(tree.path("wiki/a")).unwrap(), b"one");
        let mut damaged = vec![PathBuf::from("wiki/fifo")];
        if replacing {
            damaged.push("wiki/log".into());
        } else {
            assert_eq!(fs::read(tree.path("wiki/log")).unwrap(), b"line\n");
        }
        assert_eq!(done.damaged, damaged, "replacing: {replacing}");
        // Wherever it is, it is kept.
        assert!(kept(tree.root(), "history").contains(&"line\nanother\n".to_owned()));
    }
}

#[test]
fn a_symlink_is_told_by_where_it_leads() {
    let tree = Tree::new();
    symlink("one", tree.path("link")).unwrap();
    let journal = tree.journal();
    let before = full(tree.root());
    let meta = fs::symlink_metadata(tree.path("link")).unwrap();
    let mut txn = journal.begin("").unwrap();
    txn.guard_paths(["link"]).unwrap();
    // The number of a removed one comes again, and its time can be set.
    for n in 0..64 {
        fs::remove_file(tree.path("link")).unwrap();
        symlink(format!("two{n}"), tree.path("link")).unwrap();
        if fs::symlink_metadata(tree.path("link")).unwrap().ino() == meta.ino() {
            break;
        }
    }
    let time = rustix::fs::Timespec { tv_sec: meta.mtime(), tv_nsec: meta.mtime_nsec() };
    let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
    let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::utimensat(rustix::fs::CWD, tree.path("link"), &times, flags).unwrap();
    txn.rollback().unwrap();
    assert_eq!(full(tree.root()), before);
}

#[test]
fn a_directory_that_is_as_it_was_is_not_listed_again() {
    let tree = Tree::new();
    for n in 0..10 {
        tree.put(&format!("wiki/d{n}/a"), "a");
    }
    let journal = tree.journal();
    for _ in 0..3 {
        let mut txn = journal.begin("").unwrap();
        txn.guard_with(Guard::tree("wiki").replacing()).unwrap();
        txn.rollback().unwrap();
    }
    let racy: i64 =
        database(&tree).query_row("SELECT count(*) FROM journal_tree_dir WHERE racy", (), |row| row.get(0)).unwrap();
    assert_eq!(racy, 0);
}
