//! What is kept for a person: `quarantine/<id>/<section>/<path of the tree>`, so that its place says what it is.
//!
//! Nothing that lies there is ever written over. Where a name is taken, or something that is no directory stands on the way,
//! the same path is tried in a further section: `old`, `old.1`, `old.2` and so on. Everything may be cut short and done again.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::area::{Area, check_name, names, remove_below, subdirectory};
use super::calls;
use super::root::{self, Kind};
use super::temp;
use crate::error::{Error, IoContext, Result};

/// What is kept is called while it is written.
const PARTIAL: &str = "partial";
/// A section and this many further ones.
const MOST_SECTIONS: u32 = 1000;

impl Area {
    /// Moves what lies under a name of the stage there. None when nothing does. Answers where it is.
    pub(crate) fn keep_staged(&self, staged: &str, id: &str, section: &str, path: &Path) -> Result<Option<PathBuf>> {
        self.keep_from(&self.stage, staged, id, section, path)
    }

    /// The same with a name of history.
    pub(crate) fn keep_history(&self, name: &str, id: &str, section: &str, path: &Path) -> Result<Option<PathBuf>> {
        self.keep_from(&self.history, name, id, section, path)
    }

    fn keep_from(&self, from: &OwnedFd, old: &str, id: &str, section: &str, path: &Path) -> Result<Option<PathBuf>> {
        check_name(old)?;
        if root::look(from, old).at("look at", path)?.is_none() {
            return Ok(None);
        }
        let put = |dir: &OwnedFd, name: &OsStr| match root::look(dir, name)? {
            Some(_) => Err(Errno::EXIST),
            None => calls::renameat(from, old, dir, name),
        };
        self.keep_in(id, section, path, put).map(Some)
    }

    /// Writes bytes there, unless they are there.
    pub(crate) fn keep_bytes(&self, id: &str, section: &str, path: &Path, bytes: &[u8]) -> Result<PathBuf> {
        let of_id = self.quarantine_named(id)?;
        let partial = self.quarantine_path(id).join(PARTIAL);
        remove_below(&of_id, OsStr::new(PARTIAL), &self.quarantine_path(id))?;
        let file = temp::create_in(&of_id, PARTIAL).at("create", &partial)?;
        temp::write_all(&file, bytes, &partial)?;
        drop(file);
        let kept = self.keep_in(id, section, path, |dir, name| match root::look(dir, name)? {
            None => calls::renameat(&of_id, PARTIAL, dir, name),
            Some(there) => {
                match there.kind == Kind::File && there.size == bytes.len() as u64 && holds(dir, name, bytes)? {
                    true => Ok(()),
                    false => Err(Errno::EXIST),
                }
            }
        })?;
        remove_below(&of_id, OsStr::new(PARTIAL), &self.quarantine_path(id))?;
        Ok(kept)
    }

    /// Makes a symlink there, unless it is there.
    pub(crate) fn keep_symlink(&self, id: &str, section: &str, path: &Path, target: &[u8]) -> Result<PathBuf> {
        self.keep_in(id, section, path, |dir, name| match calls::symlinkat(OsStr::from_bytes(target), dir, name) {
            Err(Errno::EXIST) => match rustix::fs::readlinkat(dir, name, Vec::new()) {
                Ok(there) if there.as_bytes() == target => Ok(()),
                _ => Err(Errno::EXIST),
            },
            other => other,
        })
    }

    /// True when something is kept under an id.
    pub(crate) fn has_kept(&self, id: &str) -> Result<bool> {
        check_name(id)?;
        Ok(root::look(&self.quarantine, id).at("look at", self.quarantine_path(id))?.is_some())
    }

    /// Removes all that is kept under an id.
    pub(crate) fn drop_kept(&self, id: &str) -> Result<()> {
        check_name(id)?;
        remove_below(&self.quarantine, OsStr::new(id), &self.path.join("quarantine"))
    }

    /// The names in the stage.
    pub(crate) fn staged_names(&self) -> Result<Vec<String>> {
        let names = names(&self.stage, &self.stage_dir)?;
        Ok(names.into_iter().filter_map(|name| name.into_string().ok()).collect())
    }

    /// Where what is kept under an id lies.
    pub(crate) fn quarantine_path(&self, id: &str) -> PathBuf {
        self.path.join("quarantine").join(id)
    }

    fn quarantine_named(&self, id: &str) -> Result<OwnedFd> {
        check_name(id)?;
        subdirectory(&self.quarantine, id, &self.path.join("quarantine"), 0o700)
    }

    fn keep_in(
        &self,
        id: &str,
        section: &str,
        path: &Path,
        put: impl Fn(&OwnedFd, &OsStr) -> Result<(), Errno>,
    ) -> Result<PathBuf> {
        let of_id = self.quarantine_named(id)?;
        for n in 0..MOST_SECTIONS {
            let section = if n == 0 { section.to_owned() } else { format!("{section}.{n}") };
            let base = self.quarantine_path(id).join(&section);
            let mut dir = subdirectory(&of_id, &section, &self.quarantine_path(id), 0o700)?;
            let (above, name) =
                (path.parent().unwrap_or(Path::new("")), path.file_name().unwrap_or(OsStr::new("root")));
            let mut on_the_way = above.iter();
            let blocked = loop {
                let Some(next) = on_the_way.next() else { break false };
                match root::look(&dir, next).at("look at", base.join(path))? {
                    Some(meta) if meta.kind != Kind::Directory => break true,
                    _ => dir = make(&dir, next).at("make a directory on the way to", base.join(path))?,
                }
            };
            match if blocked { Err(Errno::EXIST) } else { put(&dir, name) } {
                Ok(()) => return Ok(base.join(path)),
                Err(Errno::EXIST | Errno::NOTEMPTY | Errno::ISDIR | Errno::NOTDIR) => {}
                Err(error) => return Err(error).at("keep", base.join(path)),
            }
        }
        Err(Error::TooLarge { what: "the number of versions kept of one path", limit: u64::from(MOST_SECTIONS) })
    }
}

/// Opens a directory of what is kept, made first where it is missing.
fn make(dir: &OwnedFd, name: &OsStr) -> Result<OwnedFd, Errno> {
    match calls::mkdirat(dir, name, rustix::fs::Mode::from_raw_mode(0o700)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error),
    }
    let flags = rustix::fs::OFlags::RDONLY
        | rustix::fs::OFlags::DIRECTORY
        | rustix::fs::OFlags::NOFOLLOW
        | rustix::fs::OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, rustix::fs::Mode::empty())
}

/// True when a file that is kept holds just these bytes.
fn holds(dir: &OwnedFd, name: &OsStr, bytes: &[u8]) -> Result<bool, Errno> {
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::CLOEXEC;
    let file = rustix::fs::openat(dir, name, flags, rustix::fs::Mode::empty())?;
    let mut rest = bytes;
    let mut buffer = vec![0; 64 << 10];
    loop {
        match rustix::io::read(&file, &mut buffer) {
            Ok(0) => return Ok(rest.is_empty()),
            Ok(read) => match rest.strip_prefix(&buffer[..read]) {
                Some(behind) => rest = behind,
                None => return Ok(false),
            },
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}
