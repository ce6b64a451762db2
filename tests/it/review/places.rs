//! Other mounts, and files that cannot be changed.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use journal_kb::{Error, Journal};
use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};

use super::{Step, read, states, unsettled, whole};
use crate::skip::skip;
use crate::support::Tree;

/// A tmpfs over a directory, unmounted on drop.
struct Mount(PathBuf);

impl Mount {
    fn over(dir: PathBuf) -> Option<Self> {
        fs::create_dir_all(&dir).unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "journal-kb-test"]).arg(&dir).output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Some(Self(dir));
        }
        skip("a tmpfs cannot be mounted here");
        None
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_session_learns_of_a_mount_that_another_one_met() {
    let tree = Tree::new();
    let Some(_mount) = Mount::over(tree.path("m")) else { return };
    let (a, b) = (unsettled(tree.root()), unsettled(tree.root()));
    a.transact(|txn| txn.write("m/x", b"x")).unwrap();
    let recovered = b.recover().unwrap();
    assert_eq!((recovered.quarantined, recovered.pending), (0, 0));
    for (journal, content) in [(&a, "y"), (&b, "z"), (&a, "again")] {
        let done = journal.transact(|txn| txn.write("m/x", content)).unwrap();
        assert_eq!(done.receipt.warnings(), []);
        assert_eq!(read(&tree, "m/x").as_deref(), Some(content));
    }
    b.settle().unwrap();
    assert!(!states(&tree).iter().any(|state| state == "quarantined"));
}

fn all_refused(tree: &Tree, steps: &[Step]) {
    let before = whole(tree);
    let journal = tree.journal();
    for (what, step) in steps {
        let refused = journal.transact(|txn| {
            txn.write("beside", b"x")?;
            step(txn)
        });
        let refused = refused.map(|done| done.receipt.warnings().to_vec());
        assert!(refused.is_err(), "{what}: {refused:?}");
        let pending = matches!(refused, Err(Error::PathPending { .. } | Error::PathQuarantined { .. }));
        assert!(!pending, "{what}: an earlier one was committed");
        assert_eq!(whole(tree), before, "{what}");
    }
    assert_eq!(states(tree), [""; 0]);
}

#[test]
fn a_mount_point_is_not_moved_nor_removed() {
    let tree = Tree::new();
    tree.put("file", "f");
    let Some(_mount) = Mount::over(tree.path("up/m")) else { return };
    all_refused(
        &tree,
        &[
            ("remove_dir_all", |txn| txn.remove_dir_all("up/m")),
            ("rename", |txn| txn.rename("up/m", "elsewhere")),
            ("rename onto it", |txn| {
                txn.remove_dir_all("up/m")?;
                txn.rename("file", "up/m")
            }),
        ],
    );
}

#[test]
fn what_is_immutable_is_refused_before_commit() {
    let tree = Tree::new();
    tree.put("stuck", "before");
    tree.put("free", "before");
    tree.put("fixed/file", "before");
    let immutable = |path: &str, on: bool| {
        let file = fs::File::open(tree.path(path)).unwrap();
        let flags = ioctl_getflags(&file)?;
        ioctl_setflags(&file, if on { flags | IFlags::IMMUTABLE } else { flags & !IFlags::IMMUTABLE })
    };
    if immutable("stuck", true).is_err() {
        return skip("files cannot be made immutable here");
    }
    immutable("fixed", true).unwrap();
    let steps: [Step; 8] = [
        ("write", |txn| txn.write("stuck", b"after")),
        ("remove", |txn| txn.remove("stuck")),
        ("rename", |txn| txn.rename("stuck", "elsewhere")),
        ("rename onto it", |txn| txn.rename("free", "stuck")),
        ("symlink", |txn| txn.symlink("free", "stuck")),
        ("remove an immutable directory", |txn| txn.remove_dir_all("fixed")),
        ("rename an immutable directory", |txn| txn.rename("fixed", "elsewhere")),
        ("write into an immutable directory", |txn| txn.write("fixed/new", b"x")),
    ];
    let checked = std::panic::catch_unwind(|| all_refused(&tree, &steps));
    immutable("stuck", false).unwrap();
    immutable("fixed", false).unwrap();
    checked.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    tree.journal().transact(|txn| txn.write("stuck", b"after")).unwrap();
}

#[test]
fn large_content_leaves_nothing_in_a_stage_on_another_filesystem() {
    let (tree, state) = (Tree::new(), Tree::new());
    let Some(_mount) = Mount::over(state.path("m")) else { return };
    let journal = Journal::options().state_dir(state.path("m/state")).open(tree.root()).unwrap();
    for n in 0..3 {
        journal.transact(|txn| txn.write(format!("f{n}"), vec![b'x'; 1 << 20])).unwrap();
        let left: Vec<_> = fs::read_dir(state.path("m/state/stage")).unwrap().map(|entry| entry.unwrap()).collect();
        assert!(left.is_empty(), "{n}: {left:?}");
    }
    journal.settle().unwrap();
    assert_eq!(read(&tree, "f2").map(|content| content.len()), Some(1 << 20));
}
