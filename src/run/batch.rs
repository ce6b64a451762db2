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
    cursor: Option<String>,
}

impl Ledger {
    /// Takes what is not banked. None when there is nothing.
    pub(crate) fn take(&self) -> Option<Batch<'_>> {
        let mut state = self.state();
        if state.buffer.is_empty() && state.cursor.is_none() && !state.tries.has_news() {
            return None;
        }
        let (items, cursor) = (std::mem::take(&mut state.buffer), state.cursor.take());
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
        if let Some(cursor) = &self.cursor {
            rows::set_cursor(tx, run, cursor)?;
        }
        self.ledger.write_tries(tx, &[])
    }

    /// It is durable. Answers how many items that were.
    pub(crate) fn banked(mut self, wrote: &Wrote) -> u64 {
        let banked = std::mem::take(&mut self.items).len() as u64;
        self.cursor = None;
        let mut state = self.ledger.state();
        state.banked += banked;
        state.flying -= banked;
        (state.flushed, state.failures) = (true, 0);
        state.tries.wrote(wrote);
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
        state.cursor = state.cursor.take().or_else(|| self.cursor.take());
        state.due.get_or_insert_with(|| Deadline::after(self.ledger.limits().every));
    }
}
