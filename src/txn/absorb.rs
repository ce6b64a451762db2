//! Makes what a program wrote to layers the transaction's.
//!
//! 1. What lies in the layers is read ([`tree::read_layer`]), and compared with what others did meanwhile: a clash ends it here,
//!    with nothing done.
//! 2. The paths are guarded like any that somebody else's code is about to change ([`super::guard`]): durable, before the
//!    first of them changes. A crash from here to COMMIT puts them back.
//! 3. What was written is moved into the stage and from there into the tree, by what puts pre-images back: to it, the layer is
//!    one more state that paths can be brought to.
//! 4. The COMMIT that follows finds the guarded paths changed, syncs them and tells what became of each.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::absorb_databases::Sets;
use super::displaced::{NOBODYS, set_aside};
use super::ground::Ground;
use super::layer::Layer;
use super::transaction::Transaction;
use super::trees;
use crate::error::{Error, IoContext, Result};
use crate::fs::area::Area;
use crate::fs::attrs::Attrs;
use crate::fs::clone::Way;
use crate::fs::identity::Identity;
use crate::fs::opener::{self, SIDECARS};
use crate::fs::root::{self, Dirs, Kind, Meta};
use crate::fs::upper;
use crate::journal;
use crate::path::RelPath;
use crate::tree::{self, Clash, Made, PreImage, PreImages, PutBack, TreeRestorer, WAS, Was, Writing};

impl Transaction {
    /// Makes what was written to layers this transaction's: on return it lies in the tree, and [`Transaction::commit`] keeps it;
    /// anything else puts everything back. Nobody may have the overlays mounted any more, or any file in them open.
    ///
    /// Costs what was written, whatever lies beside it. [`Error::Conflict`] when somebody changed one of the same paths in the tree
    /// since the layer was laid, or wrote to a database that is in it: then nothing was done, and the layers are as they were.
    pub fn absorb(&mut self, layers: &[Layer]) -> Result<()> {
        let mut writings = Vec::with_capacity(layers.len());
        for layer in layers {
            let (writing, sets) = self.read_layer(layer)?;
            writings.push((layer, writing, sets));
        }
        let paths: BTreeSet<RelPath> = writings.iter().flat_map(|(_, writing, _)| writing.touched().cloned()).collect();
        if paths.is_empty() {
            return Ok(());
        }
        self.guard_replaced(paths)?;
        for (_, writing, _) in &writings {
            self.refuse_changed(writing)?;
        }
        writings.iter().try_for_each(|(layer, writing, sets)| self.put(layer, writing, sets))
    }

    /// The error for a path at which somebody else's work and a layer's meet.
    pub(super) fn conflict(&self, path: &RelPath, reason: &'static str) -> Error {
        Error::Conflict { path: self.ground.root.full(path), reason }
    }

    fn read_layer(&self, layer: &Layer) -> Result<(Writing, Sets)> {
        let ground = &self.ground;
        forget_untouched(layer)?;
        let own_names = |path: &RelPath, live: &Meta| own_names(ground, path, live);
        let dirs = Dirs::new(&ground.root);
        let read = tree::read_layer(&layer.upper, layer.top.as_ref(), layer.began, dirs, &own_names, &ground.reserved)?;
        let mut writing = read.map_err(|Clash { path, reason }| self.conflict(&path, reason))?;
        self.compare(layer, &mut writing)?;
        let sets = self.find_databases(layer, &mut writing)?;
        let same = std::mem::take(&mut writing.same);
        for (to, from) in &same {
            if has_new_name(&writing.made, &same, to) {
                continue;
            }
            if to == from {
                writing.made.remove(to);
                writing.seen.remove(to);
            } else if let Some(Made::Written { attrs, .. }) = writing.made.remove(to) {
                writing.made.insert(to.clone(), Made::Live { from: from.clone(), attrs });
            }
        }
        Ok((writing, sets))
    }

    /// Finds what was copied into the layer and is what the tree has all the same: opened to be written to, and not written to.
    fn compare(&self, layer: &Layer, writing: &mut Writing) -> Result<()> {
        let mut hashed = Vec::with_capacity(writing.same.len());
        for (to, from) in std::mem::take(&mut writing.same) {
            let Some(Made::Written { at, meta, .. }) = writing.made.get(&to) else { continue };
            if let Some(hash) = layer.upper.hash(at)? {
                hashed.push((to, from, meta.size, hash));
            }
        }
        let asked = hashed.iter().map(|(_, from, size, _)| (from.clone(), *size)).collect();
        for ((to, from, _, hash), live) in hashed.into_iter().zip(self.ground.opener.examine(asked)?) {
            if live?.is_some_and(|live| live.hash == Some(hash)) {
                writing.same.push((to, from));
            }
        }
        Ok(())
    }

