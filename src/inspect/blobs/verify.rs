//! Whether what blobs say is still what was sealed.
//!
//! Contents are gone through by their numbers, each once, however many blobs say it. What stands in the database is hashed within
//! the snapshot that read it; a file behind it, and what is found wrong with that counts only while the row still says so: it may
//! have been removed meanwhile, or replaced.

use std::fs::File;
use std::io::{ErrorKind, Read};

use rusqlite::Row;
use serde::Serialize;

use super::content::{BlobFinding, Content, Problem};
use super::detail::{find, names};
use super::{Stored, are_known, judge};
use crate::error::{Damage, Error, Result};
use crate::fs::blob_files::BlobFiles;
use crate::fs::blobs::Names;
use crate::inspect::inspector::Inspector;
use crate::inspect::value::{bytes, number_or_zero, text_or_empty};
use crate::wait::StopToken;

/// What of blobs to verify.
#[derive(Clone, Debug, Default)]
pub struct BlobCheck {
    /// Only these, each as it is called; none for all there are.
    pub ids: Vec<String>,
    /// Only sizes: no bytes are read.
    pub fast: bool,
    /// Asked to stop, it ends where it is.
    pub stop: StopToken,
}

/// How far a verification is, or was in the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct BlobsVerified {
    /// Contents that were looked at, each once however many blobs say it.
    pub contents: u64,
    /// Their sizes, added up; while it lasts, those of what was read so far.
    pub bytes: u64,
    /// How many findings there were.
    pub findings: u64,
}

/// What a verification tells on its way.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum BlobNews<'n> {
    /// How far it is: some times a second.
    Progress(&'n BlobsVerified),
    /// Something is wrong. Told up to ten thousand at a time, with the names of those it concerns.
    Finding(&'n BlobFinding),
}

/// So much of a file is read at once.
const PIECE: usize = 1 << 20;
/// So many findings are told at once: for each time the names of all blobs are gone through.
const FINDINGS: usize = 10_000;
/// So many blobs are named with each.
const BLOBS: usize = 20;
/// So often a row may change while what it says is looked at.
const TRIES: u32 = 8;

const NO_CONTENT: &str = "it is sealed, and the content that its row names is not in the database";

/// One verification on its way.
struct Verification<'v> {
    inspector: &'v Inspector,
    files: BlobFiles,
    check: &'v BlobCheck,
    done: BlobsVerified,
    told: &'v mut dyn FnMut(BlobNews<'_>),
    /// What is to be told.
    found: Vec<(Content, BlobFinding)>,
    buffer: Vec<u8>,
}

