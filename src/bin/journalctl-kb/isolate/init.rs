//! The hidden verb: makes the namespaces, and is process 1 in them.
#![expect(clippy::disallowed_methods, reason = "what it writes are files of the kernel's, in /proc")]

use std::ffi::OsString;
use std::io::{BufReader, Write};
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitOptions};
use rustix::thread::UnshareFlags;

use super::{Ended, GRACE, PATIENCE, PAUSE, PassSignals, View, line, mounts, sys};
use crate::exit::{Failure, Outcome};

/// What it is told.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The socket to the process that started this one
    #[arg(long, value_name = "FD")]
    channel: RawFd,
    #[command(flatten)]
    view: View,
    /// The command with its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<Outcome, Failure> {
    let Some(mut channel) = sys::inherited(arguments.channel) else {
        return Err(Failure::Usage("this verb is for journalctl-kb's own use"));
    };
    // The command has no business with it.
    let alone = rustix::io::fcntl_setfd(&channel, rustix::io::FdFlags::CLOEXEC).map_err(|e| e.to_string());
    match alone.and_then(|()| enter()) {
        Err(why) => tell(&mut channel, &format!("failed {why}\n")),
        Ok((_, Some(init))) => tell(&mut channel, &format!("pid {}\n", init.as_raw_nonzero())),
        Ok((user, None)) => serve(channel, user, arguments),
    }
    Ok(Outcome::Fine)
}

/// Who is not there any more needs to be told nothing.
fn tell(channel: &mut UnixStream, line: &str) {
    let _ = channel.write_all(line.as_bytes());
}

/// Makes the namespaces, and forks: the child, which gets no process id here, is their process 1. Answers too whether it took a
/// user namespace.
fn enter() -> Result<(bool, Option<Pid>), String> {
    let both = UnshareFlags::NEWNS | UnshareFlags::NEWPID;
    let user = match sys::unshare(both) {
        Ok(()) => false,
        Err(rustix::io::Errno::PERM) => {
            let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
            sys::unshare(both | UnshareFlags::NEWUSER).map_err(|e| format!("no namespaces for this user: {e}"))?;
            // Everybody stays who they are; others' files belong to nobody.
            for (file, map) in [
                ("setgroups", "deny".into()),
                ("uid_map", format!("{uid} {uid} 1")),
                ("gid_map", format!("{gid} {gid} 1")),
            ] {
                let path = format!("/proc/self/{file}");
                std::fs::write(&path, map).map_err(|e| format!("cannot write {path}: {e}"))?;
            }
            true
        }
        Err(error) => return Err(format!("no namespaces here: {error}")),
    };
    let child = sys::fork().map_err(|e| format!("cannot fork: {e}"))?;
    Ok((user, child))
}

/// Process 1: mounts, runs the command, ends what it left, tells how it ended.
fn serve(channel: UnixStream, user: bool, arguments: &Arguments) {
    let mut channel = BufReader::new(channel);
    // Nothing is run for somebody who is not there any more.
    if line(&mut channel) != "go" {
        return;
    }
    if let Err(why) = mounts::mount(&arguments.view, user) {
        return tell(channel.get_mut(), &format!("failed {why}\n"));
    }
    tell(channel.get_mut(), "running\n");
    let ended = match run_command(&arguments.command) {
        Ok(status) => status,
        Err(error) => Ended::NotRun(error.raw_os_error().unwrap_or(libc::EINVAL)),
    };
    tell(channel.get_mut(), &ended.line());
}

fn run_command(words: &[OsString]) -> std::io::Result<Ended> {
    let [program, arguments @ ..] = words else { return Err(std::io::ErrorKind::InvalidInput.into()) };
    let child = Arc::new(AtomicI32::new(0));
    let known = Arc::clone(&child);
    // Before there is a child, so that no signal is lost on it.
    let passing = PassSignals::to(move || Pid::from_raw(known.load(Ordering::Acquire)))?;
    let spawned = Command::new(program).args(arguments).spawn()?;
    let pid = Pid::from_child(&spawned);
    child.store(pid.as_raw_nonzero().get(), Ordering::Release);
    let ended = loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((ended, status))) if ended == pid => break ExitStatus::from_raw(status.as_raw()),
            // Somebody whose parent is gone.
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    };
    drop(passing);
    end_the_rest();
    Ok(ended.into())
}

/// Waits for processes that the command left behind, then ends them: what they would still write belongs to nobody.
fn end_the_rest() {
    for (signal, patience) in [(None, GRACE), (Some(Signal::TERM), PATIENCE), (Some(Signal::KILL), Duration::MAX)] {
        let mut waited = Duration::ZERO;
        let mut told = false;
        while waited < patience {
            match rustix::process::wait(WaitOptions::NOHANG) {
                // Nobody is left.
                Err(rustix::io::Errno::CHILD) => return,
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => {
                    if let Some(signal) = signal.filter(|signal| !told || *signal == Signal::KILL) {
                        sys::signal_all(signal);
                        told = true;
                    }
                    std::thread::sleep(PAUSE);
                    waited += PAUSE;
                }
            }
        }
    }
}
