//! The system calls that sync, counted by strace.

use std::fs;
use std::process::Command;

use journal_kb_peers::Result;
use serde_json::Value;

use crate::child::{self, Task};

/// The system calls that sync, and the one that marks the beginning and the end.
pub const TRACED: &str = "trace=getppid,fsync,fdatasync,syncfs,sync_file_range,sync,msync";

/// How many calls between two marks each a child made that does this; none where there is no strace.
pub fn syncs_between_marks(task: &Task) -> Result<Option<Vec<usize>>> {
    let counted = traced::<Value>(|before| child::command(before, task))?;
    Ok(counted.map(|(_, trace)| between_marks(&trace)))
}

/// What a command answers that is run by strace, and what that saw.
pub fn traced<T: serde::de::DeserializeOwned>(
    command: impl FnOnce(&[&str]) -> Result<Command>,
) -> Result<Option<(T, String)>> {
    if !child::has_strace() {
        return Ok(None);
    }
    let log = tempfile::NamedTempFile::new()?;
    let path = log.path().to_str().ok_or("the name of a temporary file is not UTF-8")?;
    let tracer = ["strace", "-f", "-qq", "--seccomp-bpf", "-e", TRACED, "-o", path];
    let answer = child::answer_of(command(&tracer)?)?;
    Ok(Some((answer, fs::read_to_string(log.path())?)))
}

/// The calls in a trace, each once.
fn calls(trace: &str) -> impl Iterator<Item = &str> {
    trace.lines().filter(|line| line.contains('(') && !line.contains("resumed"))
}

fn is_mark(call: &str) -> bool {
    call.contains("getppid(")
}

/// All that are no marks.
pub fn syncs(trace: &str) -> usize {
    calls(trace).filter(|call| !is_mark(call)).count()
}

fn between_marks(trace: &str) -> Vec<usize> {
    let mut between = Vec::new();
    let mut counted = None;
    for call in calls(trace) {
        counted = match (is_mark(call), counted) {
            (true, Some(count)) => {
                between.push(count);
                None
            }
            (true, None) => Some(0),
            (false, counted) => counted.map(|count| count + 1),
        };
    }
    between
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn syncs_are_counted_between_their_marks() {
        let (mark, sync) = ("7 getppid() = 1\n", "8 fdatasync(3) = 0\n");
        let cut = "8 fdatasync(3 <unfinished ...>\n8 <... fdatasync resumed>) = 0\n";
        let trace = format!("{sync}{mark}{sync}{mark}{sync}{mark}{cut}{sync}{mark}{mark}");
        assert_eq!(between_marks(&trace), [1, 2]);
        assert_eq!(syncs(&trace), 5);
    }
}
