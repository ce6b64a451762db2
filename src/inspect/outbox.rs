//! The outbox: what of each topic waits, who is at it, what is parked and why.

use std::collections::BTreeMap;

use rusqlite::{Connection, Row};
use serde::Serialize;

use super::inspector::Inspector;
use super::liveness::KernelLocks;
use super::value::{bytes, count, hex, number, number_or_zero, payload_fields, text_or_empty};
use crate::error::Result;
use crate::id::TxnId;
use crate::lock::{Holder, file_name};
use crate::outbox::{lock_name, txn_of};

/// What is to be told to others: what `journalctl-kb status` shows of it.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct OutboxInfo {
    /// Messages that wait to be published.
    pub waiting: u64,
    /// When the oldest of them was committed.
    pub oldest_ms: Option<i64>,
    /// Messages that are left to a person.
    pub parked: u64,
    /// The topics of which something waits or is parked: the first 50.
    pub topics: Vec<TopicInfo>,
}

/// A topic of the outbox.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct TopicInfo {
    /// What it is called.
    pub topic: String,
    /// `publishing` while the kernel says that the topic's lock is held; `paused` while a drainer lives whose sink cannot be
    /// reached, or refuses too much; `waiting` when something waits, and nobody is at it at this moment; else `idle`.
    pub state: String,
    /// Messages that wait to be published.
    pub waiting: u64,
    /// When the oldest of them was committed.
    pub oldest_ms: Option<i64>,
    /// Messages that were refused too often, and are left to a person.
    pub parked: u64,
    /// Messages that were ever published.
    pub published: u64,
    /// When the newest of them was.
    pub published_ms: Option<i64>,
    /// Since when it is paused.
    pub paused_ms: Option<i64>,
    /// Why it is paused; empty when it is not.
    pub reason: String,
    /// Who has the topic's lock, or waits for the sink.
    pub holder: Option<Holder>,
}

/// A message, in one line.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct MessageInfo {
    /// Its number.
    pub id: i64,
    /// What it is about.
    pub topic: String,
    /// What of that.
    pub key: String,
    /// Which message of its key it is.
    pub version: i64,
    /// `waiting`; `refused` when it waits to be tried again; or `parked`.
    pub state: String,
    /// What the key stands for is gone: there is no payload.
    pub removal: bool,
    /// The size of its payload.
    pub bytes: u64,
    /// The transaction it was committed with.
    pub txn: TxnId,
    /// The fencing token of the lock that had.
    pub fence: i64,
    /// How often it was refused.
    pub attempts: u64,
    /// When it was committed.
    pub enqueued_ms: i64,
    /// When it was last refused.
    pub tried_ms: Option<i64>,
    /// Why; empty when it never was.
    pub error: String,
}

/// A message in full: what `journalctl-kb outbox show` shows.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct MessageDetail {
    /// Its fields stand beside the others in JSON.
    #[serde(flatten)]
    pub message: MessageInfo,
    /// The version of the newest message of its key; none when the key is not on record.
    pub newest: Option<i64>,
    /// Its key was retired after it: it is not published any more.
    pub retired: bool,
    /// The label of its transaction.
    pub label: String,
    /// What it says, its first 16 MiB (`payload` and `payload_hex` in JSON); none of a removal.
    #[serde(flatten, serialize_with = "payload_fields")]
    pub payload: Option<Vec<u8>>,
}

/// Which messages to list, in the order of their numbers.
#[derive(Clone, Debug, Default)]
pub struct MessageFilter {
    /// Those that are parked; else those that wait.
    pub parked: bool,
    /// Only those of this topic.
    pub topic: Option<String>,
    /// From this number on; none from the first.
    pub from: Option<i64>,
    /// At most so many; none for all.
    pub limit: Option<u64>,
}

/// So many topics are looked at.
const TOPICS: i64 = 1000;
/// So many of them are told of in `status`.
const FEW: usize = 50;

/// What is longer than anybody may write is cut.
const MESSAGE: &str = "o.id, substr(o.topic, 1, 100) AS topic, substr(o.key, 1, 1024) AS key, o.version, o.state, o.payload IS NULL AS removal,
    length(o.payload) AS bytes, o.fence, o.attempts, o.enqueued_ms, o.tried_ms, substr(o.error, 1, 1000) AS error";

/// False in a journal that a version without an outbox made, and that nobody has migrated since.
fn is_known(connection: &Connection) -> rusqlite::Result<bool> {
    let sql = "SELECT 1 FROM main.sqlite_schema WHERE type = 'table' AND name = 'journal_outbox'";
    connection.prepare(sql)?.exists(())
}

/// A topic as the rows have it.
#[derive(Debug)]
pub(super) struct Stored {
    info: TopicInfo,
    /// Who has the topic's lock, if that is still so.
    locked_by: Option<Holder>,
}

