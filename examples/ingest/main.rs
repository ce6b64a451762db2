//! A small document knowledge base: files and rows that change together.
//!
//! `ingest add DIR --kb KB` takes in every Markdown, text and HTML file below DIR, one transaction each. Stop it with
//! Ctrl-C or kill it, whenever you like, and start it again: it goes on where it was, without reading again what is
//! done, and the result is that of a run nobody disturbed.
//!
//! ```text
//! cargo run --release --example ingest -- add ~/notes --kb /tmp/kb
//! cargo run --release --example ingest -- add ~/notes --kb /tmp/kb --redis redis://127.0.0.1
//! cargo run --release --example ingest -- search crash safety --kb /tmp/kb
//! cargo run --release --example ingest -- check --kb /tmp/kb
//! ```
//!
//! [`add`] is where a run is used, [`kb`] where the journal is, [`tell`] where others hear of it; [`convert`] turns a document into a page;
//! [`check`] compares tree and rows.

#![expect(clippy::disallowed_methods, reason = "an application changes files outside the knowledge base as it likes")]

mod check;
mod convert;
mod index;
mod kb;
mod tell;

use std::borrow::Cow;
use std::error::Error;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use journal_kb::{Begun, Ended, ItemKey, Job, RedisPublisher, Started, StopToken, Verdict};
use walkdir::{DirEntry, WalkDir};

use crate::convert::Kind;
use crate::kb::{Added, Kb};
use crate::tell::{Teller, Told};

type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

/// What the pages depend on beside their documents: when it changes, all documents are looked at again.
const FINGERPRINT: &str = "ingest 1";
/// That somebody else is at it.
const BUSY: u8 = 75;

/// A document knowledge base: originals, readable pages, an index and full-text search, always in step.
#[derive(Parser)]
#[command(after_help = "Exit status: 0 done, 1 something failed, is wrong or was not found, 2 it could not be tried, \
                        75 somebody is at it already, 130 and 143 stopped by SIGINT (Ctrl-C) and SIGTERM.")]
struct Cli {
    /// The directory of the knowledge base.
    #[arg(long, global = true, default_value = "kb", value_name = "KB")]
    kb: PathBuf,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Take in every .md, .txt and .html file below DIR that the knowledge base does not have yet.
    Add {
        dir: PathBuf,
        /// Go on where an earlier run ended; the default.
        #[arg(long, overrides_with = "fresh")]
        resume: bool,
        /// Begin again: forget how far an earlier run came, and what it set aside.
        #[arg(long, visible_alias = "no-resume", overrides_with = "resume")]
        fresh: bool,
        /// How often a document is tried that fails, or kills this process, before it is set aside.
        #[arg(long, default_value_t = 3, value_name = "TIMES")]
        tries: u32,
        /// Tell Redis of each document that is added, in the commit that adds it: `documents:<path below DIR>` is set to its
        /// version, 1 and more each time it was added anew, and the channel `documents` says so. Where Redis cannot be reached,
        /// documents are added all the same, and the next run with this option tells of them.
        #[arg(long, value_name = "URL")]
        redis: Option<String>,
    },
    /// Show the pages that contain all WORDS, best first.
    Search {
        #[arg(required = true)]
        words: Vec<String>,
        /// How many pages to show at most.
        #[arg(short, default_value_t = 10)]
        n: u32,
    },
    /// Compare every file with the rows that speak of it.
    Check,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.verb {
        Verb::Add { dir, fresh, tries, redis, .. } => add(&dir, &cli.kb, fresh, tries, redis.as_deref()),
        Verb::Search { words, n } => search(&words, n, &cli.kb),
        Verb::Check => check(&cli.kb),
    };
    match done {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("ingest: {}", chain(&*error));
            let busy = error.downcast_ref().is_some_and(journal_kb::Error::is_busy);
            ExitCode::from(if busy { BUSY } else { 2 })
        }
    }
}

