//! How a job is run.

use std::time::Duration;

use crate::run::Limits;
use crate::wait::StopToken;

/// A job and how it is run: what its run depends on, who may stop it, when what is done is banked, how often an item is tried.
///
/// ```
/// # use std::time::Duration;
/// # use journal_kb::{Job, Journal, Started, StopToken};
/// # let dir = tempfile::tempdir()?;
/// # let journal = Journal::open(dir.path())?;
/// let stop = StopToken::after(Duration::from_secs(3600));
/// let job = Job::new("sync:source-a").fingerprint("v2").stop(&stop).tries(5);
/// let Started::Running(run) = journal.run_with(job)? else { panic!("nobody else runs it") };
/// # run.finish()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
#[must_use = "give it to Journal::run_with"]
pub struct Job {
    pub(crate) name: String,
    pub(crate) fingerprint: Vec<u8>,
    pub(crate) stop: Option<StopToken>,
    pub(crate) expected: Option<i64>,
    pub(crate) limits: Limits,
}

impl Job {
    /// The job of this name; its lock is `run:` and the name, so that the name has at most 76 bytes.
    pub fn new(name: impl Into<String>) -> Self {
        let limits = Limits {
            items: 1000,
            bytes: 1 << 20,
            every: Duration::from_secs(10),
            tries: 3,
            retries: 5,
            pause: Duration::from_millis(100),
            failures: 3,
        };
        Self { name: name.into(), fingerprint: Vec::new(), stop: None, expected: None, limits }
    }

    /// What the work depends on: its source, its settings, the version of whatever does it. When that has changed, what was
    /// done before does not count, and the run begins afresh. At most 4096 bytes; a hash of more will do. Default: nothing.
    pub fn fingerprint(mut self, of: impl AsRef<[u8]>) -> Self {
        self.fingerprint = of.as_ref().to_vec();
        self
    }

    /// Who may ask it to stop: then [`Run::pending`](crate::Run::pending) gives no more items, and what is recorded is banked at
    /// once, whatever the work is at.
    pub fn stop(mut self, token: &StopToken) -> Self {
        self.stop = Some(token.clone());
        self
    }

    /// How many items there are in all, where that is known: for people.
    pub fn expected(mut self, items: u64) -> Self {
        self.expected = Some(i64::try_from(items).unwrap_or(i64::MAX));
        self
    }

    /// How often an item is tried before it is set aside. Default: 3.
    pub fn tries(mut self, times: u32) -> Self {
        self.limits.tries = times.max(1);
        self
    }

    /// After how many recorded items they are banked. Default: 1000.
    pub fn flush_items(mut self, items: usize) -> Self {
        self.limits.items = items.max(1);
        self
    }

    /// After how many bytes of their names. Default: 1 MiB.
    pub fn flush_bytes(mut self, bytes: usize) -> Self {
        self.limits.bytes = bytes.max(1);
        self
    }

    /// After what time, however few they are. Default: 10 s.
    pub fn flush_every(mut self, time: Duration) -> Self {
        self.limits.every = time;
        self
    }

    /// How often a flush that failed is tried again before that counts as failed. Default: 5.
    pub fn flush_retries(mut self, times: u32) -> Self {
        self.limits.retries = times;
        self
    }

    /// How long to wait before the first of these; it doubles each time, and part of it is left to chance. Default: 100 ms.
    pub fn retry_pause(mut self, pause: Duration) -> Self {
        self.limits.pause = pause;
        self
    }

    /// How many flushes in a row may fail before the run ends with
    /// [`Error::CheckpointUnavailable`](crate::Error::CheckpointUnavailable). Default: 3.
    pub fn failed_flushes(mut self, flushes: u32) -> Self {
        self.limits.failures = flushes.max(1);
        self
    }
}
