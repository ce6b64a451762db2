//! Many blobs, some in a transaction each time, beside cacache.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Instant;

use journal_kb::{BlobId, Journal};
use journal_kb_peers::Result;
use journal_kb_peers::shared::{Homes, Place};
use serde::{Deserialize, Serialize};

use super::scale::Scale;
use super::work::{self, bytes, nanoseconds, renew};
use crate::child;

/// The sizes, in bytes.
pub const SMALL: usize = 4 << 10;
pub const MIDDLING: usize = 256 << 10;

/// Who writes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Side {
    Journal,
    /// As it comes, called by their content; it syncs nothing.
    Cacache,
    /// The same with keys.
    Keys,
    /// The same, and after so many as the journal has in a transaction the filesystem is synced, by hand.
    Batches,
    /// The same, and each file and its directory is synced, by hand.
    Durable,
}

impl Side {
    pub const ALL: [Self; 5] = [Self::Journal, Self::Cacache, Self::Keys, Self::Batches, Self::Durable];

    pub fn name(self) -> &'static str {
        match self {
            Self::Journal => "journal-kb",
            Self::Cacache => "cacache, `write_hash`: nothing is synced",
            Self::Keys => "cacache, `write`: nothing is synced",
            Self::Batches => "cacache, `write`, then `syncfs` by hand, some at a time",
            Self::Durable => "cacache, `write`, then each file and its directory synced by hand",
        }
    }
}

/// Writes many blobs of one size.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Task {
    root: PathBuf,
    side: Side,
    blobs: usize,
    size: usize,
    batch: usize,
}

/// What that took, in nanoseconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Written {
    pub side: Side,
    pub size: usize,
    pub took: f64,
}

impl Task {
    pub fn run(&self) -> Result<Written> {
        let took = if self.side == Side::Journal { self.journal()? } else { self.cacache()? };
        Ok(Written { side: self.side, size: self.size, took })
    }

    fn journal(&self) -> Result<f64> {
        let journal = Journal::open(&self.root)?;
        let (mut content, mut ids) = (bytes(0, self.size), Vec::new());
        let start = Instant::now();
        for first in (0..self.blobs).step_by(self.batch) {
            let mut txn = journal.begin("measured")?;
            for number in first..self.blobs.min(first + self.batch) {
                renew(&mut content, number);
                let mut blob = journal.blobs().create()?;
                std::io::Write::write_all(&mut blob, &content)?;
                ids.push(txn.seal(blob)?);
            }
            txn.commit()?;
        }
        let took = nanoseconds(start);
        self.check(&journal, &ids)?;
        journal.close()?;
        Ok(took)
    }

    /// Everything that was to be written is there.
    fn check(&self, journal: &Journal, ids: &[BlobId]) -> Result<()> {
        let mut content = bytes(0, self.size);
        for (number, id) in ids.iter().enumerate() {
            renew(&mut content, number);
            let mut read = Vec::new();
            std::io::Read::read_to_end(&mut journal.blobs().open(id)?, &mut read)?;
            if read != content {
                return Err(format!("blob {number} is not what was written").into());
            }
        }
        Ok(())
    }

    fn cacache(&self) -> Result<f64> {
        let (root, mut content) = (&self.root, bytes(0, self.size));
        let filesystem = File::open(root)?;
        let mut written = Vec::new();
        let start = Instant::now();
        for number in 0..self.blobs {
            renew(&mut content, number);
            let id = match self.side {
                Side::Cacache => cacache::write_hash_sync(root, &content)?,
                _ => cacache::write_sync(root, format!("documents/{number:07}.md"), &content)?,
            };
            match self.side {
                Side::Durable => durable(root, &id)?,
                Side::Batches if (number + 1) % self.batch == 0 => rustix::fs::syncfs(&filesystem)?,
                _ => {}
            }
            written.push(id);
        }
        let took = nanoseconds(start);
        for (number, id) in written.iter().enumerate() {
            renew(&mut content, number);
            if cacache::read_hash_sync(root, id)? != content {
                return Err(format!("blob {number} of cacache is not what was written").into());
            }
        }
        Ok(took)
    }
}

/// Its content at least, with the name of that; its index is synced by nobody.
fn durable(root: &Path, id: &cacache::Integrity) -> Result<()> {
    let (algorithm, hash) = id.to_hex();
    let directory = root.join("content-v2").join(algorithm.to_string()).join(&hash[..2]).join(&hash[2..4]);
    File::open(directory.join(&hash[4..]))?.sync_all()?;
    Ok(File::open(directory)?.sync_all()?)
}

/// Each side in turn, in each round, of each size.
pub fn measure(place: &Place, homes: &mut Homes, scale: &Scale) -> Result<Vec<Written>> {
    let mut all = Vec::new();
    for side in (0..scale.rounds).flat_map(|_| Side::ALL) {
        for (size, blobs) in [(SMALL, scale.small), (MIDDLING, scale.middling)] {
            let task = Task { root: homes.make(place)?, side, blobs, size, batch: scale.batch };
            all.push(child::answer_of(child::command(&[], &child::Task::Blobs(work::Task::Small(task)))?)?);
        }
    }
    Ok(all)
}
