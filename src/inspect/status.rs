//! The journal as a whole, gathered from one snapshot, the kernel's list of locks and the sizes of files.

use std::fs;
use std::path::{Component, Path, PathBuf};

use rusqlite::{Connection, Row};

use super::feed::{self, FollowerInfo};
use super::inspector::Inspector;
use super::liveness::KernelLocks;
use super::model::{
    AreaUsage, EventInfo, GuardInfo, LockInfo, PathInfo, SessionInfo, StateCounts, Status, TransactionSummary,
    Unsettled, Waiting,
};
use super::runs::{self, RunInfo};
use super::value::{count, number_or_zero, path, text_or_empty};
use super::verdict::{Evidence, verdict};
use super::{blobs, guards, locks, outbox, transactions};
use crate::error::Result;
use crate::id::TxnId;
use crate::path::AREA_DIR;

/// How many events, held-up transactions, and paths of each are shown.
const EVENTS: i64 = 10;
const WAITING: i64 = 50;
const PATHS: i64 = 20;

/// What the rows say.
struct Stored {
    schema: i64,
    app_schema: i64,
    created_ms: i64,
    sessions: Vec<SessionInfo>,
    locks: Vec<LockInfo>,
    waits: Vec<locks::LongWait>,
    guards: Vec<GuardInfo>,
    runs: Vec<RunInfo>,
    topics: Vec<outbox::Stored>,
    blobs: blobs::Sums,
    followers: Vec<FollowerInfo>,
    transactions: StateCounts,
    unsettled: Unsettled,
    pending: Vec<Waiting>,
    quarantined: Vec<Waiting>,
    last_commit: Option<TransactionSummary>,
    events: Vec<EventInfo>,
    areas: Vec<PathBuf>,
}

pub(super) fn status(inspector: &Inspector) -> Result<Status> {
    let mut stored = inspector.database.snapshot(read)?;
    let kernel = KernelLocks::read();
    let state_dir = &inspector.state_dir;
    locks::judge_sessions(&mut stored.sessions, state_dir, &kernel);
    locks::judge_locks(&mut stored.locks, &stored.waits, state_dir, &kernel);
    guards::judge(&mut stored.guards, inspector, &kernel)?;
    runs::judge(&mut stored.runs, inspector, &kernel);
    let areas: Vec<PathBuf> = std::iter::once(state_dir.clone())
        .chain(stored.areas.iter().filter_map(|area| inside(&inspector.root, area)))
        .collect();
    let usage = |part: &str| {
        let mut usage = AreaUsage::default();
        areas.iter().for_each(|area| usage.add(&area.join(part)));
        usage
    };
    let sync_failed = fs::symlink_metadata(state_dir.join("sync-failed")).is_ok();
    let (health, advice) = verdict(&Evidence {
        transactions: &stored.transactions,
        sessions: &stored.sessions,
        guards: &stored.guards,
        pending: &stored.pending,
        quarantined: &stored.quarantined,
        sync_failed,
    });
    Ok(Status {
        root: inspector.root.clone(),
        state_dir: state_dir.clone(),
        database: inspector.database.path().to_owned(),
        health,
        advice,
        schema: stored.schema,
        app_schema: stored.app_schema,
        created_ms: stored.created_ms,
        database_bytes: fs::metadata(inspector.database.path()).map_or(0, |meta| meta.len()),
        wal_bytes: inspector.database.wal_bytes(),
        free_bytes: fs4::available_space(state_dir).ok(),
        stage: usage("stage"),
        history: usage("history"),
        quarantine: usage("quarantine"),
        sessions: stored.sessions,
        locks: stored.locks,
        turnstile: locks::turnstile(state_dir, &kernel),
        guards: stored.guards,
        runs: stored.runs,
        outbox: outbox::summary(outbox::judge(stored.topics, inspector, &kernel)),
        blobs: stored.blobs.judge(inspector, &kernel)?,
        followers: stored.followers,
        transactions: stored.transactions,
        unsettled: stored.unsettled,
        pending: stored.pending,
        quarantined: stored.quarantined,
        last_commit: stored.last_commit,
        events: stored.events,
        sync_failed,
    })
}

fn read(connection: &Connection) -> rusqlite::Result<Stored> {
    let (schema, app_schema, created_ms) = connection
        .prepare("SELECT schema, app_schema, created_ms FROM main.journal_meta WHERE id = 1")?
        .query_map((), |row| {
            Ok((number_or_zero(row, "schema"), number_or_zero(row, "app_schema"), number_or_zero(row, "created_ms")))
        })?
        .next()
        .transpose()?
        .unwrap_or_default();
    let (transactions, unsettled) = counts(connection)?;
    Ok(Stored {
        schema,
        app_schema,
        created_ms,
        sessions: locks::session_rows(connection)?,
        locks: locks::lock_rows(connection)?,
        waits: locks::wait_rows(connection)?,
        guards: guards::guard_rows(connection)?,
        runs: runs::unfinished(connection)?,
        topics: outbox::topic_rows(connection)?,
        blobs: blobs::sums(connection, blobs::FEW_COUNTED)?,
        followers: feed::followers(connection)?,
        transactions,
        unsettled,
        pending: waiting(connection, "pending")?,
        quarantined: waiting(connection, "quarantined")?,
        last_commit: transactions::newest_commit(connection)?,
        events: connection
            .prepare(
                "SELECT id, at_ms, level, kind, txn, path, details FROM main.journal_event
                 WHERE level IN ('warn', 'error') ORDER BY id DESC LIMIT ?1",
            )?
            .query_map([EVENTS], transactions::event)?
            .collect::<rusqlite::Result<_>>()?,
        areas: connection
            .prepare("SELECT path FROM main.journal_area ORDER BY id")?
            .query_map((), |row| Ok(path(row, "path").unwrap_or_default()))?
            .collect::<rusqlite::Result<_>>()?,
    })
}

