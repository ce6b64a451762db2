//! Runs: how far each is, whether anybody is at work at it, what was set aside and why.

use rusqlite::{Connection, Row};
use serde::Serialize;

use super::inspector::Inspector;
use super::liveness::KernelLocks;
use super::value::{
    bytes, count, fingerprint_fields, hex, item_fields, number, number_or_zero, size, text, text_or_empty,
};
use crate::error::Result;
use crate::id::RunId;
use crate::lock::{Holder, file_name};
use crate::run::{ids, lock_name};

/// A run of a job, in one line.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct RunInfo {
    /// Its number.
    pub id: RunId,
    /// What it is called.
    pub job: String,
    /// `running` while the kernel says that the job's lock is held, and the session at work lives; of one that is to be gone
    /// on with `stopped`, `died` when its session ended without a word, `open` where the kernel does not tell; of one that
    /// is over `finished`, `abandoned` or `replaced`.
    pub state: String,
    /// Of what the job works on (`fingerprint` and `fingerprint_hex` in JSON).
    #[serde(flatten, serialize_with = "fingerprint_fields")]
    pub fingerprint: Vec<u8>,
    /// Items that are done and durable, over all sessions.
    pub banked: u64,
    /// How many items there are in all, where the job says so.
    pub expected: Option<u64>,
    /// False where there was too much to count: then there are at most `banked`, and at least as many set aside, failed and tried
    /// as is said.
    pub exact: bool,
    /// Items a second, from the start of the newest session to its newest item; none when there are fewer than two.
    pub rate: Option<f64>,
    /// Items that were tried as often as they may be.
    pub set_aside: u64,
    /// Items that failed, and are tried again.
    pub failed: u64,
    /// Items that are being tried, or that a session was trying when it died.
    pub trying: u64,
    /// When its newest item was banked.
    pub flushed_ms: Option<i64>,
    /// When it began.
    pub began_ms: i64,
    /// When the newest session started to work at it.
    pub started_ms: i64,
    /// When a session last said how its work ended.
    pub stopped_ms: Option<i64>,
    /// How many sessions worked at it.
    pub sessions: u64,
    /// Why the newest end came; empty while a session is at work, or died.
    pub reason: String,
    /// Who is at work at it, or died of it; none when a session has said how its work ended.
    pub holder: Option<Holder>,
}

/// A run in full: what `journalctl-kb runs show` shows.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct RunDetail {
    /// Its fields stand beside the others in JSON.
    #[serde(flatten)]
    pub run: RunInfo,
    /// Where the job goes on, in its own words: JSON as text.
    pub cursor: Option<String>,
    /// One that the job could not read.
    pub bad_cursor: Option<String>,
    /// Items that were tried and are not done: what was set aside, what failed, what is being tried; of each the newest first.
    pub tries: Vec<RunTry>,
    /// Items that are done, newest first.
    pub items: Vec<RunItem>,
}

/// An item that was tried and is not done.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct RunTry {
    /// Its name (`item` and `item_hex` in JSON).
    #[serde(flatten, serialize_with = "item_fields")]
    pub item: Vec<u8>,
    /// `aside`, `failed` or `trying`.
    pub state: String,
    /// How often.
    pub tries: u64,
    /// When that was noted.
    pub at_ms: i64,
    /// What came of the newest try; empty while nothing has.
    pub error: String,
}

/// An item that is done.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct RunItem {
    /// Its name (`item` and `item_hex` in JSON).
    #[serde(flatten, serialize_with = "item_fields")]
    pub item: Vec<u8>,
    /// When it was banked.
    pub at_ms: i64,
}

/// So many rows are counted for one answer, which is a fraction of a second.
const MOST_COUNTED: i64 = 5_000_000;
/// So many runs does `status` look at.
const FEW: i64 = 50;

/// A run with the lock that it is worked at under, if that is recorded. What is longer than anybody may write is cut.
const RUNS: &str = "SELECT r.id, substr(r.job, 1, 100) AS job, substr(r.fingerprint, 1, 4096) AS fingerprint, r.state, r.session,
      r.starts, r.began_ms, r.started_ms, r.started_at, r.stopped_ms, substr(r.reason, 1, 1000) AS reason, r.expected, r.banked,
      substr(r.cursor, 1, 65536) AS cursor, substr(r.bad_cursor, 1, 65536) AS bad_cursor,
      coalesce(l.pid, s.pid) AS pid, s.program, l.purpose, l.acquired_ms, l.heartbeat_ms, l.progress
    FROM main.journal_run AS r LEFT JOIN main.journal_session AS s ON s.id = r.session
      LEFT JOIN main.journal_lock AS l ON l.session = r.session AND l.name = 'run:' || r.job";

