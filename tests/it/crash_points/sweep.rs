//! One workload, killed or given an error at every call of its that changes anything, and its recovery after that.
//!
//! A child opens a copy of the prepared tree, does what is the workload's past, and is watched from then on. What it leaves is
//! recovered and has to be, files and rows together, as before or as after the unharmed run. By default some points of each
//! workload are tried, evenly over all of it; `JOURNAL_KB_CRASH_POINTS` says how many, or `all`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use journal_kb::Journal;

use super::manifest::{self, Manifest};
use super::strace::{self, End, Point};
use super::{FAILED, KILLED, RECOVERY_KILLED, State, at_each, locks, open};
use crate::skip::skip;

pub(crate) const CHILD: &str = "crash_points::registry::child";
const POINTS: &str = "JOURNAL_KB_CRASH_POINTS";
/// So many points of a workload are tried unless told otherwise.
const SOME: usize = 12;

/// Done in the child, which tells how far it came.
pub(crate) type Work = dyn Fn(&Journal, &dyn Fn(&str)) + Sync;

/// What is tried. Each capability registers its own in [`super::registry`].
pub(crate) struct Workload {
    pub(crate) name: &'static str,
    /// Makes the root and what lies in it.
    pub(crate) prepare: Box<dyn Fn(&Path) + Sync>,
    /// What the child does before it is watched.
    pub(crate) past: Box<dyn Fn(&Journal) + Sync>,
    /// What is watched, but for closing the journal. Tells how far it came: "committed" once that is promised, "changed"
    /// once everything in `keeps` is in the tree.
    pub(crate) work: Box<Work>,
    /// Bytes that nobody may lose any more, as the ends of files.
    pub(crate) keeps: &'static [&'static str],
    /// By what the calls are known that are not the engine's, and must not fail.
    pub(crate) others: &'static [&'static str],
    /// All calls between the first and the last that are known by one of these are not the engine's either.
    pub(crate) between: &'static [&'static str],
    /// A recovery of it is tried from behind the last call that is known by this; from the middle if there is none.
    pub(crate) last: &'static str,
    /// Its past gives files the time of the day.
    pub(crate) fresh: bool,
    /// What else is wrong with what the child left, once it is recovered.
    pub(crate) also: fn(&Path, &End) -> Vec<String>,
}

impl Workload {
    pub(crate) fn new(
        name: &'static str,
        prepare: impl Fn(&Path) + Sync + 'static,
        work: impl Fn(&Journal, &dyn Fn(&str)) + Sync + 'static,
    ) -> Self {
        Self {
            name,
            prepare: Box::new(prepare),
            past: Box::new(|_| ()),
            work: Box::new(work),
            keeps: &[],
            others: &[],
            between: &[],
            last: "none",
            fresh: false,
            also: |_, _| Vec::new(),
        }
    }
}

/// In the child.
pub(crate) fn run(workload: Option<&Workload>, root: &Path) {
    let Some(workload) = workload else {
        strace::ready();
        open(root).close().unwrap();
        return strace::say("done");
    };
    let journal = open(root);
    (workload.past)(&journal);
    strace::ready();
    (workload.work)(&journal, &strace::say);
    match journal.close() {
        Ok(()) => strace::say("done"),
        Err(error) => strace::say(&format!("not closed: {error}")),
    }
}

/// Killed at each of its calls.
pub(crate) fn killed(workload: &Workload) {
    let Some((sweep, points)) = Sweep::new(workload) else { return };
    at_each(KILLED, &some(points, workload.name), |point| {
        sweep.case(point, |root| strace::kill_at(CHILD, workload.name, root, point));
    });
    sweep.end("killed");
}

/// A child that dies in the middle of it, then a recovery that is killed at each of its own calls.
pub(crate) fn recovery_killed(workload: &Workload) {
    let Some((sweep, points)) = Sweep::new(workload) else { return };
    let last = points.iter().rposition(|point| point.to_string().contains(workload.last));
    let last = last.map_or(points.len() / 2, |last| last + 1);
    for start in [last, last + (points.len() - last) / 2].map(|n| &points[n]) {
        let case = sweep.home.path().join(format!("start-{}-{}", start.call, start.nth));
        manifest::copy(&sweep.prepared, &case);
        strace::kill_at(CHILD, workload.name, &case, start);
        let points = strace::points(CHILD, "recovery", &case);
        at_each(RECOVERY_KILLED, &some(points, &format!("recovery of {}", workload.name)), |point| {
            sweep.case(&format!("{start}; recovery at {point}"), |root| {
                let first = strace::kill_at(CHILD, workload.name, root, start);
                strace::kill_at(CHILD, "recovery", root, point);
                first
            });
        });
    }
    sweep.end("recovered");
}

/// An error from each of its calls in turn: from that one alone, then also from all of its kind that follow on that thread.
pub(crate) fn failed(workload: &Workload, error: &str) {
    failed_at(workload, error, |points| some(points, &format!("{} with {error}", workload.name)));
}

