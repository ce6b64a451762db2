//! All that is recorded is replaced at once, while other threads go on recording.

use std::collections::HashSet;

use super::item::{BuildStraight, Name};
use super::ledger::{Ledger, State};
use super::tries::Wrote;
use crate::error::Result;

/// A replacement on its way. What is recorded before its COMMIT goes with it; what is recorded after it stays.
#[derive(Debug)]
pub(super) struct Replacing {
    items: HashSet<Name, BuildStraight>,
    /// The number of the first of them, once it is known: what has a smaller one is replaced.
    first: Option<i64>,
    /// So much of the buffer was there by then.
    buffered: usize,
    /// Committed by transactions since.
    since: Vec<Name>,
}

impl Ledger {
    /// These are about to replace what is recorded. Nobody flushes meanwhile.
    pub(crate) fn begin_replace(&self, items: HashSet<Name, BuildStraight>) -> Result<()> {
        let mut state = self.state();
        state.refuse(self)?;
        state.replacing = Some(Replacing { items, first: None, buffered: 0, since: Vec::new() });
        Ok(())
    }

    /// Inside COMMIT, and again if that was undone: the number of the first.
    pub(crate) fn place_replaced(&self) -> i64 {
        let mut state = self.state();
        let (first, buffered) = (state.next, state.buffer.len());
        if let Some(replacing) = &mut state.replacing {
            (replacing.first, replacing.buffered) = (Some(first), buffered);
            replacing.since.clear();
            let items = replacing.items.len() as i64;
            state.next += items;
        }
        first
    }

    /// It is durable, or it is not.
    pub(crate) fn replaced(&self, wrote: Option<&Wrote>) {
        let mut state = self.state();
        let Some(Replacing { items, first, buffered, since }) = state.replacing.take() else { return };
        let (Some(wrote), Some(first)) = (wrote, first) else { return };
        items.iter().for_each(|name| state.tries.removed(*name));
        state.tries.wrote(wrote);
        state.replaced_before = first;
        state.banked = (items.len() + since.len()) as u64;
        state.known = items;
        state.known.extend(since);
        let later = state.buffer.split_off(buffered);
        (state.buffer, state.bytes, state.failures) = (Vec::new(), 0, 0);
        for item in later {
            let name = Name::of(&item);
            if state.known.insert(name) {
                state.keep(item);
            }
        }
    }
}

impl State {
    /// True when it is among what replaces all that is recorded.
    pub(super) fn is_replacing(&self, name: Name) -> bool {
        self.replacing.as_ref().is_some_and(|replacing| replacing.first.is_some() && replacing.items.contains(&name))
    }

    /// A transaction has committed an item under this number.
    pub(super) fn bank(&mut self, n: i64, name: Name) {
        if n < self.replaced_before {
            return;
        }
        if let Some(replacing) =
            self.replacing.as_mut().filter(|replacing| replacing.first.is_some_and(|first| n >= first))
        {
            replacing.since.push(name);
        }
        self.known.insert(name);
        self.banked += 1;
    }
}
