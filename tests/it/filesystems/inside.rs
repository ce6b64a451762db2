//! Mounts inside the root: each has a stage of its own, so nothing is ever moved across its edge. A guard may be on one, or on
//! paths of several; a guarded tree within which one begins is refused by its name.

use std::fs;
use std::process::Command;

use journal_kb::{Error, Guard, Journal};

use super::image::{Image, Kind, done};
use crate::guard::full;
use crate::guard_tree::{damage, fill, guard, same};
use crate::skip::skip;
use crate::support::{Tree, child, child_root, wait_for_word};

/// A tree of which `wiki` is a mount.
fn wiki_on(kind: Kind) -> Option<(Tree, Image)> {
    let tree = Tree::new();
    let image = Image::mount_at(kind, Some(tree.path("wiki")))?;
    fill(&tree);
    Some((tree, image))
}

/// Has the mount at a directory be known, and so have a stage: to make that changes the times of the directory.
fn known(journal: &Journal, at: &str) {
    journal.transact(|txn| txn.write(format!("{at}/known"), "known")).unwrap();
}

/// A bind mount, unmounted on drop.
pub(super) struct Bound(std::path::PathBuf);

impl Bound {
    pub(super) fn new(what: &std::path::Path, at: std::path::PathBuf) -> Option<Self> {
        if done(Command::new("mount").arg("--bind").arg(what).arg(&at)) {
            return Some(Self(at));
        }
        skip("a bind mount cannot be made here");
        None
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        super::image::unmount(&self.0);
    }
}

#[test]
fn a_guarded_tree_may_be_a_mount() {
    for kind in Kind::ALL {
        let Some((tree, image)) = wiki_on(kind) else { return };
        let journal = tree.journal();
        known(&journal, "wiki");
        let before = full(tree.root());
        for replacing in [false, true, false, true] {
            let mut txn = journal.begin("on a mount").unwrap();
            guard(&mut txn, "wiki", replacing);
            damage(tree.root(), replacing);
            assert!(txn.rollback().unwrap().damaged.is_empty());
            same(&full(tree.root()), &before, &format!("{kind:?}, replacing: {replacing}"));
        }
        journal.close().unwrap();
        for replacing in ["any", "replacing"] {
            let mut guarding =
                child("guard_tree::guarding_child", tree.root()).env("REPLACING", replacing).spawn().unwrap();
            wait_for_word(&mut guarding, "damage done");
            guarding.kill().unwrap();
            guarding.wait().unwrap();
            // Not there when the next one comes: what lies below the mount is nobody's business, and nothing is given up.
            image.unmount();
            let journal = tree.journal();
            assert_eq!(journal.recover().unwrap().rolled_back, 0);
            assert_eq!(fs::read_dir(tree.path("wiki")).unwrap().count(), 0);
            journal.close().unwrap();
            assert!(image.mounts());
            let journal = tree.journal();
            same(&full(tree.root()), &before, &format!("{kind:?}, killed, {replacing}"));
            journal.close().unwrap();
        }
        let journal = tree.journal();
        let mut txn = journal.begin("kept").unwrap();
        guard(&mut txn, "wiki", false);
        damage(tree.root(), false);
        let after = full(tree.root());
        txn.commit().unwrap();
        journal.close().unwrap();
        image.mount_again();
        same(&full(tree.root()), &after, &format!("{kind:?}, committed"));
    }
}

#[test]
fn guarded_paths_may_lie_on_several_mounts() {
    let paths = ["beside", "wiki/index", "wiki/new", "wiki/d1/page1", "wiki/link", "wiki/empty", "beside-too"];
    for kind in Kind::ALL {
        let Some((tree, _image)) = wiki_on(kind) else { return };
        let journal = tree.journal();
        for replacing in [false, true] {
            // The first time, the mount has no stage yet.
            let mut txn = journal.begin("here and there").unwrap();
            let guard = Guard::paths(paths);
            txn.guard_with(if replacing { guard.replacing() } else { guard }).unwrap();
            let before = full(tree.root());
            for path in paths {
                let path = tree.path(path);
                let _ = fs::remove_file(&path).or_else(|_| fs::remove_dir(&path));
                fs::write(path, "by the program").unwrap();
            }
            txn.rollback().unwrap();
            same(&full(tree.root()), &before, &format!("{kind:?}, replacing: {replacing}"));
        }
    }
}

#[test]
fn what_is_staged_across_mounts_survives_a_reboot() {
    for kind in Kind::ALL {
        let Some((tree, image)) = wiki_on(kind) else { return };
        let journal = tree.journal();
        let large = vec![7_u8; 300 << 10];
        let done = journal.transact(|txn| {
            txn.write("beside", "after")?;
            txn.write("wiki/index", "after")?;
            txn.write_from("wiki/large", &mut &large[..])?;
            txn.symlink("large", "wiki/link")?;
            txn.remove("wiki/d1/page1")
        });
        assert_eq!(done.unwrap().receipt.warnings(), []);
        let moved = journal.transact(|txn| txn.rename("beside", "wiki/beside"));
        assert!(matches!(moved, Err(Error::CrossDevice { .. })), "{moved:?}");
        journal.transact(|txn| txn.rename("wiki/d2", "wiki/there")).unwrap();
        journal.settle().unwrap();
        let after = full(tree.root());
        journal.close().unwrap();
        image.mount_again();
        let journal = tree.journal();
        assert_eq!(journal.recover().unwrap().pending, 0);
        same(&full(tree.root()), &after, &format!("{kind:?}"));
        assert_eq!(fs::read(tree.path("wiki/large")).unwrap(), large);
    }
}

