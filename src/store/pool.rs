//! Readers: an r2d2 pool of query-only connections, which the application shares.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use r2d2::ManageConnection;
use r2d2_sqlite::SqliteConnectionManager;
use rusqlite::{Connection, ErrorCode, InterruptHandle, OpenFlags};
use scheduled_thread_pool::{OnPoolDropBehavior, ScheduledThreadPool};

use super::caller::{CallerMode, Rows, refuse_reentry};
use super::connect;
use super::turn::Store;
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
}

#[derive(Debug)]
struct Manager {
    inner: SqliteConnectionManager,
    seen: Arc<Seen>,
    readers: Arc<Readers>,
}

/// What the manager saw, for the pool's owner.
#[derive(Debug, Default)]
struct Seen {
    failed: Mutex<Option<Error>>,
    discarded: AtomicU64,
}

/// The readers that are open, for whoever carries the log over: SQLite asks about the limit of a read only while a statement
/// is at work, and not while its rows are gone through at leisure.
#[derive(Default)]
pub(crate) struct Readers {
    open: Mutex<Vec<(Weak<CallerMode>, InterruptHandle)>>,
}

impl Readers {
    /// Interrupts reads that have lasted too long: the next row, or the next statement, of each is an error.
    pub(crate) fn end_overdue(&self) {
        for (mode, handle) in self.open().iter() {
            if mode.upgrade().is_some_and(|mode| mode.is_overdue()) {
                handle.interrupt();
            }
        }
    }

    fn add(&self, mode: &Arc<CallerMode>, handle: InterruptHandle) {
        let mut open = self.open();
        open.retain(|(mode, _)| mode.strong_count() > 0);
        open.push((Arc::downgrade(mode), handle));
    }

    fn open(&self) -> MutexGuard<'_, Vec<(Weak<CallerMode>, InterruptHandle)>> {
        self.open.lock().unwrap_or_else(|poison| poison.into_inner())
    }
}

impl std::fmt::Debug for Readers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Readers").field("open", &self.open().len()).finish()
    }
}

impl ManageConnection for Manager {
    type Connection = Reader;
    type Error = rusqlite::Error;

    fn connect(&self) -> std::result::Result<Reader, rusqlite::Error> {
        let open = || -> Result<Reader> {
            let conn = self.inner.connect().during("opening a reader")?;
            connect::prepare_reader(&conn)?;
            let mode = CallerMode::install(&conn).during("installing the authorizer")?;
            let limit = Arc::clone(&mode);
            conn.progress_handler(STEPS_BETWEEN_LOOKS, Some(move || limit.is_overdue())).during("limiting a reader")?;
            self.readers.add(&mode, conn.get_interrupt_handle());
            Ok(Reader { conn, mode })
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
    pub(crate) fn new(store: &Store, size: u32, wait: Duration, limit: Duration) -> Self {
        // Read-only by the file's own flags too: no statement of the application can write through this pool.
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let seen = Arc::new(Seen::default());
        let inner = SqliteConnectionManager::file(&store.database().path).with_flags(flags);
        let manager = Manager { inner, seen: Arc::clone(&seen), readers: store.readers() };
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
        begin(&reader.conn, Deadline::after(self.wait))?;
        reader.mode.limit(Some(Deadline::after(self.limit)));
        let value = reader.mode.run(&reader.conn, work);
        reader.mode.limit(None);
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

/// Begins a snapshot. SQLite is busy for a reader only while somebody recovers the log, or is the last to close it.
fn begin(conn: &Connection, deadline: Deadline) -> Result<()> {
    let run = |sql: &'static str| conn.prepare_cached(sql)?.raw_execute().map(drop);
    loop {
        run("BEGIN DEFERRED").during("beginning a read")?;
        // A snapshot is that of the first statement.
        let seen = conn.prepare_cached("SELECT 1 FROM main.sqlite_schema LIMIT 1").and_then(|mut look| look.exists(()));
        match seen.map(drop).during("beginning a read") {
            Err(error) if error.is_busy() => {
                let _ = run("ROLLBACK");
                if deadline.passed() {
                    return Err(Error::Busy {
                        what: "the write-ahead log".into(),
                        holder: "a process that recovers it".into(),
                        waited: deadline.waited(),
                    });
                }
            }
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::state::StateDir;

    #[test]
    fn a_connection_given_back_inside_begin_is_discarded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.db");
        let database = connect::Database { path, brought: false, foreign_keys: true };
        let state_dir = StateDir::open(dir.path(), &dir.path().join("state"), true).unwrap();
        let store = Store::open(database, state_dir, Duration::from_secs(5)).unwrap();
        let pool = ReadPool::new(&store, 1, Duration::from_secs(5), Duration::from_secs(5));
        let reader = pool.pool.get().unwrap();
        reader.conn.execute_batch("BEGIN").unwrap();
        drop(reader);
        assert_eq!(pool.seen.discarded.load(Ordering::Relaxed), 1);
        pool.read(|rows| rows.query_row("SELECT 1", (), |row| row.get::<_, i64>(0))).unwrap();
        assert_eq!(pool.seen.discarded.load(Ordering::Relaxed), 1);
    }
}
