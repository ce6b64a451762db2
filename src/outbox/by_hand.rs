//! The SQL of what a person says of messages.

use crate::error::Result;
use crate::store::Tx;

/// Which messages are meant.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Meant<'t> {
    /// The one with this number.
    One(i64),
    /// All that are parked.
    Parked,
    /// All of a topic that are parked.
    ParkedOf(&'t str),
    /// All of a topic, those that wait, too.
    AllOf(&'t str),
}

/// The numbers of those that are there, in order.
pub(crate) fn meant(tx: &Tx<'_>, which: Meant<'_>) -> Result<Vec<i64>> {
    const ONE: &str = "SELECT id FROM main.journal_outbox WHERE id = ?1";
    const PARKED: &str = "SELECT id FROM main.journal_outbox WHERE state <> 'pending'";
    const PARKED_OF: &str = "SELECT id FROM main.journal_outbox WHERE state <> 'pending' AND topic = ?1";
    const WAITING_OF: &str = "SELECT id FROM main.journal_outbox WHERE state = 'pending' AND topic = ?1";
    let mut found: Vec<i64> = match which {
        Meant::One(id) => tx.query_map(ONE, [id], |row| row.get(0))?,
        Meant::Parked => tx.query_map(PARKED, (), |row| row.get(0))?,
        Meant::ParkedOf(topic) | Meant::AllOf(topic) => tx.query_map(PARKED_OF, [topic], |row| row.get(0))?,
    };
    if let Meant::AllOf(topic) = which {
        found.extend(tx.query_map(WAITING_OF, [topic], |row| row.get::<_, i64>(0))?);
    }
    found.sort_unstable();
    Ok(found)
}

/// The topic of a message; none when it is not there, or its topic is none that anybody could drain.
pub(crate) fn topic_of(tx: &Tx<'_>, id: i64) -> Result<Option<String>> {
    let sql = "SELECT topic FROM main.journal_outbox WHERE id = ?1";
    Ok(tx.query_opt(sql, [id], |row| Ok(row.get::<_, String>(0).ok()))?.flatten())
}

/// What became of a message that was to wait again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Again {
    /// It waits, as if it had never been refused.
    Waits {
        /// And there is a newer one of its key.
        outdated: bool,
    },
    /// It was dropped: what its key stood for is gone since.
    Dropped,
    /// It is not there.
    Gone,
}

/// Has a message wait again. Where its key was retired after it, it is dropped, as it would be by whoever publishes it.
pub(crate) fn wait_again(tx: &Tx<'_>, id: i64) -> Result<Again> {
    let found = tx.query_opt(
        "SELECT o.version < coalesce(k.floor, o.version), o.version < coalesce(k.version, o.version) \
         FROM main.journal_outbox o LEFT JOIN main.journal_outbox_key k ON k.topic = o.topic AND k.key = o.key WHERE o.id = ?1",
        [id],
        |row| Ok((row.get::<_, bool>(0)?, row.get::<_, bool>(1)?)),
    )?;
    let Some((retired, outdated)) = found else { return Ok(Again::Gone) };
    if retired {
        return discard(tx, id).map(|_| Again::Dropped);
    }
    let sql = "UPDATE main.journal_outbox SET state = 'pending', attempts = 0 WHERE id = ?1";
    tx.execute(sql, [id])?;
    // A drainer that has passed by it looks again.
    tx.execute(
        "INSERT INTO main.journal_outbox_topic (topic, retried) SELECT topic, 1 FROM main.journal_outbox WHERE id = ?1 \
         ON CONFLICT (topic) DO UPDATE SET retried = retried + (retried < 9223372036854775807)",
        [id],
    )?;
    Ok(Again::Waits { outdated })
}

/// Removes a message. False when it is not there.
pub(crate) fn discard(tx: &Tx<'_>, id: i64) -> Result<bool> {
    Ok(tx.execute("DELETE FROM main.journal_outbox WHERE id = ?1", [id])? == 1)
}
