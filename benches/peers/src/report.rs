//! The page docs/performance.md.

use std::fs;
use std::path::Path;

use journal_kb_peers::{Kind, Result};

use crate::claims::{self, Claim};
use crate::machine::Machine;
use crate::markdown::{paragraph, table};
use crate::quantity::{Measure, Quantity, Span, Unit, grouped};
use crate::results::{Found, Results};
use crate::series::Run;
use crate::syncs::{Counts, Syncs};

/// What is said about the figures by hand.
const NOTES: &str = include_str!("../notes.md");
/// The exact versions of the peers.
const VERSIONS: &str = include_str!("../Cargo.lock");

/// Writes the page.
pub fn write(results: &Results, page: &Path) -> Result<()> {
    Ok(fs::write(page, text(results)?).map_err(|error| format!("{}: {error}", page.display()))?)
}

fn text(results: &Results) -> Result<String> {
    let mut text = head(results)?;
    for found in &results.measured.places {
        let claims = claims::of(results, found)?;
        let met = claims.iter().filter(|claim| claim.is_met()).count();
        text += &format!("## On {}\n\n", found.place);
        text += &paragraph(&format!("{}. Of {} claims {met} are met.", found.filesystem, claims.len()));
        text += &claimed(&claims);
        text += "\n";
    }
    text += "## The floor\n\n";
    text += &paragraph(FLOOR);
    text += &floor(results)?;
    text += &format!("\n{}", NOTES.trim_start());
    text += "\n## Syncs\n\n";
    text += &paragraph(SYNCS);
    text += &syncs(results);
    text += "\n## How settling syncs\n\n";
    text += &paragraph(WAYS_TOLD);
    text += &ways(results)?;
    text += "\n## Latency of transactions back to back\n\n";
    text += &paragraph(&latency_told(results));
    text += &latency(results)?;
    Ok(text)
}

const FLOOR: &str = "A commit that keeps the new contents in the log of a database until the files are durable does at \
    least this: `log` is plain SQLite at FULL that takes the contents into a table, with one sync and without carrying its \
    log over; `put` writes the files under temporary names and renames them, without any sync. `rest` is what the journal \
    takes beyond both.";

const SYNCS: &str = "Each row is one write of new files in 10 directories: the median over the rounds, and between which two \
    they lie, after as many rounds that are not counted. `calls` are the system calls that sync, as strace sees them; \
    `flushes` are those that the block device has completed, as the kernel counts them, which can be told only of a loop \
    device. A journal `settled each time` is settled after each write, the other one not while this is counted; by default \
    it would be in the background.";

const WAYS_TOLD: &str = "The ways to make new files durable, with their directories and the one they came from, on the disk: one \
    `fsync` after another, eight at a time, or one `syncfs`. In the rows *beside 64 MiB* somebody else has written that much to \
    the same filesystem and not synced it, which `syncfs` writes out too.";

fn ways(results: &Results) -> Result<String> {
    let mut rows = Vec::new();
    for (state, sizes) in [("quiet", &[1, 2, 4, 8, 16, 64][..]), ("busy", &[8, 64][..])] {
        for files in sizes {
            let took = |way: &str| {
                let median = results.median(&format!("sync/{state}/{way}/{files}"))?;
                Ok::<_, Box<dyn std::error::Error>>(Measure(median, Unit::Nanoseconds).to_string())
            };
            let what = if state == "quiet" { format!("{files}") } else { format!("{files}, beside 64 MiB") };
            rows.push([what, took("one after another")?, took("several at once")?, took("syncfs")?]);
        }
    }
    Ok(table(["files", "one after another", "eight at a time", "`syncfs`"], rows))
}

/// The table of claims.
pub fn claimed(claims: &[Claim]) -> String {
    table(["work", "at most", "measured", "", "journal-kb", "compared with"], claims.iter().map(row))
}

/// When, where and of what something was measured.
pub fn made(machine: &Machine) -> String {
    let memory = Quantity(machine.memory as f64, Unit::Bytes);
    format!(
        "on {} at commit {}, on {} with {} cores and {memory} of memory, Linux {}, {}, SQLite {}. Everything is built for \
         release, and both sides of a comparison run one after the other on the same filesystem.",
        machine.date,
        machine.commit.as_deref().unwrap_or("unknown"),
        machine.processor,
        machine.cores,
        machine.kernel,
        machine.rust,
        machine.sqlite,
    )
}

