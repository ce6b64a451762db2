//! How much of a transaction's time is waiting for syncs.

use std::fs;

use journal_kb_peers::Result;

use super::rounds::{Ran, Task};
use crate::child;
use crate::strace::TRACED;

/// Nanoseconds of each round in which nothing was synced. None where there is no strace, which is the one to tell.
pub fn beside_syncs(task: Task) -> Result<Option<Vec<f64>>> {
    if !child::has_strace() {
        return Ok(None);
    }
    let log = tempfile::NamedTempFile::new()?;
    let log_path = log.path().to_str().ok_or("the name of a temporary file is not UTF-8")?;
    let tracer = ["strace", "-f", "-qq", "-ttt", "-T", "--seccomp-bpf", "-e", TRACED, "-o", log_path];
    let ran: Ran = child::answer_of(child::command(&tracer, &child::Task::Guards(task))?)?;
    let syncing = in_rounds(&fs::read_to_string(log.path())?);
    if syncing.len() != ran.rounds.len() {
        return Err(format!("{} rounds were traced, of {}", syncing.len(), ran.rounds.len()).into());
    }
    Ok(Some(ran.rounds.iter().zip(syncing).map(|(round, syncing)| round.total() - syncing * 1e9).collect()))
}

/// The seconds within the steps of each round in which some thread was in a system call that syncs. A round has four marks:
/// what lies between the second and the third is not the journal's.
fn in_rounds(trace: &str) -> Vec<f64> {
    let mut marks = Vec::new();
    let mut calls = Vec::new();
    for line in trace.lines() {
        let Some(((start, end), is_mark)) = call(line) else { continue };
        if is_mark { marks.push(end) } else { calls.push((start, end)) }
    }
    calls.sort_by(|a, b| a.0.total_cmp(&b.0));
    let rounds = marks.chunks_exact(4);
    rounds.map(|marks| covered(&calls, marks[0], marks[1]) + covered(&calls, marks[2], marks[3])).collect()
}

/// When the call of a line began and ended, and whether it is a mark. None of a line that tells of no end.
fn call(line: &str) -> Option<((f64, f64), bool)> {
    let (_, line) = line.trim_start().split_once(' ')?;
    let (at, call) = line.trim_start().split_once(' ')?;
    let at: f64 = at.parse().ok()?;
    let took: f64 = call.rsplit_once('<')?.1.strip_suffix('>')?.parse().ok()?;
    // A line that says `resumed` has the time at which the call went on to end.
    let start = if call.starts_with("<...") { at - took } else { at };
    Some(((start, start + took), call.contains("getppid")))
}

/// How much of the time between two is covered by these spans, which are in the order of their beginnings.
fn covered(spans: &[(f64, f64)], from: f64, to: f64) -> f64 {
    let (mut sum, mut reached) = (0.0, from);
    for &(start, end) in spans {
        let (start, end) = (start.max(reached), end.min(to));
        if end > start {
            sum += end - start;
            reached = end;
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_syncs_is_counted_once_and_only_within_the_steps() {
        let trace = "\
            7 10.0 getppid() = 1 <0.0>\n\
            7 11.0 fdatasync(3) = 0 <1.0>\n\
            8 11.5 fsync(4 <unfinished ...>\n\
            8 12.5 <... fsync resumed>) = 0 <1.0>\n\
            7 13.0 getppid() = 1 <0.0>\n\
            7 14.0 fsync(3) = 0 <1.0>\n\
            7 16.0 getppid() = 1 <0.0>\n\
            7 17.0 syncfs(3) = 0 <0.5>\n\
            7 18.0 getppid() = 1 <0.0>\n";
        assert_eq!(in_rounds(trace), [2.0]);
    }
}
