//! Holds the steps of the model against those of the engine: the same workload has to sync, link, rename and exchange the same
//! kinds of things, in the same order. So the model cannot stay behind when the engine changes.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use journal_kb::{Guard, Journal};

use super::disk::Profile;
use super::guard::{End, Work};
use super::run::{Place, Run, Step};
use super::scripts::{Event, Script, before};
use super::staged::Do;
use super::world::{A, B, Books, CX};
use crate::crash_points::strace;
use crate::skip::skip;

const CHILD: &str = "power_model::trace::child";
/// More than rides in the log.
const LARGE: usize = 100_000;

/// What the model runs, by the name of what the child does.
fn workloads() -> Vec<(&'static str, Vec<Event>)> {
    let staged = |work: Do| Event::Staged(vec![work]);
    let guarded = |links: bool, work: Work, end: End| Event::Guarded { paths: vec![A], links, work: vec![work], end };
    vec![
        ("new", vec![staged(Do::Write(B, 5))]),
        ("overwrite", vec![staged(Do::Write(A, 5))]),
        ("overwrite, settled", vec![staged(Do::Write(A, 5)), Event::Settle]),
        ("large", vec![staged(Do::WriteLarge(A, 5)), Event::Settle]),
        ("remove", vec![staged(Do::Remove(A)), Event::Settle]),
        ("symlink", vec![staged(Do::Symlink(A, 5)), Event::Settle]),
        ("move", vec![staged(Do::Move(A, B))]),
        ("guard, committed", vec![guarded(false, Work::WriteInPlace(A, 18), End::Commit)]),
        ("guard, rolled back", vec![guarded(false, Work::WriteInPlace(A, 18), End::Rollback)]),
        ("guard of replacing writers, rolled back", vec![guarded(true, Work::Remove(A), End::Rollback)]),
        ("tree, committed", vec![Event::Tree { links: true, work: vec![Work::Remove(CX)], end: End::Commit }]),
        ("tree, rolled back", vec![Event::Tree { links: true, work: vec![Work::Remove(CX)], end: End::Rollback }]),
    ]
}

#[test]
fn the_model_makes_the_steps_that_the_engine_makes() {
    if !strace::usable() {
        return skip("the steps of the engine are seen by strace, which needs leave to trace");
    }
    for (name, events) in workloads() {
        let home = tempfile::tempdir().unwrap();
        let root = home.path().join("kb");
        fs::create_dir_all(root.join("c")).unwrap();
        for file in ["a", "c/x", "c/y"] {
            fs::write(root.join(file), "before\n").unwrap();
        }
        let trace = strace::trace(CHILD, name, &root);
        let engine = comparable(steps_of(&trace, &root));
        let mut books = Books::default();
        let world = before(&mut books);
        let mut run = Run::new(world, &mut books, Profile::OnlySynced, None);
        run.play(&Script { events, after_crash: None }).unwrap();
        let model = comparable(run.steps);
        assert!(engine.contains(&Step::SyncLog), "{name}: {engine:?}");
        assert_eq!(model, engine, "{name}: the model, and what the engine was seen to do");
    }
}

/// A process that dies within its COMMIT has written to the log, and not synced it: whoever comes next reads what a power cut may
/// still take back. So that is durable before anything goes that only the other outcome would need.
#[test]
fn nothing_is_swept_by_a_log_that_is_not_synced() {
    if !strace::usable() {
        return skip("the steps of the engine are seen by strace, which needs leave to trace");
    }
    let home = tempfile::tempdir().unwrap();
    let root = home.path().join("kb");
    fs::create_dir(&root).unwrap();
    strace::trace(CHILD, "staged, and gone", &root);
    let trace = strace::trace(CHILD, "open", &root);
    let steps = steps_of(&trace, &root);
    let at = |wanted: Step| steps.iter().position(|step| *step == wanted);
    let (synced, swept) = (at(Step::SyncLog), at(Step::Unlink(Place::Stage)));
    assert!(swept.is_some(), "{steps:?}");
    assert!(synced.is_some() && synced < swept, "{steps:?}");
}

/// Not a test: what is traced.
#[test]
fn child() {
    let Ok(workload) = std::env::var("JOURNAL_KB_CHILD") else { return };
    let root = PathBuf::from(std::env::var_os("JOURNAL_KB_ROOT").unwrap());
    if workload == "open" {
        strace::ready();
        strace::say("begin");
        drop(Journal::open(&root).unwrap());
        strace::say("end");
        return strace::say("done");
    }
    // Nothing is settled but by this thread.
    let options = Journal::options().settle_after(Duration::from_secs(3600));
    let journal = options.open(&root).unwrap();
    // What only a first transaction does is no part of it.
    journal.transact(|txn| txn.write("warm", "warm\n")).unwrap();
    journal.settle().unwrap();
    // Nor is the sync of a log that begins anew.
    let begin_log = |rows: &journal_kb::Rows<'_>| rows.execute_batch("CREATE TABLE warm (n INTEGER) STRICT");
    journal.transact(|txn| txn.sql(begin_log)).unwrap();
    strace::ready();
    strace::say("begin");
    let in_place = |path: &str| {
        let mut file = fs::File::options().write(true).open(root.join(path)).unwrap();
        file.write_all(b"somebody\n").unwrap();
    };
    let mut txn = journal.begin("traced").unwrap();
    match workload.as_str() {
        "staged, and gone" => {
            txn.write_from("b", &mut &vec![b'l'; LARGE][..]).unwrap();
            strace::say("done");
            std::process::exit(0);
        }
        "new" => txn.write("b", "new\n").unwrap(),
        "large" => drop(txn.write_from("a", &mut &vec![b'l'; LARGE][..]).unwrap()),
        "remove" => txn.remove("a").unwrap(),
        "symlink" => txn.symlink("target", "a").unwrap(),
        "move" => txn.rename("a", "b").unwrap(),
        workload if workload.starts_with("overwrite") => txn.write("a", "new\n").unwrap(),
        workload if workload.starts_with("guard of replacing") => {
            txn.guard_with(Guard::paths(["a"]).replacing()).unwrap();
            fs::remove_file(root.join("a")).unwrap();
        }
        workload if workload.starts_with("guard") => {
            txn.guard_paths(["a"]).unwrap();
            in_place("a");
        }
        _ => {
            txn.guard_with(Guard::tree("c").replacing()).unwrap();
            fs::remove_file(root.join("c/x")).unwrap();
        }
    }
    if workload.ends_with("rolled back") {
        txn.rollback().unwrap();
    } else {
        txn.commit().unwrap();
    }
    if matches!(workload.as_str(), "overwrite, settled" | "large" | "remove" | "symlink") {
        journal.settle().unwrap();
    }
    strace::say("end");
    strace::say("done");
    // Gone without what closing does.
    std::process::exit(0);
}

