//! The caller's SQL: a wrapper instead of the connection, and an authorizer that keeps it out of what is the engine's.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use rusqlite::{CachedStatement, Connection, OptionalExtension, Params, Row, ffi};

use crate::error::{Error, Result};
use crate::fs::fork::Born;
use crate::time::Deadline;

/// Behind this, a caller's text never meets a statement that the engine prepared, under the engine's rights.
const CALLERS_MARK: &str = "/**/";

thread_local! {
    /// True while this thread runs a caller's closure inside the engine.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Refuses a call that comes from inside a closure the engine itself is running.
pub(crate) fn refuse_reentry(what: &'static str) -> Result<()> {
    if INSIDE.get() { Err(Error::Reentrant { what }) } else { Ok(()) }
}

/// The rows of the database, for the caller's own statements. Every table but `journal_*` may be used.
///
/// BEGIN, COMMIT, SAVEPOINT, ATTACH, PRAGMA and `journal_*` are refused with [`Error::Denied`]; the transaction these
/// statements run in is the engine's. Statements are prepared once and kept.
#[derive(Debug)]
pub struct Rows<'c> {
    conn: &'c Connection,
    mode: &'c CallerMode,
}

impl Rows<'_> {
    /// Runs one statement and returns how many rows it changed.
    pub fn execute(&self, sql: &str, params: impl Params) -> Result<usize> {
        self.answer(self.prepare(sql)?.execute(params))
    }

    /// Runs several statements, separated by semicolons.
    pub fn execute_batch(&self, sql: &str) -> Result<()> {
        self.mode.born.check()?;
        self.in_time()?;
        self.answer(self.conn.execute_batch(sql))
    }

    /// Runs a query and maps its first row. `QueryReturnedNoRows` when there is none.
    pub fn query_row<T>(
        &self,
        sql: &str,
        params: impl Params,
        map: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<T> {
        self.answer(self.prepare(sql)?.query_row(params, map))
    }

    /// Runs a query and maps its first row, if there is one.
    pub fn query_opt<T>(
        &self,
        sql: &str,
        params: impl Params,
        map: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Option<T>> {
        self.answer(self.prepare(sql)?.query_row(params, map).optional())
    }

    /// Runs a query and maps every row.
    pub fn query_map<T>(
        &self,
        sql: &str,
        params: impl Params,
        map: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>> {
        let mut statement = self.prepare(sql)?;
        let mut map = map;
        let in_time = |row: &Row<'_>| self.in_time().and_then(|()| map(row));
        let rows = self.answer(statement.query_map(params, in_time))?;
        self.answer(rows.collect())
    }

    /// Prepares a statement, or takes it from those kept, for what the other methods do not cover.
    pub fn prepare(&self, sql: &str) -> Result<CachedStatement<'_>> {
        self.mode.born.check()?;
        self.in_time()?;
        self.answer(self.conn.prepare_cached(&[CALLERS_MARK, sql].concat()))
    }

    /// The rowid of the last INSERT.
    pub fn last_insert_rowid(&self) -> i64 {
        self.conn.last_insert_rowid()
    }

    /// As SQLite says it of a statement that was running when the time was over.
    fn in_time(&self) -> rusqlite::Result<()> {
        match self.mode.is_overdue() {
            true => Err(rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_INTERRUPT), None)),
            false => Ok(()),
        }
    }

    fn answer<T>(&self, answer: rusqlite::Result<T>) -> Result<T> {
        answer.map_err(|source| match self.mode.take_denied() {
            Some(what) => Error::Denied { what },
            None => source.into(),
        })
    }
}

/// Whether a connection's statements are, just now, the caller's. Shared with its authorizer.
#[derive(Debug, Default)]
pub(crate) struct CallerMode {
    /// A connection is of no use in a forked child.
    pub(super) born: Born,
    on: AtomicBool,
    schema_changed: AtomicBool,
    denied: std::sync::Mutex<Option<String>>,
    /// When the caller's closure has to end, if it has to.
    limit: std::sync::Mutex<Option<Deadline>>,
}

