//! The SQL of sessions, locks and fences.

use super::holder::Holder;
use crate::error::Result;
use crate::id::{Fence, SessionId};
use crate::store::Tx;
use crate::time::{Process, boot_id, now_ms, process_start};

/// How many fencing tokens are made durable at once, so that an acquisition needs no sync of its own.
const FENCE_BLOCK: i64 = 1 << 20;
/// How many ended sessions are remembered.
const SESSIONS_KEPT: i64 = 1000;

/// Records a session, and begins a new block of fences when the last one was counted in another boot or mount: the
/// transaction then has to be durable.
pub(super) fn open_session(tx: &Tx<'_>, id: SessionId, program: &str, mark: &[u8]) -> Result<()> {
    tx.execute(
        "INSERT INTO main.journal_session (id, pid, started, boot, program, opened_ms, state) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, 'open')",
        (id.as_bytes(), std::process::id(), process_start(), boot_id(), program, now_ms()),
    )?;
    // Enough of the past for `show`. Ids begin with the time, so they are in order.
    tx.execute(
        "DELETE FROM main.journal_session WHERE state <> 'open' \
         AND id < (SELECT id FROM main.journal_session ORDER BY id DESC LIMIT 1 OFFSET ?1)",
        [SESSIONS_KEPT],
    )?;
    // Tokens above a counter that a power cut took back may be in use already; none above the ceiling is.
    tx.execute(
        "UPDATE main.journal_meta SET fence = fence_ceiling, fence_ceiling = fence_ceiling + ?2, fence_mark = ?1 \
         WHERE id = 1 AND (fence_mark <> ?1 OR fence = fence_ceiling)",
        (mark, FENCE_BLOCK),
    )
    .map(drop)
}

/// True when the counter of fences was last counted in this boot and mount, with tokens left.
pub(super) fn fences_are_current(tx: &Tx<'_>, mark: &[u8]) -> Result<bool> {
    tx.query_row(
        "SELECT fence_mark = ?1 AND fence < fence_ceiling FROM main.journal_meta WHERE id = 1",
        [mark],
        |row| row.get(0),
    )
}

/// True when tokens are left below the durable ceiling.
pub(super) fn has_fences(tx: &Tx<'_>) -> Result<bool> {
    tx.query_row("SELECT fence < fence_ceiling FROM main.journal_meta WHERE id = 1", (), |row| row.get(0))
}

/// Begins a new block of fences.
fn raise_ceiling(tx: &Tx<'_>) -> Result<()> {
    tx.execute("UPDATE main.journal_meta SET fence_ceiling = fence_ceiling + ?1 WHERE id = 1", [FENCE_BLOCK]).map(drop)
}

/// Ends a session in the given state.
pub(super) fn end_session(tx: &Tx<'_>, id: SessionId, state: &'static str) -> Result<()> {
    tx.execute(
        "UPDATE main.journal_session SET state = ?2, ended_ms = ?3 WHERE id = ?1 AND state = 'open'",
        (id.as_bytes(), state, now_ms()),
    )?;
    tx.execute("DELETE FROM main.journal_wait WHERE session = ?1", [id.as_bytes()]).map(drop)
}

/// The sessions whose rows say that they are open. A row that is no session's id is passed over.
pub(crate) fn open_sessions(tx: &Tx<'_>) -> Result<Vec<SessionId>> {
    let ids = tx.query_map("SELECT id FROM main.journal_session WHERE state = 'open'", (), |row| {
        Ok(row.get_ref(0)?.as_blob().ok().and_then(SessionId::from_slice))
    })?;
    Ok(ids.into_iter().flatten().collect())
}

/// True when a row says that another session is open, alive or not.
pub(crate) fn others_open(tx: &Tx<'_>, own: SessionId) -> Result<bool> {
    tx.query_row(
        "SELECT EXISTS (SELECT 1 FROM main.journal_session WHERE state = 'open' AND id <> ?1)",
        [own.as_bytes()],
        |row| row.get(0),
    )
}

/// The token of a lock's newest recorded acquisition; 0 when there was none yet.
pub(crate) fn newest_fence(tx: &Tx<'_>, name: &str) -> Result<i64> {
    let newest = tx.query_opt("SELECT fence FROM main.journal_lock WHERE name = ?1", [name], |row| row.get(0))?;
    Ok(newest.unwrap_or(0))
}

/// The same, and the session that has not released it, as far as the row says.
pub(super) fn newest(tx: &Tx<'_>, name: &str) -> Result<(i64, Option<Vec<u8>>)> {
    let newest = tx.query_opt("SELECT fence, session FROM main.journal_lock WHERE name = ?1", [name], |row| {
        Ok((row.get(0)?, row.get(1)?))
    })?;
    Ok(newest.unwrap_or((0, None)))
}

