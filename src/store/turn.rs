//! The one place that writes to the database.
//!
//! 1. the queue of this process: one writing connection, one writer, first come, first served;
//! 2. the turnstile, an OS lock over all processes: SQLite's busy handler starves writers, the kernel's queue does
//!    not. Whoever holds it may also carry commits into the tree, so that the tree follows commit order;
//! 3. `BEGIN IMMEDIATE`, the work, `COMMIT` at the durability asked for.
//!
//! What may share its COMMIT with others does all that in [`super::group`]. [`Store::peek`] only reads, and waits for
//! nobody.
//!
//! A sync of the write-ahead log that fails poisons the process and leaves the marker `sync-failed`: the kernel has
//! marked the pages clean, so a later COMMIT would say Ok for frames that never reach the disk. Whoever takes the
//! turnstile next must first carry the whole log over (`wal_checkpoint(TRUNCATE)`), which writes those pages anew.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode};

use super::caller::{CallerMode, refuse_reentry};
use super::connect::{self, Database};
use super::group::{Rest, Wish, Word};
use super::migrate;
use super::pool::Readers;
use super::queue::{Asked, Place, Queue};
use super::turnstile::Turnstile;
use super::tx::Tx;
use super::writer::Writer;
use crate::error::{Error, Result, SqlContext};
use crate::fs::fork::Born;
use crate::fs::state::StateDir;
use crate::time::Deadline;

const MARKER: &str = "sync-failed";
/// More threads than this do not wait for the turn of one process: what comes then is told so at once.
const MOST_WAITING: usize = 1024;
/// So often a thread that was roused looks for the turn: some ten microseconds, what a short commit takes without its sync.
const LOOKS: u32 = 500;

/// What a COMMIT waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Durability {
    /// It survives a power cut: one sync of the write-ahead log.
    Full,
    /// It survives the death of the process; a power cut may take it, and never anything older. For what can be
    /// found out again: who holds a lock, that a commit was applied, events.
    Normal,
}

/// The database as the engine writes it.
#[derive(Debug)]
pub(crate) struct Store {
    pub(super) queue: Queue<Word, Option<Wish>>,
    /// Reads what the engine wants to know while the writer is taken; opened when that first happens.
    beside: Mutex<Option<(Connection, Arc<CallerMode>)>>,
    readers: Arc<Readers>,
    database: Database,
    state_dir: StateDir,
    poisoned: Mutex<Option<String>>,
    born: Born,
}

impl Store {
    /// Opens the database, makes or migrates the engine's schema.
    pub(crate) fn open(database: Database, state_dir: StateDir, wait: Duration) -> Result<Self> {
        // The turnstile comes first: two processes may be making this journal at once.
        let mut turnstile = Turnstile::open(state_dir.path())?;
        turnstile.pass(Deadline::after(wait))?;
        let mut writer = Writer::open(&database, turnstile)?;
        writer.turnstile.unlock()?;
        let store = Self {
            queue: Queue::new(Word::Turn(Box::new(writer)), MOST_WAITING, LOOKS),
            beside: Mutex::default(),
            readers: Arc::default(),
            database,
            state_dir,
            poisoned: Mutex::default(),
            born: Born::here(),
        };
        migrate::engine_schema(&mut store.enter(wait)?)?;
        Ok(store)
    }

    pub(crate) fn database(&self) -> &Database {
        &self.database
    }

    /// The write-ahead log, which every commit of any process writes to.
    pub(crate) fn log_path(&self) -> PathBuf {
        let mut path = self.database.path.clone().into_os_string();
        path.push("-wal");
        path.into()
    }

    /// The readers of this process.
    pub(crate) fn readers(&self) -> Arc<Readers> {
        Arc::clone(&self.readers)
    }

