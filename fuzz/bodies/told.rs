//! Messages in the sequences, and who follows the changes: a model of what is said of each key, a sink that outlives every process,
//! and what has to hold between them after a crash.
//!
//! A message reaches the sink once at least, never before what it tells of is committed, and never behind a newer one of its key
//! that was there first. What it tells is applied to rows once.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use journal_kb::{Coalesce, Journal, Message, PublishError, Transaction, TxnId};

use super::fork;
use super::input::Input;

pub(crate) const TABLES: &str = "CREATE TABLE applied (key TEXT, version INTEGER, PRIMARY KEY (key, version)) STRICT;
     CREATE TABLE followed (n INTEGER PRIMARY KEY) STRICT";
const TOPIC: &str = "t";
/// Nothing here takes that long.
const LONG: Duration = Duration::from_secs(15);

/// What a transaction tells others: of which key, and whether that is gone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Say {
    key: &'static str,
    removal: bool,
}

/// Has the messages go out; what happens at which of them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Publish(Option<(usize, End)>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The sink has it, and the process is killed.
    Dead,
    /// The sink cannot be reached from here on.
    Unreachable,
}

pub(crate) fn read(input: &mut Input<'_>) -> Vec<Say> {
    let keys = ["a", "b", "c"];
    let say = |input: &mut Input<'_>| Say { key: keys[input.below(keys.len())], removal: input.below(4) == 0 };
    (0..input.below(4)).map(|_| say(input)).collect()
}

impl Publish {
    pub(crate) fn read(input: &mut Input<'_>) -> Self {
        let end = match input.below(4) {
            0 => Some(End::Dead),
            1 => Some(End::Unreachable),
            _ => None,
        };
        Self(end.map(|end| (input.below(6), end)))
    }
}

pub(crate) fn send(txn: &mut Transaction, n: usize, says: &[Say]) -> journal_kb::Result<()> {
    says.iter().try_for_each(|say| match say.removal {
        true => txn.retire(TOPIC, say.key),
        false => txn.send(TOPIC, say.key, &n),
    })
}

/// All that was said, by key, in the order of versions: in which act, unless the key was gone then.
#[derive(Clone, Debug, Default)]
pub(crate) struct Said(BTreeMap<String, Vec<Option<usize>>>);

/// The newest version of each key, and that of its newest removal.
pub(crate) type Keys = BTreeMap<String, (usize, usize)>;

impl Said {
    pub(crate) fn add(&mut self, n: usize, says: &[Say]) {
        for say in says {
            self.0.entry(say.key.to_owned()).or_default().push((!say.removal).then_some(n));
        }
    }

    pub(crate) fn keys(&self) -> Keys {
        let floor = |said: &Vec<Option<usize>>| said.iter().rposition(Option::is_none).map_or(0, |at| at + 1);
        self.0.iter().map(|(key, said)| (key.clone(), (said.len(), floor(said)))).collect()
    }
}

/// The keys as they are stored.
pub(crate) fn keys(journal: &Journal) -> Keys {
    let sql = "SELECT key, version, floor FROM journal_outbox_key";
    let all = journal.read(|rows| {
        rows.query_map(sql, (), |row| {
            Ok((row.get(0)?, (row.get::<_, i64>(1)? as usize, row.get::<_, i64>(2)? as usize)))
        })
    });
    all.unwrap().into_iter().collect()
}

/// The messages that wait, in order: key and version.
fn waiting(journal: &Journal) -> Vec<(String, usize)> {
    let sql = "SELECT key, version FROM journal_outbox WHERE state = 'pending' ORDER BY id";
    journal.read(|rows| rows.query_map(sql, (), |row| Ok((row.get(0)?, row.get::<_, i64>(1)? as usize)))).unwrap()
}

/// A message that the sink has.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Taken {
    life: usize,
    id: i64,
    key: String,
    version: usize,
    /// What it says; nothing when the key is gone.
    what: Option<usize>,
}

/// Where messages go: a file, which no crash of a process takes anything from.
pub(crate) struct Sink {
    pub(crate) path: PathBuf,
    /// Which process of the sequence this is.
    pub(crate) life: usize,
    /// A message may give way to a newer one of its key.
    pub(crate) latest: bool,
}

impl Sink {
    fn take(&self, message: &Message) {
        let what = if message.is_removal { String::new() } else { message.read::<usize>().unwrap().to_string() };
        assert_eq!(message.is_removal, message.payload.is_empty());
        let line = format!("{} {} {} {} {what}\n", self.life, message.id, message.key, message.version);
        let file = fs::File::options().append(true).create(true).open(&self.path);
        file.and_then(|mut file| file.write_all(line.as_bytes())).unwrap();
    }

    fn all(&self) -> Vec<Taken> {
        let all = fs::read_to_string(&self.path).unwrap_or_default();
        let line = |line: &str| {
            let words: Vec<_> = line.split(' ').collect();
            let number = |n: usize| words[n].parse().unwrap();
            let (life, id, version) = (number(0), words[1].parse().unwrap(), number(3));
            Taken { life, id, key: words[2].to_owned(), version, what: words[4].parse().ok() }
        };
        all.lines().map(line).collect()
    }

