//! Watches directories for files that are written to in place, and for names that come and go: a hint, never a proof.
//!
//! Not seen are stores through a mapping, writes by another name of the same file, and what happens below directories made
//! since. Where the kernel gives no more watches, or loses events, the answer is that nothing is known.

use std::collections::{HashMap, HashSet};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;

use crate::path::RelPath;

/// Directories that are watched, by numbers of the caller's.
#[derive(Debug)]
pub(crate) struct Watch {
    queue: OwnedFd,
    dirs: HashMap<i32, i64>,
}

impl Watch {
    /// Begins to watch; none where there are too many watches already.
    pub(crate) fn new() -> Option<Self> {
        let queue = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).ok()?;
        Some(Self { queue, dirs: HashMap::new() })
    }

    /// Watches one more directory. False when it cannot be.
    pub(crate) fn add(&mut self, path: &Path, number: i64) -> bool {
        let what = WatchFlags::MODIFY | WatchFlags::ATTRIB | WatchFlags::ONLYDIR | WatchFlags::DONT_FOLLOW;
        match inotify::add_watch(&self.queue, path, what) {
            Ok(watch) => self.dirs.insert(watch, number).is_none(),
            Err(_) => false,
        }
    }

    /// The names that were written to in place, or got other attributes, since the beginning; none when events were lost.
    pub(crate) fn touched(&self) -> Option<HashSet<(i64, Vec<u8>)>> {
        let mut touched = HashSet::new();
        let mut buffer = [MaybeUninit::uninit(); 1 << 16];
        let mut events = inotify::Reader::new(&self.queue, &mut buffer);
        loop {
            match events.next() {
                Ok(event) if event.events().contains(ReadFlags::QUEUE_OVERFLOW) => return None,
                Ok(event) => {
                    if let (Some(&dir), Some(name)) = (self.dirs.get(&event.wd()), event.file_name()) {
                        touched.insert((dir, name.to_bytes().to_vec()));
                    }
                }
                Err(Errno::AGAIN) => return Some(touched),
                Err(Errno::INTR) => {}
                Err(_) => return None,
            }
        }
    }
}

/// Directories of the tree in which names are watched.
#[derive(Debug)]
pub(crate) struct NameWatch {
    queue: OwnedFd,
    dirs: HashMap<i32, RelPath>,
}

/// What was seen of one name.
#[derive(Clone, Copy, Debug)]
struct Seen {
    /// It was not there before.
    came: bool,
    is_there: bool,
}

impl NameWatch {
    /// Begins to watch; none where there are too many watches already.
    pub(crate) fn new() -> Option<Self> {
        let Watch { queue, .. } = Watch::new()?;
        Some(Self { queue, dirs: HashMap::new() })
    }

    /// Watches one more directory. False when it cannot be.
    pub(crate) fn add(&mut self, full: &Path, dir: &RelPath) -> bool {
        let what = WatchFlags::CREATE | WatchFlags::DELETE | WatchFlags::MOVED_FROM | WatchFlags::MOVED_TO;
        match inotify::add_watch(&self.queue, full, what | WatchFlags::ONLYDIR | WatchFlags::DONT_FOLLOW) {
            Ok(watch) => self.dirs.insert(watch, dir.clone()).is_none(),
            Err(_) => false,
        }
    }

    /// The directories in which a name came, went or was changed that is not `known`; one that came and went again does not
    /// count. What was lost is not among them.
    pub(crate) fn changed(&self, known: impl Fn(&RelPath, &[u8]) -> bool) -> HashSet<RelPath> {
        let mut names: HashMap<(i32, Vec<u8>), Seen> = HashMap::new();
        self.each(|watch, flags, name| {
            let is_there = flags.intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO);
            if is_there || flags.intersects(ReadFlags::DELETE | ReadFlags::MOVED_FROM) {
                let seen = names.entry((watch, name.to_vec())).or_insert(Seen { came: is_there, is_there });
                seen.is_there = is_there;
            }
        });
        let lasting = names.into_iter().filter(|(_, seen)| seen.is_there || !seen.came);
        let of_others = lasting.filter_map(|((watch, name), _)| {
            let dir = self.dirs.get(&watch)?;
            (!known(dir, &name)).then(|| dir.clone())
        });
        of_others.collect()
    }

    /// Forgets the directories, for another use: to close a queue takes the kernel some milliseconds.
    pub(crate) fn empty(mut self) -> Self {
        for (watch, _) in self.dirs.drain() {
            // One that was removed is not watched any more.
            let _ = inotify::remove_watch(&self.queue, watch);
        }
        self.each(|_, _, _| ());
        self
    }

    fn each(&self, mut see: impl FnMut(i32, ReadFlags, &[u8])) {
        let mut buffer = [MaybeUninit::uninit(); 1 << 14];
        let mut events = inotify::Reader::new(&self.queue, &mut buffer);
        loop {
            match events.next() {
                Ok(event) => see(event.wd(), event.events(), event.file_name().map_or(b"", |name| name.to_bytes())),
                Err(Errno::INTR) => {}
                Err(_) => return,
            }
        }
    }
}
