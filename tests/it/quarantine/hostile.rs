//! Rows that nobody of the engine's wrote: what cannot be understood is set aside, the rest goes on, nothing leads out of the
//! root, and no lock is kept from anybody.

use std::fs;
use std::process::Command;

use journal_kb::{Error, Standing};

use super::{FIRST, PATHS, count, force, given_up, guarded_tree, kept, killed, only, sql, txn};
use crate::recovery::{assert_after, committed, db, forget_applied, read, states};
use crate::skip::skip;
use crate::support::{Tree, child, child_root, manifest, manifest_of};

#[test]
fn a_transaction_in_an_unknown_state_is_set_aside_and_the_others_go_on() {
    let tree = Tree::new();
    given_up(&tree);
    tree.put("other", "x");
    crate::recovery::run(&tree, "quarantine::hostile::other_child");
    sql(&tree, "UPDATE journal_txn SET state = 'committed', applied_mark = NULL, attempts = 0 WHERE id = 2");
    fs::remove_file(tree.path("other")).unwrap();
    for state in ["'strange'", "''", "CAST(x'ff' AS TEXT)", "'Settled'"] {
        force(&tree, &format!("UPDATE journal_txn SET state = {state} WHERE id = 1"));
        let journal = tree.journal();
        assert_eq!(read(&tree, "other"), "by another");
        assert_eq!(read(&tree, "replaced"), "before", "{state}");
        let entry = only(&journal);
        assert!(entry.reason.as_ref().is_some_and(|why| why.contains("does not know")), "{state}: {entry:?}");
        assert!(matches!(journal.transact(|txn| txn.write("replaced", b"x")), Err(Error::PathQuarantined { .. })));
        journal.transact(|txn| txn.write("beside", b"x")).unwrap();
    }
    let journal = tree.journal();
    assert_eq!(journal.quarantine().retry(txn(1)).unwrap().standing, Standing::Ended);
    assert_after(&tree);
}

/// Commits beside what is in quarantine, and is gone.
#[test]
fn other_child() {
    let Some(root) = child_root() else { return };
    let journal = crate::recovery::unsettled(&root);
    journal.transact(|txn| txn.write("other", b"by another")).unwrap();
    std::process::exit(0);
}

#[test]
fn a_guard_in_an_unknown_state_is_set_aside_and_its_lock_is_free() {
    for state in ["'strange'", "''", "CAST(x'ff' AS TEXT)"] {
        let tree = guarded_tree();
        let [before, after] = killed(&tree, false);
        force(&tree, &format!("UPDATE journal_guard SET state = {state}"));
        let journal = tree.journal();
        assert_eq!(manifest(&tree), after, "{state}");
        assert!(only(&journal).reason.unwrap().contains("none that this version knows"), "{state}");
        journal.transact(|txn| txn.write("beside", b"x")).unwrap();
        tree.put("beside", "beside");
        assert_eq!(journal.quarantine().retry(FIRST).unwrap().standing, Standing::Ended, "{state}");
        assert_eq!(manifest(&tree).len(), before.len(), "{state}");
        assert_eq!(read(&tree, "a"), "one", "{state}");
    }
}

