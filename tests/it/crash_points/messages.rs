//! Messages: committed with files and rows, and delivered to a sink that outlives the process, which takes some, refuses some for a
//! while, and some for good.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use journal_kb::{Drainer, Journal, Message, Publisher, Result};

use super::strace::End;
use super::sweep::Workload;
use crate::delivery::promise::Event;
use crate::delivery::sink::{self, Sink, TOPICS};

/// The process that is killed, and who drains what it has left.
const CHILD: u32 = 1;
const NEXT: u32 = 2;

/// Those of the child, from the past on: so their threads are known. They have read what waits, and publish it when it begins.
static DRAINERS: Mutex<Vec<Drainer>> = Mutex::new(Vec::new());
static BEGUN: AtomicBool = AtomicBool::new(false);
static WAITING: AtomicUsize = AtomicUsize::new(0);

pub(crate) fn registered() -> Vec<Workload> {
    let workload = |name: &'static str, drains: bool| Workload {
        past: Box::new(move |journal| {
            // Who looks what the past makes of the tree drains nothing.
            if drains && std::env::var_os("JOURNAL_KB_CHILD").is_some() {
                start(journal);
            }
        }),
        others: &[".sink"],
        also: wrong,
        ..Workload::new(name, prepare, work)
    };
    vec![workload("messages, drained", true), workload("messages, left to the next", false)]
}

/// Messages that nobody has delivered: of keys of their own, of one key in a row, and behind such as are not taken.
pub(crate) fn prepare(root: &Path) {
    super::prepare(root).unwrap();
    let journal = super::open(root);
    let pairs = [["taken", "taken"], ["later", "taken"], ["poison", "never"], ["taken", "later"]];
    for (n, words) in pairs.iter().enumerate() {
        let mut txn = journal.begin("past").unwrap();
        for (key, word) in ["a", "b"].iter().zip(words) {
            TOPICS
                .iter()
                .try_for_each(|topic| sink::send(&mut txn, topic, key, &format!("{word}-{n}"), false))
                .unwrap();
        }
        txn.commit().unwrap();
    }
    journal.close().unwrap();
}

/// Every commit waits for one of them, and for the other one none does.
fn start(journal: &Journal) {
    let start = |(topic, inline): (&&str, Duration)| {
        let mut publishes = sink::publisher(CHILD, Sink::beside(journal.root()).tells(), sink::answer);
        let publisher = move |message: &Message| {
            WAITING.fetch_add(1, Ordering::SeqCst);
            while !BEGUN.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(1));
            }
            publishes.publish(message)
        };
        sink::drainer(journal, topic, publisher).inline(inline).start().unwrap()
    };
    let inline = [Duration::from_millis(300), Duration::ZERO];
    *DRAINERS.lock().unwrap() = TOPICS.iter().zip(inline).map(start).collect();
    while WAITING.load(Ordering::SeqCst) < TOPICS.len() {
        std::thread::sleep(Duration::from_millis(1));
    }
    // By now the background has written down who holds which lock.
    std::thread::sleep(Duration::from_millis(40));
}

fn work(journal: &Journal, say: &dyn Fn(&str)) {
    BEGUN.store(true, Ordering::SeqCst);
    match commit(journal) {
        Ok(()) => say("committed"),
        Err(error) => say(&format!("not committed: {error}")),
    }
    let drainers: Vec<Drainer> = DRAINERS.lock().unwrap().drain(..).collect();
    if !drainers.is_empty() {
        // What was refused is tried again.
        std::thread::sleep(Duration::from_millis(30));
    }
    let mut left = 0;
    for drainer in drainers {
        left += drainer.close(Duration::from_secs(1)).unwrap_or(1);
    }
    say(if left == 0 { "nothing is left" } else { "something is left" });
}

fn commit(journal: &Journal) -> Result<()> {
    let mut txn = journal.begin("work")?;
    txn.write("pages/new.md", "new\n")?;
    txn.remove("pages/gone.md")?;
    txn.sql(|rows| rows.execute("INSERT INTO doc VALUES ('pages/new.md', 'New')", ()).map(drop))?;
    for topic in TOPICS {
        txn.write(sink::file(&format!("file-{topic}")), "told of\n")?;
        sink::send(&mut txn, topic, "a", "gone", true)?;
        sink::send(&mut txn, topic, "a", &format!("file-{topic}"), false)?;
        sink::send(&mut txn, topic, "b", "later-last", false)?;
        sink::send(&mut txn, topic, "c", "first", false)?;
    }
    txn.commit().map(drop)
}

/// What of the promise is broken.
fn wrong(root: &Path, end: &End) -> Vec<String> {
    let sink = Sink::beside(root);
    // Who was told an error may not have got written down what was taken.
    if end.killed || !end.said("nothing is left") {
        assert!(sink.tells()(&Event::Ended(CHILD)));
    }
    // A file that could not be put in place is pending, and was warned of.
    let is_told = |event: &Event| end.killed || !matches!(event, Event::Early(..));
    sink.broken(NEXT, is_told)
}
