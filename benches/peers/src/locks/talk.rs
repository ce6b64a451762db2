//! Processes that are told what to do, a line at a time, and answer each line with one of JSON.
//!
//! Those that have locks know `version`, `take NAME` (answers when it had the lock), `free NAME` (answers when it began to let
//! go) and `cycle NAME TIMES` (takes and frees, answers what each took). Times are nanoseconds of the monotonic clock, which
//! all processes share.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use journal_kb_peers::Result;
use serde::de::DeserializeOwned;

/// One such process. It ends when nobody tells it anything any more.
#[derive(Debug)]
pub struct Talk {
    child: Child,
    to: Option<ChildStdin>,
    from: BufReader<ChildStdout>,
}

impl Talk {
    pub fn start(mut command: Command) -> Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(|error| format!("{:?}: {error}", command.get_program()))?;
        let (to, from) = (child.stdin.take(), child.stdout.take().ok_or("a child has no output")?);
        Ok(Self { child, to, from: BufReader::new(from) })
    }

    pub fn tell(&mut self, what: &str) -> Result<()> {
        Ok(writeln!(self.to.as_mut().ok_or("a child that has ended")?, "{what}")?)
    }

    pub fn hear<T: DeserializeOwned>(&mut self) -> Result<T> {
        let mut line = String::new();
        if self.from.read_line(&mut line)? == 0 {
            return Err(format!("a child has ended: {}", self.child.wait()?).into());
        }
        Ok(serde_json::from_str(&line)?)
    }

    pub fn ask<T: DeserializeOwned>(&mut self, what: &str) -> Result<T> {
        self.tell(what)?;
        self.hear()
    }

    /// Ends it by SIGKILL; answers when.
    pub fn kill(mut self) -> Result<u64> {
        let now = now()?;
        self.child.kill()?;
        self.child.wait()?;
        Ok(now)
    }

    /// Waits until it has ended by itself.
    pub fn end(mut self) -> Result<()> {
        drop(self.to.take());
        let status = self.child.wait()?;
        if status.success() { Ok(()) } else { Err(format!("a child has ended: {status}").into()) }
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        // Where something failed; otherwise it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the clock says that all processes share, in nanoseconds.
pub fn now() -> Result<u64> {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Ok(u64::try_from(now.tv_sec)? * 1_000_000_000 + u64::try_from(now.tv_nsec)?)
}
