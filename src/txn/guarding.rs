//! What a transaction guards, and what became of it by the time it commits.

use std::collections::{BTreeSet, HashSet};

use rustix::io::Errno;

use super::comparing::{self, For, Missing, Reading};
use super::ground::Ground;
use super::prepare::SYNC_ONE_BY_ONE;
use super::renames;
use super::rollback::{Attempt, RolledBack, put_back};
use super::shared::share;
use super::trees::{self, Guarded};
use crate::error::{Error, IoContext, Result};
use crate::fault::{Fault, planted};
use crate::fs::attrs;
use crate::fs::clone::Way;
use crate::fs::opener::SyncTarget;
use crate::fs::root::{self, Kind, Meta};
use crate::fs::watch::Watch;
use crate::id::Fence;
use crate::journal::{self, Change, ChangeKind, GuardId, GuardRow, GuardState};
use crate::lock::Lease;
use crate::path::RelPath;
use crate::store::{Durability, Turn, Tx};
use crate::tree::{Difference, DirId, Files, PreImage, PreImages, TreeRestorer, Was};

/// What a transaction guards.
#[derive(Debug)]
pub(super) struct Guarding {
    pub(super) id: GuardId,
    pub(super) images: PreImages,
    pub(super) trees: Vec<Guarded>,
    /// Directories of those trees that are not as recorded any more.
    dirs: Vec<DirId>,
    /// Which of the images were found by looking through trees, and are not in the journal.
    unrecorded: BTreeSet<RelPath>,
    /// Rows written so far.
    pub(super) rows: i64,
}

/// What was done to a guarded path.
#[derive(Debug)]
pub(super) struct Touched {
    pub(super) change: Change,
    live: Option<Meta>,
}

impl Guarding {
    pub(super) fn new(id: GuardId) -> Self {
        Self { id, images: PreImages::new(), trees: Vec::new(), dirs: Vec::new(), unrecorded: BTreeSet::new(), rows: 0 }
    }

    /// Finds out which paths of the guarded trees were touched, and gets what they were. Of those that were named before,
    /// that is known already.
    fn look_through_trees(&mut self, ground: &Ground, puts_back: bool) -> Result<()> {
        let watched: Vec<_> = self.trees.iter().map(|tree| tree.watch.as_ref().and_then(Watch::touched)).collect();
        let trees = self.trees.iter().zip(&watched);
        let trees = trees.map(|(guarded, touched)| (&guarded.tree, touched.as_ref().map_or(Files::All, Files::Some)));
        let what_for = if puts_back { For::Rollback } else { For::Commit };
        let reading = Reading::Peek(ground);
        let found = comparing::find(ground, reading, trees, &self.images, what_for, &mut Missing::Refuse)?;
        self.dirs.extend(found.dirs);
        let mut new = PreImages::new();
        for (path, image) in found.images {
            match image.beside(new.get(&path).or(self.images.get(&path))) {
                Some(image) => drop(new.insert(path, image)),
                None => trees::drop_unused(ground, &image),
            }
        }
        // Before anything can go wrong: what no row refers to is forgotten by these.
        self.unrecorded.extend(new.keys().cloned());
        let shared = if puts_back { share(ground, &self.images, &mut new) } else { Ok(()) };
        self.images.append(&mut new);
        shared
    }

    /// What was done to the guarded paths, made durable.
    pub(super) fn touched(&mut self, ground: &Ground) -> Result<Vec<Touched>> {
        self.look_through_trees(ground, false)?;
        let mut restorer = TreeRestorer::new(&ground.root, &ground.opener, ground.areas());
        let mut touched = Vec::new();
        for (path, image) in &self.images {
            let (live, difference) = restorer.compare(path, image)?;
            let counts = image.named || image.was == Was::Absent;
            let only_times = |live: Meta| match &image.was {
                Was::Directory { attrs, .. } => (attrs.mode, attrs.uid, attrs.gid) == (live.mode, live.uid, live.gid),
                _ => false,
            };
            if difference == Difference::None
                || !counts
                || (difference == Difference::Attributes && live.is_some_and(only_times))
            {
                continue;
            }
            touched.push(Touched { change: change(path, image, live.as_ref()), live });
            let new_directory =
                live.is_some_and(|live| live.kind == Kind::Directory) && !matches!(image.was, Was::Directory { .. });
            if new_directory {
                created_below(ground, path, image.area, &mut touched)?;
            }
        }
        renames::tell(&self.images, touched.iter_mut().map(|touched| (&mut touched.change, touched.live)));
        let files = touched.iter().filter_map(|touched| Some((touched.change.path.clone(), touched.change.size?)));
        let mut hashes = ground.opener.examine(files.collect())?.into_iter();
        for touched in touched.iter_mut().filter(|touched| touched.change.size.is_some()) {
            touched.change.hash = match hashes.next().transpose() {
                // Closed to its owner: its bytes are what they are.
                Err(error) if error.errno() == Some(libc::EACCES) => None,
                found => found?.flatten().and_then(|found| found.hash),
            };
        }
        self.sync(ground, &touched)?;
        Ok(touched)
    }

