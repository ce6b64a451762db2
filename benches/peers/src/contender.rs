//! Those who write files: the journal, the loop people write by hand, and the other crates that promise all or nothing.

use std::ops::Range;
use std::path::{Path, PathBuf};

use fs_transaction::{ChangeSet, StdFs, exec::block_on};
use journal_kb::{Journal, Options};
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::shared::{bare, content, path};

/// A way of writing files, under the name it has in the results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// One transaction. It settles in the background, as it does by default.
    Journal,
    /// One transaction, then settled: the tree itself is durable too.
    JournalSettled,
    /// A bare atomic write for each file: nothing makes them one change.
    Bare,
    /// One transaction of fstx.
    Fstx,
    /// One change set of fs-transaction.
    FsTransaction,
}

impl Kind {
    pub const ALL: [Self; 5] = [Self::Journal, Self::JournalSettled, Self::Bare, Self::Fstx, Self::FsTransaction];

    pub fn name(self) -> &'static str {
        match self {
            Self::Journal => "journal",
            Self::JournalSettled => "journal+settle",
            Self::Bare => "bare",
            Self::Fstx => "fstx",
            Self::FsTransaction => "fs-transaction",
        }
    }

    /// Makes ready to write below `root`, whose directories are there.
    pub fn open(self, root: &Path) -> Result<Contender> {
        self.open_with(root, Journal::options())
    }

    /// The same, with these settings of the journal.
    pub fn open_with(self, root: &Path, options: Options) -> Result<Contender> {
        Ok(match self {
            Self::Journal => Contender::Journal { journal: options.open(root)?, settles: false },
            Self::JournalSettled => Contender::Journal { journal: options.open(root)?, settles: true },
            Self::Bare => Contender::Bare(root.to_owned()),
            Self::Fstx => Contender::Fstx(root.to_owned()),
            Self::FsTransaction => {
                // Its documentation wants this once, before the tree is read.
                block_on(fs_transaction::recover(&StdFs, root))?;
                Contender::FsTransaction(root.to_owned())
            }
        })
    }
}

/// One who is ready to write.
#[derive(Debug)]
pub enum Contender {
    Journal { journal: Journal, settles: bool },
    Bare(PathBuf),
    Fstx(PathBuf),
    FsTransaction(PathBuf),
}

impl Contender {
    /// Writes these files with content number `round`, as one transaction where the contender knows such a thing.
    pub fn write(&self, mut files: Range<usize>, round: usize) -> Result<()> {
        let content = content(round);
        match self {
            Self::Journal { journal, settles } => {
                journal.transact(|txn| files.try_for_each(|file| txn.write(path(file), &content)))?;
                if *settles {
                    self.settle()?;
                }
            }
            Self::Bare(root) => files.try_for_each(|file| bare(root, file, &content))?,
            Self::Fstx(root) => {
                let mut txn = fstx::Transaction::begin(root)?;
                files.try_for_each(|file| txn.write(path(file), &content))?;
                txn.commit()?;
            }
            Self::FsTransaction(root) => {
                let mut change = ChangeSet::new();
                for file in files {
                    change.write(path(file), content.as_slice());
                }
                block_on(change.apply(&StdFs, root))?;
            }
        }
        Ok(())
    }

    /// Makes the tree itself durable, which is left to be done only by the journal.
    pub fn settle(&self) -> Result<()> {
        if let Self::Journal { journal, .. } = self {
            journal.settle()?;
        }
        Ok(())
    }

    /// Ends. The journal settles what is left.
    pub fn close(self) -> Result<()> {
        match self {
            Self::Journal { journal, .. } => Ok(journal.close()?),
            _ => Ok(()),
        }
    }
}
