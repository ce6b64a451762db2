//! Resumable runs: a long job that is killed again and again gets done.
//!
//! 1. [`Journal::run`] takes the job's lock, and finds the run that is open, or begins one.
//! 2. What is done already is loaded: a hash of each item.
//! 3. Items are [recorded](Run::record) alone, and banked in batches; or [inside a commit](Run::begin), exactly once with what
//!    that does.
//! 4. The end, however it comes, banks what is left and then releases the lock.

mod pending;
mod starting;
mod work;

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::thread::JoinHandle;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Lock;
use crate::error::{Error, Result};
use crate::fault::{Fault, planted};
use crate::id::RunId;
use crate::lock::Holder;
use crate::options::Begin;
use crate::run::{self, ItemKey, Name, RunState, checked};
use crate::txn::Transaction;
use crate::wait::OnStop;

pub use pending::Pending;
pub(super) use starting::retain;
use work::{Last, Work};

/// What came of [`Journal::run`](crate::Journal::run).
#[derive(Debug)]
#[must_use = "a run that is dropped is stopped"]
pub enum Started {
    /// It is this session's.
    Running(Run),
    /// Somebody else is at it: nothing was done, nothing was written.
    Skipped(Holder),
}

/// How a run came to be this session's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Begun {
    /// There was none that was open.
    New,
    /// It goes on where an earlier session ended.
    Resumed {
        /// Items that were done already.
        banked: u64,
    },
    /// Afresh: the fingerprint has changed. What an earlier run had done is kept for a while, to look at.
    Changed {
        /// Items that it had done.
        banked: u64,
    },
    /// Afresh: for longer than [`Options::run_retention`](crate::Options::run_retention) nobody had gone on with it.
    Expired {
        /// Items that it had done.
        banked: u64,
    },
}

/// How a session's work at a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "work that ended early is to be gone on with"]
pub enum Ended {
    /// All of it is done; the next run of the job begins afresh.
    Finished {
        /// Items that are done, over all sessions.
        banked: u64,
        /// Items that were tried as often as they may be, and stay aside.
        set_aside: u64,
    },
    /// There is more to do: the next run of the job goes on.
    Partial {
        /// Items that are done, over all sessions, and durable.
        banked: u64,
        /// Why it ended.
        reason: String,
    },
}

/// What becomes of an item that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is tried again: by the next session, or when [`Run::pending`] comes by once more.
    Again,
    /// It is left out, until `journalctl-kb runs retry`, a new fingerprint, or a run that begins afresh because the one before it
    /// was given up.
    SetAside,
}

/// A run that this session works at: what is done, what is to be done, and its end.
///
/// Any number of threads may use it. Dropping it, by an error or a panic, banks what is recorded and then releases the lock, as
/// [`Run::stop`] does; what was begun counts as tried. A process that dies loses what was recorded since the last flush, and
/// nothing else.
#[must_use = "a run that is dropped is stopped"]
pub struct Run {
    work: Arc<Work>,
    begun: Begun,
    /// None once it has ended.
    lock: Option<Lock>,
    thread: Option<JoinHandle<()>>,
    /// Who is told by the tokens.
    _on_stop: Vec<OnStop>,
}

/// An item that is being tried. Dropped without [`Attempt::record`] it has failed.
#[derive(Debug)]
#[must_use = "what is dropped has failed; call record()"]
pub struct Attempt<'r> {
    run: &'r Run,
    item: Box<[u8]>,
    over: bool,
}

impl Run {
    /// Its number, as `journalctl-kb runs` shows it.
    pub fn id(&self) -> RunId {
        self.work.ledger.run()
    }

    /// What it is called.
    pub fn job(&self) -> &str {
        self.work.ledger.job()
    }

    /// Whether it goes on or begins.
    pub fn begun(&self) -> Begun {
        self.begun
    }

    /// How many items are durably done, over all sessions.
    pub fn banked(&self) -> u64 {
        self.work.ledger.banked()
    }

