//! `exec`: any program as one transaction.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use journal_kb::{Acquire, Error, Guard, Holder, Journal, Layer, Lock, Transaction, Waiting};

use super::subreaper;
use crate::exit::{Failure, Outcome};
use crate::isolate::{self, Ended, Namespaces, PassSignals, Prepared, View};
use crate::place::Place;

pub(crate) const HELP: &str = "\
The command may do what it likes below the guarded paths. When it exits with 0, that is kept: it is synced, and \
listed by `log` and `show`. Otherwise, and when it or this program dies, everything there is as it was. What it does \
elsewhere is not covered. Those who use the journal are refused the guarded paths meanwhile. Processes it leaves behind \
are given a second, then SIGTERM, then SIGKILL, before anything is decided.

It works on an overlay: nobody else sees what it does before it has ended well, and that costs what it touches, \
however much is stored. Should somebody else change one of the same paths meanwhile, nothing is taken over, this \
program exits with 1, and what the command wrote is kept in a directory that is named. The state directory of the \
journal is empty to the command, and so is its database, where that is the application's. Another mount of the same tree \
leads past the overlay. --append files and guarded paths that are no directories are not in the overlay: there \
others see its work as it goes, and it is put back as need be. A database that others use meanwhile has to be named with \
--db, inside of guarded directories too.

Overlays need root, or a system that lets users make namespaces; then files of other owners are seen as nobody's, and \
renaming a directory fails as across filesystems, for which programs copy it. Where overlays are not to be had, and with \
--isolate baseline, the command works on the files themselves: others see its work as it goes, and what is displaced is \
kept for a while. The first time a directory is guarded so, every file in it is copied (sharing its blocks where the \
filesystem can), later only what changed; so guard no more than the command may change.

SIGINT, SIGTERM, SIGHUP and SIGQUIT are passed on to the command. Should this program be killed, nobody else gets the lock \
before the command and all it started have ended; then recovery throws their work away.

Exits with the command's code, 128 and the number of the signal that ended it, 127 when there is no such command, 126 \
when it cannot be run, 1 when somebody else changed the same paths, 125 when this program failed; with --skip-if-busy with \
0 when the lock is held.

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
    /// A SQLite database that the command works on, by its path from the root; it sees it as it is at the beginning, whoever
    /// else has it open
    #[arg(long, value_name = "PATH")]
    db: Vec<PathBuf>,
    /// Whether the command works on an overlay, or on the files themselves
    #[arg(long, value_name = "HOW", value_enum, default_value_t = Isolate::Auto)]
    isolate: Isolate,
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

/// What the command works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Isolate {
    /// An overlay where there can be one, else the files themselves
    Auto,
    /// An overlay, or nothing is run
    Overlay,
    /// The files themselves
    Baseline,
}

pub(crate) fn run(place: &Place, arguments: &Arguments) -> Result<Outcome, Failure> {
    execute(place, arguments).map_err(|failure| match failure {
        as_it_is @ (Failure::NoCommand(..) | Failure::Conflict(_)) => as_it_is,
        other => Failure::Exec(Box::new(other)),
    })
}

fn execute(place: &Place, arguments: &Arguments) -> Result<Outcome, Failure> {
    // Before anything has a thread; where there can be no namespaces, it is said when they are wanted.
    let prepared = isolate::prepare(&arguments.command);
    let journal = place.journal(false)?;
    let label = arguments.label.clone().unwrap_or_else(|| label(&arguments.command));
    let lock = match take(&journal, arguments, &label)? {
        Ok(lock) => lock,
        Err(holder) => {
            eprintln!("journalctl-kb: nothing was run: the lock is held by {holder}");
            return Ok(Outcome::Command(0));
        }
    };
    let mut txn = lock.begin(&label)?;
    let (ended, layers) = work(&journal, &mut txn, arguments, prepared)?;
    if let Ended::NotRun(errno) = ended {
        let program = arguments.command.first().cloned().unwrap_or_default();
        return Err(Failure::NoCommand(program, std::io::Error::from_raw_os_error(errno)));
    }
    if ended == Ended::Exit(0) {
        if let Err(error) = txn.absorb(&layers) {
            return give_up(txn, layers, error);
        }
        let receipt = txn.commit()?;
        drop(layers);
        for warning in receipt.warnings() {
            eprintln!("journalctl-kb: {warning}");
        }
    } else {
        drop(layers);
        put_back(txn)?;
    }
    for warning in lock.release() {
        eprintln!("journalctl-kb: {warning}");
    }
    journal.close()?;
    Ok(Outcome::Command(match ended {
        Ended::Exit(code) => code,
        Ended::Signal(signal) => signal.saturating_add(128),
        Ended::NotRun(_) => 125,
    }))
}

