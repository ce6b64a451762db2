//! Measures what Criterion does not suit, and writes down what both found: `bash benches/run` calls it.
//!
//! - `measure RESULTS` measures, and keeps what it found in a file;
//! - `report RESULTS CRITERION PERFORMANCE README` writes the page, and the table between the marks of the README;
//! - `measure-guards RESULTS` and `report-guards RESULTS PAGE` do the same for guards, with the pictures beside the page;
//! - `measure-locks RESULTS` and `report-locks RESULTS PAGE` do the same for locks, and for many who commit at once;
//! - `measure-runs RESULTS` and `report-runs RESULTS PAGE` do the same for runs;
//! - `measure-outbox RESULTS` and `report-outbox RESULTS CRITERION PAGE` do the same for the outbox;
//! - `measure-blobs RESULTS` and `report-blobs RESULTS CRITERION PAGE` do the same for blobs;
//! - `child TASK` is a part of a measurement that needs a process of its own.

mod blobs;
mod child;
mod claims;
mod criterion;
mod filesystem;
mod guards;
mod locks;
mod machine;
mod markdown;
mod memory;
mod outbox;
mod page;
mod quantity;
mod readme;
mod recovery;
mod report;
mod results;
mod runs;
mod scale;
mod series;
mod strace;
mod syncs;

use std::path::Path;
use std::process::ExitCode;

use journal_kb_peers::Result;

const USAGE: &str = "usage: journal-kb-peers measure RESULTS | report RESULTS CRITERION PERFORMANCE README | \
    measure-guards RESULTS | report-guards RESULTS PAGE | measure-locks RESULTS | report-locks RESULTS PAGE | measure-runs RESULTS | \
    report-runs RESULTS PAGE | measure-outbox RESULTS | report-outbox RESULTS CRITERION PAGE | measure-blobs RESULTS | \
    report-blobs RESULTS CRITERION PAGE";

fn run(arguments: &[&str]) -> Result<()> {
    match arguments {
        ["measure", results] => results::measure(Path::new(results)),
        ["report", results, criterion, performance, readme] => {
            let found = results::Results::load(Path::new(results), Path::new(criterion))?;
            report::write(&found, Path::new(performance))?;
            readme::write(&found, Path::new(readme))
        }
        ["measure-guards", results] => guards::results::measure(Path::new(results)),
        ["report-guards", results, page] => {
            guards::page::write(&guards::results::Measured::load(Path::new(results))?, Path::new(page))
        }
        ["measure-locks", results] => locks::results::measure(Path::new(results)),
        ["report-locks", results, page] => {
            locks::page::write(&locks::results::Measured::load(Path::new(results))?, Path::new(page))
        }
        ["measure-runs", results] => runs::results::measure(Path::new(results)),
        ["report-runs", results, page] => {
            runs::page::write(&runs::results::Measured::load(Path::new(results))?, Path::new(page))
        }
        ["measure-outbox", results] => outbox::results::measure(Path::new(results)),
        ["report-outbox", results, criterion, page] => {
            let measured = outbox::results::Measured::load(Path::new(results))?;
            outbox::page::write(&measured, &criterion::medians(Path::new(criterion))?, Path::new(page))
        }
        ["measure-blobs", results] => blobs::results::measure(Path::new(results)),
        ["report-blobs", results, criterion, page] => {
            let measured = blobs::results::Measured::load(Path::new(results))?;
            blobs::page::write(&measured, &criterion::medians(Path::new(criterion))?, Path::new(page))
        }
        ["child", task] => child::become_one(task),
        _ => Err(USAGE.into()),
    }
}

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
