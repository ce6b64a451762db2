//! `outbox`: what waits to be told to others, what is parked, and what a person says of it.

mod decide;
mod show;

use clap::Subcommand;
use journal_kb::Holder;
use journal_kb::inspect::{Inspector, MessageFilter, MessageInfo, TopicInfo};
use serde::Serialize;

use crate::exit::{Failure, Outcome};
use crate::output::{Out, Table, Tint, bytes, cell, many, number, shell_word, tinted};
use crate::place::Place;
use crate::time::ago;

pub(crate) const HELP: &str = "\
First a line for each topic: \"publishing\" (somebody has its lock, by the kernel's word), \"paused\" (its sink cannot be \
reached; WHY says since when and what it answers, and its drainer asks again by itself), \"waiting\" (nobody is at it at this \
moment) or \"idle\". Then the messages, oldest first: those that are parked, which were refused too often and are left to \
a person, then those that wait. \"refused\" ones wait, too, and are tried again by themselves, 10 s apart at most unless the \
application says otherwise. What was published is not kept.

Examples:
  journalctl-kb outbox                                what waits, what is parked, and why
  journalctl-kb outbox --topic documents -n 0         all messages of a topic
  journalctl-kb outbox show 44040192                  one message, with what it says and why it was refused
  journalctl-kb outbox retry --topic documents        have what is parked tried again
  journalctl-kb outbox drop 44040192 --yes            give a message up, for good
  journalctl-kb outbox --json | jq 'select(.kind == \"topic\")'

Exit codes: 0, also where something is parked: `status` and this list say so.

JSON: lines of kind topic: topic, state (publishing, paused, waiting, idle), waiting, oldest_ms (of what waits), parked, \
published (ever), published_ms (the newest), paused_ms, reason, holder (pid, program, session, purpose, since_ms, heartbeat_ms, \
progress: who publishes, or waits for the sink); of kind message: id, topic, key, version, state (waiting, refused, parked), \
removal, bytes, txn, fence, attempts, enqueued_ms, tried_ms, error";

#[derive(Debug, Subcommand)]
pub(crate) enum Action {
    /// The same as without a verb (reads only)
    List(ListArguments),
    /// Show all of one message: what it says, its transaction, why it was refused (reads only)
    #[command(after_help = show::HELP)]
    Show(show::Arguments),
    /// Have messages tried again that are parked
    #[command(after_help = decide::RETRY_HELP)]
    Retry(decide::RetryArguments),
    /// Give messages up, for good: they are not published
    #[command(after_help = decide::DROP_HELP)]
    Drop(decide::DropArguments),
}

#[derive(Debug, clap::Args)]
pub(crate) struct ListArguments {
    /// Only this topic
    #[arg(long, value_name = "TOPIC")]
    topic: Option<String>,
    /// At most so many messages that are parked, and as many that wait; 0 for all [default: 10]
    #[arg(short = 'n', long = "lines", value_name = "N")]
    lines: Option<u64>,
}

/// So many messages of each kind are listed unless told otherwise.
const LINES: u64 = 10;
/// So many are read at once: however many there are, no more are in memory.
const PAGE: u64 = 1000;

pub(crate) fn run(
    out: &mut Out,
    place: &Place,
    arguments: &ListArguments,
    action: Option<&Action>,
) -> Result<Outcome, Failure> {
    let ListArguments { topic, lines } = arguments;
    match action {
        Some(_) if topic.is_some() || lines.is_some() => {
            Err(Failure::Usage("--topic and -n stand behind the verb, where it takes them"))
        }
        None => list(out, place, arguments),
        Some(Action::List(arguments)) => list(out, place, arguments),
        Some(Action::Show(arguments)) => show::run(out, place, arguments),
        Some(Action::Retry(arguments)) => decide::retry(out, place, arguments),
        Some(Action::Drop(arguments)) => decide::discard(out, place, arguments),
    }
}

