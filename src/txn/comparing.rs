//! Compares guarded trees with their baselines once somebody may have changed them, and gets the old versions of what
//! differs.
//!
//! Where a power cut may have come in between, no stamp proves anything: bytes may have reached the disk, and the times of
//! that not. Then directories are listed whatever their stamps say, and each file of which there is a copy is read and
//! compared with it.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Mutex;

use super::ground::Ground;
use super::old_versions;
use super::trees::mirror;
use crate::error::{Error, IoContext, Result};
use crate::fs::area::Area;
use crate::fs::attrs;
use crate::fs::compare::Compare;
use crate::fs::root::{self, Dirs, Kind};
use crate::journal::{self, GuardedTree};
use crate::path::RelPath;
use crate::store::{Turn, Tx};
use crate::tree::{
    DirDiff, DirId, DirRow, Entry, Files, Mirror, PreImage, PreImages, Scan, Stamp, TreeRestorer, Was, is_shared_memory,
};

/// From so many directories on, looking at all of their files is shared out, to so many threads at most.
const MANY: usize = 8;
const MOST_THREADS: usize = 4;
/// This many files are read by the opener's thread at once.
const AT_ONCE: usize = 256;

/// Where rows are read: within a turn that is held, or without one.
#[derive(Clone, Copy)]
pub(super) enum Reading<'a, 's> {
    Turn(&'a Turn<'s>),
    Peek(&'a Ground),
}

impl Reading<'_, '_> {
    fn look<T>(self, work: impl FnOnce(&Tx<'_>) -> Result<T>) -> Result<T> {
        match self {
            Self::Turn(turn) => turn.look(work),
            Self::Peek(ground) => ground.store.peek(work),
        }
    }
}

/// What the comparison is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum For {
    Commit,
    Rollback,
    /// Of a transaction that may have died in a power cut.
    RollbackInDoubt,
    /// To keep the old versions for a person: nothing in the tree is touched.
    Keep,
}

impl For {
    fn puts_back(self) -> bool {
        matches!(self, Self::Rollback | Self::RollbackInDoubt)
    }
}

/// What becomes of an old version that the baseline does not hold as its rows say.
pub(crate) enum Missing<'l> {
    /// Nothing is to be had then: what the others were may be as little true.
    Refuse,
    /// It is told, with the reason, and the others are got.
    Tell(&'l mut Vec<(RelPath, String)>),
}

impl Missing<'_> {
    /// True when an error is told instead of returned.
    pub(super) fn tells(&mut self, path: &RelPath, error: &Error) -> bool {
        match (self, error) {
            (Self::Tell(told), Error::Corrupt { .. }) => {
                told.push((path.clone(), error.to_string()));
                true
            }
            _ => false,
        }
    }
}

/// What a comparison found.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// What the touched paths were.
    pub(super) images: Vec<(RelPath, PreImage)>,
    /// The directories that differ from their records.
    pub(super) dirs: Vec<DirId>,
}

/// A tree, compared with its baseline.
struct Compared<'t> {
    guarded: &'t GuardedTree,
    mirror: Mirror,
    files: Files<'t>,
    diffs: Vec<DirDiff>,
}

/// Compares trees with their baselines, and gets the old versions of what differs. Nothing of it is synced. `known` is what
/// is guarded besides.
pub(super) fn find<'t>(
    ground: &Ground,
    reading: Reading<'_, '_>,
    trees: impl IntoIterator<Item = (&'t GuardedTree, Files<'t>)>,
    known: &PreImages,
    what_for: For,
    missing: &mut Missing<'_>,
) -> Result<Found> {
    let mut compared = Vec::new();
    for (guarded, files) in trees {
        match compare(ground, reading, guarded, files, what_for) {
            Err(error) if missing.tells(guarded.tree.path.as_ref().unwrap_or(&RelPath::root()), &error) => {}
            other => compared.push(other?),
        }
    }
    let mut trees = compared;
    if what_for.puts_back() {
        let others = of_other_names(ground, &trees, known)?;
        if !others.is_empty() {
            trees.iter_mut().try_for_each(|tree| tree.add_names_of(ground, reading, &others))?;
        }
    }
    let mut found = Found::default();
    for Compared { guarded, mirror, files, diffs } in trees {
        for diff in diffs {
            found.dirs.push(diff.row.id);
            old_versions::images(ground, &mirror, diff, guarded.began, files, &mut found.images, missing)?;
        }
    }
    Ok(found)
}

