//! The transactions as they come, and who follows the changes under a name.

use std::collections::VecDeque;
use std::time::Duration;

use rusqlite::{Connection, Row};
use serde::Serialize;

use super::inspector::Inspector;
use super::model::{TransactionFilter, TransactionSummary};
use super::transactions;
use super::value::{number_or_zero, text_or_empty};
use crate::error::Result;
use crate::fs::bell::{Bell, Listener};
use crate::id::TxnId;
use crate::time::Deadline;
use crate::wait::StopToken;

/// Who follows the changes under a name: see [`Journal::follower`](crate::Journal::follower).
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct FollowerInfo {
    /// What it is called.
    pub name: String,
    /// The newest transaction that it is done with.
    pub position: TxnId,
    /// So many were committed since.
    pub behind: u64,
    /// False where that was too much to count: then it is at least so many.
    pub exact: bool,
    /// When it last went on.
    pub at_ms: i64,
}

/// So many followers are looked at.
const FOLLOWERS: i64 = 1000;
/// So many transactions are counted, for all of them together.
const MOST_COUNTED: i64 = 5_000_000;

/// All of them, by name.
pub(super) fn followers(connection: &Connection) -> rusqlite::Result<Vec<FollowerInfo>> {
    let known = "SELECT 1 FROM main.sqlite_schema WHERE type = 'table' AND name = 'journal_follower'";
    if !connection.prepare(known)?.exists(())? {
        return Ok(Vec::new());
    }
    let row = |row: &Row<'_>| {
        Ok(FollowerInfo {
            name: text_or_empty(row, "name"),
            position: TxnId::from(number_or_zero(row, "position")),
            behind: 0,
            exact: true,
            at_ms: number_or_zero(row, "at_ms"),
        })
    };
    let mut followers: Vec<FollowerInfo> = connection
        .prepare(
            "SELECT substr(name, 1, 1000) AS name, position, at_ms FROM main.journal_follower ORDER BY name LIMIT ?1",
        )?
        .query_map([FOLLOWERS], row)?
        .collect::<rusqlite::Result<_>>()?;
    let mut behind = connection.prepare(
        "SELECT count(*) AS many FROM (SELECT 1 FROM main.journal_txn WHERE id > ?1 AND rolled_back = 0 LIMIT ?2)",
    )?;
    let mut left = MOST_COUNTED;
    for follower in &mut followers {
        let counted: i64 = behind.query_row((follower.position.get(), left), |row| Ok(number_or_zero(row, "many")))?;
        follower.behind = u64::try_from(counted).unwrap_or(0);
        follower.exact = counted < left;
        left -= counted;
    }
    Ok(followers)
}

/// So many transactions are read at once.
const BATCH: i64 = 256;

/// Transactions, oldest first, and those that come; from [`Inspector::tail`].
#[derive(Debug)]
#[must_use = "iterators are lazy"]
pub struct Tail {
    inspector: Inspector,
    listener: Listener,
    stop: StopToken,
    since_ms: Option<i64>,
    /// The newest there was in the beginning: what comes after it is told whatever its time.
    there: TxnId,
    after: TxnId,
    ahead: VecDeque<TransactionSummary>,
}

impl Tail {
    pub(super) fn new(inspector: &Inspector, filter: TransactionFilter, stop: &StopToken) -> Result<Self> {
        // Heard from before the first look on, so that nothing falls in between.
        let listener = Bell::new()?.listen_on(&inspector.database.log_path());
        let (there, after) = inspector.database.snapshot(|connection| transactions::tail_start(connection, filter))?;
        Ok(Self {
            inspector: inspector.clone(),
            listener,
            stop: stop.clone(),
            since_ms: filter.since_ms,
            there,
            after,
            ahead: VecDeque::new(),
        })
    }

    /// The next one; none when there is none within this time, or it is to stop.
    pub fn next_within(&mut self, at_most: Duration) -> Result<Option<TransactionSummary>> {
        let Self { inspector, listener, stop, since_ms, there, after, ahead } = self;
        if ahead.is_empty() {
            let bell = listener.bell().clone();
            let _woken = stop.on_stop(move || bell.ring());
            let mut found = Ok(Vec::new());
            listener.wait_until(Deadline::after(at_most.min(stop.left())), true, |_| {
                if stop.requested() {
                    return true;
                }
                let read = |connection: &Connection| transactions::after(connection, *after, *there, *since_ms, BATCH);
                found = inspector.database.snapshot(read);
                found.as_ref().map_or(true, |found| !found.is_empty())
            });
            ahead.extend(found?);
        }
        let next = ahead.pop_front().filter(|_| !stop.requested());
        if let Some(next) = &next {
            *after = next.id;
        }
        Ok(next)
    }
}

impl Iterator for Tail {
    type Item = Result<TransactionSummary>;

    /// Waits for the next one; none once it is to stop.
    fn next(&mut self) -> Option<Self::Item> {
        self.next_within(Duration::MAX).transpose()
    }
}
