//! What a lost lock means: for work that is not finished, that has finished, that has failed; and who is told.

use std::fs;
use std::sync::mpsc;
use std::time::Duration;

use journal_kb::{Begin, Error, Flight, Journal, Message};

use crate::support::Tree;

const LONG: Duration = Duration::from_secs(60);

fn raw(tree: &Tree) -> rusqlite::Connection {
    rusqlite::Connection::open(tree.path(".journal/journal.db")).unwrap()
}

/// Replaces a lock file by hand.
fn replace(tree: &Tree, name: &str) {
    let file = tree.path(".journal/locks").join(format!("{name}.lock"));
    fs::remove_file(&file).unwrap();
    fs::write(&file, "").unwrap();
}

fn losses(tree: &Tree) -> i64 {
    raw(tree).query_row("SELECT coalesce(max(losses), 0) FROM journal_lock", (), |row| row.get(0)).unwrap()
}

#[test]
fn work_that_is_not_finished_when_its_lock_is_lost_leaves_nothing() {
    for by_file in [true, false] {
        let tree = Tree::new();
        let journal = Journal::options().heartbeat(Duration::from_millis(30)).open(tree.root()).unwrap();
        journal.migrate(&["CREATE TABLE t (x INTEGER) STRICT"]).unwrap();
        let lock = journal.lock("a").unwrap();
        let fence = lock.fence().unwrap();
        let stop = lock.stop_token();
        let mut txn = lock.begin("").unwrap();
        let own_stop = txn.stop_token();
        txn.write("f", b"f").unwrap();
        txn.sql(|rows| rows.execute("INSERT INTO t VALUES (1)", ()).map(drop)).unwrap();
        assert!(txn.is_held() && !stop.requested());
        match by_file {
            true => replace(&tree, "a"),
            false => drop(raw(&tree).execute("UPDATE journal_lock SET fence = fence + 1", ()).unwrap()),
        }
        assert!(stop.wait(LONG) && own_stop.requested(), "nobody has told it");
        assert!(stop.reason().unwrap().contains("lost") && !lock.is_held() && !txn.is_held());
        let next_use = txn.write("g", b"g");
        assert!(matches!(&next_use, Err(error) if error.is_lock_lost()), "{next_use:?}");
        let committed = txn.commit();
        assert!(matches!(&committed, Err(error) if error.is_lock_lost()), "{committed:?}");
        let written = lock.write(|rows| rows.execute("INSERT INTO t VALUES (2)", ()));
        assert!(matches!(&written, Err(error) if error.is_lock_lost()), "{written:?}");
        assert!(matches!(lock.begin(""), Err(error) if error.is_lock_lost()));
        assert!(by_file || !fence.is_current().unwrap());
        assert_eq!(lock.release().len(), 1, "it is said");
        assert!(!tree.path("f").exists() && !tree.path("g").exists());
        let rows: i64 = journal.read(|rows| rows.query_row("SELECT count(*) FROM t", (), |row| row.get(0))).unwrap();
        assert_eq!((rows, losses(&tree)), (0, 1), "by file: {by_file}");
        // And the next one comes by as if nothing had been.
        journal.lock("a").unwrap().begin("").unwrap().commit().unwrap();
    }
}

#[test]
fn a_loss_is_seen_inside_commit_at_the_latest() {
    for recorded in [true, false] {
        let tree = Tree::new();
        // No heartbeat comes in time.
        let journal = Journal::options().heartbeat(LONG).open(tree.root()).unwrap();
        journal.migrate(&["CREATE TABLE t (x INTEGER) STRICT"]).unwrap();
        drop(journal.lock("a").unwrap().fence().unwrap());
        let lock = journal.lock("a").unwrap();
        if recorded {
            lock.fence().unwrap();
        }
        let txn = lock.begin("").unwrap();
        raw(&tree).execute("UPDATE journal_lock SET fence = fence + 100", ()).unwrap();
        let written = lock.write(|rows| rows.execute("INSERT INTO t VALUES (2)", ()));
        assert!(matches!(&written, Err(error) if error.is_lock_lost()), "{written:?}");
        assert!(matches!(txn.commit(), Err(error) if error.is_lock_lost()));
        assert!(lock.stop_token().requested(), "it is known now");
        let rows: i64 = journal.read(|rows| rows.query_row("SELECT count(*) FROM t", (), |row| row.get(0))).unwrap();
        assert_eq!((rows, losses(&tree)), (0, 1));
    }
}

