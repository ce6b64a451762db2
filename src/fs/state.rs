//! The state directory: made durably, and the few files of the engine's own that are neither locks nor staged.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::area;
use super::calls;
use crate::error::{Error, IoContext, Result};

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// An open state directory.
#[derive(Debug)]
pub(crate) struct StateDir {
    fd: OwnedFd,
    path: PathBuf,
}

impl StateDir {
    /// Opens the state directory at `path`, made where `create` says so: then it is durable on return, before anything
    /// is written there. [`Error::NoJournal`] names the root when there is none.
    pub(crate) fn open(root: &Path, path: &Path, create: bool) -> Result<Self> {
        let open = || rustix::fs::open(path, DIRECTORY, Mode::empty());
        let (fd, made) = match open() {
            Ok(fd) => (fd, false),
            Err(Errno::NOENT) if !create => return Err(Error::NoJournal { root: root.to_owned() }),
            Err(Errno::NOENT) => {
                match calls::mkdir(path, Mode::from_raw_mode(0o777)) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(error).at("make the state directory", path),
                }
                (open().at("open the state directory", path)?, true)
            }
            Err(error) => return Err(error).at("open the state directory", path),
        };
        let state = Self { fd, path: path.to_owned() };
        if create {
            for name in ["locks", "sessions"] {
                state.subdirectory(name)?;
            }
        }
        if made {
            area::ignore_in_git(&state.fd, path)?;
            calls::fsync(&state.fd).at("sync", path)?;
            if let Some(parent) = path.parent() {
                let above = rustix::fs::open(parent, DIRECTORY, Mode::empty()).at("open", parent)?;
                calls::fsync(above).at("sync", parent)?;
            }
        }
        Ok(state)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Opens, and where needed makes, a directory in it.
    pub(crate) fn subdirectory(&self, name: &str) -> Result<OwnedFd> {
        area::subdirectory(&self.fd, name, &self.path, 0o777)
    }

    /// Another descriptor of the same directory.
    pub(crate) fn duplicate(&self) -> Result<OwnedFd> {
        rustix::io::fcntl_dupfd_cloexec(&self.fd, 3).at("open", &self.path)
    }

    /// True when the mark `name` was left.
    pub(crate) fn has_mark(&self, name: &str) -> bool {
        rustix::fs::accessat(&self.fd, name, Access::EXISTS, AtFlags::empty()).is_ok()
    }

    /// Leaves a mark, an empty file, for other processes and later ones.
    pub(crate) fn leave_mark(&self, name: &str) -> Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(&self.fd, name, flags, Mode::from_raw_mode(0o666))
            .and_then(calls::fsync)
            .at("leave the mark", self.path.join(name))
    }

    /// Takes a mark away.
    pub(crate) fn clear_mark(&self, name: &str) -> Result<()> {
        remove_file(&self.fd, name, &self.path)
    }
}

impl AsFd for StateDir {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Removes a file of the engine's own; missing is fine.
pub(crate) fn remove_file(dir: &OwnedFd, name: &str, path: &Path) -> Result<()> {
    match calls::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error).at("remove", path.join(name)),
    }
}

/// True when something is at the path, a symlink's target included.
pub(crate) fn exists(path: &Path) -> bool {
    rustix::fs::access(path, Access::EXISTS).is_ok()
}
