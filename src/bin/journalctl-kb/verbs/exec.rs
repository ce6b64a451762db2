//! `exec`: any program as one transaction.

use std::collections::HashSet;
use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use journal_kb::{Begin, Error, Guard, Journal, Transaction};
use rustix::process::{Pid, Signal, WaitOptions};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::exit::{Failure, Outcome};
use crate::place::Place;

pub(crate) const HELP: &str = "\
The command may do what it likes below the guarded paths. When it exits with 0, that is kept: it is synced, and \
listed by `log` and `show`. Otherwise, and when it or this program dies, everything there is put back as it was, and \
what is displaced is kept for a while. What it does elsewhere is not covered. Others see its work as it goes; those \
who use the journal are refused the guarded paths meanwhile. Processes it leaves behind are given a second, then \
SIGTERM, then SIGKILL, before anything is decided.

The first time a directory is guarded every file in it is copied (sharing its blocks where the filesystem can), later \
only what changed; so guard no more than the command may change.

SIGINT and SIGTERM are passed on to the command. Should this program be killed, nobody else gets the lock before the \
command and all that inherited the lock from it have ended.

Exits with the command's code, 128 and the number of the signal that ended it, 127 when there is no such command, 126 \
when it cannot be run, 125 when this program failed; with --skip-if-busy with 0 when the lock is held.

Examples:
  journalctl-kb exec --guard wiki --append log.md -- ./reindex wiki
  journalctl-kb exec --root kb --label tidy -- sh -c 'cd kb && sed -i s/teh/the/ pages/*.md'";

/// What to run, and over what.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// A directory or file that the command may change, by its path from the root; several times for several [default: the
    /// root itself]
    #[arg(long, value_name = "PATH")]
    guard: Vec<PathBuf>,
    /// A file that is only appended to, by its path from the root: put back by cutting it off, whatever its size
    #[arg(long, value_name = "PATH")]
    append: Vec<PathBuf>,
    /// A SQLite database outside the guarded directories, by its path from the root; in them they are found by themselves
    #[arg(long, value_name = "PATH")]
    db: Vec<PathBuf>,
    /// The lock to hold meanwhile [default: main]
    #[arg(long, value_name = "NAME")]
    lock: Option<String>,
    /// How long to wait for it
    #[arg(long, value_name = "SECS", conflicts_with = "skip_if_busy")]
    wait: Option<u64>,
    /// Exit with 0, having run nothing, when somebody else holds it
    #[arg(long)]
    skip_if_busy: bool,
    /// What this is, for `log` [default: the command]
    #[arg(long, value_name = "TEXT")]
    label: Option<String>,
    /// The command with its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// The longest label made of a command, in characters.
const LABEL: usize = 60;
/// How long processes that the command left behind may go on, and how long after SIGTERM.
const GRACE: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(5);

pub(crate) fn run(place: &Place, arguments: &Arguments) -> Result<Outcome, Failure> {
    execute(place, arguments).map_err(|failure| match failure {
        command @ Failure::NoCommand(..) => command,
        other => Failure::Exec(Box::new(other)),
    })
}

fn execute(place: &Place, arguments: &Arguments) -> Result<Outcome, Failure> {
    let journal = place.journal(false)?;
    let Some(mut txn) = begin(&journal, arguments)? else {
        eprintln!("journalctl-kb: the lock is held by somebody else: nothing was run");
        return Ok(Outcome::Command(0));
    };
    guard(&mut txn, arguments)?;
    let status = command(&txn, &arguments.command)?;
    if status.success() {
        let receipt = txn.commit()?;
        for warning in receipt.warnings() {
            eprintln!("journalctl-kb: {warning}");
        }
    } else {
        let done = txn.rollback()?;
        for path in &done.damaged {
            eprintln!("journalctl-kb: {} could not be put back, and is as it was found", path.display());
        }
    }
    journal.close()?;
    let signal = || status.signal().and_then(|signal| u8::try_from(128 + signal).ok());
    Ok(Outcome::Command(status.code().and_then(|code| u8::try_from(code).ok()).or_else(signal).unwrap_or(125)))
}

/// Takes the lock. None when it is held, and that is a reason to do nothing.
fn begin(journal: &Journal, arguments: &Arguments) -> Result<Option<Transaction>, Failure> {
    let mut begin = Begin::new(arguments.label.clone().unwrap_or_else(|| label(&arguments.command)));
    if let Some(lock) = &arguments.lock {
        begin = begin.lock(lock);
    }
    if let Some(seconds) = arguments.wait {
        begin = begin.wait(Duration::from_secs(seconds));
    }
    if arguments.skip_if_busy {
        begin = begin.wait(Duration::ZERO);
    }
    match journal.begin_with(begin) {
        Ok(txn) => Ok(Some(txn)),
        Err(Error::Busy { .. }) if arguments.skip_if_busy => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The command in its own words, as many of them as fit a line.
fn label(command: &[OsString]) -> String {
    let words: Vec<_> = command.iter().map(|word| word.to_string_lossy()).collect();
    let words = words.join(" ");
    match words.char_indices().nth(LABEL) {
        None => words,
        Some((end, _)) => format!("{}…", &words[..end]),
    }
}

fn guard(txn: &mut Transaction, arguments: &Arguments) -> Result<(), Failure> {
    txn.guard_with(Guard::append(&arguments.append))?;
    txn.guard_paths(&arguments.db)?;
    let whole = [PathBuf::from(".")];
    let trees = if arguments.guard.is_empty() { &whole[..] } else { &arguments.guard };
    trees.iter().try_for_each(|tree| txn.guard(tree)).map_err(Failure::from)
}

/// Runs the command, and waits until it and everything it started have ended.
fn command(txn: &Transaction, words: &[OsString]) -> Result<ExitStatus, Failure> {
    let system = |what| move |error| Failure::System(what, PathBuf::from("a command"), error);
    let [program, arguments @ ..] = words else { return Err(Failure::Usage("there is no command")) };
    // Whoever loses its parent becomes ours, to be waited for.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(|e| system("adopt what is left by")(e.into()))?;
    let mut signals = Signals::new([SIGINT, SIGTERM]).map_err(system("pass signals on to"))?;
    let lent = txn.lend_lock()?;
    let spawned = Command::new(program).args(arguments).spawn();
    drop(lent);
    let mut child = spawned.map_err(|error| Failure::NoCommand(program.clone(), error))?;
    let pid = Pid::from_child(&child);
    let handle = signals.handle();
    let passing = std::thread::Builder::new()
        .name("pass-signals".into())
        .spawn(move || {
            for signal in signals.forever() {
                if let Some(signal) = Signal::from_named_raw(signal) {
                    let _ = rustix::process::kill_process(pid, signal);
                }
            }
        })
        .map_err(system("pass signals on to"))?;
    let status = wait(&mut child).map_err(system("wait for"));
    handle.close();
    let _ = passing.join();
    let status = status?;
    end_the_rest();
    Ok(status)
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
