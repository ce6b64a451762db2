//! The files of blobs: written in the stage, and in `blobs/` from then on.
//!
//! A file is durable, in the stage, before the COMMIT that makes a blob of it; then it is moved, and that is made durable some time
//! later. So it is in the one place or in the other, and whoever looks for it looks in both.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags, Timespec, Timestamps, UTIME_NOW};
use rustix::io::Errno;

use super::area::{self, Area, check_name};
use super::calls;
use super::os_lock;
use super::root::{self, Kind};
use crate::error::{Error, IoContext, Result};

/// The directory of blobs.
#[derive(Debug)]
pub(crate) struct BlobDir {
    dir: OwnedFd,
    pub(crate) path: PathBuf,
}

/// A file of a blob, by its names: in the stage, and where it stays.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Names<'n> {
    pub(crate) staged: &'n str,
    pub(crate) placed: &'n str,
}

impl BlobDir {
    /// Opens it in the state directory, made where it is missing: then it is durable on return.
    pub(crate) fn open(state: &Area) -> Result<Self> {
        let path = state.path.join("blobs");
        let is_there = root::look(&state.dir, "blobs").at("look at", &path)?.is_some();
        let dir = area::subdirectory(&state.dir, "blobs", &state.path, 0o700)?;
        if !is_there {
            calls::fsync(&state.dir).at("sync", &state.path)?;
        }
        Ok(Self { dir, path })
    }

    /// Moves a file here from the stage. Fine when it is here already, or nowhere.
    pub(crate) fn place(&self, stage: &Area, file: Names<'_>) -> Result<()> {
        file.check()?;
        let Names { staged, placed } = file;
        let moved = match calls::renameat_with(&stage.stage, staged, &self.dir, placed, RenameFlags::NOREPLACE) {
            // A power cut may leave both names of a rename, and then a rename does nothing at all.
            Err(Errno::EXIST) => calls::unlinkat(&stage.stage, staged, AtFlags::empty()),
            Err(Errno::INVAL | Errno::NOSYS) => calls::renameat(&stage.stage, staged, &self.dir, placed),
            other => other,
        };
        match moved {
            Ok(()) => Ok(()),
            // IMPORTANT: it may be this directory that is gone, and then it must not be said that the file came here.
            Err(Errno::NOENT) if stage.look_staged(staged)?.is_none() => Ok(()),
            Err(error) => Err(error).at_in("move to blobs/", &stage.stage_dir, staged),
        }
    }

    /// The size of a file, in the one place or the other; none where it is in neither, or is something else than a file.
    pub(crate) fn size(&self, stage: &Area, file: Names<'_>) -> Result<Option<u64>> {
        file.check()?;
        // From the stage it may go here meanwhile.
        for (dir, name) in [(&stage.stage, file.staged), (&self.dir, file.placed)] {
            let found = root::look(dir, name).at_in("look at", &self.path, name)?;
            if let Some(meta) = found.filter(|meta| meta.kind == Kind::File) {
                return Ok(Some(meta.size));
            }
        }
        Ok(None)
    }

    /// Opens a file to read it, in the one place or the other, and answers its size as well. None where it is in neither. While it
    /// is open, [`BlobDir::remove`] leaves it alone.
    pub(crate) fn open_file(&self, stage: &Area, file: Names<'_>) -> Result<Option<(File, u64)>> {
        file.check()?;
        // Here in nearly all cases; and from the stage it may come here meanwhile.
        for (dir, name) in [(&self.dir, file.placed), (&stage.stage, file.staged), (&self.dir, file.placed)] {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let opened: File = match rustix::fs::openat(dir, name, flags, Mode::empty()) {
                Ok(opened) => opened.into(),
                Err(Errno::NOENT) => continue,
                // A symlink, or a socket.
                Err(Errno::LOOP | Errno::NXIO) => return Ok(None),
                Err(error) => return Err(error).at_in("open", &self.path, name),
            };
            let meta = root::look_at(&opened).at_in("look at", &self.path, name)?;
            if meta.kind != Kind::File {
                return Ok(None);
            }
            // Whoever removes it has it alone: then it is as good as gone.
            return Ok(os_lock::share(&opened).at_in("lock", &self.path, name)?.then_some((opened, meta.size)));
        }
        Ok(None)
    }

    /// Removes a file, wherever it is; fine when it is gone. False while somebody reads it. Within a turn only.
    pub(crate) fn remove(&self, stage: &Area, file: Names<'_>) -> Result<bool> {
        let opened = self.open_somewhere(stage, file)?;
        if let Some(opened) = &opened
            && !os_lock::alone(opened).at_in("lock", &self.path, file.placed)?
        {
            return Ok(false);
        }
        for (dir, name, path) in [(&stage.stage, file.staged, &stage.stage_dir), (&self.dir, file.placed, &self.path)] {
            // A directory is somebody else's, whatever it is called.
            let found = root::look(dir, name).at_in("look at", path, name)?;
            if found.is_none_or(|meta| meta.kind != Kind::Directory) {
                area::unlink(dir, name.as_ref(), path)?;
            }
        }
        Ok(true)
    }

    fn open_somewhere(&self, stage: &Area, file: Names<'_>) -> Result<Option<File>> {
        file.check()?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        for (dir, name) in [(&stage.stage, file.staged), (&self.dir, file.placed)] {
            match rustix::fs::openat(dir, name, flags, Mode::empty()) {
                Ok(opened) => return Ok(Some(opened.into())),
                // A symlink or a socket is read by nobody.
                Err(Errno::NOENT | Errno::LOOP | Errno::NXIO) => {}
                Err(error) => return Err(error).at_in("open", &self.path, name),
            }
        }
        Ok(None)
    }

    /// Removes a name that nothing refers to.
    pub(crate) fn remove_stray(&self, name: &str) -> Result<()> {
        check_name(name)?;
        area::unlink(&self.dir, name.as_ref(), &self.path)
    }

    /// Makes what was moved here, and removed, durable.
    pub(crate) fn sync(&self) -> Result<()> {
        calls::fsync(&self.dir).map_err(|source| Error::SyncFailed { path: self.path.clone(), source: source.into() })
    }

    /// Has those hear of it who wait for a blob to be sealed, in whatever process: they watch this directory.
    pub(crate) fn ring(&self) {
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        let times = Timestamps { last_access: now, last_modification: now };
        // Not heard, they look again all the same, only later.
        let _ = calls::futimens(&self.dir, &times);
    }

    /// What lies here, with sizes.
    pub(crate) fn names(&self) -> Result<Vec<OsString>> {
        area::names(&self.dir, &self.path)
    }

    /// The size of the file that lies here under a name; none where that is no file.
    pub(crate) fn size_of(&self, name: &str) -> Result<Option<u64>> {
        let found = root::look(&self.dir, name).at_in("look at", &self.path, name)?;
        Ok(found.filter(|meta| meta.kind == Kind::File).map(|meta| meta.size))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Names<'_> {
    fn check(&self) -> Result<()> {
        check_name(self.staged)?;
        check_name(self.placed)
    }
}
