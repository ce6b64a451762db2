//! The same for guards: SIGKILL at every system call that changes anything, from the guard to the end of its transaction,
//! leaves the tree as it was before or as it was committed, and nothing lost that ever was in it. And an error, EIO or
//! ENOSPC, from each of these calls in turn, with a process that goes on: either it commits, or it puts back, or whoever
//! opens the journal next does.
//!
//! What a baseline needs to have a past is done by the child before it is watched, because a copy of a baseline is none:
//! it goes by inodes. By default some points of each workload are tried, evenly over all of it; `JOURNAL_KB_CRASH_POINTS`
//! says how many, or `all`.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use journal_kb::{Guard, Journal, Layer, Transaction};

use super::manifest::{self, Manifest};
use super::strace::{self, End, Point};
use super::{State, at_each, open};
use crate::skip::skip;

const CHILD: &str = "crash_points::guards::guards_child";
const POINTS: &str = "JOURNAL_KB_CRASH_POINTS";
/// So many points of a workload are tried unless told otherwise.
const SOME: usize = 12;

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

fn workload(name: &str) -> Workload {
    *WORKLOADS.iter().find(|workload| workload.name == name).unwrap()
}

#[test]
fn guarded_paths_killed_at_every_call_are_as_before_or_as_committed() {
    WORKLOADS[..2].iter().for_each(|&workload| sweep(workload));
}

#[test]
fn a_guarded_tree_killed_at_every_call_is_as_before_or_as_committed() {
    WORKLOADS[2..5].iter().for_each(|&workload| sweep(workload));
}

#[test]
fn a_tree_guarded_for_replacing_killed_at_every_call_is_as_before_or_as_committed() {
    WORKLOADS[5..7].iter().for_each(|&workload| sweep(workload));
}

#[test]
fn a_guard_whose_commit_is_refused_killed_at_every_call_is_as_before() {
    sweep(WORKLOADS[7]);
}

#[test]
fn a_layer_that_is_absorbed_killed_at_every_call_is_as_before_or_as_committed() {
    WORKLOADS[9..].iter().for_each(|&workload| sweep(workload));
}

#[test]
fn a_recovery_of_a_guard_killed_at_every_call_is_done_by_the_next() {
    for name in
        ["paths, rolled back", "baseline with a past, rolled back", "replacing, rolled back", "layer, rolled back"]
    {
        recovery(workload(name));
    }
}

#[test]
fn a_guard_meets_an_error_at_every_call_and_nothing_is_lost() {
    for name in ["paths, rolled back", "baseline with a past, committed", "replacing, rolled back", "layer, committed"]
    {
        for error in ["EIO", "ENOSPC"] {
            errors(workload(name), error);
        }
    }
}

