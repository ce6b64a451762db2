//! The page docs/runs-performance.md.

use std::path::Path;

use journal_kb_peers::Result;

use super::claims::{self, commit, ends, more_than_alone, peak_of, peer_step, step, syncs, total};
use super::commits::Kind;
use super::dbos::Mode;
use super::results::{Found, Measured};
use super::work::{Resumed, Way};
use crate::markdown::table;
use crate::page::Page;
use crate::quantity::{Measure, Span, Unit, grouped};

/// What is said about the figures by hand.
const NOTES: &str = include_str!("../../runs.md");

const FIGURES: &str = "Figures are medians of the rounds, with the least and the greatest in brackets; of a ratio the two sides \
    furthest apart; of memory the greatest. What is claimed of rates is said by the time that something took. A claim is met \
    when the figure before the brackets is at most the bound.";

pub fn write(measured: &Measured, path: &Path) -> Result<()> {
    let mut page = Page::new("Performance of runs", "bash benches/run --runs", measured.scale.quick, &measured.machine);
    page.say(&sides(measured));
    page.say(FIGURES);
    for found in &measured.places {
        page.claims(&found.place, &found.filesystem, &claims::of(measured, found)?);
    }
    page.put(NOTES.trim_start());
    page.part(&format!("{} items", grouped(measured.scale.items)), &many(measured));
    page.part("Inside commits", &inside(measured));
    page.part("Steps", &steps(measured));
    page.part("Starting", &starting(measured));
    page.write(path)
}

fn sides(measured: &Measured) -> String {
    let scale = &measured.scale;
    let dbos = match &measured.dbos {
        Ok(version) => format!("dbos is of version {version}."),
        Err(why) => format!("**dbos was not measured, because it could not be had here: {}.**", why.trim()),
    };
    format!(
        "Each measurement is a process of its own, in {} rounds, one side after the other. *Plain SQLite* is one prepared \
         INSERT for each item, a transaction for each {} of them, WAL, synchronous=FULL. A *step* of the journal is an item \
         that `pending` gives: its try is counted durably before it is begun, and its commit has one row of the application. One \
         of dbos is a function that gives back its argument, in one workflow, which makes its result durable; its database is \
         SQLite's, as dbos makes it. {dbos}",
        scale.rounds,
        grouped(scale.flush),
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
    let all = measured.places.iter().flat_map(all);
    let named = all.map(|(found, one): (&Found, T)| {
        let mut row = row(found, one);
        row[0] = format!("{}, {}", found.place, row[0]);
        row
    });
    named.collect()
}

fn many(measured: &Measured) -> String {
    let scale = &measured.scale;
    let mut all = rows(measured, Way::ALL, |found, way| {
        let (first, last) = ends(found, way, scale.ends).unzip();
        let each = total(found, way).map(|total| total.divided(scale.items as f64));
        let (total, peak) = (total(found, way), shown(peak_of(found, way), Unit::Bytes));
        [way.name().to_owned(), time(total), time(each), time(first), time(last), peak]
    });
    all.extend(rows(measured, ["gone on with, to the first `is_done`"], |found, name| {
        let of = |of: fn(&Resumed) -> f64| Span::median(found.resumed.iter().map(of));
        let (total, peak) =
            (of(|resumed| resumed.started), Span::greatest(found.resumed.iter().map(|r| r.peak as f64)));
        let each = total.map(|total| total.divided(scale.items as f64));
        [name.to_owned(), time(total), time(each), "–".into(), "–".into(), shown(peak, Unit::Bytes)]
    }));
    table(["", "all", "an item", "a flush, at first", "a flush, at last", "peak memory"], all)
}

fn inside(measured: &Measured) -> String {
    let all = rows(measured, Kind::ALL, |found, kind| {
        let more = if kind == Kind::Alone { None } else { more_than_alone(found, kind) };
        let syncs = shown(syncs(found, kind), Unit::Count);
        [kind.name().to_owned(), time(commit(found, kind)), time(more), syncs]
    });
    table(["", "took", "more than the first", "syncs"], all)
}

fn steps(measured: &Measured) -> String {
    let all = rows(measured, [None, Some(Mode::Default), Some(Mode::Wal)], |found, mode| {
        let took = mode.map_or_else(|| step(found), |mode| peer_step(found, mode));
        let a_second = took.map(|took| Span { value: 1e9 / took.value, low: 1e9 / took.high, high: 1e9 / took.low });
        let name = mode.map_or("journal-kb", Mode::name);
        [name.to_owned(), time(took), shown(a_second, Unit::Count)]
    });
    table(["", "a step", "steps a second"], all)
}

fn starting(measured: &Measured) -> String {
    let banked = measured.scale.banked;
    let all = rows(measured, 0..4, |found, which| {
        let starts = &found.starts;
        let (what, took) = match which {
            0 => ("a new run".to_owned(), &starts.new),
            1 => (format!("one that is gone on with, {} items banked", grouped(banked)), &starts.resumed),
            2 => ("stopping it, with nothing to bank".to_owned(), &starts.stopped),
            _ => ("one that another process is at, skipped".to_owned(), &starts.skipped),
        };
        [what, time(Span::median(took.iter().copied()))]
    });
    table(["", "took"], all)
}
