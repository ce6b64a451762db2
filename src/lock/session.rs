//! A session: one process that has the journal open.

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::rows;
use crate::error::{Error, Result};
use crate::fs::area;
use crate::fs::os_lock::{self, OsLock};
use crate::fs::state;
use crate::id::SessionId;
use crate::store::{Durability, Store, Turn};

/// This process's session. The OS lock goes with the process, however it ends.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) id: SessionId,
    _alive: OsLock,
}

impl Session {
    /// Begins a session. `mark` identifies this boot and mount. Durable only when a new block of fences begins.
    pub(crate) fn begin(store: &Store, state_path: &Path, mark: &[u8], wait: Duration) -> Result<Self> {
        let id = SessionId::new();
        // Within one turn, as the sweep is: nobody takes the file for a dead session's before it is locked.
        let mut turn = store.enter(wait)?;
        let alive = OsLock::open(&state_path.join("sessions"), &file_name(id))?;
        if !alive.try_lock()? {
            return Err(Error::Busy { what: "a new session".into(), holder: "nobody known".into(), waited: wait });
        }
        let durability = match turn.look(|tx| rows::fences_are_current(tx, mark))? {
            true => Durability::Normal,
            false => Durability::Full,
        };
        turn.write(durability, |tx| rows::open_session(tx, id, &program(), mark))?;
        Ok(Self { id, _alive: alive })
    }

    /// Ends the session: its row says so, and the lock file goes while it is still locked.
    pub(crate) fn end(&self, turn: &mut Turn<'_>, sessions: &OwnedFd) -> Result<()> {
        turn.write(Durability::Normal, |tx| rows::end_session(tx, self.id, "closed"))?;
        state::remove_file(sessions, &file_name(self.id), Path::new("sessions"))
    }
}

/// Marks dead sessions as such and removes lock files that nobody holds. Ids are never reused, so no file comes to mean
/// another session; only within a turn, so none is removed before its session has locked it.
pub(crate) fn sweep_dead(turn: &mut Turn<'_>, sessions: &OwnedFd, path: &Path) -> Result<()> {
    let mut open: HashSet<SessionId> = turn.look(rows::open_sessions)?.into_iter().collect();
    let mut dead = Vec::new();
    for name in area::names(sessions, path)? {
        let Some(name) = name.to_str() else { continue };
        let Some(id) = name.strip_suffix(".lock").and_then(SessionId::parse) else { continue };
        if !os_lock::is_free(sessions, name, path)? {
            open.remove(&id);
            continue;
        }
        if open.remove(&id) {
            dead.push(id);
        }
        state::remove_file(sessions, name, path)?;
    }
    // Rows whose file is gone altogether.
    dead.extend(open);
    if dead.is_empty() {
        return Ok(());
    }
    // IMPORTANT: what a dead process wrote to the log may not be durable, whatever it says: it could have died within its COMMIT.
    // It is from here on, before anything goes that only an undone COMMIT would need.
    turn.write(Durability::Full, |tx| dead.iter().try_for_each(|&id| rows::end_session(tx, id, "dead")))
}

fn file_name(id: SessionId) -> String {
    format!("{id}.lock")
}

/// True while the process of a session holds its lock file in this directory.
pub(crate) fn lives(sessions: &Path, id: SessionId) -> Result<bool> {
    os_lock::is_unheld(sessions, &file_name(id)).map(|unheld| !unheld)
}

/// What this process runs.
pub(super) fn program() -> String {
    let path = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("?"));
    path.file_name().map_or_else(|| "?".to_owned(), |name| name.to_string_lossy().into_owned())
}
