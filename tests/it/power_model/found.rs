//! What the model found wrong, in the engine itself: each state is one that a power cut may leave, made by hand.

use std::fs;

use crate::recovery::{
    committed, db, forget_applied, quarantined, read, run, staged, states, undo_exchange, unsettled,
};
use crate::review::crash::injected;
use crate::support::{Tree, child_root};

/// Recovers, and has the next process sweep what the first one had still to keep.
fn recovered(tree: &Tree) {
    tree.journal().recover().unwrap();
    tree.journal().close().unwrap();
}

fn names(tree: &Tree, place: &str) -> usize {
    fs::read_dir(tree.path(place)).unwrap().count()
}

/// Everything that history holds, in no order.
fn history(tree: &Tree) -> Vec<String> {
    let files = fs::read_dir(tree.path(".journal/history")).unwrap();
    files.map(|file| fs::read_to_string(file.unwrap().path()).unwrap()).collect()
}

#[test]
fn both_names_of_a_rename_into_history_become_one() {
    let tree = Tree::new();
    committed(&tree);
    let in_stage = staged(&tree, 1, "replaced");
    recovered(&tree);
    let in_history = tree.path(".journal/history").join(in_stage.file_name().unwrap());
    fs::hard_link(&in_history, &in_stage).unwrap();
    tree.journal().close().unwrap();
    assert_eq!(names(&tree, ".journal/stage"), 0);
    assert_eq!(fs::read_to_string(in_history).unwrap(), "before");
}

#[test]
fn both_names_of_a_rename_into_quarantine_become_one() {
    let tree = Tree::new();
    committed(&tree);
    forget_applied(&tree);
    // Somebody's version came out of the tree, and is on its way.
    let name = format!("{}.again", staged(&tree, 1, "replaced").file_name().unwrap().to_str().unwrap());
    let in_stage = tree.path(".journal/stage").join(&name);
    fs::write(&in_stage, "theirs").unwrap();
    fs::create_dir_all(tree.path(".journal/quarantine/1")).unwrap();
    fs::hard_link(&in_stage, tree.path(".journal/quarantine/1").join(&name)).unwrap();
    recovered(&tree);
    assert_eq!(states(&tree), ["settled"]);
    assert_eq!(quarantined(&tree, 1), ["theirs"]);
    assert_eq!(names(&tree, ".journal/stage"), 0);
}

/// Moves a file, and is killed before that is settled.
fn moved(tree: &Tree) -> bool {
    tree.put("from", "moved");
    tree.journal().close().unwrap();
    let killed = injected("power_model::found::moving_child", tree.root(), &["-e", "inject=syncfs:signal=KILL:when=1"]);
    let Some(output) = killed else { return false };
    assert!(!output.status.success(), "it was to be killed");
    assert_eq!((tree.path("from").exists(), read(tree, "to").as_str()), (false, "moved"));
    forget_applied(tree);
    true
}

#[test]
fn moving_child() {
    let Some(root) = child_root() else { return };
    unsettled(&root).transact(|txn| txn.rename("from", "to")).unwrap();
    std::process::exit(0);
}

#[test]
fn a_file_that_is_back_at_both_ends_of_a_move_is_at_one() {
    let tree = Tree::new();
    if !moved(&tree) {
        return;
    }
    fs::hard_link(tree.path("to"), tree.path("from")).unwrap();
    recovered(&tree);
    assert_eq!((tree.path("from").exists(), read(&tree, "to").as_str()), (false, "moved"));
    assert_eq!(states(&tree), ["settled"]);
}

#[test]
fn what_a_power_cut_brings_back_where_something_moved_away_is_set_aside() {
    let tree = Tree::new();
    if !moved(&tree) {
        return;
    }
    tree.put("from", "an older version");
    recovered(&tree);
    assert_eq!((tree.path("from").exists(), read(&tree, "to").as_str()), (false, "moved"));
    assert_eq!(quarantined(&tree, 1), ["an older version"]);
}

#[test]
fn an_old_version_is_kept_for_the_transaction_that_found_it() {
    let tree = Tree::new();
    committed(&tree);
    run(&tree, "recovery::second_child");
    let name = |txn| staged(&tree, txn, "replaced").file_name().unwrap().to_owned();
    let (first, second) = (name(1), name(2));
    undo_exchange(&tree, 2, "replaced");
    undo_exchange(&tree, 1, "replaced");
    forget_applied(&tree);
    assert_eq!(read(&tree, "replaced"), "before");
    recovered(&tree);
    assert_eq!(read(&tree, "replaced"), "after that");
    let kept = |name| fs::read_to_string(tree.path(".journal/history").join(name)).unwrap();
    assert_eq!((kept(first), kept(second)), ("before".to_owned(), "after".to_owned()));
}

#[test]
fn an_old_version_that_comes_back_below_a_newer_transaction_is_kept() {
    let tree = Tree::new();
    committed(&tree);
    // The second transaction finds nothing; then a power cut takes back both, and the removal by hand.
    fs::remove_file(tree.path("replaced")).unwrap();
    run(&tree, "recovery::second_child");
    fs::rename(staged(&tree, 1, "replaced"), tree.path("replaced")).unwrap();
    forget_applied(&tree);
    recovered(&tree);
    assert_eq!(read(&tree, "replaced"), "after that");
    assert!(history(&tree).contains(&"before".to_owned()), "{:?}", history(&tree));
}

#[test]
fn what_somebody_wrote_to_our_file_in_place_is_kept() {
    for suffix in ["", ".again"] {
        let tree = Tree::new();
        committed(&tree);
        // Their bytes reached the disk in the inode that is recorded, and the exchange that had put it in the tree did not.
        undo_exchange(&tree, 1, "replaced");
        let ours = staged(&tree, 1, "replaced");
        fs::write(&ours, "their").unwrap();
        fs::rename(&ours, format!("{}{suffix}", ours.display())).unwrap();
        forget_applied(&tree);
        recovered(&tree);
        assert_eq!(read(&tree, "replaced"), "after");
        assert_eq!(quarantined(&tree, 1), ["their"], "{suffix}");
        assert_eq!(history(&tree).iter().filter(|kept| *kept == "before").count(), 1, "{suffix}");
        assert_eq!(db(&tree).query_row("SELECT count(*) FROM journal_redo", (), |row| row.get::<_, i64>(0)), Ok(0));
    }
}
