//! The change feed: every commit once, in order, for whoever follows, in whatever process.

use std::process::Stdio;
use std::sync::mpsc;
use std::time::Duration;

use journal_kb::{Journal, Message, StopToken, TxnId};

use crate::runs::count;
use crate::support::{Tree, child, child_root};

const LONG: Duration = Duration::from_secs(60);

fn put(journal: &Journal, path: &str) {
    journal.transact(|txn| txn.write(path, path)).unwrap();
}

fn told(commit: journal_kb::Result<journal_kb::Commit>) -> (i64, Vec<String>) {
    let commit = commit.unwrap();
    (commit.id.get(), commit.changes.iter().map(|change| change.path().display().to_string()).collect())
}

#[test]
fn every_commit_is_told_once_and_in_order() {
    let tree = Tree::new();
    let journal = tree.journal();
    (0..600).for_each(|n| put(&journal, &format!("f{n}")));
    let mut guarded = journal.begin("").unwrap();
    guarded.guard_paths(["f1"]).unwrap();
    std::fs::write(tree.path("f1"), "changed").unwrap();
    guarded.rollback().unwrap();
    let all: Vec<_> = journal.changes(TxnId::from(0)).map(told).collect();
    assert_eq!(
        all.iter().map(|(_, paths)| paths[0].clone()).collect::<Vec<_>>(),
        (0..600).map(|n| format!("f{n}")).collect::<Vec<_>>()
    );
    assert!(all.windows(2).all(|pair| pair[0].0 < pair[1].0));
    let mut behind = journal.changes(TxnId::from(all[597].0));
    assert_eq!(behind.by_ref().map(told).collect::<Vec<_>>(), all[598..]);
    put(&journal, "later");
    assert_eq!(behind.map(told).map(|(_, paths)| paths).collect::<Vec<_>>(), [["later"]]);
}

#[test]
fn who_follows_is_told_of_every_process_and_can_be_stopped() {
    let tree = Tree::new();
    let journal = tree.journal();
    let stop = StopToken::new();
    let follow = journal.follow(TxnId::from(0), &stop).unwrap();
    let (tell, hear) = mpsc::channel();
    let follower = std::thread::spawn(move || follow.map(told).for_each(|told| tell.send(told.1).unwrap()));
    for n in 0..20 {
        let path = format!("here{n}");
        put(&journal, &path);
        assert_eq!(hear.recv_timeout(LONG).unwrap(), [path]);
    }
    let mut other = child("feed::committing_child", tree.root()).stdout(Stdio::null()).spawn().unwrap();
    for n in 0..20 {
        assert_eq!(hear.recv_timeout(LONG).unwrap(), [format!("there{n}")]);
    }
    assert!(other.wait().unwrap().success());
    stop.stop("enough");
    follower.join().unwrap();
}

#[test]
fn committing_child() {
    let Some(root) = child_root() else { return };
    let journal = Journal::open(root).unwrap();
    for n in 0..20 {
        put(&journal, &format!("there{n}"));
        std::thread::sleep(Duration::from_millis(20));
    }
    // Open, so that the log is not touched any more.
    std::thread::sleep(Duration::from_millis(300));
}

#[test]
fn a_follower_goes_on_where_it_was() {
    let tree = Tree::new();
    let journal = tree.journal();
    journal.migrate(&["CREATE TABLE seen (path TEXT PRIMARY KEY)"]).unwrap();
    (0..10).for_each(|n| put(&journal, &format!("f{n}")));
    let follower = journal.follower("index").unwrap();
    for commit in follower.changes().unwrap().take(4) {
        let commit = commit.unwrap();
        let seen = |rows: &journal_kb::Rows<'_>| {
            let path = commit.changes[0].path().display().to_string();
            rows.execute("INSERT INTO seen VALUES (?1)", [path]).map(drop)
        };
        follower.advance_with(commit.id, seen).unwrap();
        // An error leaves both as they were.
        assert!(
            follower
                .advance_with(TxnId::from(10), |rows| rows.execute("INSERT INTO seen VALUES ('f0')", ()).map(drop))
                .is_err()
        );
    }
    drop(journal);
    let journal = tree.journal();
    let follower = journal.follower("index").unwrap();
    assert_eq!(count(&tree, "SELECT count(*) FROM seen"), 4);
    let rest: Vec<_> = follower.changes().unwrap().map(told).collect();
    assert_eq!(rest[0].1, ["f4"]);
    // Else it would miss what comes.
    let ahead = follower.advance(TxnId::from(11)).unwrap_err();
    assert!(matches!(ahead, journal_kb::Error::NotCommitted { txn } if txn.get() == 11), "{ahead}");
    follower.advance(TxnId::from(1)).unwrap();
    assert_eq!(follower.changes().unwrap().count(), rest.len(), "it never goes back");
    follower.forget().unwrap();
    assert_eq!(journal.follower("index").unwrap().changes().unwrap().count(), 10);
}

#[test]
fn a_commit_whose_names_are_no_text_is_told_like_any_other() {
    let tree = Tree::new();
    let journal = tree.journal();
    ["a", "b", "c"].iter().for_each(|path| put(&journal, path));
    let db = rusqlite::Connection::open(tree.path(".journal/journal.db")).unwrap();
    db.execute("UPDATE journal_txn SET label = CAST(x'ff' AS TEXT), lock = CAST(x'61ff' AS TEXT) WHERE id = 2", ())
        .unwrap();
    let told: Vec<_> = journal.changes(TxnId::from(0)).map(Result::unwrap).collect();
    assert_eq!(told.iter().map(|commit| commit.id.get()).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!((told[1].label.as_str(), told[1].lock.as_str()), ("\u{fffd}", "a\u{fffd}"));
}

#[test]
fn a_message_is_applied_once() {
    let tree = Tree::new();
    let journal = tree.journal();
    journal.migrate(&["CREATE TABLE counter (n INTEGER)", "INSERT INTO counter VALUES (0)"]).unwrap();
    let (tell, hear) = mpsc::channel::<Message>();
    let drainer = journal.drainer("t", move |message: &Message| {
        tell.send(message.clone()).unwrap();
        Ok(())
    });
    let drainer = drainer.start().unwrap();
    for _ in 0..3 {
        journal.transact(|txn| txn.send("t", "k", "x")).unwrap();
    }
    let messages: Vec<_> = (0..3).map(|_| hear.recv_timeout(LONG).unwrap()).collect();
    drop(drainer);
    let apply = |message: &Message| {
        journal.apply_once("me", message, |rows| rows.execute("UPDATE counter SET n = n + 1", ()).map(drop)).unwrap()
    };
    let applied: Vec<bool> = [0, 0, 2, 1, 2].map(|n| apply(&messages[n])).to_vec();
    assert_eq!(applied, [true, false, true, false, false]);
    assert_eq!(count(&tree, "SELECT n FROM counter"), 2);
    let failed = journal.apply_once("other", &messages[0], |_| Err(journal_kb::Error::caller("no")));
    assert!(failed.is_err());
    assert!(journal.apply_once("other", &messages[0], |_| Ok(())).unwrap());
}
