//! `blobs`: which there are, whether they are whole, and what nobody refers to.

mod show;
mod sweep;
mod verify;

use clap::builder::PossibleValuesParser;
use clap::{Subcommand, builder::TypedValueParser};
use journal_kb::inspect::{BlobFilter, BlobInfo, BlobsInfo, Inspector, SessionInfo};
use serde::Serialize;

use crate::exit::{Failure, Outcome};
use crate::output::{Out, Table, Tint, bytes, cell, many, number, shell_word, tinted};
use crate::place::Place;
use crate::time::ago;

pub(crate) const HELP: &str = "\
First the blobs with a name, in the order of their names: \"writing\" (its writer lives, by the kernel's word; SIZE is how far it is), \
\"sealed\", \"incomplete\" (its writer died), \"aborted\" (its writer gave it up) or \"corrupt\" (its row makes no sense). Then those that are \
called by their content, newest first. Of a content the beginning of its hash is enough wherever a blob is named, and that is what is \
shown to people. WHERE is \"inline\" (in the database), \"file\" (in blobs/), \"stage\" (on its way there), \"missing\", or \"unknown\" when it cannot be looked at; SAME how many blobs \
say the same, which is kept once. Whether what they say is whole is not looked at here, but by `verify`.

Examples:
  journalctl-kb blobs                                which there are, and how much room they take
  journalctl-kb blobs --state incomplete -n 0        all whose writers died
  journalctl-kb blobs show blake3:4bf5122f           one blob: its file, who reads it, who says the same
  journalctl-kb blobs verify                         read them all, and compare them with what was sealed
  journalctl-kb blobs sweep --dry-run                files that nothing refers to
  journalctl-kb blobs --json | jq 'select(.kind == \"summary\")'

JSON: lines of kind blob: id, by_content, state (writing, sealed, incomplete, aborted, removed, corrupt), bytes (of one that was not \
sealed how far it is or was, null where nobody knows), place (inline, file, stage, missing, unknown; null when it is not sealed), same, began_ms, \
ended_ms (sealed, given up or removed), writer (id, pid, program, since_ms, alive: who writes it, or has died of it); a last line of kind \
summary: sealed, contents, bytes (of contents), saved_bytes (so much more it were if each blob had its own), writing, incomplete, aborted, \
removed, unwanted (contents that nobody says any more, and whose files are still to go), unwanted_bytes, unwanted_read (how many of the \
first 100 of these somebody reads), exact (false where there was too much to count: there is at least so much)";

#[derive(Debug, Subcommand)]
pub(crate) enum Action {
    /// The same as without a verb (reads only)
    List(ListArguments),
    /// Show all of one blob: its file, its hash, who writes or reads it, who says the same (reads only)
    #[command(after_help = show::HELP)]
    Show(show::Arguments),
    /// Read what blobs say, and compare it with what was sealed (reads only)
    #[command(after_help = verify::HELP)]
    Verify(verify::Arguments),
    /// Remove files among those of blobs that nothing refers to
    #[command(after_help = sweep::HELP)]
    Sweep(sweep::Arguments),
}

const STATES: [&str; 6] = ["writing", "sealed", "incomplete", "aborted", "removed", "corrupt"];

#[derive(Debug, clap::Args)]
pub(crate) struct ListArguments {
    /// Only those in this state
    #[arg(long, value_name = "STATE", value_parser = PossibleValuesParser::new(STATES).map(|state| state))]
    state: Option<String>,
    /// Those that were removed, too: their names are not used again
    #[arg(long)]
    all: bool,
    /// At most so many with a name, and as many that are called by their content; 0 for all [default: 25]
    #[arg(short = 'n', long = "lines", value_name = "N")]
    lines: Option<u64>,
}

/// So many blobs of each kind are listed unless told otherwise.
const LINES: u64 = 25;
/// So many stand in one table.
const PAGE: usize = 500;
/// So many digits of a hash tell one content from another, for people.
const DIGITS: usize = 16;

pub(crate) fn run(
    out: &mut Out,
    place: &Place,
    arguments: &ListArguments,
    action: Option<&Action>,
) -> Result<Outcome, Failure> {
    let ListArguments { state, all, lines } = arguments;
    match action {
        Some(_) if state.is_some() || *all || lines.is_some() => {
            Err(Failure::Usage("--state, --all and -n stand behind `list`"))
        }
        None => list(out, place, arguments),
        Some(Action::List(arguments)) => list(out, place, arguments),
        Some(Action::Show(arguments)) => show::run(out, place, arguments),
        Some(Action::Verify(arguments)) => verify::run(out, place, arguments),
        Some(Action::Sweep(arguments)) => sweep::run(out, place, arguments),
    }
}

