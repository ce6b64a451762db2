//! Promise 2, for a process that dies: SIGKILL at every system call of a transaction that changes anything, and at every
//! such call of the recovery that follows, leaves the tree and the rows as they were before or as they were committed.
//!
//! A child runs one transaction, settles and closes. It is first run unharmed, which yields the calls it makes and the
//! state it leads to; then it is run once for each call, on a fresh copy of the same tree, and killed on entering that
//! call. The parent opens what is left, which recovers it, and compares. The recovery sweep begins with a child killed
//! right after its COMMIT, and one killed in the middle of carrying the effects into the tree.
//!
//! This shows that no *order* of calls is wrong. That what was synced is what is needed after a power cut is another
//! question, which a killed process cannot answer.

mod blobs;
mod exec;
mod group;
pub(crate) mod guards;
mod locks;
pub(crate) mod manifest;
pub(crate) mod messages;
mod plain;
pub(crate) mod registry;
mod runs;
pub(crate) mod strace;
pub(crate) mod sweep;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use journal_kb::{Journal, Result, Transaction};
use tempfile::TempDir;

use self::manifest::Manifest;
use self::strace::{End, Point, Thread};
use crate::figures;
use crate::skip::skip;

const CHILD: &str = "crash_points::child";
pub(crate) const KILLED: &str = "processes killed at a system call, and recovered";
const RECOVERY_KILLED: &str = "recoveries killed at a system call, and recovered";
const FAILED: &str = "system calls that answered EIO or ENOSPC, once or from there on";
/// What `write_from` has to stage: more than the 64 KiB that ride in the database.
const LARGE: usize = 100_000;

#[test]
fn a_transaction_of_contents_killed_at_every_call_is_whole_or_absent() {
    sweep("contents");
}

#[test]
fn a_transaction_that_moves_directories_killed_at_every_call_is_whole_or_absent() {
    sweep("structure");
}

#[test]
fn a_journal_killed_at_every_call_of_its_making_is_made_by_the_next() {
    if !strace::usable() {
        return skip("crash points need strace, and leave to trace");
    }
    let home = tempfile::tempdir().unwrap();
    let fresh = |name: &str| {
        let root = home.path().join(name);
        fs::create_dir(&root).unwrap();
        fs::write(root.join("mine.md"), "mine").unwrap();
        root
    };
    let points = strace::points(CHILD, "making", &fresh("unharmed"));
    at_each(KILLED, &points, |point| {
        let root = fresh(&format!("{}-{}", point.call, point.nth));
        let before = Manifest::of(&root);
        strace::kill_at(CHILD, "making", &root, point);
        let state = State::recovered(&root);
        assert_eq!(state.tree.differences(&before), [""; 0], "killed at {point}");
        assert_eq!((state.strays, state.rows), (vec![], vec![]), "killed at {point}");
    });
    println!("making: {} points", points.len());
}

/// Not a test: what the others start as a child.
#[test]
fn child() {
    let Ok(workload) = std::env::var("JOURNAL_KB_CHILD") else { return };
    let root = PathBuf::from(std::env::var_os("JOURNAL_KB_ROOT").unwrap());
    let journal = if matches!(workload.as_str(), "recovery" | "making") {
        strace::ready();
        open(&root)
    } else {
        let outside = root.with_extension("outside");
        fs::create_dir_all(outside.join("sub")).unwrap();
        fs::write(outside.join("sub/page.md"), "published\n").unwrap();
        let journal = open(&root);
        strace::ready();
        journal
            .transact(|txn| {
                change(txn, &workload, &outside)?;
                // By now the background has recorded who holds the lock, so that every run makes the same calls.
                std::thread::sleep(std::time::Duration::from_millis(100));
                Ok(())
            })
            .unwrap();
        strace::say("committed");
        journal.settle().unwrap();
        strace::say("settled");
        journal
    };
    journal.close().unwrap();
    strace::say("done");
}

