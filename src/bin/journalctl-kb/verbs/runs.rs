//! `runs`: how far each job is, and what it left.

mod decide;
mod item;
mod show;

use clap::Subcommand;
use journal_kb::Holder;
use journal_kb::inspect::RunInfo;

use crate::exit::{Failure, Outcome};
use crate::output::{Out, Table, Tint, cell, number, shell_word, tinted};
use crate::place::Place;
use crate::time::ago;
pub(crate) use item::ItemArgument;

pub(crate) const HELP: &str = "\
A run is one going through of a job, over as many sessions as it takes. Those that are open come first: \"running\" \
(that is the kernel's word), \"stopped\" (WHY says for what reason) or \"died\"; whoever starts the job next goes on with \
it. Then those that are over, the newest first: \"finished\", \"abandoned\" (by the job, or by `reset`) or \"replaced\" (the \
job began afresh). DONE is what is durable, RATE that of the newest session. An item that was tried too often is set \
aside, and left out until `retry`. LAST ITEM is when the newest item was banked. Runs that are over are kept for a \
while, unless the application says otherwise for 7 days.

Examples:
  journalctl-kb runs                         all runs, open ones first
  journalctl-kb runs show sync:source-a      how far it is, what failed and why, what came last
  journalctl-kb runs retry sync:source-a     have what was set aside tried again
  journalctl-kb runs reset sync:source-a     give up what was done; the next run begins afresh

JSON: id, job, state (running, stopped, died, open where the kernel does not tell, finished, abandoned, replaced), \
fingerprint (and fingerprint_hex when it is not UTF-8), banked, expected (null when the job does not say), exact (false \
where there was too much to count: banked is at most so much, the others at least), rate (items a second of the newest \
session; null when it has fewer than two), set_aside, failed, trying, flushed_ms (of the newest item), began_ms, \
started_ms (of the newest session), stopped_ms, sessions, reason, holder (pid, program, session, purpose, since_ms, \
heartbeat_ms, progress: who is at work, or died of it; null when the newest session said how it ended)";

#[derive(Debug, Subcommand)]
pub(crate) enum Action {
    /// Show how far a run is, which items failed and why, and which were done last (reads only)
    #[command(after_help = show::HELP)]
    Show(show::Arguments),
    /// Have items tried again that were set aside: all of a job's, or those named
    #[command(after_help = decide::RETRY_HELP)]
    Retry(decide::RetryArguments),
    /// Give up the run of a job that is open: the next one begins afresh
    #[command(after_help = decide::RESET_HELP)]
    Reset(decide::ResetArguments),
}

/// So many runs are listed unless told otherwise.
const LINES: u64 = 25;

pub(crate) fn run(
    out: &mut Out,
    place: &Place,
    lines: Option<u64>,
    action: Option<&Action>,
) -> Result<Outcome, Failure> {
    match action {
        Some(_) if lines.is_some() => Err(Failure::Usage("-n is for the list of runs; `runs show` takes --items")),
        None => list(out, place, lines.unwrap_or(LINES)),
        Some(Action::Show(arguments)) => show::run(out, place, arguments),
        Some(Action::Retry(arguments)) => decide::retry(out, place, arguments),
        Some(Action::Reset(arguments)) => decide::reset(out, place, arguments),
    }
}

fn list(out: &mut Out, place: &Place, lines: u64) -> Result<Outcome, Failure> {
    // One more tells whether that is all.
    let limit = Some(lines.saturating_add(1)).filter(|_| lines > 0);
    let mut runs = place.inspector()?.runs(limit)?;
    let more = lines > 0 && runs.len() as u64 > lines;
    if more {
        runs.pop();
    }
    if out.json() {
        for run in &runs {
            out.object(run)?;
        }
        return Ok(Outcome::Fine);
    }
    if runs.is_empty() {
        out.line("no job has run yet")?;
        return Ok(Outcome::Fine);
    }
    let mut table =
        Table::new(&["RUN", "JOB", "STATE", "DONE", "RATE", "ASIDE", "FAILED", "LAST ITEM", "SESSIONS", "WHY"]);
    for run in &runs {
        let (word, tint) = state(run);
        table.row([
            number(run.id),
            cell(&run.job),
            tinted(word, tint),
            cell(done(run)),
            cell(run.rate.map_or_else(String::new, rate)),
            tinted(some(run.set_aside), Tint::Warning),
            cell(some(run.failed)),
            cell(run.flushed_ms.map_or_else(String::new, ago)),
            number(run.sessions),
            cell(why(run)),
        ]);
    }
    out.table(table)?;
    if more {
        out.line(format_args!("… and more; -n 0 lists them all"))?;
    }
    Ok(Outcome::Fine)
}

/// The state of a run.
pub(crate) fn state(run: &RunInfo) -> (&str, Tint) {
    let tint = match run.state.as_str() {
        "running" => Tint::Busy,
        "finished" => Tint::Good,
        "died" | "stopped" => Tint::Warning,
        _ => Tint::None,
    };
    (&run.state, tint)
}

/// How much is done, and of how much.
pub(crate) fn done(run: &RunInfo) -> String {
    let about = if run.exact { "" } else { "at most " };
    match run.expected.filter(|expected| *expected > 0) {
        None => format!("{about}{}", run.banked),
        Some(expected) => {
            // All of it only when it is.
            let percent = (run.banked as f64 * 100.0 / expected as f64).floor();
            format!("{about}{} of {expected} ({percent}%)", run.banked)
        }
    }
}

/// Items a second as people read it.
pub(crate) fn rate(a_second: f64) -> String {
    match a_second {
        many if many >= 10.0 => format!("{many:.0}/s"),
        some if some >= 1.0 => format!("{some:.1}/s"),
        few if few * 60.0 >= 1.0 => format!("{:.1}/min", few * 60.0),
        few => format!("{:.1}/h", few * 3600.0),
    }
}

/// Why it stands as it does: who is at work, who died, or what the newest end was for.
pub(crate) fn why(run: &RunInfo) -> String {
    match &run.holder {
        Some(holder) if run.state == "died" => format!("{} ended without a word", who(holder)),
        Some(holder) => format!("{} began {}{}", who(holder), ago(run.started_ms), progress(holder)),
        None => run.reason.clone(),
    }
}

/// Who is at work at a run, or died of it.
pub(crate) fn who(holder: &Holder) -> String {
    // Sessions are forgotten in the end.
    if holder.pid == 0 { "its process".into() } else { format!("{}[{}]", holder.program, holder.pid) }
}

pub(crate) fn progress(holder: &Holder) -> String {
    if holder.progress.is_empty() { String::new() } else { format!(": {}", holder.progress) }
}

/// A command about this run's job, as a shell takes it.
pub(crate) fn command(verb: &str, run: &RunInfo) -> String {
    let end = if run.job.starts_with('-') { "-- " } else { "" };
    format!("journalctl-kb runs {verb} {end}{}", shell_word(&run.job))
}

/// A count, where there is something to count.
fn some(count: u64) -> String {
    if count == 0 { String::new() } else { count.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_short() {
        for (a_second, want) in [
            (12345.6, "12346/s"),
            (9.96, "10.0/s"),
            (1.0, "1.0/s"),
            (0.5, "30.0/min"),
            (0.01, "36.0/h"),
            (0.0001, "0.4/h"),
        ] {
            assert_eq!(rate(a_second), want);
        }
    }
}
