//! The open journal: wires the floors together, and owns the background thread.

mod blobs;
mod drain;
mod feed;
mod locking;
mod outbox;
mod plan;
mod quarantine;
mod run;
mod runs;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::blob;
use crate::codec;
use crate::error::{Error, IoContext, Result};
use crate::fs::area::{Area, STATE_AREA};
use crate::fs::opener::{Opener, SIDECARS};
use crate::fs::root::{self, RootDir};
use crate::fs::state::{self, StateDir};
use crate::history::{self, Retention};
use crate::journal;
use crate::lock::{Heartbeat, Locks, Session};
use crate::options::{Begin, Options};
use crate::path::{RelPath, STATE_DIR};
use crate::recovery;
use crate::store::{self, Checkpointer, Database, ReadPool, Rows, Store, Turn};
use crate::time::{Deadline, boot_id};
use crate::txn::{
    self, Backlog, BacklogState, Drained, Ground, Late, Limits, Parts, Receipt, Settled, Transaction, Which,
};

pub use blobs::{BlobOpener, BlobReader, BlobWait, Blobs, NewBlob, SweptBlobs};
pub use drain::{Drainer, DrainerBuilder};
pub use feed::{Changes, Follow, Follower};
pub use locking::{Flight, Lock, LockFence};
pub use outbox::{Outbox, Retried};
pub use plan::{PlannedStep, recovery_plan};
pub use quarantine::Quarantine;
pub use run::{Attempt, Begun, Ended, Pending, Run, Started, Verdict};
pub use runs::Runs;

/// The lock of a transaction that names none.
const MAIN_LOCK: &str = "main";

/// A journal beside a tree of files: changes of files and rows that are all or nothing after any crash.
///
/// Cheap to clone; all clones are one session. The last one to go settles what is applied and ends the session;
/// [`Journal::close`] does the same and says how it went.
///
/// A process that forks keeps its journals to itself: in the child every use is refused with [`Error::Forked`], and dropping does
/// nothing. Open it after forking; one that the parent has open, only in a program started anew (`exec`).
///
/// Threads: `journal-settle` makes the tree durable behind the commits, `journal-tree` opens files of the tree,
/// `journal-note` writes down what no commit came by to carry along, `journal-pool` looks after the readers; they end with the
/// journal. `journal-beat` gives signs of life while locks are held for long, `journal-wait` lives while one is waited for.
#[derive(Clone, Debug)]
pub struct Journal {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    ground: Arc<Ground>,
    pool: ReadPool,
    lock_wait: Duration,
    retention: Retention,
    run_retention: Duration,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// What opening recovered, until somebody asks.
    recovered: Mutex<Recovered>,
}

/// What a closure given to [`Journal::transact`] answered, and the receipt of its commit.
#[derive(Clone, Debug)]
pub struct Committed<T> {
    /// What the closure answered.
    pub value: T,
    /// The receipt.
    pub receipt: Receipt,
}

/// What a recovery did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Recovered {
    /// Transactions carried into the tree.
    pub applied: u64,
    /// Transactions made durable there.
    pub settled: u64,
    /// Transactions that had died, and whose guarded paths were put back.
    pub rolled_back: u64,
    /// Paths whose version was somebody else's, and is kept in quarantine.
    pub moved_aside: u64,
    /// Transactions that some path still refuses.
    pub pending: u64,
    /// Transactions given up, with everything kept.
    pub quarantined: u64,
    /// Leftovers of dead sessions that were removed.
    pub swept: u64,
}

impl Options {
    /// Opens the journal of the tree at `root`, made first if it is not there, and recovers what a crash left.
    ///
    /// On return the journal's own files are durable. Nothing in the tree is changed but by recovery.
    pub fn open(self, root: impl AsRef<Path>) -> Result<Journal> {
        Journal::open_with(root.as_ref(), self)
    }
}

impl Journal {
    /// Opens the journal of the tree at `root` with the default settings; see [`Options::open`].
    pub fn open(root: impl AsRef<Path>) -> Result<Self> {
        Options::default().open(root)
    }

    /// The settings, to be changed before opening.
    pub fn options() -> Options {
        Options::default()
    }

