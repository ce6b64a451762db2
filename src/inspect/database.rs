//! Reading the database without writing, in whatever state its files are.
//!
//! A "read-only" connection of SQLite still creates a missing `-wal` and `-shm`, and leaves them behind. So the way in
//! is chosen by what lies there:
//!
//! | `-wal` | `-shm` | | way |
//! |---|---|---|---|
//! | no frames | any | closed in good order, or emptied | [`Way::Still`]: the database alone, no file is made |
//! | frames | locked by somebody | in use | [`Way::Shared`]: SQLite's own read lock |
//! | frames | not locked | left by a crash | [`Way::Private`]: an index of the log in memory |
//! | frames | – | copied, or half removed | [`Way::Private`] |
//!
//! `Still` and `Private` know of no writer, so the files are looked at before and after: when they changed meanwhile,
//! what was read is thrown away and read again.
//!
//! `Private` opens the files without SQLite's bookkeeping of locks, so that closing them would drop the locks of a
//! journal that the same process has open; and a mapping of the index that is only readable is shared by all
//! connections of a process, a later writer's too. So `Private`, and `Shared` with nothing written at all, are for a
//! process that promises to open no journal meanwhile ([`super::InspectOptions::alone`]). In any other the index of the
//! log (`-shm`, derived data) may be rebuilt after a crash, as by any connection of SQLite.
#![expect(clippy::disallowed_methods, reason = "the one place outside the store that opens a connection: read-only")]

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, ffi};

use super::liveness::KernelLocks;
use crate::error::{Error, IoContext, Result};
use crate::fs::fork;

/// How long SQLite waits for another process that rebuilds or closes the log.
const BUSY: Duration = Duration::from_secs(5);
/// The size of a log without frames. SQLite would wait ten seconds for the writer of such a one to go on.
const LOG_HEADER: u64 = 32;
/// After so many tries, a log that is always just emptied is read in the company of its writer.
const TRIES_ALONE: u32 = 4;
/// How often a read is begun anew because somebody wrote meanwhile.
const TRIES: u32 = 12;
/// After so many steps of SQLite's machine (some minutes) a query is given up: a hostile database may hold a view that
/// never ends.
const MAX_STEPS: i32 = 100_000;
const STEP: i32 = 100_000;

/// How to get at the content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Still,
    Shared { untouched: bool },
    Private,
}

/// What tells whether a file was changed: inode, size, and when. The log's change time is left out, because SQLite
/// itself touches it when root opens it.
type Stamp = Option<(u64, u64, (i64, i64), (i64, i64))>;

/// A database that is only ever read.
#[derive(Clone, Debug)]
pub(super) struct ReadOnly {
    path: PathBuf,
    alone: bool,
    /// A lock file of the journal: whose parent has it open must not read, because SQLite would take the parent's locks
    /// for its own.
    lock: Option<PathBuf>,
}

impl ReadOnly {
    pub(super) fn new(path: PathBuf, alone: bool) -> Self {
        Self { path, alone, lock: None }
    }

    pub(super) fn with_lock(self, lock: PathBuf) -> Self {
        Self { lock: Some(lock), ..self }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Where the write-ahead log is, while there is one.
    pub(super) fn log_path(&self) -> PathBuf {
        self.beside("-wal")
    }

    /// The write-ahead log's size; 0 when there is none.
    pub(super) fn wal_bytes(&self) -> u64 {
        fs::symlink_metadata(self.beside("-wal")).map_or(0, |meta| meta.len())
    }

    /// Runs `work` on one snapshot. It may run several times, and only the last counts.
    pub(super) fn snapshot<T>(&self, mut work: impl FnMut(&Connection) -> rusqlite::Result<T>) -> Result<T> {
        self.lock.as_deref().map_or(Ok(()), fork::refuse_inherited)?;
        let (mut untouched, mut private) = (self.alone, self.alone);
        let mut tried = 0;
        loop {
            tried += 1;
            let before = self.stamps();
            let way = self.way(untouched, private, tried);
            let outcome = self.read(way, &mut work);
            let moved = matches!(way, Way::Still | Way::Private) && self.stamps() != before;
            let last = tried >= TRIES;
            match outcome {
                Ok(value) if !moved => return Ok(value),
                Ok(_) if last => {
                    return Err(Error::sql("reading a database that changes all the time", busy()));
                }
                Err(error) if last => return Err(self.explain(error)),
                Err(error) if way == (Way::Shared { untouched: true }) && is_about_the_index(&error) => {
                    // Another process is in the middle of it: join in as SQLite does.
                    untouched = false;
                }
                Err(error) if !private && self.stamp("-shm").is_none() && is_about_the_index(&error) => {
                    // No index and none can be made, so nobody in this process writes either.
                    private = true;
                }
                Err(error) if !moved && !is_passing(&error) => return Err(self.explain(error)),
                Ok(_) | Err(_) => std::thread::sleep(Duration::from_millis(2 * u64::from(tried))),
            }
        }
    }

    fn read<T>(&self, way: Way, work: &mut impl FnMut(&Connection) -> rusqlite::Result<T>) -> rusqlite::Result<T> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(self.uri(way), flags)?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
        connection.busy_timeout(BUSY)?;
        let mut steps = 0;
        connection.progress_handler(
            STEP,
            Some(move || {
                steps += 1;
                steps > MAX_STEPS
            }),
        )?;
        if way == Way::Private {
            connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
        }
        connection.pragma_update(None, "query_only", true)?;
        connection.pragma_update(None, "cell_size_check", true)?;
        connection.execute_batch("BEGIN")?;
        let value = work(&connection)?;
        connection.execute_batch("COMMIT")?;
        Ok(value)
    }

