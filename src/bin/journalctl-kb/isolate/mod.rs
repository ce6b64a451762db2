//! Runs a command in namespaces of its own: over overlays, and so that nothing it starts outlives it unnoticed.
//!
//! 1. [`start`] runs this program once more, as the hidden verb [`inside`]. That unshares mount and pid namespace (for an
//!    ordinary user within a user namespace), forks, and is gone: its child is process 1 of the new pid namespace, and a child of
//!    ours, because we adopt what loses its parent.
//! 2. Process 1 waits until it is told to go on, mounts what is to be mounted, and runs the command.
//! 3. When that has ended it ends what is left, and tells how the command ended.
//!
//! Both ends talk in lines over a socket: `pid N`, `go`, `failed …` or `running`, then how it ended.

mod init;
mod mounts;
mod sys;

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitOptions};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::exfiltrator::origin::WithOrigin;
use signal_hook::iterator::{Handle, SignalsInfo};

pub(crate) use init::{Arguments, run as inside};

/// The name of the hidden verb.
pub(crate) const VERB: &str = "exec-inside";

/// How long processes that the command left behind may go on, and how long after SIGTERM.
pub(crate) const GRACE: Duration = Duration::from_secs(1);
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);
pub(crate) const PAUSE: Duration = Duration::from_millis(5);

/// What the command sees in place of what is there.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct View {
    /// Mount an overlay: its lower directory, where it is also mounted, its upper one, and one to work in
    #[arg(long = "layer", num_args = 3, value_names = ["LOWER", "UPPER", "WORK"])]
    pub(crate) layers: Vec<PathBuf>,
    /// Let nothing be seen in this directory or file
    #[arg(long = "cover", value_name = "DIR")]
    pub(crate) covers: Vec<PathBuf>,
    /// Let this file be seen as it is, through the overlays
    #[arg(long = "through", value_name = "FILE")]
    pub(crate) through: Vec<PathBuf>,
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

/// Makes the namespaces. An error says why they are not to be had.
pub(crate) fn start(view: &View, command: &[OsString]) -> Result<Namespaces, String> {
    let told = |what: &str, error: &dyn std::fmt::Display| format!("{what}: {error}");
    let (ours, theirs) = UnixStream::pair().map_err(|e| told("socketpair", &e))?;
    // Inherited on purpose, until it is closed here.
    let lent = rustix::io::fcntl_dupfd_cloexec(theirs.as_fd(), 3).map_err(|e| told("dup", &e))?;
    rustix::io::fcntl_setfd(&lent, rustix::io::FdFlags::empty()).map_err(|e| told("fcntl", &e))?;
    let mut inside = Command::new("/proc/self/exe");
    inside.arg(VERB).arg("--channel").arg(lent.as_raw_fd().to_string());
    for layer in view.layers.chunks(3) {
        inside.arg("--layer").args(layer);
    }
    for cover in &view.covers {
        inside.arg("--cover").arg(cover);
    }
    for through in &view.through {
        inside.arg("--through").arg(through);
    }
    let mut spawned = inside.arg("--").args(command).spawn().map_err(|e| told("/proc/self/exe", &e))?;
    drop((lent, theirs));
    let mut channel = BufReader::new(ours);
    let first = line(&mut channel);
    // It only makes the namespaces, and has ended by now.
    spawned.wait().map_err(|e| told("wait", &e))?;
    let init = first.strip_prefix("pid ").and_then(|pid| Pid::from_raw(pid.parse().ok()?));
    match init {
        Some(init) => Ok(Namespaces { init, channel }),
        None => Err(first.strip_prefix("failed ").unwrap_or("it ended without a word").to_owned()),
    }
}

impl Namespaces {
    /// Has the mounts made and the command run. An error says why the mounts could not be made; nothing was run then.
    pub(crate) fn go(mut self) -> Result<Running, String> {
        let sent = self.channel.get_mut().write_all(b"go\n");
        let answer = line(&mut self.channel);
        if let (Ok(()), "running") = (sent, answer.as_str()) {
            return Ok(Running { init: self.init, channel: self.channel });
        }
        reap(self.init);
        Err(answer.strip_prefix("failed ").unwrap_or("it ended without a word").to_owned())
    }
}

/// A command at work.
pub(crate) struct Running {
    pub(crate) init: Pid,
    channel: BufReader<UnixStream>,
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

/// Passes on to a process what somebody sends to this one, until it is dropped. What a terminal sends to all of its foreground
/// processes reaches that one by itself.
pub(crate) struct PassSignals {
    handle: Handle,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl PassSignals {
    pub(crate) fn to(pid: impl Fn() -> Option<Pid> + Send + 'static) -> std::io::Result<Self> {
        let mut signals = SignalsInfo::<WithOrigin>::new([SIGHUP, SIGINT, SIGQUIT, SIGTERM])?;
        let handle = signals.handle();
        let thread = std::thread::Builder::new().name("pass-signals".into()).spawn(move || {
            for origin in signals.forever() {
                // A signal without a sender is the kernel's own.
                if let (Some(_), Some(signal), Some(pid)) =
                    (origin.process, Signal::from_named_raw(origin.signal), pid())
                {
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
