//! What recovery gives up is kept, keeps others from its paths only, and ends as a person says: tried again, put in place, left
//! as it is, thrown away.

mod commands;
mod copied;
mod full;
mod guards;
mod hostile;
mod killed;
mod transactions;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use journal_kb::inspect::QuarantineEntry;
use journal_kb::{Journal, QuarantineId, rusqlite};

use crate::recovery::{committed, db, forget_applied, undo_exchange};
use crate::support::{Entry, Tree, child, child_root, manifest, wait_for_word};

const FIRST: QuarantineId = QuarantineId::Guard(1);

fn txn(number: i64) -> QuarantineId {
    QuarantineId::Transaction(number.into())
}

fn sql(tree: &Tree, sql: &str) {
    assert!(db(tree).execute(sql, ()).unwrap() > 0, "{sql}");
}

/// The same for what the schema does not allow.
fn force(tree: &Tree, sql: &str) {
    let db = db(tree);
    db.pragma_update(None, "ignore_check_constraints", true).unwrap();
    assert!(db.execute(sql, ()).unwrap() > 0, "{sql}");
}

fn count(tree: &Tree, sql: &str) -> i64 {
    db(tree).query_row(sql, (), |row| row.get(0)).unwrap()
}

/// A committed transaction whose process is gone: `large` is in the tree, and nothing else of it. No attempt to recover it is
/// left.
fn given_up(tree: &Tree) {
    committed(tree);
    forget_applied(tree);
    undo_exchange(tree, 1, "replaced");
    fs::rename(crate::recovery::staged(tree, 1, "removed"), tree.path("removed")).unwrap();
    fs::remove_dir_all(tree.path("made")).unwrap();
    sql(tree, "UPDATE journal_txn SET attempts = 5");
}

/// What a guard of paths is tried with.
const PATHS: [&str; 6] = ["a", "b", "c", "d/e", "link", "new"];

fn guarded_tree() -> Tree {
    let tree = Tree::new();
    for (path, content) in [("a", "one"), ("b", "two"), ("c", "three"), ("d/e", "four"), ("beside", "beside")] {
        tree.put(path, content);
    }
    std::os::unix::fs::symlink("a", tree.path("link")).unwrap();
    tree
}

/// Guards [`PATHS`], or with TREE the whole root, changes everything, and waits to be killed.
#[test]
fn guarding_child() {
    let Some(root) = child_root() else { return };
    let journal = Journal::open(&root).unwrap();
    let mut txn = journal.begin("to be killed").unwrap();
    match std::env::var_os("TREE") {
        Some(_) => txn.guard(".").unwrap(),
        None => txn.guard_paths(PATHS).unwrap(),
    }
    change_all(&root);
    println!("change done");
    std::thread::sleep(std::time::Duration::from_secs(600));
}

fn change_all(root: &Path) {
    for path in ["a", "b", "c"] {
        fs::write(root.join("tmp"), format!("{path} changed")).unwrap();
        fs::rename(root.join("tmp"), root.join(path)).unwrap();
    }
    fs::remove_dir_all(root.join("d")).unwrap();
    fs::remove_file(root.join("link")).unwrap();
    fs::write(root.join("new"), "new").unwrap();
}

/// A transaction that guarded all that and was killed. Answers what was there before it, and what is there now.
fn killed(tree: &Tree, whole_tree: bool) -> [BTreeMap<PathBuf, Entry>; 2] {
    tree.journal().close().unwrap();
    let before = manifest(tree);
    let mut command = child("quarantine::guarding_child", tree.root());
    if whole_tree {
        command.env("TREE", "1");
    }
    let mut process = command.spawn().unwrap();
    wait_for_word(&mut process, "change done");
    process.kill().unwrap();
    process.wait().unwrap();
    [before, manifest(tree)]
}

fn only(journal: &Journal) -> QuarantineEntry {
    let mut entries = journal.quarantine().list().unwrap();
    assert_eq!(entries.len(), 1, "{entries:?}");
    entries.remove(0)
}

/// What is kept under an id: where, below `quarantine/<id>`, and what it says.
fn kept(tree: &Tree, id: &str) -> BTreeMap<String, String> {
    let dir = tree.path(".journal/quarantine").join(id);
    let files =
        walkdir::WalkDir::new(&dir).into_iter().filter_map(Result::ok).filter(|entry| !entry.file_type().is_dir());
    let says = |path: &Path| match fs::read_link(path) {
        Ok(target) => format!("-> {}", target.display()),
        Err(_) => String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned(),
    };
    files.map(|file| (file.path().strip_prefix(&dir).unwrap().display().to_string(), says(file.path()))).collect()
}

fn pairs<'p>(pairs: impl IntoIterator<Item = (&'p str, &'p str)>) -> BTreeMap<String, String> {
    pairs.into_iter().map(|(path, says)| (path.to_owned(), says.to_owned())).collect()
}

fn open_db(root: &Path) -> rusqlite::Connection {
    rusqlite::Connection::open(root.join(".journal/journal.db")).unwrap()
}
