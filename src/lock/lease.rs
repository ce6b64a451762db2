//! A held lock: what its row says, what is noticed when it is lost, and its end.

use std::cell::Cell;
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use super::locks::{Order, Spot};
use super::queue::Ticket;
use super::{rows, session};
use crate::error::{Error, Result};
use crate::fault::{Fault, planted};
use crate::fs::os_lock::{OsLock, Sharing};
use crate::id::{Fence, SessionId};
use crate::store::{Durability, Store, Turn, Tx};
use crate::time::now_ms;
use crate::wait::StopToken;

/// How long to wait for the turn to write down what is not needed.
const SHORT_WAIT: Duration = Duration::from_millis(200);

/// What this process knows of a lock it holds.
#[derive(Debug)]
pub(super) struct Standing {
    pub(super) name: String,
    pub(super) sharing: Sharing,
    pub(super) order: Order,
    pub(super) purpose: String,
    pub(super) since_ms: i64,
    sessions: Arc<Path>,
    /// The thread that took it, or used it last.
    owner: AtomicU64,
    os: Mutex<Option<OsLock>>,
    /// Changes within a turn, but for the end of a lease that was never recorded.
    record: Mutex<Record>,
    progress: Mutex<Progress>,
    lost: AtomicBool,
    /// That it was lost is counted, or somebody is just counting it.
    counted: AtomicBool,
    stop: OnceLock<StopToken>,
}

/// What the row of a lock says of its holder.
#[derive(Clone, Copy, Debug)]
pub(super) enum Record {
    /// Nothing yet, or not that this process knew. The newest acquisition before had the fence `newest`; `seen` by the
    /// background before. `tried` was recorded in a SQLite transaction whose outcome the row tells, to several threads that
    /// work under one lock as well: it may be open, committed or undone. The background leaves it to who is `committing`.
    Unwritten { newest: i64, seen: bool, tried: Option<Fence>, committing: bool },
    /// The row says that this holder has the lock, with this fence.
    Written(Fence),
    /// The row says that it was released, or never says anything: it is shared.
    Over,
}

#[derive(Debug, Default)]
struct Progress {
    text: String,
    /// The row does not say so yet.
    is_news: bool,
}

/// A held lock. Dropping it frees the OS lock at once; a row that says "held" is mended a little later, by
/// [`Locks::record_held`](super::Locks::record_held): whoever waits need not wait for that.
#[derive(Debug)]
#[must_use = "the lock is freed when this is dropped"]
pub(crate) struct Lease {
    standing: Arc<Standing>,
    session: SessionId,
    /// A transaction is at work under it that was lent it.
    lent: AtomicBool,
    ticket: Ticket<Spot>,
}

/// A lease as a transaction has it: its own, which ends with it, or somebody's who lends it for that long.
#[derive(Debug)]
pub(crate) enum Held {
    Own(Lease),
    Lent(Lent),
}

/// A lease in somebody else's hands, one at a time.
#[derive(Debug)]
pub(crate) struct Lent(Arc<Lease>);

impl Standing {
    pub(super) fn new(
        name: String,
        want: (Sharing, Order),
        purpose: &str,
        os: OsLock,
        record: Record,
        sessions: Arc<Path>,
    ) -> Self {
        let (sharing, order) = want;
        Self {
            sessions,
            name,
            sharing,
            order,
            purpose: purpose.to_owned(),
            since_ms: now_ms(),
            owner: AtomicU64::new(this_thread()),
            os: Mutex::new(Some(os)),
            record: Mutex::new(record),
            progress: Mutex::default(),
            lost: AtomicBool::new(false),
            counted: AtomicBool::new(false),
            stop: OnceLock::new(),
        }
    }

    /// True when the calling thread took it, or used it last.
    pub(super) fn is_mine(&self) -> bool {
        self.owner.load(Ordering::Relaxed) == this_thread()
    }

    pub(super) fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    pub(super) fn progress(&self) -> String {
        self.progress_state().text.clone()
    }

