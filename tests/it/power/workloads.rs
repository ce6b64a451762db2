//! What is done while the disk remembers.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use journal_kb::rusqlite::Connection;
use journal_kb::{Ended, Guard, Job, Journal, Result, Started, Transaction};

use super::record::{Recorder, SOON, prepare_outside};
use super::{blobs, messages};
use crate::crash_points::guards::{self, Ends};
use crate::crash_points::{self, manifest, open};

type Prepare = Box<dyn Fn(&Path, &Path) + Send + Sync>;
type Work = Box<dyn Fn(&Recorder<'_>) + Send + Sync>;

pub(super) struct Workload {
    pub(super) name: String,
    /// Makes the tree, and what lies outside of it.
    pub(super) prepare: Prepare,
    pub(super) work: Work,
}

impl Workload {
    fn new(
        name: &str,
        prepare: impl Fn(&Path) + Send + Sync + 'static,
        work: impl Fn(&Recorder<'_>) + Send + Sync + 'static,
    ) -> Self {
        let prepare = move |root: &Path, outside: &Path| {
            prepare_outside(outside);
            prepare(root);
        };
        Self { name: name.to_owned(), prepare: Box::new(prepare), work: Box::new(work) }
    }

    /// One transaction of staged operations, then settled and closed.
    fn staged(name: &str, change: fn(&mut Transaction, &Path) -> Result<()>) -> Self {
        Self::new(
            name,
            |root| crash_points::prepare(root).unwrap(),
            move |recorder| {
                let journal = recorder.open_used();
                recorder.commits(&journal, || {
                    journal.transact(|txn| change(txn, &recorder.outside)).unwrap();
                });
                journal.settle().unwrap();
                recorder.breathe();
                journal.close().unwrap();
            },
        )
    }

    /// One of those that processes are killed in.
    fn guarded(workload: guards::Workload) -> Self {
        Self::new(
            workload.name,
            move |root| {
                guards::prepare(root);
                if workload.past {
                    let journal = open(root);
                    guards::past(&journal, workload.guard);
                    journal.close().unwrap();
                    guards::edit_by_hand(root);
                }
            },
            move |recorder| {
                let journal = recorder.open_used();
                let work = || guards::work(&journal, workload, &|_| recorder.breathe());
                match workload.ends {
                    Ends::Committed => recorder.commits(&journal, work),
                    Ends::RolledBack | Ends::Refused => recorder.comes_to_nothing(&journal, work),
                }
                journal.close().unwrap();
            },
        )
    }
}

/// More than rides in the log.
const LARGE: usize = 100_000;
/// More than are synced one by one.
pub(super) const MANY: usize = 12;

fn large(txn: &mut Transaction, files: usize) -> Result<()> {
    for n in 0..files {
        let bytes = vec![b'a' + n as u8; LARGE + n];
        txn.write_from(format!("large/{n}.bin"), &mut &bytes[..])?;
    }
    txn.write_from("large-before.bin", &mut &[b'z'; LARGE][..])?;
    title(txn, "large", "Large")
}

fn title(txn: &mut Transaction, path: &str, title: &str) -> Result<()> {
    let (path, title) = (path.to_owned(), title.to_owned());
    txn.sql(move |rows| rows.execute("INSERT INTO doc VALUES (?1, ?2)", (&*path, &*title)).map(drop))
}

pub(super) fn all() -> Vec<Workload> {
    let mut all = vec![
        Workload::staged("small", |txn, _| {
            txn.write("pages/old.md", "overwritten\n")?;
            txn.write("pages/new.md", "new\n")?;
            title(txn, "pages/new.md", "New")
        }),
        Workload::staged("many small", |txn, _| {
            txn.write("pages/old.md", "overwritten\n")?;
            (0..3 * MANY).try_for_each(|n| txn.write(format!("many/{n}.md"), format!("{n}, of many\n")))?;
            title(txn, "many", "Many")
        }),
        Workload::staged("removed", |txn, _| {
            txn.remove("pages/gone.md")?;
            txn.symlink("pages/kept.md", "link")?;
            txn.create_dir_all("pages/made")?;
            title(txn, "pages/made", "Made")
        }),
        Workload::staged("contents", |txn, outside| crash_points::change(txn, "contents", outside)),
        Workload::staged("structure", |txn, outside| crash_points::change(txn, "structure", outside)),
        Workload::staged("some large", |txn, _| large(txn, 2)),
        Workload::staged("many large", |txn, _| large(txn, MANY)),
        // To open a journal, which makes it, is what every recording begins with.
        Workload::new("making", prepare_bare, |_| ()),
        Workload::new("in a row", |root| crash_points::prepare(root).unwrap(), in_a_row),
        Workload::new("edited by hand", |root| crash_points::prepare(root).unwrap(), edited_by_hand),
        Workload::new("edited after a rollback", guards::prepare, edited_after_a_rollback),
        Workload::new("removed under a guard", guards::prepare, removed_under_a_guard),
        Workload::new("replaced under a guard", guards::prepare, replaced_under_a_guard),
        Workload::new("database, committed", prepare_database, |recorder| database(recorder, true)),
        Workload::new("database, rolled back", prepare_database, |recorder| database(recorder, false)),
        Workload::new("append, committed", prepare_log, |recorder| append(recorder, true)),
        Workload::new("append, rolled back", prepare_log, |recorder| append(recorder, false)),
        Workload::new("large under a guard", prepare_large, large_under_a_guard),
        Workload::new("run", |root| crash_points::prepare(root).unwrap(), run),
        Workload::new("messages", crash_points::messages::prepare, messages::work),
        Workload::new("blobs", |root| crash_points::prepare(root).unwrap(), blobs::work),
    ];
    all.extend(guards::WORKLOADS.map(Workload::guarded));
    all
}

/// A tree that never had a journal.
fn prepare_bare(root: &Path) {
    fs::create_dir_all(root.join("pages")).unwrap();
    fs::write(root.join("pages/mine.md"), "mine").unwrap();
    manifest::age(root);
}

/// Transactions of one process, while the earlier ones are settled beside them.
fn in_a_row(recorder: &Recorder<'_>) {
    let journal = recorder.open(Journal::options().settle_paths(1), SOON / 20);
    for n in 0..8 {
        recorder.commits(&journal, || {
            let done = journal.transact(|txn| {
                txn.write("pages/old.md", format!("overwritten {n} times\n"))?;
                txn.write(format!("row/{n}.md"), format!("{n} in a row\n"))?;
                match n {
                    2 => txn.remove("row/0.md")?,
                    3 => txn.write_from("row/large.bin", &mut &vec![b'l'; LARGE][..]).map(drop)?,
                    4 => txn.rename("row/1.md", "pages/one.md")?,
                    5 => txn.write("row/large.bin", "small now\n")?,
                    _ => {}
                }
                title(txn, &format!("row/{n}.md"), "In a row")
            });
            done.unwrap();
        });
    }
    journal.close().unwrap();
}

/// What is settled is everybody's again: what somebody writes there later, and syncs, stays. What moves something is settled when
/// its commit returns.
fn edited_by_hand(recorder: &Recorder<'_>) {
    let journal = recorder.open(Journal::options(), 10 * SOON);
    recorder.commits(&journal, || {
        let done = journal.transact(|txn| {
            txn.write("pages/old.md", "overwritten\n")?;
            txn.rename("pages/moved.md", "pages/here.md")?;
            title(txn, "pages/here.md", "Here")
        });
        done.unwrap();
    });
    recorder.commits(&journal, || {
        by_hand(recorder, "pages/old.md");
    });
    journal.close().unwrap();
}

/// The same where a guard was, that is over.
fn edited_after_a_rollback(recorder: &Recorder<'_>) {
    let journal = recorder.open_used();
    recorder.comes_to_nothing(&journal, || {
        let mut txn = journal.begin("nothing").unwrap();
        txn.guard_paths(["pages/one.md", "pages/two.md"]).unwrap();
        fs::write(recorder.root.join("pages/one.md"), "by the program\n").unwrap();
        recorder.breathe();
        txn.rollback().unwrap();
    });
    recorder.commits(&journal, || by_hand(recorder, "pages/one.md"));
    journal.close().unwrap();
}

/// Adds a line to a file as editors do it: at once, and durably.
fn by_hand(recorder: &Recorder<'_>, path: &str) {
    let (aside, path) = (recorder.outside.join("by-hand"), recorder.root.join(path));
    let content = [&fs::read(&path).unwrap()[..], b"by hand\n"].concat();
    let mut file = File::create(&aside).unwrap();
    file.write_all(&content).unwrap();
    file.sync_all().unwrap();
    fs::rename(aside, &path).unwrap();
    File::open(path.parent().unwrap()).unwrap().sync_all().unwrap();
}

/// What has nothing but its directory to be synced.
fn removed_under_a_guard(recorder: &Recorder<'_>) {
    let journal = recorder.open_used();
    recorder.commits(&journal, || {
        let mut txn = journal.begin("removed").unwrap();
        txn.guard_paths(["pages/two.md", "pages/link"]).unwrap();
        fs::remove_file(recorder.root.join("pages/two.md")).unwrap();
        fs::remove_file(recorder.root.join("pages/link")).unwrap();
        recorder.breathe();
        title(&mut txn, "pages/two.md", "Removed").unwrap();
        txn.commit().unwrap();
    });
    journal.close().unwrap();
}

/// Old versions that are only links: first put back, then not.
fn replaced_under_a_guard(recorder: &Recorder<'_>) {
    let journal = recorder.open_used();
    let replace = |txn: &mut Transaction| {
        txn.guard_with(Guard::paths(["pages/one.md", "pages/two.md"]).replacing()).unwrap();
        recorder.breathe();
        for name in ["pages/one.md", "pages/two.md"] {
            let aside = recorder.outside.join("aside");
            fs::write(&aside, format!("{name}, by the program\n")).unwrap();
            fs::rename(aside, recorder.root.join(name)).unwrap();
        }
        recorder.breathe();
    };
    recorder.comes_to_nothing(&journal, || {
        let mut txn = journal.begin("put back").unwrap();
        replace(&mut txn);
        txn.rollback().unwrap();
    });
    recorder.commits(&journal, || {
        let mut txn = journal.begin("replaced").unwrap();
        replace(&mut txn);
        title(&mut txn, "pages/one.md", "Replaced").unwrap();
        txn.commit().unwrap();
    });
    journal.close().unwrap();
}

fn prepare_database(root: &Path) {
    guards::prepare(root);
    let database = Connection::open(root.join("pages/index.db")).unwrap();
    database
        .execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE t (n, b); INSERT INTO t VALUES (0, randomblob(9000))")
        .unwrap();
    drop(database);
    manifest::age(root);
}

/// A SQLite database in a guarded tree, written to and left with its log.
fn database(recorder: &Recorder<'_>, commits: bool) {
    let journal = recorder.open_used();
    let work = |txn: &mut Transaction| {
        txn.guard("pages").unwrap();
        recorder.breathe();
        let database = Connection::open(recorder.root.join("pages/index.db")).unwrap();
        database
            .execute_batch("UPDATE t SET b = randomblob(9000); INSERT INTO t VALUES (1, randomblob(20000))")
            .unwrap();
        drop(database);
        fs::write(recorder.root.join("pages/one.md"), "one, by the program\n").unwrap();
        recorder.breathe();
    };
    ends(recorder, journal, commits, "pages/index.db", work);
}

/// A transaction in which a program works under a guard, and that then commits, with a row, or is rolled back.
fn ends(recorder: &Recorder<'_>, journal: Journal, commits: bool, row: &str, work: impl Fn(&mut Transaction)) {
    let mut txn = journal.begin("guarded").unwrap();
    if commits {
        recorder.commits(&journal, || {
            work(&mut txn);
            title(&mut txn, row, "Guarded").unwrap();
            txn.commit().unwrap();
        });
    } else {
        recorder.comes_to_nothing(&journal, || {
            work(&mut txn);
            txn.rollback().unwrap();
        });
    }
    journal.close().unwrap();
}

fn prepare_log(root: &Path) {
    guards::prepare(root);
    for n in 0..2 {
        fs::write(root.join(format!("{n}.log")), "a line\n".repeat(3000)).unwrap();
    }
    manifest::age(root);
}

fn append(recorder: &Recorder<'_>, commits: bool) {
    let journal = recorder.open_used();
    let work = |txn: &mut Transaction| {
        txn.guard_with(Guard::append(["0.log", "1.log"])).unwrap();
        recorder.breathe();
        for n in 0..2 {
            let mut log = File::options().append(true).open(recorder.root.join(format!("{n}.log"))).unwrap();
            log.write_all("a further line\n".repeat(2000).as_bytes()).unwrap();
            recorder.breathe();
        }
    };
    ends(recorder, journal, commits, "0.log", work);
}

fn prepare_large(root: &Path) {
    guards::prepare(root);
    for n in 0..MANY {
        fs::write(root.join(format!("pages/{n}.bin")), vec![b'a' + n as u8; 20_000]).unwrap();
    }
    manifest::age(root);
}

/// Files of several blocks, of which each is guarded, overwritten in place and put back; then the same again, and kept.
fn large_under_a_guard(recorder: &Recorder<'_>) {
    let journal = recorder.open_used();
    let names = |count: usize| (0..count).map(|n| format!("pages/{n}.bin"));
    let overwrite = |count: usize| {
        for (n, name) in names(count).enumerate() {
            let mut file = File::options().write(true).open(recorder.root.join(name)).unwrap();
            file.write_all(&vec![b'A' + n as u8; 9_000]).unwrap();
        }
        recorder.breathe();
    };
    // Fewer and more than are synced one by one.
    for count in [2, MANY] {
        let mut txn = journal.begin("large").unwrap();
        recorder.comes_to_nothing(&journal, || {
            txn.guard_paths(names(count)).unwrap();
            recorder.breathe();
            overwrite(count);
            txn.rollback().unwrap();
        });
    }
    for count in [2, MANY] {
        recorder.commits(&journal, || {
            let mut txn = journal.begin("large").unwrap();
            txn.guard_paths(names(count)).unwrap();
            recorder.breathe();
            overwrite(count);
            title(&mut txn, &format!("{count}"), "Large").unwrap();
            txn.commit().unwrap();
        });
    }
    journal.close().unwrap();
}

/// Items of a run: recorded alone, with their effects, and set aside. What is banked stays so, and an item is on record as
/// tried before it is.
fn run(recorder: &Recorder<'_>) {
    let journal = recorder.open_used();
    let Started::Running(run) = journal.run_with(Job::new("job").tries(1)).unwrap() else {
        panic!("nobody else runs it")
    };
    recorder.commits(&journal, || run.record("first").unwrap());
    let mut pending = run.pending(vec!["one", "two", "bad"]);
    for item in ["one", "two"] {
        assert_eq!(pending.next(), Some(item));
        let mut txn = None;
        // The try of the second one came with the commit of the first.
        match item {
            "one" => recorder.commits(&journal, || txn = Some(run.begin(item).unwrap())),
            _ => txn = Some(run.begin(item).unwrap()),
        }
        let mut txn = txn.expect("it was begun");
        recorder.commits(&journal, || {
            txn.write(format!("done/{item}.md"), "done\n").unwrap();
            title(&mut txn, item, "Done").unwrap();
            txn.commit().unwrap();
        });
    }
    assert_eq!(pending.next(), Some("bad"));
    recorder.commits(&journal, || {
        let _ = run.fail("bad", "it is bad").unwrap();
        run.flush().unwrap();
    });
    drop(pending);
    recorder.commits(&journal, || {
        (0..50).for_each(|n| run.record(&n).unwrap());
        run.set_cursor(&50).unwrap();
        run.flush().unwrap();
    });
    recorder.commits(&journal, || assert_eq!(run.finish().unwrap(), Ended::Finished { banked: 53, set_aside: 1 }));
    journal.close().unwrap();
}
