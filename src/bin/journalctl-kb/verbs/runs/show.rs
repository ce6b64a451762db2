//! `runs show`: one run in full.

use journal_kb::RunId;
use journal_kb::inspect::{Inspector, RunDetail, RunInfo};

use super::item::item;
use super::{command, done, progress, rate, state, who};
use crate::exit::{Failure, Outcome};
use crate::output::{Out, Table, Tint, bold, cell, many, number, plain, tinted};
use crate::place::Place;
use crate::time::{ago, local, past, span};

pub(crate) const HELP: &str = "\
Of a job it is the run that is open, or else the last one. A number is taken for that of a run when no job is called so.

An item is shown as its text; where that is not UTF-8, or would be taken for something else, as `hex:` and its bytes. \
`runs retry` takes both. \"trying\" is what is being worked at; of a run that died, what it was at when it died: when that \
is tried too often, it is set aside, too.

Examples:
  journalctl-kb runs show sync:source-a
  journalctl-kb runs show 3 --items 100
  journalctl-kb runs show sync:source-a --items 0 --json | jq -r '.tries[] | [.state, .item, .error] | @tsv'

JSON: the fields of `runs`, and cursor (where the job goes on, in its own words: JSON as text), bad_cursor (one that the job \
could not read), tries (item, state (aside, failed, trying), tries, at_ms, error), items (item, at_ms: what is done, newest \
first). An item that is not UTF-8 has its exact bytes in item_hex.";

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The job, or the number of a run, as in `runs`
    #[arg(value_name = "JOB|RUN")]
    which: String,
    /// At most so many items that are done, set aside, failed, or being tried, of each; 0 for all
    #[arg(long, value_name = "N", default_value_t = 20)]
    items: u64,
}

pub(crate) fn run(out: &mut Out, place: &Place, arguments: &Arguments) -> Result<Outcome, Failure> {
    let limit = Some(arguments.items).filter(|items| *items > 0);
    let detail = find(&place.inspector()?, &arguments.which, limit)?;
    if out.json() {
        out.object(&detail)?;
        return Ok(Outcome::Fine);
    }
    let run = &detail.run;
    let (word, tint) = state(run);
    let painted = tint.paint(plain(word));
    out.line(format_args!("{} {} · {} · {painted}", bold("run"), bold(run.id), bold(plain(&run.job))))?;
    facts(out, &detail)?;
    tell_tries(out, &detail)?;
    if !detail.items.is_empty() {
        out.line("")?;
        let mut table = Table::new(&["DONE", "ITEM"]);
        for done in &detail.items {
            table.row([cell(local(done.at_ms)), cell(item(&done.item))]);
        }
        out.table(table)?;
        more(out, run.banked.saturating_sub(detail.items.len() as u64))?;
    }
    advise(out, run)?;
    Ok(Outcome::Fine)
}

fn find(inspector: &Inspector, which: &str, limit: Option<u64>) -> Result<RunDetail, Failure> {
    if let Some(detail) = inspector.run_of(which, limit)? {
        return Ok(detail);
    }
    let by_number = match which.parse::<i64>() {
        Ok(id) => inspector.run(RunId::from(id), limit)?,
        Err(_) => None,
    };
    by_number.ok_or_else(|| Failure::NoRun(which.to_owned()))
}

