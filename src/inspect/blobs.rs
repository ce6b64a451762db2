//! Blobs: which there are, who writes them, where they stand.

mod content;
mod detail;
mod sums;
mod verify;

use std::collections::VecDeque;

use rusqlite::{Connection, Row};
use serde::Serialize;

use super::inspector::Inspector;
use super::liveness::KernelLocks;
use super::locks;
use super::model::SessionInfo;
use super::value::{bytes, count, hex, number, number_or_zero, size, text, text_or_empty};
use crate::blob::BlobFile;
use crate::error::Result;
use crate::fs::blob_files::{BlobFiles, FoundFile};
use crate::fs::blobs::Names;
pub use content::BlobFinding;
pub use detail::BlobDetail;
pub(super) use detail::{detail, ids};
pub use sums::{BlobsInfo, StrayBlob};
pub(super) use sums::{FEW_COUNTED, Sums, strays, summary, sums};
pub(super) use verify::verify;
pub use verify::{BlobCheck, BlobNews, BlobsVerified};

/// A blob, in one line.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct BlobInfo {
    /// What it is called: as its writer has named it, or `blake3:` and its hash.
    pub id: String,
    /// It is called by its content.
    pub by_content: bool,
    /// `sealed`; `writing` while its writer lives, by the kernel's word; `incomplete` when that has died; `aborted`; `removed`;
    /// `corrupt` when its row names content that is not there. Of content that is asked for by its hash and is no blob by itself:
    /// `named` while blobs with names say it, then `unwanted`.
    pub state: String,
    /// Its size; of one that was not sealed how much of it had left its writer, none where nobody knows.
    pub bytes: Option<u64>,
    /// Where a sealed one stands: `inline` in the database, `file` in `blobs/`, `stage` on its way there; `missing`; `unknown` where
    /// that cannot be looked at.
    pub place: Option<&'static str>,
    /// How many blobs say the same, this one included.
    pub same: u64,
    /// When it was begun; none of one that is called by its content.
    pub began_ms: Option<i64>,
    /// When it was sealed, given up or removed.
    pub ended_ms: Option<i64>,
    /// Who writes it, or has died of it.
    pub writer: Option<SessionInfo>,
}

/// Which blobs to list: those with a name, in the order of their names; or those that are called by their content, newest first.
#[derive(Clone, Debug, Default)]
pub struct BlobFilter {
    /// Those that are called by their content; else those with a name.
    pub by_content: bool,
    /// Only those in this state.
    pub state: Option<String>,
    /// Those that were removed, too.
    pub removed: bool,
}

/// Blobs, one after the other; from [`Inspector::blobs`]. However many there are, a thousand are in memory.
#[derive(Debug)]
#[must_use = "iterators are lazy"]
pub struct BlobList {
    inspector: Inspector,
    filter: BlobFilter,
    ahead: VecDeque<BlobInfo>,
    /// Where the next page begins; none when there is none.
    next: Option<Start>,
}

/// Where a page begins.
#[derive(Clone, Debug)]
enum Start {
    /// With this name, or behind it. Names need not be UTF-8.
    Name(Vec<u8>),
    /// With this content, or before it.
    Content(i64),
}

/// So many are read at once.
const PAGE: i64 = 1000;

/// What is longer than anybody may write is cut.
const NAMED: &str = "SELECT b.id AS key, substr(b.id, 1, 255) AS id, substr(b.state, 1, 20) AS state, b.written,
      substr(b.name, 1, 255) AS writing, b.created_ms, b.ended_ms, b.session, s.pid, s.program, s.opened_ms,
      c.id AS content, substr(c.hash, 1, 64) AS hash, c.size, c.direct, c.named, c.state AS kept, substr(c.name, 1, 255) AS file
    FROM main.journal_blob AS b LEFT JOIN main.journal_blob_content AS c ON c.id = b.content
      LEFT JOIN main.journal_session AS s ON s.id = b.session";
const BY_CONTENT: &str =
    "SELECT c.id AS content, substr(c.hash, 1, 64) AS hash, c.size, c.direct, c.named, c.state AS kept,
      substr(c.name, 1, 255) AS file, c.sealed_ms AS ended_ms FROM main.journal_blob_content AS c";

/// What was read of a blob.
#[derive(Clone, Debug)]
struct Stored {
    info: BlobInfo,
    /// Its name as it stands in the database.
    key: Vec<u8>,
    /// What it is called in the stage, while it is being written.
    writing: Option<String>,
    said: Option<Said>,
}

/// What a blob says, as the rows have it.
#[derive(Clone, Debug)]
struct Said {
    content: i64,
    hash: Vec<u8>,
    direct: u64,
    file: Option<BlobFile>,
    /// The file may still be in the stage.
    is_staged: bool,
}

