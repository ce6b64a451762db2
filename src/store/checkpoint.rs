//! Carries the write-ahead log into the database, behind the commits and on a connection of its own.

use rusqlite::Connection;

use super::connect::{self, Database};
use super::turn::Store;
use crate::error::Result;
use crate::fs::state;
use std::time::Duration;

/// Above this many bytes of log it is not enough to copy: the log is emptied, within a turn.
const LOG_LIMIT: u64 = 16 << 20;

/// The connection that checkpoints.
#[derive(Debug)]
pub(crate) struct Checkpointer {
    conn: Connection,
    database: Database,
}

impl Checkpointer {
    pub(crate) fn open(database: &Database) -> Result<Self> {
        Ok(Self { conn: connect::writer(database)?, database: database.clone() })
    }

    /// Copies what readers let go of. A commit does not wait for it, unless the log has become too long.
    pub(crate) fn run(&self, store: &Store, wait: Duration) -> Result<()> {
        self.conn
            .query_row("PRAGMA wal_checkpoint(PASSIVE)", (), |_| Ok(()))
            .map_err(|source| store.checkpoint_failed(source))?;
        if self.log_size()? < LOG_LIMIT {
            return Ok(());
        }
        match store.enter(wait)?.truncate_log() {
            // A reader is in the way; it is ended by its own limit, and the next run comes.
            Err(error) if error.is_busy() => Ok(()),
            other => other,
        }
    }

    fn log_size(&self) -> Result<u64> {
        let mut path = self.database.path.clone().into_os_string();
        path.push("-wal");
        state::size(path.as_ref())
    }
}
