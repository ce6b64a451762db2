//! The forked child: makes the namespaces, and is process 1 in them.
#![expect(clippy::disallowed_methods, reason = "what it writes are files of the kernel's, in /proc")]

use std::ffi::OsString;
use std::io::{IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use rustix::process::{Pid, Signal, WaitOptions};
use rustix::thread::UnshareFlags;

use super::{Ended, GRACE, PATIENCE, PAUSE, PassSignals, View, mounts, sys};

/// Makes the namespaces. Returns when all is over: in the process that made them, and in their process 1.
pub(super) fn make(mut channel: UnixStream, command: &[OsString]) {
    match enter() {
        Err(why) => tell(&mut channel, &format!("failed {why}\n")),
        Ok((_, Some(init))) => tell(&mut channel, &format!("pid {}\n", init.as_raw_nonzero())),
        Ok((user, None)) => serve(channel, user, command),
    }
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
fn serve(mut channel: UnixStream, user: bool, command: &[OsString]) {
    let child = Arc::new(AtomicI32::new(0));
    let known = Arc::clone(&child);
    // From the beginning, so that no signal is lost: process 1 does not get those that it does not handle.
    let Ok(passing) = PassSignals::to(move || Pid::from_raw(known.load(Ordering::Acquire))) else { return };
    // Nothing is run for somebody who is not there any more.
    let Some((view, lock)) = receive(&channel) else { std::process::exit(0) };
    // Whoever is started from here on holds it.
    let lent = rustix::io::fcntl_setfd(&lock, rustix::io::FdFlags::empty()).map_err(|e| e.to_string());
    if let Err(why) = lent.and_then(|()| mounts::mount(&view, user)) {
        return tell(&mut channel, &format!("failed {why}\n"));
    }
    tell(&mut channel, if user { "running user\n" } else { "running root\n" });
    let ended = match run_command(command, &child) {
        Ok(status) => status,
        Err(error) => Ended::NotRun(error.raw_os_error().unwrap_or(libc::EINVAL)),
    };
    drop(passing);
    tell(&mut channel, &ended.line());
}

/// Waits to be told what to mount, and given the lock.
fn receive(channel: &UnixStream) -> Option<(View, OwnedFd)> {
    let mut message = Vec::new();
    let mut lock = None;
    while !message.ends_with(b"\0\0") && message != b"\0" {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut buffer = [0; 4096];
        let slices = &mut [IoSliceMut::new(&mut buffer)];
        let received = match rustix::net::recvmsg(channel, slices, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other.ok()?,
        };
        if received.bytes == 0 {
            return None;
        }
        for given in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = given {
                lock = descriptors.last().or(lock);
            }
        }
        message.extend_from_slice(&buffer[..received.bytes]);
    }
    Some((View::parse(&message)?, lock?))
}

fn run_command(words: &[OsString], child: &AtomicI32) -> std::io::Result<Ended> {
    let [program, arguments @ ..] = words else { return Err(std::io::ErrorKind::InvalidInput.into()) };
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
    // Its number may be another's from here on.
    child.store(0, Ordering::Release);
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
