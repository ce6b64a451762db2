//! What was found wrong with the outbox and the change feed when they were attacked: a test for each.

use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use journal_kb::{Acquire, Journal, Message, PublishError, StopToken, TxnId};

use crate::runs::count;
use crate::skip;
use crate::support::{Tree, child, child_root};

const LONG: Duration = Duration::from_secs(30);

fn send(journal: &Journal, key: &str) {
    journal.transact(|txn| txn.send("t", key, "x")).unwrap();
}

fn name(message: &Message) -> String {
    format!("{}{}", message.key, message.version)
}

/// Runs a test as a child of strace, which has some system calls take their time; none, and it is said, where there is no strace.
fn slow_child(test: &str, tree: &Tree, delay: &str) -> Option<Child> {
    let test = child(test, tree.root());
    let mut traced = Command::new("strace");
    traced.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("inject={delay}")]);
    traced.arg(test.get_program()).args(test.get_args());
    traced.envs(test.get_envs().filter_map(|(key, value)| Some((key, value?))));
    let child = traced.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok();
    if child.is_none() {
        skip::skip("a slow disk needs strace");
    }
    child
}

/// Ends it, and says whether it had done what it had to.
fn end(mut child: Child) {
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
}

/// Keeps everything as it is until whoever has started this process has seen enough.
fn stay() {
    let _ = std::io::Read::read(&mut std::io::stdin(), &mut [0]);
}

#[test]
fn what_becomes_visible_long_after_it_was_written_is_heard() {
    let tree = Tree::new();
    let journal = tree.journal();
    let (told, hears) = mpsc::channel();
    let publisher = move |message: &Message| {
        told.send(name(message)).unwrap();
        Ok(())
    };
    let drainer = journal.drainer("t", publisher).start().unwrap();
    let mut follow = journal.follow(TxnId::from(0), &StopToken::new()).unwrap();
    let Some(child) = slow_child("outbox_review::sending_child", &tree, "fsync,fdatasync:delay_enter=400ms") else {
        return;
    };
    assert!(follow.next_within(LONG).unwrap().is_some(), "the commit is told of");
    assert_eq!(hears.recv_timeout(LONG).unwrap(), "a1");
    end(child);
    drop(drainer);
}

#[test]
fn sending_child() {
    let Some(root) = child_root() else { return };
    let journal = Journal::open(root).unwrap();
    send(&journal, "a");
    stay();
}

#[test]
fn nobody_is_told_before_the_files_are_in_place() {
    let tree = Tree::new();
    let journal = tree.journal();
    let (told, hears) = mpsc::channel();
    let path = tree.path("f");
    let publisher = move |_: &Message| {
        told.send(path.exists()).unwrap();
        Ok(())
    };
    let drainer = journal.drainer("t", publisher).start().unwrap();
    let mut follow = journal.follow(TxnId::from(0), &StopToken::new()).unwrap();
    let delay = "rename,renameat,renameat2,link,linkat:delay_enter=500ms";
    let Some(child) = slow_child("outbox_review::writing_child", &tree, delay) else { return };
    let commit = follow.next_within(LONG).unwrap().unwrap();
    assert!(tree.path("f").exists(), "{commit:?} is told of before it is there");
    assert!(hears.recv_timeout(LONG).unwrap(), "the message comes before what it tells of");
    end(child);
    drop(drainer);
}

#[test]
fn writing_child() {
    let Some(root) = child_root() else { return };
    let journal = Journal::open(root).unwrap();
    journal.transact(|txn| txn.write("f", "x").and_then(|()| txn.send("t", "a", "x"))).unwrap();
    stay();
}

#[test]
fn a_publisher_may_commit_and_does_not_wait_for_itself() {
    let tree = Tree::new();
    let journal = tree.journal();
    let (told, hears) = mpsc::channel();
    let own = journal.clone();
    let publisher = move |message: &Message| {
        if message.key == "a" {
            send(&own, "b");
        }
        told.send(name(message)).unwrap();
        Ok(())
    };
    let drainer = journal.drainer("t", publisher).inline(LONG * 10).start().unwrap();
    let sender = journal.clone();
    let sends = std::thread::spawn(move || send(&sender, "a"));
    assert_eq!(hears.recv_timeout(LONG).unwrap(), "a1");
    assert_eq!(hears.recv_timeout(LONG).unwrap(), "b1");
    sends.join().unwrap();
    assert_eq!(drainer.close(LONG).unwrap(), 0);
}