    /// What is to be said of its progress, when the row does not say so yet.
    pub(super) fn news(&self) -> Option<String> {
        let state = self.progress_state();
        state.is_news.then(|| state.text.clone())
    }

    /// The row says so now.
    pub(super) fn told(&self, text: &str) {
        let mut state = self.progress_state();
        state.is_news = state.text != text;
    }

    fn progress_state(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    fn os(&self) -> MutexGuard<'_, Option<OsLock>> {
        self.os.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    /// True when its acquisition was recorded with this fence, or is being so.
    pub(super) fn has(&self, fence: Fence) -> bool {
        match *self.record() {
            Record::Written(own) => own == fence,
            Record::Unwritten { tried, .. } => tried == Some(fence),
            Record::Over => false,
        }
    }

    pub(super) fn check_same(&self) -> Result<()> {
        self.os().as_ref().map_or(Err(Error::Closed), OsLock::check_same)
    }

    /// Records the acquisition, unless that was done meanwhile; `over`, when the release goes with it. Answers the fence.
    pub(super) fn acquire(
        &self,
        tx: &Tx<'_>,
        session: SessionId,
        newest: i64,
        tried: &mut Option<Fence>,
        over: bool,
    ) -> Result<Fence> {
        if let Some(fence) = *tried
            && rows::is_of(tx, &self.name, fence, session)?
        {
            return match over {
                true => rows::release(tx, &self.name, fence, session).map(|_| fence),
                false => Ok(fence),
            };
        }
        let (known, holder) = rows::newest(tx, &self.name)?;
        if known != newest && !planted(Fault::FenceNotChecked) {
            return Err(self.error(Fence(newest)));
        }
        // One that lives has released it, and not got round to saying so.
        let crashed = holder.is_some_and(|holder| match SessionId::from_slice(&holder) {
            Some(holder) => holder != session && !session::lives(&self.sessions, holder).unwrap_or(true),
            None => true,
        });
        let fence = rows::acquire(tx, &self.name, session, &self.purpose, over, crashed)?;
        *tried = Some(fence);
        Ok(fence)
    }

    fn error(&self, fence: Fence) -> Error {
        Error::LockLost { name: self.name.clone(), fence }
    }

    /// Somebody else has it: whoever works under it is to find out, and `count` is to count it, unless that was done. It
    /// answers none when the database was not to be had: whoever finds the loss next counts it then.
    pub(super) fn lose(&self, count: impl FnOnce() -> Result<Option<()>>) -> Result<()> {
        self.lost.store(true, Ordering::Release);
        if let Some(stop) = self.stop.get() {
            stop.stop(self.loss());
        }
        if self.counted.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let counted = count();
        if !matches!(counted, Ok(Some(()))) {
            self.counted.store(false, Ordering::Release);
        }
        counted.map(drop)
    }

    fn loss(&self) -> String {
        format!("lock {:?} was lost", self.name)
    }

    fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }
}

impl Lease {
    pub(super) fn new(standing: Arc<Standing>, session: SessionId, ticket: Ticket<Spot>) -> Self {
        Self { standing, session, lent: AtomicBool::new(false), ticket }
    }

    pub(crate) fn name(&self) -> &str {
        &self.standing.name
    }

    pub(crate) fn is_shared(&self) -> bool {
        self.standing.sharing == Sharing::Shared
    }

    /// The calling thread works under this lock now.
    pub(crate) fn used(&self) {
        self.standing.owner.store(this_thread(), Ordering::Relaxed);
    }

    /// Refuses to go on when the lock is known to be lost.
    pub(crate) fn refuse_lost(&self) -> Result<()> {
        if self.standing.is_lost() { Err(self.lost()) } else { Ok(()) }
    }

    /// Refuses to go on when the lock file is no longer the one that was locked.
    pub(crate) fn check_same(&self) -> Result<()> {
        self.refuse_lost()?;
        self.standing.check_same()
    }

    /// Looks whether the lock is still held: the file is the one that was locked, and nobody has acquired it since.
    pub(crate) fn is_held(&self, store: &Store) -> bool {
        if self.standing.is_lost() || store.refuse_forked().is_err() {
            return false;
        }
        let is_replaced = matches!(self.standing.check_same(), Err(Error::LockFileReplaced { .. }));
        let held = !is_replaced && (self.is_shared() || self.is_newest(store).unwrap_or(true));
        if !held {
            self.lose(store);
        }
        held
    }

