//! Threads that wait in the kernel for OS locks, on behalf of callers with a deadline.
//!
//! A thread whose caller gave up cannot be called back: it waits until the kernel hands it the lock, and lets go at once.
//! Should somebody want the same lock again before that, it waits for them. So there are never more of these threads than
//! callers that waited at the same time, however often they tried.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, TryLockError};

use super::fork::{Born, LockFile};
use super::handoff::Handoff;
use super::os_lock::{self, Sharing};
use crate::error::{IoContext, Result};
use crate::wait::Patience;

type Grant = Result<LockFile>;

/// Threads that wait for nobody just now.
static ABANDONED: Mutex<Vec<Waiter>> = Mutex::new(Vec::new());

/// A thread that waits.
#[derive(Debug)]
struct Waiter {
    place: (u64, u64),
    sharing: Sharing,
    /// In a forked child there are none of the parent's threads.
    born: Born,
    handoff: Arc<Handoff<Grant>>,
}

/// Waits for the lock on a file as long as patience lasts; `waiting` is that file, opened for this: were the caller's own used,
/// a late grant would meet a lock that a later attempt through the same description already holds, and release it.
pub(super) fn wait(
    waiting: impl FnOnce() -> Result<LockFile>,
    place: (u64, u64),
    sharing: Sharing,
    path: impl Fn() -> PathBuf,
    patience: &mut Patience<'_>,
) -> Result<Option<LockFile>> {
    let waiter = match take_over(place, sharing) {
        Some(waiter) => waiter,
        None => start(waiting()?, sharing, &path)?,
    };
    let nudged = Arc::clone(&waiter.handoff);
    let _called_off = patience.cancel().map(|cancel| cancel.on_stop(move || nudged.nudge()));
    loop {
        if let Some(granted) = waiter.handoff.take(patience.slice(), || patience.is_over()) {
            return granted.map(Some);
        }
        if patience.is_over() {
            let late = waiter.handoff.give_up();
            if late.is_none() {
                abandon(waiter);
            }
            return late.transpose();
        }
        patience.tell();
    }
}

fn start(waiting: LockFile, sharing: Sharing, path: &impl Fn() -> PathBuf) -> Result<Waiter> {
    let place = waiting.place();
    let handoff = Arc::new(Handoff::new());
    let (giving, named) = (Arc::clone(&handoff), path());
    std::thread::Builder::new()
        .name("journal-wait".into())
        .spawn(move || {
            let outcome = sharing.wait_on(&waiting).at("lock", named);
            // Either it is taken over now, or they have given up and we release.
            if let Err(Ok(file)) = giving.give(outcome.map(|()| waiting)) {
                let _ = os_lock::unlock(&file);
            }
        })
        .at("start a thread that waits for", path())?;
    Ok(Waiter { place, sharing, born: Born::here(), handoff })
}

fn take_over(place: (u64, u64), sharing: Sharing) -> Option<Waiter> {
    with_abandoned(|abandoned| {
        let fits = |one: &Waiter| one.place == place && one.sharing == sharing && one.born.is_here();
        while let Some(at) = abandoned.iter().position(fits) {
            let waiter = abandoned.swap_remove(at);
            if waiter.handoff.want_again() {
                return Some(waiter);
            }
        }
        None
    })?
}

fn abandon(waiter: Waiter) {
    with_abandoned(|abandoned| {
        abandoned.retain(|other| !other.handoff.is_over() && other.born.is_here());
        abandoned.push(waiter);
    });
}

/// None in a forked child, if its parent was here at that moment: then every wait has a thread of its own.
fn with_abandoned<T>(work: impl FnOnce(&mut Vec<Waiter>) -> T) -> Option<T> {
    match Born::here().is_first() {
        true => Some(work(&mut ABANDONED.lock().unwrap_or_else(|poison| poison.into_inner()))),
        false => match ABANDONED.try_lock() {
            Ok(mut abandoned) => Some(work(&mut abandoned)),
            Err(TryLockError::Poisoned(poison)) => Some(work(&mut poison.into_inner())),
            Err(TryLockError::WouldBlock) => None,
        },
    }
}
