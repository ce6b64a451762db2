//! Committed transactions.

use std::fs;

use journal_kb::{Error, Standing};

use super::{count, given_up, kept, only, pairs, sql, txn};
use crate::recovery::{assert_after, committed, db, forget_applied, read, run, states};
use crate::support::{Tree, manifest};

#[test]
fn a_retry_carries_it_into_the_tree_as_if_nothing_had_been() {
    let tree = Tree::new();
    given_up(&tree);
    let journal = tree.journal();
    let entry = only(&journal);
    assert_eq!((entry.id, entry.kind, entry.attempts), (txn(1), "transaction", 5));
    assert!(entry.reason.unwrap().contains("given up after 5") && entry.since_ms.is_some());
    assert_eq!(read(&tree, "replaced"), "before");
    let resolved = journal.quarantine().retry(txn(1)).unwrap();
    assert_eq!((resolved.standing, resolved.kept.len()), (Standing::Ended, 0));
    assert_after(&tree);
    assert_eq!(states(&tree), ["settled"]);
    assert!(journal.quarantine().list().unwrap().is_empty());
    assert_eq!(count(&tree, "SELECT attempts FROM journal_txn"), 0);
    assert!(matches!(journal.quarantine().retry(txn(1)), Err(Error::NotInQuarantine { kept: false, .. })));
    journal.transact(|txn| txn.write("replaced", b"later")).unwrap();
}

#[test]
fn keep_live_touches_nothing_in_the_tree_and_keeps_the_rest() {
    let tree = Tree::new();
    given_up(&tree);
    let journal = tree.journal();
    let before = manifest(&tree);
    let resolved = journal.quarantine().keep_live(txn(1)).unwrap();
    assert_eq!(resolved.standing, Standing::Ended);
    assert_eq!(resolved.kept, [tree.path(".journal/quarantine/1")]);
    assert_eq!(manifest(&tree), before);
    // `large` is in the tree, so it is not kept a second time.
    let new = [("new/replaced", "after"), ("new/made/new", "new"), ("new/made/link", "-> new")];
    assert_eq!(kept(&tree, "1"), pairs(new));
    assert_eq!(states(&tree), ["settled"]);
    assert_eq!(count(&tree, "SELECT count(*) FROM journal_redo"), 0);
    journal.transact(|txn| txn.write("replaced", b"later")).unwrap();
    // Until it is discarded, and no sooner.
    journal.close().unwrap();
    let journal = tree.journal();
    journal.recover().unwrap();
    let entry = only(&journal);
    assert_eq!((entry.id, entry.kind, entry.kept), (txn(1), "files", 3));
    assert!(matches!(journal.quarantine().restore(txn(1)), Err(Error::NotInQuarantine { kept: true, .. })));
    assert_eq!(kept(&tree, "1"), pairs(new));
    journal.quarantine().discard(txn(1)).unwrap();
    assert!(journal.quarantine().list().unwrap().is_empty());
    assert_eq!(read(&tree, "replaced"), "later");
    assert_eq!(count(&tree, "SELECT count(*) FROM journal_event WHERE kind = 'discarded' AND txn = 1"), 1);
}

