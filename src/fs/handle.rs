//! What an inode is called for good: unlike its number, never used again for another.

use std::ffi::{CString, OsStr};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;

use rustix::io::Errno;

use super::sys;

/// A file handle, as the filesystem makes it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Handle {
    kind: i32,
    bytes: Vec<u8>,
}

/// The handle of what lies under a name; none where the filesystem has no handles.
pub(crate) fn of(dir: impl AsFd, name: &OsStr) -> Result<Option<Handle>, Errno> {
    let name = CString::new(name.as_bytes()).map_err(|_| Errno::INVAL)?;
    match sys::file_handle(dir.as_fd(), &name) {
        Ok((kind, bytes)) => Ok(Some(Handle { kind, bytes })),
        Err(Errno::NOTSUP | Errno::OVERFLOW | Errno::NOSYS | Errno::PERM) => Ok(None),
        Err(error) => Err(error),
    }
}

impl Handle {
    /// The handle in overlayfs's note of where a file was copied from (`struct ovl_fb`): version, magic, length, flags and
    /// type, a byte each; the filesystem's 16-byte id; the handle itself. None where it says that it does not know.
    pub(crate) fn from_origin(note: &[u8]) -> Option<Self> {
        const HEAD: usize = 21;
        let &[0, 0xfb, length, _, kind] = note.first_chunk::<5>()? else { return None };
        let bytes = note.get(HEAD..usize::from(length))?;
        Some(Self { kind: kind.into(), bytes: bytes.to_vec() })
    }
}