/// False in a journal that a version without runs made, and that nobody has migrated since.
fn are_known(connection: &Connection) -> rusqlite::Result<bool> {
    connection.query_row(
        "SELECT EXISTS (SELECT 1 FROM main.sqlite_schema WHERE type = 'table' AND name = 'journal_run')",
        (),
        |row| row.get(0),
    )
}

/// Those that are open, then the others, each newest first.
pub(super) fn runs(inspector: &Inspector, limit: Option<u64>) -> Result<Vec<RunInfo>> {
    let read = |connection: &Connection| {
        if !are_known(connection)? {
            return Ok(Vec::new());
        }
        let sql = format!("{RUNS} ORDER BY r.state = 'open' DESC, r.id DESC LIMIT ?1");
        let mut rows: Vec<RunInfo> =
            connection.prepare(&sql)?.query_map([at_most(limit)], info)?.collect::<rusqlite::Result<_>>()?;
        measure(connection, &mut rows, MOST_COUNTED)?;
        Ok(rows)
    };
    let mut runs = inspector.database.snapshot(read)?;
    judge(&mut runs, inspector, &KernelLocks::read());
    Ok(runs)
}

/// Those that are open, and of the other jobs the last one, if it left something aside.
pub(super) fn unfinished(connection: &Connection) -> rusqlite::Result<Vec<RunInfo>> {
    if !are_known(connection)? {
        return Ok(Vec::new());
    }
    let sql = format!(
        "{RUNS} WHERE r.state = 'open' OR (r.state = 'finished'
             AND r.id IN (SELECT max(id) FROM main.journal_run GROUP BY job)
             AND EXISTS (SELECT 1 FROM main.journal_run_try AS t WHERE t.state = 'aside'
               AND t.id BETWEEN r.id << 36 AND (r.id << 36) + 68719476735))
         ORDER BY r.state = 'open' DESC, r.id DESC LIMIT ?1"
    );
    let mut runs: Vec<RunInfo> = connection.prepare(&sql)?.query_map([FEW], info)?.collect::<rusqlite::Result<_>>()?;
    measure(connection, &mut runs, MOST_COUNTED)?;
    Ok(runs)
}

/// One run in full, by its number or as the newest one of its job.
pub(super) fn run(
    inspector: &Inspector,
    id: Option<RunId>,
    job: Option<&str>,
    limit: Option<u64>,
) -> Result<Option<RunDetail>> {
    let read = |connection: &Connection| {
        if !are_known(connection)? {
            return Ok(None);
        }
        let sql = format!("{RUNS} WHERE r.id = ?1 OR r.job = ?2 ORDER BY r.state = 'open' DESC, r.id DESC LIMIT 1");
        let mut statement = connection.prepare(&sql)?;
        let found = |row: &Row<'_>| Ok((info(row)?, text(row, "cursor"), text(row, "bad_cursor")));
        let found = statement.query_map((id.map(RunId::get), job), found)?.next().transpose()?;
        let Some((run, cursor, bad_cursor)) = found else { return Ok(None) };
        let mut runs = [run];
        measure(connection, &mut runs, MOST_COUNTED)?;
        let [run] = runs;
        let limit = at_most(limit);
        Ok(Some(RunDetail {
            cursor,
            bad_cursor,
            tries: tries(connection, run.id, limit)?,
            items: items(connection, run.id, limit)?,
            run,
        }))
    };
    let mut detail = inspector.database.snapshot(read)?;
    if let Some(detail) = &mut detail {
        judge(std::slice::from_mut(&mut detail.run), inspector, &KernelLocks::read());
    }
    Ok(detail)
}

/// A negative limit is none.
fn at_most(limit: Option<u64>) -> i64 {
    limit.map_or(-1, |limit| i64::try_from(limit).unwrap_or(i64::MAX))
}

