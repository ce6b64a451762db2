//! The outbox: what is committed is told, at least once and in order for each key, and what is not is never told.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use journal_kb::{Coalesce, Error, Journal, Message, PublishError};

use crate::runs::count;
use crate::support::Tree;

const LONG: Duration = Duration::from_secs(60);

type Told = Arc<Mutex<Vec<(String, u64, String)>>>;

fn send(journal: &Journal, key: &str, text: &str) {
    journal.transact(|txn| txn.send("t", key, text)).unwrap();
}

/// Remembers what it is told.
fn teller(told: &Told) -> impl FnMut(&Message) -> Result<(), PublishError> + Send + use<> {
    let told = Arc::clone(told);
    move |message| {
        let text = if message.is_removal { "gone".to_owned() } else { message.read::<String>().unwrap() };
        told.lock().unwrap().push((message.key.clone(), message.version, text));
        Ok(())
    }
}

fn list(told: &Told) -> Vec<String> {
    told.lock().unwrap().iter().map(|(key, version, text)| format!("{key}{version} {text}")).collect()
}

#[track_caller]
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let so = (0..12_000).any(|_| {
        std::thread::sleep(Duration::from_millis(5));
        is_so()
    });
    assert!(so, "{what}");
}

#[test]
fn what_is_committed_is_told_and_nothing_else() {
    let tree = Tree::new();
    let journal = tree.journal();
    send(&journal, "a", "before anybody drains");
    let told = Told::default();
    let drainer = journal.drainer("t", teller(&told)).inline(LONG).start().unwrap();
    let mut txn = journal.begin("").unwrap();
    txn.send("t", "a", "never").unwrap();
    drop(txn);
    let mut txn = journal.begin("").unwrap();
    txn.send("t", "a", "never either").unwrap();
    txn.sql(|_| Err(Error::caller("no"))).unwrap();
    txn.commit().unwrap_err();
    let mut txn = journal.begin("").unwrap();
    txn.send("t", "a", "one").unwrap();
    txn.send("other", "a", "somebody else's").unwrap();
    txn.send("t", "b", "two").unwrap();
    txn.commit().unwrap();
    // The commit has waited for it.
    assert_eq!(list(&told), ["a1 before anybody drains", "a2 one", "b1 two"]);
    send(&journal, "a", "three");
    assert_eq!(list(&told).last().unwrap(), "a3 three");
    assert_eq!(drainer.close(LONG).unwrap(), 0);
    assert_eq!(count(&tree, "SELECT count(*) FROM journal_outbox"), 1);
    assert_eq!(count(&tree, "SELECT published FROM journal_outbox_topic WHERE topic = 't'"), 4);
    assert!(matches!(journal.transact(|txn| txn.send("", "a", "")), Err(Error::BadTopic { .. })));
}

#[test]
fn a_sink_that_cannot_be_reached_costs_no_message_and_is_asked_again() {
    let tree = Tree::new();
    let journal = tree.journal();
    let (down, asked, told) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(0)), Told::default());
    let publisher = {
        let (down, asked, mut tell) = (Arc::clone(&down), Arc::clone(&asked), teller(&told));
        move |message: &Message| {
            asked.fetch_add(1, Ordering::SeqCst);
            match down.load(Ordering::SeqCst) {
                true => Err(PublishError::Unavailable("down".into())),
                false => tell(message),
            }
        }
    };
    let drainer = journal.drainer("t", publisher).probe(Duration::from_millis(40)).start().unwrap();
    for n in 0..50 {
        send(&journal, "k", &n.to_string());
    }
    until("it is asked again and again", || asked.load(Ordering::SeqCst) > 60);
    assert_eq!(count(&tree, "SELECT count(*) FROM journal_outbox WHERE attempts = 0 AND state = 'pending'"), 50);
    // Healed without anything being written.
    down.store(false, Ordering::SeqCst);
    until("it heals", || told.lock().unwrap().len() == 50);
    assert_eq!(list(&told), (0..50).map(|n| format!("k{} {n}", n + 1)).collect::<Vec<_>>());
    assert_eq!(drainer.close(LONG).unwrap(), 0);
}

