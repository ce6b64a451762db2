//! The thread that opens files of the tree.
//!
//! Opening and closing a file drops the POSIX locks this process has on it, and SQLite's locks are of that kind: were
//! the engine to read a database of the tree that the application has open, the application's next COMMIT could be
//! lost. So one thread, `journal-tree`, begins by unsharing its descriptor table, and every open of a tree's file
//! happens there. What crosses over are paths and values, never descriptors.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::append::{self, Cut, End};
use super::attrs::Attrs;
use super::calls;
use super::clone::{self, Keep, Kept};
use super::compare::{self, Compare};
use super::database::{self, KeepSet, KeptSet};
use super::fork::Born;
use super::root::{self, Kind, Meta, RootDir};
use super::{sys, temp};
use crate::error::{Error, IoContext, Result};
use crate::path::RelPath;

const SQLITE_HEADER: &[u8] = b"SQLite format 3\0";
/// What SQLite puts beside a database.
pub(crate) const SIDECARS: [&str; 3] = ["-wal", "-shm", "-journal"];
/// The database that a name belongs to as its sidecar.
pub(crate) fn base_of(name: &[u8]) -> Option<&[u8]> {
    SIDECARS.iter().find_map(|suffix| name.strip_suffix(suffix.as_bytes())).filter(|base| !base.is_empty())
}

/// The path of the database that a path lies beside as its sidecar.
pub(crate) fn database_beside(path: &RelPath) -> Option<RelPath> {
    base_of(path.as_bytes()).and_then(|base| RelPath::from_stored(base).ok())
}

/// How many files are synced at once: the device takes several flushes in about the time of one.
const PARALLEL_SYNCS: usize = 8;
/// A file, its directory and the stage: to start threads for these takes longer than they save.
const FEW_SYNCS: usize = 3;

/// True when bytes begin as a SQLite database does.
pub(crate) fn is_database(bytes: &[u8]) -> bool {
    bytes.starts_with(SQLITE_HEADER)
}

/// What recovery finds at a path.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) meta: Meta,
    /// BLAKE3 of the bytes, or of a symlink's target; none when the size already differs from what was asked for.
    pub(crate) hash: Option<[u8; 32]>,
}

/// One file to be made durable.
#[derive(Clone, Debug)]
pub(crate) enum SyncTarget {
    /// A file of the tree, if it still is this inode.
    File(RelPath, u64),
    /// A directory of the tree; none is the root.
    Directory(Option<RelPath>),
    /// A file or directory of the engine's own.
    Own(PathBuf),
}

impl SyncTarget {
    /// Its full path, for messages.
    pub(crate) fn path(self, root: &RootDir) -> PathBuf {
        match self {
            Self::File(path, _) | Self::Directory(Some(path)) => root.full(&path),
            Self::Directory(None) => root.path().to_owned(),
            Self::Own(path) => path,
        }
    }
}

/// Databases that are, or are about to be, locked against everybody until [`Opener::release`].
#[derive(Debug)]
#[must_use = "the databases stay locked until released"]
pub(crate) struct Held {
    number: u64,
    answer: Receiver<Result<Vec<RelPath>>>,
}

impl Held {
    /// Waits until they are locked, and answers which of the paths were databases; the first time.
    /// [`Error::DatabaseInUse`] when somebody uses one.
    pub(crate) fn databases(&mut self) -> Result<Vec<RelPath>> {
        self.answer.recv().unwrap_or(Ok(Vec::new()))
    }
}

type Job = Box<dyn FnOnce(&mut Tree) + Send>;

/// The handle to the thread. Ends it on drop.
#[derive(Debug)]
pub(crate) struct Opener {
    jobs: Mutex<Option<Sender<Job>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    held: AtomicU64,
    /// A forked child has no such thread.
    born: Born,
}

/// What lives on the thread.
struct Tree {
    root: RootDir,
    held: HashMap<u64, Vec<OwnedFd>>,
}

