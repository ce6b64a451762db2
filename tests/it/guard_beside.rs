//! The promise for directories: those that are guarded come back with all they had, the root too; those that only lie on the
//! way to what is guarded are everybody's, and what others did to them stays.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use journal_kb::{Guard, Journal};

use crate::guard::full;
use crate::guard_review::append;
use crate::support::{Tree, child, child_root, wait_for_word};

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

fn mtime(path: &Path) -> (i64, i64) {
    fs::metadata(path).map(|meta| (meta.mtime(), meta.mtime_nsec())).unwrap()
}

fn xattr(path: &Path, value: &[u8]) -> bool {
    rustix::fs::setxattr(path, "user.k", value, rustix::fs::XattrFlags::empty()).is_ok()
}

/// A file beside others, and the journal.
fn tree() -> (Tree, Journal) {
    let tree = Tree::new();
    for path in ["d/a", "d/b", "d/e/f/g", "top"] {
        tree.put(path, path);
    }
    let journal = tree.journal();
    (tree, journal)
}

#[test]
fn the_root_itself_is_put_back() {
    for replacing in [false, true] {
        let (tree, journal) = tree();
        xattr(tree.root(), b"before");
        let before = full(tree.root());
        let begin = || {
            let mut txn = journal.begin("").unwrap();
            let guard = Guard::tree(".");
            txn.guard_with(if replacing { guard.replacing() } else { guard }).unwrap();
            txn
        };
        for round in 0..2 {
            let txn = begin();
            set_mode(tree.root(), 0o750);
            xattr(tree.root(), b"after");
            fs::write(tree.path("new"), "new").unwrap();
            let done = txn.rollback().unwrap();
            assert!(done.restored.contains(&PathBuf::from(".")), "{:?}", done.restored);
            assert_eq!(full(tree.root()), before, "replacing: {replacing}, {round}");
            // Nothing but the directory itself.
            let txn = begin();
            set_mode(tree.root(), 0o705);
            txn.rollback().unwrap();
            assert_eq!(full(tree.root()), before, "replacing: {replacing}, {round}");
        }
        // What a commit did to it is told, and is what the next one comes back to.
        let txn = begin();
        set_mode(tree.root(), 0o711);
        let receipt = txn.commit().unwrap();
        assert_eq!(receipt.changes().iter().map(|change| change.path()).collect::<Vec<_>>(), [Path::new(".")]);
        let shown = journal_kb::inspect::Inspector::open(tree.root()).unwrap();
        let shown = shown.transaction(receipt.id()).unwrap().unwrap();
        assert_eq!(shown.paths[0].path, Path::new("."));
        let txn = begin();
        set_mode(tree.root(), 0o700);
        txn.rollback().unwrap();
        assert_eq!(mode(tree.root()), 0o711);
    }
}

