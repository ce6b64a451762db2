//! The knowledge base: where files and rows are changed together.
//!
//! ```text
//! raw/ab/abcd….html               the original, named by its BLAKE3
//! pages/some-title-abcd0123.md    the readable page
//! index.md, index/s.md            what there is
//! document, document_fts          the same as rows, and for search
//! ```
//!
//! Names follow from content alone, and nothing depends on the clock or the machine. So a run that was killed and
//! started again ends exactly as one that was not.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use journal_kb::{Error, Journal, Receipt, Run};

use crate::convert::{PAGE_LIMIT, Page, convert};
use crate::{Document, Result, index, tell};

const SCHEMA: &[&str] = &["
    CREATE TABLE document (
        id     INTEGER PRIMARY KEY,
        hash   TEXT NOT NULL UNIQUE,    -- BLAKE3 of the original
        source TEXT NOT NULL,           -- where it was found, relative to the directory that was added
        title  TEXT NOT NULL,
        raw    TEXT NOT NULL UNIQUE,    -- the path of the original
        page   TEXT NOT NULL UNIQUE,    -- the path of the page
        shard  TEXT NOT NULL            -- the part of the index that lists it
    ) STRICT;
    CREATE INDEX document_shard ON document (shard, title, page);
    CREATE VIRTUAL TABLE document_fts USING fts5 (title, text, tokenize = 'porter unicode61');
"];

/// The longest readable part of a page's name, in characters.
const SLUG_LIMIT: usize = 48;

/// What became of a document.
pub(crate) enum Added {
    New(Receipt),
    /// Its content is there already, under this or another name.
    Known,
    Empty,
}

pub(crate) struct Kb {
    pub(crate) journal: Journal,
    root: PathBuf,
}

impl Kb {
    /// Opens the knowledge base at `root`. One that is not there is made, or else an error.
    pub(crate) fn open(root: &Path, create: bool) -> Result<Kb> {
        let journal = Journal::options().create(create).open(root)?;
        journal.migrate(SCHEMA)?;
        Ok(Kb { journal, root: root.canonicalize()? })
    }

    /// Whether `path` is the knowledge base's own, should it lie inside the directory that is added.
    pub(crate) fn owns(&self, path: &Path) -> bool {
        let own = ["raw", "pages", "index", index::TOP, ".journal", ".journal-stage"];
        path.strip_prefix(&self.root).is_ok_and(|inside| own.iter().any(|own| inside.starts_with(own)))
    }

    /// Forgets how far the job of this name came, and what it set aside.
    pub(crate) fn forget_run(&self, job: &str) -> Result<()> {
        let runs = self.journal.runs();
        for forgotten in [runs.retry(job, None).map(drop), runs.reset(job).map(drop)] {
            match forgotten {
                Ok(()) | Err(Error::NoRun { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Takes in a document: its files, its rows, its line in the index, that it is done, and with `tell` that others hear of it; or
    /// nothing at all.
    pub(crate) fn add(&self, document: &Document, run: &Run, tell: bool) -> Result<Added> {
        let Document { path, source, .. } = document;
        let mut file = File::open(path)?;
        let mut start = Vec::new();
        file.by_ref().take(PAGE_LIMIT as u64).read_to_end(&mut start)?;
        if start.is_empty() {
            run.record(document)?;
            return Ok(Added::Empty);
        }
        let digest = blake3::Hasher::new().update(&start).update_reader(&mut file)?.finalize();
        let hash = digest.to_string();
        if self.has(&hash)? {
            run.record(document)?;
            return Ok(Added::Known);
        }
        let attempt = run.attempt(document)?; // counted from here on, should its conversion end this process
        let converted = convert(path, &start)?; // before the lock is taken: it takes the longest
        let text = text(&converted, source, &hash);
        let title = converted.title;
        let page = format!("pages/{}-{}.md", slug(&title), &hash[..8]);
        let ending = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
        let raw = format!("raw/{}/{hash}.{ending}", &hash[..2]);
        let shard = index::shard(&page);

        let mut txn = self.journal.begin(&format!("add {source}"))?;
        if self.has(&hash)? {
            attempt.record()?;
            return Ok(Added::Known); // another process was quicker; dropping the transaction rolls it back
        }
        file.seek(SeekFrom::Start(start.len() as u64))?;
        let mut original = Hashing { hasher: blake3::Hasher::new(), inner: start.chain(file) };
        txn.write_from(&raw, &mut original)?;
        if original.hasher.finalize() != digest {
            return Err("it was changed while it was read: add it again".into());
        }
        txn.write(&page, &text)?;
        let (list, top) = self.index_with(&title, &page, &shard)?;
        txn.write(index::path(&shard), list)?;
        txn.write(index::TOP, top)?;
        txn.record(run, document)?;
        if tell {
            tell::added(&mut txn, source, &page, &title)?;
        }
        let source = source.to_owned();
        txn.sql(move |rows| {
            rows.execute(
                "INSERT INTO document (hash, source, title, raw, page, shard) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                (&hash, &source, &title, &raw, &page, &shard),
            )?;
            rows.execute(
                "INSERT INTO document_fts (rowid, title, text) VALUES (?1, ?2, ?3)",
                (rows.last_insert_rowid(), &title, &text),
            )?;
            Ok(())
        })?;
        Ok(Added::New(txn.commit()?))
    }

    fn has(&self, hash: &str) -> Result<bool> {
        let sql = "SELECT 1 FROM document WHERE hash = ?1";
        Ok(self.journal.read(|rows| rows.query_opt(sql, [hash], |_| Ok(())))?.is_some())
    }

    /// The texts of the shard and of the top of the index with one more page.
    fn index_with(&self, title: &str, page: &str, shard: &str) -> Result<(String, String)> {
        let (mut pages, counts) = self.journal.read(|rows| {
            let pages = "SELECT title, page FROM document WHERE shard = ?1";
            let counts = "SELECT shard, count(*) FROM document GROUP BY shard";
            Ok((
                rows.query_map(pages, [shard], |row| Ok((row.get(0)?, row.get(1)?)))?,
                rows.query_map(counts, (), |row| Ok((row.get(0)?, row.get(1)?)))?,
            ))
        })?;
        pages.push((title.to_owned(), page.to_owned()));
        let mut counts = BTreeMap::from_iter(counts);
        *counts.entry(shard.to_owned()).or_default() += 1;
        Ok((index::list(shard, pages), index::top(&counts)))
    }

    /// The `n` best pages that contain all the words, each with its title and where they stand.
    pub(crate) fn search(&self, words: &[String], n: u32) -> Result<Vec<(String, String, String)>> {
        // Quoted, nothing in a word means anything to FTS5.
        let query: Vec<_> = words.iter().map(|word| format!("\"{}\"", word.replace('"', "\"\""))).collect();
        let sql = "SELECT page, document.title, snippet(document_fts, 1, '[', ']', '…', 16)
                   FROM document_fts JOIN document ON document.id = document_fts.rowid
                   WHERE document_fts MATCH ?1 ORDER BY rank, document.id LIMIT ?2";
        Ok(self.journal.read(|rows| {
            rows.query_map(sql, (query.join(" "), n), |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        })?)
    }
}

/// The bytes of a page: front matter, then the body.
fn text(Page { title, notes, body }: &Page, source: &str, hash: &str) -> String {
    let quoted = |text: &str| serde_json::Value::from(text).to_string(); // a JSON string is a YAML string
    let mut text = format!("---\ntitle: {}\nsource: {}\n", quoted(title), quoted(source));
    if !notes.is_empty() {
        text += &format!("note: {}\n", quoted(&notes.join("; ")));
    }
    text + &format!("blake3: {hash}\n---\n\n{body}")
}

/// The readable part of a page's name: the letters and digits of its title, in lower case, joined by `-`.
fn slug(title: &str) -> String {
    let lower = title.to_lowercase();
    let words: Vec<_> = lower.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).collect();
    let slug: String = words.join("-").chars().take(SLUG_LIMIT).collect();
    if slug.is_empty() { "page".to_owned() } else { slug }
}

/// A reader that hashes what passes through.
struct Hashing<R> {
    hasher: blake3::Hasher,
    inner: R,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..n]);
        Ok(n)
    }
}
