//! The witness: a file that whoever holds a lock appends to, a line in one write, and what can be told from it.
//!
//! Nobody reads a clock, and nobody asks the engine: that one process was inside while another one was stands in the order
//! of the lines. A killed process never leaves; the supervisor says before it kills, and no line of a process may follow
//! once somebody has entered after that.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;

/// The last word of a line. One without it was torn by a kill, and says nothing.
const END: &str = ".";
/// Stands for no value.
pub(super) const NOTHING: &str = "-";

/// How a lock is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Exclusive,
    Shared,
}

impl Mode {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Exclusive => "exclusive",
            Self::Shared => "shared",
        }
    }
}

/// The file, to be appended to by many processes.
pub(super) struct Witness(File);

impl Witness {
    pub(super) fn open(path: &Path) -> Self {
        Self(OpenOptions::new().append(true).create(true).open(path).unwrap())
    }

    /// Begins a line of its own, so that one that was torn spoils no other.
    pub(super) fn says(&self, words: &str) {
        (&self.0).write_all(format!("\n{words} {END}").as_bytes()).unwrap();
    }
}

/// What the check of a witness counted, where it found no fault.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) enters: BTreeMap<u32, usize>,
    /// Holders that were killed while they held.
    pub(super) killed_inside: usize,
    pub(super) killed: usize,
    /// The most that held one lock at once.
    pub(super) most_at_once: usize,
    /// What was acknowledged.
    pub(super) done: BTreeSet<String>,
}

/// One lock, as the lines so far tell of it.
#[derive(Default)]
struct Lock<'w> {
    /// Who is inside, and whether exclusively.
    inside: Vec<(&'w str, bool)>,
    fence: i64,
    /// The value that is there: none has been committed before the first.
    value: Option<&'w str>,
    /// The value that may be there instead, and of whom.
    intended: Option<(&'w str, &'w str)>,
}

/// Checks what a witness says, line by line. The words are
///
/// - `enter WHO LOCK exclusive|shared FENCE FILE ROW`: inside, with a fence if it asked for one, and what the file and the row
///   of this lock were;
/// - `intend WHO LOCK VALUE`: about to commit that to both;
/// - `done WHO VALUE`: the commit was acknowledged;
/// - `leave WHO LOCK`: about to release;
/// - `kill PROCESS`: from here on it may be gone.
///
/// WHO is a thread of a process, `7.1`.
pub(super) fn check(text: &str) -> Result<Counts, String> {
    let mut locks: BTreeMap<&str, Lock<'_>> = BTreeMap::new();
    let lines = || text.lines().filter_map(|line| line.strip_suffix(END)?.strip_suffix(' '));
    let done = lines().filter_map(|line| Some(line.strip_prefix("done ")?.split_once(' ')?.1.to_owned()));
    let mut counts = Counts { done: done.collect(), ..Counts::default() };
    let mut killed = BTreeSet::new();
    // Whose hold was over because they were dead.
    let mut over = BTreeSet::new();
    for (number, line) in (1..).zip(lines()) {
        let fault = |what: &str| Err(format!("line {number}, {line:?}: {what}"));
        let words: Vec<_> = line.split(' ').collect();
        if let [_, who, ..] = words[..]
            && over.contains(who)
        {
            return fault("it is alive, and somebody has entered what it held");
        }
        match words[..] {
            ["kill", process] => {
                killed.insert(process);
                counts.killed += 1;
            }
            ["enter", who, name, mode @ ("exclusive" | "shared"), fence, file, row] => {
                let lock = locks.entry(name).or_default();
                let exclusive = mode == "exclusive";
                let (dead, alive): (Vec<_>, Vec<_>) =
                    std::mem::take(&mut lock.inside).into_iter().partition(|(who, _)| killed.contains(process_of(who)));
                if let Some((other, _)) = alive.iter().find(|(_, other)| exclusive || *other) {
                    return fault(&format!("{other} is inside"));
                }
                counts.killed_inside += dead.len();
                over.extend(dead.iter().map(|(who, _)| *who));
                lock.inside = alive;
                if fence != NOTHING {
                    let fence: i64 = fence.parse().map_err(|_| format!("line {number}: {fence}"))?;
                    if fence <= lock.fence {
                        return fault(&format!("the fence before was {}", lock.fence));
                    }
                    lock.fence = fence;
                }
                if file != row {
                    return fault("a file and a row that were committed together differ");
                }
                let seen = Some(file).filter(|file| *file != NOTHING);
                if let Some((author, intended)) = lock.intended {
                    let may_be_absent = killed.contains(process_of(author)) && !counts.done.contains(intended);
                    if seen == Some(intended) {
                        lock.value = seen;
                    } else if !may_be_absent {
                        return fault(&format!("{intended} was committed"));
                    }
                    lock.intended = None;
                }
                if seen != lock.value {
                    return fault(&format!("{:?} was committed last", lock.value));
                }
                lock.inside.push((who, exclusive));
                counts.most_at_once = counts.most_at_once.max(lock.inside.len());
                *counts.enters.entry(process_of(who).parse().unwrap_or(0)).or_default() += 1;
            }
            ["intend", who, name, value] => {
                let lock = locks.entry(name).or_default();
                if !lock.inside.contains(&(who, true)) {
                    return fault("it is not inside");
                }
                lock.intended = Some((who, value));
            }
            ["leave", who, name] => {
                let inside = &mut locks.entry(name).or_default().inside;
                let Some(at) = inside.iter().position(|(holder, _)| *holder == who) else {
                    return fault("it is not inside");
                };
                inside.remove(at);
            }
            ["done", _, _] => {}
            _ => return fault("these are no words of a witness"),
        }
    }
    for (who, _) in locks.values().flat_map(|lock| &lock.inside) {
        if !killed.contains(process_of(who)) {
            return Err(format!("{who} never left, and was not killed"));
        }
        counts.killed_inside += 1;
    }
    Ok(counts)
}

