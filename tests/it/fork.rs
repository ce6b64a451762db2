//! A forked child keeps no lock of its parent's, can do nothing with its journal, and does nothing to it.
#![allow(unsafe_code, reason = "no safe crate forks")]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use journal_kb::inspect::Inspector;
use journal_kb::{Acquire, Begin, Ended, Error, Journal, NewBlob, Started};

use crate::support::{Tree, child, child_root, wait_for_word};

/// After so many seconds whatever hangs is killed.
const WATCHDOG: u32 = 60;

/// Forks. The child does `work`, and ends with what it answers.
fn fork(work: impl FnOnce() -> i32) -> libc::pid_t {
    // SAFETY: the child goes on with a copy of this thread; what others hold it does not touch, or that is what is tested.
    match unsafe { libc::fork() } {
        0 => {
            // SAFETY: takes no pointers.
            unsafe { libc::alarm(WATCHDOG) };
            let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).unwrap_or(101);
            // SAFETY: it never returns.
            unsafe { libc::_exit(code) }
        }
        child => {
            assert!(child > 0, "{}", std::io::Error::last_os_error());
            child
        }
    }
}

/// Waits for a forked child; what it ended with, or less than 0 when it was killed.
fn wait(child: libc::pid_t) -> i32 {
    let mut status = 0;
    // SAFETY: `status` outlives the call.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child, "{}", std::io::Error::last_os_error());
    if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { -1 }
}

