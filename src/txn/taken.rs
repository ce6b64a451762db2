//! Keeps what lies at paths that are to be guarded, and makes it durable.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::ground::Ground;
use super::guarding::Guarding;
use super::prepare::SYNC_ONE_BY_ONE;
use super::shared::share;
use crate::error::{Error, IoContext, Result};
use crate::fault::{Fault, planted};
use crate::fs::area::Area;
use crate::fs::clone::{Keep, Kept, Way};
use crate::fs::database::KeepSet;
use crate::fs::opener::{SIDECARS, SyncTarget};
use crate::fs::owned;
use crate::fs::root::{self, Dirs};
use crate::path::RelPath;
use crate::store::Turn;
use crate::tree::{PreImage, PreImages, Was};

/// Pre-images on their way to being recorded. Dropped before, what was kept goes away again.
pub(super) struct Taken<'g> {
    ground: &'g Ground,
    pub(super) images: PreImages,
    /// A row refers to them.
    pub(super) kept: bool,
}

impl<'g> Taken<'g> {
    pub(super) fn new(ground: &'g Ground) -> Self {
        Self { ground, images: PreImages::new(), kept: false }
    }

    /// Keeps what lies at the paths, and at the directories on the way to them.
    pub(super) fn take(
        &mut self,
        turn: &mut Turn<'_>,
        paths: &[RelPath],
        before: Option<&Guarding>,
        way: Way,
        appending: bool,
    ) -> Result<()> {
        let mut wanted: BTreeSet<(RelPath, bool)> = BTreeSet::new();
        for path in paths {
            wanted.insert((path.clone(), true));
            let above = std::iter::successors(path.parent(), RelPath::parent).chain([RelPath::root()]);
            for above in above {
                let known = before.is_some_and(|before| before.images.contains_key(&above));
                if known || paths.contains(&above) || !wanted.insert((above, false)) {
                    break;
                }
            }
        }
        let mut dirs = Dirs::new(&self.ground.root);
        if appending {
            for (path, end) in paths.iter().zip(self.ground.opener.ends(paths.to_vec())?) {
                // What is not there is not there again.
                let Some(end) = end? else { continue };
                let live = root::look(&dirs.parent(path)?.fd, path.name());
                if live.at_in("look at", self.ground.root.path(), path)?.is_some_and(|live| live.fixed) {
                    let reason = "it is append-only or immutable, so what is appended to it could not be cut off";
                    return Err(Error::CannotRestore { path: self.ground.root.full(path), reason });
                }
                let (area, name) = (area_for(self.ground, turn, &mut dirs, path)?, self.ground.fresh_name());
                let image = PreImage { area: area.id, name, named: true, born: (0, 0), was: Was::Appended(end) };
                self.images.insert(path.clone(), image);
                wanted.remove(&(path.clone(), true));
            }
        }
        let mut jobs = Vec::with_capacity(wanted.len());
        let mut places = Vec::with_capacity(wanted.len());
        for (path, named) in wanted {
            let (area, name) = (area_for(self.ground, turn, &mut dirs, &path)?, self.ground.fresh_name());
            jobs.push(Keep { path: path.clone(), to: area.stage_path(&name), way });
            places.push((path, named, area.id, name));
        }
        let mut failed = Ok(());
        let mut databases = Vec::new();
        for ((path, named, area, name), kept) in places.into_iter().zip(self.ground.opener.keep(jobs)?) {
            match kept {
                Ok(Kept::Database) => databases.push((path, area, name)),
                Ok(kept) => {
                    if let Kept::Directory(meta, _) = &kept
                        && named
                        && let Err(error) = dirs.parent(&path).and_then(|dir| {
                            owned::check_restorable(&dir, path.name(), meta, &self.ground.root.full(&path))
                        })
                    {
                        failed = Err(error);
                    }
                    let born = kept.born();
                    self.images.insert(path, PreImage { area, name, named, born, was: kept.into() });
                }
                Err(error) => {
                    let _ = self.ground.area(area).and_then(|area| area.drop_staged(&name));
                    failed = Err(error);
                }
            }
        }
        failed?;
        self.take_databases(databases)?;
        let none = PreImages::new();
        share(self.ground, before.map_or(&none, |before| &before.images), &mut self.images)
    }

