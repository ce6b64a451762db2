//! Sequences of transactions, work by hand and crashes, against a model of the tree and of the rows.
//!
//! The sequence runs in processes that are killed at any step of the engine, and in recovery too; the next one goes on.
//! After each crash tree and rows are together as before what was being done, or as after it, and what was acknowledged
//! is there. What somebody wrote between a crash and the recovery is in the tree or kept in the state directory. What others are
//! told of it is held against a model by [`told`].

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::Ordering;

use journal_kb::__fuzz::die_at_step;
use journal_kb::{Begin, Guard, Journal, Transaction};

use super::fork::{self, Ending};
use super::input::Input;
use super::reference::{NAMES, Node, Op, Tree};
use super::starts;
use super::told::{self, Publish, Said, Say, Sink};

/// Transactions and what else happens, one after the other.
#[derive(Clone, Debug)]
enum Act {
    Transaction(Work),
    ByHand(Op),
    Settle,
    Reopen,
    Publish(Publish),
    /// Somebody follows so many changes.
    Follow(usize),
    /// The process is killed here.
    Kill,
    /// It is killed at so many steps of the engine from here.
    KillAt(u64),
    /// What happens when a process has died: whether the next one dies in its recovery, and which file somebody replaces.
    WhenDead(u64, Option<usize>),
}

#[derive(Clone, Debug)]
struct Work {
    lock: &'static str,
    guard: Option<Way>,
    /// Done by hand, under the guard.
    guarded: Vec<Op>,
    staged: Vec<Op>,
    says: Vec<Say>,
    row: bool,
    end: End,
}

/// How a transaction guards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Paths,
    PathsReplacing,
    Tree,
    TreeReplacing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Commit,
    RollBack,
    Drop,
}

/// The longest sequence.
const ACTS: usize = 24;
/// So many recoveries in a row are killed: after five a transaction goes to quarantine.
const DEAD_RECOVERIES: u32 = 3;

fn read(input: &mut Input<'_>) -> Vec<Act> {
    let mut acts = Vec::new();
    while !input.is_empty() && acts.len() < ACTS {
        let n = acts.len();
        acts.push(match input.byte() % 20 {
            16..=18 => Act::Publish(Publish::read(input)),
            19 => Act::Follow(1 + input.below(8)),
            0..=8 => Act::Transaction(Work::read(input, n)),
            9 => Act::ByHand(Op::read(input, &format!("by hand {n}, "))),
            10 => Act::Settle,
            11 => Act::Reopen,
            12 => Act::Kill,
            13 => Act::WhenDead(input.below(40) as u64, input.below(2).checked_sub(1).map(|_| input.below(16))),
            _ => Act::KillAt(1 + input.below(100) as u64),
        });
    }
    acts
}

impl Work {
    fn read(input: &mut Input<'_>, n: usize) -> Self {
        let choices = input.byte();
        let some = |input: &mut Input<'_>, what: &str| {
            let count = 1 + input.below(5);
            (0..count).map(|at| Op::read(input, &format!("{what} {n}.{at}, "))).collect::<Vec<_>>()
        };
        let ways = [Way::Paths, Way::PathsReplacing, Way::Tree, Way::TreeReplacing];
        let guard = (choices & 3 == 3).then(|| *input.one(&ways));
        Self {
            lock: if choices & 4 == 0 { "main" } else { "other" },
            guarded: if guard.is_some() { some(input, "guarded") } else { Vec::new() },
            staged: if guard.is_none() || choices & 8 != 0 { some(input, "staged") } else { Vec::new() },
            guard,
            says: told::read(input),
            row: choices & 16 != 0,
            end: match choices >> 5 {
                0 => End::Drop,
                1 => End::RollBack,
                _ => End::Commit,
            },
        }
    }

    /// What of the guarded work can be done, and what the tree is then.
    fn guarded(&self, tree: &Tree) -> (Vec<&Op>, Tree) {
        let mut tree = tree.clone();
        let fits = |op: &Op, tree: &Tree| match self.guard {
            Some(Way::Tree | Way::TreeReplacing) => op.is_within("d"),
            _ => op.is_of_single_files(tree),
        };
        let done = self.guarded.iter().filter(|op| fits(op, &tree) && tree.apply(op)).collect();
        (done, tree)
    }

    /// Whether there is a tree to guard.
    fn is_possible(&self, tree: &Tree) -> bool {
        !matches!(self.guard, Some(Way::Tree | Way::TreeReplacing)) || tree.0.get("d") == Some(&Node::Directory)
    }
}

