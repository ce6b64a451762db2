//! One process at work: single steps, each of which a crash may come before.

use std::rc::Rc;

use journal_kb::__model::may_become;

use super::disk::{Dir, EMPTY, FILE, Ino, NUMBERS, Profile, Slot, dir_of, in_history, in_quarantine, slots, staged};
use super::faults::Fault;
use super::world::{Books, Path, Rows, World};

/// A step that changes files, names, or what of them is durable; as a trace of the engine shows it, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Step {
    Make(Place),
    Write(Place),
    Link(Place, Place),
    Rename(Place, Place),
    Exchange(Place, Place),
    Unlink(Place),
    SyncFile(Place),
    SyncDir(Place),
    SyncAll,
    /// A COMMIT at FULL.
    SyncLog,
    /// A COMMIT at NORMAL.
    Log,
    /// Somebody is told, who has power when we have none.
    Tell,
}

/// Where something lies, as far as that matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Place {
    Live,
    Stage,
    History,
    Quarantine,
    Mirror,
    Upper,
}

impl From<Dir> for Place {
    fn from(dir: Dir) -> Self {
        match dir {
            Dir::Root | Dir::Tree(_) => Self::Live,
            Dir::Stage => Self::Stage,
            Dir::History => Self::History,
            Dir::Quarantine => Self::Quarantine,
            Dir::Mirror => Self::Mirror,
            Dir::Upper => Self::Upper,
        }
    }
}

fn place(slot: Slot) -> Place {
    dir_of(slot).into()
}

/// A step that could not be done: the engine would say why, and try again another time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Failed(pub(super) &'static str);

pub(super) type Done<T = ()> = Result<T, Failed>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Durability {
    Full,
    Normal,
}

pub(super) struct Run<'b> {
    pub(super) world: World,
    pub(super) books: &'b mut Books,
    pub(super) profile: Profile,
    pub(super) fault: Option<Fault>,
    /// The state before each step, where that is wanted.
    pub(super) seen: Option<Vec<World>>,
    pub(super) steps: Vec<Step>,
    /// What the judge finds at once.
    pub(super) wrong: Option<String>,
    /// What this process knows and the rows do not say yet: which transaction it has applied.
    pub(super) unnoted: Option<usize>,
    /// Numbers in the stage that are this session's.
    pub(super) own: u16,
    /// A power cut may have come since the transaction was committed that is carried out again.
    pub(super) in_doubt: bool,
    /// Why paths could not be carried out.
    pub(super) failed: Vec<&'static str>,
    /// Transactions have messages.
    pub(super) tells: bool,
}

impl<'b> Run<'b> {
    pub(super) fn new(world: World, books: &'b mut Books, profile: Profile, fault: Option<Fault>) -> Self {
        let mut run = Self {
            world,
            books,
            profile,
            fault,
            seen: None,
            steps: Vec::new(),
            wrong: None,
            unnoted: None,
            own: 0,
            in_doubt: false,
            failed: Vec::new(),
            tells: false,
        };
        let recorded = run.books.recorded(run.world.now());
        run.world.disk.begin_clock(recorded.iter().map(|(_, ctime)| *ctime).max().unwrap_or(0));
        run
    }

