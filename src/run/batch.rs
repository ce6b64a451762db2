//! What is recorded alone, on its way into the database.

use super::item::Items;
use super::ledger::{Ledger, ROW};
use super::rows;
use super::tries::Wrote;
use crate::error::Result;
use crate::fault::{Fault, planted};
use crate::store::Tx;
use crate::time::Deadline;

/// What a flush writes. Dropped without [`Batch::banked`] it goes back.
#[derive(Debug)]
pub(crate) struct Batch<'l> {
    ledger: &'l Ledger,
    first: i64,
    items: Items,
    cursor: Option<(String, u64)>,
}

impl Ledger {
    /// Takes what is not banked. None when there is nothing.
    pub(crate) fn take(&self) -> Option<Batch<'_>> {
        let mut state = self.state();
        // As it is now: a newer one does not become durable before what was recorded before it.
        let cursor = state.cursor.news().map(|(text, change)| (text.clone(), change));
        if state.buffer.is_empty() && cursor.is_none() && !state.tries.has_news() {
            return None;
        }
        let items = std::mem::take(&mut state.buffer);
        let first = state.next;
        state.next += items.len() as i64;
        (state.bytes, state.due) = (0, None);
        state.flying += items.len() as u64;
        Some(Batch { ledger: self, first, items, cursor })
    }
}

impl Batch<'_> {
    /// Writes it all. May run more than once.
    pub(crate) fn write(&self, tx: &Tx<'_>) -> Result<Wrote> {
        let run = self.ledger.run();
        rows::add_items(tx, run, self.first, self.items.iter())?;
        let cursor = self.cursor.as_ref().filter(|(_, change)| self.ledger.state().cursor.is_due(*change));
        if let Some((cursor, _)) = cursor {
            rows::set_cursor(tx, run, cursor)?;
        }
        let mut wrote = self.ledger.write_tries(tx, &[])?;
        wrote.cursor = cursor.map(|(_, change)| *change);
        Ok(wrote)
    }

    /// It is durable. Answers how many items that were.
    pub(crate) fn banked(mut self, wrote: &Wrote) -> u64 {
        let banked = std::mem::take(&mut self.items).len() as u64;
        let mut state = self.ledger.state();
        state.banked += banked;
        state.flying -= banked;
        (state.flushed, state.failures) = (true, 0);
        state.tries.wrote(wrote);
        state.cursor.saved(wrote.cursor.unwrap_or(0));
        self.cursor = None;
        banked
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        if self.items.is_empty() && self.cursor.is_none() {
            return;
        }
        let mut state = self.ledger.state();
        let mut items = std::mem::take(&mut self.items);
        state.flying -= items.len() as u64;
        state.bytes += items.bytes() + items.len() * ROW;
        if !planted(Fault::FailedFlushForgotten) {
            // Before what was recorded since.
            items.append(&state.buffer);
            state.buffer = items;
        }
        state.due.get_or_insert_with(|| Deadline::after(self.ledger.limits().every));
    }
}