/// Without what is of no account: COMMITs that nobody waits for, in which order things are synced side by side, into how many
/// calls a write or a COMMIT is cut.
fn comparable(steps: Vec<Step>) -> Vec<Step> {
    let mut steps: Vec<Step> = steps.into_iter().filter(|step| *step != Step::Log).collect();
    // A file that was to share its blocks, where the filesystem cannot do that.
    while let Some(at) =
        steps.windows(2).position(|pair| matches!(pair, [Step::Make(made), Step::Unlink(gone)] if made == gone))
    {
        steps.drain(at..at + 2);
    }
    steps.dedup_by(|next, step| next == step && matches!(step, Step::Write(_) | Step::SyncLog));
    let is_sync = |step: &Step| matches!(step, Step::SyncFile(_) | Step::SyncDir(_));
    for side_by_side in steps.chunk_by_mut(|one, next| is_sync(one) && is_sync(next)) {
        side_by_side.sort();
    }
    steps.dedup_by(|next, step| next == step && is_sync(step));
    steps
}

/// The steps in a trace, between what the child says in the beginning and in the end.
fn steps_of(trace: &str, root: &Path) -> Vec<Step> {
    let calls = trace.lines().filter_map(|line| line.split_once(' ').map(|(_, call)| call.trim_start()));
    let calls = calls.skip_while(|call| !call.contains("@begin")).take_while(|call| !call.contains("@end"));
    calls.filter_map(|call| step(call, root)).collect()
}

/// What one call is. A call that another thread interrupts is printed in two parts, of which the first has all that counts.
fn step(call: &str, root: &Path) -> Option<Step> {
    let (name, arguments) = call.split_once('(')?;
    if arguments.contains(") = -1 ") {
        return None;
    }
    let mut places = arguments.split(", ").filter_map(|argument| place(argument, root));
    Some(match name {
        "fsync" | "fdatasync" | "syncfs" => return sync(name, arguments, root),
        "write" | "pwrite64" => Step::Write(places.next()?),
        "ioctl" if arguments.contains("FICLONE") => Step::Write(places.next()?),
        "copy_file_range" => Step::Write(places.last()?),
        "open" | "openat" | "openat2" if arguments.contains("O_CREAT") => Step::Make(places.last()?),
        "symlink" | "symlinkat" => Step::Make(places.last()?),
        "link" | "linkat" => Step::Link(places.next()?, places.next()?),
        "rename" | "renameat" | "renameat2" => {
            let (from, to) = (places.next()?, places.next()?);
            if arguments.contains("RENAME_EXCHANGE") { Step::Exchange(from, to) } else { Step::Rename(from, to) }
        }
        "unlink" | "unlinkat" if !arguments.contains("AT_REMOVEDIR") => Step::Unlink(places.next()?),
        _ => return None,
    })
}

fn sync(name: &str, arguments: &str, root: &Path) -> Option<Step> {
    let path = path(arguments)?;
    if path.to_str().is_some_and(|path| path.ends_with("-wal")) {
        return Some(Step::SyncLog);
    }
    if name == "syncfs" {
        return Some(Step::SyncAll);
    }
    let place = place_of(path, root)?;
    Some(if path.is_dir() { Step::SyncDir(place) } else { Step::SyncFile(place) })
}

/// The path that an argument names: `5</path>`, or `"/path"`.
fn path(argument: &str) -> Option<&Path> {
    let (start, end) = if argument.starts_with('"') { ('"', '"') } else { ('<', '>') };
    let rest = &argument[argument.find(start)? + 1..];
    let path = &rest[..rest.find(end)?];
    path.starts_with('/').then(|| Path::new(path))
}

fn place(argument: &str, root: &Path) -> Option<Place> {
    place_of(path(argument)?, root)
}

fn place_of(path: &Path, root: &Path) -> Option<Place> {
    let within = path.strip_prefix(root).ok()?;
    let Ok(own) = within.strip_prefix(".journal") else { return Some(Place::Live) };
    Some(match own.iter().next()?.to_str()? {
        "stage" => Place::Stage,
        "history" => Place::History,
        "quarantine" => Place::Quarantine,
        "baseline" => Place::Mirror,
        _ => return None,
    })
}
