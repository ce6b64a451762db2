//! A root that is somewhere else now: moved or copied with its journal it recovers as if nothing had been; a journal that was
//! copied beside another tree touches nothing there.

use std::fs;
use std::path::Path;
use std::process::Command;

use journal_kb::{Guard, Journal, Standing};

use super::{FIRST, guarded_tree, killed};
use crate::recovery::{committed, db};
use crate::skip::skip;
use crate::support::{Tree, child, child_root, manifest, manifest_of, wait_for_word};

/// How a copy is made: with second names kept as such, and without.
const COPIES: [&[&str]; 2] = [&["-a"], &["-r", "--no-dereference", "--preserve=mode,ownership,timestamps,xattr"]];

fn copy(how: &[&str], from: &Path, to: &Path) {
    assert!(Command::new("cp").args(how).arg(from).arg(to).status().unwrap().success());
}

/// What a crash left in a tree, and what recovery has to make of it.
fn unfinished() -> Vec<(&'static str, Tree, std::collections::BTreeMap<std::path::PathBuf, crate::support::Entry>)> {
    let mut cases = Vec::new();
    for (what, tree) in [("paths", guarded_tree()), ("tree", guarded_tree()), ("replacing", guarded_tree())] {
        tree.journal().transact(|txn| txn.write("settled", b"by an earlier one")).unwrap();
        tree.journal().close().unwrap();
        // Files that nothing but their inodes and bytes tells apart.
        let time = fs::metadata(tree.path("a")).unwrap().modified().unwrap();
        for path in ["a", "b"] {
            fs::File::options().write(true).open(tree.path(path)).unwrap().set_modified(time).unwrap();
        }
        let before = match what {
            "replacing" => {
                let before = manifest(&tree);
                let mut process = child("quarantine::copied::replacing_child", tree.root()).spawn().unwrap();
                wait_for_word(&mut process, "change done");
                process.kill().unwrap();
                process.wait().unwrap();
                before
            }
            _ => killed(&tree, what == "tree")[0].clone(),
        };
        cases.push((what, tree, before));
    }
    let tree = Tree::new();
    tree.put("settled", "x");
    tree.journal().transact(|txn| txn.write("settled", b"by an earlier one")).unwrap();
    tree.journal().close().unwrap();
    committed(&tree);
    let after = manifest(&tree);
    // Nothing of it had come into the tree; what is large waits in the stage.
    let only = "UPDATE journal_txn SET state = 'committed', applied_mark = NULL WHERE state <> 'settled'";
    assert_eq!(db(&tree).execute(only, ()).unwrap(), 1);
    let number: i64 = db(&tree).query_row("SELECT max(id) FROM journal_txn", (), |row| row.get(0)).unwrap();
    crate::recovery::undo_exchange(&tree, number, "replaced");
    fs::rename(crate::recovery::staged(&tree, number, "removed"), tree.path("removed")).unwrap();
    let large = String::from_utf8(super::transactions::large_name(&tree)).unwrap();
    fs::rename(tree.path("large"), tree.path(".journal/stage").join(large)).unwrap();
    fs::remove_dir_all(tree.path("made")).unwrap();
    cases.push(("transaction", tree, after));
    cases
}

/// Guards the whole tree against replacing writers.
#[test]
fn replacing_child() {
    let Some(root) = child_root() else { return };
    let journal = Journal::open(&root).unwrap();
    let mut txn = journal.begin("to be killed").unwrap();
    txn.guard_with(Guard::tree(".").replacing()).unwrap();
    super::change_all(&root);
    println!("change done");
    std::thread::sleep(std::time::Duration::from_secs(600));
}

/// Bytes, modes and kinds; of what is written anew the time is not the old one.
#[track_caller]
fn assert_same(
    root: &Path,
    wanted: &std::collections::BTreeMap<std::path::PathBuf, crate::support::Entry>,
    what: &str,
) {
    let found = manifest_of(root);
    let paths: Vec<_> = found.keys().collect();
    assert_eq!(paths, wanted.keys().collect::<Vec<_>>(), "{what}");
    for (path, entry) in &found {
        assert_eq!((entry.mode, &entry.bytes), (wanted[path].mode, &wanted[path].bytes), "{what}: {path:?}");
    }
}

#[test]
fn a_root_that_was_moved_simply_recovers() {
    for (what, tree, wanted) in unfinished() {
        let elsewhere = Tree::new();
        fs::rename(tree.root(), elsewhere.path("moved")).unwrap();
        let journal = Journal::open(elsewhere.path("moved")).unwrap();
        assert_same(&elsewhere.path("moved"), &wanted, what);
        assert!(journal.quarantine().list().unwrap().is_empty(), "{what}");
        drop(journal);
        fs::create_dir(tree.root()).unwrap();
    }
}

