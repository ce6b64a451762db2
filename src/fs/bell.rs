//! Waiting for news: somebody of this process rings, somebody of any process writes to a file or rings at a directory, or ends.
//!
//! A file that is written to is a hint: the news may be of no interest, or be visible only later, once the disk has it, and that
//! makes no sound. So who was woken by it looks again and again, less and less often, and is not woken again at once.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::watch::unwatch;
use crate::error::{IoContext, Result};
use crate::time::{Deadline, Process};

/// After what time who was woken by a write looks once more; then after twice that, and so on. A disk has it by then.
const AGAIN: Duration = Duration::from_micros(250);
/// Once that is so much, they are woken by writes again.
const QUIET: Duration = Duration::from_millis(5);
/// So often they look however quiet it is.
const LOOK: Duration = Duration::from_secs(10);
/// And where nobody tells them of other processes.
const LOOK_BLIND: Duration = Duration::from_millis(20);
/// And where they wait for a process that cannot be watched, one of another container, say.
const LOOK_UNSEEN: Duration = Duration::from_millis(100);
/// One that can be may begin another program in its place, which is no end of the process.
const LOOK_SEEN: Duration = Duration::from_secs(1);

/// Rings, from any thread. A clone is the same bell.
#[derive(Clone, Debug)]
pub(crate) struct Bell(Arc<File>);

/// Rings for as long as somebody has the bell itself.
#[derive(Clone, Debug)]
pub(crate) struct WeakBell(Weak<File>);

/// What hears it.
#[derive(Debug)]
pub(crate) struct Listener {
    bell: Bell,
    /// Of the file that is written to.
    written: Events,
    /// A file that goes, and comes again: watched anew before each look.
    fleeting: Option<PathBuf>,
    /// Of the directory at which others ring.
    rung: Events,
    /// There are too many watches already: nobody tells of other processes.
    blind: bool,
    ends: Mutex<End>,
}

/// What a watch tells; none where there is no watch. Whoever has heard what it waited for does not wait until it is closed.
#[derive(Debug)]
struct Events(Option<OwnedFd>);

/// The end of another process, which is waited for, too.
#[derive(Debug)]
enum End {
    /// Nobody's.
    OfNobody,
    Of(Process, OwnedFd),
    /// That of one who cannot be watched.
    Unseen(Process),
}

/// Why somebody who waited goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    Rung,
    /// Somebody, of whatever process, has written to the file.
    Written,
    Nothing,
}

impl Bell {
    pub(crate) fn new() -> Result<Self> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).at("make a bell for", "a thread")?;
        Ok(Self(Arc::new(bell.into())))
    }

    pub(crate) fn ring(&self) {
        // It is full only when it rings already.
        let _ = (&*self.0).write(&1_u64.to_ne_bytes());
    }

    pub(crate) fn downgrade(&self) -> WeakBell {
        WeakBell(Arc::downgrade(&self.0))
    }

    /// Listens to it, and for writes to the file at `path`.
    pub(crate) fn listen(&self, path: &Path) -> Listener {
        let written = watch(path, WRITES);
        Listener { blind: written.0.is_none(), written, ..self.listen_alone() }
    }

    /// The same where the file need not be there, and may be another one later.
    pub(crate) fn listen_on(&self, path: &Path) -> Listener {
        let directory = path.parent().unwrap_or(Path::new("/"));
        let written = watch(directory, WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::ONLYDIR);
        Listener { blind: written.0.is_none(), written, fleeting: Some(path.to_owned()), ..self.listen_alone() }
    }

    /// Listens to it alone.
    pub(crate) fn listen_alone(&self) -> Listener {
        Listener {
            bell: self.clone(),
            written: Events(None),
            fleeting: None,
            rung: Events(None),
            blind: false,
            ends: Mutex::new(End::OfNobody),
        }
    }
}

