//! A session: one process that has the journal open.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::AtFlags;

use super::rows;
use crate::error::Result;
use crate::fs::os_lock::{self, OsLock};
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
        // Locked before the row exists: whoever reads the row finds it alive.
        let mut alive = OsLock::open(&state_path.join("sessions"), &file_name(id))?;
        alive.lock_until(crate::time::Deadline::after(wait))?;
        let mut turn = store.enter(wait)?;
        let durability = match turn.look(|tx| rows::fences_are_current(tx, mark))? {
            true => Durability::Normal,
            false => Durability::Full,
        };
        turn.write(durability, |tx| rows::open_session(tx, id, &program(), mark))?;
        Ok(Self { id, _alive: alive })
    }

    /// Ends the session, in words. Its lock file is left to be swept: unlinked while locked, nobody is confused.
    pub(crate) fn end(&self, turn: &mut Turn<'_>, sessions: &OwnedFd) -> Result<()> {
        turn.write(Durability::Normal, |tx| rows::end_session(tx, self.id, "closed"))?;
        let _ = rustix::fs::unlinkat(sessions, file_name(self.id), AtFlags::empty());
        Ok(())
    }
}

/// True when nobody holds the session's lock: its process is gone, or it was closed.
pub(crate) fn is_dead(sessions: &OwnedFd, path: &Path, id: SessionId) -> Result<bool> {
    os_lock::is_free(sessions, &file_name(id), path)
}

/// Marks dead sessions as such and removes their lock files. Ids are never reused, so no file comes to mean another.
pub(crate) fn sweep_dead(turn: &mut Turn<'_>, sessions: &OwnedFd, path: &Path) -> Result<Vec<SessionId>> {
    let mut dead = Vec::new();
    for id in turn.look(rows::open_sessions)? {
        if is_dead(sessions, path, id)? {
            dead.push(id);
        }
    }
    if !dead.is_empty() {
        turn.write(Durability::Normal, |tx| dead.iter().try_for_each(|&id| rows::end_session(tx, id, "dead")))?;
        for &id in &dead {
            let _ = rustix::fs::unlinkat(sessions, file_name(id), AtFlags::empty());
        }
    }
    Ok(dead)
}

fn file_name(id: SessionId) -> String {
    format!("{id}.lock")
}

fn program() -> String {
    let path = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("?"));
    path.file_name().map_or_else(|| "?".to_owned(), |name| name.to_string_lossy().into_owned())
}