/// The same, from some of them.
pub(crate) fn failed_at(workload: &Workload, error: &str, which: impl Fn(Vec<Point>) -> Vec<Point>) {
    let Some((sweep, points)) = Sweep::new(workload) else { return };
    let says = |point: &Point, words: &[&str]| words.iter().any(|word| point.to_string().contains(word));
    let first = points.iter().position(|point| says(point, workload.between)).unwrap_or(0);
    let last = points.iter().rposition(|point| says(point, workload.between)).map_or(0, |last| last + 1);
    let is_own = |n: usize, point: &Point| !(first..last).contains(&n) && !says(point, workload.others);
    let points = points.into_iter().enumerate().filter(|(n, point)| is_own(*n, point)).map(|(_, point)| point);
    let points = which(points.collect());
    for onwards in ["", "+"] {
        at_each(FAILED, &points, |point| {
            let what = format!("{error}{onwards} from {point}");
            sweep.case(&what, |root| strace::fail_at(CHILD, workload.name, root, point, error, onwards));
        });
    }
    sweep.end(error);
}

struct Sweep<'w> {
    workload: &'w Workload,
    home: tempfile::TempDir,
    prepared: PathBuf,
    before: State,
    after: Option<State>,
    faults: Mutex<Vec<String>>,
}

impl<'w> Sweep<'w> {
    /// Runs the workload unharmed. Its points, and what has to be before and after it.
    fn new(workload: &'w Workload) -> Option<(Self, Vec<Point>)> {
        if !strace::usable() {
            skip("crash points need strace, and leave to trace");
            return None;
        }
        let home = tempfile::tempdir().unwrap();
        let prepared = home.path().join("prepared");
        (workload.prepare)(&prepared);
        let copy = |name: &str| {
            let root = home.path().join(name);
            manifest::copy(&prepared, &root);
            root
        };
        let untouched = copy("before");
        let journal = open(&untouched);
        (workload.past)(&journal);
        journal.close().unwrap();
        let mut before = State::recovered(&untouched);
        if workload.fresh {
            before.tree = before.tree.with_times_only_of(&Manifest::of(&prepared));
        }
        let unharmed = copy("unharmed");
        let points = strace::points(CHILD, workload.name, &unharmed);
        let state = State::recovered(&unharmed);
        assert_eq!(state.strays, [""; 0], "{}", workload.name);
        let after = if state.rows == before.rows {
            assert_eq!(state.tree.differences(&before.tree), [""; 0], "{}", workload.name);
            None
        } else {
            assert!(!state.tree.differences(&before.tree).is_empty(), "{}: nothing was done", workload.name);
            Some(State { tree: state.tree.with_times_only_of(&before.tree), ..state })
        };
        Some((Self { workload, home, prepared, before, after, faults: Mutex::default() }, points))
    }

    /// Has `work` harm children on a fresh copy of the prepared tree, then looks at what they left.
    fn case(&self, what: &dyn std::fmt::Display, work: impl FnOnce(&Path) -> End) {
        let case = tempfile::tempdir_in(self.home.path()).unwrap();
        let root = case.path().join("kb");
        manifest::copy(&self.prepared, &root);
        let end = work(&root);
        let wrong = self.wrong(&root, &end);
        if !wrong.is_empty() {
            let fault = format!("{what}, the child said {:?}: {wrong:#?}", end.words());
            self.faults.lock().unwrap().push(fault);
        }
    }

    fn wrong(&self, root: &Path, end: &End) -> Vec<String> {
        let Ok(state) = std::panic::catch_unwind(|| State::recovered(root)) else {
            return vec!["it could not be recovered, or not read".to_owned()];
        };
        let after = self.after.as_ref().filter(|after| state.rows == after.rows);
        let expected = after.unwrap_or(&self.before);
        let mut wrong = state.tree.differences(&expected.tree);
        wrong.extend(state.strays);
        wrong.extend(locks::stuck(root));
        if state.rows != expected.rows {
            wrong.push(format!("rows {:?}", state.rows));
        }
        if end.said("committed") && after.is_none() {
            wrong.push("commit had returned Ok".to_owned());
        }
        if end.said("damaged") {
            wrong.push("said to be damaged".to_owned());
        }
        let quarantine = Manifest::of(&root.join(".journal/quarantine"));
        let kept: Vec<&[u8]> =
            state.tree.contents().chain(state.history.contents()).chain(quarantine.contents()).collect();
        let mut wanted: Vec<&[u8]> = self.before.tree.contents().collect();
        if end.said("changed") {
            wanted.extend(self.workload.keeps.iter().map(|text| text.as_bytes()));
        }
        for bytes in wanted {
            // Appended, it stands behind what was there.
            if !kept.iter().any(|kept| kept.starts_with(bytes) || kept.ends_with(bytes)) {
                wrong.push(format!("not kept: {:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(24)])));
            }
        }
        wrong.extend((self.workload.also)(root, end));
        wrong
    }

    fn end(self, what: &str) {
        let faults = self.faults.into_inner().unwrap();
        assert!(faults.is_empty(), "{} {what}: {} faults\n{}", self.workload.name, faults.len(), faults.join("\n"));
    }
}

/// Some of the points, evenly over all of them.
pub(crate) fn some<P>(points: Vec<P>, what: &str) -> Vec<P> {
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