/// Guards these paths, or a tree, on the way to which `d` lies without being named.
fn guards() -> [(&'static str, Guard); 3] {
    let paths = ["d/a", "d/new", "d/e/f", "d/e/f/g"];
    [
        ("paths", Guard::paths(paths)),
        ("paths, replacing", Guard::paths(paths).replacing()),
        ("tree", Guard::tree("d/e")),
    ]
}

#[test]
fn what_others_do_to_a_directory_on_the_way_stays() {
    for (way, guard) in guards() {
        let (tree, journal) = tree();
        let (d, before) = (tree.path("d"), mtime(&tree.path("d")));
        let program = || {
            fs::remove_dir_all(tree.path("d/e/f")).unwrap();
            if way != "tree" {
                fs::write(tree.path("d/scratch"), "new").unwrap();
                fs::rename(tree.path("d/scratch"), tree.path("d/a")).unwrap();
                fs::write(tree.path("d/new"), "new").unwrap();
            } else {
                fs::remove_dir_all(tree.path("d/e")).unwrap();
            }
        };
        // By the program alone, by way of a name that nobody guards: all of it is undone.
        let mut txn = journal.begin("").unwrap();
        txn.guard_with(guard.clone()).unwrap();
        program();
        txn.rollback().unwrap();
        assert_eq!(mtime(&d), before, "{way}");
        // A mode is given by hand, and a file is made, removed, or moved there.
        let by_hand: [fn(&Path); 4] = [
            |d| fs::write(d.join("by-hand"), "by hand").unwrap(),
            |d| fs::remove_file(d.join("by-hand")).unwrap(),
            |d| fs::rename(d.join("../top"), d.join("top")).unwrap(),
            |d| fs::rename(d.join("top"), d.join("../top")).unwrap(),
        ];
        for (n, by_hand) in by_hand.into_iter().enumerate() {
            let mut txn = journal.begin("").unwrap();
            txn.guard_with(guard.clone()).unwrap();
            program();
            by_hand(&d);
            set_mode(&d, 0o2770 + n as u32);
            xattr(&d, &[n as u8]);
            txn.rollback().unwrap();
            // Whose doing moved its time on, nobody tells.
            assert_eq!(mtime(&d), before, "{way}, {n}");
            assert_eq!(mode(&d), 0o2770 + n as u32, "{way}, {n}");
            assert!(tree.path("d/e/f/g").exists() && !tree.path("d/new").exists());
        }
    }
}

#[test]
fn a_directory_on_the_way_that_went_comes_back_with_all_it_had() {
    for (way, guard) in guards() {
        for again in [false, true] {
            let (tree, journal) = tree();
            let d = tree.path("d");
            set_mode(&d, 0o2751);
            xattr(&d, b"had");
            let before = full(tree.root());
            let mut txn = journal.begin("").unwrap();
            txn.guard_with(guard.clone()).unwrap();
            fs::remove_dir_all(&d).unwrap();
            if again {
                // Perhaps by the same number.
                fs::create_dir(&d).unwrap();
                fs::write(d.join("a"), "new").unwrap();
            }
            txn.rollback().unwrap();
            let found = full(tree.root());
            for path in ["d", "d/e", "d/e/f", "d/e/f/g"].map(Path::new) {
                assert_eq!(found[path], before[path], "{way}, {again}, {}", path.display());
            }
        }
    }
}

#[test]
fn a_crash_changes_no_mode_of_a_directory_on_the_way() {
    let (tree, journal) = tree();
    journal.close().unwrap();
    let before = mtime(&tree.path("d"));
    let mut guarding = child("guard_beside::guarding_child", tree.root()).spawn().unwrap();
    wait_for_word(&mut guarding, "damage done");
    set_mode(&tree.path("d"), 0o2770);
    guarding.kill().unwrap();
    guarding.wait().unwrap();
    drop(tree.journal());
    assert_eq!(mode(&tree.path("d")), 0o2770);
    assert_eq!(mtime(&tree.path("d")), before);
    assert_eq!(fs::read_to_string(tree.path("d/a")).unwrap(), "d/a");
}

/// Guards, changes, and waits to be killed.
#[test]
fn guarding_child() {
    let Some(root) = child_root() else { return };
    let journal = Journal::open(&root).unwrap();
    let mut txn = journal.begin("").unwrap();
    txn.guard_paths(["d/a", "d/new"]).unwrap();
    append(root.join("d/a"), " more");
    fs::write(root.join("d/new"), "new").unwrap();
    println!("damage done");
    std::thread::sleep(std::time::Duration::from_secs(600));
}

#[test]
fn a_directory_on_the_way_that_is_guarded_later_is_guarded() {
    let (tree, journal) = tree();
    let before = full(tree.root());
    let mut txn = journal.begin("").unwrap();
    txn.touch("d/a").unwrap();
    txn.guard("d/e").unwrap();
    txn.guard("d").unwrap();
    txn.guard(".").unwrap();
    for path in ["d", "d/e", "."] {
        set_mode(&tree.path(path), 0o700);
    }
    fs::write(tree.path("d/new"), "new").unwrap();
    txn.rollback().unwrap();
    assert_eq!(full(tree.root()), before);
}