/// Counts by state. Settled ones, the many, are what is left over: only the others are looked at one by one.
fn counts(connection: &Connection) -> rusqlite::Result<(StateCounts, Unsettled)> {
    let many = |sql: &str| connection.query_row(sql, (), |row| Ok(count(row, "many")));
    let total = many("SELECT count(*) AS many FROM main.journal_txn")?;
    let rolled_back = match guards::are_known(connection)? {
        true => many("SELECT count(*) AS many FROM main.journal_txn WHERE rolled_back = 1 AND state = 'settled'")?,
        false => 0,
    };
    let mut counts = StateCounts { total, rolled_back, ..StateCounts::default() };
    let mut unsettled = Unsettled::default();
    let mut statement = connection.prepare(
        "SELECT state, count(*) AS many, total(bytes) AS bytes FROM main.journal_txn WHERE state <> 'settled'
         GROUP BY state",
    )?;
    let mut rows = statement.query(())?;
    let mut others = 0;
    while let Some(row) = rows.next()? {
        let many = count(row, "many");
        others += many;
        // `total` gives a float and cannot overflow.
        let bytes = row.get::<_, f64>("bytes").unwrap_or(0.0).max(0.0) as u64;
        match text_or_empty(row, "state").as_str() {
            "committed" => counts.committed = many,
            "pending" => counts.pending = many,
            "applied" => counts.applied = many,
            "settling" => counts.settling = many,
            "quarantined" => {
                counts.quarantined = many;
                continue;
            }
            _ => counts.unknown += many,
        }
        unsettled.transactions += many;
        unsettled.bytes = unsettled.bytes.saturating_add(bytes);
    }
    counts.settled = total.saturating_sub(others).saturating_sub(rolled_back);
    Ok((counts, unsettled))
}

/// The transactions in a state that holds them up, with the paths that are still to do.
fn waiting(connection: &Connection, state: &str) -> rusqlite::Result<Vec<Waiting>> {
    let row = |row: &Row<'_>| {
        Ok(Waiting {
            id: TxnId::from(number_or_zero(row, "id")),
            label: text_or_empty(row, "label"),
            attempts: count(row, "attempts"),
            paths: Vec::new(),
            more_paths: 0,
            reason: None,
        })
    };
    let mut found: Vec<Waiting> = connection
        .prepare("SELECT id, label, attempts FROM main.journal_txn WHERE state = ?1 ORDER BY id LIMIT ?2")?
        .query_map((state, WAITING), row)?
        .collect::<rusqlite::Result<_>>()?;
    for waiting in &mut found {
        let id = waiting.id.get();
        for rows in [
            "main.journal_redo WHERE id BETWEEN ?1 * 1048576 AND ?1 * 1048576 + 1048575",
            "main.journal_change WHERE txn = ?1",
        ] {
            let sql = format!("SELECT path FROM {rows} ORDER BY 1 LIMIT ?2");
            waiting.paths = connection
                .prepare(&sql)?
                .query_map([id, PATHS], |row| Ok(PathInfo { path: path(row, "path").unwrap_or_default() }))?
                .collect::<rusqlite::Result<_>>()?;
            if !waiting.paths.is_empty() {
                let sql = format!("SELECT count(*) AS many FROM {rows}");
                let many = connection.query_row(&sql, [id], |row| Ok(count(row, "many")))?;
                waiting.more_paths = many.saturating_sub(waiting.paths.len() as u64);
                break;
            }
        }
        waiting.reason = connection
            .prepare(
                "SELECT id, at_ms, level, kind, txn, path, details FROM main.journal_event
                 WHERE txn = ?1 AND level <> 'info' ORDER BY id DESC LIMIT 1",
            )?
            .query_map([id], transactions::event)?
            .next()
            .transpose()?
            .map(|event| event.message);
    }
    Ok(found)
}

/// The engine's directory at the top of a mount, if it lies inside the root with no symlink on the way.
pub(super) fn inside(root: &Path, area: &Path) -> Option<PathBuf> {
    let mut path = root.to_owned();
    for part in area.components() {
        match part {
            Component::Normal(name) => path.push(name),
            Component::CurDir => continue,
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return None,
        }
        if !fs::symlink_metadata(&path).ok()?.is_dir() {
            return None;
        }
    }
    Some(path.join(AREA_DIR))
}