impl Opener {
    /// Starts the thread and has it open the root; `expect` must be what the caller opened.
    pub(crate) fn on(path: &Path, expect: &Meta) -> Result<Self> {
        let (jobs, inbox) = mpsc::channel::<Job>();
        let (ready, started) = mpsc::sync_channel(1);
        let (root_path, expect) = (path.to_owned(), *expect);
        let thread = std::thread::Builder::new()
            .name("journal-tree".into())
            .spawn(move || {
                let opened = sys::own_descriptor_table().at("unshare the descriptors of a thread for", &root_path);
                let root = opened.and_then(|()| RootDir::open(&root_path)).and_then(|root| {
                    let meta = root.top().meta;
                    let same = (meta.ino, meta.place.dev) == (expect.ino, expect.place.dev);
                    if same { Ok(root) } else { Err(Error::NotFound { path: root_path.clone() }) }
                });
                match root {
                    Err(error) => drop(ready.send(Err(error))),
                    Ok(root) => {
                        let mut tree = Tree { root, held: HashMap::new() };
                        drop(ready.send(Ok(())));
                        for job in inbox {
                            job(&mut tree);
                        }
                    }
                }
            })
            .at("start a thread for", path)?;
        let opener = Self {
            jobs: Mutex::new(Some(jobs)),
            thread: Mutex::new(Some(thread)),
            held: AtomicU64::new(0),
            born: Born::here(),
        };
        match started.recv() {
            Ok(answer) => answer.map(|()| opener),
            Err(_) => Err(Error::Closed),
        }
    }

    /// Ends the thread once it has done what was asked of it.
    pub(crate) fn stop(&self) {
        let jobs = self.jobs.lock().unwrap_or_else(|poison| poison.into_inner()).take();
        drop(jobs);
        let thread = self.thread.lock().unwrap_or_else(|poison| poison.into_inner()).take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }

    fn ask<T: Send + 'static>(&self, job: impl FnOnce(&mut Tree) -> T + Send + 'static) -> Result<T> {
        self.send(job)?.recv().map_err(|_| Error::Closed)
    }

    /// Has a job done without waiting for its answer.
    fn send<T: Send + 'static>(&self, job: impl FnOnce(&mut Tree) -> T + Send + 'static) -> Result<Receiver<T>> {
        self.born.check()?;
        let (send, answer) = mpsc::sync_channel(1);
        let job: Job = Box::new(move |tree| drop(send.send(job(tree))));
        let jobs = self.jobs.lock().unwrap_or_else(|poison| poison.into_inner());
        match jobs.as_ref().is_some_and(|jobs| jobs.send(job).is_ok()) {
            true => Ok(answer),
            false => Err(Error::Closed),
        }
    }

    /// The bytes of a file of the tree. [`Error::NotFound`], [`Error::IsADirectory`]; a symlink is not followed.
    pub(crate) fn read(&self, path: RelPath) -> Result<Vec<u8>> {
        self.ask(move |tree| tree.read(&path))?
    }

    /// The bytes of a file that is not in the live tree: a staged one, or one to be published.
    pub(crate) fn read_own(&self, path: PathBuf) -> Result<Vec<u8>> {
        self.ask(move |_| temp::read(&path))?
    }

    /// The hash of such a file; none where this user may not read it.
    pub(crate) fn hash_own(&self, path: PathBuf) -> Result<Option<[u8; 32]>> {
        self.ask(move |_| temp::hash(&path))?
    }

    /// What lies at each path, hashed where its size is the one expected.
    pub(crate) fn examine(&self, paths: Vec<(RelPath, u64)>) -> Result<Vec<Result<Option<Found>>>> {
        self.ask(move |tree| paths.iter().map(|(path, size)| tree.examine(path, *size)).collect())
    }

    /// Runs work on the thread that may open files of the tree. Whatever it opens has to be closed when it ends.
    pub(crate) fn run<T: Send + 'static>(&self, work: impl FnOnce(&RootDir) -> T + Send + 'static) -> Result<T> {
        self.ask(move |tree| work(&tree.root))
    }

    /// The same without waiting for it.
    pub(crate) fn start<T: Send + 'static>(
        &self,
        work: impl FnOnce(&RootDir) -> T + Send + 'static,
    ) -> Result<Receiver<T>> {
        self.send(move |tree| work(&tree.root))
    }

    /// Keeps what lies at each path, for as many as it can.
    pub(crate) fn keep(&self, what: Vec<Keep>) -> Result<Vec<Result<Kept>>> {
        self.ask(move |tree| what.iter().map(|what| clone::keep(&tree.root, what)).collect())
    }

    /// Remembers how files end; none for one that is not there.
    pub(crate) fn ends(&self, paths: Vec<RelPath>) -> Result<Vec<Result<Option<End>>>> {
        self.ask(move |tree| paths.iter().map(|path| append::end(&tree.root, path)).collect())
    }

    /// Says of files of the tree whether they hold the same bytes as what was kept of them.
    pub(crate) fn compare(&self, what: Vec<Compare>) -> Result<Vec<Result<bool>>> {
        self.ask(move |tree| what.iter().map(|what| compare::same_bytes(&tree.root, what)).collect())
    }

    /// Cuts off what was appended to a file since, having copied it to `aside`.
    pub(crate) fn cut(&self, path: RelPath, end: End, aside: PathBuf) -> Result<Cut> {
        self.ask(move |tree| append::cut(&tree.root, &path, &end, &aside))?
    }

    /// Keeps databases with their sidecars, each as it is at one instant.
    pub(crate) fn keep_sets(&self, what: Vec<KeepSet>) -> Result<Vec<Result<KeptSet>>> {
        self.ask(move |tree| what.iter().map(|what| database::keep(&tree.root, what)).collect())
    }

    /// Has a database of the tree locked against everybody, until released. None when somebody has it open, or may have.
    pub(crate) fn lock_alone(&self, path: RelPath) -> Result<Option<u64>> {
        let number = self.held.fetch_add(1, Ordering::Relaxed);
        self.ask(move |tree| {
            let locked = database::lock_alone(&tree.root, &path)?;
            Ok(locked.map(|locked| {
                tree.held.insert(number, locked);
                number
            }))
        })?
    }

    /// True when some process is known to have a database open.
    pub(crate) fn is_open(&self, path: RelPath) -> Result<bool> {
        self.ask(move |tree| database::is_open(&tree.root, &path))?
    }

    /// Lets go what [`Opener::lock_alone`] locked.
    pub(crate) fn unlock(&self, number: u64) -> Result<()> {
        self.ask(move |tree| drop(tree.held.remove(&number)))
    }

    /// Writes what was kept back into a database that is locked; what it held before is copied to `aside`.
    pub(crate) fn write_back(&self, path: RelPath, kept: PathBuf, attrs: Attrs, aside: PathBuf) -> Result<()> {
        self.ask(move |tree| database::write_back(&tree.root, &path, &kept, &attrs, &aside))?
    }

    /// Copies files that are not the tree's; one that is not there is passed over.
    pub(crate) fn copy_own(&self, files: Vec<(PathBuf, PathBuf)>) -> Result<()> {
        self.ask(move |_| database::copy_own(&files))?
    }

    /// Has those of `paths` that are SQLite databases by their header locked, so that nobody uses them until released.
    /// Does not wait for it: [`Held::databases`] does.
    pub(crate) fn hold_databases(&self, paths: Vec<RelPath>) -> Result<Held> {
        let number = self.held.fetch_add(1, Ordering::Relaxed);
        let answer = self.send(move |tree| tree.hold_databases(number, paths))?;
        Ok(Held { number, answer })
    }

    /// Has databases let go, without waiting for it.
    pub(crate) fn release(&self, held: Held) {
        let _ = self.send(move |tree| drop(tree.held.remove(&held.number)));
    }

    /// Syncs each target, several at a time. Answers those that failed; one that is gone or was replaced is skipped.
    pub(crate) fn sync(&self, targets: Vec<SyncTarget>) -> Result<Vec<(SyncTarget, io::Error)>> {
        self.ask(move |tree| tree.sync(targets))
    }
}

