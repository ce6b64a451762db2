//! The hardlink-based O(touched) tree restorer: puts back the paths whose old versions were kept, and looks at no other.
//!
//! 1. From the top down, each path is compared with what it was. What differs is exchanged with the old version, or, where
//!    nothing was, taken away: what is displaced lands in the stage, under the name that stands in the pre-image.
//! 2. From the bottom up, directories get back their modes, owners and times.
//!
//! Every step is one call that either happened or did not, and is judged by inodes, so all of it may be cut short and begun
//! again. Nothing is synced here, and nothing is unlinked that may be anybody's work.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use super::preimage::{Difference, PreImage, PreImages, WAS, Was};
use super::sqlite_set;
use crate::error::{Error, IoContext, Result};
use crate::fs::append::Cut;
use crate::fs::area::Area;
use crate::fs::attrs;
use crate::fs::clone::Way;
use crate::fs::compare::Compare;
use crate::fs::exchange::{self, ASIDE};
use crate::fs::opener::{self, Opener, SIDECARS};
use crate::fs::root::{Dirs, Kind, Meta, RootDir};
use crate::fs::temp;
use crate::path::RelPath;

/// What a symlink is called while it is made, behind its name.
const MADE: &str = ".again";

/// Puts trees back.
pub(crate) struct TreeRestorer<'r> {
    opener: &'r Opener,
    pub(super) dirs: Dirs<'r>,
    areas: HashMap<i64, Arc<Area>>,
    /// Times and sizes prove nothing.
    in_doubt: bool,
    /// Names of files of several names, one of which was touched: what was kept takes the place of all.
    pub(super) torn: HashSet<RelPath>,
    /// Unnamed directories, as they were found.
    pub(super) found: HashMap<RelPath, Meta>,
}

/// What came of one path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PutBack {
    /// It was as before.
    Unchanged,
    /// It was the same file or directory, and has its mode, owner, times and xattrs again.
    Dressed,
    /// It is as before again.
    Restored,
    /// The old version is not kept: somebody wrote to the file in place where it was only a link, or it was a device, socket
    /// or FIFO. It is left as it was found.
    Damaged,
}

impl<'r> TreeRestorer<'r> {
    /// Areas are those that the pre-images name.
    pub(crate) fn new(root: &'r RootDir, opener: &'r Opener, areas: impl IntoIterator<Item = Arc<Area>>) -> Self {
        let areas = areas.into_iter().map(|area| (area.id, area)).collect();
        Self { opener, dirs: Dirs::new(root), areas, in_doubt: false, torn: HashSet::new(), found: HashMap::new() }
    }

    /// A power cut may have come in between: files that look as they were are read, and compared with what was kept.
    pub(crate) fn in_doubt(self, in_doubt: bool) -> Self {
        Self { in_doubt, ..self }
    }

    /// Puts everything back, and says of each path what came of it.
    pub(crate) fn put_back(&mut self, images: &PreImages) -> Vec<(RelPath, Result<PutBack>)> {
        self.torn = self.find_torn(images);
        let mut outcomes: Vec<(RelPath, Result<PutBack>)> = Vec::with_capacity(images.len());
        for (path, image) in images {
            let outcome = match (&image.was, set_of(path, images)) {
                // With its database.
                (_, Some(database)) if database != *path => continue,
                (Was::Database { .. }, _) => self.database(path, image, images, &mut outcomes),
                _ => self.one(path, image),
            };
            outcomes.push((path.clone(), outcome));
        }
        // Times last: whatever was put back below a directory has moved its own on.
        for (path, outcome) in outcomes.iter_mut().rev() {
            let Some(image) = images.get(path) else { continue };
            if outcome.is_ok()
                && let Was::Directory { .. } = image.was
                && let Err(error) = self.directory(path, image)
            {
                *outcome = Err(error);
            }
        }
        outcomes
    }

    /// What lies at a path now, and how it differs from what it was.
    pub(crate) fn compare(&mut self, path: &RelPath, image: &PreImage) -> Result<(Option<Meta>, Difference)> {
        let live = self.look(path)?;
        let mut difference = image.differs(live.as_ref());
        // The number of a removed inode comes again, and so may its times: a symlink is what it says.
        if let (Was::Symlink { target, attrs, .. }, Some(live)) = (&image.was, &live)
            && live.kind == Kind::Symlink
        {
            let dir = self.dirs.parent(path)?;
            let says = rustix::fs::readlinkat(&dir.fd, path.name(), Vec::new());
            let says = says.at("read the symlink", self.dirs.root().full(path))?;
            let dressed = (live.mtime, live.uid, live.gid) == (attrs.mtime, attrs.uid, attrs.gid);
            difference = match says.as_bytes() == target.as_slice() {
                true if dressed => Difference::None,
                true => Difference::Attributes,
                false => Difference::All,
            };
        }
        if let Some(live) = &live
            && difference != Difference::All
            && self.only_seems_the_same(path, image, live)?
        {
            difference = Difference::All;
        }
        Ok((live, difference))
    }

