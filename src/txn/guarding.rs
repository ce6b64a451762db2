//! What a transaction guards, and what became of it by the time it commits.

use std::collections::BTreeSet;

use super::ground::Ground;
use super::prepare::SYNC_ONE_BY_ONE;
use super::rollback::{RolledBack, put_back};
use crate::error::Result;
use crate::fs::opener::SyncTarget;
use crate::fs::root::{Kind, Meta};
use crate::journal::{self, Change, ChangeKind, GuardId, GuardRow};
use crate::lock::Lease;
use crate::path::RelPath;
use crate::store::Tx;
use crate::tree::{Difference, PreImage, PreImages, TreeRestorer, Was};

/// What a transaction guards.
#[derive(Debug)]
pub(super) struct Guarding {
    pub(super) id: GuardId,
    pub(super) images: PreImages,
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
        Self { id, images: PreImages::new(), rows: 0 }
    }

    /// What was done to the guarded paths, made durable.
    pub(super) fn touched(&self, ground: &Ground) -> Result<Vec<Touched>> {
        let mut restorer = TreeRestorer::new(&ground.root, ground.areas());
        let mut touched = Vec::new();
        for (path, image) in &self.images {
            let (live, difference) = restorer.compare(path, image)?;
            let counts = image.named || image.was == Was::Absent;
            if difference == Difference::None || !counts {
                continue;
            }
            touched.push(Touched { change: change(path, image, live.as_ref()), live });
        }
        let files = touched.iter().filter_map(|touched| Some((touched.change.path.clone(), touched.change.size?)));
        let mut hashes = ground.opener.examine(files.collect())?.into_iter();
        for touched in touched.iter_mut().filter(|touched| touched.change.size.is_some()) {
            touched.change.hash = hashes.next().transpose()?.flatten().and_then(|found| found.hash);
        }
        self.sync(ground, &touched)?;
        Ok(touched)
    }

    fn sync(&self, ground: &Ground, touched: &[Touched]) -> Result<()> {
        if touched.is_empty() {
            return Ok(());
        }
        let whole = |touched: &Touched| touched.live.is_some_and(|live| live.kind == Kind::Directory);
        let mut targets = Vec::new();
        let mut directories = BTreeSet::new();
        for Touched { change, live } in touched {
            if let Some(live) = live.filter(|live| live.kind == Kind::File) {
                targets.push(SyncTarget::File(change.path.clone(), live.ino));
            }
            directories.insert(change.path.parent());
        }
        if touched.iter().any(whole) || targets.len() > SYNC_ONE_BY_ONE {
            return sync_whole(ground, &self.images);
        }
        targets.extend(directories.into_iter().map(SyncTarget::Directory));
        ground.sync(targets)
    }

    /// Inside COMMIT: the guard is over.
    pub(super) fn conclude(&self, tx: &Tx<'_>, lease: &Lease) -> Result<()> {
        match journal::delete_guard(tx, self.id)? {
            true => Ok(()),
            // Somebody took this transaction for dead, and has put everything back.
            false => Err(lease.lost()),
        }
    }

    /// After COMMIT: old versions that are referred to go to history, the others go away.
    pub(super) fn release(self, ground: &Ground, changes: &[Change]) {
        ground.guarding().remove(&self.id);
        for image in self.images.values() {
            let Ok(area) = ground.area(image.area) else { continue };
            let kept = changes.iter().any(|change| change.preimage.as_ref() == Some(&image.name));
            let done = if kept { area.to_history(&image.name) } else { area.drop_staged(&image.name) };
            if let Err(error) = done {
                tracing::warn!(%error, "an old version could not be moved; it stays in the stage");
            }
        }
    }

    /// Puts everything back and ends the guard.
    pub(super) fn roll_back(self, ground: &Ground, lease: &Lease, label: &str, began_ms: i64) -> Result<RolledBack> {
        let row = GuardRow {
            id: self.id,
            quarantined: false,
            lock: lease.name().to_owned(),
            session: ground.session.id.as_bytes().to_vec(),
            label: label.to_owned(),
            attempts: 0,
            began_ms,
        };
        let done = ground.enter().and_then(|mut turn| put_back(ground, &mut turn, &row, &self.images));
        // Whoever comes next tries again, should this have failed.
        ground.guarding().remove(&self.id);
        done
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
        preimage: matches!(image.was, Was::File { .. }).then(|| image.name.clone()),
        area: image.area,
    }
}

/// Syncs the filesystems that guarded paths lie on.
pub(super) fn sync_whole(ground: &Ground, images: &PreImages) -> Result<()> {
    let areas: BTreeSet<i64> = images.values().map(|image| image.area).collect();
    areas.into_iter().try_for_each(|area| ground.area(area)?.sync_whole())
}
