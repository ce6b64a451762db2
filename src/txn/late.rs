//! What is written down a little later than it happened.
//!
//! That a commit was applied, and who holds a lock, are rows that only other processes need, and only if they come by
//! before the next COMMIT, which carries them along. So they cost no SQLite transaction of their own, unless it is quiet.

use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Duration;

use super::ground::Ground;
use crate::id::TxnId;
use crate::journal::Span;

/// What this process knows and the rows do not say yet. The next COMMIT carries it along; what is still there a little
/// later is written in the background. Nothing of it is needed after a crash: recovery can see it for itself.
#[derive(Debug, Default)]
pub(crate) struct Late {
    state: Mutex<LateState>,
    bell: Condvar,
}

#[derive(Debug, Default)]
struct LateState {
    /// Applied by this process, and their rows say `committed`.
    unnoted: Option<Span>,
    /// Being committed, or applied, by threads of this process at this moment.
    coming: Option<Span>,
    /// The background has seen it so before.
    seen: bool,
    awake: bool,
    stop: bool,
}

/// How long what is not written down yet waits for a COMMIT that carries it along.
const LATE: Duration = Duration::from_millis(10);
/// After this many looks without anything to write the background sleeps until it is rung for.
const IDLE_LOOKS: u32 = 20;

impl Late {
    fn state(&self) -> MutexGuard<'_, LateState> {
        self.state.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    /// The transactions that are applied, while their rows do not say so.
    pub(crate) fn unnoted(&self) -> Option<Span> {
        self.state().unnoted
    }

    /// The same, and those that a thread of this process is about to apply: nobody else has to look after them.
    pub(crate) fn known(&self) -> [Option<Span>; 2] {
        let state = self.state();
        [state.unnoted, state.coming]
    }

    /// Somebody is about to commit a transaction, and to apply it.
    pub(super) fn come(&self, txn: TxnId) {
        let mut state = self.state();
        let first = state.coming.map_or(txn, |coming| coming.first.min(txn));
        state.coming = Some(Span { first, last: txn });
    }

    /// It was not committed. Of several that were to share a COMMIT each says so, in any order.
    pub(super) fn gone(&self, txn: TxnId) {
        let mut state = self.state();
        let Some(coming) = state.coming.filter(|coming| (coming.first..=coming.last).contains(&txn)) else { return };
        // IMPORTANT: nothing stays that does not come. Another process may commit under that number, and die.
        state.coming = if txn == coming.last {
            Some(Span { last: TxnId(txn.get() - 1), ..coming })
        } else if txn == coming.first {
            Some(Span { first: TxnId(txn.get() + 1), ..coming })
        } else {
            None
        }
        .filter(|left| left.first <= left.last);
    }

    /// Nobody knows how far an apply came: let whoever comes next look for themselves.
    pub(super) fn forget(&self) {
        let mut state = self.state();
        (state.unnoted, state.coming) = (None, None);
    }

    /// It is applied, or its row says what became of it. Only within a turn, and in commit order.
    pub(super) fn applied(&self, txn: TxnId, noted: bool) {
        let mut state = self.state();
        state.coming = state.coming.filter(|coming| coming.last > txn);
        if let Some(coming) = &mut state.coming {
            coming.first = txn;
        }
        if noted {
            return;
        }
        let first = state.unnoted.map_or(txn, |unnoted| unnoted.first);
        (state.unnoted, state.seen) = (Some(Span { first, last: txn }), false);
        drop(state);
        self.ring();
    }

    /// The rows say of these that they are applied.
    pub(crate) fn noted(&self, span: Span) {
        let mut state = self.state();
        state.unnoted = state.unnoted.filter(|unnoted| *unnoted != span);
    }

    /// Says that something is to be written down. Costs nothing while the background is awake.
    pub(crate) fn ring(&self) {
        let mut state = self.state();
        if !std::mem::replace(&mut state.awake, true) {
            self.bell.notify_all();
        }
    }

    /// Tells the background to end.
    pub(crate) fn stop(&self) {
        self.state().stop = true;
        self.bell.notify_all();
    }

    /// The background's work, until [`Late::stop`].
    pub(crate) fn keep_up(ground: &Ground) {
        let late = &ground.late;
        let mut idle = 0;
        loop {
            let state = late.state();
            let waited = late.bell.wait_while(state, |state| !state.stop && !state.awake);
            let state = waited.unwrap_or_else(|poison| poison.into_inner());
            let waited = late.bell.wait_timeout_while(state, LATE, |state| !state.stop);
            let mut state = waited.unwrap_or_else(|poison| poison.into_inner()).0;
            if state.stop {
                return;
            }
            let locks = ground.locks.see_unrecorded();
            let given_up = !ground.given_up().is_empty();
            let due = locks.due || given_up || (state.unnoted.is_some() && state.seen);
            let any = locks.any || given_up || state.unnoted.is_some();
            state.seen = true;
            idle = if any { 0 } else { idle + 1 };
            state.awake = idle < IDLE_LOOKS;
            drop(state);
            if due
                && let Err(error) = ground.enter().and_then(|mut turn| {
                    ground.write_late(&mut turn)?;
                    ground.locks.record_held(&mut turn)
                })
            {
                tracing::debug!(%error, "notes could not be written; recovery would find out for itself");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_those_that_shared_a_commit_in_vain_none_is_still_expected() {
        for order in [[1, 2, 3], [1, 3, 2], [2, 1, 3], [2, 3, 1], [3, 1, 2], [3, 2, 1]] {
            let late = Late::default();
            (1..=3).for_each(|txn| late.come(TxnId(txn)));
            order.into_iter().for_each(|txn| late.gone(TxnId(txn)));
            assert!(late.known().iter().all(Option::is_none), "{order:?}: {:?}", late.known());
        }
    }
}
