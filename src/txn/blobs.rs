//! What a commit does with blobs, and what is done with their files behind it.
//!
//! 1. What is to be sealed is written, and durable in the stage where it is a file.
//! 2. The COMMIT makes a blob of it. One that it removes goes with it, unless others say the same.
//! 3. The file is moved to `blobs/`; somebody who waits for it is woken.
//! 4. Settling makes that durable, and removes files that nobody refers to any more and nobody reads.

use std::sync::Arc;

use super::blob_writer::{BeingWritten, BlobWriter};
use super::ground::Ground;
use super::prepare::SYNC_ONE_BY_ONE;
use super::rows_only::write_rows;
use super::transaction::Transaction;
use crate::blob::{self, BlobFile, BlobId, Bytes, Sealed, Sealing};
use crate::error::{BlobError, Error, Result};
use crate::fault::{Fault, planted};
use crate::fs::area::STATE_AREA;
use crate::fs::blobs::Names;
use crate::fs::opener::SyncTarget;
use crate::store::{Durability, Turn, Tx};

/// So many files are seen to at once.
const CHUNK: usize = 256;

/// A blob that is written and not sealed. Dropped, it is given up.
#[derive(Debug)]
pub(crate) struct Draft {
    being: BeingWritten,
    hash: [u8; 32],
    size: u64,
    /// Or else it is in the file.
    inline: Option<Vec<u8>>,
    /// By the newest try of a COMMIT.
    sealed: Option<Sealed>,
}

/// What a transaction does with blobs.
#[derive(Debug, Default)]
pub(crate) struct BlobChanges {
    drafts: Vec<Draft>,
    removed: Vec<BlobId>,
}

impl Transaction {
    /// Seals a blob with this transaction: from its commit on anybody can read it, and if it does not commit it is given up. Answers
    /// what it is called, to be written to rows with [`Transaction::sql`].
    ///
    /// [`BlobError::WrongSize`](crate::BlobError::WrongSize) when it is shorter than was announced;
    /// [`BlobError::OtherJournal`](crate::BlobError::OtherJournal).
    pub fn seal(&mut self, blob: BlobWriter) -> Result<BlobId> {
        let draft = blob.finish()?;
        // IMPORTANT: what it has written lies in its own journal's stage, where nobody here would look for it.
        if !Arc::ptr_eq(&self.ground, &draft.being.ground) {
            return Err(BlobError::OtherJournal { id: draft.id().to_string() }.into());
        }
        self.ask("seal", &[draft.being.id.as_ref().map_or(b"", |id| id.as_str().as_bytes()), &draft.hash]);
        let id = draft.id();
        self.blobs.drafts.push(draft);
        Ok(id)
    }

    /// Removes a blob with this transaction. Who has it open goes on reading; its room is given back behind the commit, once nobody
    /// has and no other blob says the same. Sealed several times under its content, it is removed as often.
    ///
    /// At commit: [`BlobError::NotFound`](crate::BlobError::NotFound), and [`Error::Busy`] while it is being written.
    pub fn remove_blob(&mut self, id: impl AsRef<str>) -> Result<()> {
        let id = BlobId::new(id.as_ref())?;
        self.ask("remove blob", &[id.as_str().as_bytes()]);
        self.blobs.removed.push(id);
        Ok(())
    }
}

impl BlobChanges {
    /// What is to be sealed is durable in the stage.
    pub(super) fn sync(&self, ground: &Ground) -> Result<()> {
        sync(ground, self.drafts.iter())
    }

    /// How many bytes of it ride in the log.
    pub(super) fn inline(&self) -> u64 {
        self.drafts.iter().filter_map(|draft| draft.inline.as_ref()).map(|bytes| bytes.len() as u64).sum()
    }

    /// What the COMMIT writes.
    pub(super) fn record(&mut self, ground: &Ground, tx: &Tx<'_>) -> Result<()> {
        for draft in &mut self.drafts {
            draft.record(ground, tx)?;
        }
        self.removed.iter().try_for_each(|id| {
            blob::remove(tx, id, |session| ground.is_alive(session))?;
            if planted(Fault::BlobRemovedBeforeCommit) { remove_files(ground, tx) } else { Ok(()) }
        })
    }

    /// It is committed.
    pub(super) fn committed(&mut self, ground: &Ground) {
        for draft in self.drafts.drain(..) {
            draft.committed();
        }
        if !std::mem::take(&mut self.removed).is_empty() {
            ground.backlog.add_files(0, 0);
        }
    }

    /// It may be committed: whoever recovers finds out.
    pub(super) fn in_doubt(&mut self) {
        self.drafts.drain(..).for_each(|mut draft| draft.being.end());
    }
}

impl Draft {
    pub(super) fn new(being: BeingWritten, hash: [u8; 32], size: u64, inline: Option<Vec<u8>>) -> Self {
        Self { being, hash, size, inline, sealed: None }
    }

    fn id(&self) -> BlobId {
        self.being.id.clone().unwrap_or_else(|| BlobId::of(&self.hash))
    }

    /// Seals it in a COMMIT with whoever may share it.
    pub(super) fn seal_alone(mut self) -> Result<BlobId> {
        let ground = Arc::clone(&self.being.ground);
        sync(&ground, std::iter::once(&self))?;
        let sealed = write_rows(&ground, ground.limits.turn_wait, |tx| self.record(&ground, tx), |_| Ok(()));
        if let Err(error) = sealed {
            if error.is_outcome_unknown() {
                self.being.end();
            }
            return Err(error);
        }
        let id = self.id();
        self.committed();
        Ok(id)
    }

