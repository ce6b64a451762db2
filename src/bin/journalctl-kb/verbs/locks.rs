//! `locks`: who holds what.

use journal_kb::inspect::LockInfo;

use crate::exit::{Failure, Outcome};
use crate::output::{Out, Table, Tint, cell, number, tinted};
use crate::place::Place;
use crate::time::{ago, local};

pub(crate) const HELP: &str = "\
Whether a lock is held is the kernel's word; what for and since when is the holder's. \"died\" is a lock that is \
free, whose last holder ended without giving it back: the next one recovers what it left. Processes in another \
container are not seen from here.

Example:
  journalctl-kb locks

JSON: name, held (null where the kernel does not tell), pids, fence, holder (pid, program, session, purpose, \
since_ms, heartbeat_ms, progress; null when it was given back), acquired_ms, acquisitions, crashes, losses";

pub(crate) fn run(out: &mut Out, place: &Place) -> Result<Outcome, Failure> {
    let locks = place.inspector()?.locks()?;
    if out.json() {
        for lock in &locks {
            out.object(lock)?;
        }
        return Ok(Outcome::Fine);
    }
    if locks.is_empty() {
        out.line("no lock was taken yet")?;
        return Ok(Outcome::Fine);
    }
    let mut table = Table::new(&["LOCK", "STATE", "HOLDER", "TAKEN", "FOR", "FENCE", "TIMES", "CRASHES", "LOST"]);
    for lock in &locks {
        let (word, tint) = state(lock);
        table.row([
            cell(&lock.name),
            tinted(word, tint),
            cell(holder(lock)),
            cell(format!("{} ({})", local(lock.acquired_ms), ago(lock.acquired_ms))),
            cell(lock.holder.as_ref().map_or("", |holder| &holder.purpose)),
            number(lock.fence),
            number(lock.acquisitions),
            number(lock.crashes),
            number(lock.losses),
        ]);
    }
    out.table(table)?;
    Ok(Outcome::Fine)
}

/// A word for the state of a lock.
pub(crate) fn state(lock: &LockInfo) -> (&'static str, Tint) {
    match (lock.held, &lock.holder) {
        (Some(true), _) => ("held", Tint::Busy),
        (Some(false), Some(_)) => ("died", Tint::Warning),
        (Some(false), None) => ("free", Tint::None),
        (None, Some(_)) => ("held?", Tint::None),
        (None, None) => ("free?", Tint::None),
    }
}

/// `program[pid]`, as far as it is known.
pub(crate) fn holder(lock: &LockInfo) -> String {
    match (&lock.holder, lock.pids.as_slice()) {
        (Some(holder), _) => format!("{}[{}]", holder.program, holder.pid),
        (None, []) => String::new(),
        (None, pids) => pids.iter().map(|pid| format!("[{pid}]")).collect::<Vec<_>>().join(" "),
    }
}
