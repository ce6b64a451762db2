//! The promise of the outbox, asked of what sinks have seen in their order and of what the application's own rows say was
//! committed. Knows nothing of the engine.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// So many refusals park a message in these tests.
pub(crate) const REFUSALS: u32 = 3;
/// The topic of which the newest message of a key is enough. Of any other each is told.
pub(crate) const NEWEST: &str = "newest";

/// A message as the transaction says that sent it, in a row of the application's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sent {
    pub(crate) topic: String,
    pub(crate) key: String,
    /// None: what the key stands for is gone.
    pub(crate) text: Option<String>,
}

/// How a sink answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Taken,
    Refused,
    Parked,
    Unavailable,
}

impl Answer {
    const ALL: [Self; 4] = [Self::Taken, Self::Refused, Self::Parked, Self::Unavailable];

    fn of(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|answer| format!("{answer:?}") == word)
    }
}

/// A message that was handed to a sink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Offer {
    pub(crate) id: i64,
    pub(crate) topic: String,
    pub(crate) key: String,
    pub(crate) version: u64,
    pub(crate) attempts: u32,
    pub(crate) text: Option<String>,
}

/// What happened at the sinks. Whoever publishes has a number, which is not used again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Offered(u32, Offer),
    /// The sink has done with what that one has offered.
    Answered(u32, i64, Answer),
    /// It was told of before the file was there that it tells of.
    Early(u32, i64),
    /// From here on this one may be dead.
    Ended(u32),
    /// The power failed: everybody is dead, and what was not synced may be gone.
    Cut,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Offered(who, Offer { id, topic, key, version, attempts, text }) => {
                let text = text.as_deref().unwrap_or("-");
                write!(f, "offered {who} {id} {topic} {key} {version} {attempts} {text}")
            }
            Self::Answered(who, id, answer) => write!(f, "answered {who} {id} {answer:?}"),
            Self::Early(who, id) => write!(f, "early {who} {id}"),
            Self::Ended(who) => write!(f, "ended {who}"),
            Self::Cut => write!(f, "cut"),
        }
    }
}

impl Event {
    fn parse(line: &str) -> Option<Self> {
        let words: Vec<&str> = line.split(' ').collect();
        Some(match *words.as_slice() {
            ["offered", who, id, topic, key, version, attempts, text] => {
                let (topic, key) = (topic.to_owned(), key.to_owned());
                let (version, attempts) = (version.parse().ok()?, attempts.parse().ok()?);
                let text = (text != "-").then(|| text.to_owned());
                Self::Offered(who.parse().ok()?, Offer { id: id.parse().ok()?, topic, key, version, attempts, text })
            }
            ["answered", who, id, answer] => Self::Answered(who.parse().ok()?, id.parse().ok()?, Answer::of(answer)?),
            ["early", who, id] => Self::Early(who.parse().ok()?, id.parse().ok()?),
            ["ended", who] => Self::Ended(who.parse().ok()?),
            ["cut"] => Self::Cut,
            _ => return None,
        })
    }

    /// Of what a log says, a line each.
    pub(crate) fn all(log: &str) -> Vec<Self> {
        log.lines().map(|line| Self::parse(line).unwrap_or_else(|| panic!("no line of a sink: {line:?}"))).collect()
    }
}

/// What is left in the outbox once everything was drained.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Left {
    pub(crate) pending: BTreeSet<i64>,
    pub(crate) parked: BTreeSet<i64>,
}

/// What became of one message at the sinks.
#[derive(Clone, Debug, Default)]
struct Told {
    id: i64,
    /// Who had it taken, in their order.
    taken: Vec<u32>,
    /// The sink will not have it, and has said so for the last time.
    is_given_up: bool,
    offered: bool,
}

/// The messages of a key, by their versions from 1.
#[derive(Default)]
struct Key<'s> {
    sent: Vec<&'s Sent>,
    told: Vec<Told>,
    /// The newest that was ever offered.
    newest: usize,
    /// And the newest removal.
    removal: usize,
    /// What each has offered last.
    last: BTreeMap<u32, usize>,
    /// No older message may come any more, unless the power fails.
    closed: usize,
}

impl Key<'_> {
    fn is_newest_enough(&self) -> bool {
        self.sent.first().is_some_and(|sent| sent.topic == NEWEST)
    }

    /// Nobody need hear of that version: there is a removal behind it, or anything where the newest is enough.
    fn is_superseded(&self, version: usize) -> bool {
        let later = &self.sent[version..];
        if self.is_newest_enough() { !later.is_empty() } else { later.iter().any(|sent| sent.text.is_none()) }
    }
}

/// Everything that is wrong.
#[derive(Default)]
struct Judge<'s> {
    keys: BTreeMap<(&'s str, &'s str), Key<'s>>,
    ended: BTreeSet<u32>,
    /// What is being offered, by topic: by whom, and which.
    open: BTreeMap<&'s str, (u32, i64)>,
    ids: BTreeMap<i64, (&'s str, &'s str, usize)>,
    attempts: BTreeMap<i64, u32>,
    wrong: Vec<String>,
}

