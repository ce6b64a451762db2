//! Items that are recorded by the COMMIT that makes their effects true.

use std::sync::Arc;

use super::item::Name;
use super::ledger::Ledger;
use super::rows;
use super::tries::Wrote;
use crate::error::Result;
use crate::id::Fence;
use crate::lock::Lease;
use crate::store::Tx;

/// What a transaction records of a run, together with its own changes or not at all.
#[derive(Debug)]
pub(crate) struct Along {
    ledger: Arc<Ledger>,
    lease: Arc<Lease>,
    items: Vec<(Name, Box<[u8]>)>,
    cursor: Option<String>,
    /// What the newest try to commit has written, under which fence.
    wrote: Option<(Wrote, Fence)>,
    committed: bool,
}

impl Along {
    pub(crate) fn new(ledger: Arc<Ledger>, lease: Arc<Lease>) -> Self {
        Self { ledger, lease, items: Vec::new(), cursor: None, wrote: None, committed: false }
    }

    /// True when this goes along for that run.
    pub(crate) fn is_of(&self, ledger: &Arc<Ledger>) -> bool {
        Arc::ptr_eq(&self.ledger, ledger)
    }

    /// Takes an item along. Refused when it is done already.
    pub(crate) fn add(&mut self, item: &[u8]) -> Result<()> {
        let name = Name::of(item);
        self.ledger.refuse_done(name, item)?;
        if self.items.iter().all(|(known, _)| *known != name) {
            self.items.push((name, item.into()));
        }
        Ok(())
    }

    pub(crate) fn set_cursor(&mut self, cursor: String) {
        self.cursor = Some(cursor);
    }

    /// Inside COMMIT, and again if that was undone for somebody else's reason.
    pub(crate) fn write(&mut self, tx: &Tx<'_>) -> Result<()> {
        if let Some(error) = self.ledger.over() {
            return Err(error);
        }
        let fence = self.lease.confirm(tx)?;
        let n = self.ledger.claim(&self.items, self.wrote.is_some())?;
        // From here on it is claimed, whatever comes of it.
        self.wrote = Some((Wrote::default(), fence));
        rows::add_items(tx, self.ledger.run(), n, self.items.iter().map(|(_, item)| &**item))?;
        if let Some(cursor) = &self.cursor {
            rows::set_cursor(tx, self.ledger.run(), cursor)?;
        }
        let wrote = self.ledger.write_tries(tx, &self.items)?;
        self.wrote = Some((wrote, fence));
        Ok(())
    }

    /// They are true.
    pub(crate) fn committed(&mut self) {
        if let Some((wrote, fence)) = self.wrote.take() {
            self.lease.confirmed(fence);
            self.ledger.committed(&self.items, &wrote);
        }
        self.committed = true;
    }

    /// The effects were true before, by another transaction with the same key: that is recorded alone.
    pub(crate) fn repeated(&mut self) {
        for (name, item) in &self.items {
            self.ledger.unclaim(&[(*name, Box::default())]);
            let _ = self.ledger.record(*name, item);
        }
        self.wrote = None;
        self.committed = true;
    }
}

impl Drop for Along {
    fn drop(&mut self) {
        if self.committed {
            return;
        }
        if self.wrote.is_some() {
            self.lease.not_committed();
            self.ledger.unclaim(&self.items);
        }
        for (name, _) in &self.items {
            self.ledger.not_done(*name);
        }
    }
}
