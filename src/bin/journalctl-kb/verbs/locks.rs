//! `locks`: who holds what.

mod break_lock;

use clap::Subcommand;
use journal_kb::Holder;
use journal_kb::inspect::{LockInfo, Turnstile};

use crate::exit::{Failure, Outcome};
use crate::output::{Out, Table, Tint, cell, number, tinted};
use crate::place::Place;
use crate::time::{local, past};

pub(crate) const HELP: &str = "\
Whether a lock is held, and who waits for it, is the kernel's word; what for, since when and how far is the holder's. \
\"died\" is a lock that is free, whose last holder ended without giving it back: the next one recovers what it left. \
SEEN is the last sign of life of a holder's process; that it is old takes the lock from nobody. \"by another \
clock\" is what was noted before a clock was set. LONG WAITS are \
those of more than a second. A process whose wait came to nothing is shown as waiting until the lock is handed on. \
Processes in another container are not seen from here.

Examples:
  journalctl-kb locks
  journalctl-kb locks break main --dry-run

JSON: name, held (null where the kernel does not tell), mode (exclusive, shared; null when it is free), pids, fence, \
holder (pid, program, session, purpose, since_ms, heartbeat_ms, progress; null when it was given back), acquired_ms, \
acquisitions, crashes, losses, clock_differs, waiting (pid, program, since_ms; null within the first second and when clocks were set), waits, longest_wait_ms; then \
one object with turnstile: whose turn it is to write (held, pids, waiting)";

#[derive(Debug, Subcommand)]
pub(crate) enum Action {
    /// End those who hold a lock, and take what they left unfinished back
    #[command(after_help = break_lock::HELP)]
    Break(break_lock::Arguments),
}

pub(crate) fn run(out: &mut Out, place: &Place, action: Option<&Action>) -> Result<Outcome, Failure> {
    match action {
        None => list(out, place),
        Some(Action::Break(arguments)) => break_lock::run(out, place, arguments),
    }
}

fn list(out: &mut Out, place: &Place) -> Result<Outcome, Failure> {
    let inspector = place.inspector()?;
    let (locks, turnstile) = (inspector.locks()?, inspector.turnstile());
    if out.json() {
        for lock in &locks {
            out.object(lock)?;
        }
        out.object(&serde_json::json!({ "turnstile": turnstile }))?;
        return Ok(Outcome::Fine);
    }
    if locks.is_empty() {
        out.line("no lock was taken yet")?;
        return Ok(Outcome::Fine);
    }
    let mut table = Table::new(&[
        "LOCK",
        "STATE",
        "HOLDER",
        "TAKEN",
        "SEEN",
        "FOR",
        "WAITING",
        "FENCE",
        "TIMES",
        "CRASHES",
        "LOST",
        "LONG WAITS",
    ]);
    for lock in &locks {
        let (word, tint) = state(lock);
        table.row([
            cell(&lock.name),
            tinted(word, tint),
            cell(holder(lock)),
            cell(taken(lock)),
            cell(lock.holder.as_ref().map_or_else(String::new, |holder| seen(lock, holder.heartbeat_ms))),
            cell(lock.holder.as_ref().map_or_else(String::new, purpose)),
            cell(waiting(lock)),
            number(lock.fence),
            number(lock.acquisitions),
            number(lock.crashes),
            number(lock.losses),
            cell(long_waits(lock)),
        ]);
    }
    out.table(table)?;
    if turnstile.held == Some(true) || !turnstile.waiting.is_empty() {
        out.line(turn(&turnstile))?;
    }
    Ok(Outcome::Fine)
}

/// When it was taken, where the clock by which that was noted can be trusted.
fn taken(lock: &LockInfo) -> String {
    format!("{} ({})", local(lock.acquired_ms), seen(lock, lock.acquired_ms))
}

/// How long ago something of a lock was noted.
pub(crate) fn seen(lock: &LockInfo, ms: i64) -> String {
    let trusted = past(ms).filter(|_| !lock.clock_differs);
    trusted.unwrap_or_else(|| "by another clock".into())
}

/// For what it is held, and how far that is.
fn purpose(holder: &Holder) -> String {
    match (holder.purpose.as_str(), holder.progress.as_str()) {
        (purpose, "") => purpose.to_owned(),
        ("", progress) => progress.to_owned(),
        (purpose, progress) => format!("{purpose}: {progress}"),
    }
}

/// How many wait, who, and who of them for longest.
pub(crate) fn waiting(lock: &LockInfo) -> String {
    if lock.waiting.is_empty() {
        return String::new();
    }
    let named = lock.waiting.iter().take(FEW).map(|waiter| format!("{}[{}]", waiter.program, waiter.pid));
    let more = if lock.waiting.len() > FEW { ", …" } else { "" };
    let since = lock.waiting.iter().filter_map(|waiter| waiter.since_ms).min();
    let since = since.and_then(past).map_or_else(String::new, |since| format!(", the first since {since}"));
    format!("{}: {}{more}{since}", lock.waiting.len(), named.collect::<Vec<_>>().join(", "))
}

/// How often somebody waited for more than a second; the longest in seconds.
pub(crate) fn long_waits(lock: &LockInfo) -> String {
    match lock.waits {
        0 => String::new(),
        waits => format!("{waits}, at most {} s", lock.longest_wait_ms.div_ceil(1000)),
    }
}

/// Whose turn it is to write.
pub(crate) fn turn(turnstile: &Turnstile) -> String {
    let list = |pids: &[i32]| pids.iter().take(FEW).map(|pid| format!("[{pid}]")).collect::<Vec<_>>().join(" ");
    let whose = if turnstile.pids.is_empty() { "nobody's".to_owned() } else { list(&turnstile.pids) };
    match turnstile.waiting.len() {
        0 => format!("turn to write: {whose}"),
        waiting => format!("turn to write: {whose}, {waiting} waiting: {}", list(&turnstile.waiting)),
    }
}

/// So many processes are named to people.
const FEW: usize = 5;

/// A word for the state of a lock.
pub(crate) fn state(lock: &LockInfo) -> (&'static str, Tint) {
    match (lock.held, &lock.holder) {
        (Some(true), _) if lock.mode == Some("shared") => ("shared", Tint::Busy),
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
        (Some(holder), _) if lock.mode != Some("shared") => format!("{}[{}]", holder.program, holder.pid),
        (_, []) => String::new(),
        (_, pids) => pids.iter().map(|pid| format!("[{pid}]")).collect::<Vec<_>>().join(" "),
    }
}
