//! Puts a SQLite database back that somebody has open: its content, through SQLite itself, so that they see it.
#![expect(clippy::disallowed_methods, reason = "the one place besides `store` that opens databases: those of the tree")]

use std::path::Path;
use std::time::Duration;

use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, OpenFlags};

use crate::error::{Error, Result, SqlContext};
use crate::time::Deadline;

/// How long to wait for others to end their transactions.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(5);

/// Copies the content of one database over that of another, which may be open elsewhere. [`Error::DatabaseInUse`] when
/// somebody's transaction does not end.
pub(super) fn copy_content(from: &Path, to: &Path) -> Result<()> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let source = Connection::open_with_flags(from, flags).during("opening the old version of a database")?;
    let create = OpenFlags::SQLITE_OPEN_CREATE;
    let mut target = Connection::open_with_flags(to, flags | create).during("opening a database to put it back")?;
    let backup = Backup::new(&source, &mut target).during("putting a database back")?;
    let deadline = Deadline::after(PATIENCE);
    loop {
        match backup.step(-1).during("putting a database back")? {
            StepResult::Done => return Ok(()),
            _ if deadline.passed() => return Err(Error::DatabaseInUse { path: to.to_owned() }),
            _ => std::thread::sleep(PAUSE),
        }
    }
}
