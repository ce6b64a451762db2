//! `locks break`: ends those who hold a lock, once it is certain who they are.

use std::os::fd::OwnedFd;
use std::time::Duration;

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
/// At least so long may who was killed take to end.
const DYING: Duration = Duration::from_secs(1);

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
    let targets = match targets(&inspector, name)? {
        Ok(targets) => targets,
        Err(holders) => return refuse(out, &holders),
    };
    signal(targets.iter(), Signal::TERM)?;
    // Whoever gets the lock meanwhile has nothing to do with this.
    let left = wait_for(&inspector, name, &targets, wait)?;
    signal(left.iter().copied(), Signal::KILL)?;
    let killed: Vec<i32> = left.iter().map(|target| target.process.pid).collect();
    wait_for(&inspector, name, &targets, wait.max(DYING))?;
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
    holders.processes = targets.into_iter().map(|target| target.process).collect();
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

/// A process that is to end. The descriptor stays this process's, whoever gets its number.
struct Target {
    process: LockProcess,
    pidfd: OwnedFd,
}

/// Those that hold the lock, each verified after its descriptor was opened. The inner error is of those that are not.
fn targets(inspector: &Inspector, name: &str) -> Result<Result<Vec<Target>, LockHolders>, Failure> {
    let open = |process: LockProcess| {
        let pid = Pid::from_raw(process.pid)?;
        // One that has ended meanwhile holds nothing.
        Some(Target { pidfd: rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok()?, process })
    };
    let mut opened: Vec<Target> = look(inspector, name)?.processes.into_iter().filter_map(open).collect();
    let holders = look(inspector, name)?;
    if holders.held && !holders.is_verified() {
        return Ok(Err(holders));
    }
    opened.retain(|target| holders.processes.contains(&target.process));
    Ok(Ok(opened))
}

fn signal<'t>(targets: impl Iterator<Item = &'t Target>, signal: Signal) -> Result<(), Failure> {
    for target in targets {
        match rustix::process::pidfd_send_signal(&target.pidfd, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => {
                let process = format!("process {}", target.process.pid);
                return Err(Failure::System("signal", process.into(), error.into()));
            }
        }
    }
    Ok(())
}

/// Waits until none of these has the lock any more, at most this long; who still has it then.
fn wait_for<'t>(
    inspector: &Inspector,
    name: &str,
    targets: &'t [Target],
    patience: Duration,
) -> Result<Vec<&'t Target>, Failure> {
    let mut waited = Duration::ZERO;
    loop {
        let holders = look(inspector, name)?;
        let identity = |process: &LockProcess| (process.pid, process.started);
        let has_it = |target: &&Target| holders.processes.iter().any(|one| identity(one) == identity(&target.process));
        let left: Vec<&Target> = targets.iter().filter(has_it).collect();
        if left.is_empty() || waited >= patience {
            return Ok(left);
        }
        std::thread::sleep(PAUSE);
        waited += PAUSE;
    }
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
        return out.line(words);
    }
    let mut object = json!({
        "lock": holders.name, "outcome": outcome, "processes": holders.processes, "killed": [], "fence": null,
    });
    for (key, value) in more.as_object().into_iter().flatten() {
        object[key] = value.clone();
    }
    out.object(&object)
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
