//! Guarded trees: how a baseline is brought up to date before somebody may change the tree, and how it tells afterwards
//! what they did.
//!
//! 1. The guard is recorded, not yet ready: from here on nobody else's commit gets in.
//! 2. The tree is compared with the baseline. What differs was changed by hand, or by commits: it is adopted. A durable note
//!    that the baseline is changing comes before that, its rows only after the links and copies they speak of are synced.
//! 3. One durable transaction says that the guard is ready.
//! 4. Afterwards the tree is compared again. Of what differs the old versions are linked or copied out of the mirror, and
//!    from there on it is guarded paths like any others ([`super::guarding`], [`super::rollback`]).
//!
//! A crash before 3 leaves a guard that is not ready: nobody has changed anything. A crash in 2 leaves a baseline that says
//! that it is changing: it is made anew.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::AtomicI64;
use std::sync::mpsc;

use super::comparing::{self, For, Missing, Reading, differences};
use super::ground::Ground;
use super::guarding::record_images;
use super::shared::share;
use crate::error::{Error, IoContext, Result};
use crate::fault::{Fault, planted};
use crate::fs::area::{self, Area};
use crate::fs::clone::Way;
use crate::fs::copies::Copies;
use crate::fs::root::{self, Kind, Place};
use crate::fs::watch::Watch;
use crate::journal::{self, GuardId, GuardedTree, TreeRow};
use crate::path::RelPath;
use crate::store::{Durability, Turn};
use crate::tree::{DirDiff, DirId, DirRow, Files, Mirror, Mirrored, PreImage, PreImages, Scan, Update};

/// The directory of an area that holds mirrors.
const BASELINE: &str = "baseline";
/// This many directories are recorded within one turn.
const AT_ONCE: usize = 64;
/// This often a tree is taken into its baseline, when somebody goes on changing it meanwhile.
const ROUNDS: usize = 4;
/// To take over this many files, with this many bytes, is a matter of milliseconds.
const LITTLE: usize = 1024;
const LITTLE_BYTES: u64 = 16 << 20;

/// A tree that this process's transaction guards.
#[derive(Debug)]
pub(super) struct Guarded {
    pub(super) tree: GuardedTree,
    /// Who writes to files in place, where nobody should.
    pub(super) watch: Option<Watch>,
}

impl Guarded {
    /// True when a path, or the root, lies in the tree.
    pub(super) fn covers(&self, path: Option<&RelPath>) -> bool {
        match (&self.tree.tree.path, path) {
            (None, _) => true,
            (Some(tree), Some(path)) => path.is_within(tree),
            (Some(_), None) => false,
        }
    }
}

/// Adds what the touched paths of a dead transaction's trees were to what is recorded of its guard, durably.
pub(crate) fn complete(
    ground: &Ground,
    turn: &mut Turn<'_>,
    guard: GuardId,
    images: &mut PreImages,
    what_for: For,
    missing: &mut Missing<'_>,
) -> Result<()> {
    let first = turn.look(|tx| journal::guarded_count(tx, guard))?;
    let mut trees = Vec::new();
    for tree in turn.look(|tx| journal::guarded_trees(tx, guard))? {
        match tree {
            Err(error) if missing.tells(&RelPath::unknown(), &error) => {}
            other => trees.push(other?),
        }
    }
    let mut new = PreImages::new();
    let all = trees.iter().map(|tree| (tree, Files::All));
    for (path, image) in comparing::find(ground, Reading::Turn(turn), all, images, what_for, missing)?.images {
        // Perhaps recorded by an attempt before this one.
        match image.beside(new.get(&path).or(images.get(&path))) {
            Some(image) => drop(new.insert(path, image)),
            None => drop_unused(ground, &image),
        }
    }
    share(ground, images, &mut new)?;
    record_images(ground, turn, guard, first, new.iter())?;
    images.append(&mut new);
    Ok(())
}

