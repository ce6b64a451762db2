//! Locks as an application takes them, and what every acquisition recovers first.

use std::sync::{Arc, Weak};
use std::time::Duration;

use super::{Inner, Journal, MAIN_LOCK};
use crate::error::{Error, Result};
use crate::fault::{Fault, planted};
use crate::fs::os_lock::Sharing;
use crate::id::Fence;
use crate::journal;
use crate::lock::{self, Granted, Held, Holder, Lease, Lent, Order, Waiting, Want};
use crate::options::{Acquire, Begin, OnWait};
use crate::recovery;
use crate::store::{self, Durability, Rows};
use crate::time::{Deadline, Process, now_ms};
use crate::txn::{self, Ground, Transaction, Version, Warning, Which};
use crate::wait::{Patience, StopToken};

/// Who has waited for this long is shown by `journalctl-kb locks`, and counted.
const LONG: Duration = Duration::from_secs(1);
/// So often somebody who shares a lock has what a dead holder left put back first; what cannot be put back is not waited for.
const TRIES: u32 = 3;
/// How long to wait for the turn to write down what is not needed.
const SHORT: Duration = Duration::from_millis(200);

/// What came of [`Journal::single_flight`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Flight<T> {
    /// The work was done here, and answered this.
    Ran(T),
    /// Somebody else is at it: nothing was done, nothing was written.
    Skipped(Holder),
}

/// A held lock. Released when it is dropped, and by the kernel when its process ends, however that comes.
///
/// Transactions under it are begun with [`Lock::begin`], one at a time; they commit only while it is still held. It may be given
/// to another thread; on the thread that used it last, asking for the same lock again is refused.
#[derive(Debug)]
#[must_use = "the lock is released when this is dropped"]
pub struct Lock {
    journal: Journal,
    /// None once it is released.
    lease: Option<Arc<Lease>>,
}

/// The fencing token of a held lock, to go with messages and to be checked where they arrive.
#[derive(Clone, Debug)]
pub struct LockFence {
    fence: Fence,
    name: Arc<str>,
    journal: Weak<Inner>,
}

/// A lock, and what was seen of the journal when it was taken.
struct Taken {
    lease: Lease,
    seen: Seen,
}

#[derive(Clone, Copy)]
struct Seen {
    /// A transaction with the key was committed before.
    replay: bool,
    version: Version,
    /// Of the newest acquisition that is recorded.
    fence: i64,
}

impl Journal {
    /// Takes the lock `name` alone, waiting for it as long as [`Options::lock_wait`](crate::Options::lock_wait) says.
    ///
    /// On return whatever dead processes left unfinished is recovered: the tree holds no transaction of this name half done.
    /// Nothing is durable but that. Several locks are taken in the order of their names, and before transactions begin: debug
    /// builds refuse another order with [`Error::LockOrder`]. The name of a lock is one of its own or a transaction's, not both,
    /// unless those transactions are begun on the [`Lock`].
    ///
    /// [`Error::Busy`] names who has it; [`Error::AlreadyHeld`] when that is the calling thread.
    pub fn lock(&self, name: &str) -> Result<Lock> {
        self.lock_with(Acquire::new(name))
    }

