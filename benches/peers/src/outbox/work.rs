//! What is measured in processes of their own.

use std::time::{Duration, Instant};

use journal_kb::{Journal, Message, PublishError};
use journal_kb_peers::Result;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{commits, draining, healing, latency, queue};

pub const TOPIC: &str = "documents";
/// So many bytes a message says.
pub const PAYLOAD: usize = 100;
/// The most that is waited for what is to be over in seconds.
pub const LONG: Duration = Duration::from_secs(300);
/// So many messages are put into one transaction where that is not what is measured.
pub const BATCH: usize = 1_000;

/// A part of a measurement that has a process of its own.
#[derive(Debug, Serialize, Deserialize)]
pub enum Task {
    Commit(commits::Task),
    Fill(draining::Fill),
    Drain(draining::Drain),
    Stuck(draining::Stuck),
    Latency(latency::Task),
    Hear(latency::Hear),
    Heal(healing::Task),
    Queue(queue::Task),
}

impl Task {
    pub fn run(&self) -> Result<Value> {
        Ok(match self {
            Self::Commit(task) => serde_json::to_value(task.run()?)?,
            Self::Fill(task) => serde_json::to_value(task.run()?)?,
            Self::Drain(task) => serde_json::to_value(task.run()?)?,
            Self::Stuck(task) => serde_json::to_value(task.run()?)?,
            Self::Latency(task) => serde_json::to_value(task.run()?)?,
            Self::Hear(task) => serde_json::to_value(task.run()?)?,
            Self::Heal(task) => serde_json::to_value(task.run()?)?,
            Self::Queue(task) => serde_json::to_value(task.run()?)?,
        })
    }
}

/// Which keys messages have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Keys {
    /// Each its own.
    Different,
    /// All the same.
    Same,
}

impl Keys {
    pub const ALL: [Self; 2] = [Self::Different, Self::Same];

    pub fn name(self) -> &'static str {
        match self {
            Self::Different => "all keys different",
            Self::Same => "all of one key",
        }
    }

    pub fn key(self, number: usize) -> String {
        match self {
            Self::Different => format!("documents/{number:07}.md"),
            Self::Same => "documents/index.md".to_owned(),
        }
    }
}

/// What a message says.
pub fn payload(number: usize) -> Vec<u8> {
    format!("{number:0>width$}", width = PAYLOAD).into_bytes()
}

/// Commits messages with numbers from `from` on, [`BATCH`] at a time.
pub fn send_all(journal: &Journal, keys: Keys, from: usize, messages: usize) -> Result<()> {
    for first in (from..from + messages).step_by(BATCH) {
        let mut numbers = first..(from + messages).min(first + BATCH);
        journal
            .transact(|txn| numbers.try_for_each(|number| txn.send_bytes(TOPIC, &keys.key(number), payload(number))))?;
    }
    Ok(())
}

pub fn nanoseconds(since: Instant) -> f64 {
    since.elapsed().as_nanos() as f64
}

/// How a publisher answers.
pub type Answer = std::result::Result<(), PublishError>;

/// A sink that cannot be reached.
pub fn unavailable(_: &Message) -> Answer {
    Err(PublishError::Unavailable("it is down".to_owned()))
}
