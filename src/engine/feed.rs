//! The change feed: what was committed, in order, for followers in any process.

use std::collections::VecDeque;
use std::time::Duration;

use super::Journal;
use crate::error::{Error, Result};
use crate::fault::{Fault, planted};
use crate::fs::bell::{Bell, Listener};
use crate::id::TxnId;
use crate::journal::{self, Commit};
use crate::outbox::{self, Message};
use crate::recovery;
use crate::store::{Rows, Tx};
use crate::time::Deadline;
use crate::txn::{self, Which};
use crate::wait::StopToken;

/// So many commits are read at once.
const BATCH: usize = 256;
/// And no more than so many changes.
const BATCH_CHANGES: usize = 10_000;

/// What was committed since, in order; from [`Journal::changes`]. Ends where nothing more is committed, or behind an error, and goes on when asked again.
#[derive(Debug)]
#[must_use = "iterators are lazy"]
pub struct Changes {
    journal: Journal,
    after: TxnId,
    ahead: VecDeque<Commit>,
    /// The last answer was an error: whoever goes through them all comes to an end.
    failed: bool,
}

/// What was committed since, and what will be; from [`Journal::follow`] and [`Follower::follow`].
#[derive(Debug)]
#[must_use = "iterators are lazy"]
pub struct Follow {
    changes: Changes,
    listener: Listener,
    stop: StopToken,
}

/// Somebody who follows the changes under a name, by which the database knows how far it is; from [`Journal::follower`].
#[derive(Debug)]
pub struct Follower {
    journal: Journal,
    name: String,
}

impl Journal {
    /// The transactions that were committed behind `since`, in order, with what they did to which path. `TxnId::from(0)` is the
    /// beginning. Reads a piece at a time: no snapshot is kept, and what is committed meanwhile comes, too.
    pub fn changes(&self, since: TxnId) -> Changes {
        Changes { journal: self.clone(), after: since, ahead: VecDeque::new(), failed: false }
    }

    /// The same, and then waits for more until `stop` is asked to. What this process commits comes at once; what another one does,
    /// within some milliseconds. It costs next to nothing while nothing is written.
    pub fn follow(&self, since: TxnId, stop: &StopToken) -> Result<Follow> {
        let ground = self.ground();
        ground.store.refuse_forked()?;
        let bell = Bell::new()?;
        let listener = bell.listen(&ground.store.log_path());
        ground.doors.follow(&bell);
        Ok(Follow { changes: self.changes(since), listener, stop: stop.clone() })
    }

    /// The follower of this name, which begins with the first transaction there is if it is new. Nothing of what a follower is told
    /// is ever dropped: how many old versions are kept does not matter to it.
    pub fn follower(&self, name: &str) -> Result<Follower> {
        if name.is_empty() {
            return Err(Error::NoFollower { name: name.to_owned() });
        }
        Ok(Follower { journal: self.clone(), name: name.to_owned() })
    }

