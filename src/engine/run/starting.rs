//! How a run starts: the job's lock, the run that is open or a new one, and what of it is done.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use super::work::Work;
use super::{Begun, Run, Started};
use crate::engine::Journal;
use crate::error::{Error, Result};
use crate::id::RunId;
use crate::journal::{self, Level};
use crate::lock::{Holder, Order};
use crate::options::{Acquire, Job};
use crate::run::{self, BuildStraight, Ledger, Name, RunState, Wrote};
use crate::store::{self, Durability, Tx};
use crate::time::now_ms;
use crate::txn::{self, Ground};

const TOO_LONG: &str = "nobody had gone on with it for too long";
/// In bytes.
const LONGEST_FINGERPRINT: usize = 4096;

impl Journal {
    /// Starts a job, or goes on with it where an earlier session ended, however that came; see [`Job`] for `fingerprint`, and
    /// for all that can be set.
    ///
    /// One session at a time works at a job: who comes meanwhile, be it by the same thread, is told so at once, and nothing is
    /// written. That it has started is durable on return, which costs a sync.
    ///
    /// ```
    /// # use journal_kb::{Journal, Result, Started, Transaction};
    /// # fn import(txn: &mut Transaction, item: &str) -> Result<()> { txn.write(item, "imported") }
    /// # let dir = tempfile::tempdir()?;
    /// # let journal = Journal::open(dir.path())?;
    /// # let items = vec!["a.txt", "b.txt"];
    /// match journal.run("sync:source-a", "v1")? {
    ///     Started::Skipped(holder) => println!("already running: {holder}"),
    ///     Started::Running(run) => {
    ///         for item in run.pending(items) {
    ///             let mut txn = run.begin(item)?; // counted as tried, before it is
    ///             import(&mut txn, item)?;
    ///             txn.commit()?; // the effect and that it is done, in one commit
    ///         }
    ///         println!("{:?}", run.finish()?);
    ///     }
    /// }
    /// # assert!(dir.path().join("b.txt").exists());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn run(&self, job: &str, fingerprint: impl AsRef<[u8]>) -> Result<Started> {
        self.run_with(Job::new(job).fingerprint(fingerprint))
    }

    /// The same, as [`Job`] says.
    pub fn run_with(&self, job: Job) -> Result<Started> {
        if job.fingerprint.len() > LONGEST_FINGERPRINT {
            return Err(Error::TooLarge { what: "a fingerprint", limit: LONGEST_FINGERPRINT as u64 });
        }
        let purpose = format!("run {}", job.name);
        let lock_name = run::lock_name(&job.name);
        let lock = match self.begin_flight_in(Acquire::new(&lock_name).purpose(purpose), Order::OfRun) {
            Ok(Ok(lock)) => lock,
            Ok(Err(holder)) => return Ok(Started::Skipped(holder)),
            // By this thread: that is at it already, too.
            Err(Error::AlreadyHeld { .. }) => {
                return self.holder(&lock_name).map(|holder| Started::Skipped(holder.unwrap_or_else(Holder::unknown)));
            }
            Err(error) => return Err(error),
        };
        let lease = lock.shared_lease()?;
        let ground = self.ground();
        let open = ground.store.peek(|tx| run::open_run(tx, &job.name))?;
        let oldest = oldest_ms(self.inner.run_retention);
        let is_the_same = |open: &run::OpenRun| open.fingerprint == job.fingerprint && open.seen_ms >= oldest;
        let (id, begun) = match open {
            Some(open) if is_the_same(&open) => (Some(open.id), Begun::Resumed { banked: 0 }),
            Some(open) => {
                let changed = open.fingerprint != job.fingerprint;
                let banked = ground.store.peek(|tx| run::count_items(tx, open.id))?;
                let begun = if changed { Begun::Changed { banked } } else { Begun::Expired { banked } };
                (Some(open.id), begun)
            }
            None => (None, Begun::New),
        };
        let mut started = id;
        let session = ground.session.id;
        txn::write_rows_under(
            ground,
            &lease,
            ground.limits.turn_wait,
            |tx| {
                if let (Some(id), Begun::Resumed { .. }) = (id, begun) {
                    let aside = run::resume(tx, id, session, job.expected, job.limits.tries)?;
                    return if aside == 0 { Ok(()) } else { say(tx, &set_aside(&job.name, aside)) };
                }
                if let Some(replaced) = id {
                    let (why, message) = afresh(&job.name, begun);
                    run::end(tx, replaced, RunState::Replaced, why)?;
                    say(tx, &message)?;
                }
                started = Some(run::begin(tx, &job.name, &job.fingerprint, session, job.expected)?);
                Ok(())
            },
            |_| Ok(()),
        )?;
        let id = started.ok_or(Error::Closed)?;
        let ledger = Arc::new(load(ground, id, &job)?);
        let begun = match begun {
            Begun::Resumed { .. } => Begun::Resumed { banked: ledger.banked() },
            begun => begun,
        };
        let mut on_stop = Vec::new();
        for token in job.stop.iter().chain([&lease.stop_token()]) {
            let (told, asked) = (Arc::downgrade(&ledger), token.clone());
            on_stop.push(token.on_stop(move || {
                if let Some(ledger) = told.upgrade() {
                    ledger.stop(&asked.reason().unwrap_or_default());
                }
            }));
        }
        let work = Arc::new(Work::new(self.clone(), ledger, Arc::downgrade(&lease), job.stop));
        drop(lease);
        let thread = Some(Work::start(&work)?);
        Ok(Started::Running(Run { work, begun, lock: Some(lock), thread, _on_stop: on_stop }))
    }
}

