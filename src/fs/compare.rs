//! Compares files of the tree with what was kept of them, where times and sizes prove nothing. Runs on the opener's thread.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::root::{self, Kind, RootDir};
use crate::error::{IoContext, Result};
use crate::path::RelPath;

/// So much is read at once.
const CHUNK: usize = 128 << 10;

/// A file of the tree, and what was kept of it.
#[derive(Clone, Debug)]
pub(crate) struct Compare {
    pub(crate) path: RelPath,
    pub(crate) kept: PathBuf,
}

/// True when both hold the same bytes. A file of the tree that cannot be read is not the same; what was kept must be readable.
pub(super) fn same_bytes(root: &RootDir, what: &Compare) -> Result<bool> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let kept = rustix::fs::open(&what.kept, flags, Mode::empty()).at("open", &what.kept)?;
    let Ok(live) = root.resolve(&what.path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY) else {
        return Ok(false);
    };
    let meta = root::look_at(&live).at("look at", root.full(&what.path))?;
    let size = root::look_at(&kept).at("look at", &what.kept)?.size;
    if meta.kind != Kind::File || meta.size != size {
        return Ok(false);
    }
    let (mut ours, mut theirs) = (vec![0; CHUNK], vec![0; CHUNK]);
    let mut at = 0;
    loop {
        let read = fill(&kept, &mut ours, at).at("read", &what.kept)?;
        match fill(&live, &mut theirs, at) {
            Ok(same) if same == read && ours[..read] == theirs[..read] => {}
            _ => return Ok(false),
        }
        if read < CHUNK {
            return Ok(true);
        }
        at += read as u64;
    }
}

/// Reads until the buffer is full, or the file ends.
fn fill(file: &OwnedFd, buffer: &mut [u8], at: u64) -> Result<usize, Errno> {
    let mut filled = 0;
    while filled < buffer.len() {
        match rustix::io::pread(file, &mut buffer[filled..], at + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
