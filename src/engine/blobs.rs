//! Blobs, as the application has them: written, read, removed, swept.

mod opening;
mod reader;

use crate::blob::{self, BlobFile, BlobId};
use crate::error::Result;
use crate::store::Tx;
use crate::txn::{self, BlobWriter};

use super::Journal;
pub use opening::{BlobOpener, BlobWait};
pub use reader::BlobReader;

/// The blobs of a journal; from [`Journal::blobs`].
#[derive(Clone, Debug)]
pub struct Blobs {
    journal: Journal,
}

/// How a blob is to be written.
#[derive(Clone, Debug, Default)]
#[must_use = "a setting does nothing by itself"]
pub struct NewBlob {
    id: Option<String>,
    size: Option<u64>,
}

/// What [`Blobs::sweep`] found that nobody refers to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SweptBlobs {
    /// Files.
    pub files: u64,
    /// Their size, in bytes.
    pub bytes: u64,
}

impl NewBlob {
    /// A blob that is called by its content, of whatever size that has.
    pub fn new() -> Self {
        Self::default()
    }

    /// Calls it this: then others can wait for it from now on. No name is used twice, whatever became of the blob.
    pub fn id(mut self, id: impl Into<String>) -> Self {
        self.id = Some(id.into());
        self
    }

    /// It is to have just so many bytes, else it cannot be sealed.
    pub fn size(mut self, bytes: u64) -> Self {
        self.size = Some(bytes);
        self
    }
}

impl Journal {
    /// Large objects beside the tree: streamed in, and read by nobody before they are sealed.
    ///
    /// ```
    /// # use std::io::{Read, Write};
    /// # let dir = tempfile::tempdir()?;
    /// let journal = journal_kb::Journal::open(dir.path())?;
    /// let mut blob = journal.blobs().create()?;
    /// std::io::copy(&mut &b"a large upload"[..], &mut blob)?;
    /// let id = blob.seal()?;
    ///
    /// let mut text = String::new();
    /// journal.blobs().open(&id)?.read_to_string(&mut text)?;
    /// assert_eq!(text, "a large upload");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn blobs(&self) -> Blobs {
        Blobs { journal: self.clone() }
    }
}

impl Blobs {
    /// Begins a blob that is called by its content. The same content is kept once, however often it is written.
    pub fn create(&self) -> Result<BlobWriter> {
        self.create_with(NewBlob::new())
    }

    /// Begins a blob. One with a name can be waited for from now on; [`BlobError::Exists`](crate::BlobError::Exists) when the name
    /// was used before.
    pub fn create_with(&self, blob: NewBlob) -> Result<BlobWriter> {
        let id = blob.id.map(|id| BlobId::named(&id)).transpose()?;
        BlobWriter::begin(self.journal.ground().clone(), self.journal.inner.clone(), id, blob.size)
    }

    /// Opens a blob: [`BlobOpener::open`] with the default settings.
    pub fn open(&self, id: impl AsRef<str>) -> Result<BlobReader> {
        self.opener().open(id)
    }

    /// How to open one, where the defaults do not do.
    pub fn opener(&self) -> BlobOpener {
        BlobOpener::new(self.journal.clone())
    }

    /// Removes a blob, in a commit of its own; otherwise as [`Transaction::remove_blob`](crate::Transaction::remove_blob) does.
    pub fn remove(&self, id: impl AsRef<str>) -> Result<()> {
        let (ground, id) = (self.journal.ground(), BlobId::new(id.as_ref())?);
        let remove = |tx: &Tx<'_>| blob::remove(tx, &id, |session| ground.is_alive(session));
        txn::write_rows(ground, ground.limits.turn_wait, remove, |_| Ok(()))?;
        ground.backlog.add_files(0, 0);
        Ok(())
    }

    /// Removes files among those of blobs that nothing refers to, and says what they were; with `dry_run`, it only says so. The
    /// engine leaves them only where a damaged file was replaced; or the database was put back from a backup, say.
    pub fn sweep(&self, dry_run: bool) -> Result<SweptBlobs> {
        let ground = self.journal.ground();
        ground.store.refuse_forked()?;
        if !dry_run {
            self.journal.settle_and_retain()?;
        }
        let dir = ground.blobs()?;
        let mut swept = SweptBlobs::default();
        for name in dir.names()? {
            let Some((name, file)) = name.to_str().and_then(|name| Some((name, BlobFile::parse(name)?))) else {
                // No name of ours: somebody's file, left alone.
                continue;
            };
            if ground.store.peek(|tx| blob::is_content(tx, &file))? {
                continue;
            }
            let Some(bytes) = dir.size_of(name)? else { continue };
            if !dry_run {
                // IMPORTANT: looked at once more under the turn: it could have come there since.
                let turn = ground.enter()?;
                if turn.look(|tx| blob::is_content(tx, &file))? {
                    continue;
                }
                dir.remove_stray(name)?;
            }
            swept.files += 1;
            swept.bytes += bytes;
        }
        Ok(swept)
    }
}
