//! Reads what a program wrote to a layer: the upper directory of an overlay mount whose lower one is a tree of the root.
//!
//! In the layer lies what the program touched and nothing else: files and directories as they are now, a device 0/0 where
//! something is gone ("whiteout"), a directory that hides what lies below ("opaque"), one that shows another one's content
//! because it was renamed ("redirect"). Read beside the live tree it becomes [`Writing`]: what is to lie at which path. Nobody
//! may write to it any more by then.
//!
//! What has changed in the live tree since the layer was laid is a [`Clash`] where the layer touches it too: a change moves the
//! ctime on, and a directory that was exchanged for another is told by its handle.

use std::collections::{BTreeSet, HashMap};

use super::writing::{CHANGED, Clash, DRESSED, FIXED, JOURNAL, LINKED, Made, REPLACED, SUBVOLUME, Writing};
use crate::error::{Error, IoContext, Result};
use crate::fs::attrs::{self, Attrs, Xattrs};
use crate::fs::handle::{self, Handle};
use crate::fs::root::{self, Dirs, Kind, Meta, Place};
use crate::fs::upper::{self, Notes, Upper, UpperDir};
use crate::path::{AREA_DIR, RelPath, STATE_DIR};

/// Why reading came to an end.
enum Stop {
    Error(Error),
    Clash(Clash),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

type Step<T = ()> = std::result::Result<T, Stop>;

fn clash<T>(path: &RelPath, reason: &'static str) -> Step<T> {
    Err(Stop::Clash(Clash { path: path.clone(), reason }))
}

/// A directory of the layer that is to be gone through.
struct Todo {
    /// In the layer; none is its top.
    at: Option<RelPath>,
    to: Option<RelPath>,
    /// The live directory whose content shows through.
    through: Through,
}

enum Through {
    Nothing,
    /// None is the root.
    Live(Option<RelPath>),
}

/// How many of a file's names are the journal's own, in mirrors.
pub(crate) type OwnNames<'r> = &'r dyn Fn(&RelPath, &Meta) -> Result<u32>;

struct Reader<'r> {
    upper: &'r Upper,
    top: Option<&'r RelPath>,
    began: (i64, u32),
    /// Where the tree lies.
    place: Place,
    dirs: Dirs<'r>,
    own_names: OwnNames<'r>,
    /// The journal's own paths.
    reserved: &'r [RelPath],
    todo: Vec<Todo>,
    out: Writing,
    /// Directories that stay, and whose content does not.
    vacated: Vec<RelPath>,
    /// Directories that stay what they are, as the program sees them.
    stay: HashMap<RelPath, Attrs>,
    /// Files copied from elsewhere than where they are now: renamed, or given a second name.
    moved: Vec<(RelPath, Handle)>,
}

/// Reads a layer over the tree at `top`, none being the root, that was laid at `began` by the clock of the filesystem. The first
/// clash found is the answer where there is one.
pub(crate) fn read<'r>(
    upper: &'r Upper,
    top: Option<&'r RelPath>,
    began: (i64, u32),
    dirs: Dirs<'r>,
    own_names: OwnNames<'r>,
    reserved: &'r [RelPath],
) -> Result<std::result::Result<Writing, Clash>> {
    let todo = vec![Todo { at: None, to: top.cloned(), through: Through::Live(top.cloned()) }];
    let (out, vacated, stay, moved) = (Writing::default(), Vec::new(), HashMap::new(), Vec::new());
    let place = match top {
        Some(top) => dirs.root().open_dir(top)?.meta.place,
        None => dirs.root().top().meta.place,
    };
    let reader = Reader { upper, top, began, place, dirs, own_names, reserved, todo, out, vacated, stay, moved };
    match reader.read() {
        Ok(writing) => Ok(Ok(writing)),
        Err(Stop::Clash(clash)) => Ok(Err(clash)),
        Err(Stop::Error(error)) => Err(error),
    }
}

