//! The page docs/outbox-performance.md.

use std::path::Path;

use journal_kb_peers::Result;

use super::claims::{self, WAYS, beyond_commit, commit, each, grown, heard, log, more_than_alone, queued, syncs};
use super::commits::Kind;
use super::draining;
use super::latency::{Times, Who};
use super::peers::{Side, What};
use super::results::{Found, Measured};
use super::work::{BATCH, PAYLOAD};
use crate::criterion::Medians;
use crate::markdown::{paragraph, table};
use crate::page::Page;
use crate::quantity::{Measure, Quantity, Span, Unit, grouped};

/// What is said about the figures by hand.
const NOTES: &str = include_str!("../../outbox.md");

const FIGURES: &str = "Figures are medians of the rounds, with the least and the greatest in brackets; of a ratio the two sides \
    furthest apart; of memory the greatest. What is claimed of rates is said by the time of a message. A claim is met when the \
    figure before the brackets is at most the bound.";

const PUBLISHED_TOLD: &str = "Of one message each time, now and then. *Returned* is from the call of `transact` until it returns, \
    *published* from the call until the publisher has the message; *beyond* is what of that is more than the commit takes where nobody \
    drains, in the same round.";

const QUEUES_TOLD: &str = "What one message takes in each way; *syncs* are the system calls that sync, of each message that is put in \
    by itself.";

const HAND_TOLD: &str = "As Criterion measures it: medians, with their confidence intervals. By hand a message is a row of a table, \
    written in the transaction of the application; to drain it, some are read, told and deleted in a transaction of their own, \
    which is synced, as that connection is told to.";

pub fn write(measured: &Measured, medians: &Medians, path: &Path) -> Result<()> {
    let scale = &measured.scale;
    let mut page = Page::new("Performance of the outbox", "bash benches/run --outbox", scale.quick, &measured.machine);
    page.say(&sides(measured));
    page.say(&load(measured));
    page.say(FIGURES);
    for found in &measured.places {
        page.claims(&found.place, &found.filesystem, &claims::of(measured, found)?);
    }
    page.put(NOTES.trim_start());
    page.part("Inside commits", &inside(measured));
    page.part("Until it is published", &(paragraph(PUBLISHED_TOLD) + &published(measured)));
    page.part("Backlogs", &backlogs(measured));
    page.part("Sinks that take nothing", &stuck(measured));
    page.part("As a queue, side by side", &(paragraph(QUEUES_TOLD) + &queues(measured)));
    page.part("Beside an outbox by hand", &(paragraph(HAND_TOLD) + &by_hand(measured, medians)?));
    page.write(path)
}

fn sides(measured: &Measured) -> String {
    let scale = &measured.scale;
    let peers = measured.peers.iter().map(|(side, standing)| match standing {
        Ok(What { version, journal_mode, synchronous }) => {
            let synchronous = synchronous.map_or_else(String::new, |level| format!(", synchronous={level}"));
            format!(
                "{} is of version {version}, its database says journal_mode={journal_mode}{synchronous}.",
                side.name()
            )
        }
        Err(why) => format!("**{} was not measured, because it could not be had here: {}.**", side.name(), why.trim()),
    });
    format!(
        "Each measurement is a process of its own, in {} rounds, one side after the other. A message says {PAYLOAD} B. Backlogs are of {} \
         and of {} messages, committed {} at a time. As a queue each side has {} messages in each way; the several at once are {}, and many \
         at a time {}. {}",
        scale.rounds,
        grouped(scale.small),
        grouped(scale.large),
        grouped(BATCH),
        grouped(scale.queued),
        scale.crowd,
        grouped(BATCH),
        peers.collect::<Vec<_>>().join(" "),
    )
}

/// Others may have been at work on the machine.
fn load(measured: &Measured) -> String {
    let Some(span) = Span::median(measured.load.iter().copied()) else { return String::new() };
    format!(
        "On average of the minute before each part {:.1} processes wanted a processor, between {:.1} and {:.1}, of which there are {}: \
         what is measured here itself, and whatever else was at work.",
        span.value, span.low, span.high, measured.machine.cores
    )
}

fn shown(span: Option<Span>, unit: Unit) -> String {
    span.map_or_else(|| "–".to_owned(), |span| Measure(span, unit).to_string())
}

fn time(span: Option<Span>) -> String {
    shown(span, Unit::Nanoseconds)
}

/// So many of what takes so long.
fn a_second(took: Option<Span>) -> String {
    let inverse = |took: Span| Span { value: 1e9 / took.value, low: 1e9 / took.high, high: 1e9 / took.low };
    shown(took.map(inverse), Unit::Count)
}