/// As every program does it: opening recovers, and makes what is missing.
pub(crate) fn open(root: &Path) -> Journal {
    let journal = Journal::open(root).unwrap();
    journal.migrate(&["CREATE TABLE doc (path TEXT PRIMARY KEY, title TEXT NOT NULL) STRICT"]).unwrap();
    journal
}

/// A tree of every kind of thing a transaction can meet, each with a time of its own, and rows beside it.
pub(crate) fn prepare(root: &Path) -> Result<()> {
    fs::create_dir(root).unwrap();
    let journal = open(root);
    journal.transact(|txn| {
        for name in ["pages/kept.md", "pages/old.md", "pages/gone.md", "pages/moved.md", "dead/a.md", "dead/b/c.md"] {
            txn.write(name, format!("{name}, as it was\n"))?;
        }
        txn.write("tree/sub/deep.md", "deep\n")?;
        txn.write("large-before.bin", vec![b'b'; LARGE])?;
        txn.create_dir_all("tree/empty")?;
        txn.symlink("pages/gone.md", "link")?;
        txn.sql(|rows| rows.execute_batch("INSERT INTO doc VALUES ('pages/old.md', 'Old'), ('pages/gone.md', 'Gone')"))
    })?;
    journal.settle()?;
    journal.close()?;
    fs::set_permissions(root.join("pages/old.md"), fs::Permissions::from_mode(0o640)).unwrap();
    manifest::age(root);
    Ok(())
}

/// The transaction that is killed.
pub(crate) fn change(txn: &mut Transaction, workload: &str, outside: &Path) -> Result<()> {
    txn.write("pages/new.md", "new\n")?;
    txn.write("made/on/the/way.md", "way\n")?;
    txn.write("pages/old.md", "overwritten\n")?;
    txn.remove("pages/gone.md")?;
    txn.symlink("pages/new.md", "link")?;
    txn.symlink("pages", "link-to-directory")?;
    txn.create_dir_all("empty/directory")?;
    txn.write_from("large.bin", &mut &vec![b'n'; LARGE][..])?;
    txn.write_from("large-before.bin", &mut &vec![b'a'; LARGE][..])?;
    if workload == "structure" {
        txn.rename("pages/moved.md", "pages/here.md")?;
        txn.rename("tree", "trunk")?;
        txn.remove_dir_all("dead")?;
        txn.publish(outside, "sources/published")?;
    }
    txn.sql(|rows| {
        rows.execute("INSERT INTO doc VALUES (?1, ?2)", ("pages/new.md", "New"))?;
        rows.execute("DELETE FROM doc WHERE path = ?1", ["pages/gone.md"]).map(drop)
    })
}

/// The tree and the rows, as they must be together.
struct State {
    tree: Manifest,
    rows: Vec<(String, String)>,
    /// Old versions that are kept.
    history: Manifest,
    /// What the engine's own directories hold that it should not.
    strays: Vec<String>,
}