#[test]
fn what_waits_for_a_mount_is_not_carried_into_the_directory_below_it() {
    let Some((tree, image)) = wiki_on(Kind::Ext4) else { return };
    tree.journal().close().unwrap();
    // Killed between the COMMIT and the first rename of what it committed.
    let test = child("filesystems::inside::committing_child", tree.root());
    let traced = Command::new("strace")
        .args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=renameat2", "-e", "inject=renameat2:signal=KILL:when=1"])
        .arg(test.get_program())
        .args(test.get_args())
        .envs(test.get_envs().filter_map(|(key, value)| Some((key, value?))))
        .output();
    let Ok(output) = traced else { return skip("killing at a rename needs strace") };
    assert!(!output.status.success(), "it was to be killed");
    assert_eq!(fs::read(tree.path("wiki/index")).unwrap(), b"index");
    image.unmount();
    fs::write(tree.path("wiki/index"), "below the mount").unwrap();
    let journal = tree.journal();
    let recovered = journal.recover().unwrap();
    assert_eq!((recovered.pending, recovered.quarantined), (1, 0));
    assert_eq!(fs::read(tree.path("wiki/index")).unwrap(), b"below the mount");
    assert!(!tree.path("wiki/.journal-stage").exists());
    journal.close().unwrap();
    assert!(image.mounts());
    let journal = tree.journal();
    assert_eq!(journal.recover().unwrap().pending, 0);
    assert_eq!(fs::read(tree.path("wiki/index")).unwrap(), b"committed");
}

#[test]
fn committing_child() {
    let Some(root) = child_root() else { return };
    let journal = Journal::open(&root).unwrap();
    journal.transact(|txn| txn.write("wiki/index", "committed")).unwrap();
}

#[track_caller]
fn assert_refused<T: std::fmt::Debug>(refused: Result<T, Error>, at: &std::path::Path) {
    match refused {
        Err(Error::MountInTree { path }) if path == at => {}
        other => panic!("{} is not named: {other:?}", at.display()),
    }
}

#[test]
fn a_mount_within_a_guarded_tree_is_refused_and_named() {
    let tree = Tree::new();
    fill(&tree);
    let Some(image) = Image::mount_at(Kind::Ext4, Some(tree.path("wiki/m"))) else { return };
    tree.put("wiki/m/page", "mounted");
    let journal = tree.journal();
    known(&journal, "wiki/m");
    for replacing in [false, true] {
        let before = full(tree.root());
        let mut txn = journal.begin("across").unwrap();
        for path in ["wiki", "."] {
            let guard = Guard::tree(path);
            assert_refused(txn.guard_with(if replacing { guard.replacing() } else { guard }), &tree.path("wiki/m"));
        }
        // What the error says to do instead.
        for path in ["wiki/m", "wiki/d1", "wiki/deep"] {
            guard(&mut txn, path, replacing);
        }
        for path in ["wiki/m/page", "wiki/d1/page1", "wiki/deep/er/and/deeper"] {
            fs::remove_file(tree.path(path)).unwrap();
        }
        txn.rollback().unwrap();
        same(&full(tree.root()), &before, "one guard each");
        // Nobody is in the way of others.
        journal.transact(|txn| txn.write("beside", "beside")).unwrap();
    }
    journal.close().unwrap();
    image.unmount();
    let journal = tree.journal();
    // With a baseline, and mounted over later: over a directory that is in it, and over a file.
    let mut txn = journal.begin("before").unwrap();
    txn.guard("wiki").unwrap();
    txn.rollback().unwrap();
    for (what, at) in
        [(tree.path("wiki/d2"), "wiki/d1"), (tree.path("beside"), "wiki/index"), (tree.path("wiki/d2"), "wiki")]
    {
        let Some(_bound) = Bound::new(&what, tree.path(at)) else { return };
        let mut txn = journal.begin("over it").unwrap();
        if at == "wiki" {
            // The tree itself: with a baseline of its own again.
            txn.guard("wiki").unwrap();
            fs::remove_file(tree.path("wiki/page2")).unwrap();
            txn.rollback().unwrap();
            assert!(tree.path("wiki/page2").exists());
        } else {
            assert_refused(txn.guard("wiki"), &tree.path(at));
        }
    }
    let before = full(tree.root());
    let mut txn = journal.begin("after").unwrap();
    txn.guard("wiki").unwrap();
    fs::remove_dir_all(tree.path("wiki/d3")).unwrap();
    txn.rollback().unwrap();
    same(&full(tree.root()), &before, "unmounted again");
}

#[test]
fn what_is_mounted_under_a_guard_is_to_be_unmounted_before_it_ends() {
    let tree = Tree::new();
    fill(&tree);
    let journal = tree.journal();
    let before = full(tree.root());
    for commits in [true, false] {
        let mut txn = journal.begin("mounts").unwrap();
        txn.guard("wiki").unwrap();
        fs::write(tree.path("wiki/index"), "by the program").unwrap();
        let Some(bound) = Bound::new(&tree.path("wiki/d2"), tree.path("wiki/d1")) else { return };
        match commits {
            true => assert_refused(txn.commit(), &tree.path("wiki/d1")),
            false => assert_refused(txn.rollback(), &tree.path("wiki/d1")),
        }
        // However often it is tried: it is not this transaction's fault.
        for _ in 0..7 {
            let recovered = journal.recover().unwrap();
            assert_eq!((recovered.rolled_back, recovered.quarantined), (0, 0));
        }
        drop(bound);
        assert_eq!(journal.recover().unwrap().rolled_back, 1);
        same(&full(tree.root()), &before, &format!("commits: {commits}"));
    }
}
