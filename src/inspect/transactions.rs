//! Transactions: the listing, and one in full.

use std::path::PathBuf;

use rusqlite::{Connection, Row};

use super::guards::are_known;
use super::model::{ChangeInfo, EventInfo, RedoInfo, TransactionDetail, TransactionFilter, TransactionSummary};
use super::value::{bytes, count, hex, number, number_or_zero, path, size, text, text_or_empty};
use crate::id::TxnId;
use crate::journal::EventDetails;

/// What [`summary`] reads. A journal that knows no guards has not the last of them, and nothing was rolled back in it.
fn columns(connection: &Connection) -> rusqlite::Result<String> {
    let rolled_back = if are_known(connection)? { "rolled_back" } else { "0 AS rolled_back" };
    Ok(format!(
        "id, state, lock, fence, session, label, key, ran_sql, changes, bytes, history, attempts, began_ms, committed_ms,
         settled_ms, {rolled_back}"
    ))
}

/// The transactions that pass the filter, newest first.
pub(super) fn list(connection: &Connection, filter: TransactionFilter) -> rusqlite::Result<Vec<TransactionSummary>> {
    let columns = columns(connection)?;
    let sql = format!(
        "SELECT {columns} FROM main.journal_txn WHERE ?1 IS NULL OR committed_ms >= ?1 ORDER BY id DESC LIMIT ?2"
    );
    // A negative limit is none.
    let limit = filter.limit.map_or(-1, |limit| i64::try_from(limit).unwrap_or(i64::MAX));
    connection.prepare(&sql)?.query_map((filter.since_ms, limit), summary)?.collect()
}

/// The newest transaction there is, and the one behind which those begin that pass the filter.
pub(super) fn tail_start(connection: &Connection, filter: TransactionFilter) -> rusqlite::Result<(TxnId, TxnId)> {
    let number = |row: &Row<'_>| Ok(number_or_zero(row, "id"));
    let there = connection.query_row("SELECT coalesce(max(id), 0) AS id FROM main.journal_txn", (), number)?;
    let Some(limit) = filter.limit else { return Ok((TxnId::from(there), TxnId::from(i64::MIN))) };
    let oldest: i64 = connection.query_row(
        "SELECT coalesce(min(id), ?3 + 1) AS id FROM (SELECT id FROM main.journal_txn
           WHERE ?1 IS NULL OR committed_ms >= ?1 ORDER BY id DESC LIMIT ?2)",
        (filter.since_ms, i64::try_from(limit).unwrap_or(i64::MAX), there.min(i64::MAX - 1)),
        number,
    )?;
    Ok((TxnId::from(there), TxnId::from(oldest.saturating_sub(1))))
}

/// The next transactions, oldest first, at most so many; of those up to `there` only what was committed since that time.
pub(super) fn after(
    connection: &Connection,
    after: TxnId,
    there: TxnId,
    since_ms: Option<i64>,
    limit: i64,
) -> rusqlite::Result<Vec<TransactionSummary>> {
    let columns = columns(connection)?;
    let sql = format!(
        "SELECT {columns} FROM main.journal_txn WHERE id > ?1 AND (id > ?2 OR ?3 IS NULL OR committed_ms >= ?3)
         ORDER BY id LIMIT ?4"
    );
    connection.prepare(&sql)?.query_map((after.get(), there.get(), since_ms, limit), summary)?.collect()
}

/// The newest transaction that was not rolled back.
pub(super) fn newest_commit(connection: &Connection) -> rusqlite::Result<Option<TransactionSummary>> {
    let columns = columns(connection)?;
    let committed = if are_known(connection)? { "rolled_back = 0" } else { "true" };
    let sql = format!("SELECT {columns} FROM main.journal_txn WHERE {committed} ORDER BY id DESC LIMIT 1");
    connection.prepare(&sql)?.query_map((), summary)?.next().transpose()
}

