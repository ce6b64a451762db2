//! The SQL of runs, their items, and what is being tried.

use std::sync::LazyLock;

use super::state::{RunState, TryState};
use crate::error::{Error, Result};
use crate::id::{RunId, SessionId};
use crate::store::Tx;
use crate::time::now_ms;

/// A run has fewer items than this: one integer is run and number.
const MOST_ITEMS: i64 = 1 << 36;

/// And there are fewer runs than this. What has a larger number was not put there by the engine, and is passed over.
const MOST_RUNS: i64 = 1 << 25;

/// The first and the last id that a run's items, and what is tried of them, can have.
pub(crate) fn ids(run: RunId) -> (i64, i64) {
    let first = run.0.saturating_mul(MOST_ITEMS);
    (first, first.saturating_add(MOST_ITEMS - 1))
}

fn id(run: RunId, n: i64) -> Result<i64> {
    match n {
        0..MOST_ITEMS => Ok(ids(run).0 | n),
        _ => Err(Error::TooLarge { what: "the number of items of a run", limit: MOST_ITEMS as u64 }),
    }
}

/// The run that a job is to go on with.
#[derive(Debug)]
pub(crate) struct OpenRun {
    pub(crate) id: RunId,
    pub(crate) fingerprint: Vec<u8>,
    /// When somebody last did something for it.
    pub(crate) seen_ms: i64,
}

/// The run of this job that is open, if one is.
pub(crate) fn open_run(tx: &Tx<'_>, job: &str) -> Result<Option<OpenRun>> {
    let found = tx.query_opt(
        "SELECT id, fingerprint, max(started_ms, coalesce(stopped_ms, 0)) FROM main.journal_run \
         WHERE job = ?1 AND state = 'open'",
        [job],
        |row| Ok(OpenRun { id: RunId(row.get(0)?), fingerprint: row.get(1)?, seen_ms: row.get(2)? }),
    )?;
    let Some(mut run) = found else { return Ok(None) };
    let newest = newest_item(tx, run.id)?;
    run.seen_ms = run.seen_ms.max(newest.map_or(0, |(_, at_ms)| at_ms));
    Ok(Some(run))
}

/// The newest run of a job.
pub(crate) fn newest_run(tx: &Tx<'_>, job: &str) -> Result<Option<RunId>> {
    tx.query_opt("SELECT max(id) FROM main.journal_run WHERE job = ?1 HAVING max(id) IS NOT NULL", [job], |row| {
        row.get(0).map(RunId)
    })
}

/// How many items of a run are done.
pub(crate) fn count_items(tx: &Tx<'_>, run: RunId) -> Result<u64> {
    let (first, last) = ids(run);
    let sql = "SELECT count(*) FROM main.journal_run_item WHERE id BETWEEN ?1 AND ?2";
    tx.query_row(sql, (first, last), |row| row.get(0))
}

/// The number of the newest item of a run, and when it was recorded.
fn newest_item(tx: &Tx<'_>, run: RunId) -> Result<Option<(i64, i64)>> {
    let (first, last) = ids(run);
    tx.query_opt(
        "SELECT id, at_ms FROM main.journal_run_item WHERE id BETWEEN ?1 AND ?2 ORDER BY id DESC LIMIT 1",
        (first, last),
        |row| Ok((row.get::<_, i64>(0)? - first, row.get(1)?)),
    )
}