#[test]
fn states_that_nobody_knows_stop_nothing_anywhere() {
    for row in [
        "UPDATE journal_session SET state = 'strange'",
        "UPDATE journal_tree SET state = 'strange'",
        "UPDATE journal_tree SET writers = 'strange'",
        "UPDATE journal_guard_tree SET ready = 7",
        "UPDATE journal_tree_dir SET racy = 7, looks = -1",
        "INSERT INTO journal_event (at_ms, level, kind, details) VALUES (0, 'strange', CAST(x'ff' AS TEXT), x'00')",
        "UPDATE journal_txn SET rolled_back = 9, ran_sql = 9, structural = 0",
        "UPDATE journal_change SET kind = 'strange', preimage = CAST(x'ff' AS TEXT)",
        "UPDATE journal_change SET preimage = '../../../victim', area = 99",
        "UPDATE journal_change SET preimage = '../../../victim'",
        "UPDATE journal_guard SET lock = CAST(x'ff' AS TEXT), label = CAST(x'fe' AS TEXT)",
        "UPDATE journal_guard SET lock = ''",
        "UPDATE journal_guard SET lock = '../../../victim'",
        "UPDATE journal_guard SET session = x'', mark = x'01', worker = x'02'",
        "UPDATE journal_guard SET attempts = -9223372036854775808",
        "UPDATE journal_lock SET session = x'01', pid = -1, fence = 9223372036854775807",
    ] {
        let tree = guarded_tree();
        let journal = tree.journal();
        journal.transact(|txn| txn.write("settled", b"x")).unwrap();
        journal.transact(|txn| txn.write("settled", b"y")).unwrap();
        journal.close().unwrap();
        killed(&tree, true);
        force(&tree, row);
        let outside = tree.root().parent().unwrap().join("victim");
        let journal = tree.journal();
        let recovered = journal.recover();
        assert!(recovered.is_ok(), "{row}: {recovered:?}");
        // Put back, or in quarantine; and never in anybody's way.
        let waits = !journal.quarantine().list().unwrap().is_empty();
        assert!(waits || read(&tree, "a") == "one", "{row}");
        let free = journal.transact(|txn| txn.write("free/of it", b"x"));
        assert!(waits || free.is_ok(), "{row}: {free:?}");
        drop(journal.begin("its lock").unwrap());
        if waits {
            journal.quarantine().keep_live(FIRST).unwrap();
            journal.transact(|txn| txn.write("free/of it", b"x")).unwrap();
        }
        journal.settle().unwrap();
        journal.close().unwrap();
        // Nor is what retention is to drop kept for ever.
        let options = journal_kb::Journal::options().history(journal_kb::Retention::OFF);
        options.open(tree.root()).unwrap().settle().unwrap();
        assert_eq!(count(&tree, "SELECT count(*) FROM journal_txn WHERE kept > 0 AND state = 'settled'"), 0, "{row}");
        assert!(!outside.exists(), "{row}");
    }
}

/// Writes something else of the same length into a record, with a checksum that matches.
fn tamper(tree: &Tree, table: &str, path: &str, from: &[u8], to: &[u8]) {
    let record = format!("SELECT record FROM {table} WHERE path = CAST(?1 AS BLOB)");
    let record: Vec<u8> = db(tree).query_row(&record, [path], |row| row.get(0)).unwrap();
    let mut payload = record[1..record.len() - 8].to_vec();
    let at = payload.windows(from.len()).position(|at| at == from).unwrap();
    payload[at..at + from.len()].copy_from_slice(to);
    let update = format!("UPDATE {table} SET record = ?2 WHERE path = CAST(?1 AS BLOB)");
    assert_eq!(db(tree).execute(&update, (path, journal_kb::__fuzz::frame(&payload))).unwrap(), 1);
}