    /// Keeps databases, each with what lies beside it.
    fn take_databases(&mut self, databases: Vec<(RelPath, i64, String)>) -> Result<()> {
        let mut sets = Vec::with_capacity(databases.len());
        for (path, area, name) in &databases {
            let area = self.ground.area(*area)?;
            let to = |suffix: &str| area.stage_path(&format!("{name}{suffix}"));
            sets.push(KeepSet { path: path.clone(), to: to(""), sidecars: SIDECARS.map(to), kept: None });
        }
        if sets.is_empty() {
            return Ok(());
        }
        let kept = self.ground.opener.keep_sets(sets)?;
        for ((path, area, name), kept) in databases.into_iter().zip(kept) {
            let (database, sidecars) = kept?;
            for (suffix, kept) in SIDECARS.iter().zip(sidecars) {
                let name = format!("{name}{suffix}");
                if let Some(path) = path.with_suffix(suffix.as_bytes()) {
                    self.images.insert(path, PreImage { area, name, named: true, born: (0, 0), was: kept.into() });
                }
            }
            let was = Was::database(database);
            self.images.insert(path, PreImage { area, name, named: true, born: (0, 0), was });
        }
        Ok(())
    }

    /// What changes from here on has a later ctime than what was seen.
    pub(super) fn wait_for_the_clock(&self) {
        for area in self.ground.areas() {
            let newest = self.images.values().filter(|image| image.area == area.id).filter_map(PreImage::changed).max();
            if let Some(newest) = newest
                && let Err(error) = area.clock_after(newest)
            {
                tracing::warn!(%error, "what changes within the same tick of the clock as the guard may go unnoticed");
            }
        }
    }

    /// Makes what was kept durable: names in the stage, and the bytes behind them.
    pub(super) fn sync(&self) -> Result<()> {
        if planted(Fault::OldVersionsUnsynced) {
            return Ok(());
        }
        let mut files = Vec::new();
        let mut areas: Vec<Arc<Area>> = Vec::new();
        for (path, image) in &self.images {
            let area = self.ground.area(image.area)?;
            files.push(match &image.was {
                Was::File { seen, way: Way::Link, .. } => SyncTarget::File(path.clone(), seen.ino),
                Was::File { .. } | Was::Database { .. } => SyncTarget::Own(area.stage_path(&image.name)),
                _ => continue,
            });
            if !areas.iter().any(|known| known.id == area.id) {
                areas.push(area);
            }
        }
        if files.len() > SYNC_ONE_BY_ONE {
            return areas.iter().try_for_each(|area| area.sync_whole());
        }
        files.extend(areas.iter().map(|area| SyncTarget::Own(area.stage_dir.clone())));
        self.ground.sync(files)
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        for image in self.images.values().filter(|_| !self.kept) {
            if matches!(image.was, Was::File { .. } | Was::Database { .. })
                && let Err(error) = self.ground.area(image.area).and_then(|area| area.drop_staged(&image.name))
            {
                tracing::warn!(%error, "a kept file could not be removed; the next recovery sweeps it");
            }
        }
    }
}

/// The area that a rename reaches a path from, which may not exist yet.
fn area_for(ground: &Ground, turn: &mut Turn<'_>, dirs: &mut Dirs<'_>, path: &RelPath) -> Result<Arc<Area>> {
    let mut at = path.clone();
    loop {
        match dirs.parent(&at) {
            Ok(dir) => return ground.area_in_turn(turn, &dir, &at),
            Err(Error::NotFound { .. } | Error::NotADirectory { .. }) => {}
            Err(error) => return Err(error),
        }
        match at.parent() {
            Some(parent) => at = parent,
            None => return ground.area(crate::fs::area::STATE_AREA),
        }
    }
}
