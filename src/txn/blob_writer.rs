//! A blob that is being written, until it is sealed or given up.

use std::any::Any;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use super::blobs::Draft;
use super::ground::Ground;
use super::hashing::Hashing;
use crate::blob::{self, BlobId};
use crate::error::{BlobError, Error, IoContext, Result};
use crate::fs::area::STATE_AREA;
use crate::fs::temp;
use crate::store::{self, Durability};

/// So much is written to a file at once.
const BUFFER: usize = 256 << 10;
/// So much is read at once, at least.
const SMALLEST: usize = 64 << 10;
/// So much is hashed at once: to wake the thread that does it costs as much as to write some pages.
const PIECE: usize = 1 << 20;
/// Each time so much is written, the disk is told to begin with it: sealing waits for what is left.
const BEGUN: u64 = 8 << 20;
/// How long a blob that is dropped waits for the turn, to have others told.
const GIVE_UP: Duration = Duration::from_secs(2);

/// Writes a blob: [`Blobs::create`](crate::Blobs::create). Nobody reads any of it before it is sealed, by [`BlobWriter::seal`] or
/// by [`Transaction::seal`](crate::Transaction::seal); dropped, it is given up, and what was written goes.
///
/// It buffers: there is no need for a `BufWriter` around it.
#[must_use = "a blob that is dropped is given up; call seal()"]
pub struct BlobWriter {
    being: BeingWritten,
    expected: Option<u64>,
    hashing: Hashing,
    /// What is not hashed yet.
    buffer: Vec<u8>,
    /// How much of that is in the file already.
    in_file: usize,
    file: Option<OwnedFd>,
    size: u64,
    /// How much of it was hashed.
    hashed: u64,
    /// How much of it the disk has begun with.
    begun: u64,
    /// A write has failed, and how: what there is has a hole.
    failed: Option<String>,
}

/// What has to be cleared away where nothing comes of it.
pub(super) struct BeingWritten {
    pub(super) ground: Arc<Ground>,
    /// The journal stays open, and its session alive.
    _alive: Arc<dyn Any + Send + Sync>,
    /// As its writer has named it, and others know it already.
    pub(super) id: Option<BlobId>,
    /// What it is called in the stage.
    pub(super) name: String,
    pub(super) has_file: bool,
    over: bool,
}

impl std::fmt::Debug for BlobWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlobWriter").field("id", &self.being.id).field("size", &self.size).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for BeingWritten {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BeingWritten").field("id", &self.id).field("name", &self.name).finish_non_exhaustive()
    }
}

impl BlobWriter {
    /// Begins a blob. With a name, others know of it on return.
    pub(crate) fn begin(
        ground: Arc<Ground>,
        alive: Arc<dyn Any + Send + Sync>,
        id: Option<BlobId>,
        expected: Option<u64>,
    ) -> Result<Self> {
        ground.store.refuse_forked()?;
        store::refuse_reentry("a blob")?;
        let name = ground.fresh_name();
        if let Some(id) = &id {
            let session = ground.session.id;
            // Not synced: a power cut takes its writer as well, and whoever has durably heard of it has done so after this.
            ground.enter()?.write(Durability::Normal, |tx| blob::announce(tx, id, session, &name))?;
        }
        let being = BeingWritten { ground, _alive: alive, id, name, has_file: false, over: false };
        Ok(Self {
            being,
            expected,
            hashing: Hashing::new(),
            buffer: Vec::new(),
            in_file: 0,
            file: None,
            size: 0,
            hashed: 0,
            begun: 0,
            failed: None,
        })
    }

    /// What it is called, where it was given a name. Else that comes of its content, and [`BlobWriter::seal`] answers it.
    pub fn id(&self) -> Option<&BlobId> {
        self.being.id.as_ref()
    }

    /// How many bytes were written.
    pub fn written(&self) -> u64 {
        self.size
    }

    /// Writes what a reader gives until its end, and answers how many bytes that was. The fastest way: what is read is not copied
    /// once more, as it is by [`std::io::copy`].
    ///
    /// Where the reader fails, what came before is written, and the rest may follow. [`BlobError::WrongSize`] when it gives more than
    /// was announced: like any other trouble with the blob itself, that leaves nothing to be sealed.
    pub fn write_from(&mut self, mut reader: impl Read) -> Result<u64> {
        if let Some(why) = &self.failed {
            return Err(BlobError::WriteFailed { why: why.clone() }.into());
        }
        let before = self.size;
        loop {
            let had = self.buffer.len();
            // A small one waits for more than fits: whether it gets a file is known only then.
            let room = BUFFER.saturating_sub(self.waiting()).max(SMALLEST);
            let read = (&mut reader).take(room as u64).read_to_end(&mut self.buffer);
            let came = self.buffer.len() - had;
            let taken = self.grow(came).and_then(|()| if self.waiting() < BUFFER { Ok(()) } else { self.spill() });
            if let Err(error) = taken {
                self.fail(&error);
                return Err(error);
            }
            read.at("read the content of", "a blob")?;
            if came < room {
                return Ok(self.size - before);
            }
        }
    }

    /// Seals it, in a commit of its own: on return it is durable, and anybody can read it. For a blob and what tells of it in one
    /// commit there is [`Transaction::seal`](crate::Transaction::seal).
    ///
    /// Two syncs for a file, besides that of the commit; none but that for a small blob. [`BlobError::WrongSize`] when it is shorter
    /// than was announced.
    pub fn seal(self) -> Result<BlobId> {
        self.finish()?.seal_alone()
    }

    /// Gives it up: others are told [`BlobError::Aborted`], a moment later where somebody has the turn. Dropping it does the same.
    pub fn abort(mut self) -> Result<()> {
        self.being.give_up()
    }

