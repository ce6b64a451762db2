//! What a person says of messages: tried again they go in order, dropped they never go, and no version goes backwards.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use journal_kb::{Error, Journal, Message, PublishError, Retried};

use crate::runs::count;
use crate::support::Tree;

const LONG: Duration = Duration::from_secs(60);
const PARKED: &str = "SELECT count(*) FROM journal_outbox WHERE state = 'parked'";

fn send(journal: &Journal, key: &str) {
    journal.transact(|txn| txn.send("t", key, "x")).unwrap();
}

fn name(message: &Message) -> String {
    format!("{}{}", message.key, message.version)
}

/// Parks all that waits.
fn park(journal: &Journal) {
    let never = |_: &Message| Err(PublishError::Park("never".into()));
    assert_eq!(journal.drainer("t", never).start().unwrap().close(LONG).unwrap(), 0);
}

/// What a drainer tells until nothing waits.
fn told(journal: &Journal) -> Vec<String> {
    let (tell, hear) = mpsc::channel();
    let publisher = move |message: &Message| tell.send(name(message)).map_err(|_| PublishError::Park("gone".into()));
    assert_eq!(journal.drainer("t", publisher).start().unwrap().close(LONG).unwrap(), 0);
    hear.try_iter().collect()
}

#[test]
fn closing_publishes_what_stands_behind_a_message_that_is_parked() {
    let tree = Tree::new();
    let journal = tree.journal();
    (0..3).for_each(|_| send(&journal, "a"));
    let (tell, hear) = mpsc::channel();
    let publisher = move |message: &Message| match message.version {
        3 => tell.send(name(message)).map_err(|_| PublishError::Park("gone".into())),
        _ => Err(PublishError::Park("never".into())),
    };
    let drainer = journal.drainer("t", publisher).start().unwrap();
    assert_eq!(drainer.close(LONG).unwrap(), 0);
    assert_eq!((hear.try_iter().collect::<Vec<_>>(), count(&tree, PARKED)), (vec!["a3".to_owned()], 2));
}

#[test]
fn what_is_tried_again_goes_before_what_is_newer_and_waits() {
    let tree = Tree::new();
    let journal = tree.journal();
    send(&journal, "a");
    park(&journal);
    send(&journal, "a");
    send(&journal, "b");
    let down = Arc::new(AtomicBool::new(true));
    let is_down = Arc::clone(&down);
    let (tell, hear) = mpsc::channel();
    let publisher = move |message: &Message| match is_down.load(Ordering::SeqCst) && message.key == "a" {
        true => Err(PublishError::Refused("not yet".into())),
        false => tell.send(name(message)).map_err(|_| PublishError::Park("gone".into())),
    };
    // Between two tries there is time to do all this.
    let pause = Duration::from_secs(1);
    let drainer = journal.drainer("t", publisher).backoff(pause).probe(pause).refusals(1000).start().unwrap();
    assert_eq!(hear.recv_timeout(LONG).unwrap(), "b1");
    let parked = count(&tree, "SELECT id FROM journal_outbox WHERE state = 'parked'");
    let again = journal.outbox().retry(parked).unwrap().unwrap();
    assert_eq!((again.waiting, again.outdated, again.dropped), (1, 1, 0));
    down.store(false, Ordering::SeqCst);
    let heard: Vec<_> = (0..2).map(|_| hear.recv_timeout(LONG).unwrap()).collect();
    assert_eq!(heard, ["a1", "a2"]);
    assert_eq!(drainer.close(LONG).unwrap(), 0);
}

#[test]
fn a_drainer_that_has_nothing_to_do_hears_of_what_is_tried_again() {
    let tree = Tree::new();
    let (journal, other) = (tree.journal(), tree.journal());
    send(&journal, "a");
    park(&journal);
    send(&journal, "b");
    let (tell, hear) = mpsc::channel();
    let publisher = move |message: &Message| tell.send(name(message)).map_err(|_| PublishError::Park("gone".into()));
    let drainer = journal.drainer("t", publisher).start().unwrap();
    assert_eq!(hear.recv_timeout(LONG).unwrap(), "b1");
    assert_eq!(other.outbox().retry_parked(Some("other")).unwrap(), Retried::default());
    assert_eq!(other.outbox().retry_parked(Some("t")).unwrap().waiting, 1);
    assert_eq!(hear.recv_timeout(LONG).unwrap(), "a1");
    drop(drainer);
}