    /// Between the look at the paths and their being guarded somebody may have come.
    fn refuse_changed(&self, writing: &Writing) -> Result<()> {
        let Some(guarding) = &self.guarding else { return Err(Error::Closed) };
        for path in writing.made.keys() {
            let seen = writing.seen.get(path);
            let as_seen = match guarding.images.get(path).map(|image| &image.was) {
                Some(Was::Absent) => seen.is_none(),
                Some(Was::File { seen: kept, .. } | Was::Database { seen: kept, .. }) => {
                    seen.is_none_or(|seen| kept.is(seen, true))
                }
                _ => true,
            };
            if !as_seen {
                let reason = "somebody else changed it meanwhile";
                return Err(self.conflict(path, reason));
            }
        }
        Ok(())
    }

    /// Brings the paths to what was written.
    fn put(&self, layer: &Layer, writing: &Writing, sets: &Sets) -> Result<()> {
        let ground = &self.ground;
        let mut staged = Staged { layer, images: PreImages::new(), moved: Vec::new() };
        let mut dirs = Dirs::new(&ground.root);
        for (path, made) in &writing.made {
            // What lies beside a database is staged beside it.
            let beside = opener::database_beside(path).filter(|database| sets.contains(database));
            let name = match beside.and_then(|database| Some((staged.images.get(&database)?.name.clone(), database))) {
                Some((name, database)) => {
                    name + &path.as_path().to_string_lossy()[database.as_path().to_string_lossy().len()..]
                }
                None => ground.fresh_name(),
            };
            staged.add(&mut dirs, path, name, made, sets.contains(path))?;
        }
        let _turn = ground.enter()?;
        ground.touch();
        let mut restorer = TreeRestorer::new(&ground.root, &ground.opener, ground.areas());
        // Until all of it is in place: what is not goes back to the layer, and the rest, once it is rolled back, to history.
        for (path, outcome) in restorer.put_back(&staged.images) {
            if outcome? == PutBack::Damaged {
                let reason = "it cannot be moved out of the way: immutable, append-only, or a mount point";
                return Err(self.conflict(&path, reason));
            }
        }
        let images = staged.keep();
        self.clear_away(&layer.area, &restorer, &images)
    }

    /// Removes what was displaced: the guard has it. What it does not have is somebody's who came in between, and is kept.
    fn clear_away(&self, area: &Area, restorer: &TreeRestorer<'_>, images: &PreImages) -> Result<()> {
        let guarded = self.guarding.iter().flat_map(|guarding| guarding.images.values());
        let known: HashSet<u64> = guarded.filter_map(|image| image.was.ino()).collect();
        for image in images.values() {
            for (name, _) in restorer.displaced(image)? {
                let is_known = name.ends_with(WAS) || is_known(area, &name, &known)?;
                if !is_known {
                    let kept = set_aside(area, NOBODYS, &area.stage, &name)?;
                    tracing::warn!(%kept, "what somebody put there while a layer was absorbed is kept");
                    continue;
                }
                area.drop_staged(&name)?;
            }
            area.drop_staged(&image.name)?;
        }
        Ok(())
    }
}

/// True when a file that is what the tree has is one, in the layer, with another of which that cannot be told: then all its
/// names go together.
fn has_new_name(made: &BTreeMap<RelPath, Made>, same: &[(RelPath, RelPath)], path: &RelPath) -> bool {
    let Some(Made::Written { meta: of, .. }) = made.get(path).filter(|made| made.links() > 1) else { return false };
    made.iter().any(|(other, made)| {
        let one = matches!(made, Made::Written { meta, .. } if meta.ino == of.ino);
        one && !same.iter().any(|(to, _)| to == other)
    })
}

/// What was written, on its way through the stage. Dropped before it is in the tree, it goes back to the layer.
struct Staged<'l> {
    layer: &'l Layer,
    images: PreImages,
    /// Under which names what is staged, with its inode.
    moved: Vec<(String, RelPath, u64)>,
}