/// What there should be.
#[derive(Clone, Debug, Default)]
struct State {
    tree: Tree,
    rows: BTreeSet<i64>,
    said: Said,
}

/// What there is.
#[derive(Debug)]
struct Found {
    tree: Tree,
    rows: BTreeSet<i64>,
    keys: told::Keys,
}

impl State {
    /// As it is after an act.
    fn after(&self, n: usize, act: &Act) -> Self {
        let mut after = self.clone();
        match act {
            Act::Transaction(work) if work.end == End::Commit && work.is_possible(&self.tree) => {
                after.tree = work.guarded(&self.tree).1;
                // A path that is guarded is left to who works under the guard.
                for op in work.staged.iter().filter(|op| work.guard.is_none() || op.is_within("f")) {
                    after.tree.apply(op);
                }
                if work.row {
                    after.rows.insert(n as i64);
                }
                after.said.add(n, &work.says);
            }
            Act::ByHand(op) if op.is_one_call(&self.tree) => drop(after.tree.apply(op)),
            _ => {}
        }
        after
    }

    fn is(&self, found: &Found) -> bool {
        self.tree == found.tree && self.rows == found.rows && self.said.keys() == found.keys
    }

    fn differences(&self, found: &Found) -> String {
        let rows = |one: &BTreeSet<i64>, other: &BTreeSet<i64>| one.difference(other).copied().collect::<Vec<_>>();
        let (missing, more) = (rows(&self.rows, &found.rows), rows(&found.rows, &self.rows));
        let (keys, said) = (&found.keys, self.said.keys());
        let tree = self.tree.differences(&found.tree);
        format!("{tree}; rows missing: {missing:?}, rows too many: {more:?}; keys {keys:?}, said {said:?}")
    }
}

/// Runs the sequence that the bytes are.
pub(crate) fn run(bytes: &[u8]) {
    let home = home();
    let root = home.join("root");
    let _ = fs::remove_dir_all(&root);
    fs::create_dir(&root).unwrap();
    let mut input = Input::new(bytes);
    let mut sink = Sink { path: home.join("sink"), life: 0, latest: input.byte() > 127 };
    let _ = fs::remove_file(&sink.path);
    let acts = read(&mut input);
    let (mut possible, mut at) = (vec![State::default()], 0);
    let (mut dead_recoveries, mut steps, mut written) = (0, 0, None);
    loop {
        sink.life += 1;
        let live = Live { root: &root, acts: &acts, at, written: &written, sink: &sink };
        let ending = fork::run(|| live.go(&possible, steps));
        let told = fork::told();
        let found = told.found.load(Ordering::SeqCst) as usize;
        let unfinished = match (ending, found.checked_sub(1)) {
            (Ending::Done, _) => break,
            (Ending::Failed, _) => panic!("after {at} of {acts:#?}"),
            (Ending::Killed, None) => {
                // In recovery: the next one finds what this one should have found.
                dead_recoveries += 1;
                steps = if dead_recoveries < DEAD_RECOVERIES { steps + 3 } else { 0 };
                continue;
            }
            (Ending::Killed, Some(found)) => {
                let (begun, ended) =
                    (told.begun.load(Ordering::SeqCst) as usize, told.ended.load(Ordering::SeqCst) as usize);
                let mut state = possible.swap_remove(found);
                for (n, act) in acts.iter().enumerate().skip(at).take(ended) {
                    state = state.after(n, act);
                }
                at += begun;
                possible = vec![state];
                let unfinished = (begun > ended).then(|| (at - 1, &acts[at - 1]));
                possible.extend(unfinished.map(|(n, act)| possible[0].after(n, act)));
                unfinished
            }
        };
        (dead_recoveries, steps, written) = (0, 0, None);
        if let Some(Act::WhenDead(recovery, replaced)) = acts.get(at) {
            steps = *recovery;
            written = replaced.and_then(|nth| replace(&root, nth, at));
            if let Some((path, content)) = &written {
                possible = with_written(&possible, unfinished, path, content);
            }
        }
    }
}

/// Somebody replaces a file while nobody has the journal open. Answers which, and by what.
fn replace(root: &Path, nth: usize, at: usize) -> Option<(String, Vec<u8>)> {
    let tree = Tree::read(root);
    let files: Vec<_> = tree.0.iter().filter(|(_, node)| matches!(node, Node::File(_))).collect();
    let path = files.get(nth.checked_rem(files.len())?)?.0.clone();
    let content = format!("when it was dead {at}, ").into_bytes();
    by_hand(root, &path, |to| fs::write(to, &content));
    Some((path, content))
}

