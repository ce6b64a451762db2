//! Recovery by the table of DESIGN §6: each crash state is made by hand from a commit whose process ended at once.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use journal_kb::{Error, Journal, rusqlite};

use crate::support::{Tree, child, child_root, manifest};

/// A tree with one commit that was applied and not settled, and whose process is gone.
pub(crate) fn committed(tree: &Tree) {
    tree.put("replaced", "before");
    tree.put("removed", "to go");
    run(tree, "recovery::commit_child");
}

pub(crate) fn run(tree: &Tree, test: &str) {
    let output = child(test, tree.root()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

pub(crate) fn unsettled(root: &std::path::Path) -> Journal {
    Journal::options().settle_after(Duration::from_secs(3600)).open(root).unwrap()
}

/// The process that commits and is gone.
#[test]
fn commit_child() {
    let Some(root) = child_root() else { return };
    let journal = unsettled(&root);
    let mut txn = journal.begin("crashed").unwrap();
    txn.write("replaced", b"after").unwrap();
    txn.write("made/new", b"new").unwrap();
    txn.write_from("large", &mut &vec![b'l'; 100 << 10][..]).unwrap();
    txn.symlink("new", "made/link").unwrap();
    txn.remove("removed").unwrap();
    txn.commit().unwrap();
    std::process::exit(0);
}

/// A second commit over the same path, by another process that is gone.
#[test]
fn second_child() {
    let Some(root) = child_root() else { return };
    let journal = unsettled(&root);
    journal.transact(|txn| txn.write("replaced", b"after that")).unwrap();
    std::process::exit(0);
}

pub(crate) fn db(tree: &Tree) -> rusqlite::Connection {
    rusqlite::Connection::open(tree.path(".journal/journal.db")).unwrap()
}

/// As if "applied" had never been noted.
pub(crate) fn forget_applied(tree: &Tree) {
    let changed = db(tree).execute("UPDATE journal_txn SET state = 'committed', applied_mark = NULL", ()).unwrap();
    assert!(changed > 0);
}

/// The stage file of a path's effect in a transaction, where the old version is.
pub(crate) fn staged(tree: &Tree, txn: i64, path: &str) -> PathBuf {
    let sql = "SELECT preimage FROM journal_change WHERE txn = ?1 AND path = ?2";
    let name: String = db(tree).query_row(sql, (txn, path.as_bytes()), |row| row.get(0)).unwrap();
    tree.path(".journal/stage").join(name)
}

/// As if the exchange had not reached the disk.
pub(crate) fn undo_exchange(tree: &Tree, txn: i64, path: &str) {
    let (staged, live, between) = (staged(tree, txn, path), tree.path(path), tree.path(".journal/between"));
    for (from, to) in [(&live, &between), (&staged, &live), (&between, &staged)] {
        fs::rename(from, to).unwrap();
    }
}

pub(crate) fn read(tree: &Tree, path: &str) -> String {
    String::from_utf8(fs::read(tree.path(path)).unwrap()).unwrap()
}

pub(crate) fn states(tree: &Tree) -> Vec<String> {
    let db = db(tree);
    let mut all = db.prepare("SELECT state FROM journal_txn ORDER BY id").unwrap();
    all.query_map((), |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}

pub(crate) fn quarantined(tree: &Tree, txn: i64) -> Vec<String> {
    let Ok(dir) = fs::read_dir(tree.path(&format!(".journal/quarantine/{txn}"))) else { return Vec::new() };
    dir.map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap()).collect()
}

pub(crate) fn assert_after(tree: &Tree) {
    assert_eq!(read(tree, "replaced"), "after");
    assert_eq!(read(tree, "made/new"), "new");
    assert_eq!(read(tree, "large"), "l".repeat(100 << 10));
    assert_eq!(fs::read_link(tree.path("made/link")).unwrap().to_str(), Some("new"));
    assert!(!tree.path("removed").exists());
}

#[test]
fn a_commit_that_is_in_the_tree_is_only_noted() {
    let tree = Tree::new();
    committed(&tree);
    forget_applied(&tree);
    let (before, inode) = (manifest(&tree), fs::metadata(tree.path("replaced")).unwrap().ino());
    let recovered = tree.journal().recover().unwrap();
    assert_eq!(recovered.moved_aside + recovered.pending + recovered.quarantined, 0);
    assert_eq!(manifest(&tree), before);
    assert_eq!(fs::metadata(tree.path("replaced")).unwrap().ino(), inode);
    assert_eq!(states(&tree), ["settled"]);
}

#[test]
fn a_commit_that_is_not_in_the_tree_is_carried_there() {
    let tree = Tree::new();
    committed(&tree);
    forget_applied(&tree);
    undo_exchange(&tree, 1, "replaced");
    fs::rename(staged(&tree, 1, "removed"), tree.path("removed")).unwrap();
    fs::remove_dir_all(tree.path("made")).unwrap();
    assert_eq!(read(&tree, "replaced"), "before");
    let journal = tree.journal();
    assert_after(&tree);
    journal.recover().unwrap();
    assert_after(&tree);
    assert_eq!(states(&tree), ["settled"]);
    assert_eq!(quarantined(&tree, 1), [""; 0]);
    let history: Vec<String> = fs::read_dir(tree.path(".journal/history"))
        .unwrap()
        .map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap())
        .collect();
    assert!(history.contains(&"before".to_owned()) && history.contains(&"to go".to_owned()), "{history:?}");
    assert_eq!(fs::read_dir(tree.path(".journal/stage")).unwrap().count(), 0);
}

#[test]
fn what_a_power_cut_emptied_is_written_again() {
    let tree = Tree::new();
    committed(&tree);
    // Another boot: the note does not count. Names survived, bytes did not.
    db(&tree).execute("UPDATE journal_txn SET applied_mark = x'00'", ()).unwrap();
    fs::File::create(tree.path("replaced")).unwrap();
    fs::File::create(tree.path("made/new")).unwrap();
    fs::remove_file(tree.path("made/link")).unwrap();
    tree.journal().recover().unwrap();
    assert_after(&tree);
    assert_eq!(quarantined(&tree, 1), [""; 0]);
}

#[test]
fn somebody_elses_version_is_set_aside_when_the_commit_was_not_noted() {
    let tree = Tree::new();
    committed(&tree);
    forget_applied(&tree);
    tree.put("replaced", "by hand");
    tree.put("removed", "by hand too");
    tree.journal().recover().unwrap();
    assert_after(&tree);
    let mut kept = quarantined(&tree, 1);
    kept.sort();
    assert_eq!(kept, ["by hand", "by hand too"]);
    let events: i64 = db(&tree)
        .query_row("SELECT count(*) FROM journal_event WHERE level = 'warn' AND txn = 1", (), |row| row.get(0))
        .unwrap();
    assert_eq!(events, 2);
}

#[test]
fn a_later_edit_of_what_was_applied_is_kept() {
    let tree = Tree::new();
    committed(&tree);
    tree.put("replaced", "by hand");
    tree.put("removed", "back by hand");
    fs::remove_file(tree.path("made/new")).unwrap();
    tree.journal().recover().unwrap();
    assert_eq!(read(&tree, "replaced"), "by hand");
    assert_eq!(read(&tree, "removed"), "back by hand");
    assert!(!tree.path("made/new").exists());
    assert_eq!(states(&tree), ["settled"]);
}

#[test]
fn after_a_settle_cut_short_bytes_are_written_into_a_new_inode() {
    let tree = Tree::new();
    committed(&tree);
    db(&tree).execute("UPDATE journal_txn SET state = 'settling'", ()).unwrap();
    let inode = fs::metadata(tree.path("replaced")).unwrap().ino();
    let before = manifest(&tree);
    fs::write(tree.path("made/new"), "by hand").unwrap();
    tree.journal().settle().unwrap();
    assert_ne!(fs::metadata(tree.path("replaced")).unwrap().ino(), inode);
    assert_eq!(read(&tree, "made/new"), "by hand", "what no longer equals the new content is somebody's");
    assert_eq!(manifest(&tree)[&PathBuf::from("replaced")], before[&PathBuf::from("replaced")]);
    assert_eq!(states(&tree), ["settled"]);
}

#[test]
fn the_newest_commit_on_a_path_decides() {
    let tree = Tree::new();
    committed(&tree);
    run(&tree, "recovery::second_child");
    forget_applied(&tree);
    // Neither exchange reached the disk: what was there before both is back.
    undo_exchange(&tree, 2, "replaced");
    undo_exchange(&tree, 1, "replaced");
    assert_eq!(read(&tree, "replaced"), "before");
    tree.journal().recover().unwrap();
    assert_eq!(read(&tree, "replaced"), "after that");
    assert_eq!(quarantined(&tree, 1).len() + quarantined(&tree, 2).len(), 0);
    assert_eq!(states(&tree), ["settled", "settled"]);
}

#[test]
fn a_row_that_cannot_be_read_stops_nothing_else() {
    let tree = Tree::new();
    committed(&tree);
    forget_applied(&tree);
    undo_exchange(&tree, 1, "replaced");
    fs::remove_dir_all(tree.path("made")).unwrap();
    let spoil = "UPDATE journal_redo SET record = x'0102' WHERE path = ?1";
    assert_eq!(db(&tree).execute(spoil, [&b"replaced"[..]]).unwrap(), 1);
    let outside = "UPDATE journal_redo SET path = ?2 WHERE path = ?1";
    assert_eq!(db(&tree).execute(outside, (&b"made/new"[..], &b"../outside"[..])).unwrap(), 1);
    let journal = tree.journal();
    let recovered = journal.recover().unwrap();
    assert_eq!((recovered.applied, recovered.quarantined), (0, 1));
    assert_eq!(read(&tree, "replaced"), "before");
    assert_eq!(fs::read_link(tree.path("made/link")).unwrap().to_str(), Some("new"));
    assert!(!tree.root().parent().unwrap().join("outside").exists());
    // Nothing of what cannot be read is lost: the transaction waits for a person, its rows with it.
    assert_eq!(states(&tree), ["quarantined"]);
    let count = |sql: &str| db(&tree).query_row(sql, (), |row| row.get::<_, i64>(0)).unwrap();
    assert_eq!(count("SELECT count(*) FROM journal_event WHERE kind = 'unreadable'"), 2);
    assert_eq!(count("SELECT count(*) FROM journal_redo"), 6);
    journal.transact(|txn| txn.write("elsewhere", b"x")).unwrap();
}

#[test]
fn a_transaction_whose_log_cannot_be_read_is_not_settled_away() {
    let tree = Tree::new();
    committed(&tree);
    let spoil = "UPDATE journal_redo SET record = x'0102' WHERE path = ?1";
    assert_eq!(db(&tree).execute(spoil, [&b"replaced"[..]]).unwrap(), 1);
    tree.journal().settle().unwrap();
    assert_eq!(states(&tree), ["quarantined"]);
    assert_after(&tree);
}

#[test]
fn a_directory_that_was_removed_by_hand_is_made_again_for_what_is_committed() {
    let tree = Tree::new();
    tree.put("deep/er/there", "x");
    committed(&tree);
    let journal = unsettled(tree.root());
    journal.transact(|txn| txn.write("deep/er/page", b"page")).unwrap();
    std::mem::forget(journal);
    forget_applied(&tree);
    fs::remove_dir_all(tree.path("deep")).unwrap();
    let recovered = tree.journal().recover().unwrap();
    assert_eq!((recovered.pending, recovered.quarantined), (0, 0));
    assert_eq!(read(&tree, "deep/er/page"), "page");
}

#[test]
fn used_up_attempts_end_in_quarantine_and_block_only_their_paths() {
    let tree = Tree::new();
    committed(&tree);
    forget_applied(&tree);
    undo_exchange(&tree, 1, "replaced");
    db(&tree).execute("UPDATE journal_txn SET attempts = 5", ()).unwrap();
    let journal = tree.journal();
    assert_eq!(states(&tree), ["quarantined"]);
    assert_eq!(read(&tree, "replaced"), "before");
    let refused = journal.transact(|txn| txn.write("replaced", b"x"));
    match refused {
        Err(error @ Error::PathQuarantined { .. }) => {
            assert!(error.is_quarantined() && error.to_string().contains("journalctl-kb quarantine show 1"), "{error}");
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(journal.transact(|txn| txn.rename("made", "other")), Err(Error::PathQuarantined { .. })));
    journal.transact(|txn| txn.write("elsewhere", b"x")).unwrap();
    assert!(fs::read_dir(tree.path(".journal/stage")).unwrap().count() > 0, "everything is kept");
}

#[test]
fn a_moved_root_recovers_where_it_is() {
    let tree = Tree::new();
    committed(&tree);
    forget_applied(&tree);
    undo_exchange(&tree, 1, "replaced");
    let elsewhere = Tree::new();
    fs::rename(tree.root(), elsewhere.path("moved")).unwrap();
    let journal = Journal::open(elsewhere.path("moved")).unwrap();
    assert_eq!(fs::read_to_string(elsewhere.path("moved/replaced")).unwrap(), "after");
    drop(journal);
    fs::create_dir(tree.root()).unwrap();
}

#[test]
fn strays_of_dead_sessions_go_and_sources_on_their_way_in_stay() {
    let tree = Tree::new();
    tree.journal().close().unwrap();
    let stage = tree.path(".journal/stage");
    let session = "0123456789abcdef0123456789abcdef";
    fs::write(stage.join(format!("{session}-0")), "stray").unwrap();
    fs::create_dir_all(stage.join(format!("{session}-1/deep/er"))).unwrap();
    fs::create_dir(stage.join(format!("{session}-2.keep"))).unwrap();
    fs::write(stage.join(format!("{session}-2.keep/page")), "the caller's").unwrap();
    fs::write(stage.join("not-ours"), "left alone").unwrap();
    let journal = tree.journal();
    let mut live = journal.begin("alive").unwrap();
    let staging = live.staging().unwrap();
    tree.journal();
    assert!(staging.exists(), "what a living session stages stays");
    drop(live);
    let names: Vec<_> = fs::read_dir(&stage).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["not-ours"]);
    let kept = tree.path(&format!(".journal/quarantine/0/{session}-2.keep/page"));
    assert_eq!(fs::read_to_string(kept).unwrap(), "the caller's");
}
