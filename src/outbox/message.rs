//! What is told to others, and how they answer.

use std::fmt;

use serde::de::DeserializeOwned;

use crate::error::{Error, Result};
use crate::id::{Fence, TxnId};

/// In bytes: its lock is `outbox:` and the topic.
const LONGEST_TOPIC: usize = 72;
const LONGEST_KEY: usize = 1024;
const LONGEST_PAYLOAD: usize = 16 << 20;

/// A message, as a [`Publisher`] is given it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Message {
    /// Its number: the same whenever it is sent, and that of no other message.
    pub id: i64,
    /// What it is about.
    pub topic: String,
    /// What of that. Messages of one key are published in the order of their versions.
    pub key: String,
    /// Which message of this key it is, counted from 1: larger than that of every message of the key before it.
    pub version: u64,
    /// What the key stands for is gone: there is no payload.
    pub is_removal: bool,
    /// What it says.
    pub payload: Vec<u8>,
    /// The fencing token of the lock it was committed under.
    pub fence: Fence,
    /// The transaction it was committed with.
    pub txn: TxnId,
    /// How often a sink has refused it.
    pub attempts: u32,
    /// When it was committed.
    pub enqueued_ms: i64,
}

impl Message {
    /// What it says, as it was given to [`Transaction::send`](crate::Transaction::send). An error for a removal, which says nothing.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_slice(&self.payload).map_err(Error::caller)
    }
}

/// Why a message was not published.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PublishError {
    /// The sink cannot be reached. It is no message's fault: the topic waits, and asks again every 10 s at most, for ever.
    Unavailable(String),
    /// The sink does not take this message. It is tried again, later and later; after 20 times it is parked.
    Refused(String),
    /// The sink will never take this message: it is parked at once.
    Park(String),
}

impl fmt::Display for PublishError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unavailable(why) => write!(f, "the sink cannot be reached: {why}"),
            Self::Refused(why) => write!(f, "the sink refused it: {why}"),
            Self::Park(why) => write!(f, "the sink will not take it: {why}"),
        }
    }
}

impl std::error::Error for PublishError {}

/// Where messages of a topic go: any closure of that shape, or a type of its own.
///
/// A message may come more than once: when the process dies after the sink took it and before that is known. It is the very same
/// then, by id and version. So publish it in a way that bears repetition: "set to at least this version", never "add one".
pub trait Publisher: Send {
    /// Publishes a message. `Ok` means that the sink has it. A panic counts as a refusal. Wait for no sink longer than some seconds:
    /// meanwhile nothing else of the topic goes, and who closes the drainer leaves this thread behind.
    fn publish(&mut self, message: &Message) -> std::result::Result<(), PublishError>;
}

impl<F: FnMut(&Message) -> std::result::Result<(), PublishError> + Send> Publisher for F {
    fn publish(&mut self, message: &Message) -> std::result::Result<(), PublishError> {
        self(message)
    }
}

/// Which of the messages of a key are published.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Coalesce {
    /// Each, in order.
    #[default]
    EachMessage,
    /// The newest that there is when it comes to that: those before it are dropped.
    LatestPerKey,
}

/// A message that is to be committed.
#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) topic: String,
    pub(crate) key: String,
    /// None: what the key stands for is gone.
    pub(crate) payload: Option<Vec<u8>>,
}

impl Draft {
    pub(crate) fn new(topic: &str, key: &str, payload: Option<Vec<u8>>) -> Result<Self> {
        check_topic(topic)?;
        let too_large = |what, limit: usize| Err(Error::TooLarge { what, limit: limit as u64 });
        if key.len() > LONGEST_KEY {
            return too_large("the key of a message", LONGEST_KEY);
        }
        if payload.as_ref().is_some_and(|payload| payload.len() > LONGEST_PAYLOAD) {
            return too_large("a message", LONGEST_PAYLOAD);
        }
        Ok(Self { topic: topic.to_owned(), key: key.to_owned(), payload })
    }
}

/// Refuses what cannot be a topic.
pub(crate) fn check_topic(topic: &str) -> Result<()> {
    match topic.len() {
        1..=LONGEST_TOPIC => Ok(()),
        0 => Err(Error::BadTopic { topic: topic.to_owned(), reason: "it is empty" }),
        _ => Err(Error::BadTopic { topic: topic.to_owned(), reason: "it has more than 72 bytes" }),
    }
}

/// The lock under which a topic is published.
pub(crate) fn lock_name(topic: &str) -> String {
    format!("outbox:{topic}")
}
