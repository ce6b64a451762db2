//! A file of several names is copied once: what is kept under each of its names is one file, too.

use std::collections::HashMap;
use std::path::PathBuf;

use rustix::fs::AtFlags;
use rustix::io::Errno;

use super::calls;
use super::clone::{FileToKeep, KeptFile, Way};
use super::exchange::unsupported;
use super::identity::Identity;
use super::root::{self, Meta};
use crate::error::{IoContext, Result};

/// The copies made so far of files that have several names, by inode. Of one filesystem.
#[derive(Debug, Default)]
pub(crate) struct Copies(HashMap<u64, (Identity, PathBuf, Way)>);

impl Copies {
    /// Keeps a file that was just seen as `seen`, at the full path `at`. Says what it is after being kept; none, and nothing is
    /// kept, when it changed meanwhile.
    pub(crate) fn keep(&mut self, file: &FileToKeep<'_>, seen: &Meta, at: PathBuf) -> Result<Option<(Meta, Way)>> {
        if seen.links > 1
            && let Some(linked) = self.link(file, seen)?
        {
            return Ok(Some(linked));
        }
        let Some(KeptFile { meta, way, .. }) = file.keep(seen)? else { return Ok(None) };
        if way != Way::Link && meta.links > 1 {
            self.0.insert(meta.ino, (Identity::from(&meta), at, way));
        }
        Ok(Some((meta, way)))
    }

    /// Links to the copy that was made of the same file under another name; none when there is none.
    fn link(&self, file: &FileToKeep<'_>, seen: &Meta) -> Result<Option<(Meta, Way)>> {
        let Some((copied, from, way)) = self.0.get(&seen.ino) else { return Ok(None) };
        let now = root::look(file.dir, file.name).at("look at", file.full)?;
        let Some(now) = now.filter(|now| copied.is(now, false)) else { return Ok(None) };
        match calls::linkat(rustix::fs::CWD, from, file.to_dir, file.to, AtFlags::empty()) {
            Ok(()) => Ok(Some((now, *way))),
            Err(error) if unsupported(error) || error == Errno::NOENT => Ok(None),
            Err(error) => Err(error).at("keep the old version of", file.full),
        }
    }
}
