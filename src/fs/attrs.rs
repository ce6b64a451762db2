//! What a file has besides its bytes: mode, owner, xattrs.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{AtFlags, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags};
use rustix::io::Errno;
use rustix::path::Arg;
use serde::{Deserialize, Serialize};

use super::calls;
use super::root::{self, Kind, Meta};
use super::sys;
use crate::error::{IoContext, Result};

/// Extended attributes, as name and value.
pub(crate) type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// What a new version is given besides its bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Attrs {
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds and nanoseconds since 1970.
    pub(crate) mtime: (i64, u32),
    pub(crate) xattrs: Xattrs,
}

/// True once the kernel has said that it cannot list xattrs by a directory and a name.
static LISTS_BY_PATH: AtomicBool = AtomicBool::new(false);

/// What a look at something and its xattrs tell.
pub(crate) fn of(meta: &Meta, xattrs: Xattrs) -> Attrs {
    Attrs { mode: meta.mode, uid: meta.uid, gid: meta.gid, mtime: meta.mtime, xattrs }
}

/// The xattrs of `name` in an open directory, without opening the file itself.
pub(crate) fn xattrs(dir: impl AsFd, name: &OsStr, dir_path: impl AsRef<Path>) -> Result<Xattrs> {
    let mut list = Vec::with_capacity(256);
    loop {
        list.clear();
        match list_names(dir.as_fd(), name, &mut list) {
            Ok(()) => break,
            Err(Errno::RANGE) => list.reserve(list.capacity() * 4),
            // No xattrs on this filesystem, or gone in the meantime.
            Err(Errno::NOTSUP | Errno::NOENT) => return Ok(Xattrs::new()),
            Err(error) => return Err(error).at_in("list the xattrs of", dir_path, name),
        }
    }
    if list.is_empty() {
        return Ok(Xattrs::new());
    }
    let by_fd = by_fd(dir.as_fd(), name);
    let mut found = Xattrs::new();
    for xattr in list.split(|&byte| byte == 0).filter(|xattr| !xattr.is_empty()) {
        let key = OsStr::from_bytes(xattr);
        let mut value = Vec::with_capacity(256);
        loop {
            value.clear();
            match rustix::fs::lgetxattr(&by_fd, key, rustix::buffer::spare_capacity(&mut value)) {
                Ok(_) => {
                    found.push((xattr.to_vec(), value));
                    break;
                }
                Err(Errno::RANGE) => value.reserve(value.capacity() * 4),
                Err(Errno::NODATA | Errno::NOENT | Errno::PERM | Errno::ACCESS) => break,
                Err(error) => return Err(error).at_in("read the xattrs of", dir_path, name),
            }
        }
    }
    Ok(found)
}

/// Lists the names of xattrs. The way by /proc costs several times as much, which counts where a whole tree is looked at.
fn list_names(dir: BorrowedFd<'_>, name: &OsStr, list: &mut Vec<u8>) -> Result<(), Errno> {
    if !LISTS_BY_PATH.load(Ordering::Relaxed) {
        let listed = name.into_with_c_str(|name| {
            sys::list_xattrs_at(dir, name, list).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
        });
        match listed {
            // Older kernels; and filters of system calls that do not know it.
            Err(Errno::NOSYS | Errno::PERM) => LISTS_BY_PATH.store(true, Ordering::Relaxed),
            other => return other,
        }
    }
    rustix::fs::llistxattr(by_fd(dir, name), rustix::buffer::spare_capacity(list)).map(drop)
}

/// The path of `name` by the descriptor's name in /proc, in the table of this thread, which need not be that of the process.
fn by_fd(dir: BorrowedFd<'_>, name: &OsStr) -> OsString {
    let mut path = format!("/proc/thread-self/fd/{}/", dir.as_raw_fd()).into_bytes();
    path.extend_from_slice(name.as_bytes());
    OsString::from_vec(path)
}

/// Gives a freshly created file what an old version had. Owner and protected xattrs are kept as far as this process
/// may set them. Answers whether anything had to be changed.
pub(crate) fn dress(file: &OwnedFd, has: &Meta, want: &Attrs, path: &Path) -> Result<bool> {
    let owner_differs = (has.uid, has.gid) != (want.uid, want.gid);
    let mode_differs = has.mode != want.mode;
    if owner_differs {
        // chown clears set-user-id bits, so it comes before chmod. An ordinary user may change the group at most.
        let (owner, group) = (Uid::from_raw(want.uid), Gid::from_raw(want.gid));
        match calls::fchown(file, Some(owner), Some(group)) {
            Err(Errno::PERM) => match calls::fchown(file, None, Some(group)) {
                Ok(()) | Err(Errno::PERM) => {}
                Err(error) => return Err(error).at("change the owner of", path),
            },
            other => other.at("change the owner of", path)?,
        }
    }
    for (name, value) in &want.xattrs {
        let name = OsString::from_vec(name.clone());
        match calls::fsetxattr(file, &name, value, XattrFlags::empty()) {
            Ok(()) | Err(Errno::PERM | Errno::ACCESS | Errno::NOTSUP) => {}
            Err(error) => return Err(error).at("set an xattr of", path),
        }
    }
    if mode_differs || owner_differs {
        calls::fchmod(file, Mode::from_raw_mode(want.mode)).at("change the mode of", path)?;
    }
    Ok(owner_differs || mode_differs || !want.xattrs.is_empty())
}

