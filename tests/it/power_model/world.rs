//! What the protocol works on: the disk, the rows, and what only the judge knows.

use std::collections::HashMap;
use std::rc::Rc;

use super::disk::{Dir, Disk, Ino, Meta, Slot, slots};

/// A path of the tree: a name at the top, and below it one in the directory that it is, from 1 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Path(pub(super) u8, pub(super) u8);

pub(super) const A: Path = Path(0, 0);
pub(super) const B: Path = Path(1, 0);
pub(super) const C: Path = Path(2, 0);
pub(super) const E: Path = Path(3, 0);
pub(super) const CX: Path = Path(2, 1);
pub(super) const CY: Path = Path(2, 2);
pub(super) const EX: Path = Path(3, 1);
pub(super) const EY: Path = Path(3, 2);

impl Path {
    pub(super) fn parent(self) -> Option<Self> {
        (self.1 != 0).then_some(Self(self.0, 0))
    }

    /// Where it is; none when the directory it is in is not there.
    pub(super) fn slot(self, disk: &Disk) -> Option<Slot> {
        match self.1 {
            0 => Some(self.0),
            child => Some(slots(Dir::Tree(tree_directory(disk, self.0)?)).start + child - 1),
        }
    }

    /// The directory that it is in.
    pub(super) fn dir(self, disk: &Disk) -> Option<Dir> {
        match self.1 {
            0 => Some(Dir::Root),
            _ => tree_directory(disk, self.0).map(Dir::Tree),
        }
    }
}

/// The directory that a name is, if it is one.
pub(super) fn tree_directory(disk: &Disk, slot: Slot) -> Option<u8> {
    disk.at(slot).checked_sub(super::disk::FILES)
}

/// `Identity` of the engine: which version of a path is which, without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Id {
    directory: bool,
    pub(super) ino: Ino,
    empty: bool,
    mtime: u8,
    pub(super) ctime: u8,
}

impl From<Meta> for Id {
    fn from(meta: Meta) -> Self {
        let Meta { kind, ino, empty, mtime, ctime } = meta;
        Self { directory: kind == super::disk::DIRECTORY, ino, empty, mtime, ctime }
    }
}

impl Id {
    pub(super) fn is(self, meta: Meta, renamed: bool) -> bool {
        let seen = Self::from(meta);
        if self.directory {
            return seen.directory && seen.ino == self.ino;
        }
        Self { ctime: self.ctime, ..seen } == self && (renamed || seen.ctime == self.ctime)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum What {
    Content { data: u8, inline: bool },
    Symlink { data: u8 },
    Directory,
    Absence,
    Move { from: Path },
}

/// A redo row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Redo {
    pub(super) path: Path,
    pub(super) what: What,
    /// Its number in the stage.
    pub(super) staged: u8,
    pub(super) ino: Ino,
    pub(super) old: Option<Id>,
}

/// A row of history: a name of the stage, and what the judge wants to find under it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Change {
    pub(super) path: Path,
    pub(super) preimage: Slot,
    /// The content of the old version, where it was durable when it was recorded.
    pub(super) was: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum State {
    Committed,
    Pending,
    Applied,
    Settling,
    Settled,
    Quarantined,
}

impl State {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Committed => "committed",
            Self::Pending => "pending",
            Self::Applied => "applied",
            Self::Settling => "settling",
            Self::Settled => "settled",
            Self::Quarantined => "quarantined",
        }
    }
}

/// A transaction's row, with its redo and change rows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Txn {
    /// Which of the script; none for one that was rolled back.
    pub(super) of: Option<u8>,
    pub(super) state: State,
    pub(super) structural: bool,
    pub(super) attempts: u8,
    /// The mark of a boot and mounts, while it counts.
    pub(super) mark: bool,
    pub(super) redo: Vec<Redo>,
    pub(super) changes: Vec<Change>,
    /// It has a message, of which is not known yet that others have it.
    pub(super) waits: bool,
}

/// What a guarded path was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Was {
    Absent,
    Symlink { ino: Ino, data: u8, mtime: u8 },
    File { seen: Id, kept: Id, mtime: u8, link: bool },
    Lost,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Image {
    pub(super) path: Path,
    pub(super) staged: u8,
    pub(super) was: Was,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Guard {
    pub(super) attempts: u8,
    pub(super) mark: bool,
    pub(super) images: Vec<Image>,
    /// The tree below C is guarded; ready once somebody may change it.
    pub(super) tree: Option<bool>,
}

/// What is recorded of a file of the guarded tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Entry {
    pub(super) child: u8,
    pub(super) id: Id,
    pub(super) link: bool,
}

