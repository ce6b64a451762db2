//! Banking: what is recorded becomes durable, in the calling thread or behind it, and at the latest before the lock is released.

use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::engine::Journal;
use crate::error::{Error, IoContext, Result};
use crate::lock::Lease;
use crate::run::{self, Batch, Due, Ledger, RunState};
use crate::store::{self, Tx};
use crate::txn;
use crate::wait::StopToken;

/// How long a flush waits for the turn to write, each time it is tried.
const TURN_WAIT: Duration = Duration::from_secs(3);
/// The same of those that are tried once, because somebody asked to stop: one that is under way, that in the background and the
/// last one are to be over within 8 s.
const LAST_TURN_WAIT: Duration = Duration::from_secs(2);

/// A run at work: what its threads share.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) journal: Journal,
    pub(super) ledger: Arc<Ledger>,
    /// Of the job's lock. Whoever ends the run releases it.
    pub(super) lease: Weak<Lease>,
    pub(super) stop: Option<StopToken>,
    /// One flush at a time.
    flushing: Mutex<()>,
}

/// What the last flush of a session says of the run.
#[derive(Clone, Copy, Debug)]
pub(super) enum Last<'l> {
    /// It stays open, and this is why.
    Stopped(&'l str),
    Over(RunState, &'l str),
}

impl Work {
    pub(super) fn new(journal: Journal, ledger: Arc<Ledger>, lease: Weak<Lease>, stop: Option<StopToken>) -> Self {
        Self { journal, ledger, lease, stop, flushing: Mutex::new(()) }
    }

    /// What is known of the run, for who is to change that: in a forked child it is a copy, and nobody would bank it.
    pub(super) fn ledger(&self) -> Result<&Ledger> {
        self.journal.ground().store.refuse_forked().map(|()| &*self.ledger)
    }

    /// Nobody else flushes while this is held.
    pub(super) fn flushing(&self) -> MutexGuard<'_, ()> {
        self.flushing.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    /// Sees whether somebody asks to stop.
    pub(super) fn is_stopping(&self) -> bool {
        if let Some(stop) = self.stop.as_ref().filter(|stop| stop.requested()) {
            self.ledger.stop(&stop.reason().unwrap_or_default());
        }
        self.ledger.is_stopping()
    }

    /// Writes rows of the run, durable on return, while the lock is held.
    pub(super) fn write(&self, wait: Duration, check: impl FnMut(&Tx<'_>) -> Result<()>) -> Result<()> {
        let ended = || Error::RunEnded { job: self.ledger.job().to_owned() };
        let lease = self.lease.upgrade().ok_or_else(ended)?;
        txn::write_rows_under(self.journal.ground(), &lease, wait, check, |_| Ok(()))
    }

    /// Banks what is recorded and not banked yet. Answers how many items that were. Whatever cannot be written stays recorded, and
    /// goes with the next flush.
    pub(super) fn flush(&self) -> Result<u64> {
        self.flush_as(self.ledger.limits().retries, None)
    }

    /// The same, tried once.
    fn flush_once(&self) -> Result<u64> {
        self.flush_as(0, None)
    }

    /// The same for the last time, together with what becomes of the run.
    pub(super) fn flush_last(&self, last: Last<'_>) -> Result<u64> {
        let retries = if self.is_stopping() { 0 } else { self.ledger.limits().retries };
        self.flush_as(retries, Some(last))
    }

    fn flush_as(&self, retries: u32, last: Option<Last<'_>>) -> Result<u64> {
        store::refuse_reentry("a flush of a run")?;
        self.ledger()?;
        let _one = self.flushing();
        if let Some(error) = self.ledger.over() {
            return Err(error);
        }
        let batch = self.ledger.take();
        if batch.is_none() && last.is_none() {
            return Ok(0);
        }
        let wait = if retries == 0 { LAST_TURN_WAIT } else { TURN_WAIT };
        for tried in 0.. {
            let error = match self.write_batch(wait, batch.as_ref(), last) {
                Ok(wrote) => return Ok(batch.map_or(0, |batch| batch.banked(&wrote))),
                Err(error) => error,
            };
            let hopeless = is_hopeless(&error);
            tracing::warn!(job = self.ledger.job(), %error, tried, "what a run has done could not be banked");
            if tried < retries
                && !hopeless
                && !self.ledger.pause(pause(self.ledger.limits().pause, tried), last.is_some())
            {
                continue;
            }
            drop(batch);
            self.ledger.failed(&error, hopeless || last.is_some());
            return Err(error);
        }
        Ok(0)
    }

    fn write_batch(&self, wait: Duration, batch: Option<&Batch<'_>>, last: Option<Last<'_>>) -> Result<run::Wrote> {
        let run = self.ledger.run();
        let mut wrote = run::Wrote::default();
        self.write(wait, |tx| {
            if let Some(batch) = batch {
                wrote = batch.write(tx)?;
            }
            match last {
                Some(Last::Stopped(reason)) => run::stop(tx, run, reason),
                Some(Last::Over(state, reason)) => run::end(tx, run, state, reason),
                None => Ok(()),
            }
        })?;
        Ok(wrote)
    }

    /// Flushes in the thread that has found it to be time. An error only when that ends the run.
    pub(super) fn flush_due(&self) -> Result<()> {
        match self.flush() {
            Ok(_) => Ok(()),
            Err(_) => self.ledger.over().map_or(Ok(()), Err),
        }
    }

    /// Starts the thread that flushes what has been recorded for long, and at once when somebody asks to stop.
    pub(super) fn start(work: &Arc<Self>) -> Result<JoinHandle<()>> {
        let keeper = Arc::clone(work);
        std::thread::Builder::new()
            .name("journal-run".into())
            .spawn(move || keeper.keep())
            .at("start a thread for", work.journal.root())
    }

    fn keep(&self) {
        let mut stopped = false;
        loop {
            let left = self.stop.as_ref().map_or(Duration::MAX, StopToken::left);
            // That is said in the log, and by whoever records next.
            let _ = match self.ledger.wait_due(stopped, left) {
                Due::Flush => self.flush(),
                Due::FlushAndStop => {
                    stopped = true;
                    self.flush_once()
                }
                Due::Look => {
                    self.is_stopping();
                    continue;
                }
                Due::End => return,
            };
        }
    }
}

/// Nothing will be better the next time.
fn is_hopeless(error: &Error) -> bool {
    error.is_lock_lost()
        || matches!(
            error,
            Error::Forked
                | Error::Closed
                | Error::Poisoned { .. }
                | Error::OutcomeUnknown { .. }
                | Error::RunEnded { .. }
                | Error::TooLarge { .. }
                | Error::Corrupt { .. }
        )
}

/// How long to wait before the next try: twice as long each time, and between half of that and all of it.
fn pause(first: Duration, tried: u32) -> Duration {
    let whole = first.saturating_mul(1_u32.checked_shl(tried.min(16)).unwrap_or(u32::MAX));
    let chance = RandomState::new().hash_one(tried) as u32;
    whole / 2 + (whole / 2).mul_f64(f64::from(chance) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_and_no_two_are_the_same() {
        let first = Duration::from_millis(100);
        for tried in 0..5 {
            let longest = first * (1 << tried);
            let pauses: Vec<_> = (0..20).map(|_| pause(first, tried)).collect();
            assert!(pauses.iter().all(|pause| (longest / 2..=longest).contains(pause)), "{tried}: {pauses:?}");
            assert!(pauses.iter().any(|pause| *pause != pauses[0]));
        }
        assert!(pause(Duration::MAX, 40) <= Duration::MAX);
    }
}
