//! How a journal is opened, and how a transaction begins.

mod job;

use std::path::PathBuf;
use std::time::Duration;

use crate::history::Retention;
use crate::lock::Waiting;
use crate::wait::StopToken;

pub use job::Job;

/// Settings of a journal, for this opening of it. [`Journal::options`](crate::Journal::options) gives the defaults.
#[derive(Clone, Debug)]
#[must_use = "options do nothing until open() is called"]
pub struct Options {
    pub(crate) create: bool,
    pub(crate) state_dir: Option<PathBuf>,
    pub(crate) database: Option<PathBuf>,
    pub(crate) foreign_keys: bool,
    pub(crate) inline_file: u64,
    pub(crate) inline_txn: u64,
    pub(crate) inline_blob: u64,
    pub(crate) pool_size: u32,
    pub(crate) pool_wait: Duration,
    pub(crate) read_limit: Duration,
    pub(crate) lock_wait: Duration,
    pub(crate) turn_wait: Duration,
    pub(crate) heartbeat: Duration,
    pub(crate) settle_after: Duration,
    pub(crate) settle_bytes: u64,
    pub(crate) settle_paths: u64,
    pub(crate) retention: Retention,
    pub(crate) run_retention: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            create: true,
            state_dir: None,
            database: None,
            foreign_keys: true,
            inline_file: 64 << 10,
            inline_txn: 16 << 20,
            inline_blob: 64 << 10,
            pool_size: 4,
            pool_wait: Duration::from_secs(10),
            read_limit: Duration::from_secs(5),
            lock_wait: Duration::from_secs(150),
            turn_wait: Duration::from_secs(60),
            heartbeat: Duration::from_secs(5),
            settle_after: Duration::from_secs(1),
            settle_bytes: 8 << 20,
            settle_paths: 2048,
            retention: Retention::default(),
            run_retention: Duration::from_secs(7 * 24 * 60 * 60),
        }
    }
}

impl Options {
    /// Whether a journal is made where there is none. Default: yes.
    pub fn create(mut self, create: bool) -> Self {
        self.create = create;
        self
    }

    /// Where the engine keeps its state, instead of `.journal` in the root. Relative to the root. May be on another
    /// local filesystem; then a directory `.journal-stage` appears in the root.
    pub fn state_dir(mut self, path: impl Into<PathBuf>) -> Self {
        self.state_dir = Some(path.into());
        self
    }

    /// A WAL database the application already has, to hold the `journal_` tables too. Relative to the root. Its
    /// `user_version` and `application_id` stay the application's.
    pub fn database(mut self, path: impl Into<PathBuf>) -> Self {
        self.database = Some(path.into());
        self
    }

    /// Whether SQLite enforces foreign keys. Default: yes.
    pub fn foreign_keys(mut self, enforce: bool) -> Self {
        self.foreign_keys = enforce;
        self
    }

    /// The largest file that becomes durable with the commit's own sync, in bytes; a larger one is streamed to the
    /// stage and synced first. Default: 64 KiB.
    pub fn inline_limit(mut self, bytes: u64) -> Self {
        self.inline_file = bytes;
        self
    }

    /// How many bytes of one transaction's small files may do so, and are held in memory meanwhile. Default: 16 MiB.
    pub fn inline_total(mut self, bytes: u64) -> Self {
        self.inline_txn = bytes;
        self
    }

    /// The largest blob that stands in the database, in bytes; a larger one gets a file. Default: 64 KiB; at most 16 MiB.
    pub fn inline_blob(mut self, bytes: u64) -> Self {
        self.inline_blob = bytes.min(16 << 20);
        self
    }

    /// How many readers may be at work at once. Default: 4.
    pub fn pool_size(mut self, readers: u32) -> Self {
        self.pool_size = readers;
        self
    }

    /// How long a read waits for one of them. Default: 10 s.
    pub fn pool_timeout(mut self, wait: Duration) -> Self {
        self.pool_wait = wait;
        self
    }

    /// After how long a read is ended, because it keeps the write-ahead log from shrinking. Default: 5 s.
    ///
    /// It is ended at its next statement or row. A closure that does something else meanwhile keeps its snapshot: once the log
    /// is longer than 48 MiB, commits wait for it now and then, for some seconds.
    pub fn read_limit(mut self, limit: Duration) -> Self {
        self.read_limit = limit;
        self
    }

    /// How long to wait for a lock when nothing else is said. Default: 150 s.
    pub fn lock_wait(mut self, wait: Duration) -> Self {
        self.lock_wait = wait;
        self
    }

    /// How long to wait for the turn to write, which others hold for one commit at a time. Default: 60 s.
    pub fn turn_wait(mut self, wait: Duration) -> Self {
        self.turn_wait = wait;
        self
    }

