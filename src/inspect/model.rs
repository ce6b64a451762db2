//! What an inspector tells. The fields are documented and stable: `journalctl-kb --json` writes them as they stand here.

use std::path::PathBuf;

use serde::Serialize;

use super::blobs::BlobsInfo;
use super::feed::FollowerInfo;
use super::outbox::OutboxInfo;
use super::runs::RunInfo;
use super::value::{from_fields, lossy, optional_path_fields, path_fields};
use crate::id::TxnId;
use crate::lock::Holder;

/// The journal as a whole: what `journalctl-kb status` shows.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Status {
    /// The directory whose tree is protected.
    #[serde(serialize_with = "lossy")]
    pub root: PathBuf,
    /// Where the engine keeps its own files.
    #[serde(serialize_with = "lossy")]
    pub state_dir: PathBuf,
    /// The database file.
    #[serde(serialize_with = "lossy")]
    pub database: PathBuf,
    /// What it all comes to.
    pub health: Health,
    /// What to type next; empty when there is nothing to do.
    pub advice: Vec<Advice>,
    /// The version of the engine's schema.
    pub schema: i64,
    /// How many of the application's own migrations have run.
    pub app_schema: i64,
    /// When the journal was made.
    pub created_ms: i64,
    /// The size of the database file.
    pub database_bytes: u64,
    /// The size of its write-ahead log; 0 when there is none.
    pub wal_bytes: u64,
    /// What is free on the filesystem of the state directory; none when it does not say.
    pub free_bytes: Option<u64>,
    /// Staged content and pre-images on their way out, on all mounts.
    pub stage: AreaUsage,
    /// Old versions that are kept.
    pub history: AreaUsage,
    /// What was set aside for a person.
    pub quarantine: AreaUsage,
    /// The sessions that did not say goodbye: alive, or dead and not yet recovered.
    pub sessions: Vec<SessionInfo>,
    /// All locks, by name.
    pub locks: Vec<LockInfo>,
    /// Whose turn it is to write.
    pub turnstile: Turnstile,
    /// The transactions that guard paths and have not ended: the first 50.
    pub guards: Vec<GuardInfo>,
    /// The runs that are open, and of every other job the last one if it left items set aside: the first 50.
    pub runs: Vec<RunInfo>,
    /// What is to be told to others.
    pub outbox: OutboxInfo,
    /// Blobs: how many, how large, what is still to go. Each table is counted as far as 200,000 rows.
    pub blobs: BlobsInfo,
    /// Who follows the changes under a name.
    pub followers: Vec<FollowerInfo>,
    /// How many transactions are in which state.
    pub transactions: StateCounts,
    /// What is committed and not yet durable in the live tree.
    pub unsettled: Unsettled,
    /// Transactions of which a path could not be applied yet, with their paths: the first 50.
    pub pending: Vec<Waiting>,
    /// Transactions that wait for a person, with their paths: the first 50.
    pub quarantined: Vec<Waiting>,
    /// The newest transaction that was committed.
    pub last_commit: Option<TransactionSummary>,
    /// The newest warnings and errors, newest first.
    pub events: Vec<EventInfo>,
    /// True when a sync of the write-ahead log failed and nobody has mended it since.
    pub sync_failed: bool,
}

/// What the state of a journal comes to, from best to worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Health {
    /// Nothing to do.
    Ok,
    /// A crash or a failed sync left work to the next opening of the journal.
    NeedsRecovery,
    /// Some path could not be written; it is retried, but something outside the journal may have to be mended.
    Pending,
    /// A person has to look.
    Quarantined,
}

/// Something to type, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Advice {
    /// The command line, without `--root`.
    pub command: String,
    /// What it is for.
    pub why: String,
}

/// What a directory of the engine holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct AreaUsage {
    /// Files, symlinks and directories in it.
    pub entries: u64,
    /// The sizes of its files, added up.
    pub bytes: u64,
    /// True when counting stopped early or something could not be read: there is at least this much.
    pub at_least: bool,
}

/// One opening of the journal by one process.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct SessionInfo {
    /// Its name, 32 hexadecimal digits.
    pub id: String,
    /// The process.
    pub pid: i64,
    /// The program's name.
    pub program: String,
    /// When it opened the journal.
    pub since_ms: i64,
    /// True when the kernel says that it still holds its session file; none where the kernel does not tell.
    pub alive: Option<bool>,
}

