//! A sink that outlives who publishes to it: a file that everybody appends to, one call for each line.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use journal_kb::{Coalesce, DrainerBuilder, Journal, Message, PublishError, Publisher, Result, Transaction};
use rusqlite::Connection;

use super::promise::{self, Answer, Event, Left, NEWEST, Offer, REFUSALS, Sent};

/// One of which each message is told, and one of which the newest is enough.
pub(crate) const TOPICS: [&str; 2] = ["each", NEWEST];
/// How a row of `doc` begins that says what was sent.
const ROW: &str = "sent";
/// Files that messages tell of lie there.
const FILES: &str = "told";

/// Sends a message, or that the key's thing is gone, and says so in a row of the application's own. `name` is used once; without
/// blanks, as the key. Beginning with one of these words, the sink does not take it: see [`answer`].
pub(crate) fn send(txn: &mut Transaction, topic: &str, key: &str, name: &str, gone: bool) -> Result<()> {
    match gone {
        true => txn.retire(topic, key)?,
        false => txn.send_bytes(topic, key, name)?,
    }
    let row = (format!("{ROW} {topic} {key} {name}"), if gone { "" } else { name }.to_owned());
    txn.sql(move |rows| rows.execute("INSERT INTO doc VALUES (?1, ?2)", (&row.0, &row.1)).map(drop))
}

/// The file that a message of this name tells of, where there is one.
pub(crate) fn file(name: &str) -> String {
    format!("{FILES}/{name}")
}

/// What the application's rows say was sent, in the order of commits.
pub(crate) fn sent(root: &Path) -> Vec<Sent> {
    let database = Connection::open(root.join(".journal/journal.db")).unwrap();
    let mut all = database.prepare("SELECT path, title FROM doc WHERE path LIKE ?1 ORDER BY rowid").unwrap();
    let rows = all.query_map([format!("{ROW} %")], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)));
    let of = |(path, title): (String, String)| {
        let words: Vec<&str> = path.split(' ').collect();
        let text = (!title.is_empty()).then_some(title);
        Sent { topic: words[1].to_owned(), key: words[2].to_owned(), text }
    };
    rows.unwrap().map(|row| of(row.unwrap())).collect()
}

/// What is in the outbox.
pub(crate) fn left(root: &Path) -> Left {
    let database = Connection::open(root.join(".journal/journal.db")).unwrap();
    let ids = |state: &str| -> BTreeSet<i64> {
        let mut all = database.prepare("SELECT id FROM journal_outbox WHERE state = ?1").unwrap();
        all.query_map([state], |row| row.get(0)).unwrap().map(|id| id.unwrap()).collect()
    };
    Left { pending: ids("pending"), parked: ids("parked") }
}

/// What a sink thinks of a message. It never changes its mind, but about what comes later.
pub(crate) fn answer(offer: &Offer) -> Answer {
    let begins = |word: &str| offer.text.as_ref().is_some_and(|text| text.starts_with(word));
    match () {
        () if begins("poison") => Answer::Refused,
        () if begins("never") => Answer::Parked,
        () if begins("later") && offer.attempts == 0 => Answer::Refused,
        () => Answer::Taken,
    }
}

/// A publisher that has `tell` remember what happens; where that fails, the sink cannot be reached. `who` is its number. Of
/// what is told of, the file has to be there if there is to be one.
pub(crate) fn publisher(
    who: u32,
    tell: impl Fn(&Event) -> bool + Send + 'static,
    answer: impl Fn(&Offer) -> Answer + Send + 'static,
) -> impl Publisher + 'static {
    let away = || PublishError::Unavailable("the sink is away".to_owned());
    move |message: &Message| {
        let Message { id, version, attempts, .. } = *message;
        let text = (!message.is_removal).then(|| String::from_utf8(message.payload.clone()).unwrap());
        let offer = Offer { id, topic: message.topic.clone(), key: message.key.clone(), version, attempts, text };
        let answer = answer(&offer);
        if !tell(&Event::Offered(who, offer)) || !tell(&Event::Answered(who, id, answer)) {
            return Err(away());
        }
        match answer {
            Answer::Taken => Ok(()),
            Answer::Refused => Err(PublishError::Refused("not so".to_owned())),
            Answer::Parked => Err(PublishError::Park("not ever".to_owned())),
            Answer::Unavailable => Err(away()),
        }
    }
}

/// That a message comes before the file that it tells of.
pub(crate) fn early(root: &Path, event: &Event) -> Option<Event> {
    let Event::Offered(who, Offer { id, text: Some(text), .. }) = event else { return None };
    (text.starts_with("file") && !root.join(file(text)).exists()).then_some(Event::Early(*who, *id))
}

/// As drainers are in these tests: a sink that says no is asked again soon.
pub(crate) fn drainer<P: Publisher + 'static>(journal: &Journal, topic: &str, publisher: P) -> DrainerBuilder<P> {
    let coalesce = if topic == NEWEST { Coalesce::LatestPerKey } else { Coalesce::EachMessage };
    let soon = Duration::from_millis(1);
    journal.drainer(topic, publisher).coalesce(coalesce).refusals(REFUSALS).backoff(soon).probe(5 * soon)
}

/// Drains everything there is. `tell` is as above.
pub(crate) fn drain(journal: &Journal, who: u32, tell: impl Fn(&Event) -> bool + Clone + Send + 'static) {
    for _ in 0..200 {
        let left = TOPICS.map(|topic| {
            let drainer = drainer(journal, topic, publisher(who, tell.clone(), answer)).start().unwrap();
            drainer.close(Duration::from_secs(60)).unwrap()
        });
        if left == [0, 0] {
            return;
        }
    }
}

/// The file. It lies beside the root, and is never synced: what a process has written stays when it dies.
#[derive(Clone)]
pub(crate) struct Sink {
    root: PathBuf,
}

impl Sink {
    pub(crate) fn beside(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    fn path(&self) -> PathBuf {
        self.root.with_extension("sink")
    }

    /// What remembers in it. False when it could not.
    pub(crate) fn tells(&self) -> impl Fn(&Event) -> bool + Clone + Send + 'static {
        let root = self.root.clone();
        let path = self.path();
        move |event| {
            let told = || {
                let mut file = File::options().append(true).create(true).open(&path)?;
                early(&root, event)
                    .iter()
                    .chain([event])
                    .try_for_each(|event| file.write_all(format!("{event}\n").as_bytes()))
            };
            told().is_ok()
        }
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path()).unwrap_or_default()
    }

    /// Of the log, in bytes.
    pub(crate) fn length(&self) -> usize {
        fs::metadata(self.path()).map_or(0, |meta| meta.len() as usize)
    }

    /// What of the promise is broken, once all that is left was drained by `who`. Nobody else may be at it any more.
    pub(crate) fn broken(&self, who: u32, counts: impl Fn(&Event) -> bool) -> Vec<String> {
        let journal = crate::crash_points::open(&self.root);
        drain(&journal, who, self.tells());
        journal.close().unwrap();
        let events: Vec<Event> = Event::all(&self.log()).into_iter().filter(counts).collect();
        promise::broken(&sent(&self.root), &events, &left(&self.root))
    }
}
