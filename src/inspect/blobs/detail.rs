//! One blob in full.

use std::path::PathBuf;

use rusqlite::{Connection, Row};
use serde::Serialize;

use super::{BY_CONTENT, BlobInfo, Said, Stored, are_known, by_name, judge, place, stored, suspects};
use crate::error::{Damage, Result};
use crate::fs::blob_files::BlobFiles;
use crate::inspect::inspector::Inspector;
use crate::inspect::liveness::KernelLocks;
use crate::inspect::value::{bytes, hex, optional_file_fields, text_or_empty};

/// A blob in full: what `journalctl-kb blobs show` shows.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct BlobDetail {
    /// Its fields stand beside the others in JSON.
    #[serde(flatten)]
    pub blob: BlobInfo,
    /// What it says hashes to this; none before it is sealed.
    pub hash: Option<String>,
    /// How often that was sealed as a blob that is called by its content, and not removed again.
    pub times: u64,
    /// Where its file is (`file` and `file_hex` in JSON), or is to be when it is missing; none when it has none.
    #[serde(flatten, serialize_with = "optional_file_fields")]
    pub file: Option<PathBuf>,
    /// How many bytes are there; none when its file is missing, and before it is sealed.
    pub found_bytes: Option<u64>,
    /// What is wrong with that, without looking at the bytes.
    pub damage: Option<String>,
    /// The processes that read its file at this moment, by the kernel's word.
    pub readers: Vec<i32>,
    /// Other blobs that say the same, the first 20.
    pub others: Vec<String>,
    /// How many more there are.
    pub more_others: u64,
}

/// So many others are named.
const OTHERS: usize = 20;
/// So many blobs are named that begin alike.
const ALIKE: i64 = 10;

/// The one that is called just this.
pub(in crate::inspect) fn detail(inspector: &Inspector, id: &str) -> Result<Option<BlobDetail>> {
    let read = |connection: &Connection| {
        let Some(stored) = find(connection, id)? else { return Ok(None) };
        let (others, inline) = match &stored.said {
            None => (Vec::new(), None),
            Some(said) => (others(connection, &stored, said)?, inline(connection, said)?),
        };
        Ok(Some((stored, others, inline, suspects(connection)?)))
    };
    let Some((stored, others, inline, suspects)) = inspector.database.snapshot(read)? else { return Ok(None) };
    let files = BlobFiles::of(&inspector.state_dir)?;
    let mut page = [stored];
    judge(&mut page, inspector, &files)?;
    let [Stored { info, said, .. }] = page;
    let own = u64::from(info.state == "sealed");
    let mut detail = BlobDetail {
        hash: said.as_ref().map(|said| hex(&said.hash)),
        times: said.as_ref().map_or(0, |said| said.direct),
        file: None,
        found_bytes: None,
        damage: None,
        readers: Vec::new(),
        more_others: info.same.saturating_sub(others.len() as u64 + own),
        others,
        blob: info,
    };
    if let Some(said) = &said {
        detail.look(said, inline, inspector, &files, &suspects);
    }
    Ok(Some(detail))
}

/// One by its name, or by all of its hash.
pub(super) fn find(connection: &Connection, id: &str) -> rusqlite::Result<Option<Stored>> {
    if !are_known(connection)? {
        return Ok(None);
    }
    if let Some(named) = by_name(connection, id.as_bytes())? {
        return Ok(Some(named));
    }
    let whole = id.strip_prefix("blake3:").filter(|digits| digits.len() == 64);
    let Some((hash, _)) = whole.and_then(range) else { return Ok(None) };
    let sql = format!("{BY_CONTENT} WHERE c.hash = ?1");
    connection.prepare(&sql)?.query_map([hash], stored)?.next().transpose()
}

/// What content is called whose hash begins so: the first ten.
pub(in crate::inspect) fn ids(inspector: &Inspector, prefix: &str) -> Result<Vec<String>> {
    let Some((from, to)) = range(prefix.strip_prefix("blake3:").unwrap_or(prefix)) else { return Ok(Vec::new()) };
    inspector.database.snapshot(|connection| {
        if !are_known(connection)? {
            return Ok(Vec::new());
        }
        let sql = "SELECT hash FROM main.journal_blob_content WHERE hash BETWEEN ?1 AND ?2 AND length(hash) = 32
             ORDER BY hash LIMIT ?3";
        let id = |row: &Row<'_>| Ok(format!("blake3:{}", bytes(row, "hash").map_or_else(String::new, hex)));
        connection.prepare(sql)?.query_map((from, to, ALIKE), id)?.collect()
    })
}

