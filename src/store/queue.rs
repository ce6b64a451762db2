//! A thing that one thread at a time has, and the queue for it: first come, first served.
//!
//! Whoever has it hands it to the next one, which alone is woken. So nobody can come in between, and nobody wakes for
//! nothing. A place in the queue is also where its thread is told, later, what became of what it did.
//!
//! To wake a thread takes longer than what most do with the thing: so who has it may [rouse](Queue::rouse) those that
//! come next, and they look for it, for a short while, without falling asleep again.

use std::collections::VecDeque;
use std::time::Duration;

use super::sync::atomic::{AtomicBool, Ordering};
use super::sync::{Arc, Condvar, Mutex, MutexGuard};

/// The thing, while nobody has it, and those who wait for it. With a place comes what its thread wants.
#[derive(Debug)]
pub(crate) struct Queue<T, W> {
    state: Mutex<State<T, W>>,
    most: usize,
    /// How often one that was roused looks before it sleeps again.
    looks: u32,
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
    slot: Mutex<Slot<T>>,
    bell: Condvar,
    /// Something was handed over.
    is_here: AtomicBool,
    looks: u32,
}

#[derive(Debug)]
struct Slot<T> {
    handed: Option<T>,
    asleep: bool,
    roused: bool,
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
    fn new(looks: u32) -> Arc<Self> {
        let slot = Slot { handed: None, asleep: false, roused: false };
        Arc::new(Self { slot: Mutex::new(slot), bell: Condvar::new(), is_here: AtomicBool::new(false), looks })
    }

    /// Hands something to the one thread that waits here.
    pub(crate) fn hand(&self, thing: T) {
        let mut slot = lock(&self.slot);
        slot.handed = Some(thing);
        self.is_here.store(true, Ordering::Release);
        self.wake(slot);
    }

    /// Says that something will be handed over soon.
    fn rouse(&self) {
        let mut slot = lock(&self.slot);
        if !slot.roused {
            slot.roused = true;
            self.wake(slot);
        }
    }

    fn wake(&self, mut slot: MutexGuard<'_, Slot<T>>) {
        let asleep = std::mem::take(&mut slot.asleep);
        drop(slot);
        if asleep {
            self.bell.notify_one();
        }
    }

    /// Waits until something is handed over.
    pub(crate) fn wait(&self) -> T {
        loop {
            if let Some(thing) = self.wait_for(Duration::MAX) {
                return thing;
            }
        }
    }

    fn wait_while_left(&self, left: impl Fn() -> Duration) -> Option<T> {
        loop {
            let left = left();
            if left.is_zero() {
                return None;
            }
            if let Some(thing) = self.wait_for(left) {
                return Some(thing);
            }
        }
    }

    /// Waits for a while, or until somebody rouses this thread and then lets it wait in vain.
    fn wait_for(&self, at_most: Duration) -> Option<T> {
        let mut slot = lock(&self.slot);
        if slot.handed.is_none() {
            if std::mem::take(&mut slot.roused) {
                drop(slot);
                self.look_out();
                slot = lock(&self.slot);
            }
            if slot.handed.is_none() {
                slot.asleep = true;
                slot = match at_most {
                    Duration::MAX => self.bell.wait(slot).unwrap_or_else(|poison| poison.into_inner()),
                    _ => match self.bell.wait_timeout(slot, at_most) {
                        Ok((slot, _)) => slot,
                        Err(poison) => poison.into_inner().0,
                    },
                };
                slot.asleep = false;
            }
        }
        let thing = slot.handed.take();
        self.is_here.store(false, Ordering::Relaxed);
        thing
    }

    fn look_out(&self) {
        for look in 0..self.looks {
            if self.is_here.load(Ordering::Acquire) {
                return;
            }
            // Whoever is to hand it over may need the very core that this thread is on.
            match look % 32 {
                31 => std::thread::yield_now(),
                _ => std::hint::spin_loop(),
            }
        }
    }
}

impl<T, W> Queue<T, W> {
    /// A queue for a thing that is free, for at most so many who wait.
    pub(crate) fn new(thing: T, most: usize, looks: u32) -> Self {
        Self { state: Mutex::new(State { idle: Some(thing), waiting: VecDeque::new() }), most, looks }
    }

    /// A place that is not in the queue, to be handed something.
    pub(crate) fn place(&self) -> Arc<Place<T>> {
        Place::new(self.looks)
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
        let place = self.place();
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

    /// Tells the first so many in the queue that it will not be long.
    pub(crate) fn rouse(&self, so_many: usize) {
        let state = lock(&self.state);
        state.waiting.iter().take(so_many).for_each(|(place, _)| place.rouse());
    }

    /// How many wait.
    pub(crate) fn waiting(&self) -> usize {
        lock(&self.state).waiting.len()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poison| poison.into_inner())
}