#[test]
fn names_and_paths_of_guards_never_lead_out_of_the_root() {
    let outer = Tree::new();
    outer.put("victim", "precious");
    for (what, path) in [
        ("parent", "x'2e2e2f76696374696d'"),
        ("absolute", "CAST('/etc/hostname' AS BLOB)"),
        ("NUL", "x'6100'"),
        ("state", "CAST('.journal/journal.db' AS BLOB)"),
        ("stage", "CAST('d/.journal-stage/x' AS BLOB)"),
        ("dots", "CAST('d/../../victim' AS BLOB)"),
        ("root", "x''"),
        ("symlink on the way", "CAST('out/victim' AS BLOB)"),
    ] {
        let tree = guarded_tree();
        killed(&tree, false);
        std::os::unix::fs::symlink(outer.root(), tree.path("out")).unwrap();
        sql(&tree, &format!("UPDATE journal_preimage SET path = {path} WHERE path = CAST('a' AS BLOB)"));
        let before = manifest_of(outer.root());
        let journal = tree.journal();
        let waits = !journal.quarantine().list().unwrap().is_empty();
        if waits {
            journal.quarantine().restore(FIRST).unwrap();
            journal.quarantine().discard(FIRST).ok();
        }
        assert_eq!(manifest_of(outer.root()), before, "{what}");
        journal.transact(|txn| txn.write("a", b"x")).unwrap();
        drop(journal);
        assert!(fs::metadata(tree.path(".journal/journal.db")).is_ok(), "{what}");
    }
    // The name in the stage.
    let tree = guarded_tree();
    killed(&tree, false);
    let stage = fs::read_dir(tree.path(".journal/stage")).unwrap().next().unwrap().unwrap();
    let session = stage.file_name().into_string().unwrap()[..32].to_owned();
    let mut hostile = b"../../../victim".to_vec();
    hostile.resize(32, b'/');
    tamper(&tree, "journal_preimage", "a", session.as_bytes(), &hostile);
    let victim = tree.root().parent().unwrap().join("victim");
    let journal = tree.journal();
    assert_eq!(only(&journal).id, FIRST);
    let resolved = journal.quarantine().restore(FIRST).unwrap();
    assert_eq!(resolved.left.len(), 1, "{resolved:?}");
    assert!(!victim.exists());
    assert!(
        PATHS
            .iter()
            .filter(|path| **path != "a")
            .all(|path| tree.path(path).symlink_metadata().is_ok() != (*path == "new"))
    );
}

#[test]
fn an_attempt_for_want_of_room_is_given_back() {
    for (error, counts) in [("ENOSPC", 0), ("EDQUOT", 0), ("EROFS", 0), ("EBUSY", 0), ("EIO", 1), ("EACCES", 1)] {
        let transaction = Tree::new();
        committed(&transaction);
        forget_applied(&transaction);
        fs::remove_dir_all(transaction.path("made")).unwrap();
        let guard = guarded_tree();
        let [before, _] = killed(&guard, false);
        for (tree, table) in [(&transaction, "journal_txn"), (&guard, "journal_guard")] {
            let test = child("quarantine::hostile::recovering_child", tree.root());
            let traced = Command::new("strace")
                .args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=renameat2,mkdirat"])
                .args([
                    "-e",
                    &format!("inject=renameat2:error={error}"),
                    "-e",
                    &format!("inject=mkdirat:error={error}"),
                ])
                .arg(test.get_program())
                .args(test.get_args())
                .envs(test.get_envs().filter_map(|(key, value)| Some((key, value?))))
                .output();
            let Ok(output) = traced else { return skip("failing renames need strace") };
            assert!(output.status.success(), "{error}: {}", String::from_utf8_lossy(&output.stderr));
            assert_eq!(count(tree, &format!("SELECT attempts FROM {table}")), counts, "{table}, {error}");
            let waits = count(tree, &format!("SELECT count(*) FROM {table} WHERE state = 'quarantined'"));
            assert_eq!(waits, 0, "{table}, {error}");
        }
        drop((transaction.journal(), guard.journal()));
        assert_after(&transaction);
        assert_eq!(manifest(&guard), before, "{error}");
    }
}

/// Recovers, where that may fail, and is gone.
#[test]
fn recovering_child() {
    let Some(root) = child_root() else { return };
    std::mem::forget(journal_kb::Journal::open(root));
    std::process::exit(0);
}

#[test]
fn content_that_is_not_what_was_committed_is_not_put_in_place() {
    let tree = Tree::new();
    committed(&tree);
    forget_applied(&tree);
    fs::remove_dir_all(tree.path("made")).unwrap();
    sql(&tree, "UPDATE journal_redo SET content = CAST('bad' AS BLOB) WHERE path = CAST('made/new' AS BLOB)");
    let journal = tree.journal();
    assert!(!tree.path("made/new").exists(), "bytes of another version");
    assert_eq!(states(&tree), ["pending"]);
    for _ in 0..6 {
        journal.recover().unwrap();
    }
    assert_eq!(states(&tree), ["quarantined"]);
    let resolved = journal.quarantine().restore(txn(1)).unwrap();
    let left: Vec<_> = resolved.left.iter().map(|(path, _)| path.to_str().unwrap()).collect();
    assert_eq!((resolved.standing, left), (Standing::Quarantined, vec!["made/new"]));
    journal.quarantine().keep_live(txn(1)).unwrap();
    assert_eq!(kept(&tree, "1").get("new/made/new").map(String::as_str), Some("bad"));
}