#[test]
fn a_root_at_another_mount_point_simply_recovers() {
    for (what, tree, wanted) in unfinished() {
        let elsewhere = Tree::new();
        let bound = Command::new("mount").arg("--bind").arg(tree.root()).arg(elsewhere.root()).status();
        if !bound.is_ok_and(|status| status.success()) {
            return skip("a bind mount cannot be made here");
        }
        let checked = std::panic::catch_unwind(|| {
            let journal = Journal::open(elsewhere.root()).unwrap();
            assert_same(elsewhere.root(), &wanted, what);
            assert!(journal.quarantine().list().unwrap().is_empty(), "{what}");
        });
        Command::new("umount").arg(elsewhere.root()).status().unwrap();
        checked.unwrap();
    }
}

#[test]
fn a_root_that_was_copied_with_its_journal_simply_recovers() {
    for how in COPIES {
        for (what, tree, wanted) in unfinished() {
            let what = format!("{what}, cp {how:?}");
            let (elsewhere, found) = (Tree::new(), manifest(&tree));
            let root = elsewhere.path("copy");
            copy(how, tree.root(), &root);
            let journal = Journal::open(&root).unwrap();
            assert_eq!(
                journal.quarantine().list().unwrap().iter().map(|entry| entry.reason.clone()).collect::<Vec<_>>(),
                [],
                "{what}"
            );
            assert_same(&root, &wanted, &what);
            assert_eq!(manifest(&tree), found, "{what}: the one it was copied from is untouched");
            // It is a journal like any other: what is guarded next comes back.
            let mut txn = journal.begin("").unwrap();
            txn.guard(".").unwrap();
            fs::write(root.join("settled"), "changed").unwrap();
            drop(txn);
            assert_same(&root, &wanted, &what);
            drop(journal);
            // And so is the other.
            drop(tree.journal());
            assert_same(tree.root(), &wanted, &what);
        }
    }
}

#[test]
fn a_journal_beside_another_tree_touches_nothing_there() {
    for (what, tree, _) in unfinished() {
        let other = Tree::new();
        for path in ["a", "c", "replaced", "removed", "settled", "made/new", "precious"] {
            other.put(path, "of another tree");
        }
        let before = manifest(&other);
        copy(&["-a"], &tree.path(".journal"), &other.path(".journal"));
        for _ in 0..2 {
            let journal = other.journal();
            journal.recover().unwrap();
            assert_eq!(manifest(&other), before, "{what}");
            let entries = journal.quarantine().list().unwrap();
            assert_eq!(entries.len(), 1, "{what}: {entries:?}");
            assert!(entries[0].reason.as_ref().unwrap().contains("does not look like its own"), "{what}: {entries:?}");
        }
        let journal = other.journal();
        journal.transact(|txn| txn.write("beside/it", b"x")).ok();
        let id = journal.quarantine().list().unwrap()[0].id;
        assert_eq!(journal.quarantine().keep_live(id).unwrap().standing, Standing::Ended);
        journal.transact(|txn| txn.write("precious", b"free")).unwrap();
    }
}

#[test]
fn where_nothing_tells_a_person_decides_and_everything_is_there_for_that() {
    // The first transaction of all, and every path of it changed: nothing tells this tree from another.
    let tree = Tree::new();
    for path in ["a", "b", "c", "d/e"] {
        tree.put(path, "old");
    }
    std::os::unix::fs::symlink("a", tree.path("link")).unwrap();
    let [before, after] = killed(&tree, false);
    let elsewhere = Tree::new();
    let root = elsewhere.path("copy");
    copy(&["-a"], tree.root(), &root);
    fs::remove_file(root.join("new")).unwrap();
    let journal = Journal::open(&root).unwrap();
    assert_eq!(fs::read(root.join("a")).unwrap(), b"a changed");
    assert_eq!(journal.quarantine().list().unwrap()[0].id, FIRST);
    let resolved = journal.quarantine().restore(FIRST).unwrap();
    assert_eq!((resolved.standing, &resolved.left), (Standing::Ended, &vec![]));
    assert_same(&root, &before, "a person said so");
    assert_eq!(manifest(&tree), after);
}

#[test]
fn a_state_directory_put_back_from_a_backup_recovers_its_tree() {
    let tree = guarded_tree();
    tree.journal().transact(|txn| txn.write("settled", b"by an earlier one")).unwrap();
    let [before, _] = killed(&tree, false);
    copy(&["-a"], &tree.path(".journal"), &tree.path(".backup"));
    fs::remove_dir_all(tree.path(".journal")).unwrap();
    fs::rename(tree.path(".backup"), tree.path(".journal")).unwrap();
    let journal = tree.journal();
    assert!(journal.quarantine().list().unwrap().is_empty());
    assert_same(tree.root(), &before, "the journal alone was put back");
}
