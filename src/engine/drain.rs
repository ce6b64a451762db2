//! Drainers: what was committed to the outbox goes out, whatever the sink does meanwhile.
//!
//! 1. A thread waits until a message of its topic is committed, by whatever process, or until it is time to ask a sink again.
//! 2. It takes the topic's lock, so that nobody else publishes at the same time, and only then reads what waits.
//! 3. Messages are published in order. Those of a key that the sink has refused wait behind it; the others go on. A sink that
//!    cannot be reached ends the pass.
//! 4. What the sink has taken is dropped, some messages at a time; then the lock is given back.
//!
//! A crash between 3 and 4 has the messages sent again, with the same ids and versions.

mod pass;

use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use super::Journal;
use crate::error::{Error, IoContext, Result};
use crate::fault::{Fault, planted};
use crate::fs::bell::{Heard, Listener};
use crate::options::Acquire;
use crate::outbox::{self, Coalesce, Door, Publisher, check_topic};
use crate::time::Deadline;
use crate::wait::StopToken;
use pass::{Ended, Pass};

/// A drainer that is not started yet; from [`Journal::drainer`].
#[must_use = "nothing is published before start()"]
pub struct DrainerBuilder<P> {
    journal: Journal,
    topic: String,
    publisher: P,
    settings: Settings,
    inline: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Settings {
    coalesce: Coalesce,
    probe: Duration,
    refusals: u32,
    backoff: Duration,
}

/// Publishes the messages of a topic from a thread of its own, `journal-drain`, until it is closed or dropped. What is left then
/// stays in the outbox, for the next one. It keeps the journal open, as a clone of it does.
#[derive(Debug)]
#[must_use = "dropped, it ends"]
pub struct Drainer {
    journal: Journal,
    topic: String,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// Hung up once the thread has ended.
    ended: Mutex<mpsc::Receiver<()>>,
}

#[derive(Debug)]
struct Shared {
    door: Arc<Door>,
    stop: StopToken,
    /// It is to go on until this is over, or nothing is left.
    closing: Mutex<Option<Deadline>>,
}

impl Shared {
    /// It is to end, at once or when nothing is left.
    fn is_ending(&self) -> bool {
        self.stop.requested() || self.closing().is_some()
    }

    /// Until when it is to publish what it can, once it is being closed.
    fn closing(&self) -> Option<Deadline> {
        *self.closing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Journal {
    /// Drains a topic of the outbox to `publisher`, once it is started. Of all drainers of a topic, in whatever process, one at a time
    /// publishes.
    ///
    /// ```
    /// # use journal_kb::{Journal, Message, PublishError};
    /// # use std::time::Duration;
    /// # let dir = tempfile::tempdir()?;
    /// let journal = Journal::open(dir.path())?;
    /// let (told, hears) = std::sync::mpsc::channel();
    /// let drainer = journal
    ///     .drainer("documents", move |message: &Message| {
    ///         told.send((message.key.clone(), message.version)).map_err(|error| PublishError::Unavailable(error.to_string()))
    ///     })
    ///     .start()?;
    /// journal.transact(|txn| {
    ///     txn.write("report.md", "# Report")?;
    ///     txn.send("documents", "report.md", "added")
    /// })?;
    /// assert_eq!(hears.recv()?, ("report.md".into(), 1));
    /// assert_eq!(drainer.close(Duration::from_secs(2))?, 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn drainer<P: Publisher + 'static>(&self, topic: &str, publisher: P) -> DrainerBuilder<P> {
        DrainerBuilder {
            journal: self.clone(),
            topic: topic.to_owned(),
            publisher,
            settings: Settings {
                coalesce: Coalesce::default(),
                probe: Duration::from_secs(10),
                refusals: 20,
                backoff: Duration::from_millis(100),
            },
            inline: Duration::from_millis(100),
        }
    }
}

impl<P: Publisher + 'static> DrainerBuilder<P> {
    /// Which messages of a key are published. Default: each.
    pub fn coalesce(mut self, coalesce: Coalesce) -> Self {
        self.settings.coalesce = coalesce;
        self
    }

    /// How long a commit in this process waits for the first try of its own messages; a sink that was not to be reached is not
    /// waited for. Default: 100 ms.
    pub fn inline(mut self, at_most: Duration) -> Self {
        self.inline = at_most;
        self
    }

    /// How far apart a sink that cannot be reached is asked again, at most; less in the beginning. Default: 10 s.
    pub fn probe(mut self, at_most: Duration) -> Self {
        self.settings.probe = at_most.max(SHORTEST_PROBE);
        self
    }

    /// How often a message may be refused before it is parked. Default: 20.
    pub fn refusals(mut self, times: u32) -> Self {
        self.settings.refusals = times.max(1);
        self
    }

    /// After what time a message is tried again that was refused once; it doubles each time, up to the time of
    /// [`DrainerBuilder::probe`]. Default: 100 ms.
    pub fn backoff(mut self, first: Duration) -> Self {
        self.settings.backoff = first;
        self
    }

