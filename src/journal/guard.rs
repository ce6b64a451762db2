//! The SQL of guards: who guards which paths, and what those were.

use std::collections::HashSet;

use super::rows::MAX_EFFECTS;
use crate::codec;
use crate::error::{Error, Result};
use crate::id::SessionId;
use crate::path::RelPath;
use crate::store::Tx;
use crate::time::{Process, now_ms};
use crate::tree::PreImage;

/// The number of a guard: of a transaction while it guards paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct GuardId(pub(crate) i64);

/// A transaction that guards paths.
#[derive(Clone, Debug)]
pub(crate) struct GuardRow {
    pub(crate) id: GuardId,
    /// Given up, with everything kept.
    pub(crate) quarantined: bool,
    pub(crate) lock: String,
    pub(crate) session: Vec<u8>,
    pub(crate) label: String,
    pub(crate) attempts: i64,
    pub(crate) began_ms: i64,
    /// Whoever works under it, if that was recorded and can be read.
    pub(crate) worker: Option<Process>,
}

/// A guarded path as it is stored, decoded or not.
#[derive(Debug)]
pub(crate) struct Guarded {
    pub(crate) path: Result<RelPath>,
    pub(crate) image: Result<PreImage>,
}

/// Records that a transaction guards paths. Its number is `least` or larger.
pub(crate) fn insert_guard(
    tx: &Tx<'_>,
    least: i64,
    lock: &str,
    session: SessionId,
    label: &str,
    began_ms: i64,
) -> Result<GuardId> {
    tx.execute(
        "INSERT INTO main.journal_guard (id, state, lock, session, label, began_ms) \
         VALUES (max(?1, (SELECT coalesce(max(id), 0) + 1 FROM main.journal_guard)), 'active', ?2, ?3, ?4, ?5)",
        (least, lock, session.as_bytes(), label, began_ms),
    )?;
    Ok(GuardId(tx.last_insert_rowid()))
}

/// Records what path number `n` of a guard was.
pub(crate) fn insert_preimage(tx: &Tx<'_>, guard: GuardId, n: i64, path: &RelPath, image: &PreImage) -> Result<()> {
    if n >= MAX_EFFECTS {
        return Err(Error::TooLarge {
            what: "the number of paths that one transaction guards",
            limit: MAX_EFFECTS as u64,
        });
    }
    tx.execute(
        "INSERT INTO main.journal_preimage (id, path, record) VALUES (?1, ?2, ?3)",
        (image_ids(guard).0.saturating_add(n), path.as_bytes(), codec::encode(image)?),
    )
    .map(drop)
}

/// The ids that the paths of a guard have.
fn image_ids(guard: GuardId) -> (i64, i64) {
    let first = guard.0.saturating_mul(MAX_EFFECTS);
    (first, first.saturating_add(MAX_EFFECTS - 1))
}

/// True when any transaction guards paths, or did when it died.
pub(crate) fn has_guards(tx: &Tx<'_>) -> Result<bool> {
    tx.query_row("SELECT EXISTS (SELECT 1 FROM main.journal_guard)", (), |row| row.get(0))
}

/// True while a guard is neither over nor given up.
pub(crate) fn is_guarding(tx: &Tx<'_>, guard: GuardId) -> Result<bool> {
    tx.query_row(
        "SELECT EXISTS (SELECT 1 FROM main.journal_guard WHERE id = ?1 AND state = 'active')",
        [guard.0],
        |row| row.get(0),
    )
}

/// All transactions that guard paths.
pub(crate) fn guards(tx: &Tx<'_>) -> Result<Vec<GuardRow>> {
    tx.query_map(
        "SELECT id, state, lock, session, label, attempts, began_ms, worker FROM main.journal_guard ORDER BY id",
        (),
        |row| {
            Ok(GuardRow {
                id: GuardId(row.get(0)?),
                quarantined: row.get_ref(1)?.as_str().ok() != Some("active"),
                lock: row.get(2)?,
                session: row.get(3)?,
                label: row.get(4)?,
                attempts: row.get(5)?,
                began_ms: row.get(6)?,
                worker: row.get::<_, Option<Vec<u8>>>(7)?.and_then(|bytes| codec::decode(&bytes).ok()),
            })
        },
    )
}