/// A row of [`RUNS`], but for what has to be counted, and for what the kernel says.
fn info(row: &Row<'_>) -> rusqlite::Result<RunInfo> {
    let started_ms = number_or_zero(row, "started_ms");
    let state = text_or_empty(row, "state");
    let holder = bytes(row, "session").filter(|_| state == OPEN).map(|session| Holder {
        pid: number_or_zero(row, "pid"),
        program: text_or_empty(row, "program"),
        session: hex(session.get(..16).unwrap_or(session)),
        purpose: text_or_empty(row, "purpose"),
        since_ms: number(row, "acquired_ms").unwrap_or(started_ms),
        heartbeat_ms: number(row, "heartbeat_ms").unwrap_or(started_ms),
        progress: text_or_empty(row, "progress"),
    });
    Ok(RunInfo {
        id: RunId::from(number_or_zero(row, "id")),
        job: text_or_empty(row, "job"),
        state,
        fingerprint: bytes(row, "fingerprint").unwrap_or_default().to_vec(),
        banked: count(row, "banked"),
        expected: size(row, "expected"),
        exact: true,
        rate: None,
        set_aside: 0,
        failed: 0,
        trying: 0,
        flushed_ms: None,
        began_ms: number_or_zero(row, "began_ms"),
        started_ms,
        stopped_ms: number(row, "stopped_ms"),
        sessions: count(row, "starts"),
        reason: text_or_empty(row, "reason"),
        holder,
    })
}

/// Counts what the rows of items and tries say of these runs, at most so many rows in all.
fn measure(connection: &Connection, runs: &mut [RunInfo], most: i64) -> rusqlite::Result<()> {
    let mut left = most;
    let mut newest = connection.prepare(
        "SELECT i.id, i.at_ms, r.started_at FROM main.journal_run_item AS i, main.journal_run AS r
         WHERE i.id BETWEEN ?1 AND ?2 AND r.id = ?3 ORDER BY i.id DESC LIMIT 1",
    )?;
    let mut banked = connection.prepare(
        "SELECT count(*) AS many FROM (SELECT 1 FROM main.journal_run_item WHERE id BETWEEN ?1 AND ?2 LIMIT ?3)",
    )?;
    let mut tries = connection.prepare(
        "SELECT state, count(*) AS many FROM
           (SELECT state FROM main.journal_run_try WHERE id BETWEEN ?1 AND ?2 LIMIT ?3) GROUP BY state",
    )?;
    for run in runs {
        let (first, last) = ids(run.id);
        let row = |row: &Row<'_>| {
            Ok((number_or_zero(row, "id"), number_or_zero(row, "at_ms"), number_or_zero(row, "started_at")))
        };
        if let Some((id, at_ms, started_at)) = newest.query_map((first, last, run.id.get()), row)?.next().transpose()? {
            let next = id.saturating_sub(first).saturating_add(1);
            if run.state == OPEN {
                let counted: i64 = banked.query_row((first, last, left), |row| Ok(number_or_zero(row, "many")))?;
                run.exact = counted < left;
                left -= counted;
                // Where some could not be written their numbers are not used again.
                run.banked = u64::try_from(if run.exact { counted } else { next.max(counted) }).unwrap_or(0);
            }
            run.flushed_ms = Some(at_ms);
            let items = u64::try_from(next.saturating_sub(started_at)).unwrap_or(0).min(run.banked);
            let ms = at_ms.saturating_sub(run.started_ms);
            run.rate = (items > 1 && ms > 0).then(|| items as f64 * 1000.0 / ms as f64);
        }
        let mut seen = 0;
        let mut states = tries.query((first, last, left))?;
        while let Some(row) = states.next()? {
            seen += number_or_zero(row, "many");
            match text_or_empty(row, "state").as_str() {
                "aside" => run.set_aside = count(row, "many"),
                "trying" => run.trying = count(row, "many"),
                // What the engine takes for failed.
                _ => run.failed += count(row, "many"),
            }
        }
        run.exact &= seen < left;
        left -= seen;
    }
    Ok(())
}

/// The word in the database for one that is to be gone on with.
const OPEN: &str = "open";

/// Asks the kernel which of those that are open are being worked at.
pub(super) fn judge(runs: &mut [RunInfo], inspector: &Inspector, kernel: &KernelLocks) {
    for run in runs.iter_mut().filter(|run| run.state == OPEN) {
        let Some(holder) = &run.holder else {
            run.state = "stopped".into();
            continue;
        };
        let held = |file: std::path::PathBuf| kernel.holders(&file, &[holder.pid]).map(|pids| !pids.is_empty());
        // A name that no lock can have has no file, and no holder.
        let name = file_name(&lock_name(&run.job)).unwrap_or_default();
        let lock = held(inspector.state_dir.join("locks").join(name));
        // Whoever has the lock may be somebody else, about to go on or to set it right.
        let session = held(inspector.state_dir.join("sessions").join(format!("{}.lock", holder.session)));
        run.state = match (lock, session) {
            (Some(true), Some(true)) => "running",
            (Some(_), Some(_)) => "died",
            _ => OPEN,
        }
        .into();
    }
}