/// The rows of a journal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Rows {
    /// Sessions on record that did not end: the living one, and those whose process died.
    pub(super) sessions: u8,
    pub(super) txns: Vec<Txn>,
    pub(super) guard: Option<Guard>,
    /// The baseline of C is true.
    pub(super) is_true: bool,
    pub(super) entries: Vec<Entry>,
}

impl Rows {
    /// Everything that somebody may compare a ctime with.
    fn recorded(&self) -> Vec<(u8, u8)> {
        let redo = self.txns.iter().flat_map(|txn| &txn.redo).filter_map(|redo| redo.old);
        let images = self.guard.iter().flat_map(|guard| &guard.images).filter_map(|image| match image.was {
            Was::File { seen, .. } => Some(seen),
            _ => None,
        });
        let entries = self.entries.iter().map(|entry| entry.id);
        redo.chain(images).chain(entries).map(|id| (id.ino, id.ctime)).collect()
    }

    /// What a power cut does to what was true in this boot only.
    fn after_a_cut(&mut self) {
        self.txns.iter_mut().for_each(|txn| txn.mark = false);
        self.guard.iter_mut().for_each(|guard| guard.mark = false);
    }
}

/// All versions of the rows that were ever met, each once: a state of the world holds their numbers.
#[derive(Default)]
pub(super) struct Books {
    list: Vec<Book>,
    index: HashMap<Rc<Rows>, u32>,
}

struct Book {
    rows: Rc<Rows>,
    recorded: Rc<[(u8, u8)]>,
    after_a_cut: Option<u32>,
}

impl Books {
    pub(super) fn number(&mut self, rows: Rows) -> u32 {
        if let Some(&number) = self.index.get(&rows) {
            return number;
        }
        let number = self.list.len() as u32;
        let (recorded, rows) = (rows.recorded().into(), Rc::new(rows));
        self.list.push(Book { rows: Rc::clone(&rows), recorded, after_a_cut: None });
        self.index.insert(rows, number);
        number
    }

    pub(super) fn rows(&self, number: u32) -> &Rc<Rows> {
        &self.list[number as usize].rows
    }

    pub(super) fn recorded(&self, number: u32) -> Rc<[(u8, u8)]> {
        Rc::clone(&self.list[number as usize].recorded)
    }

    pub(super) fn after_a_cut(&mut self, number: u32) -> u32 {
        if let Some(cut) = self.list[number as usize].after_a_cut {
            return cut;
        }
        let mut rows = Rows::clone(self.rows(number));
        rows.after_a_cut();
        let cut = self.number(rows);
        self.list[number as usize].after_a_cut = Some(cut);
        cut
    }
}

/// What the protocol does not know, and the judge does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ghost {
    /// How many transactions of the script have been answered with `Ok`.
    pub(super) acknowledged: u8,
    /// How many of its steps have begun.
    pub(super) begun: u8,
    /// A power cut came after the last edit by hand.
    pub(super) cut: bool,
    /// Bits of somebody's contents that were durable once.
    pub(super) theirs: u32,
    /// Recoveries that have touched the tree for a transaction or guard that is unfinished.
    pub(super) tries: u8,
    /// Bits of the transactions of the script that others were told of.
    pub(super) told: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct World {
    pub(super) disk: Disk,
    /// Versions of the rows since the last COMMIT at FULL, that one first. The last is what everybody reads.
    pub(super) log: Vec<u32>,
    pub(super) ghost: Ghost,
}

impl World {
    pub(super) fn now(&self) -> u32 {
        self.log.last().copied().unwrap_or(0)
    }

    /// Tells it from others.
    pub(super) fn key(&self, buffer: &mut Vec<u8>) -> u128 {
        buffer.clear();
        self.disk.bytes(buffer);
        self.log.iter().for_each(|number| buffer.extend_from_slice(&number.to_le_bytes()));
        let Ghost { acknowledged, begun, cut, theirs, tries, told } = self.ghost;
        buffer.extend_from_slice(&[acknowledged, begun, u8::from(cut), tries]);
        buffer.extend_from_slice(&theirs.to_le_bytes());
        buffer.extend_from_slice(&told.to_le_bytes());
        let hash = blake3::hash(buffer);
        u128::from_le_bytes(hash.as_bytes()[..16].try_into().expect("a hash has 32 bytes"))
    }
}