#[test]
fn large_content_that_was_cut_short_is_not_put_in_place() {
    let tree = Tree::new();
    committed(&tree);
    forget_applied(&tree);
    // As if its exchange had not happened, and then somebody truncated it.
    let name = super::transactions::large_name(&tree);
    let staged = tree.path(".journal/stage").join(std::str::from_utf8(&name).unwrap());
    fs::rename(tree.path("large"), &staged).unwrap();
    fs::File::options().write(true).open(&staged).unwrap().set_len(10).unwrap();
    let journal = tree.journal();
    assert!(!tree.path("large").exists(), "ten bytes of it");
    assert_eq!(states(&tree), ["pending"]);
    let shown = journal.quarantine().list().unwrap();
    assert!(shown.is_empty());
    sql(&tree, "UPDATE journal_txn SET attempts = 5");
    journal.recover().unwrap();
    let item = journal.quarantine().show(txn(1)).unwrap().unwrap().items;
    let item = item.iter().find(|item| item.path.to_str() == Some("large")).unwrap();
    assert!(!item.available && item.why_not.is_some(), "{item:?}");
}

#[test]
fn a_large_file_whose_record_cannot_be_read_is_kept() {
    let tree = Tree::new();
    committed(&tree);
    forget_applied(&tree);
    let name = super::transactions::large_name(&tree);
    let staged = tree.path(".journal/stage").join(std::str::from_utf8(&name).unwrap());
    fs::rename(tree.path("large"), &staged).unwrap();
    sql(&tree, "UPDATE journal_redo SET record = x'00' WHERE path = CAST('large' AS BLOB)");
    // Nothing that can be read refers to it now; sweeps come and go.
    for _ in 0..2 {
        tree.journal().recover().unwrap();
    }
    assert_eq!(states(&tree), ["quarantined"]);
    assert_eq!(fs::read(&staged).unwrap().len(), 100 << 10);
    let journal = tree.journal();
    journal.quarantine().keep_live(txn(1)).unwrap();
    let large = "l".repeat(100 << 10);
    assert!(kept(&tree, "1").values().any(|content| *content == large));
}

#[test]
fn a_clock_that_was_set_back_changes_nothing() {
    let tree = guarded_tree();
    given_up(&tree);
    let [before, _] = killed(&tree, false);
    for row in [
        "UPDATE journal_txn SET began_ms = 9223372036854775807, committed_ms = 9223372036854775807",
        "UPDATE journal_guard SET began_ms = 9223372036854775807",
        "UPDATE journal_session SET opened_ms = 9223372036854775807",
        "UPDATE journal_lock SET acquired_ms = 9223372036854775807, heartbeat_ms = 9223372036854775807",
        "UPDATE journal_event SET at_ms = 9223372036854775807",
        "UPDATE journal_meta SET created_ms = 9223372036854775807",
    ] {
        db(&tree).execute(row, ()).unwrap();
    }
    let journal = tree.journal();
    assert_eq!(manifest(&tree), before);
    assert_eq!(journal.quarantine().retry(txn(1)).unwrap().standing, Standing::Ended);
    assert_after(&tree);
    assert!(journal.transact(|txn| txn.write("replaced", b"later")).is_ok());
    let status = journal_kb::inspect::Inspector::open(tree.root()).unwrap().status().unwrap();
    assert_eq!(
        status.transactions.settled,
        status.transactions.total - status.transactions.rolled_back - status.unsettled.transactions
    );
}
