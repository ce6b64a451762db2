//! The queue for the turn, and what a group does with it, under a model checker: the very source of the engine, with
//! shuttle's mutexes and condition variables. It tries interleavings; one without an end (a wake-up that is lost) fails, too.

// Where the engine's `queue` finds what it waits and wakes with.
use ::shuttle::sync;

#[path = "../../src/store/queue.rs"]
mod queue;

use std::collections::VecDeque;
use std::time::Duration;

use ::shuttle::rand::{Rng, thread_rng};
use ::shuttle::sync::{Arc, Mutex};
use ::shuttle::thread;

use self::queue::{Asked, Place, Queue};

/// Interleavings that are tried of each.
const TRIES: usize = 3000;
const THREADS: usize = 4;
/// As often as one that is roused looks before it sleeps again.
const LOOKS: u32 = 2;

fn check(model: fn()) {
    ::shuttle::check_random(model, TRIES);
    ::shuttle::check_pct(model, TRIES, 3);
}

/// The one thing. Not to be copied; counts who had it.
#[derive(Debug)]
struct Thing(usize);

#[test]
fn whoever_asks_first_has_it_first_and_who_gives_up_is_passed_over() {
    check(|| {
        let queue = Arc::new(Queue::new(Thing(0), THREADS, LOOKS));
        let asked = Arc::new(Mutex::new(VecDeque::new()));
        let threads: Vec<_> = (0..THREADS)
            .map(|me| {
                let (queue, asked) = (Arc::clone(&queue), Arc::clone(&asked));
                thread::spawn(move || {
                    // Told under the lock of the queue, so in its order.
                    let mut thing = match queue.ask(|| asked.lock().unwrap().push_back(me)) {
                        Asked::Here(thing) => thing,
                        Asked::Full => panic!("there is room for all"),
                        Asked::Wait(place) => {
                            let left = || Duration::from_secs(thread_rng().gen_range(0..=2));
                            let Some(thing) = queue.wait(&place, left) else {
                                asked.lock().unwrap().retain(|other| *other != me);
                                return 0;
                            };
                            // Who gave up may not have said so yet, but none that waits is before this one.
                            let mut asked = asked.lock().unwrap();
                            let at = asked.iter().position(|other| *other == me).unwrap();
                            asked.remove(at);
                            drop(asked);
                            thing
                        }
                    };
                    thing.0 += 1;
                    queue.rouse(2);
                    thread::yield_now();
                    queue.give_back(thing);
                    1
                })
            })
            .collect();
        let had: usize = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
        let Thing(counted) = queue.try_take().expect("it is nobody's, and not lost");
        assert_eq!(counted, had);
        assert_eq!(queue.waiting(), 0);
    });
}

#[test]
fn nobody_overtakes() {
    check(|| {
        let queue = Arc::new(Queue::new(Thing(0), THREADS, LOOKS));
        let thing = queue.try_take().unwrap();
        let order = Arc::new(Mutex::new((Vec::new(), Vec::new())));
        let threads: Vec<_> = (0..THREADS)
            .map(|me| {
                let (queue, order) = (Arc::clone(&queue), Arc::clone(&order));
                thread::spawn(move || {
                    let mut waited = false;
                    let asked = queue.ask(|| {
                        waited = true;
                        order.lock().unwrap().0.push(me);
                    });
                    let thing = match asked {
                        Asked::Here(thing) => thing,
                        Asked::Wait(place) => queue.wait(&place, || Duration::MAX).unwrap(),
                        Asked::Full => panic!("there is room for all"),
                    };
                    if waited {
                        order.lock().unwrap().1.push(me);
                    }
                    queue.give_back(thing);
                })
            })
            .collect();
        thread::yield_now();
        queue.give_back(thing);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        let (asked, had) = &*order.lock().unwrap();
        assert_eq!(asked, had);
    });
}

#[test]
fn no_more_wait_than_may() {
    check(|| {
        let queue = Arc::new(Queue::new(Thing(0), 1, LOOKS));
        let thing = queue.try_take().unwrap();
        let threads: Vec<_> = (0..3)
            .map(|_| {
                let queue = Arc::clone(&queue);
                thread::spawn(move || match queue.ask(|| ()) {
                    Asked::Here(_) => panic!("somebody has it"),
                    Asked::Wait(place) => usize::from(queue.leave(&place).is_none()),
                    Asked::Full => 0,
                })
            })
            .collect();
        let waited: usize = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
        assert!(waited >= 1);
        queue.give_back(thing);
        assert!(queue.try_take().is_some());
    });
}

/// What the members of a group say to each other.
#[derive(Debug)]
enum Word {
    /// The thing, and nothing is open.
    Turn(Thing),
    /// Something is open; these have added their parts.
    Join(Thing, Vec<Arc<Place<Word>>>),
    /// Close it: you are the last that stays.
    Close(Thing, Vec<Arc<Place<Word>>>),
    /// It is closed.
    Done,
}

/// As `group` does it: who has it hands it on with what is open, the last one closes and tells all; some undo their own
/// part, and hand back to who was before them.
#[test]
fn everybody_in_a_group_is_told() {
    check(|| {
        let queue: Arc<Queue<Word, bool>> = Arc::new(Queue::new(Word::Turn(Thing(0)), THREADS, LOOKS));
        let threads: Vec<_> = (0..THREADS)
            .map(|me| {
                let queue = Arc::clone(&queue);
                thread::spawn(move || member(&queue, me != 0, me == 2))
            })
            .collect();
        let done: usize = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
        let Some(Word::Turn(Thing(closed))) = queue.try_take() else { panic!("it is lost, or left open") };
        assert_eq!((done, closed), (THREADS - 1, THREADS - 1), "each that stayed is closed once");
    });
}

/// One who asks and adds its part; answers how many it was told of: itself, or nobody when it undid it.
fn member(queue: &Queue<Word, bool>, shares: bool, fails: bool) -> usize {
    let (mut word, place) = match queue.ask(|| shares) {
        Asked::Here(word) => (word, queue.place()),
        Asked::Wait(place) => (queue.wait(&place, || Duration::MAX).unwrap(), place),
        Asked::Full => panic!("there is room for all"),
    };
    let close = |Thing(closed): Thing, seats: Vec<Arc<Place<Word>>>| {
        // This thread and those that wait for it.
        queue.give_back(Word::Turn(Thing(closed + 1 + seats.len())));
        seats.into_iter().for_each(|seat| seat.hand(Word::Done));
        1
    };
    loop {
        queue.rouse(1);
        let (thing, mut seats) = match word {
            Word::Done => return 1,
            Word::Close(thing, mut seats) => {
                seats.pop();
                return close(thing, seats);
            }
            Word::Turn(thing) => (thing, Vec::new()),
            Word::Join(thing, seats) => {
                assert!(shares, "who wants to be alone is");
                (thing, seats)
            }
        };
        if !fails {
            if !shares {
                return close(thing, seats);
            }
            seats.push(Arc::clone(&place));
        } else if seats.is_empty() {
            queue.give_back(Word::Turn(thing));
            return 0;
        }
        word = match (queue.pass_on(Word::Join(thing, seats), |shares, _| *shares), fails) {
            (Ok(()), true) => return 0,
            (Ok(()), false) => place.wait(),
            (Err(Word::Join(thing, mut seats)), false) => {
                seats.pop();
                return close(thing, seats);
            }
            (Err(Word::Join(thing, seats)), true) => {
                let last = Arc::clone(seats.last().unwrap());
                last.hand(Word::Close(thing, seats));
                return 0;
            }
            (Err(_), _) => panic!("what could not be passed on is as it was"),
        };
    }
}