impl Reader<'_> {
    fn read(mut self) -> Step<Writing> {
        self.top()?;
        while let Some(todo) = self.todo.pop() {
            self.directory(&todo)?;
        }
        self.vacate()?;
        self.trace()?;
        self.keep_times();
        Ok(self.out)
    }

    /// The top of the layer is dressed as the tree's own was.
    fn top(&mut self) -> Step {
        let top = &self.top.cloned().unwrap_or_else(RelPath::root);
        let dir = self.upper.dir(None)?;
        let meta = dir.meta()?;
        match self.live(top)? {
            Some(live) if live.kind == Kind::Directory => {
                let mut attrs = dir.notes(None, &meta)?.attrs;
                let xattrs = self.live_xattrs(top)?;
                self.upper.add_hidden(&xattrs, &mut attrs);
                self.dress(top, &live, attrs)
            }
            _ => clash(top, REPLACED),
        }
    }

    fn live(&mut self, path: &RelPath) -> Result<Option<Meta>> {
        match self.dirs.try_parent(path) {
            Ok(Some(dir)) => root::look(&dir.fd, path.name()).at_in("look at", self.dirs.root().path(), path),
            Ok(None) | Err(Error::NotADirectory { .. } | Error::SymlinkOnTheWay { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn live_xattrs(&mut self, path: &RelPath) -> Result<Xattrs> {
        attrs::xattrs(&self.dirs.parent(path)?.fd, path.name(), self.dirs.root().path())
    }

    fn live_handle(&mut self, path: &RelPath) -> Result<Option<Handle>> {
        let dir = self.dirs.parent(path)?;
        handle::of(&dir.fd, path.name()).at_in("look at", self.dirs.root().path(), path)
    }

    fn has_other_names(&self, path: &RelPath, live: &Meta) -> Result<bool> {
        if live.kind == Kind::Directory || live.links < 2 {
            return Ok(false);
        }
        Ok(live.links.saturating_sub((self.own_names)(path, live)?) > 1)
    }

    fn changed(&self, live: &Meta) -> bool {
        live.ctime >= self.began
    }

    fn directory(&mut self, todo: &Todo) -> Step {
        let dir = self.upper.dir(todo.at.as_ref())?;
        let mut names: BTreeSet<Vec<u8>> = BTreeSet::new();
        for (at, meta) in dir.entries()? {
            let name = at.name().as_encoded_bytes();
            let to = RelPath::join(todo.to.as_ref(), name);
            if is_journal(name) {
                return clash(&to, JOURNAL);
            }
            names.insert(name.to_vec());
            let through = match &todo.through {
                Through::Live(from) => Some(RelPath::join(from.as_ref(), name)),
                Through::Nothing => None,
            };
            let here = self.live(&to)?;
            if upper::is_whiteout(&meta) {
                if let Some(here) = here {
                    self.goes(&to, &here, Made::Nothing)?;
                }
                continue;
            }
            let mut notes = dir.notes(Some(&at), &meta)?;
            if here.is_some_and(|here| here.kind == meta.kind) {
                let live = self.live_xattrs(&to)?;
                self.upper.add_hidden(&live, &mut notes.attrs);
            }
            if meta.kind == Kind::Directory {
                dir.open_up(&at, &meta)?;
                self.subdirectory(at, to, here, through, notes)?;
            } else {
                self.file(&dir, at, to, here, meta, notes)?;
            }
        }
        match (&todo.through, &todo.to) {
            (Through::Live(Some(from)), Some(to)) if from != to => self.carry(from, to, &names),
            _ => Ok(()),
        }
    }

    /// A directory of the layer. `through` is the path whose live content it hides or shows, unless it says otherwise.
    fn subdirectory(
        &mut self,
        at: RelPath,
        to: RelPath,
        here: Option<Meta>,
        through: Option<RelPath>,
        notes: Notes,
    ) -> Step {
        let redirected = notes.redirect.as_ref().and_then(|redirect| self.resolve(redirect, through.as_ref()));
        let through = redirected.or(through).filter(|_| !notes.opaque);
        let mut shows = None;
        if let Some(through) = through {
            let live = self.live(&through)?.filter(|live| live.kind == Kind::Directory);
            if live.is_some_and(|live| live.place != self.place) {
                return clash(&through, SUBVOLUME);
            }
            let is_directory = live.is_some();
            // It shows what lies in a directory that is another one by now, or none at all.
            if let Some(origin) = &notes.origin
                && (!is_directory || self.live_handle(&through)?.is_some_and(|now| now != *origin))
            {
                return clash(&through, REPLACED);
            }
            shows = is_directory.then_some(through);
        }
        match &here {
            Some(here) if shows.as_ref() == Some(&to) => self.dress(&to, here, notes.attrs)?,
            Some(here) => {
                self.goes(&to, here, Made::Directory(notes.attrs))?;
                if here.kind == Kind::Directory {
                    self.vacated.push(to.clone());
                }
            }
            None => {
                self.out.new.insert(to.clone());
                self.out.made.insert(to.clone(), Made::Directory(notes.attrs));
            }
        }
        let through = shows.map_or(Through::Nothing, |shows| Through::Live(Some(shows)));
        self.todo.push(Todo { at: Some(at), to: Some(to), through });
        Ok(())
    }

    /// Anything else of the layer.
    fn file(
        &mut self,
        dir: &UpperDir<'_>,
        at: RelPath,
        to: RelPath,
        here: Option<Meta>,
        meta: Meta,
        notes: Notes,
    ) -> Step {
        let here_is_file = here.filter(|here| here.kind == Kind::File);
        // Of one of several names overlayfs does not say whether it is a copy of what lies below or something new.
        if let Some(here) = &here
            && self.has_other_names(&to, here)?
        {
            return clash(&to, LINKED);
        }
        if let Some(origin) = notes.origin
            && (here_is_file.is_none() || self.live_handle(&to)?.is_none_or(|now| now != origin))
        {
            self.moved.push((to.clone(), origin));
        }
        if let Some(here) = here_is_file
            && (here.kind, here.size, here.mtime) == (meta.kind, meta.size, meta.mtime)
        {
            let xattrs = self.live_xattrs(&to)?;
            if is_dressed(&here, xattrs, &notes.attrs) {
                self.out.same.push((to.clone(), to.clone()));
            }
        }
        let made = match meta.kind {
            Kind::Symlink => Made::Symlink(dir.target(&at)?, notes.attrs),
            _ => Made::Written { at, meta, attrs: notes.attrs },
        };
        match here {
            Some(here) => self.goes(&to, &here, made),
            None => {
                self.out.made.insert(to, made);
                Ok(())
            }
        }
    }

    /// What lies at a path makes room for something else, or for nothing.
    fn goes(&mut self, path: &RelPath, here: &Meta, made: Made) -> Step {
        if here.fixed {
            return clash(path, FIXED);
        }
        self.out.seen.insert(path.clone(), *here);
        self.out.made.insert(path.clone(), made);
        if here.kind == Kind::Directory {
            return self.goes_below(path);
        }
        if self.changed(here) { clash(path, CHANGED) } else { Ok(()) }
    }

    /// All that lies in a directory goes: nothing of it may have come or changed since.
    fn goes_below(&mut self, path: &RelPath) -> Step {
        let mut waiting = vec![path.clone()];
        while let Some(path) = waiting.pop() {
            let dir = self.dirs.root().open_dir(&path)?;
            if self.changed(&dir.meta) {
                return clash(&path, CHANGED);
            }
            for listed in root::list(&dir.fd).at("list", self.dirs.root().full(&path))? {
                let path = RelPath::join(Some(&path), &listed.name);
                let live = root::look(&dir.fd, path.name()).at_in("look at", self.dirs.root().path(), &path)?;
                let Some(live) = live else { continue };
                if is_journal(&listed.name) || self.reserved.contains(&path) {
                    return clash(&path, JOURNAL);
                }
                if self.changed(&live) {
                    return clash(&path, CHANGED);
                }
                if live.fixed {
                    return clash(&path, FIXED);
                }
                if live.kind == Kind::Directory {
                    waiting.push(path.clone());
                }
                self.out.below.insert(path);
            }
        }
        Ok(())
    }

    /// A directory that stays what it is; mode, owner, xattrs and time as the program left them.
    fn dress(&mut self, path: &RelPath, live: &Meta, mut want: Attrs) -> Step {
        let same = is_dressed(live, self.live_xattrs(path)?, &want);
        let others_came = live.mtime >= self.began;
        if !same && self.changed(live) {
            return clash(path, DRESSED);
        }
        if others_came {
            want.mtime = want.mtime.max(live.mtime);
        }
        if !same || want.mtime != live.mtime {
            self.out.made.insert(path.clone(), Made::Directory(want));
        } else {
            self.stay.insert(path.clone(), want);
        }
        Ok(())
    }

    /// What a renamed directory brings along: what the layer says nothing of.
    fn carry(&mut self, from: &RelPath, to: &RelPath, except: &BTreeSet<Vec<u8>>) -> Step {
        let mut waiting = vec![(from.clone(), to.clone())];
        while let Some((dir, into)) = waiting.pop() {
            let open = self.dirs.root().open_dir(&dir)?;
            for listed in root::list(&open.fd).at("list", self.dirs.root().full(&dir))? {
                if dir == *from && except.contains(&listed.name) {
                    continue;
                }
                let (from, to) = (RelPath::join(Some(&dir), &listed.name), RelPath::join(Some(&into), &listed.name));
                let live = root::look(&open.fd, from.name()).at_in("look at", self.dirs.root().path(), &from)?;
                let Some(live) = live else { continue };
                if is_journal(&listed.name) || self.reserved.contains(&from) {
                    return clash(&from, JOURNAL);
                }
                if self.changed(&live) {
                    return clash(&from, CHANGED);
                }
                let attrs = attrs::of(&live, self.live_xattrs(&from)?);
                let made = match live.kind {
                    Kind::Directory => {
                        waiting.push((from, to.clone()));
                        Made::Directory(attrs)
                    }
                    Kind::Symlink => {
                        let target = rustix::fs::readlinkat(&open.fd, from.name(), Vec::new());
                        let target = target.at_in("read the symlink", self.dirs.root().path(), &from)?;
                        Made::Symlink(target.into_bytes(), attrs)
                    }
                    Kind::File | Kind::Other => Made::Live { from, attrs },
                };
                self.out.made.insert(to, made);
            }
        }
        Ok(())
    }

    /// The path a redirect names: absolute from the top of the tree, or a name beside the one it shows.
    fn resolve(&self, redirect: &[u8], through: Option<&RelPath>) -> Option<RelPath> {
        match redirect.strip_prefix(b"/") {
            Some(absolute) => {
                let names = absolute.split(|&byte| byte == b'/').filter(|name| !name.is_empty());
                names.fold(self.top.cloned(), |path, name| Some(RelPath::join(path.as_ref(), name)))
            }
            None => through.map(|through| RelPath::join(through.parent().as_ref(), redirect)),
        }
    }

    /// What lay in directories that are new ones now, and is not in them again, is gone.
    fn vacate(&mut self) -> Step {
        for dir in std::mem::take(&mut self.vacated) {
            let open = self.dirs.root().open_dir(&dir)?;
            for listed in root::list(&open.fd).at("list", self.dirs.root().full(&dir))? {
                let path = RelPath::join(Some(&dir), &listed.name);
                self.out.made.entry(path).or_insert(Made::Nothing);
            }
        }
        Ok(())
    }

    /// Finds where files came from that are copies of what lies elsewhere.
    fn trace(&mut self) -> Step {
        if self.moved.is_empty() {
            return Ok(());
        }
        let mut touched: HashMap<Handle, (RelPath, Meta)> = HashMap::new();
        let paths: Vec<RelPath> = self.out.made.keys().chain(&self.out.below).cloned().collect();
        for path in paths {
            let Some(live) = self.live(&path)?.filter(|live| live.kind != Kind::Directory) else { continue };
            if let Some(handle) = self.live_handle(&path)? {
                touched.insert(handle, (path, live));
            }
        }
        for (to, origin) in std::mem::take(&mut self.moved) {
            let Some((from, live)) = touched.get(&origin) else { return clash(&to, REPLACED) };
            if self.has_other_names(from, live)? {
                return clash(from, LINKED);
            }
            if let Some(Made::Written { meta, .. }) = self.out.made.get(&to)
                && (live.size, live.mtime) == (meta.size, meta.mtime)
            {
                self.out.same.push((to, from.clone()));
            }
        }
        Ok(())
    }

    /// What is put into a directory moves its time on, where to the program it stood still.
    fn keep_times(&mut self) {
        let above = |path: &RelPath| path.parent().unwrap_or_else(RelPath::root);
        let parents: BTreeSet<RelPath> = self.out.made.keys().filter(|path| !path.is_root()).map(above).collect();
        for parent in parents {
            if let Some(attrs) = self.stay.remove(&parent) {
                self.out.made.entry(parent).or_insert(Made::Directory(attrs));
            }
        }
    }
}

/// The names that only journals have.
fn is_journal(name: &[u8]) -> bool {
    name == STATE_DIR.as_bytes() || name == AREA_DIR.as_bytes()
}

/// True when what lies there has these mode, owner and xattrs.
fn is_dressed(live: &Meta, mut xattrs: Xattrs, want: &Attrs) -> bool {
    let mut wanted = want.xattrs.clone();
    xattrs.sort();
    wanted.sort();
    (live.mode, live.uid, live.gid) == (want.mode, want.uid, want.gid) && xattrs == wanted
}
