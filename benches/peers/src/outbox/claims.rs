//! What is claimed of the outbox, each claim with what was found.

use journal_kb_peers::Result;

use super::commits::{Committed, Kind, Work};
use super::draining::{self, Drained};
use super::latency::{Times, Who};
use super::peers::Side;
use super::queue::Queued;
use super::results::{Found, Measured};
use super::work::{Keys, PAYLOAD};
use crate::claims::Claim;
use crate::quantity::{Quantity, Span, Unit, grouped};

const MESSAGE_AT_MOST: f64 = 15e3;
const SYNCS_MORE_AT_MOST: f64 = 0.0;
const PUBLISHED_AT_MOST: f64 = 2e6;
const DRAINED_AT_LEAST: f64 = 20_000.0;
const OF_SMALL_AT_LEAST: f64 = 0.8;
const MEMORY_AT_MOST: f64 = (64_u64 << 20) as f64;
const HEALED_AT_MOST_MORE: f64 = 1e9;
const OF_PEERS_AT_LEAST: f64 = 5.0;

/// What a way of being a queue took.
pub type Way = fn(&Queued) -> Option<f64>;

/// All claims, as they were found in one place.
pub fn of(measured: &Measured, found: &Found) -> Result<Vec<Claim>> {
    let mut claims = commits(found)?;
    claims.extend(published(found)?);
    claims.extend(drained(measured, found)?);
    claims.extend(waited(measured, found)?);
    let healed = Span::greatest(found.healed.iter().copied()).ok_or("no sink was healed")?;
    let probe = measured.scale.probe_ms as f64 * 1e6;
    let work = format!(
        "all is published that waits, once the sink is back, which is asked {} apart at most: the slowest of {}",
        Quantity(probe, Unit::Nanoseconds),
        found.healed.len()
    );
    claims.push(Claim::absolute(work, probe + HEALED_AT_MOST_MORE, healed, Unit::Nanoseconds));
    claims.extend(queues(found)?);
    Ok(claims)
}

fn commits(found: &Found) -> Result<Vec<Claim>> {
    let mut claims = Vec::new();
    for work in Work::ALL {
        for (keys, key) in [(Keys::Different, "a new key"), (Keys::Same, "a key that has had others")] {
            let kind = Kind { work, message: Some(keys) };
            let what = format!("what a message of {key} adds to {}", work.name());
            let more = more_than_alone(found, kind).ok_or("no commit was measured")?;
            claims.push(Claim::absolute(what.as_str(), MESSAGE_AT_MOST, more, Unit::Nanoseconds));
            let alone = Kind { work, message: None };
            // Where there is no tracer they are not counted.
            if let (Some(alone), Some(with)) = (syncs(found, alone), syncs(found, kind)) {
                claims.push(Claim::absolute(what + ": syncs", SYNCS_MORE_AT_MOST, with.less(alone), Unit::Count));
            }
        }
    }
    Ok(claims)
}

fn published(found: &Found) -> Result<Vec<Claim>> {
    let claim = |who: Who| {
        let work = format!("a message that was committed is published, {}: the median", who.name());
        let took = beyond_commit(found, who).ok_or("nothing was published")?;
        Ok(Claim::absolute(work, PUBLISHED_AT_MOST, took, Unit::Nanoseconds))
    };
    Who::ALL.into_iter().filter(|who| *who != Who::Nobody).map(claim).collect()
}

fn drained(measured: &Measured, found: &Found) -> Result<Vec<Claim>> {
    let (small, large) = (measured.scale.small, measured.scale.large);
    let mut claims = Vec::new();
    for kind in draining::Kind::all() {
        let each = |messages| each(found, kind, messages).ok_or("a backlog was not drained");
        let work = |messages: usize| {
            format!("{} messages of {PAYLOAD} B drained to a closure, {}: each", grouped(messages), kind.name())
        };
        let (of_small, of_large) = (each(small)?, each(large)?);
        for (messages, took) in [(small, of_small), (large, of_large)] {
            claims.push(Claim::absolute(work(messages), 1e9 / DRAINED_AT_LEAST, took, Unit::Nanoseconds));
        }
        let beside = "of the small backlog";
        claims.push(Claim::compared(work(large), 1.0 / OF_SMALL_AT_LEAST, of_large, beside, of_small));
        let grown = grown(found, kind, large).ok_or("no memory was measured")?;
        let work = format!("{}: memory, at its peak", work(large).trim_end_matches(": each"));
        claims.push(Claim::absolute(work, MEMORY_AT_MOST, grown, Unit::Bytes));
    }
    Ok(claims)
}

fn waited(measured: &Measured, found: &Found) -> Result<Vec<Claim>> {
    let (small, large) = (measured.scale.small, measured.scale.large);
    let mut claims = Vec::new();
    for (refuses, what) in
        [(false, "a sink that is down is asked once more"), (true, "a refused message is tried again")]
    {
        let of = |messages| {
            let wanted = found.waited.iter().find(|waited| waited.refuses == refuses && waited.messages == messages);
            wanted.ok_or("a sink that takes nothing was not asked")
        };
        let exactly = |value| Span { value, low: value, high: value };
        let work = format!("{what}, while {} messages of one key wait", grouped(large));
        let (of_small, of_large) = (of(small)?, of(large)?);
        let each = |waited: &draining::Waited| exactly(waited.each);
        let beside = "while few wait";
        claims.push(Claim::compared(work.as_str(), 1.0 / OF_SMALL_AT_LEAST, each(of_large), beside, each(of_small)));
        let grown = exactly(of_large.grown as f64);
        claims.push(Claim::absolute(work + ": memory, at its peak", MEMORY_AT_MOST, grown, Unit::Bytes));
    }
    Ok(claims)
}

