//! Runs a command in namespaces of its own: over overlays, and so that nothing it starts outlives it unnoticed.
//!
//! 1. [`prepare`] forks while this process has one thread. The child unshares mount and pid namespace (for an ordinary user within
//!    a user namespace), forks, and is gone: its own child is process 1 of the new pid namespace, and a child of ours, because we
//!    adopt what loses its parent. It waits; meanwhile we open the journal.
//! 2. Process 1 is told what to mount, and is given the lock, which all inherit that it starts. It mounts, and runs the command.
//! 3. When that has ended it ends what is left, and tells how the command ended.
//!
//! Both ends talk over a socket: `pid N`, the [`View`], `failed …` or `running`, then how it ended.

mod init;
mod mounts;
mod sys;

use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use rustix::process::{Pid, Signal, WaitOptions};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::exfiltrator::origin::WithOrigin;
use signal_hook::iterator::{Handle, SignalsInfo};

/// How long processes that the command left behind may go on, and how long after SIGTERM.
pub(crate) const GRACE: Duration = Duration::from_secs(1);
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);
pub(crate) const PAUSE: Duration = Duration::from_millis(5);
/// How many pauses a command may take to be started.
const STARTING: usize = 200;

/// What the command sees in place of what is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct View {
    /// Overlays: the lower directory, where each is also mounted, the upper one, and one to work in.
    pub(crate) layers: Vec<[PathBuf; 3]>,
    /// Directories and files that are seen as empty.
    pub(crate) covers: Vec<PathBuf>,
    /// Files that are seen as they are, through the overlays.
    pub(crate) through: Vec<PathBuf>,
}

impl View {
    /// As words, each ended by a zero, which no path can hold; an empty one ends them all.
    fn message(&self) -> Vec<u8> {
        let mut message = Vec::new();
        let mut say = |kind: &str, path: &Path| {
            for word in [kind.as_bytes(), path.as_os_str().as_bytes()] {
                message.extend_from_slice(word);
                message.push(0);
            }
        };
        for [lower, upper, work] in &self.layers {
            say("lower", lower);
            say("upper", upper);
            say("work", work);
        }
        self.covers.iter().for_each(|path| say("cover", path));
        self.through.iter().for_each(|path| say("through", path));
        message.push(0);
        message
    }

    fn parse(message: &[u8]) -> Option<Self> {
        let words: Vec<&[u8]> = message.strip_suffix(b"\0")?.split_inclusive(|&byte| byte == 0).collect();
        let mut view = Self::default();
        let mut layer = Vec::with_capacity(3);
        for pair in words.chunks(2) {
            let [kind, path] = pair else { return None };
            let path = PathBuf::from(OsStr::from_bytes(path.strip_suffix(b"\0")?));
            match kind.strip_suffix(b"\0")? {
                b"lower" | b"upper" | b"work" => layer.push(path),
                b"cover" => view.covers.push(path),
                b"through" => view.through.push(path),
                _ => return None,
            }
            if layer.len() == 3 {
                view.layers.push(std::mem::take(&mut layer).try_into().ok()?);
            }
        }
        Some(view)
    }
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Exit(u8),
    Signal(u8),
    /// It could not be run at all, for this reason of the system's.
    NotRun(i32),
}

impl From<ExitStatus> for Ended {
    fn from(status: ExitStatus) -> Self {
        let small = |number: i32| u8::try_from(number).unwrap_or(u8::MAX);
        match status.code() {
            Some(code) => Self::Exit(small(code)),
            None => Self::Signal(small(status.signal().unwrap_or_default())),
        }
    }
}

impl Ended {
    fn line(self) -> String {
        match self {
            Self::Exit(code) => format!("exit {code}\n"),
            Self::Signal(signal) => format!("signal {signal}\n"),
            Self::NotRun(errno) => format!("errno {errno}\n"),
        }
    }

    fn parse(line: &str) -> Option<Self> {
        let (word, number) = line.trim_end().split_once(' ')?;
        match word {
            "exit" => Some(Self::Exit(number.parse().ok()?)),
            "signal" => Some(Self::Signal(number.parse().ok()?)),
            "errno" => Some(Self::NotRun(number.parse().ok()?)),
            _ => None,
        }
    }
}

/// Namespaces that wait for their command.
#[derive(Debug)]
pub(crate) struct Namespaces {
    /// Process 1 in them.
    pub(crate) init: Pid,
    channel: BufReader<UnixStream>,
}

/// A process that makes the namespaces.
#[derive(Debug)]
pub(crate) struct Prepared {
    maker: Pid,
    channel: BufReader<UnixStream>,
}

/// Has the namespaces made that the command is to be run in. To be called while this process has one thread.
pub(crate) fn prepare(command: &[OsString]) -> Result<Prepared, String> {
    let told = |what: &str, error: &dyn std::fmt::Display| format!("{what}: {error}");
    match std::fs::read_dir("/proc/self/task").map(Iterator::count) {
        Ok(1) => {}
        Ok(_) => return Err("this process has several threads".to_owned()),
        Err(error) => return Err(told("cannot read /proc/self", &error)),
    }
    let adopts = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
    adopts.map_err(|e| told("cannot adopt processes", &e))?;
    let (ours, theirs) = UnixStream::pair().map_err(|e| told("socketpair", &e))?;
    match sys::fork().map_err(|e| told("cannot fork", &e))? {
        Some(maker) => Ok(Prepared { maker, channel: BufReader::new(ours) }),
        None => {
            drop(ours);
            init::make(theirs, command);
            // IMPORTANT: the journal, the terminal and all else are the parent's.
            std::process::exit(0);
        }
    }
}