    /// Publishes what waits, and holds it against what there was to publish.
    pub(crate) fn publish(&self, journal: &Journal, Publish(end): Publish) {
        let keys = keys(journal);
        let mut expected = waiting(journal);
        expected.retain(|(key, version)| {
            let (newest, floor) = keys[key];
            *version >= if self.latest { newest } else { floor }
        });
        let before = self.all().len();
        let calls = Arc::new(AtomicUsize::new(0));
        let (counts, own) = (Arc::clone(&calls), journal.clone());
        let sink = Self { path: self.path.clone(), ..*self };
        let publisher = move |message: &Message| {
            let call = counts.fetch_add(1, Ordering::SeqCst);
            if end.is_some_and(|(at, end)| call >= at && end == End::Unreachable) {
                return Err(PublishError::Unavailable("it is gone".into()));
            }
            let (key, version) = (message.key.clone(), message.version as i64);
            let apply = |rows: &journal_kb::Rows<'_>| {
                rows.execute("INSERT INTO applied VALUES (?1, ?2)", (&key, version)).map(drop)
            };
            own.apply_once("consumer", message, apply).unwrap();
            sink.take(message);
            if end == Some((call, End::Dead)) {
                fork::die();
            }
            Ok(())
        };
        let coalesce = if self.latest { Coalesce::LatestPerKey } else { Coalesce::EachMessage };
        let drainer = journal.drainer(TOPIC, publisher).coalesce(coalesce).start().unwrap();
        let left = drainer.close(LONG).unwrap();
        assert_eq!(Arc::strong_count(&calls), 1, "the drainer comes to an end");
        match end {
            Some((at, End::Unreachable)) => expected.truncate(at),
            _ => assert_eq!(left, 0, "what waits goes"),
        }
        let taken: Vec<_> = self.all().drain(before..).map(|taken| (taken.key, taken.version)).collect();
        assert_eq!(taken, expected, "what is published, and in which order");
    }

    /// Holds what the sink has against all that was said.
    pub(crate) fn check(&self, journal: &Journal, said: &Said) {
        let taken = self.all();
        let mut newest: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
        for (n, one) in taken.iter().enumerate() {
            let what = said.0.get(&one.key).and_then(|said| said.get(one.version.checked_sub(1)?));
            assert_eq!(what, Some(&one.what), "{one:?} is not what was committed");
            let (newest, life) = newest.entry(one.key.as_str()).or_default();
            let again =
                |earlier: &Taken| earlier.life < one.life && Taken { life: one.life, ..earlier.clone() } == *one;
            let is_new = one.version > *newest;
            assert!(is_new || (one.life >= *life && taken[..n].iter().any(again)), "{one:?} comes late: {taken:?}");
            (*newest, *life) = (one.version.max(*newest), one.life);
        }
        let reached: BTreeSet<_> = taken.into_iter().map(|taken| (taken.key, taken.version)).collect();
        let waiting: BTreeSet<_> = waiting(journal).into_iter().collect();
        for (key, (newest, floor)) in said.keys() {
            for version in 1..=newest {
                let one = (key.clone(), version);
                let is_superseded = version < if self.latest { newest } else { floor };
                assert!(is_superseded || reached.contains(&one) || waiting.contains(&one), "{one:?} is lost");
            }
        }
        let sql = "SELECT key, version FROM applied";
        let applied = journal
            .read(|rows| rows.query_map(sql, (), |row| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)? as usize))));
        let applied: BTreeSet<_> = applied.unwrap().into_iter().collect();
        assert!(reached.is_subset(&applied), "{reached:?} are applied: {applied:?}");
        let is_said = |(key, version): &(String, usize)| said.0.get(key).is_some_and(|said| *version <= said.len());
        assert!(applied.iter().all(is_said), "{applied:?} are said: {said:?}");
    }
}

/// Somebody follows the changes, so many of them, and writes down which transactions they were.
pub(crate) fn follow(journal: &Journal, most: usize) {
    let follower = journal.follower("follower").unwrap();
    for commit in follower.changes().unwrap().take(most) {
        let commit = commit.unwrap();
        let n: i64 = commit.label.parse().unwrap();
        let note = |rows: &journal_kb::Rows<'_>| rows.execute("INSERT INTO followed VALUES (?1)", [n]).map(drop);
        assert!(follower.advance_with(commit.id, note).unwrap());
    }
}

/// Holds what was followed against all that was committed: those acts alone that were to be, and all of which `rows` tells.
pub(crate) fn check_followed(journal: &Journal, rows: &BTreeSet<i64>, was_to_be: impl Fn(usize) -> bool) {
    let position = journal.follower("follower").unwrap().position().unwrap();
    let all: Vec<(TxnId, i64)> = journal
        .changes(TxnId::from(0))
        .map(|commit| commit.map(|commit| (commit.id, commit.label.parse().unwrap())).unwrap())
        .collect();
    assert!(all.windows(2).all(|two| two[0].0 < two[1].0 && two[0].1 < two[1].1), "in the order of commits: {all:?}");
    assert!(all.iter().all(|(_, n)| was_to_be(*n as usize)), "nobody committed all of these: {all:?}");
    assert!(rows.iter().all(|n| all.iter().any(|(_, of)| of == n)), "{rows:?} were committed: {all:?}");
    let followed =
        journal.read(|rows| rows.query_map("SELECT n FROM followed ORDER BY n", (), |row| row.get::<_, i64>(0)));
    let done: Vec<i64> = all.iter().filter(|(id, _)| *id <= position).map(|(_, n)| *n).collect();
    assert_eq!(followed.unwrap(), done, "what was followed up to {position:?}");
}
