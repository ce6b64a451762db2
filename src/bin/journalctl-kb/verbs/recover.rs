//! `recover`: finishes what a crash left.

use std::os::unix::ffi::OsStrExt;

use serde_json::json;

use crate::exit::{Failure, Outcome};
use crate::output::{Out, Table, cell, many, number, path};
use crate::place::Place;

pub(crate) const HELP: &str = "\
Every program that opens the journal does this by itself; this is for when none will, for instance before rsync \
or a backup. What recovery is not sure of is moved aside and kept, never thrown away. \
--dry-run changes nothing in the tree; it opens a session for the look, and waits for its turn to write.

Examples:
  journalctl-kb recover --dry-run       the steps, with the tree left as it is; exits 1 when there are any
  journalctl-kb recover

JSON: applied, settled, moved_aside, pending, quarantined, swept; with --dry-run one object a step: txn, path \
(and path_hex when it is not UTF-8), action, reason";

pub(crate) fn run(out: &mut Out, place: &Place) -> Result<Outcome, Failure> {
    let journal = place.journal(false)?;
    let done = journal.recover()?;
    journal.close()?;
    if out.json() {
        out.object(&json!({
            "applied": done.applied,
            "settled": done.settled,
            "moved_aside": done.moved_aside,
            "pending": done.pending,
            "quarantined": done.quarantined,
            "swept": done.swept,
        }))?;
    } else {
        let told = [
            (done.applied, "transaction", "carried into the tree"),
            (done.settled, "transaction", "settled"),
            (done.moved_aside, "path", "moved aside to quarantine, because somebody else had changed it"),
            (done.swept, "leftover", "of unfinished work swept"),
            (done.pending, "transaction", "still pending: `journalctl-kb status` says why"),
            (done.quarantined, "transaction", "in quarantine: `journalctl-kb status` says which"),
        ];
        for (count, what, how) in told {
            if count > 0 {
                out.line(format_args!("{} {how}", many(count, what)))?;
            }
        }
        if told.iter().all(|(count, ..)| *count == 0) {
            out.line("nothing to recover")?;
        }
    }
    Ok(match (done.quarantined, done.pending) {
        (0, 0) => Outcome::Fine,
        (0, _) => Outcome::Found,
        _ => Outcome::Quarantined,
    })
}

pub(crate) fn dry_run(out: &mut Out, place: &Place) -> Result<Outcome, Failure> {
    let steps = journal_kb::recovery_plan(&place.root)?;
    let mut table = Table::new(&["TXN", "ACTION", "PATH", "WHY"]);
    for step in &steps {
        if out.json() {
            let mut object = json!({
                "txn": step.txn.get(),
                "path": step.path.to_string_lossy(),
                "action": step.action.to_string(),
                "reason": step.reason.to_string(),
            });
            if step.path.to_str().is_none() {
                let bytes = step.path.as_os_str().as_bytes();
                object["path_hex"] = bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into();
            }
            out.object(&object)?;
        } else {
            let (action, reason) = (step.action.to_string(), step.reason.to_string());
            table.row([number(step.txn), cell(action), cell(path(&step.path)), cell(reason)]);
        }
    }
    if !out.json() {
        if table.is_empty() {
            out.line("nothing to recover")?;
        } else {
            out.table(table)?;
        }
    }
    Ok(if steps.is_empty() { Outcome::Fine } else { Outcome::Found })
}
