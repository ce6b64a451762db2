//! What is claimed of the journal, each claim with what was found.

use journal_kb_peers::{Kind, Result};

use crate::quantity::{Quantity, Span, Unit, grouped};
use crate::results::{Found, Results};
use crate::series::Run;
use crate::syncs::{Counts, Syncs};

/// The loop of bare atomic writes.
const BARE: &str = "bare loop";
const FILE_AT_MOST: f64 = 0.7;
const FILES_AT_MOST: f64 = 0.15;
const SETTLED_AT_MOST: f64 = 0.4;
const FILE_OF_PEERS_AT_MOST: f64 = 0.1;
const FILES_OF_PEERS_AT_MOST: f64 = 0.17;
const COMMIT_SYNCS_AT_MOST: f64 = 1.0;
const SETTLE_SYNCS_AT_MOST: f64 = 20.0;
const ROWS_AT_MOST: f64 = 1.25;
const SERIES_AT_MOST: f64 = 0.6;
const P99_AT_MOST: f64 = 5.0;
const MEMORY_AT_MOST: f64 = (64_u64 << 20) as f64;
const OPEN_AT_MOST: f64 = 5e6;
const RECOVERY_AT_MOST: f64 = 1e9;

/// That some work takes at most so much, or so many times what something else takes.
#[derive(Clone, Debug)]
pub struct Claim {
    pub work: String,
    pub at_most: f64,
    /// What the journal took.
    pub took: Span,
    pub unit: Unit,
    /// What that is compared with, if with anything, and what that took.
    pub beside: Option<(&'static str, Span)>,
    /// Whether it belongs to the short table of the README.
    pub is_brief: bool,
}

impl Claim {
    pub fn absolute(work: impl Into<String>, at_most: f64, took: Span, unit: Unit) -> Self {
        Self { work: work.into(), at_most, took, unit, beside: None, is_brief: false }
    }

    pub fn compared(work: impl Into<String>, at_most: f64, took: Span, what: &'static str, that: Span) -> Self {
        Self { beside: Some((what, that)), ..Self::absolute(work, at_most, took, Unit::Nanoseconds) }
    }

    fn brief(self) -> Self {
        Self { is_brief: true, ..self }
    }

    /// The figure that the bound is for.
    pub fn judged(&self) -> Span {
        self.beside.map_or(self.took, |(_, that)| self.took.by(that))
    }

    /// What that figure counts.
    pub fn judged_unit(&self) -> Unit {
        if self.beside.is_some() { Unit::Times } else { self.unit }
    }

