//! The one place that writes to the database.
//!
//! 1. the mutex of this process: one writing connection, one writer;
//! 2. the turnstile, an OS lock over all processes: SQLite's busy handler starves writers, the kernel's queue does
//!    not. Whoever holds it may also carry commits into the tree, so that the tree follows commit order;
//! 3. `BEGIN IMMEDIATE`, the work, `COMMIT` at the durability asked for.
//!
//! [`Store::peek`] only reads, so it needs the first alone.
//!
//! A sync of the write-ahead log that fails poisons the process and leaves the marker `sync-failed`: the kernel has
//! marked the pages clean, so a later COMMIT would say Ok for frames that never reach the disk. Whoever takes the
//! turnstile next must first carry the whole log over (`wal_checkpoint(TRUNCATE)`), which writes those pages anew.

use std::cell::Cell;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use rusqlite::{CachedStatement, Connection, ErrorCode, Params, Row};

use super::caller::{CallerMode, Rows, refuse_reentry};
use super::connect::{self, Database};
use super::migrate;
use crate::error::{Error, Result, SqlContext};
use crate::fault::{Fault, planted, step};
use crate::fs::os_lock::OsLock;
use crate::fs::state::StateDir;
use crate::time::Deadline;

const MARKER: &str = "sync-failed";
/// The turnstile's file, in the state directory.
pub(crate) const TURNSTILE: &str = "turnstile.lock";

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
    writer: Mutex<Writer>,
    mode: Arc<CallerMode>,
    database: Database,
    state_dir: StateDir,
    poisoned: Mutex<Option<String>>,
}

#[derive(Debug)]
struct Writer {
    conn: Connection,
    turnstile: OsLock,
    full: bool,
    /// How many frames the write-ahead log had after the last COMMIT of this process.
    log_frames: u32,
}

thread_local! {
    /// What SQLite says of its log after a COMMIT on this thread.
    static LOG_FRAMES: Cell<u32> = const { Cell::new(0) };
}

/// This many frames of log are too many: whoever has the turn carries them over before it adds to them.
const TOO_MANY_FRAMES: u32 = 4 * LOG_FRAMES_ENOUGH;
/// With this many frames the log is carried over in the background: 8 MiB of pages of 4 KiB, on blocks that are then
/// used again and again. To append to a file costs the filesystem's own journal, to write over it does not.
pub(crate) const LOG_FRAMES_ENOUGH: u32 = 2048;

impl Store {
    /// Opens the database, makes or migrates the engine's schema.
    pub(crate) fn open(database: Database, state_dir: StateDir, wait: Duration) -> Result<Self> {
        // The turnstile comes first: two processes may be making this journal at once.
        let mut turnstile = OsLock::open(state_dir.path(), TURNSTILE)?;
        let deadline = Deadline::after(wait);
        if !turnstile.lock_until(deadline)? {
            return Err(Error::Busy { what: "the turnstile".into(), holder: "another process".into(), waited: wait });
        }
        let conn = connect::writer(&database)?;
        conn.wal_hook(Some(|_, frames| {
            LOG_FRAMES.set(u32::try_from(frames).unwrap_or(0));
            Ok(())
        }));
        let mode = CallerMode::install(&conn).during("installing the authorizer")?;
        turnstile.unlock()?;
        let store = Self {
            writer: Mutex::new(Writer { conn, turnstile, full: true, log_frames: 0 }),
            mode,
            database,
            state_dir,
            poisoned: Mutex::new(None),
        };
        migrate::engine_schema(&mut store.enter(wait)?)?;
        Ok(store)
    }

    pub(crate) fn database(&self) -> &Database {
        &self.database
    }

