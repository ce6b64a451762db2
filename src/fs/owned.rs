//! What an ordinary user can put back: of what belongs to others, neither owner nor, for a directory, times.

use std::ffi::OsStr;
use std::path::Path;

use rustix::fs::{Access, AtFlags};

use super::root::{Dir, Kind, Meta};
use crate::error::{Error, Result};

/// Refuses what lies under a name, and is kept as a copy or a value, when this process could change it, or take it away, and
/// could not give it back to its owner. What it can do nothing to need not be put back.
pub(crate) fn check_restorable(dir: &Dir, name: &OsStr, meta: &Meta, full: &Path) -> Result<()> {
    let me = rustix::process::geteuid();
    if me.is_root() {
        return Ok(());
    }
    let is_mine = meta.uid == me.as_raw();
    let in_group = || {
        let groups = rustix::process::getgroups().unwrap_or_default();
        meta.gid == rustix::process::getegid().as_raw() || groups.iter().any(|group| group.as_raw() == meta.gid)
    };
    if is_mine && in_group() {
        return Ok(());
    }
    let can_take = dir.check_writable().is_ok() && dir.check_takeable(name, meta, false).is_ok();
    let can_write = || match meta.kind {
        // The group of what stays in its place is not lost by writing to it.
        Kind::Directory => !is_mine && accessible(dir, name, Access::WRITE_OK | Access::EXEC_OK),
        Kind::File => accessible(dir, name, Access::WRITE_OK),
        Kind::Symlink | Kind::Other => false,
    };
    let reason = match (is_mine, meta.kind) {
        _ if !can_take && !can_write() => return Ok(()),
        (true, _) => "its group could not be given back to it",
        (false, Kind::Directory) => "it is somebody else's, so its owner or its times could not be given back to it",
        (false, _) => "it is somebody else's, and could not be given back to them",
    };
    Err(Error::CannotRestore { path: full.to_owned(), reason })
}

/// Says what it means that a file cannot be kept for want of permission.
pub(crate) fn unreadable(error: Error, full: &Path) -> Error {
    match error.errno() {
        Some(libc::EACCES | libc::EPERM) => {
            Error::CannotRestore { path: full.to_owned(), reason: "it cannot be read, so its bytes cannot be kept" }
        }
        _ => error,
    }
}

fn accessible(dir: &Dir, name: &OsStr, how: Access) -> bool {
    rustix::fs::accessat(&dir.fd, name, how, AtFlags::EACCESS).is_ok()
}
