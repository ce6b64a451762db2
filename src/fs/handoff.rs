//! Where a thread that waits in the kernel meets the caller it waits for: what it got is taken over, or given back.

use std::time::Duration;

use super::sync::{Condvar, Mutex, MutexGuard};

/// A place for one value.
#[derive(Debug)]
pub(super) struct Handoff<T> {
    state: Mutex<State<T>>,
    bell: Condvar,
}

#[derive(Debug)]
enum State<T> {
    Waiting,
    Here(T),
    /// Nobody wants it any more.
    GivenUp,
    /// It came when nobody wanted it, and was given back.
    Gone,
}

impl<T> Handoff<T> {
    pub(super) fn new() -> Self {
        Self { state: Mutex::new(State::Waiting), bell: Condvar::new() }
    }

    /// Gives the value to who waits for it; back, when they have given up.
    pub(super) fn give(&self, value: T) -> Result<(), T> {
        let mut state = self.state();
        if matches!(*state, State::GivenUp | State::Gone) {
            *state = State::Gone;
            return Err(value);
        }
        *state = State::Here(value);
        drop(state);
        self.bell.notify_all();
        Ok(())
    }

    /// Waits for the value, at most this long, or until somebody [nudges](Self::nudge).
    pub(super) fn take(&self, at_most: Duration, is_over: impl Fn() -> bool) -> Option<T> {
        let mut state = self.state();
        if matches!(*state, State::Waiting) && !is_over() {
            state = match self.bell.wait_timeout(state, at_most) {
                Ok((state, _)) => state,
                Err(poison) => poison.into_inner().0,
            };
        }
        Self::taken(&mut state)
    }

    /// Wants it no more. What has come already is taken all the same: from here on the giver keeps it.
    pub(super) fn give_up(&self) -> Option<T> {
        let mut state = self.state();
        let here = Self::taken(&mut state);
        *state = State::GivenUp;
        here
    }

    /// Wants it once more, after giving up. False when it came meanwhile, and was given back.
    pub(super) fn want_again(&self) -> bool {
        let mut state = self.state();
        let is_to_come = matches!(*state, State::GivenUp);
        if is_to_come {
            *state = State::Waiting;
        }
        is_to_come
    }

    /// Has who waits look again. Not to be called while holding anything they need for that.
    pub(super) fn nudge(&self) {
        // Through the mutex: they have looked, and wait, or will see it when they look.
        drop(self.state());
        self.bell.notify_all();
    }

    fn taken(state: &mut State<T>) -> Option<T> {
        match std::mem::replace(state, State::Waiting) {
            State::Here(value) => Some(value),
            other => {
                *state = other;
                None
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(|poison| poison.into_inner())
    }
}