    fn sync(&self, ground: &Ground, touched: &[Touched]) -> Result<()> {
        if touched.is_empty() || planted(Fault::GuardedWorkUnsynced) {
            return Ok(());
        }
        let root = rustix::process::geteuid().is_root();
        // What cannot be opened cannot be synced by itself.
        let closed = |live: &Meta| !root && live.mode & 0o400 == 0;
        let whole = |touched: &Touched| touched.live.is_some_and(|live| live.kind == Kind::Directory || closed(&live));
        let mut targets = Vec::new();
        let mut directories = BTreeSet::new();
        for Touched { change, live } in touched {
            if let Some(live) = live.filter(|live| live.kind == Kind::File) {
                targets.push(SyncTarget::File(change.path.clone(), live.ino));
            }
            directories.insert(change.path.parent());
        }
        targets.append(&mut self.unsynced(ground, touched)?);
        if touched.iter().any(whole) || targets.len() > SYNC_ONE_BY_ONE {
            return sync_whole(ground, &self.images);
        }
        targets.extend(directories.into_iter().map(SyncTarget::Directory));
        ground.sync(targets)
    }

    /// The old versions that were got out of trees just now, and that the changes refer to.
    fn unsynced(&self, ground: &Ground, touched: &[Touched]) -> Result<Vec<SyncTarget>> {
        let mut targets = Vec::new();
        let mut stages = BTreeSet::new();
        for Touched { change, .. } in touched.iter().filter(|touched| touched.change.preimage.is_some()) {
            let Some(image) = self.images.get(&change.path).filter(|_| self.unrecorded.contains(&change.path)) else {
                continue;
            };
            let area = ground.area(image.area)?;
            // The bytes behind a link were synced with the baseline.
            if !matches!(image.was, Was::File { way: Way::Link, .. }) {
                targets.push(SyncTarget::Own(area.stage_path(&image.name)));
            }
            stages.insert(area.stage_dir.clone());
        }
        targets.extend(stages.into_iter().map(SyncTarget::Own));
        Ok(targets)
    }

    /// Inside COMMIT: the guard is over.
    pub(super) fn conclude(&self, tx: &Tx<'_>, lease: &Lease) -> Result<()> {
        self.dirs.iter().try_for_each(|&dir| journal::distrust_dir(tx, dir))?;
        match journal::delete_guard(tx, self.id)? {
            true => Ok(()),
            // Somebody took this transaction for dead, and has put everything back.
            false => Err(lease.lost()),
        }
    }

    /// After COMMIT: old versions that are referred to go to history, the others go away.
    pub(super) fn release(self, ground: &Ground, changes: &[Change]) {
        ground.guarding().remove(&self.id);
        let kept: HashSet<&String> = changes.iter().filter_map(|change| change.preimage.as_ref()).collect();
        for image in self.images.values() {
            let Ok(area) = ground.area(image.area) else { continue };
            let done =
                if kept.contains(&image.name) { area.to_history(&image.name) } else { area.drop_staged(&image.name) };
            if let Err(error) = done {
                tracing::warn!(%error, "an old version could not be moved; it stays in the stage");
            }
        }
    }

    /// Puts everything back and ends the guard.
    pub(super) fn roll_back(
        mut self,
        ground: &Ground,
        lease: &Lease,
        label: &str,
        began_ms: i64,
    ) -> Result<RolledBack> {
        let row = GuardRow {
            id: self.id,
            state: GuardState::Active,
            unknown: false,
            lock: lease.name().to_owned(),
            session: ground.session.id.as_bytes().to_vec(),
            label: label.to_owned(),
            attempts: 0,
            began_ms,
            worker: None,
            fence: lease.fence().map_or(0, Fence::get),
            // For a process that lives nothing is lost.
            mark: None,
        };
        let done = self.put_back(ground, lease, &row);
        // Whoever comes next tries again, should this have failed.
        ground.guarding().remove(&self.id);
        done
    }
}