impl Drop for Opener {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Tree {
    /// Opens a regular file; a FIFO or device must not block or act.
    fn open_file(&self, path: &RelPath) -> Result<Option<(OwnedFd, Meta)>> {
        let file = match self.root.resolve(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY) {
            Ok(file) => file,
            Err(Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let meta = root::look_at(&file).at("look at", self.root.full(path))?;
        Ok(Some((file, meta)))
    }

    fn read(&self, path: &RelPath) -> Result<Vec<u8>> {
        let full = || self.root.full(path);
        match self.root.look(path)?.map(|meta| meta.kind) {
            None => Err(Error::NotFound { path: full() }),
            Some(Kind::Directory) => Err(Error::IsADirectory { path: full() }),
            Some(Kind::Symlink | Kind::Other) => {
                Err(Error::BadPath { path: path.to_path_buf(), reason: "it is not a regular file" })
            }
            Some(Kind::File) => {
                let (file, meta) = self.open_file(path)?.ok_or_else(|| Error::NotFound { path: full() })?;
                let mut bytes = Vec::with_capacity(usize::try_from(meta.size).unwrap_or(0).saturating_add(1));
                loop {
                    match rustix::io::read(&file, rustix::buffer::spare_capacity(&mut bytes)) {
                        Ok(0) => return Ok(bytes),
                        Ok(_) if bytes.len() == bytes.capacity() => bytes.reserve(64 << 10),
                        Ok(_) | Err(Errno::INTR) => {}
                        Err(error) => return Err(error).at("read", full()),
                    }
                }
            }
        }
    }

    fn examine(&self, path: &RelPath, size: u64) -> Result<Option<Found>> {
        let Some(meta) = self.root.look(path)? else { return Ok(None) };
        let full = || self.root.full(path);
        let hash = match meta.kind {
            Kind::File if meta.size == size => match self.open_file(path)? {
                None => return Ok(None),
                Some((file, meta)) => {
                    return Ok(Some(Found { meta, hash: Some(hash_file(&file).at("read", full())?) }));
                }
            },
            Kind::Symlink => {
                let dir = path.parent().map(|parent| self.root.open_dir(&parent)).transpose()?;
                let fd = dir.as_ref().map_or(self.root.top().fd.as_fd(), |dir| dir.fd.as_fd());
                let target = rustix::fs::readlinkat(fd, path.name(), Vec::new()).at("read the symlink", full())?;
                Some(*blake3::hash(target.as_bytes()).as_bytes())
            }
            _ => None,
        };
        Ok(Some(Found { meta, hash }))
    }

    fn hold_databases(&mut self, number: u64, paths: Vec<RelPath>) -> Result<Vec<RelPath>> {
        let mut locked = Vec::new();
        let mut databases = Vec::new();
        for path in paths {
            let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
            let (file, exclusive) = match self.root.resolve(&path, OFlags::RDWR | flags) {
                Ok(file) => (file, true),
                Err(Error::NotFound { .. }) => continue,
                // Not ours to write: a shared lock still meets every writer.
                Err(_) => match self.root.resolve(&path, OFlags::RDONLY | flags) {
                    Ok(file) => (file, false),
                    // Not ours to read either: then not ours to judge. Replacing it needs no permission on it.
                    Err(_) => continue,
                },
            };
            let mut header = [0; 16];
            match rustix::io::pread(&file, &mut header, 0) {
                Ok(16) if header == *SQLITE_HEADER => {}
                _ => continue,
            }
            let full = self.root.full(&path);
            if !sys::try_lock_range(file.as_fd(), exclusive, (0, 0)).at("lock", &full)? {
                return Err(Error::DatabaseInUse { path: full });
            }
            locked.push(file);
            databases.push(path);
        }
        if !locked.is_empty() {
            self.held.insert(number, locked);
        }
        Ok(databases)
    }

    fn sync(&self, targets: Vec<SyncTarget>) -> Vec<(SyncTarget, io::Error)> {
        let queue = Mutex::new(targets);
        let failed = Mutex::new(Vec::new());
        let work = || {
            loop {
                let next = queue.lock().unwrap_or_else(|poison| poison.into_inner()).pop();
                let Some(target) = next else { return };
                if let Err(error) = self.sync_one(&target) {
                    failed.lock().unwrap_or_else(|poison| poison.into_inner()).push((target, error));
                }
            }
        };
        let workers = match queue.lock().map_or(1, |queue| queue.len()) {
            ..=FEW_SYNCS => 1,
            many => many.min(PARALLEL_SYNCS),
        };
        std::thread::scope(|scope| {
            for _ in 1..workers {
                // These share this thread's descriptor table. Without them it is slower, not wrong.
                let _ = std::thread::Builder::new().name("journal-sync".into()).spawn_scoped(scope, work);
            }
            work();
        });
        failed.into_inner().unwrap_or_else(|poison| poison.into_inner())
    }

    fn sync_one(&self, target: &SyncTarget) -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let opened = match target {
            SyncTarget::File(path, _) => self.root.resolve(path, flags),
            SyncTarget::Directory(None) => return calls::fsync(&self.root.top().fd).map_err(Into::into),
            SyncTarget::Directory(Some(path)) => self.root.resolve(path, flags | OFlags::DIRECTORY),
            SyncTarget::Own(path) => {
                let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                rustix::fs::open(path, flags, Mode::empty()).at("open", path)
            }
        };
        let file = match opened {
            Ok(file) => file,
            // Removed or replaced since: somebody else's version, not what is being settled. What remains of ours is
            // a directory entry, and the directory is synced on its own.
            Err(Error::NotFound { .. } | Error::NotADirectory { .. } | Error::SymlinkOnTheWay { .. }) => return Ok(()),
            Err(error) => {
                return Err(error.errno().map_or_else(|| io::Error::other(error), io::Error::from_raw_os_error));
            }
        };
        if let SyncTarget::File(_, ino) = target
            && root::look_at(&file)?.ino != *ino
        {
            return Ok(());
        }
        calls::fsync(&file).map_err(Into::into)
    }
}

fn hash_file(file: &OwnedFd) -> io::Result<[u8; 32]> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        match rustix::io::read(file, &mut buffer) {
            Ok(0) => return Ok(*hasher.finalize().as_bytes()),
            Ok(read) => {
                hasher.update(&buffer[..read]);
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
