//! Files that are only appended to: what they were is a length, and how the bytes before it ended.
//!
//! Runs on the opener's thread.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::attrs;
use super::calls;
use super::clone;
use super::root::{self, Kind, Meta, RootDir};
use crate::error::{Error, IoContext, Result};
use crate::path::RelPath;

/// So much before the end is remembered by its hash.
const REMEMBERED: u64 = 64 << 10;

/// How a file ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct End {
    pub(crate) ino: u64,
    pub(crate) size: u64,
    pub(crate) mtime: (i64, u32),
    /// BLAKE3 of the last 64 KiB.
    hash: [u8; 32],
}

/// What became of what was appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// Nothing was.
    Nothing,
    /// It is cut off, and kept.
    Off,
    /// Something else was done to the file than appending.
    Damaged,
}

/// Remembers how a file ends. None when nothing is there.
pub(super) fn end(root: &RootDir, path: &RelPath) -> Result<Option<End>> {
    let Some((file, meta)) = open(root, path, OFlags::RDONLY)? else { return Ok(None) };
    let hash = hash_before(&file, meta.size).at("read", root.full(path))?;
    Ok(Some(End { ino: meta.ino, size: meta.size, mtime: meta.mtime, hash }))
}

/// Cuts off what was appended since, having copied it to `aside`.
pub(super) fn cut(root: &RootDir, path: &RelPath, end: &End, aside: &Path) -> Result<Cut> {
    let full = root.full(path);
    let Some((file, meta)) = open(root, path, OFlags::RDWR)? else { return Ok(Cut::Damaged) };
    if meta.ino != end.ino || meta.size < end.size || hash_before(&file, end.size).at("read", &full)? != end.hash {
        return Ok(Cut::Damaged);
    }
    if meta.size == end.size {
        // Cut off by an attempt that got no further, or only touched.
        attrs::set_mtime(&file, end.mtime, &full)?;
        return Ok(Cut::Nothing);
    }
    // Begun again, it may have been copied before; what is there then is a part of what is there now.
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let tail = rustix::fs::open(aside, flags, Mode::from_raw_mode(0o600)).at("create", aside)?;
    clone::copy_between(&file, end.size, &tail, 0, meta.size - end.size).at("keep what was appended to", &full)?;
    calls::fsync(&tail).map_err(|source| Error::SyncFailed { path: aside.to_owned(), source: source.into() })?;
    calls::ftruncate(&file, end.size).at("cut off what was appended to", &full)?;
    attrs::set_mtime(&file, end.mtime, &full)?;
    Ok(Cut::Off)
}

fn open(root: &RootDir, path: &RelPath, flags: OFlags) -> Result<Option<(OwnedFd, Meta)>> {
    let file = match root.resolve(path, flags | OFlags::NONBLOCK | OFlags::NOCTTY) {
        Ok(file) => file,
        Err(Error::NotFound { .. }) => return Ok(None),
        Err(error) => return Err(error),
    };
    let meta = root::look_at(&file).at("look at", root.full(path))?;
    if meta.kind != Kind::File {
        return Err(Error::BadPath { path: path.to_path_buf(), reason: "it is not a regular file" });
    }
    Ok(Some((file, meta)))
}

fn hash_before(file: &OwnedFd, end: u64) -> Result<[u8; 32], Errno> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 16 << 10];
    let mut at = end.saturating_sub(REMEMBERED);
    while at < end {
        let left = usize::try_from(end - at).unwrap_or(buffer.len()).min(buffer.len());
        match rustix::io::pread(file, &mut buffer[..left], at) {
            Ok(0) => break,
            Ok(read) => {
                hasher.update(&buffer[..read]);
                at += read as u64;
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(*hasher.finalize().as_bytes())
}
