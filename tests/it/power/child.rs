//! A process at work on a disk that fails it: it does what it is told, one thing at a time, and says what came of it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{self, Stdio};

use journal_kb::{Journal, Result};

use super::replay::Found;
use crate::crash_points::{manifest, open};
use crate::delivery::sink::{self, TOPICS};
use crate::support;

/// One thing to do. The number makes it one of its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    /// Commits what rides in the log.
    Small(usize),
    /// Commits what does not.
    Large(usize),
    /// Commits what was written under a guard.
    Keep(usize),
    /// Overwrites guarded files in place, and rolls back.
    Undo,
    Settle,
    /// Is the row of this number there?
    Has(usize),
    /// Commits a message.
    Tell(usize),
}

impl Act {
    /// What it commits.
    fn number(self) -> Option<usize> {
        match self {
            Self::Small(n) | Self::Large(n) | Self::Keep(n) => Some(n),
            Self::Undo | Self::Settle | Self::Has(_) | Self::Tell(_) => None,
        }
    }

    fn line(self) -> String {
        let (word, n) = match self {
            Self::Small(n) => ("small", n),
            Self::Large(n) => ("large", n),
            Self::Keep(n) => ("keep", n),
            Self::Undo => ("undo", 0),
            Self::Settle => ("settle", 0),
            Self::Has(n) => ("has", n),
            Self::Tell(n) => ("tell", n),
        };
        format!("{word} {n}\n")
    }

    fn parse(line: &str) -> Self {
        let (word, n) = line.trim_end().split_once(' ').unwrap();
        let n = n.parse().unwrap();
        let all =
            [Self::Small(n), Self::Large(n), Self::Keep(n), Self::Undo, Self::Settle, Self::Has(n), Self::Tell(n)];
        *all.iter().find(|act| act.line().starts_with(word)).unwrap()
    }

    pub(super) fn path(self) -> String {
        format!("done/{}.md", self.number().expect("it writes a file"))
    }

    /// What it writes. It begins with what nothing else has in it.
    pub(super) fn bytes(self) -> Vec<u8> {
        let line = format!("what is written by {self:?}, and by nobody else\n");
        line.repeat(if matches!(self, Self::Large(_)) { 3000 } else { 200 }).into_bytes()
    }
}

/// What [`Act::Undo`] overwrites.
const GUARDED: [&str; 2] = ["guarded/one.md", "guarded/two.md"];

fn guarded() -> Vec<u8> {
    "as it was before anybody came\n".repeat(300).into_bytes()
}

/// The tree that a process comes to.
pub(super) fn prepare(root: &Path) {
    fs::create_dir(root).unwrap();
    open(root).close().unwrap();
    for path in GUARDED {
        fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
        fs::write(root.join(path), guarded()).unwrap();
    }
    fs::create_dir(root.join("done")).unwrap();
    manifest::age(root);
}

/// What a process said of an act.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Done,
    /// It failed, and nothing happened.
    Nothing(String),
    /// It failed, or the process died: it may have happened.
    Unknown(String),
    Yes,
    No,
}

/// What was told by processes, in their order.
#[derive(Clone, Debug, Default)]
pub(super) struct Told(BTreeMap<usize, (Act, Answer)>);

impl Told {
    fn add(&mut self, act: Act, answer: &Answer) {
        if let Some(number) = act.number() {
            self.0.insert(number, (act, answer.clone()));
        }
    }

    /// Somebody has looked since.
    pub(super) fn settle(&mut self, number: usize, there: bool) {
        let (_, answer) = self.0.get_mut(&number).expect("it was tried");
        *answer = if there { Answer::Done } else { Answer::Nothing("it was not there".to_owned()) };
    }

    /// Whatever was told of it, it may be there or not.
    pub(super) fn doubts(&mut self, act: Act) {
        self.add(act, &Answer::Unknown("it was told too late".to_owned()));
    }

    /// What was found that was not told, and what was told and not found.
    pub(super) fn denies(&self, found: &Found) -> Vec<String> {
        let mut wrong = Vec::new();
        for (act, answer) in self.0.values() {
            let (path, bytes) = (act.path(), act.bytes());
            let row = found.shot.rows.iter().any(|(row, _)| *row == path);
            let file = found.shot.tree.file(&path);
            if file.is_some_and(|file| file != bytes) || file.is_some() != row {
                let length = file.map(<[u8]>::len);
                wrong.push(format!("{act:?}: the row is there: {row}, the file: {length:?} bytes of {}", bytes.len()));
            }
            match answer {
                Answer::Done if !row => wrong.push(format!("{act:?} is lost, of which was said that it is done")),
                Answer::Nothing(why) if row => {
                    wrong.push(format!("{act:?} is there, of which was said that it is not: {why}"))
                }
                _ => {}
            }
        }
        let told = self.0.values().map(|(act, _)| act.path());
        let told: Vec<_> = told.collect();
        wrong.extend(
            found.shot.rows.iter().filter(|(row, _)| !told.contains(row)).map(|row| format!("nobody's: {row:?}")),
        );
        let is_damaged = |path: &&&str| found.shot.tree.file(path) != Some(&guarded()[..]);
        wrong.extend(GUARDED.iter().filter(is_damaged).map(|path| format!("{path} is not as it was")));
        wrong
    }
}

