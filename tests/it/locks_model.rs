//! The queue for a lock within the process, and the place where a lock that was waited for is handed over, under a model
//! checker: the very source of the engine, with shuttle's mutexes and condition variables.

// Where the engine's `queue` and `handoff` find what they wait and wake with.
use ::shuttle::sync;

#[path = "../../src/fs/handoff.rs"]
mod handoff;
#[expect(dead_code, reason = "what the engine alone uses")]
#[path = "../../src/lock/queue.rs"]
mod queue;

use std::time::Duration;

use ::shuttle::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use ::shuttle::sync::{Arc, Mutex};
use ::shuttle::thread;

use self::handoff::Handoff;
use self::queue::{Kept, Queues, Waiter};

/// Interleavings that are tried of each.
const TRIES: usize = 2000;

fn check(model: fn()) {
    ::shuttle::check_random(model, TRIES);
    ::shuttle::check_pct(model, TRIES, 3);
}

/// Who has a name, as they say themselves.
#[derive(Debug, Default)]
struct Having {
    alone: usize,
    sharing: usize,
}

impl Kept for Having {
    fn stays(&self, _: usize) -> bool {
        false
    }
}

/// Waits until somebody calls it off.
struct Patient<'a>(&'a AtomicBool);

impl Waiter for Patient<'_> {
    fn is_over(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    fn slice(&self) -> Duration {
        Duration::MAX
    }

    fn pause(&mut self) {}
}

/// Has the name for a while, if it gets it.
fn have(queues: &Arc<Queues<Having>>, shares: bool, patience: &AtomicBool) -> bool {
    let Some(ticket) = queues.wait("a", shares, &mut Patient(patience)) else { return false };
    let come = |having: &mut Having| {
        match shares {
            true => having.sharing += 1,
            false => having.alone += 1,
        }
        assert!(having.alone == 0 || (having.alone, having.sharing) == (1, 0), "{having:?}");
    };
    ticket.with(come).unwrap();
    thread::yield_now();
    let go = |having: &mut Having| match shares {
        true => having.sharing -= 1,
        false => having.alone -= 1,
    };
    ticket.with(go).unwrap();
    true
}

#[test]
fn one_has_a_name_alone_or_several_share_it_and_each_gets_it() {
    check(|| {
        let queues = Arc::new(Queues::new());
        let threads: Vec<_> = [true, false, true, false]
            .into_iter()
            .map(|shares| {
                let queues = Arc::clone(&queues);
                thread::spawn(move || have(&queues, shares, &AtomicBool::new(false)))
            })
            .collect();
        assert!(threads.into_iter().all(|thread| thread.join().unwrap()));
        assert!(queues.with("a", |_| ()).is_none(), "nobody has it or waits");
    });
}

#[test]
fn who_is_called_off_leaves_and_keeps_nobody_waiting() {
    check(|| {
        let queues = Arc::new(Queues::new());
        let first = queues.wait("a", false, &mut Patient(&AtomicBool::new(false))).unwrap();
        let over = Arc::new(AtomicBool::new(false));
        let spawn = |shares: bool, patience: Arc<AtomicBool>| {
            let queues = Arc::clone(&queues);
            thread::spawn(move || have(&queues, shares, &patience))
        };
        let called_off = spawn(false, Arc::clone(&over));
        let stays = spawn(true, Arc::new(AtomicBool::new(false)));
        over.store(true, Ordering::SeqCst);
        queues.nudge();
        // Without the nudge it would wait for as long as the first has it: here, for ever.
        assert!(!called_off.join().unwrap());
        drop(first);
        assert!(stays.join().unwrap());
    });
}

#[test]
fn what_is_handed_over_is_taken_or_given_back_and_never_lost() {
    check(|| {
        let handoff = Arc::new(Handoff::new());
        let kept = Arc::new(Mutex::new(Vec::new()));
        let (giving, back) = (Arc::clone(&handoff), Arc::clone(&kept));
        let giver = thread::spawn(move || {
            if let Err(value) = giving.give(7) {
                back.lock().unwrap().push(value);
            }
        });
        let (over, looks) = (Arc::new(AtomicBool::new(false)), AtomicUsize::new(0));
        let (calling, nudged) = (Arc::clone(&over), Arc::clone(&handoff));
        let caller = thread::spawn(move || {
            calling.store(true, Ordering::SeqCst);
            nudged.nudge();
        });
        let is_over = || {
            looks.fetch_add(1, Ordering::SeqCst);
            over.load(Ordering::SeqCst)
        };
        let taken = loop {
            if let Some(value) = handoff.take(Duration::MAX, is_over) {
                break Some(value);
            }
            if is_over() {
                break handoff.give_up();
            }
        };
        // Somebody comes again: what was given back meanwhile does not come any more, all else does.
        let taken = match taken {
            None if handoff.want_again() => loop {
                if let Some(value) = handoff.take(Duration::MAX, || false) {
                    break Some(value);
                }
            },
            taken => taken,
        };
        giver.join().unwrap();
        caller.join().unwrap();
        kept.lock().unwrap().extend(taken);
        assert_eq!(*kept.lock().unwrap(), [7], "somebody has it, and one alone");
    });
}

#[test]
fn who_is_called_off_is_woken_though_nothing_comes() {
    check(|| {
        let handoff = Arc::new(Handoff::<u8>::new());
        let over = Arc::new(AtomicBool::new(false));
        let (calling, nudged) = (Arc::clone(&over), Arc::clone(&handoff));
        let caller = thread::spawn(move || {
            calling.store(true, Ordering::SeqCst);
            nudged.nudge();
        });
        while handoff.take(Duration::MAX, || over.load(Ordering::SeqCst)).is_none() && !over.load(Ordering::SeqCst) {}
        assert!(handoff.give_up().is_none());
        caller.join().unwrap();
        assert_eq!(handoff.give(7), Err(7), "it comes too late");
    });
}