/// Records an acquisition: the next token, and who has the lock from now on; nobody, when it is `over` with this very
/// transaction. `crashed`: the holder before had died with it. Where [`has_fences`] says no, the transaction has to be durable.
pub(super) fn acquire(
    tx: &Tx<'_>,
    name: &str,
    session: SessionId,
    purpose: &str,
    over: bool,
    crashed: bool,
) -> Result<Fence> {
    // Plain statements: RETURNING would build a table of its own each time.
    let (fence, ceiling): (i64, i64) =
        tx.query_row("SELECT fence + 1, fence_ceiling FROM main.journal_meta WHERE id = 1", (), |row| {
            Ok((row.get(0)?, row.get(1)?))
        })?;
    if fence > ceiling {
        raise_ceiling(tx)?;
    }
    tx.execute("UPDATE main.journal_meta SET fence = ?1 WHERE id = 1", [fence])?;
    tx.execute(
        "INSERT INTO main.journal_lock (name, fence, session, pid, purpose, acquired_ms, heartbeat_ms) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?6) \
         ON CONFLICT (name) DO UPDATE SET crashes = crashes + ?7, fence = excluded.fence, \
           session = excluded.session, pid = excluded.pid, purpose = excluded.purpose, \
           acquired_ms = excluded.acquired_ms, heartbeat_ms = excluded.heartbeat_ms, progress = '', \
           acquisitions = acquisitions + 1",
        (name, fence, (!over).then(|| session.as_bytes()), (!over).then(std::process::id), purpose, now_ms(), crashed),
    )?;
    Ok(Fence(fence))
}

/// Records a release. Answers false, and does nothing, when somebody else has the lock by now. A fence does not tell: that of
/// an acquisition that was undone goes to the next one.
pub(super) fn release(tx: &Tx<'_>, name: &str, fence: Fence, session: SessionId) -> Result<bool> {
    let released = tx.execute(
        "UPDATE main.journal_lock SET session = NULL, pid = NULL \
         WHERE name = ?1 AND fence = ?2 AND session = ?3",
        (name, fence.get(), session.as_bytes()),
    )?;
    Ok(released == 1)
}

/// Counts a loss, for `status`.
pub(super) fn count_loss(tx: &Tx<'_>, name: &str) -> Result<()> {
    tx.execute("UPDATE main.journal_lock SET losses = losses + 1 WHERE name = ?1", [name]).map(drop)
}

/// True when the newest acquisition has this token, and has not been released.
pub(super) fn is_newest(tx: &Tx<'_>, name: &str, fence: Fence) -> Result<bool> {
    tx.query_row(
        "SELECT EXISTS (SELECT 1 FROM main.journal_lock WHERE name = ?1 AND fence = ?2 AND session IS NOT NULL)",
        (name, fence.get()),
        |row| row.get(0),
    )
}

/// True when the newest acquisition has this token, is this session's, and has not been released.
pub(super) fn is_of(tx: &Tx<'_>, name: &str, fence: Fence, session: SessionId) -> Result<bool> {
    tx.query_row(
        "SELECT EXISTS (SELECT 1 FROM main.journal_lock WHERE name = ?1 AND fence = ?2 AND session = ?3)",
        (name, fence.get(), session.as_bytes()),
        |row| row.get(0),
    )
}

/// Records a sign of life. Does nothing when it was released, or somebody else has it.
pub(super) fn beat(tx: &Tx<'_>, name: &str, fence: Fence, progress: &str) -> Result<()> {
    tx.execute(
        "UPDATE main.journal_lock SET heartbeat_ms = ?3, progress = ?4 \
         WHERE name = ?1 AND fence = ?2 AND session IS NOT NULL",
        (name, fence.get(), now_ms(), progress),
    )
    .map(drop)
}

/// Who holds a lock, and in which session, as far as the row tells.
pub(super) fn holder(tx: &Tx<'_>, name: &str) -> Result<Option<(Vec<u8>, Holder)>> {
    let row = tx.query_opt(
        "SELECT l.session, coalesce(l.pid, 0), coalesce(s.program, ''), l.purpose, l.acquired_ms, l.heartbeat_ms, l.progress \
         FROM main.journal_lock l LEFT JOIN main.journal_session s ON s.id = l.session \
         WHERE l.name = ?1 AND l.session IS NOT NULL",
        [name],
        |row| {
            let holder = Holder {
                pid: row.get(1)?,
                program: row.get(2)?,
                purpose: row.get(3)?,
                since_ms: row.get(4)?,
                heartbeat_ms: row.get(5)?,
                progress: row.get(6)?,
                ..Holder::unknown()
            };
            Ok((row.get::<_, Vec<u8>>(0)?, holder))
        },
    )?;
    Ok(row.map(|(session, holder)| {
        let named = SessionId::from_slice(&session).map(|session| session.to_string()).unwrap_or_default();
        (session, Holder { session: named, ..holder })
    }))
}

/// Records that somebody has waited for a lock for long. Answers the number of that.
pub(crate) fn begin_wait(tx: &Tx<'_>, name: &str, session: SessionId, since_ms: i64) -> Result<i64> {
    tx.execute(
        "INSERT INTO main.journal_wait (lock, session, pid, since_ms) VALUES (?1, ?2, ?3, ?4)",
        (name, session.as_bytes(), std::process::id(), since_ms),
    )?;
    Ok(tx.last_insert_rowid())
}

/// Records that it is over, and how long it was.
pub(super) fn end_wait(tx: &Tx<'_>, wait: i64, name: &str, waited_ms: i64) -> Result<()> {
    tx.execute("DELETE FROM main.journal_wait WHERE id = ?1", [wait])?;
    tx.execute(
        "UPDATE main.journal_lock SET waits = waits + 1, longest_wait_ms = max(longest_wait_ms, ?2) WHERE name = ?1",
        (name, waited_ms),
    )
    .map(drop)
}

/// The process of a session, where its row says so.
pub(crate) fn process(tx: &Tx<'_>, session: SessionId) -> Result<Option<Process>> {
    tx.query_opt(
        "SELECT boot, pid, started FROM main.journal_session WHERE id = ?1 AND pid BETWEEN 1 AND 2147483647",
        [session.as_bytes()],
        |row| Ok(Process::recorded(row.get(0)?, row.get(1)?, row.get(2)?)),
    )
}
