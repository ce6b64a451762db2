//! The promise to an ordinary user: what could not be put back as it was is refused when it is to be guarded, by its name, and
//! not found out when it is too late.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use journal_kb::{Error, Guard, Journal, Transaction};

use crate::guard::full;
use crate::guard_corners::as_an_ordinary_user;
use crate::skip::skip;
use crate::support::{Tree, child_root};

const USER: u32 = 65534;

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn what_is_somebody_elses_is_refused_in_the_beginning_if_it_could_be_changed() {
    if !rustix::process::geteuid().is_root() {
        return skip("files of two owners take root to make");
    }
    let tree = Tree::new();
    mode(tree.root(), 0o755);
    for dir in [
        "kb",
        "kb/mine",
        "kb/secret",
        "kb/theirs",
        "kb/shared",
        "kb/open",
        "kb/box",
        "kb/box/fine",
        "kb/box/fine/theirs",
        "kb/box/fine/own",
    ] {
        fs::create_dir(tree.path(dir)).unwrap();
        tree.put(&format!("{dir}/page"), "page");
        chown(tree.path(dir), Some(USER), Some(USER)).unwrap();
        chown(tree.path(dir).join("page"), Some(USER), Some(USER)).unwrap();
    }
    let theirs = |path: &str| {
        if !fs::exists(tree.path(path)).unwrap() {
            tree.put(path, "theirs");
        }
        chown(tree.path(path), Some(0), Some(0)).unwrap();
    };
    theirs("kb/secret/unreadable");
    mode(&tree.path("kb/secret/unreadable"), 0o600);
    // In a directory of one's own it can be removed.
    theirs("kb/theirs/readable");
    // As in /tmp: one's own files are safe, and there is no giving back the times of the directory.
    theirs("kb/shared");
    mode(&tree.path("kb/shared"), 0o1777);
    theirs("kb/open/writable");
    mode(&tree.path("kb/open/writable"), 0o666);
    // Nothing can be done to these.
    for path in ["kb/box/fine/theirs/page", "kb/box/fine/theirs", "kb/box/fine/page", "kb/box/fine", "kb/box"] {
        theirs(path);
    }
    as_an_ordinary_user(&tree, "guard_owned::ordinary_child");
}

#[test]
fn ordinary_child() {
    let Some(root) = child_root() else { return };
    let root = root.join("kb");
    let journal = Journal::open(&root).unwrap();
    let before = full(&root.join("mine"));
    let refused = |guard: &dyn Fn(&mut Transaction) -> journal_kb::Result<()>, path: &str| {
        let mut txn = journal.begin("").unwrap();
        txn.touch("mine/page").unwrap();
        let error = guard(&mut txn).unwrap_err();
        assert!(matches!(&error, Error::CannotRestore { path: at, .. } if *at == root.join(path)), "{path}: {error}");
        // What was guarded before is, still.
        fs::write(root.join("mine/page"), "changed").unwrap();
        txn.rollback().unwrap();
        assert_eq!(full(&root.join("mine")), before);
    };
    for (dir, path) in [
        ("secret", "secret/unreadable"),
        ("theirs", "theirs/readable"),
        ("shared", "shared"),
        ("open", "open/writable"),
    ] {
        refused(&|txn| txn.guard(dir), path);
        refused(&|txn| txn.touch(path), path);
    }
    // A link is the very file, whoever owns it; but the kernel may refuse to make one, and then it is a copy.
    refused(&|txn| txn.guard_with(Guard::tree("theirs").replacing()), "theirs/readable");
    // What nobody could change here is in nobody's way, and what lies in a directory of others is put back.
    let look = || (full(&root.join("box/fine")), full(&root.join("shared")));
    let (fine, mut shared) = look();
    let mut txn = journal.begin("").unwrap();
    txn.guard("box/fine").unwrap();
    txn.guard_paths(["shared/page", "shared/new"]).unwrap();
    fs::remove_file(root.join("box/fine/page")).unwrap_err();
    fs::remove_file(root.join("box/fine/own/page")).unwrap();
    fs::write(root.join("shared/page"), "changed").unwrap();
    fs::write(root.join("shared/new"), "new").unwrap();
    txn.rollback().unwrap();
    let mut found = look();
    // But the times of that directory.
    assert!(shared.remove(Path::new("")).is_some() && found.1.remove(Path::new("")).is_some());
    assert_eq!(found, (fine, shared));
}
