//! `blobs verify`: whether what blobs say is what was sealed.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use journal_kb::StopToken;
use journal_kb::inspect::{BlobCheck, BlobFinding, BlobNews, BlobsVerified};
use serde::Serialize;

use super::find;
use crate::exit::{Failure, Outcome};
use crate::output::{Out, Tint, bytes, many, path, plain};
use crate::place::Place;

pub(crate) const HELP: &str = "\
Each content is read once, however many blobs say it, from its file or the database, and its size and BLAKE3 hash are compared with \
those that were sealed. It takes no lock: others go on writing, reading and removing, and what is removed meanwhile is no finding. What \
is sealed after it began is left to the next time. Nothing is changed: write the same content again to mend what is damaged (where the \
bytes have changed, remove the file first), or put the file back from a backup.

Examples:
  journalctl-kb blobs verify                      all there are
  journalctl-kb blobs verify 'upload 17' 4bf5     these, by name or by how their hash begins
  journalctl-kb blobs verify --fast               sizes only, which takes little
  journalctl-kb blobs verify --json | jq -r 'select(.kind == \"finding\") | .blobs[]'

Exit codes: 0 when all is whole; 1 with findings, and when a blob that was named is not there.

JSON: lines of kind finding: problem (missing, size, content, unreadable; row for what cannot be in the database, not_sealed for a blob \
that was named), blobs (that say so, the first 20), more_blobs, hash, bytes (as sealed), found_hash, found_bytes, file (and file_hex when \
it is not UTF-8; not there when it stands in the database), message; a last line of kind summary: contents, bytes (that were compared), \
findings";

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Only these: what they are called, or how their hashes begin
    #[arg(value_name = "ID")]
    ids: Vec<String>,
    /// Compare sizes only, and read nothing
    #[arg(long)]
    fast: bool,
}

/// What a line of JSON tells of.
#[derive(Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Line<'a> {
    Finding(&'a BlobFinding),
    Summary(&'a BlobsVerified),
}

pub(crate) fn run(out: &mut Out, place: &Place, arguments: &Arguments) -> Result<Outcome, Failure> {
    let inspector = place.inspector()?;
    let stop = StopToken::new();
    let mut check = BlobCheck { fast: arguments.fast, stop: stop.clone(), ..BlobCheck::default() };
    let mut total = 0;
    for id in &arguments.ids {
        let detail = find(&inspector, id)?;
        total += detail.blob.bytes.unwrap_or(0);
        check.ids.push(detail.blob.id);
    }
    if arguments.ids.is_empty() {
        total = inspector.blobs_summary()?.bytes;
    }
    // It is there for people alone: to a pipe or a file it writes nothing.
    let bar = ProgressBar::new(total).with_style(style());
    bar.enable_steady_tick(Duration::from_millis(200));
    let mut written = Ok(());
    let verified = inspector.verify_blobs(&check, |news| match news {
        BlobNews::Progress(done) => {
            bar.set_position(done.bytes);
            if done.findings > 0 {
                bar.set_message(format!(", {}", many(done.findings, "finding")));
            }
        }
        BlobNews::Finding(finding) => {
            // All of it is written while there is no bar.
            let told = bar.suspend(|| tell(out, finding).and_then(|()| out.flush()));
            if let Err(error) = told
                && written.is_ok()
            {
                stop.stop("nobody reads what it says");
                written = Err(error);
            }
        }
        _ => {}
    });
    bar.finish_and_clear();
    let verified = verified?;
    written?;
    if out.json() {
        out.object(&Line::Summary(&verified))?;
    } else {
        let how = if arguments.fast { "by size alone" } else { "byte by byte" };
        let what = format!("{} with {} compared {how}", many(verified.contents, "content"), bytes(verified.bytes));
        let found = match verified.findings {
            0 => Tint::Good.paint("all whole"),
            findings => Tint::Bad.paint(many(findings, "finding")),
        };
        out.line(format_args!("{what}: {found}"))?;
    }
    Ok(if verified.findings == 0 { Outcome::Fine } else { Outcome::Found })
}

fn style() -> ProgressStyle {
    let template = "{bar:30} {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left{msg}";
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// One line.
fn tell(out: &mut Out, finding: &BlobFinding) -> Result<(), Failure> {
    if out.json() {
        return out.object(&Line::Finding(finding));
    }
    let more = if finding.more_blobs > 0 { format!(" and {} more", finding.more_blobs) } else { String::new() };
    let file = finding.file.as_deref().map_or_else(String::new, |file| format!(" ({})", path(file)));
    let blobs = if finding.blobs.is_empty() { "?".into() } else { plain(&finding.blobs.join(", ")) };
    let problem = Tint::Bad.paint(finding.problem);
    out.line(format_args!("{problem}: {blobs}{more}: {}{file}", plain(&finding.message)))
}