    /// Ends the writing.
    pub(super) fn finish(mut self) -> Result<Draft> {
        // IMPORTANT: before anything is written: a forked child has the very file of its parent, and no thread that hashes.
        self.being.ground.store.refuse_forked()?;
        if let Some(why) = self.failed {
            return Err(BlobError::WriteFailed { why }.into());
        }
        if let Some(expected) = self.expected.filter(|expected| *expected != self.size) {
            return Err(BlobError::WrongSize { expected, written: self.size }.into());
        }
        let (hash, inline) = match self.file {
            None => (Some(*blake3::hash(&self.buffer).as_bytes()), Some(std::mem::take(&mut self.buffer))),
            Some(_) => {
                self.spill()?;
                self.hash();
                (self.hashing.end(), None)
            }
        };
        let hash = hash.ok_or_else(|| Error::corrupt("a blob", "the thread that hashed it has panicked"))?;
        Ok(Draft::new(self.being, hash, self.size, inline))
    }

    fn take_in(&mut self, bytes: &[u8]) -> Result<()> {
        self.grow(bytes.len())?;
        let mut rest = bytes;
        while self.file.is_some() && self.waiting() + rest.len() >= BUFFER {
            let (fits, behind) = rest.split_at(BUFFER.saturating_sub(self.waiting()).min(rest.len()));
            self.buffer.extend_from_slice(fits);
            self.spill()?;
            rest = behind;
        }
        self.buffer.extend_from_slice(rest);
        Ok(())
    }

    /// So much more comes: it gets a file once it is too large for a row.
    fn grow(&mut self, by: usize) -> Result<()> {
        let size = self.size.saturating_add(by as u64);
        if let Some(expected) = self.expected.filter(|expected| *expected < size) {
            return Err(BlobError::WrongSize { expected, written: size }.into());
        }
        self.being.ground.store.refuse_forked()?;
        if self.file.is_none() && size > self.being.ground.limits.inline_blob {
            self.being.has_file = true;
            self.file = Some(temp::create(&*self.being.ground.area(STATE_AREA)?, &self.being.name)?);
        }
        self.size = size;
        Ok(())
    }

    /// What comes is not all there any more. The room it takes is given back now, and not when somebody gets round to dropping it.
    fn fail(&mut self, error: &Error) {
        self.failed = Some(error.to_string());
        (self.file, self.buffer, self.in_file) = (None, Vec::new(), 0);
        self.being.drop_file();
    }

    /// How much is neither hashed nor in the file.
    fn waiting(&self) -> usize {
        self.buffer.len() - self.in_file
    }

    /// Writes what waits to the file, and has it hashed once that is enough.
    fn spill(&mut self) -> Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        temp::write_all(file, &self.buffer[self.in_file..], &self.being.ground.area(STATE_AREA)?.stage_dir)?;
        self.in_file = self.buffer.len();
        if self.in_file >= PIECE {
            self.hash();
        }
        Ok(())
    }

    fn hash(&mut self) {
        self.in_file = 0;
        let buffer = std::mem::take(&mut self.buffer);
        let piece = buffer.len() as u64;
        self.buffer = self.hashing.take(buffer, self.hashed);
        self.hashed += piece;
        if self.hashed - self.begun >= BEGUN
            && let Some(file) = &self.file
        {
            temp::begin_writing_out(file);
            self.begun = self.hashed;
        }
    }
}

impl io::Write for BlobWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(why) = &self.failed {
            return Err(io::Error::other(BlobError::WriteFailed { why: why.clone() }));
        }
        match self.take_in(bytes) {
            Ok(()) => Ok(bytes.len()),
            Err(error) => {
                self.fail(&error);
                let kind = match &error {
                    Error::Io { source, .. } => source.kind(),
                    Error::Blob(_) => io::ErrorKind::InvalidInput,
                    _ => io::ErrorKind::Other,
                };
                Err(io::Error::new(kind, error))
            }
        }
    }

    /// Does nothing: nobody reads it before it is sealed, and that makes it durable.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl BeingWritten {
    /// Something has come of it, or whoever recovers sees to it.
    pub(super) fn end(&mut self) {
        self.over = true;
    }

    pub(super) fn drop_file(&mut self) {
        if !std::mem::take(&mut self.has_file) {
            return;
        }
        if let Err(error) = self.ground.area(STATE_AREA).and_then(|area| area.drop_staged(&self.name)) {
            tracing::warn!(%error, "what was written of a blob could not be removed; the next recovery sweeps it");
        }
    }

    fn give_up(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.over, true) {
            return Ok(());
        }
        self.ground.store.refuse_forked()?;
        self.drop_file();
        let Some(id) = self.id.take() else { return Ok(()) };
        self.ground.given_up().push(id);
        // Within somebody's closure, say, there is no turn to be had.
        if let Err(error) = self.ground.store.enter(GIVE_UP).and_then(|mut turn| self.ground.note_given_up(&mut turn)) {
            tracing::debug!(%error, "that a blob was given up is noted a little later");
            self.ground.late.ring();
        }
        Ok(())
    }

    /// Has those hear of it who wait for this blob.
    pub(super) fn ring(&self) -> Result<()> {
        if self.id.is_some() {
            self.ground.ring_for_blobs()?;
        }
        Ok(())
    }
}

impl Drop for BeingWritten {
    fn drop(&mut self) {
        if self.ground.store.refuse_forked().is_err() {
            // The parent's, which goes on with it.
            return std::mem::forget((Arc::clone(&self.ground), Arc::clone(&self._alive)));
        }
        let _ = self.give_up();
    }
}
