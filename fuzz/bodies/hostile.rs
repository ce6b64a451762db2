//! A journal that anybody may have written to: it is opened, worked with, looked at and closed, whatever stands in it.
//!
//! Nothing panics, and nothing outside the root changes, nor a file in it that no row names. Where only rows were changed,
//! and a row means what its table lets it mean, the journal also opens, and its locks can be had, again and again.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use journal_kb::inspect::{BlobCheck, BlobFilter, InspectOptions, Inspector, TransactionFilter};
use journal_kb::{Attempt, Begin, Error, Journal, Message, PublishError, Started, StopToken, TxnId, recovery_plan};

use super::edits::{Depth, damage};
use super::input::Input;
use super::starts::{self, UNTOUCHED};

/// Nothing here takes that long.
const LONG: Duration = Duration::from_secs(15);

pub(crate) fn run(bytes: &[u8]) {
    let home = home();
    let root = home.join("root");
    let mut input = Input::new(bytes);
    let database = input.one(starts::all()).lay(&root);
    if input.byte() < 192 {
        // Else it is a copy, and knows it.
        starts::make_at_home(&database);
    }
    let depth = damage(&mut input, &root, database);
    let before = everything(&root.join(UNTOUCHED));
    let outside = everything(&home.join("outside"));

    let early = input.byte() < 64;
    if early {
        look(&root, depth);
    }
    work(&root, depth, input.byte());
    again(&root, depth);
    if !early {
        look(&root, depth);
    }

    assert_eq!(everything(&home.join("outside")), outside, "something outside the root was changed");
    assert_eq!(everything(&root.join(UNTOUCHED)), before, "a file was changed that no row names");
    fs::remove_dir_all(&root).unwrap();
    let left: Vec<_> = fs::read_dir(home).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["outside"], "something was made beside the root");
}

/// Where the roots are made, beside a directory that nothing may change.
fn home() -> &'static Path {
    static HOME: OnceLock<tempfile::TempDir> = OnceLock::new();
    let home = HOME.get_or_init(|| {
        let home = starts::scratch();
        fs::create_dir_all(home.path().join("outside/dir")).unwrap();
        fs::write(home.path().join("outside/secret"), "a secret").unwrap();
        fs::write(home.path().join("outside/dir/file"), "a file").unwrap();
        home
    });
    home.path()
}

/// What an answer may be: with rows alone changed, only a yes.
fn expect<T>(what: &str, depth: Depth, answer: Result<T, Error>) -> Option<T> {
    match answer {
        Ok(value) => Some(value),
        Err(error) => {
            assert!(depth > Depth::Rows, "{what}: {error:?}");
            // Nothing may have been left locked, however deep the damage is.
            assert!(!error.is_busy() || matches!(error, Error::Sql { .. }), "{what}: {error:?}");
            None
        }
    }
}

/// A person says what is to become of what is in quarantine.
fn decide(journal: &Journal, depth: Depth, person: u8) {
    let quarantine = journal.quarantine();
    for entry in expect("the quarantine", depth, quarantine.list()).unwrap_or_default().iter().take(3) {
        expect("what is in quarantine", depth, quarantine.show(entry.id));
        let _ = match person % 5 {
            0 => quarantine.retry(entry.id),
            1 => quarantine.keep_live(entry.id),
            2 => quarantine.restore(entry.id),
            3 => quarantine.discard(entry.id),
            _ => return,
        };
    }
}

/// True when a path was refused because of what a row says of it, or of the tree that it lies in.
fn is_refusal(error: &Error) -> bool {
    error.is_quarantined()
        || matches!(
            error,
            Error::PathBusy { .. }
                | Error::PathPending { .. }
                | Error::SymlinkOnTheWay { .. }
                | Error::NotADirectory { .. }
                | Error::IsADirectory { .. }
                | Error::NotMounted { .. }
        )
}

/// Opens, commits, guards, settles, closes.
fn work(root: &Path, depth: Depth, person: u8) {
    let Some(journal) = expect("opening", depth, starts::options().open(root)) else { return };
    for lock in ["main", "other"] {
        let Some(txn) = expect("taking a lock", depth, journal.begin_with(Begin::new("after").lock(lock))) else {
            continue;
        };
        // What is refused is refused with a reason, and leaves the lock free.
        match touch(txn, &journal, lock) {
            Err(error) if is_refusal(&error) => {}
            other => drop(expect("work", depth, other)),
        }
    }
    let _ = journal.transact(|txn| txn.remove("a").and_then(|()| txn.rename("d", "e")));
    expect("settling", depth, journal.settle());
    expect("recovery", depth, journal.recover());
    decide(&journal, depth, person);
    expect("runs", depth, resume(&journal, person));
    expect("telling others", depth, tell(&journal, depth));
    expect("following", depth, follow(&journal));
    expect("closing", depth, journal.close());
}

/// Goes on with jobs, as far as what is stored of them lets it.
fn resume(journal: &Journal, person: u8) -> journal_kb::Result<()> {
    for job in ["open", "over", "afresh"] {
        let _ = journal.runs().retry(job, None);
        if person.is_multiple_of(3) {
            let _ = journal.runs().reset(job);
        }
        let Started::Running(run) = journal.run(job, "1")? else { continue };
        let _ = run.cursor::<String>()?;
        for item in run.pending(["one", "two", "three"]) {
            let _ = run.attempt(item).and_then(Attempt::record);
        }
        let _ = run.finish()?;
    }
    Ok(())
}

