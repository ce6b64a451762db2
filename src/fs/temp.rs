//! New versions, written to the stage under a name of their own.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::area::Area;
use super::attrs::{self, Attrs};
use super::root::{self, Meta};
use crate::error::{Error, IoContext, Result};

/// Creates a file that was not there, with 0666 less the umask: what a new file of the tree gets.
pub(crate) fn create(area: &Area, name: &str) -> Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(&area.stage, name, flags, Mode::from_raw_mode(0o666)).at("create", area.stage_path(name))
}

/// Writes all of it.
pub(crate) fn write_all(file: &OwnedFd, mut bytes: &[u8], path: &Path) -> Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(file, bytes) {
            Ok(0) => return Err(std::io::Error::from(std::io::ErrorKind::WriteZero)).at("write", path),
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::INTR) => {}
            Err(error) => return Err(error).at("write", path),
        }
    }
    Ok(())
}

/// Writes a new version in one go and says what came of it. `like` are the attributes of the version it replaces, or
/// of the version it is to be again; the modification time is set only where `keep_mtime` says so.
pub(crate) fn write(area: &Area, name: &str, bytes: &[u8], like: Option<&Attrs>, keep_mtime: bool) -> Result<Meta> {
    let path = area.stage_path(name);
    let file = create(area, name)?;
    write_all(&file, bytes, &path)?;
    finish(&file, like, keep_mtime, &path)
}

/// Dresses a written file and looks at it.
pub(crate) fn finish(file: &OwnedFd, like: Option<&Attrs>, keep_mtime: bool, path: &Path) -> Result<Meta> {
    let meta = root::look_at(file).at("look at", path)?;
    let Some(like) = like else { return Ok(meta) };
    attrs::dress(file, &meta, like, path)?;
    if keep_mtime {
        attrs::set_mtime(file, like.mtime, path)?;
    }
    root::look_at(file).at("look at", path)
}

/// Makes a symlink under a name in the stage.
pub(crate) fn symlink(area: &Area, name: &str, target: &Path) -> Result<Meta> {
    let path = area.stage_path(name);
    rustix::fs::symlinkat(target, &area.stage, name).at("create the symlink", &path)?;
    let meta = root::look(&area.stage, name).at("look at", &path)?;
    meta.ok_or_else(|| Error::NotFound { path })
}
