//! What is claimed of locks, each claim with what was found.

use journal_kb_peers::Result;

use super::commits::{Crowd, How};
use super::results::{Found, Measured};
use super::side::Side;
use crate::claims::Claim;
use crate::quantity::{Quantity, Span, Unit};

const OF_PROPER_LOCKFILE_AT_MOST: f64 = 0.5;
const CYCLE_IN_MEMORY_AT_MOST: f64 = 30e3;
const SKIP_AT_MOST: f64 = 50e3;
const SKIP_WRITES_AT_MOST: f64 = 0.0;
const HANDOFF_AT_MOST: f64 = 0.2e6;
const DEATH_AT_MOST: f64 = 5e6;
const LONGEST_AT_MOST: f64 = 250e6;
const SLOWEST_AT_MOST: f64 = 2.0;
const CROWD_AT_LEAST: f64 = 0.8;
/// Threads, and how many times as many commits as plain SQLite they have at least.
const GROUP_AT_LEAST: [(usize, f64); 3] = [(1, 1.0), (8, 4.0), (32, 8.0)];

pub const SQLITE: &str = "plain SQLite, FULL";

/// All claims, as they were found in one place.
pub fn of(measured: &Measured, found: &Found) -> Result<Vec<Claim>> {
    let mut claims = holding(found)?;
    claims.extend(skips(found)?);
    claims.extend(processes(measured, found)?);
    claims.extend(threads(found)?);
    Ok(claims)
}

fn holding(found: &Found) -> Result<Vec<Claim>> {
    let mut claims = Vec::new();
    let of = |samples: &[(Side, Vec<f64>)], side: Side| {
        samples.iter().find(|(of, _)| *of == side).and_then(|(_, samples)| Span::median(samples.iter().copied()))
    };
    let journal = |samples| of(samples, Side::Journal).ok_or("the journal's locks were not measured");
    let cycle = "acquire + release, nobody else wants the lock";
    let took = journal(&found.cycles)?;
    // Where it could not be had the page says so.
    if let Some(that) = of(&found.cycles, Side::ProperLockfile) {
        claims.push(Claim::compared(cycle, OF_PROPER_LOCKFILE_AT_MOST, took, Side::ProperLockfile.name(), that));
    }
    if found.place == "tmpfs" {
        claims.push(Claim::absolute(cycle, CYCLE_IN_MEMORY_AT_MOST, took, Unit::Nanoseconds));
    }
    let released = "hand-off to a waiting process after release";
    claims.push(Claim::absolute(released, HANDOFF_AT_MOST, journal(&found.handoffs)?, Unit::Nanoseconds));
    let killed = "hand-off to a waiting process after SIGKILL of the holder, with its empty transaction recovered";
    claims.push(Claim::absolute(killed, DEATH_AT_MOST, journal(&found.deaths)?, Unit::Nanoseconds));
    Ok(claims)
}

fn skips(found: &Found) -> Result<Vec<Claim>> {
    let took = Span::median(found.skips.took.iter().copied()).ok_or("no skip was measured")?;
    let skip = "`single_flight`, skipped";
    let mut claims = vec![Claim::absolute(skip, SKIP_AT_MOST, took, Unit::Nanoseconds)];
    if let Some(writes) = found.skips.writes {
        let work = format!("{skip}: system calls that write, in {} of them", found.skips.took.len());
        claims.push(Claim::absolute(work, SKIP_WRITES_AT_MOST, exactly(writes as f64), Unit::Count));
    }
    Ok(claims)
}

fn processes(measured: &Measured, found: &Found) -> Result<Vec<Claim>> {
    let all = measured.scale.processes;
    let ours = |processes: usize| {
        let ours = move |crowd: &&Crowd| crowd.how == How::Transactions && crowd.processes == processes;
        found.processes.iter().filter(ours)
    };
    let crowd = ours(all).next().ok_or("no processes were measured")?;
    let alone = Span::median(ours(1).map(Crowd::each)).ok_or("no process was measured alone")?;
    let time = Quantity(measured.scale.crowd_ms as f64 * 1e6, Unit::Nanoseconds);
    let work = format!("{all} processes with small transactions for {time}");
    let (slowest, fastest) = crowd.slowest_and_fastest();
    let each = |who: &str| format!("{work}: a transaction of {who}");
    Ok(vec![
        Claim::absolute(format!("{work}: longest wait"), LONGEST_AT_MOST, exactly(crowd.longest()), Unit::Nanoseconds),
        Claim::compared(each("the slowest"), SLOWEST_AT_MOST, exactly(slowest), "of the fastest", exactly(fastest)),
        Claim::compared(each("all"), 1.0 / CROWD_AT_LEAST, exactly(crowd.each()), "one process alone", alone),
    ])
}

fn threads(found: &Found) -> Result<Vec<Claim>> {
    let each = |how: How, threads: usize| {
        let wanted = |crowd: &&Crowd| (crowd.how, crowd.threads) == (how, threads);
        Span::median(found.threads.iter().filter(wanted).map(Crowd::each)).ok_or("some threads were not measured")
    };
    let plain = each(How::Sqlite, 1)?;
    let mut claims = Vec::new();
    for (threads, at_least) in GROUP_AT_LEAST {
        let work = format!("{}, `write`: a commit of one row", of_threads(threads));
        claims.push(Claim::compared(work, 1.0 / at_least, each(How::Write, threads)?, SQLITE, plain));
    }
    Ok(claims)
}

pub fn of_threads(threads: usize) -> String {
    if threads == 1 { "1 thread".to_owned() } else { format!("{threads} threads") }
}

/// What was seen once.
fn exactly(value: f64) -> Span {
    Span { value, low: value, high: value }
}
