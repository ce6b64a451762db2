//! Opening a blob, and waiting for one that somebody is writing.
//!
//! Whoever waits is woken: by its seal, or its end, which ring at the directory of blobs; by the death of the process that writes
//! it; and, where the blob's name comes of a record, by every commit.

use std::time::Duration;

use super::reader::{BlobReader, Source};
use crate::blob::{self, BlobId, Content, Found, Place};
use crate::engine::Journal;
use crate::error::{BlobError, Damage, Error, Result};
use crate::fault::{Fault, planted};
use crate::fs::area::STATE_AREA;
use crate::fs::bell::{Bell, Listener};
use crate::fs::blobs::Names;
use crate::lock;
use crate::store::Rows;
use crate::time::{Deadline, Process};
use crate::wait::{Patience, StopToken};

/// How often somebody who waits is told how far the blob is.
const TELL: Duration = Duration::from_millis(250);

/// What somebody is told who waits for a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BlobWait {
    /// How many bytes of it are written, so far as they have left its writer's buffer.
    pub written: u64,
    /// How long it has been.
    pub waited: Duration,
}

type Told = Box<dyn FnMut(BlobWait) + Send>;

/// How a blob is opened; from [`Blobs::opener`](crate::Blobs::opener).
#[must_use = "a setting does nothing by itself"]
pub struct BlobOpener {
    journal: Journal,
    wait: Duration,
    verify: bool,
    cancel: Option<StopToken>,
    told: Option<Told>,
}

impl std::fmt::Debug for BlobOpener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlobOpener").field("wait", &self.wait).field("verify", &self.verify).finish_non_exhaustive()
    }
}

/// What was seen of a blob.
enum Look {
    Open(BlobReader),
    /// It is being written, by this process, where it is another one.
    Pending {
        name: String,
        writer: Writer,
    },
    /// It will never be sealed, or is no more.
    Over(BlobError),
}

#[derive(Debug)]
enum Writer {
    This,
    Other(Option<Process>),
}

impl BlobOpener {
    pub(super) fn new(journal: Journal) -> Self {
        let wait = journal.inner.lock_wait;
        Self { journal, wait, verify: false, cancel: None, told: None }
    }

    /// How long to wait for a blob that is being written. Default: as long as for a lock.
    pub fn wait(mut self, at_most: Duration) -> Self {
        self.wait = at_most;
        self
    }

    /// Whether what is read is compared with its hash: read to the end, a blob with other bytes than were sealed is an error. Read
    /// in any other order, it is hashed before. Default: no.
    pub fn verify(mut self, verify: bool) -> Self {
        self.verify = verify;
        self
    }

    /// Ends the waiting when this is asked to stop.
    pub fn cancel(mut self, token: &StopToken) -> Self {
        self.cancel = Some(token.clone());
        self
    }

    /// Is told now and then, while it waits, how far the blob is.
    pub fn on_wait(mut self, told: impl FnMut(BlobWait) + Send + 'static) -> Self {
        self.told = Some(Box::new(told));
        self
    }

    /// Opens a blob. One that is being written is waited for, and opened the moment that it is sealed.
    ///
    /// At once: [`BlobError::Incomplete`] when its writer is dead, [`BlobError::Aborted`] when it was given up,
    /// [`BlobError::NotFound`], and [`BlobError::Damaged`] when its file is missing, shorter or longer. After the time to wait:
    /// [`Error::Busy`]; [`Error::Cancelled`].
    pub fn open(mut self, id: impl AsRef<str>) -> Result<BlobReader> {
        let id = BlobId::new(id.as_ref())?;
        let first = self.look(&id)?;
        // Nearly always; and nothing has to be set up for it.
        if !matches!(first, Look::Pending { .. }) {
            return first.answer();
        }
        let listener = Bell::new()?.listen_alone();
        let deadline = Deadline::after(self.wait);
        self.until(deadline, listener, |opener, listener| {
            let looked = opener.look(&id)?;
            listener.wake_at_end_of(looked.writer());
            Ok(Step { what: format!("blob {id}"), look: Some(looked) })
        })
    }

