//! Guards of transactions that died.

use std::fs;

use journal_kb::{Error, Guard, Standing};

use super::{FIRST, PATHS, count, guarded_tree, kept, killed, only, pairs, sql};
use crate::recovery::read;
use crate::support::{Tree, manifest};

/// Where the old version of a path lies.
fn staged(tree: &Tree, path: &str) -> std::path::PathBuf {
    let shown = tree.journal().quarantine().show(FIRST).unwrap().unwrap();
    let item = shown.items.into_iter().find(|item| item.path.to_str() == Some(path)).unwrap();
    item.kept_at.unwrap()
}

fn give_up(tree: &Tree) {
    sql(tree, "UPDATE journal_guard SET attempts = 5");
}

#[test]
fn a_retry_puts_everything_back() {
    for whole_tree in [false, true] {
        let tree = guarded_tree();
        let [before, after] = killed(&tree, whole_tree);
        give_up(&tree);
        let journal = tree.journal();
        assert_eq!(manifest(&tree), after, "given up: nothing is touched");
        let entry = only(&journal);
        assert_eq!((entry.id, entry.kind, entry.attempts), (FIRST, "guard", 5));
        assert!(entry.reason.unwrap().contains("given up after 5") && entry.since_ms.is_some());
        let resolved = journal.quarantine().retry(FIRST).unwrap();
        assert_eq!((resolved.standing, resolved.kept.len()), (Standing::Ended, 0));
        assert_eq!(manifest(&tree), before);
        assert!(journal.quarantine().list().unwrap().is_empty());
        assert_eq!(count(&tree, "SELECT count(*) FROM journal_preimage"), 0);
    }
}

#[test]
fn only_overlapping_paths_are_refused_and_the_error_names_what_resolves_it() {
    let tree = guarded_tree();
    killed(&tree, false);
    give_up(&tree);
    let journal = tree.journal();
    // Its lock is free, and whoever has it is kept from those paths only.
    let mut txn = journal.begin("the same lock").unwrap();
    txn.write("beside", b"x").unwrap();
    txn.write("d2/e", b"x").unwrap();
    txn.commit().unwrap();
    for refused in [
        journal.transact(|txn| txn.write("a", b"x")).map(drop),
        journal.transact(|txn| txn.write("d/e/below", b"x")).map(drop),
        journal.transact(|txn| txn.guard_paths(["new"])).map(drop),
        journal.transact(|txn| txn.guard(".")).map(drop),
    ] {
        let Err(error @ Error::PathNotPutBack { .. }) = refused else { panic!("{refused:?}") };
        assert!(error.is_quarantined(), "{error}");
        for command in ["quarantine show g1", "retry g1", "restore g1", "keep-live g1"] {
            assert!(error.to_string().contains(command), "{error}");
        }
    }
    // Others may guard beside it, under the same lock, and are recovered by themselves.
    let before = read(&tree, "beside");
    let mut txn = journal.begin("").unwrap();
    txn.guard_paths(["beside"]).unwrap();
    tree.put("beside", "changed");
    drop(txn);
    assert_eq!(read(&tree, "beside"), before);
    assert_eq!(only(&journal).id, FIRST);
}

#[test]
fn keep_live_touches_nothing_in_the_tree_and_keeps_every_old_version() {
    for whole_tree in [false, true] {
        let tree = guarded_tree();
        let [_, after] = killed(&tree, whole_tree);
        give_up(&tree);
        let journal = tree.journal();
        let resolved = journal.quarantine().keep_live(FIRST).unwrap();
        assert_eq!((resolved.standing, &resolved.left), (Standing::Ended, &vec![]));
        assert_eq!(manifest(&tree), after);
        let old = [("old/a", "one"), ("old/b", "two"), ("old/c", "three"), ("old/d/e", "four"), ("old/link", "-> a")];
        assert_eq!(kept(&tree, "g1"), pairs(old), "whole tree: {whole_tree}");
        journal.transact(|txn| txn.write("a", b"free again")).unwrap();
        // The next guard of the tree makes its baseline anew, and keeps its hands off what is kept. Its number is another.
        let mut txn = journal.begin("").unwrap();
        txn.guard_with(Guard::tree(".")).unwrap();
        assert_eq!(count(&tree, "SELECT max(id) FROM journal_guard"), 2);
        tree.put("a", "changed");
        drop(txn);
        journal.close().unwrap();
        let journal = tree.journal();
        assert_eq!((read(&tree, "a").as_str(), only(&journal).kind), ("free again", "files"));
        assert_eq!(kept(&tree, "g1"), pairs(old), "whole tree: {whole_tree}");
        journal.quarantine().discard(FIRST).unwrap();
        assert_eq!((kept(&tree, "g1").len(), journal.quarantine().list().unwrap().len()), (0, 0));
        assert_eq!(fs::read_dir(tree.path(".journal/stage")).unwrap().count(), 0);
    }
}

