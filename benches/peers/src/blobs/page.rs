//! The page docs/blobs-performance.md.

use std::path::Path;

use journal_kb_peers::Result;

use super::claims::{self, at, criterion, exactly, many_took, of_dd, peaks, stream, wakes};
use super::results::{Found, Measured};
use super::small::{MIDDLING, SMALL, Side};
use super::streaming::Way;
use super::waking::{Kind, Woken};
use crate::criterion::Medians;
use crate::markdown::{paragraph, table};
use crate::page::Page;
use crate::quantity::{Measure, Quantity, Span, Unit, grouped};
use crate::report::version;

/// What is said about the figures by hand.
const NOTES: &str = include_str!("../../blobs.md");

const FIGURES: &str = "Figures are medians of the rounds, with the least and the greatest in brackets; of a ratio that of each \
    round, of what the journal took to what the other side took in it; of what was opened many times the median, with those that a tenth is below and above; of what Criterion has measured \
    its median and confidence interval; of memory the most that the process had. What is claimed of rates is said by the time that \
    something took. A claim is met when the figure before the brackets is at most the bound.";

const WAKES_TOLD: &str = "From the call of `seal`, or of `commit`, and from its return until another thread or process that has been \
    waiting has the blob open. Who waits may have it before the call returns: that is less than nothing.";

const SEALS_TOLD: &str = "As Criterion measures it: one blob, from `create` until it is sealed, beside the bare way to write a file for \
    good (a temporary name, its sync, the rename, the sync of the directory) and beside a row of plain SQLite, at FULL, with as many bytes.";

pub fn write(measured: &Measured, medians: &Medians, path: &Path) -> Result<()> {
    let scale = &measured.scale;
    let mut page = Page::new("Performance of blobs", "bash benches/run --blobs", scale.quick, &measured.machine);
    page.say(&sides(measured)?);
    page.say(&load(measured));
    page.say(FIGURES);
    for found in &measured.places {
        page.claims(&found.place, &found.filesystem, &claims::of(measured, medians, found)?);
    }
    page.put(NOTES.trim_start());
    page.part("Streaming", &streaming(measured));
    page.part("Many blobs", &many(measured));
    page.part("One by one", &(paragraph(SEALS_TOLD) + &alone(measured, medians)?));
    page.part("Opening", &opening(measured, medians)?);
    page.part("Waiting for one", &(paragraph(WAKES_TOLD) + &waiting(measured)));
    page.part("Memory", &memory(measured));
    page.write(path)
}

fn sides(measured: &Measured) -> Result<String> {
    let scale = &measured.scale;
    Ok(format!(
        "Each measurement is a process of its own, one side after the other, in {} rounds, {} where a large blob is streamed. That comes \
         from a file that the kernel has in memory, on the same filesystem; of dd the start of the process counts, too. cacache is of version {}, \
         called as it is without a runtime; it syncs nothing and has no setting for that, so two more sides of it sync by hand, the one \
         after each {} blobs, as many as are in a transaction of the journal.",
        scale.rounds,
        scale.stream_rounds,
        version("cacache")?,
        scale.batch,
    ))
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

/// A row for each place and each of these.
fn rows<T, const N: usize>(
    measured: &Measured,
    all: impl IntoIterator<Item = T> + Clone,
    row: impl Fn(&Found, T) -> [String; N],
) -> Vec<[String; N]> {
    let all = |found| all.clone().into_iter().map(move |one| (found, one));
    let named = measured.places.iter().flat_map(all).map(|(found, one): (&Found, T)| {
        let mut row = row(found, one);
        row[0] = format!("{}, {}", found.place, row[0]);
        row
    });
    named.collect()
}

fn streaming(measured: &Measured) -> String {
    let size = measured.scale.streamed as f64;
    let all = rows(measured, Way::ALL, |found, way| {
        let took = stream(found, way);
        let inverse = |took: Span| Span { value: 1e9 / took.value, low: 1e9 / took.high, high: 1e9 / took.low };
        let rate = took.map(|took| inverse(took.divided(size)));
        let of_dd = of_dd(found, way).filter(|_| way != Way::Dd);
        [way.name().to_owned(), time(took), shown(rate, Unit::Bytes), shown(of_dd, Unit::Times)]
    });
    let head = format!("{} into", Quantity(size, Unit::Bytes));
    table([head.as_str(), "took", "a second", "of dd, in the same round"], all)
}

fn many(measured: &Measured) -> String {
    let scale = &measured.scale;
    let all = rows(measured, Side::ALL, |found, side| {
        let each = |size, blobs: usize| many_took(found, side, size).map(|took| took.divided(blobs as f64));
        let small = (many_took(found, side, SMALL), each(SMALL, scale.small));
        let middling = (many_took(found, side, MIDDLING), each(MIDDLING, scale.middling));
        [side.name().to_owned(), time(small.0), time(small.1), time(middling.0), time(middling.1)]
    });
    let (small, middling) =
        (format!("{} of 4 KiB", grouped(scale.small)), format!("{} of 256 KiB", grouped(scale.middling)));
    table(["", &small, "each", &middling, "each"], all)
}

fn alone(measured: &Measured, medians: &Medians) -> Result<String> {
    let mut all = Vec::new();
    for found in &measured.places {
        for (who, name) in
            [("journal", "a blob, sealed alone"), ("bare", "a file, written for good"), ("sqlite", "a row")]
        {
            let took = |size| criterion(medians, found, &format!("seal/{who}/{size}")).map(Some).map(time);
            all.push([format!("{}, {name}", found.place), took("4 KiB")?, took("1 MiB")?]);
        }
    }
    Ok(table(["", "4 KiB", "1 MiB"], all))
}

fn opening(measured: &Measured, medians: &Medians) -> Result<String> {
    let many = grouped(measured.scale.many);
    let mut all = Vec::new();
    for found in &measured.places {
        let opened = &found.many.opened;
        for (file, name, took) in [(false, "in the database", &opened.inline), (true, "a file", &opened.file)] {
            let few = criterion(medians, found, &format!("open/{}", if file { "file" } else { "inline" }))?;
            let of = |part| time(at(took, part).map(exactly));
            all.push([format!("{}, {name}", found.place), time(Some(few)), of(0.5), of(0.99)]);
        }
    }
    Ok(table(["", "of few", &format!("of {many}, median"), &format!("of {many}, p99")], all))
}

fn waiting(measured: &Measured) -> String {
    let all = rows(measured, Kind::all().collect::<Vec<_>>(), |found, kind| {
        let called = |part| time(wakes(found, kind, part, Woken::since_called));
        let returned = |part| time(wakes(found, kind, part, Woken::since_returned));
        [kind.name(), called(0.5), called(0.99), returned(0.5), returned(0.99)]
    });
    table(["who waits", "called, median", "called, p99", "returned, median", "returned, p99"], all)
}

fn memory(measured: &Measured) -> String {
    let bytes = |bytes: u64| Quantity(bytes as f64, Unit::Bytes).to_string();
    let mut all = Vec::new();
    for found in &measured.places {
        for (work, peak) in peaks(measured, found) {
            all.push([format!("{}, {work}", found.place), bytes(peak.most), bytes(peak.more)]);
        }
    }
    table(["", "most", "more than before"], all)
}