/// What was tried and is not done, at most so many of each kind.
fn tries(connection: &Connection, run: RunId, limit: i64) -> rusqlite::Result<Vec<RunTry>> {
    let (first, last) = ids(run);
    let mut statement = connection.prepare(
        "SELECT substr(item, 1, 4096) AS item, state, tries, at_ms, substr(error, 1, 1000) AS error
         FROM main.journal_run_try WHERE id BETWEEN ?1 AND ?2 AND state = ?3 ORDER BY id DESC LIMIT ?4",
    )?;
    let row = |row: &Row<'_>| {
        Ok(RunTry {
            item: bytes(row, "item").unwrap_or_default().to_vec(),
            state: text_or_empty(row, "state"),
            tries: count(row, "tries"),
            at_ms: number_or_zero(row, "at_ms"),
            error: text_or_empty(row, "error"),
        })
    };
    let mut tries = Vec::new();
    for state in ["aside", "failed", "trying"] {
        for found in statement.query_map((first, last, state, limit), row)? {
            tries.push(found?);
        }
    }
    Ok(tries)
}

fn items(connection: &Connection, run: RunId, limit: i64) -> rusqlite::Result<Vec<RunItem>> {
    let (first, last) = ids(run);
    let row = |row: &Row<'_>| {
        let item = bytes(row, "item").unwrap_or_default().to_vec();
        Ok(RunItem { item, at_ms: number_or_zero(row, "at_ms") })
    };
    connection
        .prepare(
            "SELECT substr(item, 1, 4096) AS item, at_ms FROM main.journal_run_item WHERE id BETWEEN ?1 AND ?2
             ORDER BY id DESC LIMIT ?3",
        )?
        .query_map((first, last, limit), row)?
        .collect()
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a database in memory, to read from")]
mod tests {
    use super::*;

    #[test]
    fn where_there_is_too_much_to_count_that_is_said() {
        let database = Connection::open_in_memory().unwrap();
        database.execute_batch(include_str!("../../schema.sql")).unwrap();
        database
            .execute_batch(
                "INSERT INTO journal_run (id, job, fingerprint, state, began_ms, started_ms, banked) VALUES
                   (1, 'a', x'', 'finished', 0, 0, 1000), (2, 'b', x'', 'open', 0, 0, NULL), (3, 'c', x'', 'open', 0, 0, NULL);
                 INSERT INTO journal_run_item SELECT (2 << 36) + value * 2, x'', value FROM json_each('[0,1,2,3,4,5,6,7]');
                 INSERT INTO journal_run_item SELECT (3 << 36) + value, x'', value FROM json_each('[0,1,2,3]');
                 INSERT INTO journal_run_try SELECT (2 << 36) + value, x'', 3, 'aside', 0, '' FROM json_each('[0,1,2]');
                 INSERT INTO journal_run_try SELECT (3 << 36) + value, x'', 3, 'failed', 0, '' FROM json_each('[0,1]');",
            )
            .unwrap();
        let measured = |most| {
            let mut statement = database.prepare(&format!("{RUNS} WHERE r.state = 'open' ORDER BY r.id DESC")).unwrap();
            let mut runs: Vec<_> = statement.query_map((), info).unwrap().map(Result::unwrap).collect();
            measure(&database, &mut runs, most).unwrap();
            // Of the last one first, as it is the newest.
            runs.iter().map(|run| (run.banked, run.set_aside + run.failed, run.exact)).collect::<Vec<_>>()
        };
        let all = [(4, 2, true), (8, 3, true)];
        assert_eq!(measured(100), all);
        assert_eq!(measured(18), all);
        assert_eq!(measured(17), [(4, 2, true), (8, 3, false)], "who has counted so many does not know of more");
        assert_eq!(measured(10), [(4, 2, true), (15, 0, false)], "by the newest number");
        assert_eq!(measured(0), [(4, 0, false), (15, 0, false)]);
    }
}