fn watch(path: &Path, what: WatchFlags) -> Events {
    let watch = || {
        let events = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).ok()?;
        inotify::add_watch(&events, path, what).ok()?;
        Some(events)
    };
    Events(watch())
}

impl Drop for Events {
    fn drop(&mut self) {
        if let Some(events) = self.0.take() {
            unwatch(events);
        }
    }
}

const WRITES: WatchFlags = WatchFlags::MODIFY.union(WatchFlags::DONT_FOLLOW);

impl WeakBell {
    /// False when nobody has it any more.
    pub(crate) fn ring(&self) -> bool {
        self.0.upgrade().map(|bell| Bell(bell).ring()).is_some()
    }

    pub(crate) fn is_heard(&self) -> bool {
        self.0.strong_count() > 0
    }
}

impl Listener {
    pub(crate) fn bell(&self) -> &Bell {
        &self.bell
    }

    /// A watch is of the file, not of its name. While it is not there, that it comes is heard.
    fn watch_anew(&self) {
        if let (Some(written), Some(path)) = (&self.written.0, &self.fleeting) {
            let _ = inotify::add_watch(written, path, WRITES);
        }
    }

    /// Listens at a directory, too: whoever sets its times, of whatever process, rings.
    pub(crate) fn at(self, dir: &Path) -> Self {
        let rung = watch(dir, WatchFlags::ATTRIB | WatchFlags::ONLYDIR);
        Self { blind: self.blind || rung.0.is_none(), rung, ..self }
    }

    /// Is woken, from now on, when this process ends; none: when none does.
    pub(crate) fn wake_at_end_of(&self, process: Option<Process>) {
        let mut ends = self.ends();
        match (&*ends, &process) {
            (End::OfNobody, None) => {}
            (End::Of(known, _) | End::Unseen(known), Some(process)) if known == process => {}
            _ => *ends = process.map_or(End::OfNobody, End::of),
        }
    }

    fn ends(&self) -> std::sync::MutexGuard<'_, End> {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// After what time to look, however quiet it is.
    fn longest(&self) -> Duration {
        match (self.blind, &*self.ends()) {
            (true, _) => LOOK_BLIND,
            (_, End::Unseen(_)) => LOOK_UNSEEN,
            (_, End::Of(..)) => LOOK_SEEN,
            _ => LOOK,
        }
    }

    /// Waits until `found` says so, at most until `deadline`. It is asked at once, when it is rung, and where `others` are of
    /// interest when the file is written to, some times after that, and now and then anyway.
    pub(crate) fn wait_until(&self, deadline: Deadline, others: bool, mut found: impl FnMut(Heard) -> bool) {
        let (mut pause, mut heard) = (LOOK, Heard::Nothing);
        loop {
            self.watch_anew();
            if found(heard) || deadline.passed() {
                break;
            }
            let longest = self.longest();
            let listens = others && pause >= QUIET;
            let at_most = if others { pause.min(longest) } else { Duration::MAX };
            heard = self.wait(deadline.left().min(at_most), listens);
            pause = match heard {
                Heard::Written => AGAIN,
                Heard::Nothing => pause.saturating_mul(2).min(longest),
                Heard::Rung => pause,
            };
        }
    }

    /// Waits until it is rung, or the file is written to where that is of interest; at most this long.
    fn wait(&self, at_most: Duration, others: bool) -> Heard {
        let at_most = Timespec::try_from(at_most).ok();
        let mut ends = self.ends();
        let end = match &*ends {
            End::Of(_, end) => Some(end),
            _ => None,
        };
        let sources = [Some(self.bell.0.as_fd()), self.written.0.as_ref().filter(|_| others).map(AsFd::as_fd)];
        let rare = [self.rung.0.as_ref().map(AsFd::as_fd), end.map(AsFd::as_fd)];
        let sources: Vec<_> = sources.into_iter().chain(rare).collect();
        let mut fds: Vec<PollFd<'_>> =
            sources.iter().flatten().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
        // Interrupted, it has heard nothing, and is asked again.
        if poll(&mut fds, at_most.as_ref()).is_err() {
            return Heard::Nothing;
        }
        let mut ready = fds.iter().map(|fd| !fd.revents().is_empty());
        let [bell, written, rung, ended] =
            [0, 1, 2, 3].map(|n| sources.get(n).is_some_and(Option::is_some) && ready.next() == Some(true));
        if written || bell || rung {
            forget(&self.written);
            forget(&self.rung);
        }
        if bell {
            let _ = (&*self.bell.0).read(&mut [0; 8]);
        }
        if ended {
            // Once is enough.
            *ends = End::OfNobody;
        }
        match (bell || rung || ended, written) {
            (true, _) => Heard::Rung,
            (_, true) => Heard::Written,
            _ => Heard::Nothing,
        }
    }
}