    fn way(&self, untouched: bool, private: bool, tried: u32) -> Way {
        let has_frames = self.wal_bytes() > LOG_HEADER;
        let (wal, shm) = (self.stamp("-wal").is_some(), self.stamp("-shm").is_some());
        if !has_frames && (tried <= TRIES_ALONE || !wal || !shm) {
            return Way::Still;
        }
        let in_use = shm && KernelLocks::maybe_in_use(Path::new("/proc"), &self.beside("-shm"));
        match (in_use, shm) {
            (false, _) if private => Way::Private,
            (_, true) => Way::Shared { untouched },
            (_, false) => Way::Shared { untouched: false },
        }
    }

    fn stamp(&self, suffix: &str) -> Stamp {
        let meta = fs::symlink_metadata(self.beside(suffix)).ok()?;
        let changed = if suffix == "-wal" { (0, 0) } else { (meta.ctime(), meta.ctime_nsec()) };
        Some((meta.ino(), meta.len(), (meta.mtime(), meta.mtime_nsec()), changed))
    }

    fn stamps(&self) -> [Stamp; 3] {
        ["", "-wal", "-shm"].map(|suffix| self.stamp(suffix))
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        let mut name = OsString::from(&self.path);
        name.push(suffix);
        name.into()
    }

    fn uri(&self, way: Way) -> OsString {
        let mut uri = b"file:".to_vec();
        for &byte in self.path.as_os_str().as_bytes() {
            if byte.is_ascii_alphanumeric() || b"/-_.".contains(&byte) {
                uri.push(byte);
            } else {
                uri.extend_from_slice(format!("%{byte:02X}").as_bytes());
            }
        }
        uri.extend_from_slice(match way {
            Way::Still => b"?immutable=1".as_slice(),
            Way::Shared { untouched: true } => b"?mode=ro&readonly_shm=1",
            Way::Shared { untouched: false } => b"?mode=ro",
            Way::Private => b"?mode=ro&vfs=unix-none",
        });
        std::os::unix::ffi::OsStringExt::from_vec(uri)
    }

    fn explain(&self, error: rusqlite::Error) -> Error {
        match error.sqlite_error_code() {
            Some(ErrorCode::NotADatabase) => Error::NotADatabase { path: self.path.clone() },
            Some(ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => {
                // SQLite does not say why; the system does.
                match fs::symlink_metadata(&self.path).and_then(|_| may_read(&self.path)).at("read", &self.path) {
                    Err(error) => error,
                    Ok(()) => Error::sql("opening the database to look at it", error),
                }
            }
            Some(ErrorCode::DatabaseCorrupt) => Error::corrupt(format!("the database {}", self.path.display()), error),
            _ => Error::sql("looking at the journal", error),
        }
    }
}

/// Asks, without opening: an open and close would drop the locks this process's SQLite has on the file.
fn may_read(path: &Path) -> std::io::Result<()> {
    Ok(rustix::fs::access(path, rustix::fs::Access::READ_OK)?)
}

fn busy() -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_BUSY), None)
}

/// True when the shared index could not be used as it lies there.
fn is_about_the_index(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen | ErrorCode::FileLockingProtocolFailed)
    )
}

