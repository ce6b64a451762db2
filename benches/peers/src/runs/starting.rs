//! Starting a run: a new one, one that is gone on with, and one that somebody else is at.

use std::path::{Path, PathBuf};
use std::time::Instant;

use journal_kb::{Begun, Job, Journal, Started};
use journal_kb_peers::Result;
use journal_kb_peers::shared::{Homes, Place};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::scale::Scale;
use super::work::{self, JOB, item, nanoseconds, running};
use crate::child;
use crate::locks::Talk;

#[derive(Debug, Serialize, Deserialize)]
pub struct Task {
    root: PathBuf,
    what: What,
}

#[derive(Debug, Serialize, Deserialize)]
enum What {
    /// So many new jobs, and as often one that has so many items.
    Start { times: usize, banked: usize },
    /// Has a run until its input ends.
    Hold,
    /// Comes to a run that somebody else is at.
    Skip { times: usize },
}

/// Nanoseconds of each.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Starts {
    pub new: Vec<f64>,
    pub resumed: Vec<f64>,
    /// Ending the one that was gone on with, with nothing to bank.
    pub stopped: Vec<f64>,
    pub skipped: Vec<f64>,
}

impl Task {
    pub fn run(&self) -> Result<Value> {
        let journal = Journal::open(&self.root)?;
        let answer = match self.what {
            What::Start { times, banked } => serde_json::to_value(start(&journal, times, banked)?)?,
            What::Hold => {
                let run = running(&journal, Job::new(JOB))?;
                // Its row says so.
                run.flush()?;
                println!("0");
                std::io::stdin().read_line(&mut String::new())?;
                let _ = run.stop("measured")?;
                Value::Null
            }
            What::Skip { times } => serde_json::to_value(skip(&journal, times)?)?,
        };
        journal.close()?;
        Ok(answer)
    }
}

fn start(journal: &Journal, times: usize, banked: usize) -> Result<Starts> {
    let mut starts = Starts::default();
    let run = running(journal, Job::new(JOB))?;
    (0..banked).try_for_each(|number| run.record(&item(number)))?;
    let _ = run.stop("measured")?;
    for number in 0..times {
        let start = Instant::now();
        let run = running(journal, Job::new(format!("new-{number}")))?;
        starts.new.push(nanoseconds(start));
        let _ = run.stop("measured")?;
        let start = Instant::now();
        let run = running(journal, Job::new(JOB))?;
        starts.resumed.push(nanoseconds(start));
        if run.begun() != (Begun::Resumed { banked: banked as u64 }) {
            return Err(format!("not gone on with: {:?}", run.begun()).into());
        }
        let start = Instant::now();
        let _ = run.stop("measured")?;
        starts.stopped.push(nanoseconds(start));
    }
    Ok(starts)
}

fn skip(journal: &Journal, times: usize) -> Result<Vec<f64>> {
    let mut took = Vec::new();
    for _ in 0..times {
        let start = Instant::now();
        let started = journal.run(JOB, "")?;
        took.push(nanoseconds(start));
        if !matches!(started, Started::Skipped(_)) {
            return Err("a run was not skipped, though somebody is at it".into());
        }
    }
    Ok(took)
}

pub fn measure(place: &Place, homes: &mut Homes, scale: &Scale) -> Result<Starts> {
    let root = homes.make(place)?;
    let command = |root: &Path, what| {
        let task = Task { root: root.to_owned(), what };
        child::command(&[], &child::Task::Runs(work::Task::Start(task)))
    };
    let start = What::Start { times: scale.starts, banked: scale.banked };
    let mut starts: Starts = child::answer_of(command(&root, start)?)?;
    let mut holder = Talk::start(command(&root, What::Hold)?)?;
    holder.hear::<u64>()?;
    starts.skipped = child::answer_of(command(&root, What::Skip { times: scale.skips })?)?;
    holder.end()?;
    Ok(starts)
}