/// Gives what lies under a name back what it had besides its bytes, modification time included, without opening it. Owner
/// and protected xattrs as far as this process may set them; xattrs it did not have then are removed.
pub(crate) fn dress_at(dir: impl AsFd, name: &OsStr, want: &Attrs, path: &Path) -> Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let there = rustix::fs::openat(&dir, name, flags, Mode::empty()).at("open", path)?;
    let has = root::look_at(&there).at("look at", path)?;
    if (has.uid, has.gid) != (want.uid, want.gid) {
        let (owner, group) = (Uid::from_raw(want.uid), Gid::from_raw(want.gid));
        match calls::chownat(&there, "", Some(owner), Some(group), AtFlags::EMPTY_PATH) {
            Ok(()) | Err(Errno::PERM) => {}
            Err(error) => return Err(error).at("change the owner of", path),
        }
    }
    if has.kind != Kind::Symlink {
        // What a path descriptor stands for is reached by its name in /proc.
        let by_fd = PathBuf::from(format!("/proc/thread-self/fd/{}", there.as_raw_fd()));
        let had = xattrs(&dir, name, path)?;
        for (name, _) in had.iter().filter(|(name, _)| !want.xattrs.iter().any(|(wanted, _)| wanted == name)) {
            match calls::removexattr(&by_fd, OsStr::from_bytes(name)) {
                Ok(()) | Err(Errno::PERM | Errno::ACCESS | Errno::NOTSUP | Errno::NODATA) => {}
                Err(error) => return Err(error).at("remove an xattr of", path),
            }
        }
        for (name, value) in want.xattrs.iter().filter(|wanted| !had.contains(wanted)) {
            match calls::setxattr(&by_fd, OsStr::from_bytes(name), value, XattrFlags::empty()) {
                Ok(()) | Err(Errno::PERM | Errno::ACCESS | Errno::NOTSUP) => {}
                Err(error) => return Err(error).at("set an xattr of", path),
            }
        }
        // After chown, which clears set-user-id bits.
        let now = root::look_at(&there).at("look at", path)?;
        if now.mode != want.mode {
            let mode = Mode::from_raw_mode(want.mode);
            calls::chmodat(rustix::fs::CWD, &by_fd, mode, AtFlags::empty()).at("change the mode of", path)?;
        }
    }
    if has.mtime != want.mtime {
        calls::utimensat(&dir, name, &times(want.mtime), AtFlags::SYMLINK_NOFOLLOW).at("set the times of", path)?;
    }
    Ok(())
}

/// Lets an ordinary user into a directory of its own that was closed, or made read-only. [`dress_at`] undoes it.
pub(crate) fn open_up(dir: impl AsFd, name: &OsStr, is: &Meta, path: &Path) -> Result<()> {
    const OWNERS: u32 = 0o700;
    let me = rustix::process::geteuid();
    if is.mode & OWNERS == OWNERS || me.is_root() || me.as_raw() != is.uid {
        return Ok(());
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let there = rustix::fs::openat(&dir, name, flags, Mode::empty()).at("open", path)?;
    set_mode(&there, is.mode | OWNERS).at("change the mode of", path)
}

/// Sets the mode of what a path descriptor stands for.
pub(crate) fn set_mode(there: &OwnedFd, mode: u32) -> Result<(), Errno> {
    let by_fd = format!("/proc/thread-self/fd/{}", there.as_raw_fd());
    calls::chmodat(rustix::fs::CWD, by_fd, Mode::from_raw_mode(mode), AtFlags::empty())
}

/// Gives a directory, which is `is`, the mode and modification time that it was found with.
pub(crate) fn give_back(
    dir: impl AsFd,
    name: &OsStr,
    is: &Meta,
    mode: u32,
    mtime: (i64, u32),
    path: &Path,
) -> Result<()> {
    if is.mode != mode {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let there = rustix::fs::openat(&dir, name, flags, Mode::empty()).at("open", path)?;
        let by_fd = format!("/proc/thread-self/fd/{}", there.as_raw_fd());
        let mode = Mode::from_raw_mode(mode);
        calls::chmodat(rustix::fs::CWD, by_fd, mode, AtFlags::empty()).at("change the mode of", path)?;
    }
    if is.mtime == mtime {
        return Ok(());
    }
    match calls::utimensat(&dir, name, &times(mtime), AtFlags::SYMLINK_NOFOLLOW) {
        // Somebody else's: it was not named, and they may see that something was done in it.
        Err(Errno::PERM) => Ok(()),
        done => done.at("set the times of", path),
    }
}

/// Sets the modification time, leaving the access time to the kernel.
pub(crate) fn set_mtime(file: &OwnedFd, mtime: (i64, u32), path: &Path) -> Result<()> {
    calls::futimens(file, &times(mtime)).at("set the times of", path)
}

fn times(mtime: (i64, u32)) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: mtime.0, tv_nsec: mtime.1.into() },
    }
}
