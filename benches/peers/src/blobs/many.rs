//! A journal that has a great many blobs: what they take of memory, and how soon one is opened.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use journal_kb::{BlobId, Journal};
use journal_kb_peers::Result;
use journal_kb_peers::shared::{Homes, Place};
use serde::{Deserialize, Serialize};

use super::scale::Scale;
use super::streaming::{Huge, Peak};
use super::work::{self, bytes, nanoseconds, renew};
use crate::child;

/// What a small one of many says, and a file beside them, in bytes.
pub const SMALL: usize = 1 << 10;
pub const BESIDE: usize = 100 << 10;
/// Of those that a sweep looks at.
const SWEPT: usize = 100;
/// So many are in one transaction.
const BATCH: usize = 1_000;

/// Writes small blobs, and then files beside them.
#[derive(Debug, Serialize, Deserialize)]
pub struct Fill {
    root: PathBuf,
    many: usize,
    beside: usize,
}

/// Opens some of both at random.
#[derive(Debug, Serialize, Deserialize)]
pub struct Open {
    root: PathBuf,
    many: usize,
    beside: usize,
    opens: usize,
}

/// What it took to open each, in nanoseconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Opened {
    pub inline: Vec<f64>,
    pub file: Vec<f64>,
}

/// Writes blobs that have files, plants some that nobody refers to, and sweeps.
#[derive(Debug, Serialize, Deserialize)]
pub struct Sweep {
    root: PathBuf,
    files: usize,
    strays: usize,
}

/// How the sweep went.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Swept {
    /// In nanoseconds.
    pub took: f64,
    pub peak: Peak,
}

/// All of that.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Many {
    pub huge_in: Peak,
    pub huge_out: Peak,
    /// While many small ones are written; what that took, in nanoseconds.
    pub small: Peak,
    pub took: f64,
    pub opened: Opened,
    pub swept: Swept,
}

fn seal_all(journal: &Journal, numbers: std::ops::Range<usize>, size: usize) -> Result<()> {
    let mut content = bytes(size, size);
    for first in numbers.clone().step_by(BATCH) {
        let mut txn = journal.begin("measured")?;
        for number in first..numbers.end.min(first + BATCH) {
            renew(&mut content, number);
            let mut blob = journal.blobs().create()?;
            blob.write_all(&content)?;
            txn.seal(blob)?;
        }
        txn.commit()?;
    }
    Ok(())
}

/// What blob `number` of a size is called.
fn id_of(content: &mut [u8], number: usize) -> String {
    renew(content, number);
    format!("blake3:{}", blake3::hash(content).to_hex())
}

impl Fill {
    pub fn run(&self) -> Result<(Peak, f64)> {
        let journal = Journal::open(&self.root)?;
        let start = Instant::now();
        let ((), peak) = Peak::of(|| seal_all(&journal, 0..self.many, SMALL))?;
        let took = nanoseconds(start);
        seal_all(&journal, 0..self.beside, BESIDE)?;
        journal.close()?;
        Ok((peak, took))
    }
}

impl Open {
    pub fn run(&self) -> Result<Opened> {
        let journal = Journal::open(&self.root)?;
        let open = |size: usize, of: usize| {
            let (mut content, mut took) = (bytes(size, size), Vec::new());
            for turn in 0..self.opens {
                // Here and there, as a multiplicative hash has them.
                let number = (turn + 1).wrapping_mul(2_654_435_761) % of;
                let id = BlobId::new(&id_of(&mut content, number))?;
                let start = Instant::now();
                let mut blob = journal.blobs().open(&id)?;
                took.push(nanoseconds(start));
                let mut read = Vec::new();
                blob.read_to_end(&mut read)?;
                if read != content {
                    return Err(format!("blob {number} is not what was written").into());
                }
            }
            Ok::<_, Box<dyn std::error::Error>>(took)
        };
        let opened = Opened { inline: open(SMALL, self.many)?, file: open(BESIDE, self.beside)? };
        journal.close()?;
        Ok(opened)
    }
}

impl Sweep {
    pub fn run(&self) -> Result<Swept> {
        // All have files.
        let journal = Journal::options().inline_blob(0).open(&self.root)?;
        seal_all(&journal, 0..self.files, SWEPT)?;
        journal.settle()?;
        let planted = self.plant(&self.root.join(".journal/blobs"))?;
        let start = Instant::now();
        let (swept, peak) = Peak::of(|| Ok(journal.blobs().sweep(false)?))?;
        let took = nanoseconds(start);
        if (swept.files as usize, swept.bytes as usize) != (planted, planted * SWEPT) {
            return Err(format!("{planted} files were planted, and {swept:?}").into());
        }
        journal.close()?;
        Ok(Swept { took, peak })
    }

    /// Names that are like those of the engine, and of no row.
    fn plant(&self, blobs: &Path) -> Result<usize> {
        let mut planted = 0;
        for entry in fs::read_dir(blobs)?.collect::<std::io::Result<Vec<_>>>()? {
            let name = entry.file_name().into_string().map_err(|name| format!("{name:?} is no name of ours"))?;
            let (content, staged) = name.split_once('.').ok_or("a name of a blob has a dot")?;
            if planted < self.strays {
                let stray = blobs.join(format!("{}.{staged}", content.parse::<usize>()? + 1_000_000_000));
                fs::write(stray, bytes(planted, SWEPT))?;
                planted += 1;
            }
        }
        Ok(planted)
    }
}

pub fn measure(place: &Place, homes: &mut Homes, scale: &Scale) -> Result<Many> {
    let [huge_in, huge_out] = Huge::measure(place, scale)?;
    let &Scale { many, beside, opens, swept: files, strays, .. } = scale;
    let root = homes.make(place)?;
    let command = |task| child::command(&[], &child::Task::Blobs(task));
    let fill = work::Task::Fill(Fill { root: root.clone(), many, beside });
    let (small, took) = child::answer_of(command(fill)?)?;
    let opened = child::answer_of(command(work::Task::Open(Open { root, many, beside, opens }))?)?;
    let root = homes.make(place)?;
    let swept = child::answer_of(command(work::Task::Sweep(Sweep { root, files, strays }))?)?;
    Ok(Many { huge_in, huge_out, small, took, opened, swept })
}
