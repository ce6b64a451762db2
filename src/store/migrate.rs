//! Schemas: the engine's own, and the application's.

use rusqlite::OptionalExtension;

use super::turn::{Durability, Turn};
use super::tx::Tx;
use crate::error::{Error, Result, SqlContext};
use crate::time::now_ms;

/// The version `schema.sql` describes.
pub(crate) const SCHEMA_VERSION: i64 = 2;
const FRESH: &str = include_str!("../../schema.sql");
/// `STEPS[n]` leads from version n+1 to n+2. Append only: a journal in the field has run the ones before.
const STEPS: [&str; SCHEMA_VERSION as usize - 1] = ["
    CREATE TABLE journal_guard (
        id       INTEGER PRIMARY KEY,
        state    TEXT NOT NULL CHECK (state IN ('active', 'quarantined', 'ending')),
        lock     TEXT NOT NULL,
        session  BLOB NOT NULL,
        label    TEXT NOT NULL DEFAULT '',
        attempts INTEGER NOT NULL DEFAULT 0,
        began_ms INTEGER NOT NULL,
        fence    INTEGER NOT NULL DEFAULT 0,
        mark     BLOB NOT NULL DEFAULT x'',
        worker   BLOB,
        reason   TEXT,
        given_up_ms INTEGER
    ) STRICT;
    CREATE TABLE journal_preimage (
        id     INTEGER PRIMARY KEY,
        path   BLOB NOT NULL,
        record BLOB NOT NULL
    ) STRICT;
    CREATE TABLE journal_tree (
        id      INTEGER PRIMARY KEY,
        path    BLOB NOT NULL,
        writers TEXT NOT NULL CHECK (writers IN ('any', 'replacing', 'layer')),
        area    INTEGER NOT NULL,
        state   TEXT NOT NULL CHECK (state IN ('changing', 'true')),
        UNIQUE (path, writers)
    ) STRICT;
    CREATE TABLE journal_tree_dir (
        id       INTEGER PRIMARY KEY,
        tree     INTEGER NOT NULL,
        path     BLOB NOT NULL,
        ino      INTEGER NOT NULL,
        mtime_s  INTEGER NOT NULL,
        mtime_ns INTEGER NOT NULL,
        ctime_s  INTEGER NOT NULL,
        ctime_ns INTEGER NOT NULL,
        racy     INTEGER NOT NULL CHECK (racy IN (0, 1)),
        looks    INTEGER NOT NULL CHECK (looks IN (0, 1)),
        attrs    BLOB NOT NULL
    ) STRICT;
    CREATE INDEX journal_tree_dir_path ON journal_tree_dir (tree, path);
    CREATE TABLE journal_tree_part (
        id     INTEGER PRIMARY KEY,
        record BLOB NOT NULL
    ) STRICT;
    CREATE TABLE journal_guard_tree (
        guard INTEGER NOT NULL,
        tree  INTEGER NOT NULL,
        ready INTEGER NOT NULL CHECK (ready IN (0, 1)),
        began_s  INTEGER NOT NULL,
        began_ns INTEGER NOT NULL,
        PRIMARY KEY (guard, tree)
    ) STRICT, WITHOUT ROWID;
    ALTER TABLE journal_txn ADD COLUMN rolled_back INTEGER NOT NULL DEFAULT 0 CHECK (rolled_back IN (0, 1));
    ALTER TABLE journal_meta ADD COLUMN guard_floor INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE journal_meta ADD COLUMN home BLOB;
    ALTER TABLE journal_lock ADD COLUMN waits INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE journal_lock ADD COLUMN longest_wait_ms INTEGER NOT NULL DEFAULT 0;
    CREATE TABLE journal_wait (
        id       INTEGER PRIMARY KEY,
        lock     TEXT NOT NULL,
        session  BLOB NOT NULL,
        pid      INTEGER NOT NULL,
        since_ms INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE journal_run (
        id          INTEGER PRIMARY KEY,
        job         TEXT NOT NULL,
        fingerprint BLOB NOT NULL,
        state       TEXT NOT NULL CHECK (state IN ('open', 'finished', 'abandoned', 'replaced')),
        session     BLOB,
        starts      INTEGER NOT NULL DEFAULT 1,
        began_ms    INTEGER NOT NULL,
        started_ms  INTEGER NOT NULL,
        started_at  INTEGER NOT NULL DEFAULT 0,
        stopped_ms  INTEGER,
        reason      TEXT NOT NULL DEFAULT '',
        expected    INTEGER,
        banked      INTEGER,
        cursor      TEXT,
        bad_cursor  TEXT
    ) STRICT;
    CREATE UNIQUE INDEX journal_run_open ON journal_run (job) WHERE state = 'open';
    CREATE TABLE journal_run_item (
        id    INTEGER PRIMARY KEY,
        item  BLOB NOT NULL,
        at_ms INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE journal_run_try (
        id    INTEGER PRIMARY KEY,
        item  BLOB NOT NULL,
        tries INTEGER NOT NULL,
        state TEXT NOT NULL CHECK (state = 'trying' OR state = 'failed' OR state = 'aside'),
        at_ms INTEGER NOT NULL,
        error TEXT NOT NULL DEFAULT ''
    ) STRICT;
    CREATE TABLE journal_outbox (
        id          INTEGER PRIMARY KEY,
        topic       TEXT NOT NULL,
        key         TEXT NOT NULL,
        version     INTEGER NOT NULL,
        fence       INTEGER NOT NULL,
        state       TEXT NOT NULL CHECK (state IN ('pending', 'parked')),
        attempts    INTEGER NOT NULL DEFAULT 0,
        enqueued_ms INTEGER NOT NULL,
        tried_ms    INTEGER,
        error       TEXT NOT NULL DEFAULT '',
        payload     BLOB
    ) STRICT;
    CREATE INDEX journal_outbox_pending ON journal_outbox (topic) WHERE state = 'pending';
    CREATE INDEX journal_outbox_parked ON journal_outbox (id) WHERE state <> 'pending';
    CREATE TABLE journal_outbox_key (
        topic   TEXT NOT NULL,
        key     TEXT NOT NULL,
        version INTEGER NOT NULL,
        floor   INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (topic, key)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE journal_outbox_topic (
        topic        TEXT PRIMARY KEY,
        published    INTEGER NOT NULL DEFAULT 0,
        published_ms INTEGER,
        paused_ms    INTEGER,
        session      BLOB,
        reason       TEXT NOT NULL DEFAULT '',
        retried      INTEGER NOT NULL DEFAULT 0
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE journal_applied (
        consumer TEXT NOT NULL,
        topic    TEXT NOT NULL,
        key      TEXT NOT NULL,
        version  INTEGER NOT NULL,
        PRIMARY KEY (consumer, topic, key)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE journal_follower (
        name     TEXT PRIMARY KEY,
        position INTEGER NOT NULL,
        at_ms    INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE journal_blob_content (
        id        INTEGER PRIMARY KEY,
        hash      BLOB NOT NULL UNIQUE,
        size      INTEGER NOT NULL,
        direct    INTEGER NOT NULL,
        named     INTEGER NOT NULL,
        state     TEXT NOT NULL CHECK (state IN ('inline', 'staged', 'placed', 'unwanted')),
        name      TEXT,
        sealed_ms INTEGER NOT NULL,
        content   BLOB
    ) STRICT;
    CREATE INDEX journal_blob_content_todo ON journal_blob_content (state) WHERE state = 'staged' OR state = 'unwanted';
    CREATE TABLE journal_blob (
        id         TEXT PRIMARY KEY,
        state      TEXT NOT NULL CHECK (state IN ('writing', 'sealed', 'aborted', 'incomplete', 'removed')),
        content    INTEGER,
        session    BLOB,
        name       TEXT,
        written    INTEGER,
        created_ms INTEGER NOT NULL,
        ended_ms   INTEGER
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX journal_blob_writing ON journal_blob (state) WHERE state = 'writing';
"];

/// Brings the database to this library's schema, from nothing or from an older version. A newer one is refused before
/// anything is written.
pub(crate) fn engine_schema(turn: &mut Turn<'_>) -> Result<()> {
    if version(turn)? == Some(SCHEMA_VERSION) {
        return Ok(());
    }
    turn.write(Durability::Full, |tx| match version_in(tx)? {
        None => {
            tx.batch(FRESH, "creating the schema")?;
            tx.execute(
                "INSERT INTO main.journal_meta (id, schema, created_ms) VALUES (1, ?1, ?2)",
                (SCHEMA_VERSION, now_ms()),
            )
            .map(drop)
        }
        Some(from) => {
            let done = from.checked_sub(1).and_then(|done| usize::try_from(done).ok());
            let done = done.ok_or_else(|| Error::corrupt("journal_meta", format_args!("schema version {from}")))?;
            for step in STEPS.iter().skip(done) {
                tx.batch(step, "migrating the schema")?;
            }
            tx.execute("UPDATE main.journal_meta SET schema = ?1", [SCHEMA_VERSION]).map(drop)
        }
    })
}

fn version(turn: &Turn<'_>) -> Result<Option<i64>> {
    let found = turn.look(version_in)?;
    match found {
        Some(found) if found > SCHEMA_VERSION => {
            Err(Error::NewerSchema { path: turn.path().to_owned(), found, known: SCHEMA_VERSION })
        }
        other => Ok(other),
    }
}

fn version_in(tx: &Tx<'_>) -> Result<Option<i64>> {
    let has = tx.query_row("SELECT count(*) FROM main.sqlite_schema WHERE name = 'journal_meta'", (), |row| {
        row.get::<_, i64>(0)
    })?;
    if has == 0 {
        return Ok(None);
    }
    tx.prepare("SELECT schema FROM main.journal_meta WHERE id = 1")?
        .query_row((), |row| row.get(0))
        .optional()
        .during("reading the schema version")
}

/// Runs those of the application's steps that have not been run yet, each in a transaction of its own.
pub(crate) fn application(turn: &mut Turn<'_>, steps: &[&str]) -> Result<()> {
    const DONE: &str = "SELECT app_schema FROM main.journal_meta WHERE id = 1";
    loop {
        let done = turn.look(|tx| tx.query_row(DONE, (), |row| row.get::<_, i64>(0)))?;
        let done = usize::try_from(done).map_err(|error| Error::corrupt("journal_meta", error))?;
        if done > steps.len() {
            return Err(Error::NewerMigrations { found: done, known: steps.len() });
        }
        let Some(step) = steps.get(done) else { return Ok(()) };
        turn.write(Durability::Full, |tx| {
            tx.caller(|rows| rows.execute_batch(step))?;
            tx.execute("UPDATE main.journal_meta SET app_schema = app_schema + 1", ()).map(drop)
        })
        .map_err(|source| Error::Migration { step: done + 1, source: Box::new(source) })?;
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "databases in memory, to compare schemas")]
mod tests {
    use super::*;
    use rusqlite::Connection;

    fn schema_of(sql: &[&str]) -> Vec<String> {
        let conn = Connection::open_in_memory().unwrap();
        sql.iter().for_each(|sql| conn.execute_batch(sql).unwrap());
        let mut statement = conn.prepare("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY name").unwrap();
        let rows = statement.query_map((), |row| row.get::<_, String>(0)).unwrap();
        // Comments and line ends are not part of what a schema means.
        rows.map(|sql| {
            let lines = sql.unwrap();
            let bare = lines.lines().map(|line| line.split("--").next().unwrap_or_default());
            let bare = bare.flat_map(str::split_whitespace).collect::<Vec<_>>().join(" ");
            // ALTER TABLE breaks its lines elsewhere than people do.
            bare.replace(" ,", ",").replace(" )", ")")
        })
        .collect()
    }

    #[test]
    fn the_migrations_lead_to_the_fresh_schema() {
        let mut steps = vec![include_str!("../../tests/fixtures/schema-v1.sql")];
        steps.extend(STEPS);
        assert_eq!(schema_of(&steps), schema_of(&[FRESH]));
    }
}
