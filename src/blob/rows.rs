//! The SQL of blobs, and of what they say.

use rusqlite::Row;

use super::name::BlobId;
use crate::error::{BlobError, Error, Result};
use crate::id::SessionId;
use crate::store::Tx;
use crate::time::now_ms;

/// What a blob says, and where that stands.
#[derive(Debug)]
pub(crate) struct Content {
    pub(crate) hash: [u8; 32],
    /// In bytes.
    pub(crate) size: u64,
    pub(crate) place: Place,
}

impl Content {
    /// The file that it stands in.
    pub(crate) fn file(&self) -> Option<&BlobFile> {
        match &self.place {
            Place::File(file) => Some(file),
            Place::Inline(_) => None,
        }
    }
}

/// Where content stands.
#[derive(Debug)]
pub(crate) enum Place {
    Inline(Vec<u8>),
    File(BlobFile),
}

/// A file that content stands in. It bears the number of the content as well, once it is where it stays: so whose it is can be
/// looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BlobFile {
    pub(crate) content: i64,
    /// In the stage.
    pub(crate) staged: String,
}

impl BlobFile {
    /// Its name in `blobs/`.
    pub(crate) fn name(&self) -> String {
        format!("{}.{}", self.content, self.staged)
    }

    /// The file of this name in `blobs/`; none when it is no name of ours.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        let (content, staged) = name.split_once('.')?;
        // IMPORTANT: what is none is somebody's, whatever else it looks like, and nobody removes it.
        let (session, number) = staged.split_once('-')?;
        SessionId::parse(session).filter(|known| known.to_string() == session)?;
        number.parse::<u64>().ok().filter(|known| known.to_string() == number)?;
        let file = Self { content: content.parse().ok()?, staged: staged.to_owned() };
        (file.name() == name).then_some(file)
    }
}

/// What is known of a blob.
#[derive(Debug)]
pub(crate) enum Found {
    Sealed(Content),
    /// Somebody writes it, or has died of it.
    Writing {
        session: SessionId,
        /// What it is called in the stage.
        name: String,
    },
    /// Its writer died, having written so many bytes.
    Incomplete(u64),
    Aborted,
    Unknown,
}

/// What a blob is called and says.
pub(crate) fn find(tx: &Tx<'_>, id: &BlobId) -> Result<Found> {
    if let Some(hash) = id.hash() {
        let sql = "SELECT hash, size, id, name, content FROM main.journal_blob_content WHERE hash = ?1 AND direct > 0";
        return tx.query_opt(sql, [&hash[..]], |row| content(row, 0))?.map_or(Ok(Found::Unknown), sealed);
    }
    let sql = "SELECT b.state, b.session, b.name, b.written, c.hash, c.size, c.id, c.name, c.content \
               FROM main.journal_blob b LEFT JOIN main.journal_blob_content c ON c.id = b.content WHERE b.id = ?1";
    let found = tx.query_opt(sql, [id.as_str()], |row| {
        let state: String = row.get(0)?;
        Ok(match state.as_str() {
            "sealed" => sealed(content(row, 4)?),
            "writing" => {
                let session: Vec<u8> = row.get(1)?;
                match SessionId::from_slice(&session) {
                    Some(session) => Ok(Found::Writing { session, name: row.get(2)? }),
                    None => Err(Error::corrupt(format!("blob {id}"), "its session is none")),
                }
            }
            "incomplete" => {
                Ok(Found::Incomplete(u64::try_from(row.get::<_, Option<i64>>(3)?.unwrap_or(0)).unwrap_or(0)))
            }
            "aborted" => Ok(Found::Aborted),
            _ => Ok(Found::Unknown),
        })
    })?;
    found.unwrap_or(Ok(Found::Unknown))
}

type Columns = (Option<Vec<u8>>, Option<i64>, Option<BlobFile>, Option<Vec<u8>>);