    fn record(&mut self, ground: &Ground, tx: &Tx<'_>) -> Result<()> {
        let Self { being, hash, size, inline, .. } = self;
        let bytes = inline.as_deref().map_or(Bytes::File(&being.name), Bytes::Inline);
        let sealing = Sealing { id: being.id.as_ref(), session: ground.session.id, hash, size: *size, bytes };
        let is_whole = |file: &BlobFile, size| ground.blob_size(file).is_ok_and(|found| found == Some(size));
        self.sealed = Some(blob::seal(tx, &sealing, is_whole)?);
        Ok(())
    }

    /// It is committed: nothing here turns that into a failure.
    fn committed(mut self) {
        let ground = Arc::clone(&self.being.ground);
        if self.being.has_file {
            match self.sealed {
                Some(Sealed { content, ours: true }) => {
                    let file = BlobFile { content, staged: self.being.name.clone() };
                    if let Err(error) = ground.place_blob(&file) {
                        tracing::debug!(%error, "a blob stays in the stage for now; settling moves it");
                    }
                    ground.backlog.add_files(1, self.size);
                }
                // The same content was there.
                _ => self.being.drop_file(),
            }
        }
        self.being.end();
        if let Err(error) = self.being.ring() {
            tracing::debug!(%error, "who waits for a blob is not woken, and looks only later");
        }
    }
}

/// Makes what was written durable, with its names in the stage.
fn sync<'d>(ground: &Ground, drafts: impl Iterator<Item = &'d Draft>) -> Result<()> {
    let files: Vec<&Draft> = drafts.filter(|draft| draft.being.has_file).collect();
    if files.is_empty() || planted(Fault::BlobUnsynced) {
        return Ok(());
    }
    // Before the COMMIT: behind it there is to be nothing that can fail.
    ground.blobs()?;
    let area = ground.area(STATE_AREA)?;
    if files.len() > SYNC_ONE_BY_ONE {
        return area.sync_whole();
    }
    let mut targets: Vec<SyncTarget> =
        files.iter().map(|draft| SyncTarget::Own(area.stage_path(&draft.being.name))).collect();
    targets.push(SyncTarget::Own(area.stage_dir.clone()));
    ground.sync(targets)
}

impl Ground {
    /// The size of a blob's file, wherever it is; none when it is gone.
    pub(crate) fn blob_size(&self, file: &BlobFile) -> Result<Option<u64>> {
        let placed = file.name();
        self.blobs()?.size(&*self.area(STATE_AREA)?, Names { staged: &file.staged, placed: &placed })
    }

    /// Has those hear of it who wait for a blob.
    pub(super) fn ring_for_blobs(&self) -> Result<()> {
        self.blobs()?.ring();
        self.doors.committed();
        Ok(())
    }

    /// Notes which blobs were given up, if the rows do not say so yet.
    pub(super) fn note_given_up(&self, turn: &mut Turn<'_>) -> Result<()> {
        let mut given_up = self.given_up();
        if given_up.is_empty() {
            return Ok(());
        }
        let session = self.session.id;
        turn.write(Durability::Normal, |tx| given_up.iter().try_for_each(|id| blob::abort(tx, id, session)))?;
        given_up.clear();
        drop(given_up);
        self.ring_for_blobs()
    }

    /// Moves a blob's file to where it stays.
    fn place_blob(&self, file: &BlobFile) -> Result<()> {
        let placed = file.name();
        self.blobs()?.place(&*self.area(STATE_AREA)?, Names { staged: &file.staged, placed: &placed })
    }
}

/// Removes files before their time: what [`Fault::BlobRemovedBeforeCommit`] does.
fn remove_files(ground: &Ground, tx: &Tx<'_>) -> Result<()> {
    blob::todo(tx, i64::MIN, CHUNK)?.iter().filter(|todo| todo.unwanted).try_for_each(|blob::Todo { file, .. }| {
        let names = Names { staged: &file.staged, placed: &file.name() };
        ground.blobs()?.remove(&*ground.area(STATE_AREA)?, names).map(drop)
    })
}

/// Makes durable where the files of blobs are, and removes those that nobody refers to. One that somebody reads stays for now.
pub(super) fn settle_blobs(ground: &Ground) -> Result<()> {
    let mut after = i64::MIN;
    loop {
        let todo = ground.store.peek(|tx| blob::todo(tx, after, CHUNK))?;
        let Some(last) = todo.last() else { return Ok(()) };
        after = last.file.content;
        let (dir, area) = (ground.blobs()?, ground.area(STATE_AREA)?);
        let (mut placed, mut gone) = (Vec::new(), Vec::new());
        for blob::Todo { file, unwanted } in &todo {
            let done = match unwanted {
                false => ground.place_blob(file).map(|()| placed.push(file)),
                true => {
                    // IMPORTANT: under the turn, for in any COMMIT another blob may come to say the same.
                    let turn = ground.enter()?;
                    let name = file.name();
                    let names = Names { staged: &file.staged, placed: &name };
                    let is_gone = || {
                        Ok::<_, Error>(
                            (turn.look(|tx| blob::is_unwanted(tx, file))? || planted(Fault::BlobRemovedUnchecked))
                                && dir.remove(&area, names)?,
                        )
                    };
                    is_gone().map(|is_gone| {
                        if is_gone {
                            gone.push(file)
                        }
                    })
                }
            };
            if let Err(error) = done {
                tracing::warn!(%error, content = file.content, "the file of a blob is left where it is");
            }
        }
        if placed.is_empty() && gone.is_empty() {
            continue;
        }
        // IMPORTANT: before it is noted, for nobody looks after what is.
        if !planted(Fault::BlobPlaceUnsynced) {
            dir.sync()?;
        }
        ground.enter()?.write(Durability::Normal, |tx| {
            placed.iter().try_for_each(|file| blob::placed(tx, file))?;
            gone.iter().try_for_each(|file| blob::forget(tx, file))
        })?;
    }
}