#[test]
fn a_refused_message_holds_up_its_own_key_alone_and_is_parked_in_the_end() {
    let tree = Tree::new();
    let journal = tree.journal();
    let told = Told::default();
    let publisher = {
        let mut tell = teller(&told);
        move |message: &Message| match message.read::<String>().unwrap().as_str() {
            "poison" => Err(PublishError::Refused("it is poison".into())),
            "never" => Err(PublishError::Park("not ever".into())),
            "panic" if message.attempts == 0 => panic!("a publisher"),
            _ => tell(message),
        }
    };
    for (key, text) in [("a", "poison"), ("a", "behind"), ("b", "one"), ("c", "never"), ("c", "two"), ("d", "panic")] {
        send(&journal, key, text);
    }
    let drainer = journal.drainer("t", publisher).refusals(5).backoff(Duration::from_millis(1)).start().unwrap();
    until("all but the parked ones are told", || told.lock().unwrap().len() == 4);
    let mut heard = list(&told);
    heard.sort();
    assert_eq!(heard, ["a2 behind", "b1 one", "c2 two", "d1 panic"]);
    assert_eq!(drainer.close(LONG).unwrap(), 0);
    let parked = "SELECT count(*) FROM journal_outbox WHERE state = 'parked'";
    assert_eq!(count(&tree, parked), 2);
    assert_eq!(count(&tree, &format!("{parked} AND key = 'a' AND attempts = 5 AND error LIKE '%poison%'")), 1);
}

#[test]
fn of_a_key_the_newest_alone_is_told_where_that_is_enough() {
    let tree = Tree::new();
    let journal = tree.journal();
    (0..600).for_each(|n| send(&journal, if n % 2 == 0 { "a" } else { "b" }, &n.to_string()));
    let told = Told::default();
    let drainer = journal.drainer("t", teller(&told)).coalesce(Coalesce::LatestPerKey).start().unwrap();
    assert_eq!(drainer.close(LONG).unwrap(), 0);
    assert_eq!(list(&told), ["a300 598", "b300 599"]);
}

#[test]
fn what_is_retired_is_not_resurrected() {
    let tree = Tree::new();
    let journal = tree.journal();
    send(&journal, "a", "one");
    send(&journal, "b", "one");
    journal.transact(|txn| txn.retire("t", "a")).unwrap();
    let told = Told::default();
    let drainer = journal.drainer("t", teller(&told)).start().unwrap();
    until("they are told", || told.lock().unwrap().len() >= 2);
    send(&journal, "a", "anew");
    assert_eq!(drainer.close(LONG).unwrap(), 0);
    assert_eq!(list(&told), ["b1 one", "a2 gone", "a3 anew"]);
}

#[test]
fn what_another_session_commits_is_heard() {
    let tree = Tree::new();
    let (journal, other) = (tree.journal(), tree.journal());
    let (told, hears) = mpsc::channel();
    let publisher = move |message: &Message| {
        told.send(message.version).unwrap();
        Ok(())
    };
    let drainer = journal.drainer("t", publisher).start().unwrap();
    for version in 1..=20 {
        send(&other, "a", "x");
        assert_eq!(hears.recv_timeout(LONG).unwrap(), version);
    }
    drop(drainer);
}

#[test]
fn two_drainers_of_a_topic_never_overlap_and_tell_everything_once() {
    let tree = Tree::new();
    let journals = [tree.journal(), tree.journal()];
    let (at_it, told) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
    let drainers = journals.each_ref().map(|journal| {
        let (at_it, told) = (Arc::clone(&at_it), Arc::clone(&told));
        let publisher = move |message: &Message| {
            assert!(!at_it.swap(true, Ordering::SeqCst), "two at once");
            told.lock().unwrap().push(message.id);
            at_it.store(false, Ordering::SeqCst);
            Ok(())
        };
        journal.drainer("t", publisher).start().unwrap()
    });
    for n in 0..300 {
        send(&journals[n % 2], &format!("{}", n % 7), "x");
    }
    for drainer in drainers {
        drainer.close(LONG).unwrap();
    }
    let told = told.lock().unwrap();
    let mut once = told.clone();
    once.sort_unstable();
    once.dedup();
    assert_eq!((told.len(), once.len()), (300, 300));
}

#[test]
fn what_is_left_at_the_end_is_counted_and_kept() {
    let tree = Tree::new();
    let journal = tree.journal();
    (0..10).for_each(|n| send(&journal, "a", &n.to_string()));
    let nobody = |_: &Message| Err(PublishError::Unavailable("down".into()));
    let drainer = journal.drainer("t", nobody).start().unwrap();
    assert_eq!(drainer.close(Duration::from_millis(50)).unwrap(), 10);
    drop(journal.drainer("t", nobody).start().unwrap());
    let told = Told::default();
    assert_eq!(journal.drainer("t", teller(&told)).start().unwrap().close(LONG).unwrap(), 0);
    assert_eq!(told.lock().unwrap().len(), 10);
}