/// The first and the last hash that begins with these hexadecimal digits; none when they are none.
fn range(digits: &str) -> Option<([u8; 32], [u8; 32])> {
    if digits.is_empty() || digits.len() > 64 {
        return None;
    }
    let (mut from, mut to) = ([0; 32], [0xff; 32]);
    for (at, digit) in digits.chars().enumerate() {
        let digit = u8::try_from(digit.to_digit(16)?).ok()?;
        let shift = if at % 2 == 0 { 4 } else { 0 };
        from[at / 2] |= digit << shift;
        to[at / 2] &= digit << shift | !(0xf << shift);
    }
    Some((from, to))
}

/// Other blobs that say the same.
fn others(connection: &Connection, stored: &Stored, said: &Said) -> rusqlite::Result<Vec<String>> {
    // One more, which may be itself.
    let mut others = names(connection, said.content, OTHERS + 1)?;
    if !stored.info.by_content {
        others.retain(|other| *other != stored.info.id);
        if said.direct > 0 {
            others.insert(0, format!("blake3:{}", hex(&said.hash)));
        }
    }
    others.truncate(OTHERS);
    Ok(others)
}

/// Blobs with names that say this, at most so many.
pub(super) fn names(connection: &Connection, content: i64, most: usize) -> rusqlite::Result<Vec<String>> {
    let sql = "SELECT substr(id, 1, 255) AS id FROM main.journal_blob WHERE content = ?1 AND state = 'sealed' LIMIT ?2";
    let most = i64::try_from(most).unwrap_or(i64::MAX);
    connection.prepare(sql)?.query_map((content, most), |row| Ok(text_or_empty(row, "id")))?.collect()
}

/// How many bytes stand in the database.
fn inline(connection: &Connection, said: &Said) -> rusqlite::Result<Option<u64>> {
    let sql = "SELECT coalesce(length(content), 0) FROM main.journal_blob_content WHERE id = ?1";
    let length: i64 = connection.query_row(sql, [said.content], |row| row.get(0))?;
    Ok(u64::try_from(length).ok())
}

impl BlobDetail {
    /// Looks what is there of what it says.
    fn look(&mut self, said: &Said, inline: Option<u64>, inspector: &Inspector, files: &BlobFiles, suspects: &[i64]) {
        let expected = self.blob.bytes.unwrap_or(0);
        self.found_bytes = inline;
        if let Some(file) = &said.file {
            self.file = Some(inspector.state_dir.join("blobs").join(file.name()));
            let found = match said.find(files) {
                Ok(found) => found,
                Err(error) => {
                    (self.blob.place, self.found_bytes) = (Some("unknown"), None);
                    self.damage = Some(error.to_string());
                    return;
                }
            };
            self.found_bytes = found.as_ref().map(|found| found.size);
            self.blob.place = Some(place(found.as_ref()));
            if let Some(found) = found {
                self.readers = KernelLocks::read().holders(&found.path, suspects).unwrap_or_default();
                self.file = Some(found.path);
            }
        }
        self.damage = match self.found_bytes {
            Some(found) if found == expected => None,
            Some(found) => Some(Damage::Size { expected, found }.to_string()),
            None => Some(Damage::Missing { expected }.to_string()),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_stand_for_all_hashes_that_begin_with_them() {
        let ends = |digits: &str| range(digits).map(|(from, to)| (hex(&from[..2]), hex(&to[..2]), from[31], to[31]));
        assert_eq!(ends("a"), Some(("a000".into(), "afff".into(), 0, 0xff)));
        assert_eq!(ends("Ab1"), Some(("ab10".into(), "ab1f".into(), 0, 0xff)));
        let whole = "0123456789abcdef".repeat(4);
        let (from, to) = range(&whole).unwrap();
        assert_eq!((hex(&from), hex(&to)), (whole.clone(), whole.clone()));
        for none in ["", "g", "0x1", "é", &format!("{whole}0")] {
            assert_eq!(range(none), None, "{none:?}");
        }
    }
}