fn content(row: &Row<'_>, first: usize) -> rusqlite::Result<Columns> {
    let file = row.get::<_, Option<i64>>(first + 2)?.zip(row.get(first + 3)?);
    let file = file.map(|(content, staged)| BlobFile { content, staged });
    Ok((row.get(first)?, row.get(first + 1)?, file, row.get(first + 4)?))
}

fn sealed((hash, size, file, inline): Columns) -> Result<Found> {
    let hash = hash.and_then(|hash| <[u8; 32]>::try_from(hash).ok());
    let size = size.and_then(|size| u64::try_from(size).ok());
    let (Some(hash), Some(size)) = (hash, size) else {
        return Err(Error::corrupt("journal_blob_content", "there is no content where a blob says that it is"));
    };
    let place = match file {
        Some(file) => Place::File(file),
        None => Place::Inline(inline.unwrap_or_default()),
    };
    Ok(Found::Sealed(Content { hash, size, place }))
}

/// Records that a blob of this name is being written. [`BlobError::Exists`] when the name was used before.
pub(crate) fn announce(tx: &Tx<'_>, id: &BlobId, session: SessionId, name: &str) -> Result<()> {
    let announced = tx.execute(
        "INSERT INTO main.journal_blob (id, state, session, name, created_ms) VALUES (?1, 'writing', ?2, ?3, ?4) \
         ON CONFLICT (id) DO NOTHING",
        (id.as_str(), session.as_bytes(), name, now_ms()),
    )?;
    if announced == 0 { Err(BlobError::Exists { id: id.to_string() }.into()) } else { Ok(()) }
}

/// Records that its writer has given it up.
pub(crate) fn abort(tx: &Tx<'_>, id: &BlobId, session: SessionId) -> Result<()> {
    tx.execute(
        "UPDATE main.journal_blob SET state = 'aborted', session = NULL, name = NULL, ended_ms = ?3 \
         WHERE id = ?1 AND state = 'writing' AND session = ?2",
        (id.as_str(), session.as_bytes(), now_ms()),
    )
    .map(drop)
}

/// Content that a blob is to be sealed with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sealing<'s> {
    /// None: it is called by its content.
    pub(crate) id: Option<&'s BlobId>,
    pub(crate) session: SessionId,
    pub(crate) hash: &'s [u8; 32],
    pub(crate) size: u64,
    pub(crate) bytes: Bytes<'s>,
}

/// Where the content is that was written.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Bytes<'s> {
    Inline(&'s [u8]),
    /// In the stage.
    File(&'s str),
}

/// How a blob was sealed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sealed {
    pub(crate) content: i64,
    /// What was written is what it says from here on; else the same was there already.
    pub(crate) ours: bool,
}

