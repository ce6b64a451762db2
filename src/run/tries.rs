//! Which items are being tried, have failed, or were set aside: few, beside those that are done.

use std::collections::{BTreeSet, HashMap};

use super::item::{BuildStraight, Name};
use super::rows::{self, TryRow};
use super::state::TryState;
use crate::error::Result;
use crate::id::RunId;
use crate::store::Tx;

/// How an item stands that was tried, or is about to be, and is not done.
#[derive(Debug)]
pub(super) struct Try {
    item: Box<[u8]>,
    /// Of its row.
    n: i64,
    pub(super) tries: u32,
    pub(super) state: TryState,
    pub(super) error: String,
    /// Somebody works on it. Until then it is only counted ahead.
    pub(super) begun: bool,
    /// What it was before it was tried once more, to be that again if it was not.
    before: Option<(u32, String)>,
    /// It failed by being dropped: why may still be said.
    pub(super) dropped: bool,
    /// It was among the items that the source had, in this session.
    pub(super) seen: bool,
    /// Counts its changes; the row has those up to `saved`.
    change: u64,
    saved: u64,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Tries {
    by_name: HashMap<Name, Try, BuildStraight>,
    next: i64,
    /// Whose rows do not say yet what is known here.
    unsaved: Vec<Name>,
    /// Rows that are there and should not be.
    gone: BTreeSet<i64>,
}

/// What a SQLite transaction says of them, once it is committed.
#[derive(Debug, Default)]
pub(crate) struct Wrote {
    saved: Vec<(Name, u64)>,
    gone: Vec<i64>,
    /// Which change of the cursor a flush has written with them.
    pub(super) cursor: Option<u64>,
}

impl Try {
    /// True when its row says all that is known.
    pub(super) fn is_saved(&self) -> bool {
        self.saved == self.change
    }

    /// True while it is only counted ahead.
    pub(super) fn is_ahead(&self) -> bool {
        self.state == TryState::Trying && !self.begun
    }
}

impl Tries {
    pub(super) fn load(rows: Vec<TryRow>) -> Self {
        let mut tries = Self::default();
        for TryRow { n, item, tries: count, state, error } in rows {
            tries.next = tries.next.max(n + 1);
            let known = Try {
                n,
                tries: count,
                state,
                error,
                begun: false,
                before: None,
                dropped: false,
                seen: false,
                change: 1,
                saved: 1,
                item: item.into(),
            };
            tries.by_name.insert(Name::of(&known.item), known);
        }
        tries
    }

    pub(super) fn get(&self, name: Name) -> Option<&Try> {
        self.by_name.get(&name)
    }

    pub(super) fn get_mut(&mut self, name: Name) -> Option<&mut Try> {
        self.by_name.get_mut(&name)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (Name, &Try)> {
        self.by_name.iter().map(|(name, entry)| (*name, entry))
    }

    pub(super) fn item(&self, name: Name) -> Option<Box<[u8]>> {
        self.by_name.get(&name).map(|entry| entry.item.clone())
    }

    /// Counts one try more, `begun` at once or ahead.
    pub(super) fn count(&mut self, name: Name, item: &[u8], begun: bool) {
        let next = &mut self.next;
        let entry = self.by_name.entry(name).or_insert_with(|| {
            *next += 1;
            Try {
                item: item.into(),
                n: *next - 1,
                tries: 0,
                state: TryState::Failed,
                error: String::new(),
                begun,
                before: None,
                dropped: false,
                seen: true,
                change: 0,
                saved: 0,
            }
        });
        entry.before = Some((entry.tries, std::mem::take(&mut entry.error)));
        entry.tries += 1;
        (entry.state, entry.begun, entry.seen, entry.dropped) = (TryState::Trying, begun, true, false);
        self.changed(name);
    }

    /// It was not tried after all.
    pub(super) fn uncount(&mut self, name: Name) {
        let Some(entry) = self.by_name.get_mut(&name).filter(|entry| entry.state == TryState::Trying) else { return };
        match entry.before.take() {
            Some((0, _)) | None => self.remove(name),
            Some((tries, error)) => {
                (entry.tries, entry.error, entry.state, entry.begun) = (tries, error, TryState::Failed, false);
                self.changed(name);
            }
        }
    }

    /// It came to nothing. Set aside when that was the last try that it had. True when it was.
    pub(super) fn fail(&mut self, name: Name, error: &str, most: u32) -> bool {
        let Some(entry) = self.by_name.get_mut(&name) else { return false };
        if entry.state == TryState::Trying {
            entry.state = if entry.tries >= most { TryState::Aside } else { TryState::Failed };
        }
        (entry.error, entry.begun, entry.before, entry.dropped) = (error.to_owned(), false, None, false);
        let aside = entry.state == TryState::Aside;
        self.changed(name);
        aside
    }

    /// It is done, or nobody wants it any more.
    pub(super) fn remove(&mut self, name: Name) {
        if let Some(entry) = self.by_name.remove(&name) {
            self.gone.insert(entry.n);
        }
    }

    /// It is done, and a COMMIT has dropped its row.
    pub(super) fn removed(&mut self, name: Name) {
        self.by_name.remove(&name);
    }

    /// True when there is something to write that does not wait for the commit of another item.
    pub(super) fn has_news(&self) -> bool {
        let waits = |name| self.by_name.get(name).is_some_and(Try::is_ahead);
        !self.gone.is_empty() || !self.unsaved.iter().all(waits)
    }

    fn changed(&mut self, name: Name) {
        if let Some(entry) = self.by_name.get_mut(&name) {
            // Of many that fail, none is to be looked for among the others.
            if entry.is_saved() {
                self.unsaved.push(name);
            }
            entry.change += 1;
        }
    }

    /// Writes what the rows do not say yet, of those that `takes` takes.
    pub(super) fn write(&self, tx: &Tx<'_>, run: RunId, takes: impl Fn(Name, &Try) -> bool) -> Result<Wrote> {
        let mut wrote = Wrote { gone: self.gone.iter().copied().collect(), ..Wrote::default() };
        for n in &self.gone {
            rows::drop_try(tx, run, *n)?;
        }
        for &name in &self.unsaved {
            let Some(entry) = self.by_name.get(&name).filter(|entry| takes(name, entry)) else { continue };
            rows::put_try(tx, run, entry.n, &entry.item, entry.tries, entry.state, &entry.error)?;
            wrote.saved.push((name, entry.change));
        }
        Ok(wrote)
    }

    /// Drops the row of an item that is committed with the same SQLite transaction.
    pub(super) fn drop_row(&self, tx: &Tx<'_>, run: RunId, name: Name) -> Result<()> {
        self.by_name.get(&name).map_or(Ok(()), |entry| rows::drop_try(tx, run, entry.n))
    }

    /// It is committed.
    pub(super) fn wrote(&mut self, wrote: &Wrote) {
        for (name, change) in &wrote.saved {
            if let Some(entry) = self.by_name.get_mut(name) {
                entry.saved = entry.saved.max(*change);
            }
        }
        wrote.gone.iter().for_each(|n| _ = self.gone.remove(n));
        let by_name = &self.by_name;
        self.unsaved.retain(|name| by_name.get(name).is_some_and(|entry| entry.saved < entry.change));
    }
}
