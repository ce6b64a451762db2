//! Settling, as `src/txn/settle.rs` does it.

use super::disk::{AGAIN, Dir, beside};
use super::faults::Fault;
use super::run::{Done, Durability, Run};
use super::staged::SYNC_ONE_BY_ONE;
use super::world::{Id, Path, Redo, State, Txn, What};

impl Run<'_> {
    /// Notes that the newest commit of this process is in the tree.
    pub(super) fn write_late(&mut self) {
        if let Some(txn) = self.unnoted.take() {
            self.commit(Durability::Normal, |rows| {
                if rows.txns[txn].state == State::Committed {
                    rows.txns[txn].state = State::Applied;
                }
            });
        }
    }

    /// Makes the live tree durable, and drops redo content.
    pub(super) fn settle(&mut self) -> Done {
        self.write_late();
        let rows = self.rows();
        let settles = |txn: &Txn| match txn.state {
            State::Settling => true,
            State::Applied => txn.mark || self.is(Fault::NoteOfAnotherBoot),
            _ => false,
        };
        let set: Vec<usize> = (0..rows.txns.len()).filter(|&txn| settles(&rows.txns[txn])).collect();
        if set.is_empty() {
            return Ok(());
        }
        let suspect: Vec<usize> = set.iter().copied().filter(|&txn| rows.txns[txn].state == State::Settling).collect();
        self.commit(Durability::Normal, |rows| {
            set.iter().for_each(|&txn| rows.txns[txn].state = State::Settling);
        });
        let mut newest: Vec<(usize, usize, Redo)> = Vec::new();
        let mut whole = false;
        for &txn in &set {
            whole |= rows.txns[txn].structural;
            for (n, redo) in rows.txns[txn].redo.iter().enumerate() {
                let before = newest.len();
                newest.retain(|(.., other)| other.path != redo.path);
                // An older version of the same path is in the stage by now.
                whole |= newest.len() < before;
                newest.push((txn, n, *redo));
            }
        }
        if !suspect.is_empty() && !self.is(Fault::SettlingIsNotRewritten) {
            whole = true;
            for (txn, n, redo) in newest.iter().filter(|(txn, ..)| suspect.contains(txn)) {
                self.rewrite_suspect(*txn, *n, redo)?;
            }
        }
        if self.is(Fault::SettledBeforeSync) {
            self.note_settled(&set);
        }
        let old: Vec<Redo> =
            set.iter().flat_map(|&txn| &rows.txns[txn].redo).filter(|redo| redo.old.is_some()).copied().collect();
        old.iter().for_each(|redo| self.move_to_history(redo.preimage()));
        let newest: Vec<Redo> = newest.into_iter().map(|(.., redo)| redo).collect();
        self.sync_settling(&newest, !old.is_empty(), whole || newest.len() > SYNC_ONE_BY_ONE);
        if !self.is(Fault::SettledBeforeSync) {
            self.note_settled(&set);
        }
        Ok(())
    }

    fn note_settled(&mut self, set: &[usize]) {
        let durability = if self.is(Fault::SettledUnsynced) { Durability::Normal } else { Durability::Full };
        self.commit(durability, |rows| {
            for &txn in set {
                let txn = &mut rows.txns[txn];
                (txn.state, txn.mark) = (State::Settled, false);
                txn.redo.clear();
            }
        });
    }

    fn sync_settling(&mut self, newest: &[Redo], history: bool, whole: bool) {
        if whole {
            if !self.is(Fault::LiveFilesUnsynced) {
                self.sync_all();
            }
            return;
        }
        for redo in newest {
            // One that is gone or was replaced is passed over.
            if let What::Content { .. } = redo.what
                && !self.is(Fault::LiveFilesUnsynced)
                && let Some(slot) = redo.path.slot(&self.world.disk)
                && self.world.disk.at(slot) == self.recorded_ino(redo)
            {
                self.sync_file(slot);
            }
        }
        if !self.is(Fault::LiveDirectoriesUnsynced) {
            let mut dirs: Vec<Path> = newest.iter().map(|redo| redo.path).collect();
            dirs.dedup_by_key(|path| path.parent());
            dirs.iter().for_each(|path| self.sync_dir_of(*path));
            let made = newest.iter().filter(|redo| redo.what == What::Directory);
            for redo in made {
                self.sync_dir_of(Path(redo.path.0, 1));
            }
        }
        if !self.is(Fault::StageUnsyncedBySettle) {
            self.sync_dir(Dir::Stage);
        }
        if history && !self.is(Fault::HistoryUnsynced) {
            self.sync_dir(Dir::History);
        }
    }

    /// The inode as the rows have it by now: a rewrite has changed it.
    fn recorded_ino(&self, redo: &Redo) -> u8 {
        let rows = self.rows();
        let found = rows.txns.iter().flat_map(|txn| &txn.redo).find(|row| row.staged == redo.staged);
        found.map_or(redo.ino, |row| row.ino)
    }

    /// After a settle that was cut short: what still has the new content gets it again, in a new inode.
    fn rewrite_suspect(&mut self, txn: usize, n: usize, redo: &Redo) -> Done {
        let What::Content { inline, .. } = redo.what else { return Ok(()) };
        let live = self.look(redo.path);
        self.reconcile(redo, std::slice::from_ref(redo), live)?;
        let Some(slot) = redo.path.slot(&self.world.disk) else { return Ok(()) };
        if !inline || !self.has(slot, redo.what) {
            return Ok(());
        }
        let found = live.map(Id::from);
        let again = beside(redo.name(), AGAIN);
        let ino = self.begin_again(redo)?;
        self.commit(Durability::Normal, |rows| rows.txns[txn].redo[n].ino = ino);
        self.fill_again(redo);
        self.place(again, slot)?;
        match self.world.disk.meta(again) {
            Some(back) if found.is_some_and(|found| found.is(back, true)) => self.unlink(again),
            Some(_) => self.set_aside(again)?,
            None => {}
        }
        Ok(())
    }
}
