//! The promise of a guarded tree: whatever anybody does anywhere in it is put back unless the transaction commits, and a
//! commit says exactly what was done; whoever changed it by hand in between loses nothing.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use journal_kb::{Begin, ChangeKind, Error, Guard, Journal, Transaction};

use crate::guard::{Entry, full};
use crate::support::{Tree, child, child_root, wait_for_word};

/// A tree to be guarded, `wiki`, and something beside it.
fn tree() -> (Tree, Journal) {
    let tree = Tree::new();
    fill(&tree);
    let journal = tree.journal();
    (tree, journal)
}

pub(crate) fn fill(tree: &Tree) {
    for n in 0..40 {
        tree.put(&format!("wiki/d{}/page{n}", n % 7), &format!("page {n}"));
    }
    tree.put("wiki/index", "index");
    tree.put("wiki/nothing", "");
    tree.put("wiki/d6/nothing", "");
    tree.put("wiki/deep/er/and/deeper", "deep");
    tree.put("beside", "beside");
    symlink("index", tree.path("wiki/link")).unwrap();
    fs::create_dir(tree.path("wiki/empty")).unwrap();
}

pub(crate) fn guard(txn: &mut Transaction, path: &str, replacing: bool) {
    let guard = Guard::tree(path);
    txn.guard_with(if replacing { guard.replacing() } else { guard }).unwrap();
}

/// Puts new bytes to a path the way editors do.
fn replace(path: &Path, bytes: &str) {
    let temporary = path.with_extension("tmp");
    fs::write(&temporary, bytes).unwrap();
    fs::rename(temporary, path).unwrap();
}

fn append(path: &Path, bytes: &str) {
    fs::OpenOptions::new().append(true).open(path).unwrap().write_all(bytes.as_bytes()).unwrap();
}