/// What a line of JSON tells of.
#[derive(Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Line<'a> {
    Blob(&'a BlobInfo),
    Summary(&'a BlobsInfo),
}

fn list(out: &mut Out, place: &Place, arguments: &ListArguments) -> Result<Outcome, Failure> {
    let inspector = place.inspector()?;
    let mut shown = 0;
    for by_content in [false, true] {
        shown += tell_blobs(out, &inspector, arguments, by_content)?;
    }
    let summary = inspector.blobs_summary()?;
    if out.json() {
        out.object(&Line::Summary(&summary))?;
        return Ok(Outcome::Fine);
    }
    if shown == 0 {
        match &arguments.state {
            None if summary.removed > 0 => out.line("no blobs but those that were removed; --all lists them")?,
            None => out.line("no blobs yet")?,
            Some(state) => out.line(format_args!("no blob is {state}"))?,
        }
    }
    let told = sums(&summary);
    if !told.is_empty() {
        out.line(format_args!("\n{}", told.join("; ")))?;
    }
    Ok(Outcome::Fine)
}

/// Lists blobs of a kind, and answers how many.
fn tell_blobs(
    out: &mut Out,
    inspector: &Inspector,
    arguments: &ListArguments,
    by_content: bool,
) -> Result<u64, Failure> {
    let ListArguments { state, all, lines } = arguments;
    let filter = BlobFilter { by_content, state: state.clone(), removed: *all };
    let lines = lines.unwrap_or(LINES);
    let mut blobs = inspector.blobs(filter);
    let (mut shown, mut page) = (0, Vec::new());
    while lines == 0 || shown < lines {
        let Some(blob) = blobs.next().transpose()? else { break };
        shown += 1;
        if out.json() {
            out.object(&Line::Blob(&blob))?;
            continue;
        }
        page.push(blob);
        if page.len() == PAGE {
            tell_page(out, &page)?;
            page.clear();
        }
    }
    if !page.is_empty() {
        tell_page(out, &page)?;
    }
    // One more tells whether that is all.
    if !out.json() && shown == lines && blobs.next().transpose()?.is_some() {
        out.line(format_args!(
            "… and more {}; -n 0 lists them all",
            if by_content { "by content" } else { "with names" }
        ))?;
    }
    Ok(shown)
}

fn tell_page(out: &mut Out, page: &[BlobInfo]) -> Result<(), Failure> {
    let mut table = Table::new(&["BLOB", "STATE", "SIZE", "WHERE", "SAME", "AGE", "WHO"]);
    for blob in page {
        let (word, tint) = state(blob);
        let age = blob.ended_ms.or(blob.began_ms).map_or_else(String::new, ago);
        table.row([
            cell(short(blob)),
            tinted(word, tint),
            number(blob.bytes.map_or_else(String::new, bytes)),
            tinted(blob.place.unwrap_or_default(), place_tint(blob.place)),
            number(if blob.same > 1 { blob.same.to_string() } else { String::new() }),
            cell(age),
            cell(blob.writer.as_ref().map_or_else(String::new, who)),
        ]);
    }
    out.table(table)
}

/// What it is called, as far as people need it: of a hash the beginning.
fn short(blob: &BlobInfo) -> &str {
    match blob.by_content {
        true => blob.id.get(.."blake3:".len() + DIGITS).unwrap_or(&blob.id),
        false => &blob.id,
    }
}

/// The state of a blob.
fn state(blob: &BlobInfo) -> (&str, Tint) {
    let tint = match blob.state.as_str() {
        "sealed" => Tint::Good,
        "writing" => Tint::Busy,
        "incomplete" => Tint::Warning,
        "aborted" | "removed" | "named" | "unwanted" => Tint::None,
        _ => Tint::Bad,
    };
    (&blob.state, tint)
}

fn place_tint(place: Option<&str>) -> Tint {
    if matches!(place, Some("missing" | "unknown")) { Tint::Bad } else { Tint::None }
}

fn who(writer: &SessionInfo) -> String {
    // Sessions are forgotten in the end.
    let name = if writer.pid == 0 { "its process".into() } else { format!("{}[{}]", writer.program, writer.pid) };
    if writer.alive == Some(false) { format!("{name}, which died") } else { name }
}

/// Blobs as a whole, in a few words each; nothing where there are none.
pub(crate) fn sums(blobs: &BlobsInfo) -> Vec<String> {
    let least = if blobs.exact { "" } else { "at least " };
    let mut told = Vec::new();
    if blobs.sealed > 0 {
        told.push(format!("{least}{} in {}", many(blobs.sealed, "blob"), bytes(blobs.bytes)));
    }
    if blobs.saved_bytes > 0 {
        told.push(format!("{least}{} saved by keeping the same content once", bytes(blobs.saved_bytes)));
    }
    let states = [(blobs.writing, "being written"), (blobs.incomplete, "incomplete"), (blobs.aborted, "aborted")];
    told.extend(states.iter().filter(|(n, _)| *n > 0).map(|(n, word)| format!("{n} {word}")));
    if blobs.unwanted > 0 {
        told.push(unwanted(blobs));
    }
    told
}

/// What is still to go, and why it has not gone.
fn unwanted(blobs: &BlobsInfo) -> String {
    let files = many(blobs.unwanted, "file");
    let size = bytes(blobs.unwanted_bytes);
    let read = match blobs.unwanted_read {
        0 => "the next settling removes them".into(),
        read => format!("{read} of them as somebody reads them"),
    };
    format!("{files} of removed blobs ({size}) still to go, {read}")
}

/// One blob by all of its name, or by the beginning of its hash.
fn find(inspector: &Inspector, id: &str) -> Result<journal_kb::inspect::BlobDetail, Failure> {
    if let Some(detail) = inspector.blob(id)? {
        return Ok(detail);
    }
    let ids = inspector.blob_ids(id)?;
    let found = match ids.as_slice() {
        [one] => inspector.blob(one)?,
        [] => None,
        _ => return Err(Failure::BlobsAlike(id.to_owned(), ids)),
    };
    found.ok_or_else(|| Failure::NoBlob(id.to_owned()))
}

/// A command about a blob, as a shell takes it.
fn command(verb: &str, id: &str) -> String {
    let end = if id.starts_with('-') { "-- " } else { "" };
    format!("journalctl-kb blobs {verb} {end}{}", shell_word(id))
}
