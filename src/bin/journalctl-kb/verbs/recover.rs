//! `recover`: finishes what a crash left.

use std::os::unix::ffi::OsStrExt;

use journal_kb::inspect::GuardInfo;
use journal_kb::{Error, TxnId};
use serde_json::json;

use crate::exit::{Failure, Outcome};
use crate::output::{Out, Table, Tint, cell, many, number, path, tinted};
use crate::place::Place;

pub(crate) const HELP: &str = "\
Every program that opens the journal does this by itself; this is for when none will, for instance before rsync \
or a backup. What was committed is carried into the tree; what a transaction that died guarded is put back. What \
recovery is not sure of is moved aside and kept, never thrown away. --dry-run takes no lock and changes nothing. \
Exits 1 when some path is pending, 76 when something is in quarantine.

Examples:
  journalctl-kb recover --dry-run       the steps, with the tree left as it is; exits 1 when there are any
  journalctl-kb recover

JSON: applied, settled, rolled_back, moved_aside, swept (what was done), pending, quarantined (how many transactions \
and guards are so now), events (the warnings of this recovery); with \
--dry-run one object a step: txn (null for what a transaction guarded that did not commit), path (and path_hex when it \
is not UTF-8), action, reason";

/// How many events are shown to people.
const FEW: usize = 20;

pub(crate) fn run(out: &mut Out, place: &Place) -> Result<Outcome, Failure> {
    // Opening recovers too, so what is told begins before it.
    let known = match place.inspector().and_then(|inspector| Ok(inspector.last_event()?)) {
        Ok(newest) => Some(newest),
        Err(error @ Failure::Journal(Error::NoJournal { .. })) => return Err(error),
        // What cannot be looked at may still be recovered.
        Err(_) => None,
    };
    let journal = place.journal(false)?;
    let done = journal.recover()?;
    journal.close()?;
    let mut events = Vec::new();
    // What this recovery met, and after it what there is: an older quarantine counts as well.
    let (mut pending, mut quarantined) = (done.pending, done.quarantined);
    if let Some(known) = known {
        let inspector = place.inspector()?;
        events = inspector.events(known)?;
        events.retain(|event| event.level != "info");
        let status = inspector.status()?;
        let guards = |is: fn(&GuardInfo) -> bool| status.guards.iter().filter(|guard| is(guard)).count() as u64;
        pending = status.transactions.pending + guards(GuardInfo::is_left_over);
        quarantined = status.transactions.quarantined + guards(|guard| guard.quarantined);
    }
    if out.json() {
        out.object(&json!({
            "applied": done.applied,
            "settled": done.settled,
            "rolled_back": done.rolled_back,
            "moved_aside": done.moved_aside,
            "pending": pending,
            "quarantined": quarantined,
            "swept": done.swept,
            "events": events,
        }))?;
    } else {
        let told = [
            (done.applied, "transaction", "carried into the tree"),
            (done.settled, "transaction", "settled"),
            (done.rolled_back, "transaction", "that had died rolled back: what it guarded is as it was before"),
            (done.moved_aside, "path", "moved aside to quarantine, because somebody else had changed it"),
            (done.swept, "leftover", "of unfinished work swept"),
            (pending, "transaction", "still pending: `journalctl-kb status` says why"),
            (quarantined, "transaction", "in quarantine: `journalctl-kb quarantine list` says which, and why"),
        ];
        for (count, what, how) in told {
            if count > 0 {
                out.line(format_args!("{} {how}", many(count, what)))?;
            }
        }
        if told.iter().all(|(count, ..)| *count == 0) && events.is_empty() {
            out.line("nothing to recover")?;
        }
        let mut table = Table::indented();
        for event in events.iter().take(FEW) {
            let about = event.txn.map_or_else(String::new, |txn| format!("txn {txn}"));
            let place = event.path.as_deref().map_or_else(String::new, path);
            table.row([
                tinted(&event.level, Tint::of_level(&event.level)),
                cell(about),
                cell(place),
                cell(&event.message),
            ]);
        }
        if !table.is_empty() {
            out.table(table)?;
        }
        if events.len() > FEW {
            out.line(format_args!(
                "  … and {} more; `journalctl-kb show TXN` has them all",
                many((events.len() - FEW) as u64, "event")
            ))?;
        }
    }
    Ok(match (quarantined, pending) {
        (0, 0) => Outcome::Fine,
        (0, _) => Outcome::Found,
        _ => Outcome::Quarantined,
    })
}

pub(crate) fn dry_run(out: &mut Out, place: &Place) -> Result<Outcome, Failure> {
    let steps = journal_kb::recovery_plan(&place.inspector()?)?;
    let mut table = Table::new(&["TXN", "ACTION", "PATH", "WHY"]);
    for step in &steps {
        if out.json() {
            let mut object = json!({
                "txn": step.txn.map(TxnId::get),
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
            let txn = step.txn.map_or_else(|| "-".into(), |txn| txn.to_string());
            table.row([number(txn), cell(action), cell(path(&step.path)), cell(reason)]);
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
