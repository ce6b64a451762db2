//! `log`: transactions, newest first.

use journal_kb::inspect::TransactionFilter;

use crate::exit::{Failure, Outcome};
use crate::output::{Out, Table, Tint, bytes, cell, number, state, tinted};
use crate::place::Place;
use crate::time::local;

pub(crate) const HELP: &str = "\
Examples:
  journalctl-kb log
  journalctl-kb log -n 5
  journalctl-kb log --since 2h
  journalctl-kb log --since 2026-11-20 --json

States: committed (durable, on its way into the tree) · applied (in the tree) · settling (being synced) · \
settled (done) · pending (some path could not be written; retried) · quarantined (needs a person) · \
rolled back (not committed: what had been done to guarded paths was put back; rolled_back in JSON)

JSON: id, state, label, key, lock, fence, session, began_ms, committed_ms, settled_ms, changes, bytes, \
history_bytes, ran_sql, attempts";

/// How many are listed when nobody says how many.
const FEW: u64 = 25;

pub(crate) fn run(out: &mut Out, place: &Place, lines: Option<u64>, since_ms: Option<i64>) -> Result<Outcome, Failure> {
    let limit = match lines {
        Some(0) => None,
        Some(lines) => Some(lines),
        None => since_ms.is_none().then_some(FEW),
    };
    let filter = TransactionFilter { limit, since_ms };
    let transactions = place.inspector()?.transactions(filter)?;
    if out.json() {
        for transaction in &transactions {
            out.object(transaction)?;
        }
        return Ok(Outcome::Fine);
    }
    if transactions.is_empty() {
        out.line(if since_ms.is_some() { "no transactions since then" } else { "no transactions yet" })?;
        return Ok(Outcome::Fine);
    }
    let mut table = Table::new(&["TXN", "STATE", "ENDED", "PATHS", "BYTES", "LABEL"]);
    for transaction in &transactions {
        table.row([
            number(transaction.id),
            tinted(state(&transaction.state), Tint::of_state(&transaction.state)),
            cell(local(transaction.committed_ms)),
            number(transaction.changes),
            number(bytes(transaction.bytes)),
            cell(&transaction.label),
        ]);
    }
    out.table(table)?;
    Ok(Outcome::Fine)
}