/// The paths of a guard.
pub(crate) fn guarded(tx: &Tx<'_>, guard: GuardId) -> Result<Vec<Guarded>> {
    tx.query_map(
        "SELECT path, record FROM main.journal_preimage WHERE id BETWEEN ?1 AND ?2 ORDER BY id",
        image_ids(guard),
        |row| {
            let path: Vec<u8> = row.get(0)?;
            let record: Vec<u8> = row.get(1)?;
            Ok(Guarded { path: RelPath::from_stored(&path), image: codec::decode(&record) })
        },
    )
}

/// How many rows of paths a guard has.
pub(crate) fn guarded_count(tx: &Tx<'_>, guard: GuardId) -> Result<i64> {
    tx.query_row("SELECT count(*) FROM main.journal_preimage WHERE id BETWEEN ?1 AND ?2", image_ids(guard), |row| {
        row.get(0)
    })
}

/// Records who works under a guard.
pub(crate) fn set_worker(tx: &Tx<'_>, guard: GuardId, worker: &Process) -> Result<()> {
    tx.execute("UPDATE main.journal_guard SET worker = ?2 WHERE id = ?1", (guard.0, codec::encode(worker)?)).map(drop)
}

/// Who works under a guard of this lock, whoever holds that.
pub(crate) fn workers(tx: &Tx<'_>, lock: &str) -> Result<Vec<Process>> {
    let recorded = tx.query_map(
        "SELECT worker FROM main.journal_guard WHERE lock = ?1 AND state = 'active' AND worker IS NOT NULL",
        [lock],
        |row| row.get::<_, Vec<u8>>(0),
    )?;
    Ok(recorded.iter().filter_map(|worker| codec::decode(worker).ok()).collect())
}

/// Counts an attempt to put everything back, or takes the count back.
pub(crate) fn set_guard_attempts(tx: &Tx<'_>, guard: GuardId, attempts: i64) -> Result<()> {
    tx.execute("UPDATE main.journal_guard SET attempts = ?2 WHERE id = ?1", (guard.0, attempts)).map(drop)
}

/// Gives a guard up, with everything kept.
pub(crate) fn quarantine_guard(tx: &Tx<'_>, guard: GuardId) -> Result<()> {
    tx.execute("UPDATE main.journal_guard SET state = 'quarantined' WHERE id = ?1", [guard.0]).map(drop)
}

/// Ends a guard. Answers false when it was ended before.
pub(crate) fn delete_guard(tx: &Tx<'_>, guard: GuardId) -> Result<bool> {
    tx.execute("DELETE FROM main.journal_preimage WHERE id BETWEEN ?1 AND ?2", image_ids(guard))?;
    tx.execute("DELETE FROM main.journal_guard_tree WHERE guard = ?1", [guard.0])?;
    Ok(tx.execute("DELETE FROM main.journal_guard WHERE id = ?1", [guard.0])? == 1)
}

/// Records a transaction whose guarded paths were put back: over, with whatever was displaced kept as its history.
/// It ran under no fence that anybody could still hold.
pub(crate) fn insert_rolled_back(
    tx: &Tx<'_>,
    guard: &GuardRow,
    changes: usize,
    kept: usize,
    history: u64,
) -> Result<crate::id::TxnId> {
    let fence =
        tx.query_opt("SELECT fence FROM main.journal_lock WHERE name = ?1", [&guard.lock], |row| row.get::<_, i64>(0))?;
    let now = now_ms();
    tx.execute(
        "INSERT INTO main.journal_txn (state, lock, fence, session, label, changes, kept, history, began_ms, \
           committed_ms, settled_ms, rolled_back) VALUES ('settled', ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?9, 1)",
        rusqlite::params![
            guard.lock,
            fence.unwrap_or(0),
            guard.session,
            guard.label,
            changes,
            kept,
            history,
            guard.began_ms,
            now
        ],
    )?;
    Ok(crate::id::TxnId(tx.last_insert_rowid()))
}

/// Adds the names in stages that guards refer to.
pub(super) fn add_staged_names(tx: &Tx<'_>, names: &mut HashSet<String>) -> Result<()> {
    let records = tx.query_map("SELECT record FROM main.journal_preimage", (), |row| row.get::<_, Vec<u8>>(0))?;
    names.extend(records.iter().filter_map(|record| codec::decode::<PreImage>(record).ok()).map(|image| image.name));
    Ok(())
}