/// Seals a blob. Where the same content is there already, and still whole, it is taken: `is_whole` looks at the size of a file.
/// What stands in the database is compared.
pub(crate) fn seal(tx: &Tx<'_>, blob: &Sealing<'_>, is_whole: impl Fn(&BlobFile, u64) -> bool) -> Result<Sealed> {
    let size = i64::try_from(blob.size).unwrap_or(i64::MAX);
    let (direct, named) = if blob.id.is_some() { (0, 1) } else { (1, 0) };
    let (state, name, inline) = match blob.bytes {
        Bytes::Inline(bytes) => ("inline", None, Some(bytes)),
        Bytes::File(name) => ("staged", Some(name), None),
    };
    let known = tx.query_opt(
        "SELECT id, size, name, iif(?2 IS NULL, coalesce(length(content), 0) = size, coalesce(content, x'') = ?2) \
         FROM main.journal_blob_content WHERE hash = ?1",
        (&blob.hash[..], inline),
        |row| Ok((row.get(0)?, row.get::<_, i64>(1)?, row.get::<_, Option<String>>(2)?, row.get::<_, bool>(3)?)),
    )?;
    let (content, ours): (i64, bool) = match known {
        None => {
            tx.execute(
                "INSERT INTO main.journal_blob_content (hash, size, direct, named, state, name, sealed_ms, content) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
                (&blob.hash[..], size, direct, named, state, name, now_ms(), inline),
            )?;
            (tx.last_insert_rowid(), true)
        }
        Some((id, there, file, is_same)) => {
            let whole = there == size
                && match file {
                    Some(staged) => is_whole(&BlobFile { content: id, staged }, blob.size),
                    None => is_same,
                };
            if whole {
                tx.execute(
                    "UPDATE main.journal_blob_content SET direct = direct + ?2, named = named + ?3, \
                       state = CASE state WHEN 'unwanted' THEN 'staged' ELSE state END WHERE id = ?1",
                    (id, direct, named),
                )?;
            } else {
                // What it said is damaged: all blobs that say so are whole again.
                tx.execute(
                    "UPDATE main.journal_blob_content SET direct = direct + ?2, named = named + ?3, size = ?4, \
                       state = ?5, name = ?6, content = ?7 WHERE id = ?1",
                    (id, direct, named, size, state, name, inline),
                )?;
            }
            (id, !whole)
        }
    };
    if let Some(id) = blob.id {
        let sealed = tx.execute(
            "UPDATE main.journal_blob SET state = 'sealed', content = ?3, session = NULL, name = NULL, ended_ms = ?4 \
             WHERE id = ?1 AND state = 'writing' AND session = ?2",
            (id.as_str(), blob.session.as_bytes(), content, now_ms()),
        )?;
        if sealed == 0 {
            return Err(BlobError::Aborted { id: id.to_string() }.into());
        }
    }
    Ok(Sealed { content, ours })
}

/// Removes a blob. What it said goes once no other blob says so: bytes in the database now, a file after this COMMIT.
/// [`BlobError::NotFound`]; [`Error::Busy`] while somebody writes it.
pub(crate) fn remove(tx: &Tx<'_>, id: &BlobId, is_alive: impl Fn(SessionId) -> bool) -> Result<()> {
    let gone = || Error::from(BlobError::NotFound { id: id.to_string() });
    let content: i64 = match id.hash() {
        Some(hash) => {
            let sql =
                "UPDATE main.journal_blob_content SET direct = direct - 1 WHERE hash = ?1 AND direct > 0 RETURNING id";
            tx.query_opt(sql, [&hash[..]], |row| row.get(0))?.ok_or_else(gone)?
        }
        None => {
            let sql = "SELECT state, content, session FROM main.journal_blob WHERE id = ?1";
            let row = |row: &Row<'_>| {
                Ok((row.get::<_, String>(0)?, row.get::<_, Option<i64>>(1)?, row.get::<_, Option<Vec<u8>>>(2)?))
            };
            let writes = |session: &[u8]| SessionId::from_slice(session).is_some_and(&is_alive);
            let content = match tx.query_opt(sql, [id.as_str()], row)? {
                Some((state, Some(content), _)) if state == "sealed" => content,
                Some((state, _, Some(session))) if state == "writing" && writes(&session) => {
                    let (what, holder) = (format!("blob {id}"), "its writer".to_owned());
                    return Err(Error::Busy { what, holder, waited: std::time::Duration::ZERO });
                }
                _ => return Err(gone()),
            };
            tx.execute(
                "UPDATE main.journal_blob SET state = 'removed', content = NULL, ended_ms = ?2 WHERE id = ?1",
                (id.as_str(), now_ms()),
            )?;
            let sql = "UPDATE main.journal_blob_content SET named = named - 1 WHERE id = ?1 AND named > 0";
            tx.execute(sql, [content])?;
            content
        }
    };
    let sql = "DELETE FROM main.journal_blob_content WHERE id = ?1 AND direct = 0 AND named = 0 AND name IS NULL";
    if tx.execute(sql, [content])? == 0 {
        tx.execute(
            "UPDATE main.journal_blob_content SET state = 'unwanted' WHERE id = ?1 AND direct = 0 AND named = 0",
            [content],
        )?;
    }
    Ok(())
}