/// False in a journal that a version without blobs made, and that nobody has migrated since.
fn are_known(connection: &Connection) -> rusqlite::Result<bool> {
    let sql = "SELECT 1 FROM main.sqlite_schema WHERE type = 'table' AND name = 'journal_blob_content'";
    connection.prepare(sql)?.exists(())
}

impl BlobList {
    pub(super) fn new(inspector: &Inspector, filter: BlobFilter) -> Self {
        let next = match (filter.by_content, filter.state.as_deref()) {
            (true, None | Some("sealed")) => Some(Start::Content(i64::MAX)),
            // There is none before it is sealed, nor when it is removed.
            (true, Some(_)) => None,
            (false, _) => Some(Start::Name(Vec::new())),
        };
        Self { inspector: inspector.clone(), filter, ahead: VecDeque::new(), next }
    }

    fn read(&mut self, from: &Start) -> Result<()> {
        let filter = &self.filter;
        let mut page = self.inspector.database.snapshot(|connection| page(connection, filter, from))?;
        // A page that is not full is the last.
        let last = page.last().filter(|_| page.len() as i64 == PAGE);
        self.next = last.and_then(|last| match &last.said {
            Some(said) if filter.by_content => said.content.checked_sub(1).map(Start::Content),
            // The next name there can be.
            _ => Some(Start::Name([&last.key[..], &[0]].concat())),
        });
        judge(&mut page, &self.inspector, &BlobFiles::of(&self.inspector.state_dir)?)?;
        let page = page.into_iter().map(|stored| stored.info);
        self.ahead.extend(page.filter(|blob| filter.passes(blob)));
        Ok(())
    }
}

impl Iterator for BlobList {
    type Item = Result<BlobInfo>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.ahead.is_empty() {
            let from = self.next.take()?;
            if let Err(error) = self.read(&from) {
                return Some(Err(error));
            }
        }
        self.ahead.pop_front().map(Ok)
    }
}

impl BlobFilter {
    /// The states in the database of what may pass.
    fn stored(&self) -> &'static str {
        match self.state.as_deref() {
            Some("writing") => "b.state = 'writing'",
            // Nobody may have noted yet that its writer has died.
            Some("incomplete") => "b.state IN ('writing', 'incomplete')",
            Some("sealed" | "corrupt") => "b.state = 'sealed'",
            Some("aborted") => "b.state = 'aborted'",
            Some("removed") => "b.state = 'removed'",
            _ if self.removed => "1",
            _ => "b.state <> 'removed'",
        }
    }

    fn passes(&self, blob: &BlobInfo) -> bool {
        self.state.as_ref().is_none_or(|state| *state == blob.state)
    }
}

fn page(connection: &Connection, filter: &BlobFilter, from: &Start) -> rusqlite::Result<Vec<Stored>> {
    if !are_known(connection)? {
        return Ok(Vec::new());
    }
    match from {
        Start::Name(from) => {
            let sql = format!("{NAMED} WHERE b.id >= CAST(?1 AS TEXT) AND {} ORDER BY b.id LIMIT ?2", filter.stored());
            connection.prepare(&sql)?.query_map((from, PAGE), stored)?.collect()
        }
        Start::Content(from) => {
            let sql = format!("{BY_CONTENT} WHERE c.direct > 0 AND c.id <= ?1 ORDER BY c.id DESC LIMIT ?2");
            connection.prepare(&sql)?.query_map((from, PAGE), stored)?.collect()
        }
    }
}

/// One with this name, as it stands in the database.
fn by_name(connection: &Connection, name: &[u8]) -> rusqlite::Result<Option<Stored>> {
    let sql = format!("{NAMED} WHERE b.id = CAST(?1 AS TEXT)");
    connection.prepare(&sql)?.query_map([name], stored)?.next().transpose()
}

/// A row of [`NAMED`] or [`BY_CONTENT`], but for what the kernel and the files say.
fn stored(row: &Row<'_>) -> rusqlite::Result<Stored> {
    let key = bytes(row, "key").map(<[u8]>::to_vec);
    let (named, direct) = (count(row, "named"), count(row, "direct"));
    let said = number(row, "content").map(|content| Said {
        content,
        hash: bytes(row, "hash").unwrap_or_default().to_vec(),
        direct,
        file: text(row, "file").map(|staged| BlobFile { content, staged }),
        is_staged: text_or_empty(row, "kept") == "staged",
    });
    let state = match (&key, text_or_empty(row, "state")) {
        (None, _) if direct > 0 => "sealed".into(),
        (None, _) => if named > 0 { "named" } else { "unwanted" }.into(),
        (Some(_), sealed) if sealed == "sealed" && said.is_none() => "corrupt".into(),
        (Some(_), other) => other,
    };
    let writer = bytes(row, "session").filter(|_| state == "writing").map(|session| SessionInfo {
        id: hex(session.get(..16).unwrap_or(session)),
        pid: number_or_zero(row, "pid"),
        program: text_or_empty(row, "program"),
        since_ms: number_or_zero(row, "opened_ms"),
        alive: None,
    });
    let id = match (&key, &said) {
        (None, Some(said)) => format!("blake3:{}", hex(&said.hash)),
        _ => text_or_empty(row, "id"),
    };
    let info = BlobInfo {
        id,
        by_content: key.is_none(),
        bytes: if said.is_some() { size(row, "size") } else { size(row, "written") },
        place: said.as_ref().map(|said| match (&said.file, said.is_staged) {
            (None, _) => "inline",
            (Some(_), true) => "stage",
            (Some(_), false) => "file",
        }),
        same: if said.is_some() { named.saturating_add(u64::from(direct > 0)) } else { 0 },
        began_ms: number(row, "created_ms"),
        ended_ms: number(row, "ended_ms"),
        state,
        writer,
    };
    Ok(Stored { info, key: key.unwrap_or_default(), writing: text(row, "writing"), said })
}

