//! The tree as it was, seen through the tree as it will be.

use std::collections::{HashMap, HashSet};

use super::effect::Effect;
use crate::error::{IoContext, Result};
use crate::fs::root::{self, Dirs, Meta};
use crate::path::RelPath;

/// Which paths a transaction's effects take away and fill, to see the tree as it was through the tree as it will be.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) lifted: HashSet<RelPath>,
    pub(super) placed: HashSet<RelPath>,
    moves: HashMap<RelPath, RelPath>,
}

impl Layout {
    pub(super) fn of(effects: &[Effect]) -> Self {
        let mut layout = Self { lifted: HashSet::new(), placed: HashSet::new(), moves: HashMap::new() };
        for effect in effects {
            if let Effect::Lift(path) = effect {
                layout.lifted.insert(path.clone());
            }
            if let Effect::Move { from, to } = effect {
                layout.lifted.insert(from.clone());
                layout.moves.insert(to.clone(), from.clone());
            }
        }
        // Only what is lifted asks what comes to its place.
        if !layout.lifted.is_empty() {
            layout.placed.extend(effects.iter().filter_map(Effect::placed_at).cloned());
        }
        layout
    }

    /// True when what is placed at a path displaces what lies there now: no directory above it goes away.
    pub(super) fn displaces(&self, path: &RelPath) -> bool {
        let mut above = std::iter::successors(path.parent(), RelPath::parent);
        self.placed.contains(path) && !above.any(|at| self.lifted.contains(&at))
    }

    /// Looks at what a path of the tree to be will hold just before it is filled: what lies there now, or what comes
    /// along with a moved directory, or nothing because its directory goes.
    pub(super) fn look(&self, dirs: &mut Dirs<'_>, path: &RelPath) -> Result<Option<Meta>> {
        if self.lifted.is_empty() {
            return look(dirs, path);
        }
        let mut above = path.parent();
        while let Some(at) = above {
            if let Some(from) = self.moves.get(&at) {
                let rest = path.names().skip(at.names().count());
                let origin = rest.fold(from.clone(), |at, name| RelPath::join(Some(&at), name));
                let mut on_the_way = std::iter::successors(Some(origin.clone()), RelPath::parent);
                let gone = on_the_way.by_ref().take_while(|at| at != from).any(|at| self.lifted.contains(&at));
                return if gone { Ok(None) } else { look(dirs, &origin) };
            }
            if self.lifted.contains(&at) {
                return Ok(None);
            }
            above = at.parent();
        }
        look(dirs, path)
    }
}

/// Looks at a path; none when it, or its parent, is not there.
pub(crate) fn look(dirs: &mut Dirs<'_>, path: &RelPath) -> Result<Option<Meta>> {
    match dirs.try_parent(path)? {
        None => Ok(None),
        Some(dir) => root::look(&dir.fd, path.name()).at_in("look at", dirs.root().path(), path),
    }
}