impl Prepared {
    /// Waits for the namespaces. An error says why they are not to be had.
    pub(crate) fn namespaces(mut self) -> Result<Namespaces, String> {
        let first = line(&mut self.channel);
        // It only makes the namespaces, and has ended by now.
        reap(self.maker);
        let init = first.strip_prefix("pid ").and_then(|pid| Pid::from_raw(pid.parse().ok()?));
        match init {
            Some(init) => Ok(Namespaces { init, channel: self.channel }),
            None => Err(first.strip_prefix("failed ").unwrap_or("it ended without a word").to_owned()),
        }
    }
}

impl Namespaces {
    /// Has the mounts made and the command run, which holds the lock with all that it starts. An error says why the mounts
    /// could not be made; nothing was run then.
    pub(crate) fn go(mut self, view: &View, lock: &OwnedFd) -> Result<Running, String> {
        let sent = send(self.channel.get_ref(), &view.message(), lock);
        let answer = line(&mut self.channel);
        if let (Ok(()), Some(who)) = (sent, answer.strip_prefix("running ")) {
            return Ok(Running { init: self.init, channel: self.channel, by_user: who == "user" });
        }
        reap(self.init);
        Err(answer.strip_prefix("failed ").unwrap_or("it ended without a word").to_owned())
    }
}

/// Sends a message, with a descriptor on its first byte.
fn send(channel: &UnixStream, message: &[u8], descriptor: &OwnedFd) -> rustix::io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors = [descriptor.as_fd()];
    ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    let mut sent = rustix::net::sendmsg(channel, &[IoSlice::new(message)], &mut ancillary, SendFlags::NOSIGNAL)?;
    while sent < message.len() {
        sent += rustix::net::send(channel, &message[sent..], SendFlags::NOSIGNAL)?;
    }
    Ok(())
}

/// A command at work.
pub(crate) struct Running {
    init: Pid,
    channel: BufReader<UnixStream>,
    /// In a user namespace.
    pub(crate) by_user: bool,
}

impl Running {
    /// Waits until it and all it started have ended.
    pub(crate) fn wait(mut self) -> Ended {
        let mut ended = None;
        loop {
            match line(&mut self.channel).as_str() {
                "" => break,
                line => ended = Ended::parse(line).or(ended),
            }
        }
        reap(self.init);
        // Without a word: it was killed, and everything in the namespace with it.
        ended.unwrap_or(Ended::Signal(9))
    }
}

/// One line, without its end; empty where there is none.
fn line(channel: &mut BufReader<UnixStream>) -> String {
    let mut line = String::new();
    let _ = channel.read_line(&mut line);
    line.trim_end().to_owned()
}

fn reap(pid: Pid) {
    while let Err(rustix::io::Errno::INTR) = rustix::process::waitpid(Some(pid), WaitOptions::empty()) {}
}

/// The signals that this process was told to ignore, by `nohup` for instance: they stay so, for the command too.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

/// Passes on to a process what somebody sends to this one, until it is dropped. What a terminal sends to all of its foreground
/// processes reaches that one by itself.
pub(crate) struct PassSignals {
    handle: Handle,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl PassSignals {
    pub(crate) fn to(pid: impl Fn() -> Option<Pid> + Send + 'static) -> std::io::Result<Self> {
        let ignored = ignored();
        let passed = [SIGHUP, SIGINT, SIGQUIT, SIGTERM].into_iter().filter(|signal| ignored >> (signal - 1) & 1 == 0);
        let mut signals = SignalsInfo::<WithOrigin>::new(passed)?;
        let handle = signals.handle();
        let thread = std::thread::Builder::new().name("pass-signals".into()).spawn(move || {
            for origin in signals.forever() {
                // A signal without a sender is the kernel's own.
                let (Some(_), Some(signal)) = (origin.process, Signal::from_named_raw(origin.signal)) else { continue };
                // It may not have been started yet.
                let started = (0..STARTING).find_map(|n| {
                    std::thread::sleep(if n == 0 { Duration::ZERO } else { PAUSE });
                    pid()
                });
                if let Some(pid) = started {
                    // Gone by now: then it needs no signal.
                    let _ = rustix::process::kill_process(pid, signal);
                }
            }
        })?;
        Ok(Self { handle, thread: Some(thread) })
    }
}

impl Drop for PassSignals {
    fn drop(&mut self) {
        self.handle.close();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_comes_across_as_it_was() {
        let path = |bytes: &[u8]| PathBuf::from(OsStr::from_bytes(bytes));
        let layer = || [path(b"/a,b:c\\ \xff"), path(b"upper\n"), path(b"work")];
        let some =
            View { layers: vec![layer(), layer()], covers: vec![path(b"/c")], through: vec![path(b"t"), path(b"u")] };
        for view in [View::default(), some] {
            assert_eq!(View::parse(&view.message()), Some(view.clone()), "{view:?}");
        }
        for bad in [&b""[..], b"x", b"lower\0\0", b"what\0x\0\0"] {
            assert_eq!(View::parse(bad), None, "{bad:?}");
        }
    }
}
