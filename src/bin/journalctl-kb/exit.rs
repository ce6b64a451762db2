//! How it ends: the one place that turns errors into exit codes.

use std::io::{self, ErrorKind, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::builder::styling::{AnsiColor, Style};
use journal_kb::{Error, QuarantineId};

/// What a verb found when nothing failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Fine,
    /// There is something to see or to do.
    Found,
    /// A person has to look.
    Quarantined,
    /// The command that was run ended so.
    Command(u8),
}

impl Outcome {
    fn code(self) -> u8 {
        match self {
            Self::Fine => 0,
            Self::Found => 1,
            Self::Quarantined => 76,
            Self::Command(code) => code,
        }
    }
}

/// Why a verb could not do its work.
#[derive(Debug)]
pub(crate) enum Failure {
    Journal(Error),
    /// Standard output did not take what was written.
    Output(io::Error),
    /// No journal from this directory upwards.
    NoJournalAbove(PathBuf),
    /// No transaction of this number.
    NoTransaction(i64),
    /// Nothing in quarantine is called so.
    NothingInQuarantine(QuarantineId),
    /// No lock of this name was ever taken.
    NoLock(String),
    /// No job of this name has run, and no run has this number.
    NoRun(String),
    /// No message of this number.
    NoMessage(i64),
    /// No blob is called so.
    NoBlob(String),
    /// The hashes of these begin so.
    BlobsAlike(String, Vec<String>),
    /// Nobody follows the changes under this name.
    NoFollower(String),
    /// Nobody was signalled, for this reason.
    LockNotBroken(String, String),
    /// A system call of this command's own failed.
    System(&'static str, PathBuf, io::Error),
    /// The arguments contradict each other.
    Usage(&'static str),
    /// A command cannot be run.
    NoCommand(std::ffi::OsString, io::Error),
    /// What a command wrote and what somebody else did do not go together.
    Conflict(Error),
    /// A command was to run over an overlay, and there can be none.
    NoOverlay(String),
    /// Running a command came to nothing for a reason of this program's own.
    Exec(Box<Failure>),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Journal(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

impl Failure {
    fn code(&self) -> u8 {
        match self {
            Self::Journal(error) => code(error),
            // `| head` has seen enough; that is no failure.
            Self::Output(error) if error.kind() == ErrorKind::BrokenPipe => 0,
            Self::Output(_) | Self::System(..) => 74,
            Self::NoJournalAbove(_) | Self::NoTransaction(_) | Self::NothingInQuarantine(_) => 1,
            Self::NoLock(_) | Self::LockNotBroken(..) | Self::NoRun(_) => 1,
            Self::NoMessage(_) | Self::NoFollower(_) => 1,
            Self::NoBlob(_) | Self::BlobsAlike(..) => 1,
            Self::Conflict(_) | Self::NoOverlay(_) => 1,
            Self::Usage(_) => 2,
            Self::NoCommand(_, error) if error.kind() == ErrorKind::NotFound => 127,
            Self::NoCommand(..) => 126,
            Self::Exec(_) => 125,
        }
    }

    fn message(&self) -> String {
        match self {
            Self::Journal(error @ Error::NotFound { .. }) => format!("{error}: name a directory that is there"),
            Self::Journal(error @ Error::Sql { .. }) if error.is_busy() => {
                format!("{error}; another program is writing to it, try again")
            }
            Self::Journal(error) => error.to_string(),
            Self::Output(error) => format!("cannot write the output: {error}; see what it is redirected to"),
            Self::NoJournalAbove(from) => format!(
                "no journal in {} or above it: run `journalctl-kb init` in the directory to protect, or name the root \
                 with --root DIR",
                from.display()
            ),
            Self::NoTransaction(id) => format!("there is no transaction {id}: see `journalctl-kb log`"),
            Self::NothingInQuarantine(id) => {
                format!("nothing in quarantine is called {id}: see `journalctl-kb quarantine list`")
            }
            Self::NoLock(name) => format!("no lock {name:?} was ever taken: see `journalctl-kb locks`"),
            Self::NoRun(which) => {
                format!("no job {which:?} has a run, and no run has that number: see `journalctl-kb runs`")
            }
            Self::NoMessage(id) => {
                format!("no message {id} waits or is parked, it was published or dropped: see `journalctl-kb outbox`")
            }
            Self::NoBlob(id) => {
                format!("no blob is called {id:?}, and no content has a hash that begins so: see `journalctl-kb blobs`")
            }
            Self::BlobsAlike(id, ids) => {
                format!("the hashes of several contents begin with {id:?}, write more of it: {}", ids.join(", "))
            }
            Self::NoFollower(name) => format!("nobody follows as {name:?}: see `journalctl-kb followers`"),
            Self::LockNotBroken(name, why) => format!("lock {name:?} is left as it is, nobody was signalled: {why}"),
            Self::System(what, path, error) => format!("cannot {what} {}: {error}", path.display()),
            Self::Usage(what) => format!("{what}; see --help"),
            Self::NoCommand(command, error) => format!("cannot run {}: {error}", command.display()),
            Self::Conflict(error) => error.to_string(),
            Self::NoOverlay(why) => {
                format!("there can be no overlay: {why}; run it with --isolate baseline, on the files themselves")
            }
            Self::Exec(failure) => failure.message(),
        }
    }
}

/// The exit code of an error of the library.
fn code(error: &Error) -> u8 {
    if error.is_quarantined() {
        76
    } else if error.is_busy() {
        75
    } else if error.is_lock_lost() || error.is_io() {
        74
    } else {
        1
    }
}

/// Shows the help or the version that was asked for, or what is wrong with the arguments.
pub(crate) fn usage(error: &clap::Error) -> ExitCode {
    let text = error.render().to_string();
    match text.strip_prefix("error: ") {
        Some(text) => complain(text.trim_end()),
        None => drop(error.print()),
    }
    ExitCode::from(if error.use_stderr() { 2 } else { 0 })
}

/// Says why, where there is something to say, and gives the exit code.
pub(crate) fn finish(outcome: Result<Outcome, Failure>) -> ExitCode {
    let code = match outcome {
        Ok(outcome) => outcome.code(),
        Err(failure) => {
            let code = failure.code();
            if code != 0 {
                complain(&failure.message());
            }
            code
        }
    };
    ExitCode::from(code)
}

fn complain(message: &str) {
    let style = Style::new().fg_color(Some(AnsiColor::Red.into())).bold();
    // Nobody is left to tell when this fails too.
    let _ = writeln!(anstream::stderr(), "{style}journalctl-kb:{style:#} {message}");
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn every_kind_of_error_has_its_code() {
        let io = |kind: ErrorKind| io::Error::from(kind);
        let path = || PathBuf::from("x");
        let table = [
            (Error::PathQuarantined { path: path(), txn: 7.into() }, 76),
            (Error::PathNotPutBack { path: path(), holder: "p".into(), id: QuarantineId::Guard(3) }, 76),
            (Error::NotInQuarantine { id: QuarantineId::Guard(3), kept: false }, 1),
            (Error::Busy { what: "main".into(), holder: "p".into(), waited: Duration::ZERO }, 75),
            (Error::PoolTimeout { waited: Duration::ZERO }, 75),
            (Error::Io { op: "open", path: path(), source: io(ErrorKind::Other) }, 74),
            (Error::SyncFailed { path: path(), source: io(ErrorKind::Other) }, 74),
            (Error::NoJournal { root: path() }, 1),
            (Error::NotADirectory { path: path() }, 1),
            (Error::NewerSchema { path: path(), found: 2, known: 1 }, 1),
        ];
        for (error, want) in table {
            assert_eq!(code(&error), want, "{error}");
        }
        assert_eq!(Failure::from(io(ErrorKind::BrokenPipe)).code(), 0);
        assert_eq!(Failure::from(io(ErrorKind::StorageFull)).code(), 74);
    }
}