/// Takes in what lies below `dir`, and tells Redis if there is one.
fn add(dir: &Path, root: &Path, fresh: bool, tries: u32, redis: Option<&str>) -> Result<u8> {
    let stop = StopToken::on_signals()?;
    let redis = redis.map(RedisPublisher::new).transpose()?;
    let dir = fs::canonicalize(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    if !dir.is_dir() {
        return Err(format!("{}: not a directory", dir.display()).into());
    }
    fs::create_dir_all(root).map_err(|error| format!("{}: {error}", root.display()))?;
    let kb = Kb::open(root, true)?;
    let (documents, unreadable) = documents(&dir, &kb);

    // A job for each directory, so that two of them can be added side by side.
    let name = format!("add:{}", &blake3::hash(dir.as_os_str().as_bytes()).to_hex()[..16]);
    if fresh {
        kb.forget_run(&name)?;
    }
    let job = Job::new(name).fingerprint(FINGERPRINT).expected(documents.len() as u64).tries(tries).stop(&stop);
    let run = match kb.journal.run_with(job)? {
        Started::Running(run) => run,
        Started::Skipped(holder) => {
            eprintln!("ingest: already running: {holder} adds what is in {}", dir.display());
            return Ok(BUSY);
        }
    };
    let teller = redis.map(|redis| Teller::start(&kb.journal, redis)).transpose()?;
    let mut skipped = documents.iter().filter(|document| run.is_done(*document)).count();
    if let Begun::Resumed { .. } = run.begun() {
        eprintln!("{skipped} of {} documents were done before", documents.len());
    }
    let bar = ProgressBar::new(documents.len() as u64) // draws on a terminal only
        .with_style(ProgressStyle::with_template("{bar:32} {pos}/{len} {wide_msg}")?)
        .with_position(skipped as u64);
    let say = |text: String| bar.suspend(|| eprintln!("{text}"));

    let (mut added, mut failed) = (0, unreadable.len());
    unreadable.into_iter().for_each(say);
    for document in run.pending(&documents) {
        let source = &document.source;
        bar.set_message(source.clone());
        match kb.add(document, &run, teller.is_some()) {
            Ok(Added::New(receipt)) => {
                added += 1;
                receipt.warnings().iter().for_each(|warning| say(format!("{source}: warning: {warning}")));
            }
            Ok(Added::Known) => skipped += 1,
            Ok(Added::Empty) => {
                skipped += 1;
                say(format!("{source}: skipped: it is empty"));
            }
            // No document is to blame. Dropping the run banks what is done.
            Err(error) if error.is::<journal_kb::Error>() => return Err(error),
            Err(error) => {
                failed += 1;
                let error = chain(&*error);
                let verdict = run.fail(document, &error)?;
                say(format!(
                    "{source}: failed{}: {error}",
                    if verdict == Verdict::SetAside { ", set aside" } else { "" }
                ));
            }
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    let ended = run.finish()?;
    let told = teller.map(Teller::finish).transpose()?;
    kb.journal.close()?; // makes the tree itself durable
    println!("{added} added, {skipped} skipped, {failed} failed");
    told.iter().for_each(Told::print);
    match ended {
        Ended::Partial { reason, .. } if stop.requested() => {
            let done = added + skipped;
            eprintln!(
                "stopped by {reason}: {done} of {} documents are done, the same command goes on",
                documents.len()
            );
            Ok(if reason == "SIGTERM" { 143 } else { 130 })
        }
        Ended::Finished { set_aside, .. } if set_aside > 0 => {
            eprintln!("{set_aside} set aside after {tries} tries: --fresh tries again");
            Ok(1)
        }
        _ => Ok(u8::from(failed > 0)),
    }
}

/// A document as it was found.
pub(crate) struct Document {
    pub(crate) path: PathBuf,
    /// Where that is in the directory that is added.
    pub(crate) source: String,
    item: Vec<u8>,
}

impl Document {
    fn new(dir: &Path, entry: DirEntry) -> Result<Document> {
        let meta = entry.metadata()?;
        let source = entry.path().strip_prefix(dir)?;
        let version = format!(" ({} bytes, {}.{:09})", meta.len(), meta.mtime(), meta.mtime_nsec());
        let item = [source.as_os_str().as_bytes(), version.as_bytes()].concat();
        Ok(Document { source: source.to_string_lossy().into_owned(), path: entry.into_path(), item })
    }
}

/// Of a run a document is another item once it has changed.
impl ItemKey for Document {
    fn key(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.item)
    }
}

/// The documents below `dir` in the order of their names, and a line for each place that could not be read.
fn documents(dir: &Path, kb: &Kb) -> (Vec<Document>, Vec<String>) {
    let (mut documents, mut unreadable) = (Vec::new(), Vec::new());
    for entry in WalkDir::new(dir).sort_by_file_name().into_iter().filter_entry(|entry| !kb.owns(entry.path())) {
        let document = match entry {
            Ok(entry) if entry.file_type().is_file() && Kind::of(entry.path()).is_some() => Document::new(dir, entry),
            Ok(_) => continue,
            Err(error) => Err(error.into()),
        };
        match document {
            Ok(document) => documents.push(document),
            Err(error) => unreadable.push(format!("failed: {error}")),
        }
    }
    (documents, unreadable)
}

/// Prints the pages that contain all the words.
fn search(words: &[String], n: u32, root: &Path) -> Result<u8> {
    let hits = Kb::open(root, false)?.search(words, n)?;
    for (page, title, snippet) in &hits {
        println!("{page}  {title}\n    {}", snippet.split_whitespace().collect::<Vec<_>>().join(" "));
    }
    if hits.is_empty() {
        eprintln!("nothing found");
    }
    Ok(u8::from(hits.is_empty()))
}

/// Prints what is wrong.
fn check(root: &Path) -> Result<u8> {
    let (documents, findings) = check::check(&Kb::open(root, false)?)?;
    findings.iter().for_each(|finding| println!("{finding}"));
    match findings.len() {
        0 => println!("{documents} documents: tree and rows agree"),
        n => println!("{documents} documents: {n} findings"),
    }
    Ok(u8::from(!findings.is_empty()))
}

/// An error with everything that led to it, in one line.
fn chain(error: &(dyn Error + 'static)) -> String {
    let (mut text, mut cause) = (error.to_string(), error.source());
    while let Some(error) = cause {
        let told = error.to_string();
        if !text.contains(&told) {
            text += &format!(": {told}");
        }
        cause = error.source();
    }
    text
}
