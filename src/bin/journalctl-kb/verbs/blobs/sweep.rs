//! `blobs sweep`: files that nothing refers to.

use serde::Serialize;
use serde_json::json;

use super::unwanted;
use crate::exit::{Failure, Outcome};
use crate::output::{Out, bytes, many, path};
use crate::place::Place;

pub(crate) const HELP: &str = "\
Files in blobs/ that no row refers to: the engine leaves one only where a damaged file was replaced; there are more after the database was \
put back from a backup, say. What is called otherwise than the engine calls its files is somebody's, and left alone. First the removals \
that were committed are carried out; a file that somebody reads stays until the next time. --dry-run takes no lock and changes nothing.

Examples:
  journalctl-kb blobs sweep --dry-run       which files; exits 1 when there are any
  journalctl-kb blobs sweep

JSON: files, bytes (that were removed), unwanted, unwanted_bytes (of removed blobs: what stays for now); with --dry-run lines of kind stray: \
file (and file_hex when it is not UTF-8), bytes; and a last one of kind summary: files, bytes (that would be removed)";

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Only show what would be removed
    #[arg(long)]
    dry_run: bool,
}

/// What a line of JSON tells of.
#[derive(Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Line<'a> {
    Stray(&'a journal_kb::inspect::StrayBlob),
    Summary { files: u64, bytes: u64 },
}

pub(crate) fn run(out: &mut Out, place: &Place, arguments: &Arguments) -> Result<Outcome, Failure> {
    if arguments.dry_run {
        return dry_run(out, place);
    }
    let journal = place.journal(false)?;
    let swept = journal.blobs().sweep(false)?;
    journal.close()?;
    let left = place.inspector()?.blobs_summary()?;
    if out.json() {
        out.object(&json!({
            "files": swept.files,
            "bytes": swept.bytes,
            "unwanted": left.unwanted,
            "unwanted_bytes": left.unwanted_bytes,
        }))?;
        return Ok(Outcome::Fine);
    }
    match swept.files {
        0 => out.line("nothing to sweep")?,
        files => {
            let what = many(files, "file");
            out.line(format_args!("removed {what} ({}) that nothing referred to", bytes(swept.bytes)))?;
        }
    }
    if left.unwanted > 0 {
        out.line(unwanted(&left))?;
    }
    Ok(Outcome::Fine)
}

fn dry_run(out: &mut Out, place: &Place) -> Result<Outcome, Failure> {
    let inspector = place.inspector()?;
    let strays = inspector.stray_blobs()?;
    let size = strays.iter().fold(0_u64, |sum, stray| sum.saturating_add(stray.bytes));
    let files = strays.len() as u64;
    if out.json() {
        strays.iter().try_for_each(|stray| out.object(&Line::Stray(stray)))?;
        out.object(&Line::Summary { files, bytes: size })?;
    } else {
        for stray in &strays {
            out.line(format_args!("would remove {} ({})", path(&stray.file), bytes(stray.bytes)))?;
        }
        match files {
            0 => out.line("nothing to sweep")?,
            files => out.line(format_args!("{} ({}) that nothing refers to", many(files, "file"), bytes(size)))?,
        }
        let left = inspector.blobs_summary()?;
        if left.unwanted > 0 {
            out.line(unwanted(&left))?;
        }
    }
    Ok(if strays.is_empty() { Outcome::Fine } else { Outcome::Found })
}
