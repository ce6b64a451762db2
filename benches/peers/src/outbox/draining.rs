//! How many messages go out, of a backlog large or small, and what memory that takes.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use journal_kb::{Coalesce, Journal, Message, PublishError};
use journal_kb_peers::Result;
use journal_kb_peers::shared::{Homes, Place};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use super::scale::Scale;
use super::work::{self, Answer, Keys, LONG, TOPIC, nanoseconds, send_all, unavailable};
use crate::child;
use crate::memory;
use crate::quantity::Span;

/// Commits a backlog.
#[derive(Debug, Serialize, Deserialize)]
pub struct Fill {
    root: PathBuf,
    keys: Keys,
    messages: usize,
}

/// Publishes all of it to a closure.
#[derive(Debug, Serialize, Deserialize)]
pub struct Drain {
    root: PathBuf,
    newest_alone: bool,
}

/// Has a sink asked again and again, that takes nothing.
#[derive(Debug, Serialize, Deserialize)]
pub struct Stuck {
    root: PathBuf,
    refuses: bool,
    times: usize,
}

/// What the messages of a backlog have in common, and which of them go out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kind {
    pub keys: Keys,
    pub newest_alone: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Drained {
    pub kind: Kind,
    pub messages: usize,
    /// Nanoseconds from the start of the drainer until nothing was left.
    pub took: f64,
    /// By how much the memory of the process grew meanwhile, at its peak.
    pub grown: u64,
    /// How large the log of the database was in the end.
    pub log: u64,
}

/// A sink that takes nothing, of a topic where so much waits.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Waited {
    pub refuses: bool,
    pub messages: usize,
    /// Nanoseconds of processor that asking it once more took.
    pub each: f64,
    pub grown: u64,
}

impl Kind {
    pub fn all() -> impl Iterator<Item = Self> {
        let kinds = |keys| [false, true].map(|newest_alone| Self { keys, newest_alone });
        Keys::ALL.into_iter().flat_map(kinds)
    }

    pub fn name(self) -> String {
        format!("`{:?}`, {}", self.coalesce(), self.keys.name())
    }

    fn coalesce(self) -> Coalesce {
        if self.newest_alone { Coalesce::LatestPerKey } else { Coalesce::EachMessage }
    }
}

impl Fill {
    pub fn run(&self) -> Result<()> {
        let journal = Journal::open(&self.root)?;
        send_all(&journal, self.keys, 0, self.messages)?;
        Ok(journal.close()?)
    }
}

/// How many were published, how long that took, by how much the process grew, and the size of the log.
type Ran = (usize, f64, u64, u64);

impl Drain {
    pub fn run(&self) -> Result<Ran> {
        let journal = Journal::open(&self.root)?;
        let before = memory::forget_peak()?;
        let published = Arc::new(AtomicUsize::new(0));
        let counts = Arc::clone(&published);
        let publisher = move |_: &Message| -> Answer {
            counts.fetch_add(1, Ordering::Relaxed);
            Ok(())
        };
        let coalesce = Kind { keys: Keys::Same, newest_alone: self.newest_alone }.coalesce();
        let start = Instant::now();
        let left = journal.drainer(TOPIC, publisher).coalesce(coalesce).start()?.close(LONG)?;
        let took = nanoseconds(start);
        if left > 0 {
            return Err(format!("{left} messages were not published").into());
        }
        let grown = memory::of_this_process()?.saturating_sub(before);
        let log = fs::metadata(self.root.join(".journal/journal.db-wal"))?.len();
        journal.close()?;
        Ok((published.load(Ordering::Relaxed), took, grown, log))
    }
}

impl Stuck {
    pub fn run(&self) -> Result<(f64, u64)> {
        let journal = Journal::open(&self.root)?;
        let before = memory::forget_peak()?;
        let (asked, asks) = mpsc::channel();
        let refuses = self.refuses;
        let publisher = move |message: &Message| -> Answer {
            // Nobody hears it any more when there were enough.
            let _ = asked.send(processor());
            match refuses {
                true => Err(PublishError::Refused("not yet".to_owned())),
                false => unavailable(message),
            }
        };
        let often = Duration::from_millis(1);
        let drainer = journal.drainer(TOPIC, publisher).probe(often).backoff(often).refusals(u32::MAX).start()?;
        let mut used = Vec::new();
        while used.len() <= self.times {
            used.push(asks.recv_timeout(LONG)?);
        }
        let grown = memory::of_this_process()?.saturating_sub(before);
        drop(drainer);
        journal.close()?;
        let each = Span::median(used.windows(2).map(|two| two[1] - two[0])).ok_or("it was never asked")?;
        Ok((each.value, grown))
    }
}

/// The time of processors that this process has had, in nanoseconds.
fn processor() -> f64 {
    let used = clock_gettime(ClockId::ProcessCPUTime);
    used.tv_sec as f64 * 1e9 + used.tv_nsec as f64
}

fn fill(root: &Path, keys: Keys, messages: usize) -> Result<()> {
    let task = work::Task::Fill(Fill { root: root.to_owned(), keys, messages });
    child::answer_of(child::command(&[], &child::Task::Outbox(task))?)
}

/// Backlogs of each kind: a large one, and small ones around it.
pub fn measure(place: &Place, homes: &mut Homes, scale: &Scale) -> Result<Vec<Drained>> {
    let mut all = Vec::new();
    for kind in (0..scale.large_rounds).flat_map(|_| Kind::all()) {
        let small = std::iter::repeat_n(scale.small, scale.small_rounds);
        for messages in small.clone().chain([scale.large]).chain(small) {
            let root = homes.make(place)?;
            fill(&root, kind.keys, messages)?;
            let task = work::Task::Drain(Drain { root, newest_alone: kind.newest_alone });
            let (published, took, grown, log): Ran =
                child::answer_of(child::command(&[], &child::Task::Outbox(task))?)?;
            let expected = if kind == (Kind { keys: Keys::Same, newest_alone: true }) { 1 } else { messages };
            if published != expected {
                return Err(format!("{published} messages of {messages} were published").into());
            }
            all.push(Drained { kind, messages, took, grown, log });
        }
    }
    Ok(all)
}

/// Sinks that take nothing, where little waits and where much does.
pub fn stuck(place: &Place, homes: &mut Homes, scale: &Scale) -> Result<Vec<Waited>> {
    let mut all = Vec::new();
    for messages in [scale.small, scale.large] {
        let root = homes.make(place)?;
        fill(&root, Keys::Same, messages)?;
        for refuses in [false, true] {
            let task = work::Task::Stuck(Stuck { root: root.clone(), refuses, times: scale.asks });
            let (each, grown) = child::answer_of(child::command(&[], &child::Task::Outbox(task))?)?;
            all.push(Waited { refuses, messages, each, grown });
        }
    }
    Ok(all)
}