/// A file of a blob that something is to be done with.
#[derive(Debug)]
pub(crate) struct Todo {
    pub(crate) file: BlobFile,
    /// It is to go; else it may still be in the stage.
    pub(crate) unwanted: bool,
}

/// Files that may still be in the stage, and those that are to go: the next behind `after`.
pub(crate) fn todo(tx: &Tx<'_>, after: i64, most: usize) -> Result<Vec<Todo>> {
    tx.query_map(
        "SELECT id, name, state = 'unwanted' FROM main.journal_blob_content \
         WHERE (state = 'staged' OR state = 'unwanted') AND id > ?1 AND name IS NOT NULL ORDER BY id LIMIT ?2",
        (after, most),
        |row| Ok(Todo { file: BlobFile { content: row.get(0)?, staged: row.get(1)? }, unwanted: row.get(2)? }),
    )
}

/// True when there is any such file.
pub(crate) fn has_todo(tx: &Tx<'_>) -> Result<bool> {
    tx.query_row(
        "SELECT EXISTS (SELECT 1 FROM main.journal_blob_content WHERE state = 'staged' OR state = 'unwanted')",
        (),
        |row| row.get(0),
    )
}

/// The file is where it stays, durably.
pub(crate) fn placed(tx: &Tx<'_>, BlobFile { content, staged }: &BlobFile) -> Result<()> {
    tx.execute(
        "UPDATE main.journal_blob_content SET state = 'placed' WHERE id = ?1 AND name = ?2 AND state = 'staged'",
        (content, staged),
    )
    .map(drop)
}

/// True when no blob says what is in this file.
pub(crate) fn is_unwanted(tx: &Tx<'_>, BlobFile { content, staged }: &BlobFile) -> Result<bool> {
    tx.query_row(
        "SELECT EXISTS (SELECT 1 FROM main.journal_blob_content \
         WHERE id = ?1 AND name = ?2 AND state = 'unwanted' AND direct = 0 AND named = 0)",
        (content, staged),
        |row| row.get(0),
    )
}

/// The file is gone, durably.
pub(crate) fn forget(tx: &Tx<'_>, BlobFile { content, staged }: &BlobFile) -> Result<()> {
    tx.execute(
        "DELETE FROM main.journal_blob_content \
         WHERE id = ?1 AND name = ?2 AND state = 'unwanted' AND direct = 0 AND named = 0",
        (content, staged),
    )
    .map(drop)
}

/// True when content stands in this file.
pub(crate) fn is_content(tx: &Tx<'_>, BlobFile { content, staged }: &BlobFile) -> Result<bool> {
    let sql = "SELECT EXISTS (SELECT 1 FROM main.journal_blob_content WHERE id = ?1 AND name = ?2)";
    tx.query_row(sql, (content, staged), |row| row.get(0))
}

/// A blob that somebody writes, or has died of.
#[derive(Debug)]
pub(crate) struct Written {
    pub(crate) id: String,
    pub(crate) session: Vec<u8>,
    pub(crate) name: String,
}

/// The blobs that are being written, or whose writers died.
pub(crate) fn written(tx: &Tx<'_>) -> Result<Vec<Written>> {
    tx.query_map(
        "SELECT id, coalesce(session, x''), coalesce(name, '') FROM main.journal_blob WHERE state = 'writing'",
        (),
        |row| Ok(Written { id: row.get(0)?, session: row.get(1)?, name: row.get(2)? }),
    )
}

/// Its writer died, having written so many bytes.
pub(crate) fn incomplete(tx: &Tx<'_>, Written { id, session, .. }: &Written, size: u64) -> Result<()> {
    tx.execute(
        "UPDATE main.journal_blob SET state = 'incomplete', written = ?3, session = NULL, name = NULL, ended_ms = ?4 \
         WHERE id = ?1 AND state = 'writing' AND coalesce(session, x'') = ?2",
        (id, session, i64::try_from(size).unwrap_or(i64::MAX), now_ms()),
    )
    .map(drop)
}
