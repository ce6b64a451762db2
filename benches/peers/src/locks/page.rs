//! The page docs/locks-performance.md.

use std::path::Path;

use journal_kb_peers::Result;

use super::claims::{self, SQLITE, of_threads};
use super::commits::{Crowd, How};
use super::results::{Found, Measured};
use super::side::Side;
use crate::markdown::{paragraph, table};
use crate::page::Page;
use crate::quantity::{Measure, Quantity, Span, Unit, grouped};

/// What is said about the figures by hand.
const NOTES: &str = include_str!("../../locks.md");

const SIDES: &str = "Locks of the journal are beside those of proper-lockfile, of the registry of node, and of filelock, of that \
    of Python. Each side is a process of its own language that is told what to do and reads the clock that all processes \
    share. What many commit at once is one row each time, durable on return.";

const FIGURES: &str = "Figures are medians, with the least and the greatest in brackets, of acquisitions nobody else wants those \
    of the rounds; of a ratio the two sides furthest apart. What is claimed of rates is said by the time of a commit: the time \
    that passed by how many were made in it, by all together unless somebody is named. A claim is met when the figure before \
    the brackets is at most the bound.";

pub fn write(measured: &Measured, path: &Path) -> Result<()> {
    let title = "Performance of locks, and of many at once";
    let mut page = Page::new(title, "bash benches/run --locks", measured.scale.quick, &measured.machine);
    page.say(SIDES);
    page.say(&peers(measured));
    page.say(FIGURES);
    for found in &measured.places {
        page.claims(&found.place, &found.filesystem, &claims::of(measured, found)?);
    }
    page.put(NOTES.trim_start());
    page.part("Side by side", &(paragraph(&held_told(measured)) + &held(measured)));
    page.part("Many at once", &(paragraph(CROWDS_TOLD) + &crowds(measured)));
    page.write(path)
}

/// Which versions were measured, and which could not be.
fn peers(measured: &Measured) -> String {
    let told = measured.peers.iter().map(|(side, standing)| match standing {
        Ok(version) => format!("{} is of version {version}.", side.name()),
        Err(why) => {
            format!("**{} was not measured, because it could not be had here: {}.**", side.name(), one_line(why))
        }
    });
    told.collect::<Vec<_>>().join(" ")
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn held_told(measured: &Measured) -> String {
    let scale = &measured.scale;
    format!(
        "`alone`: acquired and released, {} times in each of {} rounds. `released`: from the beginning of the release until the \
         process that waits has the lock. `killed`: from the SIGKILL of the holder until then. A wait of proper-lockfile looks \
         as often as filelock does by default, every 50 ms; it takes a lock for stale after {}.",
        grouped(scale.cycles),
        scale.rounds,
        Quantity(scale.stale_ms as f64 * 1e6, Unit::Nanoseconds),
    )
}

fn held(measured: &Measured) -> String {
    let time = |samples: Option<&Vec<f64>>| {
        let median = samples.and_then(|samples| Span::median(samples.iter().copied()));
        median.map_or_else(|| "–".to_owned(), |span| Measure(span, Unit::Nanoseconds).to_string())
    };
    let mut rows = Vec::new();
    for found in &measured.places {
        let Found { place, cycles, handoffs, deaths, fenced, .. } = found;
        for side in Side::ALL {
            let of = |samples: &[(Side, Vec<f64>)]| {
                time(samples.iter().find(|(of, _)| *of == side).map(|(_, samples)| samples))
            };
            rows.push([format!("{place}, {}", side.name()), of(cycles), of(handoffs), of(deaths)]);
            if side == Side::Journal {
                let fence = format!("{place}, {}, its fence asked for", side.name());
                rows.push([fence, time(Some(fenced)), "–".to_owned(), "–".to_owned()]);
            }
        }
    }
    table(["locks", "`alone`", "`released`", "`killed`"], rows)
}

const CROWDS_TOLD: &str = "`transactions`: each under a lock of its own; `write`: rows alone, without a lock; plain SQLite has a \
    connection for each process, and waits in its own busy handler. `a commit` is what one took, of all together; *slowest* and \
    *fastest* are the processes or threads that came to commit least and most.";

fn crowds(measured: &Measured) -> String {
    let mut rows = Vec::new();
    for Found { place, processes, threads, .. } in &measured.places {
        // Rounds of the same stand together.
        let mut rounds: Vec<Vec<&Crowd>> = Vec::new();
        for crowd in processes.iter().chain(threads) {
            let like = |of: &&mut Vec<&Crowd>| {
                of.first().is_some_and(|first| {
                    (first.how, first.processes, first.threads) == (crowd.how, crowd.processes, crowd.threads)
                })
            };
            match rounds.iter_mut().find(like) {
                Some(round) => round.push(crowd),
                None => rounds.push(vec![crowd]),
            }
        }
        rows.extend(rounds.iter().map(|rounds| row(place, rounds)));
    }
    table(["who", "a commit", "slowest", "fastest", "longest wait"], rows)
}

fn row(place: &str, rounds: &[&Crowd]) -> [String; 5] {
    let time = |of: &dyn Fn(&Crowd) -> f64| {
        let median = Span::median(rounds.iter().map(|crowd| of(crowd)));
        median.map_or_else(String::new, |span| Measure(span, Unit::Nanoseconds).to_string())
    };
    let who = rounds.first().map_or_else(String::new, |crowd| {
        let how = match crowd.how {
            How::Transactions => "`transactions`",
            How::Write => "`write`",
            How::Sqlite => SQLITE,
        };
        let crowd = match (crowd.processes, crowd.threads) {
            (1, threads) => of_threads(threads),
            (processes, _) => format!("{processes} processes"),
        };
        format!("{place}, {crowd}, {how}")
    });
    [
        who,
        time(&Crowd::each),
        time(&|crowd| crowd.slowest_and_fastest().0),
        time(&|crowd| crowd.slowest_and_fastest().1),
        time(&Crowd::longest),
    ]
}
