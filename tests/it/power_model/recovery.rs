//! Recovery: what opening a journal does, as `src/recovery/{drain,evidence,guards,sweep}.rs` do it. What is decided for a path is
//! not told again here: it is the engine's own table.

use std::collections::BTreeMap;

use journal_kb::__model::{Decision, Evidence, Live, decide};

use super::disk::{
    AGAIN, CREATED, DIRECTORY, Dir, EARLIER, FILE, Meta, NONE, Slot, beside, in_history, number, slots, staged,
};
use super::faults::Fault;
use super::run::{Done, Durability, Failed, Run};
use super::world::{Path, Redo, Rows, State, Txn, What};

/// Recoveries begun for a transaction before it goes to quarantine.
pub(super) const MAX_ATTEMPTS: u8 = 5;

/// The newest effect on a path, and what any unsettled commit found there.
struct Newest {
    txn: usize,
    n: usize,
    redo: Redo,
    older: Vec<Redo>,
}

impl Run<'_> {
    /// Opens the journal of a dead process, settles and closes it. What it had still to refer to goes when the next one opens it.
    pub(super) fn recover(&mut self) -> Done {
        self.open()?;
        self.tell();
        self.close()?;
        self.open()?;
        self.close()
    }

    fn open(&mut self) -> Done {
        self.commit(Durability::Normal, |rows| rows.sessions += 1);
        if self.is(Fault::ToldByAnUnsyncedLog) {
            self.tell();
        }
        self.drain()?;
        self.sweep();
        Ok(())
    }

    fn close(&mut self) -> Done {
        self.settle()?;
        self.own = 0;
        self.commit(Durability::Normal, |rows| rows.sessions = 0);
        Ok(())
    }

    fn drain(&mut self) -> Done {
        self.put_back_dead()?;
        let rows = self.rows();
        let due: Vec<usize> = (0..rows.txns.len()).filter(|&txn| self.is_due(&rows.txns[txn])).collect();
        if due.is_empty() {
            return Ok(());
        }
        self.begin_attempt(&due);
        let rows = self.rows();
        let due: Vec<usize> = due.into_iter().filter(|&txn| rows.txns[txn].state != State::Quarantined).collect();
        let newest = self.newest(&rows);
        let decided: Vec<(&Newest, Decision)> = newest
            .iter()
            .filter(|effect| due.contains(&effect.txn))
            .map(|effect| (effect, self.decide(&rows, effect)))
            .collect();
        let mut failed: Vec<usize> = self.carry_out(&decided);
        for &txn in &due {
            if rows.txns[txn].structural && !failed.contains(&txn) {
                let redo = self.rows().txns[txn].redo.clone();
                self.in_doubt = !rows.txns[txn].mark;
                if let Err(why) = self.apply(&redo, Some(txn)) {
                    self.failed.push(why.0);
                    failed.push(txn);
                }
            }
        }
        self.commit(Durability::Normal, |rows| {
            for &txn in &due {
                let row = &mut rows.txns[txn];
                if failed.contains(&txn) {
                    row.state = State::Pending;
                } else {
                    (row.attempts, row.state, row.mark) = (0, State::Applied, true);
                }
            }
        });
        Ok(())
    }

    fn is_due(&self, txn: &Txn) -> bool {
        match txn.state {
            State::Committed | State::Pending => true,
            State::Applied | State::Settling => !txn.mark && !self.is(Fault::NoteOfAnotherBoot),
            State::Settled | State::Quarantined => false,
        }
    }

    /// Counts the attempt before anything is tried.
    fn begin_attempt(&mut self, due: &[usize]) {
        let (counts, durability) = match self.fault {
            Some(Fault::AttemptNotCounted) => (0, Durability::Full),
            Some(Fault::AttemptUnsynced) => (1, Durability::Normal),
            _ => (1, Durability::Full),
        };
        self.commit(durability, |rows| {
            for &txn in due {
                let row = &mut rows.txns[txn];
                if row.attempts >= MAX_ATTEMPTS {
                    row.state = State::Quarantined;
                    continue;
                }
                row.attempts += counts;
                if matches!(row.state, State::Applied | State::Settling) {
                    row.state = State::Committed;
                }
            }
        });
        for &txn in due {
            let durable = self.books.rows(self.world.log[0]);
            if durable.txns.get(txn).is_none_or(|txn| txn.state != State::Quarantined && txn.attempts == 0) {
                self.complain(|| format!("transaction {txn} is tried, and that it was is not durable"));
            }
        }
    }

    pub(super) fn complain(&mut self, what: impl FnOnce() -> String) {
        self.wrong.get_or_insert_with(what);
    }

    /// The newest effect on each path, of everything that is neither settled nor set aside.
    fn newest(&self, rows: &Rows) -> Vec<Newest> {
        let mut newest: BTreeMap<Path, Newest> = BTreeMap::new();
        for (at, txn) in rows.txns.iter().enumerate() {
            if txn.structural || matches!(txn.state, State::Settled | State::Quarantined) {
                continue;
            }
            for (n, redo) in txn.redo.iter().enumerate() {
                if self.is(Fault::OlderOverNewer) && newest.contains_key(&redo.path) {
                    continue;
                }
                let mut older = newest.remove(&redo.path).map(|older| older.older).unwrap_or_default();
                older.push(*redo);
                newest.insert(redo.path, Newest { txn: at, n, redo: *redo, older });
            }
        }
        newest.into_values().collect()
    }

    fn decide(&self, rows: &Rows, effect: &Newest) -> Decision {
        let marked = rows.txns[effect.txn].mark && !self.is(Fault::StageIsNotBelieved);
        let marked = marked || self.is(Fault::StageOfAnotherBoot);
        let applied = marked && self.has_left_stage(&effect.redo);
        let Redo { what, ino, .. } = effect.redo;
        let available = match what {
            What::Content { data, inline: false } => {
                let whole = |staged: Meta| staged.ino == ino && !staged.empty && staged.mtime == data;
                self.world.disk.meta(effect.redo.name()).is_some_and(whole)
            }
            _ => true,
        };
        decide(Evidence { applied, live: self.classify(effect), available })
    }

    fn classify(&self, effect: &Newest) -> Live {
        let what = effect.redo.what;
        let slot = effect.redo.path.slot(&self.world.disk);
        let Some((slot, meta)) = slot.and_then(|slot| Some((slot, self.world.disk.meta(slot)?))) else {
            return if what == What::Absence { Live::New } else { Live::Empty };
        };
        let is_new = match what {
            What::Content { inline, .. } => self.has(slot, what) || !inline && meta.ino == effect.redo.ino,
            What::Symlink { .. } => self.has(slot, what),
            What::Directory => meta.kind == DIRECTORY,
            What::Absence => false,
            What::Move { .. } => meta.ino == effect.redo.ino,
        };
        if is_new {
            return Live::New;
        }
        if effect.older.iter().any(|older| older.old.is_some_and(|old| old.is(meta, false))) {
            return Live::PreImage;
        }
        // A rename into history that is half done has moved its ctime on.
        let linked = |of: &Redo| self.world.disk.at(in_history(of.preimage())) == meta.ino;
        let is_old = |of: &Redo| of.old.is_some_and(|old| old.is(meta, true));
        if effect.older.iter().any(linked) && effect.older.iter().any(is_old) {
            return Live::PreImage;
        }
        if what != What::Absence && meta.kind == FILE && meta.empty { Live::Empty } else { Live::Other }
    }

    /// What the stage shows: the new version until that is in place, then the old one, or nothing.
    fn has_left_stage(&self, redo: &Redo) -> bool {
        let names = [redo.name(), beside(redo.name(), AGAIN)].map(|name| self.world.disk.meta(name));
        let old = names.iter().flatten().any(|meta| redo.old.is_some_and(|old| old.is(*meta, true)));
        match redo.what {
            What::Content { .. } | What::Symlink { .. } => old || names.iter().all(Option::is_none),
            What::Absence => old,
            What::Directory | What::Move { .. } => false,
        }
    }

    /// Carries decisions out, and answers for which transactions something failed.
    fn carry_out(&mut self, decided: &[(&Newest, Decision)]) -> Vec<usize> {
        let mut failed = Vec::new();
        let mut places: Vec<(&Newest, Option<u8>)> = Vec::new();
        for &(effect, decision) in decided {
            match self.begin_carrying_out(effect, decision) {
                Ok(None) => {}
                Ok(Some(again)) => places.push((effect, again)),
                Err(why) => {
                    self.failed.push(why.0);
                    failed.push(effect.txn);
                }
            }
        }
        if !self.is(Fault::RewriteNotRecorded) {
            self.commit(Durability::Normal, |rows| {
                for (effect, again) in &places {
                    if let Some(ino) = again {
                        rows.txns[effect.txn].redo[effect.n].ino = *ino;
                    }
                }
            });
        }
        for (effect, again) in places {
            if let Err(why) = self.put_in_place(effect, again.is_some()) {
                self.failed.push(why.0);
                failed.push(effect.txn);
            }
        }
        failed
    }

    /// Some: it is to be put in place, from the stage or written once more as this inode.
    fn begin_carrying_out(&mut self, effect: &Newest, decision: Decision) -> Done<Option<Option<u8>>> {
        let Newest { redo, older, .. } = effect;
        let live = self.look(redo.path);
        self.reconcile(redo, older, live)?;
        match decision {
            Decision::Keep | Decision::KeepTheirs => return self.judge_staged(redo, older).map(|()| None),
            Decision::Lost => return Err(Failed("nothing to apply from")),
            Decision::Apply | Decision::ApplyAside => {}
        }
        if let What::Absence | What::Directory = redo.what {
            let slot = self.slot_again(redo.path)?;
            if live.is_some() {
                let again = beside(redo.name(), AGAIN);
                self.take(slot, again)?;
                self.keep(redo, older, again)?;
            }
            if redo.what == What::Directory {
                self.make(slot, DIRECTORY, NONE, CREATED);
            }
            self.judge_staged(redo, older)?;
            return Ok(None);
        }
        match redo.what {
            What::Content { inline: false, .. } => Ok(Some(None)),
            _ => self.begin_again(redo).map(|ino| Some(Some(ino))),
        }
    }

    fn put_in_place(&mut self, effect: &Newest, again: bool) -> Done {
        let Newest { redo, older, .. } = effect;
        let name = if again { beside(redo.name(), AGAIN) } else { redo.name() };
        if again {
            self.fill_again(redo);
        }
        let slot = self.slot_again(redo.path)?;
        if self.place(name, slot)? {
            if self.is(Fault::ReplacedIsUnlinked) {
                self.unlink(name);
            }
            self.keep(redo, older, name)?;
        } else {
            let live = self.look(redo.path);
            self.reconcile(redo, older, live)?;
        }
        self.judge_staged(redo, older)
    }

    /// Where a path is; the directory it lies in is made again where somebody removed it.
    fn slot_again(&mut self, path: Path) -> Done<Slot> {
        if let Some(slot) = path.slot(&self.world.disk) {
            return Ok(slot);
        }
        if self.world.disk.at(path.0) != 0 {
            return Err(Failed("what is on the way is no directory"));
        }
        self.make(path.0, DIRECTORY, NONE, CREATED);
        path.slot(&self.world.disk).ok_or(Failed("a directory was made and is not there"))
    }

    /// Removes what dead sessions left in the stage and no row refers to; moves to history what belongs there.
    fn sweep(&mut self) {
        if self.rows().sessions > 1 {
            // What a dead process wrote to the log may not be durable: it is, before anything follows from it that is not undone.
            let durability = if self.is(Fault::SweptByAnUnsyncedLog) { Durability::Normal } else { Durability::Full };
            self.commit(durability, |rows| rows.sessions = 1);
        }
        let rows = self.rows();
        for name in slots(Dir::Stage) {
            if self.world.disk.at(name) == 0 || self.own & (1 << number(name)) != 0 {
                continue;
            }
            let base = number(name);
            let by_redo = rows.txns.iter().flat_map(|txn| &txn.redo).any(|redo| redo.staged == base);
            let is_settled = |txn: &&Txn| txn.state == State::Settled;
            let belongs = rows.txns.iter().filter(is_settled).flat_map(|txn| &txn.changes);
            if belongs.into_iter().any(|change| change.preimage == name) {
                self.move_to_history(name);
                continue;
            }
            let by_change = |txn: &Txn| txn.changes.iter().any(|change| number(change.preimage) == base);
            let by_guard = rows.guard.iter().flat_map(|guard| &guard.images).any(|image| image.staged == base);
            let unsettled = rows.txns.iter().filter(|txn| !is_settled(txn));
            let refers = by_redo || by_guard || unsettled.into_iter().any(by_change);
            if !refers || self.is(Fault::SweptThoughReferredTo) {
                self.unlink(name);
            }
        }
    }

    /// The first name for what was displaced earlier that is free.
    pub(super) fn clear(&mut self, image: u8) -> Done {
        let name = staged(image, super::disk::PLAIN);
        if self.world.disk.at(name) == 0 {
            return Ok(());
        }
        let free = EARLIER.map(|suffix| beside(name, suffix)).into_iter().find(|name| self.world.disk.at(*name) == 0);
        self.take(name, free.ok_or(Failed("more was displaced than the model has names for"))?).map(drop)
    }

    /// What lies where, for people.
    pub(super) fn meta_at(&self, slot: Slot) -> Option<Meta> {
        self.world.disk.meta(slot)
    }
}
