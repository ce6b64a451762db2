//! What this process knows of the run that it works at.

use std::collections::HashSet;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Duration;

use super::cursor::Cursor;
use super::item::{BuildStraight, Items, Name};
use super::replacing::Replacing;
use super::rows::TryRow;
use super::tries::{Tries, Wrote};
use crate::error::{Error, Result};
use crate::id::{Fence, RunId};
use crate::store::Tx;
use crate::time::Deadline;

/// When what is recorded is written, and how often an item is tried.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) items: usize,
    pub(crate) bytes: usize,
    pub(crate) every: Duration,
    /// How often an item may be tried.
    pub(crate) tries: u32,
    /// How often a flush is tried again, and how long to wait before the first time.
    pub(crate) retries: u32,
    pub(crate) pause: Duration,
    /// So many flushes in a row that failed end the run.
    pub(crate) failures: u32,
}

/// What is known of a run by the session that works at it.
#[derive(Debug)]
pub(crate) struct Ledger {
    run: RunId,
    job: Box<str>,
    limits: Limits,
    state: Mutex<State>,
    bell: Condvar,
}

#[derive(Debug)]
pub(super) struct State {
    /// Recorded, banked or not.
    pub(super) known: HashSet<Name, BuildStraight>,
    /// Inside the COMMITs of transactions that are being decided.
    pub(super) coming: HashSet<Name, BuildStraight>,
    /// Items that are durable.
    pub(super) banked: u64,
    /// The number of the next item's row.
    pub(super) next: i64,
    /// Recorded alone, and not banked yet.
    pub(super) buffer: Items,
    pub(super) bytes: usize,
    /// When the first of them has to be.
    pub(super) due: Option<Deadline>,
    /// Recorded alone while a transaction just commits them: banked with that, or else recorded then.
    pub(super) twice: Vec<(Name, Box<[u8]>)>,
    pub(super) replacing: Option<Replacing>,
    /// Items with smaller numbers were replaced.
    pub(super) replaced_before: i64,
    pub(super) cursor: Cursor,
    pub(super) tries: Tries,
    /// Somebody counts tries: then those that come next are counted ahead.
    pub(super) counts_tries: bool,
    /// The one that comes next, until somebody does.
    pub(super) next_one: Option<(Name, Box<[u8]>)>,
    pub(super) flushed: bool,
    /// Flushes in a row that failed.
    pub(super) failures: u32,
    /// Items that a flush has in hand.
    pub(super) flying: u64,
    pub(super) stopping: Option<String>,
    /// How often somebody has gone through the items; the last time that this was not to their end; whether it ever was.
    pub(super) passes: u64,
    pub(super) left: Option<u64>,
    pub(super) exhausted: bool,
    /// The last flush is about to be made: nothing more is recorded.
    pub(super) ending: bool,
    pub(super) over: Option<Over>,
}

/// Why nothing more can be recorded.
#[derive(Clone, Debug)]
pub(super) enum Over {
    Ended,
    Unavailable(String),
    Lost { lock: String, fence: Fence },
}

/// What a transaction has claimed: the number of its first item, and which change of the cursor it makes.
#[derive(Debug)]
pub(crate) struct Claim {
    pub(crate) first: i64,
    cursor: Option<u64>,
}

/// What the background is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    Flush,
    /// And only try once.
    FlushAndStop,
    /// See whether somebody asks to stop by now.
    Look,
    End,
}