/// The ways of being a queue, each as it is told of.
pub const WAYS: [(&str, Way); 5] = [
    ("put in one by one, each durable before the next", |queued| Some(queued.one)),
    ("put in by several threads at once", |queued| Some(queued.together)),
    ("put in many at a time", |queued| queued.batch),
    ("carried out, of a backlog", |queued| Some(queued.drain)),
    ("put in one by one, and carried out meanwhile", |queued| Some(queued.through)),
];

fn queues(found: &Found) -> Result<Vec<Claim>> {
    let mut claims = Vec::new();
    for (work, way) in WAYS {
        // Beside who syncs nothing the page shows what that takes, and claims nothing.
        for peer in [Side::Huey, Side::HueyDurable, Side::Effectum] {
            // Where it could not be had the page says so.
            let Some(that) = queued(found, peer, way) else { continue };
            let ours = queued(found, Side::Journal, way).ok_or("the journal was not measured as a queue")?;
            let work = format!("a message, {work}");
            claims.push(Claim::compared(work, 1.0 / OF_PEERS_AT_LEAST, ours, peer.name(), that));
        }
    }
    Ok(claims)
}

fn of_kind(round: &[Committed], kind: Kind) -> Option<&[f64]> {
    round.iter().find(|committed| committed.kind == kind).map(|committed| committed.took.as_slice())
}

fn median(of: impl IntoIterator<Item = f64>) -> Option<f64> {
    Span::median(of).map(|span| span.value)
}

/// What a commit took, of each round the median.
pub fn commit(found: &Found, kind: Kind) -> Option<Span> {
    Span::median(found.commits.iter().filter_map(|round| median(of_kind(round, kind)?.iter().copied())))
}

/// By how much that is more than the one without a message just before it: of each round the median.
pub fn more_than_alone(found: &Found, kind: Kind) -> Option<Span> {
    let alone = Kind { message: None, ..kind };
    let more = |round: &Vec<Committed>| {
        let pairs = of_kind(round, kind)?.iter().zip(of_kind(round, alone)?);
        median(pairs.map(|(with, alone)| with - alone))
    };
    Span::median(found.commits.iter().filter_map(more))
}

pub fn syncs(found: &Found, kind: Kind) -> Option<Span> {
    let (_, counted) = found.syncs.iter().find(|(of, _)| *of == kind)?;
    Span::median(counted.iter().copied())
}

/// Of each round what `of` makes of the times of its messages.
pub fn heard(found: &Found, who: Who, of: impl Fn(&[Times]) -> Option<f64>) -> Option<Span> {
    let rounds = found.heard.iter().filter(|heard| heard.who == who);
    Span::median(rounds.filter_map(|heard| of(&heard.times)))
}

/// The median of what it took from the call of `commit` until it was published.
pub fn until_published(times: &[Times]) -> Option<f64> {
    median(times.iter().filter_map(|times| Some(times.published?.saturating_sub(times.called) as f64)))
}

/// The median of what the call took.
pub fn until_returned(times: &[Times]) -> Option<f64> {
    median(times.iter().map(|times| times.returned.saturating_sub(times.called) as f64))
}

/// What of that is more than the commit takes when nobody drains, in the same round.
pub fn beyond_commit(found: &Found, who: Who) -> Option<Span> {
    let of = |who: Who| found.heard.iter().filter(move |heard| heard.who == who);
    let rounds = of(who).zip(of(Who::Nobody));
    Span::median(
        rounds.filter_map(|(heard, alone)| Some(until_published(&heard.times)? - until_returned(&alone.times)?)),
    )
}

fn backlogs(found: &Found, kind: draining::Kind, messages: usize) -> impl Iterator<Item = &Drained> {
    found.drained.iter().filter(move |drained| drained.kind == kind && drained.messages == messages)
}

/// What draining a message of a backlog took.
pub fn each(found: &Found, kind: draining::Kind, messages: usize) -> Option<Span> {
    Span::median(backlogs(found, kind, messages).map(|drained| drained.took / messages as f64))
}

pub fn grown(found: &Found, kind: draining::Kind, messages: usize) -> Option<Span> {
    Span::greatest(backlogs(found, kind, messages).map(|drained| drained.grown as f64))
}

pub fn log(found: &Found, kind: draining::Kind, messages: usize) -> Option<Span> {
    Span::greatest(backlogs(found, kind, messages).map(|drained| drained.log as f64))
}

pub fn queued(found: &Found, side: Side, way: Way) -> Option<Span> {
    Span::median(found.queued.iter().filter(|(of, _)| *of == side).filter_map(|(_, queued)| way(queued)))
}
