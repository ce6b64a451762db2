//! `show`: one transaction in full.

use journal_kb::inspect::{ChangeInfo, TransactionDetail};

use crate::exit::{Failure, Outcome};
use crate::output::{Out, Table, Tint, bold, bytes, cell, many, number, path, plain, tinted};
use crate::place::Place;
use crate::time::{ago, local};

pub(crate) const HELP: &str = "\
Example:
  journalctl-kb show 42

JSON: the fields of `log`, and program, paths (path, kind, from, bytes, old_bytes, hash, has_old), redo (path, \
inline_bytes: what recovery would still need), events (id, at_ms, level, kind, txn, path, message). A path that \
is not UTF-8 has its exact bytes in path_hex (from_hex).";

pub(crate) fn run(out: &mut Out, place: &Place, id: i64) -> Result<Outcome, Failure> {
    let detail = place.inspector()?.transaction(id.into())?.ok_or(Failure::NoTransaction(id))?;
    if out.json() {
        out.object(&detail)?;
        return Ok(Outcome::Fine);
    }
    let summary = &detail.summary;
    let state = Tint::of_state(&summary.state).paint(plain(&summary.state));
    out.line(format_args!("{} {} · {state}", bold("transaction"), bold(summary.id)))?;
    facts(out, &detail)?;
    if !detail.paths.is_empty() {
        out.line("")?;
        let mut table = Table::new(&["CHANGE", "SIZE", "BEFORE", "HASH", "PATH"]);
        for change in &detail.paths {
            table.row([
                tinted(&change.kind, tint(&change.kind)),
                number(change.bytes.map_or_else(|| "-".into(), bytes)),
                number(change.old_bytes.map_or_else(|| "-".into(), bytes)),
                cell(change.hash.as_deref().map_or("-", |hash| hash.get(..12).unwrap_or(hash))),
                cell(place_of(change)),
            ]);
        }
        out.table(table)?;
    }
    if !detail.events.is_empty() {
        out.line("")?;
        let mut table = Table::new(&["WHEN", "LEVEL", "EVENT", "PATH", "WHAT HAPPENED"]);
        for event in &detail.events {
            table.row([
                cell(local(event.at_ms)),
                tinted(&event.level, Tint::of_level(&event.level)),
                cell(&event.kind),
                cell(event.path.as_deref().map_or_else(String::new, path)),
                cell(&event.message),
            ]);
        }
        out.table(table)?;
    }
    Ok(Outcome::Fine)
}

fn facts(out: &mut Out, detail: &TransactionDetail) -> Result<(), Failure> {
    let summary = &detail.summary;
    let mut table = Table::indented();
    let mut fact = |name: &str, value: String| table.row([cell(name), cell(value)]);
    if !summary.label.is_empty() {
        fact("label", summary.label.clone());
    }
    if let Some(key) = &summary.key {
        fact("key", key.clone());
    }
    fact("committed", format!("{} ({})", local(summary.committed_ms), ago(summary.committed_ms)));
    fact("began", local(summary.began_ms));
    if let Some(settled) = summary.settled_ms {
        fact("settled", local(settled));
    }
    fact("lock", format!("{}, fence {}", summary.lock, summary.fence));
    let program = detail.program.as_deref().map_or_else(String::new, |program| format!("{program}, "));
    fact("by", format!("{program}session {}", summary.session));
    let rows = if summary.ran_sql { ", and rows of the application" } else { "" };
    fact("changed", format!("{} with {}{rows}", many(summary.changes, "path"), bytes(summary.bytes)));
    if summary.history_bytes > 0 {
        fact("kept of old", bytes(summary.history_bytes));
    }
    if !detail.redo.is_empty() {
        fact("to redo", format!("{} in the journal until the tree is durable", many(detail.redo.len() as u64, "path")));
    }
    if summary.attempts > 0 {
        fact("recoveries", format!("{} begun and not ended", summary.attempts));
    }
    out.table(table)
}

fn place_of(change: &ChangeInfo) -> String {
    match &change.from {
        Some(from) => format!("{} → {}", from.to_string_lossy(), change.path.to_string_lossy()),
        None => change.path.to_string_lossy().into_owned(),
    }
}

fn tint(kind: &str) -> Tint {
    match kind {
        "created" | "directory" => Tint::Good,
        "removed" => Tint::Bad,
        _ => Tint::Busy,
    }
}