    /// True when something else is at a path than was, or may be.
    pub(crate) fn is_touched(&mut self, path: &RelPath, image: &PreImage) -> Result<bool> {
        Ok(self.compare(path, image)?.1 != Difference::None)
    }

    /// True for what by its times and size is as it was, and is not.
    fn only_seems_the_same(&mut self, path: &RelPath, image: &PreImage, live: &Meta) -> Result<bool> {
        match &image.was {
            Was::File { kept, way: Way::Reflink | Way::Copy, .. } | Was::Database { kept, .. } => {
                if kept.is(live, true) {
                    return Ok(false);
                }
                if self.torn.contains(path) {
                    return Ok(true);
                }
                if !self.in_doubt {
                    return Ok(false);
                }
                let kept = self.area(image)?.stage_path(&image.name);
                let equal = self.opener.compare(vec![Compare { path: path.clone(), kept }])?.pop();
                Ok(!equal.unwrap_or(Ok(false))?)
            }
            Was::Appended(end) if self.in_doubt => {
                let now = self.opener.ends(vec![path.clone()])?.pop().unwrap_or(Ok(None))?;
                Ok(now.as_ref() != Some(end))
            }
            // Values, which are in the directory or in the inode with its times.
            _ => Ok(false),
        }
    }

    /// Files of several names come back as one file: where one of the names was touched, so were all.
    pub(super) fn find_torn(&mut self, images: &PreImages) -> HashSet<RelPath> {
        let mut names: HashMap<(i64, u64), Vec<(&RelPath, &PreImage)>> = HashMap::new();
        for (path, image) in images {
            if let Was::File { kept, way: Way::Reflink | Way::Copy, .. } = &image.was {
                names.entry((image.area, kept.ino)).or_default().push((path, image));
            }
        }
        let mut torn = HashSet::new();
        for names in names.values().filter(|names| names.len() > 1) {
            let untouched = |(path, image): &(&RelPath, &PreImage)| match (self.compare(path, image), &image.was) {
                (Ok((Some(live), Difference::None)), Was::File { kept, .. }) => !kept.is(&live, true),
                // Whatever keeps it from being looked at, putting it back meets too.
                _ => false,
            };
            if !names.iter().all(untouched) {
                torn.extend(names.iter().map(|(path, _)| (*path).clone()));
            }
        }
        torn
    }

    /// What was displaced when a path was put back: names of the stage, the newest first. It is the pre-image's name, or
    /// stands beside it for a database; and what an attempt that was cut short had displaced before stands behind it.
    pub(crate) fn displaced(&self, image: &PreImage) -> Result<Vec<(String, Meta)>> {
        let area = self.area(image)?;
        let mut found = Vec::new();
        if let Some(staged) = area.look_staged(&image.name)?
            && !image.is_kept(&staged)
        {
            found.push((image.name.clone(), staged));
        }
        let was = format!("{}{WAS}", image.name);
        found.extend(area.look_staged(&was)?.map(|staged| (was, staged)));
        for n in 1.. {
            let name = earlier(&image.name, n);
            let Some(staged) = area.look_staged(&name)? else { break };
            found.push((name, staged));
        }
        Ok(found)
    }

    pub(crate) fn area(&self, image: &PreImage) -> Result<Arc<Area>> {
        self.areas.get(&image.area).cloned().ok_or(Error::NotMounted { area: image.area })
    }

