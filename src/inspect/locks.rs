//! Sessions and locks: what the rows say, and what the kernel says about them.

use std::path::Path;

use rusqlite::{Connection, Row};

use super::guards;
use super::inspector::Inspector;
use super::liveness::KernelLocks;
use super::model::{LockInfo, SessionInfo, Turnstile, Waiter};
use super::value::{bytes, count, hex, number, number_or_zero, text_or_empty};
use crate::error::Result;
use crate::lock::{Holder, file_name, gate_name};
use crate::store::TURNSTILE;
use crate::time::{now_ms, process_began_ms};

const SESSIONS: &str = "SELECT id, pid, program, opened_ms FROM main.journal_session WHERE state = 'open'
    ORDER BY opened_ms, id";
const LOCKS: &str = "SELECT l.*, s.program
    FROM main.journal_lock AS l LEFT JOIN main.journal_session AS s ON s.id = l.session ORDER BY l.name";
const WAITS: &str = "SELECT w.lock, w.session, w.pid, w.since_ms, s.program
    FROM main.journal_wait AS w LEFT JOIN main.journal_session AS s ON s.id = w.session ORDER BY w.since_ms, w.id";

/// Somebody who has waited for a lock for long, as a row tells it.
#[derive(Clone, Debug)]
pub(super) struct LongWait {
    lock: String,
    session: String,
    pid: i64,
    since_ms: i64,
    program: String,
}

pub(super) fn sessions(inspector: &Inspector) -> Result<Vec<SessionInfo>> {
    let mut sessions = inspector.database.snapshot(session_rows)?;
    judge_sessions(&mut sessions, &inspector.state_dir, &KernelLocks::read());
    Ok(sessions)
}

pub(super) fn locks(inspector: &Inspector) -> Result<Vec<LockInfo>> {
    let rows = |connection: &Connection| Ok((lock_rows(connection)?, wait_rows(connection)?));
    let (mut locks, waits) = inspector.database.snapshot(rows)?;
    judge_locks(&mut locks, &waits, &inspector.state_dir, &KernelLocks::read());
    Ok(locks)
}

/// Whose turn it is to write.
pub(super) fn turnstile(state_dir: &Path, kernel: &KernelLocks) -> Turnstile {
    let file = state_dir.join(TURNSTILE);
    let holders = kernel.holders(&file, &[]);
    Turnstile {
        held: holders.as_ref().map(|pids| !pids.is_empty()),
        pids: holders.unwrap_or_default(),
        waiting: kernel.waiters(&file),
    }
}

pub(super) fn wait_rows(connection: &Connection) -> rusqlite::Result<Vec<LongWait>> {
    // The first schema has no such rows.
    if !guards::are_known(connection)? {
        return Ok(Vec::new());
    }
    let wait = |row: &Row<'_>| {
        Ok(LongWait {
            lock: text_or_empty(row, "lock"),
            session: bytes(row, "session").map_or_else(String::new, hex),
            pid: number_or_zero(row, "pid"),
            since_ms: number_or_zero(row, "since_ms"),
            program: text_or_empty(row, "program"),
        })
    };
    connection.prepare(WAITS)?.query_map((), wait)?.collect()
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
            clock_differs: false,
            mode: None,
            waiting: Vec::new(),
            waits: count(row, "waits"),
            longest_wait_ms: count(row, "longest_wait_ms"),
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

/// Asks the kernel which of these locks are held, and by whom, and who waits.
pub(super) fn judge_locks(locks: &mut [LockInfo], waits: &[LongWait], state_dir: &Path, kernel: &KernelLocks) {
    for lock in locks {
        let suspects: Vec<i64> = lock.holder.iter().map(|holder| holder.pid).collect();
        // A name that no lock can have has no file, and no holder.
        let file = |name: Result<String>| state_dir.join("locks").join(name.unwrap_or_default());
        let (own, gate) = (file(file_name(&lock.name)), file(gate_name(&lock.name)));
        let holders = kernel.holders(&own, &suspects);
        lock.held = holders.as_ref().map(|pids| !pids.is_empty());
        lock.pids = holders.unwrap_or_default();
        if let (Some(false), Some(holder)) = (lock.held, &lock.holder) {
            let session = state_dir.join("sessions").join(format!("{}.lock", holder.session));
            if kernel.holders(&session, &[holder.pid]).is_some_and(|pids| !pids.is_empty()) {
                // It has released it, and not got round to saying so.
                lock.holder = None;
            }
        }
        lock.clock_differs = clock_differs(lock);
        lock.mode = kernel.is_shared(&own).map(|shared| if shared { "shared" } else { "exclusive" });
        let mut in_kernel = [kernel.waiters(&own), kernel.waiters(&gate)].concat();
        for wait in waits.iter().filter(|wait| wait.lock == lock.name) {
            let session = state_dir.join("sessions").join(format!("{}.lock", wait.session));
            // The row has its number in its own pid namespace, the kernel the one here. Who is dead waits for nothing.
            let Some(&pid) = kernel.holders(&session, &[wait.pid]).unwrap_or_default().first() else { continue };
            if let Some(at) = in_kernel.iter().position(|&waiter| waiter == pid) {
                in_kernel.swap_remove(at);
            }
            let since_ms = Some(wait.since_ms).filter(|&since_ms| can_be(pid, since_ms));
            lock.waiting.push(Waiter { pid, program: wait.program.clone(), since_ms });
        }
        in_kernel.sort_unstable();
        let new = in_kernel.into_iter().map(|pid| Waiter { pid, program: program_of(pid), since_ms: None });
        lock.waiting.extend(new);
    }
}

/// Whether the times that a living holder noted can be true.
fn clock_differs(lock: &LockInfo) -> bool {
    let (Some(holder), [pid]) = (&lock.holder, lock.pids.as_slice()) else { return false };
    !can_be(*pid, holder.since_ms) || !can_be(*pid, holder.heartbeat_ms)
}

/// Compares a time that a process noted with how old it is, which nobody can set.
fn can_be(pid: i32, ms: i64) -> bool {
    /// Less than that is how coarsely the kernel counts, and the time it takes to look.
    const TOLERANCE_MS: i64 = 2_000;
    let began = u32::try_from(pid).ok().and_then(process_began_ms).unwrap_or(0);
    (began.saturating_sub(TOLERANCE_MS)..=now_ms().saturating_add(TOLERANCE_MS)).contains(&ms)
}

/// The name of a process's program; empty where it is gone by now.
fn program_of(pid: i32) -> String {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    name.trim_end().to_owned()
}
