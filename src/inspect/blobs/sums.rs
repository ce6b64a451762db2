//! Blobs as a whole: how many, how large, what is still to go, what nobody refers to.

use std::path::PathBuf;

use rusqlite::{Connection, Row};
use serde::Serialize;

use super::{are_known, suspects};
use crate::blob::{self, BlobFile};
use crate::error::Result;
use crate::fs::blob_files::BlobFiles;
use crate::fs::blobs::Names;
use crate::inspect::inspector::Inspector;
use crate::inspect::liveness::KernelLocks;
use crate::inspect::locks;
use crate::inspect::model::SessionInfo;
use crate::inspect::value::{bytes, count, file_fields, hex, number_or_zero, text, text_or_empty};

/// Blobs as a whole. What is damaged nobody knows before it is read: see [`Inspector::verify_blobs`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct BlobsInfo {
    /// Blobs that are sealed: those with a name, and those that are called by their content.
    pub sealed: u64,
    /// What they say, each content once.
    pub contents: u64,
    /// The sizes of these, added up.
    pub bytes: u64,
    /// So much more it would be if every blob had its content to itself.
    pub saved_bytes: u64,
    /// Blobs with a name that are being written.
    pub writing: u64,
    /// Those whose writers died.
    pub incomplete: u64,
    /// Those that were given up.
    pub aborted: u64,
    /// Those that were removed: no name is used twice.
    pub removed: u64,
    /// Content that no blob says any more and whose file is still to go.
    pub unwanted: u64,
    /// The sizes of these, added up.
    pub unwanted_bytes: u64,
    /// How many of these somebody reads, so that they stay; of the first 100.
    pub unwanted_read: u64,
    /// False where there was too much to count: then there is at least so much.
    pub exact: bool,
}

/// A file among those of blobs that nothing refers to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct StrayBlob {
    /// Where it lies (`file` and `file_hex` in JSON).
    #[serde(flatten, serialize_with = "file_fields")]
    pub file: PathBuf,
    /// Its size.
    pub bytes: u64,
}

/// So many rows are counted for the sums of a list, and so many for a status, which is a fraction of a second.
const MOST_COUNTED: i64 = 2_000_000;
pub(in crate::inspect) const FEW_COUNTED: i64 = 200_000;
/// So many sessions that write are looked at, and so many files that are to go.
const WRITERS: i64 = 1000;
const UNWANTED: i64 = 100;
/// So many names are compared with the rows at once.
const NAMES: usize = 1000;

/// What the rows say.
#[derive(Debug)]
pub(in crate::inspect) struct Sums {
    info: BlobsInfo,
    /// Who writes, and how many each.
    writers: Vec<(Option<SessionInfo>, u64)>,
    unwanted: Vec<BlobFile>,
    /// Who may read these.
    suspects: Vec<i64>,
}

pub(in crate::inspect) fn summary(inspector: &Inspector) -> Result<BlobsInfo> {
    let sums = inspector.database.snapshot(|connection| sums(connection, MOST_COUNTED))?;
    sums.judge(inspector, &KernelLocks::read())
}

