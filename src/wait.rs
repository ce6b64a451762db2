//! Waiting: until when, who may call it off, and what is told meanwhile.

#[cfg(feature = "signals")]
mod signals;

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use crate::time::Deadline;

/// Asks running or waiting work to stop, from another thread or from within. All clones are one.
///
/// Nothing is stopped by force: work looks at it where it can stop, and whoever waits for a lock with it
/// ([`Acquire::cancel`](crate::Acquire::cancel)) is woken.
#[derive(Clone, Default)]
pub struct StopToken {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Until when nobody needs to ask, where there is an end to that.
    deadline: Option<Deadline>,
    requested: AtomicBool,
    state: Mutex<State>,
    bell: Condvar,
    numbers: AtomicU64,
}

#[derive(Default)]
struct State {
    reason: Option<String>,
    /// To be called when it is asked to stop.
    wakers: Vec<(u64, Waker)>,
}

type Waker = Arc<dyn Fn() + Send + Sync>;

impl StopToken {
    /// A token that nobody has asked to stop yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// A token that asks to stop by itself when this time is over.
    pub fn after(time: Duration) -> Self {
        let inner = Inner { deadline: Some(Deadline::after(time)), ..Inner::default() };
        Self { inner: Arc::new(inner) }
    }

    /// Asks to stop, and says why. Only the first reason counts.
    pub fn stop(&self, reason: impl Into<String>) {
        let mut state = self.state();
        if state.reason.is_some() {
            return;
        }
        state.reason = Some(reason.into());
        self.inner.requested.store(true, Ordering::Release);
        let wakers = std::mem::take(&mut state.wakers);
        drop(state);
        self.inner.bell.notify_all();
        // Without the mutex: a waker takes that of whoever waits.
        wakers.iter().for_each(|(_, wake)| wake());
    }

    /// True once somebody has asked to stop. Costs next to nothing to ask.
    pub fn requested(&self) -> bool {
        if self.inner.requested.load(Ordering::Acquire) {
            return true;
        }
        let Some(deadline) = self.inner.deadline.filter(Deadline::passed) else { return false };
        // Nobody is woken: who waits, waits no longer than until then.
        self.state().reason.get_or_insert_with(|| format!("its time was over, after {:?}", deadline.waited()));
        self.inner.requested.store(true, Ordering::Release);
        true
    }

    /// Why to stop; none while nobody has asked to.
    pub fn reason(&self) -> Option<String> {
        self.requested();
        self.state().reason.clone()
    }

    /// After how long it asks by itself, at the latest.
    pub(crate) fn left(&self) -> Duration {
        self.inner.deadline.as_ref().map_or(Duration::MAX, Deadline::left)
    }

    /// Waits until somebody asks to stop, at most this long. True when somebody has.
    pub fn wait(&self, at_most: Duration) -> bool {
        let deadline = Deadline::after(at_most.min(self.left()));
        let mut state = self.state();
        while state.reason.is_none() && !deadline.passed() {
            state = match self.inner.bell.wait_timeout(state, deadline.left()) {
                Ok((state, _)) => state,
                Err(poison) => poison.into_inner().0,
            };
        }
        drop(state);
        self.requested()
    }

    /// Has `wake` called when somebody asks to stop, at once if that was before; until the answer is dropped.
    pub(crate) fn on_stop(&self, wake: impl Fn() + Send + Sync + 'static) -> OnStop {
        let number = self.inner.numbers.fetch_add(1, Ordering::Relaxed);
        let wake: Waker = Arc::new(wake);
        let mut state = self.state();
        match state.reason {
            None => state.wakers.push((number, wake)),
            Some(_) => {
                drop(state);
                wake();
            }
        }
        OnStop { token: self.clone(), number }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(|poison| poison.into_inner())
    }
}

impl fmt::Debug for StopToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StopToken").field("reason", &self.reason()).finish()
    }
}

/// While this lives, somebody is woken by a [`StopToken`].
#[derive(Debug)]
pub(crate) struct OnStop {
    token: StopToken,
    number: u64,
}

impl Drop for OnStop {
    fn drop(&mut self) {
        self.token.state().wakers.retain(|(number, _)| *number != self.number);
    }
}

