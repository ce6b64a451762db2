//! What a person says of messages.

use std::time::Duration;

use super::Journal;
use crate::error::Result;
use crate::options::Acquire;
use crate::outbox::{self, Again, Meant};
use crate::store::Tx;
use crate::txn;

/// Sets right what could not be published; from [`Journal::outbox`]. To look at it there is
/// [`Inspector::topics`](crate::inspect::Inspector::topics).
///
/// ```no_run
/// # fn main() -> journal_kb::Result<()> {
/// let journal = journal_kb::Journal::open("kb")?;
/// // What the sink has refused so often is mended: have it tried again.
/// let again = journal.outbox().retry_parked(Some("documents"))?;
/// println!("{} wait again", again.waiting);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Outbox<'j> {
    journal: &'j Journal,
}

/// What became of messages that were to wait again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Retried {
    /// They wait, as if they had never been refused.
    pub waiting: u64,
    /// So many of these go out with a version that a newer message of their key has overtaken, or will.
    pub outdated: u64,
    /// They were dropped: their keys were [retired](crate::Transaction::retire) after them.
    pub dropped: u64,
}

impl Journal {
    /// The messages that wait or are parked, to set right what could not be published.
    pub fn outbox(&self) -> Outbox<'_> {
        Outbox { journal: self }
    }
}

impl Outbox<'_> {
    /// Has one message wait again that is parked; of one that waits already, its refusals are forgotten. None when it is not
    /// there. Durable on return.
    ///
    /// It keeps its version. A publisher that only ever sets larger ones passes over it where its sink knows a newer one; where
    /// the key was retired after it, it is dropped.
    pub fn retry(&self, id: i64) -> Result<Option<Retried>> {
        Ok(Some(self.wait_again(Meant::One(id))?).filter(|again| *again != Retried::default()))
    }

    /// The same for all that are parked, of one topic or of all.
    pub fn retry_parked(&self, topic: Option<&str>) -> Result<Retried> {
        self.wait_again(topic.map_or(Meant::Parked, Meant::ParkedOf))
    }

    /// Removes a message that waits or is parked, **for good**: it is not published. False when it is not there. Versions go on
    /// counting. Durable on return.
    ///
    /// [`Error::Busy`](crate::Error::Busy) while somebody publishes its topic.
    pub fn discard(&self, id: i64) -> Result<bool> {
        let topic = self.journal.ground().store.peek(|tx| outbox::topic_of(tx, id))?;
        Ok(self.remove(topic.as_deref(), Meant::One(id))? > 0)
    }

    /// Removes all messages of a topic, or those alone that are parked, **for good**; answers how many. They go some at a time:
    /// killed meanwhile, it has removed some of them. Durable on return.
    ///
    /// [`Error::Busy`](crate::Error::Busy) while somebody publishes the topic.
    pub fn discard_topic(&self, topic: &str, parked_only: bool) -> Result<u64> {
        self.remove(Some(topic), if parked_only { Meant::ParkedOf(topic) } else { Meant::AllOf(topic) })
    }

    /// Takes no lock: a message that is parked is in nobody's hands, and to one that waits nothing is done.
    fn wait_again(&self, which: Meant<'_>) -> Result<Retried> {
        let ground = self.journal.ground();
        let mut all = Retried::default();
        for some in ground.store.peek(|tx| outbox::meant(tx, which))?.chunks(SOME) {
            let mut sum = all;
            let change = |tx: &Tx<'_>| {
                // It may run again, and only the last time counts.
                sum = all;
                for id in some {
                    sum.count(outbox::wait_again(tx, *id)?);
                }
                Ok(())
            };
            txn::write_rows(ground, ground.limits.turn_wait, change, |_| Ok(()))?;
            all = sum;
        }
        Ok(all)
    }

    fn remove(&self, topic: Option<&str>, which: Meant<'_>) -> Result<u64> {
        let ground = self.journal.ground();
        // Nobody drains what is no topic.
        let topic = topic.filter(|topic| outbox::check_topic(topic).is_ok());
        let lock = |topic| {
            let acquire = Acquire::new(outbox::lock_name(topic)).wait(WAIT).purpose("to drop messages");
            self.journal.lock_with(acquire)
        };
        let lock = topic.map(lock).transpose()?;
        // IMPORTANT: read under the lock. What a drainer has in hand is published in spite of being dropped.
        let ids = ground.store.peek(|tx| outbox::meant(tx, which))?;
        let mut removed = 0;
        for some in ids.chunks(SOME) {
            let mut sum = removed;
            let change = |tx: &Tx<'_>| {
                sum = removed;
                for id in some {
                    sum += u64::from(outbox::discard(tx, *id)?);
                }
                Ok(())
            };
            let wait = ground.limits.turn_wait;
            match &lock {
                Some(lock) => txn::write_rows_under(ground, &*lock.shared_lease()?, wait, change, |_| Ok(()))?,
                None => txn::write_rows(ground, wait, change, |_| Ok(()))?,
            }
            removed = sum;
        }
        Ok(removed)
    }
}

impl Retried {
    fn count(&mut self, again: Again) {
        match again {
            Again::Waits { outdated } => {
                self.waiting += 1;
                self.outdated += u64::from(outdated);
            }
            Again::Dropped => self.dropped += 1,
            Again::Gone => {}
        }
    }
}

/// So many messages are changed in one commit: others have their turn in between.
const SOME: usize = 1000;
/// How long to wait for a topic that is being published: no longer than it takes somebody who is just ending.
const WAIT: Duration = Duration::from_secs(2);