#[test]
fn what_is_not_over_can_be_discarded_and_the_tree_stays_as_it_is() {
    let tree = guarded_tree();
    let [_, after] = killed(&tree, false);
    give_up(&tree);
    let journal = tree.journal();
    journal.quarantine().discard(FIRST).unwrap();
    assert_eq!(manifest(&tree), after);
    assert!(journal.quarantine().list().unwrap().is_empty() && kept(&tree, "g1").is_empty());
    journal.transact(|txn| txn.write("a", b"free again")).unwrap();
    assert!(matches!(journal.quarantine().discard(FIRST), Err(Error::NotInQuarantine { .. })));
}

#[test]
fn where_an_old_version_is_missing_no_file_is_touched() {
    for spoil in ["gone", "shorter", "another file"] {
        let tree = guarded_tree();
        killed(&tree, false);
        // To learn where it lies, it has to be in quarantine first.
        give_up(&tree);
        let old = staged(&tree, "b");
        sql(&tree, "UPDATE journal_guard SET state = 'active', attempts = 0");
        match spoil {
            "gone" => fs::remove_file(&old).unwrap(),
            "shorter" => fs::write(&old, "t").unwrap(),
            _ => {
                fs::write(old.with_extension("tmp"), "two").unwrap();
                fs::rename(old.with_extension("tmp"), &old).unwrap();
            }
        }
        let after = manifest(&tree);
        let journal = tree.journal();
        assert_eq!(manifest(&tree), after, "{spoil}");
        // At once: to try again would not bring it back.
        assert_eq!(count(&tree, "SELECT attempts FROM journal_guard"), 1, "{spoil}");
        let entry = only(&journal);
        assert!(entry.reason.as_ref().is_some_and(|why| why.contains("the old version of b")), "{spoil}: {entry:?}");
        // What there is comes back; what is not there is told, and it is not over.
        let resolved = journal.quarantine().restore(FIRST).unwrap();
        assert_eq!(resolved.standing, Standing::Quarantined, "{spoil}");
        let left: Vec<_> = resolved.left.iter().map(|(path, _)| path.to_str().unwrap()).collect();
        assert_eq!(left, ["b"], "{spoil}");
        assert_eq!(
            (read(&tree, "a"), read(&tree, "b"), read(&tree, "c")),
            ("one".into(), "b changed".into(), "three".into())
        );
        assert!(!tree.path("new").exists() && tree.path("d/e").exists(), "{spoil}");
        assert!(matches!(journal.transact(|txn| txn.write("b", b"x")), Err(Error::PathNotPutBack { .. })), "{spoil}");
        // What came back is there, and shown so.
        let shown = journal.quarantine().show(FIRST).unwrap().unwrap();
        let of = |path: &str| shown.items.iter().find(|item| item.path == std::path::Path::new(path)).unwrap();
        assert!(of("a").available && of("a").would.contains("in place"), "{spoil}: {:?}", of("a"));
        assert!(!of("b").available, "{spoil}: {:?}", of("b"));
        // Somebody says that it is right so. What the restore displaced is kept with the rest.
        journal.quarantine().keep_live(FIRST).unwrap();
        let kept = kept(&tree, "g1");
        for (path, content) in [("displaced/a", "a changed"), ("displaced/c", "c changed"), ("displaced/new", "new")] {
            assert_eq!(kept.get(path).map(String::as_str), Some(content), "{spoil}: {kept:?}");
        }
        assert_eq!(kept.contains_key("displaced/b"), spoil != "gone", "{spoil}: {kept:?}");
        journal.transact(|txn| txn.write("b", b"free again")).unwrap();
    }
}