    pub(crate) fn open_with(path: &Path, options: Options) -> Result<Self> {
        let ground = Arc::new(lay_ground(path, &options)?);
        let pool = ReadPool::new(&ground.store, options.pool_size, options.pool_wait, options.read_limit);
        let inner = Inner {
            threads: Mutex::new(vec![start_settler(&ground, &options)?, start_noter(&ground)?]),
            ground,
            pool,
            lock_wait: options.lock_wait,
            retention: options.retention,
            run_retention: options.run_retention,
            recovered: Mutex::default(),
        };
        let journal = Self { inner: Arc::new(inner) };
        let mut turn = journal.ground().enter()?;
        recovery::arrive(journal.ground(), &mut turn)?;
        journal.recover_in(&mut turn)?;
        if !turn.look(journal::unsettled)?.is_empty() || turn.look(blob::has_todo)? {
            // Left by a process that is gone: the background thread settles it.
            journal.ground().backlog.add(0, 0, 0);
        }
        drop(turn);
        Ok(journal)
    }

    fn ground(&self) -> &Arc<Ground> {
        &self.inner.ground
    }

    /// The root, as an absolute path.
    pub fn root(&self) -> &Path {
        self.ground().root.path()
    }

    /// What lies in the root and is this journal's own: the state directory, stages on other mounts, the database. A program that
    /// is to work on the tree alone should not see them.
    pub fn own_paths(&self) -> Vec<PathBuf> {
        let ground = self.ground();
        let own = ground.reserved.iter().map(|path| ground.root.full(path));
        let areas = ground.areas().into_iter().map(|area| area.path.clone());
        let mut all: Vec<PathBuf> = own.chain(areas).filter(|path| path.starts_with(ground.root.path())).collect();
        all.sort();
        // What lies in another of them goes with it.
        all.dedup_by(|path, above| path.starts_with(&*above));
        all.retain(|path| path.exists());
        all
    }

    /// Runs those of the application's schema steps that this database has not had yet, in order, each once and in a
    /// transaction of its own. Append to the list; never change what has run.
    pub fn migrate(&self, steps: &[&str]) -> Result<()> {
        let limits = &self.ground().limits;
        self.ground().store.migrate(steps, limits.turn_wait)
    }

    /// Runs `work` in a transaction under the lock `main`: committed when it answers `Ok`, rolled back when it answers
    /// `Err` or panics. What it wrote is durable and visible on return.
    pub fn transact<T>(&self, work: impl FnOnce(&mut Transaction) -> Result<T>) -> Result<Committed<T>> {
        let mut txn = self.begin("")?;
        let value = work(&mut txn)?;
        let receipt = txn.commit()?;
        Ok(Committed { value, receipt })
    }

    /// Begins a transaction under the lock `main`, waiting for it if somebody else has it.
    pub fn begin(&self, label: &str) -> Result<Transaction> {
        self.begin_with(Begin::new(label))
    }

    /// Reads the database in one snapshot, through the pool: query-only, and without waiting for writers.
    ///
    /// [`Error::PoolTimeout`] when all readers are taken, [`Error::ReadTooLong`] after [`Options::read_limit`].
    pub fn read<T>(&self, work: impl FnOnce(&Rows<'_>) -> Result<T>) -> Result<T> {
        self.inner.pool.read(work)
    }

    /// Changes rows alone, in one SQLite transaction: durable against power loss when it answers `Ok`, and nothing of it when
    /// the closure answers an error or panics. For files and rows together there is [`Journal::transact`].
    ///
    /// It takes no lock, leaves nothing in the history that `journalctl-kb log` shows, and costs one sync, which it shares
    /// with whatever other threads of this process commit at the same time. The closure may run again if the first try is
    /// undone for somebody else's reason; only the last run counts.
    ///
    /// ```
    /// # let dir = tempfile::tempdir()?;
    /// let journal = journal_kb::Journal::open(dir.path())?;
    /// journal.migrate(&["CREATE TABLE visit (page TEXT PRIMARY KEY, times INTEGER NOT NULL)"])?;
    /// let page = "start";
    /// let times: i64 = journal.write(|rows| {
    ///     rows.execute("INSERT INTO visit VALUES (?1, 1) ON CONFLICT DO UPDATE SET times = times + 1", [page])?;
    ///     rows.query_row("SELECT times FROM visit WHERE page = ?1", [page], |row| row.get(0))
    /// })?;
    /// assert_eq!(times, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn write<T>(&self, work: impl FnMut(&Rows<'_>) -> Result<T>) -> Result<T> {
        txn::write_rows(self.ground(), self.ground().limits.turn_wait, |_| Ok(()), work)
    }