impl Ledger {
    /// `next` is the number of the next item; that of those there are is not known before they are [loaded](Self::load).
    pub(crate) fn new(run: RunId, job: &str, limits: Limits, next: i64, tries: Vec<TryRow>) -> Self {
        let room = usize::try_from(next).unwrap_or(0).min(MOST_ROOM);
        let state = State {
            known: HashSet::with_capacity_and_hasher(room, BuildStraight::default()),
            coming: HashSet::default(),
            banked: 0,
            next,
            buffer: Items::default(),
            bytes: 0,
            due: None,
            twice: Vec::new(),
            replacing: None,
            replaced_before: 0,
            cursor: Cursor::default(),
            tries: Tries::load(tries),
            counts_tries: false,
            next_one: None,
            flushed: false,
            failures: 0,
            flying: 0,
            stopping: None,
            passes: 0,
            left: None,
            exhausted: false,
            ending: false,
            over: None,
        };
        Self { run, job: job.into(), limits, state: Mutex::new(state), bell: Condvar::new() }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    pub(crate) fn run(&self) -> RunId {
        self.run
    }

    pub(crate) fn job(&self) -> &str {
        &self.job
    }

    pub(crate) fn limits(&self) -> Limits {
        self.limits
    }

    /// Takes in items that are banked.
    pub(crate) fn load(&self, items: &[Name]) {
        let mut state = self.state();
        state.known.extend(items);
        state.banked += items.len() as u64;
    }

    /// All is loaded. What is done was not tried in vain, whatever the rows say.
    pub(crate) fn loaded(&self) {
        let state = &mut *self.state();
        let done: Vec<_> = state.tries.all().map(|(name, _)| name).filter(|name| state.known.contains(name)).collect();
        done.into_iter().for_each(|name| state.tries.remove(name));
    }

    /// True when it is recorded, banked or not.
    pub(crate) fn is_done(&self, name: Name) -> bool {
        self.state().known.contains(&name)
    }

    pub(crate) fn banked(&self) -> u64 {
        self.state().banked
    }

    pub(crate) fn refuse_done(&self, name: Name, item: &[u8]) -> Result<()> {
        let state = self.state();
        state.refuse(self)?;
        state.refuse_done(self, name, item)
    }

    pub(super) fn refused(&self, item: &[u8], reason: String) -> Error {
        Error::ItemRefused { job: self.job.to_string(), item: String::from_utf8_lossy(item).into_owned(), reason }
    }

    /// Why nothing more can be banked, if so.
    pub(crate) fn over(&self) -> Option<Error> {
        self.state().over(self).err()
    }

    /// Why nothing more can be recorded, if so.
    pub(crate) fn refuse(&self) -> Result<()> {
        self.state().refuse(self)
    }

    /// Records an item that is done. True when it is time to flush.
    pub(crate) fn record(&self, name: Name, item: &[u8]) -> Result<bool> {
        let mut state = self.state();
        state.refuse(self)?;
        if state.coming.contains(&name) {
            state.twice.push((name, item.into()));
            return Ok(false);
        }
        if !state.known.insert(name) {
            return Ok(false);
        }
        state.tries.remove(name);
        state.keep(item);
        Ok(self.note_due(&mut state))
    }

    /// Where to go on, as text. True when it is time to flush.
    pub(crate) fn set_cursor(&self, cursor: String) -> Result<bool> {
        let mut state = self.state();
        state.refuse(self)?;
        state.cursor.set(cursor);
        Ok(self.note_due(&mut state))
    }

    /// Something is to be written. True when it is time to do that.
    pub(super) fn note_due(&self, state: &mut State) -> bool {
        if state.due.is_none() {
            state.due = Some(Deadline::after(self.limits.every));
            self.bell.notify_all();
        }
        !state.flushed || state.buffer.len() >= self.limits.items || state.bytes >= self.limits.bytes
    }

    /// The newest cursor, as far as one was set in this session.
    pub(crate) fn newest_cursor(&self) -> Option<String> {
        self.state().cursor.text().map(str::to_owned)
    }

    /// The job cannot read this one.
    pub(crate) fn forget_cursor(&self, text: &[u8]) {
        self.state().cursor.forget(text);
    }

    /// Takes numbers for items that are about to be committed, and for the cursor that goes with them; refused when one of them is
    /// done, or just being committed by somebody else.
    pub(crate) fn claim(&self, items: &[(Name, Box<[u8]>)], with_cursor: bool) -> Result<Claim> {
        let mut state = self.state();
        state.refuse(self)?;
        for (name, item) in items {
            state.refuse_done(self, *name, item)?;
            if state.coming.contains(name) {
                return Err(self.refused(item, "another transaction is just committing it".into()));
            }
        }
        state.coming.extend(items.iter().map(|(name, _)| *name));
        let first = state.next;
        state.next += items.len() as i64;
        let cursor = with_cursor.then(|| state.cursor.claim());
        Ok(Claim { first, cursor })
    }

    /// Writes what is known of tries, and drops what is known of these items. The try that is counted ahead goes with them alone: it
    /// begins when they are done. Written before, it would count when one of them ends the process.
    pub(crate) fn write_tries(&self, tx: &Tx<'_>, items: &[(Name, Box<[u8]>)]) -> Result<Wrote> {
        let state = self.state();
        for (name, _) in items {
            state.tries.drop_row(tx, self.run, *name)?;
        }
        let ahead = !items.is_empty();
        state.tries.write(tx, self.run, |name, known| !state.coming.contains(&name) && (ahead || !known.is_ahead()))
    }

    /// They are durable, with whatever they belong to.
    pub(crate) fn committed(&self, items: &[(Name, Box<[u8]>)], claim: &Claim, cursor: Option<&str>, wrote: &Wrote) {
        let mut state = self.state();
        for (n, (name, _)) in (claim.first..).zip(items) {
            state.coming.remove(name);
            state.twice.retain(|(twice, _)| twice != name);
            state.tries.removed(*name);
            state.bank(n, *name);
        }
        if let (Some(change), Some(text)) = (claim.cursor, cursor) {
            state.cursor.committed(change, text);
        }
        state.tries.wrote(wrote);
        state.failures = 0;
    }

    /// They were not committed.
    pub(crate) fn unclaim(&self, items: &[(Name, Box<[u8]>)], claim: &Claim) {
        let mut state = self.state();
        items.iter().for_each(|(name, _)| _ = state.coming.remove(name));
        if claim.cursor.is_some() {
            state.cursor.unclaim();
        }
        for (name, item) in std::mem::take(&mut state.twice) {
            if state.coming.contains(&name) {
                state.twice.push((name, item));
            } else if state.known.insert(name) {
                state.tries.remove(name);
                state.keep(&item);
            }
        }
        if state.cursor.news().is_some() || !state.buffer.is_empty() {
            self.note_due(&mut state);
        }
    }

    /// A flush failed for good. True when that ends the run.
    pub(crate) fn failed(&self, error: &Error, hopeless: bool) -> bool {
        let mut state = self.state();
        state.failures += 1;
        let ends = hopeless || state.failures >= self.limits.failures;
        if ends && state.over.is_none() {
            state.over = Some(match error {
                Error::LockLost { name, fence } => Over::Lost { lock: name.clone(), fence: *fence },
                error => Over::Unavailable(error.to_string()),
            });
        }
        ends
    }

    /// Nobody is to begin anything more.
    pub(crate) fn stop(&self, reason: &str) {
        self.state().stopping.get_or_insert_with(|| reason.to_owned());
        self.bell.notify_all();
    }

    pub(crate) fn is_stopping(&self) -> bool {
        let state = self.state();
        state.stopping.is_some() || state.over.is_some()
    }

    /// Why it is to stop, if so.
    pub(crate) fn stopping(&self) -> Option<String> {
        self.state().stopping.clone()
    }

    /// Its end begins: nothing is recorded any more, and the background leaves the last flush to whoever ends it.
    pub(crate) fn begin_end(&self) {
        self.state().ending = true;
        self.bell.notify_all();
    }

    /// Its end: nothing is banked any more.
    pub(crate) fn end(&self) {
        self.state().over.get_or_insert(Over::Ended);
        self.bell.notify_all();
    }

    /// Waits before a flush is tried again, the `last` one or another; less when that is not to be. True when it is not.
    pub(crate) fn pause(&self, pause: Duration, last: bool) -> bool {
        let deadline = Deadline::after(pause);
        let mut state = self.state();
        let is_called_off = |state: &State| state.stopping.is_some() || (state.ending && !last);
        while !is_called_off(&state) && !deadline.passed() {
            let waited = self.bell.wait_timeout(state, deadline.left().min(LONGEST_WAIT));
            state = waited.unwrap_or_else(|poison| poison.into_inner()).0;
        }
        is_called_off(&state)
    }

    /// Waits until the background has something to do. `stopped`: it has flushed for that already; else it looks after `look`
    /// whether it is to.
    pub(crate) fn wait_due(&self, stopped: bool, look: Duration) -> Due {
        let looking = Deadline::after(look);
        let mut state = self.state();
        loop {
            if state.ending || state.over.is_some() {
                return Due::End;
            }
            let mut left = Duration::MAX;
            if !stopped {
                if state.stopping.is_some() {
                    return Due::FlushAndStop;
                }
                match &state.due {
                    Some(due) if due.passed() => return Due::Flush,
                    _ if looking.passed() => return Due::Look,
                    Some(due) => left = due.left().min(looking.left()),
                    None => left = looking.left(),
                }
            }
            // A condition variable does not wait for ever, in these terms.
            let waited = self.bell.wait_timeout(state, left.min(LONGEST_WAIT));
            state = waited.unwrap_or_else(|poison| poison.into_inner()).0;
        }
    }
}

impl State {
    /// Takes in what is recorded alone.
    pub(super) fn keep(&mut self, item: &[u8]) {
        self.bytes += item.len() + ROW;
        self.buffer.push(item);
    }