    /// True when it is known to be lost, or its file is not the one that was locked. Costs no look at the row: whoever
    /// committed has looked there.
    pub(crate) fn is_lost(&self, store: &Store) -> bool {
        if !self.standing.is_lost() && matches!(self.standing.check_same(), Err(Error::LockFileReplaced { .. })) {
            self.lose(store);
        }
        self.standing.is_lost()
    }

    /// True when nobody has acquired the lock since.
    fn is_newest(&self, store: &Store) -> Result<bool> {
        let newest = store.peek(|tx| rows::newest_fence(tx, self.name()))?;
        // It may have been recorded since that was read; a fence of our own is never larger than what is read after it.
        Ok(match *self.standing.record() {
            Record::Unwritten { newest: before, tried, .. } => newest == before || tried == Some(Fence(newest)),
            Record::Written(fence) => newest <= fence.get(),
            Record::Over => true,
        })
    }

    fn lose(&self, store: &Store) {
        let noted = self.standing.lose(|| self.count_loss(&mut store.enter(SHORT_WAIT)?).map(Some));
        if let Err(error) = noted {
            tracing::debug!(%error, "the loss of a lock could not be counted");
        }
    }

    /// Asked to stop when this lock is lost.
    pub(crate) fn stop_token(&self) -> StopToken {
        let stop = self.standing.stop.get_or_init(StopToken::new).clone();
        if self.standing.is_lost() {
            stop.stop(self.standing.loss());
        }
        stop
    }

    /// Says how far the work under the lock is, for people; the row says so a little later.
    pub(crate) fn set_progress(&self, text: String) {
        let mut state = self.standing.progress_state();
        (state.text, state.is_news) = (text, true);
    }

    /// Inside COMMIT: refuses when somebody else has acquired the lock since, and records the acquisition where that has not
    /// been done. Answers the fence, to be given to [`Lease::confirmed`] when the COMMIT is done; or else there is
    /// [`Lease::not_committed`].
    pub(crate) fn confirm(&self, tx: &Tx<'_>) -> Result<Fence> {
        self.record_in(tx, false)
    }

    /// The same; `over`, where this is the last to happen under the lock, records the release, too.
    fn record_in(&self, tx: &Tx<'_>, over: bool) -> Result<Fence> {
        self.refuse_lost()?;
        match &mut *self.standing.record() {
            Record::Unwritten { newest, tried, committing, .. } => {
                *committing = true;
                self.standing.acquire(tx, self.session, *newest, tried, over)
            }
            Record::Written(fence) => {
                let is_ours = match over {
                    true => rows::release(tx, self.name(), *fence, self.session)?,
                    false => rows::is_newest(tx, self.name(), *fence)?,
                };
                if is_ours || planted(Fault::FenceNotChecked) { Ok(*fence) } else { Err(self.standing.error(*fence)) }
            }
            Record::Over if self.is_shared() => Err(Error::LockShared { name: self.name().to_owned() }),
            Record::Over => Err(Error::Closed),
        }
    }

    /// After a COMMIT that has confirmed it: the row says that this lock is held.
    pub(crate) fn confirmed(&self, fence: Fence) {
        *self.standing.record() = Record::Written(fence);
    }

    /// After a COMMIT that was to record it and did not.
    pub(crate) fn not_committed(&self) {
        if let Record::Unwritten { committing, .. } = &mut *self.standing.record() {
            *committing = false;
        }
    }

    /// The fence, once the row says that this lock is held.
    pub(crate) fn fence(&self) -> Option<Fence> {
        match *self.standing.record() {
            Record::Written(fence) => Some(fence),
            _ => None,
        }
    }

    /// A descriptor of the lock that processes started from now on inherit.
    pub(crate) fn lend(&self) -> Result<OwnedFd> {
        self.standing.os().as_ref().map_or(Err(Error::Closed), OsLock::lend)
    }

