//! Guards: paths, trees and layers, with a past or without, committed and put back.
//!
//! What a baseline needs to have a past is done by the child before it is watched, because a copy of a baseline is none:
//! it goes by inodes.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use journal_kb::{Guard, Journal, Layer, Transaction};

use super::sweep::{self, CHILD};
use super::{manifest, open, strace};
use crate::skip::skip;

/// What a child does, in words: which guard, with a past or without, and how it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Workload {
    pub(crate) name: &'static str,
    pub(crate) guard: How,
    /// The baseline exists, and somebody has changed the tree by hand since.
    pub(crate) past: bool,
    pub(crate) ends: Ends,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ends {
    Committed,
    RolledBack,
    /// The commit fails, which puts everything back.
    Refused,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    Paths,
    Tree,
    Replacing,
    /// One path, which the program removes: nothing is displaced when it is put back.
    Removed,
    /// The program writes to a layer, which is absorbed.
    Layer,
}

pub(crate) const WORKLOADS: [Workload; 11] = [
    Workload { name: "paths, committed", guard: How::Paths, past: false, ends: Ends::Committed },
    Workload { name: "paths, rolled back", guard: How::Paths, past: false, ends: Ends::RolledBack },
    Workload { name: "first baseline, rolled back", guard: How::Tree, past: false, ends: Ends::RolledBack },
    Workload { name: "baseline with a past, committed", guard: How::Tree, past: true, ends: Ends::Committed },
    Workload { name: "baseline with a past, rolled back", guard: How::Tree, past: true, ends: Ends::RolledBack },
    Workload { name: "replacing, committed", guard: How::Replacing, past: true, ends: Ends::Committed },
    Workload { name: "replacing, rolled back", guard: How::Replacing, past: true, ends: Ends::RolledBack },
    Workload { name: "baseline with a past, refused", guard: How::Tree, past: true, ends: Ends::Refused },
    Workload { name: "removed, rolled back", guard: How::Removed, past: false, ends: Ends::RolledBack },
    Workload { name: "layer, committed", guard: How::Layer, past: false, ends: Ends::Committed },
    Workload { name: "layer, rolled back", guard: How::Layer, past: false, ends: Ends::RolledBack },
];

/// As [`super::registry`] has them.
pub(crate) fn registered() -> Vec<sweep::Workload> {
    let of = |workload: Workload| sweep::Workload {
        past: Box::new(move |journal| {
            if workload.past {
                past(journal, workload.guard);
                edit_by_hand(journal.root());
            }
        }),
        keeps: if workload.guard == How::Removed { &[] } else { &PROGRAMS },
        others: &["/pages/", "by the program"],
        // What the program does to a layer goes by descriptors in part.
        between: &["/upper/"],
        // The program's last change.
        last: "rmdir",
        ..sweep::Workload::new(workload.name, prepare, move |journal, say| work(journal, workload, say))
    };
    WORKLOADS.map(of).into()
}

/// The transaction that is killed, or meets an error; `say` hears how far it came.
pub(crate) fn work(journal: &Journal, workload: Workload, say: &dyn Fn(&str)) {
    let root = journal.root().to_owned();
    let begun = journal.begin("guarded").and_then(|mut txn| guard(&mut txn, workload.guard).map(|layer| (txn, layer)));
    let (mut txn, layer) = match begun {
        Ok(begun) => begun,
        Err(error) => return say(&format!("not guarded: {error}")),
    };
    say("guarded");
    // What the program under the guard does is not what is tried here, so nothing of it may fail.
    match &layer {
        None => {
            // What is meant for the engine may meet the program, where it goes on.
            match std::panic::catch_unwind(|| change(&root, workload.guard)) {
                Ok(()) => say("changed"),
                Err(_) => return say("the program failed"),
            }
        }
        Some(layer) => {
            if std::panic::catch_unwind(|| write_layer(&root, &layer.upper())).is_err() {
                return say("the program failed");
            }
            // What was written to it is lost with it, until it is in the tree.
            if let Err(error) = txn.absorb(std::slice::from_ref(layer)) {
                return say(&format!("not absorbed: {error}"));
            }
        }
    }
    if workload.ends == Ends::RolledBack {
        return match txn.rollback() {
            Ok(done) => say(if done.damaged.is_empty() { "rolled back" } else { "damaged" }),
            Err(error) => say(&format!("not rolled back: {error}")),
        };
    }
    let refuses = workload.ends == Ends::Refused;
    let committed = txn.write("pages/staged.md", "staged\n").and_then(|()| {
        txn.sql(move |rows| {
            rows.execute("INSERT INTO doc VALUES ('pages/staged.md', 'Staged')", ())?;
            // The second time, the primary key is taken.
            if refuses {
                rows.execute("INSERT INTO doc VALUES ('pages/staged.md', 'Staged')", ()).map(drop)
            } else {
                Ok(())
            }
        })?;
        txn.commit()
    });
    match committed {
        Ok(_) => say("committed"),
        Err(error) => say(&format!("not committed: {error}")),
    }
}