    pub(super) fn refuse(&self, ledger: &Ledger) -> Result<()> {
        self.over(ledger)?;
        match self.ending {
            true => Err(Error::RunEnded { job: ledger.job.to_string() }),
            false => Ok(()),
        }
    }

    pub(super) fn over(&self, ledger: &Ledger) -> Result<()> {
        let unbanked = self.buffer.len() as u64 + self.flying;
        match &self.over {
            None => Ok(()),
            Some(Over::Ended) => Err(Error::RunEnded { job: ledger.job.to_string() }),
            Some(Over::Lost { lock, fence }) => Err(Error::LockLost { name: lock.clone(), fence: *fence }),
            Some(Over::Unavailable(detail)) => Err(Error::CheckpointUnavailable {
                job: ledger.job.to_string(),
                banked: self.banked,
                unbanked,
                detail: detail.clone(),
            }),
        }
    }

    pub(super) fn refuse_done(&self, ledger: &Ledger, name: Name, item: &[u8]) -> Result<()> {
        match self.known.contains(&name) || self.is_replacing(name) {
            true => Err(ledger.refused(item, "it is done already".into())),
            false => Ok(()),
        }
    }
}

/// How long the background sleeps at most.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);
/// What a row of an item takes beside its name, about.
pub(super) const ROW: usize = 16;
/// Room is made for no more items beforehand: what says how many there are may be hostile.
const MOST_ROOM: usize = 4 << 20;