    /// True when the item is recorded, banked or not. Costs no look at the database.
    pub fn is_done(&self, item: &(impl ItemKey + ?Sized)) -> bool {
        self.work.ledger.is_done(Name::of(&item.key()))
    }

    /// Those of `items` that are neither done nor set aside, in their order, until somebody asks to stop.
    ///
    /// Where the iterator says that it has more (as a `Vec` does), it is one ahead: the try of the next item is then counted by
    /// the commit of the one before.
    pub fn pending<I: IntoIterator<Item: ItemKey>>(&self, items: I) -> Pending<I::IntoIter> {
        Pending::new(Arc::clone(&self.work), items.into_iter())
    }

    /// Records that an item is done. It is banked, durably, with the first flush: right now if it is the first of this session,
    /// else after 10 s, 1,000 items or 1 MiB, when the run stops or ends (see [`Job`](crate::Job)).
    ///
    /// [`Error::CheckpointUnavailable`] when that was tried in vain for too long; then the run is over.
    pub fn record(&self, item: &(impl ItemKey + ?Sized)) -> Result<()> {
        let key = checked(item)?;
        match self.work.ledger()?.record(Name::of(&key), &key)? {
            true => self.work.flush_due(),
            false => Ok(()),
        }
    }

    /// Banks what is recorded, now. Answers how many items that were.
    pub fn flush(&self) -> Result<u64> {
        self.work.flush()
    }

    /// Begins a transaction, under the lock `main`, that does this item: its commit makes the effect true and records the item,
    /// both or neither. That the item is tried is durable before this returns; it costs a sync, unless [`Run::pending`] gave
    /// it. A transaction that is dropped has failed at it; one whose commit failed for a full disk, or because somebody was in the way,
    /// has not tried it.
    ///
    /// [`Error::ItemRefused`] when it is done or set aside.
    pub fn begin(&self, item: &(impl ItemKey + ?Sized)) -> Result<Transaction> {
        let label = format!("{}: {}", self.job(), String::from_utf8_lossy(&item.key()));
        self.begin_with(item, Begin::new(label.chars().take(LONGEST_LABEL).collect::<String>()))
    }

    /// The same, as [`Begin`] says.
    pub fn begin_with(&self, item: &(impl ItemKey + ?Sized), begin: Begin) -> Result<Transaction> {
        let key = checked(item)?;
        let name = Name::of(&key);
        self.work.ledger()?.refuse_try(name, &key)?;
        // Who waits for the lock does not try it yet.
        let mut txn = self.work.journal.begin_with(begin)?;
        self.count_try(name, &key)?;
        txn.along(&self.work.ledger, &self.work.lease).add(&key).inspect_err(|_| self.work.ledger.untry(name))?;
        Ok(txn)
    }

