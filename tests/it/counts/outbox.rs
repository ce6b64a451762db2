//! The same counts of messages: what one adds to a commit, and what a sink costs that takes nothing, however much waits for it.

use std::sync::mpsc;
use std::time::Duration;

use journal_kb::{Journal, Message, PublishError};

use super::{Most, NO_ROOM, ROUNDS, allocations, journal, statements, system_calls};
use crate::support::{Tree, child_root};

const LONG: Duration = Duration::from_secs(60);
/// Messages that wait, of so many bytes: more than SQLite keeps in memory, and so is a batch of them.
const WAITING: usize = 2_000;
const PAYLOAD: usize = 10_000;
/// So many tries are looked at: others are at work beside some of them.
const TRIED: usize = 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Work {
    /// A transaction of one row.
    Row,
    /// The same, with a message of a new key, and of a key that has had others.
    RowSends,
    RowSendsAgain,
    /// A transaction of one file.
    File,
    FileSends,
    FileRetires,
}

const WORKS: [Work; 6] =
    [Work::Row, Work::RowSends, Work::RowSendsAgain, Work::File, Work::FileSends, Work::FileRetires];

/// For another version of std or SQLite, and what the background does in every round.
const ROOM: f64 = 1.1;

const SYNCS: Most<6> = Most { what: "device syncs, of all threads", most: [1; 6], room: NO_ROOM };
const STATEMENTS: Most<6> =
    Most { what: "SQL statements of the thread", most: [16, 17, 17, 17, 20, 20], room: NO_ROOM };
const CALLS: Most<6> = Most { what: "system calls of the thread", most: [27, 31, 31, 44, 50, 50], room: ROOM };
const ALLOCATIONS: Most<6> = Most { what: "allocations of the thread", most: [34, 39, 39, 66, 73, 72], room: ROOM };
/// Of a drainer, between one try and the next: taking the lock, reading one message, writing down what became of it, and looking for
/// others' commits meanwhile, as often as a millisecond allows.
const TRIES: Most<2> = Most { what: "system calls of a drainer that tries again", most: [36, 11], room: ROOM };

/// Of a drainer whose sink is back, from where it was away to the removal of a key that 500 messages wait of.
const PASSED: Most<1> =
    Most { what: "system calls of a drainer on its way past what nobody needs", most: [90], room: ROOM };

/// Does every work some times, each through `around`.
fn work_all(journal: &Journal, mut around: impl FnMut(Work, &mut dyn FnMut())) {
    // One that comes first, of each.
    for round in 0..=ROUNDS {
        for work in WORKS {
            let (path, key) = (format!("d/{work:?}-{round}"), format!("k{round}"));
            let mut commit = || {
                let mut txn = journal.begin("counted").unwrap();
                match work {
                    Work::Row | Work::RowSends | Work::RowSendsAgain => {
                        txn.sql(|rows| rows.execute("INSERT INTO n VALUES (1)", ()).map(drop)).unwrap();
                    }
                    Work::File | Work::FileSends | Work::FileRetires => txn.write(&path, [7; 4096]).unwrap(),
                }
                match work {
                    Work::Row | Work::File => {}
                    Work::FileRetires => txn.retire("t", &key).unwrap(),
                    Work::RowSendsAgain => txn.send_bytes("t", "again", [7; 100]).unwrap(),
                    Work::RowSends | Work::FileSends => txn.send_bytes("t", &key, [7; 100]).unwrap(),
                }
                txn.commit().unwrap();
            };
            if round == 0 { commit() } else { around(work, &mut commit) }
        }
    }
}

#[test]
fn a_message_adds_few_allocations() {
    let tree = Tree::new();
    let journal = journal(tree.root());
    let mut counted = Vec::new();
    work_all(&journal, |work, does| counted.push((work, allocations::of(does))));
    ALLOCATIONS.check(WORKS, counted);
}

#[test]
fn a_message_adds_no_sync_and_few_system_calls() {
    let Some(works) = system_calls::between_marks("counts::outbox::sending_child", &["-s", "0"]) else { return };
    let order = WORKS.repeat(ROUNDS);
    assert_eq!(works.len(), order.len(), "works between marks");
    let counted = works.iter().map(|calls| system_calls::syncs_and_all(calls));
    let (syncs, calls): (Vec<_>, Vec<_>) = counted.unzip();
    SYNCS.check(WORKS, order.iter().copied().zip(syncs));
    CALLS.check(WORKS, order.iter().copied().zip(calls));
}