    /// Waits for the turn to write. [`Error::Busy`] when it does not come in time.
    pub(crate) fn enter(&self, wait: Duration) -> Result<Turn<'_>> {
        self.refuse_forked()?;
        refuse_reentry("a write")?;
        let deadline = Deadline::after(wait);
        match self.ask(None, deadline, &mut None)? {
            Word::Turn(writer) => Turn::pass(self, writer, deadline),
            // Only who wants to share is handed anything else.
            _ => Err(Error::Closed),
        }
    }

    /// Waits in the queue of this process for the first word.
    pub(super) fn ask(
        &self,
        wish: Option<&Wish>,
        deadline: Deadline,
        place: &mut Option<Arc<Place<Word>>>,
    ) -> Result<Word> {
        let busy = |holder: &str| Error::Busy {
            what: "the turn to write".into(),
            holder: holder.into(),
            waited: deadline.waited(),
        };
        let word = match self.queue.ask(|| wish.cloned()) {
            Asked::Here(word) => word,
            Asked::Full => return Err(busy("other threads of this process, and too many wait for it already,")),
            Asked::Wait(at) => {
                let word = self.queue.wait(&at, || deadline.left());
                *place = Some(at);
                word.ok_or_else(|| busy("another thread of this process"))?
            }
        };
        match (word, self.refuse_poisoned()) {
            (word, Ok(())) => Ok(word),
            (Word::Turn(writer), Err(poisoned)) => {
                self.queue.give_back(Word::Turn(writer));
                Err(poisoned)
            }
            // Who has begun ends it, and is told the same.
            (word, Err(_)) => Ok(word),
        }
    }

    /// Frees the turnstile and hands the writer on; first to those who have to do something before that.
    pub(super) fn free(&self, mut writer: Box<Writer>, mut rest: Rest) {
        if self.refuse_forked().is_err() {
            // All of it is the parent's.
            return std::mem::forget((writer, rest));
        }
        match rest.take_next() {
            Some(place) => place.hand(Word::Next(writer, rest)),
            None => {
                // It cannot fail on a file we locked; and if it did, closing the descriptor would still free the lock.
                let _ = writer.turnstile.unlock();
                self.queue.give_back(Word::Turn(writer));
            }
        }
    }

    /// Reads one snapshot of what is committed, without waiting for anybody's turn.
    pub(crate) fn peek<T>(&self, work: impl FnOnce(&Tx<'_>) -> Result<T>) -> Result<T> {
        self.refuse_forked()?;
        refuse_reentry("a read of the journal")?;
        /// Gives the writer back on every way out.
        struct Lent<'s>(&'s Store, Option<Word>);
        impl Drop for Lent<'_> {
            fn drop(&mut self) {
                if let Some(word) = self.1.take() {
                    self.0.queue.give_back(word);
                }
            }
        }
        let lent = Lent(self, self.queue.try_take());
        self.refuse_poisoned()?;
        if let Some(Word::Turn(writer)) = &lent.1 {
            return peek(&writer.tx(), work);
        }
        let mut beside = self.beside.lock().unwrap_or_else(|poison| poison.into_inner());
        let (conn, mode) = match &mut *beside {
            Some(open) => open,
            none => {
                let conn = connect::reader(&self.database.path)?;
                let mode = CallerMode::install(&conn).during("installing the authorizer")?;
                none.insert((conn, mode))
            }
        };
        peek(&Tx::beside(conn, mode), work)
    }

    /// True when threads of this process wait for the turn.
    pub(crate) fn is_waited_for(&self) -> bool {
        self.queue.waiting() > 0
    }

    /// Runs the application's own migrations.
    pub(crate) fn migrate(&self, steps: &[&str], wait: Duration) -> Result<()> {
        migrate::application(&mut self.enter(wait)?, steps)
    }

    /// [`Error::Forked`] in a child of the process that opened it: nothing of it may be touched there.
    pub(crate) fn refuse_forked(&self) -> Result<()> {
        self.born.check()
    }

    /// Why this handle no longer writes, if so.
    pub(crate) fn refuse_poisoned(&self) -> Result<()> {
        self.refuse_forked()?;
        match &*self.poisoned.lock().unwrap_or_else(|poison| poison.into_inner()) {
            Some(why) => Err(Error::Poisoned { why: why.clone() }),
            None => Ok(()),
        }
    }

    /// No later write of this process is believed.
    pub(crate) fn poison(&self, why: &str) {
        let mut poisoned = self.poisoned.lock().unwrap_or_else(|poison| poison.into_inner());
        poisoned.get_or_insert_with(|| why.to_owned());
    }

    /// A checkpoint syncs the log before it copies: when that fails, frames of the log may be lost that later ones
    /// build upon.
    pub(super) fn checkpoint_failed(&self, source: rusqlite::Error) -> Error {
        if source.sqlite_error_code() == Some(ErrorCode::SystemIoFailure) {
            self.mark_failed_sync(&format!("a checkpoint failed: {source}"));
        }
        Error::sql("carrying the log into the database", source)
    }

    pub(super) fn mark_failed_sync(&self, why: &str) {
        self.poison(why);
        if let Err(error) = self.state_dir.leave_mark(MARKER) {
            tracing::error!(%error, "the marker of a failed sync could not be left");
        }
    }

    pub(super) fn has_failed_sync(&self) -> bool {
        self.state_dir.has_mark(MARKER)
    }

    pub(super) fn forget_failed_sync(&self) -> Result<()> {
        self.state_dir.clear_mark(MARKER)
    }
}