impl CallerMode {
    /// Puts the authorizer on a connection, for good: to set one anew would expire every prepared statement.
    pub(super) fn install(conn: &Connection) -> rusqlite::Result<Arc<Self>> {
        let mode = Arc::new(Self::default());
        let judge = Arc::clone(&mode);
        conn.authorizer(Some(move |context: AuthContext<'_>| judge.judge(&context)))?;
        Ok(mode)
    }

    /// Sets when the caller's closure has to end.
    pub(super) fn limit(&self, to: Option<Deadline>) {
        *self.limit.lock().unwrap_or_else(|poison| poison.into_inner()) = to;
    }

    /// True when it should have ended.
    pub(super) fn is_overdue(&self) -> bool {
        let limit = self.limit.lock().unwrap_or_else(|poison| poison.into_inner());
        limit.is_some_and(|limit| limit.passed())
    }

    /// Runs a caller's closure on the connection.
    pub(super) fn run<T>(&self, conn: &Connection, work: impl FnOnce(&Rows<'_>) -> Result<T>) -> Result<T> {
        /// Undoes both flags on every way out, a panic included.
        struct Out<'m>(&'m CallerMode);
        impl Drop for Out<'_> {
            fn drop(&mut self) {
                self.0.on.store(false, Ordering::Relaxed);
                INSIDE.set(false);
            }
        }
        refuse_reentry("a closure inside a closure")?;
        self.take_denied();
        self.schema_changed.store(false, Ordering::Relaxed);
        self.on.store(true, Ordering::Relaxed);
        INSIDE.set(true);
        let out = Out(self);
        let value = work(&Rows { conn, mode: self })?;
        drop(out);
        if self.schema_changed.load(Ordering::Relaxed) {
            refuse_impostors(conn)?;
        }
        Ok(value)
    }

    fn take_denied(&self) -> Option<String> {
        self.denied.lock().unwrap_or_else(|poison| poison.into_inner()).take()
    }

    fn judge(&self, context: &AuthContext<'_>) -> Authorization {
        use AuthAction as A;
        if !self.on.load(Ordering::Relaxed) {
            return Authorization::Allow;
        }
        let named: [&str; 2] = match context.action {
            A::Transaction { .. } => return self.deny("BEGIN, COMMIT or ROLLBACK"),
            A::Savepoint { .. } => return self.deny("SAVEPOINT, RELEASE or ROLLBACK TO"),
            A::Attach { .. } | A::Detach { .. } => return self.deny("ATTACH or DETACH"),
            // What an extension asks for about itself, from inside the engine: harmless, and FTS5 needs it.
            A::Pragma { pragma_name: "data_version", .. } => return Authorization::Allow,
            A::Pragma { .. } => return self.deny("PRAGMA"),
            A::Function { function_name } if function_name.eq_ignore_ascii_case("load_extension") => {
                return self.deny("load_extension()");
            }
            A::Unknown { .. } => return self.deny("an action this library does not know"),
            A::Read { .. } | A::Select | A::Function { .. } | A::Recursive => return Authorization::Allow,
            A::Insert { table_name } | A::Update { table_name, .. } | A::Delete { table_name } => [table_name, ""],
            A::CreateIndex { index_name, table_name }
            | A::CreateTempIndex { index_name, table_name }
            | A::DropIndex { index_name, table_name }
            | A::DropTempIndex { index_name, table_name } => [index_name, table_name],
            A::CreateTrigger { trigger_name, table_name }
            | A::CreateTempTrigger { trigger_name, table_name }
            | A::DropTrigger { trigger_name, table_name }
            | A::DropTempTrigger { trigger_name, table_name } => [trigger_name, table_name],
            A::CreateTable { table_name }
            | A::CreateTempTable { table_name }
            | A::DropTable { table_name }
            | A::DropTempTable { table_name }
            | A::AlterTable { table_name, .. }
            | A::Analyze { table_name }
            | A::CreateVtable { table_name, .. }
            | A::DropVtable { table_name, .. } => [table_name, ""],
            A::CreateView { view_name }
            | A::CreateTempView { view_name }
            | A::DropView { view_name }
            | A::DropTempView { view_name } => [view_name, ""],
            A::Reindex { index_name } => [index_name, ""],
            _ => return self.deny("an action this library does not know"),
        };
        if let Some(name) = named.into_iter().find(|name| is_engines(name)) {
            return self.deny(&format!("a change of {name}"));
        }
        if !matches!(context.action, A::Insert { .. } | A::Update { .. } | A::Delete { .. }) {
            self.schema_changed.store(true, Ordering::Relaxed);
        }
        Authorization::Allow
    }

    fn deny(&self, what: &str) -> Authorization {
        *self.denied.lock().unwrap_or_else(|poison| poison.into_inner()) = Some(what.to_owned());
        Authorization::Deny
    }
}

fn is_engines(name: &str) -> bool {
    name.get(..8).is_some_and(|start| start.eq_ignore_ascii_case("journal_"))
}

/// ALTER TABLE … RENAME TO reaches a name without telling the authorizer; so, after a change of schema, look whether
/// anything in TEMP (which wins over `main`) bears an engine's name, or anything hangs on an engine's table.
fn refuse_impostors(conn: &Connection) -> Result<()> {
    match conn.prepare_cached(IMPOSTORS)?.query_row((), |row| row.get::<_, String>(0)).optional()? {
        None => Ok(()),
        Some(name) => Err(Error::Denied { what: format!("the name {name}") }),
    }
}

const IMPOSTORS: &str = "SELECT name FROM temp.sqlite_schema WHERE name LIKE 'journal\\_%' ESCAPE '\\' \
         UNION ALL SELECT name FROM main.sqlite_schema WHERE type = 'trigger' AND tbl_name LIKE 'journal\\_%' ESCAPE '\\' \
         UNION ALL SELECT name FROM main.sqlite_schema WHERE type IN ('table', 'view') \
           AND name LIKE 'journal\\_%' ESCAPE '\\' AND name NOT IN \
           ('journal_meta', 'journal_session', 'journal_lock', 'journal_txn', 'journal_redo', 'journal_change', \
            'journal_area', 'journal_event', 'journal_guard', 'journal_preimage', \
            'journal_tree', 'journal_tree_dir', 'journal_tree_part', 'journal_guard_tree', 'journal_wait', \
            'journal_run', 'journal_run_item', 'journal_run_try', \
            'journal_outbox', 'journal_outbox_key', 'journal_outbox_topic', \
            'journal_applied', 'journal_follower', 'journal_blob', 'journal_blob_content') LIMIT 1";

#[cfg(test)]
mod tests {
    use super::IMPOSTORS;

    #[test]
    fn every_table_of_the_engine_is_known_as_such() {
        let schema = include_str!("../../schema.sql");
        let tables = schema.lines().filter_map(|line| line.strip_prefix("CREATE TABLE ")?.split(' ').next());
        let unknown: Vec<_> = tables.filter(|table| !IMPOSTORS.contains(&format!("'{table}'"))).collect();
        assert!(unknown.is_empty(), "{unknown:?}");
    }
}
