//! The statements of one SQLite transaction, the engine's and the caller's.

use rusqlite::{CachedStatement, Connection, Params, Row};

use super::caller::{CallerMode, Rows};
use crate::error::{Error, Result, SqlContext};

/// What [`Tx::version`] answers beside a turn, whose changes it may or may not see: never the same as any other.
const BESIDE: i64 = i64::MIN;

/// The statements of one transaction. All names in engine SQL say `main.`, because a TEMP object would win.
#[derive(Debug)]
pub(crate) struct Tx<'c> {
    conn: &'c Connection,
    mode: &'c CallerMode,
    beside: bool,
}

impl<'c> Tx<'c> {
    /// Statements of the engine over a connection.
    pub(crate) fn over(conn: &'c Connection, mode: &'c CallerMode) -> Self {
        Self { conn, mode, beside: false }
    }

    /// The same, of the connection that reads while this process's turn is taken.
    pub(super) fn beside(conn: &'c Connection, mode: &'c CallerMode) -> Self {
        Self { conn, mode, beside: true }
    }

    pub(crate) fn prepare(&self, sql: &'static str) -> Result<CachedStatement<'_>> {
        self.mode.born.check()?;
        self.conn.prepare_cached(sql).during(sql)
    }

    /// Ends whatever transaction the connection is in.
    pub(super) fn roll_back(&self) {
        // What a forked child takes back in the log's index, the parent loses.
        if self.mode.born.is_here() && !self.conn.is_autocommit() {
            let _ = self.conn.prepare_cached("ROLLBACK").and_then(|mut rollback| rollback.raw_execute());
        }
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

    /// A number that changes whenever another connection, of any process, has written to the database. Where it may
    /// just be changing it is one of its own, which no other is equal to.
    pub(crate) fn version(&self) -> Result<i64> {
        if self.beside {
            return Ok(BESIDE);
        }
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

    /// Runs one statement that takes nothing and answers nothing.
    pub(super) fn run(&self, sql: &'static str, op: &'static str) -> Result<()> {
        self.prepare(sql)?.raw_execute().map(drop).during(op)
    }
}