/// What the command wrote cannot be taken over: it is kept for a person.
fn give_up(txn: Transaction, layers: Vec<Layer>, error: Error) -> Result<Outcome, Failure> {
    for layer in layers {
        let lower = layer.lower().to_owned();
        match layer.set_aside() {
            Ok(kept) => {
                eprintln!("journalctl-kb: what the command wrote to {} is in {}", lower.display(), kept.display())
            }
            Err(error) => eprintln!("journalctl-kb: what the command wrote could not be kept: {error}"),
        }
    }
    put_back(txn)?;
    match error {
        conflict @ Error::Conflict { .. } => Err(Failure::Conflict(conflict)),
        other => Err(other.into()),
    }
}

fn put_back(txn: Transaction) -> Result<(), Failure> {
    for path in &txn.rollback()?.damaged {
        eprintln!("journalctl-kb: {} could not be put back, and is as it was found", path.display());
    }
    Ok(())
}

/// Takes the lock; else says who has it, where that is a reason to do nothing.
fn take(journal: &Journal, arguments: &Arguments, label: &str) -> Result<Result<Lock, Holder>, Failure> {
    let mut acquire = Acquire::new(arguments.lock.as_deref().unwrap_or("main")).purpose(label);
    if let Some(seconds) = arguments.wait {
        acquire = acquire.wait(Duration::from_secs(seconds));
    }
    if arguments.skip_if_busy {
        return Ok(journal.begin_flight(acquire)?);
    }
    // What is over soon is not worth a word; then now and then.
    let mut next = Duration::from_secs(1);
    let tell = |waiting: &Waiting| {
        if waiting.waited >= next {
            next = waiting.waited + Duration::from_secs(30);
            match &waiting.holder {
                Some(holder) => eprintln!("journalctl-kb: waiting for the lock, which is held by {holder}"),
                None => eprintln!("journalctl-kb: waiting for the lock"),
            }
        }
    };
    Ok(Ok(journal.lock_with(acquire.on_wait(Duration::from_secs(1), tell))?))
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

/// Guards what is to be guarded and runs the command, over an overlay if it is to be and can be had.
fn work(
    journal: &Journal,
    txn: &mut Transaction,
    arguments: &Arguments,
    prepared: Result<Prepared, String>,
) -> Result<(Ended, Vec<Layer>), Failure> {
    txn.guard_with(Guard::append(&arguments.append))?;
    let whole = [PathBuf::from(".")];
    let guarded = if arguments.guard.is_empty() { &whole[..] } else { &arguments.guard };
    for path in guarded {
        let full = journal.root().join(path);
        // What it leads to would not be guarded.
        if full.is_symlink() && full.is_dir() {
            return Err(Error::SymlinkOnTheWay { path: full }.into());
        }
    }
    let mut namespaces = prepared.and_then(Prepared::namespaces);
    if arguments.isolate != Isolate::Baseline {
        match over_overlay(journal, txn, arguments, guarded, namespaces)? {
            Ok(done) => return Ok(done),
            Err(why) if arguments.isolate == Isolate::Overlay => return Err(Failure::NoOverlay(why)),
            Err(why) => {
                eprintln!("journalctl-kb: no overlay, the command works on the files themselves: {why}");
                namespaces = Err(why);
            }
        }
    }
    txn.guard_paths(&arguments.db)?;
    guarded.iter().try_for_each(|path| txn.guard(path))?;
    let ended = match namespaces {
        Ok(namespaces) => go(txn, namespaces, &View::default())?.map(|(ended, _)| ended),
        Err(why) => Err(why),
    };
    Ok((ended.or_else(|_| subreaper::run(&arguments.command, txn))?, Vec::new()))
}

/// Runs the command over overlays. The inner error says why there can be none; nothing was run then.
fn over_overlay(
    journal: &Journal,
    txn: &mut Transaction,
    arguments: &Arguments,
    guarded: &[PathBuf],
    namespaces: Result<Namespaces, String>,
) -> Result<Result<(Ended, Vec<Layer>), String>, Failure> {
    let namespaces = match namespaces {
        Ok(namespaces) => namespaces,
        Err(why) => return Ok(Err(why)),
    };
    let root = journal.root();
    let is_directory = |path: &&PathBuf| std::fs::symlink_metadata(root.join(path)).is_ok_and(|meta| meta.is_dir());
    let (trees, others): (Vec<&PathBuf>, Vec<&PathBuf>) = guarded.iter().partition(is_directory);
    let within = |path: &Path, tree: &Path| tree == Path::new(".") || path.starts_with(tree);
    // One inside another is guarded with that.
    let outermost = |tree: &&&PathBuf| {
        !trees.iter().any(|other| other != *tree && within(tree, other) && !(within(other, tree) && other > *tree))
    };
    let trees: Vec<&PathBuf> = trees.iter().filter(outermost).copied().collect();
    let inside = |path: &&PathBuf| trees.iter().any(|tree| within(path, tree));
    txn.guard_paths(arguments.db.iter().filter(|path| !inside(path)))?;
    txn.guard_paths(others.into_iter().filter(|path| !inside(path)))?;
    let mut view = View::default();
    let mut layers = Vec::with_capacity(trees.len());
    for tree in &trees {
        // One that is not there yet is made in the overlay, like any file.
        let is_there = |path: &&PathBuf| root.join(path).symlink_metadata().is_ok();
        let databases = arguments.db.iter().filter(|path| within(path, tree)).filter(is_there);
        let layer = match txn.layer(tree, databases) {
            Ok(layer) => layer,
            Err(error @ Error::MountInTree { .. }) => return Ok(Err(error.to_string())),
            Err(error) => return Err(error.into()),
        };
        view.layers.push([layer.lower().to_owned(), layer.upper(), layer.work()]);
        layers.push(layer);
    }
    // By now with all that the layers have made.
    view.covers = journal.own_paths();
    let appended = arguments.append.iter().filter(inside).map(|path| root.join(path));
    view.through = appended.filter(|path| path.exists()).collect();
    Ok(go(txn, namespaces, &view)?.map(|(ended, by_user)| {
        if by_user {
            layers.iter_mut().for_each(Layer::mounted_with_userxattr);
        }
        (ended, layers)
    }))
}

/// Runs the command, and says too whether overlays were mounted in a user namespace. The inner error says why it could not be
/// run, for want of mounts.
fn go(txn: &mut Transaction, namespaces: Namespaces, view: &View) -> Result<Result<(Ended, bool), String>, Failure> {
    let init = namespaces.init;
    txn.record_worker(init.as_raw_nonzero().get().cast_unsigned())?;
    let lent = txn.lend_lock()?;
    let _passing = PassSignals::to(move || Some(init)).map_err(system("pass signals on to"))?;
    Ok(namespaces.go(view, &lent).map(|running| {
        let by_user = running.by_user;
        (running.wait(), by_user)
    }))
}

pub(super) fn system(what: &'static str) -> impl FnOnce(std::io::Error) -> Failure {
    move |error| Failure::System(what, PathBuf::from("a command"), error)
}