/// Records that a job begins afresh. What was set aside before under the same fingerprint stays aside, unless that run was
/// given up.
pub(crate) fn begin(
    tx: &Tx<'_>,
    job: &str,
    fingerprint: &[u8],
    session: SessionId,
    expected: Option<i64>,
) -> Result<RunId> {
    let now = now_ms();
    let before = tx.query_opt(
        "SELECT id, state <> 'abandoned' FROM main.journal_run WHERE job = ?1 AND fingerprint = ?2 ORDER BY id DESC LIMIT 1",
        (job, fingerprint),
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    let before = before.and_then(|(id, counts): (i64, bool)| counts.then_some(RunId(id)));
    // Rows of a run that is forgotten may be there still.
    let next = tx.query_row(
        "SELECT 1 + max((SELECT coalesce(max(id), 0) FROM main.journal_run WHERE id < ?1), \
           (SELECT coalesce(max(id), 0) >> 36 FROM main.journal_run_item WHERE id < ?1 << 36), \
           (SELECT coalesce(max(id), 0) >> 36 FROM main.journal_run_try WHERE id < ?1 << 36))",
        [MOST_RUNS],
        |row| row.get::<_, i64>(0),
    )?;
    tx.execute(
        "INSERT INTO main.journal_run (id, job, fingerprint, state, session, began_ms, started_ms, expected) \
         VALUES (?1, ?2, ?3, 'open', ?4, ?5, ?5, ?6)",
        (next, job, fingerprint, session.as_bytes(), now, expected),
    )?;
    if let Some(before) = before {
        let (first, last) = ids(before);
        tx.execute(
            "INSERT INTO main.journal_run_try (id, item, tries, state, at_ms, error) \
             SELECT id - ?1 + ?3, item, tries, state, at_ms, error FROM main.journal_run_try \
             WHERE id BETWEEN ?1 AND ?2 AND state = 'aside'",
            (first, last, ids(RunId(next)).0),
        )?;
    }
    Ok(RunId(next))
}

/// Records that a session goes on with a run. What the last one was trying when it died counts as tried; what was tried `most`
/// times is set aside. Answers how many items that were.
pub(crate) fn resume(tx: &Tx<'_>, run: RunId, session: SessionId, expected: Option<i64>, most: u32) -> Result<usize> {
    let next = next_item(tx, run)?;
    tx.execute(
        "UPDATE main.journal_run SET session = ?2, started_ms = ?3, started_at = ?4, starts = starts + 1, reason = '', \
           expected = coalesce(?5, expected) WHERE id = ?1",
        (run.0, session.as_bytes(), now_ms(), next, expected),
    )?;
    let (first, last) = ids(run);
    tx.execute(
        "UPDATE main.journal_run_try SET state = 'failed', error = 'the process ended while it was tried' \
         WHERE id BETWEEN ?1 AND ?2 AND state = 'trying'",
        (first, last),
    )?;
    // Fewer tries may be allowed than before, too.
    tx.execute(
        "UPDATE main.journal_run_try SET state = 'aside' WHERE id BETWEEN ?1 AND ?2 AND state = 'failed' AND tries >= ?3",
        (first, last, most),
    )
}

/// How many items to read in one snapshot, so that none is kept for long.
const CHUNK: i64 = 50_000;

/// Shows a part of the items of a run, those with numbers from `from` on. Answers the next number, and whether that was all.
pub(crate) fn items(tx: &Tx<'_>, run: RunId, from: i64, mut each: impl FnMut(&[u8])) -> Result<(i64, bool)> {
    let (first, last) = ids(run);
    let mut statement =
        tx.prepare("SELECT id, item FROM main.journal_run_item WHERE id BETWEEN ?1 AND ?2 ORDER BY id LIMIT ?3")?;
    let op = "reading the items of a run";
    let mut rows = statement.query((first.saturating_add(from), last, CHUNK)).map_err(|error| Error::sql(op, error))?;
    let (mut next, mut seen) = (from, 0);
    while let Some(row) = rows.next().map_err(|error| Error::sql(op, error))? {
        let corrupt = |error| Error::corrupt("an item of a run", error);
        next = row.get::<_, i64>(0)? - first + 1;
        seen += 1;
        each(row.get_ref(1)?.as_blob().map_err(corrupt)?);
    }
    Ok((next, seen < CHUNK))
}

/// The number of the next item of a run.
pub(crate) fn next_item(tx: &Tx<'_>, run: RunId) -> Result<i64> {
    Ok(newest_item(tx, run)?.map_or(0, |(n, _)| n + 1))
}

/// So many items are added by one statement where there are as many: to begin and end one costs more than its row.
const AT_ONCE: usize = 32;

static ADD_AT_ONCE: LazyLock<String> = LazyLock::new(|| {
    let rows: Vec<_> = (0..AT_ONCE).map(|n| format!("(?1 + {n}, ?{}, ?2)", n + 3)).collect();
    format!("INSERT INTO main.journal_run_item (id, item, at_ms) VALUES {}", rows.join(", "))
});

/// Adds items, numbered from `n` on.
pub(crate) fn add_items<'i>(
    tx: &Tx<'_>,
    run: RunId,
    n: i64,
    mut items: impl ExactSizeIterator<Item = &'i [u8]>,
) -> Result<()> {
    let (now, op) = (now_ms(), "recording an item");
    let (mut n, last) = (n, n.saturating_add_unsigned(items.len() as u64));
    id(run, last)?;
    if items.len() >= AT_ONCE {
        let mut insert = tx.prepare(&ADD_AT_ONCE)?;
        while items.len() >= AT_ONCE {
            let bound = insert.raw_bind_parameter(1, id(run, n)?).and_then(|()| insert.raw_bind_parameter(2, now));
            let bound = bound.and_then(|()| {
                let mut items = items.by_ref().take(AT_ONCE).enumerate();
                items.try_for_each(|(at, item)| insert.raw_bind_parameter(at + 3, item))
            });
            bound.and_then(|()| insert.raw_execute()).map_err(|error| Error::sql(op, error))?;
            n += AT_ONCE as i64;
        }
    }
    let mut insert = tx.prepare("INSERT INTO main.journal_run_item (id, item, at_ms) VALUES (?1, ?2, ?3)")?;
    for (n, item) in (n..).zip(items) {
        insert.execute((id(run, n)?, item, now)).map_err(|error| Error::sql(op, error))?;
    }
    Ok(())
}

