//! Watches directories for files that are written to in place, and for names that come and go: a hint, never a proof.
//!
//! Not seen are stores through a mapping, writes by another name of the same file, and what happens below directories made
//! since. Where the kernel gives no more watches, or loses events, the answer is that nothing is known.
//!
//! To begin to watch a directory the kernel goes through all files of it that it has in memory, and to close a queue it waits
//! until nobody can be about to report to it. So a watch is kept for the next time: what is watched already costs a look.

use std::collections::{HashMap, HashSet};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;

/// Directories that are watched, by numbers of the caller's. A clone is another handle to the same.
#[derive(Clone, Debug)]
pub(crate) struct Watch(Arc<Mutex<Queue>>);

#[derive(Debug)]
struct Queue {
    /// None once it is being closed.
    events: Option<OwnedFd>,
    dirs: HashMap<i32, i64>,
    /// What was told since it was renewed: whoever asks may have to ask again. None once events were lost.
    touched: Option<HashSet<(i64, Vec<u8>)>>,
}

impl Watch {
    /// Watches nothing yet; none where there are too many watches already.
    pub(crate) fn new() -> Option<Self> {
        let events = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).ok()?;
        Some(Self(Arc::new(Mutex::new(Queue {
            events: Some(events),
            dirs: HashMap::new(),
            touched: Some(HashSet::new()),
        }))))
    }

    /// Watches these directories from now on, and no others; what was seen before is forgotten. False when one of them
    /// cannot be watched: then it is of no more use.
    pub(crate) fn renew(&self, dirs: impl Iterator<Item = (PathBuf, i64)>) -> bool {
        let mut queue = self.queue();
        let before = std::mem::take(&mut queue.dirs);
        let what = WatchFlags::MODIFY | WatchFlags::ATTRIB | WatchFlags::ONLYDIR | WatchFlags::DONT_FOLLOW;
        let Queue { events: Some(events), dirs: watched, .. } = &mut *queue else { return false };
        for (path, number) in dirs {
            match inotify::add_watch(&*events, path, what) {
                Ok(watch) if watched.insert(watch, number).is_none() => {}
                _ => return false,
            }
        }
        for watch in before.into_keys().filter(|watch| !watched.contains_key(watch)) {
            // That of a directory which is gone went with it.
            let _ = inotify::remove_watch(&*events, watch);
        }
        // Whether or not some of them were lost.
        while let Some(false) = queue.each(|_, _| ()) {}
        queue.touched = Some(HashSet::new());
        true
    }

    /// The names that were written to in place, or got other attributes, since it was renewed; none when events were lost.
    pub(crate) fn touched(&self) -> Option<HashSet<(i64, Vec<u8>)>> {
        let mut queue = self.queue();
        let mut touched = queue.touched.take()?;
        let told = queue.each(|watch, name| {
            if let Some(&dir) = queue.dirs.get(&watch) {
                touched.insert((dir, name.to_vec()));
            }
        });
        queue.touched = (told == Some(true)).then_some(touched);
        queue.touched.clone()
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(|poison| poison.into_inner())
    }
}

impl Queue {
    /// Takes the events that are there, with their names. False at the place where some were lost, and none when they cannot
    /// be read.
    fn each(&self, mut see: impl FnMut(i32, &[u8])) -> Option<bool> {
        let mut buffer = [MaybeUninit::uninit(); 1 << 16];
        let mut events = inotify::Reader::new(self.events.as_ref()?, &mut buffer);
        loop {
            match events.next() {
                Ok(event) if event.events().contains(ReadFlags::QUEUE_OVERFLOW) => return Some(false),
                Ok(event) => {
                    if let Some(name) = event.file_name() {
                        see(event.wd(), name.to_bytes());
                    }
                }
                Err(Errno::AGAIN) => return Some(true),
                Err(Errno::INTR) => {}
                Err(_) => return None,
            }
        }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        if let Some(events) = self.events.take() {
            unwatch(events);
        }
    }
}

/// Leaves the closing of watches to a thread, because it takes some ten milliseconds on an idle machine.
pub(super) fn unwatch(events: OwnedFd) {
    // Without a thread it is closed here, with the closure.
    let _ = std::thread::Builder::new().name("journal-unwatch".into()).spawn(move || drop(events));
}
