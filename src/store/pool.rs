//! Readers: an r2d2 pool of query-only connections, which the application shares.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use r2d2::ManageConnection;
use r2d2_sqlite::SqliteConnectionManager;
use rusqlite::{Connection, ErrorCode, OpenFlags};
use scheduled_thread_pool::{OnPoolDropBehavior, ScheduledThreadPool};

use super::caller::{CallerMode, Rows, refuse_reentry};
use super::connect;
use crate::error::{Error, Result, SqlContext};
use crate::fs::fork::Born;
use crate::time::Deadline;

/// SQLite asks the progress handler after about this many steps of a statement: some tens of microseconds.
const STEPS_BETWEEN_LOOKS: std::ffi::c_int = 10_000;

/// A pooled connection and what limits it.
#[derive(Debug)]
pub(crate) struct Reader {
    conn: Connection,
    mode: Arc<CallerMode>,
    /// When the read now running has to end; none while there is none.
    limit: Arc<Mutex<Option<Deadline>>>,
}

#[derive(Debug)]
struct Manager {
    inner: SqliteConnectionManager,
    seen: Arc<Seen>,
}

/// What the manager saw, for the pool's owner.
#[derive(Debug, Default)]
struct Seen {
    failed: Mutex<Option<Error>>,
    discarded: AtomicU64,
}

impl ManageConnection for Manager {
    type Connection = Reader;
    type Error = rusqlite::Error;

    fn connect(&self) -> std::result::Result<Reader, rusqlite::Error> {
        let open = || -> Result<Reader> {
            let conn = self.inner.connect().during("opening a reader")?;
            connect::prepare_reader(&conn)?;
            let mode = CallerMode::install(&conn).during("installing the authorizer")?;
            let limit = Arc::new(Mutex::new(None::<Deadline>));
            let seen = Arc::clone(&limit);
            conn.progress_handler(
                STEPS_BETWEEN_LOOKS,
                Some(move || seen.lock().is_ok_and(|limit| limit.is_some_and(|limit| limit.passed()))),
            )
            .during("limiting a reader")?;
            Ok(Reader { conn, mode, limit })
        };
        open().map_err(|error| {
            // r2d2 keeps only the text, and only of this type; the caller is to get the error itself.
            *self.seen.failed.lock().unwrap_or_else(|poison| poison.into_inner()) = Some(error);
            rusqlite::Error::InvalidQuery
        })
    }

    fn is_valid(&self, reader: &mut Reader) -> std::result::Result<(), rusqlite::Error> {
        self.inner.is_valid(&mut reader.conn)
    }

    fn has_broken(&self, reader: &mut Reader) -> bool {
        // A BEGIN left open would still be open for the next one.
        let broken = !reader.conn.is_autocommit();
        self.seen.discarded.fetch_add(u64::from(broken), Ordering::Relaxed);
        broken
    }
}

/// The pool.
#[derive(Debug)]
pub(crate) struct ReadPool {
    pool: r2d2::Pool<Manager>,
    seen: Arc<Seen>,
    wait: Duration,
    limit: Duration,
    born: Born,
}

impl ReadPool {
    /// Makes the pool; connections are opened when they are first needed.
    pub(crate) fn new(path: PathBuf, size: u32, wait: Duration, limit: Duration) -> Self {
        // Read-only by the file's own flags too: no statement of the application can write through this pool.
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let seen = Arc::new(Seen::default());
        let manager = Manager { inner: SqliteConnectionManager::file(path).with_flags(flags), seen: Arc::clone(&seen) };
        let threads = ScheduledThreadPool::builder()
            .num_threads(1)
            .thread_name_pattern("journal-pool")
            .on_drop_behavior(OnPoolDropBehavior::DiscardPendingScheduled)
            .build();
        let pool = r2d2::Pool::builder()
            .max_size(size.max(1))
            .min_idle(Some(0))
            .test_on_check_out(false)
            .connection_timeout(wait)
            .error_handler(Box::new(r2d2::NopErrorHandler))
            .thread_pool(Arc::new(threads))
            .build_unchecked(manager);
        Self { pool, seen, wait, limit, born: Born::here() }
    }

    /// In a forked child: leaves it as it is for ever. To close its connections would be to act for the parent.
    pub(crate) fn abandon(&self) {
        std::mem::forget(self.pool.clone());
    }

    /// Runs a closure on one snapshot of the database. Takes no lock, sees nothing uncommitted.
    pub(crate) fn read<T>(&self, work: impl FnOnce(&Rows<'_>) -> Result<T>) -> Result<T> {
        self.born.check()?;
        refuse_reentry("a read")?;
        let reader = self.pool.get().map_err(|_| {
            let failed = self.seen.failed.lock().unwrap_or_else(|poison| poison.into_inner()).take();
            failed.unwrap_or(Error::PoolTimeout { waited: self.wait })
        })?;
        let run = |sql: &'static str| reader.conn.prepare_cached(sql)?.raw_execute().map(drop);
        let limit = |to: Option<Deadline>| {
            *reader.limit.lock().unwrap_or_else(|poison| poison.into_inner()) = to;
        };
        run("BEGIN DEFERRED").during("beginning a read")?;
        limit(Some(Deadline::after(self.limit)));
        let value = reader.mode.run(&reader.conn, work);
        limit(None);
        if !self.born.is_here() {
            std::mem::forget(reader);
            return value;
        }
        // Nothing was written, so how it ends makes no difference; if it cannot end, the pool discards it.
        let _ = run("ROLLBACK");
        value.map_err(|error| match &error {
            Error::Sql { source, .. } if source.sqlite_error_code() == Some(ErrorCode::OperationInterrupted) => {
                Error::ReadTooLong { limit: self.limit }
            }
            _ => error,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_given_back_inside_begin_is_discarded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.db");
        let database = connect::Database { path: path.clone(), brought: false, foreign_keys: true };
        let _writer = connect::writer(&database).unwrap();
        let pool = ReadPool::new(path, 1, Duration::from_secs(5), Duration::from_secs(5));
        let reader = pool.pool.get().unwrap();
        reader.conn.execute_batch("BEGIN").unwrap();
        drop(reader);
        assert_eq!(pool.seen.discarded.load(Ordering::Relaxed), 1);
        pool.read(|rows| rows.query_row("SELECT 1", (), |row| row.get::<_, i64>(0))).unwrap();
        assert_eq!(pool.seen.discarded.load(Ordering::Relaxed), 1);
    }
}
