//! `blobs show`: one blob in full.

use journal_kb::inspect::BlobDetail;

use super::{command, find, short, state, who};
use crate::exit::{Failure, Outcome};
use crate::output::{Out, Table, Tint, bold, bytes, cell, many, path, plain, tinted};
use crate::place::Place;
use crate::time::{ago, local};

pub(crate) const HELP: &str = "\
A name is taken for that of a blob; where none is called so, for the beginning of a hash, with blake3: before it or not. Content that is \
no blob by itself is \"named\" (blobs with names say it) or \"unwanted\" (nobody says it any more, and its file is still to go). The size of \
what is there is compared with what was sealed; the bytes are not read, which is what `verify` is for.

Examples:
  journalctl-kb blobs show 'upload 17'
  journalctl-kb blobs show 4bf5122f
  journalctl-kb blobs show 4bf5122f --json | jq -r .file

Exit codes: 0; 1 when no blob is called so, or several begin so.

JSON: the fields of a blob of `blobs`, with two more states (named, unwanted), and hash (null before it is sealed), times (how often it \
was sealed under its content, and not removed), file (and file_hex when it is not UTF-8; not there when it has none), found_bytes (null \
when its file is missing), damage (null when the size is right), readers (the processes that read its file), others (blobs that say \
the same, the first 20), more_others";

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// What it is called, or how its hash begins
    #[arg(value_name = "ID")]
    id: String,
}

pub(crate) fn run(out: &mut Out, place: &Place, arguments: &Arguments) -> Result<Outcome, Failure> {
    let detail = find(&place.inspector()?, &arguments.id)?;
    if out.json() {
        out.object(&detail)?;
        return Ok(Outcome::Fine);
    }
    let blob = &detail.blob;
    let (word, tint) = state(blob);
    out.line(format_args!("{} {} · {}", bold("blob"), bold(plain(&blob.id)), tint.paint(plain(word))))?;
    facts(out, &detail)?;
    let sealed = matches!(blob.state.as_str(), "sealed" | "named");
    if sealed {
        out.line(format_args!("\n{}", bold("What can be done")))?;
        let mut table = Table::indented();
        let verify = command("verify", short(blob));
        table.row([tinted(verify, Tint::Busy), cell("read it, and compare it with what was sealed")]);
        out.table(table)?;
    }
    Ok(Outcome::Fine)
}

fn facts(out: &mut Out, detail: &BlobDetail) -> Result<(), Failure> {
    let blob = &detail.blob;
    let mut table = Table::indented();
    let mut fact = |name: &str, value: String| {
        if !value.is_empty() {
            table.row([cell(name), cell(value)]);
        }
    };
    let when = |ms: Option<i64>| ms.map_or_else(String::new, |ms| format!("{} ({})", local(ms), ago(ms)));
    let ended = match blob.state.as_str() {
        "aborted" => "given up",
        "removed" => "removed",
        "incomplete" => "found so",
        _ => "sealed",
    };
    let size = blob.bytes.map_or_else(String::new, |size| format!("{} ({size} bytes)", bytes(size)));
    let so_far = match blob.state.as_str() {
        "writing" => " so far",
        "incomplete" => " had left its writer",
        _ => "",
    };
    fact("size", if size.is_empty() { size } else { format!("{size}{so_far}") });
    fact("hash", detail.hash.clone().unwrap_or_default());
    fact(
        "where",
        blob.place.map_or_else(String::new, |place| match &detail.file {
            Some(file) => format!("{place}: {}", path(file)),
            None => place.to_owned(),
        }),
    );
    fact("damaged", detail.damage.clone().unwrap_or_default());
    fact("begun", when(blob.began_ms));
    fact(ended, when(blob.ended_ms));
    fact("writer", blob.writer.as_ref().map_or_else(String::new, who));
    if detail.times > 1 {
        let more = "removed as often, it is gone";
        fact("sealed so", format!("{}: {more}", many(detail.times, "time")));
    }
    let readers: Vec<_> = detail.readers.iter().map(|pid| format!("process {pid}")).collect();
    fact("read by", readers.join(", "));
    let more = if detail.more_others > 0 { format!(", and {} more", detail.more_others) } else { String::new() };
    fact("the same", if detail.others.is_empty() { more } else { format!("{}{more}", detail.others.join(", ")) });
    out.table(table)
}
