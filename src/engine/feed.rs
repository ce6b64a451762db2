//! The change feed: what was committed, in order, for followers in any process.

use std::collections::VecDeque;
use std::time::Duration;

use super::Journal;
use crate::error::{Error, Result};
use crate::fs::bell::{Bell, Heard, Listener};
use crate::id::TxnId;
use crate::journal::{self, Commit};
use crate::outbox::{self, Message};
use crate::store::Rows;
use crate::time::Deadline;
use crate::txn;
use crate::wait::StopToken;

/// So many commits are read at once.
const BATCH: usize = 256;
/// And no more than so many changes.
const BATCH_CHANGES: usize = 10_000;
/// How often it looks for what other processes commit, where the kernel does not say when they write.
const LOOK: Duration = Duration::from_millis(20);
/// After a write of somebody's it looks so often, so far apart: what they wrote may be visible a little later.
const LOOKS: u32 = 3;
const QUIET: Duration = Duration::from_millis(5);

/// What was committed since, in order; from [`Journal::changes`]. Ends where nothing more is committed, and goes on when asked again.
#[derive(Debug)]
#[must_use = "iterators are lazy"]
pub struct Changes {
    journal: Journal,
    after: TxnId,
    ahead: VecDeque<Commit>,
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
        Changes { journal: self.clone(), after: since, ahead: VecDeque::new() }
    }

    /// The same, and then waits for more until `stop` is asked to. What this process commits comes at once; what another one does,
    /// within some milliseconds. It costs nothing while nothing is written.
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
        mut work: impl FnMut(&Rows<'_>) -> Result<()>,
    ) -> Result<bool> {
        let fresh = std::cell::Cell::new(false);
        let check = |tx: &crate::store::Tx<'_>| {
            fresh.set(outbox::apply(tx, consumer, message)?);
            Ok(())
        };
        let wait = self.ground().limits.turn_wait;
        txn::write_rows(self.ground(), wait, check, |rows| if fresh.get() { work(rows) } else { Ok(()) })?;
        Ok(fresh.get())
    }
}

impl Iterator for Changes {
    type Item = Result<Commit>;

    fn next(&mut self) -> Option<Result<Commit>> {
        if self.ahead.is_empty() {
            let read = |tx: &crate::store::Tx<'_>| journal::commits_after(tx, self.after, BATCH, BATCH_CHANGES);
            match self.journal.ground().store.peek(read) {
                Ok(commits) => self.ahead.extend(commits),
                Err(error) => return Some(Err(error)),
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
        let deadline = Deadline::after(at_most);
        let bell = self.listener.bell().clone();
        let _woken = self.stop.on_stop(move || bell.ring());
        let mut looks = 0;
        loop {
            if self.stop.requested() {
                return Ok(None);
            }
            if let Some(commit) = self.changes.next().transpose()? {
                return Ok(Some(commit));
            }
            if deadline.passed() {
                return Ok(None);
            }
            let mut wait = deadline.left().min(self.stop.left());
            if looks > 0 {
                wait = wait.min(QUIET);
            } else if !self.listener.hears_others() {
                wait = wait.min(LOOK);
            }
            let heard = self.listener.wait(wait, looks == 0);
            looks = if heard == Heard::Written { LOOKS } else { looks.saturating_sub(1) };
        }
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

    /// It is done with all up to this transaction: durable on return. Never goes back.
    pub fn advance(&self, to: TxnId) -> Result<()> {
        self.advance_with(to, |_| Ok(()))
    }

    /// The same, in one commit with rows of its own: what it makes of a transaction is there exactly once.
    pub fn advance_with(&self, to: TxnId, work: impl FnMut(&Rows<'_>) -> Result<()>) -> Result<()> {
        let wait = self.journal.ground().limits.turn_wait;
        txn::write_rows(self.journal.ground(), wait, |tx| journal::advance(tx, &self.name, to), work)
    }

    /// Forgets it: under this name somebody would begin anew.
    pub fn forget(self) -> Result<()> {
        let wait = self.journal.ground().limits.turn_wait;
        let name = &self.name;
        txn::write_rows(self.journal.ground(), wait, |tx| journal::forget_follower(tx, name).map(drop), |_| Ok(()))
    }
}