#[test]
fn a_commit_does_not_wait_for_a_topic_that_somebody_else_is_at() {
    let tree = Tree::new();
    let (journal, other) = (tree.journal(), tree.journal());
    let drainer = journal.drainer("t", |_: &Message| Ok(())).inline(LONG * 10).start().unwrap();
    let lock = other.lock_with(Acquire::new("outbox:t")).unwrap();
    let (done, is_done) = mpsc::channel();
    let sends = std::thread::spawn(move || {
        send(&journal, "a");
        done.send(()).unwrap();
    });
    is_done.recv_timeout(LONG).expect("the commit waits for a drainer that cannot have its turn");
    drop(lock);
    sends.join().unwrap();
    assert_eq!(drainer.close(LONG).unwrap(), 0);
}

#[test]
fn a_row_that_makes_no_sense_is_set_aside_and_the_others_go() {
    let tree = Tree::new();
    let journal = tree.journal();
    ["a", "b", "c", "d"].iter().for_each(|key| send(&journal, key));
    let db = rusqlite::Connection::open(tree.path(".journal/journal.db")).unwrap();
    db.execute_batch(
        "UPDATE journal_outbox SET version = -1 WHERE key = 'a'; \
         DELETE FROM journal_outbox_key WHERE key = 'b'; \
         UPDATE journal_outbox SET attempts = 4294967295 WHERE key = 'c'; \
         UPDATE journal_outbox_key SET version = -5, floor = -5 WHERE key = 'd'; \
         INSERT INTO journal_outbox (id, topic, key, version, fence, state, enqueued_ms) \
           VALUES (9223372036854775807, 't', 'e', 1, 1, 'pending', 1), (-7, 't', 'f', 1, 1, 'pending', 1)",
    )
    .unwrap();
    let told = Arc::new(Mutex::new(Vec::new()));
    let tells = Arc::clone(&told);
    let publisher = move |message: &Message| {
        tells.lock().unwrap().push(name(message));
        match message.key.as_str() {
            "c" => Err(PublishError::Refused("once too often".into())),
            _ => Ok(()),
        }
    };
    let drainer = journal.drainer("t", publisher).start().unwrap();
    assert_eq!(drainer.close(LONG).unwrap(), 0);
    assert_eq!(*told.lock().unwrap(), ["f1", "b1", "c1", "d1", "e1"]);
    let parked = "SELECT count(*) FROM journal_outbox WHERE state = 'parked'";
    assert_eq!(count(&tree, &format!("{parked} AND key = 'a' AND error <> ''")), 1);
    assert_eq!(count(&tree, &format!("{parked} AND key = 'c'")), 1);
    // A key that says of itself what cannot be begins again.
    db.execute("UPDATE journal_outbox_key SET version = -5 WHERE key = 'd'", ()).unwrap();
    send(&journal, "d");
    assert_eq!(count(&tree, "SELECT version FROM journal_outbox WHERE key = 'd'"), 1);
}

#[test]
fn that_a_message_is_parked_is_on_record_before_the_next_one_of_its_key_goes() {
    let tree = Tree::new();
    let journal = tree.journal();
    (0..3).for_each(|_| send(&journal, "a"));
    let path = tree.path(".journal/journal.db");
    let (told, hears) = mpsc::channel();
    let publisher = move |message: &Message| {
        if message.version == 1 {
            return Err(PublishError::Park("no".into()));
        }
        let db = rusqlite::Connection::open(&path).unwrap();
        let sql = "SELECT count(*) FROM journal_outbox WHERE state = 'parked'";
        told.send(db.query_row(sql, (), |row| row.get::<_, i64>(0)).unwrap()).unwrap();
        std::mem::forget(db);
        Ok(())
    };
    let drainer = journal.drainer("t", publisher).start().unwrap();
    let parked: Vec<i64> = (0..2).map(|_| hears.recv_timeout(LONG).unwrap()).collect();
    assert_eq!(parked, [1, 1], "after a crash the first one would go behind those that it was to go before");
    assert_eq!(drainer.close(LONG).unwrap(), 0);
}