    /// Takes the lock `name` alone if nobody has it, for whatever purpose, at this instant.
    pub fn try_lock(&self, name: &str) -> Result<Option<Lock>> {
        match self.lock_with(Acquire::new(name).wait(Duration::ZERO)) {
            Ok(lock) => Ok(Some(lock)),
            Err(Error::Busy { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Takes a lock alone, as for a [flight](Journal::single_flight): if somebody is at it already, says who, at once, and writes
    /// nothing. Who has it otherwise is waited for, as long as [`Acquire::wait`] allows: those who share it, and whoever has come this
    /// very instant, or recovers what a dead holder left. Of `acquire` the name, the purpose and the wait count.
    pub fn begin_flight(&self, acquire: Acquire<'_>) -> Result<std::result::Result<Lock, Holder>> {
        self.begin_flight_in(acquire, Order::ByItself)
    }

    pub(super) fn begin_flight_in(
        &self,
        acquire: Acquire<'_>,
        order: Order,
    ) -> Result<std::result::Result<Lock, Holder>> {
        store::refuse_reentry("taking a lock")?;
        let ground = self.ground();
        ground.store.refuse_forked()?;
        let want = Want { name: &acquire.name, sharing: Sharing::Exclusive, order };
        let deadline = Deadline::after(acquire.wait.unwrap_or(self.inner.lock_wait));
        let granted = match ground.locks.try_or_holder(&ground.store, want, deadline)? {
            Ok(granted) => granted,
            Err(holder) => return Ok(Err(holder)),
        };
        let Taken { lease, .. } = self.hold(granted, want.name, &acquire.purpose, None, deadline)?;
        Ok(Ok(Lock { journal: self.clone(), lease: Some(Arc::new(lease)) }))
    }

    /// Takes a lock as [`Acquire`] says: shared, with a deadline, with a way to call it off, with news of who has it.
    pub fn lock_with(&self, acquire: Acquire<'_>) -> Result<Lock> {
        let Acquire { name, shared, wait, purpose, cancel, on_wait } = acquire;
        let sharing = if shared { Sharing::Shared } else { Sharing::Exclusive };
        let want = Want { name: &name, sharing, order: Order::ByItself };
        let deadline = Deadline::after(wait.unwrap_or(self.inner.lock_wait));
        let Taken { lease, .. } = self.take(want, &purpose, None, deadline, cancel, on_wait)?;
        Ok(Lock { journal: self.clone(), lease: Some(Arc::new(lease)) })
    }

    /// Runs `work` under the lock `name`, unless somebody is at it already: then that is said, at once, and nothing is written.
    ///
    /// An error of `work` is its own. When the lock is lost meanwhile, what `work` begins on the [`Lock`] cannot commit any
    /// more; but what it has finished stays finished: then the answer is [`Flight::Ran`], and the event log has the warning.
    /// Whoever recovers what a dead process left under this lock is waited for, not skipped.
    pub fn single_flight<T>(&self, name: &str, work: impl FnOnce(&Lock) -> Result<T>) -> Result<Flight<T>> {
        self.ground().store.refuse_forked()?;
        let lock = match self.begin_flight(Acquire::new(name))? {
            Ok(lock) => lock,
            Err(holder) => return Ok(Flight::Skipped(holder)),
        };
        let value = work(&lock)?;
        for warning in lock.release() {
            self.warn(&warning);
        }
        Ok(Flight::Ran(value))
    }

    /// Who has the lock `name`; none when it is free. The kernel's word; who that is, is the holder's.
    pub fn holder(&self, name: &str) -> Result<Option<Holder>> {
        self.ground().store.refuse_forked()?;
        self.ground().locks.holder(&self.ground().store, name)
    }

    /// Begins a transaction. Before it returns, whatever others committed and could not apply is in the tree.
    ///
    /// [`Error::Busy`] when the lock does not come free in time. Costs no sync.
    pub fn begin_with(&self, begin: Begin) -> Result<Transaction> {
        store::refuse_reentry("the beginning of a transaction")?;
        let name = begin.lock.as_deref().unwrap_or(MAIN_LOCK);
        let want = Want { name, sharing: Sharing::Exclusive, order: Order::OfTransaction };
        let deadline = Deadline::after(begin.wait.unwrap_or(self.inner.lock_wait));
        let Taken { lease, seen } = self.take(want, &begin.label, begin.key.as_deref(), deadline, None, None)?;
        Ok(self.transaction(Held::Own(lease), begin, seen))
    }

    fn transaction(&self, lease: Held, begin: Begin, seen: Seen) -> Transaction {
        let alive: Arc<dyn std::any::Any + Send + Sync> = self.inner.clone();
        Transaction::new(Arc::clone(self.ground()), alive, lease, begin.label, begin.key, seen.replay, seen.version)
    }

    fn take(
        &self,
        want: Want<'_>,
        purpose: &str,
        key: Option<&str>,
        deadline: Deadline,
        cancel: Option<StopToken>,
        tell: Option<OnWait<'_>>,
    ) -> Result<Taken> {
        let ground = self.ground();
        ground.store.refuse_forked()?;
        store::refuse_reentry("taking a lock")?;
        let mut wait = LongWait { ground, name: want.name, number: None };
        let mut granted = wait.wait(want, deadline, cancel.clone(), tell)?;
        for _ in 0..TRIES {
            if want.sharing == Sharing::Exclusive || !ground.store.peek(|tx| journal::has_guard_of(tx, want.name))? {
                break;
            }
            // Nobody has it alone, so who guards under it is dead; and what they left is put back only by who has it alone.
            drop(granted);
            let alone = wait.wait(Want { sharing: Sharing::Exclusive, ..want }, deadline, cancel.clone(), None)?;
            self.recover_first(want.name, None, deadline)?;
            drop(alone);
            granted = wait.wait(want, deadline, cancel.clone(), None)?;
        }
        drop(wait);
        self.hold(granted, want.name, purpose, key, deadline)
    }

    fn hold(&self, os: Granted, name: &str, purpose: &str, key: Option<&str>, deadline: Deadline) -> Result<Taken> {
        let seen = self.recover_first(name, key, deadline)?;
        let lease = self.ground().locks.hold(os, seen.fence, purpose)?;
        self.ground().late.ring();
        Ok(Taken { lease, seen })
    }

    /// What is unfinished is finished before anybody works under the lock `name`, which is held.
    fn recover_first(&self, name: &str, key: Option<&str>, deadline: Deadline) -> Result<Seen> {
        let ground = self.ground();
        let look = || {
            ground.store.peek(|tx| {
                let unfinished = journal::has_unfinished(tx, ground.late.known())?;
                let replay = match key {
                    Some(key) => journal::by_key(tx, key)?.is_some(),
                    None => false,
                };
                let seen = Seen { replay, version: ground.version(tx)?, fence: lock::newest_fence(tx, name)? };
                Ok((unfinished, seen))
            })
        };
        let (unfinished, seen) = look()?;
        if !unfinished || planted(Fault::AcquiredWithoutRecovery) {
            return Ok(seen);
        }
        recovery::drain(ground, &mut ground.enter()?, Which::Unapplied)?;
        if wait_for_workers(ground, name, deadline)? {
            recovery::drain(ground, &mut ground.enter()?, Which::Unapplied)?;
        }
        look().map(|(_, seen)| seen)
    }

    pub(super) fn warn(&self, warning: &Warning) {
        tracing::warn!(%warning);
        let message = warning.to_string();
        let noted = self.ground().enter().and_then(|mut turn| {
            let event =
                |tx: &store::Tx<'_>| journal::insert_event(tx, journal::Level::Warn, "lock", None, None, &message);
            turn.write(Durability::Normal, event)
        });
        if let Err(error) = noted {
            tracing::debug!(%error, "a warning could not be noted");
        }
    }
}

impl Lock {
    fn lease(&self) -> Result<&Arc<Lease>> {
        self.journal.ground().store.refuse_forked()?;
        let lease = self.lease.as_ref().ok_or(Error::Closed)?;
        lease.used();
        Ok(lease)
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        self.lease.as_ref().map_or("", |lease| lease.name())
    }

    /// The fencing token of this acquisition: larger than that of any before it. The first call records it, without a sync: a
    /// power cut frees the lock, and no later fence is smaller. [`Error::LockShared`] for a shared lock.
    pub fn fence(&self) -> Result<LockFence> {
        let lease = self.lease()?;
        let ground = self.journal.ground();
        let fence = match lease.fence() {
            Some(fence) => fence,
            None => {
                let mut turn = ground.enter()?;
                if !lease.is_shared() {
                    ground.locks.record_held(&mut turn)?;
                }
                lease.refuse_lost()?;
                turn.look(|tx| lease.confirm(tx))?
            }
        };
        Ok(LockFence { fence, name: lease.name().into(), journal: Arc::downgrade(&self.journal.inner) })
    }

    /// Looks whether the lock is still held: its file is the one that was locked, and nobody has acquired it since. It is lost only
    /// by force (somebody replaced the file); then nothing can be committed under it any more.
    pub fn is_held(&self) -> bool {
        self.lease().is_ok_and(|lease| lease.is_held(&self.journal.ground().store))
    }

    /// Asked to stop when the lock is found to be lost: at its next use, or within
    /// [`Options::heartbeat`](crate::Options::heartbeat).
    pub fn stop_token(&self) -> StopToken {
        self.lease.as_ref().map(|lease| lease.stop_token()).unwrap_or_default()
    }

    /// Says how far the work is, for whoever waits and for `journalctl-kb locks`, which see it a second later.
    pub fn set_progress(&self, text: impl Into<String>) {
        if let Some(lease) = &self.lease {
            lease.set_progress(text.into());
            self.journal.ground().late.ring();
        }
    }

    /// Begins a transaction under this lock. See [`Lock::begin_with`].
    pub fn begin(&self, label: &str) -> Result<Transaction> {
        self.begin_with(Begin::new(label))
    }

    /// Begins a transaction under this lock, which it neither waits for nor releases. One at a time:
    /// [`Error::AlreadyHeld`] while another is at work.
    pub fn begin_with(&self, begin: Begin) -> Result<Transaction> {
        store::refuse_reentry("the beginning of a transaction")?;
        let lease = self.lease()?;
        if begin.lock.as_deref().is_some_and(|name| name != lease.name()) {
            let reason = "the transaction is to begin under another lock, which is held";
            return Err(Error::BadLockName { name: begin.lock.unwrap_or_default(), reason });
        }
        lease.check_same()?;
        let held = Held::Lent(Lent::of(lease)?);
        let seen = self.journal.recover_first(
            lease.name(),
            begin.key.as_deref(),
            Deadline::after(self.journal.inner.lock_wait),
        )?;
        Ok(self.journal.transaction(held, begin, seen))
    }

    /// Changes rows alone, under this lock: durable on return. [`Error::LockLost`], and nothing is changed, when somebody else
    /// has acquired it since: that is looked at inside COMMIT. Shares its COMMIT as [`Journal::write`] does.
    pub fn write<T>(&self, work: impl FnMut(&Rows<'_>) -> Result<T>) -> Result<T> {
        store::refuse_reentry("a write")?;
        let ground = self.journal.ground();
        txn::write_rows_under(ground, self.lease()?, ground.limits.turn_wait, |_| Ok(()), work)
    }

    /// What it is, for those that go on with it.
    pub(super) fn shared_lease(&self) -> Result<Arc<Lease>> {
        self.lease().map(Arc::clone)
    }

    /// Releases the lock, as dropping it does, and says what was amiss: that it had been lost, or could not be released. What was
    /// committed under it stays committed. Whoever waits has it at once; the row says so a little later.
    pub fn release(mut self) -> Vec<Warning> {
        self.let_go()
    }

    pub(super) fn let_go(&mut self) -> Vec<Warning> {
        let mut warnings = Vec::new();
        let Some(lease) = self.lease.take() else { return warnings };
        let store = &self.journal.ground().store;
        if store.refuse_forked().is_err() {
            // The parent's, who still has it.
            std::mem::forget(lease);
            return warnings;
        }
        // Else a transaction is still at work under it, and releases it when it ends.
        let Some(lease) = Arc::into_inner(lease) else { return warnings };
        let name = lease.name().to_owned();
        if lease.is_lost(store) {
            let text = format!("lock {name:?} was lost before its work had ended; what was committed under it stays");
            warnings.push(Warning::new(text));
        }
        if let Err(error) = lease.release() {
            warnings.push(Warning::new(format!("lock {name:?} could not be released as it should: {error}")));
        }
        self.journal.ground().late.ring();
        warnings
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        for warning in self.let_go() {
            tracing::warn!(%warning);
        }
    }
}

impl LockFence {
    /// The token itself.
    pub fn fence(&self) -> Fence {
        self.fence
    }

    /// The lock it is of.
    pub fn lock(&self) -> &str {
        &self.name
    }

    /// True while nobody has acquired the lock since. [`Error::Closed`] when the journal is.
    pub fn is_current(&self) -> Result<bool> {
        let journal = self.journal.upgrade().ok_or(Error::Closed)?;
        let newest = journal.ground.store.peek(|tx| lock::newest_fence(tx, &self.name))?;
        Ok(newest == self.fence.get())
    }
}

impl std::fmt::Display for LockFence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.fence.fmt(f)
    }
}

/// Somebody waits; who does for long has a row, so that others see it.
struct LongWait<'g> {
    ground: &'g Ground,
    name: &'g str,
    /// The row, once there is one, and since when.
    number: Option<(i64, Deadline)>,
}

impl LongWait<'_> {
    fn wait(
        &mut self,
        want: Want<'_>,
        deadline: Deadline,
        cancel: Option<StopToken>,
        mut tell: Option<OnWait<'_>>,
    ) -> Result<Granted> {
        let ground = self.ground;
        let every = tell.as_ref().map_or(LONG, |(every, _)| (*every).min(LONG));
        let mut next = Duration::ZERO;
        let mut look = |waited: Duration| {
            if waited >= LONG && self.number.is_none() {
                self.begin(deadline);
            }
            if let Some((every, tell)) = &mut tell
                && waited >= next
            {
                next = waited.saturating_add(*every);
                let holder = ground.locks.recorded_holder(&ground.store, want.name).ok().flatten();
                tell(&Waiting::new(holder, waited));
            }
        };
        let mut patience = Patience::until(deadline).cancelled_by(cancel).telling(every, &mut look);
        if let Some(granted) = ground.locks.wait(want, &mut patience)? {
            return Ok(granted);
        }
        let what = format!("lock {:?}", want.name);
        if let Some(reason) = patience.cancelled().and_then(StopToken::reason) {
            return Err(Error::Cancelled { what, reason });
        }
        // Who has it is worth knowing, but not worth failing over.
        let holder = ground.locks.recorded_holder(&ground.store, want.name).ok().flatten();
        let holder = holder.map_or_else(|| "another process".to_owned(), |holder| holder.to_string());
        Err(Error::Busy { what, holder, waited: deadline.waited() })
    }

    fn begin(&mut self, deadline: Deadline) {
        let since_ms = now_ms() - i64::try_from(deadline.waited().as_millis()).unwrap_or(0);
        let session = self.ground.session.id;
        let begun = self.ground.store.enter(SHORT).and_then(|mut turn| {
            turn.write(Durability::Normal, |tx| lock::begin_wait(tx, self.name, session, since_ms))
        });
        match begun {
            Ok(number) => self.number = Some((number, deadline)),
            Err(error) => tracing::debug!(%error, "that a lock is waited for could not be noted"),
        }
    }
}

impl Drop for LongWait<'_> {
    fn drop(&mut self) {
        let Some((number, deadline)) = self.number else { return };
        let waited = i64::try_from(deadline.waited().as_millis()).unwrap_or(i64::MAX);
        self.ground.locks.end_wait(number, self.name, waited);
        self.ground.late.ring();
    }
}

/// Waits until nobody works any more under the guard of a transaction that died with this lock. False when there was nobody.
fn wait_for_workers(ground: &Ground, lock: &str, deadline: Deadline) -> Result<bool> {
    const PAUSE: Duration = Duration::from_millis(2);
    let mut workers = ground.store.peek(|tx| journal::workers(tx, lock))?;
    let were_there = !workers.is_empty();
    loop {
        workers.retain(Process::lives);
        let Some(worker) = workers.first() else { return Ok(were_there) };
        if deadline.passed() {
            return Err(Error::Busy {
                what: format!("lock {lock:?}"),
                holder: format!("process {}, which a transaction that died has left at work", worker.pid()),
                waited: deadline.waited(),
            });
        }
        std::thread::sleep(PAUSE);
    }
}
