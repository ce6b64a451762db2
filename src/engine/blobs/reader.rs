//! Reading a blob that is sealed.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::blob::{BlobId, Content};
use crate::error::{BlobError, Damage};

/// A sealed blob, open to be read: from the beginning, from anywhere, by several threads at once. It stays readable when it is
/// removed meanwhile.
#[derive(Debug)]
pub struct BlobReader {
    id: BlobId,
    size: u64,
    source: Source,
    at: u64,
    /// What is still to be checked.
    check: Mutex<Option<Box<Check>>>,
}

#[derive(Debug)]
pub(super) enum Source {
    Inline(Vec<u8>),
    File(File),
}

/// How far it has been hashed.
#[derive(Debug)]
struct Check {
    expected: [u8; 32],
    hasher: blake3::Hasher,
    until: u64,
}

impl BlobReader {
    pub(super) fn new(id: BlobId, content: &Content, source: Source, verify: bool) -> Self {
        let check = || Check { expected: content.hash, hasher: blake3::Hasher::new(), until: 0 };
        let check = verify.then(|| Box::new(check()));
        Self { id, size: content.size, source, at: 0, check: Mutex::new(check) }
    }

    /// What it is called.
    pub fn id(&self) -> &BlobId {
        &self.id
    }

    /// Its size in bytes.
    #[expect(clippy::len_without_is_empty, reason = "as of a file")]
    pub fn len(&self) -> u64 {
        self.size
    }

    /// Reads from so many bytes behind its beginning on, and answers how many bytes that was: none at the end. Leaves alone where
    /// [`Read::read`] goes on. Where it is to be verified, all of it is, before.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.verify()?;
        self.read_from(buffer, offset)
    }

    /// The same until the buffer is full; an error of the kind `UnexpectedEof` where the blob ends before that.
    pub fn read_exact_at(&self, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
        while !buffer.is_empty() {
            match self.read_at(buffer, offset)? {
                0 => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the blob ends before that")),
                read => {
                    buffer = &mut buffer[read..];
                    offset += read as u64;
                }
            }
        }
        Ok(())
    }

    fn read_from(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let left = self.size.saturating_sub(offset);
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let buffer = &mut buffer[..most];
        match &self.source {
            Source::Inline(bytes) => {
                let from = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset..)).unwrap_or_default();
                let read = from.len().min(buffer.len());
                buffer[..read].copy_from_slice(&from[..read]);
                Ok(read)
            }
            Source::File(file) => loop {
                match file.read_at(buffer, offset) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    // It was shortened while it was open.
                    Ok(0) if most > 0 => {
                        let found = file.metadata()?.len();
                        return Err(self.damaged(Damage::Size { expected: self.size, found }));
                    }
                    other => return other,
                }
            },
        }
    }

    fn damaged(&self, damage: Damage) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, BlobError::Damaged { id: self.id.to_string(), damage })
    }

    fn check(&self) -> MutexGuard<'_, Option<Box<Check>>> {
        self.check.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hashes what was not hashed yet, if it is to be verified.
    fn verify(&self) -> io::Result<()> {
        let mut checking = self.check();
        if checking.is_none() {
            return Ok(());
        }
        let mut buffer = vec![0; 256 << 10];
        while let Some(check) = &mut *checking {
            let read = self.read_from(&mut buffer, check.until)?;
            self.hash(&mut checking, &buffer[..read])?;
        }
        Ok(())
    }

    /// Hashes what was read from where the check had come to; at the end that is compared.
    fn hash(&self, checking: &mut Option<Box<Check>>, bytes: &[u8]) -> io::Result<()> {
        let Some(check) = checking else { return Ok(()) };
        check.hasher.update(bytes);
        check.until += bytes.len() as u64;
        if check.until < self.size {
            return Ok(());
        }
        let (expected, found) = (check.expected, *check.hasher.finalize().as_bytes());
        if expected != found {
            // Whoever asks again is told so again.
            (check.hasher, check.until) = (blake3::Hasher::new(), 0);
            return Err(self.damaged(Damage::Content { expected, found }));
        }
        *checking = None;
        Ok(())
    }
}

impl Read for BlobReader {
    /// Reads on. Where it is to be verified, the last piece is an error instead when its bytes are not those that were sealed.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let goes_on = self.check().as_ref().is_none_or(|check| check.until == self.at);
        if !goes_on {
            self.verify()?;
        }
        let read = self.read_from(buffer, self.at)?;
        if read > 0 || self.size == 0 {
            self.hash(&mut self.check(), &buffer[..read])?;
        }
        self.at += read as u64;
        Ok(read)
    }
}

impl Seek for BlobReader {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.size.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        let before = || io::Error::new(io::ErrorKind::InvalidInput, "that is before the beginning of the blob");
        self.at = at.ok_or_else(before)?;
        Ok(self.at)
    }
}
