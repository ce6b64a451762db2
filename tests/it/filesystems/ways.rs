//! What only some filesystems have: shared blocks, subvolumes, snapshots.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use journal_kb::inspect::Inspector;
use journal_kb::{Error, Guard, Journal};

use super::image::{Image, Kind, done};
use crate::guard::{Entry, full};
use crate::guard_tree::{damage, same};
use crate::skip::skip;

/// True when a file shares blocks with another, as the filesystem tells; none where the tool is missing that asks it.
fn shares(file: &Path) -> Option<bool> {
    let Ok(output) = Command::new("filefrag").arg("-v").arg(file).output() else {
        skip("filefrag is not here (Debian: e2fsprogs)");
        return None;
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8_lossy(&output.stdout).contains("shared"))
}

/// The files that lie below a directory of the state.
fn files(dir: &Path) -> Vec<PathBuf> {
    let found = walkdir::WalkDir::new(dir).into_iter().map(Result::unwrap);
    found.filter(|entry| entry.file_type().is_file()).map(walkdir::DirEntry::into_path).collect()
}

#[test]
fn what_is_kept_shares_blocks_where_the_filesystem_can() {
    for kind in Kind::ALL {
        let Some(image) = Image::mount(kind) else { return };
        let (root, reflinks) = (image.root().to_owned(), kind != Kind::Ext4);
        fs::create_dir(root.join("wiki")).unwrap();
        fs::write(root.join("wiki/page"), vec![b'p'; 1 << 20]).unwrap();
        fs::write(root.join("page"), vec![b'p'; 1 << 20]).unwrap();
        let journal = Journal::open(&root).unwrap();
        let mut txn = journal.begin("keeps").unwrap();
        txn.guard("wiki").unwrap();
        txn.guard_paths(["page"]).unwrap();
        rustix::fs::sync();
        let kept = [&files(&root.join(".journal/baseline"))[..], &files(&root.join(".journal/stage"))[..]].concat();
        assert_eq!(kept.len(), 2, "{kept:?}");
        for kept in kept {
            assert_eq!(fs::metadata(&kept).unwrap().nlink(), 1);
            let Some(shares) = shares(&kept) else { return };
            assert_eq!(shares, reflinks, "{kind:?}: {}", kept.display());
        }
        let guards = Inspector::open(&root).unwrap().guards().unwrap();
        let told = (guards[0].links, guards[0].reflinks, guards[0].copies);
        assert_eq!(told, if reflinks { (0, 1, 0) } else { (0, 0, 1) }, "{kind:?}");
        // The old version stays as it was, whatever becomes of the blocks.
        for page in ["wiki/page", "page"] {
            fs::write(root.join(page), vec![b'n'; 1 << 19]).unwrap();
        }
        txn.rollback().unwrap();
        for page in ["wiki/page", "page"] {
            assert!(fs::read(root.join(page)).unwrap() == vec![b'p'; 1 << 20], "{kind:?}: {page}");
        }
    }
}

/// A root on btrfs with a subvolume in it.
fn with_subvolume() -> Option<(Image, PathBuf)> {
    let image = Image::mount(Kind::Btrfs)?;
    let root = image.root().join("kb");
    fs::create_dir(&root).unwrap();
    subvolume(&["create"], &[&root.join("sub")]).then_some((image, root))
}

fn subvolume(what: &[&str], paths: &[&Path]) -> bool {
    let made = done(Command::new("btrfs").arg("subvolume").args(what).args(paths));
    if !made {
        skip("btrfs cannot make a subvolume here (Debian: btrfs-progs)");
    }
    made
}

/// Everything below the root, with what the filesystem itself has to say of two of its paths: they are not the same file.
fn twins(root: &Path) -> BTreeMap<PathBuf, Entry> {
    let inode = |path: &str| fs::metadata(root.join(path)).unwrap().ino();
    assert_eq!(inode("sub/f"), inode("other/f"), "numbers of two subvolumes collide");
    full(root)
}

#[test]
fn subvolumes_in_the_root_are_guarded_each_by_itself() {
    let Some((_image, root)) = with_subvolume() else { return };
    if !subvolume(&["create"], &[&root.join("other")]) {
        return;
    }
    let journal = Journal::open(&root).unwrap();
    // The first file of each: both have the same number.
    fs::write(root.join("sub/f"), "sub").unwrap();
    fs::write(root.join("other/f"), "other").unwrap();
    journal
        .transact(|txn| {
            txn.write("sub/known", "x")?;
            txn.write("other/known", "x")
        })
        .unwrap();
    let before = twins(&root);
    for replacing in [false, true] {
        for trees in [false, true] {
            let mut txn = journal.begin("twins").unwrap();
            let guards = if trees {
                vec![Guard::tree("sub"), Guard::tree("other")]
            } else {
                vec![Guard::paths(["sub/f", "other/f", "sub/new"])]
            };
            for guard in guards {
                txn.guard_with(if replacing { guard.replacing() } else { guard }).unwrap();
            }
            for path in ["sub", "other"] {
                fs::write(root.join(path).join("temporary"), "by the program").unwrap();
                fs::rename(root.join(path).join("temporary"), root.join(path).join("f")).unwrap();
            }
            fs::write(root.join("sub/new"), "new").unwrap();
            assert!(txn.rollback().unwrap().damaged.is_empty());
            same(&full(&root), &before, &format!("replacing: {replacing}, trees: {trees}"));
        }
    }
    // A tree with subvolumes in it is none of them.
    let refused = journal.begin("whole").unwrap().guard(".");
    assert!(matches!(&refused, Err(Error::MountInTree { path }) if path.starts_with(&root)), "{refused:?}");
    let moved = journal.transact(|txn| txn.rename("sub/f", "other/g"));
    assert!(matches!(moved, Err(Error::CrossDevice { .. })), "{moved:?}");
    journal.transact(|txn| txn.rename("sub/f", "sub/g")).unwrap();
    journal.close().unwrap();
    let journal = Journal::open(&root).unwrap();
    assert_eq!(journal.recover().unwrap().pending, 0);
    assert_eq!(fs::read(root.join("sub/g")).unwrap(), b"sub");
}

