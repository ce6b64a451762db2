//! `outbox show`: one message in full.

use std::fmt::Write as _;

use journal_kb::inspect::MessageDetail;

use super::state_of;
use crate::exit::{Failure, Outcome};
use crate::output::{Out, Table, Tint, bold, bytes, cell, many, plain, tinted};
use crate::place::Place;
use crate::time::{ago, local};

pub(crate) const HELP: &str = "\
What it says is shown as text, or by its bytes where it is none, and cut where it is long: --json has all of it.

Examples:
  journalctl-kb outbox show 44040192
  journalctl-kb outbox show 44040192 --json | jq -r .payload

JSON: the fields of a message of `outbox`, and newest (the version of the newest message of its key), retired (its key was \
retired after it: it is not published any more), label (of its transaction), payload (as text; not there in a removal) and, where \
that is not UTF-8, payload_hex with the exact bytes.";

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Its number, as in `outbox`
    #[arg(value_name = "ID", allow_negative_numbers = true)]
    id: i64,
}

pub(crate) fn run(out: &mut Out, place: &Place, arguments: &Arguments) -> Result<Outcome, Failure> {
    let id = arguments.id;
    let detail = place.inspector()?.message(id)?.ok_or(Failure::NoMessage(id))?;
    if out.json() {
        out.object(&detail)?;
        return Ok(Outcome::Fine);
    }
    let message = &detail.message;
    let (word, tint) = state_of(message);
    let painted = tint.paint(plain(word));
    out.line(format_args!("{} {} · {} · {painted}", bold("message"), bold(id), bold(plain(&message.topic))))?;
    facts(out, &detail)?;
    if let Some(payload) = detail.payload.as_deref().filter(|payload| !payload.is_empty()) {
        out.line("")?;
        said(payload).iter().try_for_each(|line| out.line(plain(line)))?;
    }
    out.line(format_args!("\n{}", bold("What can be done")))?;
    let mut table = Table::indented();
    if message.attempts > 0 || message.state != "waiting" {
        let why = "have it tried again, once what is wrong is mended";
        table.row([tinted(format!("journalctl-kb outbox retry {id}"), Tint::Busy), cell(why)]);
    }
    let why = "give it up, for good: it is not published";
    table.row([tinted(format!("journalctl-kb outbox drop {id} --yes"), Tint::Busy), cell(why)]);
    out.table(table)?;
    Ok(Outcome::Fine)
}

fn facts(out: &mut Out, detail: &MessageDetail) -> Result<(), Failure> {
    let message = &detail.message;
    let mut table = Table::indented();
    let mut fact = |name: &str, value: String| {
        if !value.is_empty() {
            table.row([cell(name), cell(value)]);
        }
    };
    fact("key", message.key.clone());
    let overtaken = match detail.newest {
        _ if detail.retired => "; its key was retired after it, and it is not published any more".into(),
        Some(newest) if newest > message.version => format!("; the newest of its key is {newest}"),
        _ => String::new(),
    };
    fact("version", format!("{}{overtaken}", message.version));
    fact("committed", format!("{} ({})", local(message.enqueued_ms), ago(message.enqueued_ms)));
    let label = if detail.label.is_empty() { String::new() } else { format!(" {:?}", detail.label) };
    fact("with", format!("transaction {}{label}, fence {}", message.txn, message.fence));
    if message.attempts > 0 || !message.error.is_empty() {
        let last = message.tried_ms.map_or_else(String::new, |ms| format!(", last {} ({})", local(ms), ago(ms)));
        fact("refused", format!("{}{last}", many(message.attempts, "time")));
        fact("because", message.error.clone());
    }
    let what = if message.removal { "that it is gone".into() } else { bytes(message.bytes) };
    fact("says", what);
    out.table(table)
}

/// So many lines are shown, and characters of each.
const MOST_LINES: usize = 100;
const LONGEST_LINE: usize = 1000;
/// So many bytes of what is no text.
const MOST_BYTES: usize = 256;
/// A payload for people, line by line. What it may do to a terminal is not looked at here.
fn said(payload: &[u8]) -> Vec<String> {
    let Ok(text) = std::str::from_utf8(payload) else {
        let mut lines: Vec<String> = payload[..payload.len().min(MOST_BYTES)].chunks(32).map(hex).collect();
        if payload.len() > MOST_BYTES {
            lines.push(CUT.into());
        }
        return lines;
    };
    let mut is_cut = false;
    let mut lines: Vec<String> = Vec::new();
    for line in text.lines() {
        if lines.len() == MOST_LINES {
            is_cut = true;
            break;
        }
        let short: String = line.chars().take(LONGEST_LINE).collect();
        is_cut |= short.len() < line.len();
        lines.push(short);
    }
    if is_cut {
        lines.push(CUT.into());
    }
    lines
}

const CUT: &str = "… (all of it with --json)";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{}{byte:02x}", if text.is_empty() { "" } else { " " });
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_is_told_as_what_it_is_and_not_all_of_it() {
        assert_eq!(said(b"one\ntwo"), ["one", "two"]);
        assert_eq!(said(b"\xff\x00a"), ["ff 00 61"]);
        let cut = |payload: &[u8], lines: usize, longest: usize| {
            let said = said(payload);
            assert_eq!((said.len(), said.last().map(String::as_str)), (lines + 1, Some(CUT)));
            assert!(said.iter().all(|line| line.chars().count() <= longest));
        };
        cut(&[0xff; 257], 8, 95);
        cut("é\n".repeat(101).as_bytes(), 100, CUT.len());
        cut("é".repeat(1001).as_bytes(), 1, 1000);
        assert_eq!(said("é\n".repeat(100).as_bytes()).len(), 100);
    }
}