/// The process that strace watches.
#[test]
fn sending_child() {
    let Some(root) = child_root() else { return };
    std::fs::create_dir_all(&root).unwrap();
    work_all(&journal(&root), |_, does| system_calls::between(does));
}

#[test]
fn a_message_adds_few_statements() {
    statements::passes_in_a_child("counts::outbox::traced_child");
}

/// The process whose statements are counted.
#[test]
fn traced_child() {
    let Some(root) = child_root() else { return };
    statements::trace_all();
    let mut counted = Vec::new();
    work_all(&journal(&root), |work, does| counted.push((work, statements::of(does))));
    STATEMENTS.check(WORKS, counted);
}

#[test]
fn a_sink_that_takes_nothing_costs_the_same_however_much_waits_for_it() {
    let Some(tries) = system_calls::between_marks("counts::outbox::trying_child", &["-s", "0"]) else { return };
    assert_eq!(tries.len(), 2 * TRIED, "tries between marks");
    let counted = tries.iter().map(|calls| system_calls::syncs_and_all(calls).1);
    let (refused, unreachable) = ("refused", "unreachable");
    let order = [refused, unreachable].into_iter().flat_map(|kind| std::iter::repeat_n(kind, TRIED));
    TRIES.check([refused, unreachable], order.zip(counted));
}

/// The process that strace watches: a `getppid` in every other call of a publisher, and in the one behind it.
#[test]
fn trying_child() {
    let Some(root) = child_root() else { return };
    std::fs::create_dir_all(&root).unwrap();
    let journal = journal(&root);
    for topic in ["refused", "unreachable"] {
        journal.transact(|txn| (0..WAITING).try_for_each(|_| txn.send_bytes(topic, "k", [7; PAYLOAD]))).unwrap();
    }
    for (topic, why) in [
        ("refused", PublishError::Refused("not yet".into())),
        ("unreachable", PublishError::Unavailable("down".into())),
    ] {
        let (asked, asks) = mpsc::channel();
        let mut times = 0;
        // The first ones go through all of it, and prepare statements.
        let first = 20;
        let publisher = move |_: &Message| {
            if (first..first + 2 * TRIED).contains(&times) {
                let _ = rustix::process::getppid();
            }
            times += 1;
            let _ = asked.send(times);
            Err(why.clone())
        };
        let often = Duration::from_millis(1);
        let drainer = journal.drainer(topic, publisher).probe(often).backoff(often).refusals(u32::MAX).start().unwrap();
        while asks.recv_timeout(LONG).unwrap() <= first + 2 * TRIED {}
        drop(drainer);
    }
}

/// One at a time they would never come to an end where others send as fast.
#[test]
fn a_sink_that_is_back_is_not_kept_waiting_by_what_nobody_needs_any_more() {
    let Some(passed) = system_calls::between_marks("counts::outbox::returning_child", &["-s", "0"]) else { return };
    assert_eq!(passed.len(), 1);
    PASSED.check(["retired"], passed.iter().map(|calls| ("retired", system_calls::syncs_and_all(calls).1)));
}

/// The process that strace watches: a `getppid` when its sink goes away, and when it is asked again.
#[test]
fn returning_child() {
    let Some(root) = child_root() else { return };
    std::fs::create_dir_all(&root).unwrap();
    let journal = journal(&root);
    let (others, mut times) = (journal.clone(), 0);
    let (told, hears) = mpsc::channel();
    let publisher = move |message: &Message| {
        times += 1;
        if times == 1 {
            let retired = others.transact(|txn| {
                (0..500).try_for_each(|_| txn.send_bytes("t", "k", [7; 100]))?;
                txn.retire("t", "k")
            });
            retired.unwrap();
        }
        let _ = rustix::process::getppid();
        if times == 1 {
            return Err(PublishError::Unavailable("away".into()));
        }
        told.send(message.is_removal).unwrap();
        Ok(())
    };
    journal.transact(|txn| txn.send_bytes("t", "k", [7; 100])).unwrap();
    let drainer = journal.drainer("t", publisher).start().unwrap();
    assert!(hears.recv_timeout(LONG).unwrap(), "of all that waited only the removal is news");
    drop(drainer);
}