#[test]
fn work_that_has_finished_or_failed_when_its_lock_is_lost_keeps_its_outcome() {
    let tree = Tree::new();
    let journal = tree.journal();
    let ran = journal.single_flight("a", |lock| {
        let mut txn = lock.begin("")?;
        txn.write("f", b"f")?;
        let receipt = txn.commit()?;
        replace(&tree, "a");
        Ok(receipt.id())
    });
    let Ok(Flight::Ran(id)) = ran else { panic!("{ran:?}") };
    assert_eq!((fs::read(tree.path("f")).unwrap(), losses(&tree)), (b"f".to_vec(), 1));
    let warned: i64 = raw(&tree)
        .query_row("SELECT count(*) FROM journal_event WHERE kind = 'lock' AND level = 'warn'", (), |row| row.get(0))
        .unwrap();
    assert_eq!(warned, 1, "a success with a warning: {id}");
    let failed = journal.single_flight("a", |lock| -> journal_kb::Result<()> {
        lock.fence()?;
        replace(&tree, "a");
        Err(Error::caller("my own"))
    });
    assert!(matches!(failed, Err(Error::Caller(error)) if error.to_string() == "my own"));
    let unfinished = journal.single_flight("a", |lock| {
        let mut txn = lock.begin("")?;
        txn.write("g", b"g")?;
        replace(&tree, "a");
        txn.commit().map(drop)
    });
    assert!(matches!(&unfinished, Err(error) if error.is_lock_lost()), "{unfinished:?}");
    assert!(!tree.path("g").exists());
}

#[test]
fn a_release_waits_for_nobody_and_is_recorded_when_it_can_be() {
    let tree = Tree::new();
    let (journal, second) = (tree.journal(), tree.journal());
    let lock = journal.lock("a").unwrap();
    lock.fence().unwrap();
    // Somebody writes for long.
    let turnstile = fs::File::open(tree.path(".journal/turnstile.lock")).unwrap();
    fs4::FileExt::lock(&turnstile).unwrap();
    assert!(lock.release().is_empty());
    assert!(second.holder("a").unwrap().is_none(), "it is free");
    let next = second.lock("a").unwrap();
    fs4::FileExt::unlock(&turnstile).unwrap();
    next.fence().unwrap();
    drop(next);
    let row = || -> (i64, i64, bool) {
        let row = "SELECT acquisitions, crashes, session IS NULL FROM journal_lock WHERE name = 'a'";
        raw(&tree).query_row(row, (), |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).unwrap()
    };
    let recorded = (0..1000).any(|_| {
        std::thread::sleep(Duration::from_millis(5));
        row() == (2, 0, true)
    });
    assert!(recorded, "acquired twice, no crash, released: {:?}", row());
    // A journal that is closed at once says so before it goes.
    drop(second.lock("a").unwrap().fence().unwrap());
    second.close().unwrap();
    assert_eq!(row(), (3, 0, true));
    assert_eq!(losses(&tree), 0);
}

