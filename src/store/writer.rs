//! The one writing connection of this process, with the turnstile: what is handed from thread to thread.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode};

use super::caller::CallerMode;
use super::connect::{self, Database};
use super::turn::{Durability, Store};
use super::turnstile::Turnstile;
use super::tx::Tx;
use crate::error::{Error, Result, SqlContext};
use crate::fault::{Fault, planted, step};
use crate::time::Deadline;

/// This many frames of log are too many: whoever has the turn carries them over before it adds to them.
const TOO_MANY_FRAMES: u32 = 4 * LOG_FRAMES_ENOUGH;
/// And with this many it waits for the readers that keep the log from beginning again: 48 MiB.
const MOST_FRAMES: u32 = 6 * LOG_FRAMES_ENOUGH;
/// So long: some more than a read may last.
const READERS_TIMEOUT: Duration = Duration::from_secs(6);
/// How often it looks meanwhile which of them are overdue.
const READERS_LOOK: Duration = Duration::from_millis(20);
/// With this many frames the log is carried over in the background: 8 MiB of pages of 4 KiB, on blocks that are then
/// used again and again. To append to a file costs the filesystem's own journal, to write over it does not.
pub(crate) const LOG_FRAMES_ENOUGH: u32 = 2048;

thread_local! {
    /// What SQLite says of its log after a COMMIT on this thread.
    static LOG_FRAMES: Cell<u32> = const { Cell::new(0) };
}

#[derive(Debug)]
pub(super) struct Writer {
    pub(super) conn: Connection,
    mode: Arc<CallerMode>,
    pub(super) turnstile: Turnstile,
    full: bool,
    /// How many frames the write-ahead log had after the last COMMIT of this process.
    pub(super) log_frames: u32,
    /// How many it had when they were last carried over here.
    looked_at: u32,
}

impl Writer {
    /// Opens the connection, behind a turnstile that is held.
    pub(super) fn open(database: &Database, turnstile: Turnstile) -> Result<Self> {
        let conn = connect::writer(database)?;
        conn.wal_hook(Some(|_, frames| {
            LOG_FRAMES.set(u32::try_from(frames).unwrap_or(0));
            Ok(())
        }));
        let mode = CallerMode::install(&conn).during("installing the authorizer")?;
        Ok(Self { conn, mode, turnstile, full: true, log_frames: 0, looked_at: 0 })
    }

