//! The promise for files of several names: whatever was done to one of them, all that are guarded come back as names of one
//! file.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use journal_kb::{Guard, Journal};

use crate::guard::full;
use crate::guard_review::append;
use crate::support::{Tree, child, child_root, wait_for_word};

/// Two files of three names each, one of them empty: no link may be made to that.
fn tree() -> (Tree, Journal) {
    let tree = Tree::new();
    tree.put("wiki/a", "one");
    tree.put("wiki/empty", "");
    fs::create_dir_all(tree.path("wiki/d")).unwrap();
    fs::create_dir_all(tree.path("wiki/e")).unwrap();
    for (file, name) in [("a", "b"), ("a", "d/a"), ("empty", "e/empty"), ("empty", "d/empty")] {
        fs::hard_link(tree.path("wiki").join(file), tree.path("wiki").join(name)).unwrap();
    }
    let journal = tree.journal();
    (tree, journal)
}

const NAMES: [&str; 9] =
    ["wiki/a", "wiki/b", "wiki/d", "wiki/d/a", "wiki/d/empty", "wiki/e", "wiki/e/empty", "wiki/empty", "wiki/moved"];

fn replace(path: &Path, bytes: &str) {
    fs::write(path.with_extension("tmp"), bytes).unwrap();
    fs::rename(path.with_extension("tmp"), path).unwrap();
}

/// What somebody does to one name, or to a directory that it is in.
type Damage = (&'static str, bool, fn(&Path));

const DAMAGES: [Damage; 7] = [
    ("removed", true, |wiki| fs::remove_file(wiki.join("a")).unwrap()),
    ("replaced", true, |wiki| replace(&wiki.join("d/a"), "other")),
    ("emptied", true, |wiki| replace(&wiki.join("e/empty"), "other")),
    ("renamed over", true, |wiki| fs::rename(wiki.join("d/empty"), wiki.join("b")).unwrap()),
    ("directory removed", true, |wiki| fs::remove_dir_all(wiki.join("d")).unwrap()),
    // No inode of a file shows that its directory was moved.
    ("directory moved", true, |wiki| {
        fs::rename(wiki.join("d"), wiki.join("moved")).unwrap();
        fs::create_dir(wiki.join("d")).unwrap();
    }),
    ("written in place", false, |wiki| append(wiki.join("b"), " more")),
];

fn guard(way: &str) -> Guard {
    match way {
        "paths" => Guard::paths(NAMES),
        "paths, replacing" => Guard::paths(NAMES).replacing(),
        "tree" => Guard::tree("wiki"),
        _ => Guard::tree("wiki").replacing(),
    }
}

#[test]
fn all_names_come_back_as_names_of_one_file() {
    for way in ["paths", "paths, replacing", "tree", "tree, replacing"] {
        for (what, by_replacing, damage) in DAMAGES {
            let moves = what.starts_with("directory");
            if (!by_replacing && way.ends_with("replacing")) || (moves && way.starts_with("paths")) {
                continue;
            }
            let (tree, journal) = tree();
            let before = full(tree.root());
            for round in 0..2 {
                let mut txn = journal.begin("").unwrap();
                txn.guard_with(guard(way)).unwrap();
                damage(&tree.path("wiki"));
                txn.rollback().unwrap();
                assert_eq!(full(tree.root()), before, "{way}, {what}, {round}");
            }
            // What a commit leaves is what the next rollback comes back to.
            let mut txn = journal.begin("").unwrap();
            txn.guard_with(guard(way)).unwrap();
            damage(&tree.path("wiki"));
            fs::hard_link(tree.path("wiki/e/empty"), tree.path("wiki/another")).unwrap();
            txn.commit().unwrap();
            let committed = full(tree.root());
            let mut txn = journal.begin("").unwrap();
            txn.guard_with(guard(way)).unwrap();
            fs::remove_file(tree.path("wiki/e/empty")).unwrap();
            txn.rollback().unwrap();
            let mut found = full(tree.root());
            if way.starts_with("paths") {
                // One of the names is not guarded.
                found.values_mut().for_each(|entry| entry.names.clear());
                let mut committed = committed.clone();
                committed.values_mut().for_each(|entry| entry.names.clear());
                assert_eq!(found, committed, "{way}, {what}, after a commit");
            } else {
                assert_eq!(found, committed, "{way}, {what}, after a commit");
            }
        }
    }
}

#[test]
fn names_that_are_guarded_one_after_the_other_or_in_several_trees_stay_together() {
    for (what, by_replacing, damage) in DAMAGES.iter().filter(|(what, ..)| !what.starts_with("directory removed")) {
        let (tree, journal) = tree();
        let before = full(tree.root());
        let mut txn = journal.begin("").unwrap();
        txn.guard("wiki/e").unwrap();
        txn.touch("wiki/a").unwrap();
        txn.guard("wiki/d").unwrap();
        txn.guard_paths(["wiki/b", "wiki/empty", "wiki/moved"]).unwrap();
        damage(&tree.path("wiki"));
        txn.rollback().unwrap();
        assert_eq!(full(tree.root()), before, "{what}, {by_replacing}");
    }
}

#[test]
fn a_baseline_holds_one_copy_of_a_file_however_many_names_it_has() {
    let (tree, journal) = tree();
    let copies = || {
        let files = walkdir::WalkDir::new(tree.path(".journal/baseline")).into_iter().map(Result::unwrap);
        let files = files.filter(|entry| entry.file_type().is_file());
        let mut inodes: Vec<_> = files.map(|entry| entry.metadata().unwrap().ino()).collect();
        let names = inodes.len();
        inodes.sort();
        inodes.dedup();
        (names, inodes.len())
    };
    for (names, files) in [(6, 2), (6, 2), (7, 2)] {
        if names == 7 {
            fs::hard_link(tree.path("wiki/a"), tree.path("wiki/e/another")).unwrap();
        }
        let mut txn = journal.begin("").unwrap();
        txn.guard("wiki").unwrap();
        assert_eq!(copies(), (names, files));
        append(tree.path("wiki/a"), " more");
        txn.rollback().unwrap();
    }
}

#[test]
fn a_killed_process_leaves_the_names_of_one_file_together() {
    for way in ["paths", "tree"] {
        let (tree, journal) = tree();
        journal.close().unwrap();
        let before = full(tree.root());
        let mut guarding = child("guard_names::guarding_child", tree.root()).env("WAY", way).spawn().unwrap();
        wait_for_word(&mut guarding, "damage done");
        guarding.kill().unwrap();
        guarding.wait().unwrap();
        drop(tree.journal());
        assert_eq!(full(tree.root()), before, "{way}");
    }
}

/// Guards, changes, and waits to be killed.
#[test]
fn guarding_child() {
    let Some(root) = child_root() else { return };
    let journal = Journal::open(&root).unwrap();
    let mut txn = journal.begin("").unwrap();
    txn.guard_with(guard(&std::env::var("WAY").unwrap())).unwrap();
    append(root.join("wiki/b"), " more");
    fs::remove_file(root.join("wiki/a")).unwrap();
    fs::remove_file(root.join("wiki/d/empty")).unwrap();
    println!("damage done");
    std::thread::sleep(std::time::Duration::from_secs(600));
}