/// One of everything that may be done to a tree.
pub(crate) fn damage(root: &Path, replacing: bool) {
    let at = |path: &str| root.join("wiki").join(path);
    replace(&at("d1/page1"), "other");
    fs::write(at("d2/created"), "created").unwrap();
    fs::remove_file(at("d3/page3")).unwrap();
    fs::remove_dir_all(at("d4")).unwrap();
    fs::write(at("d4"), "a file now").unwrap();
    fs::rename(at("d5"), at("moved")).unwrap();
    fs::create_dir_all(at("new/er/est")).unwrap();
    fs::write(at("new/er/est/file"), "new").unwrap();
    fs::remove_file(at("link")).unwrap();
    symlink("elsewhere", at("link")).unwrap();
    fs::remove_dir(at("empty")).unwrap();
    fs::remove_dir_all(at("deep")).unwrap();
    fs::set_permissions(at("index"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(at("d6"), fs::Permissions::from_mode(0o700)).unwrap();
    if !replacing {
        append(&at("d0/page0"), " and more");
        fs::write(at("nothing"), "something").unwrap();
    }
}

#[test]
fn whatever_was_done_in_a_tree_is_put_back() {
    for replacing in [false, true] {
        for path in ["wiki", "."] {
            let (tree, journal) = tree();
            let before = full(tree.root());
            // The first time a baseline is made, afterwards it is there.
            for round in 0..3 {
                let mut txn = journal.begin("anything").unwrap();
                guard(&mut txn, path, replacing);
                damage(tree.root(), replacing);
                let done = txn.rollback().unwrap();
                assert_eq!(done.damaged, Vec::<PathBuf>::new());
                same(&full(tree.root()), &before, &format!("{path}, replacing: {replacing}, round {round}"));
            }
            assert_eq!(fs::read_dir(tree.path(".journal/stage")).unwrap().count(), 0);
        }
    }
}

pub(crate) fn same(found: &BTreeMap<PathBuf, Entry>, expected: &BTreeMap<PathBuf, Entry>, what: &str) {
    for (path, entry) in expected {
        assert_eq!(found.get(path), Some(entry), "{what}: {}", path.display());
    }
    let more: Vec<_> = found.keys().filter(|path| !expected.contains_key(*path)).collect();
    assert!(more.is_empty(), "{what}: {more:?}");
}

#[test]
fn what_lies_beside_is_not_guarded() {
    let (tree, journal) = tree();
    let mut txn = journal.begin("").unwrap();
    txn.guard("wiki").unwrap();
    fs::write(tree.path("beside"), "changed").unwrap();
    fs::write(tree.path("wiki/index"), "changed").unwrap();
    txn.rollback().unwrap();
    assert_eq!(fs::read(tree.path("beside")).unwrap(), b"changed");
    assert_eq!(fs::read(tree.path("wiki/index")).unwrap(), b"index");
}

#[test]
fn edits_by_hand_in_between_are_taken_over() {
    for replacing in [false, true] {
        let (tree, journal) = tree();
        let guarded = |work: &dyn Fn()| {
            let mut txn = journal.begin("").unwrap();
            guard(&mut txn, "wiki", replacing);
            work();
            txn.rollback().unwrap();
        };
        guarded(&|| ());
        // In place, by replacement, created, removed, and by a commit of the journal.
        append(&tree.path("wiki/d1/page1"), " by hand");
        // It was empty, and such a file is never kept as a link.
        append(&tree.path("wiki/d6/nothing"), "by hand");
        replace(&tree.path("wiki/d2/page2"), "replaced by hand");
        fs::create_dir_all(tree.path("wiki/by/hand")).unwrap();
        fs::write(tree.path("wiki/by/hand/page"), "by hand").unwrap();
        fs::remove_dir_all(tree.path("wiki/d3")).unwrap();
        journal.transact(|txn| txn.write("wiki/d0/page0", "committed")).unwrap();
        let before = full(tree.root());
        guarded(&|| {
            for path in ["wiki/d1/page1", "wiki/d2/page2", "wiki/by/hand/page", "wiki/d0/page0", "wiki/d6/nothing"] {
                replace(&tree.path(path), "by the program");
            }
            fs::create_dir(tree.path("wiki/d3")).unwrap();
        });
        same(&full(tree.root()), &before, &format!("replacing: {replacing}"));
    }
}

#[test]
fn a_commit_says_exactly_what_was_done() {
    for replacing in [false, true] {
        let (tree, journal) = tree();
        let mut txn = journal.begin("").unwrap();
        guard(&mut txn, "wiki", replacing);
        damage(tree.root(), replacing);
        txn.write("wiki/staged", "staged").unwrap();
        let after_damage = full(tree.root());
        let receipt = txn.commit().unwrap();
        let mut expected = after_damage.clone();
        expected.retain(|path, _| path != Path::new("wiki"));
        let mut found = full(tree.root());
        found.retain(|path, _| path != Path::new("wiki") && path != Path::new("wiki/staged"));
        same(&found, &expected, "a commit changes nothing");
        let mut changes: Vec<(String, ChangeKind)> = receipt
            .changes()
            .iter()
            .map(|change| (change.path().to_str().unwrap().trim_start_matches("wiki/").to_owned(), change.kind))
            .collect();
        changes.sort_by(|a, b| a.0.cmp(&b.0));
        use ChangeKind::{Created, Directory, Removed, Renamed, Replaced};
        let mut wanted: Vec<(String, ChangeKind)> = [
            ("d1/page1", Replaced),
            ("d2/created", Created),
            ("d3/page3", Removed),
            ("d4", Replaced),
            ("moved", Renamed),
            ("new", Directory),
            ("new/er", Directory),
            ("new/er/est", Directory),
            ("new/er/est/file", Created),
            ("link", Replaced),
            ("empty", Removed),
            ("deep", Removed),
            ("deep/er", Removed),
            ("deep/er/and", Removed),
            ("deep/er/and/deeper", Removed),
            ("index", Replaced),
            ("d6", Replaced),
            ("d5", Removed),
            ("staged", Created),
        ]
        .into_iter()
        .map(|(path, kind)| (path.to_owned(), kind))
        .collect();
        if !replacing {
            wanted.extend([("d0/page0".to_owned(), Replaced), ("nothing".to_owned(), Replaced)]);
        }
        for n in 0..40 {
            match n % 7 {
                4 => wanted.push((format!("d4/page{n}"), Removed)),
                5 => {
                    wanted.push((format!("d5/page{n}"), Removed));
                    wanted.push((format!("moved/page{n}"), Renamed));
                }
                _ => {}
            }
        }
        wanted.sort_by(|a, b| a.0.cmp(&b.0));
        assert_eq!(changes, wanted, "replacing: {replacing}");
        // And nothing of it is put back by anybody later.
        journal.close().unwrap();
        let journal = tree.journal();
        let mut txn = journal.begin("").unwrap();
        guard(&mut txn, "wiki", replacing);
        fs::write(tree.path("wiki/new/er/est/other"), "x").unwrap();
        txn.rollback().unwrap();
        assert!(tree.path("wiki/new/er/est/file").exists() && !tree.path("wiki/new/er/est/other").exists());
    }
}

#[test]
fn a_tree_that_is_guarded_is_nobody_elses() {
    let (tree, journal) = tree();
    let mut txn = journal.begin_with(Begin::new("indexing").lock("one")).unwrap();
    txn.guard("wiki").unwrap();
    let other = || journal.begin_with(Begin::new("other").lock("two")).unwrap();
    let mut writes = other();
    writes.write("wiki/d1/page1", "theirs").unwrap();
    let busy = writes.commit().unwrap_err();
    assert!(matches!(&busy, Error::PathBusy { .. }) && busy.to_string().contains("indexing"), "{busy}");
    for path in ["wiki/d1", ".", "wiki/d1/page1"] {
        assert!(matches!(other().guard(path), Err(Error::PathBusy { .. })), "{path}");
    }
    let mut beside = other();
    beside.write("beside", "theirs").unwrap();
    beside.commit().unwrap();
    txn.rollback().unwrap();
    other().guard("wiki/d1").unwrap();
    assert_eq!(fs::read(tree.path("wiki/d1/page1")).unwrap(), b"page 1");
}

#[test]
fn what_is_no_directory_is_guarded_as_a_path() {
    let (tree, journal) = tree();
    let before = full(tree.root());
    let mut txn = journal.begin("").unwrap();
    txn.guard("beside").unwrap();
    txn.guard("not/there").unwrap();
    // Overlapping, in either order.
    txn.guard("wiki/d1").unwrap();
    txn.guard("wiki").unwrap();
    txn.guard("wiki/d2").unwrap();
    fs::write(tree.path("beside"), "changed").unwrap();
    fs::create_dir_all(tree.path("not/there/at/all")).unwrap();
    damage(tree.root(), false);
    txn.rollback().unwrap();
    same(&full(tree.root()), &before, "all of it");
}

#[test]
fn a_baseline_that_was_damaged_is_not_trusted() {
    let (tree, journal) = tree();
    let mut txn = journal.begin("").unwrap();
    txn.guard("wiki").unwrap();
    for dir in fs::read_dir(tree.path(".journal/baseline")).unwrap() {
        for file in fs::read_dir(dir.unwrap().path()).unwrap() {
            fs::remove_file(file.unwrap().path()).unwrap();
        }
    }
    fs::write(tree.path("wiki/index"), "by the program").unwrap();
    let error = txn.rollback().unwrap_err();
    assert!(matches!(error, Error::Corrupt { .. }), "{error}");
    assert_eq!(fs::read(tree.path("wiki/index")).unwrap(), b"by the program");
    // A person has to look; what was guarded stays as it is.
    let recovered = journal.recover().unwrap();
    assert_eq!((recovered.quarantined, recovered.rolled_back), (1, 0));
    assert_eq!(fs::read(tree.path("wiki/index")).unwrap(), b"by the program");
}

#[test]
fn a_process_killed_under_a_guarded_tree_leaves_it_as_before() {
    for replacing in ["any", "replacing"] {
        let (tree, journal) = tree();
        journal.close().unwrap();
        let before = full(tree.root());
        let mut guarding =
            child("guard_tree::guarding_child", tree.root()).env("REPLACING", replacing).spawn().unwrap();
        wait_for_word(&mut guarding, "damage done");
        guarding.kill().unwrap();
        guarding.wait().unwrap();
        let journal = tree.journal();
        same(&full(tree.root()), &before, replacing);
        assert_eq!(journal.recover().unwrap().rolled_back, 1);
    }
}

/// Guards a tree, damages it, and waits to be killed.
#[test]
fn guarding_child() {
    let Some(root) = child_root() else { return };
    let journal = Journal::open(&root).unwrap();
    let mut txn = journal.begin("to be killed").unwrap();
    let replacing = std::env::var_os("REPLACING").is_some_and(|value| value == "replacing");
    guard(&mut txn, "wiki", replacing);
    damage(&root, replacing);
    println!("damage done");
    std::thread::sleep(Duration::from_secs(600));
}