    /// Says that an item is about to be tried, by other means than a transaction. That is durable before this returns, as with
    /// [`Run::begin`].
    pub fn attempt(&self, item: &(impl ItemKey + ?Sized)) -> Result<Attempt<'_>> {
        let key = checked(item)?;
        self.count_try(Name::of(&key), &key)?;
        Ok(Attempt { run: self, item: key.into(), over: false })
    }

    fn count_try(&self, name: Name, item: &[u8]) -> Result<()> {
        if !self.work.ledger()?.begin(name, item)? {
            return Ok(());
        }
        self.work.flush().map(drop).map_err(|error| {
            self.work.ledger.untry(name);
            self.work.ledger.over().unwrap_or(error)
        })
    }

    /// Says that an item failed, and why. It was tried once more; when that was the last time, it is set aside. Of what was dropped
    /// before, or begun, this says why, and is no try of its own. Durable with the next flush.
    pub fn fail(&self, item: &(impl ItemKey + ?Sized), error: impl fmt::Display) -> Result<Verdict> {
        let key = checked(item)?;
        let error: String = error.to_string().chars().take(LONGEST_REASON).collect();
        if !self.work.ledger()?.fail(Name::of(&key), &key, &error) {
            return Ok(Verdict::Again);
        }
        tracing::warn!(job = self.job(), item = %String::from_utf8_lossy(&key), %error, "an item is set aside");
        Ok(Verdict::SetAside)
    }

    /// Says that an item is not there any more: it counts as done. What failed before and was not among the items that
    /// [`Run::pending`] has seen, to their end, is found to be so by [`Run::finish`].
    pub fn vanished(&self, item: &(impl ItemKey + ?Sized)) -> Result<()> {
        self.record(item)
    }

    /// Replaces all that is recorded by these items, in one commit: durable on return. What other threads record meanwhile is
    /// replaced, too, or recorded after it.
    pub fn replace<I: IntoIterator<Item: ItemKey>>(&self, items: I) -> Result<()> {
        let (mut names, mut named) = (HashSet::default(), Vec::new());
        for item in items {
            let key = checked(&item)?;
            let name = Name::of(&key);
            if names.insert(name) {
                named.push((name, Box::from(&*key)));
            }
        }
        self.work.replace(&named, names)
    }

    /// Where to go on, as it was last set; none when nobody has, or when it cannot be read: then it is set aside, and what is
    /// recorded still counts.
    pub fn cursor<T: DeserializeOwned>(&self) -> Result<Option<T>> {
        let text = match self.work.ledger.newest_cursor() {
            Some(text) => Some(text.into_bytes()),
            None => self.work.journal.ground().store.peek(|tx| run::cursor(tx, self.id()))?,
        };
        let Some(text) = text else { return Ok(None) };
        match serde_json::from_slice(&text) {
            Ok(cursor) => Ok(Some(cursor)),
            Err(error) => self.work.set_cursor_aside(&text, &error).map(|()| None),
        }
    }

    /// Sets where to go on: durable with the next flush, and not before the items that were recorded before it.
    pub fn set_cursor<T: Serialize + ?Sized>(&self, cursor: &T) -> Result<()> {
        match self.work.ledger()?.set_cursor(to_text(cursor)?)? {
            true => self.work.flush_due(),
            false => Ok(()),
        }
    }

    /// Asked to stop when this run is to: by its [token](crate::Job::stop), or because its lock was lost.
    pub fn is_stopping(&self) -> bool {
        self.work.is_stopping()
    }

    /// Ends the run: all is done. On return that is durable, and the lock is free.
    ///
    /// [`Ended::Partial`], and the run stays open, when somebody has asked it to stop, when items failed that are to be tried
    /// again, or when [`Run::pending`] was left before it had given all.
    pub fn finish(mut self) -> Result<Ended> {
        if self.work.is_stopping() {
            return self.end_early("stopped");
        }
        if self.work.ledger.has_left() {
            return self.end_early("not all items were gone through");
        }
        let failed = self.work.ledger.close_tries();
        if failed > 0 {
            let items = if failed == 1 { "item" } else { "items" };
            return self.end_early(&format!("{failed} {items} failed, to be tried again"));
        }
        let set_aside = self.work.ledger.aside() as u64;
        self.end(Last::Over(RunState::Finished, ""))?;
        Ok(Ended::Finished { banked: self.banked(), set_aside })
    }

    /// Ends this session's work: what is recorded is banked, then the lock is released. The next run of the job goes on here. What
    /// was begun and not recorded was not tried.
    pub fn stop(mut self, reason: impl Into<String>) -> Result<Ended> {
        let reason = reason.into();
        self.work.ledger.begin_end();
        self.work.ledger.stop(&reason);
        self.end_early(&reason)
    }

    /// Gives the run up: the next one of the job begins afresh.
    pub fn abandon(mut self) -> Result<()> {
        self.work.ledger.close(None);
        self.end(Last::Over(RunState::Abandoned, "abandoned by its job"))
    }

    fn end_early(&mut self, reason: &str) -> Result<Ended> {
        let reason = self.work.ledger.stopping().unwrap_or_else(|| reason.to_owned());
        self.work.ledger.close(None);
        self.end(Last::Stopped(&reason))?;
        Ok(Ended::Partial { banked: self.banked(), reason })
    }

    /// The last flush, and then the lock.
    fn end(&mut self, last: Last<'_>) -> Result<()> {
        self.work.ledger()?;
        if planted(Fault::FlushedAfterRelease) {
            drop(self.lock.take());
        }
        self.work.ledger.begin_end();
        let flushed = self.work.flush_last(last);
        let over = self.work.ledger.over();
        self.work.ledger.end();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        if let Some(mut lock) = self.lock.take() {
            lock.let_go().iter().for_each(|warning| self.work.journal.warn(warning));
        }
        flushed.map(drop).map_err(|error| over.unwrap_or(error))
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if self.work.journal.ground().store.refuse_forked().is_err() {
            // The parent's, who goes on with it.
            std::mem::forget((self.thread.take(), Arc::clone(&self.work)));
            std::mem::forget(std::mem::take(&mut self._on_stop));
            return;
        }
        if self.lock.is_none() {
            return;
        }
        let stopping = self.work.is_stopping().then(|| self.work.ledger.stopping()).flatten();
        let reason = match (&stopping, std::thread::panicking()) {
            (Some(reason), _) => reason,
            (None, true) => "a panic",
            (None, false) => "an error",
        };
        // Whose fault it was is not known; somebody who asks to stop is no item's fault.
        let why = stopping.is_none().then(|| format!("the run ended by {reason} while it was tried"));
        self.work.ledger.close(why.as_deref());
        match self.end(Last::Stopped(reason)) {
            Ok(()) => tracing::info!(job = self.job(), reason, banked = self.banked(), "a run ended early"),
            Err(error) => tracing::error!(%error, "a run ended, and its last flush failed"),
        }
    }
}