/// Forgets the items of a run whose numbers are below `n`.
pub(crate) fn drop_items_before(tx: &Tx<'_>, run: RunId, n: i64) -> Result<()> {
    let (first, _) = ids(run);
    tx.execute("DELETE FROM main.journal_run_item WHERE id >= ?1 AND id < ?2", (first, id(run, n)?)).map(drop)
}

/// An item that was tried and is not done.
#[derive(Debug)]
pub(crate) struct TryRow {
    pub(crate) n: i64,
    pub(crate) item: Vec<u8>,
    pub(crate) tries: u32,
    pub(crate) state: TryState,
    pub(crate) error: String,
}

/// The items of a run that were tried and are not done.
pub(crate) fn tries(tx: &Tx<'_>, run: RunId) -> Result<Vec<TryRow>> {
    let (first, last) = ids(run);
    let rows = tx.query_map(
        "SELECT id, item, tries, state, error FROM main.journal_run_try WHERE id BETWEEN ?1 AND ?2 ORDER BY id",
        (first, last),
        |row| {
            let state: String = row.get(3)?;
            let state = TryState::parse(&state).unwrap_or(TryState::Failed);
            Ok(TryRow {
                n: row.get::<_, i64>(0)? - first,
                item: row.get(1)?,
                tries: u32::try_from(row.get::<_, i64>(2)?.max(0)).unwrap_or(u32::MAX),
                state,
                error: row.get(4)?,
            })
        },
    )?;
    Ok(rows)
}

/// Records how an item stands that is not done.
pub(super) fn put_try(
    tx: &Tx<'_>,
    run: RunId,
    n: i64,
    item: &[u8],
    tries: u32,
    state: TryState,
    error: &str,
) -> Result<()> {
    tx.execute(
        "INSERT OR REPLACE INTO main.journal_run_try (id, item, tries, state, at_ms, error) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        (id(run, n)?, item, tries, state.as_str(), now_ms(), error),
    )
    .map(drop)
}

/// Forgets that an item was tried.
pub(super) fn drop_try(tx: &Tx<'_>, run: RunId, n: i64) -> Result<()> {
    tx.execute("DELETE FROM main.journal_run_try WHERE id = ?1", [id(run, n)?]).map(drop)
}

/// Has what was set aside tried again: all of it, or one item. Answers how many.
pub(crate) fn retry(tx: &Tx<'_>, run: RunId, item: Option<&[u8]>) -> Result<usize> {
    let (first, last) = ids(run);
    tx.execute(
        "DELETE FROM main.journal_run_try \
         WHERE id BETWEEN ?1 AND ?2 AND state = 'aside' AND (?3 IS NULL OR item = ?3)",
        (first, last, item),
    )
}

/// The text of a run's cursor, if it is any.
pub(crate) fn cursor(tx: &Tx<'_>, run: RunId) -> Result<Option<Vec<u8>>> {
    tx.query_row("SELECT CAST(cursor AS BLOB) FROM main.journal_run WHERE id = ?1", [run.0], |row| row.get(0))
}

