//! New versions, written to the stage under a name of their own.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::area::Area;
use super::attrs::{self, Attrs};
use super::calls;
use super::root::{self, Kind, Meta};
use super::sys;
use crate::error::{Error, IoContext, Result};

/// Creates a file that was not there, with 0666 less the umask: what a new file of the tree gets.
pub(crate) fn create(area: &Area, name: &str) -> Result<OwnedFd> {
    create_in(&area.stage, name).at_in("create", &area.stage_dir, name)
}

/// The same in any directory of the engine's own.
pub(super) fn create_in(dir: &OwnedFd, name: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(0o666))
}

/// Writes all of it.
pub(crate) fn write_all(file: &OwnedFd, mut bytes: &[u8], path: impl AsRef<Path>) -> Result<()> {
    while !bytes.is_empty() {
        match calls::write(file, bytes) {
            Ok(0) => return Err(std::io::Error::from(std::io::ErrorKind::WriteZero)).at("write", path),
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::INTR) => {}
            Err(error) => return Err(error).at("write", path),
        }
    }
    Ok(())
}

/// Has the kernel begin to carry to disk what was written so far, without waiting for any of it. Nothing depends on it: who syncs
/// the file later has less to wait for.
pub(crate) fn begin_writing_out(file: &OwnedFd) {
    sys::begin_writing_out(file.as_fd());
}

/// Writes a new version in one go and says what came of it. `like` are the attributes of the version it replaces, or
/// of the version it is to be again; the modification time is set only where `keep_mtime` says so.
pub(crate) fn write(area: &Area, name: &str, bytes: &[u8], like: Option<&Attrs>, keep_mtime: bool) -> Result<Meta> {
    let file = create(area, name)?;
    // For errors, the directory alone: the name in it says nothing to anybody.
    write_all(&file, bytes, &area.stage_dir)?;
    finish(&file, like, keep_mtime, &area.stage_dir)
}

/// Dresses a written file and looks at it.
pub(crate) fn finish(file: &OwnedFd, like: Option<&Attrs>, keep_mtime: bool, path: &Path) -> Result<Meta> {
    let meta = root::look_at(file).at("look at", path)?;
    let Some(like) = like else { return Ok(meta) };
    let mut changed = attrs::dress(file, &meta, like, path)?;
    if keep_mtime {
        attrs::set_mtime(file, like.mtime, path)?;
        changed = true;
    }
    if !changed {
        return Ok(meta);
    }
    root::look_at(file).at("look at", path)
}

/// Opens a staged file again, to dress it.
pub(crate) fn reopen(area: &Area, name: &str) -> Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(&area.stage, name, flags, Mode::empty()).at("open", area.stage_path(name))
}

/// Gives a staged file to a group.
pub(crate) fn give_group(area: &Area, name: &str, gid: u32) -> Result<()> {
    let group = rustix::fs::Gid::from_raw(gid);
    calls::chownat(&area.stage, name, None, Some(group), rustix::fs::AtFlags::SYMLINK_NOFOLLOW)
        .at("change the group of", area.stage_path(name))
}

/// Copies a staged file to the stage of another area.
pub(crate) fn copy(from: &Area, name: &str, to: &Area, staged: &str) -> Result<()> {
    let path = from.stage_path(name);
    let source = open_regular(&path)?;
    let target = create(to, staged)?;
    let mut buffer = vec![0; 256 << 10];
    loop {
        match rustix::io::read(&source, &mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => write_all(&target, &buffer[..read], to.stage_path(staged))?,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error).at("read", path),
        }
    }
}

/// Reads a file that is not in the live tree: a staged one, or one to be published.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::from(open_regular(path)?).read_to_end(&mut bytes).at("read", path)?;
    Ok(bytes)
}

/// The hash of a file that is not in the live tree; none where this user may not read it.
pub(crate) fn hash(path: &Path) -> Result<Option<[u8; 32]>> {
    let Some(file) = open_readable(path)? else { return Ok(None) };
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(file).at("read", path)?;
    Ok(Some(*hasher.finalize().as_bytes()))
}

/// The first bytes of such a file: as many as a format is told by.
pub(crate) fn head(path: &Path) -> Result<Option<Vec<u8>>> {
    let Some(file) = open_readable(path)? else { return Ok(None) };
    let mut head = Vec::with_capacity(16);
    file.take(16).read_to_end(&mut head).at("read", path)?;
    Ok(Some(head))
}

/// None where this user may not read it.
fn open_readable(path: &Path) -> Result<Option<std::fs::File>> {
    match open_regular(path) {
        Ok(file) => Ok(Some(file.into())),
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::PermissionDenied => Ok(None),
        Err(error) => Err(error),
    }
}

fn open_regular(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty()).at("open", path)?;
    match root::look_at(&file).at("look at", path)?.kind {
        Kind::Directory => Err(Error::IsADirectory { path: path.to_owned() }),
        Kind::File => Ok(file),
        _ => Err(Error::BadPath { path: path.to_owned(), reason: "it is not a regular file" }),
    }
}

/// Makes a symlink under a name in the stage.
pub(crate) fn symlink(area: &Area, name: &str, target: &Path) -> Result<Meta> {
    let path = area.stage_path(name);
    calls::symlinkat(target, &area.stage, name).at("create the symlink", &path)?;
    let meta = root::look(&area.stage, name).at("look at", &path)?;
    meta.ok_or_else(|| Error::NotFound { path })
}

/// True when a staged symlink says just this.
pub(crate) fn symlink_says(area: &Area, name: &str, target: &[u8]) -> bool {
    rustix::fs::readlinkat(&area.stage, name, Vec::new()).is_ok_and(|found| found.as_bytes() == target)
}
