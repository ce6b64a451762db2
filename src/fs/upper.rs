//! The upper directory of an overlay mount (Linux's overlayfs): what a program wrote, with what overlayfs noted beside it.
//!
//! Its names are the program's, so nothing here follows a link. Whoever reads it knows that nobody writes to it any more.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::area::{self, Area};
use super::attrs::{self, Attrs, Xattrs};
use super::calls;
use super::handle::Handle;
use super::root::{self, Meta};
use super::temp;
use crate::error::{IoContext, Result};
use crate::path::RelPath;

/// An upper directory.
#[derive(Debug)]
pub(crate) struct Upper {
    fd: OwnedFd,
    path: PathBuf,
    /// The overlay was mounted with `userxattr`.
    by_user: bool,
}

/// A directory of it.
#[derive(Debug)]
pub(crate) struct UpperDir<'u> {
    upper: &'u Upper,
    fd: OwnedFd,
    at: Option<RelPath>,
}

/// What overlayfs notes with a name.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    /// A directory that hides what lies below it.
    pub(crate) opaque: bool,
    /// A directory that shows what lies below another: the path of that, from the top of the overlay, or its name.
    pub(crate) redirect: Option<Vec<u8>>,
    /// What was copied to make this, if it is a copy and the filesystem could tell.
    pub(crate) origin: Option<Handle>,
    /// What the name has besides.
    pub(crate) attrs: Attrs,
}

impl Upper {
    /// Makes one in an open directory of the engine's own.
    pub(crate) fn make(dir: &OwnedFd, path: PathBuf) -> Result<Self> {
        let fd = area::subdirectory(dir, "upper", &path, 0o700)?;
        Ok(Self { fd, path: path.join("upper"), by_user: false })
    }

    /// Says how the overlay was mounted, which decides where overlayfs keeps its notes.
    pub(crate) fn mounted(&mut self, by_user: bool) {
        self.by_user = by_user;
    }

    /// What the xattrs begin with that overlayfs keeps for itself, and shows to nobody.
    fn prefix(&self) -> &'static [u8] {
        if self.by_user { b"user.overlay." } else { b"trusted.overlay." }
    }

    /// Adds what a live file has and an overlay does not show.
    pub(crate) fn add_hidden(&self, live: &Xattrs, attrs: &mut Attrs) {
        let hidden = live.iter().filter(|(key, _)| key.starts_with(self.prefix()));
        let new: Xattrs =
            hidden.filter(|(key, _)| !attrs.xattrs.iter().any(|(known, _)| known == key)).cloned().collect();
        attrs.xattrs.extend(new);
    }

    pub(crate) fn path(&self) -> &PathBuf {
        &self.path
    }

    /// Where a path of it lies.
    pub(crate) fn full(&self, at: &RelPath) -> PathBuf {
        self.path.join(at)
    }

    pub(crate) fn look(&self, at: &RelPath) -> Result<Option<Meta>> {
        root::look(&self.fd, at.as_path()).at_in("look at", &self.path, at)
    }

    /// Opens a directory of it; none is its top.
    pub(crate) fn dir(&self, at: Option<&RelPath>) -> Result<UpperDir<'_>> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let name = at.map_or(OsStr::new("."), |at| at.as_path().as_os_str());
        let fd = rustix::fs::openat(&self.fd, name, flags, Mode::empty()).at_in("open", &self.path, name)?;
        Ok(UpperDir { upper: self, fd, at: at.cloned() })
    }

    /// Makes a directory, unless it is there.
    pub(crate) fn make_directory(&self, at: &RelPath) -> Result<()> {
        match calls::mkdirat(&self.fd, at.as_path(), Mode::from_raw_mode(0o700)) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(error) => Err(error).at_in("make", &self.path, at),
        }
    }

    /// Gives a name, or its top, mode, owner, xattrs and time.
    pub(crate) fn dress(&self, at: Option<&RelPath>, want: &Attrs) -> Result<()> {
        let name = at.map_or(OsStr::new("."), |at| at.as_path().as_os_str());
        attrs::dress_at(&self.fd, name, want, &self.path.join(name))
    }

    /// Removes a file; missing is fine.
    pub(crate) fn unlink(&self, at: &RelPath) -> Result<()> {
        area::unlink(&self.fd, at.as_path().as_os_str(), &self.path)
    }

    /// Moves what lies at a path into the stage, without what overlayfs noted with it.
    pub(crate) fn take(&self, at: &RelPath, area: &Area, name: &str, attrs: &Attrs) -> Result<()> {
        calls::renameat(&self.fd, at.as_path(), &area.stage, name).at_in("move", &self.path, at)?;
        attrs::dress_at(&area.stage, name.as_ref(), attrs, &area.stage_path(name))
    }

    /// Moves it back.
    pub(crate) fn give_back(&self, at: &RelPath, area: &Area, name: &str) -> Result<()> {
        calls::renameat(&area.stage, name, &self.fd, at.as_path()).at_in("move back to", &self.path, at)
    }

    /// The hash of a file; none where this user may not read it.
    pub(crate) fn hash(&self, at: &RelPath) -> Result<Option<[u8; 32]>> {
        temp::hash(&self.full(at))
    }

    /// The first bytes of a file; none where this user may not read it.
    pub(crate) fn head(&self, at: &RelPath) -> Result<Option<Vec<u8>>> {
        temp::head(&self.full(at))
    }
}

