//! What Criterion left in its directory.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use journal_kb_peers::Result;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::quantity::Span;

/// Medians in nanoseconds with their confidence intervals, by the full names of the benchmarks.
pub type Medians = BTreeMap<String, Span>;

#[derive(Deserialize)]
struct Benchmark {
    full_id: String,
}

#[derive(Deserialize)]
struct Estimates {
    median: Estimate,
}

#[derive(Deserialize)]
struct Estimate {
    confidence_interval: Interval,
    point_estimate: f64,
}

#[derive(Deserialize)]
struct Interval {
    lower_bound: f64,
    upper_bound: f64,
}

/// Reads every newest result below a directory.
pub fn medians(directory: &Path) -> Result<Medians> {
    let mut medians = Medians::new();
    collect(directory, &mut medians)?;
    if medians.is_empty() {
        return Err(format!("{}: no results of Criterion", directory.display()).into());
    }
    Ok(medians)
}

fn collect(directory: &Path, medians: &mut Medians) -> Result<()> {
    let entries = fs::read_dir(directory).map_err(|error| format!("{}: {error}", directory.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.ends_with("new") {
            let Benchmark { full_id } = json(&path.join("benchmark.json"))?;
            let Estimates { median } = json(&path.join("estimates.json"))?;
            let Interval { lower_bound, upper_bound } = median.confidence_interval;
            medians.insert(full_id, Span { value: median.point_estimate, low: lower_bound, high: upper_bound });
        } else if path.is_dir() {
            collect(&path, medians)?;
        }
    }
    Ok(())
}

/// Reads a file of JSON.
pub fn json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))?)
}