fn head(results: &Results) -> Result<String> {
    let made = made(&results.measured.machine);
    let sides = format!(
        "Files are of 4 KiB and spread over 10 directories. The *bare loop* writes each file to a temporary name, syncs it, \
         renames it and syncs the directory: what people write by hand, and not one change. fstx {} and fs-transaction {} are \
         other crates that promise all or nothing for several files. A transaction of the journal takes its lock, commits \
         and is visible; what is *settled* has also been synced in the tree itself, which is otherwise done in the \
         background.",
        version("fstx")?,
        version("fs-transaction")?,
    );
    let figures = "In brackets stands between which two a figure lies: of a median of Criterion its 95 % confidence interval; \
         of what was done a few times the least and the greatest; of a ratio the two sides furthest apart. A claim is met when the \
         figure before the brackets is at most the bound.";
    let quick = if results.measured.scale.quick {
        "**This page is of a quick run: too few samples to mean anything.**\n\n"
    } else {
        ""
    };
    Ok(format!(
        "# Performance\n\n{quick}Every figure in digits on this page was measured and put here by\n\n```sh\nbash benches/run\n```\n\n{}{}{}",
        paragraph(&made),
        paragraph(&sides),
        paragraph(figures),
    ))
}

/// The version of a package that was measured.
pub fn version(package: &str) -> Result<&str> {
    let line = VERSIONS.split_once(&format!("name = \"{package}\"\nversion = \"")).ok_or("a peer without a version")?.1;
    Ok(line.split('"').next().unwrap_or_default())
}

fn row(claim: &Claim) -> [String; 6] {
    // What is compared with nothing stands there already.
    let (took, that) = claim.beside.map_or_else(Default::default, |(what, that)| {
        (Measure(claim.took, claim.unit).to_string(), format!("{what}: {}", Measure(that, claim.unit)))
    });
    [
        claim.work.clone(),
        Quantity(claim.at_most, claim.judged_unit()).to_string(),
        Measure(claim.judged(), claim.judged_unit()).to_string(),
        if claim.is_met() { "met" } else { "**not met**" }.to_owned(),
        took,
        that,
    ]
}

fn floor(results: &Results) -> Result<String> {
    let mut rows = Vec::new();
    for Found { place, .. } in &results.measured.places {
        for files in [1, 100] {
            let log = results.median(&format!("floor/{place}/log/{files}"))?;
            let put = results.median(&format!("floor/{place}/put/{files}"))?;
            let took = results.median(&format!("files/{place}/new/{}/{files}", Kind::Journal.name()))?;
            let floor = log.value + put.value;
            let time = |nanoseconds: f64| Quantity(nanoseconds, Unit::Nanoseconds).to_string();
            rows.push([
                format!("{place}, {files} new"),
                time(log.value),
                time(put.value),
                time(took.value),
                time(took.value - floor),
                time((took.value - floor) / f64::from(files)),
                Quantity(took.value / floor, Unit::Times).to_string(),
            ]);
        }
    }
    Ok(table(["files", "`log`", "`put`", "journal-kb", "`rest`", "`rest` per file", "journal-kb by floor"], rows))
}

fn syncs(results: &Results) -> String {
    let counted = |counts: &[u64]| {
        let median = Span::median(counts.iter().map(|count| *count as f64));
        median.map_or_else(|| "–".to_owned(), |median| Measure(median, Unit::Count).to_string())
    };
    let row = |place: &str, syncs: &Syncs| {
        let Syncs { kind, settles, files, write, settle } = syncs;
        let nothing = Counts::default();
        let settle = if *settles { settle } else { &nothing };
        [
            format!("{place}, {files} new, {}{}", kind.name(), if *settles { ", settled each time" } else { "" }),
            counted(&write.calls),
            counted(&write.flushes),
            counted(&settle.calls),
            counted(&settle.flushes),
        ]
    };
    let places = results.measured.places.iter();
    let rows = places.flat_map(|found| found.syncs.iter().map(move |syncs| row(&found.place, syncs)));
    table(["files", "calls", "flushes", "calls to settle", "flushes to settle"], rows)
}

fn latency_told(results: &Results) -> String {
    let scale = &results.measured.scale;
    format!(
        "The {} transactions of one file each that are claimed above, and the bare loop: medians over {} rounds.",
        grouped(scale.series),
        scale.series_rounds
    )
}

fn latency(results: &Results) -> Result<String> {
    let row = |what: String, runs: &[Run]| {
        let median = |of: fn(&Run) -> f64| {
            let median = Span::median(runs.iter().map(of)).ok_or("no series was measured")?;
            Ok::<_, &str>(Measure(median, Unit::Nanoseconds).to_string())
        };
        Ok::<_, &str>([
            what,
            median(|run| run.median)?,
            median(|run| run.p99)?,
            median(|run| run.longest)?,
            median(|run| run.total)?,
        ])
    };
    let mut rows = Vec::new();
    for found in &results.measured.places {
        for (what, series) in ["new", "overwritten"].into_iter().zip(&found.series) {
            rows.push(row(format!("{}, {what}, journal-kb", found.place), &series.journal)?);
            rows.push(row(format!("{}, {what}, bare loop", found.place), &series.bare)?);
        }
    }
    Ok(table(["files", "median", "99th percentile", "longest", "all, settled"], rows))
}
