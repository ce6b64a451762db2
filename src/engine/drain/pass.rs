//! One pass over what waits, under the topic's lock.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use super::{Settings, Shared};
use crate::engine::{Journal, Lock};
use crate::error::Result;
use crate::fault::{Fault, planted};
use crate::journal;
use crate::lock::Lease;
use crate::outbox::{self, Coalesce, Message, PublishError, Publisher, Waiting};
use crate::store::{Durability, Tx};
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
    /// The newest message that a pass is through with, or has left behind such a key. None before it waits for anything else.
    seen: i64,
    /// How many messages people had tried again when everything was last gone through.
    retried: i64,
    /// How often in a row the sink could not be reached.
    unreachable: u32,
    /// Why the topic waits, and why it does so on record.
    pause: Option<String>,
    noted_pause: Option<String>,
    /// What became of messages, and is not written down yet.
    unnoted: Outcome,
}

/// How a pass ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// Nothing waits.
    Idle,
    /// Some keys wait, and have to be tried after this time.
    Blocked(Duration),
    /// The topic waits for this time: the sink cannot be reached, or refuses too much.
    Paused(Duration),
}

/// What became of some messages.
#[derive(Debug, Default)]
struct Outcome {
    over: Vec<i64>,
    refused: Vec<Refused>,
    published: u64,
}

#[derive(Debug)]
struct Refused {
    id: i64,
    why: String,
    park: bool,
}

/// How far a batch was published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    Through,
    /// It is to end, or has lost its lock.
    Over,
    /// Too many keys are blocked for one more.
    Full,
    Unreachable,
}

impl<P: Publisher> Pass<P> {
    pub(super) fn new(journal: Journal, topic: String, publisher: P, settings: Settings, shared: Arc<Shared>) -> Self {
        Self {
            journal,
            topic,
            publisher,
            settings,
            shared,
            blocked: HashMap::new(),
            seen: i64::MIN,
            retried: 0,
            unreachable: 0,
            pause: None,
            noted_pause: None,
            unnoted: Outcome::default(),
        }
    }

    /// True when something waits that no pass has left behind, or that a person has had tried again.
    pub(super) fn has_news(&self) -> bool {
        let news = self.journal.ground().store.peek(|tx| {
            let after = if self.blocked.is_empty() { i64::MIN } else { self.seen };
            Ok(outbox::is_waiting(tx, &self.topic, after)?
                || (!self.blocked.is_empty() && outbox::retried(tx, &self.topic)? != self.retried))
        });
        news.unwrap_or(true)
    }

    pub(super) fn run(&mut self, lock: &Lock) -> Result<Ended> {
        // IMPORTANT: before anything is published. What could not be written down would go out again, as often as that fails.
        self.note(lock)?;
        let lease = lock.shared_lease()?;
        let (mut progress, mut all) = (Progress::Through, None);
        let mut from = i64::MIN;
        if !self.blocked.is_empty() {
            self.forget_gone()?;
            if let Some(tried) = self.try_heads(lock, &lease)? {
                (progress, from) = (tried, self.seen);
            }
        }
        if progress == Progress::Through {
            (progress, all) = self.go_through(lock, &lease, from)?;
        }
        match progress {
            Progress::Through | Progress::Over => {
                self.shared.door.tell(all, false);
                Ok(self.next_try().map_or(Ended::Idle, Ended::Blocked))
            }
            Progress::Full => {
                self.shared.door.tell(None, true);
                Ok(Ended::Paused(self.next_try().unwrap_or_default()))
            }
            Progress::Unreachable => {
                self.shared.door.tell(None, true);
                Ok(Ended::Paused(self.probe()))
            }
        }
    }

    /// A person may have dropped what a key waits behind, or it is parked.
    fn forget_gone(&mut self) -> Result<()> {
        let Self { journal, blocked, seen, .. } = self;
        journal.ground().store.peek(|tx| {
            let mut gone = Vec::new();
            for (key, (head, _)) in blocked.iter() {
                if !outbox::still_waits(tx, *head)? {
                    *seen = (*seen).min(*head);
                    gone.push(key.clone());
                }
            }
            gone.iter().for_each(|key| _ = blocked.remove(key));
            Ok(())
        })
    }