pub(in crate::inspect) fn verify(
    inspector: &Inspector,
    check: &BlobCheck,
    told: &mut dyn FnMut(BlobNews<'_>),
) -> Result<BlobsVerified> {
    let files = BlobFiles::of(&inspector.state_dir)?;
    let buffer = Vec::new();
    let done = BlobsVerified::default();
    let mut all = Verification { inspector, files, check, done, told, found: Vec::new(), buffer };
    if !inspector.database.snapshot(are_known)? {
        return Ok(all.done);
    }
    if check.ids.is_empty() {
        all.everything()?;
    } else {
        all.these(&check.ids)?;
    }
    all.tell()?;
    Ok(all.done)
}

impl Verification<'_> {
    fn everything(&mut self) -> Result<()> {
        // What is sealed from now on is left to the next time: or there might be no end.
        const LAST: &str = "SELECT coalesce(max(id), 0) AS last FROM main.journal_blob_content";
        let last = self
            .inspector
            .database
            .snapshot(|connection| connection.query_row(LAST, (), |row| Ok(number_or_zero(row, "last"))))?;
        let mut next = Some(i64::MIN);
        while let Some(from) = next {
            let page = self.read(from, last)?;
            next = page.last().and_then(|content| content.id.checked_add(1));
            self.contents(page)?;
            if self.check.stop.requested() {
                return Ok(());
            }
        }
        self.without_content()
    }

    /// Blobs whose rows name content that is not there.
    fn without_content(&mut self) -> Result<()> {
        let sql = "SELECT id AS key, substr(id, 1, 255) AS id FROM main.journal_blob AS b
             WHERE id >= CAST(?1 AS TEXT) AND state = 'sealed'
               AND NOT EXISTS (SELECT 1 FROM main.journal_blob_content AS c WHERE c.id = b.content) ORDER BY id LIMIT ?2";
        let mut from = Vec::new();
        loop {
            let lost = self.inspector.database.snapshot(|connection| {
                let lost = |row: &Row<'_>| Ok((bytes(row, "key").map(<[u8]>::to_vec), text_or_empty(row, "id")));
                connection
                    .prepare(sql)?
                    .query_map((&from, FINDINGS as i64), lost)?
                    .collect::<rusqlite::Result<Vec<_>>>()
            })?;
            let Some((Some(last), _)) = lost.last() else { return Ok(()) };
            // The next name there can be.
            from = [&last[..], &[0]].concat();
            lost.into_iter().for_each(|(_, id)| self.about(id, "row", NO_CONTENT));
        }
    }

    fn these(&mut self, ids: &[String]) -> Result<()> {
        let mut contents = Vec::new();
        for id in ids {
            let found = self.inspector.database.snapshot(|connection| find(connection, id))?;
            // Removed meanwhile.
            let Some(found) = found else { continue };
            let mut page = [found];
            judge(&mut page, self.inspector, &self.files)?;
            let [Stored { info, said, .. }] = page;
            match (info.state.as_str(), said) {
                ("removed" | "unwanted", _) => {}
                (_, Some(said)) => contents.push(said.content),
                ("corrupt", _) => self.about(info.id, "row", NO_CONTENT),
                ("writing", _) => self.about(info.id, "not_sealed", "it is still being written"),
                ("incomplete", _) => self.about(info.id, "not_sealed", "its writer died before it was sealed"),
                ("aborted", _) => self.about(info.id, "not_sealed", "its writer has given it up"),
                _ => self.about(info.id, "row", "it is in a state that this version does not know"),
            }
        }
        contents.sort_unstable();
        contents.dedup();
        for id in contents {
            let page = self.read(id, id)?;
            self.contents(page)?;
        }
        Ok(())
    }

    /// The next contents of these numbers; what stands in the database is hashed.
    fn read(&self, from: i64, to: i64) -> Result<Vec<Content>> {
        self.inspector.database.snapshot(|connection| Content::page(connection, from, to, self.check.fast))
    }

    /// Looks at contents. What is wrong with one counts if its row still says so behind it.
    fn contents(&mut self, mut page: Vec<Content>) -> Result<()> {
        let mut tries = 0;
        while !page.is_empty() {
            tries += 1;
            let mut doubtful = Vec::new();
            for content in page {
                let before = self.done.bytes;
                let problem = self.look(&content)?;
                if self.check.stop.requested() {
                    return Ok(());
                }
                self.done.bytes = before;
                if tries == 1 {
                    self.done.contents += 1;
                    self.done.bytes = before.saturating_add(content.size.unwrap_or(0));
                }
                match problem {
                    // What stands in the database was read with its row.
                    Some(problem) if content.file.is_none() => self.found(content, problem)?,
                    Some(problem) => doubtful.push((content, problem)),
                    None => {}
                }
                (self.told)(BlobNews::Progress(&self.done));
            }
            if doubtful.is_empty() {
                return Ok(());
            }
            let again = self.inspector.database.snapshot(|connection| {
                let again = |id| Ok(Content::page(connection, id, id, self.check.fast)?.pop());
                doubtful.iter().map(|(content, _)| again(content.id)).collect::<rusqlite::Result<Vec<_>>>()
            })?;
            page = Vec::new();
            for ((content, problem), again) in doubtful.into_iter().zip(again) {
                match again {
                    // It was removed meanwhile.
                    None => {}
                    Some(again) if again.file != content.file && tries < TRIES => page.push(again),
                    Some(_) => self.found(content, problem)?,
                }
            }
        }
        Ok(())
    }

    fn found(&mut self, content: Content, problem: Problem) -> Result<()> {
        self.done.findings += 1;
        let finding = content.finding(problem, self.inspector, &self.files);
        self.found.push((content, finding));
        if self.found.len() == FINDINGS {
            self.tell()?;
        }
        Ok(())
    }

    fn look(&mut self, content: &Content) -> Result<Option<Problem>> {
        let (Some(expected), Some(hash)) = (content.size, content.hash) else { return Ok(Some(Problem::Row)) };
        let Some(file) = &content.file else {
            let (found, hashed) = content.inline.unwrap_or_default();
            return Ok(Problem::of(expected, hash, found, hashed));
        };
        let placed = file.name();
        let names = Names { staged: &file.staged, placed: &placed };
        let found = match self.check.fast {
            true => self.files.find(names).map(|found| found.map(|found| (None, found))),
            false => self.files.open_file(names).map(|opened| opened.map(|(opened, found)| (Some(opened), found))),
        };
        let (opened, found) = match found {
            Ok(Some(found)) => found,
            Ok(None) => return Ok(Some(Problem::Damaged(Damage::Missing { expected }))),
            Err(Error::Corrupt { .. }) => return Ok(Some(Problem::Row)),
            Err(error) => return Ok(Some(Problem::Unreadable(error.to_string()))),
        };
        let hashed = match opened.filter(|_| found.size == expected) {
            None => None,
            Some(opened) => match self.hash(opened) {
                Ok((read, hashed)) if read == expected => Some(hashed),
                // It was shortened, or grew, while it was read.
                Ok((read, _)) => return Ok(Some(Problem::Damaged(Damage::Size { expected, found: read }))),
                Err(error) => return Ok(Some(Problem::Unreadable(error.to_string()))),
            },
        };
        Ok(Problem::of(expected, hash, found.size, hashed))
    }

    /// Reads a file to its end.
    fn hash(&mut self, mut file: File) -> std::io::Result<(u64, [u8; 32])> {
        self.buffer.resize(PIECE, 0);
        let (mut hasher, mut whole) = (blake3::Hasher::new(), 0_u64);
        loop {
            let read = match file.read(&mut self.buffer) {
                Ok(0) => return Ok((whole, *hasher.finalize().as_bytes())),
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if self.check.stop.requested() {
                return Ok((whole, *hasher.finalize().as_bytes()));
            }
            hasher.update(&self.buffer[..read]);
            whole += read as u64;
            self.done.bytes = self.done.bytes.saturating_add(read as u64);
            (self.told)(BlobNews::Progress(&self.done));
        }
    }

    /// Tells of a blob that says nothing.
    fn about(&mut self, id: String, problem: &'static str, message: &str) {
        self.done.findings += 1;
        let finding = BlobFinding { blobs: vec![id], ..BlobFinding::new(problem, message.to_owned()) };
        (self.told)(BlobNews::Finding(&finding));
    }

    /// Tells what was found, with those who say so.
    fn tell(&mut self) -> Result<()> {
        let mut found = std::mem::take(&mut self.found);
        match &mut found[..] {
            [] => return Ok(()),
            [(content, finding)] => {
                let named = self.inspector.database.snapshot(|connection| names(connection, content.id, BLOBS))?;
                finding.blobs.extend(named);
            }
            _ => self.name(&mut found)?,
        }
        for (content, mut finding) in found {
            finding.blobs.truncate(BLOBS);
            let blobs = content.named.saturating_add(u64::from(content.direct));
            finding.more_blobs = blobs.saturating_sub(finding.blobs.len() as u64);
            (self.told)(BlobNews::Finding(&finding));
        }
        Ok(())
    }

    /// Goes through the names of all blobs once: what they say has no index.
    fn name(&self, found: &mut [(Content, BlobFinding)]) -> Result<()> {
        found.sort_unstable_by_key(|(content, _)| content.id);
        let named = self.inspector.database.snapshot(|connection| {
            let mut named: Vec<Vec<String>> = vec![Vec::new(); found.len()];
            let sql = "SELECT content, substr(id, 1, 255) AS id FROM main.journal_blob
                 WHERE state = 'sealed' AND content BETWEEN ?1 AND ?2";
            let ends = (found.first().map(|(first, _)| first.id), found.last().map(|(last, _)| last.id));
            let mut statement = connection.prepare(sql)?;
            let mut rows = statement.query(ends)?;
            while let Some(row) = rows.next()? {
                let content = number_or_zero(row, "content");
                if let Ok(at) = found.binary_search_by_key(&content, |(content, _)| content.id)
                    && named[at].len() < BLOBS
                {
                    named[at].push(text_or_empty(row, "id"));
                }
            }
            Ok(named)
        })?;
        for ((_, finding), named) in found.iter_mut().zip(named) {
            finding.blobs.extend(named);
        }
        Ok(())
    }
}
