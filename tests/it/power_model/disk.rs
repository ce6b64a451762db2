//! A disk that forgets what was not synced. Names lie in directories, and point at inodes. What is in memory and what is durable
//! stand beside each other; every change of a name waits, in order, until a sync carries it over.
//!
//! It is small and flat, because there are millions of it: an inode, a content, a name are a byte each.

use super::losses;

pub(super) type Ino = u8;
/// A name in a directory.
pub(super) type Slot = u8;

pub(super) const SLOTS: usize = 160;
/// Up to here files and symlinks, then directories of the tree, each with an inode number for good.
pub(super) const FILES: u8 = 24;
pub(super) const INODES: usize = FILES as usize + 3;
/// What waits for a sync, at most.
const PENDING: usize = 32;

/// No content: nothing is there. An empty file has [`EMPTY`].
pub(super) const NONE: u8 = 0;
pub(super) const EMPTY: u8 = 1;
/// The time of a file that was made and not written to yet. Every other is the content that was written then.
pub(super) const CREATED: u8 = 1;

pub(super) const FILE: u8 = 1;
pub(super) const SYMLINK: u8 = 2;
pub(super) const DIRECTORY: u8 = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dir {
    Root,
    /// Of the tree, with the inode numbers from [`FILES`] on.
    Tree(u8),
    Mirror,
    Upper,
    Stage,
    History,
    Quarantine,
}

/// How many numbers a stage knows, each with four names.
pub(super) const NUMBERS: u8 = 12;
const STAGE: u8 = 16;
const AREA: u8 = NUMBERS * 4;

/// What a name in the stage has behind its number.
pub(super) const PLAIN: u8 = 0;
pub(super) const AGAIN: u8 = 1;
pub(super) const PRE: u8 = 2;
/// What had to make room for what was displaced later.
pub(super) const EARLIER: [u8; 2] = [3, 2];

pub(super) fn staged(number: u8, suffix: u8) -> Slot {
    STAGE + number * 4 + suffix
}

/// The same name in history, and in quarantine.
pub(super) fn in_history(staged: Slot) -> Slot {
    staged + AREA
}

pub(super) fn in_quarantine(staged: Slot) -> Slot {
    staged + 2 * AREA
}

/// The number that a name in a stage begins with.
pub(super) fn number(staged: Slot) -> u8 {
    (staged - STAGE) / 4
}

/// With another suffix.
pub(super) fn beside(staged: Slot, suffix: u8) -> Slot {
    self::staged(number(staged), suffix)
}

pub(super) fn slots(dir: Dir) -> std::ops::Range<Slot> {
    match dir {
        Dir::Root => 0..4,
        Dir::Tree(n) => 4 + 2 * n..6 + 2 * n,
        Dir::Mirror => 10..12,
        Dir::Upper => 12..STAGE,
        Dir::Stage => STAGE..STAGE + AREA,
        Dir::History => STAGE + AREA..STAGE + 2 * AREA,
        Dir::Quarantine => STAGE + 2 * AREA..STAGE + 3 * AREA,
    }
}

pub(super) fn dir_of(slot: Slot) -> Dir {
    match slot {
        0..4 => Dir::Root,
        4..10 => Dir::Tree((slot - 4) / 2),
        10..12 => Dir::Mirror,
        12..STAGE => Dir::Upper,
        slot if slot < STAGE + AREA => Dir::Stage,
        slot if slot < STAGE + 2 * AREA => Dir::History,
        _ => Dir::Quarantine,
    }
}

/// What a look at a name tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Meta {
    pub(super) kind: u8,
    pub(super) ino: Ino,
    pub(super) empty: bool,
    pub(super) mtime: u8,
    pub(super) ctime: u8,
}

/// Inodes, an array for each thing that they have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Inodes {
    pub(super) kind: [u8; INODES],
    pub(super) data: [u8; INODES],
    pub(super) mtime: [u8; INODES],
    pub(super) ctime: [u8; INODES],
}