/// A named lock.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct LockInfo {
    /// Its name.
    pub name: String,
    /// True when the kernel says that somebody holds it; none where the kernel does not tell.
    pub held: Option<bool>,
    /// The processes that the kernel names for it.
    pub pids: Vec<i32>,
    /// The fencing token of the newest acquisition.
    pub fence: i64,
    /// Who took it last and did not give it back. With `held` false that is a process that died.
    pub holder: Option<Holder>,
    /// When it was taken last.
    pub acquired_ms: i64,
    /// How often it was taken.
    pub acquisitions: u64,
    /// How often the holder before had died with it.
    pub crashes: u64,
    /// How often a holder found that it had been taken away.
    pub losses: u64,
    /// True when the times that the living holder noted lie before its own start, or in the future: clocks were set, and
    /// ages made of them are of no use.
    pub clock_differs: bool,
    /// How it is held: `exclusive` or `shared`; none when it is free, or the kernel does not tell.
    pub mode: Option<&'static str>,
    /// Who waits for it: those that the kernel names, and those that have waited for more than a second inside a process.
    pub waiting: Vec<Waiter>,
    /// How often somebody waited for more than a second.
    pub waits: u64,
    /// The longest of these waits.
    pub longest_wait_ms: u64,
}

/// Somebody who waits for a lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Waiter {
    /// The process, as it is called here.
    pub pid: i32,
    /// Its program's name; empty when it is not known.
    pub program: String,
    /// Since when; none within the first second, and when clocks were set.
    pub since_ms: Option<i64>,
}

/// The turnstile: whose turn it is to write, over all processes.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct Turnstile {
    /// True when the kernel says that somebody has it just now; none where the kernel does not tell.
    pub held: Option<bool>,
    /// The process that has it.
    pub pids: Vec<i32>,
    /// The processes that wait for it.
    pub waiting: Vec<i32>,
}

/// A transaction that guards paths, from its first guard until it has committed or everything is put back.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct GuardInfo {
    /// Its number for as long as it lasts; not the number of a transaction, which it gets when it ends.
    pub id: i64,
    /// The label of its transaction.
    pub label: String,
    /// The lock it runs under.
    pub lock: String,
    /// The session it belongs to.
    pub session: String,
    /// The process; 0 when its session is not known.
    pub pid: i64,
    /// The program's name; empty when its session is not known.
    pub program: String,
    /// When its transaction began.
    pub since_ms: i64,
    /// How many single paths it guards, besides trees.
    pub paths: u64,
    /// How many old versions of files, those of databases aside, are second links to the file.
    pub links: u64,
    /// How many share their blocks with the file.
    pub reflinks: u64,
    /// How many are copies.
    pub copies: u64,
    /// The trees it guards.
    pub trees: Vec<TreeInfo>,
    /// How often recovery began to put everything back and did not come to an end.
    pub attempts: u64,
    /// True when the kernel says that its session lives; none where the kernel does not tell.
    pub alive: Option<bool>,
    /// True when the kernel says that somebody holds its lock; none where the kernel does not tell. When nobody does its
    /// transaction is over, in a session that lives too: then it could not put everything back.
    pub held: Option<bool>,
    /// The process that works under it in place of the transaction's own, for as long as it lives: it may outlive that one, and
    /// nothing is put back before it has ended.
    pub worker: Option<u32>,
    /// True when recovery gave up: everything is kept, and a person has to look.
    pub quarantined: bool,
    /// Why it gave up, when it is known.
    pub reason: Option<String>,
}

impl GuardInfo {
    /// True when nobody is at work under it any more, and recovery is to put everything back.
    pub fn is_left_over(&self) -> bool {
        !self.quarantined && self.worker.is_none() && (self.alive == Some(false) || self.held == Some(false))
    }
}

/// A tree that a transaction guards.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct TreeInfo {
    /// Its topmost directory, relative to the root; `.` is the root itself.
    #[serde(flatten, serialize_with = "path_fields")]
    pub path: PathBuf,
    /// `any` or `replacing`: what its writers may do; `layer` when they write to a layer over it.
    pub writers: String,
    /// False while its baseline is brought up to date: nobody was let in yet. With a layer nobody ever is.
    pub ready: bool,
}

/// How many transactions are in which state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct StateCounts {
    /// All there are.
    pub total: u64,
    /// Durable, and on their way into the tree.
    pub committed: u64,
    /// Some path could not be written yet.
    pub pending: u64,
    /// In the tree, which is not synced yet.
    pub applied: u64,
    /// Being synced.
    pub settling: u64,
    /// Done.
    pub settled: u64,
    /// Not committed: what they had done to guarded paths was put back.
    pub rolled_back: u64,
    /// Waiting for a person.
    pub quarantined: u64,
    /// In a state this version does not know.
    pub unknown: u64,
}