fn guard(txn: &mut Transaction, how: How) -> journal_kb::Result<Option<Layer>> {
    let guard = match how {
        How::Layer => return txn.layer("pages", [""; 0]).map(Some),
        How::Paths => Guard::paths(NAMED),
        How::Tree => Guard::tree("pages"),
        How::Replacing => Guard::tree("pages").replacing(),
        How::Removed => Guard::paths(["pages/two.md"]),
    };
    txn.guard_with(guard).map(|()| None)
}

/// What [`change`] changes.
const NAMED: [&str; 13] = [
    "pages",
    "pages/one.md",
    "pages/two.md",
    "pages/three.md",
    "pages/four.md",
    "pages/link",
    "pages/sub",
    "pages/sub/five.md",
    "pages/sub/six.md",
    "pages/new.md",
    "pages/made",
    "pages/made/new.md",
    "pages/empty",
];

/// A tree of everything a guard can meet.
pub(crate) fn prepare(root: &Path) {
    fs::create_dir(root).unwrap();
    open(root).close().unwrap();
    fs::create_dir_all(root.join("pages/sub")).unwrap();
    fs::create_dir(root.join("pages/empty")).unwrap();
    for name in ["one", "two", "three", "four", "sub/five", "sub/six", "sub/untouched", "by-hand", "by-hand-too"] {
        fs::write(root.join("pages").join(name).with_extension("md"), format!("{name}, as it was\n")).unwrap();
    }
    symlink("one.md", root.join("pages/link")).unwrap();
    fs::set_permissions(root.join("pages/three.md"), fs::Permissions::from_mode(0o640)).unwrap();
    rustix::fs::setxattr(root.join("pages/one.md"), "user.k", b"v", rustix::fs::XattrFlags::empty()).unwrap();
    manifest::age(root);
}

/// Makes the baseline that the workload is to find.
pub(crate) fn past(journal: &Journal, how: How) {
    let mut txn = journal.begin("before").unwrap();
    guard(&mut txn, how).unwrap();
    txn.rollback().unwrap();
}

/// What somebody does between two transactions; with times of its own, so that every run does the same.
pub(crate) fn edit_by_hand(root: &Path) {
    let pages = root.join("pages");
    fs::write(pages.join("by-hand.md"), "by hand\n").unwrap();
    fs::remove_file(pages.join("by-hand-too.md")).unwrap();
    fs::create_dir(pages.join("hand")).unwrap();
    fs::write(pages.join("hand/made.md"), "made by hand\n").unwrap();
    for (n, name) in ["pages/by-hand.md", "pages/hand/made.md", "pages/hand", "pages"].iter().enumerate() {
        manifest::set_time(&root.join(name), (1_100_000_000 + n as i64, 5));
    }
}