/// What of all that breaks the promise; nothing if nothing does. `sent` is in the order of commits.
pub(crate) fn broken(sent: &[Sent], events: &[Event], left: &Left) -> Vec<String> {
    let mut judge = Judge::default();
    for sent in sent {
        let key = judge.keys.entry((&sent.topic, &sent.key)).or_default();
        key.sent.push(sent);
        key.told.push(Told::default());
    }
    for event in events {
        match event {
            Event::Offered(who, offer) => judge.offered(*who, offer),
            Event::Answered(who, id, answer) => judge.answered(*who, *id, *answer),
            Event::Early(who, id) => judge.wrong.push(format!("{who} told of {id} before its file was there")),
            Event::Ended(who) => _ = judge.ended.insert(*who),
            Event::Cut => judge.cut(),
        }
    }
    judge.over(left);
    judge.wrong
}

impl<'s> Judge<'s> {
    fn offered(&mut self, who: u32, offer: &'s Offer) {
        let Offer { id, topic, key: name, version, attempts, text } = offer;
        let version = usize::try_from(*version).unwrap_or(usize::MAX);
        if let Some((other, at)) = self.open.insert(topic, (who, *id))
            && other != who
            && !self.ended.contains(&other)
        {
            self.wrong.push(format!("{who} offers {offer:?} while {other} is at {at}"));
        }
        let place = (topic.as_str(), name.as_str(), version);
        let known = *self.ids.entry(*id).or_insert(place);
        let Some(key) = self.keys.get_mut(&(topic.as_str(), name.as_str())) else {
            self.wrong.push(format!("nothing was committed for the key of {offer:?}"));
            return;
        };
        let committed = version.checked_sub(1).and_then(|n| key.sent.get(n));
        if committed.is_none_or(|sent| sent.text != *text) {
            self.wrong.push(format!("{offer:?} was not committed; there are {}", key.sent.len()));
            return;
        }
        let mut says = |what: &str| self.wrong.push(format!("{what}: {offer:?}, by {who}"));
        let told = key.told[version - 1].clone();
        if known != place || (told.offered && told.id != *id) {
            says("one number for two messages, or two for one");
        }
        if !told.offered && version < key.newest {
            says("it comes for the first time behind a newer one of its key");
        }
        if version < key.removal {
            says("it comes behind a removal of its key");
        }
        if version < key.closed {
            says("an older one was given up, and comes behind a newer one");
        }
        let passed_over = |older: usize| {
            let told = &key.told[older - 1];
            told.taken.is_empty() && !told.is_given_up && !key.is_superseded(older)
        };
        if let Some(older) = (1..version).find(|older| passed_over(*older)) {
            says(&format!("version {older} was passed over"));
        }
        if key.last.get(&who).is_some_and(|last| *last > version) {
            says("who offers it has offered a newer one of its key before");
        }
        if let Some(before) = told.taken.iter().find(|before| **before == who || !self.ended.contains(before)) {
            says(&format!("it was taken from {before}, who lived to write that down"));
        }
        if let Some(given_up) = (1..version).rfind(|older| key.told[older - 1].is_given_up) {
            key.closed = key.closed.max(given_up + 1);
        }
        key.told[version - 1].offered = true;
        key.told[version - 1].id = *id;
        key.newest = key.newest.max(version);
        key.last.insert(who, version);
        if text.is_none() {
            key.removal = key.removal.max(version);
        }
        self.attempts.insert(*id, *attempts);
    }

    fn answered(&mut self, who: u32, id: i64, answer: Answer) {
        let place = self.ids.get(&id).filter(|(topic, ..)| self.open.get(topic) == Some(&(who, id)));
        let Some(&(topic, name, version)) = place else {
            // Somebody dead is heard late, or it was told of above.
            return;
        };
        self.open.remove(topic);
        let Some(told) = self.keys.get_mut(&(topic, name)).and_then(|key| key.told.get_mut(version.wrapping_sub(1)))
        else {
            return;
        };
        match answer {
            Answer::Taken => told.taken.push(who),
            Answer::Parked => told.is_given_up = true,
            Answer::Refused => told.is_given_up |= self.attempts.get(&id).is_some_and(|before| before + 1 >= REFUSALS),
            Answer::Unavailable => {}
        }
    }

    /// What was written down of deliveries was not synced.
    fn cut(&mut self) {
        self.open.clear();
        for key in self.keys.values_mut() {
            key.closed = 0;
            self.ended.extend(key.last.keys());
        }
    }

    /// Everybody has had their time.
    fn over(&mut self, left: &Left) {
        if !left.pending.is_empty() {
            self.wrong.push(format!("still pending: {:?}", left.pending));
        }
        for ((topic, name), key) in &self.keys {
            for (version, told) in (1..).zip(&key.told) {
                let is_parked = told.offered && left.parked.contains(&told.id);
                let mut says = |what: &str| self.wrong.push(format!("{what}: {topic} {name} {version}"));
                match (told.taken.is_empty(), is_parked) {
                    (true, false) if !key.is_superseded(version) => says("nobody was told"),
                    (false, true) => says("it is parked, and was taken"),
                    (true, true) if !told.is_given_up => says("it is parked, and was not given up"),
                    _ => {}
                }
            }
        }
        for id in left.parked.iter().filter(|id| !self.ids.contains_key(id)) {
            self.wrong.push(format!("{id} is parked, and was never offered"));
        }
    }
}