fn sleep_on() -> i32 {
    loop {
        std::thread::sleep(Duration::from_secs(1));
    }
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < Duration::from_secs(u64::from(WATCHDOG)), "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A process that does not outlive the test.
struct Killed(libc::pid_t);

impl Drop for Killed {
    fn drop(&mut self) {
        // SAFETY: no pointers.
        unsafe { libc::kill(self.0, libc::SIGKILL) };
    }
}

/// True when the kernel says that a process waits for a lock.
fn waits(process: u32) -> bool {
    let locks = fs::read_to_string("/proc/locks").unwrap();
    locks.lines().any(|line| line.contains("->") && line.contains(&format!(" {process} ")))
}

/// The lock files that a process has open.
fn lock_files(process: &str) -> Vec<String> {
    let fds = fs::read_dir(format!("/proc/{process}/fd")).unwrap();
    let links = fds.filter_map(|fd| fs::read_link(fd.unwrap().path()).ok());
    links.map(|link| link.display().to_string()).filter(|link| link.ends_with(".lock")).collect()
}

/// The root of a process that is to play a part here, with a watchdog of its own.
fn role() -> Option<PathBuf> {
    // SAFETY: takes no pointers.
    child_root().inspect(|_| _ = unsafe { libc::alarm(WATCHDOG) })
}

/// Runs a test of this file as a process of its own, which has to end well.
fn succeeds(test: &str, tree: &Tree) {
    let output = child(test, tree.root()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn refused<T>(what: &str, outcome: Result<T, Error>) {
    assert!(matches!(outcome, Err(Error::Forked)), "{what}: {:?}", outcome.err());
}

fn integrity(journal: &Journal) {
    let database = rusqlite::Connection::open(journal.root().join(".journal/journal.db")).unwrap();
    let said: String = database.query_row("PRAGMA integrity_check", (), |row| row.get(0)).unwrap();
    assert_eq!(said, "ok");
}

#[test]
fn everything_a_dead_parent_held_is_free_while_its_child_lives() {
    let tree = Tree::new();
    let journal = tree.journal();
    drop(journal.begin_with(Begin::new("").lock("queue")).unwrap());
    let queue = fs::File::open(tree.path(".journal/locks/queue.lock")).unwrap();
    fs4::FileExt::lock(&queue).unwrap();
    let mut parent: Child = child("fork::a_parent_that_forks_within_its_turn", tree.root()).spawn().unwrap();
    wait_for_word(&mut parent, "forked");
    let forked: i32 = fs::read_to_string(tree.path("forked")).unwrap().parse().unwrap();
    let _ends = Killed(forked);
    // Whoever waits in the parent is handed this one, through a descriptor that it opened before it forked.
    drop(queue);
    until("the lock is not handed on", || !waits(parent.id()));
    parent.kill().unwrap();
    parent.wait().unwrap();
    // As soon as it runs at all: the parent may be told of it before. (It ends by itself, too, some time later.)
    let has_none = (0..1000).any(|_| {
        std::thread::sleep(Duration::from_millis(5));
        lock_files(&forked.to_string()).is_empty()
    });
    assert!(has_none, "{:?}", lock_files(&forked.to_string()));
    for lock in ["main", "queue"] {
        let mut txn = journal.begin_with(Begin::new("").lock(lock).wait(Duration::from_secs(10))).unwrap();
        txn.write(lock, b"mine").unwrap();
        txn.commit().unwrap();
    }
    let sessions = Inspector::open(tree.root()).unwrap().sessions().unwrap();
    assert_eq!(sessions.iter().filter(|session| session.alive == Some(true)).count(), 1, "{sessions:?}");
    // SAFETY: no pointers.
    assert_eq!(unsafe { libc::kill(forked, libc::SIGKILL) }, 0, "the child has lived until now");
}

#[test]
fn a_parent_that_forks_within_its_turn() {
    let Some(root) = role() else { return };
    let journal = Journal::open(&root).unwrap();
    let waiter = journal.clone();
    std::thread::spawn(move || waiter.begin_with(Begin::new("").lock("queue")).map(std::mem::forget));
    until("nobody waits", || waits(std::process::id()));
    let mut txn = journal.begin("").unwrap();
    txn.write("main", b"never").unwrap();
    txn.sql(move |_| {
        let forked = fork(sleep_on);
        fs::write(root.join("forked"), forked.to_string()).unwrap();
        println!("forked");
        loop {
            std::thread::park();
        }
    })
    .unwrap();
    drop(txn.commit());
}

#[test]
fn a_child_can_do_nothing_with_its_parents_journal_and_harms_nothing() {
    succeeds("fork::a_parent_whose_child_tries_everything", &Tree::new());
}

#[test]
fn a_parent_whose_child_tries_everything() {
    let Some(root) = role() else { return };
    fs::write(root.join("guarded"), "before").unwrap();
    let journal = Journal::open(&root).unwrap();
    let inspector = Inspector::open(&root).unwrap();
    let alone = journal.lock("alone").unwrap();
    let mut guarding = journal.begin_with(Begin::new("guarding").lock("guarding")).unwrap();
    guarding.guard_paths(["guarded"]).unwrap();
    fs::write(root.join("guarded"), "after").unwrap();
    let mut staged = journal.begin_with(Begin::new("staged").lock("staged")).unwrap();
    staged.write("large", vec![7; 1 << 20]).unwrap();
    let unused = Journal::open(&root).unwrap();
    let Started::Running(run) = journal.run("job", "").unwrap() else { panic!("somebody has it") };
    run.record("first").unwrap();
    // Large enough that another thread hashes it, and with a rest that is not written yet.
    let mut blob = journal.blobs().create_with(NewBlob::new().id("blob").size(6_000_000)).unwrap();
    blob.write_all(&[7; 6_000_000]).unwrap();
    let mut sealed_with = Some(journal.blobs().create().unwrap());
    sealed_with.as_mut().unwrap().write_all(&[8; 300_000]).unwrap();
    staged.record(&run, "staged").unwrap();
    let of_root = root.clone();
    // The fork copies all of it, and the child drops its copies.
    let mut open = Some((journal, staged, guarding, alone, inspector, unused, run, blob));
    let forked = fork(|| {
        let (journal, mut staged, mut guarding, alone, inspector, unused, run, blob) = open.take().unwrap();
        refused("create a blob", journal.blobs().create());
        refused("open a blob", journal.blobs().open("blob"));
        refused("sweep blobs", journal.blobs().sweep(false));
        refused("seal with a transaction", staged.seal(sealed_with.take().unwrap()));
        refused("seal", blob.seal());
        refused("run", journal.run("other", ""));
        refused("record", run.record("of a child"));
        refused("begin an item", run.begin("of a child"));
        refused("attempt", run.attempt("of a child"));
        refused("fail", run.fail("of a child", "why"));
        refused("cursor", run.set_cursor(&1));
        refused("replace", run.replace(["of a child"]));
        refused("flush", run.flush());
        refused("finish", run.finish());
        refused("begin", journal.begin(""));
        refused("transact", journal.transact(|_| Ok(())));
        refused("read", journal.read(|_| Ok(())));
        refused("settle", journal.settle());
        refused("recover", journal.recover());
        refused("migrate", journal.migrate(&["CREATE TABLE t (x)"]));
        refused("write", staged.write("other", b"x"));
        refused("read a file", guarding.read("guarded"));
        refused("staging", staged.staging());
        refused("guard", guarding.guard_paths(["large"]));
        refused("open", Journal::open(&of_root));
        refused("inspect", Inspector::open(&of_root));
        refused("inspector", inspector.status());
        refused("lock", journal.lock("other"));
        refused("shared lock", journal.lock_with(Acquire::new("other").shared()));
        refused("single flight", journal.single_flight("other", |_| Ok(())));
        refused("holder", journal.holder("alone"));
        refused("begin under a lock", alone.begin(""));
        refused("write under a lock", alone.write(|_| Ok(())));
        refused("fence", alone.fence());
        assert!(!alone.is_held());
        assert_eq!(alone.release().len(), 0);
        refused("rollback", guarding.rollback());
        refused("commit", staged.commit());
        refused("close", journal.clone().close());
        drop((journal, unused));
        0
    });
    assert_eq!(wait(forked), 0);
    let (journal, mut staged, guarding, alone, _, unused, run, blob) = open.unwrap();
    assert_eq!(blob.seal().unwrap().as_str(), "blob");
    let opened = journal.blobs().opener().verify(true).open("blob").unwrap();
    assert_eq!(opened.read_at(&mut [0; 1], 0).unwrap(), 1);
    let sealed_with = staged.seal(sealed_with.unwrap()).unwrap();
    assert_eq!(fs::read(root.join("guarded")).unwrap(), b"after", "nothing was put back");
    let other = Journal::open(&root).unwrap();
    assert!(alone.is_held() && other.try_lock("alone").unwrap().is_none());
    for lock in ["guarding", "staged"] {
        let taken = other.begin_with(Begin::new("").lock(lock).wait(Duration::ZERO));
        assert!(taken.as_ref().is_err_and(Error::is_busy), "{taken:?}");
    }
    let sessions = Inspector::open(&root).unwrap().sessions().unwrap();
    assert_eq!(sessions.iter().filter(|session| session.alive == Some(true)).count(), 3, "{sessions:?}");
    unused.transact(|txn| txn.write("unused", b"x")).unwrap();
    staged.sql(|rows| rows.execute("CREATE TABLE t (x)", ()).map(drop)).unwrap();
    staged.commit().unwrap();
    assert_eq!(journal.blobs().open(&sealed_with).unwrap().len(), 300_000);
    guarding.commit().unwrap();
    run.record("second").unwrap();
    assert_eq!(run.finish().unwrap(), Ended::Finished { banked: 3, set_aside: 0 });
    alone.begin("").unwrap().commit().unwrap();
    assert_eq!(alone.release().len(), 0);
    assert_eq!(fs::read(root.join("large")).unwrap(), vec![7; 1 << 20]);
    integrity(&journal);
    journal.close().unwrap();
    integrity(&other);
    other.close().unwrap();
}

#[test]
fn a_child_forked_inside_commit_leaves_the_commit_to_its_parent() {
    succeeds("fork::a_parent_that_forks_inside_commit", &Tree::new());
}

#[test]
fn a_parent_that_forks_inside_commit() {
    let Some(root) = role() else { return };
    let journal = Journal::open(&root).unwrap();
    journal.migrate(&["CREATE TABLE t (who TEXT)"]).unwrap();
    let parent = std::process::id();
    let mut txn = journal.begin("").unwrap();
    txn.write("large", vec![7; 1 << 20]).unwrap();
    let (send, children) = std::sync::mpsc::channel();
    txn.sql(move |rows| {
        // More than SQLite keeps in memory: some of it is in the log, and in the log's index, which the child shares.
        rows.execute(
            "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 4000) \
             INSERT INTO t SELECT 'before' || hex(randomblob(1000)) FROM n",
            (),
        )?;
        // SAFETY: as in `fork`; this child goes on as its parent does.
        let forked = unsafe { libc::fork() };
        if forked == 0 {
            // SAFETY: takes no pointers.
            unsafe { libc::alarm(WATCHDOG) };
            refused("a statement", rows.execute("INSERT INTO t VALUES ('child')", ()));
            return Ok(());
        }
        send.send(forked).unwrap();
        assert_eq!(wait(forked), 0);
        rows.execute("UPDATE t SET who = substr(who, 1, 6)", ())?;
        rows.execute("INSERT INTO t VALUES ('after')", ()).map(drop)
    })
    .unwrap();
    let outcome = txn.commit();
    if std::process::id() != parent {
        refused("commit", outcome);
        drop(journal);
        // SAFETY: it never returns.
        unsafe { libc::_exit(0) };
    }
    outcome.unwrap();
    assert_eq!(children.iter().count(), 1);
    assert_eq!(fs::read(root.join("large")).unwrap(), vec![7; 1 << 20]);
    let who = |journal: &Journal| {
        let sql = "SELECT who, count(*) FROM t GROUP BY who";
        journal.read(|rows| rows.query_map(sql, (), |row| Ok((row.get(0)?, row.get(1)?)))).unwrap()
    };
    let all = [("after".to_owned(), 1), ("before".to_owned(), 4000)];
    assert_eq!(who(&journal), all);
    integrity(&journal);
    journal.close().unwrap();
    assert_eq!(who(&Journal::open(&root).unwrap()), all);
}

#[test]
fn a_child_may_open_what_its_parent_has_closed() {
    succeeds("fork::a_parent_that_closes_before_it_forks", &Tree::new());
}

#[test]
fn a_parent_that_closes_before_it_forks() {
    let Some(root) = role() else { return };
    let write = |root: &Path, name: &str| {
        let journal = Journal::open(root).unwrap();
        journal.transact(|txn| txn.write(name, b"x")).unwrap();
        journal.close().unwrap();
    };
    write(&root, "parent");
    let forked = fork(|| {
        write(&root, "child");
        0
    });
    assert_eq!(wait(forked), 0);
    assert!(root.join("parent").exists() && root.join("child").exists());
    write(&root, "again");
}

#[test]
fn no_child_has_a_lock_file_whenever_it_is_forked() {
    succeeds("fork::a_parent_that_forks_while_it_opens_lock_files", &Tree::new());
}

#[test]
fn a_parent_that_forks_while_it_opens_lock_files() {
    const FORKS: usize = 100;
    let Some(root) = role() else { return };
    let journal = Journal::open(&root).unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let (journal, stop) = (&journal, &stop);
            scope.spawn(move || {
                // More names than lock files stay open.
                for n in (0..).take_while(|_| !stop.load(std::sync::atomic::Ordering::Relaxed)) {
                    let name = format!("{thread} {}", n % 50);
                    drop(journal.begin_with(Begin::new("").lock(name)).unwrap());
                }
            });
        }
        let codes: Vec<i32> =
            (0..FORKS).map(|_| fork(|| i32::try_from(lock_files("self").len()).unwrap())).map(wait).collect();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(codes, [0; FORKS]);
    });
    assert!(lock_files("self").len() > 3, "the parent has them open");
}
