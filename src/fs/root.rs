//! The root directory: paths resolve beneath it, with no symlink on the way.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Access, AtFlags, Mode, OFlags, ResolveFlags, Statx, StatxAttributes, StatxFlags};
use rustix::io::Errno;

use super::calls;
use crate::error::{Error, IoContext, Result};
use crate::path::RelPath;

/// `STATX_MNT_ID_UNIQUE` (Linux 6.8): unlike the plain id, never used again for another mount within one boot.
const MNT_ID_UNIQUE: StatxFlags = StatxFlags::from_bits_retain(0x4000);

/// What keeps a name from being exchanged or removed.
const FIXED: StatxAttributes =
    StatxAttributes::IMMUTABLE.union(StatxAttributes::APPEND).union(StatxAttributes::MOUNT_ROOT);

/// What lies at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Directory,
    Symlink,
    /// A device, socket or FIFO: left alone.
    Other,
}

/// Where a rename can reach: within one mount of one filesystem (a btrfs subvolume is a device of its own). Valid in
/// this boot only, and never stored as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) dev: (u32, u32),
    pub(crate) mount: u64,
}

/// A look at a path, without opening or following it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Meta {
    pub(crate) kind: Kind,
    pub(crate) ino: u64,
    /// Of a character device: which.
    pub(crate) device: Option<(u32, u32)>,
    pub(crate) size: u64,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: (i64, u32),
    pub(crate) ctime: (i64, u32),
    pub(crate) btime: (i64, u32),
    /// How many names the inode has.
    pub(crate) links: u32,
    pub(crate) place: Place,
    /// Its name cannot be changed: immutable, append-only, or a mount point.
    pub(crate) fixed: bool,
}

impl Meta {
    fn new(stat: &Statx) -> Self {
        let mode = u32::from(stat.stx_mode);
        let time = |time: &rustix::fs::StatxTimestamp| (time.tv_sec, time.tv_nsec);
        Self {
            kind: match mode & libc::S_IFMT {
                libc::S_IFREG => Kind::File,
                libc::S_IFDIR => Kind::Directory,
                libc::S_IFLNK => Kind::Symlink,
                _ => Kind::Other,
            },
            ino: stat.stx_ino,
            device: (mode & libc::S_IFMT == libc::S_IFCHR).then_some((stat.stx_rdev_major, stat.stx_rdev_minor)),
            size: stat.stx_size,
            mode: mode & 0o7777,
            uid: stat.stx_uid,
            gid: stat.stx_gid,
            mtime: time(&stat.stx_mtime),
            ctime: time(&stat.stx_ctime),
            btime: time(&stat.stx_btime),
            links: stat.stx_nlink,
            fixed: stat.stx_attributes.intersects(FIXED),
            place: Place { dev: (stat.stx_dev_major, stat.stx_dev_minor), mount: stat.stx_mnt_id },
        }
    }
}

fn statx(dir: BorrowedFd<'_>, name: &OsStr, flags: AtFlags) -> Result<Meta, Errno> {
    let want = StatxFlags::BASIC_STATS | StatxFlags::BTIME | StatxFlags::MNT_ID | MNT_ID_UNIQUE;
    rustix::fs::statx(dir, name, flags | AtFlags::SYMLINK_NOFOLLOW, want).map(|stat| Meta::new(&stat))
}