    /// Makes the live tree itself durable: on return, everything committed so far is on disk in the files themselves,
    /// for readers without this library (a backup, a snapshot of the filesystem), and the write-ahead log is empty
    /// unless a reader needs it.
    pub fn settle(&self) -> Result<Settled> {
        let settled = self.settle_and_retain()?;
        if let Err(error) = self.ground().enter()?.truncate_log() {
            // A reader needs it, or there is no room for it: the log is as durable as the database would be.
            tracing::debug!(%error, "the write-ahead log could not be emptied");
        }
        Ok(settled)
    }

    fn settle_and_retain(&self) -> Result<Settled> {
        self.ground().store.refuse_forked()?;
        store::refuse_reentry("a settle")?;
        let _ = self.ground().backlog.take();
        let settled = txn::settle(self.ground(), Deadline::after(self.ground().limits.turn_wait))?;
        history::retain(self.ground(), &self.inner.retention)?;
        run::retain(self.ground(), self.inner.run_retention)?;
        Ok(settled)
    }

    /// Recovers what crashes left, tries again what could not be applied, and settles. Opening does the first two, and
    /// what it did is counted here the first time.
    pub fn recover(&self) -> Result<Recovered> {
        store::refuse_reentry("a recovery")?;
        self.recover_in(&mut self.ground().enter()?)?;
        let settled = self.settle()?.transactions;
        let recovered = std::mem::take(&mut *self.inner.recovered.lock().unwrap_or_else(|poison| poison.into_inner()));
        Ok(Recovered { settled, ..recovered })
    }

    fn recover_in(&self, turn: &mut Turn<'_>) -> Result<()> {
        let Drained { applied, pending, quarantined, aside, rolled_back } =
            recovery::drain(self.ground(), turn, Which::PendingToo)?;
        let swept = recovery::sweep(self.ground(), turn)?;
        let mut recovered = self.inner.recovered.lock().unwrap_or_else(|poison| poison.into_inner());
        recovered.applied += applied;
        recovered.rolled_back += rolled_back;
        recovered.moved_aside += aside;
        recovered.quarantined += quarantined;
        recovered.swept += swept;
        // What is pending now; an earlier count is of the same transactions.
        recovered.pending = pending;
        Ok(())
    }

    /// Settles, ends the session and the threads. While clones or transactions live, the last of them does that.
    pub fn close(self) -> Result<()> {
        // The end of the session empties the log, whose last entry it is.
        let settled = self.settle_and_retain().map(drop);
        drop(self);
        settled
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.ground.store.refuse_forked().is_err() {
            // The parent's: its threads are not here, and to close its connections would be to act for it.
            std::mem::forget(Arc::clone(&self.ground));
            std::mem::forget(std::mem::take(&mut self.threads));
            return self.pool.abandon();
        }
        self.ground.backlog.stop();
        self.ground.late.stop();
        self.ground.locks.stop();
        for thread in self.threads.lock().unwrap_or_else(|poison| poison.into_inner()).drain(..) {
            let _ = thread.join();
        }
        if self.ground.store.refuse_poisoned().is_ok() {
            let end = || -> Result<()> {
                txn::settle(&self.ground, Deadline::after(self.ground.limits.turn_wait))?;
                let mut turn = self.ground.enter()?;
                self.ground.locks.record_held(&mut turn)?;
                self.ground.session.end(&mut turn, &self.ground.sessions)?;
                match turn.truncate_log() {
                    Err(error) if error.is_busy() => Ok(()),
                    other => other,
                }
            };
            if let Err(error) = end() {
                tracing::warn!(%error, "the session did not end cleanly; the next one recovers");
            }
        }
    }
}