    /// The error of a holder whose lock was taken by somebody else.
    pub(crate) fn lost(&self) -> Error {
        let fence = match *self.standing.record() {
            Record::Written(fence) => fence,
            Record::Unwritten { newest, .. } => Fence(newest),
            Record::Over => Fence(0),
        };
        self.standing.error(fence)
    }

    /// Somebody else has acquired the lock: tells whoever works under it, and counts that.
    pub(crate) fn note_loss(&self, turn: &mut Turn<'_>) -> Result<()> {
        self.standing.lose(|| self.count_loss(turn).map(Some))
    }

    fn count_loss(&self, turn: &mut Turn<'_>) -> Result<()> {
        turn.write(Durability::Normal, |tx| rows::count_loss(tx, self.name()))
    }

    /// True when the row says that this lock is held.
    pub(crate) fn is_recorded(&self) -> bool {
        self.fence().is_some()
    }

    /// Frees the OS lock.
    pub(crate) fn release(mut self) -> Result<()> {
        self.free()
    }

    fn free(&mut self) -> Result<()> {
        let Some(os) = self.standing.os().take() else { return Ok(()) };
        // IMPORTANT: before it is free. Were it recorded afterwards, the next holder would be taken for overtaken.
        let said = match std::mem::replace(&mut *self.standing.record(), Record::Over) {
            Record::Written(fence) => Some(fence),
            Record::Unwritten { tried, .. } => tried,
            Record::Over => None,
        };
        // Explicitly: whoever was lent the descriptor would keep the lock.
        let unlocked = os.unlock();
        let idle = Some(os).filter(|os| unlocked.is_ok() && !os.is_lent());
        self.ticket.with(|spot| spot.leave(&self.standing, idle, said));
        unlocked
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // Closed, the descriptor frees it all the same.
        let _ = self.free();
    }
}

impl Lent {
    /// Takes the lease for a transaction; refused while another has it.
    pub(crate) fn of(lease: &Arc<Lease>) -> Result<Self> {
        if lease.is_shared() {
            return Err(Error::LockShared { name: lease.name().to_owned() });
        }
        match lease.lent.swap(true, Ordering::AcqRel) {
            false => Ok(Self(Arc::clone(lease))),
            true => Err(Error::AlreadyHeld { name: lease.name().to_owned(), how: "by a transaction under it" }),
        }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.0.not_committed();
        self.0.lent.store(false, Ordering::Release);
    }
}

impl Deref for Held {
    type Target = Lease;

    fn deref(&self) -> &Lease {
        match self {
            Self::Own(lease) => lease,
            Self::Lent(lent) => &lent.0,
        }
    }
}

impl Held {
    /// Inside COMMIT: refuses when somebody else has acquired the lock since, and records what the row does not say yet; of
    /// a lease of its own also that it is over. Answers the fence.
    pub(crate) fn conclude(&self, tx: &Tx<'_>) -> Result<Fence> {
        match self {
            Self::Own(lease) => lease.record_in(tx, true),
            Self::Lent(lent) => lent.0.confirm(tx),
        }
    }

    /// After a COMMIT that has concluded it.
    pub(crate) fn concluded(&self, fence: Fence) {
        match self {
            Self::Own(lease) => *lease.standing.record() = Record::Over,
            Self::Lent(lent) => lent.0.confirmed(fence),
        }
    }

    /// The transaction is over: the lease, where nobody else has it who will release it.
    pub(crate) fn end(self) -> Option<Lease> {
        match self {
            Self::Own(lease) => Some(lease),
            Self::Lent(lent) => {
                let lease = Arc::clone(&lent.0);
                drop(lent);
                Arc::into_inner(lease)
            }
        }
    }
}

/// The number of the calling thread, never used for another.
pub(super) fn this_thread() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    thread_local!(static NUMBER: Cell<u64> = const { Cell::new(0) });
    NUMBER.with(|number| {
        if number.get() == 0 {
            number.set(NEXT.fetch_add(1, Ordering::Relaxed));
        }
        number.get()
    })
}
