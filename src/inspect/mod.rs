//! Looking inside a journal without being part of it.
//!
//! An [`Inspector`] opens the database read-only. It takes no lock of the engine, never blocks a writer, writes no row
//! and runs no recovery, so it works while others write and on a journal in any state, a crashed one included. Every
//! call reads one snapshot and lets go of it before it returns: nothing here keeps the write-ahead log from shrinking.
//!
//! What it gives are plain values that serialize with serde. Their fields are the fields of `journalctl-kb --json`: they
//! are added to, never renamed or given another meaning. Times end in `_ms` (milliseconds since 1970, UTC), sizes in
//! `bytes`. A path stands as `path`, readable but lossy, with the exact bytes in `path_hex` beside it where it is not
//! UTF-8. A stored value that cannot be understood is shown as a placeholder in angle brackets, or as 0 where a number
//! belongs: one bad row never hides the others.
//!
//! Who is alive is the kernel's word, never the database's: see [`SessionInfo::alive`], [`LockInfo::held`],
//! [`GuardInfo::alive`], [`RunInfo::state`], [`TopicInfo::state`] and [`BlobInfo::state`]. A journal of an older schema is read as it is: looking migrates nothing.

mod blobs;
mod database;
mod feed;
mod guards;
mod holders;
mod inspector;
mod liveness;
mod locks;
mod model;
mod outbox;
mod quarantine;
mod runs;
mod status;
mod transactions;
mod usage;
mod value;
mod verdict;

pub use crate::lock::Holder;
pub use blobs::{
    BlobCheck, BlobDetail, BlobFilter, BlobFinding, BlobInfo, BlobList, BlobNews, BlobsInfo, BlobsVerified, StrayBlob,
};
pub use feed::{FollowerInfo, Tail};
pub use holders::{LockHolders, LockProcess, Refusal, Role};
pub use inspector::{InspectOptions, Inspector};
pub use model::{
    Advice, AreaUsage, ChangeInfo, EventInfo, GuardInfo, Health, LockInfo, PathInfo, RedoInfo, SessionInfo,
    StateCounts, Status, TransactionDetail, TransactionFilter, TransactionSummary, TreeInfo, Turnstile, Unsettled,
    Waiter, Waiting,
};
pub use outbox::{MessageDetail, MessageFilter, MessageInfo, OutboxInfo, TopicInfo};
pub use quarantine::{KeptFile, QuarantineDetail, QuarantineEntry, QuarantinePath};
pub use runs::{RunDetail, RunInfo, RunItem, RunTry};