/// What somebody who waits is told now and then: how long it has been.
pub(crate) type Tell<'p> = &'p mut dyn FnMut(Duration);

/// How somebody waits: until when, who may call it off, and what is told meanwhile.
pub(crate) struct Patience<'p> {
    deadline: Deadline,
    cancel: Option<StopToken>,
    tell: Option<(Duration, Tell<'p>)>,
    /// After how long to tell next.
    next: Duration,
}

impl<'p> Patience<'p> {
    pub(crate) fn until(deadline: Deadline) -> Self {
        Self { deadline, cancel: None, tell: None, next: Duration::MAX }
    }

    /// Called off by this.
    pub(crate) fn cancelled_by(mut self, cancel: Option<StopToken>) -> Self {
        self.cancel = cancel;
        self
    }

    /// Told at once when it begins to wait, and then each time this has gone by.
    pub(crate) fn telling(mut self, every: Duration, tell: Tell<'p>) -> Self {
        (self.tell, self.next) = (Some((every.max(SHORTEST), tell)), Duration::ZERO);
        self
    }

    /// True when it is of no use to wait any longer.
    pub(crate) fn is_over(&self) -> bool {
        self.deadline.passed() || self.cancelled().is_some()
    }

    /// Who called it off, if somebody has.
    pub(crate) fn cancelled(&self) -> Option<&StopToken> {
        self.cancel.as_ref().filter(|cancel| cancel.requested())
    }

    pub(crate) fn cancel(&self) -> Option<&StopToken> {
        self.cancel.as_ref()
    }

    pub(crate) fn waited(&self) -> Duration {
        self.deadline.waited()
    }

    /// How long to wait before the next call of [`Patience::tell`].
    pub(crate) fn slice(&self) -> Duration {
        let called_off = self.cancel.as_ref().map_or(Duration::MAX, StopToken::left);
        self.deadline.left().min(called_off).min(self.next.saturating_sub(self.waited()))
    }

    /// Tells how long it has been, where that is due. Without any mutex: what is told may take its time.
    pub(crate) fn tell(&mut self) {
        let waited = self.waited();
        if let Some((every, tell)) = &mut self.tell
            && waited >= self.next
        {
            tell(waited);
            self.next = self.deadline.waited().saturating_add(*every);
        }
    }
}

/// Nobody is told more often than this.
const SHORTEST: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_is_woken_and_the_first_reason_counts() {
        let token = StopToken::new();
        assert!(!token.requested() && !token.wait(Duration::from_millis(1)));
        let woken = Arc::new(AtomicU64::new(0));
        let count = |woken: &Arc<AtomicU64>| {
            let woken = Arc::clone(woken);
            move || {
                woken.fetch_add(1, Ordering::SeqCst);
            }
        };
        let _kept = token.on_stop(count(&woken));
        drop(token.on_stop(count(&woken)));
        let other = token.clone();
        #[expect(clippy::disallowed_methods, reason = "a thread of a test needs no name")]
        let stopper = std::thread::spawn(move || other.stop("enough"));
        assert!(token.wait(Duration::from_secs(60)));
        stopper.join().unwrap();
        token.stop("again");
        assert_eq!((token.reason().as_deref(), woken.load(Ordering::SeqCst)), (Some("enough"), 1));
        let _late = token.on_stop(count(&woken));
        assert_eq!(woken.load(Ordering::SeqCst), 2, "it is asked to stop already");
    }

    #[test]
    fn who_waits_is_told_at_once_and_then_now_and_then() {
        let mut told = Vec::new();
        let mut tell = |waited: Duration| told.push(waited);
        let deadline = Deadline::after(Duration::from_secs(60));
        let mut patience = Patience::until(deadline).telling(Duration::from_secs(30), &mut tell);
        assert_eq!(patience.slice(), Duration::ZERO);
        patience.tell();
        patience.tell();
        assert!(patience.slice() > Duration::from_secs(20) && !patience.is_over());
        let token = StopToken::new();
        let mut patience = patience.cancelled_by(Some(token.clone()));
        token.stop("no more");
        assert!(patience.is_over() && patience.cancelled().is_some());
        patience.tell();
        assert_eq!(told.len(), 1);
    }
}
