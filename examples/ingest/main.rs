//! A small document knowledge base: files and rows that change together.
//!
//! `ingest add DIR --kb KB` takes in every Markdown, text and HTML file below DIR, one transaction each. Kill it
//! whenever you like and start it again: it goes on where it was, and the result is that of a run nobody disturbed.
//!
//! ```text
//! cargo run --release --example ingest -- add ~/notes --kb /tmp/kb
//! cargo run --release --example ingest -- search crash safety --kb /tmp/kb
//! cargo run --release --example ingest -- check --kb /tmp/kb
//! ```
//!
//! [`kb`] is where the journal is used; [`convert`] turns a document into a page; [`check`] compares tree and rows.

#![expect(clippy::disallowed_methods, reason = "an application changes files outside the knowledge base as it likes")]

mod check;
mod convert;
mod index;
mod kb;

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use walkdir::WalkDir;

use crate::convert::Kind;
use crate::kb::{Added, Kb};

type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

/// A document knowledge base: originals, readable pages, an index and full-text search, always in step.
#[derive(Parser)]
#[command(after_help = "Exit status: 0 done, 1 something failed, is wrong or was not found, 2 it could not be tried.")]
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
    Add { dir: PathBuf },
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
        Verb::Add { dir } => add(&dir, &cli.kb),
        Verb::Search { words, n } => search(&words, n, &cli.kb),
        Verb::Check => check(&cli.kb),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("ingest: {}", chain(&*error));
            ExitCode::from(2)
        }
    }
}

/// Takes in what lies below `dir`; `false` when a document could not be.
fn add(dir: &Path, root: &Path) -> Result<bool> {
    let dir = fs::canonicalize(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    if !dir.is_dir() {
        return Err(format!("{}: not a directory", dir.display()).into());
    }
    fs::create_dir_all(root).map_err(|error| format!("{}: {error}", root.display()))?;
    let kb = Kb::open(root, true)?;

    let (documents, unreadable) = documents(&dir, &kb);
    let bar = ProgressBar::new(documents.len() as u64) // draws on a terminal only
        .with_style(ProgressStyle::with_template("{bar:32} {pos}/{len} {wide_msg}")?);
    let say = |text: String| bar.suspend(|| eprintln!("{text}"));

    let (mut added, mut skipped, mut failed) = (0, 0, unreadable.len());
    unreadable.into_iter().for_each(say);
    for path in documents {
        let source = path.strip_prefix(&dir)?.to_string_lossy().into_owned();
        bar.set_message(source.clone());
        match kb.add(&path, &source) {
            Ok(Added::New(receipt)) => {
                added += 1;
                receipt.warnings().iter().for_each(|warning| say(format!("{source}: warning: {warning}")));
            }
            Ok(Added::Known) => skipped += 1,
            Ok(Added::Empty) => {
                skipped += 1;
                say(format!("{source}: skipped: it is empty"));
            }
            Err(error) => {
                failed += 1;
                say(format!("{source}: failed: {}", chain(&*error)));
            }
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    kb.journal.close()?; // makes the tree itself durable
    println!("{added} added, {skipped} skipped, {failed} failed");
    Ok(failed == 0)
}

/// The documents below `dir` in the order of their names, and a line for each place that could not be read.
fn documents(dir: &Path, kb: &Kb) -> (Vec<PathBuf>, Vec<String>) {
    let (mut documents, mut unreadable) = (Vec::new(), Vec::new());
    for entry in WalkDir::new(dir).sort_by_file_name().into_iter().filter_entry(|entry| !kb.owns(entry.path())) {
        match entry {
            Ok(entry) if entry.file_type().is_file() && Kind::of(entry.path()).is_some() => {
                documents.push(entry.into_path());
            }
            Ok(_) => {}
            Err(error) => unreadable.push(format!("failed: {error}")),
        }
    }
    (documents, unreadable)
}

/// Prints the pages that contain all the words; `false` when none does.
fn search(words: &[String], n: u32, root: &Path) -> Result<bool> {
    let hits = Kb::open(root, false)?.search(words, n)?;
    for (page, title, snippet) in &hits {
        println!("{page}  {title}\n    {}", snippet.split_whitespace().collect::<Vec<_>>().join(" "));
    }
    if hits.is_empty() {
        eprintln!("nothing found");
    }
    Ok(!hits.is_empty())
}

/// Prints what is wrong; `true` when nothing is.
fn check(root: &Path) -> Result<bool> {
    let (documents, findings) = check::check(&Kb::open(root, false)?)?;
    findings.iter().for_each(|finding| println!("{finding}"));
    match findings.len() {
        0 => println!("{documents} documents: tree and rows agree"),
        n => println!("{documents} documents: {n} findings"),
    }
    Ok(findings.is_empty())
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
