//! `locks break`: ends those who hold a lock, once it is certain who they are.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use journal_kb::Acquire;
use journal_kb::inspect::{Inspector, LockHolders, LockProcess, Role};
use rustix::process::{Pid, PidfdFlags, Signal};
use serde_json::{Value, json};

use crate::exit::{Failure, Outcome};
use crate::output::Out;
use crate::place::Place;

pub(crate) const HELP: &str = "\
For a holder that is stuck. Nothing is taken from anybody who lives: its processes are asked to stop (SIGTERM), and \
killed (SIGKILL) when they still hold the lock after --wait. Then the lock is taken, which recovers what they left unfinished \
and lets nobody commit under it whose fence is older, and is given back.

Who is signalled must be on record: the process that took the lock, by boot, number and start time; a command that \
`exec` runs; or what these started. When anybody else holds it as well, or somebody who is not seen from here (in another \
container, of another user), nobody is signalled and the reason is told. So is process 1 of a container, and whoever \
started this very command.

Exit codes: 0 when the lock is free, or was made free; 1 when it is refused, no such lock was ever taken, or --dry-run would \
signal somebody; 75 when it could not be had after all.

Examples:
  journalctl-kb locks break main --dry-run
  journalctl-kb locks break main --wait 60

JSON: lock, outcome (free, refused, would_break, broken), processes (pid, started, program, role (session, worker, \
descendant), refused (nobody_recorded, other_number, other_start, other_boot, init, own, hidden)), killed (pid), fence";

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The lock, as in `locks`
    #[arg(value_name = "NAME")]
    name: String,
    /// Only show who would be signalled
    #[arg(long)]
    dry_run: bool,
    /// How long they have to stop by themselves, and how long to wait for the lock then
    #[arg(long, value_name = "SECS", default_value_t = 10)]
    wait: u64,
}

/// Between two looks at who still holds the lock.
const PAUSE: Duration = Duration::from_millis(20);

pub(crate) fn run(out: &mut Out, place: &Place, arguments: &Arguments) -> Result<Outcome, Failure> {
    let (inspector, name) = (place.inspector()?, arguments.name.as_str());
    let holders = look(&inspector, name)?;
    if !holders.held {
        tell(out, &holders, "free", json!({}), &format!("lock {name:?} is free: nothing to do"))?;
        return Ok(Outcome::Fine);
    }
    if !holders.is_verified() {
        return refuse(out, &holders);
    }
    if arguments.dry_run {
        let would =
            format!("would end {}, then take lock {name:?}, recover what they left, and release it", list(&holders));
        tell(out, &holders, "would_break", json!({}), &would)?;
        return Ok(Outcome::Found);
    }
    let wait = Duration::from_secs(arguments.wait);
    let mut broken = Vec::new();
    let mut killed = Vec::new();
    for (signal, patience) in [(Signal::TERM, wait), (Signal::KILL, wait.max(Duration::from_secs(1)))] {
        let left = match signal_all(&inspector, name, signal)? {
            Signalled::Nobody => break,
            Signalled::Refused(holders) => return refuse(out, &holders),
            Signalled::All(processes) => processes,
        };
        if signal == Signal::KILL {
            killed.extend(left.iter().map(|process| process.pid));
        } else {
            broken.clone_from(&left);
        }
        let began = Instant::now();
        while still(&inspector, name, &left)? && began.elapsed() < patience {
            std::thread::sleep(PAUSE);
        }
    }
    let journal = place.journal(false)?;
    let lock = journal.lock_with(Acquire::new(name).purpose("locks break").wait(wait))?;
    let fence = lock.fence()?.fence().get();
    let warnings = lock.release();
    let how = if killed.is_empty() {
        "stopped when asked to".to_owned()
    } else {
        format!("{} had to be killed", words(&killed))
    };
    let mut holders = holders;
    holders.processes = broken;
    let done = format!("ended {} ({how}); lock {name:?} was taken with fence {fence} and released", list(&holders));
    tell(out, &holders, "broken", json!({ "killed": killed, "fence": fence }), &done)?;
    for warning in warnings {
        eprintln!("journalctl-kb: {warning}");
    }
    journal.close()?;
    Ok(Outcome::Fine)
}