    /// Waits for the turn to write. [`Error::Busy`] when it does not come in time.
    pub(crate) fn enter(&self, wait: Duration) -> Result<Turn<'_>> {
        self.refuse_forked()?;
        refuse_reentry("a write")?;
        let deadline = Deadline::after(wait);
        let mut writer = self.writer.lock().unwrap_or_else(|poison| poison.into_inner());
        self.refuse_poisoned()?;
        if !writer.turnstile.lock_until(deadline)? {
            return Err(Error::Busy {
                what: "the turnstile".into(),
                holder: "another process".into(),
                waited: deadline.waited(),
            });
        }
        let turn = Turn { store: self, writer };
        turn.writer.turnstile.check_same()?;
        Ok(turn)
    }

    /// Reads one snapshot of what is committed, without waiting for anybody's turn in other processes.
    pub(crate) fn peek<T>(&self, work: impl FnOnce(&Tx<'_>) -> Result<T>) -> Result<T> {
        self.refuse_forked()?;
        refuse_reentry("a read of the journal")?;
        let writer = self.writer.lock().unwrap_or_else(|poison| poison.into_inner());
        self.refuse_poisoned()?;
        let tx = Tx { conn: &writer.conn, mode: &self.mode };
        tx.run("BEGIN DEFERRED", "beginning a read")?;
        let _end = RollBack(&writer.conn, &self.mode);
        work(&tx)
    }

    /// Runs the application's own migrations.
    pub(crate) fn migrate(&self, steps: &[&str], wait: Duration) -> Result<()> {
        migrate::application(&mut self.enter(wait)?, steps)
    }

    /// [`Error::Forked`] in a child of the process that opened it: nothing of it may be touched there.
    pub(crate) fn refuse_forked(&self) -> Result<()> {
        self.mode.born.check()
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

    fn mark_failed_sync(&self, why: &str) {
        self.poison(why);
        if let Err(error) = self.state_dir.leave_mark(MARKER) {
            tracing::error!(%error, "the marker of a failed sync could not be left");
        }
    }
}

/// The turn to write: this process's connection, and the turnstile of all.
#[derive(Debug)]
pub(crate) struct Turn<'s> {
    store: &'s Store,
    writer: MutexGuard<'s, Writer>,
}

impl Turn<'_> {
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
        let full = durability == Durability::Full;
        if full {
            self.cure_failed_sync()?;
        }
        if self.writer.full != full {
            connect::set_synchronous(&self.writer.conn, full)?;
            self.writer.full = full;
        }
        if self.writer.log_frames >= TOO_MANY_FRAMES {
            self.carry_over_soon()?;
        }
        let tx = Tx { conn: &self.writer.conn, mode: &self.store.mode };
        tx.run("BEGIN IMMEDIATE", "beginning")?;
        Ok(Writing { store: self.store, writer: &mut self.writer, committed: false })
    }

    /// How many frames the write-ahead log has, as of this process's last COMMIT.
    pub(crate) fn log_frames(&self) -> u32 {
        self.writer.log_frames
    }

    /// Reads what is committed, outside any transaction.
    pub(crate) fn look<T>(&self, work: impl FnOnce(&Tx<'_>) -> Result<T>) -> Result<T> {
        work(&Tx { conn: &self.writer.conn, mode: &self.store.mode })
    }

    /// Carries the whole log into the database and empties it. [`Error::Busy`] at once when a reader needs it: whoever
    /// holds the turn keeps everybody waiting.
    pub(crate) fn truncate_log(&mut self) -> Result<()> {
        self.writer.conn.busy_timeout(Duration::ZERO).during("setting the busy timeout")?;
        let done = self.carry_over();
        self.writer.conn.busy_timeout(connect::BUSY_TIMEOUT).during("setting the busy timeout")?;
        done
    }

    fn carry_over(&mut self) -> Result<()> {
        step("wal_checkpoint");
        let busy = self
            .writer
            .conn
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", (), |row| row.get::<_, i64>(0))
            .map_err(|source| self.store.checkpoint_failed(source))?;
        if busy == 0 {
            return Ok(());
        }
        Err(Error::Busy {
            what: "the write-ahead log".into(),
            holder: "a reader".into(),
            waited: connect::BUSY_TIMEOUT,
        })
    }

    /// The background does not keep up, or a reader is in its way: copy what can be copied, and look again after as
    /// many frames more.
    fn carry_over_soon(&mut self) -> Result<()> {
        step("wal_checkpoint");
        let row = self.writer.conn.query_row("PRAGMA wal_checkpoint(PASSIVE)", (), |_| Ok(()));
        row.map_err(|source| self.store.checkpoint_failed(source))?;
        self.writer.log_frames = 0;
        Ok(())
    }

    fn cure_failed_sync(&mut self) -> Result<()> {
        if !self.store.state_dir.has_mark(MARKER) || planted(Fault::FailedLogSyncForgotten) {
            return Ok(());
        }
        self.carry_over()?;
        self.store.state_dir.clear_mark(MARKER)?;
        tracing::warn!("an earlier sync of the write-ahead log had failed: the log was carried over");
        Ok(())
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        // It cannot fail on a file we locked; and if it did, closing the descriptor would still free the lock.
        let _ = self.writer.turnstile.unlock();
    }
}