/// What may be found when somebody has replaced a file: their version stays, or the one that was committed takes its place,
/// or the one that was guarded.
fn with_written(possible: &[State], unfinished: Option<(usize, &Act)>, path: &str, content: &[u8]) -> Vec<State> {
    let mut all = possible.to_vec();
    for state in possible {
        let mut with = state.clone();
        if matches!(with.tree.0.get(path), Some(Node::File(_))) {
            with.tree.0.insert(path.to_owned(), Node::File(content.to_vec()));
            all.extend(unfinished.map(|(n, act)| with.after(n, act)));
            all.push(with);
        }
    }
    all
}

/// Where the root is made.
fn home() -> &'static Path {
    static HOME: OnceLock<tempfile::TempDir> = OnceLock::new();
    HOME.get_or_init(starts::scratch).path()
}

/// Makes something beside the root and puts it in place at once, as careful programs do.
fn by_hand(root: &Path, path: &str, make: impl FnOnce(&PathBuf) -> std::io::Result<()>) {
    let (to, temporary) = (root.join(path), root.with_file_name("temporary"));
    let _ = fs::remove_file(&temporary);
    make(&temporary).unwrap();
    fs::rename(temporary, to).unwrap();
}

/// A process that goes on with the sequence.
struct Live<'a> {
    root: &'a Path,
    acts: &'a [Act],
    at: usize,
    written: &'a Option<(String, Vec<u8>)>,
    sink: &'a Sink,
}