impl Guarding {
    fn put_back(&mut self, ground: &Ground, lease: &Lease, row: &GuardRow) -> Result<RolledBack> {
        // Somebody took this transaction for dead, and has put everything back: what is there now is others' work.
        let is_mine = |mine: bool| if mine { Ok(()) } else { Err(lease.lost()) };
        ground.store.peek(|tx| journal::is_guarding(tx, self.id)).and_then(is_mine)?;
        if let Err(error) = self.look_through_trees(ground, true) {
            self.forget_unrecorded(ground);
            return Err(error);
        }
        let mut turn = ground.enter()?;
        let mine = turn.look(|tx| journal::is_guarding(tx, self.id)).and_then(is_mine);
        let new = self.images.iter().filter(|(path, _)| self.unrecorded.contains(*path));
        if let Err(error) = mine.and_then(|()| record_images(ground, &mut turn, self.id, self.rows, new)) {
            // IMPORTANT: rows that may be there refer to it.
            if !matches!(error, Error::OutcomeUnknown { .. }) {
                self.forget_unrecorded(ground);
            }
            return Err(error);
        }
        put_back(ground, &mut turn, row, &self.images, Attempt::First)
    }

    /// What no row refers to goes away again: nothing was displaced by it.
    fn forget_unrecorded(&mut self, ground: &Ground) {
        for path in std::mem::take(&mut self.unrecorded) {
            if let Some(image) = self.images.remove(&path) {
                trees::drop_unused(ground, &image);
            }
        }
    }
}

/// Records what paths of trees were, durably, before anything of them is put back: what is displaced is found by that.
pub(crate) fn record_images<'i>(
    ground: &Ground,
    turn: &mut Turn<'_>,
    guard: GuardId,
    first: i64,
    images: impl Iterator<Item = (&'i RelPath, &'i PreImage)> + Clone,
) -> Result<()> {
    if images.clone().next().is_none() {
        return Ok(());
    }
    let areas: BTreeSet<i64> = images.clone().map(|(_, image)| image.area).collect();
    areas.into_iter().try_for_each(|area| ground.area(area)?.sync_whole())?;
    turn.write(Durability::Full, |tx| {
        images
            .enumerate()
            .try_for_each(|(n, (path, image))| journal::insert_preimage(tx, guard, first + n as i64, path, image))
    })
}

/// What lies in a directory that was not there before.
fn created_below(ground: &Ground, path: &RelPath, area: i64, found: &mut Vec<Touched>) -> Result<()> {
    let mut waiting = vec![path.clone()];
    while let Some(path) = waiting.pop() {
        let dir = ground.root.open_dir(&path)?;
        let mut names = names_in(&dir).at("list", ground.root.full(&path))?;
        names.sort_by(|a, b| a.name.cmp(&b.name));
        for listed in names {
            let path = RelPath::join(Some(&path), &listed.name);
            let live = match root::look(&dir.fd, path.name()) {
                // In a directory that is closed to its owner: that it is there is all that can be told.
                Ok(None) | Err(Errno::ACCESS) => continue,
                other => other.at_in("look at", ground.root.path(), &path)?,
            };
            let Some(live) = live else { continue };
            let (name, born) = (String::new(), (0, 0));
            let nothing = PreImage { area, name, named: true, born, was: Was::Absent };
            found.push(Touched { change: change(&path, &nothing, Some(&live)), live: Some(live) });
            if live.kind == Kind::Directory {
                waiting.push(path);
            }
        }
    }
    Ok(())
}

/// The names in a directory, which whoever made it may have closed to its owner too.
fn names_in(dir: &root::Dir) -> Result<Vec<root::Listed>, Errno> {
    match root::list(&dir.fd) {
        Err(Errno::ACCESS) if rustix::process::geteuid().as_raw() == dir.meta.uid => {
            attrs::set_mode(&dir.fd, 0o700)?;
            let names = root::list(&dir.fd);
            attrs::set_mode(&dir.fd, dir.meta.mode)?;
            names
        }
        other => other,
    }
}

/// What was done to a path, as it is told.
pub(super) fn change(path: &RelPath, image: &PreImage, now: Option<&Meta>) -> Change {
    let kind = match (&image.was, now) {
        (Was::Absent, Some(meta)) if meta.kind == Kind::Directory => ChangeKind::Directory,
        (Was::Absent, _) => ChangeKind::Created,
        (_, None) => ChangeKind::Removed,
        (_, Some(_)) => ChangeKind::Replaced,
    };
    Change {
        path: path.clone(),
        kind,
        origin: None,
        size: now.filter(|meta| meta.kind == Kind::File).map(|meta| meta.size),
        hash: None,
        old_size: image.size(),
        // A link to what is there now is no old version of it.
        preimage: match &image.was {
            Was::File { kept, .. } | Was::Database { kept, .. } if now.is_none_or(|now| now.ino != kept.ino) => {
                Some(image.name.clone())
            }
            _ => None,
        },
        area: image.area,
    }
}

/// Syncs the filesystems that guarded paths lie on.
pub(super) fn sync_whole(ground: &Ground, images: &PreImages) -> Result<()> {
    let areas: BTreeSet<i64> = images.values().map(|image| image.area).collect();
    areas.into_iter().try_for_each(|area| ground.area(area)?.sync_whole())
}