    fn one(&mut self, path: &RelPath, image: &PreImage) -> Result<PutBack> {
        let area = self.area(image)?;
        if image.was == Was::Lost {
            return Ok(PutBack::Damaged);
        }
        let (live, difference) = self.compare(path, image)?;
        self.tidy(&area, image, live.as_ref())?;
        let full = self.dirs.root().full(path);
        if let Some(live) = live.filter(|live| live.kind == Kind::Directory) {
            // Before anything in it, or it itself, is touched; what it had comes back at the end.
            self.find(path, image, &live);
            attrs::open_up(&self.dirs.parent(path)?.fd, path.name(), &live, &full)?;
        }
        // What is put in place must be what was kept: bytes written to a link since are not, nor is what an earlier attempt
        // displaced.
        if let Was::File { kept, .. } | Was::Database { kept, .. } = &image.was
            && difference == Difference::All
            && area.look_staged(&image.name)?.is_none_or(|staged| !kept.is(&staged, true))
        {
            return Ok(PutBack::Damaged);
        }
        // Immutable, append-only or a mount point: nobody can move it out of the way.
        if difference == Difference::All && live.is_some_and(|live| live.fixed) {
            return Ok(PutBack::Damaged);
        }
        match (difference, &image.was) {
            (Difference::None, _) => return Ok(PutBack::Unchanged),
            (_, Was::Appended(end)) => {
                let cut = self.opener.cut(path.clone(), end.clone(), area.stage_path(&image.name))?;
                return Ok(match cut {
                    Cut::Nothing => PutBack::Unchanged,
                    Cut::Off => PutBack::Restored,
                    Cut::Damaged => PutBack::Damaged,
                });
            }
            (Difference::Attributes, Was::Directory { .. }) => return Ok(PutBack::Dressed),
            (Difference::Attributes, Was::File { attrs, .. } | Was::Symlink { attrs, .. }) => {
                let dir = self.dirs.parent(path)?;
                attrs::dress_at(&dir.fd, path.name(), attrs, &full)?;
                return Ok(PutBack::Dressed);
            }
            (Difference::All, Was::File { kept, way: Way::Link, .. })
                if live.is_some_and(|live| live.kind == Kind::File && live.ino == kept.ino) =>
            {
                return Ok(PutBack::Damaged);
            }
            _ => {}
        }
        self.dirs.forget(path);
        let dir = self.dirs.parent(path)?;
        match &image.was {
            // Seen to above.
            Was::Appended(_) => {}
            Was::Lost => return Ok(PutBack::Damaged),
            Was::Absent => {
                clear(&area, &image.name)?;
                exchange::take(&dir.fd, path.name(), &area.stage, &image.name).at("take away", &full)?;
            }
            Was::Directory { .. } => {
                if live.is_some() {
                    clear(&area, &image.name)?;
                    exchange::take(&dir.fd, path.name(), &area.stage, &image.name).at("take away", &full)?;
                }
                dir.make_dir(path.name(), Some(0o700)).at("make the directory", &full)?;
            }
            Was::Symlink { target, attrs, .. } => {
                let made = format!("{}{MADE}", image.name);
                temp::symlink(&area, &made, Path::new(OsStr::from_bytes(target)))?;
                attrs::dress_at(&area.stage, made.as_ref(), attrs, &area.stage_path(&made))?;
                let placed = exchange::place(&area, &area.stage, &made, &dir.fd, path.name(), live.is_some());
                if placed.at("put back", &full)? == exchange::Placed::Exchanged {
                    clear(&area, &image.name)?;
                    area.rename_staged(&made, &image.name)?;
                }
            }
            Was::File { attrs, .. } | Was::Database { attrs, .. } => {
                let placed = exchange::place(&area, &area.stage, &image.name, &dir.fd, path.name(), live.is_some());
                placed.at("put back", &full)?;
                attrs::dress_at(&dir.fd, path.name(), attrs, &full)?;
            }
        }
        Ok(PutBack::Restored)
    }

    /// Puts a database back with what lies beside it. Where nobody has it open, byte for byte and in place; else its content,
    /// through SQLite, which sees to the sidecars.
    fn database(
        &mut self,
        path: &RelPath,
        image: &PreImage,
        images: &PreImages,
        outcomes: &mut Vec<(RelPath, Result<PutBack>)>,
    ) -> Result<PutBack> {
        let Was::Database { attrs, .. } = &image.was else { return self.one(path, image) };
        let area = self.area(image)?;
        let (live, difference) = self.compare(path, image)?;
        let beside: Vec<(RelPath, &PreImage)> = SIDECARS
            .iter()
            .filter_map(|suffix| path.with_suffix(suffix.as_bytes()))
            .filter_map(|path| images.get(&path).map(|image| (path, image)))
            .collect();
        let mut differs = difference != Difference::None;
        // It holds nothing, and changes when anybody looks; but an attempt before this one may have been cut short just there.
        let mut shm_differs = false;
        for (path, image) in &beside {
            let what = if path.as_bytes().ends_with(b"-shm") { &mut shm_differs } else { &mut differs };
            *what |= self.compare(path, image)?.1 != Difference::None;
        }
        if !differs && !shm_differs {
            return Ok(PutBack::Unchanged);
        }
        let is_file = live.is_some_and(|live| live.kind == Kind::File);
        let locked = if is_file { self.opener.lock_alone(path.clone())? } else { None };
        if is_file && locked.is_none() {
            return if differs { self.content(path, image) } else { Ok(PutBack::Unchanged) };
        }
        // Sidecars first, and the database last: who waits for the lock finds the set whole.
        for (path, image) in beside {
            let outcome = self.one(&path, image);
            let failed = outcome.is_err();
            outcomes.push((path, outcome));
            if failed && let Some(locked) = locked {
                self.opener.unlock(locked)?;
                // Its sidecar's error says why, and has all of it tried again.
                return Ok(PutBack::Unchanged);
            }
        }
        let Some(locked) = locked else { return self.one(path, image) };
        if !differs {
            return self.opener.unlock(locked).map(|()| PutBack::Unchanged);
        }
        let (kept, aside) = (area.stage_path(&image.name), area.stage_path(&format!("{}{WAS}", image.name)));
        let done = self.opener.write_back(path.clone(), kept, attrs.clone(), aside);
        self.opener.unlock(locked)?;
        done.map(|()| PutBack::Restored)
    }