#[test]
fn a_guarded_subvolume_is_put_back_after_a_reboot() {
    let Some((image, root)) = with_subvolume() else { return };
    assert!(done(Command::new("btrfs").args(["subvolume", "create"]).arg(root.join("wiki"))));
    for n in 0..40 {
        fs::create_dir_all(root.join(format!("wiki/d{}", n % 7))).unwrap();
        fs::write(root.join(format!("wiki/d{}/page{n}", n % 7)), "page").unwrap();
    }
    for (path, content) in [("wiki/index", "index"), ("wiki/nothing", ""), ("wiki/link", "")] {
        fs::write(root.join(path), content).unwrap();
    }
    fs::create_dir_all(root.join("wiki/deep/er")).unwrap();
    fs::create_dir(root.join("wiki/empty")).unwrap();
    let journal = Journal::open(&root).unwrap();
    journal.transact(|txn| txn.write("wiki/known", "x")).unwrap();
    journal.close().unwrap();
    let before = full(&root);
    for replacing in ["any", "replacing"] {
        let mut guarding =
            crate::support::child("guard_tree::guarding_child", &root).env("REPLACING", replacing).spawn().unwrap();
        crate::support::wait_for_word(&mut guarding, "damage done");
        guarding.kill().unwrap();
        guarding.wait().unwrap();
        image.mount_again();
        Journal::open(&root).unwrap().close().unwrap();
        same(&full(&root), &before, replacing);
    }
    let journal = Journal::open(&root).unwrap();
    let mut txn = journal.begin("in place").unwrap();
    txn.guard("wiki").unwrap();
    damage(&root, false);
    txn.rollback().unwrap();
    same(&full(&root), &before, "rolled back");
}

#[test]
fn a_subvolume_that_the_program_made_is_taken_away_again() {
    let Some((_image, root)) = with_subvolume() else { return };
    fs::create_dir(root.join("wiki")).unwrap();
    let journal = Journal::open(&root).unwrap();
    let mut txn = journal.begin("makes one").unwrap();
    txn.guard("wiki").unwrap();
    if !subvolume(&["create"], &[&root.join("wiki/made")]) {
        return;
    }
    fs::write(root.join("wiki/made/file"), "kept").unwrap();
    txn.rollback().unwrap();
    assert!(!root.join("wiki/made").exists());
    let kept: Vec<_> = files(&root.join(".journal/history"));
    assert!(kept.len() == 1 && kept[0].ends_with("file"), "what was displaced is kept: {kept:?}");
}

#[test]
fn a_snapshot_is_a_journal_of_its_own_and_a_read_only_one_in_the_tree_is_left_alone() {
    let Some(image) = Image::mount(Kind::Btrfs) else { return };
    let (root, copy) = (image.root().join("kb"), image.root().join("copy"));
    if !subvolume(&["create"], &[&root]) {
        return;
    }
    let journal = Journal::open(&root).unwrap();
    journal.transact(|txn| txn.write("page", "one")).unwrap();
    let mut txn = journal.begin("guards").unwrap();
    txn.guard_paths(["page"]).unwrap();
    fs::write(root.join("page"), "half done").unwrap();
    // In the middle of a transaction: what the snapshot has is what a power cut would have left.
    rustix::fs::sync();
    assert!(subvolume(&["snapshot"], &[&root, &copy]));
    txn.rollback().unwrap();
    Journal::open(&copy).unwrap().close().unwrap();
    assert_eq!(fs::read(copy.join("page")).unwrap(), b"one");
    assert_eq!(fs::read(root.join("page")).unwrap(), b"one");
    // As snapper keeps them.
    fs::create_dir(root.join("snapshots")).unwrap();
    assert!(subvolume(&["snapshot", "-r"], &[&root, &root.join("snapshots/1")]));
    let written = journal.transact(|txn| txn.write("snapshots/1/page", "x"));
    assert!(matches!(&written, Err(error) if error.is_io() && error.to_string().contains("read-only")), "{written:?}");
    let refused = journal.begin("whole").unwrap().guard(".");
    assert!(matches!(&refused, Err(Error::MountInTree { path }) if path.ends_with("snapshots/1")), "{refused:?}");
    journal.transact(|txn| txn.write("page", "two")).unwrap();
    assert_eq!(fs::read(root.join("snapshots/1/page")).unwrap(), b"one");
    journal.close().unwrap();
}
