//! The SQL of messages, and of their keys.

use rusqlite::Row;

use super::message::{Draft, Message};
use crate::error::{Error, Result};
use crate::fault::{Fault, planted};
use crate::id::{Fence, SessionId, TxnId};
use crate::store::Tx;
use crate::time::now_ms;

/// Messages of one transaction, at most: one integer is transaction and number.
const MOST_MESSAGES: i64 = 1 << 20;

/// Records the messages of a transaction, in order: each gets the next version of its key.
pub(crate) fn enqueue(tx: &Tx<'_>, txn: TxnId, fence: Fence, drafts: &[Draft]) -> Result<()> {
    if drafts.len() as i64 > MOST_MESSAGES {
        return Err(Error::TooLarge { what: "the number of messages of a transaction", limit: MOST_MESSAGES as u64 });
    }
    let Some(first) = txn.get().checked_mul(MOST_MESSAGES) else {
        return Err(Error::corrupt("the journal", format!("transaction {txn} has a number that none can have")));
    };
    let now = now_ms();
    for (n, Draft { topic, key, payload }) in (0..).zip(drafts) {
        // What is pending of a key that is gone is not published any more. No version is beyond the largest there can be.
        let supersedes = payload.is_none() && !planted(Fault::RetiredNotSuperseded);
        let version: i64 = tx.query_row(
            "INSERT INTO main.journal_outbox_key (topic, key, version, floor) VALUES (?1, ?2, 1, ?3) \
             ON CONFLICT (topic, key) DO UPDATE SET version = max(version, 0) + (version < 9223372036854775807), \
               floor = CASE WHEN ?3 THEN max(floor, max(version, 0) + (version < 9223372036854775807)) ELSE floor END \
             RETURNING version",
            (topic, key, supersedes),
            |row| row.get(0),
        )?;
        let version = if planted(Fault::VersionsOfWaiting) { version_of_waiting(tx, topic, key)? } else { version };
        tx.execute(
            "INSERT INTO main.journal_outbox (id, topic, key, version, payload, fence, state, enqueued_ms) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, 'pending', ?7)",
            (first + n, topic, key, version, payload, fence.get(), now),
        )?;
    }
    Ok(())
}

/// Counts from what still waits: a version that was published comes again.
fn version_of_waiting(tx: &Tx<'_>, topic: &str, key: &str) -> Result<i64> {
    let sql = "SELECT coalesce(max(version), 0) + 1 FROM main.journal_outbox WHERE topic = ?1 AND key = ?2";
    let version = tx.query_row(sql, (topic, key), |row| row.get(0))?;
    let sql = "UPDATE main.journal_outbox_key SET version = ?3 WHERE topic = ?1 AND key = ?2";
    tx.execute(sql, (topic, key, version)).map(|_| version)
}

/// A message that waits, and which versions of its key there are.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) id: i64,
    /// Or why its row cannot be read.
    pub(crate) message: std::result::Result<Message, String>,
    version: i64,
    newest: i64,
    floor: i64,
}

impl Waiting {
    fn size(&self) -> usize {
        self.message.as_ref().map_or(0, |message| message.payload.len())
    }

    /// True when nobody needs to hear of it any more.
    pub(crate) fn is_superseded(&self, by_newer: bool) -> bool {
        self.version < if by_newer { self.newest } else { self.floor }
    }
}

fn waiting(row: &Row<'_>) -> rusqlite::Result<Waiting> {
    Ok(Waiting {
        id: row.get(0)?,
        message: message(row).map_err(|error| error.to_string()),
        version: row.get(3)?,
        newest: row.get(8)?,
        floor: row.get(9)?,
    })
}

fn message(row: &Row<'_>) -> rusqlite::Result<Message> {
    let id: i64 = row.get(0)?;
    let payload: Option<Vec<u8>> = row.get(4)?;
    Ok(Message {
        id,
        topic: row.get(1)?,
        key: row.get(2)?,
        version: row.get(3)?,
        is_removal: payload.is_none(),
        payload: payload.unwrap_or_default(),
        fence: Fence(row.get(5)?),
        txn: TxnId(txn_of(id)),
        attempts: row.get(6)?,
        enqueued_ms: row.get(7)?,
    })
}

/// The statement that reads those of the messages that wait for which this holds.
macro_rules! waiting_where {
    ($condition:literal) => {
        // One whose key is not there is no less a message.
        concat!(
            "SELECT o.id, o.topic, o.key, o.version, o.payload, o.fence, o.attempts, o.enqueued_ms, \
               coalesce(k.version, o.version), coalesce(k.floor, 0) \
             FROM main.journal_outbox o LEFT JOIN main.journal_outbox_key k ON k.topic = o.topic AND k.key = o.key \
             WHERE o.topic = ?1 AND o.state = 'pending' AND ",
            $condition
        )
    };
}

/// The next messages of a topic behind `after`, in order: at most so many, and no more than so many bytes beyond the first.
pub(crate) fn next_waiting(tx: &Tx<'_>, topic: &str, after: i64, most: usize, bytes: usize) -> Result<Vec<Waiting>> {
    let mut statement = tx.prepare(waiting_where!("o.id > ?2 ORDER BY o.id LIMIT ?3"))?;
    let mut left = bytes;
    let mut rows = statement.query((topic, after, most)).map_err(|error| Error::sql(READING, error))?;
    let mut found = Vec::new();
    while let Some(row) = rows.next().map_err(|error| Error::sql(READING, error))? {
        let next = waiting(row).map_err(|error| Error::corrupt("a message", error))?;
        if next.size() > left && !found.is_empty() {
            break;
        }
        left = left.saturating_sub(next.size());
        found.push(next);
    }
    Ok(found)
}