impl State {
    /// Opens the journal, which recovers what a crash left, and looks.
    fn recovered(root: &Path) -> Self {
        let journal = open(root);
        let all = "SELECT path, title FROM doc ORDER BY path";
        let rows = journal.read(|rows| rows.query_map(all, (), |row| Ok((row.get(0)?, row.get(1)?)))).unwrap();
        journal.close().unwrap();
        // What the killed process staged may be referred to until its transaction is settled: the next to come sweeps it.
        open(root).close().unwrap();
        let names = |area: &'static str| {
            let entries = fs::read_dir(root.join(".journal").join(area)).into_iter().flatten();
            entries.map(move |entry| format!("{area}/{}", entry.unwrap().file_name().into_string().unwrap()))
        };
        // Nobody else was at work, so nothing may be in quarantine. Only what was to be published belongs to the caller:
        // where its transaction came to nothing it is kept, as nobody's.
        let quarantine = names("quarantine").filter(|name| name != "quarantine/0");
        let strays = names("stage").chain(quarantine).collect();
        Self { tree: Manifest::of(root), rows, history: Manifest::of(&root.join(".journal/history")), strays }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Outcome {
    Absent,
    Whole,
}

struct Sweep {
    workload: &'static str,
    home: TempDir,
    before: State,
    after: State,
    /// Everything that was not as it must be: all points are tried before the test fails.
    faults: Mutex<Vec<String>>,
}

impl Sweep {
    /// Has `work` kill children on a fresh copy of the prepared tree, then looks at what they left.
    fn case<T>(&self, what: &dyn std::fmt::Display, work: impl FnOnce(&Path) -> (T, End)) -> (T, Outcome) {
        let case = tempfile::tempdir_in(self.home.path()).unwrap();
        let root = case.path().join("kb");
        manifest::copy(&self.home.path().join("prepared"), &root);
        let (value, first) = work(&root);
        let state = State::recovered(&root);
        let (outcome, expected) = if state.rows == self.before.rows {
            (Outcome::Absent, &self.before)
        } else {
            (Outcome::Whole, &self.after)
        };
        let mut wrong = state.tree.differences(&expected.tree);
        wrong.extend(state.strays);
        if state.rows != expected.rows {
            wrong.push(format!("rows {:?}", state.rows));
        }
        if first.said("committed") && outcome == Outcome::Absent {
            wrong.push("commit had returned Ok".to_owned());
        }
        // What left the tree is kept, and is the version that was there.
        let kept = |bytes: &[u8]| state.tree.contents().chain(state.history.contents()).any(|kept| kept == bytes);
        let lost = self.before.tree.contents().filter(|bytes| !kept(bytes));
        wrong.extend(
            lost.map(|bytes| format!("not kept: {:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(24)]))),
        );
        if !wrong.is_empty() {
            self.fault(format!("{outcome:?}, killed at {what}: {wrong:#?}"));
        }
        (value, outcome)
    }

    fn fault(&self, fault: String) {
        self.faults.lock().unwrap().push(fault);
    }

    /// The transaction killed at each point. Answers the first point after the COMMIT, as its place in `points`.
    fn transaction(&self, points: &[Point]) -> usize {
        let ends = at_each(KILLED, points, |point| {
            self.case(point, |root| {
                let end = strace::kill_at(CHILD, self.workload, root, point);
                (end.killed, end)
            })
        });
        self.count("the transaction", points, ends.iter().filter(|(killed, _)| *killed).count());
        let main = |n: &usize| points[*n].thread == Thread::Main && ends[*n].0;
        let decided =
            (0..points.len()).filter(main).find(|n| ends[*n].1 == Outcome::Whole).expect("a point after COMMIT");
        for n in (decided..points.len()).filter(main).filter(|n| ends[*n].1 == Outcome::Absent) {
            self.fault(format!("absent, though killed after COMMIT, at {}", points[n]));
        }
        decided
    }

    /// The transaction killed at `start`, then a recovery killed at each of its own calls.
    fn recovery(&self, start: &Point) {
        let (points, _) = self.case(start, |root| {
            let end = strace::kill_at(CHILD, self.workload, root, start);
            (strace::points(CHILD, "recovery", root), end)
        });
        let killed = at_each(RECOVERY_KILLED, &points, |point| {
            let what = format!("{start}; recovery at {point}");
            let (killed, outcome) = self.case(&what, |root| {
                let first = strace::kill_at(CHILD, self.workload, root, start);
                (strace::kill_at(CHILD, "recovery", root, point).killed, first)
            });
            if outcome == Outcome::Absent {
                self.fault(format!("absent, killed at {what}"));
            }
            killed
        });
        self.count(&format!("recovery from {start}"), &points, killed.into_iter().filter(|killed| *killed).count());
    }

    fn count(&self, what: &str, points: &[Point], killed: usize) {
        let threads: BTreeSet<_> = points.iter().map(|point| &point.thread).collect();
        println!("{}, {what}: {killed} of {} points killed, {threads:?}", self.workload, points.len());
        // Threads of the background are free to do a thing at another time than in the unharmed run.
        if killed * 10 < points.len() * 9 {
            self.fault(format!("{what}: only {killed} of {} points were met", points.len()));
        }
    }
}

/// Does `work` for each point, several at once: most of it is waiting for the disk. The answers are in order. `what` it is, for
/// the figures.
pub(crate) fn at_each<P: Sync, T: Send>(what: &str, points: &[P], work: impl Fn(&P) -> T + Sync) -> Vec<T> {
    figures::add(what, points.len());
    let next = AtomicUsize::new(0);
    let worker = || {
        let mut done = Vec::new();
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            let Some(point) = points.get(n) else { return done };
            done.push((n, work(point)));
        }
    };
    let mut done: Vec<_> = std::thread::scope(|scope| {
        let workers = [(); 3].map(|()| scope.spawn(worker));
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    done.sort_by_key(|(n, _)| *n);
    done.into_iter().map(|(_, answer)| answer).collect()
}

fn sweep(workload: &'static str) {
    if !strace::usable() {
        return skip("crash points need strace, and leave to trace");
    }
    let home = tempfile::tempdir().unwrap();
    prepare(&home.path().join("prepared")).unwrap();
    let unharmed = home.path().join("unharmed");
    manifest::copy(&home.path().join("prepared"), &unharmed);
    let before = State::recovered(&unharmed);
    let points = strace::points(CHILD, workload, &unharmed);
    let after = State::recovered(&unharmed);
    assert_is_changed(&after, workload);
    assert!(before.strays.is_empty() && after.strays.is_empty(), "{:?} {:?}", before.strays, after.strays);
    let after = State { tree: after.tree.with_times_only_of(&before.tree), ..after };

    let sweep = Sweep { workload, home, before, after, faults: Mutex::default() };
    let decided = sweep.transaction(&points);
    let moves = |point: &&Point| point.thread == Thread::Main && point.call.starts_with("rename");
    let applying: Vec<_> = points[decided..].iter().filter(moves).collect();
    for start in [&points[decided], applying[applying.len() / 2]] {
        sweep.recovery(start);
    }
    let faults = sweep.faults.into_inner().unwrap();
    assert!(faults.is_empty(), "{workload}: {} faults\n{}", faults.len(), faults.join("\n"));
}

/// The unharmed run did what it was told: else every comparison with it would be worth nothing.
fn assert_is_changed(after: &State, workload: &str) {
    let tree = &after.tree;
    assert_eq!(tree.file("pages/new.md"), Some(&b"new\n"[..]));
    assert_eq!(tree.file("made/on/the/way.md"), Some(&b"way\n"[..]));
    assert_eq!((tree.file("pages/old.md"), tree.mode("pages/old.md")), (Some(&b"overwritten\n"[..]), Some(0o640)));
    assert_eq!(tree.file("large.bin"), Some(&[b'n'; LARGE][..]));
    assert_eq!(tree.file("large-before.bin"), Some(&[b'a'; LARGE][..]));
    assert_eq!(tree.link("link"), Some(Path::new("pages/new.md")));
    assert_eq!(tree.link("link-to-directory"), Some(Path::new("pages")));
    assert!(tree.has("empty/directory") && tree.has("pages/kept.md") && !tree.has("pages/gone.md"));
    let structure = workload == "structure";
    for (moved_to, moved_from) in [("pages/here.md", "pages/moved.md"), ("trunk/sub/deep.md", "tree/sub/deep.md")] {
        assert_eq!((tree.has(moved_to), tree.has(moved_from)), (structure, !structure), "{moved_to}");
    }
    assert_eq!((tree.has("trunk/empty"), tree.has("tree")), (structure, !structure));
    assert_eq!((tree.has("sources/published/sub/page.md"), tree.has("dead/b/c.md")), (structure, !structure));
    let titles: Vec<_> = after.rows.iter().map(|(_, title)| title.as_str()).collect();
    assert_eq!(titles, ["New", "Old"]);
}