/// Brings the baseline of a tree up to date, and says that the guard is ready. Durable on return.
pub(super) fn begin(ground: &Ground, guard: GuardId, tree: TreeRow) -> Result<Guarded> {
    let area = ground.area(tree.area)?;
    let mirror = mirror(&area, &tree)?;
    if !tree.is_true {
        forget(ground, &tree)?;
    }
    let brought = bring_up_to_date(ground, &area, &tree, &mirror);
    if brought.is_err()
        && !ground.store.peek(|tx| journal::is_true(tx, tree.id))?
        && let Err(error) = forget(ground, &tree)
    {
        // It may be the disk that is full, and it is made anew the next time.
        tracing::warn!(%error, "a baseline that did not come about could not be removed");
    }
    brought?;
    let began = area.clock_after(area.clock()?)?;
    ground.enter()?.write(Durability::Full, |tx| {
        journal::set_tree(tx, tree.id, true, tree.area)?;
        journal::guard_tree(tx, guard, tree.id, Some(began))
    })?;
    let watch = if tree.replacing { watch(ground, &tree)? } else { None };
    Ok(Guarded { tree: GuardedTree { tree: TreeRow { is_true: true, ..tree }, began }, watch })
}

/// Compares the tree with its baseline, and takes over what differs, until nothing does: to copy takes long, and what
/// somebody changes by hand meanwhile must not be what a rollback does not know.
fn bring_up_to_date(ground: &Ground, area: &Area, tree: &TreeRow, mirror: &Mirror) -> Result<()> {
    // Writers that replace files leave traces in directories; those that do not are looked for file by file.
    let files = if tree.replacing { Files::None } else { Files::All };
    let mut is_true = tree.is_true;
    if is_true && planted(Fault::StaleBaselineTrusted) {
        return Ok(());
    }
    // The directories to look at; none is all of them.
    let mut only: Option<HashSet<DirId>> = None;
    for _ in 0..ROUNDS {
        let clock = area.clock()?;
        let mut rows = ground.store.peek(|tx| journal::tree_dirs(tx, tree.id))?;
        let fresh = rows.is_empty();
        if let Some(only) = &only {
            rows.retain(|row| only.contains(&row.id));
        }
        let mut diffs = Vec::new();
        differences(ground, Reading::Peek(ground), rows, files, area, |diff| {
            diffs.push(diff);
            Ok(())
        })?;
        if !fresh && diffs.is_empty() {
            break;
        }
        if is_true && !planted(Fault::BaselineNotMarkedChanging) {
            ground.enter()?.write(Durability::Full, |tx| journal::set_tree(tx, tree.id, false, tree.area))?;
            is_true = false;
        }
        let adopted = diffs.iter().filter(|diff| !diff.is_empty()).count();
        only = again(&diffs, fresh);
        adopt(ground, tree, mirror, diffs, fresh, clock, area.place)?;
        if adopted > 0 {
            tracing::info!(directories = adopted, "changes of a guarded tree were taken into its baseline");
        }
        if !fresh && adopted == 0 {
            break;
        }
    }
    if is_true || planted(Fault::BaselineUnsynced) { Ok(()) } else { area.sync_whole() }
}

/// The directories to look at once more after little was taken over from them. To look at the whole tree again would take
/// longer than that did, and so leave more time for changes by hand than it takes away. None when so much was taken over that
/// anything may have changed meanwhile.
fn again(diffs: &[DirDiff], fresh: bool) -> Option<HashSet<DirId>> {
    let (mut files, mut bytes, mut dirs) = (0, 0_u64, false);
    for diff in diffs {
        for meta in diff.changed.iter().map(|(_, meta)| meta).chain(diff.new.iter().map(|(_, meta)| meta)) {
            files += 1;
            bytes = bytes.saturating_add(meta.size);
            dirs |= meta.kind == Kind::Directory;
        }
    }
    // Nobody knows yet what lies in a new directory.
    let much = fresh || dirs || files > LITTLE || bytes > LITTLE_BYTES;
    (!much).then(|| diffs.iter().map(|diff| diff.row.id).collect())
}

/// Watches a tree whose writers promised not to write to files in place. None where that cannot be: then every file is
/// looked at afterwards.
fn watch(ground: &Ground, tree: &TreeRow) -> Result<Option<Watch>> {
    let rows = ground.store.peek(|tx| journal::tree_dirs(tx, tree.id))?;
    let full = |row: &DirRow| row.path.as_ref().map_or(ground.root.path().to_owned(), |path| ground.root.full(path));
    Ok(ground.watch(tree.id, rows.iter().map(|row| (full(row), row.id.0))))
}

/// Where the mirror of a tree lies.
pub(crate) fn mirror(area: &Area, tree: &TreeRow) -> Result<Mirror> {
    area::subdirectory(&area.dir, BASELINE, &area.path, 0o700)?;
    Ok(mirror_in(area, if tree.replacing { Way::Link } else { Way::Reflink }))
}

