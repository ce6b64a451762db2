//! One large blob: as fast as dd, and in little memory.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use journal_kb::{BlobId, Journal};
use journal_kb_peers::Result;
use journal_kb_peers::shared::Place;
use serde::{Deserialize, Serialize};

use super::scale::Scale;
use super::work::{self, bytes, nanoseconds};
use crate::child;
use crate::memory::{forget_peak, of_this_process};

/// So much a program has in hand that copies by itself.
pub const BUFFER: usize = 256 << 10;

/// Who copies a file, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Way {
    Dd,
    /// Into a blob, by [`BlobWriter::write_from`](journal_kb::BlobWriter::write_from).
    From,
    /// Into a blob, by pieces of [`BUFFER`].
    Buffer,
    /// Into a blob, by `std::io::copy`, which has some KiB in hand.
    Copy,
}

impl Way {
    pub const ALL: [Self; 4] = [Self::Dd, Self::From, Self::Buffer, Self::Copy];

    pub fn name(self) -> &'static str {
        match self {
            Self::Dd => "`dd bs=1M conv=fsync`",
            Self::From => "a blob, by `write_from`",
            Self::Buffer => "a blob, by pieces of 256 KiB",
            Self::Copy => "a blob, by `std::io::copy`",
        }
    }
}

/// How long a way took in each round, in nanoseconds.
pub type Streamed = Vec<(Way, f64)>;

/// Streams a file into a blob, and seals it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Task {
    root: PathBuf,
    source: PathBuf,
    way: Way,
}

impl Task {
    pub fn run(&self) -> Result<(f64, String)> {
        let journal = Journal::open(&self.root)?;
        let mut source = File::open(&self.source)?;
        let start = Instant::now();
        let mut blob = journal.blobs().create()?;
        match self.way {
            Way::From => _ = blob.write_from(&mut source)?,
            Way::Copy => drop(io::copy(&mut source, &mut blob)?),
            _ => copy(&mut source, &mut blob)?,
        }
        let id = blob.seal()?;
        let took = nanoseconds(start);
        if journal.blobs().open(&id)?.len() != source.metadata()?.len() {
            return Err("what was streamed is not all there".into());
        }
        journal.close()?;
        Ok((took, id.to_string()))
    }
}

fn copy(from: &mut impl Read, to: &mut impl Write) -> Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(()),
            read => to.write_all(&buffer[..read])?,
        }
    }
}

/// Each way in turn, in each round, of a file that is in the kernel's memory.
pub fn measure(place: &Place, scale: &Scale) -> Result<Streamed> {
    // Not among the homes that stay until the end: there would be no room for all that.
    let home = tempfile::tempdir_in(&place.path)?;
    let source = home.path().join("source");
    let mut file = File::create(&source)?;
    let piece = bytes(0, 1 << 20);
    for number in 0..scale.streamed >> 20 {
        file.write_all(&number.to_le_bytes())?;
        file.write_all(&piece[8..])?;
    }
    file.sync_all()?;
    let (mut streamed, mut first) = (Streamed::new(), None);
    for way in (0..scale.stream_rounds).flat_map(|_| Way::ALL) {
        let target = home.path().join("target");
        fs::create_dir(&target)?;
        sync(home.path())?;
        io::copy(&mut File::open(&source)?, &mut io::sink())?;
        let took = match way {
            Way::Dd => dd(&source, &target.join("copy"))?,
            _ => {
                let task = work::Task::Stream(Task { root: target.clone(), source: source.clone(), way });
                let (took, id): (f64, String) = child::answer_of(child::command(&[], &child::Task::Blobs(task))?)?;
                if *first.get_or_insert_with(|| id.clone()) != id {
                    return Err("the same bytes are called differently".into());
                }
                took
            }
        };
        streamed.push((way, took));
        fs::remove_dir_all(&target)?;
    }
    sync(home.path())?;
    Ok(streamed)
}

fn dd(source: &Path, target: &Path) -> Result<f64> {
    let mut dd = Command::new("dd");
    dd.arg(format!("if={}", source.display())).arg(format!("of={}", target.display()));
    dd.args(["bs=1M", "conv=fsync", "status=none"]).stdin(Stdio::null());
    let start = Instant::now();
    let status = dd.status()?;
    let took = nanoseconds(start);
    if !status.success() || fs::metadata(target)?.len() != fs::metadata(source)?.len() {
        return Err(format!("dd: {status}").into());
    }
    Ok(took)
}

fn sync(path: &Path) -> Result<()> {
    Ok(Command::new("sync").arg("--file-system").arg(path).status().map(drop)?)
}

/// Streams one blob in, and out again with its hash checked.
#[derive(Debug, Serialize, Deserialize)]
pub struct Huge {
    root: PathBuf,
    bytes: u64,
}

/// The most memory that a process had, and how much more that is than before, in bytes.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Peak {
    pub most: u64,
    pub more: u64,
}

impl Peak {
    /// Of what `work` does.
    pub fn of<T>(work: impl FnOnce() -> Result<T>) -> Result<(T, Self)> {
        let before = forget_peak()?;
        let done = work()?;
        let most = of_this_process()?;
        Ok((done, Self { most, more: most.saturating_sub(before) }))
    }
}

impl Huge {
    pub fn run(&self) -> Result<[Peak; 2]> {
        let journal = Journal::open(&self.root)?;
        let piece = bytes(0, 1 << 20);
        let (id, written) = Peak::of(|| {
            let mut blob = journal.blobs().create()?;
            for number in 0..self.bytes >> 20 {
                blob.write_all(&number.to_le_bytes())?;
                blob.write_all(&piece[8..])?;
            }
            Ok(blob.seal()?)
        })?;
        let ((), read) = Peak::of(|| self.read(&journal, &id))?;
        journal.close()?;
        Ok([written, read])
    }

    fn read(&self, journal: &Journal, id: &BlobId) -> Result<()> {
        let mut blob = journal.blobs().opener().verify(true).open(id)?;
        let read = io::copy(&mut blob, &mut io::sink())?;
        if read == self.bytes { Ok(()) } else { Err(format!("{read} bytes came out").into()) }
    }

    /// What it takes of memory to write and to read a huge one.
    pub fn measure(place: &Place, scale: &Scale) -> Result<[Peak; 2]> {
        let home = tempfile::tempdir_in(&place.path)?;
        let task = work::Task::Huge(Self { root: home.path().to_owned(), bytes: scale.huge });
        child::answer_of(child::command(&[], &child::Task::Blobs(task))?)
    }
}
