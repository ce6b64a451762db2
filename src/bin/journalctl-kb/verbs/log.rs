//! `log`: transactions, newest first.

use std::time::Duration;

use journal_kb::StopToken;
use journal_kb::inspect::TransactionFilter;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::exit::{Failure, Outcome};
use crate::output::{Out, Table, Tint, bytes, cell, dim, number, plain, state, tinted};
use crate::place::Place;
use crate::time::local;

pub(crate) const HELP: &str = "\
Examples:
  journalctl-kb log
  journalctl-kb log -n 5
  journalctl-kb log --since 2h
  journalctl-kb log --since 2026-11-20 --json
  journalctl-kb log -f -n 1 --json | jq .label

States: committed (durable, on its way into the tree) · applied (in the tree) · settling (being synced) · \
settled (done) · pending (some path could not be written; retried) · quarantined (needs a person) · \
rolled back (not committed: what had been done to guarded paths was put back; rolled_back in JSON). With -f it is the state at the \
moment when a transaction is seen.

JSON: id, state, label, key, lock, fence, session, began_ms, committed_ms, settled_ms, changes, bytes, \
history_bytes, ran_sql, attempts";

/// How many are listed when nobody says how many.
const FEW: u64 = 25;

pub(crate) fn run(
    out: &mut Out,
    place: &Place,
    lines: Option<u64>,
    since_ms: Option<i64>,
    follow: bool,
) -> Result<Outcome, Failure> {
    let limit = match lines {
        Some(0) => None,
        Some(lines) => Some(lines),
        None => since_ms.is_none().then_some(FEW),
    };
    let filter = TransactionFilter { limit, since_ms };
    if follow {
        return tail(out, place, filter);
    }
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

/// Tells of transactions as they come, until nobody listens any more. A signal ends it as it ends any program.
fn tail(out: &mut Out, place: &Place, filter: TransactionFilter) -> Result<Outcome, Failure> {
    let stop = StopToken::new();
    stop_when_nobody_reads(&stop)?;
    let mut tail = place.inspector()?.tail(filter, &stop)?;
    if !out.json() {
        out.line(dim(line("TXN", "STATE", "ENDED", "PATHS", "BYTES", "LABEL")))?;
    }
    loop {
        let next = match tail.next_within(Duration::ZERO)? {
            Some(next) => Some(next),
            None => {
                // Whoever reads has all there is before it is waited for more.
                out.flush()?;
                tail.next().transpose()?
            }
        };
        let Some(transaction) = next else { return Ok(Outcome::Fine) };
        if out.json() {
            out.object(&transaction)?;
            continue;
        }
        let word = format!("{:<11}", plain(state(&transaction.state)));
        out.line(line(
            &transaction.id.to_string(),
            &Tint::of_state(&transaction.state).paint(word),
            &local(transaction.committed_ms),
            &transaction.changes.to_string(),
            &bytes(transaction.bytes),
            &plain(&transaction.label),
        ))?;
    }
}

/// A line of a table of which nobody knows yet what will stand in it.
fn line(txn: &str, state: &str, ended: &str, paths: &str, bytes: &str, label: &str) -> String {
    format!("{txn:>6}  {state:<11}  {ended:<19}  {paths:>6}  {bytes:>10}  {label}").trim_end().to_owned()
}

/// Asks to stop once the other end of standard output is closed: else that would be noticed with the next commit only.
fn stop_when_nobody_reads(stop: &StopToken) -> Result<(), Failure> {
    let stop = stop.clone();
    let watch = move || {
        let stdout = rustix::stdio::stdout();
        // Nothing is asked for: that it is closed is told anyway.
        let mut fds = [PollFd::new(&stdout, PollFlags::empty())];
        while poll(&mut fds, None).is_err_and(|error| error == Errno::INTR) {}
        stop.stop("nobody reads it");
    };
    let started = std::thread::Builder::new().name("output".into()).spawn(watch);
    started.map(drop).map_err(|error| Failure::System("start a thread for", "standard output".into(), error))
}