    /// Opens the blob that a record names, which `resolve` reads; none where it names none yet. Where that blob will never be sealed,
    /// because its writer has died or given it up, the record is read again with each commit until it names another one: the old one
    /// is never asked for again. One that there is not, or not yet, is looked for again as well. At the deadline: why the newest could not be opened, or [`Error::Busy`].
    ///
    /// `resolve` runs in a read of its own, as with [`Journal::read`].
    pub fn open_with(
        mut self,
        mut resolve: impl FnMut(&Rows<'_>) -> Result<Option<BlobId>>,
        deadline: Duration,
    ) -> Result<BlobReader> {
        let ground = self.journal.ground();
        let listener = Bell::new()?.listen(&ground.store.log_path());
        let mut over: Option<(BlobId, BlobError)> = None;
        let deadline = Deadline::after(deadline);
        let opened = self.until(deadline, listener, |opener, listener| {
            let named = opener.journal.read(&mut resolve)?;
            // One that there is not yet may come.
            let stale = |id: &BlobId| {
                over.as_ref().is_some_and(|(old, why)| old == id && !matches!(why, BlobError::NotFound { .. }))
            };
            let Some(id) = named.filter(|id| !stale(id)) else {
                listener.wake_at_end_of(None);
                return Ok(Step { what: "a record that names a blob".to_owned(), look: None });
            };
            let looked = opener.look(&id)?;
            listener.wake_at_end_of(looked.writer());
            let what = format!("blob {id}");
            if let Look::Over(error) = looked {
                if let BlobError::Damaged { .. } = error {
                    return Err(error.into());
                }
                over = Some((id, error));
                return Ok(Step { what, look: None });
            }
            if let Look::Pending { .. } = looked {
                over = None;
            }
            Ok(Step { what, look: Some(looked) })
        });
        match (opened, over) {
            (Err(Error::Busy { .. }), Some((_, error))) => Err(error.into()),
            (opened, _) => opened,
        }
    }

    /// Looks again and again, whenever it is woken, until there is an answer.
    fn until(
        &mut self,
        deadline: Deadline,
        listener: Listener,
        mut step: impl FnMut(&Self, &Listener) -> Result<Step>,
    ) -> Result<BlobReader> {
        let listener = listener.at(self.journal.ground().blobs()?.path());
        let bell = listener.bell().clone();
        self.journal.ground().doors.follow(&bell);
        let cancel = self.cancel.take();
        let _woken = cancel.as_ref().map(|cancel| cancel.on_stop(move || bell.ring()));
        let mut told = self.told.take();
        let mut written = 0;
        let patience = Patience::until(deadline).cancelled_by(cancel);
        let mut next = Duration::ZERO;
        loop {
            let mut seen = None;
            let pause = match told {
                Some(_) => next.saturating_sub(patience.waited()),
                None => Duration::MAX,
            };
            listener.wait_until(Deadline::after(patience.slice().min(pause)), true, |_| {
                let looked = step(self, &listener);
                let waits = matches!(&looked, Ok(Step { look: None | Some(Look::Pending { .. }), .. }));
                seen = Some(looked);
                !waits || patience.is_over()
            });
            let Some(looked) = seen else { continue };
            let Step { what, look } = looked?;
            let waits = match look {
                Some(Look::Pending { name, writer }) => {
                    written = self.journal.in_stage(&name).unwrap_or(0);
                    Some(writer)
                }
                Some(answer) => return answer.answer(),
                None => None,
            };
            if let Some(token) = patience.cancelled() {
                let reason = token.reason().unwrap_or_default();
                return Err(Error::Cancelled { what, reason });
            }
            if patience.is_over() {
                let holder = match waits {
                    Some(Writer::This) => "this process, which writes it".to_owned(),
                    Some(Writer::Other(Some(process))) => format!("process {}, which writes it", process.pid()),
                    Some(Writer::Other(None)) => "whoever writes it".to_owned(),
                    None => "nobody".to_owned(),
                };
                return Err(Error::Busy { what, holder, waited: patience.waited() });
            }
            if let Some(tell) = &mut told
                && patience.waited() >= next
            {
                tell(BlobWait { written, waited: patience.waited() });
                next = patience.waited() + TELL;
            }
        }
    }

    /// Looks once.
    fn look(&self, id: &BlobId) -> Result<Look> {
        let ground = self.journal.ground();
        let not_found = || Look::Over(BlobError::NotFound { id: id.to_string() });
        let mut gone = None;
        let mut dead = 0;
        loop {
            let (found, process) = ground.store.peek(|tx| {
                let found = blob::find(tx, id)?;
                let process = match &found {
                    Found::Writing { session, .. } => lock::process(tx, *session)?,
                    _ => None,
                };
                Ok((found, process))
            })?;
            match found {
                Found::Sealed(content) => match self.read(id, &content)? {
                    Some(look) => return Ok(look),
                    // Removed just now, perhaps, or found to be damaged and written again: then the row says so.
                    None if gone != Some(content.file().cloned()) => gone = Some(content.file().cloned()),
                    None => return Ok(damaged(id, Damage::Missing { expected: content.size })),
                },
                Found::Writing { session, name } if session == ground.session.id => {
                    return Ok(Look::Pending { name, writer: Writer::This });
                }
                Found::Writing { session, name } => {
                    if lock::lives(&ground.state_path.join("sessions"), session)? {
                        return Ok(Look::Pending { name, writer: Writer::Other(process) });
                    }
                    // IMPORTANT: it may have sealed it and ended, since the row was read. And where there is no file, somebody may have
                    // swept it just now: then the row says how far it came.
                    dead += 1;
                    let written = self.journal.in_stage(&name);
                    if dead > 2 || dead == 2 && written.is_some() || planted(Fault::DeadWriterNotReadAgain) {
                        let written = written.unwrap_or(0);
                        return Ok(Look::Over(BlobError::Incomplete { id: id.to_string(), written }));
                    }
                }
                Found::Incomplete(written) => {
                    return Ok(Look::Over(BlobError::Incomplete { id: id.to_string(), written }));
                }
                Found::Aborted => return Ok(Look::Over(BlobError::Aborted { id: id.to_string() })),
                Found::Unknown => return Ok(not_found()),
            }
        }
    }

    /// Opens what a blob says; none when its file is not there.
    fn read(&self, id: &BlobId, content: &Content) -> Result<Option<Look>> {
        let (source, found) = match &content.place {
            Place::Inline(bytes) => (Source::Inline(bytes.clone()), bytes.len() as u64),
            Place::File(file) => {
                let ground = self.journal.ground();
                let placed = file.name();
                let names = Names { staged: &file.staged, placed: &placed };
                match ground.blobs()?.open_file(&*ground.area(STATE_AREA)?, names)? {
                    Some((file, size)) => (Source::File(file), size),
                    None => return Ok(None),
                }
            }
        };
        if found != content.size {
            return Ok(Some(damaged(id, Damage::Size { expected: content.size, found })));
        }
        Ok(Some(Look::Open(BlobReader::new(id.clone(), content, source, self.verify))))
    }
}

struct Step {
    /// What is waited for.
    what: String,
    /// None: for a commit.
    look: Option<Look>,
}

fn damaged(id: &BlobId, damage: Damage) -> Look {
    Look::Over(BlobError::Damaged { id: id.to_string(), damage })
}

impl Look {
    fn writer(&self) -> Option<Process> {
        match self {
            Self::Pending { writer: Writer::Other(process), .. } => process.clone(),
            _ => None,
        }
    }

    fn answer(self) -> Result<BlobReader> {
        match self {
            Self::Open(reader) => Ok(reader),
            Self::Over(error) => Err(error.into()),
            Self::Pending { .. } => Err(Error::corrupt("a blob", "it is being written")),
        }
    }
}

impl Journal {
    /// How many bytes of a blob are written, so far as they are in the stage; none where no file of it is.
    fn in_stage(&self, name: &str) -> Option<u64> {
        let look = || self.ground().area(STATE_AREA)?.look_staged(name);
        look().ok().flatten().map(|meta| meta.size)
    }
}
