//! `show`: one transaction in full.

use journal_kb::inspect::{ChangeInfo, EventInfo, TransactionDetail};

use crate::exit::{Failure, Outcome};
use crate::output::{Out, Table, Tint, bold, bytes, cell, many, number, path, plain, state, tinted};
use crate::place::Place;
use crate::time::{ago, local};

pub(crate) const HELP: &str = "\
Example:
  journalctl-kb show 42

Of a transaction that was rolled back the paths are what had been done and is undone: SIZE is of what was displaced, \
BEFORE of what is there again, and KEPT AS is the name in .journal/history/ by which the displaced version can be had.

JSON: the fields of `log`, and program, paths (path, kind, from, bytes, old_bytes, hash, has_old, kept_as), redo (path, \
inline_bytes: what recovery would still need), events (id, at_ms, level, kind, txn, path, message). A path that \
is not UTF-8 has its exact bytes in path_hex (from_hex).";

pub(crate) fn run(out: &mut Out, place: &Place, id: i64) -> Result<Outcome, Failure> {
    let detail = place.inspector()?.transaction(id.into())?.ok_or(Failure::NoTransaction(id))?;
    if out.json() {
        out.object(&detail)?;
        return Ok(Outcome::Fine);
    }
    let summary = &detail.summary;
    let painted = Tint::of_state(&summary.state).paint(plain(state(&summary.state)));
    out.line(format_args!("{} {} · {painted}", bold("transaction"), bold(summary.id)))?;
    facts(out, &detail)?;
    if !detail.paths.is_empty() {
        out.line("")?;
        let undone = is_rolled_back(&detail);
        let (change, name) = if undone { ("UNDONE", "KEPT AS") } else { ("CHANGE", "HASH") };
        let mut table = Table::new(&[change, "SIZE", "BEFORE", name, "PATH"]);
        for change in &detail.paths {
            let name = match undone {
                true => change.kept_as.as_deref(),
                false => change.hash.as_deref().map(|hash| hash.get(..12).unwrap_or(hash)),
            };
            table.row([
                tinted(&change.kind, tint(&change.kind)),
                number(change.bytes.map_or_else(|| "-".into(), bytes)),
                number(change.old_bytes.map_or_else(|| "-".into(), bytes)),
                cell(name.unwrap_or("-")),
                cell(place_of(change)),
            ]);
        }
        out.table(table)?;
    }
    // That something displaced is kept stands beside its path.
    let told = |event: &&EventInfo| !(is_rolled_back(&detail) && event.kind == "rolled-back");
    let events: Vec<_> = detail.events.iter().filter(told).collect();
    if !events.is_empty() {
        out.line("")?;
        let mut table = Table::new(&["WHEN", "LEVEL", "EVENT", "PATH", "WHAT HAPPENED"]);
        for event in events {
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
    let undone = is_rolled_back(detail);
    let ended = if undone { "rolled back" } else { "committed" };
    fact(ended, format!("{} ({})", local(summary.committed_ms), ago(summary.committed_ms)));
    fact("began", local(summary.began_ms));
    if let Some(settled) = summary.settled_ms.filter(|_| !undone) {
        fact("settled", local(settled));
    }
    // Who rolls back may not have had to write down which fence it had.
    let fence = if summary.fence == 0 { String::new() } else { format!(", fence {}", summary.fence) };
    fact("lock", format!("{}{fence}", summary.lock));
    let program = detail.program.as_deref().map_or_else(String::new, |program| format!("{program}, "));
    fact("by", format!("{program}session {}", summary.session));
    let rows = if summary.ran_sql { ", and rows of the application" } else { "" };
    let kept = detail.paths.iter().filter(|change| change.has_old).count() as u64;
    if undone {
        fact("put back", many(summary.changes, "path"));
        if kept > 0 {
            let (versions, size) = (many(kept, "displaced version"), bytes(summary.history_bytes));
            fact("kept in history", format!("{versions} with {size}, until retention drops them"));
        }
    } else {
        // What was done to guarded paths was written by somebody else, and is not counted as brought.
        let sizes = detail.paths.iter().filter(|change| change.from.is_none()).filter_map(|change| change.bytes);
        let size = sizes.fold(0, u64::saturating_add);
        fact("changed", format!("{} with {}{rows}", many(summary.changes, "path"), bytes(summary.bytes.max(size))));
        if kept > 0 {
            fact("kept of old", bytes(summary.history_bytes));
        }
    }
    if !detail.redo.is_empty() {
        fact("to redo", format!("{} in the journal until the tree is durable", many(detail.redo.len() as u64, "path")));
    }
    if summary.attempts > 0 {
        fact("recoveries", format!("{} begun and not ended", summary.attempts));
    }
    out.table(table)
}

fn is_rolled_back(detail: &TransactionDetail) -> bool {
    detail.summary.state == "rolled_back"
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
