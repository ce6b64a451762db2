//! The SQL of guards: who guards which paths, and what those were.

use std::collections::HashSet;

use super::record::Mark;
use super::rows::next_txn;
use super::state::GuardState;
use crate::codec;
use crate::error::{Error, Result};
use crate::id::SessionId;
use crate::path::RelPath;
use crate::store::Tx;
use crate::time::{Process, now_ms};
use crate::tree::{PreImage, Was};

/// So many paths one guard may come to. Guards are numbered from 1 again when there are none, and by a process on and on: there
/// is room for 2^31 of them.
const MAX_PATHS: i64 = 1 << 32;

/// The number of a guard: of a transaction while it guards paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct GuardId(pub(crate) i64);

/// A transaction that guards paths.
#[derive(Clone, Debug)]
pub(crate) struct GuardRow {
    pub(crate) id: GuardId,
    pub(crate) state: GuardState,
    /// The word in the database is none of those that a state has.
    pub(crate) unknown: bool,
    pub(crate) lock: String,
    pub(crate) session: Vec<u8>,
    pub(crate) label: String,
    pub(crate) attempts: i64,
    pub(crate) began_ms: i64,
    /// Whoever works under it, if that was recorded and can be read.
    pub(crate) worker: Option<Process>,
    /// Of its lock.
    pub(crate) fence: i64,
    /// Where nothing unsynced can have been lost since; none when that cannot be read.
    pub(crate) mark: Option<Mark>,
}

/// A guarded path as it is stored, decoded or not.
#[derive(Debug)]
pub(crate) struct Guarded {
    pub(crate) path: Result<RelPath>,
    pub(crate) image: Result<PreImage>,
}

/// Records that a transaction guards paths. Its number is `least` or larger, and none that stands in quarantine/ or that a row
/// names: what is left of another guard would become its own. From a number that leaves no room it does not go on.
pub(crate) fn insert_guard(tx: &Tx<'_>, least: i64, guard: &GuardRow) -> Result<GuardId> {
    tx.execute(
        "INSERT INTO main.journal_guard (id, state, lock, session, label, began_ms, fence, mark) \
         VALUES (max(?1, (SELECT coalesce(max(id), 0) + 1 FROM main.journal_guard WHERE id < 1 << 30), \
             (SELECT coalesce(max(id), 0) / (1 << 32) + 1 FROM main.journal_preimage WHERE id < 1 << 62), \
             (SELECT coalesce(max(guard), 0) + 1 FROM main.journal_guard_tree WHERE guard < 1 << 30), \
             (SELECT guard_floor + 1 FROM main.journal_meta WHERE id = 1)), 'active', ?2, ?3, ?4, ?5, ?6, ?7)",
        (least, &guard.lock, &guard.session, &guard.label, guard.began_ms, guard.fence, codec::encode(&guard.mark)?),
    )?;
    Ok(GuardId(tx.last_insert_rowid()))
}

/// Notes that a guard has come to other mounts.
pub(crate) fn set_guard_mark(tx: &Tx<'_>, guard: GuardId, mark: &Mark) -> Result<()> {
    tx.execute(
        "UPDATE main.journal_guard SET mark = ?2 WHERE id = ?1 AND mark <> ?2",
        (guard.0, codec::encode(&Some(mark))?),
    )
    .map(drop)
}

/// Records what path number `n` of a guard was.
pub(crate) fn insert_preimage(tx: &Tx<'_>, guard: GuardId, n: i64, path: &RelPath, image: &PreImage) -> Result<()> {
    if n >= MAX_PATHS {
        let what = "the number of paths that one transaction guards";
        return Err(Error::TooLarge { what, limit: MAX_PATHS as u64 });
    }
    tx.execute(
        "INSERT INTO main.journal_preimage (id, path, record) VALUES (?1, ?2, ?3)",
        (image_ids(guard).0.saturating_add(n), path.as_bytes(), codec::encode(image)?),
    )
    .map(drop)
}

/// The ids that the paths of a guard have.
pub(super) fn image_ids(guard: GuardId) -> (i64, i64) {
    let first = guard.0.saturating_mul(MAX_PATHS);
    (first, first.saturating_add(MAX_PATHS - 1))
}

/// True when any transaction guards paths, or did when it died.
pub(crate) fn has_guards(tx: &Tx<'_>) -> Result<bool> {
    tx.query_row("SELECT EXISTS (SELECT 1 FROM main.journal_guard)", (), |row| row.get(0))
}

/// True when a transaction guards paths under this lock, or did when it died.
pub(crate) fn has_guard_of(tx: &Tx<'_>, lock: &str) -> Result<bool> {
    tx.query_row(
        "SELECT EXISTS (SELECT 1 FROM main.journal_guard WHERE lock = ?1 AND state = 'active')",
        [lock],
        |row| row.get(0),
    )
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
        "SELECT id, state, lock, session, label, attempts, began_ms, fence, mark, worker FROM main.journal_guard ORDER BY id",
        (),
        |row| {
            let state = row.get_ref(1)?.as_str().ok().and_then(GuardState::parse);
            Ok(GuardRow {
                id: GuardId(row.get(0)?),
                // The schema's CHECK keeps other words out; if one came in all the same, nothing is put back.
                state: state.unwrap_or(GuardState::Quarantined),
                unknown: state.is_none(),
                lock: lossy(row, 2)?,
                session: row.get(3)?,
                label: lossy(row, 4)?,
                attempts: row.get(5)?,
                began_ms: row.get(6)?,
                fence: row.get(7)?,
                mark: codec::decode::<Option<Mark>>(&row.get::<_, Vec<u8>>(8)?).ok().flatten(),
                worker: row.get::<_, Option<Vec<u8>>>(9)?.and_then(|bytes| codec::decode(&bytes).ok()),
            })
        },
    )
}

