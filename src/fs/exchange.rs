//! Puts a new version in place and hands back the old one, in one call where the filesystem can.
//!
//! Fallbacks step down only where the filesystem says "not supported": exchange → link the old version aside, rename
//! the new one over it → rename the old one aside first (an instant without either, repaired by recovery).

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, RenameFlags};
use rustix::io::Errno;

use super::area::Area;
use super::calls;

/// What the fallback calls the old version, behind the new version's name, until it has its final name.
pub(crate) const ASIDE: &str = ".old";

/// What came of placing a new version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Placed {
    /// Nothing was there; the staged name is gone.
    New,
    /// The old version now has the staged name.
    Exchanged,
}

/// Moves `staged` of `stage` to `name` in `dir`. Whatever was there comes back under the staged name.
pub(crate) fn place(
    area: &Area,
    stage: impl AsFd,
    staged: &str,
    dir: impl AsFd,
    name: &OsStr,
    expect_old: bool,
) -> Result<Placed, Errno> {
    let (stage, dir) = (stage.as_fd(), dir.as_fd());
    let mut exchange = expect_old;
    // Somebody may create or remove the name between two calls; each answer says which call is next.
    for _ in 0..16 {
        let done = if exchange { swap(area, stage, staged, dir, name) } else { insert(stage, staged, dir, name) };
        match done {
            Ok(()) => return Ok(if exchange { Placed::Exchanged } else { Placed::New }),
            Err(Errno::NOENT) if exchange => exchange = false,
            Err(Errno::EXIST) if !exchange => exchange = true,
            Err(error) => return Err(error),
        }
    }
    Err(Errno::BUSY)
}

/// Takes `name` out of `dir`, under a new name of the stage. `ENOENT` when it is not there.
pub(crate) fn take(dir: impl AsFd, name: &OsStr, stage: impl AsFd, staged: &str) -> Result<(), Errno> {
    let (dir, stage) = (dir.as_fd(), stage.as_fd());
    match calls::renameat_with(dir, name, stage, staged, RenameFlags::NOREPLACE) {
        // Staged names are never reused, so a plain rename replaces nothing either.
        Err(Errno::INVAL | Errno::NOSYS) => calls::renameat(dir, name, stage, staged),
        other => other,
    }
}

fn insert(stage: BorrowedFd<'_>, staged: &str, dir: BorrowedFd<'_>, name: &OsStr) -> Result<(), Errno> {
    match calls::renameat_with(stage, staged, dir, name, RenameFlags::NOREPLACE) {
        Err(Errno::INVAL | Errno::NOSYS) => {}
        other => return other,
    }
    match calls::linkat(stage, staged, dir, name, AtFlags::empty()) {
        Ok(()) => calls::unlinkat(stage, staged, AtFlags::empty()),
        // A directory, or a filesystem without links: look first, then rename.
        Err(error) if unsupported(error) => match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Err(Errno::EXIST),
            Err(Errno::NOENT) => calls::renameat(stage, staged, dir, name),
            Err(error) => Err(error),
        },
        Err(error) => Err(error),
    }
}

fn swap(area: &Area, stage: BorrowedFd<'_>, staged: &str, dir: BorrowedFd<'_>, name: &OsStr) -> Result<(), Errno> {
    if area.can_exchange() {
        match calls::renameat_with(stage, staged, dir, name, RenameFlags::EXCHANGE) {
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => area.cannot_exchange(),
            other => return other,
        }
    }
    let aside = format!("{staged}{ASIDE}");
    let over = match calls::linkat(dir, name, stage, &*aside, AtFlags::empty()) {
        Ok(()) => match calls::renameat(stage, staged, dir, name) {
            Ok(()) => true,
            Err(error) => {
                calls::unlinkat(stage, &*aside, AtFlags::empty())?;
                // A directory does not go over a file.
                if error != Errno::NOTDIR {
                    return Err(error);
                }
                false
            }
        },
        Err(error) if unsupported(error) => false,
        Err(error) => return Err(error),
    };
    if !over {
        take(dir, name, stage, &aside)?;
        if let Err(error) = calls::renameat(stage, staged, dir, name) {
            // Nothing is there: what was comes back. If it cannot, it stays aside, where recovery finds it.
            let _ = insert(stage, &aside, dir, name);
            return Err(error);
        }
    }
    calls::renameat(stage, &*aside, stage, staged)
}

/// "Not supported", in the words that different filesystems use for it.
pub(super) fn unsupported(error: Errno) -> bool {
    matches!(
        error,
        Errno::XDEV | Errno::NOTSUP | Errno::NOTTY | Errno::INVAL | Errno::MLINK | Errno::PERM | Errno::ACCESS
    )
}
