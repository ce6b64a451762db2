//! Staged transactions: prepare, commit, apply, note, settle; as `src/txn/{prepare,commit,apply,displaced,settle}.rs` do it.

use super::disk::{
    AGAIN, CREATED, DIRECTORY, Dir, EMPTY, FILE, FILES, Meta, NONE, PLAIN, PRE, SYMLINK, Slot, beside, staged,
};
use super::faults::Fault;
use super::run::{Done, Durability, Failed, Run};
use super::world::{Change, Id, Path, Redo, State, Txn, What};

/// What a transaction of a script does to one path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Do {
    Write(Path, u8),
    /// Content too large for the journal.
    WriteLarge(Path, u8),
    Symlink(Path, u8),
    Remove(Path),
    MakeDir(Path),
    /// Moves a file or directory.
    Move(Path, Path),
}

/// From so many paths on a settle syncs the whole filesystem.
pub(super) const SYNC_ONE_BY_ONE: usize = 4;

/// The effect that found this version at its path.
fn found_by(older: &[Redo], meta: Meta) -> Option<&Redo> {
    older.iter().find(|of| of.old.is_some_and(|old| old.is(meta, true)))
}

impl Redo {
    fn is_large(&self) -> bool {
        matches!(self.what, What::Content { inline: false, .. })
    }

    pub(super) fn preimage(&self) -> Slot {
        match self.what {
            What::Move { .. } => staged(self.staged, PRE),
            _ => staged(self.staged, PLAIN),
        }
    }

    pub(super) fn name(&self) -> Slot {
        staged(self.staged, PLAIN)
    }
}