impl Inodes {
    pub(super) fn clear(&mut self, ino: usize) {
        (self.kind[ino], self.data[ino], self.mtime[ino], self.ctime[ino]) = (0, 0, 0, 0);
    }
}

/// One change of names that waits for a sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    /// A name is made, or goes.
    Set { slot: Slot, ino: Ino, touched: Ino, ctime: u8 },
    /// One name goes and another comes. The new one may become durable without the old one going.
    Rename { from: Slot, to: Slot, ino: Ino, ctime: u8 },
    /// Two change places, together or not at all.
    Exchange { a: Slot, to_a: Ino, b: Slot, to_b: Ino, ctime: u8 },
}

impl Op {
    /// True for what may be half done. A directory has one name.
    pub(super) fn has_halves(self) -> bool {
        matches!(self, Self::Rename { ino, .. } if ino < FILES)
    }

    pub(super) fn slots(self) -> [Slot; 2] {
        match self {
            Self::Set { slot, .. } => [slot, slot],
            Self::Rename { from, to, .. } => [from, to],
            Self::Exchange { a, b, .. } => [a, b],
        }
    }

    fn touches_inode(self, file: Ino) -> bool {
        match self {
            Self::Set { touched, .. } => touched == file,
            Self::Rename { ino, .. } => ino == file,
            Self::Exchange { to_a, to_b, .. } => to_a == file || to_b == file,
        }
    }

    fn bytes(self) -> [u8; 6] {
        match self {
            Self::Set { slot, ino, touched, ctime } => [0, slot, ino, touched, ctime, 0],
            Self::Rename { from, to, ino, ctime } => [1, from, to, ino, ctime, 0],
            Self::Exchange { a, to_a, b, to_b, ctime } => [2, a, to_a, b, to_b, ctime],
        }
    }
}

/// What a power cut may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Profile {
    /// Changes of names become durable in their order: what is lost is the end of them. Bytes come when they like.
    Ordered,
    /// Whatever was not synced may be lost or kept, each by itself, as far as a filesystem stays one.
    OnlySynced,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Disk {
    pub(super) names: [Ino; SLOTS],
    pub(super) durable_names: [Ino; SLOTS],
    pub(super) inodes: Inodes,
    pub(super) durable: Inodes,
    /// Inodes whose dirty pages the kernel failed to write, and took for clean: no sync reaches them any more.
    pub(super) stuck: u32,
    pub(super) pending: Vec<Op>,
    clock: u8,
}

impl Disk {
    pub(super) fn new() -> Self {
        let none = Inodes { kind: [0; INODES], data: [0; INODES], mtime: [0; INODES], ctime: [0; INODES] };
        let (names, durable) = ([0; SLOTS], none.clone());
        Self { names, durable_names: names, inodes: none, durable, stuck: 0, pending: Vec::new(), clock: 0 }
    }

    pub(super) fn at(&self, slot: Slot) -> Ino {
        self.names[slot as usize]
    }

    pub(super) fn meta(&self, slot: Slot) -> Option<Meta> {
        let ino = self.at(slot);
        (ino != 0).then(|| self.meta_of(ino))
    }

    pub(super) fn meta_of(&self, ino: Ino) -> Meta {
        let (at, inodes) = (ino as usize, &self.inodes);
        let empty = inodes.data[at] == EMPTY;
        Meta { kind: inodes.kind[at], ino, empty, mtime: inodes.mtime[at], ctime: inodes.ctime[at] }
    }

    pub(super) fn data(&self, slot: Slot) -> u8 {
        match self.at(slot) {
            0 => NONE,
            ino => self.inodes.data[ino as usize],
        }
    }

    pub(super) fn is_directory(&self, slot: Slot) -> bool {
        self.at(slot) >= FILES
    }