#[test]
#[expect(unsafe_code, reason = "puts another descriptor in the place of a lock's")]
fn a_release_that_fails_after_a_success_is_a_warning() {
    let tree = Tree::new();
    let journal = tree.journal();
    let lock = journal.lock("a").unwrap();
    lock.begin("").unwrap().commit().unwrap();
    let file = fs::canonicalize(tree.path(".journal/locks/a.lock")).unwrap();
    let is_it = |fd: &fs::DirEntry| fs::read_link(fd.path()).is_ok_and(|link| link == file);
    let fd = fs::read_dir("/proc/self/fd").unwrap().map(Result::unwrap).find(is_it).unwrap();
    let fd: i32 = fd.file_name().to_str().unwrap().parse().unwrap();
    // A descriptor on which nothing can be locked takes its place.
    let path = rustix::fs::open(tree.root(), rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
    // SAFETY: the number is open, and stays so; the lock's owner closes it.
    assert_eq!(unsafe { libc::dup3(std::os::fd::AsRawFd::as_raw_fd(&path), fd, libc::O_CLOEXEC) }, fd);
    let warnings = lock.release();
    assert!(warnings.len() == 1 && warnings[0].to_string().contains("could not be released"), "{warnings:?}");
    journal.lock("a").unwrap().begin("").unwrap().commit().unwrap();
}

#[test]
fn an_acquisition_that_was_undone_takes_the_lock_from_nobody() {
    for same_session in [true, false] {
        let tree = Tree::new();
        let (one, two) = (tree.journal(), tree.journal());
        let next = if same_session { &one } else { &two };
        for round in 0..5 {
            let mut txn = one.begin_with(Begin::new("").lock("a")).unwrap();
            txn.sql(|rows| rows.execute("INSERT INTO nothing VALUES (1)", ()).map(drop)).unwrap();
            txn.commit().unwrap_err();
            // Its fence was undone with it, and goes to whoever comes next.
            let lock = next.lock("a").unwrap();
            lock.write(|_| Ok(())).unwrap();
            // Once that is on record, the background has written all that it had to of what came before.
            let behind = one.lock("behind").unwrap();
            let recorded = "SELECT count(*) FROM journal_lock WHERE name = 'behind' AND session IS NOT NULL";
            let began = std::time::Instant::now();
            while raw(&tree).query_row(recorded, (), |row| row.get::<_, i64>(0)).unwrap() == 0 {
                assert!(began.elapsed() < LONG, "the background sleeps");
                std::thread::sleep(Duration::from_millis(2));
            }
            assert_eq!(behind.release().len(), 0);
            let committed = lock.begin("").unwrap().commit();
            assert!(committed.is_ok(), "same session: {same_session}, round {round}: {committed:?}");
        }
        assert_eq!(losses(&tree), 0);
    }
}

/// Else it would go on with what it has read, beside whoever has the topic now, and behind a removal of theirs.
#[test]
fn who_has_lost_its_topic_publishes_nothing_more() {
    let tree = Tree::new();
    let journal = Journal::options().heartbeat(Duration::from_millis(30)).open(tree.root()).unwrap();
    (0..3).for_each(|_| _ = journal.transact(|txn| txn.send("t", "a", "x")).unwrap());
    let ((tell, told), (go_on, goes_on)) = (mpsc::channel(), mpsc::channel::<()>());
    let publisher = move |message: &Message| {
        tell.send(message.version).unwrap();
        let _ = goes_on.recv();
        Ok(())
    };
    let drainer = journal.drainer("t", publisher).start().unwrap();
    assert_eq!(told.recv_timeout(LONG).unwrap(), 1);
    // It has had its lock for long enough to be on record.
    let is_so = |what: &str, sql: &str| {
        let is = || raw(&tree).query_row(sql, (), |row| row.get::<_, bool>(0)).unwrap();
        let so = (0..6000).any(|_| {
            std::thread::sleep(Duration::from_millis(10));
            is()
        });
        assert!(so, "{what}");
    };
    is_so("it is on record", "SELECT count(*) = 1 FROM journal_lock WHERE name = 'outbox:t'");
    replace(&tree, "outbox%3at");
    is_so("it is told", "SELECT max(losses) = 1 FROM journal_lock");

    let other = tree.journal();
    other.transact(|txn| txn.retire("t", "a")).unwrap();
    let (tell, others) = mpsc::channel();
    let publisher = move |message: &Message| {
        tell.send(message.version).unwrap();
        Ok(())
    };
    assert_eq!(other.drainer("t", publisher).start().unwrap().close(LONG).unwrap(), 0);
    assert_eq!(others.iter().collect::<Vec<_>>(), [4]);
    drop(go_on);
    assert_eq!(drainer.close(LONG).unwrap(), 0);
    assert_eq!(told.iter().collect::<Vec<_>>(), [0; 0], "behind the removal");
}
