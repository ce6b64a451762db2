//! One pass over what waits, under the topic's lock.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use super::{Settings, Shared};
use crate::engine::{Journal, Lock};
use crate::error::Result;
use crate::journal;
use crate::outbox::{self, Coalesce, Message, PublishError, Publisher, Waiting};
use crate::time::Deadline;
use crate::txn;

/// So many messages are read, and dropped, at once.
const BATCH: usize = 256;
/// And no more than so many bytes.
const BATCH_BYTES: usize = 4 << 20;
/// So many keys may wait behind a refused message before the whole topic does.
const MOST_BLOCKED: usize = 10_000;
/// After what time a sink that cannot be reached is asked again, in the beginning.
const FIRST_PROBE: Duration = Duration::from_millis(50);

pub(super) struct Pass<P> {
    pub(super) journal: Journal,
    pub(super) topic: String,
    publisher: P,
    pub(super) settings: Settings,
    pub(super) shared: Arc<Shared>,
    /// Keys whose oldest message was refused: which one that is, and until when it waits.
    blocked: HashMap<String, (i64, Deadline)>,
    /// The newest message that a pass has seen.
    seen: i64,
    /// How often in a row the sink could not be reached.
    unreachable: u32,
}

/// How a pass ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// Nothing waits.
    Idle,
    /// Some keys wait, and have to be tried after this time.
    Blocked(Duration),
    /// The sink cannot be reached, and is to be asked after this time.
    Paused(Duration),
}

/// What is known of some messages, and not written down yet.
#[derive(Default)]
struct Outcome {
    over: Vec<i64>,
    refused: Vec<(i64, String, bool)>,
    published: u64,
}

impl<P: Publisher> Pass<P> {
    pub(super) fn new(journal: Journal, topic: String, publisher: P, settings: Settings, shared: Arc<Shared>) -> Self {
        Self { journal, topic, publisher, settings, shared, blocked: HashMap::new(), seen: 0, unreachable: 0 }
    }

    /// True when something waits that no pass has left behind.
    pub(super) fn has_news(&self) -> bool {
        // Numbers only grow, but for what a person has tried again.
        let after = if self.blocked.is_empty() { 0 } else { self.seen };
        let waits = self.journal.ground().store.peek(|tx| outbox::is_waiting(tx, &self.topic, after));
        waits.unwrap_or(true)
    }

    pub(super) fn run(&mut self, lock: &Lock) -> Result<Ended> {
        self.forget_what_is_over()?;
        let mut after = 0;
        let mut all = None;
        loop {
            let (batch, newest) = self.journal.ground().store.peek(|tx| {
                let batch = outbox::next_waiting(tx, &self.topic, after, BATCH, BATCH_BYTES)?;
                Ok((batch, journal::newest(tx)?))
            })?;
            let Some(last) = batch.last().map(|waiting| waiting.message.id) else {
                all = Some(newest);
                break;
            };
            after = last;
            self.seen = self.seen.max(last);
            let mut outcome = Outcome::default();
            let reached = self.publish(batch, &mut outcome);
            self.note(lock, outcome)?;
            if !reached {
                let again = self.probe();
                self.shared.door.tell(None, true);
                return Ok(Ended::Paused(again));
            }
            // Of that transaction there may be more.
            self.shared.door.tell(Some(outbox::txn_of(last) - 1), false);
            if self.is_over() || self.blocked.len() >= MOST_BLOCKED {
                break;
            }
        }
        self.shared.door.tell(all, false);
        let next = self.blocked.values().map(|(_, until)| until.left()).min();
        Ok(next.map_or(Ended::Idle, Ended::Blocked))
    }

    /// A person may have dropped what a key waits behind.
    fn forget_what_is_over(&mut self) -> Result<()> {
        let Self { journal, topic, blocked, .. } = self;
        if blocked.is_empty() {
            return Ok(());
        }
        journal.ground().store.peek(|tx| {
            let mut gone = Vec::new();
            for (key, (head, _)) in blocked.iter() {
                if outbox::still_waiting(tx, topic, *head)?.is_none() {
                    gone.push(key.clone());
                }
            }
            gone.iter().for_each(|key| _ = blocked.remove(key));
            Ok(())
        })
    }

    fn is_over(&self) -> bool {
        self.shared.stop.requested() || self.shared.closing().is_some_and(|closing| closing.passed())
    }

    /// Publishes what may be; false when the sink cannot be reached.
    fn publish(&mut self, batch: Vec<Waiting>, outcome: &mut Outcome) -> bool {
        for waiting in batch {
            if self.is_over() {
                return true;
            }
            let message = &waiting.message;
            if waiting.is_superseded(self.settings.coalesce == Coalesce::LatestPerKey) {
                self.blocked.remove(&message.key);
                outcome.over.push(message.id);
                continue;
            }
            // IMPORTANT: nothing of a key goes out before what is older, even when that may be tried by now.
            if self.blocked.get(&message.key).is_some_and(|(head, until)| *head != message.id || !until.passed()) {
                continue;
            }
            match self.call(message) {
                Ok(()) => {
                    self.unreachable = 0;
                    self.blocked.remove(&message.key);
                    outcome.over.push(message.id);
                    outcome.published += 1;
                }
                Err(PublishError::Unavailable(why)) => {
                    self.unreachable += 1;
                    tracing::warn!(topic = self.topic, why, "a sink cannot be reached; its messages wait");
                    return false;
                }
                Err(PublishError::Refused(why)) => {
                    self.unreachable = 0;
                    let park = message.attempts + 1 >= self.settings.refusals;
                    self.refuse(message, why, park, outcome);
                }
                Err(PublishError::Park(why)) => {
                    self.unreachable = 0;
                    self.refuse(message, why, true, outcome);
                }
            }
        }
        true
    }

    fn call(&mut self, message: &Message) -> std::result::Result<(), PublishError> {
        let publisher = &mut self.publisher;
        catch_unwind(AssertUnwindSafe(|| publisher.publish(message)))
            .unwrap_or_else(|_| Err(PublishError::Refused("the publisher panicked".into())))
    }

    fn refuse(&mut self, message: &Message, why: String, park: bool, outcome: &mut Outcome) {
        match park {
            true => {
                tracing::warn!(topic = self.topic, key = message.key, why, "a message is parked");
                self.blocked.remove(&message.key);
            }
            false => {
                let doubled = 1_u32.checked_shl(message.attempts.min(16)).unwrap_or(u32::MAX);
                let pause = self.settings.backoff.saturating_mul(doubled).min(self.settings.probe);
                self.blocked.insert(message.key.clone(), (message.id, Deadline::after(pause)));
            }
        }
        outcome.refused.push((message.id, why, park));
    }

    /// After what time to ask the sink again.
    fn probe(&self) -> Duration {
        let doubled = 1_u32.checked_shl(self.unreachable.saturating_sub(1).min(16)).unwrap_or(u32::MAX);
        FIRST_PROBE.saturating_mul(doubled).min(self.settings.probe)
    }

    /// Writes down what became of them. Not synced: after a power cut they may go out once more.
    fn note(&self, lock: &Lock, outcome: Outcome) -> Result<()> {
        if outcome.over.is_empty() && outcome.refused.is_empty() {
            return Ok(());
        }
        txn::note_under(self.journal.ground(), &*lock.shared_lease()?, |tx| {
            outcome.over.iter().try_for_each(|id| outbox::delivered(tx, *id))?;
            for (id, why, park) in &outcome.refused {
                outbox::refused(tx, *id, why, *park)?;
            }
            outbox::count_published(tx, &self.topic, outcome.published)
        })
    }
}