    /// Times go on from here: later than every time that anybody knows.
    pub(super) fn begin_clock(&mut self, recorded: u8) {
        self.clock = self.inodes.ctime.iter().copied().max().unwrap_or(0).max(recorded);
    }

    fn tick(&mut self, ino: Ino) -> u8 {
        self.clock = self.clock.checked_add(1).expect("a run of the model is short");
        if ino != 0 {
            self.inodes.ctime[ino as usize] = self.clock;
        }
        self.clock
    }

    fn wait(&mut self, op: Op) {
        assert!(self.pending.len() < PENDING, "a run of the model leaves little unsynced");
        self.pending.push(op);
    }

    /// The lowest number that nothing points at, as filesystems give them: it may have been somebody else's.
    fn fresh(&self, from: u8, to: u8) -> Ino {
        let waits = |ino: Ino| {
            self.pending.iter().any(|op| match *op {
                Op::Set { ino: new, .. } | Op::Rename { ino: new, .. } => new == ino,
                Op::Exchange { to_a, to_b, .. } => to_a == ino || to_b == ino,
            })
        };
        let free = |ino: &Ino| !self.names.contains(ino) && !self.durable_names.contains(ino) && !waits(*ino);
        (from..to).find(free).expect("the model's disk is large enough")
    }

    /// Makes a file or symlink.
    pub(super) fn make(&mut self, slot: Slot, kind: u8, data: u8, mtime: u8) -> Ino {
        let (from, to) = if kind == DIRECTORY { (FILES, INODES as u8) } else { (1, FILES) };
        let ino = self.fresh(from, to);
        let at = ino as usize;
        self.durable.clear(at);
        self.stuck &= !(1 << ino);
        (self.inodes.kind[at], self.inodes.data[at], self.inodes.mtime[at]) = (kind, data, mtime);
        self.set(slot, ino);
        ino
    }

    /// Gives a name to an inode, or takes it away.
    pub(super) fn set(&mut self, slot: Slot, ino: Ino) {
        let touched = if ino == 0 { self.at(slot) } else { ino };
        let ctime = self.tick(touched);
        self.names[slot as usize] = ino;
        self.wait(Op::Set { slot, ino, touched, ctime });
    }

    /// Two names of one inode stay what they are: that is how `rename` has it.
    pub(super) fn rename(&mut self, from: Slot, to: Slot) {
        let ino = self.at(from);
        if ino == self.at(to) {
            return;
        }
        let ctime = self.tick(ino);
        self.names[from as usize] = 0;
        self.names[to as usize] = ino;
        self.wait(Op::Rename { from, to, ino, ctime });
    }

    pub(super) fn exchange(&mut self, a: Slot, b: Slot) {
        let (to_a, to_b) = (self.at(b), self.at(a));
        let ctime = self.tick(to_a);
        self.inodes.ctime[to_b as usize] = ctime;
        self.names[a as usize] = to_a;
        self.names[b as usize] = to_b;
        self.wait(Op::Exchange { a, to_a, b, to_b, ctime });
    }

    pub(super) fn write(&mut self, ino: Ino, data: u8, mtime: u8) {
        self.tick(ino);
        self.inodes.data[ino as usize] = data;
        self.inodes.mtime[ino as usize] = mtime;
        self.stuck &= !(1 << ino);
    }

    pub(super) fn set_mtime(&mut self, ino: Ino, mtime: u8) {
        self.tick(ino);
        self.inodes.mtime[ino as usize] = mtime;
    }

    /// True when bytes or times of an inode are in memory only.
    pub(super) fn is_dirty(&self, ino: usize) -> bool {
        self.inodes.data[ino] != self.durable.data[ino] || self.inodes.mtime[ino] != self.durable.mtime[ino]
    }