/// Why a job begins afresh, and how people are told.
fn afresh(job: &str, begun: Begun) -> (&'static str, String) {
    let (why, banked) = match begun {
        Begun::Changed { banked } => ("its fingerprint has changed", banked),
        Begun::Expired { banked } | Begun::Resumed { banked } => (TOO_LONG, banked),
        Begun::New => (TOO_LONG, 0),
    };
    (why, format!("run {job:?} begins afresh: {why}; {banked} items had been done"))
}

fn set_aside(job: &str, items: usize) -> String {
    format!(
        "run {job:?} has set {items} more items aside, which were tried as often as they may be; see `journalctl-kb runs show`"
    )
}

/// Has a warning in the event log.
fn say(tx: &Tx<'_>, message: &str) -> Result<()> {
    tracing::warn!("{message}");
    journal::insert_event(tx, Level::Warn, "run", None, None, message)
}

/// Reads what is done, in pieces: no snapshot is kept for long, and no reader of the pool is taken.
fn load(ground: &Ground, id: RunId, job: &Job) -> Result<Ledger> {
    let (next, tries) = ground.store.peek(|tx| Ok((run::next_item(tx, id)?, run::tries(tx, id)?)))?;
    let ledger = Ledger::new(id, &job.name, job.limits, next, tries);
    let (mut from, mut names) = (0, Vec::new());
    loop {
        names.clear();
        let (next, all) = ground.store.peek(|tx| run::items(tx, id, from, |item| names.push(Name::of(item))))?;
        ledger.load(&names);
        if all {
            ledger.loaded();
            return Ok(ledger);
        }
        from = next;
    }
}

fn oldest_ms(keep: Duration) -> i64 {
    now_ms().saturating_sub(i64::try_from(keep.as_millis()).unwrap_or(i64::MAX))
}

impl Work {
    /// Replaces all that is recorded.
    pub(super) fn replace(&self, items: &[(Name, Box<[u8]>)], names: HashSet<Name, BuildStraight>) -> Result<()> {
        store::refuse_reentry("a flush of a run")?;
        let _one = self.flushing();
        self.ledger.begin_replace(names)?;
        let run = self.ledger.run();
        let mut wrote = Wrote::default();
        let written = self.write(self.journal.ground().limits.turn_wait, |tx| {
            let first = self.ledger.place_replaced();
            run::drop_items_before(tx, run, first)?;
            run::add_items(tx, run, first, items.iter().map(|(_, item)| &**item))?;
            wrote = self.ledger.write_tries(tx, items)?;
            Ok(())
        });
        self.ledger.replaced(written.is_ok().then_some(&wrote));
        written
    }

    /// Sets a cursor aside that the job cannot read, and says so.
    pub(super) fn set_cursor_aside(&self, cursor: &[u8], error: &serde_json::Error) -> Result<()> {
        let message = format!("the cursor of run {:?} cannot be read, and is set aside: {error}", self.ledger.job());
        self.write(self.journal.ground().limits.turn_wait, |tx| {
            run::set_cursor_aside(tx, self.ledger.run(), cursor)?;
            say(tx, &message)
        })?;
        self.ledger.forget_cursor(cursor);
        Ok(())
    }
}

/// Forgets runs that were over before that long, and those that nobody goes on with.
pub(in crate::engine) fn retain(ground: &Ground, keep: Duration) -> Result<()> {
    let oldest = oldest_ms(keep);
    for (run, job) in ground.store.peek(|tx| run::open_before(tx, oldest))? {
        // Whoever works at it has the lock; nobody has one of a name that cannot be.
        let lock = match std::str::from_utf8(&job).map(|job| ground.locks.try_os_lock(&run::lock_name(job))) {
            Err(_) | Ok(Err(Error::BadLockName { .. })) => None,
            Ok(Ok(None)) => continue,
            Ok(lock) => lock?,
        };
        ground.enter()?.write(Durability::Normal, |tx| run::end_unseen(tx, run, oldest, TOO_LONG))?;
        drop(lock);
    }
    for run in ground.store.peek(|tx| run::over_before(tx, oldest))? {
        while !ground.enter()?.write(Durability::Normal, |tx| run::forget(tx, run))? {}
    }
    Ok(())
}