/// Looks at `name` in an open directory; none when it is not there.
pub(crate) fn look(dir: impl AsFd, name: impl AsRef<OsStr>) -> Result<Option<Meta>, Errno> {
    match statx(dir.as_fd(), name.as_ref(), AtFlags::empty()) {
        Ok(meta) => Ok(Some(meta)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Looks at a path that is not the tree's; none when it is not there.
pub(crate) fn look_outside(path: &Path) -> Result<Option<Meta>, Errno> {
    match look(rustix::fs::CWD, path) {
        Err(Errno::NOTDIR) => Ok(None),
        other => other,
    }
}

/// Opens a directory that is not the tree's, to find what lies in it.
pub(crate) fn open_outside(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
}

/// Looks at what an open descriptor stands for.
pub(crate) fn look_at(fd: impl AsFd) -> Result<Meta, Errno> {
    statx(fd.as_fd(), OsStr::new(""), AtFlags::EMPTY_PATH)
}

/// An open directory of the tree.
#[derive(Debug)]
pub(crate) struct Dir {
    pub(crate) fd: OwnedFd,
    pub(crate) meta: Meta,
}

impl Dir {
    /// What it is now; `meta` is what it was when it was opened.
    pub(crate) fn meta_now(&self) -> Result<Meta, Errno> {
        look_at(&self.fd)
    }

    /// Makes a directory in it.
    pub(crate) fn make_dir(&self, name: &OsStr, mode: Option<u32>) -> Result<(), Errno> {
        calls::mkdirat(&self.fd, name, Mode::from_raw_mode(mode.unwrap_or(0o777)))
    }

    /// Asks whether this process may change names in it.
    pub(crate) fn check_writable(&self) -> Result<(), Errno> {
        rustix::fs::accessat(&self.fd, ".", Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS)
    }

    /// Asks whether this process may take `name`, which is `meta`, out of it. `elsewhere`: for another directory.
    pub(crate) fn check_takeable(&self, name: &OsStr, meta: &Meta, elsewhere: bool) -> Result<(), Errno> {
        if meta.fixed {
            return Err(Errno::PERM);
        }
        if self.meta.mode & libc::S_ISVTX != 0 {
            let me = rustix::process::geteuid().as_raw();
            if me != 0 && me != meta.uid && me != self.meta.uid {
                return Err(Errno::PERM);
            }
        }
        // A directory's `..` is written when it gets another parent.
        if elsewhere && meta.kind == Kind::Directory {
            return rustix::fs::accessat(&self.fd, name, Access::WRITE_OK, AtFlags::EACCESS);
        }
        Ok(())
    }
}

/// The open root. Survives the root's being renamed.
#[derive(Debug)]
pub(crate) struct RootDir {
    top: Arc<Dir>,
    path: PathBuf,
}

impl RootDir {
    /// Opens a directory as a root. Symlinks on the way to it are the caller's business.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty()).at("open", path)?;
        let meta = look_at(&fd).at("look at", path)?;
        Ok(Self { top: Arc::new(Dir { fd, meta }), path: path.to_owned() })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn top(&self) -> &Arc<Dir> {
        &self.top
    }

    /// The full path, for messages.
    pub(crate) fn full(&self, path: &RelPath) -> PathBuf {
        self.path.join(path)
    }

    /// Opens a directory beneath the root. [`Error::NotFound`], [`Error::NotADirectory`] and
    /// [`Error::SymlinkOnTheWay`] say what is there instead.
    pub(crate) fn open_dir(&self, path: &RelPath) -> Result<Dir> {
        // O_PATH: closing it drops nobody's locks, and no permission but search is needed.
        let fd = self.resolve(path, OFlags::PATH | OFlags::DIRECTORY)?;
        let meta = look_at(&fd).at_in("look at", &self.path, path)?;
        Ok(Dir { fd, meta })
    }

    /// Opens what lies at a path. Only the opener's thread may open anything but `O_PATH`.
    pub(super) fn resolve(&self, path: &RelPath, flags: OFlags) -> Result<OwnedFd> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        loop {
            match rustix::fs::openat2(&self.top.fd, path.as_path(), flags, Mode::empty(), resolve) {
                // The kernel could not prove that no concurrent rename led outside: ask again.
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(Errno::LOOP | Errno::XDEV) => {
                    return Err(Error::SymlinkOnTheWay { path: self.full(path) });
                }
                other => return other.at_in("open", &self.path, path),
            }
        }
    }

    /// Looks at a path; none when it, or a directory on the way, is not there.
    pub(crate) fn look(&self, path: &RelPath) -> Result<Option<Meta>> {
        let dir = match path.parent() {
            None => None,
            Some(parent) => match self.open_dir(&parent) {
                Ok(dir) => Some(dir),
                Err(Error::NotFound { .. }) => return Ok(None),
                Err(error) => return Err(error),
            },
        };
        let fd = dir.as_ref().map_or(self.top.fd.as_fd(), |dir| dir.fd.as_fd());
        look(fd, path.name()).at_in("look at", &self.path, path)
    }
}

/// This many directories are open at once.
const MOST_OPEN: usize = 256;

/// Directories of the tree, open for as long as this lives, or until they are too many.
#[derive(Debug)]
pub(crate) struct Dirs<'r> {
    root: &'r RootDir,
    /// None: it was not there.
    open: HashMap<RelPath, Option<Arc<Dir>>>,
}

impl<'r> Dirs<'r> {
    pub(crate) fn new(root: &'r RootDir) -> Self {
        Self { root, open: HashMap::new() }
    }

    pub(crate) fn root(&self) -> &'r RootDir {
        self.root
    }

    /// The directory a path lies in.
    pub(crate) fn parent(&mut self, path: &RelPath) -> Result<Arc<Dir>> {
        let Some(parent) = path.parent_bytes() else { return Ok(self.root.top.clone()) };
        let known = self.open.get(parent);
        if let Some(Some(dir)) = known {
            return Ok(dir.clone());
        }
        let Some(parent) = path.parent() else { return Ok(self.root.top.clone()) };
        if known.is_some() {
            return Err(Error::NotFound { path: self.root.full(&parent) });
        }
        match self.root.open_dir(&parent) {
            Ok(dir) => {
                let dir = Arc::new(dir);
                self.insert(parent, Some(dir.clone()));
                Ok(dir)
            }
            Err(error) => {
                if matches!(error, Error::NotFound { .. }) {
                    self.insert(parent, None);
                }
                Err(error)
            }
        }
    }

    /// The directory a path lies in; none when it is not there yet.
    pub(crate) fn try_parent(&mut self, path: &RelPath) -> Result<Option<Arc<Dir>>> {
        match self.parent(path) {
            Ok(dir) => Ok(Some(dir)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// True when a directory is at the path, which is then open for what lies in it.
    pub(crate) fn is_there(&mut self, path: &RelPath) -> bool {
        if let Some(known) = self.open.get(path) {
            return known.is_some();
        }
        match self.root.open_dir(path) {
            Ok(dir) => {
                self.insert(path.clone(), Some(Arc::new(dir)));
                true
            }
            // What stands there instead, others say.
            Err(_) => false,
        }
    }

    fn insert(&mut self, path: RelPath, dir: Option<Arc<Dir>>) {
        if self.open.len() >= MOST_OPEN {
            // Each is a descriptor, of which a process has some hundred.
            self.open.clear();
        }
        self.open.insert(path, dir);
    }

    /// Forgets what was found at or below a path that is about to change.
    pub(crate) fn forget(&mut self, path: &RelPath) {
        self.open.retain(|dir, _| !dir.is_within(path));
    }
}

/// One name of a directory, as its listing tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) name: Vec<u8>,
    /// Of the directory's own filesystem: where something is mounted, of what lies below.
    pub(crate) ino: u64,
}

/// The names in an open directory, but for `.` and `..`.
pub(crate) fn list(dir: impl AsFd) -> Result<Vec<Listed>, Errno> {
    // Not O_PATH, and an offset of its own. A directory can be opened on any thread: it is no database.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::openat(dir, ".", flags, Mode::empty())?;
    let mut found = Vec::new();
    for entry in rustix::fs::Dir::new(dir)? {
        let entry = entry?;
        match entry.file_name().to_bytes() {
            b"." | b".." => {}
            name => found.push(Listed { name: name.to_vec(), ino: entry.ino() }),
        }
    }
    Ok(found)
}

/// A mount point below a directory, if there is one, as the kernel lists them.
pub(crate) fn mount_below(path: &Path) -> Option<PathBuf> {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let list = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    // The fifth field; space, tab, newline and backslash stand in it as three octal digits.
    let points = list.split(|&byte| byte == b'\n').filter_map(|line| line.split(|&byte| byte == b' ').nth(4));
    let unescape = |field: &[u8]| {
        let mut point = Vec::with_capacity(field.len());
        let mut rest = field;
        while let Some((&byte, behind)) = rest.split_first() {
            let octal = behind.get(..3).filter(|_| byte == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
            match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
                Some(escaped) => {
                    point.push(escaped);
                    rest = &behind[3..];
                }
                None => {
                    point.push(byte);
                    rest = behind;
                }
            }
        }
        PathBuf::from(std::ffi::OsString::from_vec(point))
    };
    let below =
        |point: &PathBuf| point.starts_with(path) && point.as_os_str().as_bytes().len() > path.as_os_str().len();
    points.map(unescape).find(below)
}

/// Refuses filesystems on which neither flock nor SQLite's shared memory can be trusted.
pub(crate) fn refuse_network(dir: impl AsFd, path: &Path) -> Result<()> {
    let kind = match rustix::fs::fstatfs(dir).at("look at the filesystem of", path)?.f_type {
        0x6969 => "NFS",
        0x517b | 0xfe53_4d42 | 0xff53_4d42 => "SMB",
        0x0102_1997 => "9p",
        0x00c3_6400 => "Ceph",
        0x5346_414f | 0x6b41_4653 => "AFS",
        0x7375_7245 => "Coda",
        0x0116_1970 => "GFS2",
        0x0bd0_0bd0 => "Lustre",
        _ => return Ok(()),
    };
    Err(Error::NetworkFilesystem { path: path.to_owned(), kind })
}