/// What a line of JSON tells of.
#[derive(Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Line<'a> {
    Topic(&'a TopicInfo),
    Message(&'a MessageInfo),
}

fn list(out: &mut Out, place: &Place, arguments: &ListArguments) -> Result<Outcome, Failure> {
    let inspector = place.inspector()?;
    let mut topics = inspector.topics()?;
    topics.retain(|info| arguments.topic.as_ref().is_none_or(|topic| *topic == info.topic));
    if out.json() {
        topics.iter().try_for_each(|topic| out.object(&Line::Topic(topic)))?;
    } else if topics.is_empty() {
        match &arguments.topic {
            None => out.line("no messages yet")?,
            Some(topic) => out.line(format_args!("no messages of {topic:?} yet"))?,
        }
        return Ok(Outcome::Fine);
    } else {
        tell_topics(out, &topics)?;
    }
    for parked in [true, false] {
        let of_each = |topic: &TopicInfo| if parked { topic.parked } else { topic.waiting };
        let total = topics.iter().map(of_each).sum();
        let shown = tell_messages(out, &inspector, arguments, parked)?;
        if !out.json() && shown < total {
            let what = if parked { "are parked" } else { "wait" };
            out.line(format_args!("… and {} more {what}; -n 0 lists them all", total - shown))?;
        }
    }
    Ok(Outcome::Fine)
}

fn tell_topics(out: &mut Out, topics: &[TopicInfo]) -> Result<(), Failure> {
    let mut table = Table::new(&["TOPIC", "STATE", "WAITING", "OLDEST", "PARKED", "PUBLISHED", "LAST", "WHY"]);
    for topic in topics {
        let (word, tint) = state(topic);
        table.row([
            cell(&topic.topic),
            tinted(word, tint),
            number(topic.waiting),
            cell(topic.oldest_ms.map_or_else(String::new, ago)),
            tinted(if topic.parked == 0 { String::new() } else { topic.parked.to_string() }, Tint::Warning),
            number(topic.published),
            cell(topic.published_ms.map_or_else(String::new, ago)),
            cell(why(topic)),
        ]);
    }
    out.table(table)
}

/// Lists messages a page at a time, and answers how many.
fn tell_messages(
    out: &mut Out,
    inspector: &Inspector,
    arguments: &ListArguments,
    parked: bool,
) -> Result<u64, Failure> {
    let lines = Some(arguments.lines.unwrap_or(LINES)).filter(|lines| *lines > 0).unwrap_or(u64::MAX);
    let (mut shown, mut from) = (0, None);
    while shown < lines {
        let limit = Some(PAGE.min(lines - shown));
        let filter = MessageFilter { parked, topic: arguments.topic.clone(), from, limit };
        let page = inspector.messages(&filter)?;
        let Some(last) = page.last() else { break };
        let next = last.id.checked_add(1);
        shown += page.len() as u64;
        if out.json() {
            page.iter().try_for_each(|message| out.object(&Line::Message(message)))?;
        } else {
            if from.is_none() {
                out.line("")?;
            }
            tell_page(out, &page)?;
        }
        match next {
            Some(_) => from = next,
            None => break,
        }
    }
    Ok(shown)
}

fn tell_page(out: &mut Out, page: &[MessageInfo]) -> Result<(), Failure> {
    let mut table = Table::new(&["ID", "STATE", "TOPIC", "KEY", "VERSION", "COMMITTED", "SIZE", "REFUSED", "WHY"]);
    for message in page {
        let (word, tint) = state_of(message);
        table.row([
            number(message.id),
            tinted(word, tint),
            cell(&message.topic),
            cell(&message.key),
            number(message.version),
            cell(ago(message.enqueued_ms)),
            number(if message.removal { "removal".into() } else { bytes(message.bytes) }),
            cell(if message.attempts == 0 { String::new() } else { many(message.attempts, "time") }),
            cell(&message.error),
        ]);
    }
    out.table(table)
}

/// The state of a message.
fn state_of(message: &MessageInfo) -> (&str, Tint) {
    let tint = match message.state.as_str() {
        "waiting" => Tint::None,
        "refused" => Tint::Warning,
        _ => Tint::Bad,
    };
    (&message.state, tint)
}

/// The state of a topic.
fn state(topic: &TopicInfo) -> (&str, Tint) {
    let tint = match topic.state.as_str() {
        "publishing" => Tint::Busy,
        "paused" | "waiting" => Tint::Warning,
        _ => Tint::Good,
    };
    (&topic.state, tint)
}

/// Why a topic stands as it does: who publishes it, whose sink cannot be reached.
pub(crate) fn why(topic: &TopicInfo) -> String {
    match (&topic.holder, topic.paused_ms) {
        (Some(holder), Some(since_ms)) => format!("{} paused {}: {}", who(holder), ago(since_ms), topic.reason),
        (Some(holder), None) => format!("{} began {}: {}", who(holder), ago(holder.since_ms), holder.purpose),
        (None, _) if topic.state == "waiting" => "nobody is publishing it at this moment".into(),
        (None, _) => String::new(),
    }
}

fn who(holder: &Holder) -> String {
    if holder.pid == 0 { "its process".into() } else { format!("{}[{}]", holder.program, holder.pid) }
}

/// A command about a topic, as a shell takes it.
pub(crate) fn command(verb: &str, topic: &str) -> String {
    format!("journalctl-kb outbox{verb} --topic={}", shell_word(topic))
}