/// Not a test: what the others start as a child.
#[test]
fn guards_child() {
    let Ok(name) = std::env::var("JOURNAL_KB_CHILD") else { return };
    let root = PathBuf::from(std::env::var_os("JOURNAL_KB_ROOT").unwrap());
    if name == "recovery" {
        strace::ready();
        open(&root).close().unwrap();
        return strace::say("done");
    }
    let workload = workload(&name);
    let journal = open(&root);
    if workload.past {
        past(&journal, workload.guard);
        edit_by_hand(&root);
    }
    strace::ready();
    work(&journal, workload, &strace::say);
    match journal.close() {
        Ok(()) => strace::say("done"),
        Err(error) => strace::say(&format!("not closed: {error}")),
    }
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
            change(&root, workload.guard);
            say("changed");
        }
        Some(layer) => {
            write_layer(&root, &layer.upper());
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

struct Sweep {
    workload: Workload,
    home: tempfile::TempDir,
    before: State,
    after: Option<State>,
    faults: Mutex<Vec<String>>,
}

impl Sweep {
    fn new(workload: Workload) -> (Self, Vec<Point>) {
        let home = tempfile::tempdir().unwrap();
        prepare(&home.path().join("prepared"));
        let unharmed = home.path().join("before");
        manifest::copy(&home.path().join("prepared"), &unharmed);
        if workload.past {
            edit_by_hand(&unharmed);
        }
        let before = State::recovered(&unharmed);
        let unharmed = home.path().join("unharmed");
        manifest::copy(&home.path().join("prepared"), &unharmed);
        let points = strace::points(CHILD, workload.name, &unharmed);
        let state = State::recovered(&unharmed);
        assert_eq!(state.strays, [""; 0], "{}", workload.name);
        let after = if workload.ends == Ends::Committed {
            assert!(state.tree.file("pages/made/new.md").is_some() && state.tree.file("pages/two.md").is_none());
            assert_eq!(state.tree.file("pages/staged.md"), Some(&b"staged\n"[..]));
            Some(State { tree: state.tree.with_times_only_of(&before.tree), ..state })
        } else {
            assert_eq!(state.tree.differences(&before.tree), [""; 0], "{}", workload.name);
            None
        };
        (Self { workload, home, before, after, faults: Mutex::default() }, points)
    }

    fn case(&self, what: &dyn std::fmt::Display, work: impl FnOnce(&Path) -> End) {
        let case = tempfile::tempdir_in(self.home.path()).unwrap();
        let root = case.path().join("kb");
        manifest::copy(&self.home.path().join("prepared"), &root);
        let end = work(&root);
        self.compare(what, &root, &end);
    }

    fn compare(&self, what: &dyn std::fmt::Display, root: &Path, end: &End) {
        let state = State::recovered(root);
        let expected = match &self.after {
            Some(after) if state.rows == after.rows => after,
            _ => &self.before,
        };
        let mut wrong = state.tree.differences(&expected.tree);
        wrong.extend(state.strays);
        if state.rows != expected.rows {
            wrong.push(format!("rows {:?}", state.rows));
        }
        if end.said("committed") && self.after.as_ref().is_none_or(|after| state.rows != after.rows) {
            wrong.push("commit had returned Ok".to_owned());
        }
        if end.said("damaged") {
            wrong.push("said to be damaged".to_owned());
        }
        let kept: Vec<&[u8]> = state.tree.contents().chain(state.history.contents()).collect();
        let quarantine = Manifest::of(&root.join(".journal/quarantine"));
        let kept: Vec<&[u8]> = kept.into_iter().chain(quarantine.contents()).collect();
        let mut wanted: Vec<&[u8]> = self.before.tree.contents().collect();
        if end.said("changed") {
            wanted.extend(PROGRAMS.iter().map(|text| text.as_bytes()));
        }
        for bytes in wanted {
            // Appended, it stands behind what was there.
            if !kept.iter().any(|kept| kept.ends_with(bytes)) {
                wrong.push(format!("not kept: {:?}", String::from_utf8_lossy(bytes)));
            }
        }
        if !wrong.is_empty() {
            self.fault(format!("{what}, the child said {:?}: {wrong:#?}", end.words()));
        }
    }

    fn fault(&self, fault: String) {
        self.faults.lock().unwrap().push(fault);
    }

    fn end(self, what: &str) {
        let faults = self.faults.into_inner().unwrap();
        assert!(faults.is_empty(), "{} {what}: {} faults\n{}", self.workload.name, faults.len(), faults.join("\n"));
    }
}

/// Some of the points, evenly over all of them.
fn some(points: Vec<Point>, what: &str) -> Vec<Point> {
    let all = points.len();
    let wanted = match std::env::var(POINTS) {
        Ok(all_of_them) if all_of_them == "all" => all,
        Ok(number) => number.parse().unwrap(),
        Err(_) => SOME,
    };
    let chosen: BTreeSet<usize> = (0..wanted.min(all)).map(|n| n * all / wanted.min(all)).collect();
    println!("{what}: {} of {all} points", chosen.len());
    points.into_iter().enumerate().filter(|(n, _)| chosen.contains(n)).map(|(_, point)| point).collect()
}

fn sweep(workload: Workload) {
    if !strace::usable() {
        return skip("crash points need strace, and leave to trace");
    }
    let (sweep, points) = Sweep::new(workload);
    at_each(&some(points, workload.name), |point| {
        sweep.case(point, |root| strace::kill_at(CHILD, workload.name, root, point));
    });
    sweep.end("killed");
}

/// A child that dies with everything changed, then a recovery that is killed at each of its own calls.
fn recovery(workload: Workload) {
    if !strace::usable() {
        return skip("crash points need strace, and leave to trace");
    }
    let (sweep, points) = Sweep::new(workload);
    // The first call behind the changes of the program, which are the last of their kind.
    let last = points.iter().rposition(|point| point.call.contains("rmdir")).expect("the program's last change");
    let starts = [last + 1, last + (points.len() - last) / 2];
    for start in starts.map(|n| &points[n]) {
        let case = sweep.home.path().join(format!("start-{}-{}", start.call, start.nth));
        manifest::copy(&sweep.home.path().join("prepared"), &case);
        strace::kill_at(CHILD, workload.name, &case, start);
        let points = strace::points(CHILD, "recovery", &case);
        at_each(&some(points, &format!("recovery of {}", workload.name)), |point| {
            sweep.case(&format!("{start}; recovery at {point}"), |root| {
                let first = strace::kill_at(CHILD, workload.name, root, start);
                strace::kill_at(CHILD, "recovery", root, point);
                first
            });
        });
    }
    sweep.end("recovered");
}

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

/// An error from each call in turn.
fn errors(workload: Workload, error: &str) {
    if !strace::usable() {
        return skip("crash points need strace, and leave to trace");
    }
    let (sweep, points) = Sweep::new(workload);
    // The changes of the program are not the engine's, and must not fail.
    let says = |point: &Point, words: &[&str]| words.iter().any(|word| point.to_string().contains(word));
    // What it does to a layer goes by descriptors in part.
    let first = points.iter().position(|point| says(point, &["/upper/"])).unwrap_or(0);
    let last = points.iter().rposition(|point| says(point, &["/upper/"])).map_or(0, |last| last + 1);
    let is_own = |n: usize, point: &Point| (first..last).contains(&n) || says(point, &["/pages/", "by the program"]);
    let points =
        points.into_iter().enumerate().filter(|(n, point)| !is_own(*n, point)).map(|(_, point)| point).collect();
    at_each(&some(points, &format!("{} with {error}", workload.name)), |point| {
        sweep.case(&format!("{error} from {point}"), |root| strace::fail_at(CHILD, workload.name, root, point, error));
    });
    sweep.end(error);
}
