//! Writes of little weight beside the store: on a connection of its own, and only while nobody else wants to write.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode};

use super::caller::CallerMode;
use super::connect::{self, Database};
use super::turnstile::TURNSTILE;
use super::tx::Tx;
use crate::error::{Error, Result, SqlContext};
use crate::fs::os_lock::OsLock;
use crate::time::Deadline;

/// A second writer, which nobody of this process waits for and which waits for nobody of this process.
#[derive(Debug)]
pub(crate) struct Aside {
    conn: Connection,
    mode: Arc<CallerMode>,
    turnstile: OsLock,
}

impl Aside {
    pub(crate) fn open(database: &Database, state_path: &Path) -> Result<Self> {
        let conn = connect::writer(database)?;
        connect::set_synchronous(&conn, false)?;
        conn.busy_timeout(Duration::ZERO).during("setting the busy timeout")?;
        let mode = CallerMode::install(&conn).during("installing the authorizer")?;
        Ok(Self { conn, mode, turnstile: OsLock::open(state_path, TURNSTILE)? })
    }

    /// Runs one SQLite transaction that is not synced, when the turn comes free in time; else answers none.
    pub(crate) fn write<T>(&mut self, wait: Duration, work: impl FnOnce(&Tx<'_>) -> Result<T>) -> Result<Option<T>> {
        if !self.turnstile.lock_until(Deadline::after(wait))? {
            return Ok(None);
        }
        let written = match self.turnstile.check_same() {
            Ok(()) => self.write_in_turn(work),
            Err(error) => Err(error),
        };
        self.turnstile.unlock()?;
        match written {
            Err(Error::Sql { source, .. }) if source.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => Ok(None),
            written => written.map(Some),
        }
    }

    fn write_in_turn<T>(&self, work: impl FnOnce(&Tx<'_>) -> Result<T>) -> Result<T> {
        let writing = self.conn.unchecked_transaction().during("beginning")?;
        let value = work(&Tx::over(&self.conn, &self.mode))?;
        writing.commit().during("committing").map(|()| value)
    }
}