fn look(inspector: &Inspector, name: &str) -> Result<LockHolders, Failure> {
    inspector.lock_holders(name)?.ok_or_else(|| Failure::NoLock(name.to_owned()))
}

enum Signalled {
    Nobody,
    Refused(LockHolders),
    All(Vec<LockProcess>),
}

/// Signals all that hold the lock, or nobody. What is signalled is what was verified: a number that is used anew in
/// between is another process, and the descriptor that was opened before is not its.
fn signal_all(inspector: &Inspector, name: &str, signal: Signal) -> Result<Signalled, Failure> {
    let before = look(inspector, name)?;
    let opened: Vec<(LockProcess, OwnedFd)> = before
        .processes
        .iter()
        .filter_map(|process| {
            let pid = Pid::from_raw(process.pid)?;
            // One that has ended meanwhile holds nothing.
            Some((process.clone(), rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok()?))
        })
        .collect();
    let holders = look(inspector, name)?;
    if !holders.held {
        return Ok(Signalled::Nobody);
    }
    if !holders.is_verified() {
        return Ok(Signalled::Refused(holders));
    }
    let mut signalled = Vec::new();
    for (process, pidfd) in opened {
        if holders.processes.contains(&process) {
            match rustix::process::pidfd_send_signal(&pidfd, signal) {
                Ok(()) => signalled.push(process),
                Err(rustix::io::Errno::SRCH) => {}
                Err(error) => {
                    let path = format!("process {}", process.pid).into();
                    return Err(Failure::System("signal", path, error.into()));
                }
            }
        }
    }
    Ok(Signalled::All(signalled))
}

/// True while any of these processes has the lock.
fn still(inspector: &Inspector, name: &str, processes: &[LockProcess]) -> Result<bool, Failure> {
    let holders = look(inspector, name)?;
    let is_one = |holder: &LockProcess| {
        processes.iter().any(|process| (process.pid, process.started) == (holder.pid, holder.started))
    };
    Ok(holders.held && holders.processes.iter().any(is_one))
}

fn refuse(out: &mut Out, holders: &LockHolders) -> Result<Outcome, Failure> {
    let why = match holders.is_unseen() {
        true => "whoever holds it is not seen from here: in another container, or of another user".to_owned(),
        false => {
            let reason = |process: &LockProcess| Some(format!("{}: {}", one(process), process.refused?));
            holders.processes.iter().filter_map(reason).collect::<Vec<_>>().join("; ")
        }
    };
    if out.json() {
        tell(out, holders, "refused", json!({}), "")?;
    }
    Err(Failure::LockNotBroken(holders.name.clone(), why))
}

fn tell(out: &mut Out, holders: &LockHolders, outcome: &str, more: Value, words: &str) -> Result<(), Failure> {
    if !out.json() {
        return Ok(out.line(words)?);
    }
    let mut object = json!({
        "lock": holders.name, "outcome": outcome, "processes": holders.processes, "killed": [], "fence": null,
    });
    for (key, value) in more.as_object().into_iter().flatten() {
        object[key] = value.clone();
    }
    Ok(out.object(&object)?)
}

fn list(holders: &LockHolders) -> String {
    let named: Vec<_> = holders.processes.iter().map(one).collect();
    if named.is_empty() { "nobody".into() } else { named.join(", ") }
}

fn one(process: &LockProcess) -> String {
    let role = match process.role {
        Some(Role::Session) | None => "",
        Some(Role::Worker) => " (a command under it)",
        Some(_) => " (started by it)",
    };
    format!("{}[{}]{role}", process.program, process.pid)
}

fn words(pids: &[i32]) -> String {
    pids.iter().map(|pid| format!("[{pid}]")).collect::<Vec<_>>().join(" ")
}