/// Asks the kernel who writes on, and looks how far they are, and where a file is that may still be in the stage.
fn judge(page: &mut [Stored], inspector: &Inspector, files: &BlobFiles) -> Result<()> {
    if page.iter().any(|stored| stored.info.state == "writing") {
        let kernel = KernelLocks::read();
        for stored in page.iter_mut().filter(|stored| stored.info.state == "writing") {
            if stored.writes(inspector, &kernel) {
                continue;
            }
            // It may have been sealed, and its writer have ended, since the row was read.
            let again = inspector.database.snapshot(|connection| by_name(connection, &stored.key))?;
            match again {
                Some(again) if again.info.state != "writing" => *stored = again,
                _ => stored.info.state = "incomplete".into(),
            }
        }
    }
    for stored in page {
        if let Some(writing) = &stored.writing {
            stored.info.bytes = Some(files.written(writing).unwrap_or(0));
        }
        if let Some(said) = stored.said.as_ref().filter(|said| said.is_staged) {
            stored.info.place = Some(said.find(files).map_or("unknown", |found| place(found.as_ref())));
        }
    }
    Ok(())
}

impl Stored {
    /// True while its writer lives, or nobody knows.
    fn writes(&mut self, inspector: &Inspector, kernel: &KernelLocks) -> bool {
        let Some(writer) = &mut self.info.writer else { return false };
        locks::judge_sessions(std::slice::from_mut(writer), &inspector.state_dir, kernel);
        writer.alive != Some(false)
    }
}

impl Said {
    /// Its file; none where it stands in the database, or is gone.
    fn find(&self, files: &BlobFiles) -> Result<Option<FoundFile>> {
        let Some(file) = &self.file else { return Ok(None) };
        let placed = file.name();
        files.find(Names { staged: &file.staged, placed: &placed })
    }
}

/// The processes that have the journal open, and may read a blob: where the kernel's list does not name who does, they are asked.
fn suspects(connection: &Connection) -> rusqlite::Result<Vec<i64>> {
    const MOST: usize = 20;
    Ok(locks::session_rows(connection)?.into_iter().take(MOST).map(|session| session.pid).collect())
}

/// Where a file was found.
fn place(found: Option<&FoundFile>) -> &'static str {
    match found {
        None => "missing",
        Some(found) if found.is_staged => "stage",
        Some(_) => "file",
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a database made by hand, to read from")]
mod tests {
    use super::*;

    #[test]
    fn who_sealed_it_and_ended_since_the_row_was_read_is_not_taken_for_dead() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join(".journal")).unwrap();
        let database = Connection::open(dir.path().join(".journal/journal.db")).unwrap();
        database.execute_batch(include_str!("../../schema.sql")).unwrap();
        database
            .execute_batch(
                "INSERT INTO journal_meta (id, schema, created_ms) VALUES (1, 1, 0);
                 INSERT INTO journal_blob (id, state, session, name, created_ms) VALUES
                   ('a', 'writing', zeroblob(16), 'x', 0), ('b', 'writing', zeroblob(16), 'y', 0);",
            )
            .unwrap();
        let inspector = Inspector::open(dir.path()).unwrap();
        let filter = BlobFilter::default();
        let read = |connection: &Connection| page(connection, &filter, &Start::Name(Vec::new()));
        let mut page = inspector.database.snapshot(read).unwrap();
        database
            .execute_batch(
                "INSERT INTO journal_blob_content VALUES (7, zeroblob(32), 1, 0, 1, 'inline', NULL, 0, x'00');
                 UPDATE journal_blob SET state = 'sealed', content = 7, session = NULL, name = NULL WHERE id = 'a'",
            )
            .unwrap();
        judge(&mut page, &inspector, &BlobFiles::of(&inspector.state_dir).unwrap()).unwrap();
        let states: Vec<_> = page.iter().map(|stored| (&*stored.info.state, stored.info.place)).collect();
        assert_eq!(states, [("sealed", Some("inline")), ("incomplete", None)]);
    }
}