#[test]
fn a_restore_ends_it_once_everything_is_in_place() {
    for whole_tree in [false, true] {
        let tree = guarded_tree();
        let [before, _] = killed(&tree, whole_tree);
        give_up(&tree);
        let journal = tree.journal();
        let resolved = journal.quarantine().restore(FIRST).unwrap();
        assert_eq!((resolved.standing, &resolved.left), (Standing::Ended, &vec![]));
        assert!(PATHS.iter().all(|path| resolved.restored.iter().any(|restored| restored.to_str() == Some(path))));
        assert_eq!(manifest(&tree), before);
        assert!(journal.quarantine().list().unwrap().is_empty());
        // What was displaced is kept as by any rollback.
        assert_eq!(count(&tree, "SELECT count(*) FROM journal_txn WHERE rolled_back = 1 AND kept >= 4"), 1);
    }
}

#[test]
fn a_tree_whose_baseline_lost_a_file_comes_back_but_for_that() {
    let tree = guarded_tree();
    let [before, after] = killed(&tree, true);
    let mirrored = walkdir::WalkDir::new(tree.path(".journal/baseline")).into_iter().filter_map(Result::ok);
    let lost: Vec<_> = mirrored.filter(|entry| entry.file_name() == "b").collect();
    assert_eq!(lost.len(), 1);
    fs::remove_file(lost[0].path()).unwrap();
    let journal = tree.journal();
    assert_eq!(manifest(&tree), after);
    let resolved = journal.quarantine().restore(FIRST).unwrap();
    let left: Vec<_> = resolved.left.iter().map(|(path, _)| path.to_str().unwrap()).collect();
    assert_eq!((resolved.standing, left), (Standing::Quarantined, vec!["b"]));
    let mut expected = before;
    expected.insert("b".into(), after["b".as_ref() as &std::path::Path].clone());
    assert_eq!(manifest(&tree), expected);
    // Nothing but a person's word ends it, and a retry loses nothing either.
    let again = journal.quarantine().retry(FIRST).unwrap();
    assert_eq!(again.standing, Standing::Quarantined);
    let kept_live = journal.quarantine().keep_live(FIRST).unwrap();
    assert_eq!(kept_live.standing, Standing::Ended);
    assert_eq!(manifest(&tree), expected);
}

#[test]
fn an_unreadable_record_keeps_one_path_back() {
    let tree = guarded_tree();
    killed(&tree, false);
    sql(&tree, "UPDATE journal_preimage SET record = x'00' WHERE path = CAST('c' AS BLOB)");
    let journal = tree.journal();
    let resolved = journal.quarantine().restore(FIRST).unwrap();
    let left: Vec<_> = resolved.left.iter().map(|(path, _)| path.to_str().unwrap()).collect();
    assert_eq!((resolved.standing, left), (Standing::Quarantined, vec!["c"]));
    assert_eq!((read(&tree, "a"), read(&tree, "c")), ("one".into(), "c changed".into()));
    // What no record names any more is not swept, and kept.
    journal.close().unwrap();
    let journal = tree.journal();
    journal.recover().unwrap();
    journal.quarantine().keep_live(FIRST).unwrap();
    let kept = kept(&tree, "g1");
    assert_eq!(kept.get("unreadable/c").map(String::as_str), Some("\0"), "{kept:?}");
    let strays: Vec<_> = kept.iter().filter(|(path, _)| path.starts_with("stray/")).map(|(_, says)| says).collect();
    assert_eq!(strays, ["three"], "{kept:?}");
}

#[test]
fn a_path_that_nobody_can_move_away_keeps_its_old_version() {
    let tree = guarded_tree();
    killed(&tree, false);
    let immutable = |on: bool| {
        use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};
        let file = fs::File::open(tree.path("b")).unwrap();
        let flags = ioctl_getflags(&file)?;
        ioctl_setflags(&file, if on { flags | IFlags::IMMUTABLE } else { flags & !IFlags::IMMUTABLE })
    };
    if immutable(true).is_err() {
        return crate::skip::skip("files cannot be made immutable here");
    }
    let journal = tree.journal();
    immutable(false).unwrap();
    assert_eq!((read(&tree, "a"), read(&tree, "b")), ("one".into(), "b changed".into()));
    // It is told, and the one copy of what was there is not thrown away.
    assert_eq!(kept(&tree, "1"), pairs([("old/b", "two")]));
    let told = count(&tree, "SELECT count(*) FROM journal_event WHERE kind = 'damaged' AND path = CAST('b' AS BLOB)");
    assert_eq!((told, only(&journal).kind), (1, "files"));
}
