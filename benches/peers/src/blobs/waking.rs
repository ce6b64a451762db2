//! How soon somebody hears of a seal who waits for the blob.

use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use journal_kb::{BlobWriter, Journal, NewBlob};
use journal_kb_peers::Result;
use journal_kb_peers::shared::{Homes, Place};
use serde::{Deserialize, Serialize};

use super::scale::Scale;
use super::work::{self, bytes, renew};
use crate::child;
use crate::locks::{Talk, now};

const LONG: Duration = Duration::from_secs(60);
/// So long somebody has been waiting at least when it is sealed.
const SETTLED: Duration = Duration::from_millis(5);

/// Who waits, and for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kind {
    /// Another process than the one that writes.
    pub other: bool,
    /// The blob has a file; else it stands in the database.
    pub file: bool,
    /// It is sealed with a transaction; else alone.
    pub commit: bool,
}

impl Kind {
    pub fn all() -> impl Iterator<Item = Self> {
        let each = [false, true];
        each.into_iter().flat_map(move |other| {
            each.into_iter().flat_map(move |file| each.map(|commit| Self { other, file, commit }))
        })
    }

    pub fn name(self) -> String {
        format!(
            "{}, a blob of {}, {}",
            if self.other { "in another process" } else { "in the same process" },
            if self.file { "1 MiB, a file" } else { "4 KiB, in the database" },
            if self.commit { "sealed with a transaction" } else { "sealed alone" }
        )
    }

    fn size(self) -> usize {
        if self.file { 1 << 20 } else { 4 << 10 }
    }
}

/// When a blob was sealed, by the clock that all processes share: nanoseconds.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Sealed {
    /// `seal`, or `commit`.
    called: u64,
    returned: u64,
}

/// When somebody who waits began to, and had it.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Had {
    began: u64,
    opened: u64,
}

/// Both, of one blob.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Woken {
    sealed: Sealed,
    had: Had,
}

/// All of one round.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Wakes {
    pub kind: Kind,
    pub woken: Vec<Woken>,
}

impl Woken {
    /// From the call of `seal`, or of `commit`, until it is open.
    pub fn since_called(&self) -> f64 {
        self.had.opened.saturating_sub(self.sealed.called) as f64
    }

    /// The same from its return; less than nothing where that came later.
    pub fn since_returned(&self) -> f64 {
        self.had.opened as f64 - self.sealed.returned as f64
    }
}

/// Writes a blob of this name, all but sealing it.
fn write(journal: &Journal, kind: Kind, number: usize) -> Result<BlobWriter> {
    let mut content = bytes(kind.size(), kind.size());
    renew(&mut content, number);
    let mut blob = journal.blobs().create_with(NewBlob::new().id(name(number)))?;
    blob.write_all(&content)?;
    Ok(blob)
}

fn name(number: usize) -> String {
    format!("page {number}")
}

fn seal(journal: &Journal, kind: Kind, blob: BlobWriter) -> Result<Sealed> {
    let txn = if kind.commit { Some(journal.begin("measured")?) } else { None };
    let called = now()?;
    match txn {
        None => drop(blob.seal()?),
        Some(mut txn) => {
            txn.seal(blob)?;
            txn.commit()?;
        }
    }
    Ok(Sealed { called, returned: now()? })
}

fn wait(journal: &Journal, kind: Kind, number: usize) -> Result<Had> {
    let began = now()?;
    let blob = journal.blobs().opener().wait(LONG).open(name(number))?;
    let opened = now()?;
    if blob.len() != kind.size() as u64 {
        return Err("what was waited for is not all there".into());
    }
    Ok(Had { began, opened })
}

/// One thread writes, another one waits.
#[derive(Debug, Serialize, Deserialize)]
pub struct Both {
    root: PathBuf,
    kind: Kind,
    times: usize,
}

impl Both {
    pub fn run(&self) -> Result<Vec<Woken>> {
        let (journal, kind) = (Journal::open(&self.root)?, self.kind);
        let (tell, told) = mpsc::channel();
        let (answer, answers) = mpsc::channel();
        let waits = journal.clone();
        let waiter = std::thread::spawn(move || {
            for number in told {
                let _ = answer.send(wait(&waits, kind, number).map_err(|error| error.to_string()));
            }
        });
        let mut woken = Vec::new();
        for number in 0..self.times {
            let blob = write(&journal, kind, number)?;
            tell.send(number)?;
            std::thread::sleep(pause(number));
            let sealed = seal(&journal, kind, blob)?;
            woken.push(Woken { sealed, had: answers.recv_timeout(LONG)?? });
        }
        drop(tell);
        waiter.join().map_err(|_| "who waited has panicked")?;
        journal.close()?;
        Ok(woken)
    }
}

/// As it happens, and not in step with anything.
fn pause(number: usize) -> Duration {
    SETTLED + Duration::from_micros((number as u64 * 7_919) % 15_000)
}

/// Writes a blob when it is told to, and seals it when it is told so once more.
#[derive(Debug, Serialize, Deserialize)]
pub struct Seal {
    root: PathBuf,
    kind: Kind,
}

/// Waits for a blob when it is told to.
#[derive(Debug, Serialize, Deserialize)]
pub struct Wait {
    root: PathBuf,
    kind: Kind,
}

impl Seal {
    pub fn run(&self) -> Result<()> {
        let journal = Journal::open(&self.root)?;
        let mut lines = std::io::stdin().lock().lines();
        while let Some(number) = lines.next() {
            let blob = write(&journal, self.kind, number?.parse()?)?;
            println!("0");
            lines.next().ok_or("nobody says that it is to be sealed")??;
            println!("{}", serde_json::to_string(&seal(&journal, self.kind, blob)?)?);
        }
        Ok(journal.close()?)
    }
}

impl Wait {
    pub fn run(&self) -> Result<()> {
        let journal = Journal::open(&self.root)?;
        for number in std::io::stdin().lock().lines() {
            println!("{}", serde_json::to_string(&wait(&journal, self.kind, number?.parse()?)?)?);
        }
        Ok(journal.close()?)
    }
}

fn between(root: &Path, kind: Kind, times: usize) -> Result<Vec<Woken>> {
    let command = |task| child::command(&[], &child::Task::Blobs(task));
    let mut writer = Talk::start(command(work::Task::Seal(Seal { root: root.to_owned(), kind }))?)?;
    let mut waiter = Talk::start(command(work::Task::Wait(Wait { root: root.to_owned(), kind }))?)?;
    let mut woken = Vec::new();
    for number in 0..times {
        writer.ask::<u64>(&number.to_string())?;
        waiter.tell(&number.to_string())?;
        std::thread::sleep(pause(number));
        woken.push(Woken { sealed: writer.ask("seal")?, had: waiter.hear()? });
    }
    waiter.end()?;
    writer.end()?;
    Ok(woken)
}

/// Each kind in turn, in each round. Who had not begun to wait when it was sealed was not woken, and does not count.
pub fn measure(place: &Place, homes: &mut Homes, scale: &Scale) -> Result<Vec<Wakes>> {
    let mut all = Vec::new();
    for kind in (0..scale.rounds).flat_map(|_| Kind::all()) {
        let (root, times) = (homes.make(place)?, scale.woken);
        let mut woken: Vec<Woken> = if kind.other {
            between(&root, kind, times)?
        } else {
            let task = work::Task::Both(Both { root, kind, times });
            child::answer_of(child::command(&[], &child::Task::Blobs(task))?)?
        };
        woken.retain(|woken| woken.had.began < woken.sealed.called);
        all.push(Wakes { kind, woken });
    }
    Ok(all)
}