/// One transaction with all that is known of it.
pub(super) fn detail(connection: &Connection, id: TxnId) -> rusqlite::Result<Option<TransactionDetail>> {
    let sql = format!("SELECT {} FROM main.journal_txn WHERE id = ?1", columns(connection)?);
    let Some(summary) = connection.prepare(&sql)?.query_map([id.get()], summary)?.next().transpose()? else {
        return Ok(None);
    };
    let program = connection
        .prepare(
            "SELECT s.program FROM main.journal_session AS s JOIN main.journal_txn AS t ON t.session = s.id
             WHERE t.id = ?1",
        )?
        .query_map([id.get()], |row| Ok(text_or_empty(row, "program")))?
        .next()
        .transpose()?;
    let paths = connection
        .prepare(
            "SELECT path, kind, origin, size, hash, old_size, preimage FROM main.journal_change
             WHERE txn = ?1 ORDER BY n",
        )?
        .query_map([id.get()], change)?
        .collect::<rusqlite::Result<_>>()?;
    let redo = connection
        .prepare(
            "SELECT path, length(content) AS held FROM main.journal_redo
             WHERE id BETWEEN ?1 * 1048576 AND ?1 * 1048576 + 1048575 ORDER BY id",
        )?
        .query_map([id.get()], |row| {
            Ok(RedoInfo { path: path(row, "path").unwrap_or_default(), inline_bytes: size(row, "held") })
        })?
        .collect::<rusqlite::Result<_>>()?;
    let events = connection
        .prepare(
            "SELECT id, at_ms, level, kind, txn, path, details FROM main.journal_event WHERE txn = ?1 ORDER BY id",
        )?
        .query_map([id.get()], event)?
        .collect::<rusqlite::Result<_>>()?;
    Ok(Some(TransactionDetail { summary, program, paths, redo, events }))
}

/// The events after one, oldest first.
pub(super) fn events(connection: &Connection, after: i64) -> rusqlite::Result<Vec<EventInfo>> {
    connection
        .prepare("SELECT id, at_ms, level, kind, txn, path, details FROM main.journal_event WHERE id > ?1 ORDER BY id")?
        .query_map([after], event)?
        .collect()
}

/// A row with what [`columns`] names.
fn summary(row: &Row<'_>) -> rusqlite::Result<TransactionSummary> {
    let state = text_or_empty(row, "state");
    // How it ended is one word to people, and two columns in the database, where `settled` means that nothing is to do.
    let rolled_back = state == "settled" && number_or_zero(row, "rolled_back") != 0;
    Ok(TransactionSummary {
        id: TxnId::from(number_or_zero(row, "id")),
        state: if rolled_back { "rolled_back".into() } else { state },
        label: text_or_empty(row, "label"),
        key: text(row, "key"),
        lock: text_or_empty(row, "lock"),
        fence: number_or_zero(row, "fence"),
        session: bytes(row, "session").map_or_else(String::new, hex),
        began_ms: number_or_zero(row, "began_ms"),
        committed_ms: number_or_zero(row, "committed_ms"),
        settled_ms: number(row, "settled_ms"),
        changes: count(row, "changes"),
        bytes: count(row, "bytes"),
        history_bytes: count(row, "history"),
        ran_sql: number_or_zero(row, "ran_sql") != 0,
        attempts: count(row, "attempts"),
    })
}

/// A row of `journal_event`.
pub(super) fn event(row: &Row<'_>) -> rusqlite::Result<EventInfo> {
    let details = bytes(row, "details").map(crate::codec::decode::<EventDetails>);
    Ok(EventInfo {
        id: number_or_zero(row, "id"),
        at_ms: number_or_zero(row, "at_ms"),
        level: text_or_empty(row, "level"),
        kind: text_or_empty(row, "kind"),
        txn: number(row, "txn").map(TxnId::from),
        path: path(row, "path"),
        message: match details {
            Some(Ok(details)) => details.message,
            Some(Err(_)) | None => "<unreadable>".into(),
        },
    })
}

fn change(row: &Row<'_>) -> rusqlite::Result<ChangeInfo> {
    // The root itself is stored as nothing.
    let named = |path: PathBuf| if path.as_os_str().is_empty() { ".".into() } else { path };
    Ok(ChangeInfo {
        path: named(path(row, "path").unwrap_or_default()),
        kind: text_or_empty(row, "kind"),
        from: path(row, "origin").map(named),
        bytes: size(row, "size"),
        old_bytes: size(row, "old_size"),
        hash: bytes(row, "hash").map(hex),
        has_old: text(row, "preimage").is_some(),
        kept_as: text(row, "preimage"),
    })
}
