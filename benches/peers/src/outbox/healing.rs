//! How soon what waits is published once the sink is back, with no other traffic.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use journal_kb::{Journal, Message};
use journal_kb_peers::Result;
use journal_kb_peers::shared::{Homes, Place};
use serde::{Deserialize, Serialize};

use super::scale::Scale;
use super::work::{self, Answer, Keys, LONG, TOPIC, send_all, unavailable};
use crate::child;

/// So many messages wait for each sink.
const WAITING: usize = 100;

/// A sink for each of these journals: all are down, until they are asked as rarely as they may be.
#[derive(Debug, Serialize, Deserialize)]
pub struct Task {
    roots: Vec<PathBuf>,
    probe_ms: u64,
}

/// A sink, and who watches it.
struct Sink {
    up: Arc<AtomicBool>,
    /// How often it was asked while it was down.
    asked: Arc<AtomicU64>,
    hears: mpsc::Receiver<Instant>,
    drainer: journal_kb::Drainer,
}

impl Task {
    /// Nanoseconds from the moment at which each was up again, until all that waited was published.
    pub fn run(&self) -> Result<Vec<f64>> {
        let probe = Duration::from_millis(self.probe_ms);
        let mut sinks = Vec::new();
        for root in &self.roots {
            let journal = Journal::open(root)?;
            send_all(&journal, Keys::Different, 0, WAITING)?;
            sinks.push(Sink::start(&journal, probe)?);
        }
        // They are asked less and less often: after as long as all that took, and once more, as rarely as may be.
        std::thread::sleep(probe * 3);
        let apart = probe / u32::try_from(sinks.len())?;
        let mut took = Vec::new();
        let mut healed = Vec::new();
        for sink in &sinks {
            if sink.asked.load(Ordering::SeqCst) < 2 {
                return Err("a sink that is down was not asked again".into());
            }
            sink.up.store(true, Ordering::SeqCst);
            healed.push(Instant::now());
            std::thread::sleep(apart);
        }
        for (sink, healed) in sinks.into_iter().zip(healed) {
            let mut last = healed;
            for _ in 0..WAITING {
                last = sink.hears.recv_timeout(LONG)?;
            }
            took.push(last.duration_since(healed).as_nanos() as f64);
            if sink.drainer.close(LONG)? > 0 {
                return Err("something was left".into());
            }
        }
        Ok(took)
    }
}

impl Sink {
    fn start(journal: &Journal, probe: Duration) -> Result<Self> {
        let (up, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (told, hears) = mpsc::channel();
        let (is_up, asks) = (Arc::clone(&up), Arc::clone(&asked));
        let publisher = move |message: &Message| -> Answer {
            if !is_up.load(Ordering::SeqCst) {
                asks.fetch_add(1, Ordering::SeqCst);
                return unavailable(message);
            }
            let _ = told.send(Instant::now());
            Ok(())
        };
        let drainer = journal.drainer(TOPIC, publisher).probe(probe).start()?;
        Ok(Self { up, asked, hears, drainer })
    }
}

pub fn measure(place: &Place, homes: &mut Homes, scale: &Scale) -> Result<Vec<f64>> {
    let home = homes.make(place)?;
    let roots: Vec<_> = (0..scale.sinks).map(|sink| home.join(format!("sink-{sink}"))).collect();
    roots.iter().try_for_each(fs::create_dir)?;
    let task = work::Task::Heal(Task { roots, probe_ms: scale.probe_ms });
    child::answer_of(child::command(&[], &child::Task::Outbox(task))?)
}