fn peek<T>(tx: &Tx<'_>, work: impl FnOnce(&Tx<'_>) -> Result<T>) -> Result<T> {
    /// Ends the read on every way out.
    struct End<'t, 'c>(&'t Tx<'c>);
    impl Drop for End<'_, '_> {
        fn drop(&mut self) {
            self.0.roll_back();
        }
    }
    tx.run("BEGIN DEFERRED", "beginning a read")?;
    let _end = End(tx);
    work(tx)
}

/// The turn to write: this process's connection, and the turnstile of all.
#[derive(Debug)]
pub(crate) struct Turn<'s> {
    store: &'s Store,
    /// There until the turn is over.
    writer: Option<Box<Writer>>,
    /// Who goes on within the same turn of the turnstile.
    rest: Rest,
    deadline: Deadline,
}

impl<'s> Turn<'s> {
    /// Waits for the turnstile.
    pub(super) fn pass(store: &'s Store, writer: Box<Writer>, deadline: Deadline) -> Result<Self> {
        let mut turn = Self::of(store, writer, Rest::Nobody, deadline);
        turn.writer()?.turnstile.pass(deadline)?;
        Ok(turn)
    }

    /// A turn whose turnstile is held already.
    pub(super) fn of(store: &'s Store, writer: Box<Writer>, rest: Rest, deadline: Deadline) -> Self {
        Self { store, writer: Some(writer), rest, deadline }
    }

    /// Keeps the turn going, without this guard of it.
    pub(super) fn into_writer(mut self) -> Result<Box<Writer>> {
        self.writer.take().ok_or(Error::Closed)
    }

    pub(super) fn writer(&mut self) -> Result<&mut Writer> {
        self.writer.as_deref_mut().ok_or(Error::Closed)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.store.database.path
    }

    /// Runs one SQLite transaction. On `Ok` it is committed, at the durability asked for; on `Err` nothing of it
    /// happened, unless [`Error::is_outcome_unknown`].
    pub(crate) fn write<T>(&mut self, durability: Durability, work: impl FnOnce(&Tx<'_>) -> Result<T>) -> Result<T> {
        let writing = self.begin(durability)?;
        let value = work(&writing.tx())?;
        writing.commit().map(|()| value)
    }

    /// Begins a SQLite transaction. Dropped without [`Writing::commit`] nothing of it happened.
    pub(crate) fn begin(&mut self, durability: Durability) -> Result<Writing<'_>> {
        let (store, mut deadline) = (self.store, self.deadline);
        if deadline.passed() {
            // It came in time, and has been at work since: a recovery, say.
            deadline = Deadline::after(connect::BUSY_TIMEOUT);
        }
        let writer = self.writer()?;
        writer.begin(store, durability, deadline)?;
        Ok(Writing { store, writer })
    }

    /// How many frames the write-ahead log has, as of this process's last COMMIT.
    pub(crate) fn log_frames(&self) -> u32 {
        self.writer.as_ref().map_or(0, |writer| writer.log_frames)
    }

    /// True when nobody of the same group has its turn after this one.
    pub(crate) fn is_last(&self) -> bool {
        self.rest.is_over()
    }

    /// Reads what is committed, outside any transaction.
    pub(crate) fn look<T>(&self, work: impl FnOnce(&Tx<'_>) -> Result<T>) -> Result<T> {
        work(&self.writer.as_ref().ok_or(Error::Closed)?.tx())
    }

    /// Carries the whole log into the database and empties it. [`Error::Busy`] at once when a reader needs it: whoever
    /// holds the turn keeps everybody waiting.
    pub(crate) fn truncate_log(&mut self) -> Result<()> {
        let store = self.store;
        self.writer()?.truncate_log(store)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if let Some(writer) = self.writer.take() {
            self.store.free(writer, std::mem::take(&mut self.rest));
        }
    }
}

/// A SQLite transaction that is being written. Rolls back on drop, on an error and on a panic alike.
#[derive(Debug)]
#[must_use = "a transaction that is dropped is rolled back; call commit()"]
pub(crate) struct Writing<'t> {
    store: &'t Store,
    writer: &'t mut Writer,
}

impl Writing<'_> {
    pub(crate) fn tx(&self) -> Tx<'_> {
        self.writer.tx()
    }

    /// The commit point.
    pub(crate) fn commit(self) -> Result<()> {
        self.writer.commit(self.store)
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        // There is none any more after a COMMIT.
        self.writer.roll_back();
    }
}
