//! What is claimed of blobs, each claim with what was found.

use journal_kb_peers::Result;

use super::many::{self, Opened};
use super::results::{Found, Measured};
use super::small::{self, Side};
use super::streaming::{Peak, Way};
use super::waking::{Kind, Woken};
use crate::claims::Claim;
use crate::criterion::Medians;
use crate::quantity::{Quantity, Span, Unit, grouped};

const OF_DD_AT_LEAST: f64 = 0.9;
const OF_CACACHE_AT_LEAST: f64 = 10.0;
const OPEN_AT_MOST: f64 = 30e3;
const WOKEN_AT_MOST: f64 = 2e6;
const MEMORY_AT_MOST: f64 = (64_u64 << 20) as f64;

/// All claims, as they were found in one place.
pub fn of(measured: &Measured, medians: &Medians, found: &Found) -> Result<Vec<Claim>> {
    let mut claims = streamed(measured, found)?;
    claims.extend(written(measured, found)?);
    claims.extend(opened(measured, medians, found)?);
    claims.extend(woken(found)?);
    claims.extend(memory(measured, found));
    Ok(claims)
}

fn streamed(measured: &Measured, found: &Found) -> Result<Vec<Claim>> {
    let claim = |way: Way| {
        let work = format!("{} into {}, of `dd`", Quantity(measured.scale.streamed as f64, Unit::Bytes), way.name());
        let of_dd = of_dd(found, way).ok_or("a way of streaming was not measured")?;
        Ok(Claim::absolute(work, 1.0 / OF_DD_AT_LEAST, of_dd, Unit::Times))
    };
    [Way::From, Way::Buffer, Way::Copy].into_iter().map(claim).collect()
}

fn written(measured: &Measured, found: &Found) -> Result<Vec<Claim>> {
    let blobs = grouped(measured.scale.small);
    let peers = Side::ALL.into_iter().filter(|side| *side != Side::Journal);
    let claim = |peer: Side| {
        let work = format!("{blobs} blobs of 4 KiB, {} in a transaction, of {}", measured.scale.batch, peer.name());
        let of_peer = of_peer(found, peer).ok_or("a way of writing many blobs was not measured")?;
        Ok(Claim::absolute(work, 1.0 / OF_CACACHE_AT_LEAST, of_peer, Unit::Times))
    };
    peers.map(claim).collect()
}

fn opened(measured: &Measured, medians: &Medians, found: &Found) -> Result<Vec<Claim>> {
    let mut claims = Vec::new();
    for (file, what) in [(false, "in the database"), (true, "a file")] {
        let few = criterion(medians, found, &format!("open/{}", if file { "file" } else { "inline" }))?;
        claims.push(Claim::absolute(format!("opening a blob, {what}"), OPEN_AT_MOST, few, Unit::Nanoseconds));
        let of = |opened: &Opened| middle(if file { &opened.file } else { &opened.inline });
        let took = of(&found.many.opened).ok_or("nothing was opened")?;
        let work = format!("the same, {} being there: the median", grouped(measured.scale.many));
        claims.push(Claim::absolute(work, OPEN_AT_MOST, took, Unit::Nanoseconds));
    }
    Ok(claims)
}

fn woken(found: &Found) -> Result<Vec<Claim>> {
    let claim = |kind: Kind| {
        let work = format!("who waits {} has it, once that has returned: the median", kind.name());
        let took = wakes(found, kind, 0.5, Woken::since_returned).ok_or("nobody was woken")?;
        Ok(Claim::absolute(work, WOKEN_AT_MOST, took, Unit::Nanoseconds))
    };
    Kind::all().map(claim).collect()
}

/// What memory was looked at for, and what it came to.
pub fn peaks(measured: &Measured, found: &Found) -> [(String, Peak); 4] {
    let (scale, many) = (&measured.scale, &found.many);
    let huge = Quantity(scale.huge as f64, Unit::Bytes);
    let size = Quantity(many::SMALL as f64, Unit::Bytes);
    [
        (format!("{huge} streamed into a blob"), many.huge_in),
        (format!("{huge} read from it, verified"), many.huge_out),
        (format!("{} blobs of {size} written", grouped(scale.many)), many.small),
        (format!("{} files of blobs swept", grouped(scale.swept)), many.swept.peak),
    ]
}

fn memory(measured: &Measured, found: &Found) -> impl Iterator<Item = Claim> {
    let peaks = peaks(measured, found).into_iter();
    peaks.map(|(work, peak)| {
        Claim::absolute(work + ": peak memory", MEMORY_AT_MOST, exactly(peak.most as f64), Unit::Bytes)
    })
}

pub fn exactly(value: f64) -> Span {
    Span { value, low: value, high: value }
}

/// What Criterion has found of something, in one place.
pub fn criterion(medians: &Medians, found: &Found, name: &str) -> Result<Span> {
    let name = format!("blobs/{}/{name}", found.place);
    Ok(medians.get(&name).copied().ok_or_else(|| format!("Criterion has not measured {name}"))?)
}

/// The median, with those that a tenth is below and above.
pub fn middle(all: &[f64]) -> Option<Span> {
    Some(Span { value: at(all, 0.5)?, low: at(all, 0.1)?, high: at(all, 0.9)? })
}

/// The one that so large a part of them does not exceed.
pub fn at(all: &[f64], part: f64) -> Option<f64> {
    let mut all = all.to_vec();
    all.sort_by(f64::total_cmp);
    let last = all.len().checked_sub(1)?;
    all.get((last as f64 * part).ceil() as usize).copied()
}

pub fn stream(found: &Found, way: Way) -> Option<Span> {
    Span::median(found.streamed.iter().filter(|(of, _)| *of == way).map(|(_, took)| *took))
}

/// What a way took of what dd took, in the same round.
pub fn of_dd(found: &Found, way: Way) -> Option<Span> {
    let of = |way: Way| found.streamed.iter().filter(move |(of, _)| *of == way).map(|(_, took)| took);
    Span::median(of(way).zip(of(Way::Dd)).map(|(took, dd)| took / dd))
}

/// What the journal took for the small blobs of what a peer took, in the same round.
fn of_peer(found: &Found, peer: Side) -> Option<Span> {
    let of = |side: Side| {
        let of = move |written: &&small::Written| written.side == side && written.size == small::SMALL;
        found.written.iter().filter(of).map(|written| written.took)
    };
    Span::median(of(Side::Journal).zip(of(peer)).map(|(took, that)| took / that))
}

pub fn many_took(found: &Found, side: Side, size: usize) -> Option<Span> {
    let of = found.written.iter().filter(|written| written.side == side && written.size == size);
    Span::median(of.map(|written| written.took))
}

/// Of each round what so large a part of the waits does not exceed.
pub fn wakes(found: &Found, kind: Kind, part: f64, of: fn(&Woken) -> f64) -> Option<Span> {
    let rounds = found.wakes.iter().filter(|wakes| wakes.kind == kind);
    Span::median(rounds.filter_map(|wakes| at(&wakes.woken.iter().map(of).collect::<Vec<_>>(), part)))
}
