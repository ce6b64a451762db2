//! Who holds a lock, for people.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

/// Who holds a lock, and for what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Holder {
    /// The process, as it is called in its own pid namespace; 0 when it is not known.
    pub pid: i64,
    /// Its program's name; empty when its session is not known.
    pub program: String,
    /// Its session.
    pub session: String,
    /// For what it was taken.
    pub purpose: String,
    /// Since when it is held.
    pub since_ms: i64,
    /// When the holder was last known to live.
    pub heartbeat_ms: i64,
    /// What the holder says about its progress.
    pub progress: String,
}

/// Somebody waits for a lock: what [`Acquire::on_wait`](crate::Acquire::on_wait) is told.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Waiting {
    /// Who has it; none where that is not known yet.
    pub holder: Option<Holder>,
    /// For how long this has been waited.
    pub waited: Duration,
}

impl Waiting {
    pub(crate) fn new(holder: Option<Holder>, waited: Duration) -> Self {
        Self { holder, waited }
    }
}

impl Holder {
    /// Nobody knows who: not recorded yet, or in a hurry.
    pub(crate) fn unknown() -> Self {
        Self {
            pid: 0,
            program: String::new(),
            session: String::new(),
            purpose: String::new(),
            since_ms: 0,
            heartbeat_ms: 0,
            progress: String::new(),
        }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.pid == 0 && self.program.is_empty() {
            return f.write_str("another process");
        }
        let program = if self.program.is_empty() { "a program" } else { &self.program };
        write!(f, "{program} (pid {})", self.pid)?;
        if !self.purpose.is_empty() {
            write!(f, " for {:?}", self.purpose)?;
        }
        if !self.progress.is_empty() {
            write!(f, ", at {:?}", self.progress)?;
        }
        Ok(())
    }
}
