//! A sign of life of whoever holds a lock: when, and how far they are. For people; it decides nothing.
//!
//! It has a thread and a connection of its own, so that neither a caller that is stuck nor a pool that is empty stops it. While
//! a long write has the database it is left out. It also looks whether the locks are still held, and tells their holders when
//! one is not: nothing is stopped by force.

use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use super::lease::{Record, Standing};
use super::locks::Spot;
use super::queue::Queues;
use super::rows;
use crate::error::{Error, Result};
use crate::id::Fence;
use crate::store::{Aside, Database};
use crate::time::Deadline;

/// How soon the row says what a holder has said of its progress.
const NEWS: Duration = Duration::from_secs(1);
/// How long a beat waits for its turn.
const PATIENCE: Duration = Duration::from_secs(1);

/// The heartbeat of one session.
#[derive(Debug)]
pub(crate) struct Heartbeat {
    database: Database,
    state: PathBuf,
    every: Duration,
    beating: Mutex<Beating>,
    bell: Condvar,
}

#[derive(Debug, Default)]
struct Beating {
    thread: Option<JoinHandle<()>>,
    /// The thread is there, and looks again before it ends.
    alive: bool,
    stop: bool,
}

impl Heartbeat {
    /// A heartbeat that begins with the first lock that is held for a while. `every`: how often.
    pub(crate) fn new(database: Database, state: PathBuf, every: Duration) -> Self {
        Self { database, state, every, beating: Mutex::default(), bell: Condvar::new() }
    }

    /// Begins, unless it has.
    pub(super) fn start(self: &Arc<Self>, names: &Arc<Queues<Spot>>) {
        let mut beating = self.beating();
        if beating.alive || beating.stop {
            return;
        }
        let (heartbeat, names) = (Arc::clone(self), Arc::clone(names));
        let thread = std::thread::Builder::new().name("journal-beat".into()).spawn(move || heartbeat.run(&names));
        match thread {
            Ok(thread) => {
                beating.alive = true;
                // The one before has ended, or is about to without looking again.
                beating.thread = Some(thread);
            }
            Err(error) => tracing::warn!(%error, "no thread for a heartbeat: `locks` shows the holder as silent"),
        }
    }

    /// Ends it.
    pub(super) fn stop(&self) {
        let mut beating = self.beating();
        beating.stop = true;
        let thread = beating.thread.take();
        drop(beating);
        self.bell.notify_all();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }

    fn run(&self, names: &Queues<Spot>) {
        let mut aside = None;
        let mut last = Deadline::after(self.every);
        loop {
            let beating = self.beating();
            let pause = last.left().min(NEWS);
            let waited = self.bell.wait_timeout_while(beating, pause, |beating| !beating.stop);
            let mut beating = waited.unwrap_or_else(|poison| poison.into_inner()).0;
            let mut held = Vec::new();
            names.each(|_, spot| held.extend(spot.standing.iter().cloned()));
            if beating.stop || (held.is_empty() && last.passed()) {
                beating.alive = false;
                return;
            }
            drop(beating);
            let news = held.iter().any(|standing| standing.news().is_some());
            if last.passed() || news {
                last = Deadline::after(self.every);
                if let Err(error) = self.beat(&held, &mut aside) {
                    tracing::debug!(%error, "a heartbeat was left out");
                }
            }
        }
    }

    fn beat(&self, held: &[Arc<Standing>], aside: &mut Option<Aside>) -> Result<()> {
        for standing in held {
            if let Err(Error::LockFileReplaced { .. }) = standing.check_same() {
                self.lost(standing, aside)?;
            }
        }
        let recorded: Vec<(&Arc<Standing>, Fence)> =
            held.iter().filter_map(|standing| Some((standing, fence(standing)?))).collect();
        if recorded.is_empty() {
            return Ok(());
        }
        let told: Vec<String> = recorded.iter().map(|(standing, _)| standing.progress()).collect();
        let beaten = self.aside(aside)?.write(PATIENCE, |tx| {
            let mut newest = Vec::new();
            for ((standing, fence), progress) in recorded.iter().zip(&told) {
                rows::beat(tx, &standing.name, *fence, progress)?;
                newest.push(rows::newest_fence(tx, &standing.name)?);
            }
            Ok(newest)
        })?;
        // None while a long write has the database.
        let Some(newest) = beaten else { return Ok(()) };
        for (((standing, fence), progress), newest) in recorded.iter().zip(&told).zip(newest) {
            standing.told(progress);
            // Whoever has released it meanwhile says so before anybody else can have it.
            if newest > fence.get() && self::fence(standing).is_some() {
                self.lost(standing, aside)?;
            }
        }
        Ok(())
    }

    /// Tells the holder, and counts it.
    fn lost(&self, standing: &Standing, aside: &mut Option<Aside>) -> Result<()> {
        standing.lose(|| {
            tracing::warn!(lock = standing.name, "a lock was lost: whoever works under it will not be able to commit");
            // None while a long write has the database.
            self.aside(aside)?.write(PATIENCE, |tx| rows::count_loss(tx, &standing.name))
        })
    }

    fn aside<'a>(&self, aside: &'a mut Option<Aside>) -> Result<&'a mut Aside> {
        match aside {
            Some(open) => Ok(open),
            none => Ok(none.insert(Aside::open(&self.database, &self.state)?)),
        }
    }

    fn beating(&self) -> MutexGuard<'_, Beating> {
        self.beating.lock().unwrap_or_else(|poison| poison.into_inner())
    }
}

fn fence(standing: &Standing) -> Option<Fence> {
    match *standing.record() {
        Record::Written(fence) => Some(fence),
        _ => None,
    }
}