    pub fn is_met(&self) -> bool {
        self.judged().value <= self.at_most
    }
}

/// All claims, as they were found in one place.
pub fn of(results: &Results, found: &Found) -> Result<Vec<Claim>> {
    let mut claims = files(results, &found.place)?;
    claims.extend(syncs(found)?);
    let median = |name: &str| results.median(&format!("rows/{}/{name}", found.place));
    let rows = Claim::compared("rows only", ROWS_AT_MOST, median("journal")?, "plain SQLite, FULL", median("sqlite")?);
    claims.push(rows.brief());
    claims.extend(series(results, found)?);
    claims.extend(memory(results, found)?);
    claims.extend(opening(results, found)?);
    Ok(claims)
}

fn files(results: &Results, place: &str) -> Result<Vec<Claim>> {
    let mut claims = Vec::new();
    let took =
        |what: &str, kind: Kind, files: usize| results.median(&format!("files/{place}/{what}/{}/{files}", kind.name()));
    for what in ["new", "overwrite"] {
        let one = if what == "new" { "1 new file" } else { "1 file overwritten" };
        let many = if what == "new" { "100 new files" } else { "100 files overwritten" };
        let (file, files) = (took(what, Kind::Journal, 1)?, took(what, Kind::Journal, 100)?);
        let settled = took(what, Kind::JournalSettled, 100)?;
        let (bare_file, bare_files) = (took(what, Kind::Bare, 1)?, took(what, Kind::Bare, 100)?);
        claims.push(Claim::compared(one, FILE_AT_MOST, file, BARE, bare_file).brief());
        claims.push(Claim::compared(many, FILES_AT_MOST, files, BARE, bare_files).brief());
        let and_settled = format!("{many}, then settled");
        claims.push(Claim::compared(and_settled, SETTLED_AT_MOST, settled, BARE, bare_files).brief());
        for peer in [Kind::Fstx, Kind::FsTransaction] {
            let (peer_file, peer_files) = (took(what, peer, 1)?, took(what, peer, 100)?);
            claims.push(Claim::compared(one, FILE_OF_PEERS_AT_MOST, file, peer.name(), peer_file));
            claims.push(Claim::compared(many, FILES_OF_PEERS_AT_MOST, files, peer.name(), peer_files));
        }
    }
    Ok(claims)
}

/// Commits that come one after the other, and settling where it comes after each. What cannot be counted is left out.
fn syncs(found: &Found) -> Result<Vec<Claim>> {
    let journal = |settles: bool| {
        let wanted = |syncs: &&Syncs| syncs.kind == Kind::Journal && syncs.settles == settles && syncs.files == 100;
        found.syncs.iter().find(wanted).ok_or("the syncs of the journal were not counted")
    };
    let (commit, settling) = (&journal(false)?.write, &journal(true)?.settle);
    let mut claims = Vec::new();
    for (step, at_most, Counts { calls, flushes }) in
        [("commit", COMMIT_SYNCS_AT_MOST, commit), ("settling", SETTLE_SYNCS_AT_MOST, settling)]
    {
        for (what, counts) in [("system calls that sync", calls), ("flushes of the device", flushes)] {
            if let Some(median) = Span::median(counts.iter().map(|count| *count as f64)) {
                let work = format!("{step} of 100 new files in 10 directories: {what}");
                claims.push(Claim::absolute(work, at_most, median, Unit::Count));
            }
        }
    }
    Ok(claims)
}

fn series(results: &Results, found: &Found) -> Result<Vec<Claim>> {
    let mut claims = Vec::new();
    for (what, series) in ["new", "overwritten"].into_iter().zip(&found.series) {
        let median =
            |runs: &[Run], of: fn(&Run) -> f64| Span::median(runs.iter().map(of)).ok_or("no series was measured");
        let work = format!("{} transactions of 1 file, {what}, back to back", grouped(results.measured.scale.series));
        let (journal, bare) = (median(&series.journal, |run| run.total)?, median(&series.bare, |run| run.total)?);
        claims.push(Claim::compared(format!("{work}, settled"), SERIES_AT_MOST, journal, BARE, bare).brief());
        let (p99, typical) = (median(&series.journal, |run| run.p99)?, median(&series.journal, |run| run.median)?);
        claims.push(Claim::compared(format!("{work}: 99th percentile"), P99_AT_MOST, p99, "their median", typical));
    }
    Ok(claims)
}

fn memory(results: &Results, found: &Found) -> Result<[Claim; 2]> {
    let scale = &results.measured.scale;
    let peak = |work: String, peaks: &[u64]| {
        let peak = Span::greatest(peaks.iter().map(|peak| *peak as f64)).ok_or("no memory was measured")?;
        Ok::<_, &str>(Claim::absolute(work, MEMORY_AT_MOST, peak, Unit::Bytes))
    };
    let large = Quantity(scale.large as f64, Unit::Bytes);
    Ok([
        peak(format!("peak memory, 1 file of {large}"), &found.memory.one_large)?,
        peak(format!("peak memory, {} files in one transaction", grouped(scale.many)), &found.memory.many_small)?,
    ])
}

fn opening(results: &Results, found: &Found) -> Result<[Claim; 2]> {
    let nothing = results.median(&format!("open/{}/journal", found.place))?;
    let recovery = Span::median(found.recovery.iter().copied()).ok_or("no recovery was measured")?;
    let work = format!("opening, {} operations to recover", grouped(results.measured.scale.recovered));
    Ok([
        Claim::absolute("opening, nothing to recover", OPEN_AT_MOST, nothing, Unit::Nanoseconds).brief(),
        Claim::absolute(work, RECOVERY_AT_MOST, recovery, Unit::Nanoseconds).brief(),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_is_judged_by_the_ratio_or_by_itself() {
        let span = |value: f64| Span { value, low: value - 1.0, high: value + 1.0 };
        let alone = Claim::absolute("alone", 5.0, span(5.0), Unit::Nanoseconds);
        assert_eq!((alone.judged(), alone.judged_unit(), alone.is_met()), (span(5.0), Unit::Nanoseconds, true));
        let beside = |at_most| Claim::compared("beside", at_most, span(5.0), BARE, span(10.0));
        assert_eq!((beside(0.5).judged().value, beside(0.5).judged_unit()), (0.5, Unit::Times));
        assert_eq!((beside(0.5).is_met(), beside(0.4).is_met()), (true, false));
    }
}