    pub(super) fn tx(&self) -> Tx<'_> {
        Tx::over(&self.conn, &self.mode)
    }

    /// Begins a SQLite transaction.
    pub(super) fn begin(&mut self, store: &Store, durability: Durability, deadline: Deadline) -> Result<()> {
        let full = durability == Durability::Full;
        if full {
            self.cure_failed_sync(store)?;
        }
        if self.full != full {
            connect::set_synchronous(&self.conn, full)?;
            self.full = full;
        }
        if self.log_frames < self.looked_at {
            // It has begun again.
            self.looked_at = 0;
        }
        if self.log_frames >= TOO_MANY_FRAMES && self.log_frames - self.looked_at >= LOG_FRAMES_ENOUGH {
            self.carry_over_soon(store, deadline)?;
        }
        if deadline.left() < connect::BUSY_TIMEOUT {
            return self.begin_until(store, deadline);
        }
        match self.tx().run("BEGIN IMMEDIATE", "beginning") {
            Err(error) if error.is_busy() => self.begin_until(store, deadline),
            other => other,
        }
    }

    /// The same, where somebody writes without the turnstile for another time than SQLite waits by itself.
    fn begin_until(&self, store: &Store, deadline: Deadline) -> Result<()> {
        let tried = loop {
            let left = deadline.left();
            self.conn.busy_timeout(left.min(connect::BUSY_TIMEOUT)).during("setting the busy timeout")?;
            match self.tx().run("BEGIN IMMEDIATE", "beginning") {
                Err(error) if error.is_busy() && left.is_zero() => {
                    break Err(Error::Busy {
                        what: format!("the database {}", store.database().path.display()),
                        holder: "a connection that does not wait for the journal's turn".into(),
                        waited: deadline.waited(),
                    });
                }
                Err(error) if error.is_busy() => {}
                other => break other,
            }
        };
        self.conn.busy_timeout(connect::BUSY_TIMEOUT).during("setting the busy timeout")?;
        tried
    }

    /// The commit point.
    pub(super) fn commit(&mut self, store: &Store) -> Result<()> {
        let tx = self.tx();
        if tx.ended() {
            return Err(Error::EndedBySql);
        }
        step("COMMIT");
        let done = tx.prepare("COMMIT")?.raw_execute();
        match done {
            Ok(_) => {
                self.log_frames = LOG_FRAMES.get();
                Ok(())
            }
            Err(source) if source.sqlite_error_code() == Some(ErrorCode::SystemIoFailure) => {
                store.mark_failed_sync(&format!("COMMIT failed: {source}"));
                Err(Error::OutcomeUnknown { source })
            }
            Err(source) => Err(Error::sql("committing", source)),
        }
    }

    /// Ends a SQLite transaction of which nothing is to remain.
    pub(super) fn roll_back(&self) {
        self.tx().roll_back();
    }

    /// Carries the whole log into the database and empties it. [`Error::Busy`] at once when a reader needs it: whoever
    /// holds the turn keeps everybody waiting.
    pub(super) fn truncate_log(&mut self, store: &Store) -> Result<()> {
        self.conn.busy_timeout(Duration::ZERO).during("setting the busy timeout")?;
        let done = self.carry_over(store);
        self.conn.busy_timeout(connect::BUSY_TIMEOUT).during("setting the busy timeout")?;
        done
    }

    fn carry_over(&mut self, store: &Store) -> Result<()> {
        step("wal_checkpoint");
        let busy = self
            .conn
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", (), |row| row.get::<_, i64>(0))
            .map_err(|source| store.checkpoint_failed(source))?;
        if busy == 0 {
            return Ok(());
        }
        Err(Error::Busy {
            what: "the write-ahead log".into(),
            holder: "a reader".into(),
            waited: connect::BUSY_TIMEOUT,
        })
    }

    /// The background does not keep up, or a reader is in its way: copy what can be copied, and look again after some
    /// frames more. Where that goes on, everybody waits until the readers are through, or have had the time that they may
    /// have: one that keeps a snapshot for longer, and asks for nothing, cannot be ended, and the log grows on.
    fn carry_over_soon(&mut self, store: &Store, deadline: Deadline) -> Result<()> {
        self.looked_at = self.log_frames;
        let copy = |how: &str| -> Result<bool> {
            step("wal_checkpoint");
            let row = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
            let (busy, log, copied): (i64, i64, i64) =
                self.conn.query_row(how, (), row).map_err(|source| store.checkpoint_failed(source))?;
            Ok(busy == 0 && log == copied)
        };
        if copy("PRAGMA wal_checkpoint(PASSIVE)")? || self.log_frames < MOST_FRAMES {
            return Ok(());
        }
        let waiting = Deadline::after(deadline.left().min(READERS_TIMEOUT));
        self.conn.busy_timeout(READERS_LOOK).during("setting the busy timeout")?;
        let through = loop {
            store.readers().end_overdue();
            match copy("PRAGMA wal_checkpoint(RESTART)") {
                Ok(false) if !waiting.passed() => {}
                other => break other,
            }
        };
        self.conn.busy_timeout(connect::BUSY_TIMEOUT).during("setting the busy timeout")?;
        if !through? {
            tracing::warn!(frames = self.log_frames, "a reader does not end: the write-ahead log grows on");
        }
        Ok(())
    }

    fn cure_failed_sync(&mut self, store: &Store) -> Result<()> {
        if !store.has_failed_sync() || planted(Fault::FailedLogSyncForgotten) {
            return Ok(());
        }
        self.carry_over(store)?;
        store.forget_failed_sync()?;
        tracing::warn!("an earlier sync of the write-ahead log had failed: the log was carried over");
        Ok(())
    }
}
