//! `outbox retry` and `outbox drop`: what a person says of messages.

use serde_json::json;

use crate::exit::{Failure, Outcome};
use crate::output::{Out, many, plain};
use crate::place::Place;

pub(crate) const RETRY_HELP: &str = "\
Messages that are parked wait again, as if they had never been refused, and go out as soon as their topic is drained. What is \
refused and not parked is tried again without this. Mend what is wrong first: `outbox show` has what the sink said.

A message goes out with its own version, which may be older than what the sink knows by now: a publisher that only ever sets \
larger versions passes over it. Where only the newest version of a key is published, the drainer drops it. Where its key was \
retired after it, it is dropped here and now, and that is told: what is gone does not come back.

Exit codes: 0 when it is done, or nothing is parked; 1 when a message that was named is not there.

Examples:
  journalctl-kb outbox retry 44040192 44040193
  journalctl-kb outbox retry --topic documents
  journalctl-kb outbox retry --all

JSON: waiting (how many wait again), outdated (how many of these have a newer one of their key), dropped (how many were dropped as \
their key was retired after them), not_there (the numbers of those that were named and are not there)";

pub(crate) const DROP_HELP: &str = "\
What is dropped is not published, ever; what stands behind it goes out. Of a removal that is dropped the sink does not hear: it \
keeps what is gone. Versions go on counting. While a topic is being published nothing of it is dropped.

Exit codes: 0 when it is done; 1 when a message that was named is not there; 2 without --yes; 75 while the topic is being published.

Examples:
  journalctl-kb outbox drop 44040192 --yes
  journalctl-kb outbox drop --topic documents --parked --yes

JSON: dropped (how many), not_there (the numbers of those that were named and are not there)";

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub(crate) struct RetryArguments {
    /// These messages, as in `outbox`
    #[arg(value_name = "ID", allow_negative_numbers = true)]
    ids: Vec<i64>,
    /// All of this topic that are parked
    #[arg(long, value_name = "TOPIC")]
    topic: Option<String>,
    /// All that are parked
    #[arg(long)]
    all: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct DropArguments {
    #[command(flatten)]
    which: Dropped,
    /// Of the topic only those that are parked
    #[arg(long, conflicts_with = "ids")]
    parked: bool,
    /// Yes, for good
    #[arg(long)]
    yes: bool,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Dropped {
    /// These messages, as in `outbox`
    #[arg(value_name = "ID", allow_negative_numbers = true)]
    ids: Vec<i64>,
    /// All of this topic: those that wait, too
    #[arg(long, value_name = "TOPIC")]
    topic: Option<String>,
}

pub(crate) fn retry(out: &mut Out, place: &Place, arguments: &RetryArguments) -> Result<Outcome, Failure> {
    let journal = place.journal(false)?;
    let (mut waiting, mut outdated, mut dropped, mut strange) = (0, 0, 0, Vec::new());
    let mut add = |again: journal_kb::Retried| {
        waiting += again.waiting;
        outdated += again.outdated;
        dropped += again.dropped;
    };
    if arguments.ids.is_empty() {
        add(journal.outbox().retry_parked(arguments.topic.as_deref())?);
    }
    for id in &arguments.ids {
        match journal.outbox().retry(*id)? {
            Some(again) => add(again),
            None => strange.push(*id),
        }
    }
    journal.close()?;
    if out.json() {
        let object = json!({ "waiting": waiting, "outdated": outdated, "dropped": dropped, "not_there": strange });
        out.object(&object)?;
    } else {
        not_there(out, &strange)?;
        match (waiting, dropped) {
            (0, 0) => out.line("nothing is to be tried again")?,
            (0, _) => {}
            _ => out.line(format_args!("{} to be tried again", many(waiting, "message")))?,
        }
        if outdated > 0 {
            let have = if outdated == 1 { "1 of them has" } else { &format!("{outdated} of them have") };
            out.line(format_args!(
                "{have} a newer one of the same key: a publisher that keeps to versions passes over them"
            ))?;
        }
        if dropped > 0 {
            out.line(format_args!("{} dropped: the key was retired after it", many(dropped, "message")))?;
        }
    }
    Ok(if strange.is_empty() { Outcome::Fine } else { Outcome::Found })
}

pub(crate) fn discard(out: &mut Out, place: &Place, arguments: &DropArguments) -> Result<Outcome, Failure> {
    if !arguments.yes {
        return Err(Failure::Usage("drop gives messages up for good: look at them with `outbox`, then say --yes"));
    }
    let Dropped { ids, topic } = &arguments.which;
    let inspector = place.inspector()?;
    let known: Vec<_> = ids.iter().map(|id| inspector.message(*id)).collect::<Result<_, _>>()?;
    let journal = place.journal(false)?;
    let (mut dropped, mut strange) = (0, Vec::new());
    for (id, known) in ids.iter().zip(known) {
        if !journal.outbox().discard(*id)? {
            strange.push(*id);
            continue;
        }
        dropped += 1;
        if let (Some(known), false) = (known, out.json()) {
            let message = known.message;
            let removal = if message.removal { ", a removal" } else { "" };
            let what = format!("{} {} version {}{removal}", message.topic, message.key, message.version);
            out.line(format_args!("dropped {id}: {}", plain(&what)))?;
        }
    }
    if let Some(topic) = topic {
        dropped = journal.outbox().discard_topic(topic, arguments.parked)?;
    }
    journal.close()?;
    if out.json() {
        out.object(&json!({ "dropped": dropped, "not_there": strange }))?;
    } else {
        not_there(out, &strange)?;
        if let Some(topic) = topic {
            out.line(format_args!("dropped {} of {topic:?}", many(dropped, "message")))?;
        }
    }
    Ok(if strange.is_empty() { Outcome::Fine } else { Outcome::Found })
}

fn not_there(out: &mut Out, strange: &[i64]) -> Result<(), Failure> {
    strange.iter().try_for_each(|id| out.line(format_args!("not there: {id} (it was published, or dropped)")))
}