impl End {
    fn of(process: Process) -> Self {
        let number = i32::try_from(process.pid()).ok().and_then(Pid::from_raw);
        let watched = number.and_then(|number| pidfd_open(number, PidfdFlags::empty()).ok());
        // Whoever has the number now may be somebody else, and here it may be that of nobody.
        match watched {
            Some(watched) if process.lives_here() => Self::Of(process, watched),
            _ => Self::Unseen(process),
        }
    }
}

/// Drops what a watch has told.
fn forget(watch: &Events) {
    let Some(watch) = &watch.0 else { return };
    let mut buffer = [0; 4096];
    while rustix::io::read(watch, &mut buffer).is_ok_and(|read| read > 0) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a file of a test")]
    fn it_is_heard_once_and_so_is_what_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        std::fs::write(&path, "a").unwrap();
        let bell = Bell::new().unwrap();
        let listener = bell.listen(&path);
        assert_eq!(listener.wait(Duration::ZERO, true), Heard::Nothing);
        bell.ring();
        bell.ring();
        assert_eq!(listener.wait(LONG, true), Heard::Rung);
        assert_eq!(listener.wait(Duration::ZERO, true), Heard::Nothing);
        std::fs::write(&path, "b").unwrap();
        assert_eq!(listener.wait(Duration::ZERO, false), Heard::Nothing, "it is of no interest");
        assert_eq!(listener.wait(LONG, true), Heard::Written);
        assert_eq!(listener.wait(Duration::from_millis(5), true), Heard::Nothing);
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a file of a test")]
    fn a_file_is_heard_that_comes_goes_and_comes_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let listener = Bell::new().unwrap().listen_on(&path);
        for _ in 0..2 {
            let mut looks = Vec::new();
            listener.wait_until(Deadline::after(LONG), true, |heard| {
                looks.push(heard);
                match looks.len() {
                    1 => std::fs::write(&path, "").unwrap(),
                    // The watch of the directory says nothing of that one.
                    2 => std::fs::write(&path, "a").unwrap(),
                    _ => {}
                }
                looks.len() == 3
            });
            assert_eq!(looks[1], Heard::Written, "it came");
            forget(&listener.written);
            std::fs::write(&path, "ab").unwrap();
            assert_eq!(listener.wait(LONG, true), Heard::Written, "it was written to");
            std::fs::remove_file(&path).unwrap();
        }
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a file of a test")]
    fn after_a_write_it_is_asked_again_though_nothing_more_is_heard() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        std::fs::write(&path, "a").unwrap();
        let listener = Bell::new().unwrap().listen(&path);
        std::fs::write(&path, "b").unwrap();
        let mut heard = Vec::new();
        listener.wait_until(Deadline::after(LONG), true, |what| {
            heard.push(what);
            heard.len() == 6
        });
        let mut expected = [Heard::Nothing; 6];
        expected[1] = Heard::Written;
        assert_eq!(heard, expected);
        let mut asked = 0;
        listener.wait_until(Deadline::after(Duration::from_millis(50)), false, |_| {
            asked += 1;
            false
        });
        assert_eq!(asked, 2, "in the beginning and in the end");
    }
}
