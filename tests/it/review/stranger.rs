//! What a stranger's hands, and copies, may do to what a crash left.

use std::fs;
use std::process::Command;

use journal_kb::QuarantineId;

use crate::recovery::{committed, db, read, undo_exchange, unsettled};
use crate::support::{Tree, child, child_root};

/// The mark counts, and the stage, which tells what was carried out, was emptied: that shows nothing.
#[test]
fn what_is_in_the_log_is_carried_out_though_somebody_emptied_the_stage() {
    let tree = Tree::new();
    committed(&tree);
    let changed = db(&tree).execute("UPDATE journal_txn SET state = 'committed'", ()).unwrap();
    assert_eq!(changed, 1);
    undo_exchange(&tree, 1, "replaced");
    fs::remove_dir_all(tree.path("made")).unwrap();
    for entry in fs::read_dir(tree.path(".journal/stage")).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    let recovered = tree.journal().recover().unwrap();
    assert_eq!((recovered.applied, recovered.pending, recovered.quarantined), (1, 0, 0));
    assert_eq!((read(&tree, "replaced"), read(&tree, "made/new")), ("after".to_owned(), "new".to_owned()));
    assert_eq!(fs::read_link(tree.path("made/link")).unwrap().to_str(), Some("new"));
}

/// Moves a file, and is gone before it is settled.
#[test]
fn moving_child() {
    let Some(root) = child_root() else { return };
    let journal = unsettled(&root);
    journal.transact(|txn| txn.write("settled", b"by an earlier one")).unwrap();
    journal.settle().unwrap();
    let mut txn = journal.begin("moves").unwrap();
    txn.rename("a", "b").unwrap();
    // What moves is settled at once: it is killed when that begins.
    txn.commit().unwrap();
}

/// Rotated logs: the file was moved, and its program has made a new one of the old name.
#[test]
fn in_a_copy_a_new_file_at_the_source_of_a_move_is_not_taken_for_the_moved_one() {
    let tree = Tree::new();
    tree.put("a", "moved");
    let test = child("review::stranger::moving_child", tree.root());
    let traced = Command::new("strace")
        .args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=syncfs", "-e", "inject=syncfs:signal=KILL:when=1"])
        .arg(test.get_program())
        .args(test.get_args())
        .envs(test.get_envs().filter_map(|(key, value)| Some((key, value?))))
        .output();
    let Ok(output) = traced else { return crate::skip::skip("a kill at a sync needs strace") };
    assert!(!output.status.success());
    assert_eq!(read(&tree, "b"), "moved");
    tree.put("a", "new");
    let elsewhere = Tree::new();
    let copy = elsewhere.path("copy");
    assert!(Command::new("cp").arg("-a").arg(tree.root()).arg(&copy).status().unwrap().success());
    let journal = journal_kb::Journal::open(&copy).unwrap();
    journal.recover().unwrap();
    let text = |path: &str| fs::read_to_string(copy.join(path)).unwrap_or_default();
    assert_eq!((text("a"), text("b")), ("new".to_owned(), "moved".to_owned()));
}

/// Something is in the way of what is kept: it waits, and nobody else does.
#[test]
fn what_cannot_be_kept_yet_keeps_nobody_from_the_journal() {
    let tree = Tree::new();
    committed(&tree);
    db(&tree).execute("UPDATE journal_txn SET state = 'quarantined', attempts = 5", ()).unwrap();
    fs::remove_dir_all(tree.path(".journal/quarantine/1")).ok();
    fs::write(tree.path(".journal/quarantine/1"), "in the way").unwrap();
    let id = QuarantineId::Transaction(1.into());
    tree.journal().quarantine().keep_live(id).unwrap_err();
    for _ in 0..2 {
        let journal = tree.journal();
        journal.transact(|txn| txn.write("beside", "work goes on")).unwrap();
        journal.close().unwrap();
    }
    let told: i64 =
        db(&tree).query_row("SELECT count(*) FROM journal_event WHERE kind = 'keeping'", (), |row| row.get(0)).unwrap();
    assert!(told > 0);
    fs::remove_file(tree.path(".journal/quarantine/1")).unwrap();
    tree.journal().recover().unwrap();
    assert_eq!(db(&tree).query_row("SELECT count(*) FROM journal_redo", (), |row| row.get::<_, i64>(0)).unwrap(), 0);
    assert!(tree.path(".journal/quarantine/1").is_dir());
}
