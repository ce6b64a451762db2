//! Items that are recorded by the COMMIT that makes their effects true.

use std::collections::HashSet;
use std::sync::{Arc, Weak};

use super::item::{BuildStraight, Name};
use super::ledger::{Claim, Ledger};
use super::rows;
use super::tries::Wrote;
use crate::error::{Error, Result};
use crate::id::Fence;
use crate::lock::Lease;
use crate::store::Tx;

/// What a transaction records of a run, together with its own changes or not at all.
#[derive(Debug)]
pub(crate) struct Along {
    ledger: Arc<Ledger>,
    /// Not its own: the run's end releases it, whoever still has a transaction.
    lease: Weak<Lease>,
    items: Vec<(Name, Box<[u8]>)>,
    names: HashSet<Name, BuildStraight>,
    cursor: Option<String>,
    /// What the newest try to commit has claimed.
    claimed: Option<Claimed>,
    committed: bool,
    /// Why the commit failed has nothing to do with the items.
    innocent: bool,
}

#[derive(Debug)]
struct Claimed {
    claim: Claim,
    lease: Arc<Lease>,
    fence: Fence,
    wrote: Wrote,
}

impl Along {
    pub(crate) fn new(ledger: Arc<Ledger>, lease: Weak<Lease>) -> Self {
        Self {
            ledger,
            lease,
            items: Vec::new(),
            names: HashSet::default(),
            cursor: None,
            claimed: None,
            committed: false,
            innocent: false,
        }
    }

    /// True when this goes along for that run.
    pub(crate) fn is_of(&self, ledger: &Arc<Ledger>) -> bool {
        Arc::ptr_eq(&self.ledger, ledger)
    }

    /// Takes an item along. Refused when it is done already.
    pub(crate) fn add(&mut self, item: &[u8]) -> Result<()> {
        let name = Name::of(item);
        self.ledger.refuse_done(name, item)?;
        if self.names.insert(name) {
            self.items.push((name, item.into()));
        }
        Ok(())
    }

    pub(crate) fn set_cursor(&mut self, cursor: String) {
        self.cursor = Some(cursor);
    }

    /// Inside COMMIT, and again if that was undone for somebody else's reason.
    pub(crate) fn write(&mut self, tx: &Tx<'_>) -> Result<()> {
        self.unclaim();
        self.ledger.refuse()?;
        let lease = self.lease.upgrade().ok_or_else(|| Error::RunEnded { job: self.ledger.job().to_owned() })?;
        let fence = lease.confirm(tx)?;
        let claim = match self.ledger.claim(&self.items, self.cursor.is_some()) {
            Ok(claim) => claim,
            Err(error) => {
                lease.not_committed();
                return Err(error);
            }
        };
        let first = claim.first;
        // From here on it is claimed, whatever comes of it.
        let claimed = self.claimed.insert(Claimed { claim, lease, fence, wrote: Wrote::default() });
        rows::add_items(tx, self.ledger.run(), first, self.items.iter().map(|(_, item)| &**item))?;
        if let Some(cursor) = &self.cursor {
            rows::set_cursor(tx, self.ledger.run(), cursor)?;
        }
        claimed.wrote = self.ledger.write_tries(tx, &self.items)?;
        Ok(())
    }

    /// They are true.
    pub(crate) fn committed(&mut self) {
        if let Some(Claimed { claim, lease, fence, wrote }) = self.claimed.take() {
            lease.confirmed(fence);
            self.ledger.committed(&self.items, &claim, self.cursor.as_deref(), &wrote);
        }
        self.committed = true;
    }

    /// The effects were true before, by another transaction with the same key: that is recorded alone.
    pub(crate) fn repeated(&mut self) {
        self.unclaim();
        for (name, item) in &self.items {
            let _ = self.ledger.record(*name, item);
        }
        if let Some(cursor) = self.cursor.take() {
            let _ = self.ledger.set_cursor(cursor);
        }
        self.committed = true;
    }

    /// The commit failed. No item is to blame for a full disk, or for somebody who was in the way.
    pub(crate) fn failed(&mut self, error: &Error) {
        self.innocent = error.is_retryable()
            || error.is_full()
            || error.is_lock_lost()
            || error.is_outcome_unknown()
            || matches!(error.errno(), Some(libc::EROFS | libc::EBUSY | libc::EIO))
            || matches!(error, Error::Sql { .. } if error.is_io())
            || matches!(
                error,
                Error::SyncFailed { .. }
                    | Error::Poisoned { .. }
                    | Error::CheckpointUnavailable { .. }
                    | Error::RunEnded { .. }
                    | Error::Closed
            );
    }

    fn unclaim(&mut self) {
        if let Some(Claimed { claim, lease, .. }) = self.claimed.take() {
            lease.not_committed();
            self.ledger.unclaim(&self.items, &claim);
        }
    }
}

impl Drop for Along {
    fn drop(&mut self) {
        if self.committed {
            return;
        }
        self.unclaim();
        for (name, _) in &self.items {
            match self.innocent {
                true => self.ledger.untry(*name),
                false => self.ledger.not_done(*name),
            }
        }
    }
}