/// Those of a topic with these numbers that still wait, and how many numbers were looked at: no more, either, than come to so many
/// bytes beyond the first.
pub(crate) fn these_waiting(tx: &Tx<'_>, topic: &str, ids: &[i64], bytes: usize) -> Result<(Vec<Waiting>, usize)> {
    let mut left = bytes;
    let mut found: Vec<Waiting> = Vec::new();
    for (read, id) in ids.iter().enumerate() {
        let next = tx.query_opt(waiting_where!("o.id = ?2"), (topic, id), waiting)?;
        let size = next.as_ref().map_or(0, Waiting::size);
        if size > left && !found.is_empty() {
            return Ok((found, read));
        }
        left = left.saturating_sub(size);
        found.extend(next);
    }
    Ok((found, ids.len()))
}

const READING: &str = "reading messages";

/// True when the message with this number still waits.
pub(crate) fn still_waits(tx: &Tx<'_>, id: i64) -> Result<bool> {
    let sql = "SELECT EXISTS (SELECT 1 FROM main.journal_outbox WHERE id = ?1 AND state = 'pending')";
    tx.query_row(sql, [id], |row| row.get(0))
}

/// How many messages of a topic wait.
pub(crate) fn backlog(tx: &Tx<'_>, topic: &str) -> Result<u64> {
    let sql = "SELECT count(*) FROM main.journal_outbox WHERE topic = ?1 AND state = 'pending'";
    tx.query_row(sql, [topic], |row| row.get(0))
}

/// True when any message of a topic waits that is newer than `after`.
pub(crate) fn is_waiting(tx: &Tx<'_>, topic: &str, after: i64) -> Result<bool> {
    let sql = "SELECT EXISTS (SELECT 1 FROM main.journal_outbox WHERE topic = ?1 AND state = 'pending' AND id > ?2)";
    tx.query_row(sql, (topic, after), |row| row.get(0))
}

/// It was published, or is not to be.
pub(crate) fn delivered(tx: &Tx<'_>, id: i64) -> Result<()> {
    tx.execute("DELETE FROM main.journal_outbox WHERE id = ?1", [id]).map(drop)
}

/// It was refused once more; with `park` for the last time.
pub(crate) fn refused(tx: &Tx<'_>, id: i64, why: &str, park: bool) -> Result<()> {
    tx.execute(
        "UPDATE main.journal_outbox SET attempts = attempts + 1, error = ?2, tried_ms = ?3, \
           state = CASE WHEN ?4 THEN 'parked' ELSE state END WHERE id = ?1 AND state = 'pending'",
        (id, why, now_ms(), park),
    )
    .map(drop)
}

/// The transaction that a message was committed with.
pub(crate) fn txn_of(id: i64) -> i64 {
    id / MOST_MESSAGES
}

/// Counts what was published.
pub(crate) fn count_published(tx: &Tx<'_>, topic: &str, published: u64) -> Result<()> {
    if published == 0 {
        return Ok(());
    }
    tx.execute(
        "INSERT INTO main.journal_outbox_topic (topic, published, published_ms) VALUES (?1, ?2, ?3) \
         ON CONFLICT (topic) DO UPDATE SET published = published + excluded.published, published_ms = excluded.published_ms",
        (topic, published, now_ms()),
    )
    .map(drop)
}

/// How many messages of a topic people have had tried again.
pub(crate) fn retried(tx: &Tx<'_>, topic: &str) -> Result<i64> {
    let sql = "SELECT retried FROM main.journal_outbox_topic WHERE topic = ?1";
    Ok(tx.query_opt(sql, [topic], |row| row.get(0))?.unwrap_or(0))
}

/// Records for people why a topic waits, or that it waits no more.
pub(crate) fn note_pause(tx: &Tx<'_>, topic: &str, session: SessionId, why: Option<&str>) -> Result<()> {
    let paused_ms = why.map(|_| now_ms());
    // Since when: while the very same drainer cannot reach its sink, from the first time on.
    tx.execute(
        "INSERT INTO main.journal_outbox_topic (topic, paused_ms, session, reason) VALUES (?1, ?2, ?3, ?4) \
         ON CONFLICT (topic) DO UPDATE SET session = excluded.session, reason = excluded.reason, paused_ms = \
           CASE WHEN excluded.paused_ms IS NULL OR session IS NOT excluded.session THEN excluded.paused_ms \
             ELSE coalesce(paused_ms, excluded.paused_ms) END",
        (topic, paused_ms, why.map(|_| session.as_bytes().to_vec()), why.unwrap_or_default()),
    )
    .map(drop)
}

/// Records that a consumer applies a message, with its own rows. False when it has applied this one, or a newer one of the key.
pub(crate) fn apply(tx: &Tx<'_>, consumer: &str, message: &Message) -> Result<bool> {
    let version = i64::try_from(message.version).unwrap_or(i64::MAX);
    let applied = tx.execute(
        "INSERT INTO main.journal_applied (consumer, topic, key, version) VALUES (?1, ?2, ?3, ?4) \
         ON CONFLICT (consumer, topic, key) DO UPDATE SET version = excluded.version WHERE excluded.version > version",
        (consumer, &message.topic, &message.key, version),
    )?;
    Ok(applied == 1)
}