impl Run<'_> {
    pub(super) fn look(&self, path: Path) -> Option<Meta> {
        self.world.disk.meta(path.slot(&self.world.disk)?)
    }

    /// Stages, prepares, commits and applies. Answers when the caller would have its `Ok`.
    pub(super) fn transact(&mut self, of: u8, work: &[Do]) -> Done {
        let redo: Vec<Redo> = work.iter().map(|work| self.prepare(*work)).collect();
        let lifts_directory = |redo: &Redo| redo.what == What::Absence && redo.old.is_some_and(|old| old.ino >= FILES);
        let structural = redo.iter().any(|redo| matches!(redo.what, What::Move { .. }) || lifts_directory(redo));
        self.sync_large(&redo);
        if structural {
            // Where directories move, everything before is durable first.
            self.write_late();
            self.settle()?;
        }
        let changes = redo.iter().filter_map(|redo| self.change(redo)).collect();
        let of = Some(of);
        let at = self.rows().txns.len();
        let txn = Txn {
            of,
            state: State::Committed,
            structural,
            attempts: 0,
            mark: true,
            redo: redo.clone(),
            changes,
            waits: false,
        };
        if self.is(Fault::ApplyBeforeCommit) {
            self.apply(&redo, None)?;
        }
        let later = self.is(Fault::CommitUnsynced) || self.is(Fault::ToldBeforeSync);
        let durability = if later { Durability::Normal } else { Durability::Full };
        let unnoted = self.unnoted.take();
        self.commit(durability, |rows| {
            if let Some(before) = unnoted {
                rows.txns[before].state = State::Applied;
            }
            rows.txns.push(txn);
        });
        if self.is(Fault::ToldBeforeSync) {
            self.tell();
            self.commit(Durability::Full, |_| ());
        }
        if !self.is(Fault::ApplyBeforeCommit) {
            self.apply(&redo, None)?;
        }
        self.unnoted = Some(at);
        if structural {
            self.write_late();
            self.settle()?;
        }
        self.world.ghost.acknowledged += 1;
        Ok(())
    }

    /// The change row of an effect. What an earlier transaction put there, and nobody has made durable, is not promised to be
    /// kept.
    fn change(&self, redo: &Redo) -> Option<Change> {
        redo.old?;
        let slot = redo.path.slot(&self.world.disk)?;
        let rows = self.rows();
        let unsettled = rows.txns.iter().filter(|txn| txn.state != State::Settled).flat_map(|txn| &txn.redo);
        let is_durable = unsettled.into_iter().all(|other| other.path != redo.path) && !self.is_dirty_at(slot);
        let was = if is_durable { self.content_at(slot) } else { NONE };
        Some(Change { path: redo.path, preimage: redo.preimage(), was })
    }

    fn is_dirty_at(&self, slot: Slot) -> bool {
        self.world.disk.is_dirty(self.world.disk.at(slot) as usize)
    }

    /// What somebody who looks there sees; of a directory, what its first name holds.
    pub(super) fn content_at(&self, slot: Slot) -> u8 {
        match self.world.disk.at(slot).checked_sub(FILES) {
            Some(tree) => self.world.disk.data(super::disk::slots(Dir::Tree(tree)).start),
            None => self.world.disk.data(slot),
        }
    }

    fn prepare(&mut self, work: Do) -> Redo {
        let number = self.fresh_number();
        let name = staged(number, PLAIN);
        let (path, what) = match work {
            Do::Write(path, data) => (path, What::Content { data, inline: true }),
            Do::WriteLarge(path, data) => (path, What::Content { data, inline: false }),
            Do::Symlink(path, data) => (path, What::Symlink { data }),
            Do::Remove(path) => (path, What::Absence),
            Do::MakeDir(path) => (path, What::Directory),
            Do::Move(from, to) => (to, What::Move { from }),
        };
        let old = self.look(path).map(Id::from);
        let ino = match what {
            What::Content { data, .. } => {
                let ino = self.make(name, FILE, EMPTY, CREATED);
                self.write(name, data, data);
                ino
            }
            What::Symlink { data } => self.make(name, SYMLINK, data, data),
            What::Move { from } => self.look(from).map_or(0, |meta| meta.ino),
            What::Directory | What::Absence => 0,
        };
        Redo { path, what, staged: number, ino, old }
    }

    /// What does not ride in the log is durable, with its name in the stage, before the COMMIT that relies on it.
    fn sync_large(&mut self, redo: &[Redo]) {
        let large: Vec<&Redo> = redo.iter().filter(|redo| redo.is_large()).collect();
        if large.is_empty() {
            return;
        }
        if !self.is(Fault::StagedFileUnsynced) {
            large.iter().for_each(|redo| self.sync_file(redo.name()));
        }
        if !self.is(Fault::StageUnsyncedBeforeCommit) {
            self.sync_dir(Dir::Stage);
        }
    }

    /// Carries the steps of a transaction into the tree. `again`: this is its recovery, and it looks how far it had come.
    pub(super) fn apply(&mut self, redo: &[Redo], again: Option<usize>) -> Done {
        let source = |redo: &Redo| match redo.what {
            What::Move { from } => from,
            _ => redo.path,
        };
        let mut lifts: Vec<&Redo> =
            redo.iter().filter(|redo| matches!(redo.what, What::Absence | What::Move { .. })).collect();
        lifts.sort_by_key(|redo| std::cmp::Reverse(source(redo)));
        for lift in lifts {
            match lift.what {
                What::Move { from } => self.lift(lift, from, again.is_some())?,
                _ => self.remove(lift, again.is_some())?,
            }
        }
        for (n, redo) in redo.iter().enumerate() {
            match redo.what {
                What::Absence => {}
                What::Directory => self.make_directory(redo)?,
                What::Content { .. } | What::Symlink { .. } => self.version(redo, again.map(|txn| (txn, n)))?,
                What::Move { .. } => self.place_moved(redo, again.is_some())?,
            }
        }
        Ok(())
    }

    fn remove(&mut self, redo: &Redo, again: bool) -> Done {
        if again && self.world.disk.at(redo.name()) != 0 {
            return self.keep(redo, std::slice::from_ref(redo), redo.name());
        }
        let Some(slot) = redo.path.slot(&self.world.disk) else { return Ok(()) };
        if self.is(Fault::ReplacedIsUnlinked) {
            self.unlink(slot);
            return Ok(());
        }
        match self.take(slot, redo.name())? {
            true => self.keep(redo, std::slice::from_ref(redo), redo.name()),
            false => Ok(()),
        }
    }

    fn lift(&mut self, redo: &Redo, from: Path, again: bool) -> Done {
        let there = |meta: Option<Meta>| meta.is_some_and(|meta| meta.ino == redo.ino);
        if again {
            if self.world.disk.at(redo.name()) == redo.ino || there(self.look(redo.path)) {
                return self.clear_source(redo, from, there(self.look(from)));
            }
            if !there(self.look(from)) {
                return Err(Failed("what is to be moved is gone"));
            }
        }
        let slot = from.slot(&self.world.disk).ok_or(Failed("what is to be moved is gone"))?;
        self.take(slot, redo.name()).map(drop)
    }

    /// What is moved has left its path. A power cut may have left both names of that rename, or an older version there.
    fn clear_source(&mut self, redo: &Redo, from: Path, is_it: bool) -> Done {
        let Some(slot) = from.slot(&self.world.disk).filter(|_| !self.is(Fault::BothNamesStay)) else {
            return Ok(());
        };
        if is_it {
            self.unlink(slot);
        } else if self.in_doubt && self.take(slot, beside(redo.name(), AGAIN))? {
            self.set_aside(beside(redo.name(), AGAIN))?;
        }
        Ok(())
    }

    fn make_directory(&mut self, redo: &Redo) -> Done {
        let slot = redo.path.slot(&self.world.disk).ok_or(Failed("there is no directory to make it in"))?;
        match self.world.disk.meta(slot) {
            None => drop(self.make(slot, DIRECTORY, NONE, CREATED)),
            Some(meta) if meta.kind == DIRECTORY => {}
            Some(_) => {
                self.take(slot, redo.name())?;
                self.make(slot, DIRECTORY, NONE, CREATED);
                self.keep(redo, std::slice::from_ref(redo), redo.name())?;
            }
        }
        Ok(())
    }

    fn version(&mut self, redo: &Redo, again: Option<(usize, usize)>) -> Done {
        let slot = redo.path.slot(&self.world.disk).ok_or(Failed("there is no directory to put it in"))?;
        if let Some((txn, n)) = again {
            let live = self.look(redo.path);
            self.reconcile(redo, std::slice::from_ref(redo), live)?;
            let there = match redo.what {
                What::Content { inline: false, .. } => live.is_some_and(|live| live.ino == redo.ino),
                _ => self.has(slot, redo.what),
            };
            if there {
                return Ok(());
            }
            if !redo.is_large() || self.world.disk.at(redo.name()) != redo.ino {
                return self.rewrite(redo, txn, n);
            }
        }
        if self.place(redo.name(), slot)? {
            if self.is(Fault::ReplacedIsUnlinked) {
                self.unlink(redo.name());
            }
            self.keep(redo, std::slice::from_ref(redo), redo.name())?;
        }
        Ok(())
    }

    /// True when there is the very content or symlink that is wanted.
    pub(super) fn has(&self, slot: Slot, what: What) -> bool {
        let Some(meta) = self.world.disk.meta(slot) else { return false };
        match what {
            What::Content { data, .. } => meta.kind == FILE && self.world.disk.data(slot) == data,
            What::Symlink { data } => meta.kind == SYMLINK && self.world.disk.data(slot) == data,
            _ => false,
        }
    }

    /// Writes a new version once more from the journal, and puts it in place.
    fn rewrite(&mut self, redo: &Redo, txn: usize, n: usize) -> Done {
        let again = beside(redo.name(), AGAIN);
        let ino = self.begin_again(redo)?;
        self.commit(Durability::Normal, |rows| rows.txns[txn].redo[n].ino = ino);
        self.fill_again(redo);
        let slot = redo.path.slot(&self.world.disk).ok_or(Failed("there is no directory to put it in"))?;
        if self.place(again, slot)? {
            self.keep(redo, std::slice::from_ref(redo), again)?;
        }
        self.judge_staged(redo, std::slice::from_ref(redo))
    }

    /// What lies under the staged names of everything that was to come to a path, now that it has its newest version: old
    /// versions, what was never published, or somebody's work, be it in an inode of ours.
    pub(super) fn judge_staged(&mut self, redo: &Redo, older: &[Redo]) -> Done {
        for of in older {
            let name = of.name();
            let Some(meta) = self.world.disk.meta(name) else { continue };
            let is_live = self.look(redo.path).is_some_and(|live| live.ino == meta.ino);
            let by_number = self.is(Fault::NumbersAreProof) && meta.ino == of.ino;
            let ours = by_number || self.has(name, of.what) || meta.kind == FILE && meta.empty;
            if found_by(older, meta).is_none() && (is_live || ours) {
                self.unlink(name);
            } else {
                self.keep(of, older, name)?;
            }
        }
        Ok(())
    }

    /// A new version that is written once more: there, with an inode, and empty yet.
    pub(super) fn begin_again(&mut self, redo: &Redo) -> Done<u8> {
        let again = beside(redo.name(), AGAIN);
        if self.world.disk.at(again) != 0 {
            return Err(Failed("a name that should be free is taken"));
        }
        match redo.what {
            What::Content { inline: true, .. } => Ok(self.make(again, FILE, EMPTY, CREATED)),
            What::Symlink { data } => Ok(self.make(again, SYMLINK, data, data)),
            _ => Err(Failed("there is nothing to write it from")),
        }
    }

    pub(super) fn fill_again(&mut self, redo: &Redo) {
        if let What::Content { data, .. } = redo.what {
            self.write(beside(redo.name(), AGAIN), data, data);
        }
    }

    fn place_moved(&mut self, redo: &Redo, again: bool) -> Done {
        if again {
            let live = self.look(redo.path);
            self.reconcile(redo, std::slice::from_ref(redo), live)?;
            if live.is_some_and(|live| live.ino == redo.ino) {
                if self.world.disk.at(redo.name()) == redo.ino && !self.is(Fault::BothNamesStay) {
                    self.unlink(redo.name());
                }
                return self.keep(redo, std::slice::from_ref(redo), redo.name());
            }
        }
        let slot = redo.path.slot(&self.world.disk).ok_or(Failed("there is no directory to put it in"))?;
        match self.place(redo.name(), slot)? {
            true => self.keep(redo, std::slice::from_ref(redo), redo.name()),
            false => Ok(()),
        }
    }

    /// What came out of the tree is kept for history if it is what this or an earlier transaction found there, else for a person.
    pub(super) fn keep(&mut self, redo: &Redo, older: &[Redo], name: Slot) -> Done {
        let Some(meta) = self.world.disk.meta(name) else { return Ok(()) };
        if let Some(of) = found_by(older, meta) {
            let of = if self.is(Fault::OldVersionsShareAName) { redo } else { of };
            return self.keep_as(of.preimage(), name, older);
        }
        let ours = matches!(redo.what, What::Content { .. }) && redo.ino == meta.ino;
        if meta.kind == FILE && meta.empty && ours {
            self.unlink(name);
            return Ok(());
        }
        self.set_aside(name)
    }

    /// Gives an old version the name that its row knows it by.
    fn keep_as(&mut self, kept: Slot, name: Slot, older: &[Redo]) -> Done {
        if kept == name {
            return Ok(());
        }
        if let Some(there) = self.world.disk.meta(kept) {
            if there.ino == self.world.disk.at(name) {
                self.unlink(name);
                return Ok(());
            }
            let elsewhere = found_by(older, there).map(Redo::preimage).filter(|other| *other != kept);
            let by_number = |of: &Redo| self.is(Fault::NumbersAreProof) && of.ino == there.ino;
            let ours = |of: &Redo| of.name() == kept && (by_number(of) || self.has(kept, of.what));
            match elsewhere {
                _ if self.is(Fault::OldVersionsShareAName) => self.unlink(kept),
                Some(other) if other == name => {
                    self.exchange(kept, name);
                    return Ok(());
                }
                Some(other) => self.keep_as(other, kept, older)?,
                // The temporary file of the first try: never published.
                None if there.empty || older.iter().any(ours) => self.unlink(kept),
                None => self.set_aside(kept)?,
            }
        }
        self.rename(name, kept);
        Ok(())
    }

    /// Puts right what a recovery that was cut short left in the stage for one effect.
    pub(super) fn reconcile(&mut self, redo: &Redo, older: &[Redo], live: Option<Meta>) -> Done {
        let name = beside(redo.name(), AGAIN);
        let Some(meta) = self.world.disk.meta(name) else { return Ok(()) };
        let ours = match redo.what {
            What::Content { data, .. } => {
                let exchanged = live.is_some_and(|live| live.ino == redo.ino);
                let begun = meta.empty || self.is(Fault::NumbersAreProof) && meta.ino == redo.ino;
                let untouched = self.is(Fault::NumbersAreProof) && !meta.empty && meta.mtime == data;
                meta.kind == FILE && ((begun && !exchanged) || untouched || self.has(name, redo.what))
            }
            What::Symlink { .. } => self.has(name, redo.what),
            _ => false,
        };
        let old = found_by(older, meta).is_some();
        let linked = live.is_some_and(|live| live.ino == meta.ino && live.kind != DIRECTORY);
        if linked || (ours && !old) {
            self.unlink(name);
            return Ok(());
        }
        self.keep(redo, older, name)
    }
}
