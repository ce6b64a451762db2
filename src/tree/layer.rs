//! Reads what a program wrote to a layer: the upper directory of an overlay mount (Linux's overlayfs) whose lower one is a
//! tree of the root.
//!
//! In the layer lies what the program touched and nothing else: files and directories as they are now, a device 0/0 where
//! something is gone ("whiteout"), a directory that hides what lies below ("opaque"), one that shows another one's content
//! because it was renamed ("redirect"). Read beside the live tree it becomes [`Writing`]: what is to lie at which path. Nobody
//! may write to it any more by then.
//!
//! What has changed in the live tree since the layer was laid is a [`Clash`] where the layer touches it too: a change moves the
//! ctime on, and a directory that was exchanged for another is told by its handle.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use crate::error::{IoContext, Result};
use crate::fs::attrs::{self, Attrs, Xattrs};
use crate::fs::handle::{self, Handle};
use crate::fs::root::{self, Dirs, Kind, Meta};
use crate::path::{AREA_DIR, RelPath, STATE_DIR};

/// What is to lie at a path.
#[derive(Debug)]
pub(crate) enum Made {
    Nothing,
    /// A directory; whether it is the one that is there already, its path tells.
    Directory(Attrs),
    Symlink(Vec<u8>, Attrs),
    /// What lies at this path of the layer: a file, or a device, socket or FIFO.
    Written {
        at: RelPath,
        meta: Meta,
        attrs: Attrs,
    },
    /// The very file that lies at another path, or did until now.
    Live {
        from: RelPath,
        attrs: Attrs,
    },
}

impl Made {
    /// How many names it has in the layer.
    pub(crate) fn links(&self) -> u32 {
        match self {
            Self::Written { meta, .. } => meta.links,
            _ => 1,
        }
    }
}

/// What a layer makes of its tree.
#[derive(Debug, Default)]
pub(crate) struct Writing {
    pub(crate) made: BTreeMap<RelPath, Made>,
    /// What goes with a directory that is removed or replaced.
    pub(crate) below: BTreeSet<RelPath>,
    /// Files that seem to be what the live tree has at a path: at their own, or where they came from. Their bytes decide.
    pub(crate) same: Vec<(RelPath, RelPath)>,
    /// Directories where nothing is yet: what comes with them needs no guard of its own.
    pub(crate) new: BTreeSet<RelPath>,
    /// What lay at those paths when they were looked at.
    pub(crate) seen: BTreeMap<RelPath, Meta>,
}

/// Somebody else did something to the tree that the layer knows nothing of.
#[derive(Debug)]
pub(crate) struct Clash {
    pub(crate) path: Option<RelPath>,
    pub(crate) reason: &'static str,
}

const CHANGED: Clash = Clash { path: None, reason: "somebody else changed it meanwhile" };
const REPLACED: Clash = Clash { path: None, reason: "somebody else replaced or removed it meanwhile" };
const LINKED: Clash = Clash { path: None, reason: "it has other names, which would keep the old content" };
const JOURNAL: Clash = Clash { path: None, reason: "it belongs to a journal of its own" };
const DRESSED: Clash = Clash { path: None, reason: "somebody else changed its mode or owner meanwhile" };

impl Clash {
    fn at(self, path: &RelPath) -> Self {
        Self { path: Some(path.clone()), ..self }
    }
}

/// A layer, to be read.
pub(crate) struct Reading<'r> {
    pub(crate) upper: &'r OwnedFd,
    /// For messages.
    pub(crate) path: &'r Path,
    /// The tree; none is the root.
    pub(crate) top: Option<&'r RelPath>,
    /// When the layer was laid, by the clock of the filesystem.
    pub(crate) began: (i64, u32),
}

/// A directory of the layer that is to be gone through.
struct Todo {
    /// In the layer; none is its top.
    at: Option<RelPath>,
    to: Option<RelPath>,
    /// The live directory whose content shows through.
    through: Through,
}

#[derive(Clone, PartialEq, Eq)]
enum Through {
    Nothing,
    /// None is the root.
    Live(Option<RelPath>),
}

