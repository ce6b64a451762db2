//! Processes that send messages and drain them, and are killed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use journal_kb::{Begin, Journal, Message, PublishError, Publisher, Result, Rows};
use rustix::process::{Pid, Signal, getpid, kill_process};

use super::promise::{Answer, Event, Offer};
use super::sink::{self, Sink, TOPICS};
use crate::crash_points::open;
use crate::guard_model::Random;
use crate::support;

const WHO: &str = "JOURNAL_KB_TEST_DELIVERY_WHO";
const STOPS: &str = "JOURNAL_KB_TEST_DELIVERY_STOPS";
/// Who drains what is left.
const LAST: u32 = u32::MAX;
const KEYS: [&str; 5] = ["a", "b", "c", "d", "e"];
const WORDS: [&str; 12] =
    ["taken", "taken", "taken", "file", "file", "file", "file", "later", "later", "poison", "never", "gone"];

/// Processes, the journal that they work on, and what they publish.
pub(super) struct Crew {
    home: tempfile::TempDir,
    places: Vec<Option<Member>>,
    /// Numbers are given out once.
    numbers: u32,
}

struct Member {
    who: u32,
    /// So long was the sink's log when it began.
    since: usize,
    child: Child,
}

impl Drop for Member {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Crew {
    /// Has so many processes begin their work.
    pub(super) fn start(processes: usize) -> Self {
        let home = support::directory();
        let mut crew = Self { home, places: Vec::new(), numbers: 0 };
        fs::create_dir(crew.root()).unwrap();
        open(&crew.root()).close().unwrap();
        for _ in 0..processes {
            let member = crew.spawn(false);
            crew.places.push(Some(member));
        }
        crew
    }

    pub(super) fn root(&self) -> PathBuf {
        self.home.path().join("root")
    }

    pub(super) fn sink(&self) -> Sink {
        Sink::beside(&self.root())
    }

    fn spawn(&mut self, stops: bool) -> Member {
        self.numbers += 1;
        let who = self.numbers;
        let mut command = support::child("delivery::crew::process", &self.root());
        command.env(WHO, who.to_string()).env(STOPS, stops.to_string());
        let said = File::create(self.said(who)).unwrap();
        command.stdin(Stdio::piped()).stdout(said.try_clone().unwrap()).stderr(said);
        Member { who, since: self.sink().length(), child: command.spawn().unwrap() }
    }

    fn said(&self, who: u32) -> PathBuf {
        self.home.path().join(format!("said.{who}"))
    }

    fn member(&mut self, place: usize) -> &mut Member {
        self.places[place].as_mut().expect("somebody is there")
    }