    /// Starts it. What waits already is published now.
    pub fn start(self) -> Result<Drainer> {
        let Self { journal, topic, publisher, settings, inline } = self;
        check_topic(&topic)?;
        journal.ground().store.refuse_forked()?;
        let door = journal.ground().doors.open(&topic, inline)?;
        let listener = door.bell.listen(&journal.ground().store.log_path());
        let stop = StopToken::new();
        let shared = Arc::new(Shared { door, stop, closing: Mutex::default() });
        let work = Work {
            pass: Pass::new(journal.clone(), topic.clone(), publisher, settings, Arc::clone(&shared)),
            listener,
        };
        let (ends, ended) = mpsc::channel::<()>();
        let thread = std::thread::Builder::new()
            .name("journal-drain".into())
            .spawn(move || {
                // Dropped last, and also when it panics.
                let _ends = ends;
                work.run();
            })
            .at("start a thread for", journal.root())?;
        Ok(Drainer { journal, topic, shared, thread: Some(thread), ended: Mutex::new(ended) })
    }
}

impl Drainer {
    /// Publishes what it can until this time is over, ends, and answers how many messages of the topic are left: those that came too
    /// late, that the sink has refused and that are to be tried again, and all when it cannot be reached, which is not waited for.
    /// They stay in the outbox.
    pub fn close(mut self, at_most: Duration) -> Result<u64> {
        self.journal.ground().store.refuse_forked()?;
        *self.shared.closing.lock().unwrap_or_else(PoisonError::into_inner) = Some(Deadline::after(at_most));
        self.shared.door.bell.ring();
        self.has_ended_within(at_most);
        self.end();
        self.journal.ground().store.peek(|tx| outbox::backlog(tx, &self.topic))
    }

    fn end(&mut self) {
        self.shared.stop.stop("the drainer was closed");
        self.shared.door.bell.ring();
        self.shared.door.tell(None, true);
        let Some(thread) = self.thread.take() else { return };
        // A sink that does not answer is not waited for.
        if self.has_ended_within(END) {
            let _ = thread.join();
        }
    }

    fn has_ended_within(&mut self, at_most: Duration) -> bool {
        let ended = self.ended.get_mut().unwrap_or_else(PoisonError::into_inner);
        ended.recv_timeout(at_most) == Err(mpsc::RecvTimeoutError::Disconnected)
    }
}

impl Drop for Drainer {
    fn drop(&mut self) {
        if self.journal.ground().store.refuse_forked().is_err() {
            std::mem::forget((self.thread.take(), Arc::clone(&self.shared), self.journal.clone()));
            return;
        }
        self.end();
    }
}

/// How long a thread is waited for that is told to end.
const END: Duration = Duration::from_millis(500);
/// No sink is asked more often than this when it cannot be reached.
const SHORTEST_PROBE: Duration = Duration::from_millis(1);
/// After what time it goes on when the journal itself could not be read or written.
const AFTER_AN_ERROR: Duration = Duration::from_secs(1);

struct Work<P> {
    pass: Pass<P>,
    listener: Listener,
}

impl<P: Publisher> Work<P> {
    fn run(mut self) {
        /// Nobody is to wait for who publishes no more.
        struct Shut(Arc<Shared>);
        impl Drop for Shut {
            fn drop(&mut self) {
                self.0.door.tell(None, true);
            }
        }
        outbox::wait_at_no_door();
        let shut = Shut(Arc::clone(&self.pass.shared));
        let shared = &shut.0;
        loop {
            let ended = self.drain();
            // What stood behind a message that is parked by now is free to go.
            let goes_on = ended == Ended::Blocked(Duration::ZERO) && !self.pass.is_over();
            if shared.is_ending() && !goes_on {
                break;
            }
            self.wait(ended);
            if shared.stop.requested() {
                break;
            }
        }
        self.pass.forget_pause();
    }

    /// One pass under the lock.
    fn drain(&mut self) -> Ended {
        let journal = self.pass.journal.clone();
        let mut lock = outbox::lock_name(&self.pass.topic);
        if planted(Fault::TopicNotLocked) {
            lock.push_str(&std::process::id().to_string());
        }
        let door = Arc::clone(&self.pass.shared.door);
        let acquire = Acquire::new(lock)
            .purpose("publishing")
            .cancel(&self.pass.shared.stop)
            .wait(Duration::MAX)
            // Somebody else publishes, for as long as they like.
            .on_wait(Duration::MAX, move |_| door.tell(None, true));
        match journal.lock_with(acquire).and_then(|lock| self.pass.run(&lock)) {
            Ok(ended) => ended,
            Err(Error::Cancelled { .. }) => Ended::Idle,
            Err(error) => {
                tracing::warn!(topic = self.pass.topic, %error, "the outbox could not be drained; it is tried again");
                Ended::Paused(self.pass.settings.probe.min(AFTER_AN_ERROR))
            }
        }
    }

    /// Waits until something is to be published, or it is time to try again.
    fn wait(&self, ended: Ended) {
        let (again, listens) = match ended {
            Ended::Idle => (Duration::MAX, true),
            Ended::Blocked(again) => (again, true),
            // What is committed meanwhile waits, too.
            Ended::Paused(again) => (again, false),
        };
        self.listener.wait_until(Deadline::after(again), listens, |heard| {
            self.pass.shared.is_ending() || (listens && (heard == Heard::Rung || self.pass.has_news()))
        });
    }
}