/// What overlayfs notes with a name of the layer.
#[derive(Default)]
struct Notes {
    opaque: bool,
    redirect: Option<Vec<u8>>,
    /// The lower file or directory that this one was copied from.
    origin: Option<Handle>,
    attrs: Attrs,
}

struct Reader<'r, 'd> {
    reading: &'r Reading<'r>,
    dirs: Dirs<'d>,
    todo: Vec<Todo>,
    out: Writing,
    /// Directories that stay, and whose content does not.
    vacated: Vec<RelPath>,
    /// Directories that stay what they are, as the program sees them.
    stay: HashMap<RelPath, Attrs>,
    /// Files copied from elsewhere than where they are now: renamed, or given a second name.
    moved: Vec<(RelPath, Handle)>,
    clash: Option<Clash>,
}

/// Reads a layer. The first clash found is the answer where there is one.
pub(crate) fn read<'r>(reading: &'r Reading<'r>, dirs: Dirs<'r>) -> Result<Result<Writing, Clash>> {
    let top = reading.top.cloned();
    let todo = vec![Todo { at: None, to: top.clone(), through: Through::Live(top) }];
    let mut reader = Reader {
        reading,
        dirs,
        todo,
        out: Writing::default(),
        vacated: Vec::new(),
        stay: HashMap::new(),
        moved: Vec::new(),
        clash: None,
    };
    reader.top()?;
    while let Some(todo) = reader.todo.pop() {
        reader.directory(todo)?;
        if let Some(clash) = reader.clash {
            return Ok(Err(clash));
        }
    }
    reader.vacate()?;
    reader.trace()?;
    reader.keep_times();
    Ok(match reader.clash {
        Some(clash) => Err(clash),
        None => Ok(reader.out),
    })
}

impl Writing {
    /// The paths that will not be what they are.
    pub(crate) fn touched(&self) -> impl Iterator<Item = &RelPath> {
        let in_new =
            |path: &RelPath| std::iter::successors(path.parent(), RelPath::parent).any(|at| self.new.contains(&at));
        self.made.keys().chain(&self.below).filter(move |path| self.new.is_empty() || !in_new(path))
    }
}

impl Reader<'_, '_> {
    /// The top of the layer is dressed as the tree's own was.
    fn top(&mut self) -> Result<()> {
        let Some(top) = self.reading.top else { return Ok(()) };
        let meta = root::look_at(self.reading.upper).at("look at", self.reading.path)?;
        let notes = notes(self.reading.upper, OsStr::new("."), &meta, self.reading.path)?;
        match self.live(top)? {
            Some(live) if live.kind == Kind::Directory => self.dress(top, &live, notes.attrs),
            _ => {
                self.refuse(REPLACED.at(top));
                Ok(())
            }
        }
    }

    fn refuse(&mut self, clash: Clash) {
        self.clash.get_or_insert(clash);
    }

