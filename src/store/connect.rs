//! Opens connections, and reads every setting back: several well-known libraries set pragmas that never took.
#![expect(clippy::disallowed_methods, reason = "the one place that opens SQLite connections for the engine")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::types::{FromSql, ToSql};
use rusqlite::{Connection, ErrorCode, OpenFlags};

use crate::error::{Error, Result, SqlContext};
use crate::fs::state;

/// 3.7.0 to 3.51.2 can corrupt a database when the log is reset while several connections write or checkpoint.
const OLDEST_SQLITE: i32 = 3_051_003;
/// Statements kept prepared on one connection; the engine has about forty.
const STATEMENTS: usize = 192;
/// How much of the write-ahead log's file stays when it begins again from its start: blocks that are there already.
const LOG_KEPT: i64 = 32 << 20;
/// How long SQLite itself waits for a writer that does not use the turnstile: the application's own connections.
pub(crate) const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Which database a journal lives in.
#[derive(Clone, Debug)]
pub(crate) struct Database {
    pub(crate) path: PathBuf,
    /// It belongs to the application: its journal mode is not ours to change.
    pub(crate) brought: bool,
    /// Whether rows must respect foreign keys.
    pub(crate) foreign_keys: bool,
}

/// Opens the writing connection, made fresh where allowed.
pub(crate) fn writer(database: &Database) -> Result<Connection> {
    check_version()?;
    let mut flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    // The application's database is there, or the path is wrong: nothing is made by a mistake.
    flags.set(OpenFlags::SQLITE_OPEN_CREATE, !database.brought);
    let path = &database.path;
    if database.brought && !state::exists(path) {
        return Err(Error::NotFound { path: path.clone() });
    }
    let conn = Connection::open_with_flags(path, flags).map_err(|error| understand(path, error))?;
    conn.busy_timeout(BUSY_TIMEOUT).during("setting the busy timeout")?;
    conn.set_prepared_statement_cache_capacity(STATEMENTS);
    let mode: String =
        conn.query_row("PRAGMA journal_mode", (), |row| row.get(0)).map_err(|error| understand(path, error))?;
    if mode != "wal" {
        if database.brought {
            return Err(Error::NotWal { path: path.clone(), mode });
        }
        let got: String = conn
            .query_row("PRAGMA journal_mode = WAL", (), |row| row.get(0))
            .map_err(|error| understand(path, error))?;
        if got != "wal" {
            return Err(Error::Pragma { name: "journal_mode", want: "wal".into(), got });
        }
    }
    pragma(&conn, "synchronous", 2)?;
    pragma(&conn, "foreign_keys", i64::from(database.foreign_keys))?;
    // The background settler checkpoints; a commit must not be the one that pays for it.
    pragma(&conn, "wal_autocheckpoint", 0)?;
    pragma(&conn, "journal_size_limit", LOG_KEPT)?;
    pragma(&conn, "temp_store", 2)?;
    common(&conn)?;
    Ok(conn)
}

/// Opens a connection that only reads.
pub(super) fn reader(path: &Path) -> Result<Connection> {
    // Read-only by the file's own flags too.
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags).map_err(|error| understand(path, error))?;
    prepare_reader(&conn)?;
    // Reads the schema. That makes a statement expire which was prepared before it: BEGIN, say.
    conn.execute_batch("SELECT 1 FROM main.sqlite_schema LIMIT 0").during("reading the schema")?;
    Ok(conn)
}

/// Settings of a connection that only reads.
pub(super) fn prepare_reader(conn: &Connection) -> Result<()> {
    conn.busy_timeout(BUSY_TIMEOUT).during("setting the busy timeout")?;
    conn.set_prepared_statement_cache_capacity(STATEMENTS);
    pragma(conn, "query_only", 1)?;
    pragma(conn, "temp_store", 2)?;
    common(conn)
}

fn common(conn: &Connection) -> Result<()> {
    // Whatever the file's schema says, its triggers and views may not call functions with side effects.
    pragma(conn, "trusted_schema", 0)?;
    pragma(conn, "cell_size_check", 1)?;
    pragma(conn, "mmap_size", 0)
}

/// Sets how much the next COMMIT waits for. The caller knows that it took: [`writer`] read it back once.
pub(super) fn set_synchronous(conn: &Connection, full: bool) -> Result<()> {
    let sql = if full { "PRAGMA main.synchronous = 2" } else { "PRAGMA main.synchronous = 1" };
    conn.execute_batch(sql).during("setting the durability")
}

/// Sets a pragma and reads it back.
fn pragma<T: ToSql + FromSql + PartialEq + std::fmt::Debug + Copy>(
    conn: &Connection,
    name: &'static str,
    want: T,
) -> Result<()> {
    conn.pragma_update(None, name, want).during("setting a pragma")?;
    let got: T = conn.pragma_query_value(None, name, |row| row.get(0)).during("reading a pragma back")?;
    if got == want { Ok(()) } else { Err(Error::Pragma { name, want: format!("{want:?}"), got: format!("{got:?}") }) }
}

fn check_version() -> Result<()> {
    if rusqlite::version_number() < OLDEST_SQLITE {
        return Err(Error::SqliteTooOld { found: rusqlite::version().to_owned() });
    }
    Ok(())
}

/// SQLite's refusal of a file, as what it means for the caller.
pub(super) fn understand(path: &Path, error: rusqlite::Error) -> Error {
    match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => Error::NotADatabase { path: path.to_owned() },
        Some(ErrorCode::DatabaseCorrupt) => Error::corrupt(path.display().to_string(), error),
        _ => Error::sql("opening the database", error),
    }
}