    /// Applies a message to rows of this database once, however often it comes: `work` runs in the SQLite transaction that notes so,
    /// unless `consumer` has applied this one, or a newer one of its key. True when it ran; durable on return.
    pub fn apply_once(
        &self,
        consumer: &str,
        message: &Message,
        work: impl FnMut(&Rows<'_>) -> Result<()>,
    ) -> Result<bool> {
        self.write_if_new(|tx| outbox::apply(tx, consumer, message), work)
    }

    /// Changes rows where `note` says, in the same commit, that this was not done yet. True when it was done now.
    fn write_if_new(
        &self,
        mut note: impl FnMut(&Tx<'_>) -> Result<bool>,
        mut work: impl FnMut(&Rows<'_>) -> Result<()>,
    ) -> Result<bool> {
        let is_new = std::cell::Cell::new(false);
        let check = |tx: &Tx<'_>| note(tx).map(|new| is_new.set(new));
        let wait = self.ground().limits.turn_wait;
        txn::write_rows(self.ground(), wait, check, |rows| if is_new.get() { work(rows) } else { Ok(()) })?;
        Ok(is_new.get())
    }

    /// Reads of what is committed, and answers once the files of all of it are in place: a COMMIT can be seen a little before, and
    /// whoever is told of it may look at them.
    pub(super) fn read_in_place<T>(&self, read: impl FnOnce(&Tx<'_>) -> Result<T>) -> Result<T> {
        let ground = self.ground();
        let (value, in_place) = ground.store.peek(|tx| {
            let value = read(tx)?;
            Ok((value, !journal::has_unapplied(tx, ground.late.unnoted())?))
        })?;
        if !in_place && !planted(Fault::ToldBeforeFiles) {
            // Who commits keeps the turn for that; what is left in it is of somebody who died.
            let mut turn = ground.enter()?;
            recovery::drain(ground, &mut turn, Which::Unapplied)?;
        }
        Ok(value)
    }
}

impl Iterator for Changes {
    type Item = Result<Commit>;

    fn next(&mut self) -> Option<Result<Commit>> {
        if std::mem::take(&mut self.failed) {
            return None;
        }
        if self.ahead.is_empty() {
            let read = |tx: &Tx<'_>| journal::commits_after(tx, self.after, BATCH, BATCH_CHANGES);
            match self.journal.read_in_place(read) {
                Ok(commits) => self.ahead.extend(commits),
                Err(error) => {
                    self.failed = true;
                    return Some(Err(error));
                }
            }
        }
        let commit = self.ahead.pop_front()?;
        self.after = commit.id;
        Some(Ok(commit))
    }
}

impl Follow {
    /// The next commit; none when there is none within this time, or it is to stop.
    pub fn next_within(&mut self, at_most: Duration) -> Result<Option<Commit>> {
        let deadline = Deadline::after(at_most.min(self.stop.left()));
        let Self { changes, listener, stop } = self;
        let bell = listener.bell().clone();
        let _woken = stop.on_stop(move || bell.ring());
        let mut next = None;
        listener.wait_until(deadline, true, |_| {
            let stopped = stop.requested();
            if !stopped {
                next = changes.next();
            }
            stopped || next.is_some()
        });
        next.transpose()
    }
}

impl Iterator for Follow {
    type Item = Result<Commit>;

    /// Waits for the next commit; none once it is to stop.
    fn next(&mut self) -> Option<Result<Commit>> {
        self.next_within(Duration::MAX).transpose()
    }
}

impl Follower {
    /// The newest transaction that it is done with; 0 in the beginning.
    pub fn position(&self) -> Result<TxnId> {
        let found = self.journal.ground().store.peek(|tx| journal::position(tx, &self.name))?;
        Ok(found.unwrap_or(TxnId(0)))
    }

    /// What was committed behind that.
    pub fn changes(&self) -> Result<Changes> {
        Ok(self.journal.changes(self.position()?))
    }

    /// The same, and waits for more.
    pub fn follow(&self, stop: &StopToken) -> Result<Follow> {
        self.journal.follow(self.position()?, stop)
    }

    /// It is done with all up to this transaction: durable on return. Never goes back. [`Error::NotCommitted`] if there is no such
    /// transaction yet.
    pub fn advance(&self, to: TxnId) -> Result<()> {
        self.advance_with(to, |_| Ok(())).map(drop)
    }

    /// The same, in one commit with rows of its own: what it makes of a transaction is there exactly once. True when `work` ran;
    /// it does not where the follower is that far already, in another process, say.
    pub fn advance_with(&self, to: TxnId, work: impl FnMut(&Rows<'_>) -> Result<()>) -> Result<bool> {
        let note = |tx: &Tx<'_>| match to.get() > journal::newest(tx)? {
            true => Err(Error::NotCommitted { txn: to }),
            false => journal::advance(tx, &self.name, to),
        };
        self.journal.write_if_new(note, work)
    }

    /// Forgets it: under this name somebody would begin anew.
    pub fn forget(self) -> Result<()> {
        let wait = self.journal.ground().limits.turn_wait;
        let name = &self.name;
        txn::write_rows(self.journal.ground(), wait, |tx| journal::forget_follower(tx, name).map(drop), |_| Ok(()))
    }
}