/// A process, killed on drop.
pub(super) struct Child {
    process: process::Child,
    input: process::ChildStdin,
    output: BufReader<process::ChildStdout>,
}

impl Child {
    /// Waits until it has opened the journal.
    pub(super) fn start(root: &Path) -> Self {
        let mut command = support::child("power::child::child", root);
        let mut process = command.stdin(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let input = process.stdin.take().unwrap();
        let output = BufReader::new(process.stdout.take().unwrap());
        let mut child = Self { process, input, output };
        assert_eq!(child.hears().as_deref(), Some("ready"));
        child
    }

    fn hears(&mut self) -> Option<String> {
        loop {
            let mut line = String::new();
            if self.output.read_line(&mut line).unwrap_or(0) == 0 {
                return None;
            }
            if let Some(word) = line.strip_prefix('@') {
                return Some(word.trim_end().to_owned());
            }
        }
    }

    pub(super) fn begins(&mut self, act: Act) {
        self.input.write_all(act.line().as_bytes()).unwrap();
    }

    pub(super) fn ends(&mut self, act: Act, told: &mut Told) -> Answer {
        let said = self.hears().unwrap_or_else(|| "unknown: it died".to_owned());
        let (word, why) = said.split_once(": ").unwrap_or((&said, ""));
        let answer = match word {
            "done" => Answer::Done,
            "nothing" => Answer::Nothing(why.to_owned()),
            "yes" => Answer::Yes,
            "no" => Answer::No,
            _ => Answer::Unknown(why.to_owned()),
        };
        told.add(act, &answer);
        answer
    }

    pub(super) fn does(&mut self, act: Act, told: &mut Told) -> Answer {
        self.begins(act);
        self.ends(act, told)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Not a test: what the others start as a process.
#[test]
fn child() {
    let Some(root) = support::child_root() else { return };
    let say = |word: &str| println!("\n@{}", word.replace('\n', " "));
    let journal = open(&root);
    say("ready");
    for line in std::io::stdin().lines() {
        let act = Act::parse(&line.unwrap());
        match act_on(&journal, act) {
            Ok(word) => say(word),
            Err(error) if error.is_outcome_unknown() => say(&format!("unknown: {error}")),
            Err(error) => say(&format!("nothing: {error}")),
        }
    }
}

fn act_on(journal: &Journal, act: Act) -> Result<&'static str> {
    let row = |txn: &mut journal_kb::Transaction| {
        let path = act.path();
        txn.sql(move |rows| rows.execute("INSERT INTO doc VALUES (?1, 'Done')", [&*path]).map(drop))
    };
    match act {
        Act::Small(_) | Act::Large(_) => {
            let mut txn = journal.begin("staged")?;
            txn.write_from(act.path(), &mut &act.bytes()[..])?;
            row(&mut txn)?;
            txn.commit()?;
        }
        Act::Keep(_) => {
            let mut txn = journal.begin("kept")?;
            txn.guard_paths([act.path()])?;
            // The program under the guard notices nothing yet: the kernel writes it out later.
            fs::write(journal.root().join(act.path()), act.bytes()).unwrap();
            row(&mut txn)?;
            txn.commit()?;
        }
        Act::Undo => {
            let mut txn = journal.begin("undone")?;
            txn.guard_paths(GUARDED)?;
            for path in GUARDED {
                // On a filesystem that was shut down it cannot write either.
                let _ = fs::write(journal.root().join(path), "damage\n".repeat(500));
            }
            txn.rollback()?;
        }
        Act::Settle => drop(journal.settle()?),
        Act::Tell(n) => {
            let mut txn = journal.begin("told")?;
            sink::send(&mut txn, TOPICS[0], "k", &format!("taken-{n}"), false)?;
            txn.commit()?;
        }
        Act::Has(n) => {
            let path = Act::Small(n).path();
            let found: i64 = journal
                .read(|rows| rows.query_row("SELECT count(*) FROM doc WHERE path = ?1", [&*path], |row| row.get(0)))?;
            return Ok(if found == 1 { "yes" } else { "no" });
        }
    }
    Ok("done")
}