#[test]
fn keep_live_keeps_old_versions_and_large_content_too() {
    let tree = Tree::new();
    committed(&tree);
    forget_applied(&tree);
    // Large content that never left the stage, and old versions that did leave the tree.
    let staged: Vec<_> =
        fs::read_dir(tree.path(".journal/stage")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(staged.len(), 2, "the old versions: {staged:?}");
    let name = String::from_utf8(large_name(&tree)).unwrap();
    fs::rename(tree.path("large"), tree.path(".journal/stage").join(name)).unwrap();
    sql(&tree, "UPDATE journal_txn SET attempts = 5");
    let journal = tree.journal();
    journal.quarantine().keep_live(txn(1)).unwrap();
    assert_eq!(
        kept(&tree, "1"),
        pairs([("new/large", &*"l".repeat(100 << 10)), ("old/replaced", "before"), ("old/removed", "to go")])
    );
    assert!(!tree.path("large").exists());
    assert_eq!(fs::read_dir(tree.path(".journal/stage")).unwrap().count(), 0);
}

/// The name that large content had in the stage: the one in its record.
pub(super) fn large_name(tree: &Tree) -> Vec<u8> {
    let sql = "SELECT record FROM journal_redo WHERE path = CAST('large' AS BLOB)";
    let record: Vec<u8> = db(tree).query_row(sql, (), |row| row.get(0)).unwrap();
    let dash = record
        .windows(34)
        .position(|at| at[..32].iter().all(u8::is_ascii_hexdigit) && at[32] == b'-' && at[33].is_ascii_digit());
    let name = &record[dash.unwrap()..];
    name[..33 + name[33..].iter().take_while(|byte| byte.is_ascii_digit()).count()].to_vec()
}

#[test]
fn a_restore_puts_what_was_committed_over_what_somebody_made_of_it_and_keeps_that() {
    let tree = Tree::new();
    given_up(&tree);
    tree.put("replaced", "by hand");
    tree.put("made/new", "by hand too");
    let journal = tree.journal();
    let resolved = journal.quarantine().restore(txn(1)).unwrap();
    assert_eq!((resolved.standing, &resolved.left), (Standing::Ended, &vec![]));
    assert_eq!(resolved.restored.len(), 4, "{resolved:?}");
    assert_after(&tree);
    assert_eq!(states(&tree), ["settled"]);
    let mut displaced: Vec<_> = kept(&tree, "1").into_values().collect();
    displaced.sort();
    assert_eq!(displaced, ["by hand", "by hand too"]);
    assert_eq!(only(&journal).kind, "files");
}

#[test]
fn a_restore_goes_on_past_what_cannot_be_had_and_stays_in_quarantine() {
    let tree = Tree::new();
    given_up(&tree);
    sql(&tree, "UPDATE journal_redo SET record = x'0102' WHERE path = CAST('replaced' AS BLOB)");
    let journal = tree.journal();
    // A retry meets the same row, and carries out the others.
    let retried = journal.quarantine().retry(txn(1)).unwrap();
    assert_eq!(retried.standing, Standing::Quarantined);
    fs::remove_dir_all(tree.path("made")).unwrap();
    let resolved = journal.quarantine().restore(txn(1)).unwrap();
    assert_eq!(resolved.standing, Standing::Quarantined);
    let [(left, why)] = &resolved.left[..] else { panic!("{resolved:?}") };
    assert_eq!((left.to_str(), read(&tree, "replaced").as_str()), (Some("replaced"), "before"));
    assert!(why.contains("corrupt"), "{why}");
    assert_eq!((read(&tree, "made/new"), fs::read_link(tree.path("made/link")).unwrap()), ("new".into(), "new".into()));
    assert!(matches!(journal.transact(|txn| txn.write("replaced", b"x")), Err(Error::PathQuarantined { .. })));
    // What it says is lost is the record alone: the bytes are kept.
    let journal = {
        drop(journal);
        tree.journal()
    };
    journal.quarantine().keep_live(txn(1)).unwrap();
    let kept = kept(&tree, "1");
    assert_eq!(kept.get("new/replaced").map(String::as_str), Some("after"), "{kept:?}");
    assert_eq!(kept.get("unreadable/replaced").map(String::len), Some(2), "{kept:?}");
    journal.transact(|txn| txn.write("replaced", b"later")).unwrap();
}

#[test]
fn what_a_later_transaction_changed_stays_as_that_left_it() {
    for verb in ["retry", "restore"] {
        let tree = Tree::new();
        committed(&tree);
        run(&tree, "recovery::second_child");
        forget_applied(&tree);
        fs::remove_dir_all(tree.path("made")).unwrap();
        sql(&tree, "UPDATE journal_txn SET attempts = 5 WHERE id = 1");
        let journal = tree.journal();
        journal.recover().unwrap();
        assert_eq!(states(&tree), ["quarantined", "settled"]);
        let resolved = match verb {
            "retry" => journal.quarantine().retry(txn(1)).unwrap(),
            _ => journal.quarantine().restore(txn(1)).unwrap(),
        };
        assert_eq!(resolved.standing, Standing::Ended, "{verb}");
        assert_eq!((read(&tree, "replaced"), read(&tree, "made/new")), ("after that".into(), "new".into()), "{verb}");
        // The version in between is not lost.
        let kept = kept(&tree, "1");
        assert_eq!(kept.get("new/replaced").map(String::as_str), Some("after"), "{verb}: {kept:?}");
    }
}

#[test]
fn one_that_moves_directories_is_put_in_place_too() {
    for verb in ["retry", "restore", "keep-live"] {
        let tree = Tree::new();
        tree.put("dir/page", "page");
        tree.put("dead/page", "dead");
        tree.journal().close().unwrap();
        run(&tree, "quarantine::transactions::moving_child");
        // As if its apply had come to nothing.
        fs::rename(tree.path("moved"), tree.path("dir")).unwrap();
        fs::remove_file(tree.path("beside")).unwrap();
        let state = "UPDATE journal_txn SET state = 'quarantined', applied_mark = NULL, settled_ms = NULL";
        let has_redo = count(&tree, "SELECT count(*) FROM journal_redo") > 0;
        assert!(has_redo, "it is not settled");
        sql(&tree, state);
        let journal = tree.journal();
        let resolved = match verb {
            "retry" => journal.quarantine().retry(txn(1)),
            "restore" => journal.quarantine().restore(txn(1)),
            _ => journal.quarantine().keep_live(txn(1)),
        };
        assert_eq!(resolved.unwrap().standing, Standing::Ended, "{verb}");
        let put = verb != "keep-live";
        assert_eq!((tree.path("moved/page").exists(), tree.path("dir").exists()), (put, !put), "{verb}");
        assert_eq!(tree.path("beside").exists(), put, "{verb}");
        assert!(!tree.path("dead").exists(), "{verb}");
        if !put {
            let kept = kept(&tree, "1");
            assert_eq!(kept.get("old/dead/page").map(String::as_str), Some("dead"), "{kept:?}");
            assert_eq!(kept.get("new/beside").map(String::as_str), Some("beside"), "{kept:?}");
        }
    }
}

/// Commits a transaction that moves directories, and is gone before it is settled.
#[test]
fn moving_child() {
    let Some(root) = crate::support::child_root() else { return };
    let journal = crate::recovery::unsettled(&root);
    // Settling comes right behind the commit: the note that it has begun is as far as it gets.
    let db = super::open_db(&root);
    db.execute_batch(
        "CREATE TRIGGER unsettled BEFORE UPDATE OF state ON journal_txn WHEN new.state = 'settled' \
         BEGIN SELECT RAISE(ABORT, 'not yet'); END",
    )
    .unwrap();
    let mut txn = journal.begin("crashed").unwrap();
    txn.rename("dir", "moved").unwrap();
    txn.remove_dir_all("dead").unwrap();
    txn.write("beside", "beside").unwrap();
    txn.commit().unwrap();
    db.execute_batch("DROP TRIGGER unsettled").unwrap();
    std::process::exit(0);
}

#[test]
fn a_version_of_somebodys_can_be_set_aside_more_than_once() {
    let tree = Tree::new();
    committed(&tree);
    for content in ["by hand", "by hand again"] {
        forget_applied(&tree);
        sql(&tree, "UPDATE journal_txn SET state = 'committed'");
        tree.put("replaced", content);
        // Killed before it was noted: the next recovery finds the same rows.
        run(&tree, "quarantine::transactions::recovering_child");
    }
    let kept: Vec<_> = kept(&tree, "1").into_values().collect();
    assert_eq!(kept, ["by hand", "by hand again"]);
    let recovered = tree.journal().recover().unwrap();
    assert_eq!((recovered.pending, recovered.quarantined), (0, 0));
    assert_eq!(read(&tree, "replaced"), "after");
}

/// Recovers, settles nothing, and is gone.
#[test]
fn recovering_child() {
    let Some(root) = crate::support::child_root() else { return };
    let journal = crate::recovery::unsettled(&root);
    std::mem::forget(journal);
    std::process::exit(0);
}