    /// Puts back what a database holds, while others have it open.
    fn content(&mut self, path: &RelPath, image: &PreImage) -> Result<PutBack> {
        let area = self.area(image)?;
        let (live, was) = (self.dirs.root().full(path), format!("{}{WAS}", image.name));
        if area.look_staged(&was)?.is_none() {
            sqlite_set::copy_content(&live, &area.stage_path(&was))?;
        }
        // SQLite works on a copy of what was kept: it would bring the log into the database.
        let work = format!("{}.work", image.name);
        let staged = |name: &str, suffix: &str| area.stage_path(&format!("{name}{suffix}"));
        let parts: Vec<_> =
            ["", "-wal", "-journal"].iter().map(|s| (staged(&image.name, s), staged(&work, s))).collect();
        for suffix in ["", "-wal", "-shm", "-journal"] {
            area.drop_staged(&format!("{work}{suffix}"))?;
        }
        self.opener.copy_own(parts)?;
        sqlite_set::copy_content(&area.stage_path(&work), &live)?;
        for suffix in ["", "-wal", "-shm", "-journal"] {
            area.drop_staged(&format!("{work}{suffix}"))?;
        }
        Ok(PutBack::Restored)
    }

    /// What a restore that was cut short left: what it had moved aside, where the filesystem cannot exchange two names, and
    /// a symlink in the making.
    fn tidy(&self, area: &Area, image: &PreImage, live: Option<&Meta>) -> Result<()> {
        let made = format!("{}{MADE}", image.name);
        let staged = match &image.was {
            Was::Symlink { .. } => &made,
            Was::File { .. } | Was::Database { .. } => &image.name,
            _ => return Ok(()),
        };
        let aside = format!("{staged}{ASIDE}");
        if let Some(old) = area.look_staged(&aside)? {
            // A second link to what is there still; or it is there no more.
            match live.is_some_and(|live| live.kind != Kind::Directory && (live.kind, live.ino) == (old.kind, old.ino))
            {
                true => area.unlink_staged(&aside)?,
                false => area.rename_staged(&aside, &free_name(area, &image.name)?)?,
            }
        }
        let Was::Symlink { target, .. } = &image.was else { return Ok(()) };
        match area.look_staged(&made)? {
            None => Ok(()),
            Some(_) if temp::symlink_says(area, &made, target) => area.unlink_staged(&made),
            Some(_) => {
                clear(area, &image.name)?;
                area.rename_staged(&made, &image.name)
            }
        }
    }
}

/// The database that a path is, or lies beside, among these.
pub(super) fn set_of(path: &RelPath, images: &PreImages) -> Option<RelPath> {
    let is_database = |path: &RelPath| images.get(path).is_some_and(|image| matches!(image.was, Was::Database { .. }));
    [Some(path.clone()), opener::database_beside(path)].into_iter().flatten().find(|path| is_database(path))
}

/// Makes a name of the stage free for what is about to be displaced. What an earlier attempt displaced is kept beside it.
fn clear(area: &Area, name: &str) -> Result<()> {
    match area.look_staged(name)? {
        None => Ok(()),
        Some(_) => area.rename_staged(name, &free_name(area, name)?),
    }
}

/// The first name for what was displaced earlier that is free.
fn free_name(area: &Area, name: &str) -> Result<String> {
    let mut n = 1;
    loop {
        let free = earlier(name, n);
        if area.look_staged(&free)?.is_none() {
            return Ok(free);
        }
        n += 1;
    }
}

/// What the `n`th thing is called that had to make room.
fn earlier(name: &str, n: u32) -> String {
    format!("{name}.{n}")
}
