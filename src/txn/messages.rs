//! What a transaction tells others once it is committed.

use serde::Serialize;

use super::receipt::Receipt;
use super::transaction::Transaction;
use crate::error::{Error, Result};
use crate::fault::{Fault, planted};
use crate::journal::{self, Level};
use crate::outbox::Draft;
use crate::store::{Durability, Tx};

impl Transaction {
    /// Has others told of this commit: the message is durable with it, and goes to whoever [drains](crate::Journal::drainer) the
    /// topic, once at least, after all messages of the same key before it. Nobody hears of what is not committed.
    ///
    /// What it says is encoded as JSON. [`Error::BadTopic`]; [`Error::TooLarge`] beyond 16 MiB.
    pub fn send<T: Serialize + ?Sized>(&mut self, topic: &str, key: &str, payload: &T) -> Result<()> {
        let payload = serde_json::to_vec(payload).map_err(Error::caller)?;
        self.send_bytes(topic, key, payload)
    }

    /// The same with bytes as they are.
    pub fn send_bytes(&mut self, topic: &str, key: &str, payload: impl Into<Vec<u8>>) -> Result<()> {
        self.enqueue(Draft::new(topic, key, Some(payload.into()))?)
    }

    /// Has others told that what `key` stands for is gone. What was sent for the key before and is not published yet is not
    /// published any more.
    pub fn retire(&mut self, topic: &str, key: &str) -> Result<()> {
        self.enqueue(Draft::new(topic, key, None)?)
    }

    /// Tells whoever publishes them in this process, and those who follow the changes.
    pub(super) fn announce(&self, receipt: &Receipt) {
        self.ground.doors.committed();
        if !self.messages.is_empty() && !receipt.repeated {
            self.ground.doors.knock(self.messages.iter().map(|draft| draft.topic.as_str()), receipt.id);
            if planted(Fault::ToldBeforeSync) {
                let event = |tx: &Tx<'_>| journal::insert_event(tx, Level::Info, "fault", None, None, "synced at last");
                let _ = self.ground.enter().and_then(|mut turn| turn.write(Durability::Full, event));
            }
        }
    }

    fn enqueue(&mut self, draft: Draft) -> Result<()> {
        let kind = if draft.payload.is_some() { "send" } else { "retire" };
        let payload = draft.payload.as_deref().unwrap_or_default();
        self.ask(kind, &[draft.topic.as_bytes(), draft.key.as_bytes(), payload]);
        self.messages.push(draft);
        Ok(())
    }
}
