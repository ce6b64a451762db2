//! What a verification looks at, and what it finds.

use std::path::PathBuf;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, Row};
use serde::Serialize;

use crate::blob::BlobFile;
use crate::error::Damage;
use crate::fs::blob_files::BlobFiles;
use crate::fs::blobs::Names;
use crate::inspect::inspector::Inspector;
use crate::inspect::value::{bytes, hex, number, number_or_zero, optional_file_fields, text};

/// What is wrong with what blobs say.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct BlobFinding {
    /// `missing`, `size`, `content` when it hashes to something else, `unreadable`; `row` when what stands in the database about it
    /// cannot be, `not_sealed` for a blob that was asked for by its name.
    pub problem: &'static str,
    /// The blobs that say so: the first 20.
    pub blobs: Vec<String>,
    /// How many more there are.
    pub more_blobs: u64,
    /// What it is to hash to; none where nobody knows.
    pub hash: Option<String>,
    /// Its size.
    pub bytes: u64,
    /// What was found to hash to.
    pub found_hash: Option<String>,
    /// How many bytes were found.
    pub found_bytes: Option<u64>,
    /// The file it stands in (`file` and `file_hex` in JSON), or is to stand in when it is missing; none when it stands in the database.
    #[serde(flatten, serialize_with = "optional_file_fields")]
    pub file: Option<PathBuf>,
    /// The same for people.
    pub message: String,
}

/// So many rows are read at once, and so many bytes that stand in the database.
const PAGE: i64 = 2000;
const MOST_INLINE: u64 = 8 << 20;
/// What of that is larger is read piece by piece.
const PIECE: i64 = 1 << 20;

const ROWS: &str = "SELECT id, substr(hash, 1, 64) AS hash, size, direct, named, state, substr(name, 1, 255) AS name,
      coalesce(length(content), 0) AS length, iif(length(content) <= ?3, content, NULL) AS content
    FROM main.journal_blob_content WHERE id BETWEEN ?1 AND ?2 AND (direct > 0 OR named > 0) ORDER BY id LIMIT ?4";

/// A row of content.
pub(super) struct Content {
    pub(super) id: i64,
    /// Its hash as it stands there.
    digits: String,
    /// None where they cannot be.
    pub(super) hash: Option<[u8; 32]>,
    pub(super) size: Option<u64>,
    pub(super) direct: bool,
    pub(super) named: u64,
    pub(super) file: Option<BlobFile>,
    /// Of what stands in the database: its length, and what it hashes to.
    pub(super) inline: Option<(u64, Option<[u8; 32]>)>,
}

/// What is wrong with content.
pub(super) enum Problem {
    Damaged(Damage),
    Unreadable(String),
    Row,
}

impl Problem {
    /// What is wrong with what was found; of what was not read only its size.
    pub(super) fn of(expected: u64, hash: [u8; 32], found: u64, hashed: Option<[u8; 32]>) -> Option<Self> {
        if found != expected {
            return Some(Self::Damaged(Damage::Size { expected, found }));
        }
        let other = hashed.filter(|hashed| *hashed != hash)?;
        Some(Self::Damaged(Damage::Content { expected: hash, found: other }))
    }
}

impl BlobFinding {
    pub(super) fn new(problem: &'static str, message: String) -> Self {
        Self {
            problem,
            blobs: Vec::new(),
            more_blobs: 0,
            hash: None,
            bytes: 0,
            found_hash: None,
            found_bytes: None,
            file: None,
            message,
        }
    }
}

impl Content {
    /// The next contents of these numbers that blobs say. What stands in the database is hashed, unless it is to be fast.
    pub(super) fn page(connection: &Connection, from: i64, to: i64, fast: bool) -> rusqlite::Result<Vec<Self>> {
        let (mut page, mut inline) = (Vec::new(), 0);
        let mut statement = connection.prepare_cached(ROWS)?;
        let mut rows = statement.query((from, to, if fast { -1 } else { PIECE }, PAGE))?;
        while let Some(row) = rows.next()? {
            let content = Self::read(connection, row, fast)?;
            inline += content.inline.map_or(0, |(length, _)| length);
            page.push(content);
            if !fast && inline >= MOST_INLINE {
                break;
            }
        }
        Ok(page)
    }

    fn read(connection: &Connection, row: &Row<'_>, fast: bool) -> rusqlite::Result<Self> {
        let id = number_or_zero(row, "id");
        let file = text(row, "name").map(|staged| BlobFile { content: id, staged });
        let length = u64::try_from(number_or_zero(row, "length")).unwrap_or(0);
        let inline = match (&file, row.get_ref("content")?) {
            (Some(_), _) => None,
            (None, _) if fast => Some((length, None)),
            (None, ValueRef::Blob(bytes)) => Some((length, Some(*blake3::hash(bytes).as_bytes()))),
            (None, _) if length == 0 => Some((0, Some(*blake3::hash(b"").as_bytes()))),
            (None, _) => {
                let blob = connection.blob_open("main", "journal_blob_content", "content", id, true)?;
                let mut hasher = blake3::Hasher::new();
                let read = hasher.update_reader(blob);
                read.map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))?;
                Some((length, Some(*hasher.finalize().as_bytes())))
            }
        };
        Ok(Self {
            id,
            digits: bytes(row, "hash").map_or_else(String::new, hex),
            hash: bytes(row, "hash").and_then(|hash| hash.try_into().ok()),
            size: number(row, "size").and_then(|size| u64::try_from(size).ok()),
            direct: number_or_zero(row, "direct") > 0,
            named: u64::try_from(number_or_zero(row, "named")).unwrap_or(0),
            file,
            inline,
        })
    }

    /// What is told of it.
    pub(super) fn finding(&self, problem: Problem, inspector: &Inspector, files: &BlobFiles) -> BlobFinding {
        let by_content = self.direct.then(|| format!("blake3:{}", self.digits));
        let file = self.file.as_ref().map(|file| {
            let placed = file.name();
            let found = files.find(Names { staged: &file.staged, placed: &placed }).ok().flatten();
            found.map_or_else(|| inspector.state_dir.join("blobs").join(&placed), |found| found.path)
        });
        let row = "its row has a hash, a size or a file that cannot be".to_owned();
        let mut finding = BlobFinding {
            blobs: by_content.into_iter().collect(),
            hash: self.hash.map(|hash| hex(&hash)),
            bytes: self.size.unwrap_or(0),
            file,
            ..BlobFinding::new("row", row)
        };
        match problem {
            Problem::Row => {}
            Problem::Unreadable(why) => (finding.problem, finding.message) = ("unreadable", why),
            Problem::Damaged(damage) => {
                finding.message = damage.to_string();
                match damage {
                    Damage::Missing { .. } => finding.problem = "missing",
                    Damage::Size { found, .. } => (finding.problem, finding.found_bytes) = ("size", Some(found)),
                    Damage::Content { found, .. } => {
                        (finding.problem, finding.found_hash) = ("content", Some(hex(&found)));
                        finding.found_bytes = self.size;
                    }
                }
            }
        }
        finding
    }
}