    fn live(&mut self, path: &RelPath) -> Result<Option<Meta>> {
        match self.dirs.try_parent(path) {
            Ok(Some(dir)) => root::look(&dir.fd, path.name()).at_in("look at", self.dirs.root().path(), path),
            Ok(None) | Err(crate::Error::NotADirectory { .. } | crate::Error::SymlinkOnTheWay { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn changed(&self, live: &Meta) -> bool {
        live.ctime >= self.reading.began
    }

    fn directory(&mut self, todo: Todo) -> Result<()> {
        let opened;
        let dir = match &todo.at {
            None => self.reading.upper,
            Some(at) => {
                opened = open_in(self.reading.upper, at, self.reading.path)?;
                &opened
            }
        };
        let full = todo.at.as_ref().map_or(self.reading.path.to_owned(), |at| self.reading.path.join(at));
        let mut names: BTreeSet<Vec<u8>> = BTreeSet::new();
        for listed in root::list(dir).at("list", &full)? {
            let (at, to) =
                (RelPath::join(todo.at.as_ref(), &listed.name), RelPath::join(todo.to.as_ref(), &listed.name));
            if is_journal(&listed.name) {
                self.refuse(JOURNAL.at(&to));
                return Ok(());
            }
            let Some(meta) = root::look(dir, at.name()).at_in("look at", &full, at.name())? else { continue };
            let through = match &todo.through {
                Through::Live(from) => Some(RelPath::join(from.as_ref(), &listed.name)),
                Through::Nothing => None,
            };
            self.name(dir, &full, at, to, through, &meta)?;
            names.insert(listed.name);
        }
        if let (Through::Live(Some(from)), Some(to)) = (&todo.through, &todo.to)
            && from != to
        {
            self.carry(from, to, &names)?;
        }
        Ok(())
    }

    /// One name of the layer. `through` is the path whose live content it hides or shows.
    fn name(
        &mut self,
        dir: &OwnedFd,
        full: &Path,
        at: RelPath,
        to: RelPath,
        through: Option<RelPath>,
        meta: &Meta,
    ) -> Result<()> {
        let here = self.live(&to)?;
        if meta.kind == Kind::Other && meta.device == Some((0, 0)) {
            return match here {
                Some(here) => self.goes(&to, &here, Made::Nothing),
                None => Ok(()),
            };
        }
        let notes = notes(dir, at.name(), meta, full)?;
        if meta.kind != Kind::Directory {
            return self.file(dir, full, at, to, here, meta, notes);
        }
        attrs::open_up(dir, at.name(), meta, &full.join(at.name()))?;
        let redirected = notes.redirect.as_ref().and_then(|redirect| self.resolve(redirect, through.as_ref()));
        let through = match (notes.opaque, redirected) {
            (true, _) => None,
            (false, Some(from)) => Some(from),
            (false, None) => through,
        };
        let source = match &through {
            Some(through) => self.live(through)?.filter(|live| live.kind == Kind::Directory),
            None => None,
        };
        // It shows what lies in a directory that is another one by now, or none at all.
        let mismatch = |source: &Meta, dirs: &mut Dirs<'_>, path: &RelPath| -> Result<bool> {
            let (Some(origin), Ok(dir)) = (&notes.origin, dirs.parent(path)) else { return Ok(false) };
            let now = handle::of(&dir.fd, path.name()).at("look at", dirs.root().full(path))?;
            Ok(source.kind != Kind::Directory || now.is_some_and(|now| now != *origin))
        };
        match (&source, &through) {
            (Some(source), Some(through)) if mismatch(source, &mut self.dirs, through)? => {
                self.refuse(REPLACED.at(through));
                return Ok(());
            }
            (None, Some(through)) if notes.origin.is_some() => {
                self.refuse(REPLACED.at(through));
                return Ok(());
            }
            _ => {}
        }
        let shows = source.and(through);
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

    #[expect(clippy::too_many_arguments, reason = "where it lies, where it goes, and what is known of it")]
    fn file(
        &mut self,
        dir: &OwnedFd,
        full: &Path,
        at: RelPath,
        to: RelPath,
        here: Option<Meta>,
        meta: &Meta,
        notes: Notes,
    ) -> Result<()> {
        let is_copy = match (&here, &notes.origin) {
            (Some(here), Some(origin)) if here.kind == Kind::File => {
                let parent = self.dirs.parent(&to)?;
                handle::of(&parent.fd, to.name()).at("look at", self.dirs.root().full(&to))?.as_ref() == Some(origin)
            }
            _ => false,
        };
        // Of one of several names overlayfs does not say whether it is a copy of what lies below or something new.
        if here.is_some_and(|here| here.links > 1 && here.kind != Kind::Directory) {
            self.refuse(LINKED.at(&to));
            return Ok(());
        }
        if let Some(origin) = notes.origin.filter(|_| !is_copy) {
            self.moved.push((to.clone(), origin));
        }
        if let Some(here) = here
            && (here.kind, here.size, here.mtime) == (meta.kind, meta.size, meta.mtime)
            && here.kind == Kind::File
        {
            let parent = self.dirs.parent(&to)?;
            let xattrs = attrs::xattrs(&parent.fd, to.name(), self.dirs.root().path())?;
            if is_dressed(&here, xattrs, &notes.attrs) {
                self.out.same.push((to.clone(), to.clone()));
            }
        }
        let made = match meta.kind {
            Kind::Symlink => {
                let target = rustix::fs::readlinkat(dir, at.name(), Vec::new()).at_in("read", full, at.name())?;
                Made::Symlink(target.into_bytes(), notes.attrs)
            }
            _ => Made::Written { at, meta: *meta, attrs: notes.attrs },
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
    fn goes(&mut self, path: &RelPath, here: &Meta, made: Made) -> Result<()> {
        self.out.seen.insert(path.clone(), *here);
        self.out.made.insert(path.clone(), made);
        if here.kind == Kind::Directory {
            return self.goes_below(path);
        }
        if self.changed(here) {
            self.refuse(CHANGED.at(path));
        }
        Ok(())
    }

    /// All that lies in a directory goes: nothing of it may have come or changed since.
    fn goes_below(&mut self, path: &RelPath) -> Result<()> {
        let mut waiting = vec![path.clone()];
        while let Some(path) = waiting.pop() {
            let dir = self.dirs.root().open_dir(&path)?;
            if dir.meta.ctime >= self.reading.began {
                self.refuse(CHANGED.at(&path));
                return Ok(());
            }
            for listed in root::list(&dir.fd).at("list", self.dirs.root().full(&path))? {
                let path = RelPath::join(Some(&path), &listed.name);
                let Some(live) = root::look(&dir.fd, path.name()).at("look at", self.dirs.root().full(&path))? else {
                    continue;
                };
                if is_journal(&listed.name) {
                    self.refuse(JOURNAL.at(&path));
                    return Ok(());
                }
                if self.changed(&live) {
                    self.refuse(CHANGED.at(&path));
                    return Ok(());
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
    fn dress(&mut self, path: &RelPath, live: &Meta, mut want: Attrs) -> Result<()> {
        let parent = self.dirs.parent(path)?;
        let xattrs = attrs::xattrs(&parent.fd, path.name(), self.dirs.root().path())?;
        let same = is_dressed(live, xattrs, &want);
        let others_came = live.mtime >= self.reading.began;
        if !same && self.changed(live) && !others_came {
            self.refuse(DRESSED.at(path));
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
    fn carry(&mut self, from: &RelPath, to: &RelPath, except: &BTreeSet<Vec<u8>>) -> Result<()> {
        let mut waiting = vec![(from.clone(), to.clone())];
        let mut first = true;
        while let Some((from, to)) = waiting.pop() {
            let dir = self.dirs.root().open_dir(&from)?;
            for listed in root::list(&dir.fd).at("list", self.dirs.root().full(&from))? {
                if first && except.contains(&listed.name) {
                    continue;
                }
                let (from, to) = (RelPath::join(Some(&from), &listed.name), RelPath::join(Some(&to), &listed.name));
                let full = self.dirs.root().full(&from);
                let Some(live) = root::look(&dir.fd, from.name()).at("look at", &full)? else { continue };
                if self.changed(&live) {
                    self.refuse(CHANGED.at(&from));
                    return Ok(());
                }
                let xattrs = attrs::xattrs(&dir.fd, from.name(), self.dirs.root().path())?;
                let attrs = attrs_of(&live, xattrs);
                let made = match live.kind {
                    Kind::Directory => {
                        waiting.push((from, to.clone()));
                        Made::Directory(attrs)
                    }
                    Kind::Symlink => {
                        let target = rustix::fs::readlinkat(&dir.fd, from.name(), Vec::new()).at("read", &full)?;
                        Made::Symlink(target.into_bytes(), attrs)
                    }
                    Kind::File | Kind::Other => Made::Live { from, attrs },
                };
                self.out.made.insert(to, made);
            }
            first = false;
        }
        Ok(())
    }

    /// The path a redirect names: absolute from the top of the tree, or a name beside the one it shows.
    fn resolve(&self, redirect: &[u8], through: Option<&RelPath>) -> Option<RelPath> {
        match redirect.strip_prefix(b"/") {
            Some(absolute) => {
                let mut path = self.reading.top.cloned();
                for name in absolute.split(|&byte| byte == b'/').filter(|name| !name.is_empty()) {
                    path = Some(RelPath::join(path.as_ref(), name));
                }
                path
            }
            None => through.map(|through| RelPath::join(through.parent().as_ref(), redirect)),
        }
    }

    /// What lay in directories that are new ones now, and is not in them again, is gone.
    fn vacate(&mut self) -> Result<()> {
        for dir in std::mem::take(&mut self.vacated) {
            let open = self.dirs.root().open_dir(&dir)?;
            for listed in root::list(&open.fd).at("list", self.dirs.root().full(&dir))? {
                let path = RelPath::join(Some(&dir), &listed.name);
                self.out.made.entry(path).or_insert(Made::Nothing);
            }
        }
        Ok(())
    }

    /// What is put into a directory moves its time on, where to the program it stood still.
    fn keep_times(&mut self) {
        let parents: BTreeSet<RelPath> = self.out.made.keys().filter_map(RelPath::parent).collect();
        for parent in parents {
            if let Some(attrs) = self.stay.remove(&parent) {
                self.out.made.entry(parent).or_insert(Made::Directory(attrs));
            }
        }
    }

    /// Finds where files came from that are copies of what lies elsewhere.
    fn trace(&mut self) -> Result<()> {
        if self.moved.is_empty() {
            return Ok(());
        }
        let mut touched: HashMap<Handle, (RelPath, Meta)> = HashMap::new();
        let paths: Vec<RelPath> = self.out.made.keys().chain(&self.out.below).cloned().collect();
        for path in paths {
            let Some(live) = self.live(&path)?.filter(|live| live.kind != Kind::Directory) else { continue };
            let dir = self.dirs.parent(&path)?;
            if let Some(handle) = handle::of(&dir.fd, path.name()).at("look at", self.dirs.root().full(&path))? {
                touched.insert(handle, (path, live));
            }
        }
        for (to, origin) in std::mem::take(&mut self.moved) {
            let Some((from, live)) = touched.get(&origin) else {
                self.refuse(REPLACED.at(&to));
                return Ok(());
            };
            if live.links > 1 {
                self.refuse(LINKED.at(from));
            }
            if let Some(Made::Written { meta, .. }) = self.out.made.get(&to)
                && (live.size, live.mtime) == (meta.size, meta.mtime)
            {
                self.out.same.push((to, from.clone()));
            }
        }
        Ok(())
    }
}

/// The names that only journals have.
fn is_journal(name: &[u8]) -> bool {
    name == STATE_DIR.as_bytes() || name == AREA_DIR.as_bytes()
}

fn attrs_of(meta: &Meta, xattrs: Xattrs) -> Attrs {
    Attrs { mode: meta.mode, uid: meta.uid, gid: meta.gid, mtime: meta.mtime, xattrs }
}

/// True when what lies there has these mode, owner and xattrs.
fn is_dressed(live: &Meta, mut xattrs: Xattrs, want: &Attrs) -> bool {
    let mut wanted = want.xattrs.clone();
    xattrs.sort();
    wanted.sort();
    (live.mode, live.uid, live.gid) == (want.mode, want.uid, want.gid) && xattrs == wanted
}

/// What overlayfs noted with a name, and what the name has besides.
fn notes(dir: &OwnedFd, name: &OsStr, meta: &Meta, full: &Path) -> Result<Notes> {
    let mut notes = Notes::default();
    let mut kept = Xattrs::new();
    for (key, value) in attrs::xattrs(dir, name, full)? {
        match overlay_note(&key) {
            None => kept.push((key, value)),
            Some(b"opaque") => notes.opaque = value == b"y",
            Some(b"redirect") => notes.redirect = Some(value),
            Some(b"origin") => notes.origin = Handle::from_origin(&value),
            Some(_) => {}
        }
    }
    notes.attrs = attrs_of(meta, kept);
    Ok(notes)
}

/// The name behind overlayfs's own prefix: of mounts by root, and of those in a user namespace.
fn overlay_note(key: &[u8]) -> Option<&[u8]> {
    key.strip_prefix(b"trusted.overlay.").or_else(|| key.strip_prefix(b"user.overlay."))
}

fn open_in(upper: &OwnedFd, at: &RelPath, path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(upper, at.as_path(), flags, Mode::empty()).at_in("open", path, at)
}

/// Where a path of the layer lies.
pub(crate) fn full(upper: &Path, at: &RelPath) -> PathBuf {
    upper.join(OsStr::from_bytes(at.as_bytes()))
}
