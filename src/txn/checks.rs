//! What would fail after COMMIT is asked for before it: permissions, names that cannot be changed, free space.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use super::ground::Ground;
use super::layout::look;
use super::prepare::Step;
use crate::error::{IoContext, Result};
use crate::fs::area::Area;
use crate::fs::root::{Dirs, Kind, mount_below};
use crate::journal::What;
use crate::path::RelPath;

/// Below this much free space nothing is begun: carrying a commit into the tree may need a block for a directory.
const SPACE_MARGIN: u64 = 1 << 20;

/// Looks at permission and space, once for each directory that exists and each area.
pub(super) fn check(ground: &Ground, dirs: &mut Dirs<'_>, steps: &[Step], structural: bool) -> Result<()> {
    let mut checked = BTreeSet::new();
    for step in steps {
        let from = match &step.redo.what {
            What::Move { from, .. } => from.as_ref(),
            _ => None,
        };
        for path in [Some(&step.path), from].into_iter().flatten() {
            let parent = path.parent();
            if !checked.contains(&parent) {
                if let Ok(dir) = dirs.parent(path) {
                    let shown = parent.as_ref().map_or(Path::new(""), RelPath::as_path);
                    dir.check_writable().at_in("write in", ground.root.path(), shown)?;
                }
                checked.insert(parent);
            }
        }
        // A directory that leaves the tree would take a mount with it into the stage.
        if structural
            && step.redo.what == What::Absence
            && step.seen.is_some_and(|meta| meta.kind == Kind::Directory)
            && let Some(path) = mount_below(&ground.root.full(&step.path))
        {
            return Err(std::io::Error::from_raw_os_error(libc::EBUSY)).at("remove what is mounted at", path);
        }
        // What leaves its name. In a structural transaction a path may stand for something that lies elsewhere yet.
        let taken = match from {
            Some(from) => look(dirs, from)?.map(|meta| (from, meta)),
            None => None,
        };
        let displaced = step.seen.filter(|seen| {
            !structural || look(dirs, &step.path).ok().flatten().is_some_and(|live| live.ino == seen.ino)
        });
        for (path, meta) in [taken, displaced.map(|meta| (&step.path, meta))].into_iter().flatten() {
            if let Ok(dir) = dirs.parent(path) {
                dir.check_takeable(path.name(), &meta, structural).at_in(
                    "take away or replace",
                    ground.root.path(),
                    path,
                )?;
            }
        }
    }
    let mut areas: Vec<&Arc<Area>> = steps.iter().map(|step| &step.area).collect();
    areas.sort_by_key(|area| area.id);
    areas.dedup_by_key(|area| area.id);
    areas.into_iter().try_for_each(|area| check_space(&area.path))
}

/// Refuses to begin what a full disk would leave half way.
fn check_space(path: &Path) -> Result<()> {
    if fs4::available_space(path).at("look at the free space of", path)? < SPACE_MARGIN {
        return Err(std::io::Error::from_raw_os_error(libc::ENOSPC)).at("write in", path);
    }
    Ok(())
}
