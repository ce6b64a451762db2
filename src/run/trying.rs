//! What a run knows of items that are tried: which may be, which failed, which come next.

use super::item::Name;
use super::ledger::{Ledger, State};
use super::state::TryState;
use super::tries::Try;
use crate::error::Result;
use crate::fault::{Fault, planted};

impl Ledger {
    /// An item is about to be worked on: counts that. True when it has to be written first.
    pub(crate) fn begin(&self, name: Name, item: &[u8]) -> Result<bool> {
        let mut state = self.state();
        state.refuse_try(self, name, item)?;
        state.counts_tries = true;
        if let Some((next, item)) = state.next_one.take().filter(|(next, _)| *next != name) {
            state.tries.count(next, &item, false);
        }
        match state.tries.get_mut(name) {
            Some(known) if known.state == TryState::Trying => {
                known.begun = true;
                Ok(!known.is_saved())
            }
            _ => {
                state.tries.count(name, item, true);
                Ok(!planted(Fault::TryNotCounted))
            }
        }
    }

    /// Refuses an item that is not to be tried: it is done, or set aside, or somebody is at it.
    pub(crate) fn refuse_try(&self, name: Name, item: &[u8]) -> Result<()> {
        self.state().refuse_try(self, name, item)
    }

    /// It was not worked on after all.
    pub(crate) fn untry(&self, name: Name) {
        self.state().tries.uncount(name);
    }

    /// It failed. True when it was set aside.
    pub(crate) fn fail(&self, name: Name, item: &[u8], error: &str) -> bool {
        let mut state = self.state();
        if state.known.contains(&name) {
            return false;
        }
        // What was dropped has been counted. Who never says that an item is tried says so now.
        if state.tries.get(name).is_none_or(|known| known.state == TryState::Failed && !known.dropped) {
            state.tries.count(name, item, true);
        }
        let aside = state.tries.fail(name, error, self.limits().tries);
        self.note_due(&mut state);
        aside
    }

    /// A transaction that was to record it did not.
    pub(crate) fn not_done(&self, name: Name) {
        let mut state = self.state();
        if state.tries.get(name).is_none_or(|known| known.state != TryState::Trying) {
            return;
        }
        match state.stopping {
            Some(_) => state.tries.uncount(name),
            None => {
                state.tries.fail(name, "it was begun and not recorded", self.limits().tries);
                if let Some(known) = state.tries.get_mut(name) {
                    known.dropped = true;
                }
            }
        }
    }

    /// Of an item that the source has: whether it is to be worked on.
    pub(crate) fn wants(&self, name: Name) -> bool {
        let mut state = self.state();
        if state.known.contains(&name) {
            return false;
        }
        match state.tries.get_mut(name) {
            Some(known) => {
                known.seen = true;
                known.state != TryState::Aside
            }
            None => true,
        }
    }

    /// It is the next to be worked on: counts that, if anybody counts.
    pub(crate) fn announce(&self, name: Name, item: &[u8]) {
        let mut state = self.state();
        if state.tries.get(name).is_some_and(|known| known.state != TryState::Failed) {
            return;
        }
        match state.counts_tries {
            true => state.tries.count(name, item, false),
            false => state.next_one = Some((name, item.into())),
        }
    }

    /// It is not the next after all.
    pub(crate) fn unannounce(&self, name: Name) {
        let mut state = self.state();
        state.next_one = state.next_one.take().filter(|(next, _)| *next != name);
        if state.tries.get(name).is_some_and(|known| !known.begun) {
            state.tries.uncount(name);
        }
    }

    /// Somebody begins to go through the items.
    pub(crate) fn begin_pass(&self) -> u64 {
        let mut state = self.state();
        state.passes += 1;
        state.passes
    }

    /// They came to the end of the source, or have `left` before.
    pub(crate) fn end_pass(&self, pass: u64, left: bool) {
        let mut state = self.state();
        state.exhausted |= !left;
        match left {
            true => state.left = state.left.max(Some(pass)),
            false => state.left = state.left.filter(|newest| *newest > pass),
        }
    }

    /// True when somebody has left before the end of the source, and nobody came to it since.
    pub(crate) fn has_left(&self) -> bool {
        self.state().left.is_some()
    }

    /// Items that failed and wait for another try; what the source no longer has is done.
    pub(crate) fn close_tries(&self) -> usize {
        let mut state = self.state();
        if state.exhausted {
            let gone: Vec<_> = state.tries.all().filter(|(_, known)| !known.seen).map(|(name, _)| name).collect();
            for name in gone {
                if let Some(item) = state.tries.item(name) {
                    state.tries.remove(name);
                    state.known.insert(name);
                    state.keep(&item);
                }
            }
        }
        state.uncount_all();
        state.tries.all().filter(|(_, known)| known.state == TryState::Failed).count()
    }

    /// How many items are set aside.
    pub(crate) fn aside(&self) -> usize {
        self.state().tries.all().filter(|(_, known)| known.state == TryState::Aside).count()
    }

    /// Nothing more is tried in this session. What was begun was not tried, or else it failed with its session.
    pub(crate) fn close(&self, why: Option<&str>) {
        let mut state = self.state();
        if let Some(why) = why {
            let begun: Vec<_> = state.tries.all().filter(|(_, known)| known.begun).map(|(name, _)| name).collect();
            for name in begun {
                state.tries.fail(name, why, self.limits().tries);
            }
        }
        state.uncount_all();
    }
}

impl State {
    fn refuse_try(&self, ledger: &Ledger, name: Name, item: &[u8]) -> Result<()> {
        self.refuse(ledger)?;
        self.refuse_done(ledger, name, item)?;
        match self.tries.get(name) {
            Some(Try { state: TryState::Aside, tries, .. }) => {
                let reason = format!("it was set aside after {tries} tries; see `journalctl-kb runs show`");
                Err(ledger.refused(item, reason))
            }
            Some(Try { begun: true, .. }) => Err(ledger.refused(item, "somebody is at it already".into())),
            _ => Ok(()),
        }
    }

    /// What is being tried was not.
    fn uncount_all(&mut self) {
        let trying = self.tries.all().filter(|(_, known)| known.state == TryState::Trying).map(|(name, _)| name);
        for name in trying.collect::<Vec<_>>() {
            self.tries.uncount(name);
        }
    }
}