/// All topics that messages wait of, are parked of, or were published of, by name.
pub(super) fn topics(inspector: &Inspector) -> Result<Vec<TopicInfo>> {
    let stored = inspector.database.snapshot(topic_rows)?;
    Ok(judge(stored, inspector, &KernelLocks::read()))
}

/// Of these what `status` shows.
pub(super) fn summary(mut topics: Vec<TopicInfo>) -> OutboxInfo {
    topics.retain(|topic| topic.waiting > 0 || topic.parked > 0);
    let mut all = OutboxInfo::default();
    for topic in &topics {
        all.waiting += topic.waiting;
        all.parked += topic.parked;
        all.oldest_ms = all.oldest_ms.into_iter().chain(topic.oldest_ms).min();
    }
    topics.truncate(FEW);
    all.topics = topics;
    all
}

/// The topics, but for what the kernel says.
pub(super) fn topic_rows(connection: &Connection) -> rusqlite::Result<Vec<Stored>> {
    if !is_known(connection)? {
        return Ok(Vec::new());
    }
    let mut topics = BTreeMap::new();
    let mut each = |sql: &str, note: &mut dyn FnMut(&mut TopicInfo, &Row<'_>)| -> rusqlite::Result<()> {
        let mut statement = connection.prepare(sql)?;
        let mut rows = statement.query([TOPICS])?;
        while let Some(row) = rows.next()? {
            let name = text_or_empty(row, "topic");
            note(topics.entry(name.clone()).or_insert_with(|| TopicInfo::new(name)), row);
        }
        Ok(())
    };
    // The oldest is the first: numbers are in the order of commits.
    each(
        "SELECT substr(w.topic, 1, 100) AS topic, w.many, o.enqueued_ms FROM (SELECT topic, count(*) AS many, min(id) AS first
           FROM main.journal_outbox WHERE state = 'pending' GROUP BY topic LIMIT ?1) AS w
         LEFT JOIN main.journal_outbox AS o ON o.id = w.first",
        &mut |topic, row| {
            topic.waiting += count(row, "many");
            topic.oldest_ms = topic.oldest_ms.into_iter().chain(number(row, "enqueued_ms")).min();
        },
    )?;
    each(
        "SELECT substr(topic, 1, 100) AS topic, count(*) AS many FROM main.journal_outbox WHERE state <> 'pending'
         GROUP BY 1 LIMIT ?1",
        &mut |topic, row| topic.parked += count(row, "many"),
    )?;
    each(
        "SELECT substr(t.topic, 1, 100) AS topic, t.published, t.published_ms, t.paused_ms, substr(t.reason, 1, 1000) AS reason,
           t.session, s.pid, s.program
         FROM main.journal_outbox_topic AS t LEFT JOIN main.journal_session AS s ON s.id = t.session
         ORDER BY t.topic LIMIT ?1",
        &mut |topic, row| {
            topic.published = count(row, "published");
            topic.published_ms = number(row, "published_ms");
            topic.paused_ms = number(row, "paused_ms");
            topic.reason = text_or_empty(row, "reason");
            topic.holder = holder(row, topic.paused_ms.unwrap_or(0));
        },
    )?;
    let mut locked = connection.prepare(
        "SELECT l.session, coalesce(l.pid, s.pid) AS pid, s.program, l.purpose, l.acquired_ms, l.heartbeat_ms, l.progress
         FROM main.journal_lock AS l LEFT JOIN main.journal_session AS s ON s.id = l.session WHERE l.name = ?1",
    )?;
    let mut stored = Vec::new();
    for info in topics.into_values() {
        let row = |row: &Row<'_>| Ok(holder(row, number_or_zero(row, "acquired_ms")));
        let locked_by = locked.query_map([lock_name(&info.topic)], row)?.next().transpose()?.flatten();
        stored.push(Stored { info, locked_by });
    }
    Ok(stored)
}

/// Who a row's session is; none when it has none.
fn holder(row: &Row<'_>, since_ms: i64) -> Option<Holder> {
    bytes(row, "session").map(|session| Holder {
        pid: number_or_zero(row, "pid"),
        program: text_or_empty(row, "program"),
        session: hex(session.get(..16).unwrap_or(session)),
        purpose: text_or_empty(row, "purpose"),
        since_ms,
        heartbeat_ms: number(row, "heartbeat_ms").unwrap_or(since_ms),
        progress: text_or_empty(row, "progress"),
    })
}

impl TopicInfo {
    fn new(topic: String) -> Self {
        Self {
            topic,
            state: String::new(),
            waiting: 0,
            oldest_ms: None,
            parked: 0,
            published: 0,
            published_ms: None,
            paused_ms: None,
            reason: String::new(),
            holder: None,
        }
    }
}