    /// Tries again, by themselves, the messages that keys wait behind and whose time has come: however much waits behind them.
    /// None when a person has had others tried again since, which may have to go before them: that shows when all is gone through.
    fn try_heads(&mut self, lock: &Lock, lease: &Lease) -> Result<Option<Progress>> {
        let due = self.blocked.values().filter(|(_, until)| until.passed()).map(|(head, _)| *head);
        let mut due: Vec<i64> = due.collect();
        due.sort_unstable();
        let mut due = due.as_slice();
        loop {
            let ground = self.journal.ground();
            let some = &due[..due.len().min(BATCH)];
            let (retried, (batch, read)) = ground.store.peek(|tx| {
                let batch = outbox::these_waiting(tx, &self.topic, some, BATCH_BYTES)?;
                Ok((outbox::retried(tx, &self.topic)?, batch))
            })?;
            if retried != self.retried {
                return Ok(None);
            }
            due = &due[read..];
            let progress = self.publish(batch, lease);
            self.note(lock)?;
            if progress != Progress::Through || due.is_empty() {
                return Ok(Some(progress));
            }
        }
    }

    /// Publishes what waits behind a message, in order. Answers also up to which transaction all was tried, if it was.
    fn go_through(&mut self, lock: &Lock, lease: &Lease, from: i64) -> Result<(Progress, Option<i64>)> {
        let mut after = from;
        let mut retried = None;
        // Of a sink that could not be reached one message finds out as much as many; unless that is one that nobody needs.
        let mut most = if self.unreachable > 0 { 1 } else { BATCH };
        loop {
            let (batch, newest) = self.journal.read_in_place(|tx| {
                if retried.is_none() {
                    retried = Some(outbox::retried(tx, &self.topic)?);
                }
                let batch = outbox::next_waiting(tx, &self.topic, after, most, BATCH_BYTES)?;
                Ok((batch, journal::newest(tx)?))
            })?;
            let Some(last) = batch.last().map(|waiting| waiting.id) else {
                if from == i64::MIN {
                    self.retried = retried.unwrap_or_default();
                }
                return Ok((Progress::Through, Some(newest)));
            };
            (after, most) = (last, BATCH);
            if planted(Fault::DroppedBeforeTold) {
                self.unnoted.over.extend(batch.iter().map(|waiting| waiting.id));
                self.note(lock)?;
            }
            let progress = self.publish(batch, lease);
            self.note(lock)?;
            if progress != Progress::Through {
                return Ok((progress, None));
            }
            self.seen = self.seen.max(last);
            // Of that transaction there may be more.
            self.shared.door.tell(Some(outbox::txn_of(last) - 1), false);
        }
    }

    /// After what time the first of the keys that wait is to be tried.
    fn next_try(&self) -> Option<Duration> {
        self.blocked.values().map(|(_, until)| until.left()).min()
    }

    pub(super) fn is_over(&self) -> bool {
        self.shared.stop.requested() || self.shared.closing().is_some_and(|closing| closing.passed())
    }

