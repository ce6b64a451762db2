//! What a review of guards found: each of these once ended otherwise.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use journal_kb::{Begin, Error, Guard, Journal};

use crate::guard::full;
use crate::support::Tree;

fn append(path: impl AsRef<Path>, bytes: &str) {
    fs::File::options().append(true).open(path).unwrap().write_all(bytes.as_bytes()).unwrap();
}

fn kept(root: &Path, area: &str) -> Vec<String> {
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
        assert!(!work("first").commit().unwrap().repeated());
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

#[test]
fn a_baseline_that_did_not_fit_takes_no_room() {
    let Some(small) = crate::trouble::Small::mount("16m") else { return };
    let root = small.0.path();
    let journal = Journal::open(root).unwrap();
    fs::create_dir(root.join("wiki")).unwrap();
    fs::write(root.join("wiki/big"), vec![b'x'; 9 << 19]).unwrap();
    fs::write(root.join("wiki/bigger"), vec![b'x'; 9 << 19]).unwrap();
    let mut txn = journal.begin("").unwrap();
    let full = txn.guard("wiki").unwrap_err();
    assert!(full.to_string().contains("No space left"), "{full}");
    assert_eq!(kept(root, "baseline"), [""; 0]);
    assert_eq!(kept(root, "stage"), [""; 0]);
    drop(txn);
    journal.transact(|txn| txn.write("wiki/other", "there is room for it")).unwrap();
}

/// As somebody who is not root, under whom permissions count.
#[test]
fn what_was_made_read_only_or_closed_is_put_back_by_an_ordinary_user() {
    let tree = Tree::new();
    fs::set_permissions(tree.root(), fs::Permissions::from_mode(0o777)).unwrap();
    let mut child = crate::support::child("guard_review::ordinary_child", tree.root());
    if rustix::process::geteuid().is_root() {
        std::os::unix::process::CommandExt::uid(&mut child, 65534);
        std::os::unix::process::CommandExt::gid(&mut child, 65534);
    }
    // The test binary has to be within reach of an ordinary user.
    let binary = tree.path("test-binary");
    fs::copy(std::env::current_exe().unwrap(), &binary).unwrap();
    let mut reachable = std::process::Command::new(&binary);
    reachable.args(child.get_args()).envs(child.get_envs().filter_map(|(key, value)| Some((key, value?))));
    if rustix::process::geteuid().is_root() {
        std::os::unix::process::CommandExt::uid(&mut reachable, 65534);
        std::os::unix::process::CommandExt::gid(&mut reachable, 65534);
    }
    let out = reachable.current_dir("/").output().unwrap();
    assert!(out.status.success(), "{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
}

#[test]
fn ordinary_child() {
    let Some(root) = crate::support::child_root() else { return };
    let root = root.join("tree");
    fs::create_dir(&root).unwrap();
    let at = |path: &str| root.join(path);
    let mode = |path: &str, mode| fs::set_permissions(at(path), fs::Permissions::from_mode(mode)).unwrap();
    for dir in ["a", "a/b", "c", "e"] {
        fs::create_dir(at(dir)).unwrap();
        fs::write(at(dir).join("file"), dir).unwrap();
    }
    mode("e", 0o500);
    let journal = Journal::open(&root).unwrap();
    let before = full(&root);
    for way in ["paths", "tree", "replacing"] {
        let mut txn = journal.begin("").unwrap();
        match way {
            "paths" => txn.guard_paths(["a/file", "a/b", "a/b/file", "c", "c/file", "c/new", "e", "e/file"]).unwrap(),
            "tree" => txn.guard(".").unwrap(),
            _ => txn.guard_with(Guard::tree(".").replacing()).unwrap(),
        }
        fs::remove_file(at("a/b/file")).unwrap();
        mode("a/b", 0o500);
        fs::remove_file(at("a/file")).unwrap();
        mode("a", 0o000);
        fs::write(at("c/new"), "new").unwrap();
        fs::remove_file(at("c/file")).unwrap();
        mode("c", 0o300);
        mode("e", 0o700);
        fs::remove_file(at("e/file")).unwrap();
        mode("e", 0o500);
        txn.rollback().unwrap_or_else(|error| panic!("{way}: {error}"));
        assert_eq!(full(&root), before, "{way}");
    }
}

/// A filesystem whose stamps stand still for some milliseconds, as all did before Linux 6.13, and whose inodes are one
/// group, so that the lowest number that is free comes next. Unmounted on drop.
struct Coarse(tempfile::TempDir);

impl Coarse {
    fn mount() -> Option<Self> {
        let coarse = Self(tempfile::tempdir().unwrap());
        let (image, at) = (coarse.0.path().join("image"), coarse.0.path().join("root"));
        fs::create_dir(&at).unwrap();
        fs::File::create(&image).unwrap().set_len(48 << 20).unwrap();
        let done = |command: &mut std::process::Command| {
            command.stdout(std::process::Stdio::null()).status().is_ok_and(|status| status.success())
        };
        let made = done(std::process::Command::new("mkfs.ext3").args(["-q", "-F", "-b", "4096"]).arg(&image))
            && done(std::process::Command::new("mount").args(["-t", "ext3", "-o", "loop"]).arg(&image).arg(&at));
        if made { Some(coarse) } else { None }
    }
}

impl Drop for Coarse {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(self.0.path().join("root")).status();
    }
}

#[test]
fn what_changes_within_one_tick_of_the_clock_is_put_back() {
    let Some(coarse) = Coarse::mount() else { return crate::skip::skip("an ext3 cannot be mounted here") };
    let root = coarse.0.path().join("root");
    fs::create_dir_all(root.join("wiki/d")).unwrap();
    let journal = Journal::open(&root).unwrap();
    for n in 0..12 {
        for tree in [true, false] {
            let mut txn = journal.begin("").unwrap();
            let before = format!("one {n:02}");
            fs::write(root.join("wiki/a"), &before).unwrap();
            if tree {
                txn.guard("wiki").unwrap()
            } else {
                txn.touch("wiki/a").unwrap()
            }
            fs::write(root.join("wiki/a"), "two 00").unwrap();
            if tree {
                fs::write(root.join("wiki/d/new"), "new").unwrap();
            }
            txn.rollback().unwrap();
            assert_eq!(fs::read_to_string(root.join("wiki/a")).unwrap(), before, "tree: {tree}");
            assert!(!root.join("wiki/d/new").exists());
        }
    }
}

#[test]
fn what_the_program_did_and_the_transaction_overwrote_leaves_the_version_before_both() {
    let tree = Tree::new();
    tree.put("wiki/a", "one");
    tree.put("b", "one");
    let journal = tree.journal();
    let mut txn = journal.begin("").unwrap();
    txn.guard("wiki").unwrap();
    txn.touch("b").unwrap();
    fs::write(tree.path("wiki/a"), "two").unwrap();
    fs::write(tree.path("b"), "two").unwrap();
    txn.write("wiki/a", "three").unwrap();
    txn.write("b", "three").unwrap();
    txn.commit().unwrap();
    journal.close().unwrap();
    assert_eq!(fs::read(tree.path("wiki/a")).unwrap(), b"three");
    let history = kept(tree.root(), "history");
    assert_eq!(history.iter().filter(|bytes| *bytes == "one").count(), 2, "{history:?}");
}

#[test]
fn what_is_changed_by_hand_while_a_baseline_is_made_is_in_it() {
    let tree = Tree::new();
    for n in 0..3000 {
        tree.put(&format!("wiki/{n:04}"), "one");
    }
    let journal = tree.journal();
    let done = std::sync::atomic::AtomicBool::new(false);
    let version = std::sync::Mutex::new(0);
    std::thread::scope(|scope| {
        // Somebody saves a file again and again, until shortly before the guard is there.
        scope.spawn(|| {
            let mut n = 0;
            while !done.load(std::sync::atomic::Ordering::Relaxed) && n < 5 {
                n += 1;
                fs::write(tree.path("wiki/0000"), format!("saved {n}")).unwrap();
                *version.lock().unwrap() = n;
                std::thread::sleep(std::time::Duration::from_millis(15));
            }
        });
        let mut txn = journal.begin("").unwrap();
        txn.guard("wiki").unwrap();
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        let saved = format!("saved {}", *version.lock().unwrap());
        assert!(saved != "saved 0");
        std::thread::sleep(std::time::Duration::from_millis(40));
        let last = fs::read_to_string(tree.path("wiki/0000")).unwrap();
        // By replacement: what was there is gone.
        fs::write(tree.path("wiki/temporary"), "by the program").unwrap();
        fs::rename(tree.path("wiki/temporary"), tree.path("wiki/0000")).unwrap();
        txn.rollback().unwrap();
        assert_eq!(fs::read_to_string(tree.path("wiki/0000")).unwrap(), last);
    });
}

#[test]
fn names_that_are_not_text_and_a_file_of_two_names() {
    use std::os::unix::ffi::OsStrExt;
    for replacing in [false, true] {
        let tree = Tree::new();
        let odd = std::ffi::OsStr::from_bytes(b"wiki/\xff\xfe\n");
        fs::create_dir(tree.path("wiki")).unwrap();
        fs::write(tree.root().join(odd), "odd").unwrap();
        tree.put("wiki/a", "one");
        fs::hard_link(tree.path("wiki/a"), tree.path("wiki/b")).unwrap();
        let journal = tree.journal();
        let before = full(tree.root());
        for _ in 0..2 {
            let mut txn = journal.begin("").unwrap();
            let guard = Guard::tree("wiki");
            txn.guard_with(if replacing { guard.replacing() } else { guard }).unwrap();
            fs::remove_file(tree.root().join(odd)).unwrap();
            if replacing {
                fs::remove_file(tree.path("wiki/a")).unwrap()
            } else {
                append(tree.path("wiki/a"), "two")
            }
            txn.rollback().unwrap();
            assert_eq!(full(tree.root()), before);
        }
    }
}

#[test]
fn a_copy_with_the_number_of_what_was_removed_is_not_taken_for_something_else() {
    let Some(coarse) = Coarse::mount() else { return crate::skip::skip("an ext3 cannot be mounted here") };
    let root = coarse.0.path().join("root");
    fs::create_dir(root.join("wiki")).unwrap();
    fs::write(root.join("wiki/a"), "one").unwrap();
    let journal = Journal::open(&root).unwrap();
    let before = full(&root);
    let mut again = false;
    for _ in 0..4 {
        let mut txn = journal.begin("").unwrap();
        txn.guard("wiki").unwrap();
        let number = fs::metadata(root.join("wiki/a")).unwrap().ino();
        fs::write(root.join("wiki/b"), "by the program").unwrap();
        fs::rename(root.join("wiki/b"), root.join("wiki/a")).unwrap();
        let db = rusqlite::Connection::open(root.join(".journal/journal.db")).unwrap();
        // The guard cannot be ended, so what is put back is put back once more by whoever comes next.
        let never = "CREATE TRIGGER stays BEFORE DELETE ON journal_guard BEGIN SELECT RAISE(ABORT, 'not yet'); END";
        db.execute_batch(never).unwrap();
        assert!(txn.rollback().is_err());
        again |= fs::metadata(root.join("wiki/a")).unwrap().ino() == number;
        db.execute_batch("DROP TRIGGER stays").unwrap();
        assert_eq!(journal.recover().unwrap().rolled_back, 1);
        let found = full(&root);
        assert_eq!(found.get(Path::new("wiki/a")), before.get(Path::new("wiki/a")), "the same number: {again}");
        assert!(kept(&root, "history").contains(&"by the program".to_owned()));
    }
    assert!(again, "no number came again, so nothing was tried");
}

#[test]
fn what_is_left_of_a_file_that_was_written_in_place_is_kept() {
    let tree = Tree::new();
    tree.put("wiki/a", "one");
    tree.put("b", "one");
    let journal = tree.journal();
    let mut txn = journal.begin("").unwrap();
    txn.guard_with(Guard::tree("wiki").replacing()).unwrap();
    txn.guard_with(Guard::paths(["b"]).replacing()).unwrap();
    for path in ["wiki/a", "b"] {
        append(tree.path(path), " and more");
        fs::write(tree.path("temporary"), "other").unwrap();
        fs::rename(tree.path("temporary"), tree.path(path)).unwrap();
    }
    let done = txn.rollback().unwrap();
    assert_eq!(done.damaged, [PathBuf::from("b"), PathBuf::from("wiki/a")]);
    let history = kept(tree.root(), "history");
    assert_eq!(history.iter().filter(|bytes| *bytes == "one and more").count(), 2, "{history:?}");
}

#[test]
fn what_cannot_be_moved_does_not_keep_the_others() {
    let tree = Tree::new();
    tree.put("wiki/a", "one");
    tree.put("wiki/log", "line\n");
    let attribute = |how: &str| {
        let mut command = std::process::Command::new("chattr");
        command.arg(how).arg(tree.path("wiki/log")).stderr(std::process::Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    if !attribute("+a") {
        return crate::skip::skip("a file cannot be made append-only here");
    }
    let journal = tree.journal();
    let mut txn = journal.begin("").unwrap();
    txn.guard("wiki").unwrap();
    append(tree.path("wiki/log"), "another\n");
    fs::remove_file(tree.path("wiki/a")).unwrap();
    let done = txn.rollback();
    assert!(attribute("-a"));
    assert_eq!(done.unwrap().damaged, [PathBuf::from("wiki/log")]);
    assert_eq!(fs::read(tree.path("wiki/a")).unwrap(), b"one");
}
