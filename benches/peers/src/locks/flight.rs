//! A flight that is skipped, because another process is at it.

use std::fs;
use std::path::Path;
use std::time::Duration;

use journal_kb_peers::Result;
use serde::{Deserialize, Serialize};

use super::journal;
use super::scale::Scale;
use super::side::Side;
use super::talk::Talk;
use crate::child;

/// The system calls that write, and the one that marks the beginning and the end.
const TRACED: &str = "trace=getppid,write,pwrite64,writev,pwritev,pwritev2,fsync,fdatasync,sync_file_range,syncfs,msync,\
    ftruncate,fallocate,rename,renameat,renameat2,link,linkat,unlink,unlinkat,mkdir,mkdirat,symlink,symlinkat,copy_file_range,\
    sendfile,fchmod,fchmodat,utimensat,fsetxattr";

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Skips {
    /// Nanoseconds of each.
    pub took: Vec<f64>,
    /// How many system calls that write there were in all of them; none where that cannot be told.
    pub writes: Option<usize>,
}

pub fn measure(directory: &Path, scale: &Scale) -> Result<Skips> {
    let mut holder = Side::Journal.start(directory, scale)?;
    holder.ask::<u64>("begin flight")?;
    // Until its row says so.
    std::thread::sleep(Duration::from_millis(200));
    let mut other = Side::Journal.start(directory, scale)?;
    let skip = format!("skip flight {}", scale.cycles);
    other.ask::<Vec<f64>>(&skip)?;
    let took = other.ask(&skip)?;
    other.end()?;
    let writes = writes(directory, &skip)?;
    holder.end()?;
    Ok(Skips { took, writes })
}

fn writes(directory: &Path, skip: &str) -> Result<Option<usize>> {
    if !child::has_strace() {
        return Ok(None);
    }
    let log = tempfile::NamedTempFile::new()?;
    let log_path = log.path().to_str().ok_or("the name of a temporary file is not UTF-8")?;
    let tracer = ["strace", "-f", "-qq", "--seccomp-bpf", "-e", TRACED, "-o", log_path];
    let mut traced = Talk::start(child::command(&tracer, &child::Task::Locks(journal::Task::of(directory)))?)?;
    traced.ask::<Vec<f64>>(skip)?;
    traced.end()?;
    Ok(Some(between_marks(&fs::read_to_string(log.path())?)?))
}

/// The calls between the only two marks.
fn between_marks(trace: &str) -> Result<usize> {
    let calls = trace.lines().filter(|line| line.contains('('));
    let parts: Vec<usize> = calls.fold(vec![0], |mut parts, line| {
        if line.contains("getppid") {
            parts.push(0);
        } else if let Some(last) = parts.last_mut() {
            *last += 1;
        }
        parts
    });
    match parts[..] {
        [_, between, _] => Ok(between),
        _ => Err(format!("{} marks were traced", parts.len() - 1).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_between_the_marks_is_counted() {
        let mark = "7 getppid() = 1\n";
        let trace = format!(
            "7 write(1, \"\", 1) = 1\n{mark}8 pwrite64(3, \"\", 1, 0) = 1\n7 fsync(3) = 0\n{mark}7 unlink(\"x\") = 0\n"
        );
        assert_eq!(between_marks(&trace).unwrap(), 2);
        assert!(between_marks(mark).is_err());
    }
}
