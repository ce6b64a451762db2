//! Telling others of new documents, through Redis: the message is part of the commit that adds one, and what Redis could not be told
//! then waits for the next time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use journal_kb::{Drainer, Journal, Message, PublishError, Publisher, RedisPublisher, Transaction};
use serde_json::json;

use crate::Result;

/// What the messages are about. In Redis `documents:<source>` holds a version, and the channel `documents` tells when it grows.
const TOPIC: &str = "documents";
/// How long what waits is still published once all documents are added.
const AT_THE_END: Duration = Duration::from_secs(5);

/// Has others told, once `txn` is committed, that the document at `source` is there. Added anew after it has changed, it has a larger
/// version.
pub(crate) fn added(txn: &mut Transaction, source: &str, page: &str, title: &str) -> journal_kb::Result<()> {
    txn.send(TOPIC, source, &json!({ "event": "document added", "page": page, "title": title }))
}

/// Publishes to Redis while documents are added, and before that what an earlier time has left.
pub(crate) struct Teller {
    drainer: Drainer,
    said: Arc<Said>,
}

/// What the thread that publishes has to say.
#[derive(Default)]
struct Said {
    published: AtomicU64,
    trouble: Mutex<Option<String>>,
}

impl Teller {
    pub(crate) fn start(journal: &Journal, mut redis: RedisPublisher) -> Result<Teller> {
        let said = Arc::new(Said::default());
        let says = Arc::clone(&said);
        let publisher = move |message: &Message| {
            let answer = redis.publish(message);
            match &answer {
                Ok(()) => _ = says.published.fetch_add(1, Ordering::Relaxed),
                Err(error) => says.is_in_trouble(error),
            }
            answer
        };
        Ok(Teller { drainer: journal.drainer(TOPIC, publisher).start()?, said })
    }

    /// Ends it, and answers how far it came. What is left is no failure: it is in the journal.
    pub(crate) fn finish(self) -> Result<Told> {
        let waits = self.drainer.close(AT_THE_END)?;
        let trouble = self.said.trouble.lock().unwrap_or_else(PoisonError::into_inner).take();
        Ok(Told { published: self.said.published.load(Ordering::Relaxed), waits, trouble })
    }
}

/// How far it came.
pub(crate) struct Told {
    published: u64,
    waits: u64,
    trouble: Option<String>,
}

impl Told {
    pub(crate) fn print(&self) {
        println!("{} published to Redis, {} wait", self.published, self.waits);
        if self.waits > 0 {
            let why = self.trouble.as_deref().unwrap_or("there was no time for more");
            eprintln!("Redis: {why}; what waits is published by the next run with --redis");
        }
    }
}

impl Said {
    fn is_in_trouble(&self, error: &PublishError) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.to_string());
    }
}