fn compare<'t>(
    ground: &Ground,
    reading: Reading<'_, '_>,
    guarded: &'t GuardedTree,
    files: Files<'t>,
    what_for: For,
) -> Result<Compared<'t>> {
    let area = ground.area(guarded.tree.area)?;
    let mirror = mirror(&area, &guarded.tree)?;
    if !guarded.tree.is_true {
        return Err(Error::corrupt("the baseline of a guarded tree", "it was being changed while it was relied upon"));
    }
    let mut rows = reading.look(|tx| journal::tree_dirs(tx, guarded.tree.id))?;
    if what_for.puts_back() {
        open_up(ground, &rows)?;
    }
    let in_doubt = what_for == For::RollbackInDoubt;
    rows.iter_mut().for_each(|row| row.racy |= in_doubt);
    let mut diffs = Vec::new();
    differences(ground, reading, rows, files, &area, |mut diff| {
        // Written to in place before the guard began, where nobody looks at every file then. Of a file that is only copied
        // that cannot be, so when times prove nothing they are not asked.
        diff.changed.retain(|(entry, now)| now.ctime >= guarded.began || (in_doubt && entry.is_copied()));
        if in_doubt {
            read_what_seems_the_same(ground, &mirror, &mut diff)?;
        }
        if !diff.is_empty() || diff.live.is_none_or(|live| Stamp::from(&live) != diff.row.stamp) {
            diffs.push(diff);
        }
        Ok(())
    })?;
    Ok(Compared { guarded, mirror, files, diffs })
}

/// Compares each directory of a tree with what is recorded of it, and has those visited that were not as recorded without
/// being listed.
pub(super) fn differences(
    ground: &Ground,
    reading: Reading<'_, '_>,
    rows: Vec<DirRow>,
    files: Files<'_>,
    area: &Area,
    mut visit: impl FnMut(DirDiff) -> Result<()>,
) -> Result<()> {
    let scan = Scan { root: &ground.root, reserved: &ground.reserved, files, place: area.place };
    let mut gone: Vec<RelPath> = Vec::new();
    // To look at each file takes long enough to be shared out.
    if let (Reading::Peek(ground), Files::All, MANY..) = (reading, files, rows.len()) {
        let mut todo = Vec::with_capacity(rows.len());
        for row in rows {
            let above_gone = row.path.as_ref().is_some_and(|path| gone.iter().any(|gone| path.is_within(gone)));
            if !above_gone && scan.look(row.path.as_ref())?.is_none() {
                gone.extend(row.path.clone());
            }
            todo.push((row, above_gone));
        }
        let load = |dir| ground.store.peek(|tx| journal::entries(tx, dir));
        return share_out(todo, |(row, above_gone)| scan.diff(row, above_gone, load))
            .into_iter()
            .try_for_each(|diff| diff?.map_or(Ok(()), &mut visit));
    }
    for row in rows {
        let above_gone = row.path.as_ref().is_some_and(|path| gone.iter().any(|gone| path.is_within(gone)));
        let load = |dir| reading.look(|tx| journal::entries(tx, dir));
        let Some(diff) = scan.diff(row, above_gone, load)? else {
            continue;
        };
        if diff.live.is_none()
            && !above_gone
            && let Some(path) = &diff.row.path
        {
            gone.push(path.clone());
        }
        visit(diff)?;
    }
    Ok(())
}

/// Has work done by as many threads as there are processors, up to a few. The answers are in the order of the work.
fn share_out<W: Send, T: Send>(work: Vec<W>, done: impl Fn(W) -> T + Sync) -> Vec<T> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(MOST_THREADS);
    let waiting = Mutex::new(work.into_iter().enumerate());
    let answers = Mutex::new(Vec::new());
    let turn = || {
        let mut own = Vec::new();
        loop {
            let next = waiting.lock().unwrap_or_else(|poison| poison.into_inner()).next();
            let Some((n, work)) = next else { break };
            own.push((n, done(work)));
        }
        answers.lock().unwrap_or_else(|poison| poison.into_inner()).append(&mut own);
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            // Without it the others do all of it.
            let _ = std::thread::Builder::new().name("journal-look".into()).spawn_scoped(scope, turn);
        }
        turn();
    });
    let mut answers = answers.into_inner().unwrap_or_else(|poison| poison.into_inner());
    answers.sort_unstable_by_key(|(n, _)| *n);
    answers.into_iter().map(|(_, answer)| answer).collect()
}

