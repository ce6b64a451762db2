//! All that is recorded is replaced at once, while other threads go on recording.

use std::collections::HashSet;

use super::item::{BuildStraight, Items, Name};
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
        (state.buffer, state.bytes, state.failures) = (Items::default(), 0, 0);
        for item in later.iter() {
            let name = Name::of(item);
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::ledger::Limits;
    use super::*;
    use crate::id::RunId;

    fn ledger() -> Ledger {
        let limits = Limits {
            items: 9,
            bytes: 999,
            every: Duration::MAX,
            tries: 3,
            retries: 0,
            pause: Duration::ZERO,
            failures: 3,
        };
        Ledger::new(RunId(1), "a", limits, 0, Vec::new())
    }

    fn named(item: &str) -> (Name, Box<[u8]>) {
        (Name::of(item.as_bytes()), item.as_bytes().into())
    }

    /// Threads learn of their COMMITs in any order; what counts is the order of the COMMITs.
    #[test]
    fn what_was_committed_before_is_replaced_and_what_was_committed_after_stays() {
        for told_first in [true, false] {
            let ledger = ledger();
            let (before, after) = ([named("before")], [named("after")]);
            ledger.begin_replace([named("new").0].into_iter().collect()).unwrap();
            let claim_before = ledger.claim(&before, false).unwrap();
            let first = ledger.place_replaced();
            let claim_after = ledger.claim(&after, false).unwrap();
            assert!(claim_before.first < first && first < claim_after.first);
            let told = || {
                ledger.committed(&before, &claim_before, None, &Wrote::default());
                ledger.committed(&after, &claim_after, None, &Wrote::default());
            };
            if told_first {
                told();
            }
            ledger.replaced(Some(&Wrote::default()));
            if !told_first {
                told();
            }
            let done = ["before", "new", "after"].map(|item| ledger.is_done(named(item).0));
            assert_eq!((done, ledger.banked()), ([false, true, true], 2), "{told_first}");
        }
    }

    #[test]
    fn what_is_among_the_replacement_is_recorded_by_nobody_else() {
        let ledger = ledger();
        let new = named("new");
        ledger.record(named("old").0, b"old").unwrap();
        ledger.begin_replace([new.0].into_iter().collect()).unwrap();
        ledger.place_replaced();
        assert!(ledger.claim(std::slice::from_ref(&new), false).is_err());
        ledger.record(new.0, &new.1).unwrap();
        ledger.record(named("later").0, b"later").unwrap();
        ledger.replaced(Some(&Wrote::default()));
        assert_eq!(ledger.state().buffer.iter().collect::<Vec<_>>(), [&*named("later").1]);
        assert_eq!(["old", "new", "later"].map(|item| ledger.is_done(named(item).0)), [false, true, true]);
    }
}