    /// How often whoever holds a lock gives a sign of life, for people, and looks whether it is still held. Default: 5 s.
    pub fn heartbeat(mut self, every: Duration) -> Self {
        self.heartbeat = every;
        self
    }

    /// How long after a commit the background thread makes the tree itself durable. Default: 1 s.
    pub fn settle_after(mut self, idle: Duration) -> Self {
        self.settle_after = idle;
        self
    }

    /// After how many bytes of new content it does so at once. Default: 8 MiB.
    pub fn settle_bytes(mut self, bytes: u64) -> Self {
        self.settle_bytes = bytes;
        self
    }

    /// After how many changed paths it does so at once. Default: 2048.
    pub fn settle_paths(mut self, paths: u64) -> Self {
        self.settle_paths = paths;
        self
    }

    /// How long old versions are kept. [`Retention::OFF`] keeps none.
    pub fn history(mut self, keep: Retention) -> Self {
        self.retention = keep;
        self
    }

    /// How long a run is kept that is over, or that nobody goes on with: then its job begins afresh. Default: 7 days.
    pub fn run_retention(mut self, keep: Duration) -> Self {
        self.run_retention = keep;
        self
    }
}

/// How a transaction begins: under which lock, how long to wait for it, as what it is shown.
#[derive(Clone, Debug, Default)]
#[must_use = "give it to Journal::begin_with"]
pub struct Begin {
    pub(crate) label: String,
    pub(crate) lock: Option<String>,
    pub(crate) wait: Option<Duration>,
    pub(crate) key: Option<String>,
}

impl Begin {
    /// A transaction with this label, for `journalctl-kb log`.
    pub fn new(label: impl Into<String>) -> Self {
        Self { label: label.into(), ..Self::default() }
    }

    /// The lock it holds from begin to end. Default: `main`; under a [`Lock`](crate::Lock) that very one.
    pub fn lock(mut self, name: impl Into<String>) -> Self {
        self.lock = Some(name.into());
        self
    }

    /// How long to wait for the lock. Default: [`Options::lock_wait`].
    pub fn wait(mut self, wait: Duration) -> Self {
        self.wait = Some(wait);
        self
    }

    /// An idempotency key: committing again under the same key answers the first receipt and does nothing; with other
    /// content it is [`Error::KeyReused`](crate::Error::KeyReused). What is compared is every operation on the
    /// tree as it was asked for, content included; not the SQL.
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }
}

/// What [`Acquire::on_wait`] was given: how often, and whom to tell.
pub(crate) type OnWait<'a> = (Duration, Box<dyn FnMut(&Waiting) + Send + 'a>);

/// How a lock is taken: alone or shared, how long to wait, for what, and what happens meanwhile.
#[must_use = "give it to Journal::lock_with"]
pub struct Acquire<'a> {
    pub(crate) name: String,
    pub(crate) shared: bool,
    pub(crate) wait: Option<Duration>,
    pub(crate) purpose: String,
    pub(crate) cancel: Option<StopToken>,
    pub(crate) on_wait: Option<OnWait<'a>>,
}

impl<'a> Acquire<'a> {
    /// The lock of this name, alone.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), shared: false, wait: None, purpose: String::new(), cancel: None, on_wait: None }
    }

    /// Shares it with all who share it too: while somebody does, no transaction of this name is at work, and none is half done.
    /// Nothing can be written under a shared lock, and it does not become exclusive.
    pub fn shared(mut self) -> Self {
        self.shared = true;
        self
    }

    /// How long to wait for it. Default: [`Options::lock_wait`]. Zero: not at all.
    pub fn wait(mut self, wait: Duration) -> Self {
        self.wait = Some(wait);
        self
    }

    /// What it is taken for, as whoever waits for it is shown.
    pub fn purpose(mut self, text: impl Into<String>) -> Self {
        self.purpose = text.into();
        self
    }

    /// Waiting ends with [`Error::Cancelled`](crate::Error::Cancelled) when this is asked to stop.
    pub fn cancel(mut self, cancel: &StopToken) -> Self {
        self.cancel = Some(cancel.clone());
        self
    }

    /// Tells, as soon as this has to wait and each time `every` has gone by, who has the lock and for how long it has been
    /// waited. Called on the waiting thread.
    pub fn on_wait(mut self, every: Duration, tell: impl FnMut(&Waiting) + Send + 'a) -> Self {
        self.on_wait = Some((every, Box::new(tell)));
        self
    }
}

impl std::fmt::Debug for Acquire<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Acquire").field("name", &self.name).field("shared", &self.shared).finish_non_exhaustive()
    }
}
