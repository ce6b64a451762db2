//! Carries the write-ahead log into the database, behind the commits and on a connection of its own.

use rusqlite::Connection;

use super::connect::{self, Database};
use super::turn::Store;
use crate::error::Result;
use crate::fault::step;
use std::time::Duration;

/// The connection that checkpoints.
#[derive(Debug)]
pub(crate) struct Checkpointer {
    conn: Connection,
}

impl Checkpointer {
    pub(crate) fn open(database: &Database) -> Result<Self> {
        Ok(Self { conn: connect::writer(database)? })
    }

    /// Copies the log, but for what a reader still needs. Most of it beside the commits; the little that came meanwhile
    /// within a turn, so that nothing is left and the next COMMIT begins the log again from its start.
    pub(crate) fn run(&self, store: &Store, wait: Duration) -> Result<()> {
        self.copy(store)?;
        let _turn = store.enter(wait)?;
        self.copy(store)
    }

    fn copy(&self, store: &Store) -> Result<()> {
        step("wal_checkpoint");
        let copied = self.conn.query_row("PRAGMA wal_checkpoint(PASSIVE)", (), |_| Ok(()));
        copied.map_err(|source| store.checkpoint_failed(source))
    }
}
