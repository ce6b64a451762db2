//! The journal as a queue, in each of the ways that its peers have.

use std::path::PathBuf;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use journal_kb::{Begin, Journal, Message};
use journal_kb_peers::Result;
use serde::{Deserialize, Serialize};

use super::work::{Answer, Keys, LONG, TOPIC, nanoseconds, payload, send_all};

const LOCK: &str = "sender";

/// So many messages in each way, and so many threads that put some in at once.
#[derive(Debug, Serialize, Deserialize)]
pub struct Task {
    pub root: PathBuf,
    pub messages: usize,
    pub crowd: usize,
    /// They are put in one by one, which a tracer looks at, and nothing else.
    pub only_one: bool,
}

/// Nanoseconds a message, of each way.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Queued {
    /// Put in, one after the other, each durable before the next.
    pub one: f64,
    /// The same by several at once.
    pub together: f64,
    /// Put in many at a time; none where that cannot be done.
    pub batch: Option<f64>,
    /// Carried out, of a backlog.
    pub drain: f64,
    /// From being put in, one after the other, until carried out, which goes on meanwhile.
    pub through: f64,
}

impl Task {
    pub fn run(&self) -> Result<Option<Queued>> {
        let &Self { messages, crowd, .. } = self;
        let journal = Journal::open(&self.root)?;
        let one = one_by_one(&journal, LOCK, 0, messages)?;
        if self.only_one {
            return Ok(journal.close().map(|()| None)?);
        }
        let share = messages / crowd;
        let start = Instant::now();
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..crowd)
                .map(|thread| {
                    let journal = &journal;
                    // Who waits for nobody's lock shares a sync with others.
                    let (lock, from) = (format!("{LOCK}-{thread}"), messages + thread * share);
                    scope.spawn(move || one_by_one(journal, &lock, from, share).map_err(|error| error.to_string()))
                })
                .collect();
            threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| "a thread panicked")?.map(drop))
        })?;
        let together = nanoseconds(start) / (share * crowd) as f64;
        let start = Instant::now();
        send_all(&journal, Keys::Different, 2 * messages, messages)?;
        let batch = Some(nanoseconds(start) / messages as f64);
        let waiting = 2 * messages + share * crowd;
        let (drain, through) = drain(&journal, waiting, messages)?;
        journal.close()?;
        Ok(Some(Queued { one, together, batch, drain, through }))
    }
}

fn one_by_one(journal: &Journal, lock: &str, from: usize, messages: usize) -> Result<f64> {
    let start = Instant::now();
    for number in from..from + messages {
        let mut txn = journal.begin_with(Begin::new("measured").lock(lock))?;
        txn.send_bytes(TOPIC, &Keys::Different.key(number), payload(number))?;
        txn.commit()?;
    }
    Ok(nanoseconds(start) / messages as f64)
}

/// What waits, and as many more, which are put in meanwhile.
fn drain(journal: &Journal, waiting: usize, messages: usize) -> Result<(f64, f64)> {
    let (told, hears) = mpsc::channel();
    let mut published = 0;
    let publisher = move |_: &Message| -> Answer {
        published += 1;
        if published == waiting || published == waiting + messages {
            let _ = told.send(());
        }
        Ok(())
    };
    let start = Instant::now();
    let drainer = journal.drainer(TOPIC, publisher).inline(Duration::ZERO).start()?;
    hears.recv_timeout(LONG)?;
    let drain = nanoseconds(start) / waiting as f64;
    let start = Instant::now();
    one_by_one(journal, LOCK, waiting, messages)?;
    hears.recv_timeout(LONG)?;
    let through = nanoseconds(start) / messages as f64;
    match drainer.close(LONG)? {
        0 => Ok((drain, through)),
        left => Err(format!("{left} messages are left").into()),
    }
}