fn lay_ground(path: &Path, options: &Options) -> Result<Ground> {
    let path = std::fs::canonicalize(path).at("open the root", path)?;
    let root = RootDir::open(&path)?;
    root::refuse_network(&root.top().fd, &path)?;
    let state_path = path.join(options.state_dir.as_deref().unwrap_or(Path::new(STATE_DIR)));
    let state_dir = StateDir::open(&path, &state_path, options.create)?;
    root::refuse_network(&state_dir, &state_path)?;
    let state = root::look_at(&state_dir).at("look at", &state_path)?;

    let database = Database {
        path: options.database.as_ref().map_or_else(|| state_path.join("journal.db"), |at| path.join(at)),
        brought: options.database.is_some(),
        foreign_keys: options.foreign_keys,
    };
    if !options.create && !database.brought && !state::exists(&database.path) {
        return Err(Error::NoJournal { root: path });
    }
    let reserved = reserved(&path, &state_path, &database.path);
    let sessions = state_dir.subdirectory("sessions")?;
    let state_area = Area::open(STATE_AREA, state_dir.duplicate()?, state_path.clone())?;
    let store = Store::open(database, state_dir, options.turn_wait)?;
    let boot = boot_id();
    let fence_mark = codec::encode(&(&boot, state.place.mount))?;
    let session = Session::begin(&store, &state_path, &fence_mark, options.turn_wait)?;
    let opener = Opener::on(&path, &root.top().meta)?;
    let heartbeat = Heartbeat::new(store.database().clone(), state_path.clone(), options.heartbeat);
    let locks = Locks::new(state_path.clone(), session.id, heartbeat);
    let parts = Parts {
        root,
        opener,
        store,
        session,
        locks,
        limits: Limits {
            inline_file: options.inline_file,
            inline_txn: options.inline_txn,
            inline_blob: options.inline_blob,
            turn_wait: options.turn_wait,
        },
        state_path,
        state_ino: state.ino,
        state_born: state.btime,
        sessions,
        boot,
        reserved,
        drain: recovery::drain,
    };
    Ground::lay(parts, state_area, Backlog::new(options.settle_bytes, options.settle_paths))
}

/// The paths of the tree that are not the tree's: the state directory, and the database with its sidecars.
fn reserved(root: &Path, state: &Path, database: &Path) -> Vec<RelPath> {
    let within = |path: &Path| path.strip_prefix(root).ok().and_then(|path| RelPath::parse(path).ok());
    let mut reserved: Vec<RelPath> = within(state).into_iter().collect();
    if let Some(database) = within(database) {
        reserved.extend(SIDECARS.iter().filter_map(|suffix| database.with_suffix(suffix.as_bytes())));
        reserved.push(database);
    }
    reserved
}

/// Starts the thread that writes down what no COMMIT came by to carry along.
fn start_noter(ground: &Arc<Ground>) -> Result<JoinHandle<()>> {
    let noter = Arc::clone(ground);
    std::thread::Builder::new()
        .name("journal-note".into())
        .spawn(move || Late::keep_up(&noter))
        .at("start a thread for", ground.state_path.clone())
}

/// Starts the thread that settles behind the commits: when enough has come together, or after a pause.
fn start_settler(ground: &Arc<Ground>, options: &Options) -> Result<JoinHandle<()>> {
    let ground = Arc::clone(ground);
    let (idle, retention, runs) = (options.settle_after, options.retention, options.run_retention);
    std::thread::Builder::new()
        .name("journal-settle".into())
        .spawn(move || {
            let mut checkpointer = None;
            loop {
                let any = ground
                    .backlog
                    .wait(Duration::MAX, |state| state.stop || state.transactions > 0 || state.is_long_log());
                let state = match any.stop {
                    true => any,
                    false => ground.backlog.wait(idle, BacklogState::is_enough),
                };
                if state.stop {
                    return;
                }
                // A long log alone is only carried over: what is not settled stays in the database.
                let settles = !state.is_long_log() || state.is_much();
                if settles {
                    ground.backlog.take();
                } else {
                    ground.backlog.take_log();
                }
                let mut settle = || -> Result<()> {
                    if settles {
                        txn::settle(&ground, Deadline::after(ground.limits.turn_wait))?;
                        history::retain(&ground, &retention)?;
                        run::retain(&ground, runs)?;
                    }
                    let checkpointer = match &mut checkpointer {
                        Some(open) => open,
                        none => none.insert(Checkpointer::open(ground.store.database())?),
                    };
                    ground.store.readers().end_overdue();
                    checkpointer.run(&ground.store, ground.limits.turn_wait)
                };
                if let Err(error) = settle() {
                    tracing::warn!(%error, "settling in the background failed; it is tried again with the next commit");
                }
            }
        })
        .at("start a thread for", options.state_dir.clone().unwrap_or_default())
}
