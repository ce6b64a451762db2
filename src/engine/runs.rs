//! What a person says of runs.

use std::time::Duration;

use super::Journal;
use crate::error::{Error, Result};
use crate::id::RunId;
use crate::options::Acquire;
use crate::run::{self, RunState};
use crate::store::Tx;
use crate::txn;

/// Sets right what jobs left; from [`Journal::runs`]. [`Error::Busy`] while the job is at work.
#[derive(Debug)]
pub struct Runs<'j> {
    journal: &'j Journal,
}

impl Journal {
    /// The runs, to set right what their jobs left.
    pub fn runs(&self) -> Runs<'_> {
        Runs { journal: self }
    }
}

impl Runs<'_> {
    /// Has items tried again that were set aside: all of a job's, or one. Answers how many; durable on return. Of a job whose
    /// last run is over, the next one tries them.
    pub fn retry(&self, job: &str, item: Option<&[u8]>) -> Result<usize> {
        self.change(job, |tx| {
            let run = run::newest_run(tx, job)?.ok_or_else(|| Error::NoRun { job: job.to_owned() })?;
            run::retry(tx, run, item)
        })
    }

    /// Gives the run of a job up that is open: the next one begins afresh. Durable on return.
    pub fn reset(&self, job: &str) -> Result<RunId> {
        self.change(job, |tx| {
            let open = run::open_run(tx, job)?.ok_or_else(|| Error::NoRun { job: job.to_owned() })?;
            run::end(tx, open.id, RunState::Abandoned, "reset by hand").map(|()| open.id)
        })
    }

    /// While nobody works at the job.
    fn change<T>(&self, job: &str, mut change: impl FnMut(&Tx<'_>) -> Result<T>) -> Result<T> {
        let lock =
            self.journal.lock_with(Acquire::new(run::lock_name(job)).wait(WAIT).purpose("to set a run right"))?;
        let ground = self.journal.ground();
        let mut changed = None;
        let change = |tx: &Tx<'_>| {
            changed = Some(change(tx)?);
            Ok(())
        };
        txn::write_rows_under(ground, &*lock.shared_lease()?, ground.limits.turn_wait, change, |_| Ok(()))?;
        changed.ok_or(Error::Closed)
    }
}

/// How long to wait for a job that is at work: no longer than it takes one that is just ending.
const WAIT: Duration = Duration::from_secs(2);
