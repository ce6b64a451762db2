//! The files of blobs, to look at: nothing is made, and no lock is taken.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::area::{self, check_name};
use super::blobs::Names;
use super::root::{self, Kind};
use crate::error::{Error, IoContext, Result};

/// The directories that files of blobs lie in. One that is not there has nothing in it.
#[derive(Debug)]
pub(crate) struct BlobFiles {
    stage: Place,
    placed: Place,
}

#[derive(Debug)]
struct Place {
    dir: Option<OwnedFd>,
    path: PathBuf,
}

/// A file of a blob, as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FoundFile {
    pub(crate) path: PathBuf,
    /// In bytes.
    pub(crate) size: u64,
    /// It is still in the stage.
    pub(crate) is_staged: bool,
}

impl BlobFiles {
    /// Those below a state directory.
    pub(crate) fn of(state_dir: &Path) -> Result<Self> {
        Ok(Self { stage: Place::open(state_dir, "stage")?, placed: Place::open(state_dir, "blobs")? })
    }

    /// The size of what is being written under a name of the stage; none when it is not there.
    pub(crate) fn written(&self, name: &str) -> Option<u64> {
        self.stage.look(name).ok().flatten()
    }

    /// Where a file is; none where it is in neither place, or is something else than a file.
    pub(crate) fn find(&self, file: Names<'_>) -> Result<Option<FoundFile>> {
        for (place, name) in self.ways(file) {
            if let Some(size) = place.look(name)? {
                return Ok(Some(place.found(name, size, self)));
            }
        }
        Ok(None)
    }

    /// Opens a file to read it. What it is stays readable when it is removed meanwhile.
    pub(crate) fn open_file(&self, file: Names<'_>) -> Result<Option<(File, FoundFile)>> {
        for (place, name) in self.ways(file) {
            if let Some((opened, size)) = place.open_file(name)? {
                return Ok(Some((opened, place.found(name, size, self))));
            }
        }
        Ok(None)
    }

    /// What lies in `blobs/`.
    pub(crate) fn names(&self) -> Result<Vec<OsString>> {
        match &self.placed.dir {
            Some(dir) => area::names(dir, &self.placed.path),
            None => Ok(Vec::new()),
        }
    }

    /// The file that lies in `blobs/` under a name; none when it is gone, or is something else than a file.
    pub(crate) fn placed(&self, name: &str) -> Result<Option<FoundFile>> {
        Ok(self.placed.look(name)?.map(|size| self.placed.found(name, size, self)))
    }

    /// From the stage it may be moved between two looks.
    fn ways<'f>(&'f self, file: Names<'f>) -> [(&'f Place, &'f str); 3] {
        let placed = (&self.placed, file.placed);
        [placed, (&self.stage, file.staged), placed]
    }
}

impl Place {
    fn open(state_dir: &Path, name: &str) -> Result<Self> {
        let path = state_dir.join(name);
        let dir = match area::open_own(&path) {
            Ok(dir) => Some(dir),
            // What is in the way of a directory holds no file either.
            Err(Error::NotFound { .. } | Error::NotADirectory { .. } | Error::SymlinkOnTheWay { .. }) => None,
            Err(error) => return Err(error),
        };
        Ok(Self { dir, path })
    }

    fn look(&self, name: &str) -> Result<Option<u64>> {
        check_name(name)?;
        let Some(dir) = &self.dir else { return Ok(None) };
        let found = root::look(dir, name).at_in("look at", &self.path, name)?;
        Ok(found.filter(|meta| meta.kind == Kind::File).map(|meta| meta.size))
    }

    fn open_file(&self, name: &str) -> Result<Option<(File, u64)>> {
        check_name(name)?;
        let Some(dir) = &self.dir else { return Ok(None) };
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened: File = match rustix::fs::openat(dir, name, flags, Mode::empty()) {
            Ok(opened) => opened.into(),
            // Or a symlink, or a socket.
            Err(Errno::NOENT | Errno::LOOP | Errno::NXIO) => return Ok(None),
            Err(error) => return Err(error).at_in("open", &self.path, name),
        };
        let meta = root::look_at(&opened).at_in("look at", &self.path, name)?;
        Ok((meta.kind == Kind::File).then_some((opened, meta.size)))
    }

    fn found(&self, name: &str, size: u64, of: &BlobFiles) -> FoundFile {
        FoundFile { path: self.path.join(name), size, is_staged: std::ptr::eq(self, &of.stage) }
    }
}