impl Live<'_> {
    fn open(&self) -> Journal {
        let journal = starts::options().open(self.root).unwrap_or_else(|error| panic!("opening the journal: {error}"));
        journal.migrate(&["CREATE TABLE done (n INTEGER PRIMARY KEY) STRICT", told::TABLES]).unwrap();
        journal
    }

    fn look(&self, journal: &Journal) -> Found {
        let rows = journal.read(|rows| rows.query_map("SELECT n FROM done", (), |row| row.get(0))).unwrap();
        Found { tree: Tree::read(self.root), rows: rows.into_iter().collect(), keys: told::keys(journal) }
    }

    fn check_told(&self, journal: &Journal, state: &State) {
        self.sink.check(journal, &state.said);
        let is_commit = |act: Option<&Act>| matches!(act, Some(Act::Transaction(work)) if work.end == End::Commit);
        told::check_followed(journal, &state.rows, |n| is_commit(self.acts.get(n)));
    }

    fn go(&self, possible: &[State], steps: u64) {
        let told = fork::told();
        if steps > 0 {
            die_at_step(steps, fork::last_words);
        }
        let mut journal = self.open();
        let recovered = journal.recover().unwrap_or_else(|error| panic!("recovery: {error}"));
        die_at_step(0, fork::last_words);
        let found = self.look(&journal);
        let is = possible.iter().position(|state| state.is(&found));
        let Some(is) = is else {
            let told: Vec<_> = possible.iter().map(|state| state.differences(&found)).collect();
            panic!("after a crash ({recovered:?}) there is neither of what may be there:\n- {}", told.join("\n- "));
        };
        assert_eq!((recovered.pending, recovered.quarantined), (0, 0), "{recovered:?}");
        match self.written {
            Some((path, content)) => assert!(self.is_kept(content), "what somebody wrote to {path} is lost"),
            None => assert_eq!(recovered.moved_aside, 0, "{recovered:?}"),
        }
        let mut state = possible[is].clone();
        self.check_told(&journal, &state);
        told.found.store(is as u64 + 1, Ordering::SeqCst);
        for (n, act) in self.acts.iter().enumerate().skip(self.at) {
            told.begun.fetch_add(1, Ordering::SeqCst);
            let after = state.after(n, act);
            match act {
                Act::Transaction(work) => self.transaction(&journal, n, work, &state.tree),
                Act::ByHand(op) => {
                    if op.is_one_call(&state.tree) && state.tree.clone().apply(op) {
                        self.do_by_hand(op);
                    }
                }
                Act::Settle => drop(journal.settle().unwrap()),
                Act::Reopen => {
                    journal.close().unwrap();
                    journal = self.open();
                }
                Act::Publish(how) => self.sink.publish(&journal, *how),
                Act::Follow(most) => told::follow(&journal, *most),
                Act::WhenDead(..) => {}
                Act::Kill => {
                    told.ended.fetch_add(1, Ordering::SeqCst);
                    fork::die();
                }
                Act::KillAt(steps) => die_at_step(*steps, fork::last_words),
            }
            state = after;
            let found = self.look(&journal);
            assert!(state.is(&found), "after act {n}, {act:?}: {}", state.differences(&found));
            self.check_told(&journal, &state);
            told.ended.fetch_add(1, Ordering::SeqCst);
        }
        journal.close().unwrap();
    }

    /// True when some file below the root holds these bytes.
    fn is_kept(&self, content: &[u8]) -> bool {
        let all = walkdir::WalkDir::new(self.root).into_iter().map(Result::unwrap);
        all.filter(|entry| entry.file_type().is_file()).any(|entry| fs::read(entry.path()).unwrap() == content)
    }

    fn transaction(&self, journal: &Journal, n: usize, work: &Work, tree: &Tree) {
        if !work.is_possible(tree) {
            return;
        }
        let failed = |what: &str, error: &dyn std::fmt::Display| -> ! { panic!("{what}, {n}, {work:?}: {error}") };
        let begin = Begin::new(format!("{n}")).lock(work.lock);
        let mut txn = journal.begin_with(begin).unwrap_or_else(|error| failed("begin", &error));
        let (guarded, mut tree) = match work.guard {
            Some(way) => {
                let names = NAMES.iter().filter(|name| tree.is_straight(name));
                let guard = match way {
                    Way::Paths => Guard::paths(names),
                    Way::PathsReplacing => Guard::paths(names).replacing(),
                    Way::Tree => Guard::tree("d"),
                    Way::TreeReplacing => Guard::tree("d").replacing(),
                };
                txn.guard_with(guard).unwrap_or_else(|error| failed("guard", &error));
                work.guarded(tree)
            }
            None => (Vec::new(), tree.clone()),
        };
        guarded.into_iter().for_each(|op| self.do_by_hand(op));
        for op in work.staged.iter().filter(|op| work.guard.is_none() || op.is_within("f")) {
            // What the rules refuse is left out: what the engine says to it is the business of another test.
            if tree.apply(op) {
                stage(&mut txn, op).unwrap_or_else(|error| failed("staging", &error));
            }
        }
        told::send(&mut txn, n, &work.says).unwrap_or_else(|error| failed("telling", &error));
        if work.row {
            let n = n as i64;
            txn.sql(move |rows| rows.execute("INSERT INTO done VALUES (?1)", [n]).map(drop)).unwrap();
        }
        match work.end {
            End::Commit => {
                let receipt = txn.commit().unwrap_or_else(|error| failed("commit", &error));
                assert!(receipt.warnings().is_empty(), "{n}, {work:?}: {:?}", receipt.warnings());
            }
            End::RollBack => drop(txn.rollback().unwrap_or_else(|error| failed("rollback", &error))),
            End::Drop => drop(txn),
        }
    }

    /// Does by `std::fs` what the rules allow, each in one call that changes the tree.
    fn do_by_hand(&self, op: &Op) {
        let at = |path: &str| self.root.join(path);
        let make_room = |path: &str| fs::create_dir_all(at(path).parent().unwrap()).unwrap();
        match op {
            Op::Write(path, bytes) => {
                make_room(path);
                by_hand(self.root, path, |to| fs::write(to, bytes));
            }
            Op::Symlink(target, path) => {
                make_room(path);
                by_hand(self.root, path, |to| symlink(target, to));
            }
            Op::Remove(path) => fs::remove_file(at(path)).unwrap(),
            Op::RemoveDirAll(path) => fs::remove_dir_all(at(path)).unwrap(),
            Op::CreateDirAll(path) => fs::create_dir_all(at(path)).unwrap(),
            Op::Rename(from, to) if from != to => {
                make_room(to);
                fs::rename(at(from), at(to)).unwrap();
            }
            Op::Rename(..) => {}
        }
    }
}

fn stage(txn: &mut Transaction, op: &Op) -> journal_kb::Result<()> {
    match op {
        Op::Write(path, bytes) => txn.write(path, bytes),
        Op::Remove(path) => txn.remove(path),
        Op::RemoveDirAll(path) => txn.remove_dir_all(path),
        Op::Rename(from, to) => txn.rename(from, to),
        Op::CreateDirAll(path) => txn.create_dir_all(path),
        Op::Symlink(target, path) => txn.symlink(target, path),
    }
}
