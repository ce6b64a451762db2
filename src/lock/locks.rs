//! Named locks, taken: first come, first served within the process, the kernel's queue across processes.
//!
//! Exclusion is the OS lock's. The row (who, why, which fence) need not be there before somebody can see the
//! difference: COMMIT records acquisition and release with the rest of the transaction, and what is held longer than
//! that is recorded in the background ([`Locks::record_held`]). A crash before either leaves no trace, and nobody has
//! seen the fence.
//!
//! The kernel lets those who share a lock in past somebody who waits to have it alone. So who has to wait for that waits
//! behind a second file, the gate, and those who share go through it first.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use super::heartbeat::Heartbeat;
use super::holder::Holder;
use super::lease::{Lease, Record, Standing};
use super::queue::{Kept, Queues, Ticket, Waiter};
use super::{rows, session};
use crate::error::{Error, Result};
use crate::fs::os_lock::{OsLock, Sharing, is_unheld};
use crate::id::{Fence, SessionId};
use crate::store::{Durability, Store, Turn, Tx};
use crate::time::Deadline;
use crate::wait::{Patience, StopToken};

/// The longest name of a lock, in bytes; escaped it still fits a file's name.
const NAME_MAX: usize = 80;
/// This many lock files stay open between acquisitions.
const FILES_KEPT: usize = 32;

/// Whoever replaces a lock file this often while it is taken does not want it to be.
const REPLACED_OFTEN: u32 = 10;

/// All named locks, as this process sees them.
#[derive(Debug)]
pub(crate) struct Locks {
    dir: PathBuf,
    sessions: Arc<Path>,
    session: SessionId,
    names: Arc<Queues<Spot>>,
    heartbeat: Arc<Heartbeat>,
    /// Long waits that are over, and whose rows are still there: number, name, milliseconds.
    waited: Mutex<Vec<(i64, String, i64)>>,
}

/// What is kept with a name.
#[derive(Debug, Default)]
pub(super) struct Spot {
    /// Those of this process who have it: one, or several who share it.
    pub(super) standing: Vec<Arc<Standing>>,
    /// The lock file, open and not locked, for the next one.
    pub(super) idle: Option<OsLock>,
    /// Somebody of this process has the OS lock alone.
    granted: bool,
    /// It was released, and the row still says that it is held with this fence.
    released: Option<Fence>,
}

/// Which lock somebody wants, and how.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Want<'w> {
    pub(crate) name: &'w str,
    pub(crate) sharing: Sharing,
    pub(crate) order: Order,
}

/// Locks that are taken by themselves come before those of transactions, and each kind in the order of names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Order {
    ByItself,
    OfTransaction,
    /// In any order: nobody waits for the lock of a run, so that nobody waits in a circle.
    OfRun,
}

/// The OS lock, before anybody looked at the row.
#[derive(Debug)]
#[must_use = "the lock is freed when this is dropped"]
pub(crate) struct Granted {
    /// None once it is held.
    os: Option<OsLock>,
    sharing: Sharing,
    order: Order,
    ticket: Option<Ticket<Spot>>,
}

impl Locks {
    pub(crate) fn new(state: PathBuf, session: SessionId, heartbeat: Heartbeat) -> Self {
        let (dir, sessions) = (state.join("locks"), state.join("sessions").into());
        Self {
            dir,
            sessions,
            session,
            names: Arc::new(Queues::new()),
            heartbeat: Arc::new(heartbeat),
            waited: Mutex::default(),
        }
    }

