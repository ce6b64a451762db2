//! Sessions and locks: what the rows say, and what the kernel says about them.

use std::path::Path;

use rusqlite::{Connection, Row};

use super::inspector::Inspector;
use super::liveness::KernelLocks;
use super::model::{LockInfo, SessionInfo};
use super::value::{bytes, count, hex, number, number_or_zero, text_or_empty};
use crate::error::Result;
use crate::lock::{Holder, file_name};

const SESSIONS: &str = "SELECT id, pid, program, opened_ms FROM main.journal_session WHERE state = 'open'
    ORDER BY opened_ms, id";
const LOCKS: &str = "SELECT l.name, l.fence, l.session, l.pid, l.purpose, l.acquired_ms, l.heartbeat_ms, l.progress,
        l.acquisitions, l.crashes, l.losses, s.program
    FROM main.journal_lock AS l LEFT JOIN main.journal_session AS s ON s.id = l.session ORDER BY l.name";

pub(super) fn sessions(inspector: &Inspector) -> Result<Vec<SessionInfo>> {
    let mut sessions = inspector.database.snapshot(session_rows)?;
    judge_sessions(&mut sessions, &inspector.state_dir, &KernelLocks::read());
    Ok(sessions)
}

pub(super) fn locks(inspector: &Inspector) -> Result<Vec<LockInfo>> {
    let mut locks = inspector.database.snapshot(lock_rows)?;
    judge_locks(&mut locks, &inspector.state_dir, &KernelLocks::read());
    Ok(locks)
}

pub(super) fn session_rows(connection: &Connection) -> rusqlite::Result<Vec<SessionInfo>> {
    let session = |row: &Row<'_>| {
        Ok(SessionInfo {
            id: bytes(row, "id").map_or_else(String::new, hex),
            pid: number_or_zero(row, "pid"),
            program: text_or_empty(row, "program"),
            since_ms: number_or_zero(row, "opened_ms"),
            alive: None,
        })
    };
    connection.prepare(SESSIONS)?.query_map((), session)?.collect()
}

pub(super) fn lock_rows(connection: &Connection) -> rusqlite::Result<Vec<LockInfo>> {
    let lock = |row: &Row<'_>| {
        let acquired_ms = number_or_zero(row, "acquired_ms");
        Ok(LockInfo {
            name: text_or_empty(row, "name"),
            held: None,
            pids: Vec::new(),
            fence: number_or_zero(row, "fence"),
            holder: bytes(row, "session").map(|session| Holder {
                pid: number(row, "pid").unwrap_or(0),
                program: text_or_empty(row, "program"),
                session: hex(session),
                purpose: text_or_empty(row, "purpose"),
                since_ms: acquired_ms,
                heartbeat_ms: number_or_zero(row, "heartbeat_ms"),
                progress: text_or_empty(row, "progress"),
            }),
            acquired_ms,
            acquisitions: count(row, "acquisitions"),
            crashes: count(row, "crashes"),
            losses: count(row, "losses"),
        })
    };
    connection.prepare(LOCKS)?.query_map((), lock)?.collect()
}

/// Asks the kernel which of these sessions still live. Read after the rows: who came later is not in them.
pub(super) fn judge_sessions(sessions: &mut [SessionInfo], state_dir: &Path, kernel: &KernelLocks) {
    for session in sessions {
        let file = state_dir.join("sessions").join(format!("{}.lock", session.id));
        session.alive = kernel.holders(&file, &[session.pid]).map(|pids| !pids.is_empty());
    }
}

/// Asks the kernel which of these locks are held, and by whom.
pub(super) fn judge_locks(locks: &mut [LockInfo], state_dir: &Path, kernel: &KernelLocks) {
    for lock in locks {
        let suspects: Vec<i64> = lock.holder.iter().map(|holder| holder.pid).collect();
        // A name that no lock can have has no file, and no holder.
        let file = file_name(&lock.name).unwrap_or_default();
        let holders = kernel.holders(&state_dir.join("locks").join(file), &suspects);
        lock.held = holders.as_ref().map(|pids| !pids.is_empty());
        lock.pids = holders.unwrap_or_default();
    }
}