impl Staged<'_> {
    /// Stages one path, and says what it is to be.
    fn add(&mut self, dirs: &mut Dirs<'_>, path: &RelPath, name: String, made: &Made, database: bool) -> Result<()> {
        let (layer, area) = (self.layer, &self.layer.area);
        let was = match made {
            Made::Nothing => Was::Absent,
            Made::Directory(attrs) => Was::Directory { ino: 0, attrs: attrs.clone() },
            Made::Symlink(target, attrs) => Was::Symlink { ino: 0, target: target.clone(), attrs: attrs.clone() },
            Made::Written { at, attrs, meta } => {
                self.moved.push((name.clone(), at.clone(), meta.ino));
                layer.upper.take(at, area, &name, attrs)?;
                staged_file(area, &name, attrs, database)?
            }
            Made::Live { from, attrs } => {
                upper::link(&dirs.parent(from)?.fd, from.name(), area, &name)?;
                staged_file(area, &name, attrs, false)?
            }
        };
        self.images.insert(path.clone(), PreImage { area: area.id, name, named: true, born: (0, 0), was });
        Ok(())
    }

    /// It is in the tree, or on its way there.
    fn keep(mut self) -> PreImages {
        self.moved.clear();
        std::mem::take(&mut self.images)
    }
}

impl Drop for Staged<'_> {
    fn drop(&mut self) {
        let area = &self.layer.area;
        for (name, at, ino) in &self.moved {
            // Or it is in the tree, and what lies there was displaced by it.
            if area.look_staged(name).is_ok_and(|staged| staged.is_none_or(|staged| staged.ino != *ino)) {
                continue;
            }
            if let Err(error) = self.layer.upper.give_back(at, area, name) {
                let kept = area.stage_path(name);
                tracing::warn!(%error, kept = %kept.display(), "what was written could not go back to its layer");
            }
        }
    }
}

fn staged_file(area: &Area, name: &str, attrs: &Attrs, database: bool) -> Result<Was> {
    let staged = area.look_staged(name)?.ok_or_else(|| Error::NotFound { path: area.stage_path(name) })?;
    let (kept, attrs) = (Identity::from(&staged), attrs.clone());
    Ok(match database {
        true => Was::Database { seen: kept.clone(), kept, attrs },
        false => Was::File { seen: kept.clone(), kept, attrs, way: Way::Copy },
    })
}

/// True when what lies under a name of the stage, but for directories, is all of these inodes.
fn is_known(area: &Area, name: &str, known: &HashSet<u64>) -> Result<bool> {
    match area.look_staged(name)? {
        Some(meta) if meta.kind == Kind::Directory => {
            let below = area.staged_below(name)?;
            Ok(below.iter().all(|meta| meta.kind == Kind::Directory || known.contains(&meta.ino)))
        }
        other => Ok(other.is_none_or(|meta| known.contains(&meta.ino))),
    }
}

/// How many names a live file has in mirrors: they keep it as the old version that it is about to be.
fn own_names(ground: &Ground, path: &RelPath, live: &Meta) -> Result<u32> {
    let dir = path.parent().unwrap_or_else(RelPath::root);
    let mut names = 0;
    for (area, id) in ground.store.peek(|tx| journal::linking_mirrors(tx, &dir))? {
        let mirror = trees::mirror_in(&*ground.area(area)?, Way::Link);
        let mirrored = mirror.path(id, path.name().as_encoded_bytes());
        let is_it = |meta: Meta| meta.ino == live.ino && meta.place.dev == live.place.dev;
        names += u32::from(root::look_outside(&mirrored).at("look at", &mirrored)?.is_some_and(is_it));
    }
    Ok(names)
}

/// Takes databases that the program did not touch out of a layer again.
fn forget_untouched(layer: &Layer) -> Result<()> {
    for captured in &layer.databases {
        let at = layer.within(&captured.path)?;
        let mut names = vec![at.clone()];
        names.extend(SIDECARS.iter().filter_map(|suffix| at.with_suffix(suffix.as_bytes())));
        let now = names.iter().map(|at| Ok(layer.upper.look(at)?.as_ref().map(Identity::from)));
        if now.collect::<Result<Vec<_>>>()? == captured.copied {
            names.iter().try_for_each(|at| layer.upper.unlink(at))?;
        }
    }
    Ok(())
}
