//! How soon a message is published that was just committed.

use std::io::BufRead;
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::Duration;

use journal_kb::{Journal, Message};
use journal_kb_peers::Result;
use journal_kb_peers::shared::{Homes, Place};
use serde::{Deserialize, Serialize};

use super::scale::Scale;
use super::work::{self, Answer, Keys, LONG, TOPIC, payload};
use crate::child;
use crate::locks::{Talk, now};

/// Who publishes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Who {
    /// Nobody: what the commit takes by itself.
    Nobody,
    /// A drainer of the process that commits, which waits for it.
    Inline,
    /// The same, and it is not waited for.
    Beside,
    /// A drainer of another process.
    Other,
}

impl Who {
    pub const ALL: [Self; 4] = [Self::Nobody, Self::Inline, Self::Beside, Self::Other];

    pub fn name(self) -> &'static str {
        match self {
            Self::Nobody => "nobody drains",
            Self::Inline => "a drainer of the same process, as it comes: the commit waits for it",
            Self::Beside => "the same, not waited for (`inline` zero)",
            Self::Other => "a drainer of another process",
        }
    }
}

/// Commits messages now and then.
#[derive(Debug, Serialize, Deserialize)]
pub struct Task {
    root: PathBuf,
    who: Who,
    messages: usize,
}

/// Publishes as many, and says when.
#[derive(Debug, Serialize, Deserialize)]
pub struct Hear {
    root: PathBuf,
    messages: usize,
}

/// When things happened with a message, by the clock that all processes share: nanoseconds.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Times {
    pub called: u64,
    pub returned: u64,
    /// When the publisher had it; none where nobody drains.
    pub published: Option<u64>,
}

/// All of one round.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Heard {
    pub who: Who,
    pub times: Vec<Times>,
}

/// When a message came, or why that is not known.
type Came = std::result::Result<u64, String>;

fn publisher(told: mpsc::Sender<Came>) -> impl FnMut(&Message) -> Answer + Send {
    move |_: &Message| {
        let _ = told.send(now().map_err(|error| error.to_string()));
        Ok(())
    }
}

fn hear(hears: &mpsc::Receiver<Came>) -> Result<u64> {
    Ok(hears.recv_timeout(LONG)??)
}

impl Task {
    pub fn run(&self) -> Result<Vec<Times>> {
        let journal = Journal::open(&self.root)?;
        let (told, hears) = mpsc::channel();
        let drainer = match self.who {
            Who::Nobody | Who::Other => None,
            Who::Inline => Some(journal.drainer(TOPIC, publisher(told)).start()?),
            Who::Beside => Some(journal.drainer(TOPIC, publisher(told)).inline(Duration::ZERO).start()?),
        };
        let mut times = Vec::new();
        for number in 0..self.messages {
            // As it happens, and not in step with anything.
            std::thread::sleep(Duration::from_micros(1_000 + (number as u64 * 7_919) % 30_000));
            let called = now()?;
            journal.transact(|txn| txn.send_bytes(TOPIC, &Keys::Different.key(number), payload(number)))?;
            let returned = now()?;
            let published = drainer.as_ref().map(|_| hear(&hears)).transpose()?;
            times.push(Times { called, returned, published });
        }
        drop(drainer);
        journal.close()?;
        Ok(times)
    }
}

impl Hear {
    pub fn run(&self) -> Result<Vec<u64>> {
        let journal = Journal::open(&self.root)?;
        let (told, hears) = mpsc::channel();
        let drainer = journal.drainer(TOPIC, publisher(told)).start()?;
        println!("0");
        let times = (0..self.messages).map(|_| hear(&hears)).collect::<Result<_>>()?;
        // Whoever commits is not to be alone in the end, which would spare it something.
        std::io::stdin().lock().read_line(&mut String::new())?;
        drop(drainer);
        journal.close()?;
        Ok(times)
    }
}

/// Each way in turn, in each round.
pub fn measure(place: &Place, homes: &mut Homes, scale: &Scale) -> Result<Vec<Heard>> {
    let mut all = Vec::new();
    let messages = scale.heard;
    for who in (0..scale.rounds).flat_map(|_| Who::ALL) {
        let root = homes.make(place)?;
        let command = |task| child::command(&[], &child::Task::Outbox(task));
        let mut listens = match who {
            Who::Other => Some(Talk::start(command(work::Task::Hear(Hear { root: root.clone(), messages }))?)?),
            _ => None,
        };
        if let Some(talk) = &mut listens {
            talk.hear::<u64>()?;
        }
        let mut times: Vec<Times> = child::answer_of(command(work::Task::Latency(Task { root, who, messages }))?)?;
        if let Some(mut talk) = listens {
            talk.tell("enough")?;
            let heard: Vec<u64> = talk.hear()?;
            talk.end()?;
            times.iter_mut().zip(heard).for_each(|(times, heard)| times.published = Some(heard));
        }
        all.push(Heard { who, times });
    }
    Ok(all)
}
