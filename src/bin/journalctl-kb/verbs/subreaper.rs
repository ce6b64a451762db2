//! Runs a command without namespaces: what loses its parent becomes ours, and is ended with it.

use std::collections::HashSet;
use std::ffi::OsString;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use journal_kb::Transaction;
use rustix::process::{Pid, Signal, WaitOptions};

use super::exec::system;
use crate::exit::Failure;
use crate::isolate::{Ended, GRACE, PATIENCE, PAUSE, PassSignals};

/// Runs the command, and waits until it and everything it started have ended.
pub(super) fn run(words: &[OsString], txn: &mut Transaction) -> Result<Ended, Failure> {
    let [program, arguments @ ..] = words else { return Err(Failure::Usage("there is no command")) };
    let lent = txn.lend_lock()?;
    let spawned = Command::new(program).args(arguments).spawn();
    drop(lent);
    let mut child = spawned.map_err(|error| Failure::NoCommand(program.clone(), error))?;
    let pid = Pid::from_child(&child);
    let passing = PassSignals::to(move || Some(pid)).map_err(system("pass signals on to"))?;
    txn.record_worker(child.id())?;
    let status = wait(&mut child).map_err(system("wait for"));
    drop(passing);
    let ended = Ended::from(status?);
    end_the_rest();
    Ok(ended)
}

fn wait(child: &mut Child) -> std::io::Result<ExitStatus> {
    loop {
        match child.wait() {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// Waits for processes that the command left behind, then ends them: what they would still write belongs to nobody.
fn end_the_rest() {
    for (signal, patience) in [(None, GRACE), (Some(Signal::TERM), PATIENCE), (Some(Signal::KILL), Duration::MAX)] {
        let mut told = HashSet::new();
        let mut waited = Duration::ZERO;
        while waited < patience {
            match rustix::process::wait(WaitOptions::NOHANG) {
                // Nobody is left.
                Err(rustix::io::Errno::CHILD) => return,
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => {
                    if let Some(signal) = signal {
                        for pid in children().into_iter().filter(|&pid| told.insert(pid)) {
                            // Gone by now, or not ours to end: it is waited for either way.
                            let _ = rustix::process::kill_process(pid, signal);
                        }
                    }
                    std::thread::sleep(PAUSE);
                    waited += PAUSE;
                }
            }
        }
    }
}

/// The processes whose parent this one is by now.
fn children() -> Vec<Pid> {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| std::fs::read_to_string(Path::new(&task.path()).join("children")).ok());
    lists
        .flat_map(|list| list.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect::<Vec<_>>())
        .collect()
}
