//! What is written to files: kept in memory while it is small, else streamed to the stage.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use super::overlay::{Bytes, NewFile, Node, View};
use super::transaction::Transaction;
use crate::error::{Error, IoContext, Result};
use crate::fs::area::STATE_AREA;
use crate::fs::opener;
use crate::fs::temp;
use crate::path::RelPath;

impl Transaction {
    /// Stages a file with these bytes, in place of whatever file or symlink is at the path. Missing directories on
    /// the way are made. An overwritten file keeps its mode, owner and xattrs; a new one gets 0666 less the umask.
    ///
    /// Errors at once for a path that cannot be one; at commit when a directory is there.
    pub fn write(&mut self, path: impl AsRef<Path>, bytes: impl AsRef<[u8]>) -> Result<()> {
        let bytes = bytes.as_ref();
        let path = self.begin_staging(path.as_ref())?;
        let like = self.replaced(&path)?;
        if bytes.len() as u64 <= self.inline_limit() {
            return self.write_inline(&path, bytes.into(), like);
        }
        let (spooled, hash) = self.spool(bytes, std::io::empty())?;
        self.put_file(&path, spooled, hash, opener::is_database(bytes), like)
    }

    /// Stages a file with what a reader gives until its end, and answers how many bytes that was. What does not fit
    /// the limits for small content is streamed to the stage, so memory stays bounded.
    pub fn write_from(&mut self, path: impl AsRef<Path>, mut reader: impl Read) -> Result<u64> {
        let path = self.begin_staging(path.as_ref())?;
        let like = self.replaced(&path)?;
        let limit = self.inline_limit();
        let mut start = Vec::new();
        (&mut reader).take(limit + 1).read_to_end(&mut start).at("read the content of", &path)?;
        let size = start.len() as u64;
        if size <= limit {
            self.write_inline(&path, start.into(), like)?;
            return Ok(size);
        }
        let (spooled, hash) = self.spool(&start, reader)?;
        let size = spooled.size();
        self.put_file(&path, spooled, hash, opener::is_database(&start), like)?;
        Ok(size)
    }

    /// The live file whose place a new one at this path takes.
    fn replaced(&self, path: &RelPath) -> Result<Option<RelPath>> {
        match self.placing(path)? {
            View::Dir => Err(Error::IsADirectory { path: self.ground.root.full(path) }),
            View::Live(live) => Ok(Some(live)),
            View::File(file) => Ok(file.like.clone()),
            _ => Ok(None),
        }
    }

    /// How many bytes of the next file may ride in the log.
    fn inline_limit(&self) -> u64 {
        self.ground.limits.inline_file.min(self.ground.limits.inline_txn.saturating_sub(self.inline))
    }

    fn write_inline(&mut self, path: &RelPath, bytes: Arc<[u8]>, like: Option<RelPath>) -> Result<()> {
        let (hash, database) = (*blake3::hash(&bytes).as_bytes(), opener::is_database(&bytes));
        self.inline += bytes.len() as u64;
        self.put_file(path, Bytes::Inline(bytes), hash, database, like)
    }

    fn put_file(
        &mut self,
        path: &RelPath,
        bytes: Bytes,
        hash: [u8; 32],
        database: bool,
        like: Option<RelPath>,
    ) -> Result<()> {
        self.ask("write", &[path.as_bytes(), &hash]);
        if self.replay {
            return Ok(());
        }
        self.replace(path, Node::File(NewFile { bytes, hash, database, like }))
    }

    fn spool(&mut self, start: &[u8], mut rest: impl Read) -> Result<(Bytes, [u8; 32])> {
        let (area, name) = (self.ground.area(STATE_AREA)?, self.ground.fresh_name());
        let path = area.stage_path(&name);
        let file = temp::create(&area, &name)?;
        self.spooled.insert((area.id, name.clone()));
        let mut hasher = blake3::Hasher::new();
        hasher.update(start);
        temp::write_all(&file, start, &path)?;
        let mut size = start.len() as u64;
        let mut buffer = vec![0; 256 << 10];
        loop {
            match rest.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => {
                    hasher.update(&buffer[..read]);
                    temp::write_all(&file, &buffer[..read], &path)?;
                    size += read as u64;
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error).at("read the content of", path),
            }
        }
        Ok((Bytes::Staged { name, area: area.id, size }, *hasher.finalize().as_bytes()))
    }
}