#[test]
fn what_was_published_is_not_published_again_because_that_could_not_be_written_down() {
    let tree = Tree::new();
    let journal = Journal::options().turn_wait(Duration::from_millis(100)).open(tree.root()).unwrap();
    (0..3).for_each(|_| send(&journal, "a"));
    let calls = Arc::new(AtomicUsize::new(0));
    let counts = Arc::clone(&calls);
    let (at_it, go_on) = (mpsc::channel(), mpsc::channel());
    let (tell, wait) = (at_it.0, go_on.1);
    let publisher = move |message: &Message| {
        counts.fetch_add(1, Ordering::SeqCst);
        if message.version == 1 {
            tell.send(()).unwrap();
            wait.recv().unwrap();
        }
        Ok(())
    };
    let drainer = journal.drainer("t", publisher).probe(Duration::from_millis(50)).start().unwrap();
    at_it.1.recv_timeout(LONG).unwrap();
    // Somebody else writes for long.
    let db = rusqlite::Connection::open(tree.path(".journal/journal.db")).unwrap();
    db.execute_batch("BEGIN IMMEDIATE").unwrap();
    (0..100).for_each(|_| _ = go_on.0.send(()));
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(calls.load(Ordering::SeqCst), 3, "each once");
    db.execute_batch("ROLLBACK").unwrap();
    assert_eq!(drainer.close(LONG).unwrap(), 0);
    assert_eq!(calls.load(Ordering::SeqCst), 3, "each once");
}

#[test]
fn what_is_committed_behind_a_key_that_waits_does_not_go_through_all_of_that_again() {
    let tree = Tree::new();
    let journal = tree.journal();
    journal.transact(|txn| (0..2000).try_for_each(|_| txn.send("t", "stuck", "x"))).unwrap();
    let down = Arc::new(AtomicBool::new(true));
    let is_down = Arc::clone(&down);
    let publisher = move |message: &Message| match message.key == "stuck" && is_down.load(Ordering::SeqCst) {
        true => Err(PublishError::Refused("not yet".into())),
        false => Ok(()),
    };
    let backoff = Duration::from_millis(300);
    let drainer =
        journal.drainer("t", publisher).refusals(1000).backoff(backoff).probe(backoff).inline(LONG).start().unwrap();
    for n in 0..50 {
        send(&journal, &format!("k{n}"));
    }
    assert_eq!(count(&tree, "SELECT count(*) FROM journal_outbox WHERE key <> 'stuck'"), 0, "the others go");
    down.store(false, Ordering::SeqCst);
    let healed = (0..6000).any(|_| {
        std::thread::sleep(Duration::from_millis(5));
        count(&tree, "SELECT count(*) FROM journal_outbox") == 0
    });
    assert!(healed, "and so does what has waited");
    assert_eq!(drainer.close(LONG).unwrap(), 0);
}

#[test]
fn what_a_follower_makes_of_a_commit_is_there_once_though_two_follow_under_its_name() {
    let tree = Tree::new();
    let journal = tree.journal();
    journal.migrate(&["CREATE TABLE counter (n INTEGER)", "INSERT INTO counter VALUES (0)"]).unwrap();
    (0..3).for_each(|n| send(&journal, &n.to_string()));
    let other = tree.journal();
    let both = [journal.follower("index").unwrap(), other.follower("index").unwrap()];
    let feeds = both.each_ref().map(|follower| follower.changes().unwrap());
    for (follower, changes) in both.iter().zip(feeds) {
        for commit in changes {
            let more = |rows: &journal_kb::Rows<'_>| rows.execute("UPDATE counter SET n = n + 1", ()).map(drop);
            follower.advance_with(commit.unwrap().id, more).unwrap();
        }
    }
    assert_eq!(count(&tree, "SELECT n FROM counter"), 3);
}

#[test]
fn a_publisher_that_does_not_return_keeps_nobody_from_closing() {
    let tree = Tree::new();
    let journal = tree.journal();
    send(&journal, "a");
    let ((tell, hear), (go_on, wait)) = (mpsc::channel(), mpsc::channel::<()>());
    let publisher = move |_: &Message| {
        tell.send(()).unwrap();
        let _ = wait.recv();
        Ok(())
    };
    let drainer = journal.drainer("t", publisher).start().unwrap();
    hear.recv_timeout(LONG).unwrap();
    assert_eq!(drainer.close(Duration::from_millis(10)).unwrap(), 1);
    drop(go_on);
    // What the sink has taken after all is not sent again.
    let is_over = (0..6000).any(|_| {
        std::thread::sleep(Duration::from_millis(5));
        count(&tree, "SELECT count(*) FROM journal_outbox") == 0
    });
    assert!(is_over);
}