/// Asks the kernel who is at which topic.
pub(super) fn judge(stored: Vec<Stored>, inspector: &Inspector, kernel: &KernelLocks) -> Vec<TopicInfo> {
    let judge = |Stored { mut info, locked_by }: Stored| {
        // A name that no lock can have has no file, and no holder.
        let lock = inspector.state_dir.join("locks").join(file_name(&lock_name(&info.topic)).unwrap_or_default());
        let suspects: Vec<i64> = locked_by.iter().map(|holder| holder.pid).collect();
        let held = kernel.holders(&lock, &suspects).is_some_and(|pids| !pids.is_empty());
        let paused = info.paused_ms.is_some()
            && info.holder.as_ref().is_some_and(|holder| {
                let session = inspector.state_dir.join("sessions").join(format!("{}.lock", holder.session));
                let lives = kernel.holders(&session, &[holder.pid]).is_none_or(|pids| !pids.is_empty());
                // Who asks its sink again has the lock for as long as that takes.
                let other = locked_by.as_ref().is_some_and(|locked_by| locked_by.session != holder.session);
                lives && !(held && other)
            });
        if !paused {
            (info.paused_ms, info.reason) = (None, String::new());
            info.holder = locked_by.filter(|_| held);
        }
        info.state = match (paused, held, info.waiting) {
            (true, ..) => "paused",
            (_, true, _) => "publishing",
            (.., 1..) => "waiting",
            (.., 0) => "idle",
        }
        .into();
        info
    };
    stored.into_iter().map(judge).collect()
}

/// The messages that pass the filter.
pub(super) fn messages(connection: &Connection, filter: &MessageFilter) -> rusqlite::Result<Vec<MessageInfo>> {
    if !is_known(connection)? {
        return Ok(Vec::new());
    }
    // Those that wait are mostly all there are: in the order of their numbers they are found by going through the table.
    let (table, state) = match (filter.parked, &filter.topic) {
        (true, _) => ("AS o", "<>"),
        (false, Some(_)) => ("AS o", "="),
        (false, None) => ("AS o NOT INDEXED", "="),
    };
    let of_topic = if filter.topic.is_some() { "AND o.topic = ?3" } else { "AND ?3 IS NULL" };
    let sql = format!(
        "SELECT {MESSAGE} FROM main.journal_outbox {table} WHERE o.state {state} 'pending' AND o.id >= ?1 {of_topic}
         ORDER BY o.id LIMIT ?2"
    );
    let from = filter.from.unwrap_or(i64::MIN);
    // A negative limit is none.
    let limit = filter.limit.map_or(-1, |limit| i64::try_from(limit).unwrap_or(i64::MAX));
    connection.prepare(&sql)?.query_map((from, limit, &filter.topic), message)?.collect()
}

/// One message in full.
pub(super) fn message_detail(connection: &Connection, id: i64) -> rusqlite::Result<Option<MessageDetail>> {
    if !is_known(connection)? {
        return Ok(None);
    }
    let sql = format!(
        "SELECT {MESSAGE}, k.version AS newest, o.version < k.floor AS retired, substr(t.label, 1, 1000) AS label,
           substr(o.payload, 1, 16777216) AS payload
         FROM main.journal_outbox AS o LEFT JOIN main.journal_outbox_key AS k ON k.topic = o.topic AND k.key = o.key
           LEFT JOIN main.journal_txn AS t ON t.id = ?2 WHERE o.id = ?1"
    );
    let row = |row: &Row<'_>| {
        Ok(MessageDetail {
            message: message(row)?,
            newest: number(row, "newest"),
            retired: number_or_zero(row, "retired") != 0,
            label: text_or_empty(row, "label"),
            payload: bytes(row, "payload").map(<[u8]>::to_vec),
        })
    };
    connection.prepare(&sql)?.query_map((id, txn_of(id)), row)?.next().transpose()
}

/// A row with what [`MESSAGE`] names.
fn message(row: &Row<'_>) -> rusqlite::Result<MessageInfo> {
    let (id, attempts) = (number_or_zero(row, "id"), count(row, "attempts"));
    let state = match text_or_empty(row, "state") {
        pending if pending == "pending" => if attempts > 0 { "refused" } else { "waiting" }.into(),
        other => other,
    };
    Ok(MessageInfo {
        id,
        topic: text_or_empty(row, "topic"),
        key: text_or_empty(row, "key"),
        version: number_or_zero(row, "version"),
        state,
        removal: number_or_zero(row, "removal") != 0,
        bytes: count(row, "bytes"),
        txn: TxnId::from(txn_of(id)),
        fence: number_or_zero(row, "fence"),
        attempts,
        enqueued_ms: number_or_zero(row, "enqueued_ms"),
        tried_ms: number(row, "tried_ms"),
        error: text_or_empty(row, "error"),
    })
}