/// What is committed, so safe, and not yet durable in the live tree: until then its content is kept in the journal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Unsettled {
    /// How many transactions.
    pub transactions: u64,
    /// Their new content.
    pub bytes: u64,
}

/// A transaction that is held up.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Waiting {
    /// Which one.
    pub id: TxnId,
    /// Its label.
    pub label: String,
    /// How often recovery was begun for it and did not come to an end.
    pub attempts: u64,
    /// The first of its paths, at most 20.
    pub paths: Vec<PathInfo>,
    /// How many more there are.
    pub more_paths: u64,
    /// Why, in the words of the newest event about it.
    pub reason: Option<String>,
}

/// A path of the tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PathInfo {
    /// Relative to the root.
    #[serde(flatten, serialize_with = "path_fields")]
    pub path: PathBuf,
}

/// Which transactions to list.
#[derive(Clone, Copy, Debug, Default)]
pub struct TransactionFilter {
    /// At most so many, the newest.
    pub limit: Option<u64>,
    /// Only what was committed at that time or later.
    pub since_ms: Option<i64>,
}

/// A transaction in one line.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct TransactionSummary {
    /// Its number, in the order in which transactions ended.
    pub id: TxnId,
    /// `committed`, `pending`, `applied`, `settling`, `settled`, `quarantined` or `rolled_back`.
    pub state: String,
    /// What it was for, in the caller's words.
    pub label: String,
    /// The idempotency key.
    pub key: Option<String>,
    /// The lock it ran under.
    pub lock: String,
    /// The fencing token it had.
    pub fence: i64,
    /// The session that made it.
    pub session: String,
    /// When it began.
    pub began_ms: i64,
    /// When it was committed, or rolled back.
    pub committed_ms: i64,
    /// When it was settled; of one that was rolled back, the same as `committed_ms`.
    pub settled_ms: Option<i64>,
    /// How many paths it changed; of one that was rolled back, how many were put back.
    pub changes: u64,
    /// How much new content it brought.
    pub bytes: u64,
    /// How much of the old content is kept; of one that was rolled back, of what was displaced.
    pub history_bytes: u64,
    /// True when it changed rows of the application too.
    pub ran_sql: bool,
    /// How often recovery was begun for it and did not come to an end.
    pub attempts: u64,
}

/// A transaction in full: what `journalctl-kb show` shows.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct TransactionDetail {
    /// Its fields stand beside the others in JSON.
    #[serde(flatten)]
    pub summary: TransactionSummary,
    /// The program that made it, as long as its session is known.
    pub program: Option<String>,
    /// What it did to which path; of one that was rolled back, what had been done and is undone.
    pub paths: Vec<ChangeInfo>,
    /// What recovery would still need; empty once it is settled.
    pub redo: Vec<RedoInfo>,
    /// What happened to it, oldest first.
    pub events: Vec<EventInfo>,
}

/// What a transaction did to one path.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct ChangeInfo {
    /// Relative to the root.
    #[serde(flatten, serialize_with = "path_fields")]
    pub path: PathBuf,
    /// `created`, `replaced`, `removed`, `renamed` or `directory`.
    pub kind: String,
    /// The path it had before it was renamed (`from` and `from_hex` in JSON).
    #[serde(flatten, serialize_with = "from_fields")]
    pub from: Option<PathBuf>,
    /// The size of the new version.
    pub bytes: Option<u64>,
    /// The size of the old version.
    pub old_bytes: Option<u64>,
    /// BLAKE3 of the new version, in hexadecimal digits.
    pub hash: Option<String>,
    /// True when the old version is kept; of a transaction that was rolled back, what was displaced.
    pub has_old: bool,
    /// The name it is kept by, in `history/` of the state directory (or of its mount's `.journal-stage`). It lies in `stage/`
    /// there as long as the transaction is not settled, and when a crash came before it was moved.
    pub kept_as: Option<String>,
}

/// A path for which the journal still holds what recovery needs.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct RedoInfo {
    /// Relative to the root.
    #[serde(flatten, serialize_with = "path_fields")]
    pub path: PathBuf,
    /// How much content stands in the row; none when it lies in the stage, or there is none.
    pub inline_bytes: Option<u64>,
}

/// Something that happened and that somebody may want to know.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct EventInfo {
    /// Its number, in order.
    pub id: i64,
    /// When.
    pub at_ms: i64,
    /// `info`, `warn` or `error`.
    pub level: String,
    /// A word for what it is.
    pub kind: String,
    /// The transaction it is about.
    pub txn: Option<TxnId>,
    /// The path it is about.
    #[serde(flatten, serialize_with = "optional_path_fields")]
    pub path: Option<PathBuf>,
    /// For people.
    pub message: String,
}
