//! What an error means for the caller: try again, act first, or give up.

use std::io;

use super::Error;

/// Whether doing the same again can help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// Yes, as it is: somebody else was in the way.
    Yes,
    /// Yes, once the caller has acted: made room, mended a permission, looked at the disk.
    AfterAction,
    /// No: the same call fails the same way.
    No,
}

impl Error {
    /// Says whether the same call can succeed later, and on whom that depends.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Busy { .. }
            | Self::PathBusy { .. }
            | Self::PoolTimeout { .. }
            | Self::LockLost { .. }
            | Self::ChangedMeanwhile { .. } => Retry::Yes,
            Self::Sql { source, .. } => sql_retry(source),
            Self::Migration { source, .. } => source.retry(),
            Self::Io { .. }
            | Self::SyncFailed { .. }
            | Self::OutcomeUnknown { .. }
            | Self::Poisoned { .. }
            | Self::DatabaseInUse { .. }
            | Self::PathPending { .. }
            | Self::PathNotPutBack { .. }
            | Self::NotMounted { .. }
            | Self::MountInTree { .. }
            | Self::PathQuarantined { .. }
            | Self::CheckpointUnavailable { .. }
            | Self::LockFileReplaced { .. } => Retry::AfterAction,
            _ => Retry::No,
        }
    }

    /// True when the same call may succeed as it is.
    pub fn is_retryable(&self) -> bool {
        self.retry() == Retry::Yes
    }

    /// True when somebody else was in the way.
    pub fn is_busy(&self) -> bool {
        matches!(self, Self::Busy { .. } | Self::PathBusy { .. } | Self::PoolTimeout { .. })
            || matches!(self, Self::Sql { source, .. } if sql_retry(source) == Retry::Yes)
    }

    /// True when the disk or a quota is full.
    pub fn is_full(&self) -> bool {
        match self {
            Self::Io { source, .. } | Self::SyncFailed { source, .. } => is_full_errno(source),
            Self::Sql { source, .. } | Self::OutcomeUnknown { source } => {
                source.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull)
            }
            _ => false,
        }
    }

    /// True when the system or the disk failed, rather than the request.
    pub fn is_io(&self) -> bool {
        match self {
            Self::Io { .. }
            | Self::SyncFailed { .. }
            | Self::OutcomeUnknown { .. }
            | Self::Poisoned { .. }
            | Self::Corrupt { .. }
            | Self::CheckpointUnavailable { .. }
            | Self::LockFileReplaced { .. } => true,
            Self::Sql { source, .. } => sql_retry(source) == Retry::AfterAction,
            _ => false,
        }
    }

    /// True when the lock was lost and everything was rolled back.
    pub fn is_lock_lost(&self) -> bool {
        matches!(self, Self::LockLost { .. } | Self::LockFileReplaced { .. })
    }

    /// True when a person has to resolve something first.
    pub fn is_quarantined(&self) -> bool {
        matches!(self, Self::PathQuarantined { .. } | Self::PathNotPutBack { .. })
    }

    /// True when only an idempotency key can tell whether the change happened.
    pub fn is_outcome_unknown(&self) -> bool {
        matches!(self, Self::OutcomeUnknown { .. })
    }
}

fn is_full_errno(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
}

fn sql_retry(error: &rusqlite::Error) -> Retry {
    use rusqlite::ErrorCode as Code;
    match error.sqlite_error_code() {
        Some(Code::DatabaseBusy | Code::DatabaseLocked) => Retry::Yes,
        Some(
            Code::DiskFull
            | Code::SystemIoFailure
            | Code::ReadOnly
            | Code::CannotOpen
            | Code::PermissionDenied
            | Code::OutOfMemory,
        ) => Retry::AfterAction,
        _ => Retry::No,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rusqlite::ffi;

    use super::*;
    use crate::error::IoContext;
    use crate::id::Fence;

    fn sqlite(code: i32) -> Error {
        Error::sql("testing", rusqlite::Error::SqliteFailure(ffi::Error::new(code), None))
    }

    fn io(errno: i32) -> Error {
        Err::<(), _>(io::Error::from_raw_os_error(errno)).at("write", "a").unwrap_err()
    }

    #[test]
    fn which_errors_are_retryable() {
        let table = [
            (sqlite(ffi::SQLITE_BUSY), Retry::Yes),
            (sqlite(ffi::SQLITE_BUSY_SNAPSHOT), Retry::Yes),
            (sqlite(ffi::SQLITE_LOCKED), Retry::Yes),
            (Error::PoolTimeout { waited: Duration::ZERO }, Retry::Yes),
            (Error::Busy { what: "lock".into(), holder: "pid 1".into(), waited: Duration::ZERO }, Retry::Yes),
            (Error::LockLost { name: "main".into(), fence: Fence(1) }, Retry::Yes),
            (Error::ChangedMeanwhile { path: "a".into() }, Retry::Yes),
            (sqlite(ffi::SQLITE_FULL), Retry::AfterAction),
            (sqlite(ffi::SQLITE_IOERR_WRITE), Retry::AfterAction),
            (sqlite(ffi::SQLITE_READONLY), Retry::AfterAction),
            (io(libc::ENOSPC), Retry::AfterAction),
            (io(libc::EIO), Retry::AfterAction),
            (Error::DatabaseInUse { path: "a".into() }, Retry::AfterAction),
            (sqlite(ffi::SQLITE_CORRUPT), Retry::No),
            (sqlite(ffi::SQLITE_NOTADB), Retry::No),
            (sqlite(ffi::SQLITE_CONSTRAINT_UNIQUE), Retry::No),
            (Error::NotFound { path: "a".into() }, Retry::No),
            (Error::Forked, Retry::No),
            (Error::caller("mine"), Retry::No),
        ];
        for (error, retry) in table {
            assert_eq!(error.retry(), retry, "{error}");
            assert_eq!(error.is_retryable(), retry == Retry::Yes, "{error}");
        }
        assert!(io(libc::ENOSPC).is_full() && io(libc::EDQUOT).is_full() && sqlite(ffi::SQLITE_FULL).is_full());
        assert!(!io(libc::EIO).is_full() && io(libc::EIO).is_io() && !sqlite(ffi::SQLITE_CONSTRAINT).is_io());
    }
}