/// Counts, of each table at most so many rows.
pub(in crate::inspect) fn sums(connection: &Connection, most: i64) -> rusqlite::Result<Sums> {
    let mut info = BlobsInfo { exact: true, ..BlobsInfo::default() };
    if !are_known(connection)? {
        return Ok(Sums { info, writers: Vec::new(), unwanted: Vec::new(), suspects: Vec::new() });
    }
    // `total` gives a float and cannot overflow.
    let total = |row: &Row<'_>, column: &str| row.get::<_, f64>(column).unwrap_or(0.0).max(0.0) as u64;
    connection.query_row(
        "SELECT count(*) AS many, total(blobs) AS blobs, total(blobs > 0) AS contents, total(iif(blobs > 0, size, 0)) AS bytes,
           total(iif(blobs > 1, (blobs - 1) * size, 0)) AS saved
         FROM (SELECT max(size, 0) AS size, max(named, 0) + (direct > 0) AS blobs FROM main.journal_blob_content LIMIT ?1)",
        [most],
        |row| {
            info.exact = number_or_zero(row, "many") < most;
            (info.sealed, info.contents) = (total(row, "blobs"), total(row, "contents"));
            (info.bytes, info.saved_bytes) = (total(row, "bytes"), total(row, "saved"));
            Ok(())
        },
    )?;
    connection.query_row(
        "SELECT count(*) AS many, total(size) AS bytes
         FROM (SELECT max(size, 0) AS size FROM main.journal_blob_content WHERE state = 'unwanted' LIMIT ?1)",
        [most],
        |row| {
            (info.unwanted, info.unwanted_bytes) = (count(row, "many"), total(row, "bytes"));
            Ok(())
        },
    )?;
    let mut statement = connection
        .prepare("SELECT state, count(*) AS many FROM (SELECT state FROM main.journal_blob LIMIT ?1) GROUP BY state")?;
    let mut states = statement.query([most])?;
    let mut counted = 0;
    while let Some(row) = states.next()? {
        counted += number_or_zero(row, "many");
        match text_or_empty(row, "state").as_str() {
            "incomplete" => info.incomplete = count(row, "many"),
            "aborted" => info.aborted = count(row, "many"),
            "removed" => info.removed = count(row, "many"),
            // Sealed ones are counted by what they say, and those that are being written by who does.
            _ => {}
        }
    }
    info.exact &= counted < most;
    let writer = |row: &Row<'_>| {
        let session = bytes(row, "session").map(|session| SessionInfo {
            id: hex(session.get(..16).unwrap_or(session)),
            pid: number_or_zero(row, "pid"),
            program: String::new(),
            since_ms: 0,
            alive: None,
        });
        Ok((session, count(row, "many")))
    };
    let writers = connection
        .prepare(
            "SELECT b.session, s.pid, count(*) AS many FROM main.journal_blob AS b
               LEFT JOIN main.journal_session AS s ON s.id = b.session WHERE b.state = 'writing' GROUP BY b.session LIMIT ?1",
        )?
        .query_map([WRITERS], writer)?
        .collect::<rusqlite::Result<_>>()?;
    let file = |row: &Row<'_>| Ok((number_or_zero(row, "id"), text(row, "name")));
    let unwanted: Vec<(i64, Option<String>)> = connection
        .prepare(
            "SELECT id, substr(name, 1, 255) AS name FROM main.journal_blob_content WHERE state = 'unwanted'
             ORDER BY id LIMIT ?1",
        )?
        .query_map([UNWANTED], file)?
        .collect::<rusqlite::Result<_>>()?;
    let file = |(content, staged): (i64, Option<String>)| Some(BlobFile { content, staged: staged? });
    let unwanted = unwanted.into_iter().filter_map(file).collect();
    Ok(Sums { info, writers, unwanted, suspects: suspects(connection)? })
}

impl Sums {
    /// Asks the kernel who writes on, and who reads what is to go.
    pub(in crate::inspect) fn judge(self, inspector: &Inspector, kernel: &KernelLocks) -> Result<BlobsInfo> {
        let mut info = self.info;
        for (session, many) in self.writers {
            let mut session: Vec<SessionInfo> = session.into_iter().collect();
            locks::judge_sessions(&mut session, &inspector.state_dir, kernel);
            match session.first().is_some_and(|session| session.alive != Some(false)) {
                true => info.writing += many,
                false => info.incomplete += many,
            }
        }
        if self.unwanted.is_empty() {
            return Ok(info);
        }
        let files = BlobFiles::of(&inspector.state_dir)?;
        for file in &self.unwanted {
            let placed = file.name();
            // A name that is none of ours has no file.
            let found = files.find(Names { staged: &file.staged, placed: &placed }).ok().flatten();
            let readers = found.and_then(|found| kernel.holders(&found.path, &self.suspects)).unwrap_or_default();
            info.unwanted_read += u64::from(!readers.is_empty());
        }
        Ok(info)
    }
}

/// The files in `blobs/` that no row refers to.
pub(in crate::inspect) fn strays(inspector: &Inspector) -> Result<Vec<StrayBlob>> {
    let files = BlobFiles::of(&inspector.state_dir)?;
    // Listed before the rows are read: a file comes here behind the COMMIT that refers to it.
    let names = files.names()?;
    let ours = |name: &std::ffi::OsString| Some((name.to_str()?.to_owned(), BlobFile::parse(name.to_str()?)?));
    let mut names: Vec<(String, BlobFile)> = names.iter().filter_map(ours).collect();
    names.sort_unstable_by_key(|(_, file)| file.content);
    if names.is_empty() || !inspector.database.snapshot(are_known)? {
        return Ok(Vec::new());
    }
    let mut strays = Vec::new();
    for names in names.chunks(NAMES) {
        let unknown = inspector.rows(|tx| {
            let mut unknown = Vec::new();
            for (name, file) in names {
                if !blob::is_content(tx, file)? {
                    unknown.push(name);
                }
            }
            Ok(unknown)
        })?;
        for name in unknown {
            // What was removed since it was listed is gone.
            if let Some(found) = files.placed(name)? {
                strays.push(StrayBlob { file: found.path, bytes: found.size });
            }
        }
    }
    Ok(strays)
}
