//! What was being done when the system or SQLite said no.

use std::io;
use std::path::{Path, PathBuf};

use super::{Error, Result};

/// Gives a bare system error its operation and path, so that none crosses a function without them.
pub(crate) trait IoContext<T> {
    fn at(self, op: &'static str, path: impl AsRef<Path>) -> Result<T>;

    /// The same for a name in a directory, joined only where there is something to say.
    fn at_in(self, op: &'static str, dir: impl AsRef<Path>, name: impl AsRef<Path>) -> Result<T>;
}

impl<T, E: Into<io::Error>> IoContext<T> for std::result::Result<T, E> {
    fn at(self, op: &'static str, path: impl AsRef<Path>) -> Result<T> {
        self.map_err(|source| understand(op, path.as_ref().to_owned(), source.into()))
    }

    fn at_in(self, op: &'static str, dir: impl AsRef<Path>, name: impl AsRef<Path>) -> Result<T> {
        self.map_err(|source| understand(op, dir.as_ref().join(name), source.into()))
    }
}

fn understand(op: &'static str, path: PathBuf, source: io::Error) -> Error {
    match source.raw_os_error() {
        Some(libc::ENOTDIR) => Error::NotADirectory { path },
        Some(libc::ENOENT) => Error::NotFound { path },
        Some(libc::ELOOP) => Error::SymlinkOnTheWay { path },
        _ => Error::Io { op, path, source },
    }
}

/// Gives SQLite's error the step it happened in.
pub(crate) trait SqlContext<T> {
    fn during(self, op: &'static str) -> Result<T>;
}

impl<T> SqlContext<T> for rusqlite::Result<T> {
    fn during(self, op: &'static str) -> Result<T> {
        use rusqlite::Error as Sql;
        self.map_err(|source| match source {
            // A value that no program of ours writes: it is the row that is at fault, and nobody can say what it meant.
            Sql::IntegralValueOutOfRange(..)
            | Sql::InvalidColumnType(..)
            | Sql::FromSqlConversionFailure(..)
            | Sql::Utf8Error(..) => Error::corrupt("a row of the journal", format_args!("{source} ({op})")),
            source => Error::sql(op, source),
        })
    }
}

/// What to do about it, to be said behind it.
pub(super) fn io_advice(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOSPC) => "; make room and try again, nothing was lost",
        Some(libc::EDQUOT) => "; the quota is used up: make room and try again, nothing was lost",
        Some(libc::EROFS) => "; the filesystem is read-only",
        Some(libc::EACCES | libc::EPERM) => "; check owner and permissions of it and its directory",
        _ => "",
    }
}