/// The processes that say they have entered a lock, each time they do.
pub(super) fn entered(text: &str) -> impl Iterator<Item = u32> {
    let who = |line: &str| line.strip_prefix("enter ")?.split(' ').next().map(process_of)?.parse().ok();
    text.lines().filter(|line| line.ends_with(END)).filter_map(who)
}

fn process_of(who: &str) -> &str {
    who.split('.').next().unwrap_or(who)
}

/// Every promise the check holds has a forged witness that breaks it.
#[test]
fn a_forged_witness_is_found_out() {
    let said = |lines: &[&str]| lines.iter().map(|line| format!("\n{line} .")).collect::<String>();
    let good = |lines: &[&str]| check(&said(lines)).unwrap();
    let bad = |lines: &[&str], why: &str| {
        let fault = check(&said(lines)).unwrap_err();
        assert!(fault.contains(why), "{lines:?}: {fault}");
    };
    let enter = "enter 1.0 a exclusive 5 - -";

    let counts = good(&[enter, "intend 1.0 a x", "done 1.0 x", "leave 1.0 a", "enter 2.0 a exclusive 6 x x", "kill 2"]);
    assert_eq!((counts.killed_inside, counts.killed, counts.done.len()), (1, 1, 1));
    assert_eq!(counts.enters, BTreeMap::from([(1, 1), (2, 1)]));
    // Another lock is another matter.
    good(&[enter, "enter 2.0 b exclusive 5 - -", "leave 2.0 b", "leave 1.0 a"]);
    // Many may share.
    let shared = ["enter 1.0 a shared - - -", "enter 2.0 a shared - - -", "leave 2.0 a", "leave 1.0 a"];
    assert_eq!(good(&shared).most_at_once, 2);

    bad(&[enter, "enter 2.0 a exclusive 6 - -"], "1.0 is inside");
    bad(&[enter, "enter 2.0 a shared - - -"], "1.0 is inside");
    bad(&[shared[0], "enter 2.0 a exclusive 6 - -"], "1.0 is inside");
    bad(&[enter, "enter 1.1 a exclusive 6 - -"], "1.0 is inside");
    bad(&[enter], "1.0 never left");
    bad(&["leave 1.0 a"], "not inside");
    bad(&[enter, "leave 1.0 b"], "not inside");
    bad(&["intend 1.0 a x"], "not inside");
    bad(&[shared[0], "intend 1.0 a x"], "not inside");
    bad(&["enters 1.0"], "no words");
    // Fences.
    let next = |fence: i64| format!("enter 2.0 a exclusive {fence} - -");
    bad(&[enter, "leave 1.0 a", &next(5)], "the fence before was 5");
    bad(&[enter, "leave 1.0 a", &next(4)], "the fence before was 5");
    bad(&[enter, "leave 1.0 a", shared[1], "leave 2.0 a", &next(5)], "the fence before was 5");
    good(&[enter, "leave 1.0 a", &next(6), "leave 2.0 a"]);
    // A killed holder is none, but only once somebody has killed it, and only while it is silent.
    good(&[enter, "kill 1", &next(6), "leave 2.0 a"]);
    good(&[enter, "kill 1", "leave 1.0 a", &next(6), "leave 2.0 a"]);
    bad(&[enter, &next(6), "kill 1", "leave 2.0 a"], "1.0 is inside");
    bad(&[enter, "kill 1", &next(6), "leave 1.0 a", "leave 2.0 a"], "it is alive");
    // What was acknowledged is there; what was killed at it may be; nothing else is.
    let seen = |file: &str, row: &str| format!("enter 2.0 a exclusive 6 {file} {row}");
    let left = "leave 2.0 a";
    bad(&[&seen("x", "-"), left], "differ");
    bad(&[&seen("x", "x"), left], "committed last");
    bad(&[enter, "intend 1.0 a x", "leave 1.0 a", &seen("-", "-"), left], "x was committed");
    good(&[enter, "intend 1.0 a x", "kill 1", &seen("-", "-"), left]);
    good(&[enter, "intend 1.0 a x", "kill 1", &seen("x", "x"), left]);
    bad(&[enter, "intend 1.0 a x", "done 1.0 x", "kill 1", &seen("-", "-"), left], "x was committed");
    bad(&[enter, "intend 1.0 a x", "kill 1", &seen("y", "y"), left], "committed last");
    // It does not come back later, either.
    let again = "enter 3.0 a exclusive 7 x x";
    bad(&[enter, "intend 1.0 a x", "kill 1", &seen("-", "-"), left, again], "committed last");
    // A line that a kill tore is none.
    assert_eq!(check("\nenter 1.0 a exclu\nkill 1 ."), Ok(Counts { killed: 1, ..Counts::default() }));
}