/// Reads the files that look as they were, and counts those as changed whose bytes are not those of the copy. Where the
/// mirror holds a link there is nothing to compare with.
fn read_what_seems_the_same(ground: &Ground, mirror: &Mirror, diff: &mut DirDiff) -> Result<()> {
    let row = &diff.row;
    let (read, mut same): (Vec<Entry>, Vec<Entry>) = std::mem::take(&mut diff.same)
        .into_iter()
        .partition(|entry| entry.is_copied() || (entry.is_of_database() && !is_shared_memory(&entry.name)));
    if read.is_empty() {
        // It may be no directory any more.
        diff.same = same;
        return Ok(());
    }
    let mut changed = Vec::new();
    let dir = row.path.as_ref().map(|path| ground.root.open_dir(path)).transpose()?;
    let dir = dir.as_ref().unwrap_or(ground.root.top());
    for some in read.chunks(AT_ONCE) {
        let pairs = some.iter().map(|entry| Compare {
            path: RelPath::join(row.path.as_ref(), &entry.name),
            kept: mirror.path(row.id, &entry.name),
        });
        for (entry, equal) in some.iter().zip(ground.opener.compare(pairs.collect())?) {
            let live = if equal? { None } else { root::look(&dir.fd, OsStr::from_bytes(&entry.name)).unwrap_or(None) };
            match live {
                Some(live) => changed.push((entry.clone(), live)),
                None => same.push(entry.clone()),
            }
        }
    }
    diff.same = same;
    diff.changed.append(&mut changed);
    Ok(())
}

/// The inodes of touched files that had more than one name.
fn of_other_names(ground: &Ground, trees: &[Compared<'_>], known: &PreImages) -> Result<HashSet<u64>> {
    let mut inodes = HashSet::new();
    for diff in trees.iter().flat_map(|tree| &tree.diffs) {
        let touched = diff.gone.iter().chain(diff.changed.iter().map(|(entry, _)| entry));
        inodes.extend(touched.filter(|entry| entry.has_other_names()).map(|entry| entry.ino));
    }
    if trees.is_empty() {
        return Ok(inodes);
    }
    let mut restorer = TreeRestorer::new(&ground.root, &ground.opener, ground.areas());
    for (path, image) in known {
        if let Was::File { seen, .. } = &image.was
            && restorer.is_touched(path, image)?
        {
            inodes.insert(seen.ino);
        }
    }
    Ok(inodes)
}

impl Compared<'_> {
    /// Counts as changed what has the same inode as something that was touched, though it is as it was itself: it was in a
    /// directory that was moved, say. All names come back as names of one file.
    fn add_names_of(&mut self, ground: &Ground, reading: Reading<'_, '_>, inodes: &HashSet<u64>) -> Result<()> {
        let place = ground.area(self.guarded.tree.area)?.place;
        let scan = Scan { root: &ground.root, reserved: &ground.reserved, files: self.files, place };
        let is_one = |entry: &Entry| entry.has_other_names() && inodes.contains(&entry.ino);
        for row in reading.look(|tx| journal::tree_dirs(tx, self.guarded.tree.id))? {
            let known = self.diffs.iter_mut().find(|diff| diff.row.id == row.id);
            let entries = match &known {
                Some(diff) => diff.same.clone(),
                None => reading.look(|tx| journal::entries(tx, row.id))?,
            };
            if !entries.iter().any(is_one) {
                continue;
            }
            let Some(live) = scan.look(row.path.as_ref())? else { continue };
            let (names, same): (Vec<Entry>, Vec<Entry>) = entries.into_iter().partition(is_one);
            let mut diff =
                DirDiff { row, live: Some(live), same, gone: Vec::new(), changed: Vec::new(), new: Vec::new() };
            let dir = diff.row.path.as_ref().map(|path| ground.root.open_dir(path)).transpose()?;
            let dir = dir.as_ref().unwrap_or(ground.root.top());
            for entry in names {
                let full = || RelPath::join(diff.row.path.as_ref(), &entry.name);
                match root::look(&dir.fd, OsStr::from_bytes(&entry.name)).at_in(
                    "look at",
                    ground.root.path(),
                    full(),
                )? {
                    Some(live) => diff.changed.push((entry, live)),
                    None => diff.gone.push(entry),
                }
            }
            match known {
                Some(known) => {
                    known.same = diff.same;
                    known.changed.append(&mut diff.changed);
                    known.gone.append(&mut diff.gone);
                }
                None => self.diffs.push(diff),
            }
        }
        Ok(())
    }
}

/// Lets an ordinary user into those directories of its own that were closed since, to look what is in them.
fn open_up(ground: &Ground, rows: &[DirRow]) -> Result<()> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let mut dirs = Dirs::new(&ground.root);
    for row in rows {
        let Some(path) = &row.path else { continue };
        // Whatever stands there instead, the comparison tells.
        let Ok(dir) = dirs.parent(path) else { continue };
        let full = || ground.root.full(path);
        if let Some(live) = root::look(&dir.fd, path.name()).at("look at", full())?
            && live.kind == Kind::Directory
            && live.mode != row.attrs.mode
        {
            attrs::open_up(&dir.fd, path.name(), &live, &full())?;
        }
    }
    Ok(())
}