    pub(super) fn is(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    pub(super) fn rows(&self) -> Rc<Rows> {
        Rc::clone(self.books.rows(self.world.now()))
    }

    /// A crash may come here, before the step is done.
    fn step(&mut self, step: Step) {
        if let Some(seen) = &mut self.seen {
            seen.push(self.world.clone());
        }
        self.steps.push(step);
    }

    pub(super) fn make(&mut self, slot: Slot, kind: u8, data: u8, mtime: u8) -> Ino {
        self.step(Step::Make(place(slot)));
        self.world.disk.make(slot, kind, data, mtime)
    }

    pub(super) fn write(&mut self, slot: Slot, data: u8, mtime: u8) {
        self.step(Step::Write(place(slot)));
        let ino = self.world.disk.at(slot);
        self.world.disk.write(ino, data, mtime);
    }

    /// A further name of a file.
    pub(super) fn link(&mut self, from: Slot, to: Slot) {
        self.step(Step::Link(place(from), place(to)));
        let ino = self.world.disk.at(from);
        self.world.disk.set(to, ino);
    }

    pub(super) fn unlink(&mut self, slot: Slot) {
        if self.world.disk.at(slot) != 0 {
            self.step(Step::Unlink(place(slot)));
            self.world.disk.set(slot, 0);
        }
    }

    /// `rename` as it is: over whatever is there. False when there is nothing to be renamed.
    pub(super) fn rename(&mut self, from: Slot, to: Slot) -> bool {
        if self.world.disk.at(from) == 0 {
            return false;
        }
        self.step(Step::Rename(place(from), place(to)));
        self.world.disk.rename(from, to);
        true
    }

    /// The rename that replaces nothing. False when there is nothing to be renamed.
    pub(super) fn take(&mut self, from: Slot, to: Slot) -> Done<bool> {
        if self.world.disk.at(from) != 0 && self.world.disk.at(to) != 0 {
            return Err(Failed("a name that should be free is taken"));
        }
        Ok(self.rename(from, to))
    }

    /// Puts what is staged in place. True when something came back under the staged name.
    pub(super) fn place(&mut self, staged: Slot, live: Slot) -> Done<bool> {
        if self.world.disk.at(staged) == 0 {
            return Err(Failed("what was staged is gone"));
        }
        if self.world.disk.at(live) == 0 {
            return self.take(staged, live).map(|_| false);
        }
        self.step(Step::Exchange(place(staged), place(live)));
        if self.world.disk.at(staged) != self.world.disk.at(live) {
            self.world.disk.exchange(staged, live);
        }
        Ok(true)
    }

    /// Two names of the stage change places.
    pub(super) fn exchange(&mut self, a: Slot, b: Slot) {
        self.step(Step::Exchange(place(a), place(b)));
        self.world.disk.exchange(a, b);
    }

    pub(super) fn move_to_history(&mut self, name: Slot) {
        let (here, there) = (self.world.disk.at(name), self.world.disk.at(in_history(name)));
        // A power cut may have left both names of a rename.
        if here != 0 && here == there && !self.is(Fault::BothNamesStay) {
            self.unlink(name);
        } else {
            self.rename(name, in_history(name));
        }
    }

    pub(super) fn set_aside(&mut self, name: Slot) -> Done {
        let here = self.world.disk.at(name);
        let quarantine = slots(Dir::Quarantine);
        // An earlier recovery may have set something aside under the same name.
        let from = in_quarantine(name);
        let mut names = (from..quarantine.end).chain(quarantine.start..from);
        let free = |slot: &Slot| matches!(self.world.disk.at(*slot), ino if ino == 0 || ino == here);
        let to = match self.is(Fault::QuarantineNamesRecur) {
            true => from,
            false => names.find(free).ok_or(Failed("the model's quarantine is large enough"))?,
        };
        if self.world.disk.at(to) == here && !self.is(Fault::QuarantineNamesRecur) {
            self.unlink(name);
            return Ok(());
        }
        self.take(name, to).map(drop)
    }

    pub(super) fn set_mtime(&mut self, slot: Slot, mtime: u8) {
        let ino = self.world.disk.at(slot);
        if self.world.disk.meta_of(ino).mtime != mtime {
            self.world.disk.set_mtime(ino, mtime);
        }
    }

    pub(super) fn sync_file(&mut self, slot: Slot) {
        self.step(Step::SyncFile(place(slot)));
        let ino = self.world.disk.at(slot);
        if ino != 0 {
            self.world.disk.sync_file(self.profile, ino);
        }
    }

    pub(super) fn sync_dir(&mut self, dir: Dir) {
        self.step(Step::SyncDir(dir.into()));
        self.world.disk.sync_dir(self.profile, dir);
    }

    pub(super) fn sync_dir_of(&mut self, path: Path) {
        if let Some(dir) = path.dir(&self.world.disk) {
            self.sync_dir(dir);
        }
    }

    pub(super) fn sync_all(&mut self) {
        self.step(Step::SyncAll);
        self.world.disk.sync_all();
    }

    /// Others have the message of a transaction of the script.
    pub(super) fn publish(&mut self, of: u8) {
        self.step(Step::Tell);
        let told = &mut self.world.ghost.told;
        let (is_new, later) = (*told & (1 << of) == 0, *told >> of);
        *told |= 1 << of;
        if is_new && later != 0 {
            self.complain(|| format!("others are told of {of} behind what came later"));
        }
    }

    /// One COMMIT. At FULL it is durable when this returns; before that the log may be there or not.
    pub(super) fn commit(&mut self, durability: Durability, change: impl FnOnce(&mut Rows)) {
        let before = self.rows();
        let mut rows = Rows::clone(&before);
        change(&mut rows);
        if self.tells {
            let new = rows.txns.iter_mut().skip(before.txns.len());
            new.for_each(|txn| txn.waits = txn.of.is_some());
        }
        for (was, is) in before.txns.iter().zip(&rows.txns).filter(|(was, is)| was.state != is.state) {
            if !may_become(was.state.word(), is.state.word()) {
                self.complain(|| format!("a transaction that is {} becomes {}", was.state.word(), is.state.word()));
            }
        }
        let number = self.books.number(rows);
        if durability == Durability::Normal && number == self.world.now() {
            return;
        }
        self.step(Step::Log);
        self.world.log.push(number);
        if durability == Durability::Full {
            self.step(Step::SyncLog);
            self.world.log = vec![number];
        }
    }

    /// A number of the stage that was never used: nothing lies under it, and nobody speaks of it.
    pub(super) fn fresh_number(&mut self) -> u8 {
        let named = |rows: &Rows, number: u8| {
            rows.txns.iter().any(|txn| {
                txn.redo.iter().any(|redo| redo.staged == number)
                    || txn.changes.iter().any(|change| super::disk::number(change.preimage) == number)
            }) || rows.guard.iter().any(|guard| guard.images.iter().any(|image| image.staged == number))
        };
        let disk = &self.world.disk;
        let lies = |number: u8| {
            (0..4).map(|suffix| staged(number, suffix)).any(|name| {
                [name, in_history(name), in_quarantine(name)].into_iter().any(|slot| {
                    disk.at(slot) != 0
                        || disk.durable_names[slot as usize] != 0
                        || disk.pending.iter().any(|op| op.slots().contains(&slot))
                })
            })
        };
        let spoken = |number: u8| self.world.log.iter().any(|rows| named(self.books.rows(*rows), number));
        let free = |number: &u8| self.own & (1 << number) == 0 && !lies(*number) && !spoken(*number);
        let number = (0..NUMBERS).find(free).expect("the model's stage is large enough");
        self.own |= 1 << number;
        number
    }

    /// Somebody replaces a file, as editors do: another inode under the same name.
    pub(super) fn somebody_replaces(&mut self, path: Path, data: u8) {
        let Some(slot) = path.slot(&self.world.disk) else { return };
        self.step(Step::Write(Place::Live));
        self.world.disk.make(slot, FILE, EMPTY, data);
        let ino = self.world.disk.at(slot);
        self.world.disk.write(ino, data, data);
    }

    /// Somebody writes to a file in place; where there is none, makes it.
    pub(super) fn somebody_writes(&mut self, path: Path, data: u8) {
        let Some(slot) = path.slot(&self.world.disk) else { return };
        match self.world.disk.meta(slot) {
            Some(meta) if meta.kind == FILE => {
                self.step(Step::Write(Place::Live));
                self.world.disk.write(meta.ino, data, data);
            }
            _ => self.somebody_replaces(path, data),
        }
    }

    pub(super) fn somebody_removes(&mut self, path: Path) {
        if let Some(slot) = path.slot(&self.world.disk) {
            self.unlink(slot);
        }
    }
}
