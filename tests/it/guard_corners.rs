//! What a second attack on guards found: files that share names and numbers, ticks of the clock, what cannot be moved.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use journal_kb::{Guard, Journal};

use crate::guard::full;
use crate::guard_review::{append, kept};
use crate::support::Tree;

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
    as_an_ordinary_user(&tree, "guard_corners::ordinary_child");
}

/// Runs a test of this binary, which is put within reach of an ordinary user, as that.
pub(crate) fn as_an_ordinary_user(tree: &Tree, test: &str) {
    let child = crate::support::child(test, tree.root());
    let binary = tree.path("test-binary");
    // By another process: a child that is started meanwhile would have it open for writing, and it could not be run.
    let copied = std::process::Command::new("cp").arg(std::env::current_exe().unwrap()).arg(&binary).status();
    assert!(copied.unwrap().success());
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
            "paths" => {
                txn.guard_paths(["a", "a/file", "a/b", "a/b/file", "c", "c/file", "c/new", "e", "e/file"]).unwrap()
            }
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
    // A directory on the way stays closed, as it is found; what is in it is put back.
    let mut txn = journal.begin("").unwrap();
    txn.guard_paths(["a/b/file"]).unwrap();
    fs::remove_file(at("a/b/file")).unwrap();
    mode("a/b", 0o100);
    mode("a", 0o000);
    txn.rollback().unwrap();
    let closed = |path: &str| fs::metadata(at(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!(closed("a"), 0o000);
    mode("a", 0o755);
    assert_eq!(closed("a/b"), 0o100);
    assert_eq!(fs::read_to_string(at("a/b/file")).unwrap(), "a/b");
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
    // As many files as it takes for the saves to end before the guard is there: a later one is the transaction's.
    for files in [3_000, 12_000, 48_000] {
        let tree = Tree::new();
        for n in 0..files {
            tree.put(&format!("wiki/{n:05}"), "one");
        }
        let journal = tree.journal();
        let page = tree.path("wiki/00000");
        let saved = AtomicBool::new(false);
        let ended_before = std::thread::scope(|scope| {
            scope.spawn(|| {
                for n in 0..5 {
                    fs::write(&page, format!("saved {n}")).unwrap();
                    std::thread::sleep(std::time::Duration::from_millis(15));
                }
                saved.store(true, Ordering::Release);
            });
            let mut txn = journal.begin("").unwrap();
            txn.guard("wiki").unwrap();
            let ended_before = saved.load(Ordering::Acquire);
            if ended_before {
                // By replacement: what was there is gone.
                fs::write(tree.path("wiki/temporary"), "by the program").unwrap();
                fs::rename(tree.path("wiki/temporary"), &page).unwrap();
            }
            txn.rollback().unwrap();
            ended_before
        });
        if ended_before {
            assert_eq!(fs::read_to_string(&page).unwrap(), "saved 4");
            return;
        }
    }
    panic!("a baseline of so many files was made in no time");
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

#[test]
fn a_journal_within_a_guarded_tree_is_nobody_elses_to_put_back() {
    let tree = Tree::new();
    tree.put("wiki/sub/page", "page");
    Journal::open(tree.path("wiki/sub")).unwrap().close().unwrap();
    let journal = tree.journal();
    let mut txn = journal.begin("").unwrap();
    for refused in [txn.guard("wiki"), txn.guard_paths(["wiki/sub/.journal/turnstile.lock"])] {
        assert!(matches!(refused, Err(journal_kb::Error::BadPath { .. })), "{refused:?}");
    }
    txn.rollback().unwrap();
}

/// A journal goes on watching a tree between two guards of it.
#[test]
fn a_later_guard_for_replacing_watches_the_directories_that_are_there_by_then() {
    let tree = Tree::new();
    tree.put("wiki/page", "one\n");
    tree.put("wiki/old/page", "two\n");
    tree.put("wiki/gone/page", "three\n");
    let journal = tree.journal();
    let guard = || {
        let mut txn = journal.begin("").unwrap();
        txn.guard_with(Guard::tree("wiki").replacing()).unwrap();
        txn
    };
    guard().rollback().unwrap();
    // Nobody's guard: an edit by hand.
    append(tree.path("wiki/page"), "by hand\n");
    fs::rename(tree.path("wiki/old"), tree.path("wiki/moved")).unwrap();
    fs::remove_dir_all(tree.path("wiki/gone")).unwrap();
    tree.put("wiki/new/page", "four\n");
    let txn = guard();
    append(tree.path("wiki/moved/page"), "in place\n");
    append(tree.path("wiki/new/page"), "in place\n");
    let done = txn.rollback().unwrap();
    assert_eq!(done.damaged, [PathBuf::from("wiki/moved/page"), PathBuf::from("wiki/new/page")]);
    assert_eq!(fs::read(tree.path("wiki/page")).unwrap(), b"one\nby hand\n");
    let done = guard().rollback().unwrap();
    assert_eq!((done.restored.len(), done.damaged.len()), (0, 0), "{done:?}");
}