impl fmt::Debug for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (job, banked) = (self.job(), self.banked());
        f.debug_struct("Run").field("job", &job).field("banked", &banked).finish_non_exhaustive()
    }
}

impl Attempt<'_> {
    /// It is done; see [`Run::record`].
    pub fn record(mut self) -> Result<()> {
        self.over = true;
        self.run.record(&*self.item)
    }

    /// It failed; see [`Run::fail`].
    pub fn fail(mut self, error: impl fmt::Display) -> Result<Verdict> {
        self.over = true;
        self.run.fail(&*self.item, error)
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        let is_forked = self.run.work.journal.ground().store.refuse_forked().is_err();
        if !self.over && !is_forked {
            self.run.work.ledger.not_done(Name::of(&self.item));
        }
    }
}

impl Transaction {
    /// Records that an item of a run is done by this transaction: both are true after its commit, or neither. A transaction that
    /// [`Run::begin`] began does so for its own item already.
    ///
    /// [`Error::ItemRefused`] when it is done; the commit looks once more. [`Error::LockLost`] at commit when the run's lock is.
    pub fn record(&mut self, run: &Run, item: &(impl ItemKey + ?Sized)) -> Result<()> {
        let key = checked(item)?;
        if planted(Fault::ItemBesideCommit) {
            return run.record(item);
        }
        self.along(&run.work.ledger, &run.work.lease).add(&key)
    }

    /// Sets where a run is to go on, with this commit. What was recorded alone before it may be banked after it: to be sure of
    /// that, too, there is [`Run::flush`].
    pub fn set_cursor<T: Serialize + ?Sized>(&mut self, run: &Run, cursor: &T) -> Result<()> {
        let text = to_text(cursor)?;
        self.along(&run.work.ledger, &run.work.lease).set_cursor(text);
        Ok(())
    }
}

fn to_text<T: Serialize + ?Sized>(cursor: &T) -> Result<String> {
    let text = serde_json::to_string(cursor).map_err(Error::caller)?;
    match text.len() {
        ..=LONGEST_CURSOR => Ok(text),
        _ => Err(Error::TooLarge { what: "a cursor", limit: LONGEST_CURSOR as u64 }),
    }
}

/// In bytes of JSON.
const LONGEST_CURSOR: usize = 64 << 10;
/// In characters.
const LONGEST_REASON: usize = 1000;
const LONGEST_LABEL: usize = 200;