/// Publishes what there is: each message goes, or is parked, and the drainer comes to an end.
fn tell(journal: &Journal, depth: Depth) -> journal_kb::Result<()> {
    for topic in ["t", "other"] {
        let taken = Arc::new(Mutex::new(Vec::new()));
        let takes = Arc::clone(&taken);
        let publisher = move |message: &Message| {
            takes.lock().unwrap().push(message.clone());
            if message.attempts % 2 == 1 { Err(PublishError::Refused("odd".into())) } else { Ok(()) }
        };
        let drainer = journal.drainer(topic, publisher).refusals(1).start()?;
        let left = drainer.close(LONG);
        let taken = Arc::try_unwrap(taken).expect("the drainer comes to an end").into_inner().unwrap();
        assert_eq!(left.as_ref().ok().filter(|left| **left > 0 && depth == Depth::Rows), None, "what waits goes");
        left?;
        for message in taken.iter().take(3) {
            let of_key = |other: &&Message| other.key == message.key;
            assert_eq!(message.topic, topic);
            assert_eq!(taken.iter().filter(of_key).filter(|other| other.id == message.id).count(), 1, "it goes once");
            journal.apply_once("consumer", message, |_| Ok(()))?;
            assert!(!journal.apply_once("consumer", message, |_| Ok(()))?, "it is applied once");
        }
    }
    Ok(())
}

/// Goes through all that was committed, to its end.
fn follow(journal: &Journal) -> journal_kb::Result<()> {
    let follower = journal.follower("follower")?;
    for commit in follower.changes()? {
        let id = commit?.id;
        assert!(follower.position()? < id);
        follower.advance(id)?;
        assert_eq!(follower.position()?, id);
    }
    let stop = StopToken::new();
    assert!(follower.follow(&stop)?.next_within(Duration::ZERO)?.is_none(), "there is no end of what was committed");
    let mut last = TxnId::from(i64::MIN);
    for commit in journal.changes(TxnId::from(i64::MIN)) {
        let commit = commit?;
        assert!(commit.id > last || last == TxnId::from(i64::MIN));
        last = commit.id;
    }
    follower.forget()
}

/// The next one to come finds nothing locked either.
fn again(root: &Path, depth: Depth) {
    let Some(journal) = expect("opening again", depth, starts::options().open(root)) else { return };
    for lock in ["main", "third"] {
        expect("taking a lock again", depth, journal.begin_with(Begin::new("again").lock(lock)));
    }
}

fn touch(mut txn: journal_kb::Transaction, journal: &Journal, lock: &str) -> journal_kb::Result<()> {
    txn.write(format!("fresh/{lock}"), lock)?;
    txn.write("d/x", lock)?;
    if lock == "other" {
        txn.guard_paths(["f/w"])?;
        let _ = fs::write(journal.root().join("fresh/by-hand"), lock);
        return txn.rollback().map(drop);
    }
    txn.commit().map(drop)
}

/// Asks the inspector everything.
fn look(root: &Path, depth: Depth) {
    let alone = InspectOptions::default().alone(true);
    let Some(inspector) = expect("inspecting", depth, Inspector::open_with(root, alone)) else { return };
    expect("status", depth, inspector.status());
    expect("events", depth, inspector.events(0));
    expect("the plan", depth, recovery_plan(&inspector));
    expect("the quarantine", depth, inspector.quarantine());
    let all = TransactionFilter { limit: None, since_ms: None };
    for run in expect("runs", depth, inspector.runs(None)).unwrap_or_default().iter().take(2) {
        expect("runs show", depth, inspector.run(run.id, Some(5)));
        expect("runs show", depth, inspector.run_of(&run.job, Some(5)));
    }
    for by_content in [false, true] {
        let listed = inspector.blobs(BlobFilter { by_content, removed: true, ..BlobFilter::default() });
        let blobs: Result<Vec<_>, Error> = listed.take(1000).collect();
        for blob in expect("blobs", depth, blobs).unwrap_or_default().iter().take(2) {
            expect("blobs show", depth, inspector.blob(&blob.id));
        }
    }
    expect("blobs verify", depth, inspector.verify_blobs(&BlobCheck::default(), |_| {}));
    expect("blobs sweep", depth, inspector.stray_blobs());
    // What `status` shows of locks, sessions and guards is what they show of themselves.
    for transaction in expect("log", depth, inspector.transactions(all)).unwrap_or_default().iter().take(2) {
        expect("show", depth, inspector.transaction(transaction.id));
    }
}

type Everything = BTreeMap<PathBuf, (u64, u64, u32, [i64; 4], Vec<u8>)>;

/// All that can be said of what lies below a directory, but for when it was read.
fn everything(top: &Path) -> Everything {
    let entries = walkdir::WalkDir::new(top).into_iter().map(|entry| {
        let entry = entry.unwrap();
        let meta = entry.path().symlink_metadata().unwrap();
        let bytes = if meta.is_file() { fs::read(entry.path()).unwrap() } else { Vec::new() };
        let times = [meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()];
        (entry.path().to_owned(), (meta.ino(), meta.nlink(), meta.mode(), times, bytes))
    });
    entries.collect()
}
