//! Guards: what is kept, what became of it, how it is put back; as `src/txn/{guard,taken,guarding,rollback,absorb}.rs` and
//! `src/tree/restorer.rs` do it.

use super::disk::{AGAIN, Dir, EARLIER, EMPTY, FILE, Meta, NONE, PLAIN, SYMLINK, Slot, beside, slots, staged};
use super::faults::Fault;
use super::recovery::MAX_ATTEMPTS;
use super::run::{Done, Durability, Failed, Run};
use super::world::{Change, Guard, Id, Image, Path, State, Txn, Was};

/// What somebody does to a guarded path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    Replace(Path, u8),
    WriteInPlace(Path, u8),
    Remove(Path),
}

/// How a guard ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Commit,
    Rollback,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Difference {
    None,
    /// The same file, with another time.
    Attributes,
    All,
}

impl Image {
    pub(super) fn name(&self) -> Slot {
        staged(self.staged, PLAIN)
    }

    fn is_kept(&self, meta: Meta) -> bool {
        matches!(self.was, Was::File { kept, .. } if kept.is(meta, true))
    }
}

impl Run<'_> {
    /// Everything that others committed is durable in the tree itself, before anything of it is kept.
    pub(super) fn stand_alone(&mut self) -> Done {
        if self.is(Fault::GuardBeforeSettle) {
            return Ok(());
        }
        self.write_late();
        self.settle()
    }

    /// Guards paths; `links`: against writers that replace files.
    pub(super) fn guard(&mut self, paths: &[Path], links: bool) -> Done {
        self.stand_alone()?;
        let images: Vec<Image> = paths.iter().map(|path| self.take_image(*path, links)).collect();
        for image in &images {
            let Was::File { link, .. } = image.was else { continue };
            if self.is(Fault::KeptUnsynced) {
                continue;
            }
            match image.path.slot(&self.world.disk) {
                Some(live) if link => self.sync_file(live),
                _ => self.sync_file(image.name()),
            }
        }
        if !self.is(Fault::StageUnsyncedByGuard) {
            self.sync_dir(Dir::Stage);
        }
        let durability = if self.is(Fault::GuardUnsynced) { Durability::Normal } else { Durability::Full };
        self.commit(durability, |rows| {
            let guard = rows.guard.get_or_insert(Guard { attempts: 0, mark: true, images: Vec::new(), tree: None });
            guard.images.extend(images);
        });
        Ok(())
    }

    fn take_image(&mut self, path: Path, links: bool) -> Image {
        let number = self.fresh_number();
        let name = staged(number, PLAIN);
        let live = path.slot(&self.world.disk).filter(|slot| self.world.disk.at(*slot) != 0);
        let Some(live) = live else { return Image { path, staged: number, was: Was::Absent } };
        let meta = self.world.disk.meta_of(self.world.disk.at(live));
        let was = match meta.kind {
            SYMLINK => Was::Symlink { ino: meta.ino, data: self.world.disk.data(live), mtime: meta.mtime },
            FILE => self.keep_file(live, name, links && !meta.empty),
            _ => Was::Lost,
        };
        Image { path, staged: number, was }
    }

    /// Keeps a file under another name: by a link, or a copy.
    pub(super) fn keep_file(&mut self, from: Slot, to: Slot, link: bool) -> Was {
        let disk = &self.world.disk;
        let (data, mtime) = (disk.data(from), disk.meta_of(disk.at(from)).mtime);
        if link {
            self.link(from, to);
        } else {
            self.make(to, FILE, EMPTY, mtime);
            self.write(to, data, mtime);
        }
        let disk = &self.world.disk;
        let (seen, kept) = (Id::from(disk.meta_of(disk.at(from))), Id::from(disk.meta_of(disk.at(to))));
        Was::File { seen, kept, mtime, link }
    }

    pub(super) fn work(&mut self, work: &[Work]) {
        for work in work {
            match *work {
                Work::Replace(path, data) => self.somebody_replaces(path, data),
                Work::WriteInPlace(path, data) => self.somebody_writes(path, data),
                Work::Remove(path) => self.somebody_removes(path),
            }
        }
    }

    /// What lies at a guarded path now, and how it differs from what it was.
    fn compare(&self, image: &Image, in_doubt: bool) -> (Option<Meta>, Difference) {
        let live = self.look(image.path);
        let Some(meta) = live else {
            return (None, if image.was == Was::Absent { Difference::None } else { Difference::All });
        };
        let difference = match image.was {
            Was::Absent | Was::Lost => Difference::All,
            Was::Symlink { data, mtime, .. } if meta.kind == SYMLINK => {
                let slot = image.path.slot(&self.world.disk);
                match slot.is_some_and(|slot| self.world.disk.data(slot) == data) {
                    true if meta.mtime == mtime => Difference::None,
                    true => Difference::Attributes,
                    false => Difference::All,
                }
            }
            Was::Symlink { .. } => Difference::All,
            Was::File { seen, .. } if seen.is(meta, false) => Difference::None,
            Was::File { kept, link: false, .. } if kept.is(meta, true) => return (live, Difference::None),
            Was::File { seen, link: true, .. } if seen.is(meta, true) => Difference::Attributes,
            Was::File { .. } => Difference::All,
        };
        // Bytes may have reached the disk, and the times of that not.
        if let Was::File { link: false, .. } = image.was
            && difference != Difference::All
            && in_doubt
            && !self.is(Fault::TimesAreBelieved)
        {
            let kept = self.world.disk.data(image.name());
            let equal = image.path.slot(&self.world.disk).is_some_and(|slot| self.world.disk.data(slot) == kept);
            return (live, if equal { difference } else { Difference::All });
        }
        (live, difference)
    }

    /// Commits what was done under the guard.
    pub(super) fn commit_guarded(&mut self, of: u8) -> Done {
        let found = self.find_touched_of_tree(false);
        let images: Vec<Image> = self.guarded().into_iter().chain(found).collect();
        let touched: Vec<Image> =
            images.iter().filter(|image| self.compare(image, false).1 != Difference::None).copied().collect();
        self.sync_touched(&touched);
        let of_tree: Vec<&Image> = touched.iter().filter(|image| !self.is_named(image)).collect();
        if !of_tree.is_empty() && !self.is(Fault::KeptOfTreeUnsynced) {
            of_tree.iter().for_each(|image| self.sync_kept(image));
            self.sync_dir(Dir::Stage);
        }
        let change = |image: &Image| match image.was {
            Was::File { kept, .. } if self.look(image.path).is_none_or(|now| now.ino != kept.ino) => {
                let is_durable =
                    !self.world.disk.is_dirty(self.world.disk.at(image.name()) as usize) || !self.is_named(image);
                let was = if is_durable || !self.is_named(image) { self.world.disk.data(image.name()) } else { NONE };
                Some(Change { path: image.path, preimage: image.name(), was })
            }
            _ => None,
        };
        let changes: Vec<Change> = touched.iter().filter_map(change).collect();
        let kept: Vec<Slot> = changes.iter().map(|change| change.preimage).collect();
        let durability = if self.is(Fault::CommitUnsynced) { Durability::Normal } else { Durability::Full };
        self.commit(durability, |rows| {
            rows.guard = None;
            rows.txns.push(ended(Some(of), changes));
        });
        for image in &images {
            match kept.contains(&image.name()) {
                true => self.move_to_history(image.name()),
                false => self.unlink(image.name()),
            }
        }
        self.world.ghost.acknowledged += 1;
        Ok(())
    }

    fn sync_kept(&mut self, image: &Image) {
        if let Was::File { link: false, .. } = image.was {
            self.sync_file(image.name());
        }
    }

    fn is_named(&self, image: &Image) -> bool {
        self.guarded().iter().any(|named| named.path == image.path)
    }

    fn guarded(&self) -> Vec<Image> {
        self.rows().guard.as_ref().map(|guard| guard.images.clone()).unwrap_or_default()
    }

    fn sync_touched(&mut self, touched: &[Image]) {
        if !self.is(Fault::TouchedFilesUnsynced) {
            for image in touched {
                if let Some(slot) = image.path.slot(&self.world.disk)
                    && self.look(image.path).is_some_and(|live| live.kind == FILE)
                {
                    self.sync_file(slot);
                }
            }
        }
        if !self.is(Fault::TouchedDirectoriesUnsynced) {
            let mut paths: Vec<Path> = touched.iter().map(|image| image.path).collect();
            paths.dedup_by_key(|path| path.parent());
            paths.iter().for_each(|path| self.sync_dir_of(*path));
        }
    }

    /// A living process rolls its guard back.
    pub(super) fn roll_back(&mut self) -> Done {
        let found = self.find_touched_of_tree(false);
        self.record_images(&found);
        self.put_back(false, false)
    }

    /// What paths of trees were is recorded, durably, before anything of them is put back.
    fn record_images(&mut self, found: &[Image]) {
        if found.is_empty() {
            return;
        }
        if !self.is(Fault::FoundUnsynced) {
            self.sync_all();
        }
        let durability = if self.is(Fault::FoundRecordedUnsynced) { Durability::Normal } else { Durability::Full };
        self.commit(durability, |rows| {
            if let Some(guard) = &mut rows.guard {
                guard.images.extend(found);
            }
        });
    }

    /// What the guards of dead transactions kept is put back.
    pub(super) fn put_back_dead(&mut self) -> Done {
        let rows = self.rows();
        let Some(guard) = &rows.guard else { return Ok(()) };
        if guard.attempts >= MAX_ATTEMPTS {
            return Err(Failed("a guard is given up"));
        }
        let durability = if self.is(Fault::AttemptUnsynced) { Durability::Normal } else { Durability::Full };
        let counts = u8::from(!self.is(Fault::AttemptNotCounted));
        self.commit(durability, |rows| {
            if let Some(guard) = &mut rows.guard {
                guard.attempts += counts;
            }
        });
        let durable = self.books.rows(self.world.log[0]);
        if durable.guard.as_ref().is_none_or(|durable| durable.attempts <= guard.attempts) {
            self.complain(|| "a guard is put back, and that it was tried is not durable".into());
        }
        let in_doubt = !guard.mark;
        let mut found = self.find_touched_of_tree(in_doubt);
        // Perhaps recorded by an attempt before this one.
        let known = self.guarded();
        let (new, unused): (Vec<Image>, Vec<Image>) =
            found.drain(..).partition(|image| known.iter().all(|known| known.path != image.path));
        unused.iter().for_each(|image| self.unlink(image.name()));
        self.record_images(&new);
        self.put_back(in_doubt, true)
    }

    /// Puts everything back, and ends the guard. Durable on return.
    fn put_back(&mut self, in_doubt: bool, again: bool) -> Done {
        let mut images = self.guarded();
        images.sort_by_key(|image| image.path);
        let mut restored = false;
        for image in &images {
            restored |= self.put_back_one(image, in_doubt)?;
        }
        let changes: Vec<Change> = images
            .iter()
            .flat_map(|image| self.displaced(image).into_iter().map(|name| (image.path, name)))
            .map(|(path, preimage)| Change { path, preimage, was: NONE })
            .collect();
        let displaced: Vec<Slot> = changes.iter().map(|change| change.preimage).collect();
        let again = again && !self.is(Fault::PutBackTwiceUnsynced);
        if (again || restored || !displaced.is_empty()) && !self.is(Fault::PutBackUnsynced) {
            self.sync_all();
        }
        self.commit(Durability::Full, |rows| {
            rows.guard = None;
            if !displaced.is_empty() || restored {
                rows.txns.push(ended(None, changes));
            }
        });
        displaced.iter().for_each(|name| self.move_to_history(*name));
        for image in images.iter().filter(|image| !displaced.contains(&image.name())) {
            self.unlink(image.name());
        }
        Ok(())
    }

    /// What was displaced when a path was put back.
    fn displaced(&self, image: &Image) -> Vec<Slot> {
        let own = self.meta_at(image.name()).filter(|meta| !image.is_kept(*meta)).map(|_| image.name());
        let earlier = EARLIER.map(|suffix| beside(image.name(), suffix));
        own.into_iter().chain(earlier.into_iter().filter(|name| self.meta_at(*name).is_some())).collect()
    }

    /// True when it was put back, and had not been so already.
    pub(super) fn put_back_one(&mut self, image: &Image, in_doubt: bool) -> Done<bool> {
        let (live, difference) = self.compare(image, in_doubt);
        self.tidy(image)?;
        if let Was::File { kept, .. } = image.was
            && difference == Difference::All
            && self.meta_at(image.name()).is_none_or(|staged| !kept.is(staged, true))
        {
            self.complain(|| format!("{:?} could not be put back: what was kept of it is gone", image.path));
            return Ok(false);
        }
        let slot = image.path.slot(&self.world.disk).ok_or(Failed("the directory of a guarded path is gone"))?;
        match (difference, image.was) {
            (Difference::None, _) | (_, Was::Lost) => return Ok(false),
            (Difference::Attributes, Was::File { mtime, .. } | Was::Symlink { mtime, .. }) => {
                self.set_mtime(slot, mtime);
            }
            (Difference::All, Was::File { kept, link: true, .. }) if live.is_some_and(|live| live.ino == kept.ino) => {
                return Ok(false);
            }
            (_, Was::Absent) => {
                self.clear(image.staged)?;
                self.take(slot, image.name())?;
            }
            (_, Was::Symlink { data, mtime, .. }) => {
                let made = beside(image.name(), AGAIN);
                self.make(made, SYMLINK, data, mtime);
                if self.place(made, slot)? {
                    self.clear(image.staged)?;
                    self.rename(made, image.name());
                }
            }
            (_, Was::File { mtime, .. }) => {
                self.place(image.name(), slot)?;
                self.set_mtime(slot, mtime);
            }
        }
        Ok(true)
    }

    /// A symlink in the making, or what one displaced, from an attempt that was cut short.
    fn tidy(&mut self, image: &Image) -> Done {
        let Was::Symlink { data, .. } = image.was else { return Ok(()) };
        let made = beside(image.name(), AGAIN);
        match self.meta_at(made) {
            None => {}
            Some(meta) if meta.kind == SYMLINK && self.world.disk.data(made) == data => self.unlink(made),
            Some(_) => {
                self.clear(image.staged)?;
                self.rename(made, image.name());
            }
        }
        Ok(())
    }

    /// What a program wrote to a layer becomes the transaction's: guarded, put in place, committed.
    pub(super) fn absorb(&mut self, of: u8, written: &[(Path, Option<u8>)]) -> Done {
        self.stand_alone()?;
        // The claim, while the program writes.
        self.commit(Durability::Normal, |rows| {
            rows.guard = Some(Guard { attempts: 0, mark: true, images: Vec::new(), tree: None });
        });
        let upper = slots(Dir::Upper).start;
        for (n, (_, data)) in written.iter().enumerate() {
            if let Some(data) = data {
                self.make(upper + n as u8, FILE, EMPTY, *data);
                self.write(upper + n as u8, *data, *data);
            }
        }
        let paths: Vec<Path> = written.iter().map(|(path, _)| *path).collect();
        if self.is(Fault::PutBeforeGuard) {
            self.put_layer(written, upper)?;
            self.guard(&paths, true)?;
        } else {
            self.guard(&paths, true)?;
            self.put_layer(written, upper)?;
        }
        self.commit_guarded(of)
    }

    fn put_layer(&mut self, written: &[(Path, Option<u8>)], upper: Slot) -> Done {
        let mut images = Vec::new();
        for (n, (path, data)) in written.iter().enumerate() {
            let number = self.fresh_number();
            let name = staged(number, PLAIN);
            let was = match data {
                None => Was::Absent,
                Some(mtime) => {
                    self.take(upper + n as u8, name)?;
                    let kept = Id::from(self.world.disk.meta_of(self.world.disk.at(name)));
                    Was::File { seen: kept, kept, mtime: *mtime, link: false }
                }
            };
            images.push(Image { path: *path, staged: number, was });
        }
        images.sort_by_key(|image| image.path);
        for image in &images {
            self.put_back_one(image, false)?;
        }
        // What was displaced: the guard has it.
        images.iter().for_each(|image| self.unlink(image.name()));
        Ok(())
    }
}

/// A transaction that is over, with nothing to be carried out.
fn ended(of: Option<u8>, changes: Vec<Change>) -> Txn {
    Txn {
        of,
        state: State::Settled,
        structural: false,
        attempts: 0,
        mark: false,
        redo: Vec::new(),
        changes,
        waits: false,
    }
}