/// What the program under the guard does.
fn change(root: &Path, how: How) {
    let at = |name: &str| root.join("pages").join(name);
    if how == How::Removed {
        return fs::remove_file(at("two.md")).unwrap();
    }
    if how == How::Replacing {
        fs::write(at("temporary"), "one, by the program\n").unwrap();
        fs::rename(at("temporary"), at("one.md")).unwrap();
    } else {
        fs::File::options().append(true).open(at("one.md")).unwrap().write_all(b"one, by the program\n").unwrap();
    }
    fs::remove_file(at("two.md")).unwrap();
    fs::set_permissions(at("three.md"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::remove_file(at("four.md")).unwrap();
    fs::create_dir(at("four.md")).unwrap();
    fs::remove_file(at("link")).unwrap();
    symlink("two.md", at("link")).unwrap();
    fs::rename(at("sub/five.md"), at("new.md")).unwrap();
    fs::remove_file(at("sub/six.md")).unwrap();
    fs::write(at("sub/six.md"), "six, by the program\n").unwrap();
    fs::create_dir(at("made")).unwrap();
    fs::write(at("made/new.md"), "new, by the program\n").unwrap();
    fs::remove_dir(at("empty")).unwrap();
}

/// The same as [`change`], as overlayfs writes it to a layer over `pages`.
fn write_layer(root: &Path, upper: &Path) {
    let (live, at) = (|name: &str| root.join("pages").join(name), |name: &str| upper.join(name));
    let gone = |name: &str| {
        let kind = rustix::fs::FileType::CharacterDevice;
        rustix::fs::mknodat(rustix::fs::CWD, at(name), kind, rustix::fs::Mode::empty(), 0).unwrap();
    };
    let copied = |from: &str, to: &str| {
        fs::copy(live(from), at(to)).unwrap();
        let file = fs::File::options().write(true).open(at(to)).unwrap();
        file.set_modified(fs::metadata(live(from)).unwrap().modified().unwrap()).unwrap();
        file
    };
    copied("one.md", "one.md");
    rustix::fs::setxattr(at("one.md"), "user.k", b"v", rustix::fs::XattrFlags::empty()).unwrap();
    fs::File::options().append(true).open(at("one.md")).unwrap().write_all(b"one, by the program\n").unwrap();
    gone("two.md");
    copied("three.md", "three.md").set_permissions(fs::Permissions::from_mode(0o600)).unwrap();
    fs::create_dir(at("four.md")).unwrap();
    symlink("two.md", at("link")).unwrap();
    fs::create_dir(at("sub")).unwrap();
    gone("sub/five.md");
    copied("sub/five.md", "new.md");
    fs::write(at("sub/six.md"), "six, by the program\n").unwrap();
    fs::create_dir(at("made")).unwrap();
    fs::write(at("made/new.md"), "new, by the program\n").unwrap();
    gone("empty");
    // The last of their kind, for `recovery` to know.
    fs::create_dir(at("last")).unwrap();
    fs::remove_dir(at("last")).unwrap();
}

/// What of a file's bytes is only in the tree once [`change`] is done.
const PROGRAMS: [&str; 3] = ["one, by the program\n", "six, by the program\n", "new, by the program\n"];

/// A killed process cannot tell what a power cut would take. But it can tell who synced what.
#[test]
fn what_was_put_back_and_not_synced_is_synced_by_the_recovery() {
    if !strace::usable() {
        return skip("crash points need strace, and leave to trace");
    }
    let home = tempfile::tempdir().unwrap();
    let root = |name: &str| {
        let root = home.path().join(name);
        prepare(&root);
        root
    };
    let workload = "removed, rolled back";
    let points = strace::points(CHILD, workload, &root("unharmed"));
    let puts_back = points.iter().position(|point| point.to_string().contains("\"two.md\", RENAME_NOREPLACE"));
    let synced = points[puts_back.expect("a rename into place")..].iter().find(|point| point.call == "syncfs").unwrap();
    let root = root("killed");
    strace::kill_at(CHILD, workload, &root, synced);
    assert!(root.join("pages/two.md").exists(), "it is put back, and nothing tells that it was not synced");
    let recovery = strace::points(CHILD, "recovery", &root);
    assert!(recovery.iter().any(|point| point.call == "syncfs"), "{recovery:?}");
}
