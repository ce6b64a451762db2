//! Every verb may be killed at any system call that changes anything: repeated, it comes to the same end, and no version of
//! anything is lost on the way.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use journal_kb::{Error, Journal, Resolved, Result};

use super::{FIRST, given_up, guarded_tree, killed, sql, txn};
use crate::crash_points::strace;
use crate::skip::skip;
use crate::support::{Tree, manifest_of};

const CHILD: &str = "quarantine::killed::child";
const VERBS: [&str; 4] = ["retry", "restore", "keep-live", "discard"];

fn decide(journal: &Journal, what: &str) -> Result<Resolved> {
    let (kind, verb) = what.split_once(' ').unwrap();
    let id = if kind == "transaction" { txn(1) } else { FIRST };
    match verb {
        "retry" => journal.quarantine().retry(id),
        "restore" => journal.quarantine().restore(id),
        "keep-live" => journal.quarantine().keep_live(id),
        _ => journal.quarantine().discard(id),
    }
}

/// Not a test: decides, and may be killed.
#[test]
fn child() {
    let Ok(what) = std::env::var("JOURNAL_KB_CHILD") else { return };
    let root = PathBuf::from(std::env::var_os("JOURNAL_KB_ROOT").unwrap());
    let journal = Journal::open(root).unwrap();
    strace::ready();
    decide(&journal, &what).unwrap();
    strace::say("decided");
    journal.close().unwrap();
    strace::say("done");
}

#[test]
fn a_decision_about_a_transaction_killed_at_every_call_is_made_by_the_next() {
    sweep("transaction", given_up);
}

#[test]
fn a_decision_about_a_guard_killed_at_every_call_is_made_by_the_next() {
    sweep("guard", |tree| {
        give_up_guard(tree, false);
    });
}

#[test]
fn a_decision_about_a_guarded_tree_killed_at_every_call_is_made_by_the_next() {
    sweep("tree", |tree| {
        give_up_guard(tree, true);
    });
}

fn give_up_guard(tree: &Tree, whole_tree: bool) {
    for entry in std::fs::read_dir(guarded_tree().root()).unwrap() {
        let from = entry.unwrap().path();
        let copied = std::process::Command::new("cp").arg("-a").arg(&from).arg(tree.root()).status().unwrap();
        assert!(copied.success());
    }
    killed(tree, whole_tree);
    sql(tree, "UPDATE journal_guard SET attempts = 5");
}

/// Modes and bytes by path; each case has times of its own.
type Picture = BTreeMap<PathBuf, (u32, Vec<u8>)>;

fn picture(root: &Path) -> Picture {
    if !root.exists() {
        return Picture::new();
    }
    manifest_of(root).into_iter().map(|(path, entry)| (path, (entry.mode, entry.bytes))).collect()
}

fn differences(found: &Picture, wanted: &Picture) -> Vec<String> {
    let paths: BTreeSet<_> = found.keys().chain(wanted.keys()).collect();
    let differ = paths.into_iter().filter(|path| found.get(*path) != wanted.get(*path));
    differ.map(|path| format!("{path:?}: {:?}, not {:?}", found.get(path), wanted.get(path))).collect()
}

/// What there is in the end.
struct State {
    tree: Picture,
    kept: Picture,
    waiting: Vec<String>,
}

impl State {
    fn of(root: &Path) -> Self {
        let journal = Journal::open(root).unwrap();
        let waiting = journal.quarantine().list().unwrap().into_iter();
        let waiting = waiting.filter(|entry| entry.kind != "files").map(|entry| entry.id.to_string()).collect();
        journal.close().unwrap();
        Self { tree: picture(root), kept: picture(&root.join(".journal/quarantine")), waiting }
    }

    fn contents(&self, history: &Picture) -> BTreeSet<Vec<u8>> {
        let all = self.tree.values().chain(self.kept.values()).chain(history.values());
        all.map(|(_, bytes)| bytes.clone()).collect()
    }
}

fn sweep(kind: &str, prepare: impl Fn(&Tree) + Sync) {
    if !strace::usable() {
        return skip("crash points need strace, and leave to trace");
    }
    // Evidence goes by inodes, so each case is made anew. Recovered once, so that what is counted is the verb's.
    let prepared = || {
        let tree = Tree::new();
        prepare(&tree);
        Journal::open(tree.root()).unwrap().close().unwrap();
        tree
    };
    let faults = Mutex::new(Vec::new());
    for verb in VERBS {
        let what = format!("{} {verb}", if kind == "transaction" { kind } else { "guard" });
        let unharmed = prepared();
        let points = strace::points(CHILD, &what, unharmed.root());
        let wanted = State::of(unharmed.root());
        assert!(wanted.waiting.is_empty(), "{what}: {:?}", wanted.waiting);
        let all = wanted.contents(&picture(&unharmed.path(".journal/history")));
        let every = every(points.len());
        let some: Vec<_> = points.into_iter().step_by(every).collect();
        let killed = crate::crash_points::at_each(&some, |point| {
            let tree = prepared();
            let root = tree.root();
            let end = strace::kill_at(CHILD, &what, root, point);
            let mut wrong = Vec::new();
            let journal = Journal::open(root).unwrap();
            match decide(&journal, &what) {
                Ok(_) | Err(Error::NotInQuarantine { .. }) => {}
                Err(error) => wrong.push(error.to_string()),
            }
            journal.close().unwrap();
            let state = State::of(root);
            wrong.extend(differences(&state.tree, &wanted.tree));
            if verb != "retry" && verb != "restore" {
                wrong.extend(differences(&state.kept, &wanted.kept));
            }
            let found = state.contents(&picture(&root.join(".journal/history")));
            let lost = all.difference(&found);
            wrong.extend(
                lost.map(|bytes| format!("lost: {:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(24)]))),
            );
            wrong.extend(state.waiting);
            if !wrong.is_empty() {
                faults.lock().unwrap().push(format!("{kind} {verb}, killed at {point}: {wrong:#?}"));
            }
            end.killed
        });
        let met = killed.iter().filter(|killed| **killed).count();
        println!("{kind} {verb}: {met} of {} points killed", some.len());
        assert!(met * 10 >= some.len() * 8, "{kind} {verb}: only {met} of {} points were met", some.len());
    }
    let faults = faults.into_inner().unwrap();
    assert!(faults.is_empty(), "{} faults\n{}", faults.len(), faults.join("\n"));
}

/// Every how manieth point is tried: JOURNAL_KB_CRASH_POINTS says how many there are to be, 6 where it says nothing.
fn every(points: usize) -> usize {
    let wanted = std::env::var("JOURNAL_KB_CRASH_POINTS").ok().and_then(|some| some.parse().ok());
    points.div_ceil(wanted.unwrap_or(6).max(1)).max(1)
}