    /// Waits for the OS lock of a name, as long as patience lasts. None when it came to an end.
    pub(crate) fn wait(&self, want: Want<'_>, patience: &mut Patience<'_>) -> Result<Option<Granted>> {
        let file = file_name(want.name)?;
        self.refuse_misuse(want)?;
        let names = Arc::clone(&self.names);
        let _called_off = patience.cancel().map(|cancel| cancel.on_stop(move || names.nudge()));
        let shares = want.sharing == Sharing::Shared;
        let Some(ticket) = self.names.wait(want.name, shares, patience) else { return Ok(None) };
        let mut idle = ticket.with(|spot| spot.idle.take()).flatten();
        let mut replaced = 0;
        loop {
            let mut os = match idle.take() {
                Some(open) => open,
                None => OsLock::open(&self.dir, &file)?,
            };
            if !self.through_the_gate(&mut os, want, patience)? {
                ticket.with(|spot| spot.idle = Some(os));
                return Ok(None);
            }
            match os.check_same() {
                Ok(()) => {
                    ticket.with(|spot| spot.granted = !shares);
                    let (sharing, order) = (want.sharing, want.order);
                    return Ok(Some(Granted { os: Some(os), sharing, order, ticket: Some(ticket) }));
                }
                // Replaced while we waited, or before: the lock is on whatever has the name now.
                Err(Error::LockFileReplaced { .. }) if replaced < REPLACED_OFTEN || !patience.is_over() => {
                    replaced += 1
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn through_the_gate(&self, os: &mut OsLock, want: Want<'_>, patience: &mut Patience<'_>) -> Result<bool> {
        if want.sharing == Sharing::Exclusive && os.try_lock()? {
            return Ok(true);
        }
        if want.sharing == Sharing::Exclusive && patience.is_over() {
            return Ok(false);
        }
        let mut gate = OsLock::open(&self.dir, &gate_name(want.name)?)?;
        Ok(gate.lock_as(want.sharing, patience)? && os.lock_as(want.sharing, patience)?)
    }

    /// Refuses what would wait for itself, and in debug builds what could.
    fn refuse_misuse(&self, want: Want<'_>) -> Result<()> {
        let shares = want.sharing == Sharing::Shared;
        let how = |standing: &Standing| match (standing.sharing, shares) {
            (Sharing::Exclusive, _) => "by this thread",
            (Sharing::Shared, true) => "by this thread, which shares it",
            (Sharing::Shared, false) => "by this thread, which shares it: that cannot become exclusive",
        };
        let mine = |spot: &mut Spot| spot.standing.iter().find(|standing| standing.is_mine()).map(|held| how(held));
        if let Some(how) = self.names.with(want.name, mine).flatten() {
            return Err(Error::AlreadyHeld { name: want.name.to_owned(), how });
        }
        let mut later = None;
        if cfg!(debug_assertions) {
            self.names.each(|name, spot| {
                let is_later =
                    |held: &Standing| held.order != Order::OfRun && (held.order, name) > (want.order, want.name);
                if later.is_none() && spot.standing.iter().any(|held| held.is_mine() && is_later(held)) {
                    later = Some(name.to_owned());
                }
            });
        }
        match later {
            None => Ok(()),
            Some(held) => Err(Error::LockOrder { held, wanted: want.name.to_owned() }),
        }
    }

    /// Takes the OS lock if nobody has it; else says who does. Whoever does not say so is waited for: they have come this instant,
    /// share it, or recover what a dead holder left.
    pub(crate) fn try_or_holder(
        &self,
        store: &Store,
        want: Want<'_>,
        deadline: Deadline,
    ) -> Result<Result<Granted, Holder>> {
        const LOOK_AGAIN: Duration = Duration::from_millis(10);
        if let Some(granted) = self.wait(want, &mut Patience::until(Deadline::after(Duration::ZERO)))? {
            return Ok(Ok(granted));
        }
        let mut holder = self.recorded_holder(store, want.name)?;
        if holder.is_none() {
            let found = StopToken::new();
            let mut look = |_| {
                holder = self.recorded_holder(store, want.name).ok().flatten();
                if holder.is_some() {
                    found.stop("somebody has it");
                }
            };
            let patience = Patience::until(deadline).cancelled_by(Some(found.clone()));
            if let Some(granted) = self.wait(want, &mut patience.telling(LOOK_AGAIN, &mut look))? {
                return Ok(Ok(granted));
            }
        }
        Ok(Err(holder.unwrap_or_else(Holder::unknown)))
    }

    /// Who has the lock; none when it is free.
    pub(crate) fn holder(&self, store: &Store, name: &str) -> Result<Option<Holder>> {
        let file = file_name(name)?;
        if is_unheld(&self.dir, &file)? && !self.names.with(name, |spot| !spot.standing.is_empty()).unwrap_or(false) {
            return Ok(None);
        }
        self.recorded_holder(store, name).map(|holder| Some(holder.unwrap_or_else(Holder::unknown)))
    }

    /// Who has the lock, as far as they said so: this process of itself, another by a row while its session lives.
    pub(crate) fn recorded_holder(&self, store: &Store, name: &str) -> Result<Option<Holder>> {
        let own = |spot: &mut Spot| spot.standing.first().map(|standing| self.own(standing));
        if let Some(holder) = self.names.with(name, own).flatten() {
            return Ok(Some(holder));
        }
        let Some((session, holder)) = store.peek(|tx| rows::holder(tx, name))? else { return Ok(None) };
        let lives = match SessionId::from_slice(&session) {
            // Of this process, and over: the row will say so.
            Some(session) if session == self.session => false,
            Some(session) => session::lives(&self.sessions, session)?,
            None => false,
        };
        Ok(lives.then_some(holder))
    }

    fn own(&self, standing: &Standing) -> Holder {
        Holder {
            pid: i64::from(std::process::id()),
            program: session::program(),
            session: self.session.to_string(),
            purpose: standing.purpose.clone(),
            since_ms: standing.since_ms,
            heartbeat_ms: crate::time::now_ms(),
            progress: standing.progress(),
        }
    }

    /// True when a holder of this process has the lock `name` alone.
    pub(crate) fn holds(&self, name: &str) -> bool {
        self.names.with(name, |spot| spot.granted).unwrap_or(false)
    }

    /// Takes the OS lock `name` if nobody at all has it, for as long as the answer lives.
    pub(crate) fn try_os_lock(&self, name: &str) -> Result<Option<OsLock>> {
        let lock = OsLock::open(&self.dir, &file_name(name)?)?;
        Ok(lock.try_lock()?.then_some(lock))
    }

    /// Holds a granted lock whose row has the fence `newest`.
    pub(crate) fn hold(&self, mut granted: Granted, newest: i64, purpose: &str) -> Result<Lease> {
        let (Some(os), Some(ticket)) = (granted.os.take(), granted.ticket.take()) else { return Err(Error::Closed) };
        let record = match granted.sharing {
            Sharing::Exclusive => Record::Unwritten { newest, seen: false, tried: None, committing: false },
            Sharing::Shared => Record::Over,
        };
        let name = ticket.name().to_owned();
        let want = (granted.sharing, granted.order);
        let standing = Arc::new(Standing::new(name, want, purpose, os, record, Arc::clone(&self.sessions)));
        ticket.with(|spot| spot.standing.push(Arc::clone(&standing)));
        Ok(Lease::new(standing, self.session, ticket))
    }

    /// Sees which locks are held and not recorded; true when one of them was seen so before, and is due.
    pub(crate) fn see_unrecorded(&self) -> Unrecorded {
        let mut found = Unrecorded::default();
        if !self.waited().is_empty() {
            (found.any, found.due) = (true, true);
        }
        self.names.each(|_, spot| {
            if spot.released.is_some() {
                (found.any, found.due) = (true, true);
            }
            for standing in &spot.standing {
                if let Record::Unwritten { seen, committing: false, .. } = &mut *standing.record() {
                    found.any = true;
                    found.due |= std::mem::replace(seen, true);
                }
            }
        });
        found
    }

    /// Records who holds what, and who does no more: a larger fence, who and why. Not synced: a power cut frees every lock anyway, and the
    /// fences' ceiling is durable.
    pub(crate) fn record_held(&self, turn: &mut Turn<'_>) -> Result<()> {
        let waited = std::mem::take(&mut *self.waited());
        if !waited.is_empty() {
            turn.write(Durability::Normal, |tx| {
                waited.iter().try_for_each(|(number, name, waited_ms)| rows::end_wait(tx, *number, name, *waited_ms))
            })?;
        }
        let (mut held, mut released) = (Vec::new(), Vec::new());
        self.names.each(|name, spot| {
            held.extend(spot.standing.iter().cloned());
            // IMPORTANT: an acquisition that was undone has left its fence to the next one.
            spot.released = spot.released.filter(|fence| !spot.standing.iter().any(|standing| standing.has(*fence)));
            released.extend(spot.released.map(|fence| (name.to_owned(), fence)));
        });
        if !released.is_empty() {
            turn.write(Durability::Normal, |tx| {
                // Somebody else may have it by now: then there is nothing to say.
                released.iter().try_for_each(|(name, fence)| rows::release(tx, name, *fence, self.session).map(drop))
            })?;
            for (name, fence) in released {
                self.names.with(&name, |spot| spot.released = spot.released.filter(|newer| *newer != fence));
            }
            self.names.sweep();
        }
        let any = !held.is_empty();
        for standing in held {
            if !matches!(*standing.record(), Record::Unwritten { .. }) {
                continue;
            }
            // Once in a million a new block of fences has to be durable before one of them is handed out.
            let durability = match turn.look(rows::has_fences)? {
                true => Durability::Normal,
                false => Durability::Full,
            };
            match self.record_one(turn, durability, &standing) {
                Ok(()) => {}
                Err(Error::LockLost { .. }) => {
                    let count = |tx: &Tx<'_>| rows::count_loss(tx, &standing.name);
                    standing.lose(|| turn.write(Durability::Normal, count).map(Some))?;
                }
                Err(error) => return Err(error),
            }
        }
        if any {
            // What is held for this long is worth a sign of life now and then.
            self.heartbeat.start(&self.names);
        }
        Ok(())
    }

    fn record_one(&self, turn: &mut Turn<'_>, durability: Durability, standing: &Standing) -> Result<()> {
        let writing = turn.begin(durability)?;
        // IMPORTANT: until it is committed. Whoever releases the lock meanwhile waits: else it would be recorded when
        // somebody else has it.
        let mut record = standing.record();
        let Record::Unwritten { newest, tried, .. } = &mut *record else { return Ok(()) };
        let fence = standing.acquire(&writing.tx(), self.session, *newest, tried, false)?;
        writing.commit()?;
        *record = Record::Written(fence);
        Ok(())
    }

    /// A long wait is over: its row goes, and it is counted, in the background. Nobody who has waited for long is to wait for that.
    pub(crate) fn end_wait(&self, number: i64, name: &str, waited_ms: i64) {
        self.waited().push((number, name.to_owned(), waited_ms));
    }

    fn waited(&self) -> MutexGuard<'_, Vec<(i64, String, i64)>> {
        self.waited.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    /// Ends the heartbeat.
    pub(crate) fn stop(&self) {
        self.heartbeat.stop();
    }
}

/// Locks of this process that are held and whose rows do not say so.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Unrecorded {
    /// There are some.
    pub(crate) any: bool,
    /// Some have been so for a while.
    pub(crate) due: bool,
}

impl Kept for Spot {
    fn stays(&self, names: usize) -> bool {
        (self.idle.is_some() && names <= FILES_KEPT) || self.released.is_some()
    }
}

impl Waiter for Patience<'_> {
    fn is_over(&self) -> bool {
        Patience::is_over(self)
    }

    fn slice(&self) -> Duration {
        Patience::slice(self)
    }

    fn pause(&mut self) {
        self.tell();
    }
}

impl Drop for Granted {
    fn drop(&mut self) {
        if let (Some(os), Some(ticket)) = (self.os.take(), &self.ticket) {
            let os = Some(os).filter(|os| os.unlock().is_ok());
            ticket.with(|spot| {
                spot.granted = false;
                spot.idle = os;
            });
        }
    }
}

impl Spot {
    /// Somebody's hold on the name is over.
    pub(super) fn leave(&mut self, standing: &Arc<Standing>, os: Option<OsLock>, said: Option<Fence>) {
        self.standing.retain(|held| !Arc::ptr_eq(held, standing));
        self.granted = false;
        self.released = said.or(self.released);
        if os.is_some() {
            self.idle = os;
        }
    }
}

/// The file of a lock: letters, digits, `.`, `-` and `_` as they are, every other byte as `%xx`.
pub(crate) fn file_name(name: &str) -> Result<String> {
    let bad = |reason| Err(Error::BadLockName { name: name.to_owned(), reason });
    match name.len() {
        0 => return bad("it is empty"),
        1..=NAME_MAX => {}
        _ => return bad("it has more than 80 bytes"),
    }
    let mut file = String::with_capacity(name.len() + 5);
    for (at, byte) in name.bytes().enumerate() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => file.push(char::from(byte)),
            b'.' if at > 0 => file.push('.'),
            _ => file.push_str(&format!("%{byte:02x}")),
        }
    }
    file.push_str(".lock");
    Ok(file)
}

/// The file of the gate before a lock: no lock's own file ends like this.
pub(crate) fn gate_name(name: &str) -> Result<String> {
    let mut file = file_name(name)?;
    file.truncate(file.len() - ".lock".len());
    Ok(file + ".gate")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_locks_become_names_of_files() {
        assert_eq!(file_name("main").unwrap(), "main.lock");
        assert_eq!(file_name("sync:a/b é").unwrap(), "sync%3aa%2fb%20%c3%a9.lock");
        assert_eq!(file_name("..").unwrap(), "%2e..lock");
        assert!(file_name("").is_err() && file_name(&"x".repeat(81)).is_err());
        assert_eq!(gate_name("a b").unwrap(), "a%20b.gate");
    }
}
