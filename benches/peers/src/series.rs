//! Transactions of one file, back to back and settled at the end, in turns with the bare loop.

use std::path::Path;
use std::time::{Duration, Instant};

use journal_kb_peers::shared::{Homes, Place};
use journal_kb_peers::{Kind, Result};
use serde::{Deserialize, Serialize};

use crate::scale::Scale;

/// What the rounds of one kind of series found, both sides taking turns at being first.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Series {
    pub journal: Vec<Run>,
    pub bare: Vec<Run>,
}

/// One run through all files. In nanoseconds.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Run {
    /// From the first write until everything is settled.
    pub total: f64,
    pub median: f64,
    pub p99: f64,
    pub longest: f64,
}

/// Series of new files, and of the same files overwritten.
pub fn measure(place: &Place, homes: &mut Homes, scale: &Scale) -> Result<[Series; 2]> {
    let mut series = [Series::default(), Series::default()];
    for round in 0..scale.series_rounds {
        let mut order = [Kind::Journal, Kind::Bare];
        order.rotate_left(round % 2);
        for kind in order {
            let root = homes.make(place)?;
            for (pass, series) in series.iter_mut().enumerate() {
                let run = run(kind, &root, scale.series, pass)?;
                if kind == Kind::Journal { &mut series.journal } else { &mut series.bare }.push(run);
            }
        }
    }
    Ok(series)
}

fn run(kind: Kind, root: &Path, transactions: usize, pass: usize) -> Result<Run> {
    let contender = kind.open(root)?;
    let mut latencies = Vec::with_capacity(transactions);
    let start = Instant::now();
    for file in 0..transactions {
        let before = Instant::now();
        contender.write(file..file + 1, pass)?;
        latencies.push(before.elapsed());
    }
    contender.close()?;
    let total = start.elapsed();
    latencies.sort_unstable();
    let nanoseconds = |duration: Duration| duration.as_nanos() as f64;
    let at = |percent: usize| nanoseconds(latencies[(latencies.len() - 1) * percent / 100]);
    Ok(Run { total: nanoseconds(total), median: at(50), p99: at(99), longest: at(100) })
}
