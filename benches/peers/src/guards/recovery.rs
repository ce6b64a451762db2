//! Opening a journal whose last transaction was killed while it guarded a tree.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Instant;

use journal_kb_peers::Result;
use serde::{Deserialize, Serialize};

use super::rounds::{self, End, Versions};
use super::tree::Shape;
use crate::{child, memory};

/// Opens the journal.
#[derive(Debug, Serialize, Deserialize)]
pub struct Task {
    root: PathBuf,
}

/// What that took.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Recovered {
    /// In nanoseconds.
    pub took: f64,
    /// The most memory the process had, in bytes.
    pub peak: u64,
}

impl Task {
    pub fn run(&self) -> Result<Recovered> {
        let start = Instant::now();
        let journal = rounds::quiet(&self.root)?;
        let took = start.elapsed().as_nanos() as f64;
        journal.close()?;
        Ok(Recovered { took, peak: memory::of_this_process()? })
    }
}

/// Has a process guard, change files and be killed, and another one open the journal.
pub fn measure(task: &rounds::Task) -> Result<Recovered> {
    let task = rounds::Task { end: End::Death, rounds: 1, warms_up: false, ..task.clone() };
    let (root, shape, touched) = (task.root.clone(), task.shape, task.touched);
    let mut child = child::command(&[], &child::Task::Guards(task))?.stdout(Stdio::piped()).spawn()?;
    let said = said(&mut child);
    child.kill()?;
    child.wait()?;
    let before: Versions = serde_json::from_str(&said?)?;
    let recovered = child::answer_of(child::command(&[], &child::Task::GuardRecovery(Task { root: root.clone() }))?)?;
    let files: Vec<usize> = Shape::touched(shape, touched, 0).collect();
    rounds::check(&root, shape, &files, &before)?;
    Ok(recovered)
}

/// Waits for what the child says, which it does without ending.
fn said(child: &mut Child) -> Result<String> {
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().ok_or("the child has no output")?).read_line(&mut line)?;
    Ok(line)
}
