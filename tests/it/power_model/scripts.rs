//! What the model runs: a few transactions in a row over the same paths, with somebody's edits in between.

use super::disk::{CREATED, DIRECTORY, Dir, Disk, FILE, NONE, slots};
use super::guard::{End, Work};
use super::run::{Done, Run};
use super::staged::Do;
use super::world::{A, Books, C, CX, CY, Ghost, Path, Rows, World};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// A staged transaction.
    Staged(Vec<Do>),
    /// Guarded paths; `links`: against writers that replace files.
    Guarded {
        paths: Vec<Path>,
        links: bool,
        work: Vec<Work>,
        end: End,
    },
    /// The guarded tree C.
    Tree {
        links: bool,
        work: Vec<Work>,
        end: End,
    },
    /// What a program wrote to a layer: contents, and names that are gone.
    Absorbed(Vec<(Path, Option<u8>)>),
    /// Somebody's edit by hand.
    Hand(Work),
    /// Somebody's `sync`.
    Sync,
    Settle,
    /// The note "applied" is written, in the background.
    Note,
    /// Others are told of what was committed, and so are they after each crash.
    Tell,
}

#[derive(Clone, Debug)]
pub(super) struct Script {
    pub(super) events: Vec<Event>,
    /// What somebody does after the first crash, before anything is recovered.
    pub(super) after_crash: Option<Work>,
}

/// What the tree holds in the beginning.
pub(super) const BEFORE: [(Path, u8); 3] = [(A, 2), (CX, 3), (CY, 4)];
/// From here on contents are somebody's: nobody may destroy them.
pub(super) const THEIRS: u8 = 16;
/// In place of a content: a directory.
pub(super) const IS_DIRECTORY: u8 = 31;

impl Event {
    /// True for what is to end with a transaction in the rows.
    pub(super) fn commits(&self) -> bool {
        match self {
            Self::Staged(_) | Self::Absorbed(_) => true,
            Self::Guarded { end, .. } | Self::Tree { end, .. } => *end == End::Commit,
            Self::Hand(_) | Self::Sync | Self::Settle | Self::Note | Self::Tell => false,
        }
    }

    fn run(&self, run: &mut Run<'_>, of: u8) -> Done {
        match self {
            Self::Staged(work) => run.transact(of, work),
            Self::Guarded { paths, links, work, end } => {
                run.guard(paths, *links)?;
                run.work(work);
                run.end_guard(of, *end)
            }
            Self::Tree { links, work, end } => {
                run.guard_tree(*links)?;
                run.work(work);
                run.end_guard(of, *end)
            }
            Self::Absorbed(written) => run.absorb(of, written),
            Self::Hand(work) => {
                run.work(&[*work]);
                Ok(())
            }
            Self::Sync => {
                run.sync_all();
                Ok(())
            }
            Self::Settle => run.settle(),
            Self::Note => {
                run.write_late();
                Ok(())
            }
            Self::Tell => {
                run.tell();
                Ok(())
            }
        }
    }
}

impl Script {
    /// True when its transactions have messages.
    pub(super) fn tells(&self) -> bool {
        self.events.contains(&Event::Tell)
    }
}

impl Run<'_> {
    fn end_guard(&mut self, of: u8, end: End) -> Done {
        match end {
            End::Commit => self.commit_guarded(of),
            End::Rollback => self.roll_back(),
        }
    }

    /// Runs a script to its end.
    pub(super) fn play(&mut self, script: &Script) -> Done {
        for (of, event) in script.events.iter().enumerate() {
            self.world.ghost.begun = of as u8 + 1;
            event.run(self, of as u8)?;
        }
        Ok(())
    }
}

/// The world before anything: a tree that is durable, and no rows.
pub(super) fn before(books: &mut Books) -> World {
    let mut disk = Disk::new();
    disk.make(C.0, DIRECTORY, NONE, CREATED);
    for (path, content) in BEFORE {
        let slot = path.slot(&disk).expect("the tree in the beginning has these directories");
        disk.make(slot, FILE, content, content);
    }
    disk.sync_all();
    assert!(disk.is_directory(C.0) && slots(Dir::Root).contains(&C.0));
    World { disk, log: vec![books.number(Rows { sessions: 1, ..Rows::default() })], ghost: Ghost::default() }
}