/// A SQLite transaction that is being written. Rolls back on drop, on an error and on a panic alike.
#[derive(Debug)]
#[must_use = "a transaction that is dropped is rolled back; call commit()"]
pub(crate) struct Writing<'t> {
    store: &'t Store,
    writer: &'t mut Writer,
    committed: bool,
}

impl Writing<'_> {
    pub(crate) fn tx(&self) -> Tx<'_> {
        Tx { conn: &self.writer.conn, mode: &self.store.mode }
    }

    /// The commit point.
    pub(crate) fn commit(mut self) -> Result<()> {
        let tx = self.tx();
        if tx.ended() {
            return Err(Error::EndedBySql);
        }
        step("COMMIT");
        let done = tx.prepare("COMMIT")?.raw_execute();
        match done {
            Ok(_) => {
                self.committed = true;
                self.writer.log_frames = LOG_FRAMES.get();
                Ok(())
            }
            Err(source) if source.sqlite_error_code() == Some(ErrorCode::SystemIoFailure) => {
                self.store.mark_failed_sync(&format!("COMMIT failed: {source}"));
                Err(Error::OutcomeUnknown { source })
            }
            Err(source) => Err(Error::sql("committing", source)),
        }
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        if !self.committed {
            drop(RollBack(&self.writer.conn, &self.store.mode));
        }
    }
}

struct RollBack<'c>(&'c Connection, &'c CallerMode);

impl Drop for RollBack<'_> {
    fn drop(&mut self) {
        // What a child takes back in the log's index, the parent loses.
        if self.1.born.is_here() && !self.0.is_autocommit() {
            let _ = self.0.prepare_cached("ROLLBACK").and_then(|mut rollback| rollback.raw_execute());
        }
    }
}

/// The statements of one transaction. All names in engine SQL say `main.`, because a TEMP object would win.
#[derive(Debug)]
pub(crate) struct Tx<'c> {
    conn: &'c Connection,
    mode: &'c CallerMode,
}

impl<'c> Tx<'c> {
    /// Statements of the engine over a connection that only reads.
    pub(crate) fn reading(conn: &'c Connection, mode: &'c CallerMode) -> Self {
        Self { conn, mode }
    }

    pub(crate) fn prepare(&self, sql: &'static str) -> Result<CachedStatement<'_>> {
        self.mode.born.check()?;
        self.conn.prepare_cached(sql).during(sql)
    }

    /// Runs one statement of the engine and answers how many rows it changed.
    pub(crate) fn execute(&self, sql: &'static str, params: impl Params) -> Result<usize> {
        self.prepare(sql)?.execute(params).during(sql)
    }

    pub(crate) fn query_row<T>(
        &self,
        sql: &'static str,
        params: impl Params,
        map: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<T> {
        self.prepare(sql)?.query_row(params, map).during(sql)
    }

    pub(crate) fn query_opt<T>(
        &self,
        sql: &'static str,
        params: impl Params,
        map: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Option<T>> {
        use rusqlite::OptionalExtension;
        self.prepare(sql)?.query_row(params, map).optional().during(sql)
    }

    pub(crate) fn query_map<T>(
        &self,
        sql: &'static str,
        params: impl Params,
        map: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>> {
        let mut statement = self.prepare(sql)?;
        let rows = statement.query_map(params, map).during(sql)?;
        rows.collect::<rusqlite::Result<_>>().during(sql)
    }

    /// A number that changes whenever another connection, of any process, has written to the database.
    pub(crate) fn version(&self) -> Result<i64> {
        self.query_row("PRAGMA main.data_version", (), |row| row.get(0))
    }

    pub(crate) fn batch(&self, sql: &str, op: &'static str) -> Result<()> {
        self.conn.execute_batch(sql).during(op)
    }

    pub(crate) fn last_insert_rowid(&self) -> i64 {
        self.conn.last_insert_rowid()
    }

    /// Runs the caller's closure on its rows. It may not end the transaction.
    pub(crate) fn caller<T>(&self, work: impl FnOnce(&Rows<'_>) -> Result<T>) -> Result<T> {
        let value = self.mode.run(self.conn, work);
        if self.ended() { Err(Error::EndedBySql) } else { value }
    }

    /// True when the SQLite transaction is over, whoever ended it.
    pub(crate) fn ended(&self) -> bool {
        self.conn.is_autocommit()
    }

    fn run(&self, sql: &'static str, op: &'static str) -> Result<()> {
        self.prepare(sql)?.raw_execute().map(drop).during(op)
    }
}
