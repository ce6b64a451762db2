//! Rows that mean nothing any more, or nothing at all, are in nobody's way, and nobody takes them for his own. Each of these
//! was found by fuzzing.

use std::fs;

use journal_kb::inspect::Inspector;
use journal_kb::{Guard, recovery_plan};
use rusqlite::Connection;

use crate::support::Tree;

fn sql(tree: &Tree, sql: &str) {
    let database = Connection::open(tree.path(".journal/journal.db")).unwrap();
    database.execute_batch(&format!("PRAGMA ignore_check_constraints = ON; {sql}")).unwrap();
}

/// A journal with a committed transaction, whose process died while it guarded `a`.
fn left_by_a_crash() -> Tree {
    let tree = Tree::new();
    tree.put("a", "a");
    tree.put("b", "b");
    let journal = tree.journal();
    journal.transact(|txn| txn.write("c", "c")).unwrap();
    let mut txn = journal.begin("died").unwrap();
    txn.guard_paths(["a"]).unwrap();
    // What it leaves is copied to where nobody holds its lock.
    let copy = Tree::new();
    let done = std::process::Command::new("cp").arg("-a").arg(tree.path(".")).arg(copy.root()).status().unwrap();
    assert!(done.success());
    drop(txn);
    copy
}

#[test]
fn what_is_left_of_a_guard_is_not_put_back_with_the_next_one() {
    let tree = left_by_a_crash();
    sql(&tree, "DELETE FROM journal_guard");
    sql(&tree, "INSERT INTO journal_preimage SELECT id + 4294967296, path, record FROM journal_preimage");
    let journal = tree.journal();
    fs::write(tree.path("a"), "by hand").unwrap();
    for _ in 0..3 {
        let mut txn = journal.begin("next").unwrap();
        txn.guard_paths(["b"]).unwrap();
        fs::write(tree.path("b"), "changed").unwrap();
        txn.rollback().unwrap();
    }
    assert_eq!(fs::read_to_string(tree.path("a")).unwrap(), "by hand");
    assert_eq!(fs::read_to_string(tree.path("b")).unwrap(), "b");
}

#[test]
fn what_is_left_of_a_transaction_does_not_keep_the_next_one_from_its_commit() {
    let tree = left_by_a_crash();
    let stray = "INSERT INTO journal_redo SELECT 2 * 1048576, path, record, content FROM journal_redo LIMIT 1; \
                 INSERT INTO journal_change (txn, n, path, kind) VALUES (3, 0, x'78', 'created')";
    sql(&tree, stray);
    let journal = tree.journal();
    let first = journal.transact(|txn| txn.write("d", "d")).unwrap().receipt;
    let second = journal.transact(|txn| txn.write("e", "e")).unwrap().receipt;
    assert!(3 < first.id().get() && first.id() < second.id(), "{first:?}, {second:?}");
    assert_eq!(fs::read_to_string(tree.path("e")).unwrap(), "e");
    journal.close().unwrap();
}

#[test]
fn a_size_that_cannot_be_does_not_keep_the_rest_from_being_settled() {
    let tree = left_by_a_crash();
    sql(&tree, "UPDATE journal_txn SET state = 'settled', kept = 1, history = -1");
    let journal = tree.journal();
    journal.transact(|txn| txn.write("d", "d")).unwrap();
    assert_eq!(journal.settle().unwrap().transactions, 1);
    journal.close().unwrap();
}

#[test]
fn a_guard_that_cannot_be_read_does_not_hide_what_becomes_of_the_others() {
    let tree = Tree::new();
    tree.put("d/x", "x");
    let journal = tree.journal();
    let mut txn = journal.begin("died").unwrap();
    txn.guard_with(Guard::tree("d")).unwrap();
    let copy = Tree::new();
    let done = std::process::Command::new("cp").arg("-a").arg(tree.path(".")).arg(copy.root()).status().unwrap();
    assert!(done.success());
    drop(txn);
    sql(&copy, "UPDATE journal_guard_tree SET began_ns = -1");
    let plan = recovery_plan(&Inspector::open(copy.root()).unwrap()).unwrap();
    let told = plan.iter().find(|step| step.action == "quarantine");
    assert!(told.is_some_and(|step| step.reason.contains("out of range")), "{plan:?}");
    let journal = copy.journal();
    let quarantined = journal.quarantine().list().unwrap();
    assert_eq!(quarantined.len(), 1, "{quarantined:?}");
    journal.transact(|txn| txn.write("elsewhere", "e")).unwrap();
}

#[test]
fn an_old_version_whose_name_is_taken_in_history_stays_where_it_is() {
    let tree = Tree::new();
    tree.put("d/x", "x");
    let journal = tree.journal();
    journal.transact(|txn| txn.remove_dir_all("d")).unwrap();
    let kept = |place: &str| {
        let entries = fs::read_dir(tree.path(".journal").join(place)).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect::<Vec<_>>()
    };
    let [of_history] = &kept("history")[..] else { panic!("{:?}", kept("history")) };
    let taken = tree.path(".journal/stage").join(of_history.file_name().unwrap());
    journal.close().unwrap();
    fs::create_dir(&taken).unwrap();
    fs::write(taken.join("y"), "y").unwrap();
    // It looks like what a process was about to move to history when it died.
    let journal = tree.journal();
    assert!(of_history.join("x").exists() && taken.join("y").exists());
    journal.close().unwrap();
}