impl UpperDir<'_> {
    pub(crate) fn meta(&self) -> Result<Meta> {
        root::look_at(&self.fd).at("look at", &self.upper.path)
    }

    /// What lies in it, each with its path. A directory that its maker has closed to everybody is opened up.
    pub(crate) fn entries(&self) -> Result<Vec<(RelPath, Meta)>> {
        let full = || self.at.as_ref().map_or(self.upper.path.clone(), |at| self.upper.full(at));
        let mut found = Vec::new();
        for listed in root::list(&self.fd).at("list", full())? {
            let at = RelPath::join(self.at.as_ref(), &listed.name);
            if let Some(meta) = root::look(&self.fd, at.name()).at_in("look at", full(), at.name())? {
                found.push((at, meta));
            }
        }
        Ok(found)
    }

    /// What overlayfs noted with a name in it, or with itself.
    pub(crate) fn notes(&self, at: Option<&RelPath>, meta: &Meta) -> Result<Notes> {
        let name = at.map_or(OsStr::new("."), RelPath::name);
        let mut notes = Notes::default();
        let mut kept = Xattrs::new();
        let prefix = self.upper.prefix();
        for (key, value) in attrs::xattrs(self.fd.as_fd(), name, &self.upper.path)? {
            let note = key.strip_prefix(prefix);
            // The program's own of such a name are kept behind the same words once more.
            if let Some(own) = note.and_then(|note| note.strip_prefix(b"overlay.")) {
                kept.push(([prefix, own].concat(), value));
                continue;
            }
            match note {
                None => kept.push((key, value)),
                Some(b"opaque") => notes.opaque = value == b"y",
                Some(b"redirect") => notes.redirect = Some(value),
                Some(b"origin") => notes.origin = Handle::from_origin(&value),
                Some(_) => {}
            }
        }
        notes.attrs = attrs::of(meta, kept);
        Ok(notes)
    }

    /// Where a symlink in it leads.
    pub(crate) fn target(&self, at: &RelPath) -> Result<Vec<u8>> {
        let target = rustix::fs::readlinkat(&self.fd, at.name(), Vec::new());
        Ok(target.at_in("read the symlink", &self.upper.path, at)?.into_bytes())
    }

    /// Lets this user into a directory in it that is closed.
    pub(crate) fn open_up(&self, at: &RelPath, meta: &Meta) -> Result<()> {
        attrs::open_up(&self.fd, at.name(), meta, &self.upper.full(at))
    }
}

/// True for what stands where something is gone.
pub(crate) fn is_whiteout(meta: &Meta) -> bool {
    meta.device == Some((0, 0))
}

/// Gives a live file a second name, in the stage.
pub(crate) fn link(dir: impl AsFd, name: &OsStr, area: &Area, staged: &str) -> Result<()> {
    calls::linkat(dir, name, &area.stage, staged, AtFlags::empty()).at("link", area.stage_path(staged))
}