fn inside(measured: &Measured) -> String {
    let mut rows = Vec::new();
    for found in &measured.places {
        for kind in Kind::all() {
            let more = kind.message.and_then(|_| more_than_alone(found, kind));
            let syncs = shown(syncs(found, kind), Unit::Count);
            rows.push([format!("{}, {}", found.place, kind.name()), time(commit(found, kind)), time(more), syncs]);
        }
    }
    table(["", "took", "more than without", "syncs"], rows)
}

fn published(measured: &Measured) -> String {
    let mut rows = Vec::new();
    for found in &measured.places {
        for who in Who::ALL {
            let returned = |part: f64| heard(found, who, |times| at(times, part, |times| Some(times.returned)));
            let published = |part: f64| heard(found, who, |times| at(times, part, |times| times.published));
            let beyond = (who != Who::Nobody).then(|| beyond_commit(found, who)).flatten();
            rows.push([
                format!("{}, {}", found.place, who.name()),
                time(returned(0.5)),
                time(returned(0.99)),
                time(published(0.5)),
                time(published(0.99)),
                time(beyond),
            ]);
        }
    }
    table(["", "returned, median", "returned, p99", "published, median", "published, p99", "beyond, median"], rows)
}

/// From the call until then, of the one that so large a part of them does not exceed.
fn at(times: &[Times], part: f64, then: fn(&Times) -> Option<u64>) -> Option<f64> {
    let mut took: Vec<_> = times.iter().filter_map(|times| Some(then(times)?.saturating_sub(times.called))).collect();
    took.sort_unstable();
    let last = took.len().checked_sub(1)?;
    took.get((last as f64 * part).ceil() as usize).map(|took| *took as f64)
}

fn backlogs(measured: &Measured) -> String {
    let mut rows = Vec::new();
    for found in &measured.places {
        for kind in draining::Kind::all() {
            for messages in [measured.scale.small, measured.scale.large] {
                let took = each(found, kind, messages);
                rows.push([
                    format!("{}, {}, {}", found.place, grouped(messages), kind.name()),
                    time(took),
                    a_second(took),
                    shown(grown(found, kind, messages), Unit::Bytes),
                    shown(log(found, kind, messages), Unit::Bytes),
                ]);
            }
        }
    }
    table(["messages", "each", "a second", "memory, more than before", "log of the database"], rows)
}

fn stuck(measured: &Measured) -> String {
    let mut rows = Vec::new();
    for found in &measured.places {
        for waited in &found.waited {
            let what =
                if waited.refuses { "a refused message tried again" } else { "a sink that is down asked once more" };
            rows.push([
                format!("{}, {what}, {} messages wait", found.place, grouped(waited.messages)),
                Quantity(waited.each, Unit::Nanoseconds).to_string(),
                Quantity(waited.grown as f64, Unit::Bytes).to_string(),
            ]);
        }
        let healed = Span::median(found.healed.iter().copied());
        rows.push([
            format!("{}, sinks that were down until all is published", found.place),
            time(healed),
            "–".to_owned(),
        ]);
    }
    table(["", "time (of a processor, where it is asked)", "memory, more than before"], rows)
}

fn queues(measured: &Measured) -> String {
    let mut rows = Vec::new();
    for found in &measured.places {
        let here = |side: &Side| found.queued.iter().any(|(of, _)| of == side);
        for side in Side::ALL.into_iter().filter(here) {
            let way = |at: usize| WAYS.get(at).and_then(|(_, way)| queued(found, side, *way));
            let syncs = found.queue_syncs.iter().find(|(of, _)| *of == side).map(|(_, syncs)| *syncs);
            rows.push([
                format!("{}, {}", found.place, side.name()),
                time(way(0)),
                time(way(1)),
                time(way(2)),
                time(way(3)),
                time(way(4)),
                syncs.map_or_else(|| "–".to_owned(), |syncs| format!("{syncs:.1}")),
            ]);
        }
    }
    table(["", "put in", "by several", "many at a time", "carried out", "in and out", "syncs"], rows)
}

fn by_hand(measured: &Measured, medians: &Medians) -> Result<String> {
    let mut rows = Vec::new();
    for Found { place, .. } in &measured.places {
        let took = |name: &str| {
            let median = medians.get(&format!("outbox/{place}/{name}")).copied();
            median.map(|span| time(Some(span))).ok_or_else(|| format!("Criterion has not measured {name}"))
        };
        for (what, name) in [("journal-kb", "journal"), ("plain SQLite, by hand", "sqlite")] {
            rows.push([
                format!("{place}, {what}"),
                took(&format!("commit/{name}"))?,
                took(&format!("commit/{name}+message"))?,
                took(&format!("drain/{name}"))?,
            ]);
        }
    }
    Ok(table(["", "a row", "a row and a message", "2,000 messages drained"], rows))
}