    /// Waits until something has happened; whoever has this place has to live until then.
    fn waits(&mut self, place: usize, mut happened: impl FnMut(&Self) -> bool) {
        while !happened(self) {
            if let Some(status) = self.member(place).child.try_wait().unwrap() {
                let who = self.member(place).who;
                panic!("{who} ended: {status}: {}", fs::read_to_string(self.said(who)).unwrap());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits until whoever has this place has published something, or others have published much, and then for so many lines more.
    pub(super) fn waits_for_offers(&mut self, place: usize, more: usize) {
        let Member { who, since, .. } = *self.member(place);
        let line = "answered 12 12345678 Taken\n".len();
        let own = format!("\noffered {who} ");
        self.waits(place, |crew| {
            crew.sink().length() > since + 800 * line || crew.sink().log()[since..].contains(&own)
        });
        let begun = self.sink().length();
        self.waits(place, |crew| crew.sink().length() > begun + more * line);
    }

    fn signal(&mut self, place: usize, signal: Signal) {
        kill_process(Pid::from_child(&self.member(place).child), signal).unwrap();
    }

    /// Whoever has this place does nothing for that time.
    pub(super) fn stops(&mut self, place: usize, time: Duration) {
        self.signal(place, Signal::STOP);
        std::thread::sleep(time);
        self.signal(place, Signal::CONT);
    }

    /// Kills who has this place, and nobody takes it.
    pub(super) fn kill(&mut self, place: usize) -> u32 {
        let mut member = self.places[place].take().expect("somebody is there");
        assert!(self.sink().tells()(&Event::Ended(member.who)));
        member.child.kill().unwrap();
        member.child.wait().unwrap();
        member.who
    }

    /// Kills who has this place, and another one takes it. True when a sink was just being told something.
    pub(super) fn kills(&mut self, place: usize) -> bool {
        let who = self.kill(place);
        let log = self.sink().log();
        let offered = log.rfind(&format!("\noffered {who} "));
        let answered = log.rfind(&format!("\nanswered {who} "));
        self.places[place] = Some(self.spawn(false));
        offered > answered
    }

    /// Starts one that stops itself in the middle of the first message that it publishes. It is stopped, and `others` are not kept
    /// from their work: another thread of it may just have had its turn, and then it gets a little further.
    pub(super) fn starts_one_that_stops(&mut self, others: impl Fn() -> bool) -> usize {
        let member = self.spawn(true);
        let stat = format!("/proc/{}/stat", member.child.id());
        self.places.push(Some(member));
        let place = self.places.len() - 1;
        loop {
            self.waits(place, |_| fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") T ")));
            if others() {
                return place;
            }
            self.signal(place, Signal::CONT);
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub(super) fn goes_on(&mut self, place: usize) {
        File::create(go(&self.root())).unwrap();
        self.signal(place, Signal::CONT);
    }

    /// Has everybody end in order, and drains the rest. What happened, and what was wrong with it.
    pub(super) fn ends(&mut self) -> (Vec<Event>, Vec<String>) {
        for member in self.places.iter_mut().flatten() {
            drop(member.child.stdin.take());
        }
        for place in 0..self.places.len() {
            let Some(mut member) = self.places[place].take() else { continue };
            let status = member.child.wait().unwrap();
            assert!(status.success(), "{status}: {}", fs::read_to_string(self.said(member.who)).unwrap());
        }
        let wrong = self.sink().broken(LAST, |_| true);
        (Event::all(&self.sink().log()), wrong)
    }
}

/// Not a test: what the others start.
#[test]
fn process() {
    let Some(root) = support::child_root() else { return };
    let who = std::env::var(WHO).unwrap().parse().unwrap();
    let journal = open(&root);
    match std::env::var(STOPS).unwrap() == "true" {
        true => stop(&journal, who),
        false => work(&journal, who),
    }
    journal.close().unwrap();
}

/// The row that says that a message was applied.
fn applied(topic: &str, key: &str, version: u64) -> String {
    format!("applied {topic} {key} {version}")
}

/// What those have had taken who lived to apply it, and did not.
pub(super) fn not_applied(root: &Path, events: &[Event]) -> Vec<String> {
    let database = rusqlite::Connection::open(root.join(".journal/journal.db")).unwrap();
    let mut all = database.prepare("SELECT path FROM doc WHERE path LIKE 'applied %'").unwrap();
    let there: BTreeSet<String> = all.query_map((), |row| row.get(0)).unwrap().map(|row| row.unwrap()).collect();
    let ended = events.iter().filter_map(|event| match event {
        Event::Ended(who) => Some(*who),
        _ => None,
    });
    let dead: BTreeSet<u32> = ended.chain([LAST]).collect();
    let rows: BTreeMap<i64, String> = events
        .iter()
        .filter_map(|event| match event {
            Event::Offered(_, Offer { id, topic, key, version, .. }) => Some((*id, applied(topic, key, *version))),
            _ => None,
        })
        .collect();
    let taken = events.iter().filter_map(|event| match event {
        Event::Answered(who, id, Answer::Taken) if !dead.contains(who) => Some(&rows[id]),
        _ => None,
    });
    let missing: Vec<String> = taken.filter(|row| !there.contains(*row)).cloned().collect();
    assert!(!there.is_empty());
    missing
}

/// Until it is told to end.
fn stay() {
    let _ = std::io::stdin().read(&mut [0]);
}

fn work(journal: &Journal, who: u32) {
    // One topic has commits wait for it, and the other one does not.
    let inline = [Duration::from_millis(100), Duration::ZERO];
    let drainers = [0, 1].map(|n| {
        let asked = AtomicUsize::new(0);
        let answer = move |offer: &Offer| match asked.fetch_add(1, Ordering::Relaxed) % 50 {
            49 => Answer::Unavailable,
            _ => sink::answer(offer),
        };
        let tells = Sink::beside(journal.root()).tells();
        let tell = move |event: &Event| {
            let told = tells(event);
            if let Event::Offered(..) = event {
                // It takes a sink its time.
                std::thread::sleep(Duration::from_micros(200));
            }
            told
        };
        let (mut publishes, own) = (sink::publisher(who, tell, answer), journal.clone());
        let publisher = move |message: &Message| {
            publishes.publish(message)?;
            // A second row of this name would fail.
            let row = applied(&message.topic, &message.key, message.version);
            let apply = |rows: &Rows<'_>| rows.execute("INSERT INTO doc VALUES (?1, '')", [&row]).map(drop);
            let done = own.apply_once("crew", message, apply);
            done.map(drop).map_err(|error| PublishError::Unavailable(error.to_string()))
        };
        sink::drainer(journal, TOPICS[n], publisher).inline(inline[n]).start().unwrap()
    });
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let over = &over;
            scope.spawn(move || {
                let mut random = Random(u64::from(who) << 8 | thread | 1 << 40);
                for n in 0.. {
                    if over.load(Ordering::Relaxed) {
                        return;
                    }
                    commit(journal, &mut random, &format!("{who}-{thread}-{n}")).unwrap();
                    std::thread::sleep(Duration::from_micros(random.below(2_000) as u64));
                }
            });
        }
        stay();
        over.store(true, Ordering::Relaxed);
    });
    for drainer in drainers {
        drainer.close(Duration::from_secs(2)).unwrap();
    }
}

/// Some messages of some keys. Threads have locks of their own, so that commits share a COMMIT.
fn commit(journal: &Journal, random: &mut Random, name: &str) -> Result<()> {
    let mut txn = journal.begin_with(Begin::new("").lock(format!("writer-{}", random.below(4))))?;
    for m in 0..1 + random.below(3) {
        let (topic, key) = (TOPICS[random.below(2)], KEYS[random.below(KEYS.len())]);
        let word = WORDS[random.below(WORDS.len())];
        let name = format!("{word}-{name}-{m}");
        if word == "file" {
            txn.write(sink::file(&name), &name)?;
        }
        sink::send(&mut txn, topic, key, &name, word == "gone")?;
    }
    txn.commit().map(drop)
}

/// Where it is there, nobody stops any more.
fn go(root: &Path) -> PathBuf {
    root.with_extension("go")
}

fn stop(journal: &Journal, who: u32) {
    let (tells, go) = (Sink::beside(journal.root()).tells(), go(journal.root()));
    let is_first = AtomicBool::new(true);
    let tell = move |event: &Event| {
        let told = tells(event);
        if is_first.swap(false, Ordering::Relaxed) {
            while !go.exists() {
                kill_process(getpid(), Signal::STOP).unwrap();
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        told
    };
    let publisher = sink::publisher(who, tell, sink::answer);
    let drainer = sink::drainer(journal, TOPICS[0], publisher).start().unwrap();
    stay();
    drainer.close(Duration::from_secs(60)).unwrap();
}
