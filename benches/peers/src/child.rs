//! This program as a process of its own: to be traced, weighed or killed.

use std::process::{Command, Output, Stdio};

use journal_kb_peers::Result;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::{blobs, guards, locks, memory, outbox, recovery, runs, syncs};

/// What a child does. It answers in JSON on its standard output.
#[derive(Debug, Serialize, Deserialize)]
pub enum Task {
    Syncs(syncs::Task),
    Memory(memory::Task),
    Recovery(recovery::Task),
    Guards(guards::rounds::Task),
    GuardRecovery(guards::recovery::Task),
    Touch(guards::exec::Task),
    Locks(locks::journal::Task),
    Commits(locks::commits::Task),
    Runs(runs::work::Task),
    Outbox(outbox::work::Task),
    Blobs(blobs::work::Task),
}

/// Does a task, in the child.
pub fn become_one(task: &str) -> Result<()> {
    match serde_json::from_str(task)? {
        Task::Syncs(task) => answer(&task.run()?),
        Task::Memory(task) => answer(&task.run()?),
        Task::Recovery(task) => answer(&task.run()?),
        Task::Guards(task) => answer(&task.run()?),
        Task::GuardRecovery(task) => answer(&task.run()?),
        Task::Touch(task) => answer(&task.run()?),
        Task::Locks(task) => task.run(),
        Task::Commits(task) => answer(&task.run()?),
        Task::Runs(task) => answer(&task.run()?),
        Task::Outbox(task) => answer(&task.run()?),
        Task::Blobs(task) => task.run()?.map_or(Ok(()), |found| answer(&found)),
    }
}

fn answer(answer: &impl Serialize) -> Result<()> {
    println!("{}", serde_json::to_string(answer)?);
    Ok(())
}

/// The child that does a task, as the end of a command that may begin with a tracer.
pub fn command(before: &[&str], task: &Task) -> Result<Command> {
    let program = std::env::current_exe()?;
    let mut command = match before {
        [] => Command::new(program),
        [tracer, options @ ..] => {
            let mut command = Command::new(tracer);
            command.args(options).arg(program);
            command
        }
    };
    command.arg("child").arg(serde_json::to_string(task)?).stdin(Stdio::null());
    Ok(command)
}

/// Waits for a child, and takes its answer.
pub fn answer_of<T: DeserializeOwned>(mut command: Command) -> Result<T> {
    let Output { status, stdout, stderr } = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if !status.success() {
        return Err(format!("{command:?}: {status}: {}", String::from_utf8_lossy(&stderr).trim()).into());
    }
    Ok(serde_json::from_slice(&stdout)?)
}

/// Whether there is something to trace children with.
pub fn has_strace() -> bool {
    Command::new("strace").arg("-V").output().is_ok_and(|output| output.status.success())
}
