//! `runs retry` and `runs reset`: what a person says of a run.

use std::time::Duration;

use journal_kb::Error;
use journal_kb::inspect::RunInfo;
use serde_json::{Value, json};

use super::ItemArgument;
use super::item::item;
use crate::exit::{Failure, Outcome};
use crate::output::{Out, many, plain};
use crate::place::Place;

pub(crate) const RETRY_HELP: &str = "\
The next session of the job tries these items as if for the first time. What only failed is tried again without this. \
Mend what is wrong with an item first: `runs show` has the error.

Exit codes: 0 when it is done, or nothing is set aside; 1 when an item that was named is not set aside, or the job has no run; \
75 while the job is at work.

Examples:
  journalctl-kb runs retry sync:source-a
  journalctl-kb runs retry sync:source-a docs/a.pdf hex:636166e92e706466

JSON: job, retried (how many items), not_set_aside (item; of those that were named)";

pub(crate) const RESET_HELP: &str = "\
The job begins afresh when it is started next: what was done is done again, and what was set aside is tried again. Effects of \
items stay as they are. The run itself is kept for a while, to look at.

Exit codes: 0 when it is done; 1 when no run of the job is open, or --dry-run would give one up; 75 while the job is at work.

Examples:
  journalctl-kb runs reset sync:source-a --dry-run
  journalctl-kb runs reset sync:source-a

JSON: job, run, outcome (reset, would_reset), banked (how many items count no more), set_aside, failed";

#[derive(Debug, clap::Args)]
pub(crate) struct RetryArguments {
    /// The job, as in `runs`
    #[arg(value_name = "JOB")]
    job: String,
    /// Only these items, as `runs show` has them [default: all that are set aside]
    #[arg(value_name = "ITEM", value_parser = ItemArgument::parser())]
    items: Vec<ItemArgument>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ResetArguments {
    /// The job, as in `runs`
    #[arg(value_name = "JOB")]
    job: String,
    /// Only show what would be given up
    #[arg(long)]
    dry_run: bool,
}

pub(crate) fn retry(out: &mut Out, place: &Place, arguments: &RetryArguments) -> Result<Outcome, Failure> {
    let job = arguments.job.as_str();
    let journal = place.journal(false)?;
    let (mut retried, mut strange) = (0, Vec::new());
    if arguments.items.is_empty() {
        retried = journal.runs().retry(job, None)?;
    }
    for ItemArgument(name) in &arguments.items {
        match journal.runs().retry(job, Some(name))? {
            0 => strange.push(name),
            found => retried += found,
        }
    }
    journal.close()?;
    if out.json() {
        let strange: Vec<Value> = strange.iter().map(|name| object(name)).collect();
        out.object(&json!({ "job": job, "retried": retried, "not_set_aside": strange }))?;
    } else {
        for name in &strange {
            out.line(format_args!("not set aside: {}", plain(&item(name))))?;
        }
        match retried {
            0 => out.line(format_args!("nothing of {job:?} is to be tried again"))?,
            many_ => out.line(format_args!("{} of {job:?} to be tried again", many(many_ as u64, "item")))?,
        }
    }
    Ok(if strange.is_empty() { Outcome::Fine } else { Outcome::Found })
}

pub(crate) fn reset(out: &mut Out, place: &Place, arguments: &ResetArguments) -> Result<Outcome, Failure> {
    let job = arguments.job.as_str();
    if arguments.dry_run {
        let run = place.inspector()?.run_of(job, Some(0))?.map(|detail| detail.run);
        let run = run.filter(|run| !matches!(run.state.as_str(), "finished" | "abandoned" | "replaced"));
        let run = run.ok_or_else(|| Error::NoRun { job: job.to_owned() })?;
        if let (Some(holder), "running") = (&run.holder, run.state.as_str()) {
            let (what, holder) = (format!("job {job:?}"), holder.to_string());
            return Err(Error::Busy { what, holder, waited: Duration::ZERO }.into());
        }
        tell(out, &run, "would_reset", "would give up")?;
        return Ok(Outcome::Found);
    }
    let journal = place.journal(false)?;
    let id = journal.runs().reset(job)?;
    journal.close()?;
    let given_up = place.inspector()?.run(id, Some(0))?;
    let given_up = given_up.ok_or_else(|| Failure::NoRun(id.to_string()))?;
    tell(out, &given_up.run, "reset", "gave up")?;
    Ok(Outcome::Fine)
}

fn tell(out: &mut Out, run: &RunInfo, outcome: &str, what: &str) -> Result<(), Failure> {
    if out.json() {
        return out.object(&json!({
            "job": run.job, "run": run.id, "outcome": outcome,
            "banked": run.banked, "set_aside": run.set_aside, "failed": run.failed,
        }));
    }
    let least = if run.exact { "" } else { "at most " };
    let mut parts = vec![format!("{least}{} that count as done", many(run.banked, "item"))];
    if run.set_aside > 0 {
        parts.push(format!("{} set aside", run.set_aside));
    }
    let failed = run.failed + run.trying;
    if failed > 0 {
        parts.push(format!("{failed} that failed"));
    }
    out.line(format_args!(
        "{what} run {} of {:?}: {}; the next run of the job begins afresh",
        run.id,
        run.job,
        parts.join(", ")
    ))
}

/// An item, and its bytes where that is not UTF-8.
fn object(name: &[u8]) -> Value {
    let mut object = json!({ "item": String::from_utf8_lossy(name) });
    if std::str::from_utf8(name).is_err() {
        object["item_hex"] = name.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into();
    }
    object
}
