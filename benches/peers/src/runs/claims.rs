//! What is claimed of runs, each claim with what was found.

use journal_kb_peers::Result;

use super::commits::{Committed, Kind};
use super::dbos::Mode;
use super::results::{Found, Measured};
use super::work::{Recorded, Resumed, Way};
use crate::claims::Claim;
use crate::quantity::{Span, Unit, grouped};

const OF_PLAIN_AT_LEAST: f64 = 0.5;
const LAST_FLUSH_AT_MOST: f64 = 1.2;
const RESUME_AT_MOST: f64 = 1e9;
const MEMORY_AT_MOST: f64 = (128_u64 << 20) as f64;
const INSIDE_AT_MOST: f64 = 10e3;
const SYNCS_MORE_AT_MOST: f64 = 0.0;
const OF_DBOS_AT_LEAST: f64 = 10.0;
const SKIP_AT_MOST: f64 = 50e3;

/// All claims, as they were found in one place.
pub fn of(measured: &Measured, found: &Found) -> Result<Vec<Claim>> {
    let mut claims = many(measured, found)?;
    claims.extend(inside(found)?);
    claims.extend(steps(found)?);
    let skipped = Span::median(found.starts.skipped.iter().copied()).ok_or("no skip was measured")?;
    let work = "`run`, skipped because another process is at it";
    claims.push(Claim::absolute(work, SKIP_AT_MOST, skipped, Unit::Nanoseconds));
    Ok(claims)
}

fn many(measured: &Measured, found: &Found) -> Result<Vec<Claim>> {
    let scale = &measured.scale;
    let items = grouped(scale.items);
    let work = format!("{items} items recorded, {} in a flush", grouped(scale.flush));
    let took = |way| total(found, way).ok_or("a way of recording was not measured");
    let journal = took(Way::Journal)?;
    let mut claims = Vec::new();
    for plain in [Way::Rows, Way::Keys] {
        claims.push(Claim::compared(work.as_str(), 1.0 / OF_PLAIN_AT_LEAST, journal, plain.name(), took(plain)?));
    }
    let (first, last) = ends(found, Way::Journal, scale.ends).ok_or("too few flushes were measured")?;
    let flushes = found.recorded.iter().map(|recorded| recorded.flushes.len()).max().unwrap_or_default();
    let late = format!("flush number {}, the median of {} there", grouped(flushes), scale.ends);
    claims.push(Claim::compared(late, LAST_FLUSH_AT_MOST, last, "the first", first));
    let resumed =
        |of: fn(&Resumed) -> f64| Span::median(found.resumed.iter().map(of)).ok_or("nothing was measured that went on");
    let resume = format!("opening a journal and a run with {items} items banked, to the first `is_done`");
    claims.push(Claim::absolute(
        resume.as_str(),
        RESUME_AT_MOST,
        resumed(|resumed| resumed.opened)?,
        Unit::Nanoseconds,
    ));
    let peaks = found.resumed.iter().map(|resumed| resumed.peak as f64);
    let peak = Span::greatest(peaks).ok_or("no memory was measured")?;
    claims.push(Claim::absolute(format!("{resume}: peak memory"), MEMORY_AT_MOST, peak, Unit::Bytes));
    let peak = peak_of(found, Way::Journal).ok_or("no memory was measured")?;
    claims.push(Claim::absolute(format!("{work}: peak memory"), MEMORY_AT_MOST, peak, Unit::Bytes));
    Ok(claims)
}

fn inside(found: &Found) -> Result<Vec<Claim>> {
    let mut claims = Vec::new();
    for (kind, work) in [
        (Kind::Records, "an item recorded inside a commit: what that adds to it"),
        (Kind::Tries, "an item of `pending` begun and recorded inside a commit, its tries counted: what that adds"),
    ] {
        let more = more_than_alone(found, kind).ok_or("no commit was measured")?;
        claims.push(Claim::absolute(work, INSIDE_AT_MOST, more, Unit::Nanoseconds));
        // Where there is no tracer they are not counted.
        if let (Some(alone), Some(with)) = (syncs(found, Kind::Alone), syncs(found, kind)) {
            let work = format!("{work}: syncs");
            claims.push(Claim::absolute(work, SYNCS_MORE_AT_MOST, with.less(alone), Unit::Count));
        }
    }
    Ok(claims)
}

fn steps(found: &Found) -> Result<Option<Claim>> {
    let ours = step(found).ok_or("no step was measured")?;
    let work = "a durable step, with its row and its try counted";
    // Where it could not be had the page says so.
    Ok(peer_step(found, Mode::Default)
        .map(|dbos| Claim::compared(work, 1.0 / OF_DBOS_AT_LEAST, ours, Mode::Default.name(), dbos)))
}

fn rounds(found: &Found, way: Way) -> impl Iterator<Item = &Recorded> {
    found.recorded.iter().filter(move |recorded| recorded.way == way)
}

/// What recording all items took.
pub fn total(found: &Found, way: Way) -> Option<Span> {
    Span::median(rounds(found, way).map(|recorded| recorded.total))
}

pub fn peak_of(found: &Found, way: Way) -> Option<Span> {
    Span::greatest(rounds(found, way).map(|recorded| recorded.peak as f64))
}

/// What a flush took in the beginning and in the end: of each round the median of so many.
pub fn ends(found: &Found, way: Way, many: usize) -> Option<(Span, Span)> {
    let of = |part: fn(&[f64], usize) -> &[f64]| {
        Span::median(rounds(found, way).filter_map(|recorded| median(part(&recorded.flushes, many))))
    };
    let first = of(|flushes, many| &flushes[..many.min(flushes.len())])?;
    Some((first, of(|flushes, many| &flushes[flushes.len().saturating_sub(many)..])?))
}

fn median(of: &[f64]) -> Option<f64> {
    Span::median(of.iter().copied()).map(|span| span.value)
}

/// What a commit took, of each round the median.
pub fn commit(found: &Found, kind: Kind) -> Option<Span> {
    Span::median(found.commits.iter().filter_map(|round| of_kind(round, kind)))
}

/// By how much that is more than without an item, in the same round.
pub fn more_than_alone(found: &Found, kind: Kind) -> Option<Span> {
    Span::median(found.commits.iter().filter_map(|round| Some(of_kind(round, kind)? - of_kind(round, Kind::Alone)?)))
}

fn of_kind(round: &[Committed], kind: Kind) -> Option<f64> {
    round.iter().find(|committed| committed.kind == kind).and_then(|committed| median(&committed.took))
}

pub fn syncs(found: &Found, kind: Kind) -> Option<Span> {
    let counted = found.counted.iter().find(|committed| committed.kind == kind)?;
    Span::median(counted.syncs.iter().map(|count| *count as f64))
}

/// What a step took, of each round the median.
pub fn step(found: &Found) -> Option<Span> {
    Span::median(found.steps.iter().filter_map(|took| median(took)))
}

pub fn peer_step(found: &Found, mode: Mode) -> Option<Span> {
    let of = found.peer_steps.iter().filter(|(of, _)| *of == mode);
    Span::median(of.filter_map(|(_, took)| median(took)))
}
