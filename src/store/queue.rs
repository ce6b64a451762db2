//! A thing that one thread at a time has, and the queue for it: first come, first served.
//!
//! Whoever has it hands it to the next one, which alone is woken. So nobody can come in between, and nobody wakes for
//! nothing. A place in the queue is also where its thread is told, later, what became of what it did.

use std::collections::VecDeque;
use std::time::Duration;

use super::sync::{Arc, Condvar, Mutex, MutexGuard};

/// The thing, while nobody has it, and those who wait for it. With a place comes what its thread wants.
#[derive(Debug)]
pub(crate) struct Queue<T, W> {
    state: Mutex<State<T, W>>,
    most: usize,
}

#[derive(Debug)]
struct State<T, W> {
    /// There when nobody has it; then nobody waits either.
    idle: Option<T>,
    waiting: VecDeque<(Arc<Place<T>>, W)>,
}

/// Where one thread waits to be handed something.
#[derive(Debug)]
pub(crate) struct Place<T> {
    handed: Mutex<Option<T>>,
    bell: Condvar,
}

/// What came of asking for the thing.
#[derive(Debug)]
pub(crate) enum Asked<T> {
    /// It was free.
    Here(T),
    /// It will be handed to this place.
    Wait(Arc<Place<T>>),
    /// Too many wait already.
    Full,
}

impl<T> Place<T> {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { handed: Mutex::new(None), bell: Condvar::new() })
    }

    /// Hands something to the one thread that waits here.
    pub(crate) fn hand(&self, thing: T) {
        *lock(&self.handed) = Some(thing);
        self.bell.notify_one();
    }

    /// Waits until something is handed over.
    pub(crate) fn wait(&self) -> T {
        let mut handed = lock(&self.handed);
        loop {
            match handed.take() {
                Some(thing) => return thing,
                None => handed = self.bell.wait(handed).unwrap_or_else(|poison| poison.into_inner()),
            }
        }
    }

    fn wait_while_left(&self, left: impl Fn() -> Duration) -> Option<T> {
        let mut handed = lock(&self.handed);
        loop {
            if let Some(thing) = handed.take() {
                return Some(thing);
            }
            let left = left();
            if left.is_zero() {
                return None;
            }
            let waited = self.bell.wait_timeout(handed, left);
            handed = waited.unwrap_or_else(|poison| poison.into_inner()).0;
        }
    }
}

impl<T, W> Queue<T, W> {
    /// A queue for a thing that is free, for at most so many who wait.
    pub(crate) fn new(thing: T, most: usize) -> Self {
        Self { state: Mutex::new(State { idle: Some(thing), waiting: VecDeque::new() }), most }
    }

    /// Takes the thing if it is free.
    pub(crate) fn try_take(&self) -> Option<T> {
        lock(&self.state).idle.take()
    }

    /// Takes the thing, or a place in the queue for it.
    pub(crate) fn ask(&self, wants: impl FnOnce() -> W) -> Asked<T> {
        let mut state = lock(&self.state);
        if let Some(thing) = state.idle.take() {
            return Asked::Here(thing);
        }
        if state.waiting.len() >= self.most {
            return Asked::Full;
        }
        let place = Place::new();
        state.waiting.push_back((Arc::clone(&place), wants()));
        Asked::Wait(place)
    }

    /// Waits for the thing as long as time is left. None: it gave up, and has left the queue.
    pub(crate) fn wait(&self, place: &Arc<Place<T>>, left: impl Fn() -> Duration) -> Option<T> {
        place.wait_while_left(left).or_else(|| self.leave(place))
    }

    /// Leaves the queue, unless the thing was handed over just now: then here it is.
    pub(crate) fn leave(&self, place: &Arc<Place<T>>) -> Option<T> {
        let mut state = lock(&self.state);
        let at = state.waiting.iter().position(|(waiting, _)| Arc::ptr_eq(waiting, place));
        match at {
            Some(at) => {
                state.waiting.remove(at);
                None
            }
            None => {
                drop(state);
                Some(place.wait())
            }
        }
    }

    /// Hands the thing to the next in the queue, or leaves it for whoever comes.
    pub(crate) fn give_back(&self, thing: T) {
        let mut state = lock(&self.state);
        match state.waiting.pop_front() {
            Some((place, _)) => {
                drop(state);
                place.hand(thing);
            }
            None => state.idle = Some(thing),
        }
    }

    /// Hands something to the next in the queue if what that one wants fits; else here it is again.
    pub(crate) fn pass_on(&self, thing: T, fits: impl FnOnce(&W, &T) -> bool) -> Result<(), T> {
        let mut state = lock(&self.state);
        let front = match state.waiting.front() {
            Some((_, wants)) if fits(wants, &thing) => state.waiting.pop_front(),
            _ => None,
        };
        drop(state);
        match front {
            Some((place, _)) => {
                place.hand(thing);
                Ok(())
            }
            None => Err(thing),
        }
    }

    /// How many wait.
    pub(crate) fn waiting(&self) -> usize {
        lock(&self.state).waiting.len()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poison| poison.into_inner())
}