/// True when another process was in the way or the files were just coming or going.
fn is_passing(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked | ErrorCode::FileLockingProtocolFailed)
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// A database with three rows in its log, and a way to copy its files while they are in use: as a crash leaves them.
    struct Fixture {
        dir: tempfile::TempDir,
        writer: Connection,
    }

    impl Fixture {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            // A name that a URI must not be fooled by.
            let writer = Connection::open(dir.path().join("a?mode=rw#%41 é.db")).unwrap();
            writer
                .execute_batch(
                    "PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0; CREATE TABLE t (x);
                     INSERT INTO t VALUES (1), (2), (3);",
                )
                .unwrap();
            Self { dir, writer }
        }

        fn live(&self) -> PathBuf {
            self.writer.path().unwrap().into()
        }

        fn copy(&self, name: &str, suffixes: &[&str]) -> PathBuf {
            let dir = self.dir.path().join(name);
            fs::create_dir(&dir).unwrap();
            let live = ReadOnly::new(self.live(), false);
            let copy = ReadOnly::new(dir.join("b.db"), false);
            for suffix in suffixes {
                fs::copy(live.beside(suffix), copy.beside(suffix)).unwrap();
            }
            copy.path
        }
    }

    fn rows(path: &Path, alone: bool) -> Result<i64> {
        ReadOnly::new(path.to_owned(), alone)
            .snapshot(|connection| connection.query_row("SELECT count(*) FROM t", (), |row| row.get(0)))
    }

    fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
        let files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        files.map(|path| (path.clone(), fs::read(path).unwrap())).collect()
    }

    #[test]
    fn every_state_of_the_files_is_read_in_full_and_left_as_it_is() {
        let fixture = Fixture::new();
        let crashed = fixture.copy("crashed", &["", "-wal", "-shm"]);
        let copied = fixture.copy("copied", &["", "-wal"]);
        fixture.writer.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
        let closed = fixture.copy("closed", &[""]);
        let emptied = fixture.copy("emptied", &["", "-wal"]);
        let odd = fixture.copy("odd", &["", "-shm"]);
        for path in [crashed, copied, closed, emptied, odd] {
            let before = contents(path.parent().unwrap());
            assert_eq!(rows(&path, true).unwrap(), 3, "{path:?}");
            assert!(contents(path.parent().unwrap()) == before, "{path:?}");
            assert_eq!(rows(&path, false).unwrap(), 3, "{path:?}");
        }
    }

    #[test]
    fn a_log_cut_short_or_scribbled_over_is_read_at_once() {
        let fixture = Fixture::new();
        fixture.writer.execute_batch("PRAGMA wal_checkpoint(PASSIVE); INSERT INTO t VALUES (4)").unwrap();
        for (name, length, junk) in [
            ("empty", 0, false),
            ("begun", 7, false),
            ("header", 32, false),
            ("torn", 100, false),
            ("junk", 5000, true),
        ] {
            let path = fixture.copy(name, &["", "-wal", "-shm"]);
            let log = ReadOnly::new(path.clone(), true).beside("-wal");
            let mut bytes = fs::read(&log).unwrap();
            bytes.truncate(length);
            if junk {
                bytes[..32].fill(0xab);
            }
            fs::write(&log, bytes).unwrap();
            // SQLite sleeps ten seconds over a log that is a header alone: such a one is not shown to it.
            for alone in [true, false] {
                let way = ReadOnly::new(path.clone(), alone).way(alone, alone, 1);
                assert_eq!(way == Way::Still, length <= 32, "{name}: {way:?}");
            }
            let before = contents(path.parent().unwrap());
            assert_eq!(rows(&path, true).unwrap(), 3, "{name}");
            assert!(contents(path.parent().unwrap()) == before, "{name}");
            assert_eq!(rows(&path, false).unwrap(), 3, "{name}");
        }
    }

    #[test]
    fn a_writer_is_seen_and_not_kept_waiting() {
        let fixture = Fixture::new();
        fixture.writer.execute_batch("BEGIN IMMEDIATE; INSERT INTO t VALUES (4)").unwrap();
        for alone in [true, false] {
            assert_eq!(rows(&fixture.live(), alone).unwrap(), 3);
        }
        fixture.writer.execute_batch("COMMIT; PRAGMA wal_checkpoint(TRUNCATE); INSERT INTO t VALUES (5)").unwrap();
        for alone in [true, false] {
            assert_eq!(rows(&fixture.live(), alone).unwrap(), 5);
        }
    }

    #[test]
    fn nothing_can_be_written() {
        let fixture = Fixture::new();
        let database = ReadOnly::new(fixture.live(), false);
        let error = database.snapshot(|connection| connection.execute("INSERT INTO t VALUES (4)", ())).unwrap_err();
        assert!(error.to_string().contains("readonly"), "{error}");
    }

    #[test]
    fn what_is_not_a_database_is_called_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("b.db");
        assert!(matches!(rows(&path, true), Err(Error::NotFound { .. })));
        fs::write(&path, [b'x'; 4096]).unwrap();
        assert!(matches!(rows(&path, true), Err(Error::NotADatabase { .. })));
        let damaged = Fixture::new();
        drop(damaged.writer.close());
        let path = damaged.dir.path().join("a?mode=rw#%41 é.db");
        let mut bytes = fs::read(&path).unwrap();
        let page = bytes.len() - 4096;
        bytes[page..].fill(0xff);
        fs::write(&path, bytes).unwrap();
        assert!(matches!(rows(&path, true), Err(Error::Corrupt { .. })));
    }
}
