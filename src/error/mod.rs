//! The one error type: what was being done, to which path or id, and what to do next.

mod blob;
mod context;
mod retry;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

pub use blob::{BlobError, Damage};
use context::io_advice;
pub(crate) use context::{IoContext, SqlContext};
pub use retry::Retry;

use crate::id::{Fence, QuarantineId, TxnId};

/// What every fallible function of this crate returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why something failed. Unless [`Error::is_outcome_unknown`], nothing of the transaction happened.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call failed.
    #[error("cannot {op} {}: {source}{}", path.display(), io_advice(source))]
    Io {
        /// What was being done, as a verb.
        op: &'static str,
        /// To which path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The path is not there.
    #[error("{} does not exist", path.display())]
    NotFound {
        /// The path that was asked for.
        path: PathBuf,
    },
    /// A directory is wanted and something else is there.
    #[error("{} is not a directory: move it away or choose another path", path.display())]
    NotADirectory {
        /// What stands in the way.
        path: PathBuf,
    },
    /// A directory is there and a file is wanted.
    #[error("{} is a directory: use remove_dir_all first, or choose another path", path.display())]
    IsADirectory {
        /// The directory.
        path: PathBuf,
    },
    /// Something is there already.
    #[error("{} exists already", path.display())]
    AlreadyExists {
        /// What is there.
        path: PathBuf,
    },
    /// A symlink stands on the way to a path; it could lead out of the root.
    #[error("a symlink stands on the way to {}: paths of a journal never follow one; name the real path", path.display())]
    SymlinkOnTheWay {
        /// The path as asked for.
        path: PathBuf,
    },
    /// A path this journal does not accept.
    #[error("{path:?} cannot be used as a path of the tree: {reason}")]
    BadPath {
        /// The path as given.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// What a guard is asked for holds something that this user could change, and could not put back as it was.
    #[error("{} cannot be guarded by this user: {reason}; guard around it, or run as its owner or as root", path.display())]
    CannotRestore {
        /// What could not be put back.
        path: PathBuf,
        /// Why not.
        reason: &'static str,
    },
    /// The source of a publish or rename lies on another filesystem.
    #[error("{} lies on another filesystem and cannot be moved from there: build it in the directory that Transaction::staging() gives", path.display())]
    CrossDevice {
        /// The source.
        path: PathBuf,
    },
    /// A filesystem on which neither locks nor SQLite's write-ahead log can be trusted.
    #[error("{} lies on a network filesystem ({kind}), where SQLite's write-ahead log does not work: keep the root, or at least `state_dir`, on a local disk", path.display())]
    NetworkFilesystem {
        /// The directory.
        path: PathBuf,
        /// Which filesystem it is.
        kind: &'static str,
    },
    /// There is no journal at the root and none was to be made.
    #[error("{} has no journal: run `journalctl-kb init {}` or open it with `create(true)`", root.display(), root.display())]
    NoJournal {
        /// The root that was asked for.
        root: PathBuf,
    },
    /// The database is not a SQLite database.
    #[error("{} is not a SQLite database: name another with `database(…)`, or move it away", path.display())]
    NotADatabase {
        /// The file.
        path: PathBuf,
    },
    /// The caller's database is not in WAL mode.
    #[error("{} is in journal mode {mode:?}; run `PRAGMA journal_mode=WAL` on it once, with nobody else connected", path.display())]
    NotWal {
        /// The database.
        path: PathBuf,
        /// The mode it is in.
        mode: String,
    },
    /// A newer version of this library made the journal.
    #[error("{} has schema {found}, this library knows up to {known}: use a newer journal-kb; nothing was touched", path.display())]
    NewerSchema {
        /// The database.
        path: PathBuf,
        /// The version it has.
        found: i64,
        /// The newest this library knows.
        known: i64,
    },
    /// SQLite is older than the versions whose write-ahead log is safe.
    #[error(
        "SQLite {found} can corrupt a database with several writers; link 3.51.3 or later (feature `bundled` does)"
    )]
    SqliteTooOld {
        /// The version that is linked.
        found: String,
    },
    /// A setting of SQLite did not take.
    #[error("SQLite did not accept PRAGMA {name}: it answers {got:?}, not {want:?}")]
    Pragma {
        /// Its name.
        name: &'static str,
        /// What was asked for.
        want: String,
        /// What it says.
        got: String,
    },
    /// Something stored cannot be understood.
    #[error("{what} is corrupt: {detail}; run `journalctl-kb status` and keep a copy before mending anything")]
    Corrupt {
        /// What it is.
        what: String,
        /// What is wrong with it.
        detail: String,
    },
    /// A path of the tree is a SQLite database that somebody has open, or that left its sidecars behind.
    #[error("{} is a SQLite database in use, or with -wal, -shm or -journal beside it: close every connection to it (the last one removes them), then try again", path.display())]
    DatabaseInUse {
        /// The database.
        path: PathBuf,
    },
    /// SQL failed; with the caller's own statements this is the caller's error.
    #[error("SQLite, {op}: {source}")]
    Sql {
        /// What was being done.
        op: &'static str,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// The caller's SQL asked for something that is the engine's.
    #[error(
        "this SQL is not allowed here: {what}; a transaction's SQL may use every table but journal_*, and no BEGIN, COMMIT, SAVEPOINT, ATTACH or PRAGMA"
    )]
    Denied {
        /// What it asked for.
        what: String,
    },
    /// The caller's SQL ended the SQLite transaction it ran in.
    #[error(
        "the transaction's SQL ended it (OR ROLLBACK, or RAISE(ROLLBACK) in a trigger): use OR ABORT and return the error instead"
    )]
    EndedBySql,
    /// A step of the application's own schema failed.
    #[error("migration {step} failed and was rolled back: {source}")]
    Migration {
        /// Which one, counted from 1.
        step: usize,
        /// Why.
        source: Box<Error>,
    },
    /// The database has had more migrations than the application names.
    #[error("the database has had {found} migrations, this program knows {known}: it is older than the database")]
    NewerMigrations {
        /// How many were run.
        found: usize,
        /// How many the caller named.
        known: usize,
    },
    /// A read took longer than the limit, and would have kept the write-ahead log from shrinking.
    #[error(
        "a read was ended after {limit:?}, because it keeps the write-ahead log from shrinking: read in smaller pieces or raise `read_limit`"
    )]
    ReadTooLong {
        /// The limit.
        limit: Duration,
    },
    /// No pooled connection came free in time.
    #[error("no reader came free within {waited:?}: raise `pool_size`, or read less at once")]
    PoolTimeout {
        /// How long was waited.
        waited: Duration,
    },
    /// Somebody else held what was asked for until the deadline.
    #[error(
        "{what} is held by {holder} and was not released within {waited:?}: try again, wait longer, or see `journalctl-kb locks`"
    )]
    Busy {
        /// The lock.
        what: String,
        /// Who has it, as far as the rows tell.
        holder: String,
        /// How long was waited.
        waited: Duration,
    },
    /// Waiting was called off by a [`StopToken`](crate::StopToken).
    #[error("waiting for {what} was called off: {reason}")]
    Cancelled {
        /// What was waited for.
        what: String,
        /// Why it was called off.
        reason: String,
    },
    /// The calling thread has the lock already and would wait for itself.
    #[error("lock {name:?} is held already, {how}: release that first, or begin transactions on the lock that is held")]
    AlreadyHeld {
        /// The lock.
        name: String,
        /// By whom.
        how: &'static str,
    },
    /// Debug builds: locks were taken in an order in which two that do it at once could wait for each other.
    #[error(
        "lock {wanted:?} was asked for while this thread holds {held:?}: take locks before transactions begin, and several in the order of their names"
    )]
    LockOrder {
        /// What this thread holds.
        held: String,
        /// What it asked for.
        wanted: String,
    },
    /// A shared lock was to do what only an exclusive one may.
    #[error("lock {name:?} is shared: it has no fence, and nothing is written under it; take it exclusively")]
    LockShared {
        /// The lock.
        name: String,
    },
    /// No lock can have this name.
    #[error("{name:?} cannot be the name of a lock: {reason}")]
    BadLockName {
        /// The name as given.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Somebody replaced or removed a lock file.
    #[error("the lock file {} was replaced while it was in use: two processes may now believe they hold it; stop them, then open the journal again", path.display())]
    LockFileReplaced {
        /// The file.
        path: PathBuf,
    },
    /// The lock a transaction began under was taken away; everything was rolled back.
    #[error("lock {name:?} was lost (fence {fence} was overtaken): nothing was committed; begin again")]
    LockLost {
        /// The lock.
        name: String,
        /// The fence this holder had.
        fence: Fence,
    },
    /// Nobody can follow the changes under this name.
    #[error("{name:?} cannot be the name of a follower: it is empty")]
    NoFollower {
        /// The name as given.
        name: String,
    },
    /// A follower cannot be done with what is not committed yet: it would never hear of it.
    #[error("no transaction {txn} is committed yet: a follower advances to the number of a commit that it was told of")]
    NotCommitted {
        /// The number as given.
        txn: TxnId,
    },
    /// No message can be sent to this topic.
    #[error("{topic:?} cannot be a topic: {reason}")]
    BadTopic {
        /// The topic as given.
        topic: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A transaction that is at work guards this path, and everything it does there may be put back.
    #[error("{} is guarded by {holder}: wait until that ends, see `journalctl-kb locks`", path.display())]
    PathBusy {
        /// The path.
        path: PathBuf,
        /// Who guards it.
        holder: String,
    },
    /// Somebody else did something to a path that a program wrote to in a layer.
    #[error("{}: {reason}; nothing of what was written was taken over", path.display())]
    Conflict {
        /// The path.
        path: PathBuf,
        /// What they did.
        reason: &'static str,
    },
    /// A transaction guarded this path, died, and could not be put back.
    #[error("{} was guarded by {holder}, which could not be put back and is in quarantine: see `journalctl-kb quarantine show {id}`, then say how it ends with `journalctl-kb quarantine retry {id}`, `restore {id}` or `keep-live {id}`", path.display())]
    PathNotPutBack {
        /// The path.
        path: PathBuf,
        /// Who guarded it.
        holder: String,
        /// What it is called in quarantine.
        id: QuarantineId,
    },
    /// An earlier transaction could not be carried into the tree on this path yet.
    #[error("{} is still waiting for transaction {txn} to be applied to it: mend what `journalctl-kb show {txn}` names, then run `journalctl-kb recover`", path.display())]
    PathPending {
        /// The path.
        path: PathBuf,
        /// The transaction.
        txn: TxnId,
    },
    /// What a transaction needs lies on a mount inside the root that is not there now.
    #[error(
        "a mount inside the root that this journal has used (area {area}) is not mounted: mount it, then run `journalctl-kb recover`"
    )]
    NotMounted {
        /// The number of the area in the journal.
        area: i64,
    },
    /// Another filesystem, a bind mount or a btrfs subvolume lies in a guarded tree: nothing can be moved across its edge.
    #[error(
        "another filesystem or subvolume begins at {}, in a guarded tree: guard it by itself, and what lies beside it by guards of its own, all in one transaction; or unmount it",
        path.display()
    )]
    MountInTree {
        /// Where it begins.
        path: PathBuf,
    },
    /// Somebody else's commit changed a path while this transaction, which moves or removes directories, was prepared.
    #[error("{} was changed by another transaction meanwhile: nothing was committed; begin again", path.display())]
    ChangedMeanwhile {
        /// The path.
        path: PathBuf,
    },
    /// A quarantined transaction holds this path.
    #[error("{} belongs to transaction {txn}, which is in quarantine: see `journalctl-kb quarantine show {txn}`, then say how it ends with `journalctl-kb quarantine retry {txn}`, `restore {txn}` or `keep-live {txn}`", path.display())]
    PathQuarantined {
        /// The path.
        path: PathBuf,
        /// The transaction.
        txn: TxnId,
    },
    /// Nothing in quarantine waits for a decision under this name.
    #[error("nothing called {id} waits in quarantine{}: see `journalctl-kb quarantine list`", if *.kept { "; it is over, and only what was kept of it is there" } else { "" })]
    NotInQuarantine {
        /// The name.
        id: QuarantineId,
        /// It is over, and what was kept of it can be discarded.
        kept: bool,
    },
    /// The idempotency key belongs to a transaction with other content.
    #[error("the key {key:?} was used by transaction {txn} for other content: a key names one change; use a new one")]
    KeyReused {
        /// The key.
        key: String,
        /// The transaction that has it.
        txn: TxnId,
    },
    /// An I/O error inside COMMIT: the change may or may not have happened.
    #[error(
        "an I/O error inside COMMIT leaves the outcome unknown: {source}; open the journal again, and repeat the transaction with its idempotency key to learn which"
    )]
    OutcomeUnknown {
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// A sync failed earlier; this handle no longer writes.
    #[error(
        "this journal handle is poisoned ({why}): close it and open the journal again, which rewrites what may not have reached the disk"
    )]
    Poisoned {
        /// What happened.
        why: String,
    },
    /// The disk did not take what was synced; the data is kept in the journal and rewritten at the next recovery.
    #[error("the disk refused to sync {}: {source}; look at the disk, then run `journalctl-kb recover`", path.display())]
    SyncFailed {
        /// What was synced.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The journal was called from inside a closure that runs while the journal itself is at work.
    #[error("the journal was called from inside a closure it is running ({what}): do that before or after")]
    Reentrant {
        /// Which call.
        what: &'static str,
    },
    /// This process was forked from one that had the journal open. SQLite's locks are not inherited, and it does not see that:
    /// what the child wrote could be lost.
    #[error(
        "this process was forked from one that had the journal open, whose locks it does not have: open the journal after forking, or in a program started anew (exec)"
    )]
    Forked,
    /// What a run has done could not be written, again and again: it ends, rather than do what cannot be banked.
    #[error(
        "the progress of run {job:?} cannot be written: {detail}; {banked} items are banked, {unbanked} done since are not and will be done again; mend that and start it again"
    )]
    CheckpointUnavailable {
        /// The job.
        job: String,
        /// Items that are durable.
        banked: u64,
        /// Items that were recorded and are not.
        unbanked: u64,
        /// What went wrong the last time.
        detail: String,
    },
    /// A run does not take this item.
    #[error("run {job:?} does not take item {item:?}: {reason}")]
    ItemRefused {
        /// The job.
        job: String,
        /// The item, as text.
        item: String,
        /// Why not.
        reason: String,
    },
    /// The run was finished, stopped or abandoned.
    #[error("run {job:?} has ended in this session: start it again to go on")]
    RunEnded {
        /// The job.
        job: String,
    },
    /// No job of this name has a run that could be changed.
    #[error("no run of {job:?} is open: see `journalctl-kb runs`")]
    NoRun {
        /// The job.
        job: String,
    },
    /// A blob cannot be had, written or removed.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// The handle was closed.
    #[error("this journal was closed")]
    Closed,
    /// More than one transaction may hold.
    #[error("{what} is larger than {limit}: split it, or make it smaller")]
    TooLarge {
        /// What it is.
        what: &'static str,
        /// How much is allowed.
        limit: u64,
    },
    /// The application's own error, passed through a closure.
    #[error(transparent)]
    Caller(Box<dyn std::error::Error + Send + Sync>),
}

impl Error {
    /// Carries an application's own error out of a closure given to `transact`, `sql` or `read`.
    pub fn caller(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Caller(error.into())
    }

    /// The system's own error number, where there is one.
    pub(crate) fn errno(&self) -> Option<i32> {
        match self {
            Self::Io { source, .. } | Self::SyncFailed { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }

    pub(crate) fn sql(op: &'static str, source: rusqlite::Error) -> Self {
        Self::Sql { op, source }
    }

    pub(crate) fn corrupt(what: impl Into<String>, detail: impl std::fmt::Display) -> Self {
        Self::Corrupt { what: what.into(), detail: detail.to_string() }
    }
}

impl From<rusqlite::Error> for Error {
    fn from(source: rusqlite::Error) -> Self {
        Self::Sql { op: "running a statement", source }
    }
}