/// Text that somebody else may have written: one row must not hide the others.
pub(super) fn lossy(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<String> {
    Ok(String::from_utf8_lossy(row.get_ref(column)?.as_bytes().unwrap_or_default()).into_owned())
}

/// The paths of a guard.
pub(crate) fn guarded(tx: &Tx<'_>, guard: GuardId) -> Result<Vec<Guarded>> {
    tx.query_map(
        "SELECT path, record FROM main.journal_preimage WHERE id BETWEEN ?1 AND ?2 ORDER BY id",
        image_ids(guard),
        |row| {
            let path: Vec<u8> = row.get(0)?;
            let image: Result<PreImage> = codec::decode(&row.get::<_, Vec<u8>>(1)?);
            let mut path = RelPath::from_stored_or_root(&path);
            // All paths overlap the root, so one row that names it for something else would keep everybody from everything.
            if let (Ok(at), Ok(image)) = (&path, &image)
                && at.is_root()
                && !matches!(image.was, Was::Directory { .. })
            {
                path = Err(Error::corrupt("a guarded path", "the root is said to be no directory"));
            }
            Ok(Guarded { path, image })
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

/// Gives a guard up, with everything kept, and says why.
pub(crate) fn quarantine_guard(tx: &Tx<'_>, guard: GuardId, reason: &str) -> Result<()> {
    tx.execute(
        "UPDATE main.journal_guard SET state = 'quarantined', reason = ?2, given_up_ms = ?3 WHERE id = ?1",
        (guard.0, reason, now_ms()),
    )
    .map(drop)
}

/// Has what a guard's transaction did put back once more: a person's decision.
pub(crate) fn retry_guard(tx: &Tx<'_>, guard: GuardId) -> Result<()> {
    guard_transition(tx, guard, GuardState::Active)?;
    tx.execute("UPDATE main.journal_guard SET attempts = 0, reason = NULL, given_up_ms = NULL WHERE id = ?1", [guard.0])
        .map(drop)
}

/// Has a guard end with the tree as it is: a person's decision. Its number is not used again.
pub(crate) fn end_guard(tx: &Tx<'_>, guard: GuardId) -> Result<()> {
    guard_transition(tx, guard, GuardState::Ending)?;
    tx.execute("UPDATE main.journal_meta SET guard_floor = max(guard_floor, ?1) WHERE id = 1", [guard.0]).map(drop)
}

/// Takes a guard out of quarantine; its row must be there.
fn guard_transition(tx: &Tx<'_>, guard: GuardId, to: GuardState) -> Result<()> {
    debug_assert!(GuardState::Quarantined.may_become(to), "a guard in quarantine may not become {to:?}");
    let changed = tx.execute(
        "UPDATE main.journal_guard SET state = ?2 WHERE id = ?1 AND state = 'quarantined'",
        (guard.0, to.as_str()),
    )?;
    match changed {
        1 => Ok(()),
        _ => Err(Error::corrupt(format!("guard g{}", guard.0), "it is not in quarantine as expected")),
    }
}

/// Ends a guard. Answers false when it was ended before.
pub(crate) fn delete_guard(tx: &Tx<'_>, guard: GuardId) -> Result<bool> {
    tx.execute("DELETE FROM main.journal_preimage WHERE id BETWEEN ?1 AND ?2", image_ids(guard))?;
    tx.execute("DELETE FROM main.journal_guard_tree WHERE guard = ?1", [guard.0])?;
    Ok(tx.execute("DELETE FROM main.journal_guard WHERE id = ?1", [guard.0])? == 1)
}

/// Records a transaction whose guarded paths were put back: over, with whatever was displaced kept as its history.
pub(crate) fn insert_rolled_back(
    tx: &Tx<'_>,
    guard: &GuardRow,
    changes: usize,
    kept: usize,
    history: u64,
) -> Result<crate::id::TxnId> {
    let now = now_ms();
    tx.execute(
        concat!(
            "INSERT INTO main.journal_txn (id, state, lock, fence, session, label, changes, kept, history, began_ms, \
               committed_ms, settled_ms, rolled_back) VALUES (",
            next_txn!(),
            ", 'settled', ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?9, 1)"
        ),
        rusqlite::params![
            guard.lock,
            guard.fence,
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

/// Adds the names in stages that guards refer to, and the sessions of those of which that cannot be told.
pub(super) fn add_staged_names(
    tx: &Tx<'_>,
    names: &mut HashSet<String>,
    in_doubt: &mut HashSet<SessionId>,
) -> Result<()> {
    let records = tx.query_map(
        "SELECT p.record, g.session FROM main.journal_preimage p \
         LEFT JOIN main.journal_guard g ON g.id = p.id / 4294967296",
        (),
        |row| Ok((row.get::<_, Vec<u8>>(0)?, row.get_ref(1)?.as_blob().ok().and_then(SessionId::from_slice))),
    )?;
    for (record, session) in records {
        match codec::decode::<PreImage>(&record) {
            Ok(image) => drop(names.insert(image.name)),
            Err(_) => in_doubt.extend(session),
        }
    }
    Ok(())
}