#[test]
fn a_commit_that_is_repeated_under_its_key_sends_nothing_again() {
    let tree = Tree::new();
    let journal = tree.journal();
    for _ in 0..3 {
        let mut txn = journal.begin_with(journal_kb::Begin::new("").key("once")).unwrap();
        txn.send("t", "a", "x").unwrap();
        txn.commit().unwrap();
    }
    assert_eq!(count(&tree, "SELECT count(*) FROM journal_outbox"), 1);
}

#[test]
fn a_change_that_cannot_be_read_is_not_passed_over_in_silence() {
    let tree = Tree::new();
    let journal = tree.journal();
    journal.transact(|txn| ["a", "b", "c"].iter().try_for_each(|path| txn.write(path, "x"))).unwrap();
    let db = rusqlite::Connection::open(tree.path(".journal/journal.db")).unwrap();
    assert_eq!(db.execute("UPDATE journal_change SET path = x'2e2e' WHERE path = x'62'", ()).unwrap(), 1);
    let commits: Vec<_> = journal.changes(TxnId::from(0)).map(Result::unwrap).collect();
    assert_eq!((commits.len(), commits[0].changes.len(), commits[0].unreadable), (1, 2, 1));
    // An error ends it, too: nobody goes round for ever.
    db.execute("DROP TABLE journal_change", ()).unwrap();
    assert_eq!(journal.changes(TxnId::from(0)).filter(Result::is_err).count(), 1);
}

#[test]
fn what_waits_behind_a_message_goes_when_that_has_gone_though_the_sink_goes_away_just_then() {
    let tree = Tree::new();
    let journal = tree.journal();
    journal.transact(|txn| ["a", "a", "b", "b", "c"].iter().try_for_each(|key| txn.send("t", key, "x"))).unwrap();
    let (told, hears) = mpsc::channel();
    let (mut tries, mut a_is_through) = (std::collections::BTreeMap::new(), false);
    let publisher = move |message: &Message| {
        let tried = tries.entry(name(message)).or_insert(0);
        *tried += 1;
        match (name(message).as_str(), *tried) {
            ("a1" | "b1", 1) => return Err(PublishError::Refused("not yet".into())),
            ("b1", 2) => return Err(PublishError::Unavailable("gone for a moment".into())),
            ("b1", _) if !a_is_through => return Err(PublishError::Refused("not yet".into())),
            ("a2", _) => a_is_through = true,
            // Until both of them are due.
            ("c1", 1) => std::thread::sleep(Duration::from_millis(50)),
            _ => {}
        }
        told.send(name(message)).unwrap();
        Ok(())
    };
    let often = Duration::from_millis(1);
    let drainer = journal.drainer("t", publisher).backoff(often).probe(often).refusals(u32::MAX).start().unwrap();
    let mut heard: Vec<_> = (0..5).map(|_| hears.recv_timeout(LONG).expect("all of them")).collect();
    assert_eq!(heard[..2], ["c1", "a1"]);
    heard.sort();
    assert_eq!(heard, ["a1", "a2", "b1", "b2", "c1"]);
    assert_eq!(drainer.close(LONG).unwrap(), 0);
}

#[test]
fn what_a_person_has_tried_again_goes_before_a_newer_one_that_is_due() {
    let tree = Tree::new();
    let journal = tree.journal();
    journal.transact(|txn| (0..3).try_for_each(|_| txn.send("t", "a", "x"))).unwrap();
    let (told, hears) = mpsc::channel();
    let healed = Arc::new(AtomicBool::new(false));
    let is_healed = Arc::clone(&healed);
    let publisher = move |message: &Message| {
        let answer = match (message.version, is_healed.load(Ordering::SeqCst)) {
            (1, false) => Err(PublishError::Park("no".into())),
            (2, false) => Err(PublishError::Refused("not yet".into())),
            _ => Ok(()),
        };
        told.send((name(message), answer.is_ok())).unwrap();
        answer
    };
    // The newer one is due long after the other is heard of.
    let drainer = journal.drainer("t", publisher).backoff(Duration::from_secs(3)).start().unwrap();
    let next = || hears.recv_timeout(LONG).unwrap();
    assert_eq!([next(), next()], [("a1".into(), false), ("a2".into(), false)]);
    healed.store(true, Ordering::SeqCst);
    assert_eq!(journal.outbox().retry_parked(None).unwrap().waiting, 1);
    assert_eq!([next(), next(), next()], ["a1", "a2", "a3"].map(|name| (name.to_owned(), true)));
    assert_eq!(drainer.close(LONG).unwrap(), 0);
}
