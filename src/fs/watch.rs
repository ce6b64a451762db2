//! Watches directories for files that are written to in place: a hint, never a proof.
//!
//! Not seen are stores through a mapping, writes by another name of the same file, and what happens below directories made
//! since. Where the kernel gives no more watches, or loses events, the answer is that nothing is known.

use std::collections::{HashMap, HashSet};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;

/// Directories that are watched, by numbers of the caller's.
#[derive(Debug)]
pub(crate) struct Watch {
    /// None once it is being closed.
    queue: Option<OwnedFd>,
    dirs: HashMap<i32, i64>,
}

impl Watch {
    /// Begins to watch; none where there are too many watches already.
    pub(crate) fn new() -> Option<Self> {
        let queue = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).ok()?;
        Some(Self { queue: Some(queue), dirs: HashMap::new() })
    }

    /// Watches one more directory. False when it cannot be.
    pub(crate) fn add(&mut self, path: &Path, number: i64) -> bool {
        let what = WatchFlags::MODIFY | WatchFlags::ATTRIB | WatchFlags::ONLYDIR | WatchFlags::DONT_FOLLOW;
        let added = self.queue.as_ref().map(|queue| inotify::add_watch(queue, path, what));
        match added {
            Some(Ok(watch)) => self.dirs.insert(watch, number).is_none(),
            _ => false,
        }
    }

    /// The names that were written to in place, or got other attributes, since the beginning; none when events were lost.
    pub(crate) fn touched(&self) -> Option<HashSet<(i64, Vec<u8>)>> {
        let mut touched = HashSet::new();
        let mut buffer = [MaybeUninit::uninit(); 1 << 16];
        let mut events = inotify::Reader::new(self.queue.as_ref()?, &mut buffer);
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

impl Drop for Watch {
    /// Leaves the closing to a thread: the kernel waits in it until nobody can be about to report an event, some ten
    /// milliseconds on an idle machine.
    fn drop(&mut self) {
        let queue = self.queue.take();
        // Without a thread it is closed here, with the closure.
        let _ = std::thread::Builder::new().name("journal-unwatch".into()).spawn(move || drop(queue));
    }
}