/// A mirror in an area.
pub(super) fn mirror_in(area: &Area, way: Way) -> Mirror {
    Mirror { base: area.path.join(BASELINE), way }
}

/// Forgets a baseline that cannot be relied upon.
fn forget(ground: &Ground, tree: &TreeRow) -> Result<()> {
    let mut turn = ground.enter()?;
    let dirs = turn.look(|tx| journal::tree_dir_ids(tx, tree.id))?;
    let (first, last) = journal::dir_ids(tree.id);
    // Of all areas: it lies in another than it did, once something was mounted over it, or is no more.
    for area in ground.areas() {
        let path = area.path.join(BASELINE);
        if root::look(&area.dir, BASELINE).at("look at", &path)?.is_none() {
            continue;
        }
        let base = area::subdirectory(&area.dir, BASELINE, &area.path, 0o700)?;
        // Those too that no row tells of, because the making was cut short.
        for name in area::names(&base, &path)? {
            let number = name.to_str().and_then(|name| name.parse::<i64>().ok());
            if number.is_some_and(|number| (first..=last).contains(&number)) {
                area::remove_below(&base, &name, &path)?;
            }
        }
    }
    turn.write(Durability::Normal, |tx| dirs.iter().try_for_each(|&dir| journal::drop_dir(tx, dir)))
}

/// Takes differences into the baseline. Nothing of it is synced but by what syncs the area afterwards.
fn adopt(
    ground: &Ground,
    tree: &TreeRow,
    mirror: &Mirror,
    diffs: Vec<DirDiff>,
    fresh: bool,
    clock: (i64, u32),
    place: Place,
) -> Result<()> {
    let next = AtomicI64::new(ground.store.peek(|tx| journal::next_dir(tx, tree.id))?);
    let (tell, told) = mpsc::sync_channel(AT_ONCE);
    let (reserved, mirror, top) = (ground.reserved.clone(), mirror.clone(), tree.path.clone());
    let done = ground.opener.start(move |root| {
        let mut tell = |mirrored| tell.send(mirrored).map_err(|_| Error::Closed);
        let scan = Scan { root, reserved: &reserved, files: Files::None, place };
        let mut update = Update {
            scan,
            mirror: &mirror,
            next: &next,
            clock: Some(clock),
            tell: &mut tell,
            copies: Copies::default(),
            is_empty: false,
        };
        diffs.into_iter().try_for_each(|diff| update.adopt(diff))?;
        if fresh { update.add(top) } else { Ok(()) }
    })?;
    let mut some = Vec::with_capacity(AT_ONCE);
    let write = |some: &mut Vec<Mirrored>| {
        ground.enter()?.write(Durability::Normal, |tx| {
            some.drain(..).try_for_each(|mirrored| match mirrored {
                Mirrored::Directory(row, entries) => journal::put_dir(tx, tree.id, &row, &entries),
                Mirrored::Gone(dir) => journal::drop_dir(tx, dir),
            })
        })
    };
    for mirrored in told {
        some.push(mirrored);
        if some.len() >= AT_ONCE {
            write(&mut some)?;
        }
    }
    done.recv().map_err(|_| Error::Closed)??;
    write(&mut some)
}

/// Lets an old version go again that was got out of the mirror.
pub(super) fn drop_unused(ground: &Ground, image: &PreImage) {
    if let Err(error) = ground.area(image.area).and_then(|area| area.drop_staged(&image.name)) {
        tracing::warn!(%error, "an old version that is not needed could not be removed; the next recovery sweeps it");
    }
}

impl Ground {
    /// The area that reaches what lies in a directory of the tree, or in the nearest one above that is there.
    pub(super) fn area_near(&self, dir: Option<&RelPath>) -> Result<Arc<Area>> {
        let mut at = dir.cloned();
        while let Some(path) = at {
            match self.root.open_dir(&path) {
                Ok(open) => return self.area_of(&open, &RelPath::join(Some(&path), b"x")),
                Err(Error::NotFound { .. } | Error::NotADirectory { .. } | Error::SymlinkOnTheWay { .. }) => {}
                Err(error) => return Err(error),
            }
            at = path.parent();
        }
        self.area_of(self.root.top(), &RelPath::parse("x")?)
    }
}
