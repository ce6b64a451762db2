//! The promise that a transaction tells exactly what became of what it guarded: renames as renames, under which fence, and how
//! much is kept of it.

use std::fs;
use std::path::Path;

use journal_kb::inspect::{Inspector, TransactionDetail};
use journal_kb::{Guard, Journal, TxnId};

use crate::guard_review::append;
use crate::support::{Tree, child, child_root, wait_for_word};

fn tree() -> (Tree, Journal) {
    let tree = Tree::new();
    for path in ["wiki/a", "wiki/b", "wiki/d/x", "wiki/d/e/y", "wiki/here"] {
        tree.put(path, path);
    }
    std::os::unix::fs::symlink("a", tree.path("wiki/link")).unwrap();
    let journal = tree.journal();
    (tree, journal)
}

fn show(tree: &Tree, id: TxnId) -> TransactionDetail {
    Inspector::open(tree.root()).unwrap().transaction(id).unwrap().unwrap()
}

/// A line for each path: what happened, from where, and the new size.
fn told(tree: &Tree, id: TxnId) -> Vec<String> {
    let said = |path: Option<&Path>| path.map_or("-".to_owned(), |path| path.display().to_string());
    let mut told: Vec<_> = show(tree, id)
        .paths
        .iter()
        .map(|path| {
            let size = path.bytes.map_or("-".to_owned(), |bytes| bytes.to_string());
            format!("{} {} from {} {size}", path.kind, said(Some(&path.path)), said(path.from.as_deref()))
        })
        .collect();
    told.sort();
    told
}

fn rename(wiki: &Path) {
    for (from, to) in [("a", "moved"), ("link", "d/link"), ("b", "here"), ("d", "f")] {
        fs::rename(wiki.join(from), wiki.join(to)).unwrap();
    }
    append(wiki.join("moved"), "!");
    // By the number of one that was removed, perhaps, but not the same.
    fs::write(wiki.join("a"), "another").unwrap();
    fs::remove_file(wiki.join("f/x")).unwrap();
    fs::write(wiki.join("f/new"), "new").unwrap();
    // Another name, and not a new place.
    fs::hard_link(wiki.join("f/e/y"), wiki.join("f/z")).unwrap();
}

#[test]
fn what_was_renamed_under_a_guard_is_told_as_renamed() {
    let expected = [
        "created wiki/f/new from - 3",
        "created wiki/f/z from - 10",
        "removed wiki/b from - -",
        "removed wiki/d from - -",
        "removed wiki/d/e from - -",
        "removed wiki/d/e/y from - -",
        "removed wiki/d/x from - -",
        "removed wiki/link from - -",
        "renamed wiki/f from wiki/d -",
        "renamed wiki/f/e from wiki/d/e -",
        "renamed wiki/f/e/y from wiki/d/e/y 10",
        "renamed wiki/f/link from wiki/link -",
        "renamed wiki/here from wiki/b 6",
        "renamed wiki/moved from wiki/a 7",
        "replaced wiki/a from - 7",
    ];
    for _ in 0..4 {
        let (tree, journal) = tree();
        let mut txn = journal.begin("").unwrap();
        txn.guard("wiki").unwrap();
        rename(&tree.path("wiki"));
        let receipt = txn.commit().unwrap();
        assert_eq!(told(&tree, receipt.id()), expected);
    }
    // Of a rollback it is told what was taken away: what lay below a directory went with it.
    let (tree, journal) = tree();
    let mut txn = journal.begin("").unwrap();
    txn.guard_with(Guard::tree("wiki").replacing()).unwrap();
    fs::rename(tree.path("wiki/a"), tree.path("wiki/moved")).unwrap();
    fs::rename(tree.path("wiki/d"), tree.path("wiki/f")).unwrap();
    let id = txn.rollback().unwrap().id.unwrap();
    let found = told(&tree, id);
    for line in ["renamed wiki/moved from wiki/a 6", "renamed wiki/f from wiki/d -", "removed wiki/a from - -"] {
        assert!(found.contains(&line.to_owned()), "{line}: {found:?}");
    }
}

#[test]
fn a_new_file_with_the_number_of_one_that_was_removed_is_told_as_new() {
    use std::os::unix::fs::MetadataExt;
    let (tree, journal) = tree();
    let number = |path: &str| fs::metadata(tree.path(path)).unwrap().ino();
    let removed = number("wiki/b");
    let mut txn = journal.begin("").unwrap();
    txn.guard("wiki").unwrap();
    fs::remove_file(tree.path("wiki/b")).unwrap();
    let again = (0..64).map(|n| format!("wiki/new{n}")).find(|path| {
        fs::write(tree.path(path), "new").unwrap();
        number(path) == removed
    });
    let receipt = txn.commit().unwrap();
    let found = told(&tree, receipt.id());
    assert!(!found.iter().any(|line| line.starts_with("renamed")), "{again:?}: {found:?}");
}

#[test]
fn a_rollback_is_told_with_its_fence() {
    let (tree, journal) = tree();
    let mut last = 0;
    for n in 0..3 {
        let mut txn = journal.begin("").unwrap();
        txn.guard_paths(["wiki/a"]).unwrap();
        append(tree.path("wiki/a"), "more");
        let fence = match n {
            1 => txn.commit().unwrap().fence().get(),
            _ => show(&tree, txn.rollback().unwrap().id.unwrap()).summary.fence,
        };
        assert!(fence > last, "{fence} after {last}");
        last = fence;
    }
    journal.close().unwrap();
    let mut guarding = child("guard_told::guarding_child", tree.root()).spawn().unwrap();
    wait_for_word(&mut guarding, "damage done");
    guarding.kill().unwrap();
    guarding.wait().unwrap();
    let journal = tree.journal();
    let newest = Inspector::open(tree.root()).unwrap().transactions(Default::default()).unwrap().remove(0);
    assert!(newest.fence > last && newest.state == "rolled_back", "{newest:?}");
    drop(journal);
}

/// Guards, changes, and waits to be killed.
#[test]
fn guarding_child() {
    let Some(root) = child_root() else { return };
    let journal = Journal::open(&root).unwrap();
    let mut txn = journal.begin("").unwrap();
    txn.guard("wiki").unwrap();
    fs::remove_file(root.join("wiki/a")).unwrap();
    println!("damage done");
    std::thread::sleep(std::time::Duration::from_secs(600));
}

#[test]
fn what_lies_in_a_displaced_directory_counts_as_history() {
    let (tree, journal) = tree();
    let mut txn = journal.begin("").unwrap();
    txn.guard("wiki").unwrap();
    fs::create_dir_all(tree.path("wiki/new/deep")).unwrap();
    for name in ["new/one", "new/deep/two"] {
        fs::write(tree.path("wiki").join(name), vec![b'x'; 100_000]).unwrap();
    }
    fs::hard_link(tree.path("wiki/new/one"), tree.path("wiki/new/deep/again")).unwrap();
    let id = txn.rollback().unwrap().id.unwrap();
    let bytes = show(&tree, id).summary.history_bytes;
    // Two files, and room for what directories are said to take.
    assert!((200_000..300_000).contains(&bytes), "{bytes}");
}