fn facts(out: &mut Out, detail: &RunDetail) -> Result<(), Failure> {
    let run = &detail.run;
    let mut table = Table::indented();
    let mut fact = |name: &str, value: String| {
        if !value.is_empty() {
            table.row([cell(name), cell(value)]);
        }
    };
    let rate_of_it =
        run.rate.map_or_else(String::new, |a_second| format!(", {} in the newest session", rate(a_second)));
    fact("done", format!("{}{rate_of_it}{}", done(run), left(run)));
    let least = if run.exact { "" } else { "at least " };
    let trying = if run.state == "running" { "being tried" } else { "being tried when a session ended" };
    let tried = [(run.set_aside, "set aside"), (run.failed, "failed, to be tried again"), (run.trying, trying)];
    let tried = tried.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{least}{n} {what}"));
    fact("not done", tried.collect::<Vec<_>>().join("; "));
    fact("last item", run.flushed_ms.map_or_else(String::new, when));
    fact("began", when(run.began_ms));
    fact("sessions", format!("{}, the newest from {}", run.sessions, when(run.started_ms)));
    if let Some(holder) = &run.holder {
        if run.state == "died" {
            let again = "what it had recorded since its last flush is to be done again";
            fact("died", format!("{} ended without a word; {again}", who(holder)));
        } else {
            let seen = past(holder.heartbeat_ms).unwrap_or_else(|| "by another clock".into());
            fact("at work", format!("{}, seen {seen}{}", who(holder), progress(holder)));
        }
    } else {
        let reason = if run.reason.is_empty() { String::new() } else { format!(": {}", run.reason) };
        fact("ended", run.stopped_ms.map_or_else(String::new, |ms| format!("{}{reason}", when(ms))));
    }
    fact("fingerprint", if run.fingerprint.is_empty() { String::new() } else { item(&run.fingerprint) });
    fact("cursor", detail.cursor.as_deref().map_or_else(String::new, short));
    fact("bad cursor", detail.bad_cursor.as_deref().map_or_else(String::new, short));
    out.table(table)
}

fn when(ms: i64) -> String {
    format!("{} ({})", local(ms), ago(ms))
}

/// How long the rest takes, at the rate of now.
fn left(run: &RunInfo) -> String {
    let (Some(rate), Some(expected), "running") = (run.rate, run.expected, run.state.as_str()) else {
        return String::new();
    };
    let left = expected.saturating_sub(run.banked + run.set_aside);
    if left == 0 { String::new() } else { format!(", {} left", span((left as f64 / rate) as i64)) }
}

/// A cursor as far as it fits into a line or two.
fn short(text: &str) -> String {
    const LONGEST: usize = 200;
    let cut: String = text.chars().take(LONGEST).collect();
    if cut.len() < text.len() { format!("{cut}… (all of it with --json)") } else { cut }
}

fn tell_tries(out: &mut Out, detail: &RunDetail) -> Result<(), Failure> {
    if detail.tries.is_empty() {
        return Ok(());
    }
    out.line("")?;
    let mut table = Table::new(&["STATE", "TRIES", "WHEN", "ITEM", "WHAT HAPPENED"]);
    for tried in &detail.tries {
        let (word, tint) = match tried.state.as_str() {
            "aside" => ("set aside", Tint::Bad),
            "failed" => ("failed", Tint::Warning),
            other => (other, Tint::Busy),
        };
        table.row([
            tinted(word, tint),
            number(tried.tries),
            cell(local(tried.at_ms)),
            cell(item(&tried.item)),
            cell(&tried.error),
        ]);
    }
    out.table(table)?;
    let run = &detail.run;
    more(out, (run.set_aside + run.failed + run.trying).saturating_sub(detail.tries.len() as u64))
}

fn more(out: &mut Out, left: u64) -> Result<(), Failure> {
    match left {
        0 => Ok(()),
        left => out.line(format_args!("… and {}; --items 0 shows them all", many(left, "more item"))),
    }
}

fn advise(out: &mut Out, run: &RunInfo) -> Result<(), Failure> {
    let mut table = Table::indented();
    if run.set_aside > 0 {
        let why = "have what was set aside tried again, once what is wrong with it is mended";
        table.row([tinted(command("retry", run), Tint::Busy), cell(why)]);
    }
    if matches!(run.state.as_str(), "stopped" | "died") {
        let why = "give up what was done; or start the job again, and it goes on here";
        table.row([tinted(command("reset", run), Tint::Busy), cell(why)]);
    }
    if table.is_empty() {
        return Ok(());
    }
    out.line(format_args!("\n{}", bold("What can be done")))?;
    out.table(table)
}