pub(super) fn set_cursor(tx: &Tx<'_>, run: RunId, cursor: &str) -> Result<()> {
    tx.execute("UPDATE main.journal_run SET cursor = ?2 WHERE id = ?1", (run.0, cursor)).map(drop)
}

/// Sets a cursor aside that nobody can read.
pub(crate) fn set_cursor_aside(tx: &Tx<'_>, run: RunId, cursor: &[u8]) -> Result<()> {
    let sql = "UPDATE main.journal_run SET bad_cursor = CAST(?2 AS TEXT), cursor = NULL WHERE id = ?1";
    tx.execute(sql, (run.0, cursor)).map(drop)
}

/// Records why a session stopped working at a run that stays open.
pub(crate) fn stop(tx: &Tx<'_>, run: RunId, reason: &str) -> Result<()> {
    tx.execute(
        "UPDATE main.journal_run SET session = NULL, stopped_ms = ?2, reason = ?3 WHERE id = ?1 AND state = 'open'",
        (run.0, now_ms(), reason),
    )
    .map(drop)
}

/// Ends a run that is open.
pub(crate) fn end(tx: &Tx<'_>, run: RunId, state: RunState, reason: &str) -> Result<()> {
    debug_assert!(RunState::Open.may_become(state));
    let (first, last) = ids(run);
    let ended = tx.execute(
        "UPDATE main.journal_run SET state = ?2, reason = ?3, session = NULL, stopped_ms = ?4, \
           banked = (SELECT count(*) FROM main.journal_run_item WHERE id BETWEEN ?5 AND ?6) \
         WHERE id = ?1 AND state = 'open'",
        (run.0, state.as_str(), reason, now_ms(), first, last),
    )?;
    match ended {
        1 => Ok(()),
        _ => Err(Error::corrupt("a run", format_args!("run {run} is not open any more"))),
    }
}

/// The runs that are over for longer than this.
pub(crate) fn over_before(tx: &Tx<'_>, ms: i64) -> Result<Vec<RunId>> {
    tx.query_map(
        "SELECT id FROM main.journal_run WHERE state <> 'open' AND coalesce(stopped_ms, began_ms) < ?1",
        [ms],
        |row| row.get(0).map(RunId),
    )
}

/// The runs that are open, and their jobs, that no session has started to work at since.
pub(crate) fn open_before(tx: &Tx<'_>, ms: i64) -> Result<Vec<(RunId, Vec<u8>)>> {
    let sql = "SELECT id, CAST(job AS BLOB) FROM main.journal_run WHERE state = 'open' AND started_ms < ?1";
    tx.query_map(sql, [ms], |row| Ok((RunId(row.get(0)?), row.get(1)?)))
}

/// Ends an open run for which nobody has done anything since.
pub(crate) fn end_unseen(tx: &Tx<'_>, run: RunId, ms: i64, reason: &str) -> Result<()> {
    let seen = tx.query_opt(
        "SELECT max(started_ms, coalesce(stopped_ms, 0)) FROM main.journal_run WHERE id = ?1 AND state = 'open'",
        [run.0],
        |row| row.get::<_, i64>(0),
    )?;
    let newest = newest_item(tx, run)?.map_or(i64::MIN, |(_, at_ms)| at_ms);
    match seen {
        Some(seen) if seen.max(newest) < ms => end(tx, run, RunState::Replaced, reason),
        _ => Ok(()),
    }
}

/// So many rows are dropped within one turn.
const DROPPED_AT_ONCE: i64 = 20_000;

/// Forgets a part of a run that is over. True when nothing of it is left.
pub(crate) fn forget(tx: &Tx<'_>, run: RunId) -> Result<bool> {
    let (first, last) = ids(run);
    let mut left = DROPPED_AT_ONCE;
    for sql in [
        "DELETE FROM main.journal_run_item WHERE id IN \
           (SELECT id FROM main.journal_run_item WHERE id BETWEEN ?1 AND ?2 LIMIT ?3)",
        "DELETE FROM main.journal_run_try WHERE id IN \
           (SELECT id FROM main.journal_run_try WHERE id BETWEEN ?1 AND ?2 LIMIT ?3)",
    ] {
        left -= tx.execute(sql, (first, last, left))? as i64;
        if left <= 0 {
            return Ok(false);
        }
    }
    tx.execute("DELETE FROM main.journal_run WHERE id = ?1 AND state <> 'open'", [run.0]).map(|_| true)
}