    /// Publishes what may be.
    fn publish(&mut self, batch: Vec<Waiting>, lease: &Lease) -> Progress {
        for waiting in batch {
            // Somebody else may have the topic, and be further.
            if self.is_over() || lease.refuse_lost().is_err() {
                return Progress::Over;
            }
            let superseded = waiting.is_superseded(self.settings.coalesce == Coalesce::LatestPerKey);
            let id = waiting.id;
            let message = match waiting.message {
                Ok(message) => message,
                Err(why) => {
                    tracing::warn!(topic = self.topic, id, why, "the row of a message cannot be read: it is parked");
                    self.unnoted.refused.push(Refused { id, why, park: true });
                    continue;
                }
            };
            if superseded {
                self.over(&message);
                continue;
            }
            // IMPORTANT: nothing of a key goes out before what is older, even when that may be tried by now. What a person has
            // tried again is older than what waits, and goes first.
            let waits = |(head, until): &(i64, Deadline)| match head.cmp(&id) {
                Ordering::Less => !planted(Fault::RefusedOvertaken),
                Ordering::Equal => !until.passed(),
                Ordering::Greater => false,
            };
            if self.blocked.get(&message.key).is_some_and(waits) {
                continue;
            }
            let (why, park) = match self.call(&message) {
                Ok(()) => {
                    self.answered();
                    self.unnoted.published += 1;
                    self.over(&message);
                    continue;
                }
                Err(PublishError::Unavailable(why)) => {
                    self.unreachable = self.unreachable.saturating_add(1);
                    tracing::warn!(topic = self.topic, why, "a sink cannot be reached; its messages wait");
                    self.pause = Some(why);
                    return Progress::Unreachable;
                }
                Err(PublishError::Refused(why)) => (why, message.attempts.saturating_add(1) >= self.settings.refusals),
                Err(PublishError::Park(why)) => (why, true),
            };
            self.answered();
            if park {
                tracing::warn!(topic = self.topic, key = message.key, why, "a message is parked");
            }
            self.unnoted.refused.push(Refused { id, why, park });
            if self.blocked.len() >= MOST_BLOCKED && !self.blocked.contains_key(&message.key) {
                self.pause = Some(format!("the messages of {MOST_BLOCKED} keys are refused"));
                return Progress::Full;
            }
            if park && planted(Fault::ParkedNotNoted) {
                continue;
            }
            // What is parked has to be on record before the next one of its key goes: then the key is free.
            let pause = if park { Duration::ZERO } else { self.backoff(message.attempts) };
            self.blocked.insert(message.key, (id, Deadline::after(pause)));
        }
        Progress::Through
    }

    fn call(&mut self, message: &Message) -> std::result::Result<(), PublishError> {
        let publisher = &mut self.publisher;
        catch_unwind(AssertUnwindSafe(|| publisher.publish(message)))
            .unwrap_or_else(|_| Err(PublishError::Refused("the publisher panicked".into())))
    }

    /// The sink can be reached.
    fn answered(&mut self) {
        self.unreachable = 0;
        self.pause = None;
    }

    /// Nothing more is to be done about a message.
    fn over(&mut self, message: &Message) {
        if self.blocked.get(&message.key).is_some_and(|(head, _)| *head == message.id) {
            self.blocked.remove(&message.key);
            // What it kept back is read again.
            self.seen = self.seen.min(message.id);
        }
        self.unnoted.over.push(message.id);
    }

    /// After what time to try a message again that was refused so often before, and now.
    fn backoff(&self, before: u32) -> Duration {
        self.settings.backoff.saturating_mul(doubled(before)).min(self.settings.probe)
    }

    /// After what time to ask a sink again that could not be reached.
    fn probe(&self) -> Duration {
        FIRST_PROBE.saturating_mul(doubled(self.unreachable.saturating_sub(1))).min(self.settings.probe)
    }

    /// Writes down what became of messages. Not synced: after a power cut they may go out once more.
    fn note(&mut self, lock: &Lock) -> Result<()> {
        let Self { journal, topic, unnoted, pause, noted_pause, .. } = self;
        let turned = pause != noted_pause;
        if unnoted.over.is_empty() && unnoted.refused.is_empty() && !turned {
            return Ok(());
        }
        let noted = txn::note_under(journal.ground(), &*lock.shared_lease()?, |tx| {
            if turned {
                outbox::note_pause(tx, topic, journal.ground().session.id, pause.as_deref())?;
            }
            unnoted.over.iter().try_for_each(|id| outbox::delivered(tx, *id))?;
            for Refused { id, why, park } in &unnoted.refused {
                outbox::refused(tx, *id, why, *park)?;
            }
            outbox::count_published(tx, topic, unnoted.published)
        });
        if !planted(Fault::ToldNotNoted) {
            noted?;
        }
        *unnoted = Outcome::default();
        noted_pause.clone_from(pause);
        Ok(())
    }

    /// Nobody asks the sink again: the topic is not said to be paused any more. Best effort, it is for people.
    pub(super) fn forget_pause(&self) {
        if self.noted_pause.is_none() {
            return;
        }
        let ground = self.journal.ground();
        let forget = |tx: &Tx<'_>| outbox::note_pause(tx, &self.topic, ground.session.id, None);
        let _ = ground.enter().and_then(|mut turn| turn.write(Durability::Normal, forget));
    }
}

/// Two to the power of `times`, within reason.
fn doubled(times: u32) -> u32 {
    1 << times.min(16)
}
