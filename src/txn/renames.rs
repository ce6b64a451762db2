//! What was renamed under a guard: nobody says so, but the inode that was at one path is at another.

use std::collections::{HashMap, HashSet};

use crate::fs::clone::Way;
use crate::fs::root::{Kind, Meta};
use crate::journal::{Change, ChangeKind};
use crate::path::RelPath;
use crate::tree::{PreImages, Was};

/// Tells those changes as renames whose path now has an inode that was at another path, and is there no more; with each
/// change comes what is at its path. Of more new names of a file than it had the rest are told as new. That the path it came from is
/// gone, or has something else, is a change of its own.
pub(super) fn tell<'c>(images: &PreImages, changes: impl Iterator<Item = (&'c mut Change, Option<Meta>)>) {
    let mut changes: Vec<_> = changes.collect();
    let mut left: HashMap<(u64, (i64, u32)), Vec<RelPath>> = HashMap::new();
    for (change, now) in &changes {
        let Some(image) = images.get(&change.path) else { continue };
        // Without a birth, its number may be another inode's.
        if let Some(ino) = image.ino().filter(|_| image.born != (0, 0))
            && !now.is_some_and(|now| image.is_inode(&now))
        {
            left.entry((ino, image.born)).or_default().push(change.path.clone());
        }
    }
    let mut moved = HashSet::new();
    // Of several names that one came to, the one that kept its last part went with its directory.
    for same_name in [true, false] {
        for (change, now) in changes.iter_mut().filter(|(change, _)| change.origin.is_none()) {
            let Some(now) = now.filter(|now| now.kind != Kind::Other) else { continue };
            let was_at = |path: &RelPath| images.get(path).is_some_and(|image| image.is_inode(&now));
            if was_at(&change.path) {
                continue;
            }
            let Some(left) = left.get_mut(&(now.ino, now.btime)) else { continue };
            let is_it = |from: &RelPath| was_at(from) && (!same_name || from.name() == change.path.name());
            if let Some(first) = left.iter().position(is_it) {
                change.kind = ChangeKind::Renamed;
                let from = left.remove(first);
                moved.insert(from.clone());
                change.origin = Some(from);
            }
        }
    }
    // IMPORTANT: what was kept of it as a link is the very file that lives on under its new name, and no old version.
    for (change, _) in changes.iter_mut().filter(|(change, _)| moved.contains(&change.path)) {
        if let Some(Was::File { way: Way::Link, .. }) = images.get(&change.path).map(|image| &image.was) {
            change.preimage = None;
        }
    }
}
