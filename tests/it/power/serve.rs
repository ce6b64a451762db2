//! The disk as a file: the smallest FUSE filesystem that a loop device can be laid over.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, KernelConfig, LockOwner,
    OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request, Session, SessionACL,
    WriteFlags,
};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, UnmountFlags};

use super::disk::Disk;
use super::sys;

const FILE: INodeNo = INodeNo(2);
const NAME: &str = "disk";
/// Nothing here ever changes.
const ALWAYS: Duration = Duration::from_secs(1 << 30);

struct OneFile {
    disk: Arc<Disk>,
    size: u64,
}

impl OneFile {
    fn attributes(&self, ino: INodeNo) -> FileAttr {
        let file = ino == FILE;
        FileAttr {
            ino,
            size: if file { self.size } else { 0 },
            blocks: 0,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if file { FileType::RegularFile } else { FileType::Directory },
            perm: 0o700,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

impl Filesystem for OneFile {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // As much at once as the block layer sends: less requests.
        let _ = config.set_max_write(1 << 20);
        Ok(())
    }

    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match name == NAME {
            true => reply.entry(&ALWAYS, &self.attributes(FILE), Generation(0)),
            false => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&ALWAYS, &self.attributes(ino));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        // No page of it is ever cached: what the loop device is told to write arrives, and in this order.
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut bytes = vec![0; (size as u64).min(self.size.saturating_sub(offset)) as usize];
        self.disk.read(offset, &mut bytes);
        reply.data(&bytes);
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.disk.write(offset, data) {
            true => reply.written(data.len() as u32),
            false => reply.error(Errno::EIO),
        }
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.disk.flush();
        reply.ok();
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }
}

/// A disk that is served at a directory, until it is dropped.
pub(super) struct Served {
    at: PathBuf,
    thread: Option<JoinHandle<()>>,
}

impl Served {
    /// To be called by a thread with mounts of its own.
    pub(super) fn new(disk: &Arc<Disk>, size: u64, at: &Path) -> io::Result<Self> {
        let (told, ready) = mpsc::channel();
        let (files, place) = (OneFile { disk: Arc::clone(disk), size }, at.to_owned());
        let serve = move || {
            let session = sys::own_descriptors().and_then(|()| mounted(files, &place));
            match session {
                Ok(session) => {
                    let _ = told.send(Ok(()));
                    // It ends with an error when the last user of the mount is gone.
                    let _ = session.run();
                }
                Err(error) => drop(told.send(Err(error))),
            }
        };
        let thread = std::thread::Builder::new().name("power-disk".to_owned()).spawn(serve)?;
        ready.recv().map_err(io::Error::other)??;
        Ok(Self { at: at.to_owned(), thread: Some(thread) })
    }

    pub(super) fn file(&self) -> PathBuf {
        self.at.join(NAME)
    }
}

fn mounted(files: OneFile, at: &Path) -> io::Result<Session<OneFile>> {
    let device: OwnedFd = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
    let options = CString::new(options).expect("no zero in it");
    rustix::mount::mount("journal-kb-power", at, "fuse", MountFlags::NOSUID | MountFlags::NODEV, options.as_c_str())?;
    Session::from_fd(files, device, SessionACL::All, fuser::Config::default())
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.at, UnmountFlags::DETACH);
        let Some(thread) = self.thread.take() else { return };
        // Whoever still has the file open keeps it alive, and must not keep the test from ending.
        for _ in 0..1000 {
            if thread.is_finished() {
                return drop(thread.join());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        eprintln!("somebody still uses the disk at {}", self.at.display());
    }
}