#[test]
fn what_was_retired_does_not_come_back_by_being_tried_again() {
    let tree = Tree::new();
    let journal = tree.journal();
    ["a", "b", "a"].iter().for_each(|key| send(&journal, key));
    park(&journal);
    journal.transact(|txn| txn.retire("t", "a")).unwrap();
    assert_eq!(told(&journal), ["a3"], "the removal");
    let again = journal.outbox().retry_parked(None).unwrap();
    assert_eq!((again.waiting, again.outdated, again.dropped), (1, 0, 2));
    assert_eq!(told(&journal), ["b1"]);
    assert_eq!(count(&tree, "SELECT count(*) FROM journal_outbox"), 0);
    assert_eq!(journal.outbox().retry(1).unwrap(), None);
}

#[test]
fn a_message_that_waits_and_is_tried_again_may_be_refused_as_often_as_a_new_one() {
    let tree = Tree::new();
    let journal = tree.journal();
    send(&journal, "a");
    let refusing = |_: &Message| Err(PublishError::Refused("no".into()));
    let drain = || {
        let drainer = journal.drainer("t", refusing).refusals(2).backoff(LONG * 10).start().unwrap();
        drainer.close(LONG).unwrap()
    };
    assert_eq!((drain(), count(&tree, "SELECT attempts FROM journal_outbox")), (1, 1));
    let id = count(&tree, "SELECT id FROM journal_outbox");
    assert_eq!(journal.outbox().retry(id).unwrap().unwrap().waiting, 1);
    assert_eq!((drain(), count(&tree, "SELECT attempts FROM journal_outbox")), (1, 1));
    assert_eq!((drain(), count(&tree, PARKED)), (0, 1));
}

#[test]
fn what_is_dropped_is_gone_and_its_versions_are_not_used_again() {
    let tree = Tree::new();
    let journal = tree.journal();
    ["a", "a", "b"].iter().for_each(|key| send(&journal, key));
    journal.transact(|txn| txn.send("u", "a", "x")).unwrap();
    let first = count(&tree, "SELECT min(id) FROM journal_outbox");
    assert!(journal.outbox().discard(first).unwrap());
    assert!(!journal.outbox().discard(first).unwrap());
    assert_eq!(journal.outbox().discard_topic("t", true).unwrap(), 0, "nothing is parked");
    park(&journal);
    send(&journal, "a");
    assert_eq!(journal.outbox().discard_topic("t", true).unwrap(), 2);
    assert_eq!(told(&journal), ["a3"]);
    assert_eq!(journal.outbox().discard_topic("u", false).unwrap(), 1);
    assert_eq!(count(&tree, "SELECT count(*) FROM journal_outbox"), 0);
    journal.transact(|txn| txn.send("u", "a", "x")).unwrap();
    assert_eq!(count(&tree, "SELECT version FROM journal_outbox"), 2);
}

#[test]
fn nothing_is_dropped_that_somebody_has_in_hand() {
    let tree = Tree::new();
    let journal = tree.journal();
    ["a", "b"].iter().for_each(|key| send(&journal, key));
    let ids = [0, 1].map(|n| count(&tree, &format!("SELECT id FROM journal_outbox ORDER BY id LIMIT 1 OFFSET {n}")));
    let ((tell, hear), (go_on, wait)) = (mpsc::channel(), mpsc::channel::<()>());
    let publisher = move |message: &Message| {
        tell.send(name(message)).unwrap();
        let _ = wait.recv();
        Ok(())
    };
    let drainer = journal.drainer("t", publisher).start().unwrap();
    assert_eq!(hear.recv_timeout(LONG).unwrap(), "a1");
    // It has read both of them.
    assert!(matches!(journal.outbox().discard(ids[1]), Err(Error::Busy { .. })));
    assert!(matches!(journal.outbox().discard_topic("t", false), Err(Error::Busy { .. })));
    drop(go_on);
    assert_eq!(drainer.close(LONG).unwrap(), 0);
    assert!(!journal.outbox().discard(ids[1]).unwrap(), "it was published");
}

#[test]
fn more_messages_than_a_commit_takes_are_tried_again_and_dropped() {
    let tree = Tree::new();
    let journal = tree.journal();
    journal.transact(|txn| (0..2500).try_for_each(|n| txn.send("t", &n.to_string(), "x"))).unwrap();
    park(&journal);
    assert_eq!(count(&tree, PARKED), 2500);
    assert_eq!(journal.outbox().retry_parked(None).unwrap().waiting, 2500);
    assert_eq!(count(&tree, PARKED), 0);
    assert_eq!(journal.outbox().discard_topic("t", false).unwrap(), 2500);
    assert_eq!(count(&tree, "SELECT count(*) FROM journal_outbox"), 0);
}
