//! First come, first served, name by name: who of this process has a name, and who is next.
//!
//! A place that wants the name alone is due when it is the first; one that shares, when all before it share too. So a
//! waiting writer is not overtaken by readers that come after it.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use super::sync::{Arc, Condvar, Mutex, MutexGuard};

/// Who waits, as far as a queue has to know.
pub(super) trait Waiter {
    /// True when it is of no use to wait any longer.
    fn is_over(&self) -> bool;
    /// How long to wait before the next [`Waiter::pause`].
    fn slice(&self) -> Duration;
    /// Called now and then while waiting, without any mutex.
    fn pause(&mut self);
}

/// What is kept with a name.
pub(super) trait Kept: Default {
    /// True when it is to stay although nobody has the name; `names` are known.
    fn stays(&self, names: usize) -> bool;
}

/// The queues of all names that somebody has, or wants, or with which something is kept.
#[derive(Debug)]
pub(super) struct Queues<K> {
    names: Mutex<HashMap<String, Name<K>>>,
}

#[derive(Debug, Default)]
struct Name<K> {
    places: VecDeque<Place>,
    kept: K,
}

#[derive(Debug)]
struct Place {
    number: u64,
    shares: bool,
    /// Rung when it is due, or to have it look again. Only those who wait have one.
    bell: Option<Arc<Condvar>>,
}

/// A place in the queue of a name, which is due from its beginning to its end. Leaves on drop.
#[derive(Debug)]
pub(super) struct Ticket<K: Kept> {
    queues: Arc<Queues<K>>,
    name: String,
    number: u64,
}

impl<K: Kept> Queues<K> {
    pub(super) fn new() -> Self {
        Self { names: Mutex::new(HashMap::new()) }
    }

    /// Waits for a name. None when the waiter had enough of it.
    pub(super) fn wait(self: &Arc<Self>, name: &str, shares: bool, waiter: &mut impl Waiter) -> Option<Ticket<K>> {
        let mut names = self.names();
        let entry = names.entry(name.to_owned()).or_default();
        let number = entry.places.back().map_or(0, |last| last.number + 1);
        entry.places.push_back(Place { number, shares, bell: None });
        let ticket = Ticket { queues: Arc::clone(self), name: name.to_owned(), number };
        let mut bell = None;
        loop {
            let entry = names.get_mut(name)?;
            if entry.is_due(number) {
                return Some(ticket);
            }
            if waiter.is_over() {
                // The ticket takes the mutex as it goes.
                drop(names);
                return None;
            }
            let bell = bell.get_or_insert_with(|| Arc::new(Condvar::new()));
            if let Some(place) = entry.places.iter_mut().find(|place| place.number == number) {
                place.bell.get_or_insert_with(|| Arc::clone(bell));
            }
            let (held, pauses) = match bell.wait_timeout(names, waiter.slice()) {
                Ok((names, timeout)) => (names, timeout.timed_out()),
                Err(poison) => (poison.into_inner().0, false),
            };
            names = held;
            if pauses {
                drop(names);
                waiter.pause();
                names = self.names();
            }
        }
    }

    /// Has everybody who waits look again. Not to be called while holding anything they need for that.
    pub(super) fn nudge(&self) {
        for name in self.names().values() {
            name.places.iter().filter_map(|place| place.bell.as_ref()).for_each(|bell| bell.notify_all());
        }
    }

    /// What is kept with each name.
    pub(super) fn each(&self, mut look: impl FnMut(&str, &mut K)) {
        self.names().iter_mut().for_each(|(name, entry)| look(name, &mut entry.kept));
    }

    /// Forgets the names that nobody has or wants, and with which nothing is kept.
    pub(super) fn sweep(&self) {
        let mut names = self.names();
        let known = names.len();
        names.retain(|_, name| !name.places.is_empty() || name.kept.stays(known));
    }

    /// What is kept with a name; none when nobody has it and nothing is.
    pub(super) fn with<T>(&self, name: &str, look: impl FnOnce(&mut K) -> T) -> Option<T> {
        self.names().get_mut(name).map(|entry| look(&mut entry.kept))
    }

    fn names(&self) -> MutexGuard<'_, HashMap<String, Name<K>>> {
        self.names.lock().unwrap_or_else(|poison| poison.into_inner())
    }
}

impl<K> Name<K> {
    fn is_due(&self, number: u64) -> bool {
        let mut before = self.places.iter();
        match before.next() {
            Some(first) if first.number == number => true,
            Some(first) if first.shares => before.take_while(|place| place.shares).any(|place| place.number == number),
            _ => false,
        }
    }
}

impl<K: Kept> Ticket<K> {
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// What is kept with the name.
    pub(super) fn with<T>(&self, look: impl FnOnce(&mut K) -> T) -> Option<T> {
        self.queues.with(&self.name, look)
    }
}

impl<K: Kept> Drop for Ticket<K> {
    fn drop(&mut self) {
        let mut names = self.queues.names();
        let known = names.len();
        let Some(entry) = names.get_mut(&self.name) else { return };
        entry.places.retain(|place| place.number != self.number);
        let due = entry.places.iter().filter(|place| entry.is_due(place.number));
        due.filter_map(|place| place.bell.as_ref()).for_each(|bell| bell.notify_all());
        if entry.places.is_empty() && !entry.kept.stays(known) {
            names.remove(&self.name);
        }
    }
}
