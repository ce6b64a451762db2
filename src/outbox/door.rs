//! Where who commits a message meets who publishes it, within one process.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Weak};
use std::time::Duration;

use crate::error::Result;
use crate::fs::bell::{Bell, WeakBell};
use crate::id::TxnId;
use crate::time::Deadline;

thread_local! {
    /// This thread is a drainer's.
    static PUBLISHES: Cell<bool> = const { Cell::new(false) };
}

/// What this thread commits from now on waits at no door: it is the one that publishes.
pub(crate) fn wait_at_no_door() {
    PUBLISHES.set(true);
}

/// The doors of this process: one for each drainer, and the bells of those who follow the changes.
#[derive(Debug, Default)]
pub(crate) struct Doors {
    doors: Mutex<Vec<Weak<Door>>>,
    /// Those who follow all changes.
    followers: Mutex<Vec<WeakBell>>,
    /// How many these are, about: mostly none.
    following: AtomicUsize,
}

/// The door of a drainer.
#[derive(Debug)]
pub(crate) struct Door {
    topic: String,
    pub(crate) bell: Bell,
    /// How long who commits waits for the first try of its message.
    patience: Duration,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// The newest transaction whose messages were all tried once.
    tried: i64,
    /// The sink cannot be reached, or somebody else drains: nobody is to wait.
    shut: bool,
}

impl Doors {
    pub(crate) fn open(&self, topic: &str, patience: Duration) -> Result<Arc<Door>> {
        let door = Arc::new(Door {
            topic: topic.to_owned(),
            bell: Bell::new()?,
            patience,
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let mut doors = self.doors();
        doors.retain(|door| door.strong_count() > 0);
        doors.push(Arc::downgrade(&door));
        Ok(door)
    }

    fn doors(&self) -> MutexGuard<'_, Vec<Weak<Door>>> {
        self.doors.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    /// Messages of these topics were committed with `txn`: tells who publishes them, and waits a little for the first try.
    pub(crate) fn knock<'t>(&self, topics: impl Iterator<Item = &'t str> + Clone, txn: TxnId) {
        let doors: Vec<Arc<Door>> = {
            let doors = self.doors();
            let open = doors.iter().filter_map(Weak::upgrade);
            open.filter(|door| topics.clone().any(|topic| topic == door.topic)).collect()
        };
        doors.iter().for_each(|door| door.bell.ring());
        // A publisher that commits would wait for itself, or for one that waits for it.
        if !PUBLISHES.get() {
            doors.iter().for_each(|door| door.wait(txn));
        }
    }
}

impl Doors {
    /// Has this bell ring after every commit, for as long as somebody has it.
    pub(crate) fn follow(&self, bell: &Bell) {
        let mut followers = self.followers();
        followers.retain(WeakBell::is_heard);
        followers.push(bell.downgrade());
        self.following.store(followers.len(), Ordering::Release);
    }

    /// Something was committed.
    pub(crate) fn committed(&self) {
        if self.following.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut followers = self.followers();
        followers.retain(|bell| bell.ring());
        self.following.store(followers.len(), Ordering::Release);
    }

    fn followers(&self) -> MutexGuard<'_, Vec<WeakBell>> {
        self.followers.lock().unwrap_or_else(|poison| poison.into_inner())
    }
}

impl Door {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    fn wait(&self, txn: TxnId) {
        let deadline = Deadline::after(self.patience);
        let mut state = self.state();
        while !state.shut && state.tried < txn.get() && !deadline.passed() {
            let waited = self.changed.wait_timeout(state, deadline.left());
            state = waited.unwrap_or_else(|poison| poison.into_inner()).0;
        }
    }

    /// All messages up to this transaction's were tried; or nobody is to wait, as the sink cannot be reached.
    pub(crate) fn tell(&self, tried: Option<i64>, shut: bool) {
        let mut state = self.state();
        state.tried = state.tried.max(tried.unwrap_or(0));
        state.shut = shut;
        drop(state);
        self.changed.notify_all();
    }
}