    fn carry(&mut self, ino: usize) {
        if self.inodes.kind[ino] == 0 || self.stuck & (1 << ino) != 0 {
            return;
        }
        self.durable.kind[ino] = self.inodes.kind[ino];
        self.durable.data[ino] = self.inodes.data[ino];
        self.durable.mtime[ino] = self.inodes.mtime[ino];
        self.durable.ctime[ino] = self.inodes.ctime[ino];
    }

    pub(super) fn sync_file(&mut self, profile: Profile, ino: Ino) {
        self.carry(ino as usize);
        if profile == Profile::Ordered {
            self.carry_until(|op| op.touches_inode(ino));
        }
    }

    pub(super) fn sync_dir(&mut self, profile: Profile, dir: Dir) {
        match profile {
            Profile::Ordered => self.carry_until(|op| op.slots().into_iter().any(|slot| dir_of(slot) == dir)),
            Profile::OnlySynced => {
                let kept = losses::needed(&self.pending, |slot| dir_of(slot) == dir);
                let pending = std::mem::take(&mut self.pending);
                for (op, how) in pending.into_iter().zip(kept) {
                    match (how, op) {
                        (losses::Kept::No, op) => self.pending.push(op),
                        // The old name goes later, or not at all.
                        (losses::Kept::Half, Op::Rename { from, ino, ctime, .. }) => {
                            self.keep(op, true);
                            self.pending.push(Op::Set { slot: from, ino: 0, touched: ino, ctime });
                        }
                        (_, op) => self.keep(op, false),
                    }
                }
            }
        }
    }

    pub(super) fn sync_all(&mut self) {
        for ino in 1..INODES {
            self.carry(ino);
        }
        for op in std::mem::take(&mut self.pending) {
            self.keep(op, false);
        }
    }

    /// In order, up to the last that concerns what is synced.
    fn carry_until(&mut self, concerns: impl Fn(Op) -> bool) {
        let Some(last) = self.pending.iter().rposition(|op| concerns(*op)) else { return };
        let kept: Vec<Op> = self.pending.drain(..=last).collect();
        kept.into_iter().for_each(|op| self.keep(op, false));
    }

    /// A change of names becomes durable; of a rename, `half`: only that the new name is there.
    pub(super) fn keep(&mut self, op: Op, half: bool) {
        match op {
            Op::Set { slot, ino, touched, ctime } => {
                self.durable_names[slot as usize] = ino;
                self.keep_inode(touched, ctime);
            }
            Op::Rename { from, to, ino, ctime } => {
                if !half {
                    self.durable_names[from as usize] = 0;
                }
                self.durable_names[to as usize] = ino;
                self.keep_inode(ino, ctime);
            }
            Op::Exchange { a, to_a, b, to_b, ctime } => {
                self.durable_names[a as usize] = to_a;
                self.durable_names[b as usize] = to_b;
                self.keep_inode(to_a, ctime);
                self.keep_inode(to_b, ctime);
            }
        }
    }

    /// With a name its inode is there, and what the change of the name did to it; its bytes are another matter.
    fn keep_inode(&mut self, ino: Ino, ctime: u8) {
        let at = ino as usize;
        if self.durable.kind[at] == 0 {
            self.durable.kind[at] = self.inodes.kind[at];
            self.durable.data[at] = if self.inodes.kind[at] == FILE { EMPTY } else { self.inodes.data[at] };
            self.durable.mtime[at] = self.inodes.mtime[at];
        }
        self.durable.ctime[at] = ctime;
    }

    /// All of it, to tell it from others.
    pub(super) fn bytes(&self, into: &mut Vec<u8>) {
        into.extend_from_slice(&self.names);
        into.extend_from_slice(&self.durable_names);
        for inodes in [&self.inodes, &self.durable] {
            for part in [&inodes.kind, &inodes.data, &inodes.mtime, &inodes.ctime] {
                into.extend_from_slice(part);
            }
        }
        into.extend_from_slice(&self.stuck.to_le_bytes());
        self.pending.iter().for_each(|op| into.extend_from_slice(&op.bytes()));
    }
}
